"""Every family of causal language models is served right, or refused by name before anything is sampled.

Models are random and tiny. *Right* is what a plain forward over the whole conversation says, for ragged conversations
of several turns in shared lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import LlamaConfig, T5Config

from algos.rollout.engine import Engine
from algos.rollout.forward import check_attention
from convgym.errors import CapacityError, ConfigError, ModelError
from tests.algos.rollout.test_engine import EOS, Talk, ids_of, talk

VOCAB, CONTEXT = 61, 256
PLAIN: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
GROUPED = PLAIN | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}  # families whose heads are not hidden_size / heads wide by default
WINDOW = WIDE | {"sliding_window": 200}
EXPERTS = GROUPED | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = EXPERTS | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
OLD = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
NEO = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": CONTEXT}
NEO |= {"attention_types": [[["global", "local"], 1]]}
STATE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    # positions: learnt, sinusoidal, rotary (whole, part of a head, interleaved), linear biases
    "gpt2": ("GPT2", OLD),
    "gpt_neo": ("GPTNeo", NEO),
    "gpt_neox_pythia": ("GPTNeoX", PLAIN),
    "gptj": ("GPTJ", OLD | {"rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCode", OLD),
    "opt": ("OPT", PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "xglm": (
        "XGLM",
        {"vocab_size": VOCAB, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
        | {"max_position_embeddings": CONTEXT},
    ),
    "mpt_alibi": ("Mpt", {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT}),
    "falcon_rotary": ("Falcon", STATE | {"num_attention_heads": 4, "max_position_embeddings": CONTEXT}),
    "phi": ("Phi", PLAIN | {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", WIDE),
    # Llama and its relatives
    "llama": ("Llama", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", WIDE),
    "smollm3": ("SmolLM3", GROUPED),
    "mistral_below_its_window": ("Mistral", WINDOW),
    "ministral": ("Ministral", WINDOW),
    "gemma": ("Gemma", WIDE),
    "gemma2": ("Gemma2", WINDOW | {"query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", WINDOW | {"query_pre_attn_scalar": 8}),
    "gemma4_shared_keys": (
        "Gemma4",
        WINDOW
        | {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
        | {"vocab_size_per_layer_input": VOCAB, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "olmo2": ("Olmo2", GROUPED),
    "cohere": ("Cohere", GROUPED | {"logit_scale": 1.0}),
    "granite": ("Granite", GROUPED),
    "stablelm": ("StableLm", GROUPED),
    "starcoder2": ("Starcoder2", GROUPED),
    "glm4": ("Glm4", WIDE),
    "exaone4": ("Exaone4", GROUPED | {"sliding_window": 200}),
    "seed_oss": ("SeedOss", WIDE),
    "diff_llama": ("DiffLlama", GROUPED),
    "bitnet": ("BitNet", GROUPED),
    # experts, sinks, latent attention
    "mixtral": ("Mixtral", EXPERTS),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | {"head_dim": 8}),
    "gpt_oss": ("GptOss", EXPERTS | {"head_dim": 8, "sliding_window": 200}),
    "deepseek_v3": ("DeepseekV3", LATENT),
    # hybrids whose layers happen to be of one kind
    "lfm2_without_convolutions": ("Lfm2", GROUPED | {"layer_types": ["full_attention"] * 2}),
}

REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "mistral_above_its_window": (
        "Mistral",
        GROUPED | {"sliding_window": 199},
        CapacityError,
        "max_context to at most 199",
    ),
    "gemma3_above_its_window": ("Gemma3", WIDE | {"sliding_window": 64}, CapacityError, "last 64 tokens only"),
    "gpt_neo_above_its_window": ("GPTNeo", NEO | {"window_size": 64}, CapacityError, "last 64 tokens only"),
    "gpt2_above_its_context": ("GPT2", OLD | {"n_positions": 128}, CapacityError, "max_context to at most 128"),
    "bloom_alibi": ("Bloom", STATE | {"n_layer": 2, "n_head": 4}, ModelError, r"on a cache of slots: .*ALiBi"),
    "falcon_alibi": ("Falcon", STATE | {"num_attention_heads": 4, "alibi": True}, ModelError, "on a cache of slots"),
    "roberta_own_positions": ("Roberta", PLAIN | {"is_decoder": True}, ModelError, "gives other logits"),
    "gpt_without_a_cache": ("OpenAIGPT", OLD, ModelError, "on a cache of slots"),
    "mamba": ("Mamba", STATE | {"state_size": 8}, ModelError, "linear_attention"),
    "mamba2": (
        "Mamba2",
        STATE | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
        ModelError,
        "linear_attention",
    ),
    "rwkv": ("Rwkv", STATE | {"attention_hidden_size": 32, "context_length": CONTEXT}, ModelError, "recurrent state"),
    "recurrent_gemma": ("RecurrentGemma", WIDE | {"lru_width": 32}, ModelError, "linear_attention"),
    "qwen3_next": ("Qwen3Next", EXPERTS | {"head_dim": 8, "num_hidden_layers": 4}, ModelError, "linear_attention"),
    "lfm2_with_convolutions": (
        "Lfm2",
        GROUPED | {"layer_types": ["conv", "full_attention"]},
        ModelError,
        "layers of kind conv",
    ),
    "llama4_chunked": (
        "Llama4",
        WIDE
        | {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 16, "no_rope_layers": [1, 0]},
        ModelError,
        "chunked_attention",
    ),
    "dynamic_rope": (
        "Llama",
        GROUPED | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        ModelError,
        "dynamic RoPE",
    ),
    "encoder_decoder": (
        "T5",
        {"vocab_size": VOCAB, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 1, "num_heads": 4},
        ModelError,
        "encoder-decoder",
    ),
}


def build(family: str, settings: dict[str, Any]) -> Any:
    """A random model with weights so large that what is attended to matters, and no vector at its initial 0 or 1."""
    found = [getattr(transformers, f"{family}{kind}Config", None) for kind in ("Text", "")]
    config = next(kind for kind in found if kind is not None)(**settings)
    kinds = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    model_kind = next(getattr(transformers, family + kind) for kind in kinds if hasattr(transformers, family + kind))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = model_kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if not bool(torch.isfinite(parameter).all()) or parameter.abs().max() > 1e3:  # left to checkpoints
                    parameter.normal_(0, 0.02)
                if parameter.ndim > 1:
                    parameter.mul_(12)
                else:
                    parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()))
    return model.eval()


def make_engine(model: Any, **changes: Any) -> Engine:
    settings: dict[str, Any] = {"eos_ids": EOS, "lanes": 5, "capacity": 200, "max_turn_tokens": 12}
    return Engine(model, **settings | changes)


def check(model: Any, talks: dict[int, Talk]) -> None:
    for ids, turns in talks.values():
        other = [ids[0] ^ 1, *ids[1:]]
        with torch.inference_mode():
            logp, changed = (
                torch.log_softmax(model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float(), -1)
                for row in (ids, other)
            )
        assert (logp - changed)[-1].abs().max() > 1e-3  # the whole conversation is attended to
        for start, turn in turns:
            assert turn.ids.tolist() == ids[start : start + len(turn.ids)]
            expected = logp[torch.arange(start, start + len(turn.ids)) - 1, torch.from_numpy(turn.ids)]
            np.testing.assert_allclose(turn.logp, expected.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", list(SERVED))
def test_a_family_is_served_right(name: str) -> None:
    model = build(*SERVED[name])
    talks = talk(make_engine(model), count=7)
    assert min(len(turns) for _, turns in talks.values()) == 3
    assert len({len(ids) for ids, _ in talks.values()}) > 3
    check(model, talks)
    alone = talk(make_engine(model, lanes=1), count=2)
    assert ids_of(alone) == {index: talks[index].ids for index in (0, 1)}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_family_is_refused_by_name(name: str) -> None:
    family, settings, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        make_engine(build(family, settings))


def test_the_text_of_a_model_that_also_sees_is_what_counts() -> None:
    text = WIDE | {"sliding_window": 64}
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=sight | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    model: Any = transformers.Gemma3ForConditionalGeneration(config)
    model.eval()
    with pytest.raises(CapacityError, match="last 64 tokens only"):
        make_engine(model)
    with pytest.raises(CapacityError, match="model's context has 256"):
        make_engine(model, capacity=257)
    assert make_engine(model, capacity=64).capacity == 64


def test_a_context_that_no_configuration_names_must_be_given() -> None:
    with pytest.raises(ConfigError, match="MptForCausalLM names no context length; give a capacity"):
        make_engine(build(*SERVED["mpt_alibi"]), capacity=None)


def test_rope_that_changes_is_found_in_one_kind_of_layer() -> None:
    config: Any = LlamaConfig()
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    config.rope_parameters = {"full_attention": plain | {"rope_type": "longrope"}, "sliding_attention": plain}
    with pytest.raises(ModelError, match="longrope RoPE"):
        check_attention(config, 10)
    with pytest.raises(ModelError, match="encoder-decoder"):
        check_attention(T5Config(), 10)
