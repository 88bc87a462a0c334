"""The rollout engine: what it samples is what the model says, whoever else is being sampled beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from algos.rollout.engine import SHARED, Engine, Turn, longest_prefix
from algos.rollout.forward import Forward, ModelForward, make_forward
from algos.rollout.lean import LeanForward, is_lean
from algos.rollout.sampling import sample, uniforms
from convgym.errors import CapacityError, ConfigError, DivergedError, ModelError

VOCAB, EOS = 61, (3, 4)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}


def _llama(**changes: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES | {"num_attention_heads": 4} | changes))


MODELS: dict[str, Callable[[], Any]] = {
    "llama_mqa": lambda: _llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama_gqa_untied": lambda: _llama(num_key_value_heads=2, head_dim=12),
    "llama_mha_scaled_rope": lambda: _llama(
        num_key_value_heads=4,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "llama_yarn": lambda: _llama(
        num_key_value_heads=1,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, use_sliding_window=False)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    ),
    "gemma": lambda: GemmaForCausalLM(
        GemmaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=1, head_dim=8)
    ),
}
LEAN = ("llama_mqa", "llama_gqa_untied", "llama_mha_scaled_rope", "llama_yarn", "qwen2")
PATHS = [(name, True) for name in LEAN] + [
    (name, False) for name in ("llama_gqa_untied", "qwen2", "gpt2", "gemma")
]
paths = pytest.mark.parametrize(("name", "lean"), PATHS)


def build(name: str) -> Any:
    """A random model with weights large enough that its distributions are far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = MODELS[name]()
    with torch.no_grad():
        for count, parameter in enumerate(model.parameters()):
            if parameter.ndim > 1:
                parameter.mul_(6)
            else:  # biases begin at 0 and norms at 1, where they could be forgotten or confused unnoticed
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).roll(len(parameter) // 3 + 7 * count))
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: build(name) for name in MODELS}


class Talk(NamedTuple):
    """A conversation as an engine had it."""

    ids: list[int]
    turns: list[tuple[int, Turn]]  # where each begins


