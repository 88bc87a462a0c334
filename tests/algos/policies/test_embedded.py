"""The embedded policies: their tokenizer, their models, their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from algos.policies.embedded import (
    END,
    PAD,
    SHAPES,
    SPECIAL_TOKENS,
    Shape,
    new_model,
    save_policy,
    train_tokenizer,
)
from algos.policies.load import Policy, load_policy, make_policy
from convgym.errors import ConfigError, UnknownNameError
from convgym.tools import format_call
from tests.conftest import CORPUS

SMALL = Shape(layers=2, hidden=32, heads=2, mlp=64, vocab=320, context=64)


def test_numbers_are_spelled_and_calls_are_short() -> None:
    tokenizer = train_tokenizer(CORPUS * 3, 420)
    assert tokenizer.tokenize("4821 0932") == ["4", "8", "2", "1", "Ġ", "0", "9", "3", "2"]
    tokens = tokenizer.tokenize(format_call("get_order", {"order": "4821"}))
    assert tokens[0] == '<tool_call>{"name":Ġ"'
    assert '",Ġ"arguments":Ġ{"' in tokens
    assert tokens[-1] == '"}}</tool_call>'
    assert len(tokens) == 10


def test_every_byte_is_a_token_and_control_tokens_come_first(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("".join(map(chr, range(0x250))), "日本 🎉\x00", " \n\t  x"):
        assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text
    assert tiny_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(6))
    assert (tiny_tokenizer.pad_token, tiny_tokenizer.eos_token) == (PAD, END)
    assert tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id


def test_learning_a_tokenizer_is_repeatable(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(CORPUS * 3, 320)
    assert again.backend_tokenizer.to_str() == tiny_tokenizer.backend_tokenizer.to_str()
    with pytest.raises(ConfigError, match="256 bytes"):
        train_tokenizer(CORPUS, 100)


def test_models_are_made_from_seeds(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two, other = (new_model(SMALL, tiny_tokenizer, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for (name, a), b, c in zip(one.named_parameters(), two.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c), name
        assert a.dtype == torch.float32
    assert not one.training


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_multi_query_and_tied(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(name, tiny_tokenizer)
    assert model.config.num_key_value_heads == 1
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.max_position_embeddings == SHAPES[name].context
    layers = sum(p.numel() for p in model.model.layers.parameters())
    total = layers + SHAPES[name].vocab * SHAPES[name].hidden
    low, high = {"nano": (1e5, 4e5), "micro": (0.8e6, 1.3e6), "mini": (4e6, 5e6)}[name]
    assert low <= total <= high


def test_sizes_that_do_not_divide_are_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="divisible"):
        Shape(layers=2, hidden=30, heads=4, mlp=64, vocab=320)
    with pytest.raises(UnknownNameError, match="nano"):
        new_model("nanno", tiny_tokenizer)


def test_a_saved_policy_is_an_ordinary_folder(tiny_policy: Policy, tmp_path: Path) -> None:
    folder = save_policy(tiny_policy, tmp_path / "deep" / "policy")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    ids = torch.arange(6, 40)[None]
    original: Any = tiny_policy.model
    ours: Any = load_policy(folder).model
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        for model in (ours, theirs):
            assert torch.equal(model(ids).logits, original(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi 42"}]
    grown = load_policy(folder).chat.delta(messages)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == grown
    assert grown == tiny_policy.chat.delta(messages)
    generated = theirs.generate(torch.tensor([grown]), max_new_tokens=4)
    assert generated.shape[1] > len(grown)


def test_every_eos_of_model_and_tokenizer_ends_a_turn(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(SMALL, tiny_tokenizer)
    model.generation_config.eos_token_id = [7, 8]
    model.config.eos_token_id = 9
    assert make_policy(model, tiny_tokenizer).eos_ids == {1, 7, 8, 9}
