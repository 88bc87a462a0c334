"""What a pack may say: the sections of ``scenario.yaml`` as models that forbid everything else.

What a single value may be is said here; whether the values fit together is checked in :mod:`convgym.packs.checks`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag
from pydantic import Field as Limits

__all__ = [
    "LEVELS",
    "TAGS",
    "AtMostOnce",
    "Before",
    "Choice",
    "Column",
    "Compare",
    "Digits",
    "End",
    "Find",
    "Goal",
    "Insert",
    "LookUp",
    "Never",
    "Number",
    "OnlyIf",
    "Pool",
    "Ref",
    "Rule",
    "Scenario",
    "Set",
    "Since",
    "Table",
    "Tool",
]

LEVELS = 5


class Part(BaseModel):
    """Base of every section: no unknown keys, no conversions, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _word(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _levels(value: object) -> object:
    return (value,) * LEVELS if isinstance(value, int | float) and not isinstance(value, bool) else _list(value)


def _tagged(value: object) -> str | None:
    """The tag of a section that is known by its first key: a field, an effect, a rule."""
    for key in value if isinstance(value, dict) else ():
        if key in TAGS:
            return f"<{key}>"
    return None


Name = Annotated[str, Limits(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
Dotted = Annotated[str, Limits(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$", max_length=81)]
Text = Annotated[str, Limits(min_length=1, max_length=600)]
Word = Annotated[str, BeforeValidator(_word), Limits(min_length=1, max_length=60)]
Phrase = Annotated[str, BeforeValidator(_word), Limits(pattern=r"^\w(.*\w)?$", max_length=60)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_list), Limits(max_length=40)]
Words = Annotated[tuple[Word, ...], BeforeValidator(_list), Limits(min_length=1, max_length=200)]
Phrases = Annotated[tuple[Phrase, ...], BeforeValidator(_list), Limits(min_length=1, max_length=40)]
Wordings = Annotated[tuple[Text, ...], BeforeValidator(_list), Limits(min_length=1, max_length=40)]
Level = Annotated[int, Limits(ge=1, le=LEVELS)]


# -- records -----------------------------------------------------------------------------------------------


class Digits(Part):
    """A number of so many digits, no two of one length alike in a world; keys and codes."""

    digits: Annotated[int, Limits(ge=3, le=9)]
    private: bool = False


class Number(Part):
    """A whole number in a range."""

    low: Annotated[int, Limits(alias="from", ge=-1_000_000, le=1_000_000)]
    high: Annotated[int, Limits(alias="to", ge=-1_000_000, le=1_000_000)]
    step: Annotated[int, Limits(ge=1, le=1_000_000)] = 1


class Choice(Part):
    """One of a few words; with ``start``, always that one at first."""

    choice: Words
    start: Word | None = None


class Pool(Part):
    """One of the words of a pool; the last 15 % of a pool are met only in ``test_goal``."""

    pool: Name


class Ref(Part):
    """The key of a record in another table; named like that table."""

    ref: Name


# The tag stands in the places of pydantic's errors, where no key can look like it.
Column = Annotated[
    Annotated[Digits, Tag("<digits>")]
    | Annotated[Number, Tag("<from>")]
    | Annotated[Choice, Tag("<choice>")]
    | Annotated[Pool, Tag("<pool>")]
    | Annotated[Ref, Tag("<ref>")],
    Discriminator(_tagged),
]


class Table(Part):
    """A kind of record: one of them is what the conversation is about, the others distract.

    No two records have the same values in all fields of ``unique``; about half of the distractors have those of the
    record in question in the fields of ``alike``.
    """

    key: Digits = Digits(digits=4)
    fields: Annotated[dict[Name, Column], Limits(max_length=16)] = {}
    unique: Names = ()
    alike: Names = ()
    distractors: Annotated[
        tuple[Annotated[int, Limits(ge=0, le=20)], ...], BeforeValidator(_levels), Limits(min_length=5, max_length=5)
    ] = (3, 3, 4, 6, 8)


# -- tools -------------------------------------------------------------------------------------------------


class Property(Part):
    """An argument, as in JSON schema."""

    type: Literal["string", "integer"] = "string"
    description: Text
    enum: Words | None = None


class Parameters(Part):
    """The arguments of a tool, as a JSON schema of an object; all are required."""

    type: Literal["object"] = "object"
    properties: Annotated[dict[Name, Property], Limits(max_length=8)] = {}
    required: Names | None = None
    additional: Annotated[Literal[False], Limits(alias="additionalProperties")] = False


class LookUp(Part):
    """Shows fields of one record by its key."""

    look_up: Name
    show: Annotated[Names, Limits(min_length=1)]


class Find(Part):
    """Shows the records that have a value in a field."""

    find: Name
    by: Name
    show: Annotated[Names, Limits(min_length=1)]
    at_most: Annotated[int, Limits(ge=1, le=30)] = 21


class Set(Part):
    """Changes a field of one record: to a word, or to an argument in braces."""

    set: Dotted
    to: Word


class Insert(Part):
    """Adds a record: fields get the arguments of the same names, the others the words of ``with``."""

    insert: Name
    constants: Annotated[dict[Name, Word], Limits(alias="with", max_length=16)] = {}


class Compare(Part):
    """Compares an argument with the field of the same name: proof of identity."""

    compare: Dotted


class End(Part):
    """Ends the conversation."""

    end: Literal[True]


Effect = Annotated[
    Annotated[LookUp, Tag("<look_up>")]
    | Annotated[Find, Tag("<find>")]
    | Annotated[Set, Tag("<set>")]
    | Annotated[Insert, Tag("<insert>")]
    | Annotated[Compare, Tag("<compare>")]
    | Annotated[End, Tag("<end>")],
    Discriminator(_tagged),
]


class Tool(Part):
    """A tool: its schema, what it does, and what it says when that is done."""

    description: Text
    parameters: Parameters = Parameters()
    effect: Effect
    says: Text | None = None


# -- rules -------------------------------------------------------------------------------------------------


class _Sentence(Part):
    tools: Annotated[Names, Limits(min_length=1)]
    brief: Text
    full: Text
    from_level: Level = 1


class Before(_Sentence):
    """The tools need an earlier event, about the same records."""

    before: Name
    same: Names = ()


class Since(_Sentence):
    """The tools need an event after the last ``reset``."""

    since: Name
    reset: Name


class Never(_Sentence):
    """The tools may not be used."""

    never: Literal[True]


class AtMostOnce(_Sentence):
    """The tools may be used once for each value of these arguments."""

    at_most_once: Names


class OnlyIf(_Sentence):
    """The tools need a comparison to hold; otherwise the agent refuses for the reason, or uses another tool."""

    only_if: Annotated[str, Limits(max_length=120)]
    reason: Name | None = None
    instead: Name | None = None


Rule = Annotated[
    Annotated[Before, Tag("<before>")]
    | Annotated[Since, Tag("<since>")]
    | Annotated[Never, Tag("<never>")]
    | Annotated[AtMostOnce, Tag("<at_most_once>")]
    | Annotated[OnlyIf, Tag("<only_if>")],
    Discriminator(_tagged),
]

TAGS = {
    "digits", "from", "choice", "pool", "ref",
    "look_up", "find", "set", "insert", "compare", "end",
    "before", "since", "never", "at_most_once", "only_if",
}  # fmt: skip

# -- goals and language --------------------------------------------------------------------------------------


class Call(Part):
    """A write that is required; arguments that their names do not tell are written out."""

    tool: Name
    arguments: Annotated[dict[Name, Dotted], Limits(max_length=8)] = {}
    say: Name | None = None


def _call(value: object) -> object:
    return {"tool": value} if isinstance(value, str) else value


class Goal(Part):
    """What a user comes for.

    Fulfilled by the ``required`` writes or by telling the value of ``tell``; each rule in ``unless`` makes another
    outcome, in which that rule speaks against it. All outcomes of a pack are equally frequent.
    """

    say: Name
    required: Annotated[
        tuple[Annotated[Call, BeforeValidator(_call)], ...], BeforeValidator(_list), Limits(max_length=4)
    ] = ()
    tell: Dotted | None = None
    unless: Names = ()
    asked: Names = ()
    allowed: Names = ()
    forbidden: Names = ()
    from_level: Level = 1


class Persona(Part):
    """A manner of bearing: patience, refusals it argues against, an act said before the opening."""

    patience: Annotated[int, Limits(ge=2, le=12)] = 5
    pushes: Annotated[int, Limits(ge=0, le=4)] = 0
    prefix: Name | None = None
    held_out: bool = False


class Slot(Part):
    """Something that an agent may ask for: how it is called, and where the user's answer stands."""

    phrases: Phrases
    value: Dotted | None = None


class Verb(Part):
    """How a tool is spoken about: in offers, and when it is done."""

    phrases: Phrases
    done: Annotated[tuple[Phrase, ...], BeforeValidator(_list), Limits(max_length=40)] = ()


class Language(Part):
    """Plain phrases, never patterns."""

    slots: Annotated[dict[Name, Slot], Limits(max_length=24)]
    reasons: Annotated[dict[Name, Phrases], Limits(max_length=24)] = {}
    verbs: Annotated[dict[Name, Verb], Limits(max_length=24)] = {}


class Speakers(Part):
    """The wordings of each act."""

    user: Annotated[dict[Name, Wordings], Limits(min_length=1, max_length=120)]
    agent: Annotated[dict[Name, Wordings], Limits(max_length=120)]


class HeldOut(Part):
    """A goal under a parameter's value that only ``test_composition`` meets."""

    goal: Name
    parameter: Name
    value: Word


class Scenario(Part):
    """A whole pack."""

    pack: Literal[1]
    name: Text
    role: Text
    turns: Annotated[int, Limits(ge=2, le=60)] = 14
    pools: Annotated[dict[Name, Annotated[Words, Limits(min_length=4)]], Limits(max_length=24)] = {}
    parameters: Annotated[dict[Name, Annotated[Words, Limits(max_length=8)]], Limits(max_length=8)] = {}
    records: Annotated[dict[Name, Table], Limits(min_length=1, max_length=12)]
    tools: Annotated[dict[Name, Tool], Limits(min_length=1, max_length=24)]
    rules: Annotated[dict[Name, Rule], Limits(max_length=24)] = {}
    goals: Annotated[dict[Name, Goal], Limits(min_length=1, max_length=24)]
    personas: Annotated[dict[Name, Persona], Limits(max_length=24)] = {}
    typos: Annotated[
        tuple[Annotated[float, Limits(ge=0, le=0.3, strict=False)], ...],
        BeforeValidator(_levels),
        Limits(min_length=5, max_length=5),
    ] = (0.0, 0.0, 0.0, 0.05, 0.1)
    held_out: HeldOut | None = None
    language: Language
    words: Speakers
