# SPDX-License-Identifier: LGPL-2.1-or-later
"""Look into a QEMU guest that runs, by a dump that QEMU itself writes into a pipe of ours.

QEMU stops the guest while it writes, and has it go on by itself when it is done or has failed:
nothing that is sent here stops, continues or changes a guest, and one that was paused stays paused.
All tasks are seen at one instant, and the registers of those that run are in the dump too.

QEMU cannot be asked to give a dump up. But whatever ends us closes the pipe, and its next write
fails (it ignores SIGPIPE, ``os_setup_early_signal_handling()``); so does its dump, and the guest
goes on at once. A file of ours instead of the pipe would be written to its end, however long that
takes. The pipe is no slower where a CPU is free, for the copy is made there meanwhile.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl
from io import FileIO
from typing import Any, BinaryIO

from drgn import Program

from drgn_reliable.errors import DumpError
from drgn_reliable.files.packed import Watch, unwatched
from drgn_reliable.opening import open_dump
from drgn_reliable.qmp import Qmp, QmpBusy, QmpError, QmpLost

__all__ = ("COMMANDS", "Snapshot", "open_guest", "take_snapshot")

COMMANDS = (
    "qmp_capabilities",
    "query-status",
    "query-memory-size-summary",
    "getfd",
    "dump-guest-memory",
    "query-dump",
    "closefd",
)
"""All that is ever sent to QEMU. The guest's memory is only read, and only ``dump-guest-memory``
touches how it runs."""

CONNECT_SECONDS = 5.0
"""For QEMU's greeting; it comes at once, or another client is being served."""
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.05
_QUIET_SECONDS = 1.0
"""QEMU is asked how its dump is when nothing of it has come for so long."""
_RESUME_SECONDS = 30.0
_NAME = "drgn-reliable"
"""What QEMU calls the descriptor that it is given."""
_ROOM = 1 << 26
"""Bytes of a dump beside the guest's memory."""
_BLOCK = 1 << 20
"""Bytes of the pipe, and of a read: as many as anybody may have (``/proc/sys/fs/pipe-max-size``).
QEMU writes page by page, and with fewer waits for us more often."""
_FIRST = -20
"""The highest priority, which root may have."""


@dataclass(frozen=True)
class Snapshot:
    """A guest at one instant."""

    file: BinaryIO
    """An ELF dump. It has no name and is gone when it is closed."""
    status: str
    """What the guest was doing, as QEMU calls it: ``running``, ``paused``, …"""
    seconds: float
    """For how long the guest stood still because of it."""


