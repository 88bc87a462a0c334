"""Scenario packs: conversations of one's own, as data in a folder. ``docs/guides/packs.md`` is the guide.

A pack is data in front of what every scenario uses: worlds, rules, tools, the agenda user, the common listener. It
holds no code, no patterns and no templates to evaluate, and either loads as a whole or not at all.
"""

from __future__ import annotations

from functools import partial
from os import PathLike, fspath
from typing import Any, ClassVar

from convgym.core import ConversationEnv, Split, Task, expect
from convgym.errors import ConfigError
from convgym.packs import schema
from convgym.packs.conditions import named
from convgym.packs.effects import lead
from convgym.packs.hearing import hear
from convgym.packs.judging import Call, Evidence, Judge
from convgym.packs.script import Ending, Script, Values, load
from convgym.packs.worlds import Drawn, draw_world
from convgym.rules import Rule
from convgym.seeding import Stream, Streams
from convgym.users.agenda import AgendaUser, Persona, Want

__all__ = ["Pack", "Script", "load"]


class Pack(ConversationEnv):
    """Conversations of a scenario pack: a folder with a ``scenario.yaml``.

    Description:
        The pack says who comes for what, which records there are, what the tools do and which rules hold. Each
        goal has one outcome in which it is granted, and one for each rule that may speak against it; all outcomes
        are equally frequent, and the records are drawn such that exactly one is right.
    Observation:
        Text. At reset the instructions and the user's opening; then what the user or a tool says.
    Action:
        Text to the user, or one tool call.
    Tools:
        The pack's, each with one effect: look up a record, find records, set a field, insert a record, compare a
        code, end the conversation.
    Reward:
        1 at the end if the world is as it should be: every required write and no other, no rule broken, a refusal
        for the right reason after a look at what it rests on, the right value told, no false claim. Otherwise 0.
        ``info["cost"]`` counts broken rules.
    Episode end:
        The user leaves when each want is met, answered or refused, or when patience is spent; a tool of the pack
        may end at once. Cut after the pack's ``turns``.
    Difficulty:
        More distractors, typing errors, and the rules and goals that the pack has ``from_level``. At level 1 each
        parameter has its first value.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` takes the last words of pools of at least
        twelve; ``test_composition`` holds the goal and parameter that the pack names under ``held_out``.
    Audit:
        ``convgym audit FOLDER`` lints the pack, and then holds it to the same bar as every environment. A cheat
        counts by what it gets beyond chance over the classes of outcomes (fulfil, refuse, instead, tell): always to
        refuse is right in one.
    Version history:
        v0: first release.
    """

    by_class: ClassVar[bool] = True

    def __init__(self, *, path: str | PathLike[str] = "", **settings: Any) -> None:
        if not path:
            raise ConfigError(
                "path: expected the folder of a pack, got none; say gym.make('convgym/Pack-v0', path=...)."
            )
        self.script = load(path)
        self.path = fspath(path)
        super().__init__(**settings)
        if self.user not in ("agenda", "stochastic"):
            raise ConfigError(f"user: expected 'agenda' or 'stochastic' for a pack, got {self.user!r}.")
        if settings.get("max_turns") is None:
            self.max_turns = self.script.scenario.turns

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws an ending, the parameters of the rules, the records and the user."""
        script, level = self.script, self.difficulty
        stream = streams.stream("scenario")
        ending, values = _ending(script, stream, split, level, template)
        drawn = draw_world(script, stream, split, level, script.legal_at(ending, values, level))
        goal = script.scenario.goals[ending.goal]
        facts = {slot: drawn.value(entry.value or slot) for slot, entry in script.scenario.language.slots.items()}
        calls = [_call(script, drawn, facts, call) for call in goal.required]
        judge = _judge(script, drawn, facts, ending, calls, script.rules(level, values))
        wants = [Want(tool, arguments, call.say or goal.say) for (tool, arguments), call in zip(calls, goal.required)]
        if goal.tell:
            wants.append(Want("tell", {"field": goal.tell}, goal.say))
        told = named(script.user[goal.say][0])
        user = AgendaUser(
            wants=tuple(wants), opening=goal.say, facts=facts, told=frozenset(told), bank=script.user, split=split,
            persona=_persona(script, streams, split), typos=script.scenario.typos[level - 1],
        )  # fmt: skip
        privileged = {
            "template": ending.template, "goal": ending.goal, "rule": ending.rule, "calls": tuple(calls),
            "reason": judge.reason, "tell": judge.tell, "asked": goal.asked, "told": told, "facts": facts,
            "keys": dict(drawn.keys), "values": values,
        }  # fmt: skip
        return Task(
            template=ending.template, world=drawn.world, rules=judge.rules, tools=script.tools, user=user,
            instructions=script.instructions(level, values, self.style), judge=judge,
            understand=partial(hear, script, goal.tell or ""), privileged=privileged,
            secrets=_secrets(script, drawn, facts, goal),
        )  # fmt: skip


def _ending(script: Script, stream: Stream, split: str, level: int, template: str | None) -> tuple[Ending, Values]:
    """Draws how the conversation should end, and the parameters; the held-out combination is for its split alone."""
    held, s = script.scenario.held_out, script.scenario
    endings = script.endings_at(level)
    if held is not None and split == "test_composition":
        endings = tuple(ending for ending in endings if ending.goal == held.goal) or endings
    if template is None:
        ending = stream.pick(endings)
    else:
        expect("scenario", template, tuple(ending.template for ending in endings))
        ending = next(ending for ending in endings if ending.template == template)
    values = {name: stream.pick(each) if level > 1 else each[0] for name, each in s.parameters.items()}
    if held is not None and ending.goal == held.goal:
        if split == "test_composition":
            values[held.parameter] = held.value
        elif values[held.parameter] == held.value:
            values[held.parameter] = stream.pick([v for v in s.parameters[held.parameter] if v != held.value])
    return ending, tuple(values.values())


def _persona(script: Script, streams: Streams, split: str) -> Persona:
    return streams.stream("user").pick(script.personas[split == "test_user"])


def _call(script: Script, drawn: Drawn, facts: dict[str, str], call: schema.Call) -> Call:
    """The event of a required write: its arguments, and the keys that they lead to."""
    arguments = {}
    for name in script.scenario.tools[call.tool].parameters.properties:
        if name in call.arguments:
            arguments[name] = drawn.value(call.arguments[name])
        else:
            arguments[name] = drawn.keys[name] if name in drawn.keys else facts[name]
    return call.tool, lead(script, drawn.world, arguments)


def _judge(
    script: Script, drawn: Drawn, facts: dict[str, str], ending: Ending, calls: list[Call], rules: tuple[Rule, ...]
) -> Judge:
    goal, required, reason, evidence = script.scenario.goals[ending.goal], tuple(calls), "", None
    if ending.rule:
        rule = script.scenario.rules[ending.rule]
        assert isinstance(rule, schema.OnlyIf)  # see checks
        instead = schema.Call(tool=rule.instead) if rule.instead else None
        required = (_call(script, drawn, facts, instead),) if instead else ()
        reason, table = rule.reason or "", script.conditions[ending.rule].table
        evidence = Evidence(script.showing(ending.rule), table, drawn.keys[table])
    return Judge(
        required=required, reason=reason, evidence=evidence, asked=goal.asked,
        tell=(goal.tell, drawn.value(goal.tell)) if goal.tell else ("", ""), allowed=frozenset(goal.allowed),
        forbidden=frozenset(goal.forbidden), ends=script.ends, rules=rules,
    )  # fmt: skip


def _secrets(script: Script, drawn: Drawn, facts: dict[str, str], goal: schema.Goal) -> tuple[str, ...]:
    """What is private about the records in question, and what the user says only when it is asked."""
    private = [str(drawn.rows[table][field]) for table, field in script.private]
    return (*private, *(facts[slot] for slot in goal.asked))
