"""The one place that talks to a language model over a network: any endpoint of the OpenAI protocol.

An exchange is one request for a chat completion. It ends with the words and their tokens, or with an
:class:`~convgym.errors.InfrastructureError`: time-outs, refused connections, rate limits and server errors are
tried again with exponential back-off and jitter (or after the ``Retry-After`` that the server asks for), within
a bound on the whole exchange that holds against the slowest server. An endpoint that keeps failing is left
alone for a while, for all lanes of the process at once (circuit breaker, Nygard 2018, "Release It!").

The libraries for it are an optional extra: ``pip install "convgym[llm]"``.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convgym.errors import ConfigError, InfrastructureError, UnknownNameError

__all__ = ["Completion", "Endpoint", "Exchanges", "Sampling", "circuit", "clean", "retry_after"]

EXTRA = 'pip install "convgym[llm]"'
RETRIED = frozenset({408, 409, 429})  # beside the 5xx: the same request may succeed later
LONGEST_WAIT = 30.0  # seconds of back-off between two attempts

Options = TypeVar("Options", bound="Plain")
Result = TypeVar("Result")


class Completion(NamedTuple):
    """What a language model answered.

    Attributes:
        text: Its words.
        tokens_in: Tokens of the request, as the server counted them; 0 where it does not say.
        tokens_out: Tokens of the answer.
        cut: Whether it broke off at the most tokens allowed.
    """

    text: str
    tokens_in: int
    tokens_out: int
    cut: bool = False


class Exchanges(Protocol):
    """Whatever answers requests: an endpoint, or a cassette of one."""

    def complete(self, request: Mapping[str, Any]) -> Completion:
        """Answers one request, the body of a chat completion."""
        ...


class Plain(BaseModel):
    """Base of settings that come as JSON-plain mappings and are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def of(cls: type[Options], options: Mapping[str, Any]) -> Options:
        """Reads a mapping.

        Raises:
            UnknownNameError: If a name is none of the settings.
            ConfigError: If a setting is missing or illegal.
        """
        for name in options:
            if name not in cls.model_fields:
                raise UnknownNameError.of("option", str(name), cls.model_fields)
        try:
            # JSON has one kind of number: an integer is as good as a float, a string is not.
            return cls.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            got = "nothing" if first["type"] == "missing" else repr(first["input"])
            raise ConfigError(f"option {name}: {first['msg']}, got {got}.") from None


class Sampling(Plain):
    """What every request of one model holds, and what its tokens cost.

    Attributes:
        model: Name of the model at the endpoint.
        temperature: Of its samples.
        max_tokens: Most tokens of an answer; None leaves it to the server.
        extra: Further fields of the request's body, e.g. ``{"reasoning_effort": "low"}``.
        price_in: Price of a million tokens of requests.
        price_out: Price of a million tokens of answers.
    """

    model: str = Field(min_length=1)
    temperature: float = Field(0.7, ge=0.0)
    max_tokens: int | None = Field(100, ge=1)
    extra: dict[str, Any] = Field(default_factory=dict)
    price_in: float = Field(0.0, ge=0.0)
    price_out: float = Field(0.0, ge=0.0)

    def request(self, messages: Sequence[Mapping[str, str]], seed: int) -> dict[str, Any]:
        """Returns the body of a request; equal conversations at equal turns give equal bodies.

        Args:
            messages: Chat messages.
            seed: Of the samples, for servers that honour it; it also keeps equal prompts of two episodes apart.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.temperature,
            "seed": seed % 2**31,  # servers disagree about the width; this one fits all
        }
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        return {**body, **self.extra}

    def cost(self, completion: Completion) -> float:
        """Returns the price of an exchange."""
        return (completion.tokens_in * self.price_in + completion.tokens_out * self.price_out) / 1e6


class Endpoint(Plain):
    """An endpoint of the OpenAI protocol, and how patient to be with it.

    Attributes:
        base_url: Its address up to ``/v1``; it may hold no password, because settings are written down.
        api_key_env: Name of the environment variable with the API key; "" for a server without keys.
        timeout_s: Seconds for one attempt.
        retries: Further attempts; an exchange never takes longer than ``(retries + 1) * timeout_s``.
        backoff_s: First wait between attempts; it doubles, up to half a minute.
        circuit_failures: Failed attempts in a row after which the endpoint is left alone.
        circuit_s: Seconds until it is tried again.
    """

    base_url: str
    api_key_env: str = ""
    timeout_s: float = Field(30.0, gt=0.0)
    retries: int = Field(3, ge=0)
    backoff_s: float = Field(0.5, ge=0.0)
    circuit_failures: int = Field(8, ge=1)
    circuit_s: float = Field(30.0, ge=0.0)

    def model_post_init(self, context: Any) -> None:
        """Checks what can be known before the first request.

        Raises:
            ConfigError: If the address or the key cannot be used, or the extra is not installed.
        """
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(f"option base_url: expected http(s)://host[:port]/v1, got {self.base_url!r}.")
        if address.username is not None or address.password is not None:
            raise ConfigError(
                "option base_url: expected an address without a password, because settings are written into "
                "reports and cassettes; put the key into an environment variable and name it in api_key_env."
            )
        _libraries()
        self._key()

    def complete(self, request: Mapping[str, Any]) -> Completion:
        """Answers one request.

        Args:
            request: The body of a chat completion.

        Raises:
            InfrastructureError: If the endpoint failed for good, refused, or is being left alone.
        """
        try:
            return _wait_for(self._exchange(dict(request)))
        except Exception as error:
            raise InfrastructureError(self._said(error)) from None  # the cause may hold request headers

    async def _exchange(self, request: dict[str, Any]) -> Completion:
        """Tries until it succeeds, is refused, or the attempts or the time are spent."""
        tenacity = _libraries().tenacity
        whole = (self.retries + 1) * self.timeout_s
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(self.retries + 1) | tenacity.stop_before_delay(whole),
            wait=self._pause,
            reraise=True,
        )
        async with asyncio.timeout(whole):
            completion: Completion = await attempts(self._attempt, request)
            return completion

    async def _attempt(self, request: dict[str, Any]) -> Completion:
        client = _client(os.getpid(), self.base_url, self._key())
        # calling() and not call(): the latter holds the breaker's lock until the answer is there, and all
        # lanes would wait for one another.
        with circuit(self).calling():
            async with asyncio.timeout(self.timeout_s):
                return _read(await client.post("/chat/completions", cast_to=object, body=request))

    def _pause(self, state: Any) -> float:
        """Seconds before the next attempt: doubling, half of it at random, and never before the server asks."""
        wait = min(self.backoff_s * 2.0 ** (state.attempt_number - 1), LONGEST_WAIT)
        # Lanes that failed together should not come back together. A generator of its own: libraries draw
        # such jitter from the process-wide one, which belongs to the user.
        jittered = wait * (0.5 + 0.5 * random.SystemRandom().random())
        asked = retry_after(getattr(state.outcome.exception(), "response", None))
        return float(max(jittered, asked))

    def _key(self) -> str:
        if not self.api_key_env:
            return "none"
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise ConfigError(
                f"option api_key_env: expected an API key in the environment variable {self.api_key_env}, got "
                "none; set it, or use api_key_env='' for a server without keys."
            )
        return key

    def _said(self, error: Exception) -> str:
        """Says what failed, without the key, which some servers repeat in their errors."""
        status = getattr(error, "status_code", None)
        kind = type(error).__name__ if status is None else f"{type(error).__name__} (status {status})"
        detail = " ".join(str(error).split())[:300] if str(error) else "no answer in time"
        if self.api_key_env:
            detail = detail.replace(self._key(), "***")
        tries = f"{self.retries + 1} attempts of at most {self.timeout_s:g} s"
        return f"{self.base_url}: {kind}: {detail}; tried with {tries}."


def clean(text: str) -> str:
    """Returns a text that can be sent: what UTF-8 cannot hold becomes a question mark.

    >>> clean("a\\ud800b")
    'a?b'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def retry_after(response: Any) -> float:
    """Returns the seconds that a response asks to wait, 0 if it does not ask.

    Args:
        response: Anything with ``headers``, or None. ``Retry-After`` holds seconds or a date (RFC 9110).
    """
    headers = getattr(response, "headers", None) or {}
    asked = str(headers.get("retry-after", "")).strip()
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0


