"""Scenario packs: two real ones pass the audit, hostile ones are refused by file, line and field, and nothing else."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.cli import main
from convgym import agents
from convgym.agents.packs import EXPLOITERS
from convgym.audit import CHECKS, Budget, audit
from convgym.core import SPLITS, ConversationEnv
from convgym.errors import ConfigError, PackError, UnknownNameError
from convgym.packs import Pack, Script, load
from convgym.packs.conditions import fill, read_comparison
from convgym.packs.hearing import hear
from convgym.packs.source import MAX_BYTES, MAX_DEPTH, parse
from convgym.packs.worlds import draw_world
from convgym.tools import format_call
from tests.convgym.play import plain, play, replay, say

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "guides" / "packs"
LIBRARY, DENTIST = FOLDER / "library-help-desk", FOLDER / "dentist-appointments"
TEXT = (LIBRARY / "scenario.yaml").read_text("utf-8")
SMALL = Budget(seeds=60, levels=(2, 5), hash_seeds=("1",))


@pytest.fixture(params=[LIBRARY, DENTIST], ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the worked examples."""
    return Path(request.param)


def pack(path: Path = LIBRARY, **settings: Any) -> Pack:
    env = gym.make("convgym/Pack-v0", path=str(path), **settings).unwrapped
    assert isinstance(env, Pack)
    return env


def share(path: Path, name: str, level: int, seeds: int = 60, **options: Any) -> float:
    env = pack(path, difficulty=level)
    agent = agents.make(name, env)
    return sum(play(env, agent, seed, options or None)[-1][-1]["success"] for seed in range(seeds)) / seeds


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "scenario.yaml").write_text(text, "utf-8")
    return tmp_path


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) >= 1, old
    return TEXT.replace(old, new, 1)


def line_of(text: str, what: str) -> int:
    return next(i for i, line in enumerate(text.splitlines(), 1) if what in line)


# -- the worked examples -----------------------------------------------------------------------------


def test_the_examples_pass_the_audit(folder):
    report = audit(str(folder), SMALL, checks=[check for check in CHECKS if check != "hash seeds"])
    assert report.ok, [f"{finding.check}: {finding.detail}" for finding in report.breaches]
    found = {finding.check for finding in report.findings}
    assert {"lint:rules", "lint:heard", "lint:goals", "floor", "oracle", "damage:alter", "copies"} <= found
    assert {f"exploiter:{name}" for name in EXPLOITERS} <= found


def test_the_command_audits_a_folder(capsys):
    assert main(["audit", str(LIBRARY), "--quick", "--seeds", "20", "--difficulty", "2"]) == 0
    assert "lint:rules" in capsys.readouterr().out


def test_the_command_names_the_line_of_an_error(tmp_path, capsys):
    text = changed("  renew:\n    description: Renews a loan.", "  renew:\n    descripton: Renews a loan.")
    assert main(["audit", str(written(tmp_path, text))]) == 2
    said = capsys.readouterr().err
    assert f"scenario.yaml:{line_of(text, 'descripton')}: tools.renew.descripton: Unknown key" in said
    assert "Did you mean 'description'?" in said


def test_the_oracle_solves_every_outcome_in_every_split(folder):
    for level in range(1, 6):
        env = pack(folder, difficulty=level)
        oracle = agents.make("oracle", env)
        for ending in env.script.endings_at(level):
            for split in SPLITS:
                held = env.script.scenario.held_out
                if split == "test_composition" and ending.goal != held.goal:
                    continue
                steps = play(env, oracle, 5, {"scenario": ending.template, "split": split})
                assert steps[-1][-1]["success"], (level, ending.template, split)
                assert env.task.template == ending.template


def test_agents_get_what_their_skill_is_worth(folder):
    clerk = share(folder, "clerk", 2, 150)
    assert 0.2 < clerk < 0.55
    greedy = {level: share(folder, "greedy", level, 100) for level in (1, 5)}
    assert 0.2 < greedy[5] < greedy[1] < 0.8


@pytest.mark.parametrize("name", sorted(EXPLOITERS))
def test_cheats_fail_in_their_worst_class(folder, name):
    env = pack(folder)
    cheat, won, played = agents.make(name, env), {}, {}
    for seed in range(80):
        success = play(env, cheat, seed)[-1][-1]["success"]
        kind = env.task.template.partition("/")[0]
        won[kind], played[kind] = won.get(kind, 0) + success, played.get(kind, 0) + 1
    assert min(won[kind] / played[kind] for kind in played) <= env.ceiling


