"""The rollout engine: many conversations sampled at once, each keeping its keys and values over turns.

A *lane* holds one live conversation. The user's reply is appended to what is already cached, so the cost of a
conversation is linear in its tokens. Lanes do not wait for one another: forced tokens are fed to the lanes that have
them while the others keep decoding (a few lanes are held back a few steps, for others to be fed together with them),
and ``advance`` returns as soon as any lane has finished its turn.

Lanes live in *slots* of the cache, and live slots are kept in front: decoding reads a prefix of the cache without
copying it, and costs little when few conversations are left.

Memory grows with what conversations really use. Where it does not suffice for all lanes, the first slots hold as many
conversations as fit. The others are *parked*: what was said is kept, keys and values are not, and when a slot falls
vacant the conversation is fed again. A parked conversation that has something to say goes before one that waits for
its user's answer, and among themselves the oldest goes first.

Sampling is reproducible: the uniform that picks a token depends on the lane's seed and on the token's position and on
nothing else, so that neither the number of lanes nor the order of their turns changes what is sampled (rounding apart).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from algos.rollout.forward import make_forward
from algos.rollout.memory import SHARE, cache_bytes, cache_shape, free_bytes, is_out_of_memory
from algos.rollout.sampling import sample, uniforms
from convgym.errors import CapacityError, CapacityWarning, ConfigError, DivergedError

CHUNK = 512  # forced tokens of a lane that are fed at once: bounds what padding wastes in attention
PREFILL = 2048  # forced tokens of all lanes that are fed at once: bounds memory
FEW, PATIENCE = 8, 4  # fewer than one in FEW lanes with forced tokens wait up to PATIENCE steps for others
SHARED = 16  # a common prefix shorter than this is not worth a copy

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Turn:
    """What the policy said in one turn.

    Attributes:
        lane: Whose turn it was.
        ids: Sampled tokens, int64, at least one; the last one is an EOS if ``reason`` is ``"eos"``.
        logp: Their log-probabilities at the sampling temperature, float32.
        reason: ``"eos"``; ``"cap"``, the turn's token cap; or ``"full"``, the context has no room for more.
    """

    lane: int
    ids: Ids
    logp: NDArray[np.float32]
    reason: Literal["eos", "cap", "full"]


class SamplingEngine(Protocol):
    """What a collector needs; implemented here on a local model, and by clients of serving engines.

    Attributes:
        lanes: Conversations held at once.
        capacity: Most tokens in a conversation.
    """

    lanes: int
    capacity: int

    def start(self, lane: int, ids: Sequence[int], sample_seed: int | None) -> None:
        """Begins a conversation in a free lane; ``sample_seed`` None takes the likeliest token each time."""

    def append(self, lane: int, ids: Sequence[int]) -> None:
        """Answers a finished turn, and gives the lane its next one."""

    def advance(self) -> list[Turn]:
        """Samples until at least one lane finishes its turn; empty only if no lane is speaking."""

    def release(self, lane: int) -> None:
        """Ends a conversation, at any moment."""

    def refresh(self) -> None:
        """Takes over the policy's present weights; no conversation may be live."""

    def close(self) -> None:
        """Gives back what the engine holds outside of Python's memory; it is not used afterwards."""


