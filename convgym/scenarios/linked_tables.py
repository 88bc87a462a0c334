"""Linked tables and questions about them: who is in which team, where the team sits, and what its phone is.

The first column of a table is its key, the second leads to a row of the next table, the third is a detail. A
question names a row of the first table and asks for a cell of the last one.

Whatever has the form of a value is heard as a claim, so no value is an ordinary word that an agent may say beside its
answer: a depot in Nice would be claimed by whoever wishes a nice day.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

from convgym.core import values_of
from convgym.seeding import Stream

__all__ = [
    "LEAF", "LINK", "NAMES", "NONE", "SCHEMAS", "VALUES", "Question", "Row", "Schema", "Table", "describe_cell",
    "draw_rows", "draw_value", "look_ups",
]  # fmt: skip

NONE = ""  # the cell of what is not on record
LINK, LEAF = 1, 2  # places in a row, after the key

NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Elsa", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo",
    "Mia", "Ned", "Ola", "Pia", "Rex", "Sven", "Tom", "Uma", "Vic", "Wes", "Yan", "Zoe",
)  # fmt: skip
SURNAMES = (  # of those who are asked for: an agent may introduce itself by a first name
    "Acosta", "Bauer", "Cohen", "Dubois", "Eriksen", "Farkas", "Goetz", "Haddad", "Ibsen", "Jovic",
    "Kaplan", "Larsen", "Moreau", "Nakata", "Okafor", "Popov", "Quinn", "Rahman", "Sato", "Torres",
)  # fmt: skip
NUMBERS = {digits: tuple(str(n) for n in range(10 ** (digits - 1), 10**digits)) for digits in (1, 2, 3, 4)}
CODES = {digits: tuple(f"{letter}{n}" for letter in "BCDFGHJKLM" for n in NUMBERS[digits]) for digits in (1, 2)}
VALUES: dict[str, tuple[str, ...]] = {
    # column: its possible values. Within one schema no two columns look alike, so that a value says by
    # itself which column it is from.
    "name": NAMES,
    "team": (
        "Vega", "Rigel", "Altair", "Deneb", "Sirius", "Castor", "Pollux", "Spica", "Antares", "Algol",
        "Mizar", "Alcor", "Lyra", "Draco", "Cetus", "Pavo", "Izar", "Merak", "Canopus", "Procyon",
    ),
    "desk": NUMBERS[2],
    "room": NUMBERS[3],
    "code": CODES[1],
    "house": (
        "Elm", "Yew", "Birch", "Cedar", "Maple", "Alder", "Hazel", "Larch", "Beech", "Holly",
        "Aspen", "Linden", "Acacia", "Cypress", "Juniper", "Ginkgo", "Sequoia", "Willow", "Poplar", "Rowan",
    ),
    "phone": NUMBERS[4],
    "guard": SURNAMES,
    "gate": CODES[2],
    "order": NUMBERS[4],
    "card": CODES[2],
    "carrier": (
        "Trex", "Volo", "Karo", "Zeto", "Pelo", "Nuvo", "Dexo", "Lumo", "Fexo", "Hubo",
        "Orbi", "Tavo", "Ruxo", "Vexi", "Jeto", "Kelvo", "Soma", "Wexo", "Yelvo", "Bova",
    ),
    "item": (
        "lamp", "mug", "kettle", "scarf", "vase", "banjo", "kayak", "tripod", "teapot", "toaster",
        "cello", "jacket", "kimono", "wok", "hammock", "trombone", "ukulele", "abacus", "rucksack", "pillow",
    ),
    "depot": (
        "Oslo", "Rome", "Lyon", "Bonn", "Kiel", "Graz", "Kyiv", "Lima", "Porto", "Turin",
        "Basel", "Ghent", "Paris", "Milan", "Malmo", "Zadar", "Riga", "Essen", "Nantes", "Bern",
    ),
    "hotline": NUMBERS[3],
    "chief": SURNAMES,
    "dock": CODES[1],
    "group": (
        "Otter", "Lynx", "Heron", "Ibex", "Osprey", "Beaver", "Tapir", "Raven", "Tiger", "Zebra",
        "Panda", "Koala", "Walrus", "Moose", "Bison", "Puffin", "Gecko", "Hyena", "Lemur", "Stork",
    ),
    "locker": NUMBERS[3],
    "teacher": (
        "Abel", "Brandt", "Castro", "Dietz", "Ekman", "Fuchs", "Gomez", "Holm", "Ivanov", "Janssen",
        "Klein", "Lopez", "Meyer", "Novak", "Olsen", "Petrov", "Rossi", "Silva", "Tanaka", "Weber",
    ),
    "hall": CODES[2],
    "club": (
        "chess", "judo", "choir", "ballet", "tango", "karate", "tennis", "kendo", "yoga", "sudoku",
        "rugby", "hockey", "poetry", "robotics", "origami", "badminton", "aikido", "pottery", "archery", "handball",
    ),
    "captain": SURNAMES,
    "court": CODES[1],
}  # fmt: skip


class Table(NamedTuple):
    """A table: its name and its columns, the key first, then the link, then the leaf."""

    name: str
    columns: tuple[str, str, str]


class Schema(NamedTuple):
    """A chain of tables; a row of the first one is described as ``who`` ``at`` its leaf."""

    name: str
    tables: tuple[Table, ...]
    who: str
    at: str


SCHEMAS: dict[str, Schema] = {
    "office": Schema(
        "office",
        (
            Table("people", ("name", "team", "desk")),
            Table("teams", ("team", "room", "code")),
            Table("rooms", ("room", "house", "phone")),
            Table("houses", ("house", "guard", "gate")),
        ),
        "the person", "at desk",
    ),
    "shop": Schema(
        "shop",
        (
            Table("customers", ("name", "order", "card")),
            Table("orders", ("order", "carrier", "item")),
            Table("carriers", ("carrier", "depot", "hotline")),
            Table("depots", ("depot", "chief", "dock")),
        ),
        "the customer", "with card",
    ),
    "school": Schema(
        "school",
        (
            Table("pupils", ("name", "group", "locker")),
            Table("groups", ("group", "teacher", "hall")),
            Table("teachers", ("teacher", "club", "phone")),
            Table("clubs", ("club", "captain", "court")),
        ),
        "the pupil", "with locker",
    ),
}  # fmt: skip


class Question(NamedTuple):
    """What is asked: a column (:data:`LINK` or :data:`LEAF`) at the end of a chain of tables.

    ``start`` says how the first row is described: by its name, by its leaf, or by both.
    """

    kind: str
    schema: Schema
    tables: tuple[Table, ...]
    at: int
    start: str

    @property
    def column(self) -> str:
        """Name of the column that is asked for."""
        return self.tables[-1].columns[self.at]


class Row(NamedTuple):
    """A row: the cells under the table's three columns; :data:`NONE` where nothing is on record."""

    key: str
    link: str
    leaf: str