def test_outcomes_are_equally_frequent_and_the_records_agree_with_them(folder):
    env, seen = pack(folder, difficulty=5), {}
    for seed in range(400):
        env.reset(seed=seed)
        goal = env.privileged()
        seen[goal["template"]] = seen.get(goal["template"], 0) + 1
        ending = next(e for e in env.script.endings if e.template == goal["template"])
        for (table, field), values in env.script.legal(ending, goal["values"], 5).items():
            assert env.task.world.tables[table][goal["keys"][table]][field] in values
    expected = 400 / len(env.script.endings)
    assert len(seen) == len(env.script.endings) and all(abs(n - expected) < 5 * expected**0.5 for n in seen.values())


def test_levels_add_rules_goals_distractors_and_typing_errors(folder):
    def at(level):
        env = pack(folder, difficulty=level)
        env.reset(seed=1)
        return len(env.task.rules), sum(map(len, env.task.world.tables.values())), env.task.user.typos

    rules, records, typos = zip(*map(at, (1, 2, 3, 5)))
    assert rules[0] < rules[2] <= rules[3] and records[0] < records[2] < records[3] and typos[0] < typos[3]
    first = {name: words[0] for name, words in load(folder).scenario.parameters.items()}
    env = pack(folder, difficulty=1)
    for seed in range(20):
        env.reset(seed=seed)
        assert env.privileged()["values"] == tuple(first.values())


# -- what a conversation turns on --------------------------------------------------------------------


def outcome(actions: list[str], template: str, seed: int = 3, **settings: Any) -> tuple[dict[str, Any], Pack]:
    env = pack(**settings)
    env.reset(seed=seed, options={"scenario": template})
    goal = env.privileged()
    values = {**goal["facts"], **goal["keys"]}
    steps = say(env, [fill(action, values) for action in actions])
    return steps[-1][-1], env


VERIFY = '<tool_call>{"name": "verify", "arguments": {"member": "{member}", "pin": "{pin}"}}</tool_call>'
LOANS = '<tool_call>{"name": "find_loans", "arguments": {"member": "{member}"}}</tool_call>'
MEMBER = '<tool_call>{"name": "get_member", "arguments": {"member": "{member}"}}</tool_call>'
RENEW = '<tool_call>{"name": "renew", "arguments": {"loan": "{loan}"}}</tool_call>'
DONE = "Done, it is renewed."
WAITS = "Sorry, I can't: somebody waits for it."


@pytest.mark.parametrize(
    ("template", "actions", "missing"),
    [
        ("fulfil/renew", [VERIFY, RENEW, DONE], ""),
        ("fulfil/renew", [RENEW, DONE], "rule identity"),
        ("fulfil/renew", [VERIFY.replace("{pin}", "0000"), RENEW, DONE], "rule identity"),
        ("fulfil/renew", [VERIFY, LOANS, WAITS, RENEW, DONE], "false reason"),
        ("fulfil/renew", [DONE, VERIFY, RENEW, DONE], "false report"),
        ("refuse/renew/waiting", [LOANS, WAITS, WAITS], ""),
        ("refuse/renew/waiting", [WAITS, WAITS], "refused: waiting"),
        ("refuse/renew/waiting", [MEMBER, WAITS, WAITS], "refused: waiting"),
        ("refuse/renew/waiting", [LOANS, "Sorry, I can't: your fine is too high."], "false reason"),
        ("refuse/renew/waiting", [VERIFY, LOANS, RENEW, DONE], "needless renew"),
        ("refuse/renew/waiting", [LOANS, "I can't: somebody waits for it and your fine is too high."], "false reason"),
        ("fulfil/renew_vague", ["Which loan is it?", VERIFY, RENEW, DONE], ""),
        ("fulfil/renew_vague", [VERIFY, RENEW, DONE], "asked loan_title"),
        ("fulfil/renew_vague", [VERIFY, RENEW, "Which loan is it?", DONE], "asked loan_title"),
    ],
)  # fmt: skip
def test_what_counts_in_the_library(template, actions, missing):
    info, env = outcome([*actions, *[""] * 14], template)
    found = env.task.judge(env.task.world)
    assert info["success"] is (not missing)
    assert not missing or missing in found.missing


def test_a_value_counts_once_and_only_if_it_is_right():
    env = pack()
    env.reset(seed=0, options={"scenario": "tell/fine"})
    fine = int(env.privileged()["tell"][1])
    told = [f"Your fine is {fine}.", f"Your fine is {(fine + 1) % 20}.", f"It is {fine} or {(fine + 1) % 20}."]
    told += [f"Is it {fine}?", f"Card 12345, page 4711: your fine is {fine}."]
    found = [outcome([VERIFY, MEMBER, text, *[""] * 14], "tell/fine", seed=0)[0]["success"] for text in told]
    assert found == [True, False, False, False, True]
    assert not outcome([MEMBER, told[0], *[""] * 14], "tell/fine", seed=0)[0]["success"]  # the rule `privacy`


