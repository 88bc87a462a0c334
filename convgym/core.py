"""``ConversationEnv``: the turn loop of every conversation, and nothing else.

What is said, what may be done and what counts comes from the :class:`Task` that a scenario draws for an
episode. The loop reads an agent message, lets a tool or the user answer, checks the rules on what happened,
and judges the world at the end.
"""

from __future__ import annotations

import copy
import logging
import operator
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args
from zlib import crc32

import numpy as np
from gymnasium.envs.registration import EnvSpec

from convgym.errors import ConfigError, EnvError, InfrastructureError, UnknownNameError
from convgym.registration import no_live_user
from convgym.rules import Rule, violations
from convgym.seeding import OwnStreams, Streams, derive_seed
from convgym.spaces import Utterance
from convgym.tools import Malformed, Tool, parse_call, run_tool
from convgym.types import Act, EndReason, Event, Heard, Message, Outcome, Turn
from convgym.users.base import User
from convgym.users.families import FAMILIES, dress, voice_of
from convgym.world import World

if TYPE_CHECKING:
    from convgym.users.llm import Voice

__all__ = ["SPLITS", "ConversationEnv", "Split", "Task", "values_of"]

LOG = logging.getLogger(__name__)

Value = TypeVar("Value")

Split = Literal["train", "val", "test_goal", "test_language", "test_composition", "test_user"]
SPLITS: tuple[str, ...] = get_args(Split)
CLAIMS = frozenset({"done", "refuse", "tell"})  # what an agent says and is held to: logged as events
MAX_CHARACTERS = 200_000  # of one conversation, both sides; past it the conversation is cut


@dataclass
class Task:
    """Everything that a scenario draws for one episode.

    Attributes:
        template: Name of the scenario's template (intent, outcome), for stratified reports.
        world: Records, overlay and log; changes as the episode goes.
        rules: The policy in force.
        tools: Tools by name.
        user: Who speaks with the agent; changes as the episode goes.
        instructions: The system message.
        understand: Text of the agent -> speech acts.
        judge: ``judge(world) -> Outcome``; may be called at any turn.
        turn_reward: ``turn_reward(world, start, ended) -> {term: value}`` for the events from index ``start`` on;
            None where only the end is rewarded.
        exact: ``exact(world)`` -> the optimal value ``v`` of the state and ``q`` of each canned act, by dynamic
            programming; micro environments only.
        canned: Complete agent messages, in the order of the class's ``canned_acts``: the discrete actions of
            agents that do not write; () where there are none.
        privileged: What only oracles and audits may see.
        secrets: Strings that may stand neither in the user's opening nor, messages aside, in any info.
    """

    template: str
    world: World
    rules: Sequence[Rule]
    tools: Mapping[str, Tool]
    user: User
    instructions: str
    understand: Callable[[str], Heard]
    judge: Callable[[World], Outcome]
    turn_reward: Callable[[World, int, bool], dict[str, float]] | None = None
    exact: Callable[[World], Mapping[str, Any]] | None = None
    canned: Sequence[str] = ()
    privileged: Mapping[str, Any] = field(default_factory=dict)
    secrets: Sequence[str] = ()

    def fork(self) -> Task:
        """Returns a continuation that shares what never changes."""
        return replace(self, world=self.world.fork(), user=self.user.fork())


@dataclass(slots=True)
class _Episode:
    """The state of one conversation."""

    task: Task
    streams: Streams
    opening: tuple[Message, ...]
    acts: tuple[Act, ...] = ()  # behind the user's opening
    turns: list[Turn] = field(default_factory=list)
    characters: int = 0
    end: EndReason | None = None
    hashed: int = 0  # events of the log that are in ``digest``
    digest: int = 0

    def fork(self) -> _Episode:
        return replace(self, task=self.task.fork(), turns=list(self.turns))

    def state_key(self) -> int:
        """Hashes the user's state and what happened; each event is hashed once."""
        log = self.task.world.log
        for i in range(self.hashed, len(log)):
            event = log[i]
            text = repr((event.name, event.ok, sorted(event.arguments.items())))
            self.digest = crc32(text.encode("utf-8", "surrogatepass"), self.digest)
        self.hashed = len(log)
        return crc32(self.task.user.key().encode("utf-8", "surrogatepass"), self.digest) or 1  # 0 is no state


