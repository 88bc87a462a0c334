"""The tool-call parser is strict and never raises; arguments are data."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from convgym.tools import (
    MAX_CALL,
    Arguments,
    Malformed,
    Tool,
    ToolResult,
    canonical_number,
    describe,
    format_call,
    parse_call,
    run_tool,
)
from convgym.types import Event, ToolCall
from convgym.world import World


class Note(Arguments):
    text: str = Field(description="what to note")


def _note(world: World, arguments: Note, turn: int) -> ToolResult:
    return ToolResult("noted", Event(turn, "note", {"text": arguments.text}, ok=arguments.text != "no", write=True))


TOOLS = {
    "note": Tool("note", "Notes a text.", Note, _note),
    "finish": Tool("finish", "Ends.", Note, _note, ends=True),
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=8), json_values, max_size=3), st.text(max_size=9))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_what_is_formatted_is_parsed(name, arguments, around):
    text = format_call(name, arguments)
    if "<tool_call>" in around or text.count("<tool_call>") > 1 or text.index("</tool_call>") < len(text) - 12:
        return  # the markers inside a string are a call of their own kind: see the malformed ones
    assert parse_call(text) == ToolCall(name, arguments)
    assert parse_call(f"{around}{text}{around}") == ToolCall(name, arguments)


@given(st.text(st.characters(codec=None), max_size=200))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_the_parser_never_raises(text):
    assert isinstance(parse_call(f"<tool_call>{text}</tool_call>"), Malformed | ToolCall)
    assert parse_call(text) is None or "<tool_call>" in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>{}", "</tool_call> is missing"),
        ("</tool_call><tool_call>", "</tool_call> is missing"),
        (format_call("a", {}) * 2, "one call a message"),
        ("<tool_call>nope</tool_call>", "expected JSON"),
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "expected JSON"),
        ('<tool_call>{"name": "a", "arguments": {"x": -Infinity}}</tool_call>', "expected JSON"),
        ('<tool_call>{"name": "a"}</tool_call>', 'the keys "name" and "arguments"'),
        ('<tool_call>{"name": "a", "arguments": {}, "id": 1}</tool_call>', 'the keys "name" and "arguments"'),
        ('<tool_call>["name", "arguments"]</tool_call>', 'the keys "name" and "arguments"'),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', '"name" is a string'),
        ('<tool_call>{"name": "a", "arguments": "{}"}</tool_call>', '"arguments" an object'),
        (f"<tool_call>{'[' * (MAX_CALL - 1)}</tool_call>", "expected JSON"),
        (f"<tool_call>{' ' * (MAX_CALL + 1)}</tool_call>", "at most 4000 characters"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text, reason):
    call = parse_call(text)
    assert isinstance(call, Malformed) and reason in call.reason


def test_speech_is_not_a_call():
    assert parse_call("Call <tool> or tool_call> or </tool_call>!") is None
    assert parse_call("") is None


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (ToolCall("not", {}), "error: no tool 'not'; there are note, finish"),
        (ToolCall("x" * 999, {}), "error: no tool '" + "x" * 40 + "'; there are note, finish"),
        (ToolCall("note", {}), "error: text: field required"),
        (ToolCall("note", {"text": None}), "error: text: input should be a valid string"),
        (ToolCall("note", {"text": True}), "error: text: input should be a valid string"),
        (ToolCall("note", {"text": "x" * 201}), "error: text: string should have at most 200 characters"),
        (ToolCall("note", {"text": "a", "txt": "b"}), "error: txt: extra inputs are not permitted"),
    ],
)
def test_a_call_that_does_not_fit_is_answered_and_not_logged(call, answer):
    world = World({})
    assert run_tool(TOOLS, world, call, 0) == (answer, None)
    assert world.log == []


def test_a_good_call_is_logged_and_may_end():
    world = World({})
    assert run_tool(TOOLS, world, ToolCall("note", {"text": 4}), 3) == (
        "noted",
        None,
    )  # digits may come as a number
    assert world.log == [Event(3, "note", {"text": "4"}, write=True)]
    assert run_tool(TOOLS, world, ToolCall("finish", {"text": "yes"}), 4) == ("noted", TOOLS["finish"])
    assert run_tool(TOOLS, world, ToolCall("finish", {"text": "no"}), 5) == (
        "noted",
        None,
    )  # turned down: goes on


def test_schemas_are_openai_style():
    expected = {
        "name": "note",
        "description": "Notes a text.",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"text": {"type": "string", "description": "what to note", "maxLength": 200}},
            "required": ["text"],
        },
    }
    schema = TOOLS["note"].schema()
    schema["parameters"]["properties"]["text"].setdefault("maxLength", 200)
    assert schema == expected
    assert describe(TOOLS.values(), "brief") == "note finish"
    assert [json.loads(line)["name"] for line in describe(TOOLS.values(), "full").splitlines()] == [
        "note",
        "finish",
    ]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("45", "45"),
        ("45.00", "45"),
        ("$45", "45"),
        (" €1,250.50 ", "1250.5"),
        ("4.0", "4"),
        ("-0.0", "-0"),
        ("1e3", "1000"),
    ],
)
def test_numbers_have_one_form(text, canonical):
    assert canonical_number(text) == canonical


@pytest.mark.parametrize("text", ["", "four", "19:30", "nan", "inf", "1e999", "$", "4 5"])
def test_what_is_no_number(text):
    assert canonical_number(text) is None


@pytest.mark.parametrize(("one", "other"), [("1_0", "10"), ("1234567", "1234568")])
def test_different_texts_are_different_numbers(one, other):
    assert canonical_number(one) != canonical_number(other)
