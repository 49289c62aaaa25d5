# SPDX-License-Identifier: LGPL-2.1-or-later
"""ELF notes: registers of each CPU, VMCOREINFO, what QEMU adds.

drgn reads them, but does not hand them out as they are, which a copy needs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from drgn_reliable.files.source import DumpFormatError

__all__ = (
    "NT_PRSTATUS",
    "Note",
    "drop_notes",
    "find_vmcoreinfo",
    "is_plain",
    "iter_notes",
    "pack_note",
    "padded",
    "swapped_registers",
)

NT_PRSTATUS = 1
"""Type of the ``CORE`` notes that hold a CPU's registers (``struct elf_prstatus``)."""


_PID_AT, _REGISTERS_AT = 32, 112
"""Of ``pr_pid`` and ``pr_reg`` in ``struct elf_prstatus`` of 64-bit machines."""


_VMCOREINFO_LIMIT = 1 << 16
"""Bytes; the kernel has a page for it (``VMCOREINFO_BYTES``)."""
_VMCOREINFO_LINE = re.compile(rb"[A-Za-z][\w-]*(\(\w+(\.\w+){0,9}\))?=[ -~]*")


class Note(NamedTuple):
    """One ELF note."""

    name: str
    """Its owner: ``CORE``, ``VMCOREINFO``, ``QEMU``, ``LINUX``, …"""
    type: int
    """Meaningful per owner: ``NT_PRSTATUS`` is 1 of ``CORE``."""
    description: bytes
    offset: int
    """Where the description starts in the notes, in bytes."""


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
    return head + padded(owner) + padded(description)


def find_vmcoreinfo(notes: bytes, *, little_endian: bool = True) -> Note | None:
    """Return the first VMCOREINFO note, if there is one."""
    found = iter_notes(notes, little_endian=little_endian)
    return next((note for note in found if note.name == "VMCOREINFO"), None)


def is_plain(text: bytes, page_size: int) -> bool:
    """Whether VMCOREINFO is written as kernels write it: lines of ``NAME=value`` or
    ``KIND(name)=value``, no name within another, and the page size that the file has.

    >>> is_plain(b"OSRELEASE=6.1\\nPAGESIZE=4096\\nOFFSET(list_head.next)=0\\n", 4096)
    True
    >>> [is_plain(line, 4096) for line in (b".UILD-ID=12", b"SIZE()=4", b"PAGESIZE=8", b"SYMBOL")]
    [False, False, False, False]
    """
    lines = text.rstrip(b"\0\n").split(b"\n")
    if len(text) > _VMCOREINFO_LIMIT or not all(map(_VMCOREINFO_LINE.fullmatch, lines)):
        return False
    names = {line.split(b"=", 1)[0].replace(b"(", b".").rstrip(b")") for line in lines}
    branches = {name[:at] for name in names for at in _dots(name)}
    pages = [line for line in lines if line.startswith(b"PAGESIZE=")]
    return not names & branches and all(line == b"PAGESIZE=%d" % page_size for line in pages)


def _dots(name: bytes) -> list[int]:
    return [at for at, character in enumerate(name) if character == ord(".")]


def drop_notes(notes: bytes, *owners: str, little_endian: bool = True) -> bytes:
    """Return the notes without those of some owners."""
    return b"".join(
        notes[start:end]
        for note, start, end in _note_spans(notes, little_endian)
        if note.name not in owners
    )


def swapped_registers(notes: bytes, *, little_endian: bool) -> bytes:
    """Return the ``NT_PRSTATUS`` notes in the other byte order.

    :param little_endian: of the notes as they are.
    """
    return b"".join(
        pack_note(note.name, note.type, _swapped(note.description), little_endian=not little_endian)
        for note in iter_notes(notes, little_endian=little_endian)
        if (note.name, note.type) == ("CORE", NT_PRSTATUS)
    )


def _swapped(status: bytes) -> bytes:
    """``struct elf_prstatus`` in the other byte order: what dump tools fill in of it are the
    process identifier and the general registers, 64-bit words, to its end."""
    pid, words = _PID_AT, range(_REGISTERS_AT, len(status) - 7, 8)
    swapped = bytearray(len(status))
    swapped[pid : pid + 4] = status[pid : pid + 4][::-1]
    for at in words:
        swapped[at : at + 8] = status[at : at + 8][::-1]
    return bytes(swapped)


def padded(data: bytes) -> bytes:
    """The data with zeroes up to a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


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
