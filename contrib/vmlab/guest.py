# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run one guest: start QEMU, follow its console, stop it whatever happens."""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO

from drgn_reliable.interrupts import held_back

from .qmp import Qmp, QmpError, QmpLost

MAGIC = b"VMLAB-ORACLE-01\0"
POLL_SECONDS = 0.2
ARMED, READY, OVERFLOW = 1, 2, 3
# Little-endian on every machine: magic, state, length, page size, page count.
HEADER = struct.Struct("<16sQQQQ")
ANNOUNCEMENT = re.compile(r"vmlab: oracle header at physical (0x[0-9a-f]+)")
FAILURE = re.compile(r"vmlab: failed:(.*)|Kernel panic - not syncing: (?!vmlab:)(.*)|\b(Oops: .*)")

Say = Callable[[str], None]


class GuestError(Exception):
    """The guest did not reach the instant of the dump."""


class Console:
    """What QEMU and its guest say: logged, told, and kept until it is looked at."""

    def __init__(self, stream: IO[bytes], log: IO[bytes], say: Say) -> None:
        self._stream, self._log, self._say = stream, log, say
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._last = ""
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def next(self, seconds: float) -> str:
        """The next line; queue.Empty when there is none in that time."""
        line = self._lines.get(timeout=seconds) if seconds > 0 else self._lines.get_nowait()
        if line is None:
            raise GuestError(f"QEMU ended early: {self._last}".rstrip(": "))
        self._last = line or self._last
        if failed := FAILURE.search(line):
            raise GuestError(next(filter(None, failed.groups()), line).strip())
        return line

    def look(self) -> None:
        """Look at what was said meanwhile, for failures only."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.next(0)

    def end(self) -> None:
        """Wait for the last line, when QEMU has ended."""
        self._reader.join()

    def _follow(self) -> None:
        """Copy the console to the log and to the queue; None marks its end."""
        try:
            for raw in self._stream:
                self._log.write(raw)
                self._log.flush()
                line = raw.decode(errors="replace").rstrip()
                if "vmlab:" in line or "states:" in line:
                    self._say(line)
                self._lines.put(line)
        finally:
            self._lines.put(None)


@dataclass
class Guest:
    """A running QEMU: its console, its QMP connection."""

    console: Console
    qmp: Qmp
    scratch: Path

    def wait_for(self, pattern: re.Pattern[str], seconds: float) -> re.Match[str]:
        """The first console line that matches; the guest's own failures are raised."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while True:
                if found := pattern.search(self.console.next(deadline - time.monotonic())):
                    return found
        raise GuestError(f"the console never said {pattern.pattern!r} in {seconds:g} seconds")

    def wait_until_ready(self, address: int, seconds: float) -> None:
        """Poll the oracle's header in guest memory until its rows are complete."""
        deadline = time.monotonic() + seconds
        while True:
            self.console.look()
            state = self.oracle_state(address)
            if state == READY:
                return
            if state == OVERFLOW:
                raise GuestError("the oracle's buffer is too small for this guest")
            if time.monotonic() > deadline:
                raise GuestError(f"no verdicts after {seconds:g} seconds")
            time.sleep(POLL_SECONDS)

    def read_physical(self, address: int, size: int) -> bytes:
        """Physical memory, as it is now."""
        return self.qmp.physical_memory(address, size, self.scratch / "memory")

    def oracle_state(self, address: int) -> int:
        data = self.read_physical(address, HEADER.size)
        magic, state = HEADER.unpack(data)[:2]
        if magic != MAGIC:
            raise GuestError(f"no oracle header at physical {address:#x}")
        return int(state)


@contextlib.contextmanager
def running(command: list[str], log: Path, say: Say, seconds: float = 30.0) -> Iterator[Guest]:
    """QEMU as a context: no process and no temporary file is left behind.

    It has that time to start. When it ends or fails meanwhile, the GuestError says why.
    """
    with tempfile.TemporaryDirectory(prefix="vmlab-") as directory, log.open("wb") as file:
        scratch = Path(directory)
        socket = scratch / "qmp"
        command = [*command, "-qmp", f"unix:{socket},server=on,wait=off"]
        with contextlib.ExitStack() as ending:
            with held_back(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                process = ending.enter_context(
                    subprocess.Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
                )
                assert process.stdout is not None
                console = Console(process.stdout, file, say)
                ending.callback(console.end)
                ending.callback(process.kill)
            try:
                with contextlib.closing(_qmp(socket, process, seconds)) as qmp:
                    yield Guest(console, qmp, scratch)
            except QmpLost:
                _ended(process, console)
                raise


def _qmp(socket: Path, process: subprocess.Popen[bytes], seconds: float) -> Qmp:
    try:
        return Qmp(socket, seconds, lambda: process.poll() is None)
    except QmpLost:
        raise
    except QmpError as error:
        raise GuestError(f"QEMU did not start: {error}") from None


def _ended(process: subprocess.Popen[bytes], console: Console) -> None:
    """If QEMU has ended, raise its last words: they say more than a lost connection."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
        console.end()
        console.look()
