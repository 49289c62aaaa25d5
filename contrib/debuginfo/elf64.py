# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read and write 64-bit ELF files: headers, sections and segments of a kernel or a module.

Names and numbers are those of the ELF specification (``elf.h``). Sizes, offsets and addresses are
in bytes; byte orders are as :mod:`struct` has them, ``<`` or ``>``.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Collection
from typing import NamedTuple

__all__ = (
    "Contents",
    "ElfError",
    "ElfFile",
    "Section",
    "Segment",
    "elf_file",
    "name_at",
    "string_table",
)

SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_RELA = 4
SHT_NOTE = 7
SHT_NOBITS = 8
SHF_ALLOC = 1 << 1
SHF_MERGE = 1 << 4
SHF_STRINGS = 1 << 5
SHF_COMPRESSED = 1 << 11
SHN_LORESERVE = 0xFF00
SHF_INFO_LINK = 1 << 6
STB_LOCAL = 0
STT_SECTION = 3
_ET_REL = 1
_ELFCOMPRESS_ZLIB = 1
_PT_NOTE = 4

# Formats for struct, after a byte order character.
_ELF_HEADER = "16sHHIQQQIHHHHHH"
_PROGRAM_HEADER = "IIQQQQQQ"
_SECTION_HEADER = "IIQQQQIIQQ"
_COMPRESSION_HEADER = "IIQQ"
SYMBOL = "IBBHQQ"
"""``Elf64_Sym``: st_name, st_info, st_other, st_shndx, st_value, st_size."""
RELOCATION = "QQq"
"""``Elf64_Rela``: r_offset, r_info, r_addend."""


class ElfError(ValueError):
    """The file is not a 64-bit ELF file, or it contradicts itself."""


class Section(NamedTuple):
    """A section header."""

    name: str
    type: int
    flags: int = 0
    address: int = 0
    offset: int = 0
    size: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry_size: int = 0


class Segment(NamedTuple):
    """A program header; the fields are in the order of the file."""

    type: int
    flags: int
    offset: int
    virtual_address: int
    physical_address: int
    file_size: int
    memory_size: int
    align: int


class ElfFile:
    """The headers of a file in memory, or mapped, and the contents of its sections."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        size = struct.calcsize("<" + _ELF_HEADER)
        if len(data) < size or data[:5] != b"\x7fELF\x02" or data[5] not in (1, 2):
            raise ElfError("not a 64-bit ELF file")
        self.order = "<" if data[5] == 1 else ">"
        self.header = struct.unpack_from(self.order + _ELF_HEADER, data)
        segments_at, sections_at, _, _, _, segments, _, sections, names_index = self.header[5:]
        self.segments = [
            Segment(*values) for values in self._table(_PROGRAM_HEADER, segments_at, segments)
        ]
        raw = self._table(_SECTION_HEADER, sections_at, sections)
        if names_index >= len(raw):
            raise ElfError("no section names")
        names_at, names_size = raw[names_index][4:6]
        names = data[names_at : names_at + names_size]
        self.sections = [Section(name_at(names, values[0]), *values[1:]) for values in raw]

    @property
    def relocatable(self) -> bool:
        """Whether this is an object that was never linked, like a kernel module."""
        return bool(self.header[1] == _ET_REL)

    def _table(self, layout: str, at: int, count: int) -> list[tuple[int, ...]]:
        entry = struct.Struct(self.order + layout)
        if at + count * entry.size > len(self._data):
            raise ElfError(f"cut off: a header table at {at:#x} reaches beyond the end")
        return [entry.unpack_from(self._data, at + i * entry.size) for i in range(count)]

    def contents(self, name: str) -> bytes:
        """Return what a section holds, uncompressed; nothing if there is none of that name."""
        section = next((section for section in self.sections if section.name == name), None)
        if section is None or section.type == SHT_NOBITS:
            return b""
        data = self._data[section.offset : section.offset + section.size]
        if len(data) < section.size:
            raise ElfError(f"cut off in {name}")
        if not section.flags & SHF_COMPRESSED:
            return data
        kind, *_ = struct.unpack_from(self.order + _COMPRESSION_HEADER, data)
        if kind != _ELFCOMPRESS_ZLIB:
            raise ElfError(f"{name} is compressed by method {kind}; only zlib (1) is known")
        return zlib.decompress(data[struct.calcsize(self.order + _COMPRESSION_HEADER) :])


Contents = dict[str, bytes]
"""What sections hold, by name."""


def elf_file(
    template: ElfFile, sections: list[Section], contents: Contents, packed: Collection[str]
) -> bytes:
    """Return an ELF file with the type, machine and segments of another, and other sections.

    :param template: the other.
    :param contents: of the sections that have any.
    :param packed: names of the sections to compress by zlib, if that makes them smaller.
    """
    order = template.order
    sections = [*sections, Section(".shstrtab", SHT_STRTAB)]
    names, name_places = string_table({section.name for section in sections})
    contents = contents | {".shstrtab": names}
    body = bytearray(struct.calcsize(order + _ELF_HEADER))
    body += bytes(len(template.segments) * struct.calcsize(order + _PROGRAM_HEADER))
    placed = []
    for section in sections:
        data = contents.get(section.name)
        if data is not None and section.name in packed:
            placed.append(_place(*_compressed(section, data, order), body))
        else:
            placed.append(_place(section, data, body))
    body += bytes(-len(body) % 8)
    sections_at = len(body)
    for section in placed:
        body += struct.pack(order + _SECTION_HEADER, name_places[section.name], *section[1:])
    _write_headers(template, placed, sections_at, body)
    return bytes(body)


def _place(section: Section, data: bytes | None, body: bytearray) -> Section:
    """Append a section's contents, if it has any, and return it with its offset."""
    if data is None:
        return section._replace(offset=len(body) if section.type else 0)
    body += bytes(-len(body) % min(section.align or 1, 8))
    offset = len(body)
    body += data
    return section._replace(offset=offset, size=len(data))


