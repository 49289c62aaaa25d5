# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run one guest: start QEMU, follow its console, stop it whatever happens."""

from __future__ import annotations

import contextlib
import queue
import re
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .qmp import Qmp, QmpError

MAGIC = b"VMLAB-ORACLE-01\0"
ARMED, READY, OVERFLOW = 1, 2, 3
HEADER = struct.Struct("16sQQQQ")  # magic, state, length, page size, page count
ANNOUNCEMENT = re.compile(r"vmlab: oracle header at physical (0x[0-9a-f]+)")
FAILURE = re.compile(r"vmlab: failed: (.*)|Kernel panic - not syncing: (?!vmlab:)(.*)")

Say = Callable[[str], None]


class GuestError(Exception):
    """The guest did not reach the instant of the dump."""


@dataclass
class Guest:
    """A running QEMU: its process, its console's lines, its QMP connection."""

    process: subprocess.Popen[bytes]
    lines: queue.Queue[str | None]
    qmp: Qmp
    scratch: Path

    def wait_for(self, pattern: re.Pattern[str], seconds: float) -> re.Match[str]:
        """The first console line that matches; the guest's own failures are raised."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._next_line(deadline, pattern)
            if found := pattern.search(line):
                return found
            if failed := FAILURE.search(line):
                raise GuestError(next(filter(None, failed.groups())))

    def wait_until_ready(self, address: int, seconds: float) -> None:
        """Poll the oracle's header in guest memory until its rows are complete."""
        deadline = time.monotonic() + seconds
        while True:
            self._drain()
            state = self.oracle_state(address)
            if state == READY:
                return
            if state == OVERFLOW:
                raise GuestError("the oracle's buffer is too small for this guest")
            if time.monotonic() > deadline:
                raise GuestError(f"no verdicts after {seconds:g} seconds")
            time.sleep(0.2)

    def oracle_state(self, address: int) -> int:
        data = self.qmp.physical_memory(address, HEADER.size, self.scratch / "header")
        magic, state = HEADER.unpack(data)[:2]
        if magic != MAGIC:
            raise GuestError(f"no oracle header at physical {address:#x}")
        return int(state)

    def _drain(self) -> None:
        """Look at what the console said meanwhile, for failures only."""
        with contextlib.suppress(queue.Empty):
            while (line := self.lines.get_nowait()) is not None:
                if failed := FAILURE.search(line):
                    raise GuestError(next(filter(None, failed.groups())))
            raise GuestError("QEMU ended early")

    def _next_line(self, deadline: float, pattern: re.Pattern[str]) -> str:
        try:
            line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise GuestError(f"the console never said {pattern.pattern!r}") from None
        if line is None:
            raise GuestError("QEMU ended early")
        return line


@contextlib.contextmanager
def running(command: list[str], console: Path, say: Say) -> Iterator[Guest]:
    """QEMU as a context: no process and no temporary file is left behind."""
    with tempfile.TemporaryDirectory(prefix="vmlab-") as directory:
        scratch = Path(directory)
        socket = scratch / "qmp"
        command = [*command, "-qmp", f"unix:{socket},server=on,wait=off"]
        with console.open("wb") as log, _process(command) as process:
            lines: queue.Queue[str | None] = queue.Queue()
            assert process.stdout is not None
            reader = threading.Thread(
                target=_follow, args=(process.stdout, log, lines, say), daemon=True
            )
            reader.start()
            try:
                with contextlib.closing(_qmp(socket, process)) as qmp:
                    yield Guest(process, lines, qmp, scratch)
            finally:
                process.kill()
                reader.join()


def _qmp(socket: Path, process: subprocess.Popen[bytes]) -> Qmp:
    try:
        return Qmp(socket)
    except QmpError as error:
        process.kill()
        raise GuestError(f"QEMU did not start: {error}") from None


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _follow(stream: IO[bytes], log: IO[bytes], lines: queue.Queue[str | None], say: Say) -> None:
    """Copy the console to the log and to the queue; None marks its end."""
    for raw in stream:
        log.write(raw)
        log.flush()
        line = raw.decode(errors="replace").rstrip()
        if "vmlab:" in line or "states:" in line:
            say(line)
        lines.put(line)
    lines.put(None)
