"""Hidden states from the tree are those of the model's own forward, with their gradients, for less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from algos.learner import trunk
from algos.learner.prefixes import prefix_tree
from algos.learner.scores import recomputing
from algos.learner.trunk import hidden_before, on_tree
from algos.policies import products
from algos.policies.products import rounded

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SHAPES = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=4),
    "grouped queries": LlamaConfig(**SMALL, num_key_value_heads=2),
    "one key head": LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=True),
    "wide heads": LlamaConfig(**SMALL, num_key_value_heads=2, head_dim=10, attention_bias=True, mlp_bias=True),
    "scaled rope": LlamaConfig(
        **SMALL, num_key_value_heads=2, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "gelu": LlamaConfig(**SMALL, num_key_value_heads=2, hidden_act="gelu"),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
}
each_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def model_of(config: Any, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():  # norms and biases that do something
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, float("norm" in name), 0.3)
            else:
                torch.nn.init.normal_(parameter, 0.0, 0.2)  # attention that looks somewhere
    return model


def conversations(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two groups of four with openings in common, ragged; tokens and action, in no particular order."""
    draw = torch.Generator().manual_seed(seed)
    tokens, action = torch.zeros(8, 26, dtype=torch.int64), torch.zeros(8, 26, dtype=torch.bool)
    instructions = torch.randint(40, (5,), generator=draw)
    openings = [torch.cat([instructions, torch.randint(40, (n,), generator=draw)]) for n in (2, 6)]
    for row in range(8):
        opening = openings[row % 2]
        own = torch.randint(40, (int(torch.randint(4, 26 - len(opening), (), generator=draw)),), generator=draw)
        tokens[row, : len(opening) + len(own)] = torch.cat([opening, own])
        action[row, len(opening) : len(opening) + 2] = True
        action[row, len(opening) + len(own) - 1] = True
    return tokens, action


