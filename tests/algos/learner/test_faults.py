"""Signals, NaN, memory and spoilt episodes."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from algos.learner.faults import Interrupts, NanGuard, sound
from algos.policies.load import Policy
from convgym.errors import DivergedError
from tests.algos.learner.made import conversations


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.requested is None
        os.kill(os.getpid(), number)
        assert interrupts.requested is number
    assert signal.getsignal(number) is before


def wait_for_signals(ready: Connection) -> None:
    """Holds on after the first signal, as a long update would."""
    with Interrupts() as interrupts:
        ready.send("ready")
        while interrupts.requested is None:
            signal.pause()
        ready.send("asked")
        while True:
            signal.pause()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_leaves_at_once(number: signal.Signals) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.algos.learner.test_checkpoint"])
    here, there = context.Pipe()
    process = context.Process(target=wait_for_signals, args=(there,))
    process.start()
    assert process.pid is not None
    assert here.recv() == "ready"
    os.kill(process.pid, number)
    assert here.recv() == "asked"  # it goes on
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == -number


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before, errors = signal.getsignal(signal.SIGINT), []

    def enter() -> None:
        try:
            with Interrupts() as interrupts:
                assert signal.getsignal(signal.SIGINT) is before
                assert interrupts.requested is None
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_guard_skips_what_is_not_finite_and_stops_at_the_third(bad: float) -> None:
    guard = NanGuard()
    assert guard.admit(1.0, 2.0)
    assert not guard.admit(bad, 1.0)
    assert not guard.admit(1.0, abs(bad))
    assert guard.admit(0.0, 0.0)
    assert not guard.admit(bad, bad)
    assert not guard.admit(bad, bad)
    with pytest.raises(DivergedError) as caught:
        guard.admit(bad, bad)
    assert guard.skipped == 5
    assert "3 times in a row" in str(pickle.loads(pickle.dumps(caught.value)))



@pytest.mark.parametrize("field", ["rewards", "logp"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_spoilt_episodes_are_parted_from_sound_ones(tiny_policy: Policy, field: str, bad: float) -> None:
    episodes = conversations(tiny_policy, 3)
    values: Any = np.array(getattr(episodes[1], field))
    values[-1] = bad
    spoilt = replace(episodes[1], **{field: values})
    kept, aside = sound([episodes[0], spoilt, episodes[2]])
    assert kept == [episodes[0], episodes[2]]
    assert aside == [spoilt]