def test_every_rule_is_counted_where_it_is_broken():
    info, _ = outcome([RENEW], "refuse/renew/waiting")
    assert info["cost"] == 2.0  # identity and waiting
    info, _ = outcome([VERIFY, RENEW], "fulfil/renew", difficulty=3)
    assert info["cost"] == 1.0  # not confirmed
    info, env = outcome(["Shall I renew the loan?", VERIFY, RENEW, DONE], "fulfil/renew", difficulty=3)
    assert info["success"], env.task.judge(env.task.world)


def test_a_confirmation_is_bound_to_its_action():
    info, env = outcome(["Shall I reserve the book?", VERIFY, RENEW, DONE], "fulfil/renew", difficulty=3)
    assert not info["success"] and "rule confirm" in env.task.judge(env.task.world).missing


def test_another_case_hands_over_and_ends():
    env = pack(DENTIST)
    env.reset(seed=1, options={"scenario": "instead/book/emergency"})
    patient = env.privileged()["keys"]["patient"]
    _, reward, terminated, _, info = env.step(format_call("to_doctor", {"patient": patient}))
    assert (reward, terminated, info["end_reason"]) == (1.0, True, "submitted")
    env.reset(seed=1, options={"scenario": "fulfil/book"})
    patient = env.privileged()["keys"]["patient"]
    assert env.step(format_call("to_doctor", {"patient": patient}))[1] == 0.0


def test_tools_turn_down_what_the_world_does_not_have():
    env = pack()
    env.reset(seed=3, options={"scenario": "fulfil/renew"})
    loan = env.privileged()["keys"]["loan"]

    def call(name: str, **arguments: str) -> str:
        return env.step(format_call(name, arguments))[0]

    assert call("renew", loan="000000") == "Tool: error: no such loan"
    assert call("renew", loan=f" {loan} ") == "Tool: renewed"
    assert call("renew", loan=loan) == "Tool: error: already renewed"
    assert call("find_book", title="no such title") == "Tool: error: no such title"
    assert call("verify", member="00000", pin="0000") == "Tool: error: no such member"
    assert env.task.world.tables["loan"][loan]["state"] == "lent"  # the originals stay as they are


# -- splits ------------------------------------------------------------------------------------------


def test_pools_keep_words_for_the_test(folder):
    def words(split: str) -> set[str]:
        env, found = pack(folder), set()
        for seed in range(60):
            env.reset(seed=seed, options={"split": split})
            found |= {str(v) for rows in env.task.world.tables.values() for row in rows.values() for v in row.values()}
        return found

    script = load(folder)
    pool = next(iter(words_ for words_ in script.scenario.pools.values() if len(words_) >= 12))
    train, test = words("train") & set(pool), words("test_goal") & set(pool)
    assert not train & test and test == set(pool[-round(0.15 * len(pool)) :])


def test_the_held_out_combination_is_met_in_its_split_only(folder):
    held = load(folder).scenario.held_out
    at = list(load(folder).scenario.parameters).index(held.parameter)
    env = pack(folder)
    for split in SPLITS:
        for seed in range(60):
            env.reset(seed=seed, options={"split": split})
            goal = env.privileged()
            composed = goal["goal"] == held.goal and goal["values"][at] == held.value
            assert composed is (split == "test_composition")


def test_personas_of_a_pack_are_held_out_too():
    env, met = pack(DENTIST), {"train": set(), "test_user": set()}
    for split, names in met.items():
        for seed in range(60):
            env.reset(seed=seed, options={"split": split})
            names.add(env.task.user.persona.name)
    assert met == {"train": {"brisk", "kind", "talkative", "stubborn"}, "test_user": {"nervous", "rude"}}


# -- an environment like the others ------------------------------------------------------------------


def test_gymnasiums_checker_is_content(folder, recwarn):
    check_env(gym.make("convgym/Pack-v0", path=str(folder), render_mode="ansi").unwrapped)
    assert [str(warning.message) for warning in recwarn] == []


def test_specs_round_trip_and_vector_envs_play(folder):
    env = gym.make("convgym/Pack-v0", path=str(folder), difficulty=4)
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert plain(play(env, agents.make("clerk", env), 5)) == plain(play(twin, agents.make("clerk", twin), 5))
    vector = gym.make_vec("convgym/Pack-v0", 3, path=str(folder))
    observations, _ = vector.reset(seed=1)
    assert len(set(observations)) == 3
    vector.step(["Hello."] * 3)
    assert gym.make_vec(EnvSpec.from_json(vector.spec.to_json()), 2).reset(seed=1)


@pytest.mark.parametrize("how", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy, ConversationEnv.fork])
def test_copies_go_on_alike(folder, how):
    env = pack(folder, difficulty=5)
    play(env, agents.make("clerk", env), 7)
    actions = [message.content for message in env.transcript() if message.role == "assistant"]
    for turn in range(len(actions)):
        replay(env, actions[:turn], 7)
        twin = how(env)
        assert twin.script is env.script  # a pack is loaded once
        assert plain(say(twin, actions[turn:])) == plain(say(env, actions[turn:]))


