# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a dump in the kdump-compressed format of makedumpfile.

The format is the one in which distributions store their dumps: drgn, crash and makedumpfile read
it without being told anything. It stores single pages, so a dump can hold a chosen few of them;
reading one that was left out is an error there, never zeroes.

The file, in blocks of one page (``IMPLEMENTATION`` in makedumpfile's source)::

    0                   struct disk_dump_header
    1                   struct kdump_sub_header, then the ELF notes
    1 + S               first bitmap: page frames that are memory      (B blocks)
    1 + S + B           second bitmap: page frames that are in here    (B blocks)
    1 + S + 2 * B       struct page_desc for each bit set in the second bitmap, ascending
    (after it)          page data, at any byte

Both bitmaps are the same here. By the letter the first would have to know the memory of the
machine; the difference between the two only ever lets a reader take a page for zeroes
(``crash --zero_excluded``).

Equal input gives equal bytes, as long as the compressing library is the same: no time is stored,
and pages are stored in ascending order.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, NamedTuple

from drgn_reliable.files.codecs import COMPRESSION, page_packer
from drgn_reliable.files.kdump import (
    KDUMP_SIGNATURE,
    MAIN_HEADER,
    MAX_PAGE_SIZE,
    MIN_PAGE_SIZE,
    PAGE_DESCRIPTOR,
    SUB_HEADER,
    UTS_FIELD_SIZE,
    Uts,
)
from drgn_reliable.files.notes import Note, find_vmcoreinfo, pack_note
from drgn_reliable.newfile import draft_name, new_file, scratch_file, writing
from drgn_reliable.platforms import PLATFORMS, byte_order_of

__all__ = ("KdumpSummary", "PageData", "write_kdump")

PageData = bytes | bytearray | memoryview

_HEADER_VERSION = 6
_UINT_MAX = (1 << 32) - 1
_ULONG_MASK = (1 << 64) - 1
_SUB_HEADER_SIZE = struct.calcsize("<" + SUB_HEADER)


class KdumpSummary(NamedTuple):
    """What :func:`write_kdump` wrote."""

    pages: int
    """Page frames in the file."""
    stored_pages: int
    """Different pages among them: each content is stored once."""
    file_size: int
    """Bytes."""


def write_kdump(
    path: str | os.PathLike[str],
    *,
    pages: Mapping[int, PageData] | Iterable[tuple[int, PageData]],
    page_size: int,
    uts: Uts,
    nr_cpus: int,
    vmcoreinfo: bytes,
    notes: bytes = b"",
    phys_base: int = 0,
    max_pfn: int | None = None,
    compression: str = "zlib",
    store_once: bool = True,
    check: Callable[[str], None] = lambda path: None,
) -> KdumpSummary:
    """Write pages of physical memory to a kdump-compressed file, whole or not at all.

    The file appears under its name when all of it is on the disk, readable by its owner only,
    whoever may read the dump that it is made of: it is somebody's memory.

    A dump of chosen pages can be read by virtual address if it has the page tables on the way, and
    only if libkdumpfile (that of drgn 0.3) finds what it reads first:

    * x86_64: the tables from ``init_top_pgt`` on. The ``QEMU`` notes have to go
      (:func:`drgn_reliable.files.notes.drop_notes`), for libkdumpfile prefers the table that CR3 in
      them points to, a process's.
    * s390x: absolute page 0 and what leads from there to VMCOREINFO, whether or not the notes have
      it (``os_info`` at 0xe18, or a note at 0xe0c), and the table at ``swapper_pg_dir``.

    :param pages: page frame number to content; pairs have to ascend. Pairs are taken one by one,
        so that memory need only hold one page.
    :param page_size: of the dumped kernel, in bytes.
    :param uts: of the dumped kernel. libkdumpfile learns the architecture from ``machine`` and
        refuses a file in which ``release`` or ``version`` is empty or ``sysname`` not ``Linux``.
    :param nr_cpus: as many CPUs as ``notes`` has ``NT_PRSTATUS`` notes, by makedumpfile's custom.
    :param vmcoreinfo: the text of the kernel's ``vmcoreinfo_data``.
    :param notes: ELF notes as a dump file has them. VMCOREINFO
        is added if they have none: libkdumpfile looks for it only there, crash only by the
        header's offset, which points into them.
    :param phys_base: of x86_64, what an address in the kernel image minus 0xffffffff80000000
        (``__START_KERNEL_map``) lacks of its physical address: ``NUMBER(phys_base)`` in
        VMCOREINFO. It can be negative.
    :param max_pfn: one more than the highest page frame of the machine. The bitmaps take two bits
        for each page frame below it, present or not. By default, what ``pages`` needs.
    :param compression: a name in :data:`drgn_reliable.files.codecs.COMPRESSION`, or ``"none"``.
    :param store_once: store each content once, which takes some 200 bytes of memory for each.
        Otherwise only pages of zeroes share their content, as makedumpfile does it, and a page
        takes 32 bytes of memory until the file is written.
    :param check: looks at the finished file, by a name that only this process has; what it
        raises keeps the file from appearing under its own.
    :raises ValueError: if an argument is wrong; no file is written then.
    :raises drgn_reliable.newfile.NotWritten: if the file cannot be written.
    """
    order = _check_machine(uts, page_size, nr_cpus)
    flag = _compression_flag(compression)
    notes, vmcoreinfo_note = _with_vmcoreinfo(notes, vmcoreinfo, order)
    with scratch_file(path) as spool, new_file(path, 0o600) as file:
        store = _PageStore(spool, page_size, max_pfn, flag, store_once)
        for pfn, data in _in_order(pages):
            store.add(pfn, data)
        layout = _Layout.of(page_size, len(notes), store.max_pfn)
        file.write(_main_header(order, layout, uts, nr_cpus, flag))
        file.seek(page_size)
        file.write(_sub_header(order, layout, phys_base, vmcoreinfo_note, len(notes)))
        file.write(notes)
        bitmap = store.bitmap()
        for bitmap_at in (layout.bitmap_at, layout.bitmap_at + layout.bitmap_size):
            for index, block in bitmap.items():
                file.seek(bitmap_at + index * page_size)
                file.write(block)
        file.truncate(layout.descriptors_at)
        file.seek(layout.descriptors_at)
        store.write_to(file, order)
        size = file.tell()
        file.flush()
        with writing():  # nothing but this file is read in there
            check(draft_name(file))
        return KdumpSummary(store.pages, store.stored_pages, size)


class _Layout(NamedTuple):
    """Where things are in the file, in bytes unless it says blocks."""

    page_size: int
    sub_header_blocks: int
    """The sub header and the notes behind it."""
    bitmap_size: int
    """Of one bitmap: a multiple of the page size, and at least one page."""
    max_pfn: int

    @classmethod
    def of(cls, page_size: int, notes_size: int, max_pfn: int) -> _Layout:
        sub_header_blocks = _divide_up(_SUB_HEADER_SIZE + notes_size, page_size)
        bitmap_blocks = max(1, _divide_up(max_pfn, 8 * page_size))
        return cls(page_size, sub_header_blocks, bitmap_blocks * page_size, max_pfn)

    @property
    def notes_at(self) -> int:
        return self.page_size + _SUB_HEADER_SIZE

    @property
    def bitmap_at(self) -> int:
        return (1 + self.sub_header_blocks) * self.page_size

    @property
    def descriptors_at(self) -> int:
        return self.bitmap_at + 2 * self.bitmap_size


class _PageStore:
    """Pages as they come, compressed into a spool file.

    The spool is needed because the page descriptors, whose number is only known at the end, come
    before the data.

    :param flag: ``DUMP_DH_COMPRESSED_*``, or 0.
    :param store_once: store each content once, not only that of pages of zeroes.
    """

    def __init__(
        self, spool: BinaryIO, page_size: int, max_pfn: int | None, flag: int, store_once: bool
    ) -> None:
        self._spool = spool
        self._page_size = page_size
        self._limit = max_pfn
        self._flag = flag
        self._pack = page_packer(flag)
        self._store_once = store_once
        self._size = 0
        self._pfns = array("Q")
        self._which = array("Q")
        """Parallel to ``_pfns``: index into the three that follow."""
        self._offsets = array("Q")
        """In the spool."""
        self._sizes = array("I")
        self._flags = array("I")
        self._seen: dict[bytes, int] = {}
        """Digest of a page to its index in ``_offsets``."""
        self._zeroes = bytes(page_size)

    @property
    def pages(self) -> int:
        return len(self._pfns)

    @property
    def stored_pages(self) -> int:
        return len(self._offsets)

    @property
    def max_pfn(self) -> int:
        if self._limit is not None:
            return self._limit
        return self._pfns[-1] + 1 if self._pfns else 0

    def add(self, pfn: int, data: PageData) -> None:
        self._check(pfn, data)
        index = len(self._offsets)
        if self._store_once or data == self._zeroes:
            digest = hashlib.blake2b(data, digest_size=20).digest()
            index = self._seen.setdefault(digest, index)
        if index == len(self._offsets):
            self._store(bytes(data))
        self._pfns.append(pfn)
        self._which.append(index)

    def _check(self, pfn: int, data: PageData) -> None:
        size = memoryview(data).nbytes
        if size != self._page_size:
            raise ValueError(f"page frame {pfn:#x} has {size} bytes, not {self._page_size}")
        if self._pfns and pfn <= self._pfns[-1]:
            raise ValueError(f"page frame {pfn:#x} comes after {self._pfns[-1]:#x}")
        if pfn < 0 or (self._limit is not None and pfn >= self._limit):
            raise ValueError(f"page frame {pfn:#x} is not below max_pfn {self._limit}")

    def _store(self, page: bytes) -> None:
        compressed = self._pack(page)
        shrunk = len(compressed) < len(page)
        data = compressed if shrunk else page
        self._spool.write(data)
        self._offsets.append(self._size)
        self._sizes.append(len(data))
        self._flags.append(self._flag if shrunk else 0)
        self._size += len(data)

    def bitmap(self) -> dict[int, bytearray]:
        """Return the blocks of the bitmap that are not all 0; the others can be holes.

        Page frame 0 is the lowest bit of the first byte, in either byte order.
        """
        blocks: dict[int, bytearray] = defaultdict(lambda: bytearray(self._page_size))
        for pfn in self._pfns:
            index, bit = divmod(pfn, 8 * self._page_size)
            blocks[index][bit >> 3] |= 1 << (bit & 7)
        return blocks

    def write_to(self, file: BinaryIO, order: str) -> None:
        """Write the page descriptors, then the data that they point to."""
        descriptor = struct.Struct(order + PAGE_DESCRIPTOR)
        data_at = file.tell() + self.pages * descriptor.size
        for index in self._which:
            offset = data_at + self._offsets[index]
            file.write(descriptor.pack(offset, self._sizes[index], self._flags[index], 0))
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, file)


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)


