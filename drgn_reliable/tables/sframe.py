# SPDX-License-Identifier: LGPL-2.1-or-later
"""SFrame sections, version 2 and 3: where the CFA, the return address and the frame pointer are.

The format is that of the SFrame specification of binutils 2.47 (version 3) with both errata of
version 2. A section is a header, an array of function entries and the functions' rows. Where a
function starts is counted from its entry itself or, without the PC-relative flag, from the
section; nothing else in a section depends on where it lies, so that its bytes may come from an
ELF file or from a dump's memory.

What as 2.44 writes is not the whole truth: version 2 cannot say that a frame is a signal
handler's, and that as loses, too, that a function has no caller and that an amd64 return address
is not at its usual place. as 2.47 writes both, in version 3.

Whether a saved return address is signed (pointer authentication) and with which key does not
matter here: whoever uses it strips it.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

from drgn_reliable.memory import MASK
from drgn_reliable.tables.framerule import CFA, BadRule, FrameRule, Place

__all__ = ("HEADER_SIZE", "SFrameSection", "section_size")

HEADER_SIZE = 28
"""Bytes of the header, without what may extend it."""

_MAGIC = 0xDEE2

_KNOWN_FLAGS = 0x7
"""1: functions are sorted, 2: all keep a frame pointer, 4: starts are PC-relative."""
_PC_RELATIVE = 0x4


class _Abi(NamedTuple):
    """What an ABI byte stands for; registers in DWARF's numbers."""

    name: str
    little_endian: bool
    sp: int
    fp: int
    ra: int
    links: bool
    """Calls leave the return address in a register."""


_ABIS = {
    1: _Abi("aarch64, big-endian", False, 31, 29, 30, True),
    2: _Abi("aarch64", True, 31, 29, 30, True),
    3: _Abi("amd64", True, 7, 6, 16, False),
    4: _Abi("s390x", False, 15, 11, 14, True),
}
_AMD64, _S390X = _ABIS[3], _ABIS[4]

_S390X_CFA_SCALE, _S390X_CFA_BIAS = 8, 160
"""An s390x row has the CFA's offset less 160 bytes (the register save area), in units of 8; of
flexible rows binutils 2.47 says so, the specification does not."""

_ADDRESS_CODES = "BHI"
"""Of a row's start by the type of its function's rows."""
_WORD_CODES = "bhi"
"""Of a row's data words by the size in its information byte."""
_WORD_MASKS = (0xFF, 0xFFFF, 0xFFFFFFFF)


class _Header(NamedTuple):
    magic: int
    version: int
    flags: int
    abi: int
    fixed_fp: int
    fixed_ra: int
    extension: int
    function_count: int
    row_count: int
    rows_size: int
    functions_at: int
    rows_at: int

    @classmethod
    def unpack(cls, data: bytes, order: str) -> _Header:
        return cls._make(struct.unpack_from(f"{order}HBBBbbB5I", data))

    def ends(self, entry_size: int) -> tuple[int, int]:
        """The offsets in the section at which the function entries and the rows end."""
        start = HEADER_SIZE + self.extension
        return (
            start + self.functions_at + self.function_count * entry_size,
            start + self.rows_at + self.rows_size,
        )


class _Function(NamedTuple):
    """One function entry. In version 3 the last three stand before its rows."""

    start: int
    size: int
    rows_at: int
    """Offset from the first function's rows."""
    at: int
    """Offset of the entry in the section."""
    row_count: int = 0
    info: int = 0
    repeat: int = 0
    """Bytes of the block that a function with masked addresses repeats."""


class _Row(NamedTuple):
    info: int
    words: tuple[int, ...]
    at: int
    """Offset in the section."""


class _Rows(NamedTuple):
    """The rows of one function."""

    starts: Sequence[int]
    rows: Sequence[_Row]
    repeat: int
    """0 unless the rows' starts are counted within a repeated block."""
    exact: bool
    """It is a signal frame."""
    flexible: bool
    outermost: bool
    """It has no rows because it has no caller."""


_ENTRIES = {2: "iIIIBBxx", 3: "qII"}
"""By version: the fields of a function entry, which begin with start, size and rows."""


def section_size(header: bytes, little_endian: bool) -> int | None:
    """How many bytes the section takes that begins with these :data:`HEADER_SIZE` bytes; None
    if they are not the header of a section of a known version."""
    found = _Header.unpack(header, "<" if little_endian else ">")
    if found.magic != _MAGIC or found.version not in _ENTRIES:
        return None
    return max(found.ends(struct.calcsize("<" + _ENTRIES[found.version])))