class ConversationEnv(OwnStreams):
    """A conversation as a Gymnasium environment; a subclass is a scenario family.

    Observation: all text that is new to the agent, at reset the instructions and the user's opening. Action:
    one agent message, any string. ``info["messages"]`` holds the same news as chat messages. See
    ``docs/concepts/environments.md``.

    A subclass names, beside :meth:`draw`:

    ``default_max_turns``: agent messages before the conversation is cut; ``ceiling``: the mean return that no
    exploiter may exceed, as a share of the best possible; ``by_class``: whether that counts what lies beyond
    chance over the classes of templates (the part of the name before ``/``), where a cheat is right in one;
    ``canned_acts`` and ``user_acts``: the vocabularies of the acts wrapper, () where it does not apply.

    Args:
        split: Which seeds, wordings and people are met; a name in :data:`SPLITS`.
        difficulty: 1 to 5, turns the scenario's one knob.
        user: The user family: ``"agenda"`` (the scenario's own), ``"stochastic"`` (other habits),
            ``"llm"`` (the words are a language model's) or ``"cassette"`` (a recorded ``llm`` user).
        user_options: Settings of the family, see :mod:`convgym.users.families`.
        max_turns: Agent messages before the conversation is cut; None for the scenario's default.
        instructions: ``"brief"`` (a few dozen tokens) or ``"full"`` (prose and JSON schemas) of the same
            rules.
        reveal: Whether ``info["privileged"]`` holds the goal, for oracles and audits.
        render_mode: ``"ansi"`` returns the transcript, ``"human"`` prints it as it grows.

    Raises:
        ConfigError: If an argument has an illegal value.
        UnknownNameError: If an argument is none of the above.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 1}
    default_max_turns: ClassVar[int] = 12
    ceiling: ClassVar[float] = 0.05
    by_class: ClassVar[bool] = False
    canned_acts: ClassVar[tuple[str, ...]] = ()
    user_acts: ClassVar[tuple[str, ...]] = ()
    _spec: EnvSpec | None = None

    def __init__(
        self,
        *,
        split: Split = "train",
        difficulty: int = 2,
        user: str = "agenda",
        user_options: Mapping[str, Any] | None = None,
        max_turns: int | None = None,
        instructions: Literal["brief", "full"] = "brief",
        reveal: bool = False,
        render_mode: str | None = None,
        **unknown: object,
    ) -> None:
        for name in unknown:
            raise UnknownNameError.of("setting", name, _settings(type(self)))
        limit = self.default_max_turns if max_turns is None else max_turns
        expect("split", split, SPLITS)
        expect("difficulty", difficulty, (1, 2, 3, 4, 5))
        expect("user", user, FAMILIES)
        expect("instructions", instructions, ("brief", "full"))
        expect("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            got = f"got {max_turns!r}; leave it out for the default."
            raise ConfigError(f"max_turns: expected an integer of at least 1, {got}")
        self.split, self.difficulty, self.style = split, difficulty, instructions
        self.user, self.user_options = user, dict(user_options or {})
        self.max_turns, self.reveal, self.render_mode = limit, bool(reveal), render_mode
        self.observation_space = Utterance()
        self.action_space = Utterance()
        self._root: int | None = None
        self._episodes = 0
        self._episode: _Episode | None = None

    @abstractmethod
    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a task: world, rules, goal and user.

        Args:
            streams: The episode's random streams.
            split: Which wordings, people and values may be drawn.
            template: A template id to draw instead of a random one, or None.
        """

    # -- the Gymnasium interface -----------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts a conversation.

        Args:
            seed: Starts the stream of episodes anew; None goes on with it.
            options: ``scenario`` (template id), ``scenario_seed``, ``user_seed`` and ``split``, each
                optional.

        Raises:
            ConfigError: If the seed or an option is unknown or illegal; the env is then as it was.
        """
        options = options or {}
        for name in options:
            expect("option", name, ("scenario", "scenario_seed", "user_seed", "split"))
        split = options.get("split", self.split)
        if split is not self.split:
            expect("split", split, SPLITS)
        super().reset(seed=seed)
        first, number = (self._root, self._episodes) if seed is None else (seed, 0)
        if first is None:
            first = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        root = derive_seed(first, "episode", number)
        # The split is part of the seed: an episode of one split cannot be met in another.
        streams = Streams(
            derive_seed(_seed(options, "scenario_seed", root), "scenario", split),
            derive_seed(_seed(options, "user_seed", root), "user", split),
        )
        task = self.draw(streams, split, options.get("scenario"))
        if self.user != "agenda" or split == "test_user":
            scenario = type(self).__module__.rpartition(".")[2]
            task.user = dress(task, self.user, split, streams, scenario, self.voice)
        said = task.user.open(streams)
        opening = (Message("system", task.instructions), Message("user", said.text))
        self._root, self._episodes = first, number + 1
        self._episode = episode = _Episode(task, streams, opening, said.acts)
        if self.render_mode == "human":
            self.render()
        news = f"{task.instructions}\n\n{_as_text(opening[1:])}"
        return news, self._info(episode, opening, {}, 0.0, True, None)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Says one agent message, or calls one tool.

        Raises:
            EnvError: If no conversation is open, or the action is not a string.
        """
        episode = self._episode
        if episode is None or episode.end is not None:
            state = "no conversation has begun" if episode is None else "the conversation has ended"
            raise EnvError(f"step: expected an open conversation, but {state}; call reset() first.")
        if not isinstance(action, str):
            raise EnvError(f"step: expected a string (one agent message), got {type(action).__name__}.")
        task, world = episode.task, episode.task.world
        start = len(world.log)
        turn, episode.end = self._answer(episode, str(action))
        episode.turns.append(turn)
        episode.characters += len(turn.action) + sum([len(message.content) for message in turn.replies])
        if episode.end is None and episode.characters > MAX_CHARACTERS:
            episode.end = EndReason.CHARACTER_LIMIT
        if episode.end is None and len(episode.turns) >= self.max_turns:
            episode.end = EndReason.TURN_LIMIT
        outcome = None if episode.end is None else task.judge(world)
        terms = {} if task.turn_reward is None else task.turn_reward(world, start, outcome is not None)
        if outcome is not None and task.turn_reward is None:
            terms["success"] = 1.0 if outcome.success else 0.0
        cost = float(len(violations(task.rules, world, start)))
        understood = turn.heard is None or turn.heard.understood
        info = self._info(episode, turn.replies, terms, cost, understood, outcome)
        if self.render_mode == "human":
            self.render()
        cut = episode.end is not None and episode.end.truncates
        return _as_text(turn.replies), float(sum(terms.values())), outcome is not None and not cut, cut, info

    def render(self) -> str | None:  # type: ignore[override]
        """Returns the transcript (``ansi``) or prints the news (``human``); no message can forge another."""
        if self.render_mode is None or self._episode is None:
            return None
        if self.render_mode == "ansi":
            return "\n".join(_shown(message) for message in self.transcript())
        episode = self._episode
        news = self.transcript()[-1 - len(episode.turns[-1].replies) :] if episode.turns else episode.opening
        sys.stdout.write("".join(f"{_shown(message)}\n" for message in news))
        return None

    @property  # type: ignore[override]
    def spec(self) -> EnvSpec | None:
        """The specification that ``gym.make`` made this env from; an ``llm`` user needs an id that says so."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None and self.slow and not spec.nondeterministic:
            raise ConfigError(no_live_user(spec.id))
        self._spec = spec
        self.voice  # noqa: B018 - illegal options are an error of gym.make, and not of the first reset

    # -- beyond Gymnasium ------------------------------------------------------------------------------------

    def transcript(self) -> tuple[Message, ...]:
        """Returns every message so far, the agent's own included."""
        episode = self._open()
        messages = list(episode.opening)
        for turn in episode.turns:
            messages.append(Message("assistant", turn.action))
            messages.extend(turn.replies)
        return tuple(messages)

    def progress(self) -> float:
        """Returns the share of the goal that is met now, in [0, 1].

        Privileged: for shaping and audits, never for agents.
        """
        return self._open().task.judge(self._open().task.world).score

    def privileged(self) -> dict[str, Any]:
        """Returns what only oracles and audits may see; micro environments add the exact ``v`` and ``q`` now."""
        task = self._open().task
        return {**task.privileged, **(task.exact(task.world) if task.exact is not None else {})}

    @cached_property
    def voice(self) -> Voice | None:
        """The language model that speaks for the user, None for scripted families."""
        return voice_of(self.user, self.user_options)

    @property
    def slow(self) -> bool:
        """Whether somebody is asked over the network; lanes of a vector env then wait together."""
        return self.user == "llm"

    def state_key(self) -> int:
        """Returns a hash of the abstract state: of the user's state and of what happened, not of the words.

        Equal states have equal keys, for algorithms that assign credit by state. Privileged like :meth:`progress`:
        it depends on what the agent cannot see, so that it is in no info.
        """
        return self._open().state_key()

    def heard_acts(self) -> tuple[Act, ...]:
        """Returns the acts behind the user's latest words; () after a tool spoke."""
        episode = self._open()
        return episode.turns[-1].acts if episode.turns else episode.acts

    @property
    def task(self) -> Task:
        """The task of the current conversation, for audits."""
        return self._open().task

    def snapshot(self) -> Any:
        """Returns an opaque copy of the conversation and of the seed stream, for :meth:`restore`."""
        return self._root, self._episodes, self._open().fork()

    def restore(self, snapshot: Any) -> None:
        """Goes back to a snapshot; what follows is bitwise the same as it was.

        A snapshot can be restored many times.
        """
        self._root, self._episodes, episode = snapshot
        self._episode = episode.fork()

    def fork(self) -> ConversationEnv:
        """Returns an independent env that continues from here."""
        twin = copy.copy(self)
        twin._episode = self._open().fork()
        return twin

    # -- inside ----------------------------------------------------------------------------------------------

    def _open(self) -> _Episode:
        if self._episode is None:
            raise EnvError("expected a conversation, but none has begun; call reset() first.")
        return self._episode

    def _answer(self, episode: _Episode, action: str) -> tuple[Turn, EndReason | None]:
        """Lets the tool or the user answer; the world is changed here and nowhere else."""
        task, index = episode.task, len(episode.turns)
        call = parse_call(action)
        if isinstance(call, Malformed):
            return Turn(action, None, None, (Message("tool", f"error: {call.reason}"),)), None
        if call is not None:
            text, ending = run_tool(task.tools, task.world, call, index)
            end = (
                EndReason.ESCALATED
                if ending is not None and ending.name == "escalate"
                else EndReason.SUBMITTED
            )
            return Turn(action, call, None, (Message("tool", text),)), None if ending is None else end
        heard = task.understand(action)
        try:
            if self.voice is not None:
                heard = task.user.listen(action, heard, index, episode.streams)  # type: ignore[attr-defined]
            for act in heard.acts:
                if act.name in CLAIMS:
                    task.world.log.append(Event(index, act.name, act.slots))
            reply = task.user.respond(heard, task.world, index, episode.streams)
        except InfrastructureError as error:
            LOG.warning("%s", error)
            return Turn(action, None, heard, ()), EndReason.INFRASTRUCTURE
        messages = (Message("user", reply.text),) if reply.text else ()
        return Turn(action, None, heard, messages, reply.acts), reply.end

    def _info(
        self,
        episode: _Episode,
        news: Sequence[Message],
        terms: dict[str, float],
        cost: float,
        understood: bool,
        outcome: Outcome | None,
    ) -> dict[str, Any]:
        info: dict[str, Any] = {
            "messages": [message.to_dict() for message in news],
            "reward_terms": terms,
            "cost": cost,
            "understood": understood,
        }
        if outcome is not None and episode.end is not None:
            score = float(outcome.score)
            info |= {"end_reason": episode.end.value, "success": outcome.success, "score": score}
        if self.voice is not None:
            info["user_usage"] = episode.task.user.usage._asdict()  # type: ignore[attr-defined]
        if self.reveal:
            task = episode.task
            info["privileged"] = {**task.privileged, **(task.exact(task.world) if task.exact else {})}
        return info


