"""Contests take turns and survive broken contestants; the work is the same for all; pages follow the JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.policies.embedded import save_policy
from algos.policies.load import Policy
from benchmarks.pages import FIGURES
from benchmarks.peers import hf, trl_grpo
from benchmarks.throughput import (
    decode,
    envs,
    learner,
    marks,
    models,
    ours,
    page,
    profile,
    service,
    training,
    turns,
    work,
)
from benchmarks.throughput.__main__ import main
from benchmarks.throughput.contest import Conditions, Contestant, compete, interpreter, least, middle
from benchmarks.throughput.models import Model
from convgym.errors import ConfigError, UnknownNameError

MODULE = "tests.benchmarks.contestant"
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "throughput.md"
VOCABULARY = 300


@pytest.fixture(scope="module")
def model(tiny_policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = save_policy(tiny_policy, tmp_path_factory.mktemp("models") / "tiny")
    return Model("tiny", folder, sum(p.numel() for p in tiny_policy.model.parameters()), "random weights")


# -- contests ----------------------------------------------------------------------------------------------------------


def test_contestants_take_turns_in_alternating_order() -> None:
    a, b = Contestant("a", MODULE, {}), Contestant("b", MODULE, {})
    asks = {"small": {"name": "small", "work": 10}, "large": {"name": "large", "work": 3_000_000}}
    found = compete([a, b], asks, Conditions(rounds=2, threads=1))
    at = {(name, ask): found[name]["asks"][ask]["at"] for name in "ab" for ask in asks}
    played = sorted((when, name, ask) for (name, ask), times in at.items() for when in times)
    assert [(name, ask) for _, name, ask in played] == [
        ("a", "small"), ("b", "small"), ("a", "large"), ("b", "large"),
        ("b", "small"), ("a", "small"), ("b", "large"), ("a", "large"),
    ]  # fmt: skip
    assert least(found, "a", "large") == min(found["a"]["asks"]["large"]["cpu"])
    assert (least(found, "a", "large") or 0) > (least(found, "a", "small") or 0)
    assert middle(found, "b", "small", "threads") == 1
    assert found["a"]["peak_mb"] > 1  # an interpreter holds more than a megabyte
    assert found["a"]["peak_mb"] < 200  # and not the memory of this process, with torch in it


def test_alone_each_has_the_machine_to_itself() -> None:
    asks = {"x": {"name": "x", "work": 10}}
    found = compete([Contestant(name, MODULE, {}) for name in "ab"], asks, Conditions(rounds=3, alone=True))
    assert list(found) == ["a", "b"]
    assert max(found["a"]["asks"]["x"]["at"]) < min(found["b"]["asks"]["x"]["at"])


def test_absent_and_broken_contestants_do_not_stop_the_others() -> None:
    everybody = [
        Contestant("well", MODULE, {}),
        Contestant("absent", MODULE, {}, "no_such_package_anywhere"),
        Contestant("early", MODULE, {"breaks": ""}),
        Contestant("late", MODULE, {"breaks": "second"}),
    ]
    asks = {name: {"name": name, "work": 1} for name in ("first", "second", "third")}
    found = compete(everybody, asks, Conditions(rounds=2))
    assert list(found) == ["well", "absent", "early", "late"]
    assert {ask: len(figures["cpu"]) for ask, figures in found["well"]["asks"].items()} == dict.fromkeys(asks, 2)
    assert found["absent"] == {"absent": "no_such_package_anywhere is in none of 1 interpreters"}
    assert found["early"] == {"failed": "ValueError: broken before the first round"}
    assert found["late"] == {"failed": "ValueError: broken in a round"}
    assert least(found, "late", "first") is None and middle(found, "absent", "first", "cpu") is None


def test_an_interpreter_is_found_by_what_it_has(tmp_path: Path) -> None:
    assert interpreter("json", ()) == interpreter("", ())
    assert interpreter("no_such_package_anywhere", (str(tmp_path / "no-python"),)) is None


# -- the work ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), episodes=st.integers(1, 20), group=st.integers(1, 8))
def test_conversations_are_ragged_and_share_what_groups_share(seed: int, episodes: int, group: int) -> None:
    talks = work.conversations(VOCABULARY, episodes, group=group, seed=seed)
    assert len(talks) == episodes
    assert len({tuple(talk["opening"][:40]) for talk in talks}) == 1  # the instructions
    for i, talk in enumerate(talks):
        assert talk["opening"] == talks[i - i % group]["opening"]
        assert 60 <= len(talk["opening"]) <= 140 and len(talk["replies"]) == 3
        assert all(10 <= len(reply) <= 50 for reply in talk["replies"])
        ids = [*talk["opening"], *(token for reply in talk["replies"] for token in reply)]
        assert all(work.FIRST <= token < VOCABULARY for token in ids)
    assert talks == work.conversations(VOCABULARY, episodes, group=group, seed=seed)


def test_episodes_hold_the_conversation_and_mark_what_was_sampled() -> None:
    talks = work.conversations(VOCABULARY, 3)
    for talk, episode in zip(talks, work.episodes(talks, VOCABULARY, new=5)):
        ids, action = np.array(episode["ids"]), np.array(episode["action"], bool)
        heard = [token for part in (talk["opening"], *talk["replies"]) for token in part]
        assert ids[~action].tolist() == heard
        assert action.sum() == 4 * 5 and action[-1] and not action[: len(talk["opening"])].any()


def test_trl_is_handed_the_same_tokens() -> None:
    made = work.episodes(work.conversations(VOCABULARY, 4), VOCABULARY, new=5)
    rows = trl_grpo.given(made)([], None)
    for i, episode in enumerate(made):
        prompt, completion, mask = rows["prompt_ids"][i], rows["completion_ids"][i], rows["env_mask"][i]
        assert prompt + completion == episode["ids"]
        assert [0] * len(prompt) + mask == episode["action"] and mask[0] == 1
        assert len(rows["logprobs"][i]) == len(completion)


def test_trl_converses_on_the_whole_history(tiny_policy: Policy) -> None:
    talks = work.conversations(VOCABULARY, 4)

    class Trainer:
        model = tiny_policy.model

    rows = trl_grpo.conversing({"episodes": talks, "new": 3})([], Trainer)
    for i, talk in enumerate(talks):
        ids, mask = rows["prompt_ids"][i] + rows["completion_ids"][i], rows["env_mask"][i]
        heard = [token for part in (talk["opening"], *talk["replies"]) for token in part]
        off = [0] * len(rows["prompt_ids"][i]) + mask
        assert rows["prompt_ids"][i] == talk["opening"] and sum(mask) == 4 * 3
        assert [token for token, sampled in zip(ids, off) if not sampled] == heard


def test_the_scripted_user_says_its_script() -> None:
    env = work.ScriptedUser([["hello", "and then"], ["other"]], "be kind")
    obs, info = env.reset(options={"script": 0})
    assert obs == "hello" and [m["content"] for m in info["messages"]] == ["be kind", "hello"]
    obs, reward, terminated, _, _ = env.step("a bad banana")
    assert (obs, reward, terminated) == ("and then", 0.5, False)
    assert env.step("")[2] is True
    assert env.reset(options={"script": 1})[0] == "other" and env.step("x")[2] is True
    assert isinstance(env, gym.Env)


# -- the contestants ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lean", [None, False])
def test_all_decode_the_same_number_of_tokens(model: Model, lean: bool | None) -> None:
    job = {"task": "decode", "folder": str(model.folder), "prompts": work.prompts(VOCABULARY, 3, 20), "new": 5,
           "threads": 1, "lean": lean}  # fmt: skip
    for prepare in (ours.prepare, hf.prepare):
        play = prepare(job)
        for lanes in (1, 3, 3):
            answer = play({"lanes": lanes})
            assert answer["tokens"] == lanes * 5
            assert answer["cpu"] > 0 and answer["first_cpu"] > 0


def test_all_have_the_same_conversations(model: Model) -> None:
    talks = work.conversations(VOCABULARY, 5)
    job = {"task": "turns", "folder": str(model.folder), "conversations": talks, "lanes": 2, "threads": 1}
    for prepare in (ours.prepare, hf.prepare):
        play = prepare(job)
        fixed = play({"new": 4, "ends": []})
        assert fixed["tokens"] == 5 * 4 * 4 and fixed["episodes"] == 5
        ended = play({"new": 4, "ends": list(range(work.FIRST, VOCABULARY))})  # nearly every token ends a turn
        assert 5 * 4 <= ended["tokens"] < fixed["tokens"]


class Recording(hf.Generator):
    """Keeps what it was asked to go on with."""

    def generate(self, histories: Sequence[Sequence[int]], new: int, ends: Sequence[int] = ()) -> list[list[int]]:
        self.seen = [*getattr(self, "seen", []), [list(history) for history in histories]]
        return super().generate(histories, new, ends)


def test_the_generate_loop_feeds_the_whole_history_on_every_turn(tiny_policy: Policy) -> None:
    talks = work.conversations(VOCABULARY, 2)
    generator = Recording(tiny_policy.model)
    assert generator.converse(talks, {"new": 3, "ends": []}) == 2 * 4 * 3
    assert len(generator.seen) == 4
    for before, after, turn in zip(generator.seen, generator.seen[1:], range(3)):
        for row, talk in enumerate(talks):
            assert after[row][: len(before[row])] == before[row]
            assert after[row][len(before[row]) + 3 :] == talk["replies"][turn]


def test_a_turn_ends_with_the_first_of_its_ends(tiny_policy: Policy) -> None:
    ends = list(range(150, VOCABULARY))
    for row in hf.Generator(tiny_policy.model).generate([[40, 50], [60]], 30, ends):
        assert not set(row[:-1]) & set(ends) and (row[-1] in ends or len(row) == 30)


def test_the_learner_trains_on_what_it_is_given(model: Model) -> None:
    made = work.episodes(work.conversations(VOCABULARY, 8, group=4), VOCABULARY, new=5)
    play = ours.prepare({"task": "learn", "folder": str(model.folder), "episodes": made, "group": 4, "threads": 1})
    answer = play({})
    assert answer["tokens"] == sum(len(episode["ids"]) for episode in made) and answer["episodes"] == 8
    taken = play({"profile": True})
    assert sum(taken["shares"].values()) == pytest.approx(1, abs=1e-6)
    assert taken["shares"]["products"] > 0 and taken["shares"]["optimiser"] > 0


def test_given_episodes_become_ours(tiny_policy: Policy) -> None:
    [made] = work.episodes(work.conversations(VOCABULARY, 1), VOCABULARY, new=5)
    episode = ours._episode(tiny_policy, 3, {**made, "reward": 2.0})
    assert episode.ids.tolist() == made["ids"] and episode.action.tolist() == [bool(a) for a in made["action"]]
    assert set(episode.turn.tolist()) == {-1, 0, 1, 2, 3}
    assert np.bincount(episode.turn[episode.action]).tolist() == [5] * 4
    assert episode.rewards.tolist() == [0, 0, 0, 2] and episode.group == 3
    assert (episode.logp[episode.action] < 0).all() and not episode.logp[~episode.action].any()


def test_both_have_the_same_scripted_conversations(model: Model) -> None:
    rng = np.random.default_rng(0)
    scripts = [training._script(rng, 3) for _ in range(2)]
    talks = training._talks(model, scripts, "be kind")
    users = [script for script in scripts for _ in range(2)]
    job = {"task": "train", "folder": str(model.folder), "scripts": users, "instructions": "be kind", "group": 2,
           "new": 4, "learning_rate": 1e-6, "threads": 1}  # fmt: skip
    answer = ours.prepare(job)({})
    assert answer["episodes"] == 4 and answer["tokens"] == 4 * 3 * 4 and 0 <= answer["informative"] <= 1
    heard = sum(2 * (len(talk["opening"]) + sum(map(len, talk["replies"]))) for talk in talks)
    # An end marker that was sampled stands for the template's own: at most one token a reply.
    assert heard - 4 * 2 <= answer["context"] - answer["tokens"] <= heard


def test_an_iteration_of_the_quick_suite_says_where_its_time_went() -> None:
    play = ours.prepare({"task": "service", "model": "nano", "episodes": 8, "threads": 1})
    answer = play({"env": "CustomerService-v0", "algorithm": "grpo"})
    assert answer["episodes"] == 8 and answer["sampled"] < answer["tokens"]
    part = {"contestants": {service.OURS: {"asks": {"x": {name: [value] for name, value in answer.items()}}}}}
    shares = service.shares(part, "x")
    assert sum(shares.values()) == pytest.approx(1) and shares["engine"] > 0 and shares["optimise"] > 0
    assert service.shares(part, "y") == {}


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_stopwatch_counts_products() -> None:
    a, b = torch.rand(128, 256), torch.rand(64, 256)
    with profile.Stopwatch() as watch:
        for _ in range(3):
            torch.mm(a, b.t())
    [product] = watch.products.values()
    assert (product.m, product.k, product.n, product.calls) == (128, 256, 64, 3)
    assert product.operations == 2 * 128 * 256 * 64 and product.strides == ((256, 1), (1, 256))
    assert product.seconds == watch.seconds["mm"] > 0


def test_what_is_all_product_is_near_its_limit_and_counted_whole() -> None:
    a, b = torch.rand(512, 512), torch.rand(512, 512)
    taken = profile.of_update(lambda: [torch.mm(a, b) for _ in range(20)])
    assert set(taken["operations"]) == {"mm"} and taken["shares"]["products"] == pytest.approx(taken["large_share"])
    assert taken["of_limit"] == pytest.approx(taken["gflops"] / taken["limit_gflops"]) and taken["of_limit"] > 0


# -- marks and pages ---------------------------------------------------------------------------------------------------


def _entry(**asks: Mapping[str, Any]) -> dict[str, Any]:
    return {"versions": {}, "peak_mb": 100.0, "asks": asks}


@pytest.fixture
def parts() -> dict[str, Any]:
    """Figures chosen by hand: two parts, a peer that is absent, one that broke down."""
    one, two = {"cpu": [0.5, 0.4], "wall": [1.0, 1.0]}, {"cpu": [2.0, 1.6], "wall": [4.0, 4.0]}
    decoding = {
        "parameters": 1_918_656, "note": "random weights", "prompt": 100, "new": 48, "group": 1, "lanes": [64],
        "threads": 1, "rounds": 2,
        "contestants": {
            decode.ENGINE: _entry(**{"64": {**one, "first_cpu": [0.2, 0.1]}}),
            decode.GENERATE: _entry(**{"64": {**two, "first_cpu": [0.4, 0.4]}}),
            decode.VLLM: {"absent": "vllm is in none of 1 interpreters"},
        },
    }  # fmt: skip
    update = {
        "parameters": 134_515_008, "note": "", "episodes": 8, "tokens": 1200, "sampled": 384, "threads": 1, "rounds": 2,
        "profile": {},
        "contestants": {
            learner.OURS: _entry(update=one),
            learner.TRL: _entry(update={**two, "generation_cpu": [0.2, 0.4]}) | {"peak_mb": 400.0},
        },
    }  # fmt: skip
    facts = {"started": "2026-01-01T00:00:00Z", "load": 1.5, "commit": {"id": "f" * 40, "changed": True}}
    return {
        "decode": {"reference": decoding | {"measured": facts}},
        "learner": {"smollm2": update | {"measured": facts}},
    }


def test_marks_are_ratios_of_the_least_cpu_seconds(parts: dict[str, Any]) -> None:
    found = {mark.about: mark for mark in marks.marks(parts)}
    assert found["decode, reference, 64 lanes, over HF generate"].value == pytest.approx(4.0)
    assert found["decode, reference, 64 lanes, over HF generate"].met is True
    assert found["decode, reference, 64 lanes, over vLLM"].met is None
    # TRL's least training half: min(2.0 - 0.2, 1.6 - 0.4) = 1.2, ours 0.4.
    assert found["SmolLM2-135M, update, over TRL's training half"].value == pytest.approx(3.0)
    memory = found["SmolLM2-135M, peak memory of an update, of TRL's"]
    assert memory.value == pytest.approx(25.0) and memory.met is True
    assert marks.Mark("", 60, 61.0, "%", at_most=True).met is False


def test_decoding_alone_leaves_out_the_prompt(parts: dict[str, Any]) -> None:
    part = parts["decode"]["reference"]
    assert decode.rate(part, decode.ENGINE, 64) == pytest.approx(64 * 48 / 0.4)
    assert decode.decoding_rate(part, decode.ENGINE, 64) == pytest.approx(64 * 47 / (0.4 - 0.1))
    assert decode.rate(part, decode.VLLM, 64) is None and decode.decoding_rate(part, decode.VLLM, 64) is None


def _provenance(parts: dict[str, Any]) -> dict[str, Any]:
    machine = {"processor": "Test CPU", "cores": 2}
    return {"machine": machine, "versions": dict.fromkeys(("python", "torch", "transformers"), "1"), "parts": parts}


def test_a_page_holds_the_figures_and_keeps_its_text(parts: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "speed.md"
    target.write_text(f"# Speed\n\n{FIGURES[0]}\nold\n{FIGURES[1]}\n\nAfter.\n")
    page.write(target, _provenance(parts))
    text = target.read_text()
    assert text.startswith("# Speed\n\n") and text.endswith("\n\nAfter.\n") and "old" not in text
    assert "| reference, 64 lanes | engine | 7,680 | 10,027 | 4.0x |" in text
    assert "| reference, 64 lanes | vLLM | - | - | - |" in text
    assert "Not measured: reference, vLLM: vllm is in none of 1 interpreters." in text
    assert "| decode, reference, 64 lanes, over HF generate | >= 3x | 4x | met |" in text
    assert "### Environments" not in text  # not measured
    assert json.loads(target.with_suffix(".json").read_text()) == _provenance(parts)


def test_a_page_without_markers_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "speed.md"
    target.write_text("# Speed\n")
    with pytest.raises(ConfigError, match="expected one line"):
        page.write(target, _provenance(parts))
    assert target.read_text() == "# Speed\n" and not target.with_suffix(".json").exists()


def test_the_published_page_is_made_from_its_json() -> None:
    figures = PAGE.with_suffix(".json").read_text("utf-8")
    assert f"{FIGURES[0]}\n{page.render(json.loads(figures))}\n{FIGURES[1]}" in PAGE.read_text("utf-8")
    assert not [folder for folder in ("/tmp", "/root", "/home", "/work") if folder in figures]  # nothing of the machine


def test_the_command_measures_one_part_and_keeps_the_others(
    parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "speed.md"
    target.write_text(f"{FIGURES[0]}{FIGURES[1]}")
    page.write(target, _provenance(parts))
    main(["--only", "envs", "--quick", "--write", str(target)])
    written = json.loads(target.with_suffix(".json").read_text())
    assert set(written["parts"]) == {"decode", "learner", "envs"} and written["parts"]["decode"] == parts["decode"]
    assert json.loads(capsys.readouterr().out) == written
    rows = written["parts"]["envs"]["all"]["envs"]
    assert len(rows) >= 16 and all(row["steps_per_second"] > 0 for row in rows)
    assert "convgym/CustomerService-v0" in target.read_text()


def test_a_section_says_when_each_model_was_measured(parts: dict[str, Any]) -> None:
    assert "*Measured 2026-01-01T00:00:00Z, load 1.5 at the start, commit ffffffffff with changes.*" in page.section(
        "decode", parts["decode"]
    )
    later = parts["decode"]["reference"] | {"measured": {"started": "2026-02-02", "load": 0.1, "commit": {}}}
    both = page.section("decode", parts["decode"] | {"nano": later})
    assert "nano: 2026-02-02, load 0.1 at the start, commit none.*" in both


def test_games_of_others_are_rated_by_moves() -> None:
    answers = {"cpu": [0.5, 0.25], "steps": [1000, 1000], "resets": [100, 100]}
    part = {"games": {"gem": _entry(maze=answers), "textarena": {"absent": "no"}}}
    assert envs.game_rates(part) == [("gem", "maze", 4000.0, 10.0)]


def test_turn_rates_are_episodes_per_cpu_second() -> None:
    part = {"episodes": 32, "contestants": {turns.ENGINE: _entry(**{turns.FIXED: {"cpu": [4.0, 2.0]}})}}
    assert turns.rate(part, turns.ENGINE) == 16.0 and turns.rate(part, turns.GENERATE) is None


def test_models_are_made_or_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="reference"):
        models.make("referense", tmp_path)
    made = models.make("nano", tmp_path)
    assert (made.folder / "config.json").is_file() and made.parameters > 300_000
