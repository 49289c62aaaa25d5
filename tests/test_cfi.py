# SPDX-License-Identifier: LGPL-2.1-or-later
"""DWARF call frame information encoded by hand; :mod:`tests.framebytes` is the encoder."""

from __future__ import annotations

import io
import random
import struct
import time
from collections.abc import Callable

import pytest
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from drgn_reliable.memory import MASK
from drgn_reliable.tables.cfi import CfiSection
from drgn_reliable.tables.dwarfdata import Cursor
from drgn_reliable.tables.dwarfexpr import decode
from drgn_reliable.tables.framerule import CFA, BadRule, Expression, FrameRule, Place, Unknown
from tests.framebytes import Frames, ins, sleb, uleb

NAMES = {6: "rbp", 7: "rsp", 16: "rip"}
START = 0xFFFFFFFF81000000
ENTRY = (ins("def_cfa", 7, 8), ins("offset", 16, 1))
"""What x86_64's CIEs say: the return address has been pushed."""


def section(
    frames: Frames | bytes,
    *,
    eh: bool = False,
    address: int = 0,
    bias: int = 0,
    little: bool = True,
) -> CfiSection:
    data = frames.data if isinstance(frames, Frames) else frames
    return CfiSection(
        data, address=address, eh=eh, little_endian=little, name=".debug_frame", bias=bias
    )


def found(frames: CfiSection, address: int = START) -> FrameRule:
    rule = frames.find(address)
    assert rule is not None
    return rule


# Programs ---------------------------------------------------------------------------------------

REMEMBERED = (
    ins("advance", 1), ins("remember"), ins("def_cfa_offset", 64), ins("offset", 6, 2),
    ins("advance", 1), ins("restore_state"),
)  # fmt: skip

