# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump's physical memory with changes, and its kernel's page tables with additions."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from drgn import FaultError

from drgn_reliable.files.kdump import KdumpFile

__all__ = ("Memory", "PageTables", "Paging", "align_up")

_PRESENT = 1
"""The lowest bit of an entry that is valid, on x86_64 and arm64."""


def align_up(value: int, to: int) -> int:
    """The next multiple of a power of two."""
    return value + to - 1 & -to


class Paging(NamedTuple):
    """How page tables are built. Entries are 8 bytes, little-endian."""

    page_shift: int
    address_bits: int
    """Of a virtual address, those that are translated."""
    index_bits: int
    """A table has two to the power of so many entries."""
    levels: int
    block_shift: int
    """Of the memory that one entry above the lowest level maps at once, for the linear map."""
    address_mask: int
    """The bits of an entry that are a physical address."""
    table_flags: int
    page_flags: int
    """Of kernel data: writable, not executable."""
    block_flags: int
    is_block: Callable[[int], bool]
    """Whether an entry above the lowest level maps memory."""

    @property
    def page_size(self) -> int:
        return 1 << self.page_shift

    def shift(self, level: int) -> int:
        """Bits of an address below those that choose an entry; level 0 is the lowest."""
        return self.page_shift + level * self.index_bits

    def place(self, address: int, level: int) -> int:
        """Which entry of a table maps an address."""
        translated = address & (1 << self.address_bits) - 1
        return translated >> self.shift(level) & (1 << self.index_bits) - 1


class Memory:
    """The pages of a dump, of which some are changed or new."""

    def __init__(self, source: KdumpFile) -> None:
        self._source = source
        self.page_size = source.header.page_size
        self.changed: dict[int, bytearray] = {}
        """By page frame number."""

    def read(self, address: int, count: int) -> bytes:
        """Bytes of one page.

        :raises drgn.FaultError: if it is not in the dump.
        """
        number, at = divmod(address, self.page_size)
        page = self.changed.get(number)
        return bytes((page or self._source.page(number))[at : at + count])

    def write(self, address: int, data: bytes) -> None:
        """Change bytes within one page."""
        number, at = divmod(address, self.page_size)
        if number not in self.changed:
            self.changed[number] = bytearray(self._source.page(number))
        self.changed[number][at : at + len(data)] = data

    def pages(self) -> Iterator[tuple[int, bytes | bytearray]]:
        """The source's pages, as changed, in ascending order."""
        for number in self._source.page_numbers():
            if number in self.changed:
                yield number, self.changed[number]
                continue
            with contextlib.suppress(FaultError):
                yield number, self._source.page(number)


class PageTables:
    """The page tables of the kernel.

    :param root: physical address of the table of the highest level.
    :param allocate: gives the page frame number of a new table, if there are to be any.
    """

    def __init__(
        self,
        memory: Memory,
        paging: Paging,
        root: int,
        allocate: Callable[[], int] | None = None,
    ) -> None:
        self._memory = memory
        self._paging = paging
        self._root = root
        self._allocate = allocate

    def entry(self, address: int, lowest: int = 0) -> tuple[int, int]:
        """The last entry on the way to an address, and its level, at least ``lowest``. It is 0
        where nothing is mapped."""
        table, level = self._root, self._paging.levels - 1
        while True:
            entry = self._read(table, address, level)
            if level == lowest or not entry & _PRESENT or self._paging.is_block(entry):
                return entry if entry & _PRESENT else 0, level
            table, level = entry & self._paging.address_mask, level - 1

    def physical(self, address: int) -> int:
        """The physical address of a virtual one.

        :raises LookupError: if it is not mapped.
        """
        entry, level = self.entry(address)
        if not entry:
            raise LookupError(f"{address:#x} is not mapped")
        size = 1 << self._paging.shift(level)
        return entry & self._paging.address_mask & -size | address & size - 1

    def set(self, address: int, level: int, entry: int) -> None:
        """Put an entry of some level in place, with tables on the way to it as needed."""
        table = self._root
        for above in range(self._paging.levels - 1, level, -1):
            found = self._read(table, address, above)
            if not found & _PRESENT:
                if self._allocate is None:
                    raise ValueError(f"{address:#x} has no table")
                number = self._allocate()
                self._memory.changed[number] = bytearray(self._paging.page_size)
                found = number << self._paging.page_shift | self._paging.table_flags
                self._write(table, address, above, found)
            elif self._paging.is_block(found):
                raise ValueError(f"{address:#x} is mapped by a block")
            table = found & self._paging.address_mask
        self._write(table, address, level, entry)

    def map_block(self, address: int, physical: int) -> None:
        """Map a block of the linear map."""
        paging = self._paging
        level = (paging.block_shift - paging.page_shift) // paging.index_bits
        self.set(address, level, physical | paging.block_flags)

    def _read(self, table: int, address: int, level: int) -> int:
        at = table + 8 * self._paging.place(address, level)
        entry: int = struct.unpack("<Q", self._memory.read(at, 8))[0]
        return entry

    def _write(self, table: int, address: int, level: int, entry: int) -> None:
        at = table + 8 * self._paging.place(address, level)
        self._memory.write(at, struct.pack("<Q", entry))
