"""Agents of scenario packs, derived from what the pack says: nobody has to write an oracle for it.

The plan: ask for what has to be asked for, look at what the rules rest on, verify and ask to confirm where a rule
demands it, write, report; or refuse with the reason, hand over, or tell.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym

from convgym.agents.exploiters import Scripted
from convgym.language.speak import say
from convgym.packs import Pack, Script, schema
from convgym.packs.checks import listed, owned, shows
from convgym.packs.conditions import named
from convgym.tools import format_call

__all__ = ["EXPLOITERS", "Clerk", "Greedy", "Oracle"]

SLIPS = {
    # mistake: probability that a clerk makes it in an episode
    "blind": 0.25,  # does not verify
    "hasty": 0.15,  # refuses without a look
    "lenient": 0.40,  # grants what a rule forbids
    "strict": 0.25,  # refuses what the rules allow
    "guess": 0.50,  # does not ask for what has to be asked for
    "unasked": 0.20,  # does not ask to confirm
    "wrong_reason": 0.40,
    "misread": 0.45,  # acts on another record, or tells another value
    "silent": 0.15,  # does not say that it is done
}
DEEP = 4  # needs of needs that are prepared


class Clerk:
    """Knows the goal and slips now and then; the demonstrator of mixed skill."""

    slips: Mapping[str, float] = SLIPS

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.script = _script(env)
        self.bank = self.script.agent
        self.plan: Iterator[str] = iter(())
        self.last = ""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the goal and draws this episode's slips."""
        self.last = "Goodbye."
        self.goal: dict[str, Any] = dict(self.env.unwrapped.privileged())  # type: ignore[attr-defined]
        self.slipped = frozenset(name for name, p in self.slips.items() if self.rng.random() < p)
        self.rules = {rule.id for rule in self.env.unwrapped.task.rules}  # type: ignore[attr-defined]
        self.known, self.happened = set(self.goal["told"]), set[str]()
        self.plan = self._steps()

    def act(self, obs: str, info: Mapping[str, Any]) -> str:
        """Takes the next step of its plan; with nothing left to do it says its last words again."""
        return next(self.plan, self.last)

    # -- the plan ----------------------------------------------------------------------------------------

    def _steps(self) -> Iterator[str]:
        goal = self.goal
        if "guess" not in self.slipped:
            for slot in goal["asked"]:
                yield from self._ask(slot)
        against = self._against()
        if against:
            yield from self._refuse(against)
        elif goal["tell"][0]:
            yield from self._tell(*goal["tell"])
        else:
            yield from self._look([rule for rule in self.script.conditions if self._concerned(rule)])
            for tool, arguments in goal["calls"]:
                yield from self._write(tool, arguments)

    def _against(self) -> str:
        """The rule that the clerk lets speak against the goal, rightly or not."""
        possible = self.script.scenario.goals[self.goal["goal"]].unless
        rule = str(self.goal["rule"])
        if rule and "lenient" in self.slipped:
            return ""
        if (rule and "wrong_reason" in self.slipped) or (not rule and possible and "strict" in self.slipped):
            return self.rng.choice([other for other in possible if other != rule] or [rule])
        return rule

    def _refuse(self, name: str) -> Iterator[str]:
        rule = self.script.scenario.rules[name]
        assert isinstance(rule, schema.OnlyIf)
        if "hasty" not in self.slipped:
            yield from self._look([name])
        if rule.instead:
            yield from self._call(rule.instead, self._arguments(rule.instead))
        else:
            yield from self._prepare("refuse")
            yield self._say(f"refuse_{rule.reason}")

    def _tell(self, dotted: str, value: str) -> Iterator[str]:
        table, _, field = dotted.partition(".")
        tool = next(name for name, tool in self.script.scenario.tools.items() if shows(tool, table, field))
        yield from self._call(tool, self._arguments(tool))
        yield from self._prepare("tell")
        if "misread" in self.slipped:
            rows = self.env.unwrapped.task.world.tables[table].values()  # type: ignore[attr-defined]
            value = str(self.rng.choice([row[field] for row in rows]))
        yield self._say(f"tell_{field}", **{field: value})

    def _look(self, rules: Sequence[str]) -> Iterator[str]:
        """Looks at what the rules compare."""
        for rule in rules:
            tool = next(iter(self.script.showing(rule)), "")
            if tool and tool not in self.happened:
                yield from self._call(tool, self._arguments(tool))

    def _concerned(self, rule: str) -> bool:
        tools = {tool for tool, _ in self.goal["calls"]}
        return rule in self.rules and bool(tools & set(self.script.scenario.rules[rule].tools))

    def _write(self, tool: str, arguments: Mapping[str, str]) -> Iterator[str]:
        own = {name: arguments[name] for name in self.script.scenario.tools[tool].parameters.properties}
        table = next((name for name in own if name in self.script.own_refs and name not in self.goal["told"]), "")
        if table and "misread" in self.slipped:
            own[table] = self.rng.choice(list(self.env.unwrapped.task.world.tables[table]))  # type: ignore[attr-defined]
        yield from self._call(tool, own)
        if "silent" not in self.slipped and f"done_{tool}" in self.bank:
            yield self._say(f"done_{tool}")

    def _call(self, tool: str, arguments: Mapping[str, str], depth: int = 0) -> Iterator[str]:
        """Prepares a call and makes it; what the user has not said is asked for first."""
        for argument in arguments:
            if argument in self.script.scenario.language.slots:
                yield from self._ask(argument)
        yield from self._prepare(tool, depth)
        self.happened.add(tool)
        yield format_call(tool, arguments)

    def _prepare(self, event: str, depth: int = 0) -> Iterator[str]:
        """Does what the rules demand before an event."""
        for name, rule in self.script.scenario.rules.items():
            if name not in self.rules or event not in rule.tools or depth > DEEP:
                continue
            if isinstance(rule, schema.Before) and rule.before == "confirmed":
                if "unasked" not in self.slipped:
                    yield self._say(f"offer_{event}")
            elif isinstance(rule, schema.Before) and rule.before not in self.happened and "blind" not in self.slipped:
                yield from self._call(rule.before, self._arguments(rule.before), depth + 1)
            elif isinstance(rule, schema.Since):
                yield from self._call(rule.since, self._arguments(rule.since), depth + 1)

    def _arguments(self, tool: str) -> dict[str, str]:
        """The arguments of a tool about the records in question."""
        keys, facts = self.goal["keys"], self.goal["facts"]
        found = {}
        for name in self.script.scenario.tools[tool].parameters.properties:
            found[name] = keys[name] if name in keys else facts[name] if name in facts else self._field(tool, name)
        return found

    def _field(self, tool: str, argument: str) -> str:
        """The value of the record in question in the field that an argument is compared with."""
        effect = self.script.scenario.tools[tool].effect
        table = effect.find if isinstance(effect, schema.Find) else ""
        if table and argument in self.script.scenario.records[table].fields:
            row = self.env.unwrapped.task.world.tables[table][self.goal["keys"][table]]  # type: ignore[attr-defined]
            return str(row[argument])
        return "-"

    def _ask(self, slot: str) -> Iterator[str]:
        if slot not in self.known:
            self.known.add(slot)
            yield self._say(f"ask_{slot}")

    def _say(self, key: str, **slots: str) -> str:
        self.last = say(self.bank, key, {**self.goal["facts"], **slots}, self.rng, "train")
        return self.last