def test_equal_files_are_read_once(tmp_path):
    assert load(written(tmp_path, TEXT)) is load(LIBRARY)
    assert load(written(tmp_path, TEXT + "# a comment\n")) is not load(LIBRARY)
    assert isinstance(pickle.loads(pickle.dumps(load(LIBRARY))), Script)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"user": "llm"}, ConfigError), ({"difficulty": 9}, ConfigError), ({"path": ""}, ConfigError),
        ({"levle": 1}, UnknownNameError), ({"path": "no/such/folder"}, PackError), ({"path": "a\0b"}, PackError),
    ],
)  # fmt: skip
def test_illegal_settings_are_named(settings, error):
    with pytest.raises(error, match=r"expected|Unknown setting"):
        pack(**{"path": LIBRARY, **settings})


def test_limits_are_the_packs_own():
    assert pack().max_turns == 14 and pack(max_turns=3).max_turns == 3
    with pytest.raises(ConfigError, match="scenario: expected one of 'fulfil/renew'"):
        pack().reset(seed=0, options={"scenario": "fulfil/return"})


def test_unseen_words_of_people_are_understood():
    script = load(LIBRARY)

    def acts(text: str, tell: str = "") -> list[tuple[str, ...]]:
        heard = [a for a in hear(script, tell, text).acts if a.name in ("request", "confirm", "refuse", "done", "tell")]
        return [(act.name, *filter(None, act.slots.values())) for act in heard]

    assert acts("Could you please give me the PIN code that belongs to your card?") == [
        ("request", "member"), ("request", "pin")]  # fmt: skip
    assert acts("I'm afraid that is not possible, because you still owe too much.") == [("refuse", "fine")]
    assert acts("Would you like me to extend the loan by four weeks?") == [("confirm", "renew")]
    assert acts("Great news, your loan has been extended until June.") == [("done",)]
    assert acts("You have to pay 12 euros.", "member.fine") == [("tell", "member.fine", "12")]
    assert acts("The fine on card 48213 is 7.", "member.fine") == [("tell", "member.fine", "7")]


# -- comparisons and texts ---------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_a_comparison_is_read_or_not_and_nothing_is_evaluated(text):
    found = read_comparison(text)
    assert found is None or f"{found.table}.{found.field} {found.op} {found.value}" == text


@given(st.dictionaries(st.sampled_from("abc"), st.text(max_size=8), max_size=3))
def test_values_are_put_in_and_never_read(values):
    text = fill("{a}|{b}|{c}", values)
    assert text == "|".join(values.get(name, f"{{{name}}}") for name in "abc")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), level=st.integers(1, 5), split=st.sampled_from(SPLITS), which=st.integers(0, 1))
def test_worlds_hold_what_the_pack_says(seed, level, split, which):
    from convgym.seeding import Streams

    script = load((LIBRARY, DENTIST)[which])
    drawn = draw_world(script, Streams(seed, seed).stream("scenario"), split, level, {})
    numbers: list[str] = []
    for name, table in script.scenario.records.items():
        rows = drawn.world.tables[name]
        assert len(rows) <= 1 + table.distractors[level - 1] and rows[drawn.keys[name]] == drawn.rows[name]
        numbers += [*rows, *(row[f] for row in rows.values() for f, c in table.fields.items() if hasattr(c, "digits"))]
        for row in rows.values():
            assert all(row[ref] in drawn.world.tables[ref] for ref in script.own_refs[name])
        if table.unique:
            assert len({tuple(row[field] for field in table.unique) for row in rows.values()}) == len(rows)
    assert len(set(numbers)) == len(numbers)


