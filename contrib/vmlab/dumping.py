# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ways to take a dump of a guest whose verdicts are taken.

"qmp": the oracle holds the guest, and QEMU writes its memory. "kdump": the oracle panics,
and a crash kernel saves what makedumpfile leaves of /proc/vmcore to a disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drgn_reliable.files.flattened import FlattenedSource
from drgn_reliable.files.source import FileSource

from . import guest, oracle
from .scenario import Dump

Say = Callable[[str], None]
BOOT_SECONDS = 180
VERDICT_SECONDS = 300
CRASH_SECONDS = 600
DISK_BYTES = 2 << 30
SECTOR = 512
DUMPED = re.compile(r"vmlab: dumped (\d+) bytes")


def take(dump: Dump, command: list[str], directory: Path, say: Say, patience: int = 1) -> str:
    """Boot the guest and leave its dump as "vmcore"; returns the verdicts' rows.

    Patience multiplies the time that it has.
    """
    say("booting")
    return WAYS[dump.how](dump, command, directory, say, patience)


def _by_qmp(dump: Dump, command: list[str], directory: Path, say: Say, patience: int) -> str:
    output = directory / "vmcore"
    with guest.running(command, directory / "console.log", say) as running:
        address = _announced(running, patience)
        running.wait_until_ready(address, VERDICT_SECONDS * patience)
        rows = oracle.read_rows(running.read_physical, address)
        say("dumping")
        running.qmp.dump(output, dump.format)
    if dump.format != "elf" and not dump.flattened:
        _reassemble(output)
    output.chmod(0o644)
    if oracle.read_dump(output, address) != rows:
        raise oracle.OracleError("the rows in the dump are not those of the guest")
    return rows


def _reassemble(dump: Path) -> None:
    """Put a flattened dump's pieces where they belong, as "makedumpfile -R" would."""
    draft = dump.with_name("reassembled")
    with dump.open("rb") as file, draft.open("wb") as target:
        flattened = FlattenedSource(FileSource(file, dump.name))
        for offset, size in flattened.spans():
            target.seek(offset)
            target.write(flattened.read(offset, size))
    draft.replace(dump)


def _by_kdump(dump: Dump, command: list[str], directory: Path, say: Say, patience: int) -> str:
    with _disk(directory / "disk") as disk:
        file = str(disk).replace(",", ",,")
        drive = f"if=none,id=disk,format=raw,file={file}"
        command = [*command, "-drive", drive, "-device", "nvme,drive=disk,serial=vmlab"]
        with guest.running(command, directory / "console.log", say) as running:
            address = _announced(running, patience)
            found = running.wait_for(DUMPED, (VERDICT_SECONDS + CRASH_SECONDS) * patience)
        _extract(disk, directory / "vmcore", int(found[1]))
    return oracle.read_dump(directory / "vmcore", address)


def _announced(running: guest.Guest, patience: int) -> int:
    """The physical address of the oracle's header."""
    return int(running.wait_for(guest.ANNOUNCEMENT, BOOT_SECONDS * patience)[1], 16)


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
    if size:
        raise oracle.OracleError(f"the disk ends {size} bytes before the dump does")


WAYS = {"qmp": _by_qmp, "kdump": _by_kdump}
