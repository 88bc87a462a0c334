"""What every step promises: Gymnasium's own checks, the forms of what is returned, and that nothing is private.

Secrets are the strings that a task names as such. They may be told in the conversation, when the agent has
done what it takes; they may stand neither in the user's opening nor anywhere else in ``info``.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from gymnasium.utils.env_checker import check_env

from convgym.audit.episodes import Episode, Step, Subject, play
from convgym.audit.report import Finding
from convgym.core import SPLITS, ConversationEnv
from convgym.types import EndReason

__all__ = ["AT_END", "AT_RESET", "broken_promises", "gymnasium_api", "leaks", "private", "promises"]

AT_RESET = frozenset({"messages", "reward_terms", "cost", "understood"})
AT_END = AT_RESET | {"end_reason", "success", "score"}
WRITERS = ("oracle", "random", "random-calls", "injector")  # agents whose every step is looked at
EXAMPLES = 3  # of what went wrong, in a finding


def gymnasium_api(subject: Subject) -> Iterator[Finding]:
    """``check_env`` without a warning."""
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(StringIO()):
        warnings.simplefilter("always")
        # Render modes need an id to be made again by; without one they are not checked.
        env = subject.env()
        check_env(env, skip_render_check=env.spec is None)
    said = [str(warning.message) for warning in caught]
    yield Finding("gymnasium", not said, said[0] if said else "check_env: no error, no warning")


def promises(subject: Subject) -> Iterator[Finding]:
    """Types, keys, sums and endings of every step, and that no info holds what is private."""
    broken: list[str] = []
    leaked: list[str] = []
    steps = secrets = 0
    for level in subject.budget.levels:
        env = subject.env(difficulty=level)
        for seed in subject.seeds(level, subject.budget.episodes):  # openings are cheap, and wording varies
            opening = [env.reset(seed=seed, options=_split(seed))]
            leaked += [f"difficulty {level}, seed {seed}: {each}" for each in leaks(opening, env.task.secrets)]
            secrets += len(env.task.secrets)
        for name in WRITERS:
            agent = subject.agent(name, env)
            for seed in subject.seeds(level, subject.budget.copies):
                episode = play(env, agent, seed, _split(seed))
                where = f"{name}, difficulty {level}, seed {seed}"
                broken += [f"{where}: {problem}" for problem in broken_promises(episode, env)]
                leaked += [f"{where}: {problem}" for problem in leaks(episode.steps, env.task.secrets)]
                steps += len(episode.steps)
    yield Finding("promises", not broken, _examples(broken) or f"{steps} steps are as they should be")
    yield Finding("secrets", not leaked, _examples(leaked) or f"{secrets} secrets were kept")


def _split(seed: int) -> dict[str, Any]:
    return {"split": SPLITS[seed % len(SPLITS)]}


def private(subject: Subject) -> Iterator[Finding]:
    """The goal is revealed to those only who ask for it when they make the environment."""
    _, hidden = subject.env().reset(seed=0)
    _, shown = subject.env(reveal=True).reset(seed=0)
    told = {"hidden": "privileged" in hidden, "revealed": bool(shown.get("privileged"))}
    yield Finding("reveal", told == {"hidden": False, "revealed": True}, f"privileged info: {told}")


def broken_promises(episode: Episode, env: ConversationEnv) -> Iterator[str]:
    """Yields what is wrong with the steps of an episode, in words."""
    last = len(episode.steps) - 1
    for turn, (obs, *values, info) in enumerate(episode.steps):
        expected = AT_END if turn == last else AT_RESET
        if set(info) != expected:
            yield f"turn {turn}: the keys of info are {sorted(info)}, expected {sorted(expected)}"
        if not _is_plain(info):
            yield f"turn {turn}: info is not made of JSON's own types"
        if not isinstance(obs, str) or _news(info["messages"], turn) != obs:
            yield f"turn {turn}: the observation is not its messages"
        if turn:
            yield from _broken_step(turn, values, info, turn == last)
    end = EndReason(episode.info["end_reason"])
    if end.truncates is not episode.steps[-1][3]:
        yield f"ended by {end.value}, and truncated is {episode.steps[-1][3]}"
    if not 0 <= episode.info["score"] <= 1 or (episode.info["score"] == 1) is not episode.info["success"]:
        yield f"score {episode.info['score']} and success {episode.info['success']}"


def _broken_step(turn: int, values: list[Any], info: dict[str, Any], last: bool) -> Iterator[str]:
    reward, terminated, truncated = values
    if type(reward) is not float or not math.isfinite(reward):
        yield f"turn {turn}: the reward is {reward!r}"
    elif not math.isclose(reward, sum(info["reward_terms"].values()), abs_tol=1e-9):
        yield f"turn {turn}: the reward is {reward} and its terms are {info['reward_terms']}"
    if type(terminated) is not bool or type(truncated) is not bool or (terminated + truncated) != last:
        yield f"turn {turn}: terminated is {terminated!r}, truncated is {truncated!r}"
    if not info["cost"] >= 0:
        yield f"turn {turn}: the cost is {info['cost']}"


def leaks(steps: Sequence[Step], secrets: Sequence[str]) -> Iterator[str]:
    """Yields the places of an episode, which begins with its reset, where a secret stands and should not."""
    if not secrets:
        return
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in secrets), re.IGNORECASE)
    opening = "\n".join(m["content"] for m in steps[0][-1]["messages"] if m["role"] == "user")
    found = pattern.search(opening)
    if found:
        yield f"the opening holds {found.group()!r}"
    for turn, step in enumerate(steps):
        for place, value in _leaves({key: value for key, value in step[-1].items() if key != "messages"}):
            # A word of a text may be the secret; a number is it or not, and 5 does not stand in 0.5.
            found = pattern.search(value) if isinstance(value, str) else pattern.fullmatch(f"{value:.15g}")
            if found:
                yield f"turn {turn}: info{place} holds {found.group()!r}"


def _leaves(value: object, place: str = "") -> Iterator[tuple[str, str | float]]:
    """Yields every key, text and number inside a structure with where it stands; flags and 0 and 1 say nothing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield place, str(key)
            yield from _leaves(inner, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _leaves(inner, f"{place}[]")
    elif not isinstance(value, bool | None) and value not in (0, 1):
        yield place, value if isinstance(value, int | float) else str(value)


def _is_plain(value: object) -> bool:
    """Whether a value is made of JSON's own types exactly: no numpy scalars, no tuples, no enums."""
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is float:
        return math.isfinite(value)
    return type(value) in (str, int, bool, type(None))


def _news(messages: list[dict[str, str]], turn: int) -> str:
    """The text of the messages of a step; the instructions come first, and bare."""
    said = messages if turn else messages[1:]
    text = "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in said)
    return text if turn else f"{messages[0]['content']}\n\n{text}"


def _examples(problems: list[str]) -> str:
    more = f" (and {len(problems) - EXAMPLES} more)" if len(problems) > EXAMPLES else ""
    return "; ".join(problems[:EXAMPLES]) + more
