"""Runs from end to end: what they leave behind, that they learn, and that they can always be finished."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import socket
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import algos
from algos.base import Minibatch, Scores
from algos.learner.checkpoint import load, newest
from algos.policies.load import Policy, load_policy
from algos.reinforce import Reinforce
from algos.training.config import RunConfig
from algos.training.evaluate import evaluate
from algos.training.run import Run, eval_requests, shuffled_rewards
from algos.training.train import RunResult, train
from convgym.errors import CheckpointError, ConfigError, ConvgymError, DivergedError, EnvError
from tests.algos.learner.made import conversations
from tests.algos.training.made import run_config

CLOCKS = {"cpu_seconds", "tokens_per_second", "model_tflops", "mfu"}


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what a clock says."""
    return [{k: v for k, v in r.items() if k not in CLOCKS and not k.startswith("seconds")} for r in history]


def assert_nested(record: dict[str, Any], whole: str, parts: tuple[str, ...]) -> None:
    """Parts that lie inside a phase, one after the other, each of them timed."""
    seconds = [record[f"seconds_{part}"] for part in parts]
    assert min(seconds) > 0 and sum(seconds) <= record[f"seconds_{whole}"] + 1e-6


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Equal to the last bit: metrics, weights, optimiser, counts."""
    one, two = (timeless(RunResult.read(folder).history) for folder in (ours, theirs))
    assert one == two
    left, right = (newest(folder / "checkpoints") for folder in (ours, theirs))
    assert left is not None and right is not None and left.step == right.step
    assert left.tensors.keys() == right.tensors.keys()
    for part, named in left.tensors.items():
        assert named.keys() == right.tensors[part].keys()
        assert all(torch.equal(x, right.tensors[part][name]) for name, x in named.items()), part
    for found in (left, right):
        for clock in ("seconds", "cpu_seconds"):
            found.state["counts"].pop(clock)
    assert left.state == right.state


# -- what a run leaves behind ------------------------------------------------------------------------------


def test_a_run_leaves_its_records_checkpoints_and_policy(model_folder: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, tmp_path / "run", eval_modes=("sample", "greedy"), tensorboard=True)
    result = train(config)
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "samples.jsonl",
        "tb",
        "checkpoints",
        "policy",
        "result.json",
    }
    assert RunConfig.load(result.folder) == config.resolved()

    evaluations = [r for r in result.history if r["kind"] == "eval"]
    assert [(r["step"], r["mode"]) for r in evaluations] == [
        (step, mode) for step in (0, 2, 4) for mode in ("sample", "greedy")
    ]
    updates = [r for r in result.history if r["kind"] == "train"]
    assert [r["step"] for r in updates] == [1, 2, 3, 4]
    assert [r["episodes"] for r in updates] == [16, 32, 48, 64]
    for record in updates:
        for name in (
            "return",
            "success",
            "score",
            "turns",
            "loss",
            "kl",
            "entropy",
            "clip_share",
            "grad_norm",
            "lr",
        ):
            assert math.isfinite(record[name]), name
        assert record["turns"] == 2
        assert record["reward/letters"] == pytest.approx(record["return"])
        assert_nested(record, "rollout", ("engine", "env", "chat"))
        assert_nested(record, "update", ("observe", "credit", "optimise", "monitor"))
        assert record["model_tflops"] > 0 and "mfu" not in record  # no processor is in the table
    assert [record["seconds_save"] > 0 for record in updates] == [False, False, True, False]  # saved after 2 and 4
    assert all(record["seconds_eval"] > 0 for record in evaluations)
    assert result.status == result.result["status"] == "done"
    assert [result.result["start"], result.result["final"]] == timeless([evaluations[0], evaluations[-2]])
    assert result.result["action_tokens"] == updates[-1]["action_tokens"]
    assert result.result["seconds"] > 0 and result.result["cpu_seconds"] > 0 and result.result["peak_memory_mb"] > 0

    samples = [json.loads(line) for line in (result.folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3 * 2 * 3
    assert [m["role"] for m in samples[0]["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert samples[0]["messages"][0]["content"].startswith("val ")  # held out


def test_the_exported_policy_is_an_ordinary_folder_with_the_last_weights(model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = train(run_config(model_folder, tmp_path / "run", algo="ppo"))
    model = AutoModelForCausalLM.from_pretrained(result.folder / "policy")
    assert AutoTokenizer.from_pretrained(result.folder / "policy").chat_template
    last = load(result.folder / "checkpoints" / "step-000004").part("model")
    exported = dict(model.named_parameters())
    assert all(torch.equal(exported[name], x) for name, x in last.items())


LONGER: dict[str, Any] = {"updates": 20, "episodes_per_update": 32, "eval_every": 20, "eval_episodes": 64}


def gain(model_folder: Path, out: Path, **changes: Any) -> float:
    """How much return a run adds to its untrained start."""
    result = train(run_config(model_folder, out, **LONGER, **changes)).result
    return float(result["final"]["return"] - result["start"]["return"])


@pytest.mark.parametrize(("algo", "rate"), [("reinforce", 1e-2), ("grpo", 1e-2), ("ppo", 3e-3)])
def test_every_algorithm_learns(model_folder: Path, tmp_path: Path, algo: str, rate: float) -> None:
    assert gain(model_folder, tmp_path / "run", algo=algo, learning_rate=rate) > 0.35


def test_shuffled_rewards_teach_nothing(model_folder: Path, tmp_path: Path) -> None:
    settings = {"algo": "reinforce", "learning_rate": 1e-2, "control": "shuffled_rewards"}
    gains = [gain(model_folder, tmp_path / f"{seed}", seed=seed, **settings) for seed in (0, 1, 2)]
    assert statistics.median(gains) < 0.1


def test_evaluating_a_run_repeats_its_own_evaluation(model_folder: Path, tmp_path: Path) -> None:
    result = train(run_config(model_folder, tmp_path / "run"))
    again = evaluate(result.folder, episodes=8)
    assert {name: again[name] for name in ("success", "return", "score", "turns")} == {
        name: result.result["final"][name] for name in ("success", "return", "score", "turns")
    }
    assert evaluate(result.folder, episodes=3, greedy=True)["episodes"] == 3
    with pytest.raises(ConfigError, match="folder of a run"):
        evaluate(tmp_path)


def test_algorithms_meet_the_same_conversations(model_folder: Path, tmp_path: Path) -> None:
    """Common random numbers: the first iteration and the untrained evaluation are equal for all."""
    first: list[list[dict[str, Any]]] = []
    for algo in ("reinforce", "grpo", "ppo"):
        history = train(run_config(model_folder, tmp_path / algo, algo=algo, updates=1)).history
        kept = ("step", "return", "tokens_per_episode", "turns", "score")
        first.append([{name: r[name] for name in kept} for r in history[:2]])
    assert first[0] == first[1] == first[2]


def test_no_scenario_comes_twice_and_each_is_met_by_a_whole_group(model_folder: Path, tmp_path: Path) -> None:
    run = Run(run_config(model_folder, tmp_path / "run"))
    seen: list[int] = []
    for _ in range(3):
        episodes = run.collect()
        run.log(episodes, run.update(episodes), rollout=1.0, update=1.0)
        assert all(episode.version == run.step - 1 for episode in episodes)
        seen += [episode.env_seed for episode in episodes]
    assert set(Counter(seen).values()) == {4}
    assert len(set(seen)) == 3 * 4
    held_out = {request.env_seed for request in eval_requests(run.config.seed, 64, "val")}
    assert held_out.isdisjoint(seen)


def test_patience_stops_a_run_that_gets_no_better(model_folder: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, tmp_path / "run", updates=50, eval_every=1, patience=2, learning_rate=1e-12)
    result = train(config)
    assert result.status == "done"
    assert [r["step"] for r in result.history if r["kind"] == "train"] == [1, 2]


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "tests/Leters-v0"}, "Unknown environment"),
        ({"env_kwargs": {"breaks": 7}}, "expected a share"),
        ({"env_kwargs": {"brakes": 0.5}}, "brakes"),
        ({"model": "/nonexistent"}, "No model"),
        ({"max_context": 10**9}, "max_context|context|capacity"),
        ({"wandb": "project"}, "wandb"),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing(
    model_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConvgymError, match=message):
        train(replace(run_config(model_folder, tmp_path / "runs" / "run"), **changes))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_refused(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="choose another, or resume"):
        train(run_config(model_folder, tmp_path))
    with pytest.raises(ConfigError, match="folder of a run"):
        train(run_config(model_folder, tmp_path), resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_run_cannot_be_resumed(model_folder: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, tmp_path / "run", updates=2)
    train(config)
    with pytest.raises(ConfigError, match=r"seed \(0 -> 1\)"):
        train(replace(config, seed=1), resume=True)


def test_broken_conversations_are_set_aside_and_counted(model_folder: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, tmp_path / "run", env_kwargs={"breaks": 0.3}, max_failures=0.9)
    result = train(config)
    asked = 4 * 16 + 3 * 8
    lines = (result.folder / "failures.jsonl").read_text().splitlines()
    assert 0 < len(lines) == result.result["failures"] < asked
    assert "the shop is closed" in json.loads(lines[0])["error"]
    episodes = result.result["episodes"]
    evaluated = sum(r["episodes"] for r in result.history if r["kind"] == "eval")
    assert episodes + evaluated + len(lines) == asked


def test_too_many_broken_conversations_stop_the_run(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="the shop is closed"):
        train(run_config(model_folder, tmp_path / "run", env_kwargs={"breaks": 0.5}, max_failures=0.1))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "EnvError" in result["error"]


def test_conversations_that_fill_the_context_are_truncated_and_counted(model_folder: Path, tmp_path: Path) -> None:
    # The second turn's user has no room any more, whatever was said in the first.
    result = train(run_config(model_folder, tmp_path / "run", max_context=16, updates=2))
    assert result.result["failures"] == 0
    records = [r for r in result.history if r["kind"] == "train"]
    assert len(records) == 2
    for record in records:
        assert record["context_full"] == record["truncated"] == 1.0 and record["turns"] == 1.0
    roomy = train(run_config(model_folder, tmp_path / "roomy", updates=1))
    assert [r["context_full"] for r in roomy.history if r["kind"] == "train"] == [0.0]


def test_openings_that_do_not_fit_are_failures_that_say_so(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"leave no room for a turn in a context of 8; use a larger max_context"):
        train(run_config(model_folder, tmp_path / "run", max_context=8))
    lines = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
    assert all("CapacityError" in json.loads(line)["error"] for line in lines) and lines


@dataclass(frozen=True, kw_only=True)
class Diverging(Reinforce):
    """REINFORCE that overflows."""

    def loss(self, scores: Scores, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(scores, batch)
        return loss * math.inf, metrics


def test_a_diverging_run_stops_and_says_so(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "diverging", Diverging)
    with pytest.raises(DivergedError):
        train(run_config(model_folder, tmp_path / "run", algo="diverging", updates=9))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed" and "DivergedError" in result["error"]
    found = newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    start = load_weights(model_folder)
    assert all(torch.equal(start[name], x) for name, x in found.part("model").items())  # unharmed


def load_weights(folder: Path) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load_policy(folder).model.named_parameters()}


# -- interruptions -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each algorithm a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    return {algo: train(run_config(model_folder, root / algo, algo=algo)).folder for algo in ("grpo", "ppo")}


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_two_halves_are_a_whole_to_the_last_bit(
    model_folder: Path, tmp_path: Path, whole: dict[str, Path], algo: str
) -> None:
    config = run_config(model_folder, tmp_path / "run", algo=algo, updates=2)
    train(config)
    train(replace(config, updates=4), resume=True)
    assert_same_run(tmp_path / "run", whole[algo])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_resuming_finishes(
    model_folder: Path,
    tmp_path: Path,
    whole: dict[str, Path],
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Run.log

    def log_and_signal(self: Run, *args: Any, **times: Any) -> None:
        log(self, *args, **times)
        if self.step == 3:
            os.kill(os.getpid(), number)

    config = run_config(model_folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_and_signal)
        result = train(config)
    assert result.status == "interrupted"
    assert not (result.folder / "result.json").exists() and not (result.folder / "policy").exists()
    assert (result.folder / "checkpoints" / "step-000003").is_dir()
    assert evaluate(result.folder, episodes=2)["episodes"] == 2  # it can be looked at already
    assert train(config, resume=True).status == "done"
    assert_same_run(result.folder, whole["grpo"])


def run_to_the_end(config: RunConfig) -> None:
    train(config, resume=True)


def test_a_run_killed_at_any_moment_is_finished_as_if_nothing_had_happened(
    model_folder: Path, tmp_path: Path, whole: dict[str, Path]
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.algos.learner.test_checkpoint"])
    config = run_config(model_folder, tmp_path / "run", save_every=1, keep=1)
    rng, kills = random.Random(0), 0
    for _ in range(40):
        process = context.Process(target=run_to_the_end, args=(config,))
        process.start()
        while process.is_alive() and not (tmp_path / "run").exists():
            time.sleep(0.005)
        process.join(rng.uniform(0.0, 0.15))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if (tmp_path / "run" / "result.json").exists():
            break
    train(config, resume=True)
    assert kills > 0
    ours, theirs = (timeless(RunResult.read(folder).history) for folder in (tmp_path / "run", whole["grpo"]))
    assert ours == theirs
    one, two = (newest(folder / "checkpoints") for folder in (tmp_path / "run", whole["grpo"]))
    assert one is not None and two is not None
    assert all(torch.equal(x, two.part("model")[name]) for name, x in one.part("model").items())


def test_a_damaged_checkpoint_costs_only_its_updates(
    model_folder: Path, tmp_path: Path, whole: dict[str, Path]
) -> None:
    config = run_config(model_folder, tmp_path / "run")
    train(config)
    path = tmp_path / "run" / "checkpoints" / "step-000004" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (tmp_path / "run" / "metrics.jsonl").open("a").write('{"kind": "train", "st')  # a torn line, too
    with pytest.warns(UserWarning, match="the one before"):
        train(config, resume=True)
    assert_same_run(tmp_path / "run", whole["grpo"])
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="All 2"):
        train(config, resume=True)


def as_one_of_two(rank: int, port: int, config: RunConfig) -> None:
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    train(config)
    torch.distributed.destroy_process_group()


def test_two_processes_do_what_one_does(model_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"algo": "ppo", "updates": 2, "micro_tokens": 40}
    one = train(run_config(model_folder, tmp_path / "one", **settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.algos.learner.test_checkpoint"])
    config = run_config(model_folder, tmp_path / "two", **settings)
    processes = [context.Process(target=as_one_of_two, args=(rank, port, config)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for ours, theirs in zip(timeless(RunResult.read(tmp_path / "two").history), timeless(one.history), strict=True):
        # A share of tokens past a bound jumps if rounding moves one token over it.
        smooth = [name for name in theirs if not name.endswith("clip_share")]
        assert [ours[name] for name in smooth] == pytest.approx([theirs[name] for name in smooth], abs=1e-5)
    ours, theirs = (load_weights(tmp_path / name / "policy") for name in ("two", "one"))
    assert max(float((ours[name] - x).abs().max()) for name, x in theirs.items()) < 1e-5


# -- the control -------------------------------------------------------------------------------------------


def test_shuffling_deals_the_same_returns_to_other_conversations(tiny_policy: Policy) -> None:
    episodes = conversations(tiny_policy, 16)
    dealt = shuffled_rewards(episodes, seed=1)
    before, after = ([round(e.episode_return, 5) for e in rows] for rows in (episodes, dealt))
    assert Counter(before) == Counter(after)
    assert before != after
    assert after == [round(e.episode_return, 5) for e in shuffled_rewards(episodes, seed=1)]
    assert after != [round(e.episode_return, 5) for e in shuffled_rewards(episodes, seed=2)]
    for old, new in zip(episodes, dealt):
        assert new.ids is old.ids and new.group == old.group
        assert not new.rewards[:-1].any()
