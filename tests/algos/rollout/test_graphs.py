"""Recorded decoding steps: what they replay is the step itself, and where it is not, nobody is harmed.

No GPU is needed: ``Tape`` records as a CUDA graph does, operations on addresses. It knows nothing of a cache that has
moved, of weights elsewhere, or of what the host decided since.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from algos.rollout import graphs, memory
from algos.rollout.engine import Engine
from algos.rollout.graphs import ROUGH, Record, Replay, Work, check, size
from algos.rollout.lean import LeanForward
from convgym.errors import CapacityWarning, DivergedError, GraphWarning
from tests.algos.rollout.test_engine import LEAN, VOCAB, build, close, ids_of, make_engine, talk
from tests.algos.rollout.test_memory import memory_for, same

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Tape(TorchDispatchMode):
    """Notes operations and the tensors they were given, and can do the same again.

    Args:
        without: The operation of this name is not done again: its result stays what it was when it was recorded.
    """

    def __init__(self, without: str = "") -> None:
        super().__init__()
        self.names: list[str] = []
        self._notes: list[tuple[Callable[..., Any], Any, Any, list[Any], list[bool]]] = []
        self._without = without

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {place(x) for x in tree_leaves((args, kwargs))}
        made = [place(x) not in given for x in tree_leaves(result)]
        self.names.append(func.overloadpacket.__name__)
        if self.names[-1] != self._without and (any(made) or func._schema.is_mutable):  # else it is a view
            self._notes.append((func, args, kwargs or {}, tree_leaves(result), made))
        return result

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, kept, made in self._notes:
            for mine, again, own in zip(kept, tree_leaves(func(*args, **kwargs)), made, strict=True):
                if own:
                    mine.copy_(again)


def place(x: Any) -> int | None:
    return x.untyped_storage().data_ptr() if isinstance(x, torch.Tensor) else None


class Recorder:
    """Begins sets of recordings on tapes, and counts both."""

    def __init__(self, without: str = "") -> None:
        self.sets = self.count = 0
        self._without = without

    def __call__(self) -> Record:
        self.sets += 1
        return self.record

    def record(self, work: Work) -> Replay:
        self.count += 1
        work()
        with Tape(self._without) as tape:
            work()
        return tape.replay


def recorded(model: Any, recorder: Callable[[], Record], **settings: Any) -> Engine:
    """An engine whose steps are recorded."""
    engine = make_engine(model, **settings)
    engine._forward = LeanForward(model, engine.lanes, engine.capacity, recorder)
    return engine


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: build(name) for name in LEAN}


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small sizes, so that there are many; caches that begin small; and a fallback does not go unnoticed."""
    monkeypatch.setattr(graphs, "LANES", 2)
    monkeypatch.setattr(graphs, "COLUMNS", 16)
    monkeypatch.setattr(memory, "FIRST", 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)
        yield


# -- the same tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAN)
def test_replayed_steps_sample_the_same(models: dict[str, Any], name: str) -> None:
    """Fourteen conversations in seven lanes, which empty in the end, over a cache that grows."""
    plain = talk(make_engine(models[name], lanes=7), count=14)
    recorder = Recorder()
    engine = recorded(models[name], recorder, lanes=7)
    assert engine.graphs == "no step yet"
    same(talk(engine, count=14), plain)
    assert engine.graphs is True
    assert recorder.sets > 1  # the cache has grown
    assert recorder.count > 2 * recorder.sets  # and each of its sizes has seen several shapes
    same(talk(engine, count=14), plain)  # no recording minds who was there before


def test_a_shape_is_recorded_once(models: dict[str, Any]) -> None:
    recorder = Recorder()
    engine = recorded(models["llama_mqa"], recorder, lanes=7)
    for _ in range(2):  # the second time the cache has its size from the beginning
        talk(engine, count=7)
    before = recorder.sets, recorder.count
    engine.refresh()
    talk(engine, count=7)
    assert (recorder.sets, recorder.count) == before


@pytest.mark.parametrize("name", ["llama_gqa_untied", "llama_mqa", "qwen2"])
def test_new_weights_are_replayed_from_the_same_recordings(models: dict[str, Any], name: str) -> None:
    model, recorder = copy.deepcopy(models[name]), Recorder()
    engine = recorded(model, recorder)
    before = ids_of(talk(engine, count=6))
    sets = recorder.sets
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    engine.refresh()
    after = talk(engine, count=6)
    assert ids_of(after) != before
    same(after, talk(make_engine(model), count=6))
    assert recorder.sets == sets and engine.graphs is True