PROGRAMS = [
    pytest.param((), 0, "cfa = rsp + 8, rip = *(cfa - 8)", id="no program: the first row"),
    pytest.param(
        (ins("advance", 4), ins("def_cfa_offset", 16)), 3, "cfa = rsp + 8, rip = *(cfa - 8)",
        id="the byte before an advance is still in the old row",
    ),
    pytest.param(
        (ins("advance", 4), ins("def_cfa_offset", 16)), 4, "cfa = rsp + 16, rip = *(cfa - 8)",
        id="the byte that an advance leads to is in the new row",
    ),
    pytest.param(
        (ins("advance1", 0xF0), ins("def_cfa_offset", 16)), 0xF0,
        "cfa = rsp + 16, rip = *(cfa - 8)", id="advance_loc1 is unsigned",
    ),
    pytest.param(
        (ins("advance2", 0x100), ins("def_cfa_offset", 16)), 0x100,
        "cfa = rsp + 16, rip = *(cfa - 8)", id="advance_loc2",
    ),
    pytest.param(
        (ins("advance4", 0x100), ins("def_cfa_offset", 16)), 0xFF,
        "cfa = rsp + 8, rip = *(cfa - 8)", id="advance_loc4",
    ),
    pytest.param(
        (ins("mips_advance8", 0x100), ins("def_cfa_offset", 16)), 0x100,
        "cfa = rsp + 16, rip = *(cfa - 8)", id="MIPS_advance_loc8",
    ),
    pytest.param(
        (ins("set_loc", START + 8), ins("def_cfa_offset", 16)), 8,
        "cfa = rsp + 16, rip = *(cfa - 8)", id="set_loc is an address",
    ),
    pytest.param(
        (ins("def_cfa", 6, 16),), 0, "cfa = rbp + 16, rip = *(cfa - 8)", id="def_cfa",
    ),
    pytest.param(
        (ins("def_cfa_sf", 6, -2),), 0, "cfa = rbp + 16, rip = *(cfa - 8)",
        id="def_cfa_sf counts in data units",
    ),
    pytest.param(
        (ins("def_cfa_register", 6),), 0, "cfa = rbp + 8, rip = *(cfa - 8)",
        id="def_cfa_register keeps the offset",
    ),
    pytest.param(
        (ins("def_cfa_offset", 300),), 0, "cfa = rsp + 300, rip = *(cfa - 8)",
        id="def_cfa_offset is in bytes",
    ),
    pytest.param(
        (ins("def_cfa_offset_sf", 3),), 0, "cfa = rsp - 24, rip = *(cfa - 8)",
        id="def_cfa_offset_sf counts in data units",
    ),
    pytest.param(
        (ins("def_cfa_expression", b"\x76\x78\x06"),), 0, "cfa = *(rbp - 8), rip = *(cfa - 8)",
        id="def_cfa_expression of a realigned stack is a place",
    ),
    pytest.param(
        (ins("def_cfa_expression", b"\x76\x00\x38\x22"),), 0,
        "cfa = (r6, const 0x8, plus), rip = *(cfa - 8)", id="def_cfa_expression of more",
    ),
    pytest.param(
        (ins("offset", 6, 2), ins("offset_extended", 70, 3)), 0,
        "cfa = rsp + 8, rbp = *(cfa - 16), rip = *(cfa - 8), r70 = *(cfa - 24)",
        id="offset and offset_extended count in data units",
    ),
    pytest.param(
        (ins("offset_extended_sf", 6, -2), ins("negative_offset_extended", 3, 2)), 0,
        "cfa = rsp + 8, r3 = *(cfa + 16), rbp = *(cfa + 16), rip = *(cfa - 8)",
        id="offset_extended_sf and GNU_negative_offset_extended",
    ),
    pytest.param(
        (ins("val_offset", 6, 2), ins("val_offset_sf", 3, -2)), 0,
        "cfa = rsp + 8, r3 = cfa + 16, rbp = cfa - 16, rip = *(cfa - 8)",
        id="val_offset gives the address itself",
    ),
    pytest.param(
        (ins("expression", 6, b"\x77\x10"), ins("val_expression", 3, b"\x77\x10")), 0,
        "cfa = rsp + 8, r3 = rsp + 16, rbp = *(rsp + 16), rip = *(cfa - 8)",
        id="expression is where the value is, val_expression the value",
    ),
    pytest.param(
        (ins("expression", 6, b"\x23\x08"), ins("val_expression", 3, b"\x38\x1c")), 0,
        "cfa = rsp + 8, r3 = (const 0x8, minus), rbp = *(cfa + 8), rip = *(cfa - 8)",
        id="a register's expression starts with the CFA on its stack",
    ),
    pytest.param(
        (ins("register", 16, 6),), 0, "cfa = rsp + 8, rip = rbp",
        id="register: kept in another one",
    ),
    pytest.param(
        (ins("same_value", 6), ins("undefined", 3)), 0,
        "cfa = rsp + 8, r3 = lost, rbp = rbp, rip = *(cfa - 8)", id="same_value and undefined",
    ),
    pytest.param((ins("undefined", 16),), 0, "no caller", id="no return address: the outermost"),
    pytest.param(
        (ins("offset", 16, 5), ins("offset", 6, 2), ins("restore", 16), ins("restore_extended", 6)),
        0, "cfa = rsp + 8, rip = *(cfa - 8)",
        id="restore gives the first row's rule back, or none",
    ),
    pytest.param(
        REMEMBERED, 1, "cfa = rsp + 64, rbp = *(cfa - 16), rip = *(cfa - 8)",
        id="remember_state keeps the row as it is",
    ),
    pytest.param(
        REMEMBERED, 2, "cfa = rsp + 8, rip = *(cfa - 8)",
        id="restore_state gives back the CFA, too",
    ),
    pytest.param(
        (ins("args_size", 300), ins("negate_ra_state"), ins("negate_ra_state_with_pc"), ins("nop")),
        0, "cfa = rsp + 8, rip = *(cfa - 8)", id="what says nothing of where registers are",
    ),
    pytest.param(
        (ins("advance", 1), b"\x3f"), 0, "cfa = rsp + 8, rip = *(cfa - 8)",
        id="what follows the row is not looked at",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("program", "offset", "formula"), PROGRAMS)
def test_programs(program: tuple[bytes, ...], offset: int, formula: str) -> None:
    """The row for an instruction is as DWARF says."""
    frames = section(Frames().cie(*ENTRY).fde(START, 0x200, *program))
    assert found(frames, START + offset).formula(NAMES) == formula


BAD_PROGRAMS = [
    pytest.param((b"\x3f",), "instruction 0x3f is not supported", id="an unknown instruction"),
    pytest.param((bytes(6), b"\x0e\x80"), "cut off", id="a number that does not end"),
    pytest.param((b"\x86" + b"\x80" * 10,), "more than 64 bits", id="a number without end"),
    pytest.param((bytes(6), b"\x04\x01"), "cut off", id="an operand cut off"),
    pytest.param((ins("restore_state"),), "no row was remembered", id="nothing to restore"),
    pytest.param((ins("remember"),) * 65, "rows are remembered", id="too much to remember"),
    pytest.param((ins("set_loc", START - 1),), "back to", id="set_loc to before the function"),
    pytest.param((ins("same_value", 1 << 40),), "register 1099", id="no such register"),
    pytest.param((b"\x10\x06\x7f",), "cut off", id="an expression beyond the entry"),
    pytest.param((ins("nop"),) * 20000, "more than 16384 instructions", id="endless padding"),
    pytest.param((ins("expression", 6, b""),), "empty expression", id="an empty expression"),
    pytest.param(
        (ins("def_cfa_expression", b"\x76\x00\x38\x22"), ins("def_cfa_offset", 8)),
        "not a register and an offset", id="the offset of a computed CFA",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("program", "message"), BAD_PROGRAMS)
def test_bad_programs(program: tuple[bytes, ...], message: str) -> None:
    """A program that makes no sense is refused, and says where; the function before it is not."""
    frames = Frames().cie(*ENTRY).fde(START, 16).fde(START + 16, 16, *program)
    with pytest.raises(BadRule, match=rf"^\.debug_frame\+0x[0-9a-f]+: .*{message}"):
        section(frames).find(START + 31)
    assert section(frames).find(START + 15)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ((ins("advance", 1),), "an advance before the first row"),
        ((ins("restore", 6),), "a register restored in the first row"),
        ((ins("def_cfa_offset", 8),), "not a register and an offset"),
        ((), "no CFA is defined"),
    ],
)
def test_bad_first_rows(program: tuple[bytes, ...], message: str) -> None:
    """A CIE has to define the CFA, and has no row before its own."""
    with pytest.raises(BadRule, match=message):
        section(Frames().cie(*program).fde(START, 16)).find(START)


