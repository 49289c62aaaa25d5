# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signals that wait until what was begun is also noted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from drgn_reliable.interrupts import held_back

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


class Came(Exception):
    """What the handlers here raise."""


def refuse(number: int, frame: object) -> None:
    raise Came(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers that raise, until the test is over."""
    before = [signal.signal(number, refuse) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_a_signal_comes_at_the_end_of_the_block() -> None:
    """The block is done, and the handler has the signal as if it came then."""
    done = []
    with pytest.raises(Came, match=str(int(signal.SIGUSR1))), held_back(*SIGNALS):
        signal.raise_signal(signal.SIGUSR1)
        done.append(1)
        signal.raise_signal(signal.SIGUSR2)
        done.append(2)
    assert done == [1, 2]
    assert [signal.getsignal(number) for number in SIGNALS] == [refuse, refuse]


def test_an_exception_of_the_block_is_kept_where_no_signal_came() -> None:
    """And the handlers are as before."""
    with pytest.raises(OSError, match="no process"), held_back(*SIGNALS):
        raise OSError("no process")
    with pytest.raises(Came):
        signal.raise_signal(signal.SIGUSR1)


def test_what_is_ignored_stays_ignored() -> None:
    """As nohup and a shell's background jobs have it."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with held_back(*SIGNALS):
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        signal.raise_signal(signal.SIGUSR1)


def test_another_thread_changes_nothing() -> None:
    """No handler runs there; signal.signal() would raise ValueError."""
    seen = []

    def hold() -> None:
        with held_back(*SIGNALS):
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [refuse]