# -- hostile packs -----------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, str, str, str]] = {
    # what is wrong: (text that stands in the library, what replaces it, field, message)
    "unknown section": ("\nturns: 14", "\nturms: 14", "turms", "Unknown key 'turms'. Did you mean 'turns'?"),
    "wrong type": ("turns: 14", "turns: many", "turns", "expected integer, got 'many'"),
    "out of range": ("turns: 14", "turns: 1000000", "turns", "expected less than or equal to 60, got 1000000"),
    "other version": ("pack: 1", "pack: 2", "pack", "expected 1, got 2"),
    "unknown effect": (
        "{insert: hold}",
        "{delete: hold}",
        "tools.reserve.effect",
        "expected one of the keys compare, end",
    ),
    "code as an effect": (
        "{insert: hold}",
        '{run: "os.system(1)"}',
        "tools.reserve.effect",
        "expected one of the keys",
    ),
    "unknown key of an effect": (
        "{set: loan.state, to: renewed}",
        "{set: loan.state, too: renewed}",
        "tools.renew.effect.too",
        "Unknown key 'too'. Did you mean 'to'?",
    ),
    "unknown table": ("{insert: hold}", "{insert: holds}", "tools.reserve.effect.insert", "Did you mean 'hold'?"),
    "unknown field": (
        "show: [fine]}",
        "show: [fines]}",
        "tools.get_member.effect.show[0]",
        "Unknown field 'fines'. Did you mean 'fine'?",
    ),
    "private field shown": (
        "show: [fine]}",
        "show: [pin]}",
        "tools.get_member.effect.show",
        "expected no private field",
    ),
    "word that a field cannot hold": (
        "to: renewed}",
        "to: extended}",
        "tools.renew.effect.to",
        "expected one of lent, renewed, got 'extended'",
    ),
    "code in a condition": (
        '"loan.renewals < {most}"',
        "\"__import__('os').system('x')\"",
        "rules.renewals.only_if",
        "expected TABLE.FIELD, one of",
    ),
    "unknown parameter": (
        '"loan.renewals < {most}"',
        '"loan.renewals < {mots}"',
        "rules.renewals.only_if",
        "Did you mean 'most'?",
    ),
    "number against a word": (
        "loan.waiting == no",
        "loan.waiting < 3",
        "rules.waiting.only_if",
        "expected a number, or a choice with",
    ),
    "record that a tool is not about": (
        "loan.waiting == no",
        "book.kind == normal",
        "rules.waiting.only_if",
        "expected a record that 'renew' is about",
    ),
    "unknown tool in a rule": (
        "    same: [member]\n    tools: [renew, reserve]",
        "    same: [member]\n    tools: [renew, resrve]",
        "rules.identity.tools[1]",
        "Unknown tool 'resrve'. Did you mean 'reserve'?",
    ),
    "unknown operator": (
        "    before: verify\n    same",
        "    after: verify\n    same",
        "rules.identity",
        "expected one of the keys at_most_once",
    ),
    "argument that an event lacks": (
        "same: [member]",
        "same: [book]",
        "rules.identity.same",
        "expected an argument of",
    ),
    "reason without words": (
        "    refuse_fine:",
        "    refuse_fines:",
        "rules.fines.reason",
        "expected wordings of the act 'refuse_fine'",
    ),
    "impossible outcome": (
        "fine: {from: 0, to: 20}",
        "fine: {from: 0, to: 4}",
        "goals.renew.unless[2]",
        "no value of member.fine makes",
    ),
    "empty range": ("fine: {from: 0, to: 20}", "fine: {from: 9, to: 2}", "records.member.fields.fine", "got 9 to 2"),
    "huge range": (
        "fine: {from: 0, to: 20}",
        "fine: {from: 0, to: 900000}",
        "records.member.fields.fine",
        "at most 1000 numbers",
    ),
    "too few digits": (
        "key: {digits: 5}",
        "key: {digits: 3, private: true}",
        "records.member.key.private",
        "expected a key",
    ),
    "too many records": (
        "distractors: [2, 2, 3, 4, 6]",
        "distractors: [2, 2, 3, 4, 999]",
        "records.member.distractors[4]",
        "expected less than or equal to 20",
    ),
    "circle of references": (
        "      pin: {digits: 4",
        "      hold: {ref: hold}\n      pin: {digits: 4",
        "records.member.fields.hold.ref",
        "expected no circle",
    ),
    "name with a dot": ("  hold:\n", "  ho.ld:\n", "records.ho.ld", "expected a name of lower-case letters"),
    "name of an event": ("  renew:\n    desc", "  confirmed:\n    desc", "tools.confirmed", "expected another name"),
    "pattern as a phrase": (
        "[card number,",
        "['(card|number)+$',",
        "language.slots.member.phrases[0]",
        "expected a plain phrase",
    ),
    "unknown slot in a text": (
        '"It is {pin}."',
        '"It is {pni} {pin}."',
        "words.user.inform_pin[0]",
        "Did you mean 'pin'?",
    ),
    "private value in an opening": (
        "Please renew {loan_title}. My card",
        "Please renew {loan_title}, pin {pin}. My card",
        "words.user.want_renew[0]",
        "it is private, and an opening would give it away",
    ),
    "opening tells what has to be asked": (
        "Please renew one of my loans.",
        "Please renew {loan_title}.",
        "words.user.want_renew_vague[0]",
        "has it asked for",
    ),
    "attribute of a value": (
        '"It is {pin}."',
        '"{pin.__class__} {pin!r} %(pin)s {pin}{os}."',
        "words.user.inform_pin[0]",
        "Unknown slot in braces 'os'",
    ),
    "unknown act": ("    inform_pin:", "    infrom_pin:", "words.user.infrom_pin", "Did you mean 'inform_pin'?"),
    "endless text": ("You work at the help desk", "You work " + "on " * 400, "role", "at most 600 characters"),
    "goal without a goal": ("    tell: member.fine\n", "", "goals.fine", "expected either `required`"),
    "look-up as a goal": (
        "required: [renew]",
        "required: [get_member]",
        "goals.renew.required[0]",
        "changes something",
    ),
    "tell a private value": (
        "tell: member.fine",
        "tell: member.pin",
        "goals.fine.tell",
        "expected a field that is a number",
    ),
}


