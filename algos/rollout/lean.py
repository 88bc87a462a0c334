"""The fast path of the rollout engine for Llama-shaped models: the same weights, a dozen operations a layer.

What ``transformers`` spends on dispatch, cache objects and masks, a small model cannot afford. Here the projections of
a layer are fused, the weights of its norms are multiplied into them, and rotary embedding is one complex product: the
columns of queries and keys are reordered so that the two halves that rotate together stand side by side (queries and
keys alike, so that their dot products stay what they were).

A row of the fused projection is ``[queries | key, value of head 0 | key, value of head 1 | ...]``. The rotation table
covers it whole: rotation times ``head_dim ** -0.5`` for queries, rotation for keys, 1 for values. So the right part of
the rotated row goes into the cache as it is.

Forced tokens are one flat list, whatever rows they belong to; only attention sees rows, padded. After the last layer's
keys and values nothing but the last token of each row is computed.

Letters of comments: n lanes in a decoding step; m rows of at most q forced tokens, t in all, in an extension; M live
columns of the cache; H query heads, N key-value heads, E width of a head.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from algos.policies.plain import LINEAR, MLPS, NORMS, is_llama_shaped, is_plain
from algos.policies.products import Product, rounded
from algos.rollout.graphs import Graphs, Record, on_cuda
from convgym.errors import GraphWarning

ROUND = 16  # live columns are rounded up to this: few distinct shapes, aligned rows
FIRST = 255  # columns of a cache that begins to grow
FAR = 2**22  # numbers in the live part of all layers' caches from which they come from memory (16 MB)
NEAR = 3 * 2**16  # numbers of keys, and then of values, that the second cache of a processor holds (768 kB)


class _Layer(NamedTuple):
    qkv: Product  # D -> (H+2N)E
    out: Product  # HE -> D
    gate_up: Product  # D -> 2F
    down: Product  # F -> D


def is_lean(model: Any) -> bool:
    """Whether the fast path computes this model exactly: plain Llama or Qwen2 with static RoPE, all through."""
    if not is_plain(model, ("LlamaForCausalLM", "Qwen2ForCausalLM")) or not is_llama_shaped(model.model):
        return False
    layers, rotary = model.model.layers, model.model.rotary_emb
    blocks = [(layer.self_attn, layer.mlp) for layer in layers]
    free = [module for a, m in blocks for module in (a.o_proj, m.gate_proj, m.up_proj, m.down_proj)]
    linear = [module for a, _ in blocks for module in (a.q_proj, a.k_proj, a.v_proj)]
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    plain = (
        all(is_plain(module, LINEAR) for module in (*linear, *free, model.lm_head))
        and all(is_plain(norm, NORMS) for norm in (*norms, model.model.norm))
        and all(is_plain(mlp, MLPS) for _, mlp in blocks)
        and is_plain(model.model.embed_tokens, ("Embedding",))
    )
    biased = any(module.bias is not None for module in (*free, model.lm_head))
    static = getattr(rotary, "rope_type", "default") in ("default", "linear", "llama3", "yarn")
    fits = 2 * len(rotary.inv_freq) == layers[0].self_attn.head_dim
    return plain and model.config.hidden_act == "silu" and not biased and static and fits


class _Cache(NamedTuple):
    """Keys and values of a layer, seen in four ways."""

    slots: Tensor  # [2 * slots, N, columns, E], all keys before all values
    rows: Tensor  # [2 * slots * N * columns, E]
    keys: Tensor  # [slots * N, E, columns]
    values: Tensor  # [slots * N, columns, E]

    @classmethod
    def of(cls, slots: Tensor) -> _Cache:
        keys, values = slots.flatten(0, 1).chunk(2)
        return cls(slots, slots.view(-1, slots.shape[-1]), keys.transpose(1, 2), values)


class _Block(NamedTuple):
    """Lanes that are attended to together."""

    lanes: slice  # among the nN pairs of a lane and a head
    live: int  # columns
    bias: Tensor | None  # [lanes,1,live]


class LeanForward:
    """Forward passes of a Llama-shaped model over a static cache with a write position for each slot.

    Args:
        model: A model that ``is_lean`` accepts.
        slots: Conversations held at once.
        capacity: Most tokens in a conversation.
        recorder: Begins a set of recorded steps (``algos.rollout.graphs``); by default CUDA graphs on CUDA devices.

    Attributes:
        graphs: Whether steps are replayed from recordings; if not, why.
    """

    def __init__(self, model: Any, slots: int, capacity: int, recorder: Callable[[], Record] | None = None) -> None:
        config = model.config
        self.device = model.lm_head.weight.device
        self._model, self._slots, self._capacity = model, slots, capacity
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._width = model.model.layers[0].self_attn.head_dim
        self._eps, self._hidden = config.rms_norm_eps, config.hidden_size
        # In float32 on a CPU, rms_norm's half dozen operations are made three; sqrt(D) goes into the weights.
        self._three = self.device.type == "cpu" and model.lm_head.weight.dtype == torch.float32
        self._floor = torch.tensor(math.sqrt(self._hidden * self._eps), device=self.device)
        self._columns = torch.arange(capacity + ROUND + 1, device=self.device)
        self._never = torch.tensor(-torch.inf, device=self.device, dtype=model.lm_head.weight.dtype)
        self._layers: list[_Layer] = []
        self._head: Product
        self._cache: list[_Cache] = []  # one a layer
        self._rows = self._room = 0  # slots and columns of the cache
        if recorder is None and self.device.type == "cuda":
            recorder = functools.partial(on_cuda, self.device)
        self._recorder = recorder
        self._graphs: Graphs | None = None  # for the weights and the cache that are there now
        self.graphs: bool | str = f"not on {self.device.type}" if recorder is None else "no step yet"
        self.refresh()
        self._empty()

    def refresh(self) -> None:
        """Takes over the model's present weights, in the place of the old ones, and forgets all conversations."""
        with torch.inference_mode():
            trunk = self._model.model
            order = self._interleaved(self._heads + self._kv_heads)
            before = self._addresses() if self._layers else []
            olds: Iterable[_Layer | None] = self._layers or itertools.repeat(None)
            self._layers = [self._fuse(layer, order, old) for layer, old in zip(trunk.layers, olds)]
            self._last_kv = _narrowed(self._layers[-1].qkv, self._heads * self._width)
            old_head = self._head if before else None
            self._embedding = trunk.embed_tokens.weight.detach()
            self._head = _product(self._normed_weight(self._model.lm_head.weight, trunk.norm), old=old_head)
            if self._addresses() != before:
                self._graphs = None
            # What unseen columns hold is multiplied with 0, so it may be old, but it must be numbers.
            if not all(torch.isfinite(cache.slots.sum()) for cache in self._cache):
                for cache in self._cache:
                    cache.slots.zero_()

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, live: int) -> Tensor:
        """Feeds one token to each of the first n slots.

        Args:
            tokens: [n] ids.
            positions: [n] columns that they are written to; each attends to the columns up to its own.
            live: Columns in use, the new ones included.

        Returns:
            Logits of the following token, float32 [n,V]; on CUDA the next step may overwrite them.
        """
        self._reserve(live)
        if self._recorder is None:
            return self._plain(tokens, positions, live)
        try:
            if self._graphs is None:
                like, vocabulary = self._embedding, self._head.weight.shape[1]
                self._graphs = Graphs(self._recorder(), self._rows, self._room, like, vocabulary)
            logits = self._graphs.step(tokens, positions, live, self._static, self._plain)
            self.graphs = True
            return logits
        except Exception as error:  # whatever a driver or a version of torch thinks up
            self._recorder = self._graphs = None
            self.graphs = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        warnings.warn(
            f"Decoding goes on without CUDA graphs: {self.graphs}. The tokens are the same, and small models decode "
            "more slowly. Please report this line with the names of model and GPU and the version of torch.",
            GraphWarning,
            stacklevel=2,
        )
        return self._plain(tokens, positions, live)

    def _plain(self, tokens: Tensor, positions: Tensor, live: int) -> Tensor:
        """``step`` as it is, on a cache with room for it."""
        lanes = len(tokens)
        n = min(rounded(lanes), self._rows)
        if n > lanes:  # lanes that nobody reads
            tokens, positions = F.pad(tokens, (0, n - lanes)), F.pad(positions, (0, n - lanes), value=self._room)
        return self._pass(tokens, positions, self._blocks(positions, live))[:lanes]

    def _static(self, tokens: Tensor, positions: Tensor, live: int) -> Tensor:
        """``step`` to be recorded: all lanes and columns as given, and nothing is read by the host."""
        pairs = slice(0, len(tokens) * self._kv_heads)
        return self._pass(tokens, positions, [_Block(pairs, live, self._unseen(positions, live))])

    def _pass(self, tokens: Tensor, positions: Tensor, blocks: Sequence[_Block]) -> Tensor:
        at = (self._begins[: len(tokens)] + positions[:, None, None]).view(-1)  # [n*2N]
        turn = self._rotations[positions]  # [n, (H+2N)E/2]
        x = F.embedding(tokens, self._embedding)  # [n,D]
        for layer, cache in zip(self._layers, self._cache):
            row = self._rotated(layer.qkv(self._normed(x)), turn)  # [n, (H+2N)E]
            self._write(cache, at, row)
            x = self._finish(x, self._attend(row, cache.keys, cache.values, blocks), layer)
        return self._logits(x)

    @torch.inference_mode()
    def extend(self, tokens: Tensor, positions: Tensor, slots: Tensor, live: int) -> Tensor:
        """Feeds at most q tokens to each of m slots; shorter rows are padded.

        Args:
            tokens: [m,q] ids.
            positions: [m,q] columns that they are written to, ascending; -1 at padding.
            slots: [m] distinct slots.
            live: Columns in use, the new ones included.

        Returns:
            Logits of the token that follows the last one of each row, float32 [m,V].
        """
        self._reserve(live)
        (m, q), live = tokens.shape, min(-(-live // ROUND) * ROUND, self._room)
        H, N, E = self._heads, self._kv_heads, self._width
        pairs = torch.cat([slots, slots + self._rows])  # [2m] where the keys, and then the values, of the rows are
        real = positions >= 0
        grid = real.view(-1).nonzero()[:, 0]  # [t] where the tokens stand in the padded rows
        last = real.sum(1).cumsum(0) - 1  # [m] where the last token of each row stands among the t
        spare = rounded(len(grid)) - len(grid)  # tokens that belong to no row, written where nobody reads
        where = F.pad(grid, (0, spare))
        columns = F.pad(positions.view(-1)[grid], (0, spare), value=self._room)
        at = (self._begins[slots[where // q]] + columns[:, None, None]).view(-1)  # [t*2N]
        turn = self._rotations[columns]
        # A padded query sees whatever a query at column 0 would: one column, so that it is no NaN.
        unseen = self._columns[:live] > positions[:, :, None].clamp_min(0)  # [m,q,M]
        bias = torch.zeros(m, 1, q, live, device=self.device, dtype=self._embedding.dtype)
        bias.masked_fill_(unseen[:, None], -torch.inf)
        x = F.embedding(tokens.view(-1)[where], self._embedding)  # [t,D]
        queries = torch.zeros(m * q, H * E, device=self.device, dtype=x.dtype)
        for layer, cache in zip(self._layers[:-1], self._cache):
            row = self._rotated(layer.qkv(self._normed(x)), turn)  # [t, (H+2N)E]
            self._write(cache, at, row)
            queries.index_copy_(0, grid, row[: len(grid), : H * E])
            keys, values = cache.slots[:, :, :live].index_select(0, pairs).chunk(2)  # [m,N,M,E]
            heard = F.scaled_dot_product_attention(
                queries.view(m, q, H, E).transpose(1, 2), keys, values, attn_mask=bias, scale=1.0, enable_gqa=N != H
            )
            x = self._finish(x, heard.transpose(1, 2).reshape(m * q, H * E).index_select(0, where), layer)
        # The last layer: keys and values of all tokens, the rest for the last token of each row.
        h, cache = self._normed(x), self._cache[-1]
        self._write(cache, at, self._rotated(self._last_kv(h), turn[:, H * E // 2 :]))
        row = self._rotated(self._layers[-1].qkv(h[last]), turn[last])
        keys, values = cache.slots[:, :, :live].index_select(0, pairs).view(2, m * N, live, E)
        block = _Block(slice(0, m * N), live, self._unseen(columns[last], live))
        heard = self._attend(row, keys.transpose(1, 2), values, [block])
        return self._logits(self._finish(x[last], heard, self._layers[-1]))

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` columns of a slot to another."""
        for cache in self._cache:
            cache.slots[target :: self._rows, :, :length] = cache.slots[source :: self._rows, :, :length]

    def _normed(self, x: Tensor) -> Tensor:
        """``x`` over its root mean square; on a CPU, over its norm, see ``_normed_weight``."""
        if self._three:
            return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._floor)
        return F.rms_norm(x, (self._hidden,), None, self._eps)

    def _rotated(self, row: Tensor, turn: Tensor) -> Tensor:
        """Multiplies neighbours, as complex numbers, with the rotations of their positions."""
        wide = row if row.dtype == torch.float32 else row.float()  # there are no complex numbers of two bfloat16
        torch.view_as_complex(wide.view(len(row), -1, 2)).mul_(turn)
        return wide if wide is row else wide.to(row.dtype)

    def _write(self, cache: _Cache, at: Tensor, row: Tensor) -> None:
        """Puts the keys and values at the end of each row into the cache."""
        cache.rows.index_copy_(0, at, row[:, -2 * self._kv_heads * self._width :].reshape(-1, self._width))

    def _attend(self, row: Tensor, keys: Tensor, values: Tensor, blocks: Sequence[_Block]) -> Tensor:
        """Attention of one query a lane.

        Args:
            row: Queries at the beginning, [n, HE or more].
            keys: [nN or more, E, columns].
            values: [nN or more, columns, E].
            blocks: Of lanes; together all n.

        Returns:
            What was heard, [n,HE].
        """
        H, N, E = self._heads, self._kv_heads, self._width
        query = row[:, : H * E].reshape(-1, H // N, E)  # [nN, H/N, E]
        heard = []
        for block in blocks:
            key, value, asked = keys[block.lanes, :, : block.live], values[block.lanes, : block.live], query
            if len(blocks) > 1:
                asked = query[block.lanes]
                # Reading a block from end to end is fast, and the products then find it in the processor's cache;
                # reading themselves, in their own order, they would wait for memory.
                key.sum()
            scores = torch.bmm(asked, key) if block.bias is None else torch.baddbmm(block.bias, asked, key)
            weights = torch.softmax(scores, -1)
            if len(blocks) > 1:
                value.sum()
            heard.append(torch.bmm(weights, value))
        return (heard[0] if len(blocks) == 1 else torch.cat(heard)).view(len(row), H * E)

    def _blocks(self, positions: Tensor, live: int) -> list[_Block]:
        """Lanes that are attended to together: all of them, or as many as the processor's cache holds at once.

        Args:
            positions: [n] columns of the queries.
            live: Columns in use.
        """
        n, N = len(positions), self._kv_heads
        if n == 1:
            return [_Block(slice(0, N), live, None)]
        live = min(-(-live // ROUND) * ROUND, self._room)
        bias, size = self._unseen(positions, live), N * live * self._width  # numbers of a lane's keys
        if self.device.type != "cpu" or 2 * n * size * len(self._layers) < FAR:
            return [_Block(slice(0, n * N), live, bias)]
        blocks, lanes = [], max(1, NEAR // size)
        for begin in range(0, n, lanes):
            used = int(positions[begin : begin + lanes].max()) + 1  # a block of short lanes costs less
            used = min(-(-used // ROUND) * ROUND, live)
            part = slice(begin * N, min(begin + lanes, n) * N)
            blocks.append(_Block(part, used, bias[part, :, :used]))
        return blocks

    def _unseen(self, positions: Tensor, live: int) -> Tensor:
        """-inf at the columns that a query at ``positions`` [n] does not see, else 0: [nN,1,M]."""
        bias = torch.where(self._columns[:live] > positions[:, None], self._never, self._never.new_zeros(()))[:, None]
        return bias if self._kv_heads == 1 else bias.repeat_interleave(self._kv_heads, 0)

    def _finish(self, x: Tensor, heard: Tensor, layer: _Layer) -> Tensor:
        x = layer.out.onto(x, heard)
        gate, up = layer.gate_up(self._normed(x)).chunk(2, -1)
        return layer.down.onto(x, F.silu(gate).mul_(up))

    def _logits(self, x: Tensor) -> Tensor:
        return self._head(self._normed(x)).float()

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        size: int = len(self._layers) * self._kv_heads * 2 * self._width * self._embedding.element_size()
        return size

    @torch.inference_mode()
    def reserve(self, slots: int, columns: int) -> None:
        """Gives the cache this size, and keeps what fits; padding writes to one column more.

        Layer by layer: at the most there are the new cache and one layer of the old one. If an allocation fails, the
        cache is empty.
        """
        self._graphs = None  # they hold the old cache's addresses, and memory
        rows, kept = min(slots, self._rows), min(columns, self._room)
        shape = (2 * slots, self._kv_heads, columns + 1, self._width)
        try:
            for index, cache in enumerate(self._cache):
                old, new = cache.slots, cache.slots.new_zeros(shape)
                for here, there in ((0, 0), (slots, self._rows)):  # keys, values
                    new[here : here + rows, :, :kept] = old[there : there + rows, :, :kept]
                self._cache[index] = _Cache.of(new)
            self._rotations = self._rotation_table(columns + 1)
        except BaseException:
            self._empty()
            raise
        self._rows, self._room = slots, columns
        begins = torch.arange(2 * slots * self._kv_heads, device=self.device) * (columns + 1)
        # [slots,N,2] first row of a slot's keys and values among all rows of a layer's cache
        self._begins = begins.view(2, slots, self._kv_heads).permute(1, 2, 0).contiguous()

    def _empty(self) -> None:
        """Forgets all keys and values."""
        nothing = torch.zeros((0, self._kv_heads, 1, self._width), device=self.device, dtype=self._embedding.dtype)
        self._cache = [_Cache.of(nothing) for _ in self._layers]
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

    def _addresses(self) -> list[int]:
        """Where the weights are that a step reads."""
        products = [self._head, *(product for layer in self._layers for product in layer)]
        parts = [part for product in products for part in (product.weight, product.bias) if part is not None]
        return [part.data_ptr() for part in (self._embedding, *parts)]

    def _fuse(self, layer: Any, order: Tensor, old: _Layer | None) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        return _Layer(
            qkv=self._fused_projection(layer, order, old and old.qkv),
            out=_product(attention.o_proj.weight, old=old and old.out),
            gate_up=_product(self._normed_weight(gate_up, layer.post_attention_layernorm), old=old and old.gate_up),
            down=_product(mlp.down_proj.weight, old=old and old.down),
        )

    def _fused_projection(self, layer: Any, order: Tensor, old: Product | None) -> Product:
        H, N, E = self._heads, self._kv_heads, self._width
        attention = layer.self_attn

        def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            turned = torch.cat([query, key])[order]
            keys, values = turned[H * E :].view(N, E, -1), value.view(N, E, -1)
            pairs = torch.cat([keys, values], 1).view(2 * N * E, -1)
            return torch.cat([turned[: H * E].view(H * E, -1), pairs])

        weight = fused(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        bias = None
        if attention.q_proj.bias is not None:
            bias = fused(attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias).view(-1)
        return _product(self._normed_weight(weight, layer.input_layernorm), bias, old)

    def _normed_weight(self, weight: Tensor, norm: Any) -> Tensor:
        """[N,D] what a projection after a norm multiplies with: its columns, times the norm's weights."""
        scaled: Tensor = weight * (norm.weight * math.sqrt(self._hidden) if self._three else norm.weight)
        return scaled


def _narrowed(product: Product, first: int) -> Product:
    """The same without the outputs before ``first``."""
    bias = None if product.bias is None else product.bias[first:]
    return Product(product.weight[:, first:].contiguous(), bias)


def _product(weight: Tensor, bias: Tensor | None = None, old: Product | None = None) -> Product:
    """With a weight [N,K] as ``torch.nn.Linear`` has it; in the place of an old one that is like it."""
    turned = weight.t()
    if old is None or not (_alike(old.weight, turned) and _alike(old.bias, bias)):
        return Product(turned.clone(memory_format=torch.contiguous_format), bias)
    old.weight.copy_(turned)
    if old.bias is not None and bias is not None:
        old.bias.copy_(bias)
    return old


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