def open_guest(
    path: str,
    symbols: str | Sequence[str] | None = None,
    watch: Watch = unwatched,
    vmcoreinfo: str | None = None,
    told: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Program:
    """A program of a guest as it is now.

    :param path: of the QMP socket of its QEMU.
    :param symbols: as for :func:`drgn_reliable.opening.open_dump`, and so the others.
    :param told: is given the snapshot when it was taken.
    :raises DumpError: if it cannot be taken, or is not of a Linux kernel.
    :raises UsageError: if the symbols or the VMCOREINFO cannot be used.
    """
    snapshot = take_snapshot(path)
    told(snapshot)
    return open_dump(path, symbols, watch, vmcoreinfo, file=snapshot.file)


def take_snapshot(path: str) -> Snapshot:
    """Have QEMU write a dump of its guest.

    :raises DumpError: if there is no QEMU, or it does not answer, or cannot do it.
    """
    _check_socket(path)
    try:
        with closing(_Monitor(path)) as monitor:
            return monitor.snapshot()
    except QmpError as e:
        raise DumpError(f"--qemu {path}: {e}") from e


def _check_socket(path: str) -> None:
    """See whether there is a socket that we may connect to."""
    how = "start QEMU with -qmp unix:SOCKET,server=on,wait=off, and name SOCKET"
    try:
        mode = os.stat(path).st_mode
    except OSError as e:
        raise DumpError(f"--qemu {path}: {e.strerror}; {how}") from None
    if not stat.S_ISSOCK(mode):
        raise DumpError(f"--qemu {path}: not a socket; {how}")
    if not os.access(path, os.W_OK):
        raise DumpError(f"--qemu {path}: Permission denied; be the user whose QEMU it is, or root")


class _Monitor:
    """QEMU, asked nothing but :data:`COMMANDS`."""

    def __init__(self, path: str) -> None:
        try:
            self._qmp = Qmp(path, CONNECT_SECONDS)
        except QmpBusy as e:
            hint = "another client has it, QEMU serves one at a time: give QEMU a second -qmp"
            raise QmpError(f"{e}; {hint}") from e

    def close(self) -> None:
        self._qmp.close()

    def snapshot(self) -> Snapshot:
        """See :func:`take_snapshot`."""
        status = str(self._ask("query-status").get("status"))
        try:
            self._check_room()
            file = tempfile.TemporaryFile(prefix="drgn-reliable-")  # noqa: SIM115 - it is handed on
        except OSError as e:
            why = f"no temporary file can be made ({e.strerror or e})"
            raise QmpError(f"{why}; name another directory with TMPDIR") from e
        try:
            started = time.monotonic()
            try:
                self._dump(file.fileno())
            except (QmpBusy, QmpLost):
                raise
            except QmpError:
                self._wait_for(status)
                raise
            self._wait_for(status)
            return Snapshot(file, status, self._stood_still(time.monotonic() - started))
        except BaseException:
            file.close()
            raise

    def _ask(self, command: str, files: Sequence[int] = (), **arguments: Any) -> dict[str, Any]:
        if command not in COMMANDS:
            raise ValueError(f"{command} is not among the commands that a guest may be sent")
        found = self._qmp.execute(command, files=files, timeout=_ANSWER_SECONDS, **arguments)
        if not isinstance(found, dict):
            raise QmpError(f"{command}: QEMU returned {found!r:.80}")
        return found

    def _check_room(self) -> None:
        """See whether the dump will fit: a guest should not stand still for nothing."""
        sizes = self._ask("query-memory-size-summary")
        try:
            needed = int(sizes["base-memory"]) + int(sizes.get("plugged-memory", 0)) + _ROOM
        except (KeyError, TypeError, ValueError):
            raise QmpError(f"query-memory-size-summary: QEMU returned {sizes!r:.80}") from None
        directory = tempfile.gettempdir()
        there = os.statvfs(directory)
        free = there.f_bavail * there.f_frsize
        if free < needed:
            raise QmpError(
                f"the guest's memory takes {needed / 1e6:,.0f} MB, and {directory} has "
                f"{free / 1e6:,.0f} MB free; name another directory with TMPDIR"
            )

    def _dump(self, output: int) -> None:
        """Have QEMU write the guest's memory, and wait until all of it is in a file."""
        reader, writer = os.pipe()
        with _undelayed(), open(reader, "rb", buffering=0) as pipe:
            try:
                with suppress(OSError):  # beyond what this user may have: it only takes longer
                    fcntl(writer, F_SETPIPE_SZ, _BLOCK)
                self._ask("getfd", files=[writer], fdname=_NAME)
            finally:
                os.close(writer)
            try:
                # Detached, QEMU goes on answering, and so does all else that it does.
                self._ask("dump-guest-memory", paging=False, protocol=f"fd:{_NAME}", detach=True)
            except BaseException:
                with suppress(QmpError):  # QEMU may have closed it
                    self._ask("closefd", fdname=_NAME)
                raise
            self._copy(pipe, output)
        while (found := self._ask("query-dump")).get("status") == "active":
            time.sleep(_POLL_SECONDS)
        if found.get("status") != "completed":
            done = (e["data"] for e in self._qmp.events if e.get("event") == "DUMP_COMPLETED")
            why = next((data.get("error") for data in done if isinstance(data, dict)), None)
            raise QmpError(f"dump-guest-memory: {why or found.get('status')}")

    def _copy(self, pipe: FileIO, output: int) -> None:
        """Copy what QEMU writes, until it closes the pipe or has nothing more to write."""
        block = memoryview(bytearray(_BLOCK))
        coming = select.poll()
        coming.register(pipe, select.POLLIN)
        over = False
        while True:
            if coming.poll(0 if over else _QUIET_SECONDS * 1000):
                if not (size := pipe.readinto(block)):
                    return
                _write(output, block[:size])
            elif over:
                return
            else:
                over = self._ask("query-dump").get("status") != "active"

    def _wait_for(self, status: str) -> None:
        """Wait until the guest does what it did before; QEMU sees to that."""
        deadline = time.monotonic() + _RESUME_SECONDS
        while (now := self._ask("query-status").get("status")) != status:
            if time.monotonic() > deadline:
                raise QmpError(f"the guest was {status}, and is {now} now, though the dump is done")
            time.sleep(_POLL_SECONDS)

    def _stood_still(self, most: float) -> float:
        """From when QEMU stopped the guest to when it let it go on, by its own clock."""
        times: dict[str, float] = {}
        for event in self._qmp.events:
            with suppress(KeyError, TypeError, ValueError):
                stamp = event["timestamp"]
                times[str(event["event"])] = int(stamp["seconds"]) + stamp["microseconds"] / 1e6
        if "STOP" not in times:
            return 0.0  # it was not running
        return times["RESUME"] - times["STOP"] if "RESUME" in times else most


def _write(output: int, data: memoryview) -> None:
    try:
        while data:
            data = data[os.write(output, data) :]
    except OSError as e:
        raise QmpError(
            f"the guest's memory cannot be written to {tempfile.gettempdir()} ({e.strerror}); "
            "name another directory with TMPDIR"
        ) from e


@contextmanager
def _undelayed() -> Iterator[None]:
    """Who does not read keeps QEMU waiting, and so the guest: put Ctrl-Z off, and go before all
    others where that is allowed.

    Where all CPUs are busy, each MiB waits for its turn: that took two to seven times as long.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTSTP])
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, priority)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