def line_at(text: str, field: str) -> int:
    """The line of a field by PyYAML's own nodes: of its key, or of its item in a list."""
    node, line, rest = yaml.compose(text), 0, field
    while rest:
        if isinstance(node, yaml.SequenceNode):
            index, _, rest = rest.removeprefix("[").partition("]")
            node = node.value[int(index)]
            line = node.start_mark.line
        else:
            fits = {k.value: (k, v) for k, v in node.value if re.match(rf"{re.escape(k.value)}(?:[.\[]|$)", rest)}
            key = max(fits, key=len)
            line, node, rest = fits[key][0].start_mark.line, fits[key][1], rest[len(key) :]
        rest = rest.removeprefix(".")
    return line + 1


@pytest.mark.parametrize("name", BROKEN)
def test_an_error_names_file_line_and_field(name, tmp_path):
    old, new, field, message = BROKEN[name]
    text = changed(old, new)
    with pytest.raises(PackError) as caught:
        load(written(tmp_path, text))
    said = str(caught.value).splitlines()
    mine = [line for line in said if re.match(rf".*scenario\.yaml:\d+: {re.escape(field)}: ", line)]
    assert mine, said
    assert any(message in line for line in mine), mine
    assert int(mine[0].split("scenario.yaml:")[1].split(":")[0]) == line_at(text, field)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert type(twin) is PackError and str(twin) == str(caught.value)


REFUSED: dict[str, tuple[str, int, str]] = {
    # what is wrong: (the whole file, line, message)
    "no yaml": ("pack: 1\nname: [a\n", 3, "expected YAML"),
    "empty": ("# nothing\n", 1, "an empty file"),
    "a list": ("- 1\n", 1, "expected"),
    "two documents": ("pack: 1\n---\npack: 1\n", 2, "expected one document"),
    "an anchor": ("pack: 1\nname: &a x\n", 2, "an anchor or alias"),
    "an alias": ("pack: 1\nname: *a\n", 2, "an anchor or alias"),
    "an alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", 1, "an anchor or alias"),
    "a merge": ("pack: 1\n<<: {name: x}\n", 2, "Unknown key '<<'"),
    "python": ("pack: !!python/object/apply:os.system ['true']\n", 1, "the tag"),
    "a tag": ("pack: !!int '1'\n", 1, "the tag"),
    "a tag of ours": ("pack: 1\nname: !x y\n", 2, "the tag"),
    "a key twice": ("pack: 1\nname: x\npack: 1\n", 3, "'pack' again"),
    "a list as a key": ("pack: 1\n[a, b]: 1\n", 2, "expected a word as a key"),
    "no value": ("pack: 1\nname:\nrole: x\n", 2, "expected a value"),
    "a control character": ('pack: 1\nname: "\\u001b[2J"\n', 2, "U+001B"),
    "a bidi mark": ('pack: 1\nname: "\\u202e"\n', 2, "U+202E"),
    "a bidi mark in a key": ('pack: 1\n"\\u202e": 1\n', 2, "U+202E"),
    "a line break": ('pack: 1\nname: "a\\nb"\n', 2, "U+000A"),
    "a zero byte": ("pack: 1\nname: \0\n", 2, "expected YAML"),
    "depth": ("a: " + "[" * 5_000 + "]" * 5_000, 1, f"at most {MAX_DEPTH} levels"),
    "depth of blocks": ("\n".join(" " * i + "a:" for i in range(400)), MAX_DEPTH + 1, f"at most {MAX_DEPTH} levels"),
    "very many values": ("a: [" + "1," * 50_000 + "]", 1, "at most 20000 values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_data_is_refused(name, tmp_path):
    text, line, message = REFUSED[name]
    begun = time.process_time()
    with pytest.raises(PackError) as caught:
        load(written(tmp_path, text))
    assert re.search(rf"scenario\.yaml:{line}: .*{re.escape(message)}", str(caught.value)), caught.value
    assert time.process_time() - begun < 10  # a bound on work: such files take milliseconds


def test_no_is_a_word_and_codes_keep_their_zeros():
    data = parse("a: no\nb: 0932\nc: 10:30\nd: 2024-05-06\ne: 12\nf: 0.5\ng: true\nh: '12'\ni: 1e9\nj: 0x10\n").data
    assert data == {"a": "no", "b": "0932", "c": "10:30", "d": "2024-05-06", "e": 12, "f": 0.5, "g": True, "h": "12",
                    "i": "1e9", "j": "0x10"}  # fmt: skip


def test_only_a_file_of_the_folder_is_read(tmp_path):
    secret = written(tmp_path, TEXT) / "scenario.yaml"
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "scenario.yaml").symlink_to(secret)
    for path in (inner, tmp_path / "scenario.yaml", tmp_path / "none", "", "\0"):
        with pytest.raises(PackError, match="expected the folder of a pack"):
            load(path) if path else load(tmp_path / "nothing")
    (inner / "scenario.yaml").unlink()
    (inner / "scenario.yaml").mkdir()
    with pytest.raises(PackError):
        load(inner)
    (inner / "scenario.yaml").rmdir()
    os.mkfifo(inner / "scenario.yaml")  # which would be waited for
    with pytest.raises(PackError, match="expected a regular file"):
        load(inner)


