# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read the kernel's own verdicts out of a dump.

The oracle module's header page holds the physical addresses of its text's pages, so
no page tables, symbols or types are needed: only a way to read physical memory.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Protocol

from .guest import HEADER, MAGIC, READY


class OracleError(Exception):
    """The dump does not hold what the oracle wrote."""


class Memory(Protocol):
    """What is needed of a drgn program."""

    def read(self, address: int, size: int, physical: bool = False) -> bytes: ...


def read_rows(memory: Memory, address: int) -> str:
    """The oracle's text, from the physical address of its header."""
    magic, state, length, page_size, page_count = HEADER.unpack(
        memory.read(address, HEADER.size, physical=True)
    )
    if magic != MAGIC or state != READY:
        raise OracleError(f"physical {address:#x}: magic {magic!r}, state {state}")
    if length > page_size * page_count:
        raise OracleError(f"{length} bytes do not fit {page_count} pages")
    table = memory.read(address + HEADER.size, 8 * page_count, physical=True)
    pages = struct.unpack(f"{page_count}Q", table)
    needed = pages[: -(-length // page_size)]
    text = b"".join(memory.read(page, page_size, physical=True) for page in needed)
    return text[:length].decode(errors="surrogateescape")


def read_dump(dump: Path, address: int) -> str:
    """The oracle's text out of a dump file that drgn can open."""
    import drgn

    program = drgn.Program()
    program.set_core_dump(str(dump))
    return read_rows(program, address)


def count_verdicts(rows: str) -> dict[str, int]:
    """How many tasks were found reliable, unreliable, and running."""
    names = {"-22": "unreliable", "-16": "running"}
    counts: Counter[str] = Counter()
    for row in rows.splitlines():
        if row.startswith("T "):
            counts[names.get(row.split()[8], "reliable")] += 1
    return dict(counts)
