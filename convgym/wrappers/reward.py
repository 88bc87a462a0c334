"""Reward wrappers: each adds a named term to ``info["reward_terms"]``; the terms always sum to the reward.

The environments pay verified success and nothing else. Whoever wants another signal adds it here, in the
open: what a wrapper did is a number with a name, at every step. What each of them pays to an agent that only
looks good is measured in ``docs/concepts/rewards.md``; a weight of your own is measured with
:mod:`convgym.wrappers.hackability`.

>>> import gymnasium as gym, convgym
>>> env = CostPenalty(TurnCost(gym.make("convgym/CustomerService-v0"), cost=0.25), weight=0.5)
>>> obs, info = env.reset(seed=7)
>>> obs, reward, terminated, truncated, info = env.step("Hello.")
>>> reward, info["reward_terms"]
(-0.25, {'turns': -0.25, 'cost': 0.0})
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable
from importlib import import_module
from numbers import Real
from typing import Any, Literal

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from convgym.core import ConversationEnv, expect
from convgym.errors import ConfigError, EnvError
from convgym.tools import CLOSE, OPEN, Malformed, parse_call

__all__ = [
    "Clip",
    "CostPenalty",
    "Custom",
    "Format",
    "LengthCost",
    "Politeness",
    "ProgressShaping",
    "RewardTerm",
    "Scale",
    "TerminalOnly",
    "TurnCost",
    "politeness",
    "well_formed",
]

Step = tuple[str, float, bool, bool, dict[str, Any]]


class RewardTerm(gym.Wrapper[str, str, str, str], RecordConstructorArgs):
    """Base of the reward wrappers: adds what :meth:`value` returns to the reward, and names it.

    A subclass sets :attr:`term`, writes :meth:`value` and passes its arguments to this constructor, which
    records them before all else: an ``EnvSpec`` then holds the wrapper and round-trips through JSON. Two
    wrappers with the same term share its entry.

    Args:
        env: The environment, wrapped or not.
        **settings: The arguments of the subclass, as an ``EnvSpec`` should hold them.

    Raises:
        ConfigError: If ``env`` is not a conversation.
    """

    term: str = "custom"

    def __init__(self, env: gym.Env[str, str], **settings: Any) -> None:
        RecordConstructorArgs.__init__(self, **settings)
        gym.Wrapper.__init__(self, env)
        conversation(env)

    @abstractmethod
    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns what is added to the reward of one step.

        Args:
            obs: The observation after the step.
            action: The agent message before it.
            reward: The reward as it comes from inside.
            info: The info after the step; ``"end_reason"`` is in it exactly when the conversation has ended.
        """

    def step(self, action: str) -> Step:
        """Steps, and adds the term.

        Raises:
            EnvError: If :meth:`value` returned something that is not a finite number.
        """
        obs, inner, terminated, truncated, info = self.env.step(action)
        value = self.value(obs, action, float(inner), info)
        if not isinstance(value, Real) or not math.isfinite(value):
            name = type(self).__name__
            raise EnvError(f"reward term {self.term!r} of {name}: expected a finite number, got {value!r}.")
        terms = dict(info["reward_terms"])
        terms[self.term] = terms.get(self.term, 0.0) + float(value)
        return obs, float(inner) + float(value), terminated, truncated, {**info, "reward_terms": terms}


def conversation(env: gym.Env[Any, Any]) -> ConversationEnv:
    """Returns the conversation inside any number of wrappers.

    Raises:
        ConfigError: If there is none.
    """
    inner = env.unwrapped
    if not isinstance(inner, ConversationEnv):
        got = type(inner).__name__
        raise ConfigError(f"env: expected a convgym conversation, got {got}; make one with gym.make.")
    return inner


def finite(name: str, value: float, *, least: float = -math.inf) -> float:
    """Returns a setting as a float; raises a ConfigError unless it is finite and at least ``least``."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ConfigError(f"{name}: expected a finite number{bound}, got {value!r}.")
    return float(value)


# -- the reward itself ---------------------------------------------------------------------------------------


class Clip(RewardTerm):
    """Keeps each step's reward within bounds; the term is what was cut off.

    Args:
        env: The environment.
        low: Smallest reward of a step.
        high: Largest reward of a step.
    """

    term = "clip"

    def __init__(self, env: gym.Env[str, str], low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(env, low=low, high=high)
        self.low, self.high = finite("low", low), finite("high", high)
        if self.low > self.high:
            raise ConfigError(f"low, high: expected low <= high, got {low} and {high}.")

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns the distance to the nearer bound, 0 within."""
        return min(max(reward, self.low), self.high) - reward

    def step(self, action: str) -> Step:
        """Steps, and clips; the rounding of the sum cannot leave the bounds."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, min(max(reward, self.low), self.high), terminated, truncated, info


class Scale(RewardTerm):
    """Multiplies the reward; the term is the difference that this makes.

    Args:
        env: The environment.
        factor: What the reward is multiplied by.
    """

    term = "scale"

    def __init__(self, env: gym.Env[str, str], factor: float) -> None:
        super().__init__(env, factor=factor)
        self.factor = finite("factor", factor)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns ``(factor - 1) * reward``."""
        return (self.factor - 1.0) * reward


