# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keep the call frame information of some functions: their entries in ``.debug_frame`` (FDEs) and
those that they share (CIEs), as DWARF 5, section 6.4.1, has them.

In a module, which was never linked, what an entry refers to is in relocations; they come along.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import elf64
from elf64 import ElfFile

__all__ = ("FrameError", "Frames", "Relocation", "choose_frames")

_RESERVED = 0xFFFFFFF0
"""Lengths from this on are those of 64-bit DWARF, or of nothing."""
_CIE = 0xFFFFFFFF
_CIE_POINTER = 4
"""Offset in an FDE of that of its CIE."""
_START = 8
"""Offset in an FDE of its function's address."""


class FrameError(ValueError):
    """Call frame information that cannot be copied, or none for the functions."""


class Relocation(NamedTuple):
    """What is to be written into the entries, once it is known where things are."""

    place: int
    """Offset in ``.debug_frame``."""
    type: int
    section: int
    """Number of the section that is referred to."""
    addend: int
    """Offset in that section."""


class Frames(NamedTuple):
    """Some entries as a section of their own."""

    data: bytes
    relocations: list[Relocation]
    functions: int
    """How many have an entry."""


class _Entry(NamedTuple):
    at: int
    end: int
    cie: int | None
    """Offset of the CIE of an FDE; None for a CIE."""


class _Code(NamedTuple):
    section: int
    """Its number, or 0 in a file that was linked."""
    start: int
    """Offset in the section, or address."""
    size: int


def choose_frames(elf: ElfFile, pattern: str) -> Frames:
    """Return the entries of the functions in whose names a regular expression is found.

    :raises FrameError: if there are none, or they are of 64-bit DWARF.
    """
    data = elf.contents(".debug_frame")
    if not data:
        raise FrameError("no .debug_frame")
    relocations = {row.place: row for row in _relocations(elf)}
    entries = list(_entries(data, elf.order, relocations))
    placed = sorted(_placed(data, elf.order, entries, relocations))
    chosen = {entry for function in _functions(elf, pattern) for entry in _of(function, placed)}
    if not chosen:
        raise FrameError(f"no function with an entry in .debug_frame is found by {pattern!r}")
    kept = {fde.at for fde in chosen} | {fde.cie for fde in chosen}
    copied, moved = _copied(data, elf.order, [entry for entry in entries if entry.at in kept])
    return Frames(copied, list(_moved(relocations, entries, moved)), len(chosen))


def _entries(data: bytes, order: str, relocations: dict[int, Relocation]) -> Iterator[_Entry]:
    at = 0
    while at + 8 <= len(data):
        length, cie = struct.unpack_from(order + "II", data, at)
        end = at + 4 + length
        if length >= _RESERVED or end > len(data):
            raise FrameError(f"an entry of length {length:#x} at {at:#x} of .debug_frame")
        if length:
            pointer = relocations.get(at + _CIE_POINTER)
            yield _Entry(at, end, None if cie == _CIE else pointer.addend if pointer else cie)
        at = end


def _placed(
    data: bytes, order: str, entries: list[_Entry], relocations: dict[int, Relocation]
) -> Iterator[tuple[_Code, _Entry]]:
    """What code each FDE is for."""
    for entry in entries:
        if entry.cie is None:
            continue
        start, size = struct.unpack_from(order + "QQ", data, entry.at + _START)
        row = relocations.get(entry.at + _START)
        yield _Code(row.section if row else 0, row.addend if row else start, size), entry


def _of(function: _Code, placed: list[tuple[_Code, _Entry]]) -> Iterator[_Entry]:
    """The FDEs of a function. They may begin before its symbol or after, where there are
    instructions for tracers to patch."""
    i = bisect.bisect_right(placed, (*function[:2], 1 << 64), key=lambda row: row[0])
    before = placed[i - 1] if i else None
    if before and before[0].section == function.section:
        start, size = before[0][1:]
        if start + size > function.start or start == function.start:
            yield before[1]
    end = function[0], function.start + function.size
    while i < len(placed) and placed[i][0][:2] < end:
        yield placed[i][1]
        i += 1


def _copied(data: bytes, order: str, entries: list[_Entry]) -> tuple[bytes, dict[int, int]]:
    """Return entries one after the other, and where each has gone."""
    copied = bytearray()
    moved = {}
    for entry in entries:
        moved[entry.at] = len(copied)
        copied += data[entry.at : entry.end]
    for entry in entries:
        if entry.cie is not None:
            place = moved[entry.at] + _CIE_POINTER
            struct.pack_into(order + "I", copied, place, moved[entry.cie])
    return bytes(copied), moved


def _moved(
    relocations: dict[int, Relocation], entries: list[_Entry], moved: dict[int, int]
) -> Iterator[Relocation]:
    """The relocations of the entries that were copied, at their new places."""
    for entry in entries:
        if entry.at not in moved:
            continue
        for place in range(entry.at, entry.end):
            if row := relocations.get(place):
                row = row._replace(place=place - entry.at + moved[entry.at])
                if place == entry.at + _CIE_POINTER and entry.cie is not None:
                    row = row._replace(addend=moved[entry.cie])
                yield row


def _functions(elf: ElfFile, pattern: str) -> set[_Code]:
    """Return the code of the functions of some names."""
    strings = elf.contents(".strtab")
    found = set()
    for name_at, _, _, section, value, size in _symbols(elf):
        if section and re.search(pattern, elf64.name_at(strings, name_at)):
            found.add(_Code(section if elf.relocatable else 0, value, size))
    return found


def _symbols(elf: ElfFile) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack(elf.order + elf64.SYMBOL, elf.contents(".symtab")))


def _relocations(elf: ElfFile) -> Iterator[Relocation]:
    """The relocations of a module's ``.debug_frame``, against sections rather than symbols."""
    if not elf.relocatable:
        return
    symbols = _symbols(elf)
    table = elf.contents(".rela.debug_frame")
    for place, info, addend in struct.iter_unpack(elf.order + elf64.RELOCATION, table):
        _, _, _, section, value, _ = symbols[info >> 32]
        if not 0 < section < elf64.SHN_LORESERVE:
            raise FrameError(f"a relocation against symbol {info >> 32}, which is in no section")
        yield Relocation(place, info & 0xFFFFFFFF, section, value + addend)