def test_a_first_row_that_only_names_the_register() -> None:
    """gas's for loongarch: the CFA is the stack pointer."""
    frames = Frames().cie(ins("def_cfa_register", 3), ra=1).fde(START, 16)
    assert found(section(frames)).cfa == Place(3)


def test_code_units() -> None:
    """Advances count in code units, 4 bytes on arm64."""
    program = (ins("advance", 2), ins("def_cfa_offset", 16), ins("offset", 29, 2))
    frames = section(
        Frames().cie(ins("def_cfa", 31, 0), align=(4, -8), ra=30).fde(START, 16, *program)
    )
    assert found(frames, START + 7).registers == {}
    assert found(frames, START + 8).formula({}) == "cfa = r31 + 16, r29 = *(cfa - 16)"


# Expressions ------------------------------------------------------------------------------------

REGISTERS = {CFA: 0x8000, 6: 0x1000, 7: MASK - 7, 130: 5}
MEMORY = {0x1008: 0xABCD, 0x8000: 0x4444}


def register(number: int) -> int:
    if number not in REGISTERS:
        raise Unknown(f"register {number}")
    return REGISTERS[number]


def read(address: int) -> int:
    if address not in MEMORY:
        raise Unknown("memory", address)
    return MEMORY[address]


def decoded(program: bytes, *, initial: bool = False, bias: int = 0) -> Place | Expression:
    """An expression as it stands in a section that has something before and after it."""
    data = b"\xff" + program + b"\xff"
    cursor = Cursor(data, 1, 1 + len(program), "little", "test")
    return decode(cursor, bias=bias, initial=initial, deref=False)


def lit(*values: int) -> bytes:
    return b"".join(b"\x0f" + struct.pack("<q", value) for value in values)


