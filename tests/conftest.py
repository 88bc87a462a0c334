"""Fixtures that every part shares: a small random policy, made in a fraction of a second."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

import tests.shapes

# The annotated shapes of the mathematics are checked at every call that a test makes, by whatever way.
install_import_hook("algos.maths", f"{tests.shapes.__name__}.checked")

# Before torch is imported: small models are faster with one thread, and tests may run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from algos.policies.load import Policy

CORPUS = (
    "You help customers of a shop. Returns within 30 days. Verify the pin first.",
    "Hi, I want a refund for order 4821, please. It arrived broken.",
    "What is your pin? May I have the order number?",
    "Thank you, your order 4821 is on its way. Bye!",
    '<tool_call>{"name": "get_order", "arguments": {"order": "4821"}}</tool_call>',
    '<tool_call>{"name": "verify", "arguments": {"order": "4821", "pin": "0932"}}</tool_call>',
    '{"order": "4821", "status": "shipped", "total": "52.00"}',
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded kind of tokenizer, with about 300 ids."""
    from algos.policies.embedded import train_tokenizer

    return train_tokenizer(CORPUS * 3, 320)


@pytest.fixture(scope="session")
def tiny_policy(tiny_tokenizer: PreTrainedTokenizerFast) -> Policy:
    """A random multi-query Llama of 2 x 32. Shared: change weights of a ``deepcopy`` only."""
    from algos.policies.embedded import Shape, new_model
    from algos.policies.load import make_policy

    shape = Shape(layers=2, hidden=32, heads=2, mlp=64, vocab=320, context=512)
    return make_policy(new_model(shape, tiny_tokenizer, seed=0), tiny_tokenizer, name="tiny")
