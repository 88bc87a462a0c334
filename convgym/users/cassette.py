"""Cassettes: the exchanges with a language model, written down once and replayed without a network.

A cassette is a JSONL file. Its first line says whose it is and with which settings the model was asked; each
further line is one exchange, found by the hash of its request: model, messages, temperature and seed. Replays
are therefore deterministic, whatever order or process asks, and a request that was never recorded is an error
and not a guess. Addresses and keys are no part of a request and are never written.

A recording asks the model only for what is not on the cassette yet, so that playing on with it (or again,
after a crash) gives the same conversations as a replay.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from convgym.errors import CassetteError, ConfigError, UnknownNameError
from convgym.remote import Completion, Endpoint, Exchanges, Sampling

__all__ = ["Player", "Recorder", "header", "key", "live", "replayed"]

VERSION = 1

Settings = TypeVar("Settings", bound=Sampling)


def key(request: Mapping[str, Any]) -> str:
    """Returns the name of an exchange: the hash of the request's content, whatever the order of its fields.

    >>> key({"model": "m", "seed": 1}) == key({"seed": 1, "model": "m"}) != key({"model": "m", "seed": 2})
    True
    """
    return blake2b(json.dumps(request, sort_keys=True).encode("ascii"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Recorder:
    """Asks a model, and writes down what it answered.

    Attributes:
        model: Answers what is not on the cassette.
        path: The file; its folder must exist.
        settings: What the header says; an existing cassette must say the same.
    """

    model: Exchanges
    path: str
    settings: Mapping[str, Any]

    def complete(self, request: Mapping[str, Any]) -> Completion:
        """Answers one request, from the cassette if it is there."""
        tape = _tape(os.path.realpath(self.path))
        tape.begin(self.settings)
        known = tape.find(request)
        return known if known is not None else tape.add(request, self.model.complete(request))


@dataclass(frozen=True)
class Player:
    """Answers from a cassette only.

    Attributes:
        path: The file.
    """

    path: str

    def complete(self, request: Mapping[str, Any]) -> Completion:
        """Answers one request.

        Raises:
            CassetteError: If it was never recorded.
        """
        known = _tape(os.path.realpath(self.path)).find(request)
        if known is None:
            raise CassetteError(
                f"{self.path}: expected the exchange {key(request)[:12]}, but it was never recorded. The same "
                "seeds, settings and agent messages give the same requests; to record further ones, play the "
                f"live id (ending in LLM-v0) with user_options={{..., 'cassette': {self.path!r}}}."
            )
        return known


def live(options: Mapping[str, Any], role: str, kind: type[Settings]) -> tuple[Settings, Exchanges]:
    """Reads the settings of a model that is asked over the network, and of the cassette if there is to be one.

    Args:
        options: Settings of ``kind``, of :class:`~convgym.remote.Endpoint`, and ``cassette``, the path of a
            file that is begun or gone on with.
        role: ``"user"`` or ``"judge"``.
        kind: The settings that requests depend on; they make the header of the cassette.

    Raises:
        UnknownNameError: If an option is unknown.
        ConfigError: If an option is illegal, or the cassette was recorded with others.
    """
    known = {*kind.model_fields, *Endpoint.model_fields, "cassette"}
    for name in options.keys() - known:
        raise UnknownNameError.of("option", str(name), known)
    settings = kind.of({name: value for name, value in options.items() if name in kind.model_fields})
    endpoint = Endpoint.of({name: value for name, value in options.items() if name in Endpoint.model_fields})
    path = options.get("cassette", "")
    if not isinstance(path, str):
        raise ConfigError(f"option cassette: expected the path of a file, got {path!r}.")
    return settings, Recorder(endpoint, path, {"role": role, **settings.model_dump()}) if path else endpoint


def replayed(options: Mapping[str, Any], role: str, kind: type[Settings]) -> tuple[Settings, Exchanges]:
    """Reads the settings that a cassette was recorded with.

    Args:
        options: ``{"path": ...}``.
        role: ``"user"`` or ``"judge"``.
        kind: The settings that requests depend on.

    Raises:
        UnknownNameError: If there is another option.
        ConfigError: If there is no path.
        CassetteError: If there is no such cassette, it is damaged, or another role's.
    """
    for name in options.keys() - {"path"}:
        raise UnknownNameError.of("option", str(name), ("path",))
    path = options.get("path")
    if not isinstance(path, str) or not path:
        raise ConfigError(f"option path: expected the path of a cassette, got {path!r}.")
    return kind.of(header(path, role)), Player(path)


def header(path: str, role: str) -> dict[str, Any]:
    """Returns the settings that a cassette was recorded with.

    Args:
        path: The file.
        role: ``"user"`` or ``"judge"``.

    Raises:
        CassetteError: If there is no such cassette, or it is another role's.
    """
    settings = _tape(os.path.realpath(path)).settings()
    if settings is None:
        raise CassetteError(
            f"{path}: expected a cassette, got {'an empty file' if Path(path).exists() else 'no file'}; record "
            "one by playing a live id (ending in LLM-v0) with user_options={..., 'cassette': path}."
        )
    if settings.get("role") != role:
        raise CassetteError(f"{path}: expected a cassette of a {role}, got one of a {settings.get('role')}.")
    return {name: value for name, value in settings.items() if name != "role"}


class _Tape:
    """A file as far as it has been read; shared by all lanes of the process, and appended to by several."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        self.read, self.lines = 0, 0
        self.head: dict[str, Any] | None = None
        self.known: dict[str, Completion] = {}

    def settings(self) -> dict[str, Any] | None:
        with self.lock:
            self.catch_up()
            return self.head

    def find(self, request: Mapping[str, Any]) -> Completion | None:
        with self.lock:
            name = key(request)
            if name not in self.known:
                self.catch_up()
            return self.known.get(name)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Writes the header of a new cassette, or compares it with an old one's."""
        with self.lock:
            if self.head is None:
                self.catch_up()
            if self.head is None:
                self.write({"cassette": VERSION, **settings})
                self.catch_up()
            if self.head != dict(settings):
                raise ConfigError(
                    f"{self.path}: expected the settings that this cassette was recorded with, {self.head}, got "
                    f"{dict(settings)}; record to another file."
                )

    def add(self, request: Mapping[str, Any], completion: Completion) -> Completion:
        """Writes an exchange down; of two lanes that asked the same at once, the first is kept for both."""
        with self.lock:
            name = key(request)
            if name not in self.known:
                self.write({"key": name, "request": request, **completion._asdict()})
                self.catch_up()
            return self.known[name]

    def write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode("ascii") + b"\n"
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise CassetteError(f"{self.path}: expected a file in a folder that exists, got {error}.") from None
        try:  # one write a line, so that several processes can share a file
            written = os.write(file, data)
        finally:
            os.close(file)
        if written != len(data):
            raise CassetteError(f"{self.path}: wrote only {written} of {len(data)} bytes; is the disk full?")

    def catch_up(self) -> None:
        """Reads what was written since, whole lines only."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.read:  # another file lies there now
                    self.forget()
                file.seek(self.read)
                news = file.read()
        except FileNotFoundError:
            return self.forget()
        whole = news[: news.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            self.lines += 1
            self.take(line)

    def take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if self.head is None:
                if entry.pop("cassette") != VERSION:
                    raise ValueError("another version")
                self.head = entry
            elif entry.get("cassette") == VERSION:
                return  # another process began it at the same moment
            else:
                counts = int(entry["tokens_in"]), int(entry["tokens_out"])
                completion = Completion(str(entry["text"]), *counts, cut=bool(entry["cut"]))
                self.known.setdefault(str(entry["key"]), completion)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = "the header" if self.head is None else "an exchange"
            raise CassetteError(
                f"{self.path}, line {self.lines}: expected {what} of a cassette (version {VERSION}), got "
                f"{line[:60]!r} ({error}); delete the line, or record anew."
            ) from None


@cache
def _tape(path: str) -> _Tape:
    return _Tape(path)
