# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walk the stacks of very many tasks in several processes, each of which has the dump open.

One process lists the tasks, in their order, and makes the reports. The others walk: they are given
tasks in portions and answer, for each, which walk it repeats, or what came of its own. Portions
and answers are MessagePack on pipes; a process that has read a dump is told what to do by nobody
else, and what it answers is checked as it is read.
"""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import IO

import msgspec
from drgn import FaultError

from drgn_reliable.errors import DumpError, ReliableError
from drgn_reliable.interrupts import held_back
from drgn_reliable.kernel import Kernel
from drgn_reliable.model import (
    Frames,
    KernelAnswer,
    ProofAnswer,
    Reason,
    TaskReport,
    Trace,
)
from drgn_reliable.opening import open_dump, opened_dump
from drgn_reliable.report import Scanner, collector_paused
from drgn_reliable.tasks import Task

__all__ = ("MANY", "ParallelScanner", "serve", "walkers_for")

MANY = 20_000
"""Tasks from which on it pays to start further processes, which takes about a second."""
_MOST = 4
"""Processes beside the one that lists the tasks; with more, it is what they wait for."""
_PORTION = 256
"""Tasks."""
_WAITING = 4
"""Portions for each process that are on their way at once."""
_SEEN = 8192
"""Traces that are remembered until they are met again."""
_LENGTH = struct.Struct("<I")
_START = "import sys; sys.path[:] = {path!r}; from drgn_reliable.parallel import serve; serve()"


class _Order(msgspec.Struct, array_like=True):
    """What to open; the first message to a walker."""

    dump: bytes
    symbols: tuple[bytes, ...]
    vmcoreinfo: bytes | None


class _Known(msgspec.Struct, array_like=True):
    """What every task has whose walk repeats a certain one."""

    trace: Trace
    kernel: KernelAnswer
    proof: ProofAnswer


class _Own(msgspec.Struct, array_like=True):
    """What came of a walk that nobody else has."""

    trace: Trace
    kernel: KernelAnswer
    proof: ProofAnswer
    reasons: tuple[Reason, ...]


class _Answer(msgspec.Struct, array_like=True, omit_defaults=True):
    """What a walker says of a portion."""

    known: list[_Known] = []
    """Walks that it had not named before, numbered as they come."""
    tasks: list[int | _Own] = []
    """For each task the number of the walk that it repeats, or its own."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    """Why it cannot go on."""


_TASKS = msgspec.msgpack.Decoder(list[Task])
_ANSWER = msgspec.msgpack.Decoder(_Answer)
_pack = msgspec.msgpack.Encoder().encode


def _send(file: IO[bytes], message: bytes) -> None:
    file.write(_LENGTH.pack(len(message)) + message)
    file.flush()


def _receive(file: IO[bytes]) -> bytes | None:
    """The next message, None at the end."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    message = file.read(size)
    return message if len(message) == size else None


# The walking process ------------------------------------------------------------------------


def serve() -> None:
    """Walk what standard input says, and answer on standard output, until the input ends."""
    logging.disable()  # drgn tells that one what is to be told
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    order = _receive(orders)
    if order is None:
        return
    try:
        _serve(msgspec.msgpack.decode(order, type=_Order), orders, answers)
    except (ReliableError, FaultError, OSError, MemoryError) as e:
        why = f"cannot be read ({e.strerror or e})" if isinstance(e, OSError) else str(e)
        with suppress(BrokenPipeError):
            _send(answers, _pack(_Answer(error=why or type(e).__name__)))


def _serve(order: _Order, orders: IO[bytes], answers: IO[bytes]) -> None:
    symbols = [os.fsdecode(file) for file in order.symbols]
    vmcoreinfo = None if order.vmcoreinfo is None else os.fsdecode(order.vmcoreinfo)
    scanner = Scanner(Kernel(open_dump(os.fsdecode(order.dump), symbols, vmcoreinfo=vmcoreinfo)))
    numbered = _Numbered()
    while (portion := _receive(orders)) is not None:
        known: list[_Known] = []
        with collector_paused():
            reports = map(scanner.report, _TASKS.decode(portion))
            tasks = [numbered.told(report, known) for report in reports]
        _send(answers, _pack(_Answer(known, tasks, scanner.problems(), scanner.warnings())))


class _Numbered:
    """The traces that several tasks share: they are the same object, and get a number when they
    are met again."""

    def __init__(self) -> None:
        self._seen: dict[int, Trace] = {}
        self._numbers: dict[int, tuple[int, Trace]] = {}

    def told(self, report: TaskReport, known: list[_Known]) -> int | _Own:
        """What to say of a task; a trace that gets a number is added to ``known``."""
        trace = Frames.of(report.frames).trace
        numbered = self._numbers.get(id(trace))
        if numbered is not None:
            return numbered[0]
        if report.reasons or id(trace) not in self._seen:
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            self._seen[id(trace)] = trace  # kept, so that its identity stays its own
            return _Own(trace, report.kernel, report.proof, report.reasons)
        number = len(self._numbers)
        self._numbers[id(trace)] = number, trace
        known.append(_Known(trace, report.kernel, report.proof))
        return number


# The process that asks ----------------------------------------------------------------------


