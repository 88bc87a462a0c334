"""TextBandit: a micro env, a bandit whose arms are words."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from convgym.core import ConversationEnv, Split, Task, expect
from convgym.errors import ConfigError
from convgym.seeding import Streams
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.world import World

__all__ = ["ARMS", "MEANS", "Payer", "TextBandit"]

ARMS = ("red", "blue", "green", "gold", "pink", "grey", "black", "white")
MEANS = (0.1, 0.3, 0.8, 0.2, 0.5, 0.1, 0.4, 0.3)  # the third word pays best at every difficulty above 1
_WORDS = re.compile(r"[a-z]+")


def listen(text: str) -> Heard:
    """Finds the arms named in a message; several are as good as none."""
    named = {word for word in _WORDS.findall(text[:2_000].lower()) if word in ARMS}
    return Heard(
        tuple(Act("pull", {"arm": arm}) for arm in sorted(named)), len(named) == 1 or not text.strip()
    )


@dataclass
class Payer:
    """Pays 1 with the probability of the word that was named.

    The draw of a turn belongs to the turn and not to the word: in a group, one uniform number decides for all
    words.
    """

    arms: tuple[str, ...]
    pulls: int

    def fork(self) -> Payer:
        """Returns an independent copy."""
        return replace(self)

    def key(self) -> str:
        """The bandit has no state but its log."""
        return ""

    def open(self, streams: Streams) -> Reply:
        """Names the arms in a random order."""
        order = list(self.arms)
        streams.stream("surface").shuffle(order)
        return Reply(f"Say one: {', '.join(order)}.")

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Pays, and says so; ends after the last pull."""
        named = [act.slots["arm"] for act in heard.acts if act.slots["arm"] in self.arms]
        arm = named[0] if len(named) == 1 else ""
        paid = bool(arm) and streams.stream("user", turn).random() < MEANS[ARMS.index(arm)]
        world.log.append(Event(turn, "pull", {"arm": arm}, ok=paid))
        end = EndReason.CONCLUDED if turn + 1 >= self.pulls else None
        return Reply("It pays 1." if paid else "It pays 0.", end=end)


@dataclass(frozen=True)
class BestArm:
    """Success is to name the best word at every pull; the score is the expected pay over the best one."""

    arms: tuple[str, ...]
    pulls: int

    def __call__(self, world: World) -> Outcome:
        means = {arm: MEANS[ARMS.index(arm)] for arm in self.arms}
        best = max(means.values())
        pulled = [means.get(event.arguments["arm"], 0.0) for event in world.log if event.name == "pull"]
        score = min(1.0, sum(pulled) / (best * self.pulls))
        success = len(pulled) == self.pulls and all(mean == best for mean in pulled)
        return Outcome(success, 1.0 if success else score)


@dataclass(frozen=True)
class Pay:
    """Pay per pull, at once (dense) or in one sum at the end (sparse); the returns are equal."""

    pulls: int
    dense: bool

    def __call__(self, world: World, start: int, ended: bool) -> dict[str, float]:
        events = world.log[start:] if self.dense else world.log if ended else []
        return {"pay": sum(event.ok for event in events if event.name == "pull") / self.pulls}


class TextBandit(ConversationEnv):
    """Which word pays? The smallest conversation in which there is something to learn.

    Description:
        A bandit whose arms are words with fixed chances to pay. The chances are the same in every episode, so
        that the agent has to find the best word by trying, over episodes. Enumerable: the exact optimum is
        known.
    Observation:
        Text: the words at reset, in random order, and then whether the last word paid.
    Action:
        Text that names exactly one word; anything else is a pull that pays nothing.
    Tools:
        None.
    Reward:
        The mean pay over the pulls: at each pull (``reward="dense"``) or at the end (``"sparse"``, the
        default).
    Episode end:
        After ``max_turns`` pulls, 3 by default.
    Difficulty:
        2, 3, 4, 6, 8 words.
    Splits:
        The same bandit in all of them.
    Audit:
        Naming all the words pays nothing.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 3

    def __init__(self, *, reward: Literal["sparse", "dense"] = "sparse", **settings: Any) -> None:
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward: expected one of 'sparse', 'dense', got {reward!r}.")
        super().__init__(**settings)
        self.dense = reward == "dense"

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """The world is always the same; only the order of the words and the luck vary."""
        if template is not None:
            expect("scenario", template, ("bandit",))
        arms, pulls = ARMS[: (2, 3, 4, 6, 8)[self.difficulty - 1]], self.max_turns
        means = {arm: MEANS[ARMS.index(arm)] for arm in arms}
        brief = "Find the word that pays."
        full = (
            f"You play {pulls} rounds. In each, say exactly one of the words that the user names. "
            "Each word pays with a chance of its own. Find the word that pays best."
        )
        return Task(
            template="bandit", world=World({}), rules=(), tools={}, user=Payer(arms, pulls),
            instructions=brief if self.style == "brief" else full, understand=listen,
            judge=BestArm(arms, pulls), turn_reward=Pay(pulls, self.dense),
            privileged={"means": means, "optimal_return": max(means.values())},
        )  # fmt: skip