class SFrameSection:
    """One section; a :class:`~drgn_reliable.tables.framerule.Provider`.

    :param data: its bytes; what follows the section is ignored.
    :param address: where it lies at run time.
    :param little_endian: byte order of the dump.
    :param name: what it goes by, for people; by default "SFrame" and the version.
    :param from_entries: functions' addresses are counted from their own entries, rather than from
        the section; by default as its flags say.
    :raises BadRule: if it is malformed, or of a version, flags or an ABI that are not known.
    """

    def __init__(
        self,
        data: bytes,
        *,
        address: int,
        little_endian: bool,
        name: str | None = None,
        from_entries: bool | None = None,
    ) -> None:
        self.address = address
        self.name = name or "SFrame"
        self._data = data
        self._order = "<" if little_endian else ">"
        header = self._checked_header(little_endian)
        self.version = header.version
        self.name = name or f"SFrame {self.version}"
        self._header = header
        flagged = bool(header.flags & _PC_RELATIVE)
        self._from_entries = flagged if from_entries is None else from_entries
        self._abi = _ABIS[header.abi]
        self._rows_end = self._checked_ends()
        self._rows_at = HEADER_SIZE + header.extension + header.rows_at
        self._functions = sorted(self._read_functions())
        self._starts = [function.start for function in self._functions]
        self._cache: dict[int, _Rows | str] = {}
        self._unread = (self._rows_end - self._rows_at) // 2  # a row takes 2 bytes or more

    def find(self, address: int) -> FrameRule | None:
        """The rule for the instruction at an address; None if no function covers it.

        :raises BadRule: if what is there makes no sense.
        """
        i = bisect.bisect_right(self._starts, address) - 1
        if i < 0 or address - self._starts[i] >= self._functions[i].size:
            return None
        found = self._rows(i)
        if found.outermost:
            return self._no_caller(found.exact)
        offset = address - self._starts[i]
        offset = offset % found.repeat if found.repeat else offset
        j = bisect.bisect_right(found.starts, offset) - 1
        if j < 0:
            return None
        return self._rule(found.rows[j], found)

    def functions(self) -> Iterator[tuple[int, int]]:
        """Start and size, in bytes, of every function that the section describes."""
        return ((function.start, function.size) for function in self._functions)

    # The section --------------------------------------------------------------------------

    def _bad(self, at: int, what: str) -> NoReturn:
        raise BadRule(f"{self.name} at {self.address:#x}, byte {at:#x}: {what}")

    def _checked_header(self, little_endian: bool) -> _Header:
        if len(self._data) < HEADER_SIZE:
            self._bad(len(self._data), f"it ends within the header of {HEADER_SIZE} bytes")
        header = _Header.unpack(self._data, self._order)
        if header.magic != _MAGIC:
            self._bad(0, f"magic number {header.magic:#06x}, not {_MAGIC:#06x}")
        if header.version not in _ENTRIES:
            self._bad(2, f"version {header.version} is not supported")
        if header.flags & ~_KNOWN_FLAGS:
            self._bad(3, f"unknown flags {header.flags:#x}")
        abi = _ABIS.get(header.abi)
        if abi is None:
            self._bad(4, f"unknown ABI {header.abi}")
        if abi.little_endian != little_endian:
            self._bad(4, f"{abi.name} in a dump of the other byte order")
        return header

    def _checked_ends(self) -> int:
        """The end of the rows, once everything is known to lie in the data."""
        header = self._header
        entry_size = struct.calcsize(self._order + _ENTRIES[self.version])
        functions_end, rows_end = header.ends(entry_size)
        if functions_end > len(self._data):
            self._bad(
                8,
                f"{header.function_count} functions end at byte {functions_end:#x}, "
                f"beyond the section's {len(self._data):#x}",
            )
        if rows_end > len(self._data):
            self._bad(
                16, f"rows end at byte {rows_end:#x}, beyond the section's {len(self._data):#x}"
            )
        return rows_end

    def _read_functions(self) -> Iterator[_Function]:
        entry = struct.Struct(self._order + _ENTRIES[self.version])
        at = HEADER_SIZE + self._header.extension + self._header.functions_at
        end = at + entry.size * self._header.function_count
        for offset, size, rows_at, *more in entry.iter_unpack(self._data[at:end]):
            start = self.address + offset + (at if self._from_entries else 0) & MASK
            yield _Function(start, size, rows_at, at, *more)
            at += entry.size

    # The rows of a function ---------------------------------------------------------------

    def _rows(self, i: int) -> _Rows:
        """Those of a function, which are read once, whatever comes of it."""
        if i not in self._cache:
            try:
                self._cache[i] = self._read_rows(self._functions[i])
            except BadRule as error:
                self._cache[i] = str(error)
        found = self._cache[i]
        if isinstance(found, str):
            raise BadRule(found)
        return found

    def _read_rows(self, function: _Function) -> _Rows:
        at = self._rows_at + function.rows_at
        count, info, kind, repeat = function.row_count, function.info, 0, function.repeat
        info_at, unused = function.at + 16, 0xC0
        if self.version == 3:
            info_at, unused = at + 2, 0x40
            count, info, kind, repeat = self._unpack("HBBB", at, "the function's attributes")
            at += 5
        if info & unused:
            self._bad(info_at, f"unknown bits in the function's information {info:#04x}")
        if info & 0xF >= len(_ADDRESS_CODES):
            self._bad(info_at, f"unknown type {info & 0xF} of rows")
        if kind > 1:
            self._bad(info_at + 1, f"unknown type {kind:#x} of function")
        masked, flexible = bool(info & 0x10), kind == 1
        if masked and not repeat:
            self._bad(info_at, "masked addresses, but the repeated block has no bytes")
        starts, rows = self._unpack_rows(at, count, _ADDRESS_CODES[info & 0xF])
        outermost = self.version == 3 and not flexible and not count
        exact = self.version == 3 and bool(info & 0x80)
        return _Rows(starts, rows, repeat if masked else 0, exact, flexible, outermost)

    def _unpack_rows(self, at: int, count: int, code: str) -> tuple[list[int], list[_Row]]:
        least = struct.calcsize(f"<{code}B")
        if count * least > self._rows_end - at:
            self._bad(at, f"{count} rows do not fit in what is left of the section")
        self._unread -= count
        if self._unread < 0:
            self._bad(at, "functions share rows")
        starts: list[int] = []
        rows: list[_Row] = []
        for _ in range(count):
            start, info = self._unpack(f"{code}B", at, "a row")
            if starts and start < starts[-1]:
                self._bad(at, f"row for {start:#x} after the one for {starts[-1]:#x}")
            size = info >> 5 & 3
            if size >= len(_WORD_CODES):
                self._bad(at + least - 1, "unknown size 3 of a row's data words")
            words = f"{info >> 1 & 0xF}{_WORD_CODES[size]}"
            starts.append(start)
            rows.append(_Row(info, self._unpack(words, at + least, "a row's data words"), at))
            at += least + struct.calcsize("<" + words)
        return starts, rows

    def _unpack(self, code: str, at: int, what: str) -> tuple[int, ...]:
        """Fields among the rows."""
        if at + struct.calcsize("<" + code) > self._rows_end:
            self._bad(at, f"the rows end within {what}")
        return struct.unpack_from(self._order + code, self._data, at)

    # The meaning of a row -----------------------------------------------------------------

    def _no_caller(self, exact: bool) -> FrameRule:
        abi = self._abi
        return FrameRule(Place(abi.sp), abi.ra, {abi.ra: None}, False, exact, outermost=True)

    def _rule(self, row: _Row, function: _Rows) -> FrameRule:
        if not row.words:
            return self._no_caller(function.exact)
        abi = self._abi
        cfa, ra, fp = self._flexible(row) if function.flexible else self._default(row)
        places = {abi.ra: ra or self._usual_ra(row), abi.fp: fp or self._usual_fp()}
        return FrameRule(cfa, abi.ra, places, False, function.exact)

    def _usual_ra(self, row: _Row) -> Place:
        """Where the return address is if a row does not say."""
        if self._header.fixed_ra:
            return Place(CFA, self._header.fixed_ra, True)
        if not self._abi.links:
            self._bad(row.at, "nothing says where the return address is")
        return Place(self._abi.ra)

    def _usual_fp(self) -> Place:
        """Where the frame pointer is if a row does not say: it was not touched."""
        if self._header.fixed_fp:
            return Place(CFA, self._header.fixed_fp, True)
        return Place(self._abi.fp)

    def _default(self, row: _Row) -> tuple[Place, Place | None, Place | None]:
        """CFA, return address and frame pointer of a row of offsets."""
        abi = self._abi
        cfa, *rest = row.words
        tracked = [not self._header.fixed_ra, not self._header.fixed_fp]
        if len(rest) > sum(tracked):
            self._bad(row.at, f"{len(row.words)} data words, at most {1 + sum(tracked)} have use")
        ra = self._saved(rest.pop(0)) if tracked[0] and rest else None
        fp = self._saved(rest.pop(0)) if rest else None
        return Place(abi.sp if row.info & 1 else abi.fp, self._cfa_offset(cfa)), ra, fp

    def _saved(self, offset: int) -> Place | None:
        """Where a register was saved; None for padding."""
        if self.version == 2 and self._abi == _S390X and offset & 1:
            return Place(offset >> 1)
        return Place(CFA, offset, True) if offset else None

    def _flexible(self, row: _Row) -> tuple[Place, Place | None, Place | None]:
        """The same of a row of control words, each with an offset behind it unless it is 0."""
        mask = _WORD_MASKS[row.info >> 5 & 3]
        words = list(row.words)
        places: list[Place | None] = []
        while words and len(places) < 3:
            control = words.pop(0) & mask
            if not control:
                places.append(None)
                continue
            if control & 4 or not words:
                self._bad(row.at, f"control word {control:#x} is unknown or has no offset")
            base = control >> 3 if control & 1 else CFA
            places.append(Place(base, words.pop(0), bool(control & 2)))
        places += [None] * (3 - len(places))
        cfa, ra, fp = places
        if words:
            self._bad(row.at, f"{len(words)} data words have no use")
        if cfa is None or cfa.base == CFA:
            self._bad(row.at, "the CFA is not counted from a register")
        return cfa._replace(offset=self._cfa_offset(cfa.offset)), ra, fp

    def _cfa_offset(self, stored: int) -> int:
        return stored * _S390X_CFA_SCALE + _S390X_CFA_BIAS if self._abi == _S390X else stored
