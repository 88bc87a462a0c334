"""Typed tools: one pydantic model gives a tool its JSON schema, its validation and its errors.

An agent calls a tool by writing ``<tool_call>{"name": "...", "arguments": {...}}</tool_call>``. The parser is
strict, and never raises: a malformed call is a fact about the conversation, answered with what was wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from convgym.types import Event, ToolCall
from convgym.world import World

__all__ = [
    "Arguments",
    "Malformed",
    "Tool",
    "ToolResult",
    "describe",
    "format_call",
    "parse_call",
    "run_tool",
]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALL = 4_000  # characters of JSON; no legal call of any scenario comes near


class Arguments(BaseModel):
    """Base of every tool's argument model: no unknown fields, numbers may stand for strings of digits."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, str_max_length=200)


class Malformed(NamedTuple):
    """A tool call that could not be read; ``reason`` says why."""

    reason: str


class ToolResult(NamedTuple):
    """What a tool says, and the event to log for it."""

    text: str
    event: Event | None = None


@dataclass(frozen=True)
class Tool:
    """A tool that an agent may call.

    Attributes:
        name: Its name in calls.
        description: One sentence for the agent.
        arguments: The pydantic model of its arguments.
        run: ``run(world, arguments, turn) -> ToolResult``; applies writes to the world's overlay.
        ends: Whether a successful call ends the conversation.
    """

    name: str
    description: str
    arguments: type[Arguments]
    run: Callable[[World, Any, int], ToolResult]
    ends: bool = False

    def schema(self) -> dict[str, Any]:
        """Returns the tool as an OpenAI-style JSON schema."""
        parameters = self.arguments.model_json_schema()
        parameters.pop("title", None)
        parameters.pop("description", None)
        for field in parameters.get("properties", {}).values():
            field.pop("title", None)
        return {"name": self.name, "description": self.description, "parameters": parameters}


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_KEYS = frozenset({"name", "arguments"})
_SPACE = " \t\n\r"  # what JSON calls white space
_JSON = json.JSONDecoder(parse_constant=_no_constants)  # made once: json.loads would make one a call


def parse_call(text: str) -> ToolCall | Malformed | None:
    """Reads the tool call in an agent message.

    Text around a call is shown to nobody. Several calls in one message are malformed: a turn is one action.

    Returns:
        None if the message is speech, the call, or what is wrong with it.
    """
    start = text.find(OPEN)
    if start < 0:
        return None
    end = text.find(CLOSE, start)
    if end < 0:
        return Malformed(f"{CLOSE} is missing")
    if text.find(OPEN, start + 1) >= 0:
        return Malformed("one call a message")
    body = text[start + len(OPEN) : end]
    if len(body) > MAX_CALL:
        return Malformed(f"a call has at most {MAX_CALL} characters")
    body = body.strip(_SPACE)
    try:
        data, length = _JSON.raw_decode(body)
    except (ValueError, RecursionError):
        length = -1
    if length != len(body):
        return Malformed('expected JSON {"name": ..., "arguments": {...}}')
    if not isinstance(data, dict) or data.keys() != _KEYS:
        return Malformed('expected the keys "name" and "arguments"')
    name, arguments = data["name"], data["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return Malformed('"name" is a string and "arguments" an object')
    return ToolCall(name, arguments)


def format_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Writes a call as an agent would.

    >>> format_call("get_order", {"order": "4821"})
    '<tool_call>{"name": "get_order", "arguments": {"order": "4821"}}</tool_call>'
    """
    return f"{OPEN}{json.dumps({'name': name, 'arguments': dict(arguments)})}{CLOSE}"


def run_tool(tools: Mapping[str, Tool], world: World, call: ToolCall, turn: int) -> tuple[str, Tool | None]:
    """Runs a call against the world and logs its event.

    Returns:
        The text for the agent, and the tool if it ran and ends the conversation.
    """
    tool = tools.get(call.name)
    if tool is None:
        return f"error: no tool {call.name[:40]!r}; there are {', '.join(tools)}", None
    try:
        # What model_validate calls, without its options, takes half its time.
        arguments = tool.arguments.__pydantic_validator__.validate_python(call.arguments)
    except (ValidationError, RecursionError) as error:
        return f"error: {_explain(error)}", None
    text, event = tool.run(world, arguments, turn)
    if event is not None:
        world.log.append(event)
    return text, tool if tool.ends and event is not None and event.ok else None


def _explain(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "arguments are nested too deeply"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:40] or "arguments"
    return f"{field}: {first['msg'].lower()}"


def describe(tools: Iterable[Tool], style: str) -> str:
    """Renders tools for an agent to read; ``style`` is ``"brief"`` or ``"full"``."""
    if style == "brief":
        return " ".join(tool.name for tool in tools)
    return "\n".join(json.dumps(tool.schema(), ensure_ascii=False) for tool in tools)


def canonical_number(text: str) -> str | None:
    """Returns a number in canonical form (``"45.00"``, ``"$45"`` and ``"45"`` are equal), or None."""
    digits = text.strip().lstrip("$€£").replace(",", "")
    if digits.isalpha() or "_" in digits:  # words, "inf" and "nan" included; float() would read 1_0 as 10
        return None
    try:
        value = float(digits)
    except ValueError:
        return None
    return f"{value:.15g}" if math.isfinite(value) else None
