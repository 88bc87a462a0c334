"""The collector: conversations of a vector environment, sampled by an engine, out come token episodes.

There is no barrier at a turn or at an episode: whichever lane finished its turn is stepped, and a lane whose
conversation ended takes the next request at once. A bad episode is data, not a crash: it is set aside with
    its traceback,
and the others go on.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from algos.policies.load import Policy
from algos.rollout.engine import Engine, SamplingEngine, Turn
from algos.rollout.episodes import TokenEpisode
from convgym.errors import EnvError
from convgym.seeding import derive_seed
from convgym.types import EndReason
from convgym.vector import ConversationVectorEnv

CONTEXT_FULL = "context_full"


@dataclass(frozen=True)
class EpisodeRequest:
    """A conversation to be had.

    Attributes:
        env_seed: Seed of the environment's reset: scenario and user.
        group: Id that the episodes of one scenario and user share.
        sample_seed: Seed of the policy's samples.
        options: Options of the reset.
    """

    env_seed: int
    group: int
    sample_seed: int
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Failure:
    """An episode that was set aside.

    Attributes:
        request: What was asked for; the same request fails the same way.
        error: Traceback, or what was wrong with the environment's answer.
    """

    request: EpisodeRequest
    error: str


@dataclass(frozen=True)
class Collected:
    """What came of the requests.

    Attributes:
        episodes: In the order of the requests.
        failures: The requests that have no episode.
        seconds: Wall time by phase: ``env``, ``engine``, ``chat``.
    """

    episodes: list[TokenEpisode]
    failures: list[Failure]
    seconds: dict[str, float]


def group_requests(root_seed: int, first_group: int, n_groups: int, group_size: int) -> list[EpisodeRequest]:
    """Requests for groups of episodes that share scenario and user, and differ in the policy's samples.

    Seeds depend on the root, the group and the place in it only, so that every algorithm meets the same
    conversations (common random numbers).

    Args:
        root_seed: The run's seed.
        first_group: Id of the first group; a run counts on, so that no scenario comes twice.
        n_groups: Number of groups.
        group_size: Episodes in a group, G.
    """
    return [
        EpisodeRequest(
            env_seed=derive_seed(root_seed, "env", group),
            group=group,
            sample_seed=derive_seed(root_seed, "sample", group, member),
        )
        for group in range(first_group, first_group + n_groups)
        for member in range(group_size)
    ]


@dataclass(eq=False)
class _Live:
    """A conversation under way."""

    index: int
    request: EpisodeRequest
    started: bool = False  # in the engine
    ids: list[int] = field(default_factory=list)
    spans: list[tuple[int, Turn]] = field(default_factory=list)  # where each turn's ids begin
    messages: list[Mapping[str, Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    state_keys: list[int] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)
    cost: float = 0.0
    understood: int = 0


class Collector:
    """Has conversations between a policy and the environments.

    Args:
        envs: One lane each; the engine holds as many conversations.
        policy: Its present weights are taken at each ``collect``.
        temperature: Of the samples.
        max_turn_tokens: Most tokens in a turn.
        max_context: Most tokens in a conversation; by default the model's context. A conversation that needs
            more ends as truncated, with the reason ``"context_full"``.
        engine: Another engine than the one in this process, e.g. a serving engine's client.

    Raises:
        ConfigError: for an illegal number.
        CapacityError: if ``max_context`` exceeds what the model's attention serves.
        ModelError: if the model's attention cannot be served.
    """

    def __init__(
        self,
        envs: ConversationVectorEnv,
        policy: Policy,
        *,
        temperature: float = 1.0,
        max_turn_tokens: int = 64,
        max_context: int | None = None,
        engine: SamplingEngine | None = None,
    ) -> None:
        self.envs, self.policy = envs, policy
        self.engine: SamplingEngine = engine or Engine(
            policy.model,
            eos_ids=policy.eos_ids,
            lanes=envs.num_envs,
            capacity=max_context,
            temperature=temperature,
            max_turn_tokens=max_turn_tokens,
        )

    def collect(
        self,
        requests: Sequence[EpisodeRequest],
        *,
        version: int = 0,
        greedy: bool = False,
        on_episode: Callable[[TokenEpisode], None] | None = None,
    ) -> Collected:
        """Has all the conversations asked for, as many at a time as there are lanes.

        Args:
            requests: Any number of them.
            version: Of the policy, kept in the episodes.
            greedy: Takes the likeliest token each time.
            on_episode: Called with each episode as it ends.

        Raises:
            DivergedError: if the policy's logits are not numbers.
        """
        run = _Run(self.engine, self.envs, self.policy, version, greedy, on_episode)
        with run.timed("engine"):
            self.engine.refresh()
        try:
            run.all(requests)
        finally:
            run.abandon()
        episodes = [run.episodes[index] for index in sorted(run.episodes)]
        failures = [run.failures[index] for index in sorted(run.failures)]
        return Collected(episodes, failures, run.seconds)


class _Run:
    """The state of one ``collect``."""

    def __init__(
        self,
        engine: SamplingEngine,
        envs: ConversationVectorEnv,
        policy: Policy,
        version: int,
        greedy: bool,
        on_episode: Callable[[TokenEpisode], None] | None,
    ) -> None:
        self.engine, self.envs, self.chat = engine, envs, policy.chat
        self.version, self.greedy, self.on_episode = version, greedy, on_episode
        self.live: dict[int, _Live] = {}
        self.episodes: dict[int, TokenEpisode] = {}
        self.failures: dict[int, Failure] = {}
        self.seconds = dict.fromkeys(("env", "engine", "chat"), 0.0)

    def all(self, requests: Sequence[EpisodeRequest]) -> None:
        waiting = deque(enumerate(requests))
        free = list(range(min(self.envs.num_envs, self.engine.lanes)))[::-1]
        if self.envs.slow:
            return self.all_slow(waiting, free)
        while waiting or self.live:
            while waiting and free:
                lane = free.pop()
                if not self.begin(lane, *waiting.popleft()):
                    free.append(lane)
            with self.timed("engine"):
                turns = self.engine.advance()
            with self.timed("chat"):
                texts = self.chat.texts([turn.ids for turn in turns])
            free += [turn.lane for turn, text in zip(turns, texts) if not self.proceed(turn, text)]

    def all_slow(self, waiting: deque[tuple[int, EpisodeRequest]], free: list[int]) -> None:
        """The same for users that are asked over a network: lanes speak while others wait for their answer."""
        asked: dict[Future[Any], Callable[[Future[Any]], tuple[int, bool]]] = {}
        try:
            while waiting or asked or self.live:
                while waiting and free:
                    lane, (index, request) = free.pop(), waiting.popleft()
                    reset = self.envs.submit(self.opening(lane, request))
                    asked[reset] = partial(self.begun, lane, index, request)
                with self.timed("engine"):
                    turns = self.engine.advance()  # at once if no lane has a turn to take
                with self.timed("chat"):
                    texts = self.chat.texts([turn.ids for turn in turns])
                for turn, text in zip(turns, texts):
                    step = self.envs.submit(partial(self.envs.step_lane, turn.lane, text))
                    asked[step] = partial(self.answered, turn, text)
                with self.timed("env"):
                    answered, _ = wait(asked, timeout=0 if turns else None, return_when=FIRST_COMPLETED)
                for future in answered:
                    lane, on = asked.pop(future)(future)
                    free += [] if on else [lane]
        finally:
            wait(asked)  # a lane that is still being stepped may not be touched by anybody else

    def begun(self, lane: int, index: int, request: EpisodeRequest, reset: Future[Any]) -> tuple[int, bool]:
        return lane, self.begin(lane, index, request, reset.result)

    def answered(self, turn: Turn, text: str, step: Future[Any]) -> tuple[int, bool]:
        return turn.lane, self.proceed(turn, text, step.result)

    def opening(self, lane: int, request: EpisodeRequest) -> Callable[[], tuple[str, dict[str, Any]]]:
        """What resets a lane for a request."""
        options = dict(request.options) if request.options else None
        return partial(self.envs.reset_lane, lane, seed=request.env_seed, options=options)

    def begin(
        self, lane: int, index: int, request: EpisodeRequest, reset: Callable[[], Any] | None = None
    ) -> bool:
        """Opens a conversation; False if that failed."""
        self.live[lane] = _Live(index, request)
        reset = reset or self.opening(lane, request)
        try:
            with self.timed("env"):
                obs, info = reset()
            self.hear(lane, obs, info, None)
        except Exception:
            self.set_aside(lane, traceback.format_exc())
            return False
        return True

    def proceed(self, turn: Turn, text: str, step: Callable[[], Any] | None = None) -> bool:
        """Says a finished turn to its environment; False if that ended the conversation."""
        live = self.live[turn.lane]
        live.spans.append((len(live.ids), turn))
        live.ids += turn.ids.tolist()
        live.messages.append({"role": "assistant", "content": text})
        try:
            # One lane at a time: an exception must be known to be this lane's.
            with self.timed("env"):
                if step is None:
                    [(obs, reward, terminated, truncated, info)] = self.envs.step_lanes([turn.lane], [text])
                else:
                    obs, reward, terminated, truncated, info = step()
            self.reward(live, reward, info)
            ended = bool(terminated or truncated)
            if not ended and self.hear(turn.lane, obs, info, turn):
                return True
        except Exception:
            self.set_aside(turn.lane, traceback.format_exc())
            return False
        if ended:
            live.messages.extend(info.get("messages", ()))
        else:
            truncated, info = True, {"end_reason": CONTEXT_FULL}
        self.finish(turn.lane, bool(terminated), bool(truncated), info)
        return False

    def hear(self, lane: int, obs: str, info: Mapping[str, Any], turn: Turn | None) -> bool:
        """Gives the environment's news to the engine; False if they do not fit into the context."""
        live = self.live[lane]
        messages = info.get("messages", ({"role": "user", "content": obs},))
        live.messages.extend(messages)
        live.state_keys.append(self.envs.state_key(lane))
        with self.timed("chat"):
            delta = self.chat.delta(messages, None if turn is None else live.ids[-1])
        if turn is not None and len(live.ids) + len(delta) >= self.engine.capacity:
            return False
        live.ids += delta
        with self.timed("engine"):
            if turn is None:
                self.engine.start(lane, delta, None if self.greedy else live.request.sample_seed)
                live.started = True
            else:
                self.engine.append(lane, delta)
        return True

    def reward(self, live: _Live, reward: float, info: Mapping[str, Any]) -> None:
        """Adds up what a turn brought.

        Raises:
            EnvError: if it is not a finite number, or the environment says that its infrastructure failed.
        """
        cost = float(info.get("cost", 0.0))
        if not (math.isfinite(reward) and math.isfinite(cost)):
            raise EnvError(f"expected finite numbers, got reward {reward!r} and cost {cost!r}")
        if info.get("end_reason") == EndReason.INFRASTRUCTURE:
            raise EnvError("the environment ended with 'infrastructure': a remote user or judge failed")
        live.rewards.append(float(reward))
        live.cost += cost
        live.understood += bool(info.get("understood", True))
        for name, value in info.get("reward_terms", {}).items():
            live.terms[name] = live.terms.get(name, 0.0) + float(value)

    def finish(self, lane: int, terminated: bool, truncated: bool, info: Mapping[str, Any]) -> None:
        """Turns a conversation that ended into an episode."""
        live = self.live[lane]
        success = bool(info.get("success", False))
        length, turns = len(live.ids), len(live.spans)
        logp, turn_index = np.zeros(length, np.float32), np.full(length, -1, np.int64)
        for index, (start, turn) in enumerate(live.spans):
            logp[start : start + len(turn.ids)] = turn.logp
            turn_index[start : start + len(turn.ids)] = index
        episode = TokenEpisode(
            ids=np.array(live.ids, np.int64),
            logp=logp,
            action=turn_index >= 0,
            turn=turn_index,
            rewards=np.array(live.rewards, np.float32),
            state_keys=np.array(live.state_keys[:turns], np.int64),
            group=live.request.group,
            env_seed=live.request.env_seed,
            sample_seed=live.request.sample_seed,
            version=self.version,
            terminated=terminated,
            judged="success" in info,  # a full context comes to no verdict
            truncated=truncated,
            end_reason=str(info.get("end_reason", "terminated" if terminated else "truncated")),
            success=success,
            score=float(info.get("score", success)),
            cost=live.cost,
            understood=live.understood / turns,
            cut_turns=sum(turn.reason != "eos" for _, turn in live.spans),
            reward_terms=live.terms,
            messages=tuple(live.messages),
        )
        self.free(lane)
        self.episodes[live.index] = episode
        if self.on_episode is not None:
            self.on_episode(episode)

    def set_aside(self, lane: int, error: str) -> None:
        """Turns a conversation that went wrong into a failure."""
        live = self.live[lane]
        self.failures[live.index] = Failure(live.request, error)
        self.free(lane)

    def free(self, lane: int) -> None:
        """Makes a lane ready for the next conversation."""
        if self.live.pop(lane).started:
            self.engine.release(lane)

    def abandon(self) -> None:
        """Leaves the engine empty, also when something was raised half-way."""
        for lane in list(self.live):
            self.free(lane)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start
