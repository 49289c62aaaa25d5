# SPDX-License-Identifier: LGPL-2.1-or-later
"""The encodings of 32-bit DWARF 5 on 64-bit machines, as far as copying units needs them.

Numbers and layouts are those of the DWARF 5 standard and, where it leaves room to vendors, of gcc's
``include/dwarf2.def``. Offsets are in bytes into a section; byte orders are as :mod:`struct` has
them, ``<`` or ``>``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = (
    "LIST_ENTRIES",
    "LOCATION_ATTRIBUTES",
    "OPERANDS",
    "RANGE_ATTRIBUTES",
    "UNIT_HEADER",
    "Abbreviations",
    "Attribute",
    "DwarfError",
    "attributes",
    "contributions",
    "leb128",
    "read_abbreviations",
    "skip_leb128",
    "string",
    "value_end",
)


class DwarfError(ValueError):
    """Debugging information that cannot be copied, or that contradicts itself."""


class Attribute(NamedTuple):
    """An attribute of an entry, and the bytes from and to which its value reaches."""

    attribute: int
    form: int
    at: int
    end: int


Abbreviations = dict[int, list[tuple[int, int]]]
"""Code of an abbreviation to the (attribute, form) pairs of its entries."""

UNIT_HEADER = "IHBBI"
"""unit_length, version, unit_type, address_size, debug_abbrev_offset (section 7.5.1)."""
UNIT_HEADER_SIZE = struct.calcsize("<" + UNIT_HEADER)
DW_UT_COMPILE = 1

DW_AT_NAME = 0x03
DW_AT_STMT_LIST = 0x10
DW_AT_GNU_LOCVIEWS = 0x2137
RANGE_ATTRIBUTES = {0x2C: "start_scope", 0x55: "ranges"}
"""Attributes whose section offset is one into ``.debug_rnglists`` (table 7.5)."""
LOCATION_ATTRIBUTES = {
    0x02: "location",
    0x19: "string_length",
    0x2A: "return_addr",
    0x38: "data_member_location",
    0x40: "frame_base",
    0x46: "segment",
    0x48: "static_link",
    0x4A: "use_location",
    0x4D: "vtable_elem_location",
}
"""Attributes whose section offset is that of a list in ``.debug_loclists`` (table 7.5)."""

DW_FORM_STRING = 0x08
DW_FORM_STRP = 0x0E
DW_FORM_SEC_OFFSET = 0x17
DW_FORM_EXPRLOC = 0x18
DW_FORM_LINE_STRP = 0x1F
_DW_FORM_IMPLICIT_CONST = 0x21

_DWARF64 = 0xFFFFFFFF
"""The length that says that a longer length follows."""

_FIXED_FORMS = {
    0x01: 8,  # addr
    0x05: 2,  # data2
    0x06: 4,  # data4
    0x07: 8,  # data8
    0x0B: 1,  # data1
    0x0C: 1,  # flag
    DW_FORM_STRP: 4,
    0x11: 1,  # ref1
    0x12: 2,  # ref2
    0x13: 4,  # ref4
    0x14: 8,  # ref8
    DW_FORM_SEC_OFFSET: 4,
    0x19: 0,  # flag_present
    0x1E: 16,  # data16
    DW_FORM_LINE_STRP: 4,
    _DW_FORM_IMPLICIT_CONST: 0,
}
"""Bytes of the forms of fixed size (section 7.5.6)."""
_LEB_FORMS = (0x0D, 0x0F, 0x15)
"""sdata, udata, ref_udata."""
_BLOCK_FORMS = {0x03: 2, 0x04: 4, 0x0A: 1}
"""block2, block4, block1: bytes of the length that precedes the block."""
_LEB_BLOCK_FORMS = (0x09, DW_FORM_EXPRLOC)
"""block, exprloc: the length is in LEB128."""

OPERANDS: dict[int, str] = {
    0x03: "8",  # addr
    0x06: "",  # deref
    0x08: "1",  # const1u
    0x09: "1",  # const1s
    0x0A: "2",  # const2u
    0x0B: "2",  # const2s
    0x0C: "4",  # const4u
    0x0D: "4",  # const4s
    0x0E: "8",  # const8u
    0x0F: "8",  # const8s
    0x10: "u",  # constu
    0x11: "u",  # consts
    **dict.fromkeys(range(0x12, 0x30), ""),  # dup to skip: stack and arithmetic, but for
    0x15: "1",  # pick
    0x23: "u",  # plus_uconst
    0x28: "2",  # bra
    0x2F: "2",  # skip
    **dict.fromkeys(range(0x30, 0x70), ""),  # lit0 to lit31, reg0 to reg31
    **dict.fromkeys(range(0x70, 0x90), "u"),  # breg0 to breg31
    0x90: "u",  # regx
    0x91: "u",  # fbreg
    0x92: "uu",  # bregx
    0x93: "u",  # piece
    0x94: "1",  # deref_size
    0x95: "1",  # xderef_size
    0x96: "",  # nop
    0x97: "",  # push_object_address
    0x98: "2",  # call2
    0x99: "4",  # call4
    0x9A: "r",  # call_ref
    0x9B: "",  # form_tls_address
    0x9C: "",  # call_frame_cfa
    0x9D: "uu",  # bit_piece
    0x9E: "b",  # implicit_value
    0x9F: "",  # stack_value
    0xA0: "ru",  # implicit_pointer
    0xA3: "e",  # entry_value
    0xA4: "uk",  # const_type
    0xA5: "uu",  # regval_type
    0xA6: "1u",  # deref_type
    0xA7: "1u",  # xderef_type
    0xA8: "u",  # convert
    0xA9: "u",  # reinterpret
    0xE0: "",  # GNU_push_tls_address
    0xF0: "",  # GNU_uninit
    0xF2: "ru",  # GNU_implicit_pointer
    0xF3: "e",  # GNU_entry_value
    0xF4: "uk",  # GNU_const_type
    0xF5: "uu",  # GNU_regval_type
    0xF6: "1u",  # GNU_deref_type
    0xF7: "u",  # GNU_convert
    0xF9: "u",  # GNU_reinterpret
    0xFA: "4",  # GNU_parameter_ref
    0xFD: "r",  # GNU_variable_value
}
"""Operands of each operator of location expressions, a letter each (table 7.9): a number of bytes;
``u`` LEB128; ``b`` a block after its length in LEB128; ``e`` an expression likewise; ``k`` a block
after a byte of length; ``r`` an offset into ``.debug_info``."""

DW_LLE_END_OF_LIST = 0
LIST_ENTRIES = {
    1: "u",  # base_addressx
    2: "uue",  # startx_endx
    3: "uue",  # startx_length
    4: "uue",  # offset_pair
    5: "e",  # default_location
    6: "8",  # base_address
    7: "88e",  # start_end
    8: "8ue",  # start_length
    9: "uu",  # GNU_view_pair
}
"""Operands of each kind of entry of a location list, in the same letters (section 7.7.3)."""


def contributions(data: bytes, order: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each length-prefixed part of a section."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(order + "I", data, at)
        end = at + 4 + length
        if length == _DWARF64 or end > len(data):
            raise DwarfError(f"{name}: bad length {length:#x} at {at:#x} (64-bit DWARF?)")
        yield at, end
        at = end


def leb128(data: bytes, at: int) -> tuple[int, int]:
    """Decode an unsigned LEB128 number; return it and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def skip_leb128(data: bytes, at: int) -> int:
    """Return where a LEB128 number ends."""
    while data[at] >= 0x80:
        at += 1
    return at + 1


