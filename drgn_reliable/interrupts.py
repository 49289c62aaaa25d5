# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signals that wait while something is begun that must not be left behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("held_back",)


@contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Have signals wait until the end of the block, of which the first then comes.

    For the few steps in which a process is started and noted as one to be ended: the exception of a
    handler in between, as Ctrl-C's, would leave it to nobody. Where no handler of Python's is set,
    and in other threads than the main one, no such exception comes, and nothing is changed.
    """
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: handler for n in numbers if callable(handler := signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
