# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read DWARF's basic encodings (DWARF 5, section 7.6, and the LSB's encoded pointers)."""

from __future__ import annotations

from drgn_reliable.memory import MASK
from drgn_reliable.tables.framerule import BadRule

__all__ = ("ABSOLUTE", "DWARF64", "OMITTED", "Cursor", "pointer_size")

DWARF64 = 0xFFFFFFFF
"""The length that says that a longer length follows."""

ABSOLUTE = 0x00
"""``DW_EH_PE_absptr``: an address as it is, 8 bytes."""
OMITTED = 0xFF
"""``DW_EH_PE_omit``: there is no pointer."""

_RELATIVE = 0x10
"""``DW_EH_PE_pcrel``: counted from the place of the pointer."""
_INDIRECT = 0x80
"""``DW_EH_PE_indirect``: where the address is to be had, rather than the address."""
_SIZES = {0x0: 8, 0x2: 2, 0x3: 4, 0x4: 8, 0xA: 2, 0xB: 4, 0xC: 8}
"""Bytes of a pointer by the low half of its encoding; those from 8 on are signed."""

_LONGEST_LEB = 10
"""Bytes that a LEB128 number of 64 bits takes."""


def pointer_size(encoding: int, where: str) -> int:
    """How many bytes a pointer takes.

    :raises BadRule: if its encoding (``DW_EH_PE_*``) is of no fixed size.
    """
    size = _SIZES.get(encoding & 0xF)
    if size is None or encoding & 0x70 == 0x50:  # the aligned ones are padded
        raise BadRule(f"{where}: pointer encoding {encoding:#x} is not supported")
    return size


class Cursor:
    """A place in a section, and what is read from there on.

    >>> cursor = Cursor(bytes.fromhex("7f ff7e 1234"), 0, 5, "little", ".debug_frame")
    >>> cursor.sleb(), cursor.sleb(), hex(cursor.unsigned(2)), cursor.at
    (-1, -129, '0x3412', 5)
    >>> cursor.byte()
    Traceback (most recent call last):
      ...
    drgn_reliable.tables.framerule.BadRule: .debug_frame+0x5: cut off at 0x5

    :param at, end: offsets in bytes from which and to which may be read.
    :param order: the byte order, as :meth:`int.from_bytes` calls it.
    :param name: of the section, for messages.
    """

    __slots__ = ("data", "at", "end", "order", "name")

    def __init__(self, data: bytes, at: int, end: int, order: str, name: str) -> None:
        self.data = data
        self.at = at
        self.end = min(end, len(data))
        self.order = order
        self.name = name

    def where(self, at: int | None = None) -> str:
        """The place as a message names it."""
        return f"{self.name}+{self.at if at is None else at:#x}"

    def byte(self) -> int:
        """One byte."""
        at = self.at
        if at >= self.end:
            raise BadRule(f"{self.where()}: cut off at {self.end:#x}")
        self.at = at + 1
        return self.data[at]

    def block(self, size: int) -> bytes:
        """That many bytes."""
        at = self.at
        if size > self.end - at:
            raise BadRule(f"{self.where()}: cut off at {self.end:#x}")
        self.at = at + size
        return self.data[at : at + size]

    def unsigned(self, size: int) -> int:
        """A number of that many bytes."""
        return int.from_bytes(self.block(size), "little" if self.order == "little" else "big")

    def signed(self, size: int) -> int:
        """A number of that many bytes, in two's complement."""
        value = self.unsigned(size)
        return value - (1 << 8 * size) if value >> 8 * size - 1 else value

    def uleb(self) -> int:
        """An unsigned LEB128 number."""
        return self._leb()[0]

    def sleb(self) -> int:
        """A signed LEB128 number."""
        value, bits = self._leb()
        return value - (1 << bits) if value >> bits - 1 else value

    def _leb(self) -> tuple[int, int]:
        """A number, and in how many bits it was."""
        value = bits = 0
        start = self.at
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << bits
            bits += 7
            if byte < 0x80:
                return value, bits
            if bits == 7 * _LONGEST_LEB:
                raise BadRule(f"{self.where(start)}: a number of more than 64 bits")

    def string(self) -> bytes:
        """The bytes up to the next 0, which is passed over."""
        end = self.data.find(b"\0", self.at, self.end)
        if end < 0:
            raise BadRule(f"{self.where()}: a string does not end")
        found = self.data[self.at : end]
        self.at = end + 1
        return found

    def pointer(self, encoding: int, address: int) -> int:
        """An encoded address.

        A 0 stays 0, as for the runtime of gcc: it is the address of nothing.

        :param encoding: ``DW_EH_PE_*``.
        :param address: of the section, from which relative pointers count.
        """
        at = self.at
        if encoding & (0x70 | _INDIRECT) not in (ABSOLUTE, _RELATIVE):
            raise BadRule(f"{self.where()}: pointer encoding {encoding:#x} is not supported")
        size = pointer_size(encoding, self.where())
        value = self.signed(size) if encoding & 0x8 else self.unsigned(size)
        return (value + address + at if encoding & _RELATIVE and value else value) & MASK
