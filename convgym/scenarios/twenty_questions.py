"""TwentyQuestions: one of 16 to 128 items is meant; yes/no questions about one word each, then one guess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import ClassVar

from pydantic import Field

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.rules import Rule
from convgym.seeding import Stream, Streams
from convgym.tools import Arguments, Tool, ToolResult, describe, format_call
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.users.base import Speaker, draw_persona
from convgym.world import World

__all__ = ["ATTRIBUTES", "KINDS", "AskedAll", "Found", "Messages", "Thinker", "TwentyQuestions", "canonical", "listen"]

Lists = Mapping[str, tuple[str, ...]]
"""``{attribute: its values}`` of one game; an item has one value of each, in this order."""

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "size": (("small", "large"), ("tiny", "huge"), ("short", "tall")),
    "age": (("old", "new"), ("ancient", "modern"), ("vintage", "recent")),
    "state": (("clean", "dirty"), ("broken", "intact"), ("wet", "dry")),
    "form": (("round", "square"), ("flat", "curved"), ("straight", "bent")),
}
COLOURS = (
    "red", "blue", "green", "black", "white", "yellow", "pink", "grey", "brown", "purple", "orange", "golden",
    "silver", "beige", "violet", "olive", "ivory", "navy", "coral", "amber", "lilac", "maroon", "khaki",
    "teal", "crimson", "scarlet", "turquoise",
)  # fmt: skip
STUFFS = (
    "iron", "wood", "wool", "clay", "paper", "plastic", "leather", "cotton", "copper", "stone", "rubber", "silk",
    "marble", "steel", "glass", "brass", "straw", "linen", "wax", "bone", "felt", "tin", "velvet",
    "bamboo", "bronze", "concrete", "denim",
)  # fmt: skip
THINGS = (
    "cup", "lamp", "box", "chair", "hat", "ball", "bag", "clock", "plate", "spoon", "ring", "toy", "vase", "belt",
    "brush", "basket", "pillow", "candle", "bottle", "ladder", "drum", "kite", "fork",
    "kettle", "mirror", "bucket", "whistle",
)  # fmt: skip
POOLS = {"colour": COLOURS, "stuff": STUFFS, "thing": THINGS}
ATTRIBUTES = (*PAIRS, *POOLS)
KINDS = tuple(PAIRS)  # the templates: which of the pairs is in the game
SHAPES = (
    # how many colours, stuffs and things, beside the pair, by difficulty: 16, 32, 64, 128, 128 items
    {"colour": 2, "thing": 4},
    {"colour": 4, "thing": 4},
    {"colour": 4, "stuff": 2, "thing": 4},
    {"colour": 4, "stuff": 4, "thing": 4},
    {"colour": 4, "stuff": 4, "thing": 4},
)
LIES = (0.0, 0.0, 0.0, 0.02, 0.05)  # probability that an answer is false, by difficulty
SPARE = (1, 1, 1, 3, 5)  # questions beyond those that a search without lies needs, by difficulty
HELD_OUT = 6  # one in so many pairs of a colour and a thing is meant in test_composition only

# Other words for a value.
ALIASES = {"gray": "grey", "gold": "golden", "wooden": "wood", "woolen": "wool", "woollen": "wool"}
ATTRIBUTE_OF = {value: name for name, pairs in PAIRS.items() for value in chain(*pairs)} | {
    value: name for name, pool in POOLS.items() for value in pool
}


# -- what the agent says ---------------------------------------------------------------------------------

_VALUES = re.compile(rf"\b(?:({'|'.join([*ATTRIBUTE_OF, *ALIASES])})(?:e?s)?)\b")
_NOT = re.compile(r"\b(?:not|no|never|except|other than|anything but|neither|without|besides)\b|n't\b")
_OR_NOT = re.compile(r",? or (?:not|no|isn't it) ?\?|, ?(?:is|isn't|right|correct|is not|yes or no)(?: it)? ?\?")
_SENTENCE = re.compile(r"[^.!?;]+[.!?;]?")
_OPEN = re.compile(r"\b(?:what|which|who|where|how|why|tell me|describe|hint)\b")
_CHAT = re.compile(r"\b(?:hello|hi|hey|thanks?|thank you|great|good|nice|fun|ok|okay|yes|no|sorry|sure|let's)\b")


def listen(text: str) -> Heard:
    """What a user understands of an agent message: which values it names, and whether it is a plain question."""
    return _listen(text[:2_000])


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    text = " ".join(text.replace("’", "'").lower().split())
    if not text:
        return Heard((), True)
    # What is said around a question ("So it is not red.") is no part of it.
    sentences = _SENTENCE.findall(_OR_NOT.sub("?", text))
    asked = " ".join([sentence for sentence in sentences if sentence.endswith("?")]) or text
    named = dict.fromkeys([ALIASES.get(word, word) for word in _VALUES.findall(asked)])
    if named and not _NOT.search(asked):
        return Heard(tuple([Act("ask", {"attribute": ATTRIBUTE_OF[value], "value": value}) for value in named]), True)
    if not named and _OPEN.search(asked):
        return Heard((Act("ask_open", {}),), True)
    return Heard((Act("chat", {}),), True) if not named and _CHAT.search(text) else Heard((), False)


_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset({"a", "an", "the"})


@lru_cache(maxsize=4_096)  # of at most 200 characters each, see Arguments
def canonical(item: str) -> str:
    """Brings an item into the form in which items are compared: its words, sorted, without articles.

    What stands between words does not count, and another name of a word is that word.

    >>> canonical("The large, gray cup."), canonical("cup grey large"), canonical("grey grey large cup")
    ('cup grey large', 'cup grey large', 'cup grey grey large')
    """
    words = [ALIASES.get(word, word) for word in _WORD.findall(item.lower())]
    return " ".join(sorted([word for word in words if word not in _ARTICLES]))


# -- the guess, and the rule about it --------------------------------------------------------------------


class GuessArguments(Arguments):
    item: str = Field(description="the item, one word of each list, e.g. small red cup")


def _guess(world: World, arguments: GuessArguments, turn: int) -> ToolResult:
    item = canonical(arguments.item)
    right = item == canonical(world.tables["items"]["target"])
    event = Event(turn, "guess", {"item": item, "right": str(right)}, write=True)
    return ToolResult("right" if right else "wrong", event)


TOOLS = {"guess": Tool("guess", "Says which item it is; ends the game.", GuessArguments, _guess, ends=True)}


@dataclass(frozen=True)
class AskedAll:
    """A guess needs an answered question about each attribute before it."""

    attributes: tuple[str, ...]
    names: frozenset[str] = frozenset({"guess"})

    def __call__(self, world: World, earlier: Sequence[Event], event: Event) -> bool:
        return set(self.attributes) <= {past.arguments["attribute"] for past in earlier if past.name == "asked"}


@lru_cache(maxsize=64)
def _rules(attributes: tuple[str, ...]) -> tuple[Rule, ...]:
    brief = "Ask about each list before."
    full = f"Guess only when a question about each of these lists has been answered: {', '.join(attributes)}."
    return (Rule("ask_first", brief, full, AskedAll(attributes)),)


@dataclass(frozen=True)
class Found:
    """The goal: every attribute asked about, and then each of them right in the one guess."""

    target: Mapping[str, str]
    rules: Sequence[Rule]

    def __call__(self, world: World) -> Outcome:
        asked = {event.arguments["attribute"] for event in world.log if event.name == "asked"}
        guess = next((event.arguments for event in world.log if event.name == "guess"), None)
        if guess is not None and policy.violations(self.rules, world):
            return Outcome(False, 0.0, ("a question about each attribute before the guess",))
        words = guess["item"].split() if guess is not None else []
        if len(words) > len(self.target):
            return Outcome(False, 0.0, ("a guess of one item",))
        met = {f"asked {name}": name in asked for name in self.target}
        met |= {f"guessed {name}": value in words for name, value in self.target.items()}
        missing = tuple([name for name, done in met.items() if not done])
        return Outcome(not missing, 1.0 - len(missing) / len(met), missing)


# -- the user --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Thinker(Speaker):
    """Answers questions about one value with yes or no, now and then falsely.

    Attributes:
        target: ``{attribute: value}`` of the item that it thinks of.
        lists: The values in the game.
        questions: Questions that it still answers.
        lies: Probability of a false answer, drawn for each turn and question.
        patience: Other messages that it still bears.
    """

    target: Mapping[str, str]
    lists: Lists
    questions: int
    lies: float = 0.0
    patience: int = 0

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.questions}|{self.patience}"

    def open(self, streams: Streams) -> Reply:
        """Says that the game begins."""
        self.patience = self.persona.patience
        return self.greet([Act("think", {})], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Answers a question, or says what is wrong with it."""
        if not heard.understood:
            return self._grumble("repeat", turn, streams)
        if not heard.acts or heard.acts[0].name == "chat":
            return self._grumble("nag", turn, streams)
        if heard.acts[0].name == "ask_open":
            return self._grumble("yes_or_no", turn, streams)
        asked = [act.slots for act in heard.acts if act.slots["value"] in self.lists.get(act.slots["attribute"], ())]
        if len(asked) != 1:
            return self._grumble("one_thing" if asked else "not_listed", turn, streams)
        attribute, value = asked[0]["attribute"], asked[0]["value"]
        if self.questions <= 0:
            return self._grumble("no_more", turn, streams)
        self.questions -= 1
        world.log.append(Event(turn, "asked", {"attribute": attribute, "value": value}))
        true = (self.target[attribute] == value) is not self._lies(value, turn, streams)
        return self.say([Act("yes" if true else "no", {})], turn, streams)

    def _lies(self, value: str, turn: int, streams: Streams) -> bool:
        """Whether the answer at this turn to this question is false: a number for each value in the game."""
        if not self.lies:
            return False
        stream = streams.stream("user", turn)
        return {each: stream.random() < self.lies for each in chain(*self.lists.values())}[value]

    def _grumble(self, key: str, turn: int, streams: Streams) -> Reply:
        """Answers what was no question that it answers; that costs patience."""
        self.patience -= 1
        if self.patience <= 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        return self.say([Act(key, {})], turn, streams)