class Engine:
    """Samples from a causal language model on this machine.

    Args:
        model: In evaluation mode. Updated weights are used after ``refresh``.
        eos_ids: Tokens that end a turn.
        lanes: Conversations held at once.
        capacity: Most tokens in a conversation; by default the model's context. Memory grows with what is
            used.
        temperature: Divides the logits; log-probabilities are those of the resulting distribution.
        max_turn_tokens: Most tokens in a turn, the EOS included.
        lean: Forces (True) or forbids (False) the fast path; by default it is used where it is exact.
        memory: Most bytes for keys and values; by default nine tenths of what is free when they need more. If not all
            lanes fit, a ``CapacityWarning`` says how many do, and the others wait their turn: the tokens are the same.

    Raises:
        ConfigError: for an illegal number.
        CapacityError: if ``capacity`` exceeds what the model's attention serves.
        ModelError: if the model's attention cannot be served.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_ids: Iterable[int],
        lanes: int = 64,
        capacity: int | None = None,
        temperature: float = 1.0,
        max_turn_tokens: int = 64,
        lean: bool | None = None,
        memory: int | None = None,
    ) -> None:
        self.lanes = lanes
        self.capacity = checked_capacity(model, lanes, capacity, temperature, max_turn_tokens)
        if memory is not None and memory < 1:
            raise ConfigError(f"memory = {memory}: expected at least 1 byte, or None for what is free")
        self.temperature, self.max_turn_tokens = temperature, max_turn_tokens
        self._forward = make_forward(model, lanes, self.capacity, lean)
        self._eos = np.array(sorted(eos_ids), dtype=np.int64)
        self._layers = model.config.get_text_config().num_hidden_layers
        self._memory = memory
        self._rows = self._columns = 0  # slots and tokens that the cache has room for
        self._large = False  # the cache takes so much that others may miss it
        self._short = ""  # what is to be said if more conversations are live than fit
        self._warned: set[int] = set()
        self._started = 0
        # Host state by slot; the live slots are the first ones.
        self._lane = np.full(lanes, -1)
        self._number = np.zeros(lanes, np.int64)  # conversations in the order of their start
        self._cached = np.zeros(lanes, np.int64)  # tokens whose keys and values are in the cache
        self._known = np.zeros(lanes, np.int64)  # tokens of the conversation so far
        self._history = np.zeros((lanes, self.capacity), np.int64)
        self._seed = np.zeros(lanes, np.uint64)
        self._greedy = np.zeros(lanes, np.bool_)
        self._speaking = np.zeros(lanes, np.bool_)
        self._opening = np.zeros(lanes, np.bool_)  # fed from its beginning: a prefix may be shared
        self._said = np.zeros(lanes, np.int64)  # tokens sampled in this turn
        self._logp = np.zeros((lanes, max_turn_tokens), np.float32)
        self._slot: dict[int, int] = {}
        self._deferred = 0  # steps that lanes with forced tokens have been waiting

    @property
    def live(self) -> int:
        """Number of conversations that are held now."""
        return len(self._slot)

    @property
    def graphs(self) -> bool | str:
        """Whether decoding steps are replayed from CUDA graphs; if not, why."""
        return self._forward.graphs

    def start(self, lane: int, ids: Sequence[int], sample_seed: int | None) -> None:
        """Begins a conversation in a free lane; its turn is sampled by the next ``advance``.

        Args:
            lane: Any number; it names the conversation until it is released.
            ids: Everything before the first turn, at least one token.
            sample_seed: Seed of all its samples; None takes the likeliest token each time.

        Raises:
            CapacityError: if ``ids`` leave no room for a turn, or no lane is free.
        """
        check_start(lane, self._slot, self.lanes)
        check_room(0, ids, self.capacity)
        slot = self.live
        self._slot[lane], self._lane[slot] = slot, lane
        self._number[slot] = self._started
        self._started += 1
        self._cached[slot] = self._known[slot] = 0
        self._opening[slot] = True
        self._greedy[slot] = sample_seed is None
        self._seed[slot] = np.uint64((sample_seed or 0) % 2**64)
        self._force(slot, ids)

    def append(self, lane: int, ids: Sequence[int]) -> None:
        """Answers a finished turn, and gives the lane its next one.

        Raises:
            CapacityError: if there is no room for ``ids`` and one token more; the lane stays as it was.
        """
        slot = self._slot[lane]
        assert not self._speaking[slot], f"lane {lane} is still speaking"
        check_room(int(self._known[slot]), ids, self.capacity)
        self._force(slot, ids)

    def release(self, lane: int) -> None:
        """Ends a conversation. Nothing of it can be seen by a later one."""
        slot = self._slot.pop(lane)
        last = self.live  # the last live slot moves into the hole
        if slot != last:
            if self._cached[last]:
                self._forward.copy(last, slot, int(self._cached[last]))
            for state in self._states():
                state[slot] = state[last]
            self._slot[int(self._lane[slot])] = slot
        self._lane[last] = -1
        self._cached[last] = 0
        self._speaking[last] = False
        if not self.live and self._large:  # the learner's turn
            self._forward.reserve(0, 0)
            self._rows = self._columns = 0

    def refresh(self) -> None:
        """Takes over the model's present weights. Keys and values of the old ones are forgotten.

        Raises:
            CapacityError: if a conversation is live: it would go on with keys of the old weights.
        """
        if self.live:
            raise CapacityError(
                f"{self.live} conversations are live; release them before refreshing the weights"
            )
        self._forward.refresh()
        if self._rows < self.lanes:  # there may be memory for all of them now
            self._forward.reserve(0, 0)
            self._rows = self._columns = 0

    def close(self) -> None:
        """Does nothing: all it holds is memory of its own."""

    def advance(self) -> list[Turn]:
        """Samples until at least one lane finishes its turn.

        Returns:
            The turns that ended, by slot; empty only if no lane has a turn to take.

        Raises:
            DivergedError: if the model's logits are not numbers.
            CapacityError: if the memory does not suffice for a single conversation. Nothing is lost: it goes on once
                there is more, and can be released.
        """
        while self._speaking[: self.live].any():
            self._make_room()
            ended = self._prefill()
            if not ended:
                ended = self._decode()
            if ended:
                return [self._turn(slot) for slot in ended]
        return []

    @property
    def _held(self) -> int:
        """Number of conversations that have a slot in the cache: the first ones; those behind them are parked."""
        return min(self.live, self._rows)

    def _make_room(self) -> None:
        """Sees that the cache has room for what is fed next and for one sampled token more.

        Raises:
            CapacityError: if not one conversation fits.
        """
        while True:
            self._seat()
            speaking = self._speaking[: self._held or self.live]
            needed = int(self._known[: len(speaking)][speaking].max()) + 1
            if needed <= self._columns:
                break
            self._grow(needed)
        if self._rows < self.live and self._rows not in self._warned:
            self._warned.add(self._rows)
            warnings.warn(self._short, CapacityWarning, stacklevel=3)

    def _seat(self) -> None:
        """Gives slots whose conversation waits for an answer, or is not fed yet, to the oldest ones that speak."""
        if self._held == self.live or not self._rows:
            return
        vacant = np.flatnonzero((~self._speaking | (self._cached == 0))[: self._rows])
        parked = np.arange(self._rows, self.live)
        queue = np.concatenate([vacant, parked])
        queue = queue[self._speaking[queue]]
        queue = queue[np.argsort(self._number[queue])][: len(vacant)]
        leaving = np.setdiff1d(vacant, queue)
        leaving = leaving[np.argsort(self._cached[leaving], kind="stable")]  # the cheapest to feed again go first
        for here, there in zip(leaving.tolist(), queue[queue >= self._rows].tolist()):
            for state in self._states():
                state[[here, there]] = state[[there, here]]
            self._slot[int(self._lane[here])], self._slot[int(self._lane[there])] = here, there
            self._forget(there, there + 1)

    def _grow(self, needed: int) -> None:
        """Makes the cache ``needed`` columns wide at least, with as many slots as fit.

        Raises:
            CapacityError: if none does.
        """
        size = self._forward.token_bytes
        memory: float = self._memory or 0
        if not memory:
            present = cache_bytes(self._rows, self._columns, size)
            memory = present + SHARE * free_bytes(self._forward.device)
        cause: BaseException | None = None
        while True:
            rows, columns = cache_shape(
                needed,
                slots=self.lanes,
                columns=self._columns,
                capacity=self.capacity,
                token_bytes=size,
                layers=self._layers,
                memory=memory,
            )
            whole, one = (f"{cache_bytes(slots, columns, size) / 1e6:,.3g} MB" for slots in (self.lanes, 1))
            there = f"{memory / 1e6:,.3g} MB may be used"
            if not rows:
                raise CapacityError(
                    f"One conversation of {columns} tokens needs {one} for keys and values, and {there}, a layer's "
                    "share of which is for moving them. Use a smaller max_context or model, free memory, or give the "
                    "engine more (memory)."
                ) from cause
            try:
                self._forward.reserve(rows, columns)
                break
            except BaseException as error:  # the cache is empty then
                self._forget(0, self.live)
                self._rows = self._columns = 0
                if not is_out_of_memory(error):
                    raise
                cause, memory = error, cache_bytes(rows, columns, size) / 2
        self._rows, self._columns = rows, columns
        self._large = 4 * cache_bytes(rows, columns, size) > memory
        self._short = (
            f"{self.lanes} lanes of {columns} tokens need {whole} for keys and values, and {there}: {rows} are held at "
            "a time, and the others wait their turn. The tokens are the same; it takes longer. Use fewer lanes or a "
            "smaller max_context, free memory, or give the engine more (memory)."
        )
        self._forget(rows, self.live)

    def _forget(self, first: int, last: int) -> None:
        """Parks the conversations of these slots: they are fed again when they have a slot in the cache."""
        self._cached[first:last] = 0
        self._opening[first:last] = True

    def _decode(self) -> list[int]:
        """One token for every lane that only lacks its last one; returns the slots whose turn ended."""
        n = self._held
        speaking = np.flatnonzero(self._speaking[:n] & (self._known[:n] == self._cached[:n] + 1))
        # Where each slot's last token goes; what the other slots write there is overwritten later.
        at = self._cached[:n]
        last = self._history[np.arange(n), at]
        logits = self._forward.step(self._tensor(last), self._tensor(at), int(at[speaking].max()) + 1)
        self._cached[speaking] += 1
        # At once: the next step may write its logits to the same place.
        return self._sample(speaking, logits if len(speaking) == n else logits[self._tensor(speaking)])

    def _prefill(self) -> list[int]:
        """Feeds all forced tokens; returns the slots whose turn ended with the first token after them."""
        ended: list[int] = []
        while True:
            # A lane that has one token to feed, its last, does so when it decodes; more than that is forced.
            waiting = np.flatnonzero((self._speaking & (self._known - self._cached > 1))[: self._held])
            if not len(waiting) or (not ended and self._defers(len(waiting))):
                return ended
            self._share_prefixes(waiting)
            rows = self._leaders(waiting)
            behind = self._known[rows] - self._cached[rows]
            rows = rows[np.argsort(-behind, kind="stable")]
            width = min(CHUNK, int(behind.max()))
            rows = rows[: max(1, PREFILL // width)]
            ended += self._extend(rows, width)

    def _defers(self, waiting: int) -> bool:
        """Whether a few lanes wait a few steps for others, to be fed together: a pass for one of them is dear."""
        decoding = int(self._speaking[: self._held].sum()) - waiting
        self._deferred = self._deferred + 1 if waiting * FEW < decoding else 0
        if self._deferred > PATIENCE:
            self._deferred = 0
        return self._deferred > 0

    def _extend(self, rows: NDArray[np.int64], width: int) -> list[int]:
        """Feeds at most ``width`` tokens to each of these slots, and samples where nothing more is forced."""
        count = np.minimum(self._known[rows] - self._cached[rows], width)
        offset = np.arange(width) - (width - count)[:, None]  # [m,width], negative at the padding on the left
        positions = np.where(offset >= 0, self._cached[rows, None] + offset, -1)
        tokens = self._history[rows[:, None], np.maximum(positions, 0)]
        self._cached[rows] += count
        logits = self._forward.extend(
            self._tensor(tokens), self._tensor(positions), self._tensor(rows), int(positions.max()) + 1
        )
        ready = np.flatnonzero(self._cached[rows] == self._known[rows])
        return self._sample(rows[ready], logits[self._tensor(ready)]) if len(ready) else []

    def _sample(self, slots: NDArray[np.int64], logits: Tensor) -> list[int]:
        """Samples one token in each of these slots; returns those whose turn ended with it."""
        at = self._known[slots]
        draws = torch.from_numpy(uniforms(self._seed[slots], at)).to(logits.device)
        greedy = (
            torch.from_numpy(self._greedy[slots]).to(logits.device) if self._greedy[slots].any() else None
        )
        tokens, logp = (x.cpu().numpy() for x in sample(logits, draws, self.temperature, greedy))
        if not np.isfinite(logp).all():
            self._speaking[slots] = False  # they have nothing more to say, and can be released
            raise DivergedError(
                "the policy's logits are not finite, so nothing can be sampled; go back to an earlier "
                "checkpoint"
            )
        said = self._said[slots]
        self._history[slots, at] = tokens
        self._logp[slots, said] = logp
        self._known[slots] += 1
        self._said[slots] += 1
        self._opening[slots] = False
        over = (
            (tokens[:, None] == self._eos).any(1)
            | (said + 1 >= self.max_turn_tokens)
            | (at + 1 >= self.capacity)
        )
        ended: list[int] = slots[over].tolist()
        self._speaking[ended] = False
        return ended

    def _turn(self, slot: int) -> Turn:
        known, said = int(self._known[slot]), int(self._said[slot])
        ids = self._history[slot, known - said : known].copy()
        full: Literal["cap", "full"] = "full" if known >= self.capacity else "cap"
        return Turn(
            lane=int(self._lane[slot]),
            ids=ids,
            logp=self._logp[slot, :said].copy(),
            reason="eos" if ids[-1] in self._eos else full,
        )

    def _force(self, slot: int, ids: Sequence[int]) -> None:
        known = int(self._known[slot])
        self._history[slot, known : known + len(ids)] = ids
        self._known[slot] += len(ids)
        self._speaking[slot] = True
        self._said[slot] = 0

    def _share_prefixes(self, waiting: NDArray[np.int64]) -> None:
        """Gives openings that are not fed yet the keys and values of the longest prefix that is held."""
        for slot in waiting[self._opening[waiting]]:
            lengths = self._cached[: self.live]
            donor, length = longest_prefix(self._history[: self.live], lengths, self._takeable(slot))
            if length - self._cached[slot] >= SHARED:
                self._forward.copy(donor, int(slot), length)
                self._cached[slot] = length

    def _leaders(self, waiting: NDArray[np.int64]) -> NDArray[np.int64]:
        """The waiting slots without those that can copy from one of the others once it has been fed."""
        leaders: list[int] = []
        for slot in waiting.tolist():
            if leaders and self._opening[slot]:
                histories, lengths = self._history[leaders], self._known[leaders]
                _, length = longest_prefix(histories, lengths, self._takeable(slot))
                if length - self._cached[slot] >= SHARED:
                    continue
            leaders.append(slot)
        return np.array(leaders)

    def _takeable(self, slot: int) -> Ids:
        """What a slot could take from others: all but its last token, whose logits it needs."""
        tokens: Ids = self._history[slot, : self._known[slot] - 1]
        return tokens

    def _states(self) -> tuple[NDArray[np.generic], ...]:
        return (
            self._lane,
            self._number,
            self._cached,
            self._known,
            self._history,
            self._seed,
            self._greedy,
            self._speaking,
            self._opening,
            self._said,
            self._logp,
        )

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._forward.device)


def checked_capacity(
    model: PreTrainedModel, lanes: int, capacity: int | None, temperature: float, max_turn_tokens: int
) -> int:
    """Most tokens in a conversation, after a look at all the numbers of an engine.

    Raises:
        ConfigError: for an illegal one.
    """
    numbers = {"lanes": lanes, "max_turn_tokens": max_turn_tokens, "capacity": capacity}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value}: expected at least 1")
    if not 0 < temperature < float("inf"):
        raise ConfigError(
            f"temperature = {temperature}: expected a positive number; to take the likeliest token each "
            "time, start lanes with sample_seed=None"
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if capacity is None and context is None:
        raise ConfigError(f"{type(model).__name__} names no context length; give a capacity (max_context)")
    return int(capacity or context or 0)


def check_start(lane: int, busy: Collection[int], lanes: int) -> None:
    """Looks whether a conversation can begin in a lane.

    Args:
        lane: Where.
        busy: Lanes that have one.
        lanes: How many there are.

    Raises:
        CapacityError: if not.
    """
    if lane in busy:
        raise CapacityError(f"lane {lane} is busy; release it before starting another conversation")
    if len(busy) == lanes:
        raise CapacityError(f"all {lanes} lanes are busy; release one first")


def check_room(known: int, ids: Sequence[int], capacity: int) -> None:
    """Looks whether ``ids`` and one sampled token fit on top of ``known`` tokens.

    Raises:
        CapacityError: if not, or if there are no ids.
    """
    if not len(ids):
        raise CapacityError("a turn needs at least one token before it; the agent's header is one")
    if known + len(ids) >= capacity:
        raise CapacityError(
            f"{len(ids)} tokens on top of {known} leave no room for a turn in a context of "
            f"{capacity}; use a larger max_context, shorter instructions, fewer turns, or a model with a longer context"
        )


def longest_prefix(histories: Ids, lengths: Ids, ids: Ids) -> tuple[int, int]:
    """Row that begins with most of ``ids``, and how many they are.

    Args:
        histories: Tokens, [n, capacity].
        lengths: How many of each row count, [n].
        ids: What to look for, [T].
    """
    width = min(len(ids), int(lengths.max(initial=0)))
    if not width:
        return 0, 0
    equal = histories[:, :width] == ids[:width]
    common = np.minimum(np.where(equal.all(1), width, equal.argmin(1)), lengths)
    best = int(common.argmax())
    return best, int(common[best])