def circuit(endpoint: Endpoint) -> Any:
    """Returns the circuit breaker that all lanes of the process share for an endpoint."""
    return _breaker(os.getpid(), endpoint.base_url, endpoint.circuit_failures, endpoint.circuit_s)


# -- inside --------------------------------------------------------------------------------------------------


class _Malformed(Exception):
    """An answer that is not a chat completion."""


def _read(body: Any) -> Completion:
    """Reads the body of an answer; an empty message is an answer, anything else must be there."""
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        usage = body.get("usage") or {}
        tokens_in, tokens_out = (int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion"))
        return Completion(clean(str(text)), tokens_in, tokens_out, choice.get("finish_reason") == "length")
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise _Malformed(f"expected a chat completion, got {str(body)[:80]!r}") from None


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed when it is tried again."""
    status = getattr(error, "status_code", None)
    if status is not None:
        return status in RETRIED or status >= 500
    openai = _libraries().openai
    return isinstance(error, (openai.APIConnectionError, openai.APIError, TimeoutError, _Malformed, ValueError))


def _is_answer(error: Any) -> bool:
    """Whether an error shows that the endpoint lives: it refused a request, or asked for a slower pace."""
    status = getattr(error, "status_code", None)
    return status is not None and 400 <= status < 500 and status != 408


class _Libraries(NamedTuple):
    openai: Any
    pybreaker: Any
    tenacity: Any


@cache
def _libraries() -> _Libraries:
    """The optional extra, loaded when somebody asks for an endpoint."""
    try:
        import openai
        import pybreaker
        import tenacity
    except ImportError as error:
        raise ConfigError(f"an endpoint needs the package {error.name!r}, got none; run: {EXTRA}") from None
    return _Libraries(openai, pybreaker, tenacity)


@lru_cache(maxsize=64)
def _client(process: int, base_url: str, key: str) -> Any:
    """The client of an endpoint; connections belong to a process and are shared by its lanes.

    Retries and time-outs are ours, so that they are counted once.
    """
    return _libraries().openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=None)


@lru_cache(maxsize=64)
def _breaker(process: int, base_url: str, failures: int, seconds: float) -> Any:
    return _libraries().pybreaker.CircuitBreaker(
        fail_max=failures, reset_timeout=seconds, exclude=[_is_answer], name=base_url
    )


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process, in a thread of its own: the caller may have a loop of its own (a notebook)."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="convgym-remote", daemon=True).start()
    return loop


_starting = threading.Lock()


def _wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    with _starting:  # a cache alone would let two lanes start two loops
        loop = _loop(os.getpid())
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # e.g. Ctrl-C: the request is dropped
        raise
