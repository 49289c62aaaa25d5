# SPDX-License-Identifier: LGPL-2.1-or-later
"""LoongArch: translate kernel addresses, which drgn cannot.

The architecture maps two windows of the address space straight to physical memory; the kernel's
image, its data and the stacks are there. Only vmalloc addresses, where modules are, go through the
page tables. A directory's entry is the next table's address in a window; an entry that leads
nowhere leads to a table of entries that do (arch/loongarch/include/asm/pgtable.h).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from drgn import FaultError, Program

__all__ = ("add_kernel_memory",)

WINDOWS = (0x8000_0000_0000_0000, 0x9000_0000_0000_0000)
"""Uncached and cached (``CSR_DMW0_BASE``, ``CSR_DMW1_BASE``)."""
WINDOW_SIZE = 1 << 48
MAPPED_BASE = 0xC000_0000_0000_0000
"""From here on the page tables decide (``XKVRANGE``)."""

LEVELS = {4096: 3, 16384: 3, 65536: 2}
"""Page table levels by page size: those of the default configurations."""
ENTRY_BITS = 3
PRESENT, HUGE = 1 << 7, 1 << 6

Read = Callable[[int, int], bytes]


def add_kernel_memory(prog: Program, read_physical: Read, page_table: int, page_size: int) -> None:
    """Give a program the kernel's address space.

    :param read_physical: reads physical memory: an address and a size in bytes.
    :param page_table: address of ``swapper_pg_dir``.
    :param page_size: in bytes.
    """
    pages = _Pages(read_physical, page_table & WINDOW_SIZE - 1, page_size)

    def window(address: int, count: int, offset: int, physical: bool) -> bytes:
        return read_physical(address & WINDOW_SIZE - 1, count)

    def mapped(address: int, count: int, offset: int, physical: bool) -> bytes:
        return pages.read(address, count)

    for base in WINDOWS:
        prog.add_memory_segment(base, WINDOW_SIZE, window)
    prog.add_memory_segment(MAPPED_BASE, (1 << 64) - MAPPED_BASE, mapped)


class _Pages:
    """The kernel's page tables."""

    def __init__(self, read_physical: Read, root: int, page_size: int) -> None:
        self._read_physical = read_physical
        self._root = root
        self._shift = page_size.bit_length() - 1
        self._index_bits = self._shift - ENTRY_BITS
        self._levels = LEVELS.get(page_size, 3)
        self._known: dict[int, int] = {}

    def read(self, address: int, count: int) -> bytes:
        parts = []
        while count > 0:
            inside = address & (1 << self._shift) - 1
            size = min(count, (1 << self._shift) - inside)
            parts.append(self._read_physical(self._page(address) + inside, size))
            address += size
            count -= size
        return b"".join(parts)

    def _page(self, address: int) -> int:
        """Physical address of the page that holds an address."""
        number = address >> self._shift
        if number not in self._known:
            self._known[number] = self._walk(address)
        return self._known[number]

    def _walk(self, address: int) -> int:
        table = self._root
        for level in reversed(range(self._levels)):
            shift = self._shift + level * self._index_bits
            index = address >> shift & (1 << self._index_bits) - 1
            (entry,) = struct.unpack("<Q", self._read_physical(table + 8 * index, 8))
            if level and not entry & HUGE:
                table = entry & WINDOW_SIZE - 1 & -(1 << self._shift)
            elif entry & PRESENT:
                frame: int = entry & WINDOW_SIZE - 1 & -(1 << shift)
                return frame + (address & (1 << shift) - 1 & -(1 << self._shift))
            else:
                break
        raise FaultError("address is not mapped", address)