def string(data: bytes, at: int) -> bytes:
    """Return the NUL-terminated string at an offset, without its NUL."""
    end = at
    while data[end]:
        end += 1
    return data[at:end]


def read_abbreviations(data: bytes, at: int) -> tuple[Abbreviations, int]:
    """Parse the abbreviations of a unit; return them and where they end."""
    table: Abbreviations = {}
    while True:
        code, at = leb128(data, at)
        if code == 0:
            return table, at
        at = skip_leb128(data, at) + 1  # the tag, and whether there are children
        table[code], at = _read_abbreviation(data, at)


def _read_abbreviation(data: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    entries: list[tuple[int, int]] = []
    while True:
        attribute, at = leb128(data, at)
        form, at = leb128(data, at)
        if form == _DW_FORM_IMPLICIT_CONST:
            at = skip_leb128(data, at)
        if attribute == form == 0:
            return entries, at
        entries.append((attribute, form))


def attributes(
    info: bytes, start: int, end: int, abbreviations: Abbreviations, order: str
) -> Iterator[Attribute]:
    """Yield every attribute of every entry of the unit of ``.debug_info`` from start to end."""
    at = start + UNIT_HEADER_SIZE
    while at < end:
        code, at = leb128(info, at)
        if code == 0:
            continue
        for attribute, form in abbreviations[code]:
            value_at = at
            at = value_end(info, form, at, order)
            yield Attribute(attribute, form, value_at, at)


def value_end(data: bytes, form: int, at: int, order: str) -> int:
    """Return where the value of an attribute of some form ends."""
    size = _FIXED_FORMS.get(form)
    if size is not None:
        return at + size
    if form in _LEB_FORMS:
        return skip_leb128(data, at)
    if form in _LEB_BLOCK_FORMS:
        length, at = leb128(data, at)
        return at + length
    if form == DW_FORM_STRING:
        return at + len(string(data, at)) + 1
    size = _BLOCK_FORMS.get(form)
    if size is not None:
        length = int.from_bytes(data[at : at + size], "little" if order == "<" else "big")
        return at + size + length
    raise DwarfError(f"attribute form {form:#x} is not supported")
