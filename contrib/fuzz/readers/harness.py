# SPDX-License-Identifier: LGPL-2.1-or-later
"""What fuzzing needs to know of a reader, and how a finding is told from the expected."""

from __future__ import annotations

import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ("Contradiction", "Finding", "Harness", "Mutate", "TooLong", "finding_of", "run_once")

Mutate = Callable[[bytes, random.Random], bytes]

SECONDS = 5.0
"""A run may take; none takes a tenth of it on an idle machine."""

MEMORY = 3 << 29
"""Bytes that a run may take beside what the process has: the largest read of a flattened file is
1 GiB."""


class Contradiction(AssertionError):
    """A reader's answer is not what another reader, or the reader itself elsewhere, says."""


class TooLong(BaseException):
    """A run did not end in time. Not an :class:`Exception`: no reader may pass over it."""


@dataclass(frozen=True)
class Harness:
    """One reader under test."""

    name: str
    reads: str
    """What, in a few words."""
    run: Callable[[bytes], bool]
    """Returns for any bytes, with whether they were read to some end, rather than refused; what it
    raises is a finding."""
    seeds: Callable[[], Sequence[bytes]]
    """Sound input, cut from the dumps in ``vmcores/``."""
    mutate: Mutate | None = None
    """Changes sound input so that it gets further than with any bytes changed."""
    largest: int = 1 << 16
    """Bytes of an input."""


@dataclass(frozen=True)
class Finding:
    """What a reader must not do, and the bytes that it does it of."""

    harness: str
    what: str
    """The exception, with its place in the package: the same for the same defect."""
    data: bytes
    trace: str = ""


def run_once(harness: Harness, data: bytes, seconds: float = SECONDS) -> Finding | None:
    """Run a harness on some bytes, in time and memory; what was found, if anything."""
    try:
        with _in_time(seconds), _in_memory(MEMORY):
            harness.run(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return finding_of(harness, data, error)
    return None


def finding_of(harness: Harness, data: bytes, error: BaseException) -> Finding:
    """A finding by the exception that a run ended with."""
    places = [
        f"{frame.filename.rpartition('drgn_reliable/')[2]}:{frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "drgn_reliable/" in frame.filename and "/contrib/" not in frame.filename
    ]
    where = f" in {places[-1]}" if places else ""
    if isinstance(error, TooLong):
        where = ""  # it can be anywhere
    what = f"{type(error).__name__}{where}"
    return Finding(harness.name, what, data, "".join(traceback.format_exception(error)))


@contextmanager
def _in_memory(most: int) -> Iterator[None]:
    with open("/proc/self/statm") as file:
        data = int(file.read().split()[5]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
