"""A checkpoint is whole or absent, whatever happens while it is written or afterwards."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algos.learner import checkpoint
from algos.learner.checkpoint import MANIFEST, load, newest, save
from algos.learner.learner import Learner
from algos.policies.load import Policy
from convgym.errors import CheckpointError
from tests.algos.learner.made import conversations, learner_of, weights


def tensors_at(step: int) -> dict[str, dict[str, Tensor]]:
    """Tensors that all say which step they are of."""
    return {
        "model": {"w": torch.full((64, 8), float(step))},
        "optimiser": {"m": torch.full((64,), float(step))},
    }


def assert_whole(found: checkpoint.Checkpoint) -> None:
    """All parts are of the same step."""
    assert found.state == {"at": found.step}
    assert set(found.tensors) == {"model", "optimiser"}
    for part, named in tensors_at(found.step).items():
        for name, expected in named.items():
            assert torch.equal(found.tensors[part][name], expected)


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 20, tensors_at(20), {"at": 20})
    assert path.name == "step-000020"
    found = load(path)
    assert found.step == 20
    assert_whole(found)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_the_newest_is_found_and_only_the_last_ones_stay(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    for step in (2, 4, 10, 1_000_000):
        save(tmp_path, step, tensors_at(step), {"at": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-1000000"]
    found = newest(tmp_path)
    assert found is not None
    assert_whole(found)
    assert found.step == 1_000_000


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json", MANIFEST])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(
    tmp_path: Path, name: str, harm: str
) -> None:
    for step in (1, 2):
        save(tmp_path, step, tensors_at(step), {"at": step})
    path = tmp_path / "step-000002" / name
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match="step-000002 is damaged"):
        load(path.parent)
    with pytest.warns(UserWarning, match="the one before"):
        found = newest(tmp_path)
    assert found is not None and found.step == 1
    assert_whole(found)


def test_every_single_byte_counts(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"model": {"w": torch.arange(3.0)}}, {"at": 1}) / "model.safetensors"
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(CheckpointError):
            load(path.parent)


def test_if_all_are_damaged_nothing_is_made_up(tmp_path: Path) -> None:
    save(tmp_path, 1, tensors_at(1), {"at": 1})
    (tmp_path / "step-000001" / "state.json").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="All 1 checkpoints"):
        newest(tmp_path)


class Bomb:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "optimiser.pt", "state.json"])
def test_a_malicious_pickle_is_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    path = save(tmp_path / "checkpoints", 1, tensors_at(1), {"at": 1})
    bomb = pickle.dumps(Bomb(mark))
    (path / name).write_bytes(bomb)
    manifest = json.loads((path / MANIFEST).read_text())  # even one whose hashes were made to fit
    manifest["files"][name] = {"bytes": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        load(path)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # the bomb was a real one


@pytest.mark.parametrize("name", ["../state.json", "/etc/hostname", "sub/x.safetensors", ""])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "checkpoints", 1, tensors_at(1), {"at": 1})
    (path.parent / "state.json").write_text("{}")
    data = b"{}"
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"format": 99, "step": 1, "files": {}}', "\x00", '{"files": 3}']
)
def test_a_senseless_manifest_is_an_error(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1, tensors_at(1), {"at": 1})
    (path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        load(path)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As on a full disk: writing more fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 1500])
def test_a_disk_that_is_full_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, size: int) -> None:
    save(tmp_path, 1, tensors_at(1), {"at": 1})
    with no_file_larger_than(size), pytest.raises(CheckpointError, match="Earlier checkpoints are untouched"):
        save(tmp_path, 2, tensors_at(2), {"at": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    found = newest(tmp_path)
    assert found is not None
    assert_whole(found)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Could not write"):
        save(tmp_path / "file" / "checkpoints", 1, tensors_at(1), {"at": 1})


def save_for_ever(root: Path, step: int) -> None:
    """Saves one checkpoint after the other until killed."""
    while True:
        step += 1
        save(root, step, tensors_at(step), {"at": step})


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.algos.learner.test_checkpoint"])
    rng = random.Random(0)
    step, torn = 0, 0
    for _ in range(25):
        process = context.Process(target=save_for_ever, args=(tmp_path, step))
        process.start()
        while not list(tmp_path.glob("step-*")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.03))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        torn += bool(list(tmp_path.glob(".tmp-*")))
        found = newest(tmp_path)  # a warning would be an error here: a kill damages nothing
        assert found is not None and found.step >= step
        assert_whole(found)
        step = found.step
    assert torn > 0, "no kill came in the middle of a save"
    save(tmp_path, step + 1, tensors_at(step + 1), {"at": step + 1})
    assert not list(tmp_path.glob(".tmp-*"))  # the next save sweeps up


# -- the learner's state -----------------------------------------------------------------------------------


def saved(learner: Learner, root: Path) -> checkpoint.Checkpoint:
    tensors, state = learner.snapshot()
    return load(save(root, learner.step, tensors, {"learner": state}))


@pytest.mark.parametrize("algorithm", ["reinforce", "grpo", "ppo"])
def test_a_restored_learner_goes_on_bitwise(tiny_policy: Policy, tmp_path: Path, algorithm: str) -> None:
    batches = [conversations(tiny_policy, seed=seed) for seed in range(4)]
    settings: dict[str, Any] = {"schedule": "cosine", "updates": 4, "kl_limit": 1e-6}
    whole = learner_of(tiny_policy, algorithm, **settings)
    first = learner_of(tiny_policy, algorithm, **settings)
    for batch in batches[:2]:
        whole.update(batch)
        first.update(batch)
    second = learner_of(tiny_policy, algorithm, **settings)
    second.restore(saved(first, tmp_path))
    torch.manual_seed(99)
    for batch in batches[2:]:
        ours, theirs = (
            {name: x for name, x in learner.update(batch).items() if not name.startswith(("seconds", "model_tflops"))}
            for learner in (second, whole)
        )
        assert ours == theirs
    theirs_weights = weights(whole)
    assert all(torch.equal(x, theirs_weights[name]) for name, x in weights(second).items())
    ours_tensors, ours_state = second.snapshot()
    their_tensors, their_state = whole.snapshot()
    assert ours_state == their_state
    for part in ours_tensors:
        assert ours_tensors[part].keys() == their_tensors[part].keys()
        for name, x in ours_tensors[part].items():
            assert name == "torch_rng" or torch.equal(x, their_tensors[part][name]), name


def test_the_global_generator_is_restored(tiny_policy: Policy, tmp_path: Path) -> None:
    learner = learner_of(tiny_policy, "grpo")
    found = saved(learner, tmp_path)
    expected = torch.rand(3)
    torch.manual_seed(5)
    learner.restore(found)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_another_model_is_refused_and_harms_nothing(
    tiny_policy: Policy, tmp_path: Path
) -> None:
    from algos.policies.embedded import Shape, new_model
    from algos.policies.load import make_policy

    other = new_model(Shape(layers=2, hidden=16, heads=2, mlp=32, vocab=320), tiny_policy.tokenizer)
    found = saved(learner_of(make_policy(other, tiny_policy.tokenizer), "grpo"), tmp_path / "a")
    learner = learner_of(tiny_policy, "grpo")
    before = weights(learner)
    with pytest.raises(CheckpointError, match="another model"):
        learner.restore(found)
    assert all(torch.equal(before[name], x) for name, x in weights(learner).items())
    without_critic = saved(learner_of(tiny_policy, "grpo"), tmp_path / "b")
    with pytest.raises(CheckpointError, match="critic"):
        learner_of(tiny_policy, "ppo").restore(without_critic)
