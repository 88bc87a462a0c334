"""The fast path: whatever library multiplies, and however lanes are put together, the logits are the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from algos.policies import products
from algos.policies.products import rounded
from algos.rollout import engine as engines
from algos.rollout import lean
from algos.rollout.engine import Engine
from algos.rollout.lean import LeanForward
from tests.algos.rollout.test_engine import LEAN, VOCAB, build, close, ids_of, make_engine, talk


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: build(name) for name in LEAN}


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (40, 60)))


def whole(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(ids).logits.float()
    return logits


def feed(forward: LeanForward, ids: torch.Tensor, lengths: torch.Tensor, *, left: bool = False) -> torch.Tensor:
    """Feeds the beginning of each row to the slot of the same number, padded on either side."""
    q = int(lengths.max())
    positions = torch.arange(q).expand(len(lengths), q)
    positions = positions - (q - lengths)[:, None] if left else positions
    positions = torch.where((positions < 0) | (positions >= lengths[:, None]), -1, positions)
    tokens = ids[: len(lengths)].gather(1, positions.clamp_min(0))
    return forward.extend(tokens, positions, torch.arange(len(lengths)), q)


# -- forward passes ----------------------------------------------------------------------------


@pytest.mark.parametrize("large", [0, 2**62], ids=["oneDNN", "MKL"])
@pytest.mark.parametrize("name", LEAN)
def test_ragged_rows_are_those_of_a_full_forward(
    models: dict[str, Any], ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, name: str, large: int
) -> None:
    """Rows of 1 to 40 tokens, 257 in all (so that spare tokens are fed), padded on the left and on the right."""
    monkeypatch.setattr(products, "LARGE", large)
    lengths = torch.tensor([40, 1, 33, 40, 2, 17, 40, 9, 39, 36])
    assert rounded(int(lengths.sum())) > int(lengths.sum())
    expected = whole(models[name], ids[:10])
    for left in (False, True):
        forward = LeanForward(models[name], 10, 60)
        close(feed(forward, ids, lengths, left=left), expected[torch.arange(10), lengths - 1])
        for step in range(3):  # and their keys and values are what decoding needs, in all layers
            at = lengths + step
            logits = forward.step(ids[torch.arange(10), at], at, int(at.max()) + 1)
            close(logits, expected[torch.arange(10), at])


@pytest.mark.parametrize("near", [1, 3 * 2 * 48 * 12, 2**30], ids=["one lane", "some lanes", "all lanes"])
@pytest.mark.parametrize("name", LEAN)
def test_blocks_of_lanes_change_nothing(
    models: dict[str, Any], ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, name: str, near: int
) -> None:
    """Lengths at the edges of the columns that are rounded to 16, short lanes and long ones side by side."""
    monkeypatch.setattr(lean, "FAR", 0)
    monkeypatch.setattr(lean, "NEAR", near)
    lengths = torch.tensor([15, 16, 17, 31, 32, 33, 1, 47])
    forward = LeanForward(models[name], 8, 60)
    expected = whole(models[name], ids[:8])
    feed(forward, ids, lengths)
    for step in range(3):
        at = lengths + step
        logits = forward.step(ids[torch.arange(8), at], at, int(at.max()) + 1)
        close(logits, expected[torch.arange(8), at])


@pytest.mark.parametrize("name", LEAN)
def test_a_single_lane_is_as_one_of_many(models: dict[str, Any], ids: torch.Tensor, name: str) -> None:
    expected = whole(models[name], ids[:1])[0]
    forward = LeanForward(models[name], 3, 60)
    close(feed(forward, ids, torch.tensor([20])), expected[[19]])
    for at in range(20, 60):  # every remainder of the rounding
        close(forward.step(ids[0, [at]], torch.tensor([at]), at + 1), expected[[at]])


def test_lanes_added_for_round_numbers_touch_nothing(models: dict[str, Any], ids: torch.Tensor) -> None:
    model, n = models["llama_gqa_untied"], 35
    assert rounded(n) > n
    expected = whole(model, ids)
    for slots in (n, 40):  # no room for more lanes, and room
        forward = LeanForward(model, slots, 60)
        lengths = torch.full((slots,), 10)
        feed(forward, ids, lengths)
        at = lengths[:n]
        close(forward.step(ids[:n, 10], at, 11), expected[:n, 10])
        close(forward.step(ids[:n, 11], at + 1, 12), expected[:n, 11])
        close(forward.step(ids[:slots, 12], lengths + 2, 13)[:n], expected[:n, 12])
    # The lanes behind were silent, and have kept what they had.
    at = torch.cat([torch.full((n,), 13), torch.full((5,), 10)])
    close(forward.step(ids[torch.arange(40), at], at, 14), expected[torch.arange(40), at])


@pytest.mark.parametrize("name", ["llama_gqa_untied", "qwen2"])
def test_bfloat16_is_as_exact_as_the_models_own(ids: torch.Tensor, name: str) -> None:
    """Both differ from float32 by their roundings, which are not the same ones: neither may be far behind."""
    expected = whole(build(name), ids)
    model = build(name).to(torch.bfloat16)
    own = (whole(model, ids) - expected)[torch.arange(40), 39].abs().mean()
    logits = feed(LeanForward(model, 40, 60), ids, torch.full((40,), 40))
    assert logits.dtype == torch.float32
    assert (logits - expected[:, 39]).abs().mean() < 1.5 * own


def test_forgotten_keys_that_are_no_numbers_are_wiped(models: dict[str, Any], ids: torch.Tensor) -> None:
    model = models["llama_mqa"]
    forward = LeanForward(model, 2, 60)
    feed(forward, ids, torch.tensor([30, 30]))
    with torch.inference_mode():
        forward._cache[1].slots[3, :, 25] = torch.inf  # a value of slot 1
    forward.refresh()
    close(feed(forward, ids, torch.tensor([4, 20])), whole(model, ids[:2])[[0, 1], [3, 19]])


# -- lanes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [0, 1, 4])
def test_waiting_for_others_changes_no_sample(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    alone = ids_of(talk(make_engine(models["llama_mqa"], lanes=1), count=30))
    monkeypatch.setattr(engines, "PATIENCE", patience)
    engine = make_engine(models["llama_mqa"], lanes=30)
    assert ids_of(talk(engine, count=30)) == alone


def test_a_lane_waits_a_few_steps_at_most(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One lane with forced tokens beside twenty that decode is fed after PATIENCE steps; beside few, at once."""
    for others, waits in ((20, engines.PATIENCE), (engines.FEW, 0)):
        engine = make_engine(models["llama_mqa"], lanes=21, eos_ids=[], max_turn_tokens=40)
        for lane in range(others):
            engine.start(lane, [5 + lane, 6, 7], lane)
        engine._make_room()
        assert engine._prefill() == []
        calls = _names_of_calls(engine, monkeypatch)
        engine.start(99, [5, 6, 7, 8], 99)
        assert {turn.lane for turn in engine.advance()} >= set(range(others))
        assert calls.index("extend") == waits


def _names_of_calls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forward passes that the engine makes from now on, as it makes them."""
    calls: list[str] = []

    def noted(name: str, call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*args: Any) -> torch.Tensor:
            calls.append(name)
            return call(*args)

        return run

    for name in ("step", "extend"):
        monkeypatch.setattr(engine._forward, name, noted(name, getattr(engine._forward, name)))
    return calls