def plain(decoder: Any, tokens: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = decoder(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden[row, column - 1]


def states_and_gradients(model: PreTrainedModel, states: torch.Tensor) -> list[torch.Tensor]:
    weight = torch.sin(torch.arange(states.numel())).view_as(states)
    decoder = model.get_decoder()
    return [states, *torch.autograd.grad((weight * states).sum(), list(decoder.parameters()))]


@each_shape
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("short", [512, 0])
@pytest.mark.parametrize("large", [1, 10**9])
def test_states_and_gradients_are_those_of_the_plain_forward(
    config: Any, ordered: bool, short: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention in plain products and in the fused kernel, which longer rows get; products by either library."""
    monkeypatch.setattr(trunk, "SHORT", short)
    monkeypatch.setattr(products, "LARGE", large)
    model = model_of(config)
    decoder = model.get_decoder()
    tokens, action = conversations()
    if ordered:
        order = torch.tensor(sorted(range(8), key=lambda i: tokens[i].tolist()))
        tokens, action = tokens[order], action[order]
    row, column = action.nonzero(as_tuple=True)
    assert on_tree(decoder)
    ours = states_and_gradients(model, hidden_before(decoder, tokens, row, column))
    theirs = states_and_gradients(model, plain(decoder, tokens, row, column))
    for ours_of, theirs_of in zip(ours, theirs, strict=True):
        largest = float(theirs_of.detach().abs().max())  # rounding grows with the numbers that are summed
        assert largest > 1e-3
        torch.testing.assert_close(ours_of, theirs_of, rtol=0, atol=1e-5 * max(1.0, largest))


def test_what_is_common_is_computed_once_and_the_last_layer_answers_where_it_is_asked() -> None:
    model = model_of(SHAPES["grouped queries"])
    decoder = model.get_decoder()
    tokens, action = conversations()
    order = torch.tensor(sorted(range(8), key=lambda i: tokens[i].tolist()))
    tokens, action = tokens[order], action[order]
    row, column = action.nonzero(as_tuple=True)
    seen: list[int] = []
    for layer in decoder.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    hidden_before(decoder, tokens, row, column)
    lengths = (action * torch.arange(26)).amax(1)  # the last action token is not read
    beginnings = {tuple(tokens[r, : t + 1].tolist()) for r in range(8) for t in range(int(lengths[r]))}
    asked = {tuple(tokens[r, :t].tolist()) for r, t in zip(row.tolist(), column.tolist())}
    assert seen == [rounded(len(beginnings)), rounded(len(beginnings)), rounded(len(asked))]
    assert len(asked) < len(beginnings) < int(lengths.sum())


def test_gradient_checkpointing_computes_layers_again_and_gives_the_same() -> None:
    model = model_of(SHAPES["grouped queries"])
    decoder = model.get_decoder()
    tokens, action = conversations()
    row, column = action.nonzero(as_tuple=True)
    passes: list[None] = []
    decoder.layers[0].post_attention_layernorm.register_forward_pre_hook(lambda *_: passes.append(None))

    def run(on: bool) -> tuple[list[torch.Tensor], int]:
        passes.clear()
        with recomputing(model, on):
            return states_and_gradients(model, hidden_before(decoder, tokens, row, column)), len(passes)

    (once, first), (again, second) = run(False), run(True)
    assert (first, second) == (1, 2)
    for ours, theirs in zip(again, once, strict=True):
        assert torch.equal(ours, theirs)


def test_other_models_run_as_they_are() -> None:
    """Another kind of layer, a sliding window, or an implementation of attention that was asked for by name."""
    small = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    others = [
        model_of(GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=4, n_positions=64)),
        model_of(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)),
        model_of(Qwen2Config(**small, intermediate_size=40, num_key_value_heads=2, attn_implementation="eager")),
    ]
    tokens, action = conversations()
    row, column = action.nonzero(as_tuple=True)
    for model in others:
        decoder = model.get_decoder()
        assert not on_tree(decoder)
        assert torch.equal(hidden_before(decoder, tokens, row, column), plain(decoder, tokens, row, column))


class Doubled(torch.nn.Linear):
    """Stands for an adapter: a projection that does more than its class says."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def doubled(linear: torch.nn.Linear) -> Doubled:
    made = Doubled(linear.in_features, linear.out_features, linear.bias is not None)
    made.load_state_dict(linear.state_dict())
    return made


PROJECTIONS = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
MODULES = ["", "layers.1", "layers.1.self_attn", "layers.1.mlp", "layers.1.mlp.gate_proj", "norm"]


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("large", [1, 10**9])
def test_an_adapter_is_called(name: str, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", large)
    model = model_of(SHAPES["grouped queries"])
    tokens, action = conversations()
    row, column = action.nonzero(as_tuple=True)
    decoder = model.get_decoder()
    before = hidden_before(decoder, tokens, row, column)
    for layer in decoder.layers:
        layer.set_submodule(name, doubled(layer.get_submodule(name)))
    ours = hidden_before(decoder, tokens, row, column)
    assert on_tree(decoder) and (ours - before).abs().max() > 0.1
    torch.testing.assert_close(ours, plain(decoder, tokens, row, column), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("hook", ["forward hook", "forward"])
def test_a_hook_anywhere_is_heard(name: str, hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a replaced ``forward`` of one module, which is how accelerate attaches its hooks."""
    monkeypatch.setattr(products, "LARGE", 1)
    decoder = model_of(SHAPES["grouped queries"]).get_decoder()
    tokens, action = conversations()
    row, column = action.nonzero(as_tuple=True)
    module = decoder.get_submodule(name)
    heard: list[None] = []
    if hook == "forward":
        forward = module.forward
        module.forward = lambda *args, **kwargs: (heard.append(None), forward(*args, **kwargs))[1]
    else:
        module.register_forward_hook(lambda *_: heard.append(None))
    hidden_before(decoder, tokens, row, column)
    assert heard


def test_frozen_weights_get_no_gradient_and_the_others_the_same() -> None:
    model = model_of(SHAPES["grouped queries"])
    decoder = model.get_decoder()
    tokens, action = conversations()
    row, column = action.nonzero(as_tuple=True)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("v_proj" in name or "post" in name)
    trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    found = []
    for states in (hidden_before(decoder, tokens, row, column), plain(decoder, tokens, row, column)):
        weight = torch.sin(torch.arange(states.numel())).view_as(states)
        found.append(torch.autograd.grad((weight * states).sum(), trained))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


@each_shape
def test_in_bf16_it_errs_no_more_than_the_plain_forward(config: Any) -> None:
    model = model_of(config)
    decoder = model.get_decoder()
    tokens, action = conversations()
    row, column = action.nonzero(as_tuple=True)
    with torch.no_grad():
        exact = plain(decoder, tokens, row, column)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = hidden_before(decoder, tokens, row, column), plain(decoder, tokens, row, column)
    errors = [float((states.float() - exact).abs().mean()) for states in (ours, theirs)]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_rows_without_a_wanted_place_cost_nothing() -> None:
    tokens, action = conversations()
    action[1:] = False
    row, column = action.nonzero(as_tuple=True)
    decoder = model_of(SHAPES["llama"]).get_decoder()
    seen: list[int] = []
    decoder.layers[0].input_layernorm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    states = hidden_before(decoder, tokens, row, column)
    assert seen == [rounded(int(column.max()))]
    torch.testing.assert_close(states, plain(decoder, tokens[:1], row, column), rtol=1e-4, atol=2e-5)
    nowhere = torch.empty(0, dtype=torch.int64)
    assert hidden_before(decoder, tokens, nowhere, nowhere).shape == (0, 24)


def test_equal_rows_are_one_path() -> None:
    tokens = torch.tensor([[3, 1, 4, 1], [3, 1, 4, 1], [3, 1, 4, 2]])
    tree = prefix_tree(tokens, torch.tensor([4, 4, 4]))
    assert tree.tokens.tolist() == [3, 1, 4, 1, 2]
    assert tree.node.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 4]]
