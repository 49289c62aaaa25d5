# SPDX-License-Identifier: LGPL-2.1-or-later
"""Call frame information by hand: instructions, entries and ELF files as bytes.

>>> ins("def_cfa", 7, 8).hex(" "), ins("advance", 4).hex(), ins("offset_extended_sf", 6, -2).hex()
('0c 07 08', '44', '11067e')
>>> len(Frames().cie().fde(0x1000, 0x20).data)
40
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

Order = Literal["<", ">"]


def uleb(value: int) -> bytes:
    """Unsigned LEB128."""
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(data) + bytes((value,))


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    data = bytearray()
    while not -0x40 <= value < 0x40:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(data) + bytes((value & 0x7F,))


# DWARF 5, table 7.29, and the extensions in binutils' dwarf2.def. Of operands, u is a ULEB128
# number, s an SLEB128 one, b a block, a digit a number of that many bytes.
_INSTRUCTIONS = {
    "nop": (0x00, ""), "set_loc": (0x01, "8"), "advance1": (0x02, "1"), "advance2": (0x03, "2"),
    "advance4": (0x04, "4"), "mips_advance8": (0x1D, "8"), "offset_extended": (0x05, "uu"),
    "restore_extended": (0x06, "u"), "undefined": (0x07, "u"), "same_value": (0x08, "u"),
    "register": (0x09, "uu"), "remember": (0x0A, ""), "restore_state": (0x0B, ""),
    "def_cfa": (0x0C, "uu"), "def_cfa_register": (0x0D, "u"), "def_cfa_offset": (0x0E, "u"),
    "def_cfa_expression": (0x0F, "b"), "expression": (0x10, "ub"),
    "offset_extended_sf": (0x11, "us"), "def_cfa_sf": (0x12, "us"),
    "def_cfa_offset_sf": (0x13, "s"),
    "val_offset": (0x14, "uu"), "val_offset_sf": (0x15, "us"), "val_expression": (0x16, "ub"),
    "negate_ra_state_with_pc": (0x2C, ""), "negate_ra_state": (0x2D, ""), "args_size": (0x2E, "u"),
    "negative_offset_extended": (0x2F, "uu"),
}  # fmt: skip


def ins(name: str, *operands: int | bytes, order: Order = "<") -> bytes:
    """A call frame instruction."""
    if name in ("advance", "offset", "restore"):
        first, *rest = [operand for operand in operands if isinstance(operand, int)]
        code = {"advance": 0x40, "offset": 0x80, "restore": 0xC0}[name]
        return bytes((code | first,)) + b"".join(map(uleb, rest))
    code, kinds = _INSTRUCTIONS[name]
    data = bytes((code,))
    for kind, operand in zip(kinds, operands, strict=True):
        if isinstance(operand, bytes):
            data += uleb(len(operand)) + operand
        elif kind in "us":
            data += (uleb if kind == "u" else sleb)(operand)
        else:
            data += operand.to_bytes(int(kind), "little" if order == "<" else "big")
    return data


class Frames:
    """A section of entries, each with its place in it.

    :param eh: it is an ``.eh_frame``.
    :param wide: lengths and offsets of CIEs are of 64 bits.
    """

    def __init__(self, *, eh: bool = False, wide: bool = False, order: Order = "<") -> None:
        self.data = b""
        self._eh = eh
        self._wide = wide
        self._order = order
        self._cie = 0

    def _entry(self, cie: int | None, body: bytes) -> Frames:
        size = 8 if self._wide and not self._eh else 4
        head = 12 if self._wide else 4
        here = len(self.data) + head
        if self._eh:
            number = 0 if cie is None else here - cie
        else:
            number = (1 << 8 * size) - 1 if cie is None else cie
        body = number.to_bytes(size, "little" if self._order == "<" else "big") + body
        body += bytes(-(len(body) + head) % 8)
        length = struct.pack(self._order + "I", len(body))
        if self._wide:
            length = b"\xff" * 4 + struct.pack(self._order + "Q", len(body))
        self.data += length + body
        return self

    def cie(
        self,
        *program: bytes,
        version: int = 1,
        augmentation: str = "",
        extra: bytes = b"",
        align: tuple[int, int] = (1, -8),
        ra: int = 16,
        address: bytes = b"\x08\x00",
    ) -> Frames:
        """A CIE, which the FDEs up to the next one name; by default one as for x86_64.

        :param extra: the augmentation data.
        :param align: the code and data alignment factors.
        :param address: sizes of an address and of a segment, of version 4.
        """
        self._cie = len(self.data)
        body = bytes((version,)) + augmentation.encode() + b"\0"
        body += address if version == 4 else b""
        body += uleb(align[0]) + sleb(align[1]) + (bytes((ra,)) if version == 1 else uleb(ra))
        body += uleb(len(extra)) + extra if augmentation.startswith("z") else b""
        return self._entry(None, body + b"".join(program))

    def fde(
        self,
        start: int,
        size: int,
        *program: bytes,
        extra: bytes | None = None,
        pointer: str = "Q",
        cie: int | None = None,
    ) -> Frames:
        """An FDE.

        :param start: its address, as it is stored.
        :param extra: the augmentation data; None if there is not even a length.
        :param pointer: the format of addresses, of :mod:`struct`.
        :param cie: offset of another CIE than the last.
        """
        body = struct.pack(self._order + pointer + pointer.upper(), start, size)
        body += b"" if extra is None else uleb(len(extra)) + extra
        return self._entry(self._cie if cie is None else cie, body + b"".join(program))


class Part(NamedTuple):
    """A section of an ELF file."""

    name: str
    data: bytes
    type: int = 1
    flags: int = 0
    address: int = 0
    link: int = 0
    info: int = 0


SYMTAB, RELA, NOBITS = 2, 4, 8
ALLOC, EXECUTABLE, COMPRESSED = 2, 4, 1 << 11
REL, EXEC = 1, 2


def elf(kind: int, machine: int, *parts: Part, order: Order = "<") -> bytes:
    """An ELF file; its first section is number 1."""
    names = b"\0" + b"".join(
        part.name.encode() + b"\0" for part in (*parts, Part(".shstrtab", b""))
    )
    body = b""
    headers = [bytes(64)]
    for part in (*parts, Part(".shstrtab", names, 3)):
        name = names.index(b"\0" + part.name.encode() + b"\0") + 1
        size = {SYMTAB: 24, RELA: 24}.get(part.type, 0)
        link = part.link or (len(parts) + 1 if part.type == SYMTAB else 0)
        fields = (name, part.type, part.flags, part.address, 64 + len(body), len(part.data))
        headers.append(struct.pack(order + "IIQQQQIIQQ", *fields, link, part.info, 8, size))
        body += b"" if part.type == NOBITS else part.data + bytes(-len(part.data) % 8)
    ident = b"\x7fELF" + bytes((2, "<>".index(order) + 1, 1)) + bytes(9)
    count = len(headers)
    header = (kind, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, count, count - 1)
    return ident + struct.pack(order + "HHIQQQIHHHHHH", *header) + body + b"".join(headers)


def symbol(
    section: int, value: int = 0, order: Order = "<", *, name: int = 0, size: int = 0
) -> bytes:
    """``Elf64_Sym`` of a local one."""
    return struct.pack(order + "IBBHQQ", name, 3, 0, section, value, size)


def rela(place: int, number: int, kind: int, addend: int = 0, order: Order = "<") -> bytes:
    """``Elf64_Rela`` against a symbol of some number."""
    return struct.pack(order + "QQq", place, number << 32 | kind, addend)