# -- discrete actions ------------------------------------------------------------------------------------

PLACES = (*(("pair", i) for i in range(2)), *((name, i) for name in POOLS for i in range(4)))
MOST = 128  # items of the largest game


@dataclass(frozen=True)
class Messages(Sequence[str]):
    """The canned messages of a game, written when they are asked for.

    First the questions at :data:`PLACES`, then a guess of each item. A game with fewer values or items meets
    some of them under several numbers.
    """

    lists: Lists

    def __len__(self) -> int:
        return len(PLACES) + MOST

    def __getitem__(self, number: int) -> str:  # type: ignore[override]
        number = range(len(self))[number]
        if number >= len(PLACES):
            return format_call("guess", {"item": self._item(number - len(PLACES))})
        name, place = PLACES[number]
        values = self.lists.get(name) or next(iter(self.lists.values()))
        return f"Is it {values[place % len(values)]}?"

    def _item(self, number: int) -> str:
        words = []
        for values in self.lists.values():
            number, place = divmod(number, len(values))
            words.append(values[place])
        return " ".join(words)


# -- the scenario ----------------------------------------------------------------------------------------


class TwentyQuestions(ConversationEnv):
    """The user thinks of one of many items; the agent asks yes/no questions and guesses once.

    Description:
        An item is a combination of words, one of each list in the instructions: "small red iron cup". The user
        says yes or no to a question that names exactly one word of the lists, for a limited number of
        questions; at high difficulty an answer may be false. The agent guesses one item, after it has asked about
        each list.
    Observation:
        Text. At reset the instructions with the lists and the user's opening; then the answers.
    Action:
        Text that asks about one word, or the tool call ``guess``.
    Tools:
        ``guess(item)``: the words of one item, in any order, with or without commas and articles; ends the game.
    Reward:
        1 at the end if the guess is exactly the item and each list was asked about before. Otherwise 0.
    Episode end:
        At the guess, or when the user's patience is spent (with messages that are not a question about one word, or
        come after the last question). Cut after 20 turns.
    Difficulty:
        Items 16, 32, 64, 128, 128; false answers 0, 0, 0, 2, 5 % of the time, drawn for each turn and question;
        questions beyond those that a search without false answers needs: 1, 1, 1, 3, 5.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal``: new words;
        ``test_composition``: pairs of a colour and a thing that no other split means.
    Audit:
        Resists guessing at once (each list must be asked about), several items or words in a guess, several
        words in a question, the item itself as a question, and asking without an end.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 20
    canned_acts: ClassVar[tuple[str, ...]] = (
        *(f"ask {name} {place + 1}" for name, place in PLACES),
        *(f"guess {number + 1}" for number in range(MOST)),
    )
    user_acts: ClassVar[tuple[str, ...]] = (
        "think", "yes", "no", "one_thing", "yes_or_no", "not_listed", "no_more", "repeat", "nag", "leave",
    )  # fmt: skip

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws the item, and the lists around it."""
        stream = streams.stream("scenario")
        if template is not None:
            expect("scenario", template, KINDS)
        kind = template or stream.pick(KINDS)
        target, lists = _game(stream, kind, SHAPES[self.difficulty - 1], split)
        rules = _rules(tuple(lists))
        needed = sum([len(values) - 1 for values in lists.values()])
        questions = needed + SPARE[self.difficulty - 1]
        item, lies = " ".join(target.values()), LIES[self.difficulty - 1]
        user = Thinker(
            bank=load_bank("twenty_questions", "user"), persona=draw_persona(streams, split), split=split,
            facts={}, typos=(0.0, 0.0, 0.0, 0.05, 0.1)[self.difficulty - 1],
            target=target, lists=lists, questions=questions, lies=lies,
        )  # fmt: skip
        return Task(
            template=kind, world=World({"items": {"target": item}}), rules=rules, tools=TOOLS, user=user,
            instructions=_instructions(lists, rules, questions, lies > 0.0, self.style), understand=listen,
            judge=Found(target, rules), canned=Messages(lists),
            privileged={"item": item, "attributes": target, "lists": lists, "questions": questions},
            secrets=(item,),
        )  # fmt: skip