class Oracle(Clerk):
    """Never slips."""

    slips: Mapping[str, float] = {}


# -- agents that read only text --------------------------------------------------------------------------


class Reader(Scripted):
    """Reads what a user wants, with the pack's own words at hand; the goal and the records it has to find out.

    Attributes:
        rules: The rules whose sentences stand in the instructions.
    """

    def __init__(self, env: gym.Env[str, str], rng: random.Random) -> None:
        super().__init__(env, rng)
        self.script = _script(env)

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads the policy: which rules stand in it."""
        super().reset(obs, info)
        self.said, self.values, self.shown = "", dict[str, str](), ""
        self.rules = {
            name: rule
            for name, rule in self.script.scenario.rules.items()
            if any(_stands(text, obs) for text in (rule.brief, rule.full))
        }

    def cheat(self, obs: str) -> str:
        """Keeps what the user and what the tools say apart, and takes the next step."""
        _, user, words = obs.rpartition("User: ")
        if user:
            self.said += f"\n{words}"
        elif obs.startswith("Tool: "):
            self.shown = obs.removeprefix("Tool: ")
        return super().cheat(obs)

    def wanted(self) -> schema.Goal:
        """The goal whose wordings are the nearest to the opening."""
        words = set(re.findall(r"\w+", self.said.lower()))

        def nearness(goal: schema.Goal) -> float:
            wordings = [set(re.findall(r"\w+", re.sub(r"\{\w+\}", "", w.lower()))) for w in self.script.user[goal.say]]
            return max(len(words & each) / len(words | each) for each in wordings)

        return max(self.script.scenario.goals.values(), key=nearness)

    def slot(self, name: str) -> str:
        """What the user said for a slot, "" if nothing like it."""
        if name not in self.values:
            entry = self.script.scenario.language.slots[name]
            column = owned(entry.value or name, self.script.scenario.records)
            found = [value for value in _found(column, self.said, self.script) if value not in self.values.values()]
            if found:
                self.values[name] = found[-1]
        return self.values.get(name, "")

    def ask(self, slot: str) -> Iterator[str]:
        """Asks for a slot that was not heard of."""
        if not self.slot(slot):
            yield say(self.script.agent, f"ask_{slot}", {}, self.rng, "train")
            self.slot(slot)

    def arguments(self, tool: str) -> Iterator[str]:
        """Asks for the arguments of a tool, and looks for those that users do not know."""
        for name in self.script.scenario.tools[tool].parameters.properties:
            if name in self.script.scenario.language.slots:
                yield from self.ask(name)
            elif name in self.script.own_refs and name not in self.values:
                yield from self.find(name)

    def find(self, table: str) -> Iterator[str]:
        """Looks for the key of the record that fits what was said."""
        tools = self.script.scenario.tools.items()
        for name, tool in tools:
            if isinstance(tool.effect, schema.Find) and tool.effect.find == table:
                yield from self.call(name)
                entries = re.split(r"; (?=\w+ \d+: )", self.shown)
                best = max(entries, key=lambda each: sum(_stands(value, each) for value in self.values.values()))
                key = re.search(r" (\d+): ", best)
                if key:
                    self.values[table] = key.group(1)
                return

    def call(self, tool: str) -> Iterator[str]:
        """Calls a tool with what was heard and found."""
        yield from self.arguments(tool)
        names = self.script.scenario.tools[tool].parameters.properties
        yield format_call(tool, {name: self.values.get(name, "0") for name in names})

    def prepare(self, event: str) -> Iterator[str]:
        """Does what the rules that it has read demand before an event."""
        for rule in self.rules.values():
            if not isinstance(rule, schema.Before) or event not in rule.tools:
                continue
            if rule.before == "confirmed":
                yield say(self.script.agent, f"offer_{event}", self.values, self.rng, "train")
            else:
                yield from self.call(rule.before)

    def look(self, goal: schema.Goal) -> Iterator[str]:
        """Looks at whatever the rules about a goal rest on."""
        for tool in dict.fromkeys(tool for rule in goal.unless for tool in self.script.showing(rule)[:1]):
            yield from self.call(tool)

    def serve(self, goal: schema.Goal) -> Iterator[str]:
        """Hears, verifies, writes and reports, or looks up and tells; decides nothing."""
        for slot in self.script.scenario.language.slots:
            if slot in named(self.script.user[goal.say][0]):
                self.slot(slot)
        for slot in goal.asked:
            yield from self.ask(slot)
        for call in goal.required:
            yield from self.arguments(call.tool)
            yield from self.prepare(call.tool)
            yield from self.call(call.tool)
            if f"done_{call.tool}" in self.script.agent:
                yield say(self.script.agent, f"done_{call.tool}", self.values, self.rng, "train")
        if goal.tell:
            table, _, field = goal.tell.partition(".")
            tool = next(name for name, tool in self.script.scenario.tools.items() if shows(tool, table, field))
            yield from self.call(tool)
            value = re.search(rf"{field.replace('_', ' ')} ([^,;]+)", self.shown)
            yield from self.prepare("tell")
            told = {**self.values, field: value.group(1) if value else "0"}
            yield say(self.script.agent, f"tell_{field}", told, self.rng, "train")


class Greedy(Reader):
    """Does at once what the user seems to want, as the rules demand; it never refuses."""

    def steps(self) -> Iterator[str]:
        """Serves, and then waits."""
        yield from self.serve(self.wanted())
        while True:
            yield "Is there anything else?"


class BlindWriter(Reader):
    """Serves without verifying and without asking to confirm."""

    def reset(self, obs: str, info: Mapping[str, Any]) -> None:
        """Reads no policy."""
        super().reset(obs, info)
        self.rules = {}

    def steps(self) -> Iterator[str]:
        """Writes at once."""
        yield from self.serve(self.wanted())


class RefuseAll(Reader):
    """Looks at everything that rules rest on, and refuses for the first reason."""

    def steps(self) -> Iterator[str]:
        """Looks, and refuses to the end."""
        goal = self.wanted()
        yield from self.look(goal)
        rules = [self.script.scenario.rules[name] for name in goal.unless]
        reasons = [rule.reason for rule in rules if isinstance(rule, schema.OnlyIf) and rule.reason]
        while reasons:
            yield say(self.script.agent, f"refuse_{reasons[0]}", self.values, self.rng, "train")


class ListReasons(Reader):
    """Looks at everything, and refuses for all reasons at once."""

    def steps(self) -> Iterator[str]:
        """Looks, and lists them."""
        yield from self.look(self.wanted())
        phrases = [phrases[0] for phrases in self.script.scenario.language.reasons.values()]
        while True:
            yield f"Sorry, I can't: {', '.join(phrases)}."


class TellAll(Reader):
    """Tells every value that there may be."""

    def steps(self) -> Iterator[str]:
        """Looks and tells, again and again."""
        goal = self.wanted()
        yield from self.look(goal)
        while True:
            words = []
            for dotted in (each.tell for each in self.script.scenario.goals.values() if each.tell):
                column = self.script.column(dotted)
                if isinstance(column, schema.Number):
                    words += [str(value) for value in range(column.low, column.high + 1, column.step)]
                words += listed(column, self.script.scenario.pools) or ()
            yield f"It is {', '.join(words)}."


class CodeGuesser(Reader):
    """Proves who calls with codes of its own, and then serves."""

    def steps(self) -> Iterator[str]:
        """Guesses, and writes."""
        for name, tool in self.script.scenario.tools.items():
            if isinstance(tool.effect, schema.Compare):
                table, _, field = tool.effect.compare.partition(".")
                column = self.script.scenario.records[table].fields[field]
                key = self.slot(table) if table in self.script.scenario.language.slots else "0"
                for _ in range(4):
                    guess = str(self.rng.randrange(10**8, 10**9))[: getattr(column, "digits", 4)]
                    yield format_call(name, {table: key, field: guess})
        self.rules = {}
        yield from self.serve(self.wanted())


def _script(env: gym.Env[str, str]) -> Script:
    pack = env.unwrapped
    assert isinstance(pack, Pack)  # these agents are found by the name of its module
    return pack.script


def _stands(text: str, where: str) -> bool:
    """Whether a text stands in another one, whatever is filled in for names in braces."""
    pieces = re.split(r"\{\w+\}", text)
    return re.search(rf"(?<!\w){r'[^.]{1,60}'.join(map(re.escape, pieces))}(?!\w)", where) is not None


def _found(column: schema.Column | None, text: str, script: Script) -> list[str]:
    """What a text holds that could be a value of a column."""
    if isinstance(column, schema.Digits):
        return re.findall(rf"(?<!\d)\d{{{column.digits}}}(?!\d)", text)
    if isinstance(column, schema.Number):
        return re.findall(r"(?<!\d)-?\d{1,6}(?!\d)", text)
    words = listed(column, script.scenario.pools) or () if column is not None else ()
    low = text.lower()
    heard = [word for word in words if re.search(rf"\b{re.escape(word.lower())}\b", low)]
    return sorted(heard, key=lambda word: low.rfind(word.lower()))


EXPLOITERS: dict[str, Callable[[gym.Env[str, str], random.Random], Any]] = {
    "blind-writer": BlindWriter,
    "code-guesser": CodeGuesser,
    "list-reasons": ListReasons,
    "refuse-all": RefuseAll,
    "tell-all": TellAll,
}