def test_size_and_encoding_are_limited(tmp_path):
    (tmp_path / "scenario.yaml").write_bytes(b"# " + b"x" * MAX_BYTES)
    with pytest.raises(PackError, match=f"at most {MAX_BYTES} bytes"):
        load(tmp_path)
    (tmp_path / "scenario.yaml").write_bytes(b"pack: 1\nname: \xff\xfe\n")
    with pytest.raises(PackError, match=r"scenario.yaml:2: the file: expected UTF-8, got the byte 0xff"):
        load(tmp_path)
    for raw in (TEXT.encode("utf-16"), b"\x1f\x8b\x08" + b"\0" * 99, b"\xef\xbb\xbf\0"):
        (tmp_path / "scenario.yaml").write_bytes(raw)
        with pytest.raises(PackError):
            load(tmp_path)


def test_a_phrase_cannot_be_a_catastrophic_pattern(tmp_path):
    text = changed("[card number,", f"['a{'a?' * 20}a', 'x(a+)+y', card number,")
    script = load(written(tmp_path, text))
    begun = time.process_time()
    hear(script, "", "a" * 2_000 + "!")
    assert time.process_time() - begun < 5  # a backtracking pattern would take for ever
    assert [act.slots for act in hear(script, "", "What is your x(a+)+y?").acts] == [{"slot": "member"}]


# -- random damage -----------------------------------------------------------------------------------

DATA = parse(TEXT).data
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["{x}", "loan", "loan.state", "__class__", "renew", "-1", "", [], {}, ["a"] * 300, {"a": {"b": 1}}]
    ),
)


def places(data: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of the data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place, *(found for key, value in inner for found in places(value, (*place, key)))]


PLACES = places(DATA)[1:]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_pack_loads_or_says_why(data, tmp_path_factory):
    """One to three places of a valid pack are dropped, replaced, renamed, or put elsewhere."""
    damaged = copy.deepcopy(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(PLACES))
        try:
            holder = damaged
            for key in place[:-1]:
                holder = holder[key]
            value, key = holder[place[-1]], place[-1]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier damage took it away
        how = data.draw(st.sampled_from(["drop", "replace", "rename", "move"]))
        if how == "drop":
            del holder[key]
        elif how == "replace":
            holder[key] = data.draw(JUNK)
        elif how == "rename" and isinstance(holder, dict):
            holder[str(data.draw(JUNK))] = holder.pop(key)
        else:
            other = data.draw(st.sampled_from(PLACES))
            found: Any = DATA
            for key_ in other:
                found = found[key_]
            holder[key] = copy.deepcopy(found)
        del value
    check_loads_or_says_why(yaml.safe_dump(damaged, allow_unicode=True, sort_keys=False), tmp_path_factory)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_garbled_file_loads_or_says_why(data, tmp_path_factory):
    """Some characters of a valid file are cut, doubled, or replaced by those that mean something to YAML."""
    at = data.draw(st.integers(0, len(TEXT) - 1))
    length = data.draw(st.integers(0, 60))
    new = data.draw(st.text(st.sampled_from("{}[]:,&*!|>'\"%@`#-? \n\tab1\\"), max_size=20) | st.text(max_size=10))
    text = TEXT[:at] + new + TEXT[at + length :]
    check_loads_or_says_why(text.encode("utf-8", "replace").decode("utf-8"), tmp_path_factory)


