"""Products by either library are the same, with their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.policies import products
from algos.policies.products import Product, has_onednn, linear, rounded

one_library = pytest.mark.skipif(not has_onednn(torch.zeros(1, 1)), reason="this build of torch has no oneDNN")


@one_library
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_a_linear_layer_and_its_gradients_are_those_of_torch(
    bias: bool, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LARGE", 1)
    draw = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(*shape, bias=bias)
    x, upstream = (torch.randn(11, n, generator=draw) for n in shape)
    inputs = [x.requires_grad_(), *module.parameters()]
    ours, theirs = linear(module, x), module(x)
    assert "Linear" in type(ours.grad_fn).__name__ and type(ours.grad_fn) is not type(theirs.grad_fn)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    pairs = zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream))
    for our, their in pairs:
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@one_library
def test_only_the_gradients_that_are_needed_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", 1)
    module = torch.nn.Linear(3, 2).requires_grad_(False)
    x = torch.ones(4, 3, requires_grad=True)
    linear(module, x).sum().backward()
    torch.testing.assert_close(x.grad, module.weight.sum(0).expand(4, 3))
    assert module.weight.grad is None and module.bias.grad is None


def test_a_module_that_is_more_than_a_product_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass (adapters), a hook, autocast, another type: whatever it does, it does."""
    monkeypatch.setattr(products, "LARGE", 1)

    class Doubling(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    x = torch.ones(4, 3)
    doubling = Doubling(3, 2)
    assert torch.equal(linear(doubling, x), doubling(x))
    hooked = torch.nn.Linear(3, 2)
    hooked.register_forward_hook(lambda *_: torch.zeros(4, 2))
    assert not linear(hooked, x).any()
    plain = torch.nn.Linear(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(plain, x).dtype == torch.bfloat16
    assert linear(plain.double(), x.double()).dtype == torch.float64


@one_library
@pytest.mark.parametrize("bias", [None, torch.arange(5.0)])
def test_a_product_is_the_same_in_both_libraries(bias: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    x, weight, base = (torch.randn(*shape, generator=draw) for shape in ((6, 7), (7, 5), (6, 5)))
    product = Product(weight, bias)
    found = []
    with torch.inference_mode():
        for large in (1, 10**9):
            monkeypatch.setattr(products, "LARGE", large)
            found.append((product(x), product.onto(base, x)))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][0], x @ weight + (0 if bias is None else bias), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1], base + x @ weight, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 10**7))
def test_few_round_numbers_are_at_most_a_sixteenth_larger(rows: int) -> None:
    up = rounded(rows)
    assert rows <= up <= rows * 17 / 16
    assert rounded(up) == up


def test_round_numbers_are_few() -> None:
    assert len({rounded(rows) for rows in range(4096, 8192)}) == 16 + 1
