# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read the kdump-compressed format of makedumpfile.

The format is described by ``diskdump_mod.h`` and ``IMPLEMENTATION`` in makedumpfile's source; this
is its layout on 64-bit machines. :mod:`drgn_reliable.files.kdumpwriter` writes it.

drgn reads such files by libkdumpfile. This reader is for what drgn does not hand out (the notes
as they are, how many pages there are) and for the files that libkdumpfile refuses.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from operator import add
from typing import Literal, NamedTuple

from drgn import FaultError

from drgn_reliable.files.codecs import CodecError, unpack_page
from drgn_reliable.files.notes import find_vmcoreinfo, is_plain, iter_notes, pack_note, padded
from drgn_reliable.files.source import DumpFormatError, Source, read_exactly

__all__ = (
    "KDUMP_SIGNATURE",
    "KdumpFile",
    "KdumpHeader",
    "Uts",
)

KDUMP_SIGNATURE = b"KDUMP   "

MIN_PAGE_SIZE = 1 << 12
MAX_PAGE_SIZE = 1 << 18
"""Page sizes of the kernels that libkdumpfile accepts, in bytes."""

UTS_FIELD_SIZE = 65
"""Bytes of each field of ``struct new_utsname``, with its NUL (``__NEW_UTS_LEN`` + 1)."""

_INCOMPLETE = 0x8
"""``DUMP_DH_COMPRESSED_INCOMPLETE`` in the header's status: makedumpfile ran out of space."""
_CACHED_PAGES = 4096


class Uts(NamedTuple):
    """``struct new_utsname``: what ``uname`` says on the dumped machine."""

    sysname: str
    nodename: str
    release: str
    version: str
    machine: str
    domainname: str


@dataclass(frozen=True)
class KdumpHeader:
    """``struct disk_dump_header`` and ``struct kdump_sub_header`` of a kdump-compressed file."""

    little_endian: bool
    version: int
    """``header_version``; the fields below that are newer than it are 0."""
    uts: Uts
    status: int
    """``DUMP_DH_COMPRESSED_*`` flags of the whole file."""
    page_size: int
    """``block_size``: bytes of a page, and the unit of the sizes in blocks."""
    sub_header_blocks: int
    bitmap_blocks: int
    """Blocks of both bitmaps together."""
    nr_cpus: int
    phys_base: int
    """As the file has it: unsigned, although a relocated x86_64 kernel's can be negative."""
    dump_level: int
    split: int
    """Whether this is one part of a dump; ``start_pfn`` and ``end_pfn`` say which."""
    start_pfn: int
    end_pfn: int
    vmcoreinfo_offset: int
    vmcoreinfo_size: int
    notes_offset: int
    notes_size: int
    eraseinfo_offset: int
    eraseinfo_size: int
    """What makedumpfile erased; only libkdumpfile reads it."""
    max_pfn: int
    """One more than the highest page frame that the bitmaps describe."""


# Formats for struct, after a byte order character. The padding is the compiler's: a struct timeval
# and a pointer are 8-byte aligned on every 64-bit machine.
MAIN_HEADER = "8si" + f"{UTS_FIELD_SIZE}s" * 6 + "6xqqIiiIIIIIIi"
"""``struct disk_dump_header``: signature, header_version, six fields of utsname, tv_sec, tv_usec,
status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr, total_ram_blocks, device_blocks,
written_blocks, current_cpu, nr_cpus."""

SUB_HEADER = "QiiQQQQQQQQQQQ"
"""``struct kdump_sub_header``: phys_base, dump_level, split, start_pfn, end_pfn, then (version 3)
offset and size of vmcoreinfo, (4) of the notes, (5) of eraseinfo, and (6) start_pfn_64,
end_pfn_64, max_mapnr_64."""

PAGE_DESCRIPTOR = "QIIQ"
"""``struct page_desc``: offset in the file, size in the file, flags, page_flags (always 0)."""

_DESCRIPTOR_SIZE = struct.calcsize("<" + PAGE_DESCRIPTOR)
_DESCRIPTORS = _DESCRIPTOR_SIZE << 14
"""Bytes of page descriptors that are looked at together."""

_BLOCK_SIZE_AT = struct.calcsize("<" + MAIN_HEADER) - 9 * 4


