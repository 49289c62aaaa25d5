# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copy some compile units, whole, into new debug sections, and rewrite the offsets between them.

What a unit consists of, and what becomes of it:

=====================  ===========================================================================
``.debug_info``        the unit is copied; offsets in it into other sections are rewritten
``.debug_abbrev``      its table of abbreviations is copied
``.debug_str``,        only the strings that the units name are kept
``.debug_line_str``
``.debug_line``,       the parts that the units point to are copied; strings named in line tables
``.debug_rnglists``,   and entries named in location expressions are rewritten
``.debug_loclists``
``.debug_aranges``     the sets of the units are copied
=====================  ===========================================================================

This suits kernels built by gcc without link time optimisation: DWARF 5 in which no unit refers to
another. Anything else (DWARF 4, the indexed forms that clang prefers, what ``dwz`` makes) is
refused with a :class:`~dwarf5.DwarfError`, not half copied.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import dwarf5
from dwarf5 import DwarfError, leb128, skip_leb128, string

__all__ = ("Unit", "choose_units", "copy_units", "find_units")


class Unit(NamedTuple):
    """One compile unit; offsets are into ``.debug_info`` unless it says otherwise."""

    name: str
    """Path of the source file as the compiler was given it."""
    offset: int
    end: int
    abbreviations: int
    """Offset of its table in ``.debug_abbrev``."""


def find_units(sections: Mapping[str, bytes], order: str) -> list[Unit]:
    """Return all compile units.

    :param sections: the ``.debug_*`` sections by name.
    :param order: byte order as :mod:`struct` has it, ``<`` or ``>``.
    """
    info = sections[".debug_info"]
    units = []
    for offset, end in dwarf5.contributions(info, order, ".debug_info"):
        header = struct.unpack_from(order + dwarf5.UNIT_HEADER, info, offset)
        _, version, kind, _, table = header
        if version != 5:
            raise DwarfError(f"unit at {offset:#x} of .debug_info is of DWARF {version}, not 5")
        if kind == dwarf5.DW_UT_COMPILE:
            unit = Unit("", offset, end, table)
            units.append(unit._replace(name=_unit_name(sections, order, unit)))
    return units


def choose_units(units: Sequence[Unit], names: Sequence[str]) -> list[Unit]:
    """Return the units of some source files, in their order in the file.

    A name is the path of the source file in the kernel's tree, or the end of it. Where the tree
    itself is named in the units (``/build/linux/kernel/smp.c``), the file that lies nearest to its
    top is meant, not ``/build/linux/arch/x86/kernel/smp.c``.

    :raises DwarfError: if a name means no unit, or more than one.
    """
    chosen = set()
    for name in names:
        found = [unit for unit in units if ("/" + unit.name).endswith("/" + name)]
        tops = sorted((unit.name.removesuffix(name), unit) for unit in found)
        if tops and all(top.startswith(tops[0][0]) for top, _ in tops):
            tops = [(top, unit) for top, unit in tops if top == tops[0][0]]
        if len(tops) != 1:
            where = ", ".join(unit.name for _, unit in tops) or "nowhere"
            raise DwarfError(f"compile unit {name} is in {len(tops)} places: {where}")
        chosen.add(tops[0][1])
    return sorted(chosen, key=lambda unit: unit.offset)


def copy_units(
    sections: Mapping[str, bytes], units: Sequence[Unit], order: str
) -> dict[str, bytes]:
    """Return debug sections that have only some units, which have to ascend."""
    return _Copier(sections, units, order).sections()


def _unit_name(sections: Mapping[str, bytes], order: str, unit: Unit) -> str:
    """Read the name in a unit's first entry."""
    info = sections[".debug_info"]
    abbreviations, _ = dwarf5.read_abbreviations(sections[".debug_abbrev"], unit.abbreviations)
    tables = {
        dwarf5.DW_FORM_STRP: sections[".debug_str"],
        dwarf5.DW_FORM_LINE_STRP: sections[".debug_line_str"],
    }
    for attribute in dwarf5.attributes(info, unit.offset, unit.end, abbreviations, order):
        if attribute.attribute != dwarf5.DW_AT_NAME:
            continue
        table, at = info, attribute.at
        if attribute.form in tables:
            table = tables[attribute.form]
            (at,) = struct.unpack_from(order + "I", info, attribute.at)
        return string(table, at).decode("utf-8", "replace")
    return ""