def _in_order(
    pages: Mapping[int, PageData] | Iterable[tuple[int, PageData]],
) -> Iterable[tuple[int, PageData]]:
    if isinstance(pages, Mapping):
        return ((pfn, pages[pfn]) for pfn in sorted(pages))
    return pages


def _check_machine(uts: Uts, page_size: int, nr_cpus: int) -> str:
    """Check what readers insist on, and return the byte order as :mod:`struct` has it."""
    if not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE or page_size & page_size - 1:
        raise ValueError(f"page size {page_size} is not a power of two of 4096 to 262144 bytes")
    if nr_cpus < 1:
        raise ValueError(f"{nr_cpus} CPUs")
    if uts.sysname != "Linux" or not uts.release or not uts.version:
        raise ValueError(f"utsname {uts} is not that of a Linux kernel with release and version")
    for field, value in uts._asdict().items():
        if len(value.encode()) >= UTS_FIELD_SIZE:
            raise ValueError(f"utsname: {field} is longer than {UTS_FIELD_SIZE - 1} bytes")
    if uts.machine not in PLATFORMS:  # LoongArch: libkdumpfile does not know it
        raise ValueError(f"machine {uts.machine!r} is none of {', '.join(PLATFORMS)}")
    return byte_order_of(uts.machine)