@pytest.mark.parametrize("part", ["model.embed_tokens", "lm_head", "model.layers.1.mlp.down_proj", "model.norm"])
def test_weights_in_another_place_are_noticed(models: dict[str, Any], part: str) -> None:
    """What is read where the model has it is recorded anew; what is copied stays in its place."""
    model, recorder = copy.deepcopy(models["llama_gqa_untied"]), Recorder()
    engine = recorded(model, recorder)
    before = ids_of(talk(engine, count=6))
    sets = recorder.sets
    module = model.get_submodule(part)
    module.weight = torch.nn.Parameter(module.weight.detach() * -0.5)
    engine.refresh()
    after = talk(engine, count=6)
    assert ids_of(after) != before
    same(after, talk(make_engine(model), count=6))
    assert (recorder.sets > sets) == (part == "model.embed_tokens")


def test_weights_of_another_precision_are_taken_over(models: dict[str, Any]) -> None:
    model = copy.deepcopy(models["llama_gqa_untied"])
    forward = LeanForward(model, 4, 60, Recorder())
    model.double()
    forward.refresh()
    assert {product.weight.dtype for product in (forward._head, *forward._layers[0])} == {torch.float64}


def test_refreshed_weights_stay_where_they_are(models: dict[str, Any]) -> None:
    forward = LeanForward(copy.deepcopy(models["qwen2"]), 4, 60)
    before = forward._addresses()
    forward.refresh()
    assert forward._addresses() == before
    assert len(before) == 2 + 2 * 5  # embedding and head; of each layer four weights, one of which has a bias
    own = {parameter.data_ptr() for parameter in forward._model.parameters()}
    assert [address in own for address in before].count(True) == 1  # nothing of the model's is written to


def test_a_cache_that_is_given_back_takes_its_recordings_along(models: dict[str, Any]) -> None:
    plain = talk(make_engine(models["llama_mqa"]), count=8)
    recorder = Recorder()
    engine = recorded(models["llama_mqa"], recorder, memory=memory_for(5, 200, "llama_mqa"))
    same(talk(engine, count=8), plain)
    assert engine._rows == 0 and engine._forward._graphs is None  # type: ignore[attr-defined]
    sets = recorder.sets
    same(talk(engine, count=8), plain)
    assert recorder.sets > sets


def test_parked_conversations_go_on(models: dict[str, Any]) -> None:
    plain = talk(make_engine(models["llama_mqa"], lanes=8), count=10)
    tight = recorded(models["llama_mqa"], Recorder(), lanes=8, memory=memory_for(3, 128, "llama_mqa"))
    with pytest.warns(CapacityWarning):
        same(talk(tight, count=10), plain)
    assert tight.graphs is True


def test_bfloat16_differs_by_its_roundings_only() -> None:
    model = build("llama_gqa_untied").to(torch.bfloat16)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (5, 40)))
    plain, replayed = LeanForward(model, 6, 60), LeanForward(model, 6, 60, Recorder())
    for at in range(40):
        rows, where = ids[:, at], torch.full((5,), at)
        check(replayed.step(rows, where, at + 1), plain.step(rows, where, at + 1), ROUGH)
    assert replayed.graphs is True


# -- what a recording is -----------------------------------------------------------------------------------------------


def test_a_recording_knows_nothing_of_a_cache_that_moved(models: dict[str, Any]) -> None:
    """So that the tests above would notice one that was kept."""
    ids = torch.tensor([5, 6])
    forwards = [LeanForward(models["llama_mqa"], 2, 200, Recorder()) for _ in range(2)]
    for forward in forwards:
        forward.reserve(2, 50)
        for at in range(3):  # the third step is replayed
            forward.step(ids + at, torch.full((2,), at), at + 1)
        stale = forward._graphs
        forward.reserve(2, 50)
        assert forward._graphs is None
        forward._graphs = stale if forward is forwards[1] else None
        forward.step(ids + 3, torch.full((2,), 3), 4)
    fresh, old = (float(forward._cache[0].slots[:, :, 3].abs().sum()) for forward in forwards)
    assert fresh > 0 and old == 0  # the new cache was never written to


def test_nothing_that_is_recorded_asks_the_host(models: dict[str, Any]) -> None:
    """Numbers of this device do not exist: whoever reads one fails. None are made from lists of the host's either."""
    model = copy.deepcopy(models["llama_gqa_untied"]).to("meta")
    forward = LeanForward(model, 8, 60)
    forward.reserve(8, 60)
    tokens = torch.zeros(6, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="item"):
            int(tokens.max())
        with Tape() as tape:
            logits = forward._static(tokens, tokens, 48)
            out = torch.empty(6, VOCAB, device="meta").copy_(logits)
    assert out.shape == (6, VOCAB) and len(tape.names) > 30
    assert not {"lift_fresh", "lift_fresh_copy", "_local_scalar_dense", "nonzero", "masked_select"} & {*tape.names}