VALUES = [
    pytest.param(b"\x4f\x96", 31, id="lit31, nop"),
    pytest.param(b"\x08\xff", 255, id="const1u"),
    pytest.param(b"\x09\xff", MASK, id="const1s"),
    pytest.param(b"\x0a\xfe\xff", 0xFFFE, id="const2u"),
    pytest.param(b"\x0b\xfe\xff", MASK - 1, id="const2s"),
    pytest.param(b"\x0c\xff\xff\xff\xff", 0xFFFFFFFF, id="const4u"),
    pytest.param(b"\x0d\xff\xff\xff\xff", MASK, id="const4s"),
    pytest.param(b"\x0e" + b"\xff" * 8, MASK, id="const8u"),
    pytest.param(b"\x10" + uleb(300), 300, id="constu"),
    pytest.param(b"\x11" + sleb(-300), MASK - 299, id="consts"),
    pytest.param(b"\x76\x00\x31\x22", 0x1001, id="breg6, lit1, plus"),
    pytest.param(b"\x92\x82\x01\x03\x30\x22", 8, id="bregx 130 +3"),
    pytest.param(b"\x77\x10\x30\x22", 8, id="addresses wrap"),
    pytest.param(b"\x76\x08\x06\x12\x1c", 0, id="deref, dup, minus"),
    pytest.param(lit(7, -2) + b"\x1b", MASK - 2, id="div rounds towards zero"),
    pytest.param(lit(-7, 2) + b"\x1b", MASK - 2, id="div of a negative number, too"),
    pytest.param(lit(-1, 10) + b"\x1d", 5, id="mod is unsigned"),
    pytest.param(lit(3, -5) + b"\x1e", MASK - 14, id="mul"),
    pytest.param(lit(12, 10) + b"\x1a", 8, id="and"),
    pytest.param(lit(12, 10) + b"\x21", 14, id="or"),
    pytest.param(lit(12, 10) + b"\x27", 6, id="xor"),
    pytest.param(lit(3, 63) + b"\x24", 1 << 63, id="shl"),
    pytest.param(lit(3, 64) + b"\x24", 0, id="shl by all bits"),
    pytest.param(lit(-1, 60) + b"\x25", 15, id="shr fills with zeros"),
    pytest.param(lit(-16, 2) + b"\x26", MASK - 3, id="shra keeps the sign"),
    pytest.param(lit(-16, -1) + b"\x26", MASK, id="shra by more than all bits"),
    pytest.param(lit(-5) + b"\x19", 5, id="abs"),
    pytest.param(lit(5) + b"\x1f", MASK - 4, id="neg"),
    pytest.param(lit(0) + b"\x20", MASK, id="not"),
    *(
        pytest.param(lit(a, b) + bytes((code,)), value, id=f"{a} {name} {b}")
        for name, code, less, equal, greater in (
            ("eq", 0x29, 0, 1, 0), ("ge", 0x2A, 0, 1, 1), ("gt", 0x2B, 0, 0, 1),
            ("le", 0x2C, 1, 1, 0), ("lt", 0x2D, 1, 0, 0), ("ne", 0x2E, 1, 0, 1),
        )
        for a, b, value in ((-1, 1, less), (2, 2, equal), (3, -3, greater))
    ),
    pytest.param(lit(1, 2) + b"\x13", 1, id="drop"),
    pytest.param(lit(1, 2) + b"\x14", 1, id="over"),
    pytest.param(lit(1, 2, 3) + b"\x15\x02", 1, id="pick 2"),
    pytest.param(lit(10, 3) + b"\x16\x1c", MASK - 6, id="swap, minus"),
    pytest.param(lit(1, 2, 3) + b"\x17", 2, id="rot: the second becomes the top"),
    pytest.param(lit(1, 2, 3) + b"\x17\x13", 1, id="rot, drop: the third becomes the second"),
    pytest.param(lit(1, 2, 3) + b"\x17\x13\x13", 3, id="rot, drop, drop: the top the third"),
    pytest.param(lit(1) + b"\x28\x01\x00\x35\x36", 6, id="bra over an operation"),
    pytest.param(lit(1, 0) + b"\x28\x01\x00\x35\x36\x22", 11, id="bra of 0 goes on"),
    pytest.param(b"\x33\x2f\x01\x00\x34", 3, id="skip to the end"),
    pytest.param(
        b"\x35" + b"\x31\x1c\x12\x30\x2b" + b"\x28\xf8\xff", 0, id="a loop that counts down",
    ),
    # x86_64's procedure linkage table, as ld writes it.
    pytest.param(
        b"\x77\x08\x38\x3f\x1a\x3b\x2a\x33\x24\x22", 0, id="breg7 +8, (8 & 15 >= 11) << 3, plus",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("program", "value"), VALUES)
def test_expressions(program: bytes, value: int) -> None:
    """An expression computes what DWARF says, in 64 bits."""
    expression = decoded(program)
    assert isinstance(expression, Expression)
    assert expression.evaluate(register, read) == value


PLACES = [
    pytest.param(b"\x76\x08", False, Place(6, 8), id="breg6 +8"),
    pytest.param(b"\x76\x08\x06", False, Place(6, 8, True), id="breg6 +8, deref"),
    pytest.param(
        b"\x76\x08\x23\x10\x06\x23\x05", False, Place(6, 24, True, 5), id="offsets add up"
    ),
    pytest.param(b"\x23\x10", True, Place(CFA, 16), id="from the CFA"),
    pytest.param(b"\x9c\x06", True, Place(CFA, 0, True), id="call_frame_cfa"),
    pytest.param(b"\x96\x92\x82\x01\x7f", True, Place(130, -1), id="the CFA is not used"),
]


@pytest.mark.parametrize(("program", "initial", "place"), PLACES)
def test_expressions_that_are_places(program: bytes, initial: bool, place: Place) -> None:
    """What a place can say is said by a place."""
    assert decoded(program, initial=initial) == place


def test_two_words_deep_is_no_place() -> None:
    """A place reads memory once."""
    expression = decoded(b"\x06\x38\x22", initial=True)
    assert isinstance(expression, Expression)
    assert expression.evaluate(register, read) == 0x444C
    assert isinstance(decoded(b"\x76\x00\x06\x06"), Expression)


def test_addresses_move_with_the_kernel() -> None:
    """DW_OP_addr is an address that was linked."""
    expression = decoded(b"\x03" + struct.pack("<Q", 0x1000), bias=8)
    assert isinstance(expression, Expression)
    assert expression.formula({}) == "(const 0x1008)"
    assert expression.evaluate(register, read) == 0x1008


@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param(b"\x50", "operation 0x50 is not supported", id="reg0, a location"),
        pytest.param(b"\x94\x04", "operation 0x94", id="deref_size"),
        pytest.param(b"\x9c", "operation 0x9c", id="call_frame_cfa in the CFA's own"),
        pytest.param(b"\x76", "cut off", id="an operand cut off"),
        pytest.param(b"\x2f\x01\x00\x08\x05", "leads to no operation", id="a jump into an operand"),
        pytest.param(b"\x2f\xff\x7f", "leads to no operation", id="a jump beyond the end"),
        pytest.param(b"\x2f\xf0\xff", "leads to no operation", id="a jump before the start"),
        pytest.param(b"\x96" * 257, "over 256 operations", id="more than anybody writes"),
    ],
)
def test_expressions_that_are_refused(program: bytes, message: str) -> None:
    with pytest.raises(BadRule, match=message):
        decoded(program)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param(b"\x22", "runs empty", id="plus of nothing"),
        pytest.param(b"\x31\x22", "runs empty", id="plus of one"),
        pytest.param(b"\x31\x15\x01", "runs empty", id="pick of what is not there"),
        pytest.param(b"\x31\x16", "runs empty", id="swap of one"),
        pytest.param(b"\x31\x32\x17", "runs empty", id="rot of two"),
        pytest.param(b"\x31\x13", "runs empty", id="no value"),
        pytest.param(b"\x31\x30\x1b", "division by 0", id="div"),
        pytest.param(b"\x31\x30\x1d", "division by 0", id="mod"),
        pytest.param(b"\x2f\xfd\xff", "does not end", id="a loop"),
        pytest.param(b"\x31\x2f\xfc\xff", "does not end", id="a loop that fills the stack"),
        pytest.param(b"\x75\x00\x31\x22", "register 5", id="a register that is not known"),
        pytest.param(b"\x31\x06", "memory", id="memory that is not to be had"),
    ],
)
def test_expressions_that_fail(program: bytes, message: str) -> None:
    """What only shows while it is computed leaves the value unknown."""
    expression = decoded(program)
    assert isinstance(expression, Expression)
    with pytest.raises(Unknown, match=message):
        expression.evaluate(register, read)