class TerminalOnly(RewardTerm):
    """Holds all reward back until the conversation ends, and pays the sum then; returns stay equal.

    The sum is this wrapper's own state: to fork a wrapped environment in mid-conversation, ``copy.deepcopy``
    it whole.
    """

    term = "held_back"

    def __init__(self, env: gym.Env[str, str]) -> None:
        super().__init__(env)
        self._held = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts a conversation with nothing held back."""
        self._held = 0.0
        return self.env.reset(seed=seed, options=options)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns minus the reward before the end, and what was held back at the end."""
        if "end_reason" in info:
            return self._held
        self._held += reward
        return -reward


# -- costs ---------------------------------------------------------------------------------------------------


class TurnCost(RewardTerm):
    """Each agent message costs the same.

    Args:
        env: The environment.
        cost: Price of a turn.
    """

    term = "turns"

    def __init__(self, env: gym.Env[str, str], cost: float = 0.01) -> None:
        super().__init__(env, cost=cost)
        self.cost = finite("cost", cost, least=0.0)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns minus the cost."""
        return -self.cost


class LengthCost(RewardTerm):
    """Each word or character of an agent message costs, up to a limit a message.

    Args:
        env: The environment.
        cost: Price of one unit.
        unit: ``"word"`` (separated by white space) or ``"character"`` (a code point).
        at_most: Largest price of one message, so that the reward stays bounded whatever the agent says.
    """

    term = "length"

    def __init__(
        self,
        env: gym.Env[str, str],
        cost: float = 0.001,
        unit: Literal["word", "character"] = "word",
        at_most: float = 1.0,
    ) -> None:
        super().__init__(env, cost=cost, unit=unit, at_most=at_most)
        expect("unit", unit, ("word", "character"))
        self.cost, self.at_most = finite("cost", cost, least=0.0), finite("at_most", at_most, least=0.0)
        self.unit = unit

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns minus the price of the message."""
        units = len(action) if self.unit == "character" else len(action.split())
        return -min(self.cost * units, self.at_most)


class CostPenalty(RewardTerm):
    """Subtracts the policy's violations, for algorithms that know no constraint: ``-weight * info["cost"]``.

    Args:
        env: The environment.
        weight: Price of one broken rule.
    """

    term = "cost"

    def __init__(self, env: gym.Env[str, str], weight: float = 1.0) -> None:
        super().__init__(env, weight=weight)
        self.weight = finite("weight", weight, least=0.0)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns minus the weighted cost of the step."""
        return 0.0 - self.weight * float(info["cost"])  # not -0.0


# -- manners -------------------------------------------------------------------------------------------------

_COURTEOUS = re.compile(
    r"\bplease\b|\bthank(?:s| you)\b|\bsorry\b|\bapologi[sz]e|\b(?:could|would|may) (?:you|i)\b|"
    r"\bhappy to\b|\bglad to\b|\byou're welcome\b|\bof course\b|\bi appreciate\b|\bi understand\b|"
    r"\bgood (?:morning|afternoon|evening|day)\b|\bhello\b"
)
_RUDE = re.compile(
    r"\bshut up\b|\bstupid\b|\bidiot|\bdumb\b|\bnonsense\b|\bwhatever\b|\bnot my problem\b|"
    r"\byour (?:own )?fault\b|\bcalm down\b|\bstop (?:whining|complaining)\b|\bobviously\b|"
    r"\bi don't care\b|\bwaste of (?:my )?time\b"
)


def politeness(text: str) -> float:
    """Rates the manners of one message: 1 courteous, 0 plain, -1 rude (also beside courteous words).

    The lexicon follows the strategies (gratitude, apology, greeting, deference, indirect request) of
    Danescu-Niculescu-Mizil et al. (2013), "A computational approach to politeness with application to social
    factors". It is a lexicon, and so it is easily fooled: see ``docs/concepts/rewards.md``.

    >>> [politeness(text) for text in ("Could you tell me your zip code?", "Zip code.", "Please calm down.")]
    [1.0, 0.0, -1.0]
    """
    text = text[:2_000].replace("’", "'").lower()
    return -1.0 if _RUDE.search(text) else 1.0 if _COURTEOUS.search(text) else 0.0


class Politeness(RewardTerm):
    """Pays for manners once, at the end: ``weight`` times the mean :func:`politeness` of the agent's speech.

    A mean and not a sum: talking on and on in courteous phrases pays no more than one of them, and the term
    never exceeds the weight. By default only a conversation that succeeded is paid, because a lexicon pays a
    rambler more than an expert: ``paid="always"`` is the textbook version, and what it does is measured in
    ``docs/concepts/rewards.md``.

    Args:
        env: The environment.
        weight: Largest size of the term.
        paid: ``"on_success"`` or ``"always"``.
    """

    term = "politeness"

    def __init__(
        self,
        env: gym.Env[str, str],
        weight: float = 0.1,
        paid: Literal["on_success", "always"] = "on_success",
    ) -> None:
        super().__init__(env, weight=weight, paid=paid)
        expect("paid", paid, ("on_success", "always"))
        self.weight, self.always = finite("weight", weight, least=0.0), paid == "always"

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns 0 before the end, and 0 for a conversation without speech."""
        if "end_reason" not in info or not (info["success"] or self.always):
            return 0.0
        own = [message.content for message in conversation(self).transcript() if message.role == "assistant"]
        said = [text for text in own if parse_call(text) is None]
        return self.weight * sum(map(politeness, said)) / len(said) if said else 0.0