def _with_vmcoreinfo(notes: bytes, vmcoreinfo: bytes, order: str) -> tuple[bytes, Note]:
    """Return notes that have VMCOREINFO, and that note."""
    little_endian = order == "<"
    if find_vmcoreinfo(notes, little_endian=little_endian) is None:
        notes += bytes(-len(notes) % 4)
        notes += pack_note("VMCOREINFO", 0, vmcoreinfo, little_endian=little_endian)
    note = find_vmcoreinfo(notes, little_endian=little_endian)
    if note is None or note.description.rstrip(b"\0") != vmcoreinfo.rstrip(b"\0"):
        raise ValueError("the VMCOREINFO in the notes is not the one given")
    return notes, note


def _compression_flag(name: str) -> int:
    if name == "none":
        return 0
    if name not in COMPRESSION:
        raise ValueError(f"compression {name!r} is none of {', '.join(COMPRESSION)}, none")
    return COMPRESSION[name]


def _main_header(order: str, layout: _Layout, uts: Uts, nr_cpus: int, compression: int) -> bytes:
    """``struct disk_dump_header``: the time is 0, and so is all that makedumpfile leaves 0."""
    tv_sec = tv_usec = 0
    total_ram_blocks = device_blocks = written_blocks = current_cpu = 0
    return struct.pack(
        order + MAIN_HEADER,
        KDUMP_SIGNATURE,
        _HEADER_VERSION,
        *(field.encode() for field in uts),
        tv_sec,
        tv_usec,
        compression,
        layout.page_size,
        layout.sub_header_blocks,
        2 * layout.bitmap_size // layout.page_size,
        min(layout.max_pfn, _UINT_MAX),
        total_ram_blocks,
        device_blocks,
        written_blocks,
        current_cpu,
        nr_cpus,
    )


def _sub_header(
    order: str, layout: _Layout, phys_base: int, vmcoreinfo: Note, notes_size: int
) -> bytes:
    """``struct kdump_sub_header`` of a file that is not split and has nothing erased."""
    no_level = no_split = no_start = no_end = 0
    no_eraseinfo = (0, 0)
    return struct.pack(
        order + SUB_HEADER,
        phys_base & _ULONG_MASK,
        no_level,
        no_split,
        no_start,
        no_end,
        layout.notes_at + vmcoreinfo.offset,
        len(vmcoreinfo.description),
        layout.notes_at,
        notes_size,
        *no_eraseinfo,
        no_start,
        no_end,
        layout.max_pfn,
    )
