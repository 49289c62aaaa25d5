# SPDX-License-Identifier: LGPL-2.1-or-later
"""DWARF call frame information: the entries of ``.debug_frame`` and ``.eh_frame``.

Each function has an entry (FDE) with its addresses and a program; what several share is in an
entry of its own (CIE). Formats: DWARF 5, section 6.4.1 and appendix D.6; of ``.eh_frame``, Linux
Standard Base Core 5.0, section 10.6. A kernel has tens of thousands of functions, so that of an
entry only the addresses are read until it is asked for.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from drgn_reliable.memory import MASK
from drgn_reliable.tables.cfaprogram import Cie, Row, Run
from drgn_reliable.tables.dwarfdata import ABSOLUTE, DWARF64, OMITTED, Cursor, pointer_size
from drgn_reliable.tables.framerule import BadRule, FrameRule

__all__ = ("CfiSection", "Fde")

_RESERVED = 0xFFFFFFF0
"""Lengths from this on do not mean what they say."""
_SHORTEST = 4 + 8 + 8
"""Bytes after the length of an FDE of ``.debug_frame``: its CIE's offset and its addresses."""
_MOST_OVERLAPS = 8
"""FDEs for one address that are held against each other."""
_MOST_CACHED = 1 << 16


class Fde(NamedTuple):
    """Which instructions an entry is for, and where it is."""

    start: int
    """Address of the first, as it was linked."""
    end: int
    """One past the last."""
    at: int
    """Offset of the entry in the section."""


class _Header(NamedTuple):
    """What any entry begins with; offsets in the section."""

    body: int
    """Of what comes next."""
    end: int
    """One past the entry."""
    cie: int | None
    """Of the CIE that an FDE names; None for a CIE."""


class _Index(NamedTuple):
    """The FDEs by address."""

    fdes: list[Fde]
    starts: list[int]
    reach: list[int]
    """The greatest end of any FDE up to each."""

    def covering(self, address: int) -> list[Fde]:
        """Those for an address, of too many the last few."""
        found: list[Fde] = []
        i = bisect.bisect_right(self.starts, address)
        while i and self.reach[i - 1] > address and len(found) <= _MOST_OVERLAPS:
            i -= 1
            if self.fdes[i].end > address:
                found.append(self.fdes[i])
        return found