class KdumpFile:
    """A kdump-compressed file.

    :raises DumpFormatError: if it is not one, not of a 64-bit machine, or cut off in its headers.
    """

    format = "kdump-compressed"

    def __init__(self, source: Source) -> None:
        self.source = source
        self.header = _read_header(source)
        self._order = "<" if self.header.little_endian else ">"
        self.page: Callable[[int], bytes] = lru_cache(_CACHED_PAGES)(self._page)
        """The content of a page frame; :class:`drgn.FaultError` is raised if it is not there."""

    @property
    def little_endian(self) -> bool:
        """Whether the dumped machine is."""
        return self.header.little_endian

    @property
    def machine(self) -> str:
        """What ``uname -m`` says on the dumped machine; empty if the file does not know."""
        return self.header.uts.machine

    @cached_property
    def notes(self) -> bytes:
        """The ELF notes as the file has them, one after the other.

        The file can hold VMCOREINFO outside its notes (all of header version 3 do); it is then
        added as a note, so that the result always has what the file knows.

        :raises DumpFormatError: if they are cut off.
        """
        header, little = self.header, self.header.little_endian
        notes = read_exactly(self.source, header.notes_offset, header.notes_size, "notes")
        if header.vmcoreinfo_size and find_vmcoreinfo(notes, little_endian=little) is None:
            vmcoreinfo = read_exactly(
                self.source, header.vmcoreinfo_offset, header.vmcoreinfo_size, "VMCOREINFO"
            )
            notes = padded(notes) + pack_note("VMCOREINFO", 0, vmcoreinfo, little_endian=little)
        return notes

    @property
    def memory_size(self) -> int:
        """Bytes of memory in the file."""
        return self._rank[-1] * self.header.page_size

    def page_numbers(self) -> Iterator[int]:
        """The page frames that are in the file, ascending."""
        for at, byte in enumerate(self._bitmap):
            if byte:
                yield from (8 * at + bit for bit in range(8) if byte >> bit & 1)

    def flaws(self) -> list[str]:
        """What is missing from the file as a whole, one clause each."""
        header, found = self.header, []
        if header.split:
            found.append(
                f"one part of a split dump (page frames {header.start_pfn:#x} to "
                f"{header.end_pfn:#x}): join the parts with makedumpfile --reassemble"
            )
        if header.status & _INCOMPLETE:
            found.append("makedumpfile ran out of space and marked the dump as incomplete")
        try:
            beyond, end = self._pages_beyond
        except DumpFormatError:
            found.append(f"cut off at {self.source.size} bytes, before its page descriptors end")
        else:
            if beyond and end <= self._descriptors_at + self.memory_size + self._table_size:
                found.append(f"cut off at {self.source.size} bytes of at least {end}")
            elif beyond:
                found.append(f"damaged: {beyond} of its pages would lie beyond its end")
        return found

    @property
    def kills_library(self) -> bool:
        """Whether libkdumpfile, as of drgn 0.3, may die of the file.

        It maps the file, and reads pages, notes and erase information wherever the file says that
        they are (SIGBUS beyond its end); and it makes a tree of VMCOREINFO's names as they come
        (SIGSEGV where one is empty, or too deep, or both a leaf and a branch).
        """
        header, size = self.header, self.source.size
        try:
            notes = list(iter_notes(self.notes, little_endian=header.little_endian))
            vmcoreinfo = read_exactly(
                self.source, header.vmcoreinfo_offset, header.vmcoreinfo_size, "VMCOREINFO"
            )
            pages_beyond, _ = self._pages_beyond
        except DumpFormatError:
            return True
        texts = [vmcoreinfo, *(n.description for n in notes if n.name.startswith("VMCOREINFO"))]
        return (
            (header.eraseinfo_size > 0 and header.eraseinfo_offset + header.eraseinfo_size > size)
            or pages_beyond > 0
            or not all(is_plain(text, header.page_size) for text in texts if text)
        )

    @property
    def _table_size(self) -> int:
        """Of the page descriptors, in bytes."""
        return self._rank[-1] * _DESCRIPTOR_SIZE

    @cached_property
    def _pages_beyond(self) -> tuple[int, int]:
        """How many pages do not lie wholly in the file, and where the last of them ends.

        :raises DumpFormatError: if the page descriptors themselves are not in the file.
        """
        size, count, last = self._table_size, 0, 0
        for at in range(0, size, _DESCRIPTORS):
            raw = read_exactly(
                self.source,
                self._descriptors_at + at,
                min(_DESCRIPTORS, size - at),
                "page descriptors",
            )
            # Of each, the first 8 bytes and the first 4 after them.
            offsets, sizes = self._numbers("Q", raw)[0::3], self._numbers("I", raw)[2::6]
            if max(offsets) + max(sizes) > self.source.size:
                ends = [end for end in map(add, offsets, sizes) if end > self.source.size]
                count, last = count + len(ends), max([last, *ends])
        return count, last

    def _numbers(self, code: Literal["I", "Q"], raw: bytes) -> array[int]:
        numbers = array(code, raw)
        if self.little_endian != (sys.byteorder == "little"):
            numbers.byteswap()
        return numbers

    def read_physical(self, address: int, count: int) -> bytes:
        """Return physical memory.

        :raises FaultError: if a page is not in the file.
        """
        size, parts = self.header.page_size, []
        while count > 0:
            number, start = divmod(address, size)
            part = self.page(number)[start : start + count]
            parts.append(part)
            address += len(part)
            count -= len(part)
        return b"".join(parts)

    def _page(self, number: int) -> bytes:
        try:
            flags, data = self.stored_page(number)
            return unpack_page(flags, data, self.header.page_size)
        except (CodecError, DumpFormatError) as e:
            address = number * self.header.page_size
            raise FaultError(f"page cannot be read: {e}", address) from e

    def stored_page(self, number: int) -> tuple[int, bytes]:
        """How a page frame is compressed (as :func:`unpack_page` takes it), and its data.

        :raises FaultError: if it is not there.
        :raises DumpFormatError: if it is cut off.
        """
        if not self._has(number):
            raise FaultError("page is not in the dump", number * self.header.page_size)
        descriptor = struct.Struct(self._order + PAGE_DESCRIPTOR)
        at = self._descriptors_at + self._index(number) * descriptor.size
        raw = read_exactly(self.source, at, descriptor.size, "page descriptor")
        offset, size, flags, _ = descriptor.unpack(raw)
        if size > 2 * self.header.page_size:
            raise DumpFormatError(f"{size} bytes for a page of {self.header.page_size}")
        return flags, read_exactly(self.source, offset, size, "page")

    # The second bitmap: which page frames are in the file ----------------------------------

    @property
    def _descriptors_at(self) -> int:
        header = self.header
        return (1 + header.sub_header_blocks + header.bitmap_blocks) * header.page_size

    @cached_property
    def _bitmap(self) -> bytes:
        header = self.header
        size = header.bitmap_blocks * header.page_size // 2
        at = (1 + header.sub_header_blocks) * header.page_size + size
        return read_exactly(self.source, at, size, "bitmap")

    @cached_property
    def _rank(self) -> list[int]:
        """How many page frames are in the file before each block of the bitmap, and in all."""
        bitmap, size = self._bitmap, self.header.page_size
        counts = (_ones(bitmap[at : at + size]) for at in range(0, len(bitmap), size))
        return list(accumulate(counts, initial=0))

    def _has(self, number: int) -> bool:
        byte = number >> 3
        return byte < len(self._bitmap) and bool(self._bitmap[byte] >> (number & 7) & 1)

    def _index(self, number: int) -> int:
        """How many page frames in the file come before this one."""
        size = self.header.page_size
        byte, bit = number >> 3, number & 7
        block = byte // size
        before = _ones(self._bitmap[block * size : byte])
        return self._rank[block] + before + (self._bitmap[byte] & (1 << bit) - 1).bit_count()