# Entries ----------------------------------------------------------------------------------------

CIES = [
    pytest.param(Frames().cie(*ENTRY), id="version 1"),
    pytest.param(Frames().cie(*ENTRY, version=3), id="version 3"),
    pytest.param(Frames().cie(*ENTRY, version=4), id="version 4"),
    pytest.param(Frames(wide=True).cie(*ENTRY), id="64-bit DWARF"),
    pytest.param(Frames(wide=True).cie(*ENTRY, version=4), id="64-bit DWARF, version 4"),
    pytest.param(Frames().cie(*ENTRY, augmentation="B"), id="return addresses signed by key B"),
    pytest.param(Frames().cie(*ENTRY, augmentation="G"), id="tagged stacks"),
]


@pytest.mark.parametrize("frames", CIES)
def test_forms_of_cies(frames: Frames) -> None:
    rule = found(section(frames.fde(START, 16, ins("def_cfa_offset", 24))))
    assert rule == FrameRule(Place(7, 24), 16, {16: Place(CFA, -8, True)})


def test_column_of_the_return_address() -> None:
    """Up to version 1 it is a byte, later a number of any size."""
    assert found(section(Frames().cie(*ENTRY, ra=200).fde(START, 16))).ra == 200
    assert found(section(Frames().cie(*ENTRY, ra=200, version=3).fde(START, 16))).ra == 200


def test_big_endian() -> None:
    frames = Frames(order=">").cie(ins("def_cfa", 15, 160), ra=14)
    frames.fde(START, 0x200, ins("advance2", 0x102, order=">"), ins("offset", 14, 6))
    rule = found(section(frames, little=False), START + 0x102)
    assert rule.formula({}) == "cfa = r15 + 160, r14 = *(cfa - 48)"


def test_signal_frames() -> None:
    """Augmentation S: the caller was interrupted."""
    assert found(section(Frames().cie(*ENTRY, augmentation="S").fde(START, 16))).exact
    frames = Frames(eh=True).cie(*ENTRY, augmentation="zRS", extra=b"\0")
    assert found(section(frames.fde(START, 16, extra=b""), eh=True)).exact


PLACE = 0x1000
"""Address of the .eh_frame; its FDE's address is 32 bytes into it."""
ENCODINGS = [
    pytest.param(0x00, "Q", START, START, id="absptr"),
    pytest.param(0x02, "H", 0xF000, 0xF000, id="udata2"),
    pytest.param(0x03, "I", 0x81000000, 0x81000000, id="udata4"),
    pytest.param(0x04, "Q", START, START, id="udata8"),
    pytest.param(0x0A, "h", -0x1000, MASK - 0xFFF, id="sdata2"),
    pytest.param(0x0B, "i", -0x7F000000, START, id="sdata4"),
    pytest.param(0x0C, "q", -0x7F000000, START, id="sdata8"),
    pytest.param(0x1B, "i", -0x1000, 0x20, id="pcrel sdata4"),
    pytest.param(0x10, "Q", START - PLACE - 0x20, START, id="pcrel absptr"),
    pytest.param(0x1C, "q", -0x2000, MASK - 0xFDF, id="pcrel sdata8 below address 0"),
]


@pytest.mark.parametrize(("encoding", "pointer", "stored", "start"), ENCODINGS)
def test_encoded_addresses(encoding: int, pointer: str, stored: int, start: int) -> None:
    """Of an .eh_frame; what is between the addresses and the program is passed over."""
    frames = Frames(eh=True).cie(*ENTRY, augmentation="zR", extra=bytes((encoding,)))
    frames.fde(stored, 16, ins("def_cfa_offset", 24), extra=b"abc", pointer=pointer)
    table = section(frames, eh=True, address=PLACE)
    assert [fde[:2] for fde in table.fdes] == [(start, start + 16)]
    assert found(table, start + 15).cfa == Place(7, 24)


