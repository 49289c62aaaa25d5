# SPDX-License-Identifier: LGPL-2.1-or-later
"""Call frame instructions (DWARF 5, section 6.4): from a program to one row of its table.

DWARF 2 to 5 and the extensions of GNU, MIPS and Arm. Whether a return address is signed is passed
over: a rule says where the return address is, not what was done to it.

>>> from drgn_reliable.tables.framerule import FrameRule
>>> program = bytes.fromhex("41 0e10 8602 41 0d06")  # of push %rbp; mov %rsp,%rbp
>>> cie = Cie(code_align=1, data_align=-8, ra=16)
>>> first = Row(Place(7, 8), {16: Place(CFA, -8, True)})
>>> for target in (0, 1, 2):
...     cursor = Cursor(program, 0, len(program), "little", ".debug_frame")
...     row = Run(cie, cursor, first).to(target, start=0)
...     print(FrameRule(row.cfa, 16, row.registers).formula({6: "rbp", 7: "rsp", 16: "rip"}))
cfa = rsp + 8, rip = *(cfa - 8)
cfa = rsp + 16, rbp = *(cfa - 16), rip = *(cfa - 8)
cfa = rbp + 16, rbp = *(cfa - 16), rip = *(cfa - 8)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drgn_reliable.tables.dwarfdata import ABSOLUTE, Cursor
from drgn_reliable.tables.dwarfexpr import decode
from drgn_reliable.tables.framerule import CFA, BadRule, Expression, Place

__all__ = ("Cie", "Row", "Run")

_MOST_INSTRUCTIONS = 1 << 14
"""Of one program; the longest in a kernel are of a few hundred."""
_DEEPEST = 64
"""Rows remembered at a time."""
_MOST_REGISTERS = 1 << 12
"""No architecture's DWARF numbers reach this."""

_ADVANCE, _OFFSET, _RESTORE = 0x40, 0x80, 0xC0
"""The instructions with an operand in their low six bits."""
_ADVANCE_BY = {0x02: 1, 0x03: 2, 0x04: 4, 0x1D: 8}
"""``advance_loc1`` to ``advance_loc4`` and MIPS's 8: bytes of the operand."""
_NOP, _SET_LOC, _RESTORE_EXTENDED, _REMEMBER, _RESTORE_STATE = 0x00, 0x01, 0x06, 0x0A, 0x0B
_DEF_CFA, _DEF_CFA_REGISTER, _DEF_CFA_OFFSET, _DEF_CFA_EXPRESSION = 0x0C, 0x0D, 0x0E, 0x0F
_DEF_CFA_SF, _DEF_CFA_OFFSET_SF = 0x12, 0x13
_OFFSET_EXTENDED, _UNDEFINED, _SAME_VALUE, _REGISTER, _EXPRESSION = 0x05, 0x07, 0x08, 0x09, 0x10
_OFFSET_EXTENDED_SF, _VAL_OFFSET, _VAL_OFFSET_SF, _VAL_EXPRESSION = 0x11, 0x14, 0x15, 0x16
_NEGATE_RA_STATE_WITH_PC, _NEGATE_RA_STATE, _ARGS_SIZE, _NEGATIVE_OFFSET = 0x2C, 0x2D, 0x2E, 0x2F

_Places = dict[int, Place | Expression | None]


@dataclass(frozen=True)
class Cie:
    """A common information entry: what the programs of some functions share."""

    code_align: int
    """Bytes by which advances are counted."""
    data_align: int
    """Bytes by which offsets from the CFA are counted where they are factored."""
    ra: int
    """The column of the return address."""
    encoding: int = ABSOLUTE
    """Of addresses, ``DW_EH_PE_*``."""
    augmented: bool = False
    """After their addresses, functions' entries have augmentation data, its length before it."""
    exact: bool = False
    """The frames are those of signal handlers."""
    program: tuple[int, int] = (0, 0)
    """From and to which offset in the section the instructions reach that make the first row."""


@dataclass
class Row:
    """One row of a table, in the making."""

    cfa: Place | Expression | None = None
    """None until it is defined."""
    registers: Mapping[int, Place | Expression | None] = field(default_factory=dict)