def test_many_problems_are_counted_and_each_line_has_its_place(tmp_path):
    """A pack without reasons has more problems than are shown; the last line counts the others."""
    damaged = copy.deepcopy(DATA)
    del damaged["language"]["reasons"]
    path = written(tmp_path, yaml.safe_dump(damaged, sort_keys=False))
    with pytest.raises(PackError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert all(re.match(rf"{re.escape(str(path))}/scenario\.yaml:\d+: ", line) for line in lines)
    assert re.search(r"from here on: \d+ more\.$", lines[-1])


def check_loads_or_says_why(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.mktemp("pack"), text)
    begun = time.process_time()
    try:
        script = load(path)
    except PackError as error:
        lines = str(error).splitlines()
        assert all(re.match(rf"{re.escape(str(path))}/scenario\.yaml:\d+: ", line) for line in lines), error
        assert len(str(error)) < 20_000
    else:  # nothing half-loaded: what loads can be played
        env = pack(path, difficulty=5)
        for ending in script.endings_at(5):
            env.reset(seed=1, options={"scenario": ending.template})
            for tool in env.task.tools.values():
                arguments = dict.fromkeys(tool.arguments.model_fields, "1") | env.privileged()["keys"]
                env.step(format_call(tool.name, {name: arguments[name] for name in tool.arguments.model_fields}))
                if env._episode.end is not None:
                    break
        play(env, agents.make("random-calls", env), 1)
    assert time.process_time() - begun < 20  # a bound on work, not a measurement


# -- lint --------------------------------------------------------------------------------------------

SLOPPY: dict[str, tuple[str, str, str, str]] = {
    # what is wrong: (text that stands in the library, what replaces it, finding, place and message)
    "two wordings": (
        '["Shall I renew it?", "Shall I renew the loan?", "Do you want me to renew it?"]',
        '["Shall I renew it?", "Shall I renew the loan?"]',
        "lint:wordings",
        "words.agent.offer_renew: expected at least 3",
    ),
    "deaf to a wording": (
        "Shall I renew the loan?",
        "The loan and I.",
        "lint:heard",
        "words.agent.offer_renew[1]: expected to be heard",
    ),
    "two reasons in one wording": (
        "Sorry, I can't: your fine is too high.",
        "Sorry, I can't: your fine, and somebody waits for it.",
        "lint:heard",
        "words.agent.refuse_fine[0]",
    ),
    "a rule without its number": (
        'brief: "At most {most} renewals."',
        "brief: Few renewals.",
        "lint:used",
        "rules.renewals.brief: expected {most}",
    ),
    "unused pool": (
        "pools:\n",
        "pools:\n  towns: [Rome, Oslo, Bonn, Lyon]\n",
        "lint:used",
        "pools.towns: expected a field",
    ),
    "unreachable rule": (
        "  confirm:\n",
        "  thrice:\n    at_most_once: [loan]\n    tools: [renew]\n    brief: Once.\n    full: Once.\n  confirm:\n",
        "lint:rules",
        "rules.thrice: expected a rule that can be broken",
    ),
    "unsolvable goal": (
        "  confirm:\n",
        "  stop:\n    never: true\n    tools: [renew]\n    brief: No renewals.\n    full: No.\n  confirm:\n",
        "lint:goals",
        "goals.renew: expected the oracle to reach",
    ),
}


@pytest.mark.parametrize("name", SLOPPY)
def test_lint_finds(name, tmp_path):
    old, new, check, message = SLOPPY[name]
    text = changed(old, new)
    report = audit(str(written(tmp_path, text)), SMALL, checks=["lint"])
    found = {finding.check: finding.detail for finding in report.breaches}
    assert check in found
    assert re.search(r"scenario\.yaml:\d+: " + re.escape(message), found[check]), found


def test_lint_finds_what_an_opening_gives_away(tmp_path):
    """Titles that are words of the openings: which loan is meant stands there before anybody has asked."""
    titles = ["book", "books", "card", "loan", "loans", "longer", "member", "number", "please", "renew", "keep", "one"]
    pool = re.search(r"  titles:\n(?:    - \w+\n)+", TEXT).group()
    text = changed(pool, f"  titles: [{', '.join(titles)}]\n")
    found = {f.check: f.detail for f in audit(str(written(tmp_path, text)), SMALL, checks=["lint"]).breaches}
    assert re.search(r"scenario\.yaml:\d+: goals\.renew_vague: expected no '\w+' in a text", found["lint:leaks"])


def test_other_environments_have_nothing_to_lint():
    assert audit("convgym/TextBandit-v0", SMALL, checks=["lint"]).findings == ()


# -- the guide ---------------------------------------------------------------------------------------


def test_the_guide_shows_the_file_as_it_is():
    guide = (FOLDER.parent / "packs.md").read_text("utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    for block in blocks:
        for part in block.split("  # ...\n"):
            assert part.strip("\n") in TEXT, part


def test_every_section_is_explained():
    from convgym.packs.schema import Scenario

    guide = (FOLDER.parent / "packs.md").read_text("utf-8")
    assert [name for name in Scenario.model_fields if f"`{name}`" not in guide] == []


def test_privileged_is_json_plain(folder):
    env = pack(folder)
    env.reset(seed=0)
    assert json.loads(json.dumps(env.privileged()))["template"] == env.task.template