def test_augmentations_that_are_passed_over() -> None:
    """A routine for exceptions, padded to any of its encodings, and the encoding of its data."""
    for routine in (b"\x9b1234", b"\x0012345678", b"\x031234", b"\xff"):
        extra = routine + b"\x1b" + b"\x03"
        frames = Frames(eh=True).cie(*ENTRY, augmentation="zPLRB", extra=extra)
        frames.fde(0x81000000, 16, extra=b"1234", pointer="I")
        assert found(section(frames, eh=True), 0x81000000).cfa == Place(7, 8)


def test_64_bit_eh_frame() -> None:
    """Its lengths are of 64 bits, its CIE pointers stay of 32 (LSB, 10.6.1)."""
    frames = Frames(eh=True, wide=True).cie(*ENTRY, augmentation="zR", extra=b"\0")
    assert found(section(frames.fde(START, 16, extra=b""), eh=True)).cfa == Place(7, 8)


REFUSED = [
    pytest.param(Frames().cie(version=2), "version 2", id="a version that never was"),
    pytest.param(Frames().cie(version=4, address=b"\4\0"), "8 bytes", id="32-bit addresses"),
    pytest.param(Frames().cie(version=4, address=b"\x08\2"), "segment", id="segments"),
    pytest.param(Frames().cie(align=(0, -8)), "alignment of 0", id="code units of no bytes"),
    pytest.param(Frames().cie(align=(1, 0)), "alignment of 0", id="data units of no bytes"),
    pytest.param(Frames().cie(augmentation="eh"), "'eh' is not supported", id="gcc 2's"),
    pytest.param(Frames().cie(augmentation="zX"), "'zX' is not supported", id="an unknown letter"),
    pytest.param(Frames().cie(augmentation="R"), "'R' is not supported", id="data without a size"),
    pytest.param(
        Frames().cie(augmentation="zR", extra=b"\x1b"), "only .eh_frame", id="encoded addresses",
    ),
    pytest.param(Frames().cie(augmentation="zR"), "cut off", id="too little augmentation data"),
]  # fmt: skip


@pytest.mark.parametrize(("frames", "message"), REFUSED)
def test_forms_that_are_refused(frames: Frames, message: str) -> None:
    """Only functions with such a CIE have no rules; what is theirs is known all the same."""
    table = section(frames.fde(START, 16).cie(*ENTRY).fde(START + 16, 16))
    with pytest.raises(BadRule, match=message):
        table.find(START)
    assert table.find(START + 16)
    assert table.find(START - 1) is None


@pytest.mark.parametrize("encoding", [0x01, 0x09, 0x05, 0x2B, 0x3B, 0x4B, 0x50, 0x9B, 0xFF])
def test_encodings_that_are_refused(encoding: int) -> None:
    """Which functions an entry is for is then not known, so that none of the section has rules."""
    frames = Frames(eh=True).cie(*ENTRY, augmentation="zR", extra=b"\0").fde(START, 16, extra=b"")
    frames.cie(augmentation="zR", extra=bytes((encoding,))).fde(START, 16, extra=b"")
    for _ in range(2):
        with pytest.raises(BadRule, match=f"encoding {encoding:#x}"):
            section(frames, eh=True).find(START)


# The section ------------------------------------------------------------------------------------


def test_functions_are_found_by_address() -> None:
    """In whatever order they are; between them, before and after there is nothing."""
    frames = Frames().cie(*ENTRY)
    for i in (3, 1, 2):
        frames.fde(START + 0x100 * i, 0x80, ins("def_cfa_offset", i))
    table = section(frames)
    offsets = [
        rule and rule.cfa
        for rule in (
            table.find(START + at) for at in (0xFF, 0x100, 0x17F, 0x180, 0x200, 0x37F, 0x380)
        )
    ]
    places = [Place(7, i) for i in (1, 2, 3)]
    assert offsets == [None, places[0], places[0], None, places[1], places[2], None]
    assert [fde.start for fde in table.fdes] == [START + 0x100 * i for i in (1, 2, 3)]


def test_what_was_discarded_is_passed_over() -> None:
    """Functions at 0, where linkers leave those they removed, and such of no bytes."""
    frames = Frames().cie(*ENTRY).fde(0, 0x80).fde(START, 0)
    assert section(frames).fdes == []
    assert section(frames).find(0x40) is None
    # A relative address of 0 is no address, even though the place of the entry is one.
    frames = Frames(eh=True).cie(*ENTRY, augmentation="zR", extra=b"\x1b")
    frames.fde(0, 0x80, extra=b"", pointer="i")
    assert section(frames, eh=True, address=0x1000).fdes == []


def test_bias() -> None:
    """The kernel is elsewhere than it was linked, by KASLR."""
    program = (ins("advance", 8), ins("def_cfa_offset", 16))
    frames = section(Frames().cie(*ENTRY).fde(START, 16, *program), bias=0x1C00000)
    assert frames.find(START) is None
    assert found(frames, START + 0x1C00000 + 7).cfa == Place(7, 8)
    assert found(frames, START + 0x1C00000 + 8).cfa == Place(7, 16)
    below = section(Frames().cie(*ENTRY).fde(START, 16), bias=-START)
    assert found(below, 15).cfa == Place(7, 8)


