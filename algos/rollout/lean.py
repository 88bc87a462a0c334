"""The fast path of the rollout engine for Llama-shaped models: the same weights, a dozen operations a layer.

What ``transformers`` spends on dispatch, cache objects and masks, a small model cannot afford. Here the
projections of
a layer are fused and stored transposed, and rotary embedding is one complex product: the columns of queries
    and keys
are reordered so that the two halves that rotate together stand side by side (queries and keys alike, so that
their dot products stay what they were).

A row of the fused projection is ``[queries | key, value of head 0 | key, value of head 1 | ...]``. The
rotation table
covers it whole: rotation times ``head_dim ** -0.5`` for queries, rotation for keys, 1 for values. So the
    right part of
the rotated row goes into the cache as it is.

Letters of comments: n lanes in a decoding step; m rows of q tokens in an extension; M live columns of the
    cache;
H query heads, N key-value heads, E width of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROUND = 16  # live columns are rounded up to this: few distinct shapes, aligned rows
FIRST = 255  # columns of a cache that begins to grow


class _Layer(NamedTuple):
    norm: Tensor  # [D]
    wqkv: Tensor  # [D, (H+2N)E]
    bqkv: Tensor | None  # [(H+2N)E]
    wo: Tensor  # [HE, D]
    mlp_norm: Tensor  # [D]
    gate_up: Tensor  # [D, 2F]
    down: Tensor  # [F, D]


def is_lean(model: Any) -> bool:
    """Whether the fast path computes this model exactly: plain Llama or Qwen2 with static RoPE."""
    config = model.config
    if type(model).__name__ not in ("LlamaForCausalLM", "Qwen2ForCausalLM") or config.hidden_act != "silu":
        return False
    attention = model.model.layers[0].self_attn
    linear = (attention.q_proj, attention.o_proj, model.model.layers[0].mlp.gate_proj, model.lm_head)
    if any(type(module) is not torch.nn.Linear for module in linear):  # adapters, quantised layers
        return False
    biased = attention.o_proj.bias is not None or linear[2].bias is not None or linear[3].bias is not None
    rotary = model.model.rotary_emb
    static = getattr(rotary, "rope_type", "default") in ("default", "linear", "llama3", "yarn")
    return not biased and static and 2 * len(rotary.inv_freq) == attention.head_dim


class LeanForward:
    """Forward passes of a Llama-shaped model over a static cache with a write position for each slot.

    Args:
        model: A model that ``is_lean`` accepts.
        slots: Conversations held at once.
        capacity: Most tokens in a conversation.
    """

    def __init__(self, model: Any, slots: int, capacity: int) -> None:
        config = model.config
        self.device = model.lm_head.weight.device
        self._model, self._slots, self._capacity = model, slots, capacity
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._width = model.model.layers[0].self_attn.head_dim
        self._eps, self._hidden = config.rms_norm_eps, config.hidden_size
        self._columns = torch.arange(capacity + ROUND + 1, device=self.device)
        self._rows = self._room = 0  # slots and columns of the cache
        self.refresh()

    def refresh(self) -> None:
        """Takes over the model's present weights, and empties the cache."""
        with torch.inference_mode():
            trunk = self._model.model
            order = self._interleaved(self._heads + self._kv_heads)
            self._layers = [self._fuse(layer, order) for layer in trunk.layers]
            self._embedding = trunk.embed_tokens.weight.detach()
            self._norm = trunk.norm.weight.detach()
            self._head = self._model.lm_head.weight.detach().t().contiguous()  # [D, V]
        self._empty()

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, live: int) -> Tensor:
        """Feeds one token to each of the first n slots.

        Args:
            tokens: [n] ids.
            positions: [n] columns that they are written to; each attends to the columns up to its own.
            live: Columns in use, the new ones included.

        Returns:
            Logits of the following token, float32 [n,V].
        """
        self._reserve(live)
        n, live = len(tokens), min(-(-live // ROUND) * ROUND, self._room)
        H, N, E = self._heads, self._kv_heads, self._width
        at = self._flat(torch.arange(n, device=self.device), positions)  # [nN]
        turn = self._rotations[positions]  # [n, (H+2N)E/2]
        unseen = self._columns[:live] > positions[:, None]  # [n,M]
        bias = torch.zeros(n, 1, live, device=self.device).masked_fill_(unseen[:, None], -torch.inf)
        if N > 1:
            bias = bias.repeat_interleave(N, 0)  # [nN,1,M]
        x = F.embedding(tokens, self._embedding)  # [n,D]
        for layer, cache in zip(self._layers, self._cache):
            row = self._project(x, layer, turn)  # [n, (H+2N)E]
            query = row[:, : H * E].reshape(n * N, H // N, E)
            cache.view(-1, 2 * E).index_copy_(0, at, row[:, H * E :].reshape(n * N, 2 * E))
            seen = cache[:n, :, :live].view(n * N, live, 2 * E)
            weights = torch.softmax(torch.baddbmm(bias, query, seen[..., :E].transpose(1, 2)), -1)
            heard = torch.bmm(weights, seen[..., E:])  # [nN, H/N, E]
            x = self._finish(x, heard.view(n, H * E), layer)
        return self._logits(x)

    @torch.inference_mode()
    def extend(self, tokens: Tensor, positions: Tensor, slots: Tensor, live: int) -> Tensor:
        """Feeds q tokens to each of m slots; shorter rows are padded on the left.

        Args:
            tokens: [m,q] ids.
            positions: [m,q] columns that they are written to; -1 at padding.
            slots: [m] distinct slots.
            live: Columns in use, the new ones included.

        Returns:
            Logits of the token that follows the last column, float32 [m,V].
        """
        self._reserve(live)
        (m, q), live = tokens.shape, min(-(-live // ROUND) * ROUND, self._room)
        H, N, E = self._heads, self._kv_heads, self._width
        # Padding is written to the cache's last column, which nothing else uses, and reads what it likes.
        positions = torch.where(positions < 0, self._room, positions)
        at = self._flat(slots[:, None].expand(m, q).reshape(-1), positions.view(-1))  # [mqN]
        turn = self._rotations[positions.view(-1)]
        unseen = self._columns[:live] > positions[:, :, None]  # [m,q,M]
        bias = torch.zeros(m, 1, q, live, device=self.device).masked_fill_(unseen[:, None], -torch.inf)
        x = F.embedding(tokens.view(-1), self._embedding)  # [mq,D]
        for layer, cache in zip(self._layers, self._cache):
            row = self._project(x, layer, turn)  # [mq, (H+2N)E]
            query = row[:, : H * E].view(m, q, H, E).transpose(1, 2)
            cache.view(-1, 2 * E).index_copy_(0, at, row[:, H * E :].reshape(-1, 2 * E))
            seen = cache[:, :, :live].index_select(0, slots)  # [m,N,M,2E]
            heard = F.scaled_dot_product_attention(
                query, seen[..., :E], seen[..., E:], attn_mask=bias, scale=1.0, enable_gqa=N != H
            )
            x = self._finish(x, heard.transpose(1, 2).reshape(m * q, H * E), layer)
        return self._logits(x.view(m, q, -1)[:, -1])

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` columns of a slot to another."""
        for cache in self._cache:
            cache[target, :, :length] = cache[source, :, :length]

    def _project(self, x: Tensor, layer: _Layer, turn: Tensor) -> Tensor:
        h = F.rms_norm(x, (self._hidden,), layer.norm, self._eps)
        row = torch.mm(h, layer.wqkv) if layer.bqkv is None else torch.addmm(layer.bqkv, h, layer.wqkv)
        pairs = torch.view_as_complex(row.view(len(row), -1, 2))
        return torch.view_as_real(pairs.mul_(turn)).view(len(row), -1)

    def _finish(self, x: Tensor, heard: Tensor, layer: _Layer) -> Tensor:
        x = torch.addmm(x, heard, layer.wo)
        h = F.rms_norm(x, (self._hidden,), layer.mlp_norm, self._eps)
        gate, up = torch.mm(h, layer.gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), layer.down)

    def _logits(self, x: Tensor) -> Tensor:
        return torch.mm(F.rms_norm(x, (self._hidden,), self._norm, self._eps), self._head).float()

    def _flat(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Rows of the cache seen as [slots * N * columns, 2E], for tokens in order, heads innermost."""
        N, columns = self._kv_heads, self._room + 1
        if N == 1:
            return slots * columns + positions
        heads = torch.arange(N, device=self.device)
        rows: Tensor = (slots[:, None] * N + heads) * columns + positions[:, None]
        return rows.view(-1)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        size: int = len(self._layers) * self._kv_heads * 2 * self._width * self._head.element_size()
        return size

    @torch.inference_mode()
    def reserve(self, slots: int, columns: int) -> None:
        """Gives the cache this size, and keeps what fits; padding writes to one column more.

        Layer by layer: at the most there are the new cache and one layer of the old one. If an allocation fails, the
        cache is empty.
        """
        rows, kept = min(slots, self._rows), min(columns, self._room)
        try:
            for index in range(len(self._cache)):
                old = self._cache[index]
                new = old.new_zeros((slots, self._kv_heads, columns + 1, 2 * self._width))
                new[:rows, :, :kept] = old[:rows, :, :kept]
                self._cache[index] = new
            self._rotations = self._rotation_table(columns + 1)
        except BaseException:
            self._empty()
            raise
        self._rows, self._room = slots, columns

    def _empty(self) -> None:
        """Forgets all keys and values."""
        shape = (0, self._kv_heads, 1, 2 * self._width)  # per layer [slots, N, columns, 2E]: key and value side by side
        self._cache = [torch.zeros(shape, device=self.device, dtype=self._head.dtype) for _ in self._layers]
        self._rows = self._room = 0

    def _reserve(self, live: int) -> None:
        """Grows the cache (doubling) until ``live`` columns fit, for whoever has not reserved them."""
        if live > self._room:
            self.reserve(self._slots, min(max(live, 2 * self._room, FIRST), self._capacity))

    def _rotation_table(self, length: int) -> Tensor:
        """[length, (H+2N)E/2] complex: what each pair of a projected row is multiplied with, by position."""
        rotary = self._model.model.rotary_emb
        angles = torch.arange(length, device=self.device)[:, None].float() * rotary.inv_freq[None].float()
        keys = torch.polar(torch.full_like(angles, rotary.attention_scaling), angles)  # [length, E/2]
        queries = (keys * self._width**-0.5).repeat(1, self._heads)
        return torch.cat([queries, torch.cat([keys, torch.ones_like(keys)], 1).repeat(1, self._kv_heads)], 1)

    def _interleaved(self, heads: int) -> Tensor:
        """Column order that puts the halves of each head side by side: 0, E/2, 1, E/2 + 1, ..."""
        one = torch.arange(self._width, device=self.device).view(2, -1).t().reshape(-1)
        order: Tensor = torch.arange(heads, device=self.device)[:, None] * self._width + one
        return order.view(-1)

    def _fuse(self, layer: Any, order: Tensor) -> _Layer:
        H, N, E = self._heads, self._kv_heads, self._width
        attention, mlp = layer.self_attn, layer.mlp

        def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            turned = torch.cat([query, key])[order]
            keys, values = turned[H * E :].view(N, E, -1), value.view(N, E, -1)
            pairs = torch.cat([keys, values], 1).view(2 * N * E, -1)
            return torch.cat([turned[: H * E].view(H * E, -1), pairs]).detach()

        weight = fused(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        bias = None
        if attention.q_proj.bias is not None:
            bias = fused(attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias).view(-1)
        return _Layer(
            norm=layer.input_layernorm.weight.detach(),
            wqkv=weight.t().contiguous(),
            bqkv=bias,
            wo=attention.o_proj.weight.detach().t().contiguous(),
            mlp_norm=layer.post_attention_layernorm.weight.detach(),
            gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach().t().contiguous(),
            down=mlp.down_proj.weight.detach().t().contiguous(),
        )
