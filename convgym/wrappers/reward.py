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
from collections.abc import Callable
from importlib import import_module
from statistics import NormalDist
from typing import Any, Literal
from zlib import crc32

import gymnasium as gym

from convgym.core import expect
from convgym.errors import ConfigError
from convgym.seeding import Stream
from convgym.wrappers.base import RewardTerm, Step, conversation, finite

__all__ = [
    "Clip",
    "CostPenalty",
    "Custom",
    "Delay",
    "LengthCost",
    "Noise",
    "Normalize",
    "ProgressShaping",
    "Scale",
    "TerminalOnly",
    "TurnCost",
]

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


class Normalize(RewardTerm):
    """Divides the reward by the running standard deviation of the discounted return; the term is the difference.

    As ``NormalizeReward`` of Gymnasium and ``VecNormalize`` of Stable-Baselines3: the mean is not subtracted, since
    that would change which policy is best. The statistics are this wrapper's own state and live over episodes; an
    environment that is only evaluated sets ``frozen``.

    Args:
        env: The environment.
        gamma: Discount factor of the return.
        epsilon: Added to the variance.
        frozen: Whether the statistics stay as they are.
    """

    term = "normalize"

    def __init__(
        self, env: gym.Env[str, str], gamma: float = 0.99, epsilon: float = 1e-8, frozen: bool = False
    ) -> None:
        super().__init__(env, gamma=gamma, epsilon=epsilon, frozen=frozen)
        self.gamma, self.epsilon = finite("gamma", gamma, least=0.0), finite("epsilon", epsilon, least=0.0)
        self.frozen = frozen
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # Welford (1962): running mean and sum of squares
        self._return = 0.0

    @property
    def scale(self) -> float:
        """What rewards are divided by; 1 before two rewards were seen."""
        return math.sqrt(self.squares / self.count + self.epsilon) if self.count > 1 and self.squares else 1.0

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Updates the statistics with the return so far, and returns the difference that dividing makes."""
        self._return = self.gamma * self._return + reward
        if not self.frozen:
            self.count += 1
            delta = self._return - self.mean
            self.mean += delta / self.count
            self.squares += delta * (self._return - self.mean)
        if "end_reason" in info:
            self._return = 0.0
        return reward / self.scale - reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts a conversation; the statistics stay."""
        self._return = 0.0
        return self.env.reset(seed=seed, options=options)


class Noise(RewardTerm):
    """Adds Gaussian noise at the end of a conversation, as an unreliable judge would; to see what survives it.

    The noise belongs to the seed and to what was said: the same conversation gets the same noise, and two
    conversations of one group get noise of their own.

    Args:
        env: The environment.
        std: Standard deviation.
        seed: Another seed is another judge.
    """

    term = "noise"

    def __init__(self, env: gym.Env[str, str], std: float = 0.1, seed: int = 0) -> None:
        super().__init__(env, std=std, seed=seed)
        self.std, self.seed = finite("std", std, least=0.0), seed

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns 0 before the end."""
        if "end_reason" not in info:
            return 0.0
        words = repr(conversation(self).transcript()).encode()
        uniform = Stream((self.seed, "reward noise", crc32(words))).random()
        return self.std * NormalDist().inv_cdf(min(max(uniform, 2.0**-53), 1.0 - 2.0**-53))


class Delay(RewardTerm):
    """Pays every reward some turns later, and what is left at the end; returns stay equal.

    What is owed is this wrapper's own state, as in :class:`TerminalOnly`.

    Args:
        env: The environment.
        turns: How many turns later.
    """

    term = "delay"

    def __init__(self, env: gym.Env[str, str], turns: int = 1) -> None:
        super().__init__(env, turns=turns)
        if not isinstance(turns, int) or isinstance(turns, bool) or turns < 0:
            raise ConfigError(f"turns: expected an integer of at least 0, got {turns!r}.")
        self.turns = turns
        self._owed: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts a conversation with nothing owed."""
        self._owed = []
        return self.env.reset(seed=seed, options=options)

    def value(self, obs: str, action: str, reward: float, info: dict[str, Any]) -> float:
        """Returns what falls due now minus the reward of this step."""
        self._owed.append(reward)
        if "end_reason" in info:
            return sum(self._owed) - reward
        return (self._owed.pop(0) if len(self._owed) > self.turns else 0.0) - reward


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
