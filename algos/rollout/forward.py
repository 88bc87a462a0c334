"""The general path of the rollout engine: any causal language model through its own forward, with a cache of
ours.

The model gets explicit positions, a four-dimensional mask, and a cache whose layers write each row where its
own conversation has got to. Whether its architecture respects all three is not guessed from its name but
    tried: two
conversations are fed in ragged pieces, and must give the logits of a plain forward.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from algos.rollout.lean import FIRST, LeanForward, is_lean
from convgym.errors import CapacityError, ModelError


class Forward(Protocol):
    """Forward passes over a static cache of slots; see ``LeanForward`` for what each method promises.

    Attributes:
        device: Of the model.
        graphs: Whether decoding steps are replayed from CUDA graphs; if not, why.
    """

    device: torch.device
    graphs: bool | str

    @property
    def token_bytes(self) -> int: ...
    def reserve(self, slots: int, columns: int) -> None: ...
    def step(self, tokens: Tensor, positions: Tensor, live: int) -> Tensor: ...
    def extend(self, tokens: Tensor, positions: Tensor, slots: Tensor, live: int) -> Tensor: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def refresh(self) -> None: ...


def make_forward(model: PreTrainedModel, slots: int, capacity: int, lean: bool | None = None) -> Forward:
    """The fast path where it computes the model exactly, else the model's own forward.

    Args:
        model: Causal language model.
        slots: Conversations held at once.
        capacity: Most tokens in a conversation.
        lean: Forces the fast path (True) or the model's own forward (False).

    Raises:
        ModelError: if the model's attention cannot run on a cache of slots.
        CapacityError: if ``capacity`` exceeds the model's context or its sliding window.
    """
    check_attention(model.config, capacity)
    if lean and not is_lean(model):
        raise ModelError(
            f"lean=True, but {type(model).__name__} is not a plain Llama or Qwen2 model; leave lean at None"
        )
    if is_lean(model) if lean is None else lean:
        return LeanForward(model, slots, capacity)
    forward = ModelForward(model, slots, capacity)
    _try_out(forward, model)
    return forward


def check_attention(config: Any, capacity: int) -> None:
    """Refuses attention that looks at anything but all earlier tokens.

    Raises:
        ModelError: for encoder-decoders, recurrent or chunked layers, and RoPE that changes with the length.
        CapacityError: if ``capacity`` exceeds the context or a sliding window.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type} is an encoder-decoder; expected a causal language model")
    text = config.get_text_config()  # of a model that also sees or hears
    context = getattr(text, "max_position_embeddings", None)
    if context is not None and capacity > context:
        raise CapacityError(
            f"a conversation of {capacity} tokens was asked for, but the model's context has {context}; "
            f"set max_context to at most {context}"
        )
    kinds = set(getattr(text, "layer_types", None) or [])
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(
            f"{text.model_type} has layers of kind {', '.join(sorted(unknown))}; the rollout engine keeps "
            "keys and values of full attention only. Use a model with full attention."
        )
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in kinds or (not kinds and getattr(text, "use_sliding_window", True))
    if "local" in (getattr(text, "attention_layers", None) or ()):  # GPT-Neo's own name for it
        window, slides = text.window_size, True
    if window and slides and capacity > window:
        raise CapacityError(
            f"{text.model_type} attends to the last {window} tokens only, and a conversation may have "
            f"{capacity}; set max_context to at most {window}, where a sliding window is full attention"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    for each in (rope, *rope.values()):  # one for all layers, or one for each kind of layer
        if isinstance(each, dict) and each.get("rope_type") in ("dynamic", "longrope"):
            raise ModelError(
                f"{text.model_type} uses {each['rope_type']} RoPE, whose angles change as a conversation "
                "grows, so kept keys go stale. Set another rope_type in its config.json."
            )


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [slots, heads, columns, width]; padding writes to the last column."""

    keys: Tensor
    values: Tensor

    def __init__(self, lanes: LaneCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lanes = lanes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, positions, live = self.lanes.rows, self.lanes.positions, self.lanes.live
        for cache, new in ((self.keys, key_states), (self.values, value_states)):
            cache[rows[:, None], :, positions] = new.transpose(1, 2)  # [m,q,heads,width]
        if self.lanes.prefix:  # decoding: the first rows, no copy
            return self.keys[: len(rows), :, :live], self.values[: len(rows), :, :live]
        return self.keys[:, :, :live].index_select(0, rows), self.values[:, :, :live].index_select(0, rows)

    def _empty(self, like: Tensor) -> Tensor:
        shape = (self.lanes.slots, like.shape[1], self.lanes.room + 1, like.shape[3])
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def resize(self) -> None:
        """Takes the size that ``lanes`` has now; layers that the model never writes to have none."""
        if self.is_initialized:
            self.keys = self._resized(self.keys)
            self.values = self._resized(self.values)

    def _resized(self, old: Tensor) -> Tensor:
        new = self._empty(old)
        rows, columns = min(len(new), len(old)), min(new.shape[2], old.shape[2]) - 1
        new[:rows, :, :columns] = old[:rows, :, :columns]
        return new

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.lanes.capacity

    def get_max_cache_shape(self) -> int:
        return self.lanes.capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.lanes.live, 0


class LaneCache(Cache):
    """A cache whose rows have their own write positions; ``rows``, ``positions`` and ``live`` say where."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.lanes = [_Layer(self) for _ in range(layers)]
        super().__init__(layers=list(self.lanes))
        self.capacity = capacity
        self.slots = self.room = 0
        self.rows = self.positions = torch.empty(0, dtype=torch.int64)
        self.live, self.prefix = 0, False

    def resize(self, slots: int, room: int) -> None:
        """Gives all layers this size, one after the other, and keeps what fits.

        If an allocation fails, the cache is empty.
        """
        self.slots, self.room = slots, room
        try:
            for layer in self.lanes:
                layer.resize()
        except BaseException:
            self.resize(0, 0)
            raise

    def parts(self) -> list[Tensor]:
        """Keys and values of all layers that the model has written to."""
        layers = [layer for layer in self.lanes if layer.is_initialized]
        return [part for layer in layers for part in (layer.keys, layer.values)]


class ModelForward:
    """Forward passes through the model itself, over a ``LaneCache``.

    Args:
        model: Causal language model.
        slots: Conversations held at once.
        capacity: Most tokens in a conversation.
    """

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int) -> None:
        self.device = torch.device(model.device)
        self.graphs: bool | str = "not on the model's own forward"
        self._model, self._slots, self._capacity = model, slots, capacity
        self._cache = LaneCache(model.config.get_text_config().num_hidden_layers, capacity)

    @torch.inference_mode()
    def refresh(self) -> None:
        """Forgets all conversations; the weights are the model's own."""
        for part in self._cache.parts():  # old keys get weight 0 where they are not seen, but must be numbers
            if not torch.isfinite(part.sum()):
                part.zero_()

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers; known once the model has run."""
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in self._cache.parts())

    @torch.inference_mode()
    def reserve(self, slots: int, columns: int) -> None:
        """Gives the cache this size, and keeps what fits; see ``LeanForward.reserve``."""
        self._cache.resize(slots, columns)

    def step(self, tokens: Tensor, positions: Tensor, live: int) -> Tensor:
        """One token for each of the first n slots; logits [n,V]."""
        self._cache.prefix = True
        slots = torch.arange(len(tokens), device=self.device)
        return self._run(tokens[:, None], positions[:, None], slots, live)

    def extend(self, tokens: Tensor, positions: Tensor, slots: Tensor, live: int) -> Tensor:
        """q tokens for each of m slots, padded on the left; logits after the last column, [m,V]."""
        self._cache.prefix = False
        return self._run(tokens, positions, slots, live)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` columns of a slot to another."""
        for cache in self._cache.parts():
            cache[target, :, :length] = cache[source, :, :length]

    @torch.inference_mode()
    def _run(self, tokens: Tensor, positions: Tensor, slots: Tensor, live: int) -> Tensor:
        cache = self._cache
        if live > cache.room:  # whoever calls has not reserved them
            self.reserve(self._slots, min(max(live, 2 * cache.room, FIRST), self._capacity))
        padded = positions < 0
        cache.rows, cache.live = slots, live
        cache.positions = torch.where(padded, cache.room, positions)
        dtype = self._model.dtype
        # Finite, so that a padding row, which may see nothing real, is not NaN: NaN values would leak through
        # 0 weights.
        unseen = torch.arange(live, device=self.device) > positions[:, :, None]  # [m,q,live]
        mask = torch.zeros(unseen.shape, dtype=dtype, device=self.device)
        mask.masked_fill_(unseen, torch.finfo(dtype).min)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask[:, None],
            position_ids=positions.clamp_min(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


@torch.inference_mode()
def _try_out(forward: ModelForward, model: PreTrainedModel) -> None:
    """Feeds two conversations of different lengths in ragged pieces, and compares with plain forwards.

    Raises:
        ModelError: if the model fails, or its logits differ.
    """
    forward.reserve(slots=2, columns=8)
    ids = (torch.arange(12, device=forward.device) * 7 + 3).view(
        2, 6
    ) % model.config.get_text_config().vocab_size
    whole = [model(input_ids=row[None], use_cache=False).logits[0].float() for row in ids]
    try:
        pieces = forward.extend(
            torch.stack([ids[0, :4], ids[1, :2].repeat(2)]),
            torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]], device=forward.device),
            torch.tensor([0, 1], device=forward.device),
            live=4,
        )
        steps = forward.step(
            torch.stack([ids[0, 4], ids[1, 2]]), torch.tensor([4, 2], device=forward.device), live=5
        )
    except Exception as error:  # whatever an unforeseen architecture raises
        raise ModelError(
            f"{type(model).__name__} does not run on a cache of slots: {error!r}. Load it with "
            "attn_implementation 'sdpa' or 'eager'; if it still fails (ALiBi, a state of its own), the rollout engine "
            "cannot serve it."
        ) from error
    expected = torch.stack([whole[0][3], whole[1][1], whole[0][4], whole[1][2]])
    difference = (torch.cat([pieces, steps]) - expected).abs().max().item()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not difference <= tolerance * max(1.0, expected.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__} gives other logits on a cache of slots (by {difference:.3g}): it does "
            "not respect explicit positions and masks (ALiBi, recurrent state), so it cannot be served"
        )
    forward.reserve(0, 0)