def _write_headers(
    template: ElfFile, placed: list[Section], sections_at: int, body: bytearray
) -> None:
    """Fill in what is at the start of the file: the ELF header and the program headers."""
    order = template.order
    header_size = struct.calcsize(order + _ELF_HEADER)
    segments_at = header_size if template.segments else 0
    ident, type_, machine, version, entry, _, _, flags, *sizes = template.header
    sizes[4:] = [len(placed), len(placed) - 1]
    struct.pack_into(
        order + _ELF_HEADER,
        body,
        0,
        *(ident, type_, machine, version, entry, segments_at, sections_at, flags, *sizes),
    )
    entry_size = struct.calcsize(order + _PROGRAM_HEADER)
    for index, segment in enumerate(template.segments):
        at = header_size + index * entry_size
        struct.pack_into(order + _PROGRAM_HEADER, body, at, *_new_segment(segment, placed))


def _new_segment(segment: Segment, placed: list[Section]) -> Segment:
    """Return a program header that says where memory is, and that only notes are in the file."""
    if segment.type == _PT_NOTE:
        for section in placed:
            if section.type == SHT_NOTE and section.address == segment.virtual_address:
                return segment._replace(offset=section.offset)
    return segment._replace(offset=0, file_size=0)


def _compressed(section: Section, data: bytes, order: str) -> tuple[Section, bytes]:
    """Compress a section if that makes it smaller."""
    header = struct.pack(
        order + _COMPRESSION_HEADER, _ELFCOMPRESS_ZLIB, 0, len(data), section.align
    )
    compressed = header + zlib.compress(data, 9)
    if section.flags & SHF_ALLOC or len(compressed) >= len(data):
        return section, data
    return section._replace(flags=section.flags | SHF_COMPRESSED, align=8), compressed


def string_table(names: set[str]) -> tuple[bytes, dict[str, int]]:
    """Return a string table and the place of each name; one that ends another shares its bytes."""
    table = bytearray(b"\0")
    places = {"": 0}
    longer = ""
    for name in sorted(names - {""}, key=lambda name: name[::-1], reverse=True):
        if longer.endswith(name):
            places[name] = places[longer] + len(longer.encode()) - len(name.encode())
        else:
            places[name] = len(table)
            table += name.encode() + b"\0"
        longer = name
    return bytes(table), places


def name_at(strings: bytes, at: int) -> str:
    """Return the name at a place of a string table."""
    return strings[at : strings.index(b"\0", at)].decode()
