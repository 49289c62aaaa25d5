# SPDX-License-Identifier: LGPL-2.1-or-later
"""Directories of dumps as a fleet has them: sound ones, broken ones, and what is no dump."""

from __future__ import annotations

import bz2
import lzma
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.dumps import VMCORES

LIVEPATCH = VMCORES / "livepatch"
SMALL = LIVEPATCH / "x86_64-6.12-user.kdump"
SOUND = [
    SMALL,
    LIVEPATCH / "x86_64-6.12-kthread.kdump",
    LIVEPATCH / "x86_64-6.12-unreliable.kdump",
    LIVEPATCH / "aarch64-7.2-user.kdump",
]


class Bad(NamedTuple):
    """A file that cannot be scanned, or not wholly."""

    make: Callable[[], bytes]
    status: str
    cause: tuple[str, ...]
    """Any of these; what a library does with a file that kills it today, it may refuse later."""
    detail: str
    """A part of what the record says."""


def xz_with_a_large_dictionary() -> bytes:
    """An xz file of 132 bytes that can only be unpacked with 4 GiB of memory."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(bytes(1 << 16), check=lzma.CHECK_NONE, filters=filters))
    data[16] = 40
    data[20:24] = struct.pack("<I", zlib.crc32(data[12:20]))
    return bytes(data)


def damaged_pages() -> bytes:
    """The second half of the pages is no compressed data any more."""
    data = bytearray(SMALL.read_bytes())
    half = len(data) // 2
    data[half:] = b"\xa5" * (len(data) - half)
    return bytes(data)


BAD: dict[str, Bad] = {
    "half": Bad(
        lambda: SMALL.read_bytes()[: SMALL.stat().st_size // 2],
        "failed",
        ("missing",),
        "reaches beyond the file's",
    ),
    "headers-only": Bad(
        lambda: SMALL.read_bytes()[:5000], "failed", ("format",), "reaches beyond the file"
    ),
    "damaged-pages": Bad(damaged_pages, "failed", ("missing", "defect", "refused"), ""),
    # 89 GiB of zeroes, which would be unpacked for minutes to a hole in a file.
    "bomb": Bad(
        lambda: bz2.compress(bytes(45 << 20)) * 2000,
        "failed",
        ("format",),
        "bzip2, of more than 1024 MiB when unpacked",
    ),
    "glutton": Bad(
        xz_with_a_large_dictionary, "failed", ("format",), "more than 256 MiB of memory are needed"
    ),
    "virsh-save": Bad(
        lambda: b"LibvirtQemudSave" + bytes(5000), "failed", ("format",), "virsh dump"
    ),
    "unfinished": Bad(lambda: bytes(100_000), "failed", ("format",), "begins with zeroes"),
}
OTHERS = {
    "notes.txt": b"Crashed again, see the mail.\n",
    "empty": b"",
    "vmcore.tar": bytes(257) + b"ustar" + bytes(250),
}
"""Files that are no dumps, and were not meant to be."""


def make_fleet(
    folder: Path, sound: Iterable[Path] = SOUND, bad: Iterable[str] = tuple(BAD)
) -> Path:
    """A directory with these dumps in it, copies under other names and other files among them."""
    for path in sound:
        target = folder / path.stem / "vmcore"
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)
    for name in bad:
        (folder / name).write_bytes(BAD[name].make())
    for name, content in OTHERS.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo")
    return folder


def fleet_command(*arguments: object) -> list[str]:
    """A command of ``drgn-reliable fleet`` in a process of its own."""
    return [sys.executable, "-m", "drgn_reliable", "fleet", *map(str, arguments)]


def run_fleet(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run such a command to its end."""
    return subprocess.run(
        fleet_command(*arguments), capture_output=True, text=True, timeout=500, check=False
    )


def content(store: Path) -> dict[str, list[Any]]:
    """All that a store says of the dumps, without what differs from scan to scan: numbers, times,
    and what a killed process managed to print."""
    found: dict[str, list[Any]] = {}
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
        for name, sql in _CONTENT.items():
            found[name] = db.execute(sql).fetchall()
    return found


_CONTENT = {
    "dumps": "SELECT path, status, cause, detail, stored, current.size, release, architecture, "
    "unwinder, types, symbols, node, tasks, unreliable, stalled, facts "
    "FROM current JOIN place ON place.dump = current.id ORDER BY path",
    "problems": "SELECT path, kind, text FROM problem JOIN place USING (dump) "
    "ORDER BY path, number",
    "attempts": "SELECT path, rung, outcome, detail FROM attempt JOIN place USING (dump) "
    "ORDER BY path, number",
    "tasks": "SELECT path, address, pid, comm, state, kind, kernel, errno, proof, waits_in, hash, "
    "normalised FROM task JOIN place USING (dump) JOIN stack ON stack.id = task.stack "
    "ORDER BY path, task.id",
    "frames": "SELECT hash, number, symbol, offset, module, code, role, of, frame.address "
    "FROM frame JOIN stack ON stack.id = frame.stack ORDER BY 1, 2",
    "reasons": "SELECT path, address, reason, frame, detail, refused FROM task_reason "
    "JOIN task ON task.id = task_reason.task JOIN place USING (dump) "
    "ORDER BY path, address, number",
    "blocking": "SELECT path, patch, decision, function, module, reason, pid, comm, advice "
    "FROM blocking JOIN place USING (dump) ORDER BY path, pid, comm, function",
    "passed over": "SELECT path, why FROM passed_over ORDER BY path",
}
