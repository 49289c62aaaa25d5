# SPDX-License-Identifier: LGPL-2.1-or-later
"""One attempt at a dump in a process of its own, with limits of time and memory.

The process is a new interpreter: nothing of an opened drgn program must be shared by a fork. It
is the leader of a process group that is killed as a whole, and it does not outlive the thread that
waits for it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from drgn_reliable.errors import ReliableError
from drgn_reliable.fleet.child import Order, Rung, Said, peak_memory, said_of
from drgn_reliable.fleet.record import AttemptRecord, BadRecord, Record

__all__ = ("Attempt", "Job", "Limits", "Stopped", "attempt")

_START = """\
import json, sys
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from drgn_reliable.fleet.child import run
run(sys.stdin.buffer.readline())
"""
_LOOK_EVERY = 0.2
"""Seconds between looks at the clock and whether to stop."""
_ANYWHERE = ("memory", "defect")
"""Outcomes that say too little without the stage at which they came."""
_KILL_SECONDS = 5
"""How long a process may take to die."""
_OUTPUT_KEPT = 4000
"""Bytes from the end of what a failed process printed."""
_ANSWER_LIMIT = 1 << 30
"""Bytes: a hostile answer does not fill the memory of its reader."""
_OWN_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Stopped(Exception):
    """The scan is over before this dump was."""


@dataclass(frozen=True)
class Job:
    """A dump to scan, and with what."""

    path: str
    symbols: tuple[str, ...] = ()
    """Debug files of kernels, of which those that fit are taken."""
    vmcoreinfo: str | None = None


@dataclass(frozen=True)
class Limits:
    """What one attempt may take."""

    seconds: float = 600
    memory: int = 4 << 30
    """Bytes of anonymous memory; the dump itself, where it is mapped, does not count."""


@dataclass(frozen=True)
class Attempt:
    """What came of it."""

    told: AttemptRecord
    record: Record | None
    stage: str
    """What the process did last."""
    debug: bool | None
    """Whether types came from debug information; None if that was not known yet."""


def attempt(
    job: Job,
    rung: Rung,
    limits: Limits,
    say: Callable[[Said], None],
    stop: Callable[[], bool],
) -> Attempt:
    """Make one attempt.

    :param say: is given what the process says of how far it is.
    :param stop: says whether to give up.
    :raises Stopped: if so; the process is gone then.
    """
    started = time.monotonic()
    child = _Child(job, rung, limits)
    try:
        end = _follow(child, limits, say, stop)
    finally:
        child.end()
    printed = "" if end.record else child.printed()
    seconds = round(time.monotonic() - started, 3)
    told = AttemptRecord(rung, end.outcome, end.detail, seconds, child.memory, printed)
    return Attempt(told, end.record, child.stage, child.debug)


class _Child:
    """The process and what it has said so far."""

    def __init__(self, job: Job, rung: Rung, limits: Limits) -> None:
        self.stage = "starting"
        self.debug: bool | None = None
        self.memory = 0
        """The most that it was seen to have in memory, in bytes."""
        self._printed = b""
        self.pipe, theirs = os.pipe()
        self.output, their_output = os.pipe()
        os.set_blocking(self.output, False)
        order = Order(
            dump=job.path,
            rung=rung,
            symbols=job.symbols,
            vmcoreinfo=job.vmcoreinfo,
            memory=limits.memory,
            parent=os.getpid(),
            pipe=theirs,
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=their_output,
                stderr=their_output,
                pass_fds=(theirs,),
                start_new_session=True,
                env={**os.environ, **dict.fromkeys(_OWN_THREADS, "1")},
            )
        except BaseException as e:
            os.close(self.pipe)
            os.close(self.output)
            if isinstance(e, OSError):  # the dump is not at fault
                raise ReliableError(f"its process cannot be started ({e.strerror})") from e
            raise
        finally:
            os.close(theirs)
            os.close(their_output)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as orders:
            # Not by msgspec: paths that are no UTF-8 have surrogates, of which it knows nothing.
            lines = (sys.path, msgspec.to_builtins(order))
            orders.writelines(json.dumps(line).encode("ascii") + b"\n" for line in lines)

    @property
    def status(self) -> int | None:
        """The exit status, or the negative number of the signal that ended it; None before."""
        return self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait for it to end, and say whether it has."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.status is not None

    def look(self) -> None:
        """See how much memory it has."""
        self.memory = max(self.memory, peak_memory(self._process.pid))

    def heard(self, line: bytes) -> Said:
        """Take in one line.

        :raises BadRecord: if it is none that the process writes.
        """
        said = said_of(line)
        self.stage = said.stage or self.stage
        self.debug = self.debug if said.debug is None else said.debug
        self.memory = max(self.memory, said.memory)
        return said

    def take_output(self) -> bool:
        """Take in some of what it has printed, of which the end is kept.

        :returns: whether it was any; False also at the end.
        """
        try:
            part = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return False
        self._printed = (self._printed + part)[-_OUTPUT_KEPT:]
        return bool(part)

    def printed(self) -> str:
        """The end of what it has printed."""
        return self._printed.decode("utf-8", "backslashreplace").replace("\0", "\\x00")

    def end(self) -> None:
        """Leave nothing of it, unless the kernel itself cannot get it out of a file system."""
        os.close(self.pipe)
        if self.status is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self.wait(_KILL_SECONDS)
        while self.take_output():
            pass
        os.close(self.output)


@dataclass(frozen=True)
class _End:
    """How an attempt ended."""

    outcome: str
    detail: str
    record: Record | None = None


def _follow(
    child: _Child, limits: Limits, say: Callable[[Said], None], stop: Callable[[], bool]
) -> _End:
    """Listen to the process until it has answered and ended, or has to be ended."""
    deadline = time.monotonic() + limits.seconds
    answer: _End | None = None
    try:
        for line in _lines(child, deadline, stop):
            said = child.heard(line)
            if said.outcome:
                where = f"{child.stage}: " if said.outcome in _ANYWHERE else ""
                answer = _End(said.outcome, where + said.detail, said.record)
            else:
                say(said)
    except BadRecord as e:
        return _End("crash", f"{child.stage}: the process answered nonsense ({e})")
    except TimeoutError:
        return _End("timeout", f"{child.stage}: no answer within {limits.seconds:g} s")
    while not child.wait(_LOOK_EVERY) and time.monotonic() < deadline:
        if stop():
            raise Stopped
    if answer is not None:
        return answer
    return _End(*_died(child.status, child.stage))


def _lines(child: _Child, deadline: float, stop: Callable[[], bool]) -> Iterator[bytes]:
    """The lines that a process writes, until it closes the pipe.

    :raises TimeoutError: when the time is over.
    :raises Stopped: when it is asked for.
    """
    poll = select.poll()
    poll.register(child.pipe, select.POLLIN)
    poll.register(child.output, select.POLLIN)
    parts: list[bytes] = []
    size = 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if stop():
            raise Stopped
        heard = {file for file, _ in poll.poll(1000 * min(left, _LOOK_EVERY))}
        child.look()
        if child.output in heard and not child.take_output():
            poll.unregister(child.output)
        if child.pipe not in heard:
            continue
        chunk = os.read(child.pipe, 1 << 16)
        if not chunk:
            return
        size += len(chunk)
        if size > _ANSWER_LIMIT:
            raise BadRecord(f"more than {_ANSWER_LIMIT} bytes")
        *whole, rest = chunk.split(b"\n")
        for end in whole:
            yield b"".join((*parts, end))
            parts = []
        parts.append(rest)


def _died(status: int | None, stage: str) -> tuple[str, str]:
    """What the end of a process that gave no answer says."""
    if status is None:
        return "timeout", f"{stage}: it closed its pipe and did not end"
    if status == -signal.SIGKILL:
        return "killed", f"{stage}: SIGKILL: the system had no memory left, or somebody sent it"
    if status < 0:
        return "crash", f"{stage}: {_signal_name(-status)}"
    return "crash", f"{stage}: the process ended without an answer, with status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
