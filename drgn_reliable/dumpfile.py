# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read what a dump file says about itself: the kdump header and the ELF notes.

drgn and libkdumpfile read the *memory* of a dump. What they do not hand out is what has to be
copied when a smaller dump is made of it: the notes (registers of each CPU, VMCOREINFO, what QEMU
adds), byte for byte.

Two containers are read:

* ELF core files: ``/proc/vmcore``, ``makedumpfile -E``, QEMU's ``dump-guest-memory``;
* the kdump-compressed format of makedumpfile (``diskdump_mod.h`` and ``IMPLEMENTATION`` in
  makedumpfile's source), in the layout that 64-bit machines have. :mod:`drgn_reliable.kdumpfile`
  writes it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from .errors import DumpError

__all__ = (
    "NT_PRSTATUS",
    "DumpFormatError",
    "KdumpHeader",
    "Note",
    "Uts",
    "drop_notes",
    "find_vmcoreinfo",
    "iter_notes",
    "pack_note",
    "read_kdump_header",
    "read_notes",
)

KDUMP_SIGNATURE = b"KDUMP   "
_ELF_SIGNATURE = b"\x7fELF"
_FLATTENED_SIGNATURE = b"makedumpfile\0"

MIN_PAGE_SIZE = 1 << 12
MAX_PAGE_SIZE = 1 << 18
"""Page sizes of the kernels that libkdumpfile accepts, in bytes."""

NT_PRSTATUS = 1
"""Type of the ``CORE`` notes that hold a CPU's registers (``struct elf_prstatus``)."""

UTS_FIELD_SIZE = 65
"""Bytes of each field of ``struct new_utsname``, with its NUL (``__NEW_UTS_LEN`` + 1)."""


class DumpFormatError(DumpError, ValueError):
    """The file is not a dump of a known format, or it contradicts itself."""


class Uts(NamedTuple):
    """``struct new_utsname``: what ``uname`` says on the dumped machine."""

    sysname: str
    nodename: str
    release: str
    version: str
    machine: str
    domainname: str


class Note(NamedTuple):
    """One ELF note."""

    name: str
    """Its owner: ``CORE``, ``VMCOREINFO``, ``QEMU``, ``LINUX``, …"""
    type: int
    """Meaningful per owner: ``NT_PRSTATUS`` is 1 of ``CORE``."""
    description: bytes
    offset: int
    """Where the description starts in the notes, in bytes."""


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
    vmcoreinfo_offset: int
    vmcoreinfo_size: int
    notes_offset: int
    notes_size: int
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

_BLOCK_SIZE_AT = struct.calcsize("<" + MAIN_HEADER) - 9 * 4


def read_notes(path: str | os.PathLike[str]) -> bytes:
    """Return the ELF notes of a dump, one after the other, as the file has them.

    A kdump-compressed file can hold VMCOREINFO outside its notes (all of header version 3 do);
    it is then added as a note, so that the result always has what the file knows.

    :raises DumpFormatError: if the file is neither an ELF file nor a kdump-compressed one, or if
        it is cut off.
    """
    with open(path, "rb") as file:
        signature = file.read(len(_FLATTENED_SIGNATURE))
        if signature.startswith(_ELF_SIGNATURE):
            return _read_elf_notes(file, Path(path))
        if signature.startswith(KDUMP_SIGNATURE):
            return _read_kdump_notes(file, Path(path))
        if signature == _FLATTENED_SIGNATURE:
            raise DumpFormatError(f"{path}: flattened dump; reassemble it with makedumpfile -R")
        raise DumpFormatError(f"{path}: neither an ELF nor a kdump-compressed file")


def read_kdump_header(path: str | os.PathLike[str]) -> KdumpHeader:
    """Return both headers of a kdump-compressed file.

    :raises DumpFormatError: if it is not one, or not of a 64-bit machine.
    """
    with open(path, "rb") as file:
        return _read_kdump_header(file, Path(path))


def iter_notes(notes: bytes, *, little_endian: bool = True) -> Iterator[Note]:
    """Yield each of some concatenated ELF notes.

    Names and descriptions are padded to 4 bytes, in 64-bit files too: the kernel
    (``append_elf_note()``) and QEMU write them so.

    :raises DumpFormatError: if a note reaches beyond the end.
    """
    return (note for note, _start, _end in _note_spans(notes, little_endian))


def pack_note(name: str, type_: int, description: bytes, *, little_endian: bool = True) -> bytes:
    """Return one ELF note, padded to 4 bytes."""
    owner = name.encode("latin-1") + b"\0"
    order = "<" if little_endian else ">"
    head = struct.pack(order + "3I", len(owner), len(description), type_)
    return head + _padded(owner) + _padded(description)


def find_vmcoreinfo(notes: bytes, *, little_endian: bool = True) -> Note | None:
    """Return the first VMCOREINFO note, if there is one."""
    found = iter_notes(notes, little_endian=little_endian)
    return next((note for note in found if note.name == "VMCOREINFO"), None)


def drop_notes(notes: bytes, *owners: str, little_endian: bool = True) -> bytes:
    """Return the notes without those of some owners."""
    return b"".join(
        notes[start:end]
        for note, start, end in _note_spans(notes, little_endian)
        if note.name not in owners
    )


def _note_spans(notes: bytes, little_endian: bool) -> Iterator[tuple[Note, int, int]]:
    """Yield each note with the bytes from and to which it reaches, padding included."""
    header = struct.Struct(("<" if little_endian else ">") + "3I")
    at = 0
    while len(notes) - at >= header.size:
        name_size, size, type_ = header.unpack_from(notes, at)
        name_at = at + header.size
        start = name_at + _aligned(name_size)
        if start + size > len(notes):
            raise DumpFormatError(f"ELF note at byte {at} reaches beyond {len(notes)} bytes")
        name = notes[name_at : name_at + name_size].rstrip(b"\0").decode("latin-1")
        end = start + _aligned(size)
        yield Note(name, type_, notes[start : start + size], start), at, end
        at = end


def _aligned(size: int) -> int:
    return size + 3 & ~3


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _read_exactly(file: BinaryIO, path: Path, offset: int, size: int, what: str) -> bytes:
    """Read, after a look at the file's size: a size from a hostile file is not allocated."""
    length = os.fstat(file.fileno()).st_size
    if offset + size > length:
        raise DumpFormatError(
            f"{path}: {what} ({size} bytes at {offset}) reaches beyond the file's {length} bytes"
        )
    file.seek(offset)
    return file.read(size)


def _read_elf_notes(file: BinaryIO, path: Path) -> bytes:
    try:
        headers = [segment.header for segment in ELFFile(file).iter_segments("PT_NOTE")]
    except (ELFError, OSError, ValueError) as error:  # OSError: a seek beyond all files
        raise DumpFormatError(f"{path}: unreadable ELF headers: {error}") from error
    return b"".join(
        _padded(_read_exactly(file, path, header["p_offset"], header["p_filesz"], "note segment"))
        for header in headers
    )


def _read_kdump_notes(file: BinaryIO, path: Path) -> bytes:
    header = _read_kdump_header(file, path)
    notes = _read_exactly(file, path, header.notes_offset, header.notes_size, "notes")
    little_endian = header.little_endian
    if header.vmcoreinfo_size and find_vmcoreinfo(notes, little_endian=little_endian) is None:
        vmcoreinfo = _read_exactly(
            file, path, header.vmcoreinfo_offset, header.vmcoreinfo_size, "VMCOREINFO"
        )
        notes = _padded(notes)
        notes += pack_note("VMCOREINFO", 0, vmcoreinfo, little_endian=little_endian)
    return notes


def _read_kdump_header(file: BinaryIO, path: Path) -> KdumpHeader:
    size = struct.calcsize("<" + MAIN_HEADER)
    raw = _read_exactly(file, path, 0, size, "kdump header")
    if not raw.startswith(KDUMP_SIGNATURE):
        raise DumpFormatError(f"{path}: no kdump signature")
    order = _byte_order(raw, path)
    _, version, *main = struct.unpack(order + MAIN_HEADER, raw)
    status, page_size, sub_header_blocks, bitmap_blocks, max_pfn = main[8:13]
    sub_size = struct.calcsize(order + SUB_HEADER)
    raw = _read_exactly(file, path, page_size, sub_size, "kdump sub header")
    sub = _known_fields(struct.unpack(order + SUB_HEADER, raw), version)
    return KdumpHeader(
        little_endian=order == "<",
        version=version,
        uts=Uts(*(field.split(b"\0")[0].decode("utf-8", "replace") for field in main[:6])),
        status=status,
        page_size=page_size,
        sub_header_blocks=sub_header_blocks,
        bitmap_blocks=bitmap_blocks,
        nr_cpus=main[-1],
        phys_base=sub[0],
        dump_level=sub[1],
        split=sub[2],
        vmcoreinfo_offset=sub[5],
        vmcoreinfo_size=sub[6],
        notes_offset=sub[7],
        notes_size=sub[8],
        max_pfn=sub[13] if version >= 6 else max_pfn,
    )


def _byte_order(raw: bytes, path: Path) -> str:
    """Find the byte order by the one field that says it: the page size, a small power of two."""
    for order in "<>":
        (size,) = struct.unpack_from(order + "i", raw, _BLOCK_SIZE_AT)
        if MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and size & size - 1 == 0:
            return order
    raise DumpFormatError(f"{path}: no page size in the kdump header (a 32-bit machine's dump?)")


def _known_fields(sub: tuple[int, ...], version: int) -> tuple[int, ...]:
    """Clear the fields of a sub header that its version does not have yet."""
    fields = {0: 1, 1: 2, 2: 5, 3: 7, 4: 9, 5: 11}.get(version, len(sub) if version > 0 else 0)
    return sub[:fields] + (0,) * (len(sub) - fields)