def test_what_is_recorded_goes_with_its_forward(models: dict[str, Any]) -> None:
    """At once: memory of a GPU does not wait for the garbage collector."""
    forward = LeanForward(models["llama_mqa"], 2, 60, Recorder())
    forward.step(torch.tensor([5]), torch.tensor([0]), 1)
    assert forward.graphs is True
    watched = weakref.ref(forward)
    del forward
    assert watched() is None


def test_lanes_that_fall_silent_keep_what_they_have(models: dict[str, Any]) -> None:
    """Four lanes, then three of them, replayed as four, while the last one waits with another conversation."""
    model = models["llama_mqa"]
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (4, 9)))
    with torch.inference_mode():
        expected = model(ids).logits.float()
    recorder = Recorder()
    forward = LeanForward(model, 4, 60, recorder)
    for at in range(7):
        close(forward.step(ids[:, at], torch.full((4,), at), at + 1), expected[:, at])
    forward.copy(0, 3, 7)
    for at in (7, 8):
        close(forward.step(ids[:3, at], torch.full((3,), at), at + 1), expected[:3, at])
    rows, last = torch.tensor([0, 1, 2, 0]), torch.tensor([8, 8, 8, 7])
    close(forward.step(ids[rows, last], last, 9), expected[rows, last])
    assert recorder.count == 1


# -- where it cannot be done -------------------------------------------------------------------------------------------


def refused() -> Record:
    raise RuntimeError("no such pool\nand a long story")


def broken() -> Record:
    def record(work: Work) -> Replay:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    return record


def silent() -> Record:
    return lambda work: lambda: None


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (refused, "RuntimeError: no such pool"),
        (broken, "RuntimeError: operation not permitted when stream is capturing"),
        (silent, "RuntimeError: a replayed step gave other logits than the step itself, by nan"),
        (Recorder("embedding"), "RuntimeError: a replayed step gave other logits"),  # tokens of the recording
        (Recorder("index"), "RuntimeError: a replayed step gave other logits"),  # rotations of its positions
        (Recorder("where"), "RuntimeError: a replayed step gave other logits"),  # what could be seen then
        (Recorder("index_copy_"), "RuntimeError: a replayed step gave other logits"),  # no keys and values are written
    ],
    ids=["no pool", "no recording", "nothing", "tokens", "rotations", "mask", "keys"],
)
def test_a_recording_that_fails_or_differs_is_never_used(
    models: dict[str, Any], recorder: Callable[[], Record], reason: str
) -> None:
    plain = talk(make_engine(models["llama_gqa_untied"]), count=8)
    engine = recorded(models["llama_gqa_untied"], recorder)
    with pytest.warns(GraphWarning, match="Decoding goes on without CUDA graphs: .* Please report") as seen:
        same(talk(engine, count=8), plain)
    assert len(seen) == 1 and str(engine.graphs).startswith(reason) and "\n" not in str(engine.graphs)
    engine.refresh()
    same(talk(engine, count=8), plain)  # with no other word
    assert len(seen) == 1


def test_a_recording_that_cannot_be_made_later_ends_all(models: dict[str, Any]) -> None:
    """Memory was enough for the first ones."""
    recorder = Recorder()

    def scarce() -> Record:
        def record(work: Work) -> Replay:
            if recorder.count == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return recorder.record(work)

        return record

    plain = talk(make_engine(models["llama_mqa"]), count=8)
    engine = recorded(models["llama_mqa"], scarce)
    with pytest.warns(GraphWarning, match="CUDA out of memory"):
        same(talk(engine, count=8), plain)
    assert recorder.count == 3 and engine._forward._graphs is None  # type: ignore[attr-defined]


def test_weights_that_are_no_numbers_are_not_a_recordings_fault(models: dict[str, Any]) -> None:
    model = copy.deepcopy(models["llama_gqa_untied"])
    engine = recorded(model, Recorder())
    before = talk(make_engine(model), count=4)
    weight = model.model.layers[1].mlp.down_proj.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    engine.refresh()
    engine.start(0, [5], 1)  # one token: decoding feeds it
    with pytest.raises(DivergedError, match="not finite"):
        engine.advance()
    engine.release(0)
    with torch.no_grad():
        weight.copy_(saved)
    engine.refresh()
    same(talk(engine, count=4), before)
    assert engine.graphs is True


