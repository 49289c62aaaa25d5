# SPDX-License-Identifier: LGPL-2.1-or-later
"""Harnesses for the files in which dumps are stored."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from unittest.mock import patch

import zstandard
from drgn import FaultError
from lzallright import LZOCompressor

from contrib.fuzz.readers.harness import Contradiction, Harness
from contrib.fuzz.readers.mutations import mutated, set_field
from contrib.fuzz.readers.specimens import kdump_of, kernel_of
from drgn_reliable.errors import DumpError
from drgn_reliable.files import packed
from drgn_reliable.files.codecs import CodecError, unpack_page
from drgn_reliable.files.elfcore import ElfCore
from drgn_reliable.files.flattened import FlattenedSource
from drgn_reliable.files.kdump import MAIN_HEADER, SUB_HEADER, KdumpFile
from drgn_reliable.files.notes import (
    drop_notes,
    find_vmcoreinfo,
    is_plain,
    iter_notes,
    pack_note,
    swapped_registers,
)
from drgn_reliable.files.packed import unwatched
from drgn_reliable.files.source import DumpFormatError
from drgn_reliable.files.vmcoreinfo import find_in_memory, number_in, values_of
from drgn_reliable.opening import open_file

__all__ = ("HARNESSES",)

_PAGE = 4096
_MOST = 1 << 20
"""Bytes that are read at once of what a file says that it holds."""


class _Bytes:
    """A file in memory, see :class:`drgn_reliable.files.source.Source`."""

    path = "fuzz"

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0:
            raise Contradiction(f"{size} bytes are read at {offset}")
        return self.data[offset : offset + size]

    def spans(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        if offset < self.size:
            yield offset, min(size, self.size - offset)


# Any file ---------------------------------------------------------------------------------------


def _read_file(data: bytes) -> bool:
    """A file is refused, or its headers, notes and memory can be read as far as it has them."""
    try:
        dump = open_file(_Bytes(data))
    except DumpFormatError:
        return False
    return _use(dump)


def _use(dump: ElfCore | KdumpFile) -> bool:
    """Ask for everything; gives whether all of it was there."""
    whole = False
    with suppress(DumpFormatError):
        whole = not dump.flaws() and bool(dump.notes) and dump.memory_size > 0
    addresses = [0, _PAGE, (1 << 52) - _PAGE, (1 << 64) - 1]
    if isinstance(dump, ElfCore):
        ranges = list(dump.ranges())
        _check_ranges(dump, ranges)
        addresses += [start for start, _ in ranges[:8]] + [end - 1 for _, end in ranges[:8]]
    else:
        if dump.kills_library:
            whole = False
        addresses += [number * dump.header.page_size for number in (*range(9), 512)]
    for address in addresses:
        with suppress(FaultError):
            if len(dump.read_physical(address, 16)) != 16:
                raise Contradiction(f"not 16 bytes at {address:#x}")
    return whole


def _check_ranges(dump: ElfCore, ranges: list[tuple[int, int]]) -> None:
    """They ascend, and what is stored lies in them, no byte of the file twice."""
    ends = [0] + [end for _, end in ranges]
    if any(
        start >= end or start < before for (start, end), before in zip(ranges, ends, strict=False)
    ):
        raise Contradiction(f"ranges {ranges}")
    stored = list(dump.stored())
    if sum(end - start for start, end in stored) > dump.source.size + _PAGE * len(stored):
        raise Contradiction(f"more is stored than the file has: {stored}")
    for low, high in stored[:50]:
        if not any(start <= low and high <= end for start, end in ranges):
            raise Contradiction(f"{low:#x} to {high:#x} is stored and in no range")


def _small_kdump(dump: str, pages: int, version: int = 6) -> bytes:
    """The header, notes and some pages of a real file, with bitmaps of one page each."""
    real = kdump_of(dump)
    header, size = real.header, real.header.page_size
    order = "<" if header.little_endian else ">"
    numbers = [n for n in range(header.max_pfn) if real._has(n)][:pages]
    bitmap = bytes(((1 << pages) - 1,))  # they become the first
    notes = _real_notes(dump)
    packed_pages = [zlib.compress(real.page(number)) for number in numbers]
    head = bytearray(real.source.read(0, struct.calcsize("<" + MAIN_HEADER)))
    fields = list(struct.unpack(order + MAIN_HEADER, head))
    fields[1], fields[12], fields[13] = version, 1, 2
    head = bytearray(struct.pack(order + MAIN_HEADER, *fields))
    notes_at = size + struct.calcsize("<" + SUB_HEADER)
    sub = struct.pack(
        order + SUB_HEADER, 0, 31, 0, 0, 0, 0, 0, notes_at, len(notes), 0, 0, 0, 0, header.max_pfn
    )
    at = 4 * size + 24 * len(numbers)
    table = b""
    for page in packed_pages:
        table += struct.pack(order + "QIIQ", at, len(page), 1, 0)
        at += len(page)
    blocks = (bytes(head), sub + notes, bitmap, bitmap)
    return b"".join([*(part.ljust(size, b"\0") for part in blocks), table, *packed_pages])


def _kdump_seeds() -> Sequence[bytes]:
    return [_small_kdump("x86_64-6.1", 6), _small_kdump("s390x-6.12", 3, 4)]


def _change_kdump(data: bytes, chance: random.Random) -> bytes:
    """A field of a header, of the bitmap or of a descriptor; the rest as it was."""
    order = "<" if data[428:432] == struct.pack("<i", _PAGE) else ">"
    for _ in range(chance.choice((1, 1, 2, 3))):
        low, high, sizes = chance.choice(
            (
                (8, 12, (4,)),
                (402, 464, (4,)),
                (_PAGE, _PAGE + 112, (4, 8)),
                (_PAGE + 112, _PAGE + 400, (1, 4)),
                (3 * _PAGE, 3 * _PAGE + 64, (1, 8)),
                (4 * _PAGE, 4 * _PAGE + 24 * 6, (4, 8)),
                (4 * _PAGE + 24 * 6, len(data), (1,)),
            )
        )
        size = chance.choice(sizes)
        if low < high <= len(data):
            at = low + chance.randrange(max(1, (high - low) // size)) * size
            data = set_field(data, at, size, chance, order)
    return data if chance.random() < 0.8 else data[: chance.randrange(len(data) + 1)]


def _elf(order: str, machine: int, *segments: tuple[int, int, bytes]) -> bytes:
    """A core file; a segment is a type, a physical address and its content."""
    count = len(segments)
    at = 64 + 56 * count
    ident = b"\x7fELF" + bytes((2, "<>".index(order) + 1, 1)) + bytes(9)
    fields = (4, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    rows, contents = b"", b""
    for type_, address, content in segments:
        size = len(content)
        rows += struct.pack(order + "IIQQQQQQ", type_, 7, at + len(contents), 0, address, size,
                            size, 0)  # fmt: skip
        contents += content
    return ident + struct.pack(order + "HHIQQQIHHHHHH", *fields) + rows + contents


def _real_notes(dump: str) -> bytes:
    """One of each owner."""
    file = kdump_of(dump)
    little = file.little_endian
    first = {
        note.name: note for note in reversed(list(iter_notes(file.notes, little_endian=little)))
    }
    return b"".join(
        pack_note(note.name, note.type, note.description, little_endian=little)
        for note in first.values()
    )


def _elf_seeds() -> Sequence[bytes]:
    page = bytes(range(256)) * 16
    found = []
    for order, machine, dump in (("<", 62, "x86_64-6.1"), (">", 22, "s390x-6.12")):
        notes = _real_notes(dump)
        found.append(
            _elf(order, machine, (4, 0, notes), (1, 0x1000, page), (1, 0x9000, page[:100]))
        )
    return found


# Flattened --------------------------------------------------------------------------------------


def _read_flattened(data: bytes) -> bool:
    """What is read is what the records say, one laid over the other in their order."""
    try:
        source = FlattenedSource(_Bytes(data))
    except DumpFormatError:
        return False
    spans = list(source.spans())
    if sum(size for _, size in spans) > len(data):
        raise Contradiction(f"the records cover more than there is: {spans}")
    model = bytearray()
    at = _PAGE
    while at + 16 <= len(data):
        offset, size = struct.unpack_from(">qq", data, at)
        if offset < 0:
            break
        content = data[at + 16 : at + 16 + size]
        if content and offset < _MOST:
            model = model.ljust(offset + len(content), b"\0")
            model[offset : offset + len(content)] = content
        at += 16 + size
    for start in (0, 100, _PAGE, len(model) - 50):
        low = max(0, start)
        count = min(3000, len(model) - low, _MOST - low)
        if count > 0 and source.read(low, count) != model[low : low + count]:
            raise Contradiction(f"{count} bytes at {low} differ")
    if not _MOST < source.size <= 1 << 30:  # between them gigabytes of zeroes are as documented
        with suppress(DumpFormatError):
            source.read(0, 1 << 62)
    with suppress(DumpFormatError):
        _use(open_file(source))
    return source.complete


def _flat(*records: tuple[int, bytes]) -> bytes:
    head = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    parts = [struct.pack(">qq", at, len(data)) + data for at, data in records]
    return head.ljust(_PAGE, b"\0") + b"".join(parts) + struct.pack(">qq", -1, -1)


def _flat_seeds() -> Sequence[bytes]:
    elf = _elf_seeds()[0]
    parts = [(at, elf[at : at + 700]) for at in range(0, len(elf), 700)]
    return [_flat(*parts[::-1], (0, elf[:64])), _flat((0, b"abc"), (1, b"XY"), (90, b"end"))]


def _change_flat(data: bytes, chance: random.Random) -> bytes:
    """An offset or a size of a record, or the order of two."""
    places, at = [], _PAGE
    while at + 16 <= len(data):
        places.append(at)
        at += 16 + max(0, struct.unpack_from(">q", data, at + 8)[0])
    if not places or chance.random() < 0.2:
        return mutated(data, chance)
    for _ in range(chance.choice((1, 1, 2, 5))):
        field = chance.choice(places) + chance.choice((0, 8))
        value = chance.choice((None, chance.randrange(5000)))
        if value is None:
            data = set_field(data, field, 8, chance, ">")
        else:
            data = data[:field] + struct.pack(">q", value) + data[field + 8 :]
    return data


# Notes and VMCOREINFO ---------------------------------------------------------------------------


def _read_notes(data: bytes) -> bool:
    """Notes are read to the end or refused; what is taken out is gone, what is swapped twice is as
    it was."""
    read = False
    for little in (True, False):
        with suppress(DumpFormatError):
            notes = list(iter_notes(data, little_endian=little))
            find_vmcoreinfo(data, little_endian=little)
            left = drop_notes(data, "CORE", little_endian=little)
            if any(note.name == "CORE" for note in iter_notes(left, little_endian=little)):
                raise Contradiction("CORE is still there")
            swapped = swapped_registers(data, little_endian=little)
            again = swapped_registers(swapped, little_endian=not little)
            if swapped_registers(again, little_endian=little) != swapped:
                raise Contradiction("swapped registers do not come back")
            for note in notes:
                if note.offset + len(note.description) > len(data):
                    raise Contradiction(f"{note.name} is beyond the end")
            read = read or any(note.name == "CORE" for note in notes)
    return read


def _note_seeds() -> Sequence[bytes]:
    return [_real_notes(dump) for dump in ("x86_64-6.1", "s390x-6.12", "aarch64-6.12")]


def _read_vmcoreinfo(data: bytes) -> bool:
    """The text is taken apart; as memory of a dump it is found, or nothing is."""
    text = data.decode("ascii", "replace")
    values = values_of(text)
    for name in ("PAGESIZE", "KERNELOFFSET", "SYMBOL(_stext)"):
        for base in (10, 16):
            with suppress(DumpError):
                number_in(values, name, base=base)
    is_plain(data, _PAGE)
    core = ElfCore(_Bytes(_elf("<", 62, (1, 0x10000, data))))
    with suppress(DumpFormatError):
        found = find_in_memory(core, unwatched)
        if found and not found.text.startswith("OSRELEASE="):
            raise Contradiction(f"{found} was found")
        return found is not None or "OSRELEASE" in values
    return False


def _vmcoreinfo_seeds() -> Sequence[bytes]:
    text = kernel_of("x86_64-6.1").prog["VMCOREINFO"].string_()
    note = pack_note("VMCOREINFO", 0, text)
    return [text, note, note.ljust(_PAGE, b"\0") + note, bytes(_PAGE) + note]


# Compressed -------------------------------------------------------------------------------------


def _read_page(data: bytes) -> bool:
    """A page has its size or is refused, whatever it is said to be packed with."""
    with suppress(CodecError):
        if data:
            size = _PAGE if data[0] & 0x80 else 65536
            if len(unpack_page(data[0] & 0x7F, data[1:], size)) != size:
                raise Contradiction("a page of another size")
            return True
    return False


def _page_seeds() -> Sequence[bytes]:
    page = kdump_of("x86_64-6.1").page(kernel_page())
    ways: dict[int, Callable[[bytes], bytes]] = {
        0: bytes,
        1: zlib.compress,
        2: LZOCompressor().compress,
        4: _snappy,
        0x20: zstandard.ZstdCompressor().compress,
    }
    return [bytes((0x80 | flag,)) + bytes(way(page)) for flag, way in ways.items()]


def _snappy(page: bytes) -> bytes:
    from cramjam import snappy

    return bytes(snappy.compress_raw(page))


def kernel_page() -> int:
    """A page frame that a real dump has."""
    file = kdump_of("x86_64-6.1")
    return next(number for number in range(file.header.max_pfn) if file._has(number))


def _read_packed(data: bytes) -> bool:
    """A file is unpacked within its limit, or refused."""
    way = packed.packing_of(data)
    if way is None:
        return False
    number = os.memfd_create("fuzz")
    with (
        open(number, "w+b") as file,
        patch.object(packed, "_SURE_SIZE", _MOST),
        patch.object(packed, "_RATIO", 64),
    ):
        file.write(data)
        file.flush()
        file.seek(0)
        with suppress(DumpError), packed.unpack(file, "fuzz", way) as unpacked:
            if os.fstat(unpacked.fileno()).st_size > max(_MOST, 64 * len(data)):
                raise Contradiction("more than the limit was unpacked")
            return True
    return False


def _packed_seeds() -> Sequence[bytes]:
    data = _elf_seeds()[0]
    return [
        gzip.compress(data) + gzip.compress(b"more"),
        lzma.compress(data) + bytes(4) + lzma.compress(bytes(100_000)),
        bz2.compress(data) + bz2.compress(bytes(100_000)),
        zstandard.compress(data) + zstandard.compress(bytes(100_000)),
    ]


HARNESSES = (
    Harness("kdump", "kdump-compressed files", _read_file, _kdump_seeds, _change_kdump),
    Harness("elfcore", "ELF core files", _read_file, _elf_seeds, largest=1 << 14),
    Harness("flattened", "flattened files", _read_flattened, _flat_seeds, _change_flat, 1 << 14),
    Harness("notes", "ELF notes", _read_notes, _note_seeds, largest=1 << 13),
    Harness("vmcoreinfo", "VMCOREINFO", _read_vmcoreinfo, _vmcoreinfo_seeds, largest=1 << 14),
    Harness("pages", "compressed pages", _read_page, _page_seeds, largest=1 << 13),
    Harness("packed", "packed files", _read_packed, _packed_seeds, largest=1 << 14),
)
