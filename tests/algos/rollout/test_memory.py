"""Less memory than the lanes want: as many conversations are held as fit, and what is sampled stays the same."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.policies.load import Policy
from algos.rollout.collect import Collector
from algos.rollout.engine import Engine
from algos.rollout.lean import FIRST
from algos.rollout.memory import STEP, cache_bytes, cache_shape, container_bytes, free_bytes, is_out_of_memory
from convgym.errors import CapacityError, CapacityWarning, ConfigError
from convgym.vector import ConversationVectorEnv
from tests.algos.rollout.test_collect import Echo, requests, vector
from tests.algos.rollout.test_engine import EOS, Talk, build, opening_of, reply_of, talk

LAYERS = 2
# Bytes of a token: layers x heads x (key, value) x width x 4.
TOKEN = {"llama_mqa": LAYERS * 1 * 2 * 8 * 4, "gpt2": LAYERS * 4 * 2 * 8 * 4}
PATHS = pytest.mark.parametrize("name", list(TOKEN))  # the fast path, and the model's own forward


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: build(name) for name in TOKEN}


def memory_for(slots: int, columns: int, name: str) -> int:
    """Bytes that are just enough for so many conversations of so many tokens, and for moving one of two layers."""
    return cache_bytes(slots, columns, TOKEN[name]) * (LAYERS + 1) // LAYERS


def make(model: Any, lanes: int = 8, **changes: Any) -> Engine:
    options: dict[str, Any] = {"eos_ids": EOS, "lanes": lanes, "capacity": 200, "max_turn_tokens": 12}
    return Engine(model, **options | changes)


def held(seen: pytest.WarningsRecorder) -> list[int]:
    """How many conversations each warning says are held."""
    return [int(re.findall(r": (\d+) are held", str(warning.message))[0]) for warning in seen]


def same(talks: dict[int, Talk], others: dict[int, Talk]) -> None:
    assert talks.keys() == others.keys()
    for index, (ids, turns) in talks.items():
        assert ids == others[index].ids
        for (_, turn), (_, other) in zip(turns, others[index].turns, strict=True):
            assert (turn.ids.tolist(), turn.reason) == (other.ids.tolist(), other.reason)
            np.testing.assert_allclose(turn.logp, other.logp, atol=1e-4, rtol=0)


# -- the engine --------------------------------------------------------------------------------------------------------


@PATHS
def test_three_of_eight_lanes_fit_and_the_same_is_said(models: dict[str, Any], name: str) -> None:
    free = talk(make(models[name]), count=14)
    tight = make(models[name], memory=memory_for(3, 128, name))
    with pytest.warns(CapacityWarning, match=r"8 lanes of (64|128) tokens need 0\.\d+ MB .* wait") as seen:
        same(talk(tight, count=14), free)
    assert held(seen) == [5, 3]  # five of 64 tokens, and three of 128; said once of each
    alone = make(models[name], memory=memory_for(1, 192, name))
    with pytest.warns(CapacityWarning, match=r": \d are held at a time"):
        same(talk(alone, count=14), free)


@PATHS
def test_a_cache_that_can_grow_no_more_parks_conversations_in_the_middle(models: dict[str, Any], name: str) -> None:
    free = talk(make(models[name], lanes=4), count=4, turns=6)
    assert max(len(ids) for ids, _ in free.values()) > 2 * STEP
    # Four of 64 tokens, then two of 128, then one of 192.
    tight = make(models[name], lanes=4, memory=memory_for(4, STEP, name))
    with pytest.warns(CapacityWarning) as seen:
        same(talk(tight, count=4, turns=6), free)
    assert held(seen) == [2, 1]


def test_a_turn_goes_on_where_it_was_parked(models: dict[str, Any]) -> None:
    # One long turn, so that the cache has to give up conversations that have said half of it.
    options: dict[str, Any] = {"lanes": 4, "eos_ids": [], "max_turn_tokens": 100}
    free = talk(make(models["llama_mqa"], **options), count=4, turns=1)
    tight = make(models["llama_mqa"], **options, memory=memory_for(4, STEP, "llama_mqa"))
    with pytest.warns(CapacityWarning):
        same(talk(tight, count=4, turns=1), free)


def test_after_a_refresh_all_lanes_are_tried_again(models: dict[str, Any]) -> None:
    engine = make(models["llama_mqa"], memory=memory_for(8, STEP, "llama_mqa"))
    with pytest.warns(CapacityWarning) as seen:
        talk(engine, count=9)
    assert held(seen) == [4]
    engine.refresh()
    for lane in range(8):
        engine.start(lane, opening_of(0), lane)
    engine.advance()
    assert engine._rows == 8
    with warnings.catch_warnings():  # nor is there anything to be said where all fit
        warnings.simplefilter("error")
        talk(make(models["llama_mqa"], memory=memory_for(8, STEP, "llama_mqa")), count=9, turns=1)


def test_memory_for_nobody_is_an_error_that_harms_nothing(models: dict[str, Any]) -> None:
    for name in TOKEN:
        engine = make(models[name], memory=memory_for(1, 64, name))
        short, long = [5, 6, 7], list(range(5, 55)) * 2
        engine.start(0, long, 1)
        for _ in range(2):
            with pytest.raises(CapacityError, match=r"One conversation of 128 tokens needs .* MB .* may be used"):
                engine.advance()
        engine.release(0)
        engine.start(1, short, 1000)
        [turn] = engine.advance()
        expected = make(models[name])
        expected.start(1, short, 1000)
        assert turn.ids.tolist() == expected.advance()[0].ids.tolist()
    with pytest.raises(ConfigError, match="memory = 0"):
        make(models["gpt2"], memory=0)


@PATHS
def test_when_the_allocator_refuses_fewer_are_held(
    models: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = talk(make(models[name], lanes=7), count=9)
    engine = make(models[name], lanes=7)
    most = 3 * 201 * TOKEN[name] // LAYERS // (2 if name == "gpt2" else 1)  # three slots of a layer, or of its keys
    _limit_allocations(monkeypatch, most)
    with pytest.warns(CapacityWarning) as seen:
        same(talk(engine, count=9), free)
    # Seven of 64 tokens; then seven of 200 are refused. Half of that are 703 columns, two thirds of them for 3 x 129.
    assert held(seen) == [3]
    _limit_allocations(monkeypatch, 0)
    engine.refresh()
    engine.start(0, opening_of(0), 1)
    with pytest.raises(CapacityError, match="One conversation") as error:
        engine.advance()
    assert "can't allocate memory" in str(error.value.__cause__)
    monkeypatch.undo()
    engine.release(0)
    same(talk(engine, count=9), free)


def test_an_interrupt_while_the_cache_grows_harms_nothing(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: torch.Tensor, *shape: Any, **options: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    engine = make(models["llama_mqa"], lanes=3, memory=memory_for(3, STEP, "llama_mqa"), eos_ids=[])
    for lane in range(3):
        engine.start(lane, opening_of(lane), 1000 + lane)
    assert len(engine.advance()) == 3  # something is cached
    for lane in range(3):
        engine.append(lane, [5] * 40)
    monkeypatch.setattr(torch.Tensor, "new_zeros", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.advance()
    monkeypatch.undo()
    for lane in range(3):
        engine.release(lane)
    expected = talk(make(models["llama_mqa"], lanes=1, eos_ids=[]), count=1)
    same(talk(engine, count=1), expected)


def _limit_allocations(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Has torch's allocator refuse zeros of more bytes, with its own error."""
    zeros, new_zeros = torch.zeros, torch.Tensor.new_zeros

    def limited(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate(*args: Any, **options: Any) -> torch.Tensor:
            made = make(*args, **options)
            if made.ndim == 4 and made.nbytes > most:  # keys and values
                torch.empty(1 << 60)
            return made

        return allocate

    monkeypatch.setattr(torch, "zeros", limited(zeros))
    monkeypatch.setattr(torch.Tensor, "new_zeros", limited(new_zeros))


def test_who_waits_for_a_user_gives_way_to_who_speaks(models: dict[str, Any]) -> None:
    engine = make(models["llama_mqa"], lanes=6, memory=memory_for(2, 192, "llama_mqa"))
    for lane in range(6):
        engine.start(lane, opening_of(lane), 1000 + lane)
    first: dict[int, list[int]] = {}
    with pytest.warns(CapacityWarning):
        while turns := engine.advance():  # nobody is answered, and all speak nevertheless
            first |= {turn.lane: turn.ids.tolist() for turn in turns}
    assert first.keys() == set(range(6))
    for lane in (3, 0, 5):  # whoever is answered later goes on where it was
        engine.append(lane, reply_of(lane, 1))
    second: dict[int, list[int]] = {}
    while turns := engine.advance():
        second |= {turn.lane: turn.ids.tolist() for turn in turns}
    alone = talk(make(models["llama_mqa"]), count=6, turns=2)
    assert first == {lane: talks.turns[0][1].ids.tolist() for lane, talks in alone.items()}
    assert second == {lane: alone[lane].turns[1][1].ids.tolist() for lane in (0, 3, 5)}


@pytest.mark.filterwarnings("ignore::convgym.errors.CapacityWarning")
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([64, 100, 150]))
def test_whoever_answers_and_leaves_whenever_the_same_is_said(
    models: dict[str, Any], alone: dict[int, Talk], seed: int, slots: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    engine = make(models["llama_mqa"], lanes=6, memory=max(memory_for(slots, columns, "llama_mqa"), ENOUGH))
    waiting = list(range(10))
    quiet: dict[int, int] = {}  # who waits for an answer, and how many turns it has had
    turns = dict.fromkeys(waiting, 0)
    while waiting or engine.live:
        while waiting and engine.live < 6 and rng.random() < 0.7:
            lane = waiting.pop(0)
            engine.start(lane, opening_of(lane), 1000 + lane)
        for turn in engine.advance():
            expected = alone[turn.lane].turns[turns[turn.lane]][1]
            assert turn.ids.tolist() == expected.ids.tolist()
            turns[turn.lane] += 1
            quiet[turn.lane] = turns[turn.lane]
        for lane in [lane for lane in quiet if rng.random() < 0.4]:
            said = quiet.pop(lane)
            if said == 3 or rng.random() < 0.1:
                engine.release(lane)
            else:
                engine.append(lane, reply_of(lane, said))
        if rng.random() < 0.05 and engine.live:  # interrupted in its turn
            lane = int(rng.choice([*engine._slot]))
            quiet.pop(lane, None)
            engine.release(lane)
    assert engine.advance() == []


ENOUGH = memory_for(1, 192, "llama_mqa")  # for the longest one


@pytest.fixture(scope="module")
def alone(models: dict[str, Any]) -> dict[int, Talk]:
    return talk(make(models["llama_mqa"], lanes=1), count=10)


def test_the_oldest_goes_first(models: dict[str, Any]) -> None:
    engine = make(models["llama_mqa"], lanes=3, eos_ids=[], memory=memory_for(1, 64, "llama_mqa"))
    done: list[int] = []
    started = 0
    with pytest.warns(CapacityWarning):
        while len(done) < 8:
            while started < 8 and engine.live < 3:
                engine.start(started, [5, 6, 7], started)
                started += 1
            for turn in engine.advance():
                engine.release(turn.lane)
                done.append(turn.lane)
    assert done == list(range(8))


def test_a_large_cache_is_given_back_with_the_last_conversation(models: dict[str, Any]) -> None:
    def kept(memory: int) -> int:
        engine = make(models["llama_mqa"], memory=memory)
        engine.start(0, opening_of(0), 1)
        engine.advance()
        assert _bytes(engine) == cache_bytes(8, 200, TOKEN["llama_mqa"])
        engine.release(0)
        return _bytes(engine)

    assert kept(memory_for(8, 200, "llama_mqa")) == 0  # the learner may want it
    assert kept(100 * memory_for(8, 200, "llama_mqa")) == cache_bytes(8, 200, TOKEN["llama_mqa"])


def _bytes(engine: Engine) -> int:
    forward: Any = engine._forward
    return sum(cache.slots.nbytes for cache in forward._cache)


def test_without_a_limit_memory_is_counted_by_what_is_free(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = talk(make(models["llama_mqa"]), count=9)
    engine = make(models["llama_mqa"])
    total = 325 * TOKEN["llama_mqa"]  # a machine with room for so many tokens, and nothing else on it
    monkeypatch.setattr("algos.rollout.engine.free_bytes", lambda device: total - _bytes(engine))
    with pytest.warns(CapacityWarning) as seen:
        same(talk(engine, count=9), free)
    # 2/3 of 0.9 x 325 are 195 = 3 x 65 columns; then 2/3 of 195 + 0.9 x 130 are 208 = 129 and some.
    assert held(seen) == [3, 1]


# -- the collector -----------------------------------------------------------------------------------------------------


class SlowEcho(Echo):
    """Answers when all conversations that could speak have spoken: nobody may wait for a slot that is idle."""

    slow = True


def limited(policy: Policy, lanes: int, held: int) -> Engine:
    model: Any = policy.model
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    token = config.num_hidden_layers * config.num_key_value_heads * 2 * width * 4
    memory = cache_bytes(held, 4 * STEP, token) * (config.num_hidden_layers + 1) // config.num_hidden_layers
    return Engine(model, eos_ids=policy.eos_ids, lanes=lanes, max_turn_tokens=8, memory=memory)


def test_episodes_are_complete_and_in_order(tiny_policy: Policy) -> None:
    asked = requests(*range(14))
    free = Collector(vector(6), tiny_policy, max_turn_tokens=8).collect(asked)
    with pytest.warns(CapacityWarning, match="6 lanes"):
        tight = Collector(vector(6), tiny_policy, engine=limited(tiny_policy, 6, held=2)).collect(asked)
    assert tight.failures == []
    assert [e.env_seed for e in tight.episodes] == list(range(14))
    assert [e.ids.tolist() for e in tight.episodes] == [e.ids.tolist() for e in free.episodes]
    assert [e.messages for e in tight.episodes] == [e.messages for e in free.episodes]


def test_slow_users_hold_nobody_up(tiny_policy: Policy) -> None:
    # The first answer comes when all six have spoken: with two slots, those who wait for it must have given theirs up.
    all_spoke = threading.Barrier(6, timeout=60)

    class Waiting(SlowEcho):
        def step(self, action: str) -> Any:
            if not self.heard:
                all_spoke.wait()
            return super().step(action)

    asked = requests(*range(6))
    free = Collector(vector(6), tiny_policy, max_turn_tokens=8).collect(asked)
    engine = limited(tiny_policy, 6, held=2)
    with pytest.warns(CapacityWarning, match="6 lanes"):
        slow = Collector(ConversationVectorEnv([Waiting] * 6), tiny_policy, engine=engine).collect(asked)
    assert slow.failures == []
    assert [e.ids.tolist() for e in slow.episodes] == [e.ids.tolist() for e in free.episodes]
    assert engine.live == 0


# -- counting ----------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 3000),
    st.integers(1, 64),
    st.integers(0, 3000),
    st.integers(1, 5000),
    st.integers(1, 40),
    st.floats(0, 1e9),
)
def test_a_cache_has_what_is_needed_and_moves_within_the_memory(
    needed: int, slots: int, columns: int, token_bytes: int, layers: int, memory: float
) -> None:
    columns = min(columns, needed - 1)
    rows, wide = cache_shape(
        needed,
        slots=slots,
        columns=columns,
        capacity=3000,
        token_bytes=token_bytes,
        layers=layers,
        memory=memory,
    )
    assert 0 <= rows <= slots and needed <= wide <= 3000
    size = cache_bytes(rows, wide, token_bytes)
    assert size * (1 + 1 / layers) <= memory * (1 + 1e-9)
    if rows < slots:  # one more, of what is needed, would not do
        assert wide - needed < STEP
        assert cache_bytes(rows + 1, wide, token_bytes) * (1 + 1 / layers) > memory * (1 - 1e-9)


@pytest.mark.parametrize(
    ("needed", "columns", "memory", "shape"),
    [
        (10, 0, 1e9, (8, FIRST)),  # a first cache
        (300, 255, 1e9, (8, 510)),  # twice as much
        (900, 510, 1e9, (8, 1000)),  # up to the context
        (300, 255, 8 * 321 * 10 * 1.25, (8, 320)),  # not twice, but as much as is needed: 320 columns and the padding's
        (300, 255, 8 * 321 * 10 * 1.25 - 1, (7, 320)),
        (300, 255, 321 * 10 * 1.25, (1, 320)),
        (300, 255, 321 * 10 * 1.25 - 1, (0, 320)),
        (990, 510, 1e4, (0, 1000)),
    ],
)
def test_the_shape_of_a_cache(needed: int, columns: int, memory: float, shape: tuple[int, int]) -> None:
    options: dict[str, Any] = {"slots": 8, "capacity": 1000, "token_bytes": 10, "layers": 4}
    assert cache_shape(needed, columns=columns, memory=memory, **options) == shape


def group(folder: Path, limit: str, used: int, inactive: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    process = tmp_path / "cgroup"
    process.write_text("0::/jobs/mine\n")
    group(tmp_path / "fs/jobs/mine", "1000", 700, 100)
    group(tmp_path / "fs/jobs", "5000", 4900, 50)
    assert container_bytes(process, tmp_path / "fs") == [400, 150]
    group(tmp_path / "fs/jobs", "max", 4900, 50)
    assert container_bytes(process, tmp_path / "fs") == [400]
    group(tmp_path / "fs/jobs/mine", "1000", 1200, 0)
    assert container_bytes(process, tmp_path / "fs") == [0]
    process.write_text("4:memory:/jobs/mine\n")  # version 1
    assert container_bytes(process, tmp_path / "fs") == []
    assert container_bytes(tmp_path / "absent", tmp_path / "fs") == []


def test_free_memory_is_this_machines() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < psutil.virtual_memory().total


def test_a_real_failure_to_allocate_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