def test_entries_that_agree() -> None:
    """The same function twice, and one within another, are no harm where they say the same."""
    wide = (ins("advance", 16), ins("def_cfa_offset", 16))
    frames = Frames().cie(*ENTRY).fde(START, 64, *wide).fde(START, 64, *wide)
    table = section(frames.fde(START + 16, 16, ins("def_cfa_offset", 16)))
    assert found(table, START + 16).cfa == Place(7, 16)
    assert found(table, START + 63).cfa == Place(7, 16)


def test_entries_that_disagree() -> None:
    """Neither is believed; where only one of them is, it is."""
    frames = Frames().cie(*ENTRY).fde(START, 64).fde(START + 16, 16, ins("def_cfa_offset", 16))
    table = section(frames)
    with pytest.raises(BadRule, match="the entries at 0x18 and 0x30 do not agree"):
        table.find(START + 16)
    assert found(table, START + 15) == found(table, START + 32)


def test_many_entries_for_one_address() -> None:
    """Nobody writes such a table, and holding all against each other would take long."""
    frames = Frames().cie(*ENTRY)
    for _ in range(9):
        frames.fde(START, 16)
    with pytest.raises(BadRule, match="more than 8 entries"):
        section(frames).find(START)


def test_gaps() -> None:
    """Lengths of 0, which end an .eh_frame, do not end it here: more of it may follow."""
    frames = Frames(eh=True).cie(*ENTRY, augmentation="zR", extra=b"\0")
    frames.data += bytes(4)
    frames.fde(START, 16, extra=b"")
    frames.data += bytes(4)
    assert len(section(frames, eh=True).fdes) == 1
    assert section(b"").find(START) is None