def well_formed(text: str) -> bool:
    """Whether a message is plain speech with something in it, or one tool call with nothing around it.

    >>> well_formed("Hello."), well_formed("  "), well_formed("<tool_call>{}</tool_call>")
    (True, False, False)
    """
    call = parse_call(text)
    if call is None:
        return bool(text.strip())
    bare = text.strip()
    return not isinstance(call, Malformed) and bare.startswith(OPEN) and bare.endswith(CLOSE)


class Format(RewardTerm):
    """Fines each message that is not :func:`well_formed`; with no bonus there is nothing to collect.

    Args:
        env: The environment.
        weight: The fine.
    """

    term = "format"

    def __init__(self, env: gym.Env[str, str], weight: float = 0.1) -> None:
        super().__init__(env, weight=weight)
        self.weight = finite("weight", weight, least=0.0)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns minus the weight for a malformed message."""
        return 0.0 if well_formed(action) else -self.weight


# -- shaping -------------------------------------------------------------------------------------------------


class ProgressShaping(RewardTerm):
    """Pays progress towards the goal at once, without changing which policy is best.

    ``F = weight * (gamma * Phi(s') - Phi(s))`` with ``Phi`` the share of the goal that is met
    (``env.progress()``) and ``Phi = 0`` once the conversation has ended. An episode's shaped return differs
    from its plain one by ``-weight * Phi(s_0)``, whatever was said: Ng, Harada and Russell (1999), "Policy
    invariance under reward transformations", theorem 1; Grzes (2017), "Reward shaping in episodic
    reinforcement learning", on why the potential has to be 0 at every ending. That includes a conversation
    cut by its turn limit, because the environment judges it there: use no bootstrap value after the cut.

    Args:
        env: The environment.
        weight: Scale of the potential.
        gamma: Discount factor of the learner; with another one the invariance is lost.
    """

    term = "progress"

    def __init__(self, env: gym.Env[str, str], weight: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__(env, weight=weight, gamma=gamma)
        self.weight, self.gamma = finite("weight", weight), finite("gamma", gamma, least=0.0)
        if self.gamma > 1.0:
            raise ConfigError(f"gamma: expected a discount factor in [0, 1], got {gamma!r}.")
        self._before = 0.0

    def step(self, action: str) -> Step:
        """Steps; the potential before the step is read anew, so that a restored snapshot is shaped right."""
        self._before = conversation(self).progress()
        return super().step(action)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns the discounted difference of potentials."""
        after = 0.0 if "end_reason" in info else conversation(self).progress()
        return self.weight * (self.gamma * after - self._before)


Function = Callable[[str, str, float, dict[str, Any]], float]


class Custom(RewardTerm):
    """Adds what a function of yours returns: ``function(obs, action, reward, info) -> float``.

    Args:
        env: The environment.
        function: The function, or ``"module:name"``; only the latter can be written to JSON.
        name: Name of the term.

    Raises:
        ConfigError: If the function cannot be found.
    """

    def __init__(self, env: gym.Env[str, str], function: Function | str, name: str = "custom") -> None:
        super().__init__(env, function=function, name=name)
        self.function = _load(function) if isinstance(function, str) else function
        self.term = name
        if not callable(self.function):
            raise ConfigError(f"function: expected a callable or 'module:name', got {function!r}.")

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Calls the function."""
        return self.function(obs, action, reward, info)


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"function: expected an importable 'module:name', got {target!r} ({error}).") from error
