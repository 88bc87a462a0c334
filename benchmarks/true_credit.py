"""The true advantage of every turn, A(s, a) = Q(s, a) - V(s) under the policy that speaks.

- **Exactly**, in the solved games of the suite: a tabular policy over canned messages plays the real environment, and
  the game's tables give its values by one backward pass.
- **By forks**, elsewhere: the conversation is forked before each turn and continued many times, once with the message
  that was said (Q) and once without it (V). Both continuations of a pair meet the same luck of the user and different
  samples of the policy; the goal stays what it was. The estimates are unbiased, and two halves of the pairs give two
  estimates with independent errors.

The best action's advantage is another thing: here the rest of the conversation is played by the present policy.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import convgym  # noqa: F401  (registers the environments)
from algos.policies.load import Policy
from algos.rollout.collect import Collector, group_requests
from algos.rollout.engine import Engine
from algos.rollout.episodes import TokenEpisode
from benchmarks.suites import EnvSpec
from convgym.core import ConversationEnv
from convgym.scenarios.exact import Solution, State
from convgym.scenarios.micro import Game
from convgym.seeding import Streams, derive_seed
from convgym.vector import ConversationVectorEnv

Array = NDArray[np.float64]
Tick = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

GROUP_SIZE = 8
GAMES = {  # the actions that the tabular policy chooses from
    "TextBandit": ("red", "blue", "green"),
    "AskOrAct": ("ask", "tea", "coffee", "milk", "juice"),
    "DelayedConsent": ("consent", "condition", "chat"),
    "Haggle": ("accept", "wait"),
}
SHARPNESS = 2.0  # of the tabular policy: on its way from uniform (0) to the best one


@dataclass(frozen=True, eq=False)
class Sample:
    """Groups of conversations, and what each of their turns was truly worth.

    Attributes:
        episodes: In the order of their groups, ``GROUP_SIZE`` to a group.
        first: [B,K] the true advantage of each turn, estimated from half of the continuations; 0 past the last turn.
        second: [B,K] the same from the other half; equal to ``first`` where the truth is exact.
        error: [B,K] standard error of their mean; 0 where the truth is exact.
        value: [B,K] the true value before each turn, of all that is still to be paid; ``None`` where it is not known.
        greedy: Group -> return of its greedy conversation.
    """

    episodes: Sequence[TokenEpisode]
    first: Array
    second: Array
    error: Array
    value: Array | None
    greedy: Mapping[int, float]

    @property
    def truth(self) -> Array:
        """[B,K] the mean of both halves."""
        return (self.first + self.second) / 2

    def sparse(self) -> Sample:
        """The same conversations, all of the reward paid at the end; advantages stay as they are."""
        episodes, value = [], None if self.value is None else self.value.copy()
        for row, episode in enumerate(self.episodes):
            paid = episode.rewards.cumsum(dtype=np.float64)
            rewards = np.zeros_like(episode.rewards)
            rewards[-1] = paid[-1]
            if value is not None:  # what is earned and not yet paid is still to come
                value[row, 1 : len(paid)] += paid[:-1]
            episodes.append(dataclasses.replace(episode, rewards=rewards))
        return dataclasses.replace(self, episodes=episodes, value=value)


# Solved games ------------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """One turn of a tabular policy.

    Attributes:
        state: Where the game stood.
        key: Hash of that state, as the environment tells it to algorithms.
        action: What was done.
        reward: What it brought.
    """

    state: State
    key: int
    action: str
    reward: float


@dataclass(frozen=True, eq=False)
class TabularPolicy:
    """A policy over the canned messages of a solved game.

    Attributes:
        solution: The game.
        chances: State -> action -> probability.
        messages: Action -> the message that means it.
    """

    solution: Solution
    chances: Mapping[State, Mapping[str, float]]
    messages: Mapping[str, str]

    @classmethod
    def soft(cls, env: ConversationEnv, actions: Sequence[str], sharpness: float = SHARPNESS) -> TabularPolicy:
        """pi(a | s) in proportion to exp(sharpness Q*(s, a) / V*): uniform at 0, the best policy at infinity.

        Args:
            env: After a reset.
            actions: Names among ``env.canned_acts``.
            sharpness: How far it has come.
        """
        solution = _game(env).solution
        chances = {}
        for state, q in solution.q.items():
            best = solution.values[state]  # cancels; an exponential of it may overflow
            weights = {action: math.exp(sharpness * (q[action] - best) / solution.optimum) for action in actions}
            total = sum(weights.values())
            chances[state] = {action: weight / total for action, weight in weights.items()}
        canned = dict(zip(env.canned_acts, env.task.canned, strict=True))
        return cls(solution, chances, {action: canned[action] for action in actions})

    def evaluate(self) -> tuple[dict[State, float], dict[State, dict[str, float]]]:
        """V and Q of this policy in every state, by Bellman's equation backwards.

        Returns:
            State -> expected sum of the rewards to come; state -> action -> the same after the action.
        """
        values: dict[State, float] = {}
        q: dict[State, dict[str, float]] = {}
        for state in reversed(list(self.solution.beliefs)):  # the states stand in the order of their turns
            if state in self.chances:
                q[state] = {
                    action: sum(b.chance * (b.reward + values[b.state]) for b in self.solution.moves[state, action])
                    for action in self.chances[state]
                }
                values[state] = sum(p * q[state][action] for action, p in self.chances[state].items())
            else:
                values[state] = 0.0
        return values, q

    def choose(self, env: ConversationEnv, luck: float | None) -> tuple[State, str]:
        """The state of a conversation, and an action in it: sampled by a uniform number, or the likeliest."""
        state = _game(env).standing(env.task.world).state
        chances = self.chances[state]
        if luck is None:
            return state, max(chances, key=chances.__getitem__)
        actions = list(chances)
        at = int(np.searchsorted(np.cumsum(list(chances.values())), luck, side="right"))
        return state, actions[min(at, len(actions) - 1)]

    def play(self, env: ConversationEnv, seed: int | None) -> list[Move]:
        """Talks from where the conversation stands to its end; seed None takes the likeliest action each time."""
        draws, moves, over = random.Random(seed or 0), [], False
        while not over:
            key = env.state_key()
            state, action = self.choose(env, None if seed is None else draws.random())
            _, reward, terminated, truncated, _ = env.step(self.messages[action])
            moves.append(Move(state, key, action, float(reward)))
            over = terminated or truncated
        return moves

    def follow(self, forks: Iterable[Fork]) -> list[float]:
        """What each fork earns from its turn on; see :class:`Talker`."""
        returns = []
        for fork in forks:
            earned, over = 0.0, False
            if fork.said is not None:
                _, earned, terminated, truncated, _ = fork.env.step(fork.said)
                over = terminated or truncated
            returns.append(earned if over else earned + sum(m.reward for m in self.play(fork.env, fork.seed)))
        return returns


def play_game(name: str, groups: int, seed: int) -> Sample:
    """Groups of conversations of a tabular policy in a game, rewards paid as they are earned, and the exact truth.

    An episode's tokens are one observed token (the state) and one sampled token (the action) a turn.

    Args:
        name: A key of ``GAMES``.
        groups: Number of groups.
        seed: Root of all seeds.
    """
    env = make_env(EnvSpec(f"convgym/{name}-v0", {"reward": "dense"}))
    env.reset(seed=0)
    policy = TabularPolicy.soft(env, GAMES[name])
    values, q = policy.evaluate()
    number = {state: i for i, state in enumerate(policy.solution.beliefs)}
    episodes, truths, value, greedy = [], [], [], {}
    for request in group_requests(seed, 0, groups, GROUP_SIZE):
        if request.group not in greedy:
            env.reset(seed=request.env_seed)
            greedy[request.group] = sum(move.reward for move in policy.play(env, None))
        env.reset(seed=request.env_seed)
        moves = policy.play(env, request.sample_seed)
        logp = [(0.0, math.log(policy.chances[move.state][move.action])) for move in moves]
        episodes.append(
            TokenEpisode(
                ids=np.array([(number[move.state], GAMES[name].index(move.action)) for move in moves]).ravel(),
                logp=np.array(logp, np.float32).ravel(),
                action=np.tile([False, True], len(moves)),
                turn=np.array([(-1, k) for k in range(len(moves))]).ravel(),
                rewards=np.array([move.reward for move in moves], np.float32),
                state_keys=np.array([move.key for move in moves]),
                group=request.group,
                env_seed=request.env_seed,
                sample_seed=request.sample_seed,
                messages=tuple([{"role": "assistant", "content": policy.messages[m.action]} for m in moves]),
            )
        )
        truths.append([q[move.state][move.action] - values[move.state] for move in moves])
        value.append([values[move.state] for move in moves])
    truth = _table(truths)
    return Sample(episodes, truth, truth, np.zeros_like(truth), _table(value), greedy)


def _game(env: ConversationEnv) -> Game:
    game = env.task.judge
    assert isinstance(game, Game), f"{env} is not a solved game"
    return game


# Forks -------------------------------------------------------------------------------------------------------


class Fork(NamedTuple):
    """A conversation that is to be continued from before an agent turn.

    Attributes:
        env: Its own environment.
        ids: Tokens before the turn, the agent's header included.
        seed: Of the policy's samples.
        said: What the agent says in this turn; ``None`` lets the policy choose.
        said_ids: The tokens of it.
    """

    env: ConversationEnv
    ids: Sequence[int]
    seed: int
    said: str | None = None
    said_ids: Sequence[int] = ()


class Talker(Protocol):
    """A policy that can continue a conversation."""

    def follow(self, forks: Iterable[Fork]) -> list[float]:
        """Sum of the rewards of each fork, from its turn on. Forks are taken one by one, in order."""


class ModelTalker:
    """A language model that continues conversations, many at once.

    Args:
        policy: Who speaks.
        lanes: Conversations at once.
        max_turn_tokens: Most tokens in a turn.
    """

    def __init__(self, policy: Policy, lanes: int = 128, max_turn_tokens: int = 64) -> None:
        self.chat = policy.chat
        self.engine = Engine(policy.model, eos_ids=policy.eos_ids, lanes=lanes, max_turn_tokens=max_turn_tokens)

    def follow(self, forks: Iterable[Fork]) -> list[float]:
        """What each fork earns from its turn on; see :class:`Talker`."""
        returns: list[float] = []
        live: dict[int, tuple[int, Fork, int]] = {}  # lane -> index of the fork, the fork, tokens so far
        waiting, free = iter(forks), list(range(self.engine.lanes))
        while True:
            while free and (fork := next(waiting, None)) is not None:
                ids, news = list(fork.ids), []
                returns.append(0.0)
                if fork.said is not None:
                    ids += fork.said_ids
                    reward, answer = self._answer(fork.env, fork.said, len(ids), ids[-1])
                    returns[-1] += reward
                    if answer is None:
                        continue
                    news = answer
                lane = free.pop()
                self.engine.start(lane, ids + news, fork.seed)
                live[lane] = len(returns) - 1, fork, len(ids) + len(news)
            if not live:
                return returns
            turns = self.engine.advance()
            for turn, text in zip(turns, self.chat.texts([turn.ids for turn in turns])):
                index, fork, length = live[turn.lane]
                length += len(turn.ids)
                reward, answer = self._answer(fork.env, text, length, int(turn.ids[-1]))
                returns[index] += reward
                if answer is None:
                    del live[turn.lane]
                    self.engine.release(turn.lane)
                    free.append(turn.lane)
                else:
                    self.engine.append(turn.lane, answer)
                    live[turn.lane] = index, fork, length + len(answer)

    def _answer(self, env: ConversationEnv, text: str, length: int, last_id: int) -> tuple[float, list[int] | None]:
        """Says a turn; returns its reward, and the tokens of the answer, ``None`` at the end (or a full context)."""
        _, reward, terminated, truncated, info = env.step(text)
        if terminated or truncated:
            return float(reward), None
        news = self.chat.delta(info["messages"], last_id)
        return float(reward), news if length + len(news) < self.engine.capacity else None


def forks_of(env: ConversationEnv, episodes: Sequence[TokenEpisode], pairs: int, seed: int) -> Iterator[Fork]:
    """Two forks for each pair, turn and episode: one says again what was said, one lets the policy choose.

    Args:
        env: Of the kind that the episodes come from; they are replayed in it.
        episodes: Conversations.
        pairs: Of forks, at each turn.
        seed: Root of the luck and the samples of the continuations.
    """
    for row, episode in enumerate(episodes):
        env.reset(seed=episode.env_seed)
        texts = [message["content"] for message in episode.messages if message["role"] == "assistant"]
        for k, text in enumerate(texts):
            at = np.flatnonzero(episode.turn == k)
            before, said = episode.ids[: at[0]].tolist(), episode.ids[at].tolist()
            for pair in range(pairs):
                luck = derive_seed(seed, "luck", row, k, pair)
                q_seed, v_seed = (derive_seed(seed, which, row, k, pair) for which in ("q", "v"))
                yield Fork(fork(env, luck), before, q_seed, text, said)
                yield Fork(fork(env, luck), before, v_seed)
            _, reward, *_ = env.step(text)
            assert abs(reward - episode.rewards[k]) < 1e-5, "a replay must be what was played"


def fork(env: ConversationEnv, luck: int) -> ConversationEnv:
    """An independent env that continues from here, in which the user's later choices are drawn from ``luck``.

    Streams are keyed by the turn, so that what was drawn before stays as it was.
    """
    twin = env.fork()
    episode = twin._episode
    assert episode is not None
    episode.streams = Streams(episode.streams.scenario_seed, luck)
    return twin


def forked_advantages(
    talker: Talker, forks: Iterable[Fork], turns: Sequence[int], pairs: int
) -> tuple[Array, Array, Array]:
    """Estimates of the true advantages from pairs of continuations.

    Args:
        talker: The policy.
        forks: Of :func:`forks_of`.
        turns: Turns of each episode.
        pairs: Of forks at each turn, an even number.

    Returns:
        Two estimates [B,K] with independent errors, and the standard error [B,K] of their mean.
    """
    earned = np.array(talker.follow(forks)).reshape(sum(turns), pairs, 2)
    difference = earned[..., 0] - earned[..., 1]  # [all turns, pairs]
    halves = difference[:, ::2].mean(1), difference[:, 1::2].mean(1)
    error = difference.std(1, ddof=1) / math.sqrt(pairs)
    ends = np.cumsum(turns)[:-1]
    first, second, spread = (_table(np.split(each, ends)) for each in (*halves, error))
    return first, second, spread


def fork_conversations(
    policy: Policy, spec: EnvSpec, groups: int, pairs: int, seed: int, tick: Tick | None = None
) -> Sample:
    """Groups of conversations of a language model, and estimates of their true advantages.

    Args:
        policy: Who speaks.
        spec: The environment.
        groups: Number of groups.
        pairs: Pairs of continuations at each turn, an even number.
        seed: Root of all seeds.
        tick: Called with (done, total) forks as they are taken.

    Raises:
        RuntimeError: If an episode failed: the audit has no room for holes.
    """
    envs = ConversationVectorEnv([lambda: make_env(spec)] * (GROUP_SIZE * groups), "Disabled")
    collector = Collector(envs, policy)
    requests = group_requests(seed, 0, groups, GROUP_SIZE)
    sampled = collector.collect(requests)
    greedy = collector.collect(requests[::GROUP_SIZE], greedy=True)
    for failure in (*sampled.failures, *greedy.failures):
        raise RuntimeError(f"{spec.id}: expected every conversation to end, one failed.\n{failure.error}")
    turns = [len(episode.rewards) for episode in sampled.episodes]
    forks = forks_of(make_env(spec), sampled.episodes, pairs, derive_seed(seed, "continuations"))
    first, second, error = forked_advantages(
        ModelTalker(policy), _ticking(forks, 2 * pairs * sum(turns), tick), turns, pairs
    )
    returns = {episode.group: episode.episode_return for episode in greedy.episodes}
    return Sample(sampled.episodes, first, second, error, None, returns)


def _ticking(forks: Iterable[Fork], total: int, tick: Tick | None) -> Iterator[Fork]:
    for done, each in enumerate(forks, 1):
        if tick is not None:
            tick(done, total)
        yield each


def make_env(spec: EnvSpec) -> ConversationEnv:
    """The environment itself, without Gymnasium's wrappers: they cannot be forked."""
    env = gym.make(spec.id, disable_env_checker=True, **spec.kwargs).unwrapped
    assert isinstance(env, ConversationEnv)
    return env


def _table(rows: Sequence[Sequence[float] | Array]) -> Array:
    """Rows of different lengths as one array [B,K], 0 past the ends."""
    table = np.zeros((len(rows), max(len(row) for row in rows)))
    for line, row in zip(table, rows):
        line[: len(row)] = row
    return table