class _Walker:
    """A walking process."""

    def __init__(self, order: _Order) -> None:
        self._dump = os.fsdecode(order.dump)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the process that asks, which ends this one
            )
        except OSError as e:
            raise DumpError(
                f"{self._dump}: a walking process cannot be started ({e.strerror}); try --jobs 1"
            ) from e
        assert self._process.stdin and self._process.stdout
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self.known: list[_Known] = []
        self.problems: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self._send(_pack(order))

    def walk(self, portion: Sequence[Task]) -> list[_Known | _Own]:
        """What comes of the walks of some tasks.

        :raises DumpError: if it cannot say.
        """
        self._send(_pack(portion))
        message = _receive(self._answers)
        if message is None:
            raise DumpError(f"{self._dump}: {self._end()}")
        try:
            answer = _ANSWER.decode(message)
            if answer.error:
                raise DumpError(f"{self._dump}: {answer.error}")
            self.known += answer.known
            self.problems, self.warnings = answer.problems, answer.warnings
            found = [self.known[t] if isinstance(t, int) else t for t in answer.tasks]
        except (msgspec.DecodeError, IndexError) as e:
            raise DumpError(f"{self._dump}: a walking process answered nonsense ({e})") from e
        if len(found) != len(portion):
            raise DumpError(f"{self._dump}: a walking process answered for {len(found)} tasks")
        return found

    def _send(self, message: bytes) -> None:
        # Of a process that is gone the answer tells.
        with suppress(BrokenPipeError):
            _send(self._orders, message)

    def _end(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"a walking process died of {signal.Signals(-status).name}; try --jobs 1"
        return f"a walking process ended with status {status}; try --jobs 1"

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._orders.close()
        self._answers.close()


class ParallelScanner(Scanner):
    """A scanner that has the walks of many tasks made by other processes.

    :param walkers: how many.
    :raises DumpError: if one of them fails, as the reports are taken.
    """

    def __init__(
        self, kernel: Kernel, walkers: int, symbols: Sequence[str], vmcoreinfo: str | None
    ) -> None:
        super().__init__(kernel)
        self._order = _Order(
            os.fsencode(kernel.path),
            tuple(os.fsencode(file) for file in symbols),
            None if vmcoreinfo is None else os.fsencode(vmcoreinfo),
        )
        self._count = walkers
        self._walkers: list[_Walker] = []
        self._mine = threading.local()

    def reports(self, tasks: Iterable[Task]) -> Iterator[TaskReport]:
        """The reports of tasks, in their order."""
        self._walkers.clear()
        free: deque[_Walker] = deque()

        def take() -> None:
            self._mine.walker = free.popleft()

        each = iter(tasks)
        on_their_way: deque[tuple[list[Task], Future[list[_Known | _Own]]]] = deque()
        with ThreadPoolExecutor(self._count, initializer=take) as pool:
            try:
                with held_back(signal.SIGINT):
                    self._walkers += [_Walker(self._order) for _ in range(self._count)]
                free.extend(self._walkers)
                while portion := list(islice(each, _PORTION)):
                    on_their_way.append((portion, pool.submit(self._walk, portion)))
                    if len(on_their_way) > _WAITING * self._count:
                        yield from self._made(*on_their_way.popleft())
                while on_their_way:
                    yield from self._made(*on_their_way.popleft())
            finally:
                self.end()  # before the threads are waited for

    def _walk(self, portion: Sequence[Task]) -> list[_Known | _Own]:
        walker: _Walker = self._mine.walker
        return walker.walk(portion)

    def _made(
        self, portion: Sequence[Task], walked: Future[list[_Known | _Own]]
    ) -> Iterator[TaskReport]:
        for task, found in zip(portion, walked.result(), strict=True):
            reasons = found.reasons if isinstance(found, _Own) else ()
            frames = Frames(found.trace, task.stack)
            yield task.report(found.kernel, found.proof, frames, reasons)

    def problems(self) -> tuple[str, ...]:
        """See :class:`drgn_reliable.report.Scanner`."""
        found = [*super().problems(), *(line for w in self._walkers for line in w.problems)]
        return tuple(dict.fromkeys(found))

    def warnings(self) -> tuple[str, ...]:
        """See :class:`drgn_reliable.report.Scanner`."""
        found = [*super().warnings(), *(line for w in self._walkers for line in w.warnings)]
        return tuple(dict.fromkeys(found))

    def end(self) -> None:
        """See :class:`drgn_reliable.report.Scanner`."""
        for walker in self._walkers:
            walker.end()


def walkers_for(kernel: Kernel, jobs: int | None, *, hurry: bool = True) -> int:
    """How many processes are to walk the tasks of a kernel; 0 if this one does it all.

    :param jobs: what the user wants, None if they did not say.
    :param hurry: whether time is worth memory if they did not: each process takes some 70 MB.
    """
    dump = opened_dump(kernel.prog)
    if dump is None or dump.nameless or kernel.live or not os.path.isfile(dump.path):
        return 0
    if jobs is not None:
        return jobs if jobs > 1 else 0
    cpus = len(os.sched_getaffinity(0))
    many = hurry and cpus > 1 and kernel.expected_tasks() >= MANY
    return min(cpus, _MOST) if many else 0
