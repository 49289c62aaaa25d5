# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read the kernel's own verdicts out of a dump.

The oracle module's header page holds the physical addresses of its text's pages, so
no page tables, symbols or types are needed: only a way to read physical memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from drgn import FaultError

from drgn_reliable import DumpError
from drgn_reliable.opening import inspect_dump

from .guest import HEADER, MAGIC, READY

Read = Callable[[int, int], bytes]
"""Reads physical memory: an address and a size in bytes."""


class OracleError(Exception):
    """The dump does not hold what the oracle wrote."""


def read_rows(read: Read, address: int) -> str:
    """The oracle's text, from the physical address of its header."""
    magic, state, length, page_size, page_count = HEADER.unpack(read(address, HEADER.size))
    if magic != MAGIC or state != READY:
        raise OracleError(f"physical {address:#x}: magic {magic!r}, state {state}")
    if not 0 < page_count <= (page_size - HEADER.size) // 8:
        raise OracleError(f"physical {address:#x}: {page_count} pages of {page_size} bytes")
    if length > page_size * page_count:
        raise OracleError(f"{length} bytes do not fit {page_count} pages")
    table = read(address + HEADER.size, 8 * page_count)
    pages = struct.unpack(f"<{page_count}Q", table)
    needed = pages[: -(-length // page_size)]
    text = b"".join(read(page, page_size) for page in needed)
    return text[:length].decode(errors="surrogateescape")


def read_dump(dump: Path, address: int) -> str:
    """The oracle's text out of a dump file, whatever its format."""
    try:
        return read_rows(inspect_dump(str(dump)).file.read_physical, address)
    except (DumpError, FaultError) as error:
        raise OracleError(f"{dump.name}: {error}") from None
