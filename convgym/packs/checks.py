"""Do the sections of a pack fit together? Every name that one of them uses, another has to declare."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

from convgym.errors import UnknownNameError
from convgym.language.speak import load_bank
from convgym.packs import schema
from convgym.packs.conditions import named, read_comparison
from convgym.packs.source import Place, Problem
from convgym.tools import Arguments

__all__ = ["CLAIMS", "carried", "check", "closure", "listed", "owned"]

CLAIMS = ("tell", "refuse")  # what rules may be about beside tools
EVENTS = frozenset({"done", "refuse", "tell", "told", "confirmed"})  # names that conversations log by themselves
TAKEN = frozenset({"intent", "slot", "found", "reason", "amount", "value"})  # arguments of these events


def check(scenario: schema.Scenario) -> Iterator[Problem]:
    """Yields everything that does not fit."""
    yield from _records(scenario)
    for name, tool in scenario.tools.items():
        yield from _tool(scenario, name, tool)
    for name, rule in scenario.rules.items():
        yield from _rule(scenario, name, rule)
    for name, goal in scenario.goals.items():
        yield from _goal(scenario, name, goal)
    yield from _language(scenario)
    yield from _rest(scenario)


def closure(scenario: schema.Scenario, table: str) -> tuple[str, ...]:
    """A table and all those that its records lead to by references, itself first."""
    found = [table]
    for each in found:
        known = scenario.records.get(each)
        columns = known.fields.values() if known else ()
        found += [c.ref for c in columns if isinstance(c, schema.Ref) and c.ref not in found]
    return tuple(found)


def carried(scenario: schema.Scenario, tool: str) -> tuple[str, ...]:
    """The arguments of a tool's events: its own, and the keys of the records that these lead to."""
    own = tuple(scenario.tools[tool].parameters.properties) if tool in scenario.tools else ()
    keys = chain.from_iterable(closure(scenario, name) for name in own if name in scenario.records)
    return tuple(dict.fromkeys((*own, *keys)))


def owned(dotted: str, tables: Mapping[str, schema.Table]) -> schema.Column | None:
    """The column that ``TABLE.FIELD`` names, or the key that ``TABLE`` names; None if there is none."""
    name, _, field = dotted.partition(".")
    table = tables.get(name)
    return None if table is None else table.fields.get(field) if field else table.key