def _game(stream: Stream, kind: str, shape: Mapping[str, int], split: str) -> tuple[dict[str, str], Lists]:
    """Draws an item first and the other values of each list around it, so that any place may be the right one."""
    lists: dict[str, tuple[str, ...]] = {kind: stream.pick(values_of(PAIRS[kind], split))}
    target = {kind: stream.pick(lists[kind])}
    colour, things = stream.pick(values_of(COLOURS, split)), values_of(THINGS, split)
    if split != "test_goal":  # whose colours and things are in no other split anyway
        unseen = split == "test_composition"
        things = [thing for thing in things if _is_held_out(colour, thing) is unseen]
    meant = {"colour": colour, "thing": stream.pick(things)}
    for name, count in shape.items():
        pool = values_of(POOLS[name], split)
        target[name] = value = meant.get(name) or stream.pick(pool)
        others = stream.deal(pool, count)
        lists[name] = tuple(stream.deal([value, *[each for each in others if each != value][: count - 1]], count))
    return target, lists


def _is_held_out(colour: str, thing: str) -> bool:
    return (_PLACE[colour] + _PLACE[thing]) % HELD_OUT == 0


_PLACE = {value: place for pool in POOLS.values() for place, value in enumerate(pool)}


def _instructions(lists: Lists, rules: Sequence[Rule], questions: int, lies: bool, style: str) -> str:
    rule = policy.render(rules, style)
    if style == "brief":
        words = "; ".join([f"{name} {' '.join(values)}" for name, values in lists.items()])
        false = " Answers may be false." if lies else ""
        return f"Item: {words}. Ask yes or no, one word each, at most {questions} times, then guess. {rule}{false}"
    words = "\n".join([f"- {name}: {', '.join(values)}" for name, values in lists.items()])
    false = " A few of the answers may be false." if lies else ""
    return (
        "The user thinks of one item. An item has one word of each of these lists:\n"
        f"{words}\n"
        "Find out which it is by yes/no questions. A question names exactly one word of the lists; the user answers "
        f"at most {questions} of them.{false} Then guess the item, once and exactly.\n"
        f"{rule}\n\n{_TOOL_TEXT}"
    )


_TOOL_TEXT = (
    "Either speak to the user, or call the tool by writing "
    '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
    f"{describe(TOOLS.values(), 'full')}"
)
