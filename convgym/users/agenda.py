"""The agenda user: a goal, a stack of things to say, and a limited patience.

After Schatzmann et al. (2007), "Agenda-based user simulation for bootstrapping a POMDP dialogue system". The
agenda holds the user's wants in order with the goodbye at its bottom; what the agent says pushes answers on
top. The user sees the effects of writes (as by a mail that confirms them), so a claim without an effect
convinces nobody, and it never leaves before a promised write has happened unless its patience is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from convgym.seeding import Streams
from convgym.types import Act, EndReason, Event, Heard, Reply
from convgym.users.base import PERSONAS, Persona, Speaker, draw_persona
from convgym.world import World

__all__ = ["PERSONAS", "AgendaUser", "Persona", "Want", "draw_persona"]

UNPRODUCTIVE = frozenset(
    {"repeat", "not_yet", "why", "again", "deny", "unknown"}
)  # answers that cost patience


class Want(NamedTuple):
    """One thing that the user came for.

    Attributes:
        intent: Name of the write that fulfils it.
        target: Arguments of that write, e.g. ``{"order": "4821", "item": "lamp"}``.
        say: Act key of the words that ask for it.
    """

    intent: str
    target: Mapping[str, str]
    say: str

    def fulfilled(self, world: World) -> bool:
        """Whether the write has happened."""
        return world.happened(self.intent, **self.target)


@dataclass(kw_only=True)
class AgendaUser(Speaker):
    """A user with wants, facts it can tell when asked, and patience.

    Attributes:
        wants: What it came for, in order.
        opening: Act key of its first words.
    """

    wants: tuple[Want, ...]
    opening: str = ""
    patience: int = 0
    pushes: int = 0
    told: frozenset[str] = frozenset()
    refused: frozenset[int] = frozenset()
    noticed: int = 0
    agenda: list[Act] = field(default_factory=list)

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.patience}|{self.pushes}|{sorted(self.told)}|{sorted(self.refused)}"

    def open(self, streams: Streams) -> Reply:
        """Greets in its manner and says its first want."""
        self.patience, self.pushes = self.persona.patience, self.persona.pushes
        return self.greet([Act(self.opening, {})], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Answers an agent message; leaves when everything is settled or patience is spent."""
        open_wants = [
            i for i, want in enumerate(self.wants) if i not in self.refused and not want.fulfilled(world)
        ]
        for act in heard.acts:
            self._hear(act, open_wants, world, turn)
        open_wants = [i for i in open_wants if i not in self.refused]
        if not open_wants:
            # The goodbye at the bottom of the agenda comes up when no want lies on it any more.
            return self.say([Act("goodbye", {})], turn, streams, EndReason.CONCLUDED)
        if not heard.understood:
            self.agenda = [Act("repeat", {})]
        if not self.agenda:  # nothing that was said moves a want forward: it says the want again
            want = self.wants[open_wants[0]]
            self.agenda = [Act(want.say, want.target) if heard.acts else Act("nag", {})]
            self.patience -= 1
        elif self.agenda[-1].name in UNPRODUCTIVE:
            self.patience -= 1
        acts, self.agenda = self.agenda, []
        if self.patience <= 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        return self.say(acts, turn, streams)

    # -- what an act of the agent pushes on the agenda -------------------------------------------------------

    def _hear(self, act: Act, open_wants: list[int], world: World, turn: int) -> None:
        if act.name == "request":
            self._asked(act.slots["slot"], world, turn)
        elif act.name == "refuse":
            self._refused(act, open_wants)
        elif act.name == "done" and open_wants:
            self._told_done(open_wants)
        elif act.name == "promise":
            self._push("waiting")
        elif act.name == "confirm":
            self._asked_to_confirm(act, open_wants, world, turn)

    def _told_done(self, open_wants: list[int]) -> None:
        """Believes a report if one more want is fulfilled, and asks for the next."""
        fulfilled = len(self.wants) - len(open_wants) - len(self.refused)
        if fulfilled > self.noticed:
            self.noticed = fulfilled
            want = self.wants[open_wants[0]]
            self.agenda.append(Act(want.say, want.target))
        else:
            self._push("not_yet")

    def _asked(self, slot: str, world: World, turn: int) -> None:
        if slot not in self.facts:
            self._push("unknown")
            return
        if slot in self.told:  # being asked twice costs patience
            self.patience -= 1
        self.told |= {slot}
        world.log.append(Event(turn, "told", {"slot": slot}))
        self._push(f"inform_{slot}s" if f"{slot}2" in self.facts else f"inform_{slot}")

    def _refused(self, act: Act, open_wants: list[int]) -> None:
        if not act.slots["reason"]:
            self._push("why")
            return
        if self.agenda and self.agenda[-1].name == "push":
            return  # one message is argued against once, however many things it refuses
        # A refusal that names nothing is of everything; one of something else, or of who knows what, of nothing here.
        meant = [i for i in open_wants if act.slots["item"] in ("", self.wants[i].target.get("item"))]
        if self.pushes > 0 and meant:
            self.pushes -= 1
            self._push("push")
            return
        self.refused |= set(meant)
        self._push("accept_refusal" if meant else "again")

    def _asked_to_confirm(self, act: Act, open_wants: list[int], world: World, turn: int) -> None:
        for i in open_wants:
            want = self.wants[i]
            if want.intent == act.slots["intent"] and act.slots["item"] in ("", want.target.get("item", "")):
                # The yes is bound to this action on this target, and to no other.
                world.log.append(Event(turn, "confirmed", {"intent": want.intent, **want.target}))
                self._push("affirm")
                return
        self._push("deny")

    def _push(self, key: str) -> None:
        self.agenda.append(Act(key, {}))
