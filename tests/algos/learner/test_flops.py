"""Operations of a training step: the formula against torch's own counter, published sizes, and devices."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from algos.learner.flops import DEVICES, Size, known_device, peak, size_of, training_flops, utilisation
from algos.learner.scores import score
from algos.policies.embedded import new_model
from algos.policies.load import Policy
from tests.algos.learner.made import conversations, fresh, learner_of


def test_sizes_are_counted_by_hand() -> None:
    """Llama 3.2 1B without its norms: 16 (2 D^2 + 2 D 512 + 3 D 8192) with D = 2,048, and a head of 128,256 x D."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        size = size_of(LlamaForCausalLM(config))
    assert size == Size(matrices=973_078_528, head=262_668_288, attention=16 * 32 * 64)


def test_untied_heads_and_positions_that_are_looked_up_do_not_count_twice() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(vocab_size=100, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)  # fmt: skip
    assert size_of(LlamaForCausalLM(llama)) == Size(2 * (2 * 256 + 2 * 16 * 8 + 3 * 16 * 24), 1600, 2 * 16)
    gpt = GPT2Config(vocab_size=100, n_positions=30, n_embd=16, n_layer=2, n_head=2)
    assert size_of(GPT2LMHeadModel(gpt)) == Size(2 * 12 * 256, 1600, 2 * 16)


@pytest.mark.parametrize("length", [8, 33])
def test_the_formula_is_what_torch_counts(tiny_policy: Policy, length: int) -> None:
    """Torch counts all T^2 pairs of tokens, the formula T (T + 1) / 2 of them; products must agree exactly."""
    model = fresh(tiny_policy).model
    model.set_attn_implementation("eager")  # plain products, which the counter knows on any device
    tokens = torch.arange(6, 6 + 2 * length).view(2, length)
    action = torch.zeros(2, length, dtype=torch.bool)
    action[:, -3:] = True
    with FlopCounterMode(display=False) as counter:
        score(model, tokens, action).logp.sum().backward()
    size = size_of(model)
    unseen = 6 * size.attention * 2 * (length * length - length)  # 12 L H E [T^2 - T (T + 1) / 2], two rows
    assert counter.get_total_flops() == training_flops(size, [length, length], 6) + unseen


def test_a_row_costs_what_it_holds() -> None:
    size = Size(matrices=10, head=7, attention=3)
    assert training_flops(size, [], 0) == 0
    assert training_flops(size, [4], 2) == 6 * (10 * 4 + 7 * 2 + 3 * 4 * 5)
    both = training_flops(size, [4], 2) + training_flops(size, [9], 5)
    assert training_flops(size, [4, 9], 7) == pytest.approx(both)


def test_devices_are_known_by_their_names() -> None:
    """NVIDIA's data sheets, dense: H100 SXM 989 bf16 and 67 fp32 TFLOP/s, 3.35 TB/s; its PCIe card 756, 51, 2.0."""
    sxm, pcie = known_device("NVIDIA H100 80GB HBM3"), known_device("NVIDIA H100 PCIe")
    assert sxm is not None and (sxm.bf16, sxm.fp32, sxm.bandwidth) == (989, 67, 3.35)
    assert pcie is not None and (pcie.bf16, pcie.fp32, pcie.bandwidth) == (756, 51, 2.0)
    assert known_device("NVIDIA L4") == DEVICES["L4"] and known_device("NVIDIA L40S") == DEVICES["L40S"]
    assert known_device("Some Other Card") is None
    assert peak(torch.device("cpu"), "fp32") is None


def test_utilisation_is_a_share_where_the_peak_is_known() -> None:
    assert utilisation(3e12, 2.0, None) == {"model_tflops": 1.5}
    assert utilisation(3e12, 2.0, 6e12) == {"model_tflops": 1.5, "mfu": 0.25}


def test_rows_without_gradient_do_no_work(tiny_policy: Policy) -> None:
    """Of a group that earned alike nothing is passed back."""
    alike = conversations(tiny_policy, 8, seed=1)
    for episode in alike[:4]:
        episode.rewards[:] = 1 / len(episode.rewards)
    whole, half = learner_of(tiny_policy, "grpo"), learner_of(tiny_policy, "grpo")
    rates = [whole.update(conversations(tiny_policy, 8, seed=1)), half.update(alike)]
    work = [r["model_tflops"] * sum(r[f"seconds_{p}"] for p in ("observe", "credit", "optimise", "monitor"))
            for r in rates]  # fmt: skip
    size = size_of(whole.model)
    expected = [
        training_flops(size, [len(e.ids) for e in episodes], sum(int(e.action.sum()) for e in episodes)) / 1e12
        for episodes in (alike, alike[4:])
    ]
    assert work == pytest.approx(expected)


def test_new_models_have_the_size_that_their_table_says() -> None:
    """`nano`: 3 (2 x 96^2 + 2 x 96 x 24 + 3 x 96 x 256)."""
    from algos.policies.load import load_policy

    nano = load_policy("nano")
    assert size_of(nano.model).matrices == 3 * (2 * 96**2 + 2 * 96 * 24 + 3 * 96 * 256)
    assert size_of(new_model("nano", nano.tokenizer)) == size_of(nano.model)
