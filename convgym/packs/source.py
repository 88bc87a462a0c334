"""Reading ``scenario.yaml``: text to plain data that remembers its lines, and to nothing else.

Only the events of YAML's parser are used, on a stack of our own: nothing is constructed by tags, nothing is copied
by aliases, nothing is nested deeper than :data:`MAX_DEPTH`. Plain scalars are ``true``, ``false``, decimal numbers
or text, so that ``no`` is a word, ``10:30`` a time of day and ``0932`` a code.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from convgym.errors import PackError

__all__ = ["FILE", "Place", "Problem", "Source", "parse", "raise_for", "read"]

FILE = "scenario.yaml"
MAX_BYTES = 200_000
MAX_DEPTH = 12
MAX_NODES = 20_000  # scalars, lists and mappings
SHOWN = 6  # problems that an error names
MOST = 100  # problems that are looked for, so that a hostile file costs no time

Place = tuple[str | int, ...]
"""Where something stands: ``("tools", "renew", "effect")``."""

_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,8})(\.\d{1,6})?")


class Problem(NamedTuple):
    """What is wrong, where."""

    place: Place
    message: str


class Source(NamedTuple):
    """Plain data, and the line of each place in it, from 1."""

    data: Any
    lines: Mapping[Place, int]

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest one around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def says(self, problem: Problem) -> str:
        """Writes a problem down: line, field and what is wrong."""
        return f"{self.line(problem.place)}: {_dotted(problem.place)}: {problem.message}"


def raise_for(problems: Iterable[Problem], source: Source) -> None:
    """Raises a :class:`PackError` if there are problems, in the order of lines; what is missing comes last."""
    found = sorted(
        set(islice(problems, MOST)), key=lambda each: (each.message.endswith("missing."), source.line(each.place))
    )
    if found:
        said = {source.says(problem): problem.place for problem in found}
        lines, rest = list(said)[:SHOWN], list(said.values())[SHOWN:]
        if rest:
            lines.append(f"{source.line(rest[0])}: from here on: {len(rest)} more.")
        raise PackError("\n".join(lines))


def _dotted(place: Place) -> str:
    """Writes a place: ``goals.renew.required[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the file"


def read(folder: str | os.PathLike[str]) -> str:
    """Reads the file of a pack.

    Raises:
        PackError: If the folder or the file is missing, or the file is not a regular one that stands in the folder
            itself, is too long, or not UTF-8.
    """
    try:
        path = Path(os.fspath(folder)) / FILE
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # no link leads elsewhere
        with open(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            raw = file.read(MAX_BYTES + 1) if regular else b""
    except (OSError, ValueError, TypeError) as error:
        raise PackError(
            f"{folder!s}: expected the folder of a pack, with a file {FILE} in it that is no link ({error})."
        ) from None
    if not regular:
        raise PackError(f"{path}: expected a regular file.")
    if len(raw) > MAX_BYTES:
        raise PackError(f"{path}: expected at most {MAX_BYTES} bytes; a pack is a page or two of text.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PackError(f"{path}:{line}: the file: expected UTF-8, got the byte 0x{raw[error.start]:02x}.") from None


class _Open:
    """A list or mapping that is being read."""

    __slots__ = ("key", "place", "value")

    def __init__(self, value: dict[str, Any] | list[Any], place: Place) -> None:
        self.value, self.place = value, place
        self.key: str | None = None


def parse(text: str) -> Source:
    """Parses YAML into plain data.

    Raises:
        PackError: If it is no YAML, or uses what a pack may not: tags, anchors and aliases, duplicate keys, several
            documents, empty values, control characters; or if it is nested too deeply or too large. The message
            begins with the line.
    """
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    lines: dict[Place, int] = {}
    stack: list[_Open] = []
    root: list[Any] = []
    line, depth = 1, 0
    try:
        for event in yaml.parse(text, Loader=loader):
            line = getattr(event.start_mark, "line", 0) + 1
            if isinstance(event, yaml.DocumentStartEvent) and root:
                _fail(line, "expected one document, got a second one")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                _fail(line, "expected plain data, got an anchor or alias; write it out")
            tag = getattr(event, "tag", None)
            if tag is not None:
                _fail(line, f"expected plain data, got the tag {str(tag)[:40]!r}; a pack holds no code")
            if isinstance(event, yaml.CollectionEndEvent):
                closed, depth = stack.pop(), depth - 1
                if not isinstance(closed.value, list) and closed.key is not None:
                    _fail(line, f"expected a value for {closed.key!r}")
                continue
            if not isinstance(event, yaml.NodeEvent):
                continue
            if len(lines) > MAX_NODES:
                _fail(line, f"expected at most {MAX_NODES} values")
            if isinstance(event, yaml.ScalarEvent):
                _put(stack, root, lines, line, _scalar(event, line), event)
                continue
            depth += 1
            if depth > MAX_DEPTH:
                _fail(line, f"expected at most {MAX_DEPTH} levels of lists and mappings")
            value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            stack.append(_Open(value, _put(stack, root, lines, line, value, event)))
    except yaml.YAMLError as error:
        mark, at = getattr(error, "problem_mark", None), getattr(error, "position", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        known = mark.line + 1 if mark else text.encode()[:at].count(b"\n") + 1 if isinstance(at, int) else line
        _fail(known, f"expected YAML, got: {what}")
    if not root:
        _fail(1, "expected a mapping, got an empty file")
    return Source(root[0], lines)


def _put(
    stack: list[_Open], root: list[Any], lines: dict[Place, int], line: int, value: Any, event: yaml.NodeEvent
) -> Place:
    """Puts a value where it belongs; returns its place. Keys of mappings are noted until their value comes."""
    if not stack:
        root.append(value)
        lines[()] = line
        return ()
    top = stack[-1]
    if isinstance(top.value, list):
        place: Place = (*top.place, len(top.value))
        top.value.append(value)
    elif top.key is None:
        if not isinstance(event, yaml.ScalarEvent):
            _fail(line, "expected a word as a key, got a list or mapping")
        key = _printable(str(getattr(event, "value", "")), line)
        if key in top.value:
            _fail(line, f"expected each key once, got {key[:40]!r} again")
        top.key = key
        lines[*top.place, key] = line
        return top.place
    else:
        place, top.value[top.key], top.key = (*top.place, top.key), value, None
    lines.setdefault(place, line)
    return place


def _scalar(event: yaml.ScalarEvent, line: int) -> str | int | float | bool:
    """A word, a number, true or false."""
    text = _printable(str(event.value).strip(), line)
    if not event.implicit[0]:  # quoted, or a block
        return text
    if text in ("", "~", "null"):
        _fail(line, "expected a value, got none")
    if text in ("true", "false"):
        return text == "true"
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    return float(text) if number.group(1) else int(text)


def _printable(text: str, line: int) -> str:
    if not text.isprintable():
        bad = next(c for c in text if not c.isprintable())
        _fail(line, f"expected printable text in one line, got U+{ord(bad):04X}")
    return text


def _fail(line: int, message: str) -> None:
    raise PackError(f"{line}: the file: {message}.")