def test_an_interrupt_is_no_failure(models: dict[str, Any]) -> None:
    interrupts = [KeyboardInterrupt]
    recorder = Recorder()

    def interrupted() -> Record:
        def record(work: Work) -> Replay:
            if interrupts:
                raise interrupts.pop()
            return recorder.record(work)

        return record

    plain = talk(make_engine(models["llama_mqa"]), count=4)
    engine = recorded(models["llama_mqa"], interrupted)
    engine.start(0, [5], 1)
    with pytest.raises(KeyboardInterrupt):
        engine.advance()
    engine.release(0)
    same(talk(engine, count=4), plain)
    assert engine.graphs is True


def test_without_cuda_there_are_none(models: dict[str, Any]) -> None:
    assert make_engine(models["llama_mqa"]).graphs == "not on cpu"
    assert make_engine(models["llama_mqa"], lean=False).graphs == "not on the model's own forward"


# -- sizes and tolerance -----------------------------------------------------------------------------------------------


def test_sizes_are_few() -> None:
    assert sorted({size(n, 8, 300) for n in range(1, 301)}) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300]
    assert sorted({size(n, 128, 1000) for n in range(1, 1001)}) == [128, 256, 384, 512, 768, 1000]
    assert size(1, 8, 5) == 5  # no more lanes than there are slots


@given(count=st.integers(1, 10_000), least=st.sampled_from([1, 2, 8, 128]), spare=st.integers(0, 10_000))
def test_sizes_hold_what_they_must_and_add_half_at_the_most(count: int, least: int, spare: int) -> None:
    most = count + spare
    rounded = size(count, least, most)
    assert count <= rounded <= most
    assert rounded - count < max(least, count / 2)
    assert size(rounded, least, most) == rounded
    assert count == most or size(count + 1, least, most) >= rounded


def test_logits_may_differ_by_a_share_of_the_largest() -> None:
    """The largest is 8: a thousandth of it is .008. Below 1, the share is of 1."""
    plain = torch.tensor([[8.0, -2.0], [1.0, 0.0]])
    shift = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    check(plain + 0.0079 * shift, plain, 1e-3)
    with pytest.raises(RuntimeError, match=r"by 0\.0081 > 0\.008"):
        check(plain + 0.0081 * shift, plain, 1e-3)
    check(0.1 * plain + 0.0009 * shift, 0.1 * plain, 1e-3)
    with pytest.raises(RuntimeError, match="other logits"):
        check(0.1 * plain + 0.0011 * shift, 0.1 * plain, 1e-3)


# -- on a device -------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LEAN)
def test_graphs_on_a_device_give_the_logits_of_the_step(name: str, dtype: torch.dtype) -> None:
    model = build(name).to("cuda", dtype)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (9, 100))).cuda()
    plain, replayed = LeanForward(model, 9, 200), LeanForward(model, 9, 200)
    plain._recorder = None
    for _ in range(2):
        for forward in (plain, replayed):
            forward.reserve(9, 60)
        for at in range(100):  # the cache grows on the way, and lanes leave
            lanes = 9 - at // 12
            rows, where = ids[:lanes, at], torch.full((lanes,), at, device="cuda")
            tolerance = graphs.EXACT if dtype == torch.float32 else ROUGH
            check(replayed.step(rows, where, at + 1), plain.step(rows, where, at + 1), tolerance)
        assert replayed.graphs is True
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        for forward in (plain, replayed):
            forward.refresh()


@needs_cuda
def test_graphs_on_a_device_sample_the_same() -> None:
    model = build("llama_gqa_untied").to("cuda")
    plain, engine = make_engine(model, lanes=7), make_engine(model, lanes=7)
    plain._forward._recorder = None  # type: ignore[attr-defined]
    for _ in range(2):
        same(talk(engine, count=14), talk(plain, count=14))
        assert engine.graphs is True
        engine.refresh()


@needs_cuda
def test_a_capture_that_fails_leaves_the_device_well() -> None:
    """A number read by the host in the middle of a capture breaks it; memory can be given back afterwards."""
    device = torch.device("cuda", torch.cuda.current_device())
    stream, numbers = torch.cuda.current_stream(), torch.ones(3, device=device)
    with pytest.raises(RuntimeError):
        graphs.on_cuda(device)(lambda: print(numbers.sum().item()))
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert float(numbers.sum()) == 3
