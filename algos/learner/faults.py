"""What can go wrong while training, and what is done about it: signals, NaN, memory, spoilt episodes."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from convgym.errors import DivergedError

if TYPE_CHECKING:
    from algos.rollout.episodes import TokenEpisode

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a wish to stop, and lets the second one through at once.

    Use it as a context manager around a loop that looks at :attr:`requested` where it can stop cleanly.
    Checkpoints are atomic, so leaving at once loses nothing but the updates since the last one. Outside the
    main thread, where Python delivers no signals, it does nothing.

    Attributes:
        requested: The signal that asked to stop, or ``None``.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = signal.Signals(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@dataclass
class NanGuard:
    """Counts updates that were skipped because their loss or gradient was not finite.

    Attributes:
        limit: So many in a row stop the run.
        skipped: Optimiser steps skipped since the start.
        in_a_row: Optimiser steps skipped since the last good one.
    """

    limit: int = 3
    skipped: int = 0
    in_a_row: int = field(default=0)

    def admit(self, loss: float, grad_norm: float) -> bool:
        """Whether this step may be taken.

        Args:
            loss: The step's loss.
            grad_norm: The gradient's norm before clipping.

        Raises:
            DivergedError: When the last ``limit`` steps were all not finite. The weights are those of the
                last good step.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise DivergedError(
                f"Expected a finite loss and gradient; got loss {loss} and gradient norm {grad_norm}, "
                f"{self.limit} times in a row. No weights were harmed: the last checkpoint is good. "
                "Lower the learning rate or max_grad_norm, or look at the rewards of the last update."
            )
        return False


def sound(episodes: Sequence[TokenEpisode]) -> tuple[list[TokenEpisode], list[TokenEpisode]]:
    """Parts episodes into those that can be learnt from, and those to set aside.

    An episode is set aside if a reward or a log-probability is not finite: one broken reward must not spoil
    the statistics of its group. So is one without a sampled token: what it earned says nothing of the policy.
    """
    kept: list[TokenEpisode] = []
    aside: list[TokenEpisode] = []
    for episode in episodes:
        finite = np.isfinite(episode.rewards).all() and np.isfinite(episode.logp).all()
        (kept if finite and episode.action.any() else aside).append(episode)
    return kept, aside
