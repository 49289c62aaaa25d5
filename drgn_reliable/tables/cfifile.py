# SPDX-License-Identifier: LGPL-2.1-or-later
"""The call frame information of an ELF file: a kernel, a module, or the debugging file of one."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section

from drgn_reliable.tables.cfi import CfiSection
from drgn_reliable.tables.framerule import BadRule
from drgn_reliable.tables.relocations import MACHINES, Target, relocate

__all__ = ("cfi_sections",)

_LARGEST = 1 << 28
"""Bytes of a section that are read; a kernel's has three million."""
_SHF_ALLOC = 1 << 1
_ELFCOMPRESS_ZSTD = (b"\2\0\0\0", b"\0\0\0\2")
"""In either byte order."""
_COMPRESSION_HEADER = 24
"""Bytes of ``Elf64_Chdr``."""
_SHN_ABS = 0xFFF1
_SHN_XINDEX = 0xFFFF
_SYMBOL = "IBBHQQ"
"""``Elf64_Sym`` after a byte order: st_name, st_info, st_other, st_shndx, st_value, st_size."""


def cfi_sections(
    path: str | Path, *, bias: int = 0, loaded: Mapping[str, int] | None = None
) -> list[CfiSection]:
    """The ``.debug_frame`` and ``.eh_frame`` that a file has the contents of.

    :param bias: bytes by which a kernel's addresses in memory are above those it was linked for.
    :param loaded: where the sections of a module (or of its debugging file) are in memory, by
        name. Functions in sections that are not named have no rules, such as those of
        ``.init.text`` once it is freed.
    :raises BadRule: if the file is no sound 64-bit ELF file, or a module with relocations that
        are not supported.
    :raises OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            elf = ELFFile(file)
            if elf.elfclass != 64:
                raise BadRule(f"{path}: not a 64-bit ELF file")
            return _sections(elf, str(path), bias, loaded or {})
        except BadRule:
            raise
        except Exception as error:  # what pyelftools meets in a damaged file, it passes on
            raise BadRule(f"{path}: not a sound ELF file ({error!r})") from error


def _sections(elf: ELFFile, path: str, bias: int, loaded: Mapping[str, int]) -> list[CfiSection]:
    found = []
    sections = list(elf.iter_sections())
    for number, section in enumerate(sections):
        eh = section.name == ".eh_frame"
        if not (eh or section.name == ".debug_frame") or section["sh_type"] == "SHT_NOBITS":
            continue
        name = f"{section.name} of {path}"
        data, address = _contents(section, name), section["sh_addr"]
        if elf["e_type"] == "ET_REL":
            # An .eh_frame that was not loaded is taken to be in reach of its 32-bit offsets.
            address = loaded.get(section.name, min(loaded.values(), default=0)) if eh else 0
            data = _relocated(elf, sections, number, data, address, loaded)
        found.append(
            CfiSection(
                data,
                address=address,
                eh=eh,
                little_endian=elf.little_endian,
                name=name,
                bias=0 if elf["e_type"] == "ET_REL" else bias,
            )
        )
    return found


def _contents(section: Section, name: str) -> bytes:
    """What a section holds, uncompressed."""
    if section.data_size > _LARGEST:
        raise BadRule(f"{name}: {section.data_size} bytes")
    packed = b""
    if section.compressed:
        section.stream.seek(section["sh_offset"])
        packed = section.stream.read(section["sh_size"])
    if packed.startswith(_ELFCOMPRESS_ZSTD):
        from zstandard import ZstdDecompressor  # slow to import

        stream = ZstdDecompressor().stream_reader(packed[_COMPRESSION_HEADER:])
        data = stream.read(section.data_size)
    else:
        data = section.data()
    if len(data) < section.data_size:
        raise BadRule(f"{name}: cut off after {len(data)} bytes")
    return bytes(data)


def _relocated(
    elf: ELFFile,
    sections: Sequence[Section],
    number: int,
    data: bytes,
    address: int,
    loaded: Mapping[str, int],
) -> bytes:
    """A section of a module after its relocations."""
    for table in sections:
        if table["sh_type"] not in ("SHT_REL", "SHT_RELA") or table["sh_info"] != number:
            continue
        if table["sh_type"] == "SHT_REL" or elf["e_machine"] not in MACHINES:
            raise BadRule(f"{table.name}: relocations of {elf['e_machine']} are not supported")
        name = sections[number].name
        data = relocate(
            data,
            _contents(table, table.name),
            machine=elf["e_machine"],
            target=_Symbols(elf, sections, table["sh_link"], loaded).target,
            address=address,
            little_endian=elf.little_endian,
            name=name,
        )
    return data


class _Symbols:
    """A module's symbols, as its relocations number them.

    :param table: number of the section that has them.
    :param loaded: addresses of the sections that are in memory.
    """

    def __init__(
        self, elf: ELFFile, sections: Sequence[Section], table: int, loaded: Mapping[str, int]
    ) -> None:
        self._data = _contents(sections[table], sections[table].name)
        self._entry = struct.Struct(("<" if elf.little_endian else ">") + _SYMBOL)
        # What is never loaded, like .debug_frame itself, is referred to by offsets in it.
        self._bases = [
            loaded.get(section.name) if section["sh_flags"] & _SHF_ALLOC else 0
            for section in sections
        ]

    def target(self, number: int) -> Target:
        """What a symbol is."""
        if (number + 1) * self._entry.size > len(self._data):
            raise BadRule(f"a relocation against symbol {number}, beyond their table")
        section, value = self._entry.unpack_from(self._data, number * self._entry.size)[3:5]
        if section == _SHN_XINDEX:
            raise BadRule(f"symbol {number} is in a section that its table has no room to number")
        if section == _SHN_ABS:
            return Target(value, True)
        base = self._bases[section] if 0 < section < len(self._bases) else None
        return Target(value + (base or 0), base is not None)