def _ones(bits: bytes) -> int:
    return int.from_bytes(bits, "little").bit_count()


def _read_header(source: Source) -> KdumpHeader:
    size = struct.calcsize("<" + MAIN_HEADER)
    raw = read_exactly(source, 0, size, "kdump header")
    if not raw.startswith(KDUMP_SIGNATURE):
        raise DumpFormatError(f"{source.path}: no kdump signature")
    order = _byte_order(raw, source)
    _, version, *main = struct.unpack(order + MAIN_HEADER, raw)
    status, page_size, sub_header_blocks, bitmap_blocks, max_pfn = main[8:13]
    sub_size = struct.calcsize(order + SUB_HEADER)
    raw = read_exactly(source, page_size, sub_size, "kdump sub header")
    sub = _known_fields(struct.unpack(order + SUB_HEADER, raw), version)
    return KdumpHeader(
        little_endian=order == "<",
        version=version,
        uts=Uts(*(field.split(b"\0")[0].decode("utf-8", "replace") for field in main[:6])),
        status=status,
        page_size=page_size,
        sub_header_blocks=_counted(sub_header_blocks, source),
        bitmap_blocks=bitmap_blocks,
        nr_cpus=main[-1],
        phys_base=sub[0],
        dump_level=sub[1],
        split=sub[2],
        start_pfn=sub[11] if version >= 6 else sub[3],
        end_pfn=sub[12] if version >= 6 else sub[4],
        vmcoreinfo_offset=sub[5],
        vmcoreinfo_size=sub[6],
        notes_offset=sub[7],
        notes_size=sub[8],
        eraseinfo_offset=sub[9],
        eraseinfo_size=sub[10],
        max_pfn=sub[13] if version >= 6 else max_pfn,
    )


def _counted(blocks: int, source: Source) -> int:
    if blocks < 0:
        raise DumpFormatError(f"{source.path}: a kdump sub header of {blocks} blocks")
    return blocks


def _byte_order(raw: bytes, source: Source) -> str:
    """Find the byte order by the one field that says it: the page size, a small power of two."""
    for order in "<>":
        (size,) = struct.unpack_from(order + "i", raw, _BLOCK_SIZE_AT)
        if MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and size & size - 1 == 0:
            return order
    raise DumpFormatError(
        f"{source.path}: no page size in the kdump header (a 32-bit machine's dump?)"
    )


def _known_fields(sub: tuple[int, ...], version: int) -> tuple[int, ...]:
    """Clear the fields of a sub header that its version does not have yet."""
    fields = {0: 1, 1: 2, 2: 5, 3: 7, 4: 9, 5: 11}.get(version, len(sub) if version > 0 else 0)
    return sub[:fields] + (0,) * (len(sub) - fields)