class CfiSection:
    """A section of call frame information: a :class:`~drgn_reliable.tables.framerule.Provider`.

    Of entries for the same instruction it gives the rule that they agree on. Entries for no bytes
    and those for address 0, which is what linkers leave of functions that they removed, are passed
    over. A section that cannot be indexed as a whole has no rules at all, since what cannot be read
    might contradict the rest.

    :param data: the section, relocated if its file is not linked.
    :param address: of the section, in the addresses of its file; relative pointers count from it.
    :param eh: it is in the format of ``.eh_frame``.
    :param name: of the section and its file, for people.
    :param bias: bytes by which addresses in memory are above those of the file.
    """

    def __init__(
        self,
        data: bytes,
        *,
        address: int,
        eh: bool,
        little_endian: bool,
        name: str,
        bias: int = 0,
    ) -> None:
        self._data = data
        self._address = address
        self._eh = eh
        self._order = "little" if little_endian else "big"
        self._words = struct.Struct("<IIQQ" if little_endian else ">IIQQ")
        self._name = name
        self._bias = bias
        self._index: _Index | str | None = None
        self._cies: dict[int, Cie] = {}
        self._first_rows: dict[int, Row] = {}
        self._rules: dict[int, FrameRule | None] = {}

    @property
    def name(self) -> str:
        """What it goes by, for people."""
        return self._name

    @property
    def fdes(self) -> Sequence[Fde]:
        """The entries of functions, by address.

        :raises BadRule: if the section cannot be read to its end.
        """
        return self._indexed().fdes

    def find(self, address: int) -> FrameRule | None:
        """See :class:`~drgn_reliable.tables.framerule.Provider`."""
        if address not in self._rules:
            if len(self._rules) >= _MOST_CACHED:
                self._rules.clear()
            self._rules[address] = self._find(address - self._bias & MASK)
        return self._rules[address]

    def _find(self, address: int) -> FrameRule | None:
        fdes = self._indexed().covering(address)
        if not fdes:
            return None
        if len(fdes) > _MOST_OVERLAPS:
            raise BadRule(f"{self._name}: more than {_MOST_OVERLAPS} entries for {address:#x}")
        first, *others = [self._rule(fde, address) for fde in fdes]
        for fde, rule in zip(fdes[1:], others, strict=True):
            if rule != first:
                raise BadRule(
                    f"{self._name}: the entries at {fde.at:#x} and {fdes[0].at:#x} do not agree "
                    f"on {address:#x}"
                )
        return first

    def _cursor(self, at: int, end: int) -> Cursor:
        return Cursor(self._data, at, end, self._order, self._name)

    def _indexed(self) -> _Index:
        if self._index is None:
            try:
                fdes = sorted(self._scan())
            except BadRule as error:
                self._index = str(error)
            else:
                reach = list(accumulate((fde.end for fde in fdes), max))
                self._index = _Index(fdes, [fde.start for fde in fdes], reach)
        if isinstance(self._index, str):
            raise BadRule(self._index)
        return self._index

    def _scan(self) -> Iterator[Fde]:
        """Read the addresses of all FDEs, of ``.debug_frame`` without looking at their CIEs."""
        data, words = self._data, self._words
        at, size = 0, len(data)
        while at < size:
            if not self._eh and at + words.size <= size:
                length, cie, start, count = words.unpack_from(data, at)
                if _SHORTEST <= length < _RESERVED and cie != DWARF64 and at + 4 + length <= size:
                    if start and count:
                        yield Fde(start, start + count, at)
                    at += 4 + length
                    continue
            header = self._header(at)
            if header.cie is not None:
                cursor = self._cursor(header.body, header.end)
                encoding = self._cie(header.cie).encoding if self._eh else ABSOLUTE
                start = cursor.pointer(encoding, self._address)
                count = cursor.unsigned(pointer_size(encoding, cursor.where()))
                if start and count:
                    yield Fde(start, start + count, at)
            at = header.end

    def _header(self, at: int) -> _Header:
        """Read the length of an entry and what it says of its CIE. One of no length, which may end
        an ``.eh_frame``, is taken for a CIE that nobody names."""
        cursor = self._cursor(at, len(self._data))
        size = 4
        length = cursor.unsigned(4)
        if length == DWARF64:
            length = cursor.unsigned(8)
            size = 4 if self._eh else 8
        elif length >= _RESERVED:
            raise BadRule(f"{cursor.where(at)}: an entry of the reserved length {length:#x}")
        if not length:
            return _Header(cursor.at, cursor.at, None)
        end = cursor.at + length
        if end > len(self._data):
            raise BadRule(f"{cursor.where(at)}: an entry that ends at {end:#x}, beyond the section")
        cursor.end = end
        place = cursor.at
        cie = cursor.unsigned(size)
        if cie == (0 if self._eh else (1 << 8 * size) - 1):
            return _Header(cursor.at, end, None)
        return _Header(cursor.at, end, place - cie if self._eh else cie)

    def _cie(self, at: int) -> Cie:
        """The CIE at an offset."""
        if at not in self._cies:
            if not 0 <= at < len(self._data):
                raise BadRule(f"{self._name}: a CIE at {at:#x}, outside the section")
            header = self._header(at)
            if header.cie is not None:
                raise BadRule(f"{self._name}: no CIE at {at:#x}")
            self._cies[at] = self._read_cie(self._cursor(header.body, header.end))
        return self._cies[at]

    def _first_row(self, at: int) -> Row:
        """The first row of functions that name the CIE at an offset."""
        if at not in self._first_rows:
            cie = self._cie(at)
            run = Run(cie, self._cursor(*cie.program), None, self._address, self._bias)
            self._first_rows[at] = run.to(0, 0)
        return self._first_rows[at]

    def _read_cie(self, cursor: Cursor) -> Cie:
        """Read what follows the header of a CIE."""
        where = cursor.where()
        version = cursor.byte()
        if version not in (1, 3, 4):
            raise BadRule(f"{where}: a CIE of version {version}")
        augmentation = cursor.string().decode("latin-1")
        if version == 4 and (cursor.byte(), cursor.byte()) != (8, 0):
            raise BadRule(f"{where}: addresses that are not of 8 bytes without a segment")
        code_align, data_align = cursor.uleb(), cursor.sleb()
        if not code_align or not data_align:
            raise BadRule(f"{where}: an alignment of 0")
        ra = cursor.byte() if version == 1 else cursor.uleb()
        known = "PLRSBG" if augmentation.startswith("z") else "SBG"
        unknown = augmentation.removeprefix("z").strip(known)
        if unknown:
            raise BadRule(f"{where}: augmentation {augmentation!r} is not supported")
        encoding = ABSOLUTE
        if augmentation.startswith("z"):
            size = cursor.uleb()
            data = self._cursor(cursor.at, cursor.at + size)
            cursor.block(size)
            encoding = _address_encoding(data, augmentation)
        if encoding != ABSOLUTE and not self._eh:
            raise BadRule(f"{where}: encoded addresses, which only .eh_frame has")
        return Cie(
            code_align,
            data_align,
            ra,
            encoding,
            augmentation.startswith("z"),
            "S" in augmentation,
            (cursor.at, cursor.end),
        )

    def _rule(self, fde: Fde, address: int) -> FrameRule:
        """What an FDE says of one of its instructions."""
        header = self._header(fde.at)
        if header.cie is None:
            raise BadRule(f"{self._name}: no FDE at {fde.at:#x}")
        cie, first = self._cie(header.cie), self._first_row(header.cie)
        cursor = self._cursor(header.body, header.end)
        cursor.block(2 * pointer_size(cie.encoding, cursor.where()))
        if cie.augmented:
            cursor.block(cursor.uleb())
        row = Run(cie, cursor, first, self._address, self._bias).to(address, fde.start)
        if row.cfa is None:
            raise BadRule(f"{cursor.where(fde.at)}: no CFA is defined for {address:#x}")
        registers = row.registers
        lost = cie.ra in registers and registers[cie.ra] is None
        return FrameRule(row.cfa, cie.ra, registers, exact=cie.exact, outermost=lost)


def _address_encoding(data: Cursor, augmentation: str) -> int:
    """Read a CIE's augmentation data; gives how addresses are encoded.

    A routine for exceptions (P) and the encoding of its data (L) are passed over. That frames are
    of signal handlers (S), return addresses are signed by Arm's key B (B) and stacks are tagged (G)
    takes no data.
    """
    encoding = ABSOLUTE
    for letter in augmentation[1:]:
        if letter == "P":
            routine = data.byte()
            if routine != OMITTED:
                data.block(pointer_size(routine, data.where()))
        elif letter == "L":
            data.byte()
        elif letter == "R":
            encoding = data.byte()
    return encoding