def listed(column: schema.Column, pools: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """The words that a column may hold; None where they are not listed."""
    if isinstance(column, schema.Choice):
        return column.choice
    return pools.get(column.pool, ()) if isinstance(column, schema.Pool) else None


# -- sections --------------------------------------------------------------------------------------------


def _records(s: schema.Scenario) -> Iterator[Problem]:
    for name, table in s.records.items():
        place: Place = ("records", name)
        if name in TAKEN:
            yield Problem(place, f"expected another name; {name!r} is an argument of events.")
        if table.key.private:
            yield Problem((*place, "key", "private"), "expected a key that may be shown; make a field private.")
        for field, column in table.fields.items():
            at = (*place, "fields", field)
            if isinstance(column, schema.Number) and not column.low <= column.high:
                yield Problem(at, f"expected a range, got {column.low} to {column.high}.")
            if isinstance(column, schema.Number) and (column.high - column.low) // column.step >= 1_000:
                yield Problem(at, "expected at most 1000 numbers in the range; use a larger step.")
            if isinstance(column, schema.Choice) and column.start not in (None, *column.choice):
                yield Problem((*at, "start"), f"expected one of {', '.join(column.choice)}, got {column.start!r}.")
            if isinstance(column, schema.Choice | schema.Pool):
                words = listed(column, s.pools) or ()
                if len({word.lower() for word in words}) < len(words):
                    yield Problem(at, "expected each word once, whatever its case.")
            if isinstance(column, schema.Pool):
                yield from _known((*at, "pool"), "pool", [column.pool], s.pools)
            if isinstance(column, schema.Ref):
                yield from _known((*at, "ref"), "table", [column.ref], s.records)
                if column.ref != field:
                    yield Problem(at, f"expected a reference to be named like its table, {column.ref!r}.")
                if name in closure(s, column.ref):
                    yield Problem((*at, "ref"), f"expected no circle, but {column.ref!r} leads back to {name!r}.")
        yield from _known((*place, "unique"), "field", table.unique, table.fields)
        yield from _known((*place, "alike"), "field", table.alike, table.fields)
        for i, field in enumerate(table.alike):
            if isinstance(table.fields.get(field), schema.Digits | schema.Ref):
                yield Problem((*place, "alike", i), f"expected no digits and no reference, got {field!r}.")


def _tool(s: schema.Scenario, name: str, tool: schema.Tool) -> Iterator[Problem]:
    place: Place = ("tools", name)
    at, effect, arguments = (*place, "effect"), tool.effect, tool.parameters.properties
    if name in EVENTS:
        yield Problem(place, f"expected another name; {name!r} is an event of every conversation.")
    for argument in arguments:
        if argument in TAKEN or hasattr(Arguments, argument):
            at_argument = (*place, "parameters", "properties", argument)
            yield Problem(at_argument, f"expected another name; {argument!r} has a meaning of its own.")
    if tool.parameters.required is not None and set(tool.parameters.required) != set(arguments):
        yield Problem((*place, "parameters", "required"), "expected all properties: every argument is required.")
    yield from _slots((*place, "says"), "argument", tool.says or "", arguments)
    if isinstance(effect, schema.LookUp | schema.Find):
        verb = "look_up" if isinstance(effect, schema.LookUp) else "find"
        table = effect.look_up if isinstance(effect, schema.LookUp) else effect.find
        yield from _known((*at, verb), "table", [table], s.records)
        key = table if isinstance(effect, schema.LookUp) else effect.by
        yield from _known((*at, verb), "argument", [key], arguments)
        yield from _shown(s, at, table, effect)
    elif isinstance(effect, schema.End):
        pass
    elif isinstance(effect, schema.Insert):
        yield from _known((*at, "insert"), "table", [effect.insert], s.records)
        if effect.insert in s.records:
            fields = s.records[effect.insert].fields
            yield from _known((*at, "with"), "field", effect.constants, fields)
            for field in fields.keys() - effect.constants.keys() - arguments.keys():
                yield Problem((*at, "insert"), f"expected an argument {field!r}, or a word for it under `with`.")
            for field, word in effect.constants.items():
                yield from _legal(s, (*at, "with", field), f"{effect.insert}.{field}", word)
    else:
        verb, dotted = ("set", effect.set) if isinstance(effect, schema.Set) else ("compare", effect.compare)
        yield from _dotted_field(s, (*at, verb), dotted)
        table, _, field = dotted.partition(".")
        yield from _known((*at, verb), "argument", [table], arguments)
        if isinstance(effect, schema.Compare):
            yield from _known((*at, verb), "argument", [field], arguments)
        elif named(effect.to):
            yield from _slots((*at, "to"), "argument", effect.to, arguments)
            if effect.to != f"{{{named(effect.to)[0]}}}":
                yield Problem((*at, "to"), f"expected one argument in braces or a word, got {effect.to!r}.")
        else:
            yield from _legal(s, (*at, "to"), dotted, effect.to)


def _shown(s: schema.Scenario, at: Place, table: str, effect: schema.LookUp | schema.Find) -> Iterator[Problem]:
    """What a look-up shows exists and is not private; all records that it may find can be seen."""
    known = s.records.get(table)
    if known is None:
        return
    yield from _known((*at, "show"), "field", effect.show, known.fields)
    for field in effect.show:
        if getattr(known.fields.get(field), "private", False):
            yield Problem((*at, "show"), f"expected no private field, got {field!r}; the agent would read it.")
    if isinstance(effect, schema.Find):
        yield from _known((*at, "by"), "field", [effect.by], known.fields)
        most = 1 + max(known.distractors)
        if effect.at_most < most:
            yield Problem((*at, "at_most"), f"expected at least {most}, as many as there may be records.")


def _legal(s: schema.Scenario, at: Place, dotted: str, word: str) -> Iterator[Problem]:
    """A word that is written into a field has to be one that it may hold."""
    column = owned(dotted, s.records)
    words = None if column is None else listed(column, s.pools)
    if words is not None and word not in words:
        yield Problem(at, f"expected one of {', '.join(words[:12])}, got {word!r}.")
    if isinstance(column, schema.Number) and not word.removeprefix("-").isdecimal():
        yield Problem(at, f"expected a number, got {word!r}.")


def _rule(s: schema.Scenario, name: str, rule: schema.Rule) -> Iterator[Problem]:
    place: Place = ("rules", name)
    yield from _known((*place, "tools"), "tool", rule.tools, (*s.tools, *CLAIMS))
    for style in ("brief", "full"):
        yield from _slots((*place, style), "parameter", getattr(rule, style), s.parameters)
    if isinstance(rule, schema.Before):
        yield from _known((*place, "before"), "tool", [rule.before], (*s.tools, "confirmed"))
        if rule.before != "confirmed":
            yield from _same(s, (*place, "same"), rule.same, (*rule.tools, rule.before))
        elif rule.same:
            yield Problem((*place, "same"), "expected none: a confirmation is about the whole action.")
        elif set(rule.tools) & set(CLAIMS):
            yield Problem((*place, "tools"), "expected tools only: nobody confirms what is said.")
    elif isinstance(rule, schema.Since):
        yield from _known((*place, "since"), "tool", [rule.since], s.tools)
        yield from _known((*place, "reset"), "tool", [rule.reset], s.tools)
    elif isinstance(rule, schema.AtMostOnce):
        yield from _same(s, (*place, "at_most_once"), rule.at_most_once, rule.tools)
    elif isinstance(rule, schema.OnlyIf):
        yield from _only_if(s, place, rule)


def _only_if(s: schema.Scenario, place: Place, rule: schema.OnlyIf) -> Iterator[Problem]:
    at = (*place, "only_if")
    if (rule.reason is None) is (rule.instead is None):
        yield Problem(place, "expected either `reason`, to refuse for, or `instead`, a tool to use.")
    if rule.reason is not None:
        yield from _known((*place, "reason"), "reason", [rule.reason], s.language.reasons)
        yield from _has_words((*place, "reason"), s.words.agent, f"refuse_{rule.reason}", "agent")
    if rule.instead is not None:
        yield from _known((*place, "instead"), "tool", [rule.instead], s.tools)
        if rule.instead in s.tools and not isinstance(s.tools[rule.instead].effect, schema.End):
            yield Problem((*place, "instead"), f"expected a tool that ends the conversation, got {rule.instead!r}.")
        elif rule.instead in s.tools:
            yield from _call(s, (*place, "instead"), schema.Call(tool=rule.instead))
    read = read_comparison(rule.only_if)
    if read is None:
        yield Problem(at, f"expected TABLE.FIELD, one of == != < <= > >=, and a value, got {rule.only_if!r}.")
        return
    problems = list(_dotted_field(s, at, f"{read.table}.{read.field}"))
    yield from problems
    if problems:
        return
    column = s.records[read.table].fields[read.field]
    values = s.parameters.get(read.value[1:-1], ()) if named(read.value) else (read.value,)
    yield from _slots(at, "parameter", read.value, s.parameters)
    if isinstance(column, schema.Number):
        if not all(value.removeprefix("-").isdecimal() for value in values):
            yield Problem(at, f"expected a number to compare {read.table}.{read.field} with, got {', '.join(values)}.")
    elif read.op not in ("==", "!=") or not isinstance(column, schema.Choice):
        yield Problem(at, f"expected a number, or a choice with == or !=, got {read.table}.{read.field} {read.op}.")
    else:
        for value in values:
            yield from _legal(s, at, f"{read.table}.{read.field}", value)
    for tool in rule.tools:
        if tool in s.tools and read.table not in carried(s, tool):
            yield Problem(at, f"expected a record that {tool!r} is about ({_names(carried(s, tool))}).")
        if tool in CLAIMS:
            yield Problem((*place, "tools"), f"expected tools only: {tool!r} is about no record.")
    if rule.reason is not None and not any(shows(tool, read.table, read.field) for tool in s.tools.values()):
        yield Problem(at, f"expected a tool that shows {read.table}.{read.field}: a refusal needs evidence.")


def shows(tool: schema.Tool, table: str, field: str) -> bool:
    """Whether a tool shows a field of a table."""
    effect = tool.effect
    if isinstance(effect, schema.LookUp):
        return effect.look_up == table and field in effect.show
    return isinstance(effect, schema.Find) and effect.find == table and field in effect.show


def _same(s: schema.Scenario, at: Place, same: Iterable[str], events: Iterable[str]) -> Iterator[Problem]:
    for event in events:
        if event in s.tools or event in CLAIMS:
            for argument in same:
                if argument not in carried(s, event):
                    has = _names(carried(s, event)) or "none"
                    yield Problem(at, f"expected an argument of {event!r} ({has}), got {argument!r}.")


def _goal(s: schema.Scenario, name: str, goal: schema.Goal) -> Iterator[Problem]:
    place: Place = ("goals", name)
    yield from _has_words((*place, "say"), s.words.user, goal.say, "user")
    if bool(goal.required) is (goal.tell is not None):
        yield Problem(place, "expected either `required`, writes, or `tell`, a value that the user asks for.")
    for i, call in enumerate(goal.required):
        yield from _call(s, (*place, "required", i), call)
    if goal.tell is not None:
        yield from _dotted_field(s, (*place, "tell"), goal.tell)
        column = owned(goal.tell, s.records)
        if isinstance(column, schema.Digits | schema.Ref) or "." not in goal.tell:
            yield Problem((*place, "tell"), "expected a field that is a number, a choice or from a pool.")
        if getattr(column, "private", False):
            yield Problem((*place, "tell"), "expected a field that is not private.")
        field = goal.tell.partition(".")[2]
        if not any(shows(tool, *goal.tell.split(".")) for tool in s.tools.values() if "." in goal.tell):
            yield Problem((*place, "tell"), f"expected a tool that shows {goal.tell}.")
        yield from _has_words((*place, "tell"), s.words.agent, f"tell_{field}", "agent")
        for text in s.words.agent.get(f"tell_{field}", ()):
            if field not in named(text):
                yield Problem(("words", "agent", f"tell_{field}"), f"expected {{{field}}} in each wording.")
    tools = {call.tool for call in goal.required}
    yield from _known((*place, "unless"), "rule", goal.unless, s.rules)
    for i, rule in enumerate(goal.unless):
        found = s.rules.get(rule)
        if found is not None and not (isinstance(found, schema.OnlyIf) and tools & set(found.tools)):
            yield Problem((*place, "unless", i), f"expected an only_if rule about what is required, got {rule!r}.")
    yield from _known((*place, "asked"), "slot", goal.asked, s.language.slots)
    yield from _known((*place, "allowed"), "tool", goal.allowed, s.tools)
    yield from _known((*place, "forbidden"), "tool", goal.forbidden, s.tools)
    for i, text in enumerate(s.words.user.get(goal.say, ())):
        at = ("words", "user", goal.say, i)
        if set(named(text)) != set(named(s.words.user[goal.say][0])):
            yield Problem(at, "expected the same names in braces in each wording of an opening.")
        for slot in set(named(text)) & set(goal.asked):
            yield Problem(at, f"expected no {{{slot}}}: the goal {name!r} has it asked for.")
        for slot in set(named(text)) & set(s.language.slots):
            if getattr(owned(s.language.slots[slot].value or slot, s.records), "private", False):
                yield Problem(at, f"expected no {{{slot}}}: it is private, and an opening would give it away.")


def _call(s: schema.Scenario, at: Place, call: schema.Call) -> Iterator[Problem]:
    problems = list(_known((*at, "tool"), "tool", [call.tool], s.tools))
    yield from problems
    if problems:
        return
    tool = s.tools[call.tool]
    if not isinstance(tool.effect, schema.Set | schema.Insert | schema.End):
        yield Problem(at, f"expected a tool that changes something or ends the conversation, got {call.tool!r}.")
    yield from _known((*at, "arguments"), "argument", call.arguments, tool.parameters.properties)
    for argument, dotted in call.arguments.items():
        yield from _source(s, (*at, "arguments", argument), dotted)
    for argument in tool.parameters.properties.keys() - call.arguments.keys():
        if argument not in s.records and argument not in s.language.slots:
            yield Problem(at, f"expected a value for {argument!r}: it is named like no table and no slot.")
    if call.say is not None:
        yield from _has_words((*at, "say"), s.words.user, call.say, "user")
    if not isinstance(tool.effect, schema.End):
        yield from _has_words(at, s.words.agent, f"done_{call.tool}", "agent")


def _language(s: schema.Scenario) -> Iterator[Problem]:
    for slot, entry in s.language.slots.items():
        at: Place = ("language", "slots", slot)
        yield from _source(s, at if entry.value is None else (*at, "value"), entry.value or slot)
        yield from _has_words(at, s.words.user, f"inform_{slot}", "user")
        yield from _has_words(at, s.words.agent, f"ask_{slot}", "agent")
        for i, text in enumerate(s.words.user.get(f"inform_{slot}", ())):
            if slot not in named(text):
                yield Problem(("words", "user", f"inform_{slot}", i), f"expected {{{slot}}} in it.")
    yield from _known(("language", "verbs"), "tool", s.language.verbs, s.tools)
    for rule in s.rules.values():
        for tool in rule.tools if isinstance(rule, schema.Before) and rule.before == "confirmed" else ():
            yield from _has_words(("words", "agent"), s.words.agent, f"offer_{tool}", "agent")
            if tool not in s.language.verbs:
                yield Problem(("language", "verbs"), f"expected phrases for {tool!r}, which has to be confirmed.")


def _rest(s: schema.Scenario) -> Iterator[Problem]:
    if min(goal.from_level for goal in s.goals.values()) > 1:
        yield Problem(("goals",), "expected a goal from level 1 on.")
    slots, told = set(s.language.slots), {g.tell.partition(".")[2] for g in s.goals.values() if g.tell}
    prefixes = {persona.prefix for persona in s.personas.values()}
    ours = {f"inform_{slot}" for slot in slots} | {goal.say for goal in s.goals.values()}
    ours |= {call.say for goal in s.goals.values() for call in goal.required if call.say} | {p for p in prefixes if p}
    theirs = {f"{act}_{tool}" for act in ("offer", "done") for tool in s.tools} | {f"tell_{field}" for field in told}
    theirs |= {f"ask_{slot}" for slot in slots} | {f"refuse_{reason}" for reason in s.language.reasons}
    for speaker, bank, used, names in (
        ("user", s.words.user, ours, slots),
        ("agent", s.words.agent, theirs, slots | told),
    ):
        yield from _known(("words", speaker), "act", bank, used | set(load_bank("common", speaker)))
        for act, texts in bank.items():
            for i, text in enumerate(texts):
                yield from _slots(("words", speaker, act, i), "slot", text, names)
    for name, persona in s.personas.items():
        if persona.prefix is not None and persona.prefix not in load_bank("common", "user"):
            yield from _has_words(("personas", name, "prefix"), s.words.user, persona.prefix, "user")
    if s.personas and len({persona.held_out for persona in s.personas.values()}) < 2:
        yield Problem(("personas",), "expected some with `held_out: true`, for test_user, and some without.")
    if s.held_out is not None:
        yield from _known(("held_out", "goal"), "goal", [s.held_out.goal], s.goals)
        yield from _known(("held_out", "parameter"), "parameter", [s.held_out.parameter], s.parameters)
        values = s.parameters.get(s.held_out.parameter, ())
        if values and (s.held_out.value not in values[1:]):
            yield Problem(("held_out", "value"), f"expected one of {', '.join(values[1:])}; the first is level 1's.")


# -- names -----------------------------------------------------------------------------------------------


def _known(at: Place, kind: str, names: Iterable[str], known: Collection[str]) -> Iterator[Problem]:
    for i, name in enumerate(names):
        if name not in known:
            within = (*at, name) if isinstance(names, Mapping) else (*at, i) if isinstance(names, tuple) else at
            yield Problem(within, str(UnknownNameError.of(kind, name, known)))


def _slots(at: Place, kind: str, text: str, known: Collection[str]) -> Iterator[Problem]:
    yield from _known(at, f"{kind} in braces", [*dict.fromkeys(named(text))], known)


def _has_words(at: Place, bank: Mapping[str, object], act: str, speaker: str) -> Iterator[Problem]:
    if act not in bank:
        yield Problem(at, f"expected wordings of the act {act!r} under words.{speaker}, got none.")


def _source(s: schema.Scenario, at: Place, dotted: str) -> Iterator[Problem]:
    if "." in dotted:
        yield from _dotted_field(s, at, dotted)
    else:
        yield from _known(at, "table", [dotted], s.records)


def _dotted_field(s: schema.Scenario, at: Place, dotted: str) -> Iterator[Problem]:
    table, _, field = dotted.partition(".")
    if table not in s.records:
        yield from _known(at, "table", [table], s.records)
    else:
        yield from _known(at, f"field of {table!r}", [field], s.records[table].fields)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