TRAIN = {column: values_of(values, "train") for column, values in VALUES.items()}


def draw_value(stream: Stream, column: str, split: str, other_than: Collection[str]) -> str:
    """Draws a value of a column."""
    values = values_of(VALUES[column], split) if split == "test_goal" else TRAIN[column]
    while True:
        value = stream.pick(values)
        if value not in other_than:
            return value


def _keys(stream: Stream, column: str, count: int) -> list[str]:
    """Draws different values of a column that training may meet."""
    values = TRAIN[column]
    if len(values) < 90:
        return stream.deal(values, count)
    return [values[n] for n in stream.distinct(len(values), count)]


@lru_cache(maxsize=1_024)
def _background(name: str, hops: int, count: int, number: int) -> tuple[dict[str, Row], ...]:
    """The rows of a schema's tables that are on no way; there are a hundred backgrounds of each size."""
    stream, tables = Stream(("background", name, hops, count, number)), SCHEMAS[name].tables[:hops]
    keys = [_keys(stream, table.columns[0], count) for table in tables]
    rows = []
    for k, (_, (_, link, leaf)) in enumerate(tables):
        links = keys[k + 1] if k + 1 < hops else TRAIN[link]
        leaves = _keys(stream, leaf, count) if k == 0 else [stream.pick(TRAIN[leaf]) for _ in range(count)]
        rows.append({key: Row(key, stream.pick(links), leaf) for key, leaf in zip(keys[k], leaves)})
    return tuple(rows)


def draw_rows(
    stream: Stream, question: Question, count: int, split: str, gaps: bool
) -> tuple[dict[str, dict[str, Row]], list[Row]]:
    """Draws the rows of all tables, each under its key.

    Args:
        stream: The scenario stream.
        question: What is asked.
        count: Rows a table.
        split: The rows on the way hold values of this split.
        gaps: Whether cells beside the way may be empty.

    Returns:
        The tables, and the rows on the way from the question to the answer, or to where nothing is on record.
    """
    tables, hops = question.tables, len(question.tables)
    background = _background(question.schema.name, hops, count - 1, stream.below(100))
    keys = [draw_value(stream, table.columns[0], split, rows) for table, rows in zip(tables, background)]
    ends = stream.below(hops) if question.kind == "none" else hops - 1
    way, drawn = [], {}
    front = stream.random() < 0.5
    for k, (table, rows) in enumerate(zip(tables, background)):
        at = question.at if k == hops - 1 else LINK
        taken = [row.leaf for row in rows.values()] if k == 0 else keys[:1]
        cells = [keys[k], *[draw_value(stream, column, split, taken) for column in table.columns[1:]]]
        if k + 1 < hops:
            cells[LINK] = keys[k + 1]
        if gaps and k > 0 and stream.random() < 0.4:
            cells[LINK + LEAF - at] = NONE
        if question.kind == "none" and k == ends:
            cells[at] = NONE
        way.append(Row(*cells))
        drawn[table.name] = {keys[k]: way[k], **rows} if front else {**rows, keys[k]: way[k]}
    if question.start == "both":
        people = drawn[tables[0].name]
        namesake = stream.pick([key for key in people if key != keys[0]])
        people[namesake] = people[namesake]._replace(key=keys[0])
    return drawn, way[: ends + 1]


def look_ups(question: Question, way: Sequence[Row]) -> tuple[dict[str, str], ...]:
    """The look-ups that lead along the way."""
    places = [0 if question.start == "name" else LEAF, *[0] * (len(way) - 1)]
    return tuple([
        {"table": table.name, "column": table.columns[at], "value": row[at]}
        for table, row, at in zip(question.tables, way, places)
    ])  # fmt: skip


def describe_cell(question: Question, first: Row) -> str:
    """Describes the cell that is asked for, from its end of the chain to the start."""
    tables, schema = question.tables, question.schema
    link = tables[0].columns[LINK]
    if question.start == "name":
        thing = f"{first.key}'s {link}"
    else:
        who = schema.who if question.start == "leaf" else first.key
        thing = f"the {link} of {who} {schema.at} {first.leaf}"
    for table in tables[1:-1]:
        thing = f"the {table.columns[LINK]} of {thing}"
    return f"the {question.column} of {thing}"