def opening_of(index: int) -> list[int]:
    """Ragged openings; each four share one."""
    rng = np.random.default_rng(index // 4)
    return [int(i) for i in rng.integers(5, VOCAB, 20 + 9 * (index // 4 % 4))]


def reply_of(index: int, turn: int) -> list[int]:
    rng = np.random.default_rng([index, turn])
    return [int(i) for i in rng.integers(5, VOCAB, 1 + (index * 5 + turn) % 17)]


def talk(engine: Engine, count: int, turns: int = 3, first: int = 0, greedy: bool = False) -> dict[int, Talk]:
    """Several-turn conversations through as many lanes as the engine has, each freed lane taken at once."""
    waiting = list(range(first, first + count))
    live: dict[int, Talk] = {}
    done: dict[int, Talk] = {}
    while waiting or live:
        while waiting and engine.live < engine.lanes:
            index = waiting.pop(0)
            engine.start(index, opening_of(index), None if greedy else 1000 + index)
            live[index] = Talk(opening_of(index), [])
        for turn in engine.advance():
            ids, spoken = live[turn.lane]
            spoken.append((len(ids), turn))
            ids.extend(turn.ids.tolist())
            if len(spoken) == turns:
                engine.release(turn.lane)
                done[turn.lane] = live.pop(turn.lane)
            else:
                reply = reply_of(turn.lane, len(spoken))
                engine.append(turn.lane, reply)
                ids.extend(reply)
    return done


def make_engine(model: Any, lanes: int = 5, **changes: Any) -> Engine:
    settings: dict[str, Any] = {"eos_ids": EOS, "lanes": lanes, "capacity": 200, "max_turn_tokens": 12}
    return Engine(model, **settings | changes)


def ids_of(talks: dict[int, Talk]) -> dict[int, list[int]]:
    return {index: ids for index, (ids, _) in talks.items()}


# -- the model's own numbers -------------------------------------------------------------------


@paths
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logp_is_that_of_a_forward_over_the_whole_conversation(
    models: dict[str, Any], name: str, lean: bool, temperature: float
) -> None:
    model = models[name]
    talks = talk(make_engine(model, lean=lean, temperature=temperature), count=9)
    reasons = {turn.reason for _, turns in talks.values() for _, turn in turns}
    assert reasons == {"eos", "cap"}
    for ids, turns in talks.values():
        with torch.inference_mode():
            logp = torch.log_softmax(model(torch.tensor([ids])).logits[0].float() / temperature, -1)
        for start, turn in turns:
            assert turn.ids.tolist() == ids[start : start + len(turn.ids)]
            expected = logp[torch.arange(start, start + len(turn.ids)) - 1, torch.from_numpy(turn.ids)]
            np.testing.assert_allclose(turn.logp, expected.numpy(), atol=1e-4, rtol=0)


@paths
def test_cached_logits_are_those_of_a_full_forward(models: dict[str, Any], name: str, lean: bool) -> None:
    model = models[name]
    forward = make_forward(model, 4, 256, lean)
    assert isinstance(forward, LeanForward if lean else ModelForward)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (3, 250)))
    with torch.inference_mode():
        whole = model(ids).logits.float()
    # Slot 2 takes 40 tokens and slot 0 takes 7 as one padded chunk; then 3 and 30 more; then each takes two
    # steps.
    slots = torch.tensor([2, 0])
    positions = torch.full((2, 40), -1)
    positions[0], positions[1, -7:] = torch.arange(40), torch.arange(7)
    tokens = torch.where(positions >= 0, ids[slots].gather(1, positions.clamp_min(0)), 0)
    close(forward.extend(tokens, positions, slots, 40), whole[[2, 0], [39, 6]])
    positions = torch.full((2, 30), -1)
    positions[0, -3:], positions[1] = torch.arange(40, 43), torch.arange(7, 37)
    tokens = torch.where(positions >= 0, ids[slots].gather(1, positions.clamp_min(0)), 0)
    close(forward.extend(tokens, positions, slots, 43), whole[[2, 0], [42, 36]])
    forward.copy(2, 1, 43)
    for step in range(2):
        at = torch.tensor([37, 43, 43]) + step
        rows = torch.tensor([0, 2, 2])
        close(forward.step(ids[rows, at], at, int(at.max()) + 1), whole[rows, at])
    # The rest of one conversation in one go: the cache grows, and the others stay what they were.
    rest = torch.arange(45, 250)[None]
    close(forward.extend(ids[[2]][:, 45:250], rest, torch.tensor([2]), 250), whole[[2], [249]])
    at = torch.tensor([39, 45])
    close(forward.step(ids[[0, 2], at], at, 46), whole[[0, 2], at])


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_the_fast_path_is_taken_where_it_is_exact(models: dict[str, Any]) -> None:
    assert {name for name, model in models.items() if is_lean(model)} == set(LEAN)
    assert not is_lean(_llama(num_key_value_heads=1, attention_bias=True))
    assert not is_lean(_llama(num_key_value_heads=1, mlp_bias=True))
    assert not is_lean(_llama(num_key_value_heads=1, hidden_act="gelu"))
    with pytest.raises(ModelError, match="not a plain Llama"):
        make_engine(models["gpt2"], lean=True)


# -- lanes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "lean"), [("llama_mqa", True), ("gpt2", False)])
def test_the_number_of_lanes_changes_nothing(models: dict[str, Any], name: str, lean: bool) -> None:
    alone = ids_of(talk(make_engine(models[name], lanes=1, lean=lean), count=10))
    for lanes in (3, 10):
        assert ids_of(talk(make_engine(models[name], lanes=lanes, lean=lean), count=10)) == alone


def test_both_paths_sample_the_same(models: dict[str, Any]) -> None:
    lean, general = (
        ids_of(talk(make_engine(models["llama_gqa_untied"], lean=lean), 8)) for lean in (True, False)
    )
    assert lean == general


def test_a_used_engine_is_as_good_as_new(models: dict[str, Any]) -> None:
    engine = make_engine(models["llama_mqa"])
    talk(engine, count=11, first=50)
    engine.start(7, opening_of(99), 5)
    engine.advance()
    engine.start(8, opening_of(98), 5)
    engine.release(8)  # before it spoke
    engine.release(7)
    assert engine.live == 0
    used = talk(engine, count=8)
    assert ids_of(used) == ids_of(talk(make_engine(models["llama_mqa"]), count=8))


@pytest.mark.parametrize("name", ["llama_mqa", "gpt2"])
def test_a_lane_can_be_released_before_it_speaks(models: dict[str, Any], name: str) -> None:
    engine = make_engine(models[name])
    for lane in range(3):
        engine.start(lane, opening_of(lane), 1000 + lane)
    engine.release(0)  # the last one moves into its place before anything is cached
    said: dict[int, list[int]] = {}
    while len(said) < 2:
        said |= {turn.lane: turn.ids.tolist() for turn in engine.advance()}
    for lane, ids in said.items():
        talks = talk(make_engine(models[name]), count=1, turns=1, first=lane)
        assert ids == talks[lane].turns[0][1].ids.tolist()


def test_weights_that_were_not_numbers_leave_nothing_behind(models: dict[str, Any]) -> None:
    for name in ("llama_mqa", "gpt2"):
        model = copy.deepcopy(models[name])
        before = ids_of(talk(make_engine(model), count=6))
        engine = make_engine(model)
        weight = model.get_input_embeddings().weight
        saved = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(float("nan"))
        engine.refresh()
        engine.start(0, opening_of(0), 1)
        with pytest.raises(DivergedError, match="not finite"):
            engine.advance()
        engine.release(0)
        with torch.no_grad():
            weight.copy_(saved)
        engine.refresh()
        assert ids_of(talk(engine, count=6)) == before


def test_lanes_whose_logits_are_no_numbers_can_be_released_and_the_others_go_on(models: dict[str, Any]) -> None:
    model = copy.deepcopy(models["llama_gqa_untied"])
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = torch.nan
    engine = make_engine(model, eos_ids=[], max_turn_tokens=5)
    engine.start(0, [5, 6, 7], 0)
    engine.start(1, [5, 60, 7], 1)
    with pytest.raises(DivergedError, match="not finite"):
        engine.advance()
    assert engine.advance() == []  # nobody is speaking
    engine.release(0)
    engine.release(1)
    alone = make_engine(models["llama_gqa_untied"], eos_ids=[], max_turn_tokens=5)
    for each in (engine, alone):
        each.refresh()
        each.start(2, [5, 6, 7], 2)
    [ours], [theirs] = engine.advance(), alone.advance()
    assert np.array_equal(ours.ids, theirs.ids) and 60 not in ours.ids


class Doubled(torch.nn.Linear):
    """Stands for an adapter: a projection that does more than its class says."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("name", ["0.self_attn.v_proj", "1.self_attn.q_proj", "0.mlp.down_proj", "1.mlp.up_proj"])
def test_an_adapter_in_any_layer_takes_the_general_path(models: dict[str, Any], name: str) -> None:
    model = copy.deepcopy(models["llama_gqa_untied"])
    linear = model.model.layers.get_submodule(name)
    adapter = Doubled(linear.in_features, linear.out_features, linear.bias is not None)
    adapter.load_state_dict(linear.state_dict())
    model.model.layers.set_submodule(name, adapter)
    assert is_lean(models["llama_gqa_untied"]) and not is_lean(model)
    said = talk(make_engine(model, lanes=1), count=1)[0]
    start, turn = said.turns[0]
    with torch.inference_mode():
        logits = model(torch.tensor([said.ids[: start + len(turn.ids)]])).logits[0]
    expected = torch.log_softmax(logits[start - 1 : -1].double(), -1)[torch.arange(len(turn.ids)), turn.ids]
    close(torch.from_numpy(turn.logp).double(), expected)


@pytest.mark.parametrize("name", ["", "model", "model.layers.1", "model.layers.1.mlp", "model.norm", "lm_head"])
def test_a_hooked_module_takes_the_general_path(models: dict[str, Any], name: str) -> None:
    model = copy.deepcopy(models["llama_gqa_untied"])
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    assert not is_lean(model)


def test_refresh_takes_over_new_weights_and_refuses_live_conversations(
    models: dict[str, Any],
) -> None:
    model = copy.deepcopy(models["llama_mqa"])
    engine = make_engine(model)
    before = ids_of(talk(engine, count=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    engine.start(0, opening_of(0), 1)
    with pytest.raises(CapacityError, match="live"):
        engine.refresh()
    engine.release(0)
    engine.refresh()
    after = ids_of(talk(engine, count=4))
    assert after != before
    assert after == ids_of(talk(make_engine(model), count=4))


@pytest.mark.parametrize(("name", "lean"), [("llama_mqa", True), ("gpt2", False)])
def test_greedy_takes_the_likeliest_token(models: dict[str, Any], name: str, lean: bool) -> None:
    model = models[name]
    talks = talk(make_engine(model, lean=lean), count=6, greedy=True)
    for ids, turns in talks.values():
        with torch.inference_mode():
            best = model(torch.tensor([ids])).logits[0].argmax(-1)
        for start, turn in turns:
            assert turn.ids.tolist() == best[start - 1 : start - 1 + len(turn.ids)].tolist()
    # Beside lanes that sample, too.
    engine = make_engine(model, lean=lean)
    engine.start(0, opening_of(0), None)
    engine.start(1, opening_of(1), 1001)
    said: dict[int, list[int]] = {}
    while len(said) < 2:
        for turn in engine.advance():
            said[turn.lane] = turn.ids.tolist()
    assert said[0] == talks[0].turns[0][1].ids.tolist()
    sampled = talk(make_engine(model, lean=lean), count=1, turns=1, first=1)
    assert said[1] == sampled[1].turns[0][1].ids.tolist()


def test_conversations_that_begin_alike_are_fed_once(models: dict[str, Any]) -> None:
    engine = make_engine(models["llama_mqa"], lanes=8)
    fed = _count_tokens(engine)
    prompt = np.random.default_rng(0).integers(5, VOCAB, 100).tolist()
    for lane in range(8):
        # Two groups of four: 100 tokens in common, then 30 of the group's own.
        own = np.random.default_rng(1 + lane // 4).integers(5, VOCAB, 30).tolist()
        engine.start(lane, prompt + own, lane)
    engine.advance()
    assert fed() < 130 + 30 + 6 * SHARED
    lonely = make_engine(models["llama_mqa"], lanes=8)
    fed = _count_tokens(lonely)
    for lane in range(8):
        lonely.start(lane, np.random.default_rng(lane).integers(5, VOCAB, 130).tolist(), lane)
    lonely.advance()
    assert fed() == 8 * 130


def _count_tokens(engine: Engine) -> Callable[[], int]:
    forward: Forward = engine._forward
    counts: list[int] = []
    extend = forward.extend

    def counted(
        tokens: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, live: int
    ) -> torch.Tensor:
        counts.append(int((positions >= 0).sum()))
        return extend(tokens, positions, slots, live)

    forward.extend = counted  # type: ignore[method-assign]
    return lambda: sum(counts)


def test_lanes_do_not_wait_for_one_another(models: dict[str, Any]) -> None:
    engine = make_engine(models["llama_mqa"], lanes=2, eos_ids=[], max_turn_tokens=30)
    engine.start(0, opening_of(0), 0)
    first = engine.advance()  # lane 0 has said its thirty
    assert [turn.lane for turn in first] == [0]
    engine.start(1, opening_of(1), 1)
    assert [turn.lane for turn in engine.advance()] == [1]  # lane 0 is silent, its user is slow
    engine.append(0, [5])
    assert [turn.lane for turn in engine.advance()] == [0]
    assert engine.advance() == []


# -- limits ------------------------------------------------------------------------------------


def test_a_full_context_ends_the_turn(models: dict[str, Any]) -> None:
    engine = make_engine(models["llama_mqa"], eos_ids=[], capacity=40, max_turn_tokens=100, lanes=2)
    engine.start(0, list(range(5, 35)), 1)
    engine.start(1, list(range(5, 40)), 2)
    turns = {turn.lane: turn for turn in engine.advance() + engine.advance()}
    assert {lane: (turn.reason, len(turn.ids)) for lane, turn in turns.items()} == {
        0: ("full", 10),
        1: ("full", 5),
    }


def test_what_does_not_fit_is_refused_and_harms_nothing(models: dict[str, Any]) -> None:
    engine = make_engine(models["llama_mqa"], capacity=40, lanes=1)
    for ids in (list(range(5, 45)), [5] * 41, []):
        with pytest.raises(CapacityError):
            engine.start(0, ids, 1)
    assert engine.live == 0
    engine.start(0, opening_of(0), 1)
    with pytest.raises(CapacityError, match="busy"):
        engine.start(0, [5], 1)
    with pytest.raises(CapacityError, match="all 1 lanes"):
        engine.start(1, [5], 1)
    [turn] = engine.advance()
    with pytest.raises(CapacityError, match="context of 40"):
        engine.append(0, [5] * 30)
    engine.append(0, [5])
    assert engine.advance()[0].lane == turn.lane


@pytest.mark.parametrize(
    "settings",
    [{"lanes": 0}, {"capacity": 0}, {"max_turn_tokens": 0}, {"temperature": 0.0}, {"temperature": -1.0}],
)
def test_illegal_settings_are_refused(models: dict[str, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        make_engine(models["llama_mqa"], **settings)


# -- sampling ----------------------------------------------------------------------------------


def splitmix(seed: int, position: int) -> float:
    """The same in plain integers."""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    return (mix((mix((seed + golden) & mask) + golden * position) & mask) >> 12) / 2**52


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31)), min_size=1, max_size=20))
def test_uniforms_depend_on_seed_and_position_only(keys: list[tuple[int, int]]) -> None:
    seeds, positions = zip(*keys)
    got = uniforms(np.array(seeds, np.uint64), np.array(positions, np.int64))
    assert got.tolist() == [splitmix(seed, position) for seed, position in keys]
    assert ((got >= 0) & (got < 1)).all()


def test_uniforms_are_uniform_along_both_axes() -> None:
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300))
    table = uniforms(seeds.ravel(), positions.ravel()).reshape(300, 300)
    counts = np.histogram(table, bins=50, range=(0, 1))[0]
    assert ((counts - 1800) ** 2 / 1800).sum() < 95  # chi-square with 49 degrees of freedom, p < 1e-4
    for shifted in (table[1:, :-1], table[:-1, 1:]):
        assert abs(np.corrcoef(table[:-1, :-1].ravel(), shifted.ravel())[0, 1]) < 4 / 300


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=12), st.floats(0.3, 3), st.integers(0, 11))
def test_sampling_inverts_the_distribution(row: Sequence[float], temperature: float, dead: int) -> None:
    logits = torch.tensor(row)
    logits[dead % len(row)] = -torch.inf
    count = 2000
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logp = sample(logits.expand(count, -1), draws, temperature)
    probabilities = torch.softmax(logits.double() / temperature, -1)
    shares = torch.bincount(tokens, minlength=len(row)) / count
    assert (shares - probabilities).abs().max() <= 1.01 / count
    assert (tokens != dead % len(row)).all()
    torch.testing.assert_close(logp.double(), probabilities.log()[tokens], atol=1e-5, rtol=1e-5)


def test_the_largest_draw_is_a_token_that_can_be_sampled() -> None:
    logits = torch.cat([torch.zeros(5000), torch.full((1000,), -torch.inf)])[None]
    tokens, logp = sample(logits, torch.tensor([1 - 2.0**-52], dtype=torch.float64))
    assert tokens.item() == 4999
    assert logp.item() == pytest.approx(-np.log(5000), abs=1e-4)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=1, max_size=5),
    st.lists(st.integers(0, 6), min_size=5, max_size=5),
    st.lists(st.integers(0, 1), max_size=8),
)
def test_longest_prefix_is_what_a_loop_finds(
    rows: list[list[int]], lengths: list[int], ids: list[int]
) -> None:
    lengths = lengths[: len(rows)]

    def common(row: list[int], length: int) -> int:
        return next((i for i, (a, b) in enumerate(zip(row[:length], ids)) if a != b), min(length, len(ids)))

    best, length = longest_prefix(np.array(rows), np.array(lengths), np.array(ids, dtype=np.int64))
    expected = [common(row, known) for row, known in zip(rows, lengths)]
    assert length == max(expected) and expected[best] == length