class Run:
    """A program on its way from row to row.

    :param cursor: spans the program.
    :param initial: the first row; None for the program that makes it.
    :param address: of the section, from which relative pointers count.
    :param bias: bytes by which addresses are above those that were linked.
    """

    def __init__(
        self, cie: Cie, cursor: Cursor, initial: Row | None, address: int = 0, bias: int = 0
    ) -> None:
        self._cie = cie
        self._cursor = cursor
        self._initial = initial
        self._address = address
        self._bias = bias
        self._cfa = initial.cfa if initial else None
        self._registers: _Places = dict(initial.registers) if initial else {}
        self._remembered: list[tuple[Place | Expression | None, _Places]] = []
        self._at = cursor.at

    def to(self, target: int, start: int) -> Row:
        """The row for an instruction.

        :param target: its address, as it was linked.
        :param start: address of the program's first row.
        :raises BadRule: if an instruction before that row's end is malformed or not supported.
        """
        cursor = self._cursor
        for _ in range(_MOST_INSTRUCTIONS):
            if cursor.at >= cursor.end:
                return Row(self._cfa, self._registers)
            self._at = cursor.at
            code = cursor.byte()
            low = code & 0x3F
            if code & 0xC0 == _ADVANCE:
                start += low * self._cie.code_align
            elif code in _ADVANCE_BY:
                start += cursor.unsigned(_ADVANCE_BY[code]) * self._cie.code_align
            elif code == _SET_LOC:
                start = self._set_location(start)
            elif code & 0xC0 == _OFFSET:
                self._registers[low] = self._saved(cursor.uleb())
                continue
            elif code & 0xC0 == _RESTORE:
                self._restore(low)
                continue
            else:
                self._instruction(code)
                continue
            if self._initial is None:
                raise self._wrong("an advance before the first row")
            if start > target:
                return Row(self._cfa, self._registers)
        raise self._wrong(f"more than {_MOST_INSTRUCTIONS} instructions")

    def _wrong(self, what: str) -> BadRule:
        return BadRule(f"{self._cursor.where(self._at)}: {what}")

    def _set_location(self, start: int) -> int:
        location = self._cursor.pointer(self._cie.encoding, self._address)
        if location < start:
            raise self._wrong(f"from {start:#x} back to {location:#x}")
        return location

    def _saved(self, factored: int) -> Place:
        """A register saved so many data units from the CFA."""
        return Place(CFA, factored * self._cie.data_align, True)

    def _restore(self, number: int) -> None:
        """Make a register's rule that of the first row."""
        if self._initial is None:
            raise self._wrong("a register restored in the first row")
        if number in self._initial.registers:
            self._registers[number] = self._initial.registers[number]
        else:
            self._registers.pop(number, None)

    def _instruction(self, code: int) -> None:
        """Carry out an instruction that neither advances nor is one of the short ones."""
        if code in (_NOP, _NEGATE_RA_STATE, _NEGATE_RA_STATE_WITH_PC):
            return
        if code == _ARGS_SIZE:  # of arguments on the stack: only for unwinding by exceptions
            self._cursor.uleb()
        elif code == _REMEMBER:
            if len(self._remembered) == _DEEPEST:
                raise self._wrong(f"more than {_DEEPEST} rows are remembered")
            self._remembered.append((self._cfa, dict(self._registers)))
        elif code == _RESTORE_STATE:
            if not self._remembered:
                raise self._wrong("no row was remembered")
            self._cfa, self._registers = self._remembered.pop()
        elif _DEF_CFA <= code <= _DEF_CFA_EXPRESSION or code in (_DEF_CFA_SF, _DEF_CFA_OFFSET_SF):
            self._cfa = self._new_cfa(code)
        else:
            self._set_register(code)

    def _new_cfa(self, code: int) -> Place | Expression:
        cursor = self._cursor
        if code == _DEF_CFA:
            return Place(self._number(), cursor.uleb())
        if code == _DEF_CFA_SF:
            return Place(self._number(), cursor.sleb() * self._cie.data_align)
        if code == _DEF_CFA_EXPRESSION:
            return self._expression(initial=False, deref=False)
        if code == _DEF_CFA_REGISTER and self._cfa is None:
            # All that gas says for loongarch, where the CFA is sp at first.
            return Place(self._number())
        if not isinstance(self._cfa, Place) or self._cfa.deref:
            raise self._wrong("the CFA is not a register and an offset, of which one could change")
        if code == _DEF_CFA_REGISTER:
            return self._cfa._replace(base=self._number())
        signed = code == _DEF_CFA_OFFSET_SF
        offset = cursor.sleb() * self._cie.data_align if signed else cursor.uleb()
        return self._cfa._replace(offset=offset)

    def _set_register(self, code: int) -> None:
        cursor = self._cursor
        if not (_OFFSET_EXTENDED <= code <= _VAL_EXPRESSION or code == _NEGATIVE_OFFSET):
            raise self._wrong(f"call frame instruction {code:#x} is not supported")
        number = self._number()
        place: Place | Expression | None = None
        if code == _RESTORE_EXTENDED:
            return self._restore(number)
        if code in (_OFFSET_EXTENDED, _OFFSET_EXTENDED_SF):
            place = self._saved(cursor.uleb() if code == _OFFSET_EXTENDED else cursor.sleb())
        elif code == _NEGATIVE_OFFSET:
            place = self._saved(-cursor.uleb())
        elif code in (_VAL_OFFSET, _VAL_OFFSET_SF):
            factored = cursor.uleb() if code == _VAL_OFFSET else cursor.sleb()
            place = self._saved(factored)._replace(deref=False)
        elif code == _SAME_VALUE:
            place = Place(number)
        elif code == _REGISTER:
            place = Place(self._number())
        elif code in (_EXPRESSION, _VAL_EXPRESSION):
            place = self._expression(initial=True, deref=code == _EXPRESSION)
        self._registers[number] = place
        return None

    def _number(self) -> int:
        """The number of a register."""
        number = self._cursor.uleb()
        if number >= _MOST_REGISTERS:
            raise self._wrong(f"register {number}")
        return number

    def _expression(self, *, initial: bool, deref: bool) -> Place | Expression:
        """What a block of operations computes."""
        cursor = self._cursor
        size = cursor.uleb()
        start = cursor.at
        cursor.block(size)
        block = Cursor(cursor.data, start, start + size, cursor.order, cursor.name)
        return decode(block, bias=self._bias, initial=initial, deref=deref)