def _as_text(messages: Sequence[Message]) -> str:
    return "\n".join([f"{message.role.capitalize()}: {message.content}" for message in messages])


def _shown(message: Message) -> str:
    """One message for people: further lines are indented, so that none looks like another message."""
    return f"{message.role}: {printable(message.content)}".replace("\n", "\n    ")


def values_of(pool: Sequence[Value], split: str) -> Sequence[Value]:
    """Returns the names that a split may use: the last 15 % of a pool are met only in ``test_goal``."""
    held = max(1, round(0.15 * len(pool)))
    return pool[-held:] if split == "test_goal" else pool[:-held]


def _settings(env: type) -> set[str]:
    """The names of the keyword arguments that a class and its bases take."""
    inits = [signature(cls.__dict__["__init__"]) for cls in env.__mro__ if "__init__" in cls.__dict__]
    return {p.name for init in inits for p in init.parameters.values() if p.kind is Parameter.KEYWORD_ONLY}


def _seed(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name}: expected an integer, got {value!r}; leave it out to draw one.") from None


def expect(name: str, value: object, legal: Sequence[object]) -> None:
    """Raises a :class:`ConfigError` that lists the legal values if ``value`` is not one of them.

    A value of another type is illegal even where Python calls it equal: ``2.0`` or ``True`` for an integer.
    """
    same = [item for item in legal if isinstance(value, type(item)) and value == item]
    if not same or isinstance(value, bool):
        known = ", ".join(repr(item) for item in legal)
        raise ConfigError(f"{name}: expected one of {known}, got {value!r}.")


def printable(text: str) -> str:
    """Returns a text that cannot steer a terminal: what is not printable is escaped, line breaks aside."""
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or c == "\n" else _escaped(c) for c in text)
    return "".join(kept)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
