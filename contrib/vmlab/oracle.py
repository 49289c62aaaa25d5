# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read the kernel's own verdicts out of a dump.

The oracle module's header holds the physical addresses of its text's pages, so
no page tables, symbols or types are needed: only a way to read physical memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from drgn import FaultError

from drgn_reliable import DumpError
from drgn_reliable.opening import inspect_dump

from .guest import HEADER, MAGIC, READY

MOST_PAGES = 1 << 16
"""More than any guest's rows take."""
MOST_BYTES = 1 << 20
"""Read at once where pages are side by side."""

Read = Callable[[int, int], bytes]
"""Reads physical memory: an address and a size in bytes."""


class OracleError(Exception):
    """The dump does not hold what the oracle wrote."""


def read_rows(read: Read, address: int) -> str:
    """The oracle's text, from the physical address of its header."""
    magic, state, length, page_size, page_count = HEADER.unpack(read(address, HEADER.size))
    if magic != MAGIC or state != READY:
        raise OracleError(f"physical {address:#x}: magic {magic!r}, state {state}")
    if not page_size or not 0 < page_count <= MOST_PAGES:
        raise OracleError(f"physical {address:#x}: {page_count} pages of {page_size} bytes")
    if length > page_size * page_count:
        raise OracleError(f"{length} bytes do not fit {page_count} pages")
    table = read(address + HEADER.size, 8 * page_count)
    pages = struct.unpack(f"<{page_count}Q", table)
    needed = pages[: -(-length // page_size)]
    text = b"".join(read(start, size) for start, size in _runs(needed, page_size))
    return text[:length].decode(errors="surrogateescape")


def _runs(pages: Iterable[int], page_size: int) -> Iterator[tuple[int, int]]:
    """Address and size of pages, those side by side as one: a guest is asked for each."""
    start = size = 0
    for page in pages:
        if size and page == start + size and size < MOST_BYTES:
            size += page_size
            continue
        if size:
            yield start, size
        start, size = page, page_size
    if size:
        yield start, size


def read_dump(dump: Path, address: int) -> str:
    """The oracle's text out of a dump file, whatever its format."""
    try:
        return read_rows(inspect_dump(str(dump)).file.read_physical, address)
    except (DumpError, FaultError) as error:
        raise OracleError(f"{dump.name}: {error}") from None
