# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ways to take a dump of a guest whose verdicts are taken.

"qmp": the oracle holds the guest, and QEMU writes its memory. "kdump": the oracle panics,
and a crash kernel saves what makedumpfile leaves of /proc/vmcore to a disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import guest, oracle
from .qmp import Qmp
from .scenario import Dump, ScenarioError

Say = Callable[[str], None]
BOOT_SECONDS = 180
VERDICT_SECONDS = 300
CRASH_SECONDS = 600
DISK_BYTES = 2 << 30
SECTOR = 512
DUMPED = re.compile(r"vmlab: dumped (\d+) bytes")


@dataclass(frozen=True)
class QmpMemory:
    """A guest's physical memory, read while it is held still."""

    qmp: Qmp
    scratch: Path

    def read(self, address: int, size: int, physical: bool = False) -> bytes:
        assert physical
        return self.qmp.physical_memory(address, size, self.scratch / "memory")


def take(dump: Dump, command: list[str], directory: Path, say: Say) -> str:
    """Boot the guest and leave its dump as "vmcore"; returns the verdicts' rows."""
    ways = {"qmp": _by_qmp, "kdump": _by_kdump}
    if dump.how not in ways:
        raise ScenarioError(f"a dump is taken by {' or '.join(ways)}, not {dump.how!r}")
    say("booting")
    return ways[dump.how](dump, command, directory, say)


def _by_qmp(dump: Dump, command: list[str], directory: Path, say: Say) -> str:
    output = directory / "vmcore"
    with guest.running(command, directory / "console.log", say) as running:
        address = _announced(running)
        running.wait_until_ready(address, VERDICT_SECONDS)
        rows = oracle.read_rows(QmpMemory(running.qmp, running.scratch), address)
        say("dumping")
        running.qmp.dump(output, dump.format)
    output.chmod(0o644)
    if dump.format == "elf" and oracle.read_dump(output, address) != rows:
        raise oracle.OracleError("the rows in the dump are not those of the guest")
    return rows


def _by_kdump(dump: Dump, command: list[str], directory: Path, say: Say) -> str:
    with _disk(directory / "disk") as disk:
        drive = f"if=none,id=disk,format=raw,file={disk}"
        command = [*command, "-drive", drive, "-device", "nvme,drive=disk,serial=vmlab"]
        with guest.running(command, directory / "console.log", say) as running:
            address = _announced(running)
            found = running.wait_for(DUMPED, VERDICT_SECONDS + CRASH_SECONDS)
        _extract(disk, directory / "vmcore", int(found[1]))
    return oracle.read_dump(directory / "vmcore", address)


def _announced(running: guest.Guest) -> int:
    """The physical address of the oracle's header."""
    return int(running.wait_for(guest.ANNOUNCEMENT, BOOT_SECONDS)[1], 16)


@contextmanager
def _disk(path: Path) -> Iterator[Path]:
    """A sparse file, removed afterwards."""
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    try:
        yield path
    finally:
        path.unlink()


def _extract(disk: Path, output: Path, size: int) -> None:
    """What the crash kernel wrote after the sector that says how much it is."""
    with disk.open("rb") as source, output.open("wb") as target:
        label = source.read(SECTOR).split()
        if label != [b"VMLAB-DUMP", str(size).encode()]:
            raise oracle.OracleError(f"the crash kernel left no dump: {label!r}")
        while size and (block := source.read(min(size, 1 << 20))):
            target.write(block)
            size -= len(block)