class _Strings:
    """A string section that only keeps what is asked for."""

    def __init__(self, old: bytes) -> None:
        self._old = old
        self._places: dict[bytes, int] = {}
        self._moved: dict[int, int] = {}
        self.data = bytearray()

    def move(self, offset: int) -> int:
        """Return the new offset of the string at an old one."""
        new = self._moved.get(offset)
        if new is None:
            text = string(self._old, offset)
            new = self._places.setdefault(text, len(self.data))
            if new == len(self.data):
                self.data += text + b"\0"
            self._moved[offset] = new
        return new


class _Parts:
    """A section of length-prefixed parts that only keeps those that are asked for."""

    def __init__(self, name: str, old: bytes, order: str) -> None:
        self._name = name
        self._ranges = list(dwarf5.contributions(old, order, name))
        self._starts = [start for start, _ in self._ranges]
        self._moved: dict[int, int] = {}
        self.old = old
        self.data = bytearray()

    def move(self, offset: int) -> int:
        """Return the new offset of an old one; the first call for a part copies it."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or offset >= self._ranges[index][1]:
            raise DwarfError(f"offset {offset:#x} is not in {self._name}")
        start, end = self._ranges[index]
        if start not in self._moved:
            self._moved[start] = len(self.data)
            self.data += self.old[start:end]
        return offset - start + self._moved[start]

    def has(self, start: int) -> bool:
        """Tell whether the part that starts at an old offset has been copied."""
        return start in self._moved


class _Copier:
    """The new sections in the making."""

    def __init__(self, sections: Mapping[str, bytes], units: Sequence[Unit], order: str) -> None:
        self._old_info = sections[".debug_info"]
        self._old_abbrev = sections[".debug_abbrev"]
        self._old_aranges = sections[".debug_aranges"]
        self._order = order
        self._word = struct.Struct(order + "I")
        self._strings = {
            dwarf5.DW_FORM_STRP: _Strings(sections[".debug_str"]),
            dwarf5.DW_FORM_LINE_STRP: _Strings(sections[".debug_line_str"]),
        }
        self._line = _Parts(".debug_line", sections[".debug_line"], order)
        self._ranges = _Parts(".debug_rnglists", sections[".debug_rnglists"], order)
        self._locations = _Parts(".debug_loclists", sections[".debug_loclists"], order)
        self._abbrev = bytearray()
        self._info = bytearray()
        self._units = units
        self._moved_units: list[int] = []
        for unit in units:
            self._moved_units.append(len(self._info))
            self._info += self._old_info[unit.offset : unit.end]

    def sections(self) -> dict[str, bytes]:
        for unit, new in zip(self._units, self._moved_units, strict=True):
            self._copy_unit(unit, new)
        return {
            ".debug_aranges": self._address_ranges(),
            ".debug_info": bytes(self._info),
            ".debug_abbrev": bytes(self._abbrev),
            ".debug_line": bytes(self._line.data),
            ".debug_str": bytes(self._strings[dwarf5.DW_FORM_STRP].data),
            ".debug_line_str": bytes(self._strings[dwarf5.DW_FORM_LINE_STRP].data),
            ".debug_loclists": bytes(self._locations.data),
            ".debug_rnglists": bytes(self._ranges.data),
        }

    def _copy_unit(self, unit: Unit, new: int) -> None:
        """Copy what belongs to a unit, and rewrite its copy at ``new``."""
        abbreviations, end = dwarf5.read_abbreviations(self._old_abbrev, unit.abbreviations)
        self._word.pack_into(self._info, new + 8, len(self._abbrev))
        self._abbrev += self._old_abbrev[unit.abbreviations : end]
        info = self._old_info
        shift = new - unit.offset
        for attribute, form, at, end in dwarf5.attributes(
            info, unit.offset, unit.end, abbreviations, self._order
        ):
            if form in self._strings:
                self._patch(self._info, info, at, shift, self._strings[form].move)
            elif form == dwarf5.DW_FORM_SEC_OFFSET:
                self._patch(self._info, info, at, shift, self._mover(attribute))
            elif form == dwarf5.DW_FORM_EXPRLOC:
                _, start = leb128(info, at)
                self._patch_expression(self._info, info, start, end, shift)

    def _patch(
        self, new: bytearray, old: bytes, at: int, shift: int, move: Callable[[int], int]
    ) -> None:
        """Rewrite the offset at ``at`` of an old section in its copy, ``shift`` bytes away."""
        (offset,) = self._word.unpack_from(old, at)
        self._word.pack_into(new, at + shift, move(offset))

    def _mover(self, attribute: int) -> Callable[[int], int]:
        """Return what moves a section offset; only the attribute tells which section it means."""
        if attribute == dwarf5.DW_AT_STMT_LIST:
            return self._move_line_table
        if attribute in dwarf5.RANGE_ATTRIBUTES:
            return self._ranges.move
        if attribute in dwarf5.LOCATION_ATTRIBUTES:
            return self._move_location_list
        if attribute == dwarf5.DW_AT_GNU_LOCVIEWS:
            return self._locations.move
        raise DwarfError(f"attribute {attribute:#x} with a section offset is not supported")

    def _move_entry(self, offset: int) -> int:
        """Move an offset into ``.debug_info``, which has to be into a chosen unit."""
        index = bisect_right([unit.offset for unit in self._units], offset) - 1
        if index < 0 or offset >= self._units[index].end:
            raise DwarfError(f"an expression refers to {offset:#x}, in a unit that is left out")
        return offset - self._units[index].offset + self._moved_units[index]

    def _patch_expression(self, new: bytearray, old: bytes, at: int, end: int, shift: int) -> None:
        """Rewrite the offsets into ``.debug_info`` in a location expression."""
        while at < end:
            operator = old[at]
            if operator not in dwarf5.OPERANDS:
                raise DwarfError(f"location operator {operator:#x} is not supported")
            at = self._patch_operands(new, old, at + 1, dwarf5.OPERANDS[operator], shift)
        if at != end:
            raise DwarfError(f"location expression ends at {at:#x}, not {end:#x}")

    def _patch_operands(
        self, new: bytearray, old: bytes, at: int, operands: str, shift: int
    ) -> int:
        """Rewrite the offsets into ``.debug_info`` among operands; return where they end."""
        for operand in operands:
            if operand == "u":
                at = skip_leb128(old, at)
            elif operand == "r":
                self._patch(new, old, at, shift, self._move_entry)
                at += 4
            elif operand == "k":
                at += 1 + old[at]
            elif operand == "b":
                length, at = leb128(old, at)
                at += length
            elif operand == "e":
                length, at = leb128(old, at)
                self._patch_expression(new, old, at, at + length, shift)
                at += length
            else:
                at += int(operand)
        return at

    def _move_location_list(self, offset: int) -> int:
        """Copy a location list and rewrite its expressions."""
        moved = self._locations.move(offset)
        old, new = self._locations.old, self._locations.data
        at = offset
        while (kind := old[at]) != dwarf5.DW_LLE_END_OF_LIST:
            if kind not in dwarf5.LIST_ENTRIES:
                raise DwarfError(f"location list entry {kind:#x} is not supported")
            operands = dwarf5.LIST_ENTRIES[kind]
            at = self._patch_operands(new, old, at + 1, operands, moved - offset)
        return moved

    def _move_line_table(self, offset: int) -> int:
        """Copy a line table, once, and rewrite the names in its header."""
        known = self._line.has(offset)
        moved = self._line.move(offset)
        (version,) = struct.unpack_from(self._order + "H", self._line.old, offset + 4)
        if version >= 5 and not known:
            self._patch_line_header(offset, moved - offset)
        return moved

    def _patch_line_header(self, offset: int, shift: int) -> None:
        """Rewrite the names of directories and files (section 6.2.4 of the standard)."""
        old, new = self._line.old, self._line.data
        opcode_base_at = offset + 17
        at = opcode_base_at + old[opcode_base_at]
        for _ in ("directories", "files"):
            forms = []
            pairs, at = old[at], at + 1
            for _ in range(pairs):
                at = skip_leb128(old, at)
                form, at = leb128(old, at)
                forms.append(form)
            count, at = leb128(old, at)
            for form in forms * count:
                if form in self._strings:
                    self._patch(new, old, at, shift, self._strings[form].move)
                at = dwarf5.value_end(old, form, at, self._order)

    def _address_ranges(self) -> bytes:
        """Copy the sets of the units; each begins with length, version and offset of its unit."""
        moved = dict(zip((unit.offset for unit in self._units), self._moved_units, strict=True))
        old = self._old_aranges
        data = bytearray()
        for start, end in dwarf5.contributions(old, self._order, ".debug_aranges"):
            (unit_offset,) = self._word.unpack_from(old, start + 6)
            if unit_offset in moved:
                new = len(data)
                data += old[start:end]
                self._word.pack_into(data, new + 6, moved[unit_offset])
        return bytes(data)
