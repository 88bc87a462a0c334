"""Decoding steps recorded once and replayed: one launch on a GPU in place of hundreds, which take longer than the work.

A recording holds addresses and shapes. So lanes and columns are rounded up to few sizes, with a recording for each pair
of them; tokens, positions and logits have buffers that stay where they are; and when cache or weights move, all
recordings are thrown away (``LeanForward`` does it). Lanes that nobody reads write to the column behind the last.

Nothing is taken on trust. A recording is made while its buffers hold idle inputs, is then replayed on the inputs of the
step that asked for it, and must give the logits of the plain step. Whoever calls goes on without recordings if one
cannot be made or differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

LANES, COLUMNS = 8, 128  # fewest of a recorded step
EXACT, ROUGH = 1e-3, 0.05  # what other roundings may change, in parts of the largest logit: in 32 bits, in 16 bits

Work = Callable[[], None]
Replay = Callable[[], None]
Record = Callable[[Work], Replay]
"""Runs work, and records which operations it is made of, on which addresses."""
Step = Callable[[Tensor, Tensor, int], Tensor]
"""Tokens [n], positions [n] and live columns to logits [n,V]."""


class Graphs:
    """Recorded steps over a cache and weights that stay where they are.

    Args:
        record: Makes a recording.
        rows: Slots of the cache.
        room: Its columns; one more takes what nobody reads.
        like: Any embedding or weight: device and precision.
        vocabulary: Logits of a lane.
    """

    def __init__(self, record: Record, rows: int, room: int, like: Tensor, vocabulary: int) -> None:
        self._record, self._rows, self._room = record, rows, room
        self._tolerance = EXACT if like.dtype == torch.float32 else ROUGH
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self._positions = torch.full_like(self._tokens, room)
        # One for all: logits that stayed in the recordings' own memory would take a large vocabulary for each.
        self._logits = torch.empty(rows, vocabulary, device=like.device)
        self._replays: dict[tuple[int, int], Replay] = {}

    def step(self, tokens: Tensor, positions: Tensor, live: int, static: Step, plain: Step) -> Tensor:
        """One step; it must be called in inference mode.

        Args:
            tokens: [n] ids.
            positions: [n] columns.
            live: Columns in use.
            static: What is recorded: for rounded lanes and columns, and asking nothing of the host.
            plain: The step that a new recording must agree with.

        Returns:
            Logits [n,V], which the next step overwrites.

        Raises:
            RuntimeError: if a new recording gives other logits, or could not be made (an error of torch's).
        """
        lanes = len(tokens)
        n, columns = size(lanes, LANES, self._rows), size(live, COLUMNS, self._room)
        replay = self._replays.get((n, columns))
        if replay is not None:
            self._fill(tokens, positions, n)
            replay()
            return self._logits[:lanes]
        self._positions.fill_(self._room)  # to be run and recorded where it touches nobody
        self._tokens.zero_()
        inputs, outputs = (self._tokens[:n], self._positions[:n]), self._logits[:n]

        def work() -> None:
            outputs.copy_(static(*inputs, columns))

        replay = self._record(work)
        outputs.fill_(torch.nan)
        self._fill(tokens, positions, n)
        replay()
        expected = plain(tokens, positions, live)
        if torch.isfinite(expected).all():  # else there is nothing to compare, and the caller will say so
            check(self._logits[:lanes], expected, self._tolerance)
            self._replays[n, columns] = replay
        return expected

    def _fill(self, tokens: Tensor, positions: Tensor, n: int) -> None:
        lanes = len(tokens)
        self._tokens[:lanes].copy_(tokens)
        self._positions[:lanes].copy_(positions)
        if n > lanes:
            self._positions[lanes:n].fill_(self._room)


def size(count: int, least: int, most: int) -> int:
    """``count`` rounded up to ``least`` times 1, 2, 3, 4, 6, 8, 12, ..., but not over ``most``."""
    step = max(least, 1 << max(0, (count - 1).bit_length() - 2))
    return min(-(-count // step) * step, most)


def check(replayed: Tensor, plain: Tensor, tolerance: float) -> None:
    """Compares logits.

    Args:
        replayed: What is in question.
        plain: Finite.
        tolerance: In parts of the largest, or of 1.

    Raises:
        RuntimeError: if they differ by more.
    """
    difference = (replayed - plain).abs().max().item()
    most = tolerance * max(1.0, plain.abs().max().item())
    if not difference <= most:  # nor if it is no number
        raise RuntimeError(f"a replayed step gave other logits than the step itself, by {difference:.3g} > {most:.3g}")


def on_cuda(device: torch.device) -> Record:
    """Records CUDA graphs, all in one pool of memory: whatever they compute is overwritten by the next one's replay.

    A pool dies with its last graph, and torch refuses to use it again: whoever starts anew needs another recorder.
    """
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(work: Work) -> Replay:
        graph = torch.cuda.CUDAGraph()
        present = torch.cuda.current_stream(device)
        stream.wait_stream(present)
        # Around the capture, too: if that fails, torch by itself would stay on its stream.
        with torch.cuda.stream(stream):
            try:
                work()  # whatever libraries do at their first call must be done
            finally:
                present.wait_stream(stream)
            # Other threads of the process may go on meanwhile.
            capture = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
            try:
                with capture:
                    work()
            except BaseException:
                # Up to torch 2.12 the allocator believes for good that a failed capture goes on (pytorch #180395),
                # and breaks down when it next gives memory back.
                with contextlib.suppress(Exception):
                    torch._C._cuda_endAllocateToPool(stream.device_index, pool)
                raise
        return graph.replay

    return record