GOOD = Frames().cie(*ENTRY).fde(START, 16).data
BROKEN = [
    pytest.param(GOOD + b"\1", "cut off", id="less than a length"),
    pytest.param(GOOD + b"\xff\xff\xff\xff\1", "cut off", id="less than a long length"),
    pytest.param(GOOD + b"\xf0\xff\xff\xff", "reserved length", id="a reserved length"),
    pytest.param(GOOD + b"\x40\0\0\0" + bytes(20), "beyond the section", id="cut off"),
    pytest.param(GOOD + b"\x02\0\0\0" + bytes(20), "cut off", id="an entry too short to be one"),
    pytest.param(
        GOOD + b"\xff\xff\xff\xff" + b"\xff" * 8, "beyond the section", id="longer than memory",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BROKEN)
def test_a_broken_section_has_no_rules(data: bytes, message: str) -> None:
    """What cannot be read might contradict what can."""
    table = section(data)
    for _ in range(2):
        with pytest.raises(BadRule, match=message):
            table.find(START)
    with pytest.raises(BadRule, match=message):
        _ = table.fdes


@pytest.mark.parametrize(
    ("cie", "message"),
    [(0x18, "no CIE at 0x18"), (0x1000, "outside the section"), (8, "beyond the section")],
)
def test_fdes_that_name_no_cie(cie: int, message: str) -> None:
    frames = Frames().cie(*ENTRY).fde(START, 16).fde(START + 16, 16, cie=cie)
    assert section(frames).find(START)
    with pytest.raises(BadRule, match=message):
        section(frames).find(START + 16)


def test_sixty_thousand_functions() -> None:
    """A kernel's table is searched within seconds, even where machines are slow."""
    functions = [struct.pack("<IIQQ", 20, 0, START + 16 * i, 16) for i in range(60_000)]
    data = Frames().cie(*ENTRY).data + b"".join(functions)
    begin = time.monotonic()
    table = section(data)
    assert found(table, START + 16 * 59_999).cfa == Place(7, 8)
    assert len(table.fdes) == 60_000
    assert time.monotonic() - begin < 10


# Against another decoder, and damaged -----------------------------------------------------------


def random_program(rng: random.Random, *, signed_cfa: bool) -> list[bytes]:
    """Instructions that pyelftools knows, in an order that makes sense.

    :param signed_cfa: use def_cfa_sf, which pyelftools scales by code units (up to 0.33).
    """
    program, depth = [], 0
    for _ in range(rng.randrange(30)):
        number, small = rng.choice((3, 6, 12, 16, 70)), rng.randrange(40)
        choices = [
            ins("advance", rng.randrange(1, 5)),
            ins("advance1", rng.randrange(1, 20)),
            ins("advance2", rng.randrange(1, 20)),
            ins("advance4", rng.randrange(1, 20)),
            ins("def_cfa", number, 8 * small),
            ins("def_cfa_register", number),
            ins("def_cfa_offset", 100 * small),
            ins("def_cfa_offset_sf", small - 20),
            ins("def_cfa_sf" if signed_cfa else "def_cfa", number, small),
            ins("offset", number & 0x3F, 10 * small),
            ins("offset_extended", number, 10 * small),
            ins("offset_extended_sf", number, small - 20),
            ins("val_offset", number, small),
            ins("val_offset_sf", number, small - 20),
            ins("register", number, small),
            ins("same_value", number),
            ins("undefined", number),
            ins("restore", number & 0x3F),
            ins("restore_extended", number),
            ins("expression", number, b"\x76\x00\x31\x22"),
            ins("val_expression", number, b"\x31"),
            ins("remember"),
            ins("restore_state") if depth else ins("nop"),
        ]
        chosen = rng.choice(choices)
        depth += {ins("remember"): 1, ins("restore_state"): -1}.get(chosen, 0)
        program.append(chosen)
    return program


def random_section(rng: random.Random) -> Frames:
    frames = Frames()
    for align in ((1, -8), (4, 4)):
        frames.cie(*ENTRY, ins("offset", 6, 3), version=rng.choice((1, 3, 4)), align=align)
        for i in range(20):
            start = START + 0x1000 * (2 * i + align[1] % 2) + 0x100000 * align[0]
            frames.fde(start, 0x1000, *random_program(rng, signed_cfa=align == (4, 4)))
    return frames


def theirs(row: dict[object, object]) -> tuple[object, dict[object, object]]:
    """A row of pyelftools' as a CFA and places."""
    places: dict[object, object] = {}
    for number, rule in row.items():
        if number in ("pc", "cfa"):
            continue
        kind, value = rule.type, rule.arg  # type: ignore[attr-defined]
        places[number] = {
            "UNDEFINED": None,
            "SAME_VALUE": Place(number),  # type: ignore[arg-type]
            "OFFSET": Place(CFA, value or 0 if isinstance(value, int) else 0, True),
            "VAL_OFFSET": Place(CFA, value or 0 if isinstance(value, int) else 0),
            "REGISTER": Place(value),
            "EXPRESSION": "*(cfa, r6, const 0x1, plus)",
            "VAL_EXPRESSION": "(cfa, const 0x1)",
        }[kind]
    cfa = row["cfa"]
    return Place(cfa.reg, cfa.offset), places  # type: ignore[attr-defined]


def ours(rule: FrameRule) -> tuple[object, dict[object, object]]:
    places: dict[object, object] = {
        number: place.formula({}).replace("(r6", "(cfa, r6").replace("(const", "(cfa, const")
        if isinstance(place, Expression)
        else place
        for number, place in rule.registers.items()
    }
    return rule.cfa, places


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_as_pyelftools_reads_it(seed: int) -> None:
    """At its first and its last byte."""
    frames = random_section(random.Random(seed))
    table = section(frames)
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
    entries = CallFrameInfo(io.BytesIO(frames.data), len(frames.data), 0, structs).get_entries()
    rows = 0
    for fde in (entry for entry in entries if isinstance(entry, FDE)):
        decoded_rows = fde.get_decoded().table
        ends = [row["pc"] for row in decoded_rows[1:]]
        for row, end in zip(decoded_rows, [*ends, START + (1 << 32)], strict=True):
            end = min(end, fde["initial_location"] + fde["address_range"])
            for address in {row["pc"], end - 1}:
                assert ours(found(table, address)) == theirs(row), hex(address)
            rows += 1
    assert rows > 100


def random_eh_section(rng: random.Random) -> Frames:
    frames = Frames(eh=True).cie(*ENTRY, augmentation="zPLR", extra=b"\x9b1234\x1b\x1b")
    for i in range(10):
        program = random_program(rng, signed_cfa=True)
        frames.fde(0x1000 * i, 0x1000, *program, extra=b"1234", pointer="i")
    return frames


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, and sometimes the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        changed[rng.randrange(len(data))] = value
    return bytes(changed[: rng.randrange(len(data)) if rng.random() < 0.2 else None])


@pytest.mark.parametrize(
    ("make", "eh", "first"), [(random_section, False, START), (random_eh_section, True, 0)]
)
def test_damage_is_refused(make: Callable[[random.Random], Frames], eh: bool, first: int) -> None:
    """Whatever a section holds, it gives a rule, none or BadRule; and soon."""
    rng = random.Random(1)
    sound = [make(rng) for _ in range(5)]
    begin = time.monotonic()
    rules = refused = 0
    for i in range(300):
        table = section(damaged(rng, sound[i % 5].data), eh=eh)
        for _ in range(20):
            address = first + rng.randrange(0x10000 if eh else 0x480000)
            try:
                rule = table.find(address)
                evaluate(rule)
                rules += rule is not None
            except BadRule as error:
                assert ".debug_frame" in str(error)
                refused += 1
    assert rules > 100 < refused
    assert time.monotonic() - begin < 60


def evaluate(rule: FrameRule | None) -> None:
    """Compute what a rule's expressions give."""
    for place in (rule.cfa, *rule.registers.values()) if rule else ():
        if isinstance(place, Expression):
            try:
                place.evaluate(lambda number: number, lambda address: address)
            except Unknown:
                continue
