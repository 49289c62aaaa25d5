# SPDX-License-Identifier: LGPL-2.1-or-later
"""DWARF expressions in call frame information (DWARF 5, sections 2.5 and 6.4.2).

Operations work on a stack of 64-bit words. Those that call frame information cannot use, and
those that read less than a word, are refused when a rule is decoded; what only shows while an
expression is computed, such as a stack that runs empty, raises
:class:`~drgn_reliable.tables.framerule.Unknown`.

>>> program = bytes.fromhex("76 78 06")  # breg6 -8, deref
>>> decode(Cursor(program, 0, 3, "little", ".debug_frame"), bias=0, initial=False, deref=False)
Place(base=6, offset=-8, deref=True, then=0)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from drgn_reliable.memory import MASK
from drgn_reliable.tables.dwarfdata import Cursor
from drgn_reliable.tables.framerule import CFA, BadRule, Expression, Place, Unknown

__all__ = ("decode",)

_LONGEST = 256
"""Operations of one expression; compilers use about ten."""
_MOST_STEPS = 1024
"""Operations that computing an expression may take, loops included."""
_DEEPEST = 64
"""Words on the stack."""

_Read = Callable[[int], int]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _divide(a: int, b: int) -> int:
    """Signed division that rounds towards zero, as C does."""
    a, b = _signed(a), _signed(b)
    return -(-a // b) if (a < 0) != (b < 0) else a // b


_BINARY: dict[int, tuple[str, Callable[[int, int], int]]] = {
    0x1A: ("and", lambda a, b: a & b),
    0x1B: ("div", _divide),
    0x1C: ("minus", lambda a, b: a - b),
    0x1D: ("mod", lambda a, b: a % b),
    0x1E: ("mul", lambda a, b: a * b),
    0x21: ("or", lambda a, b: a | b),
    0x22: ("plus", lambda a, b: a + b),
    0x24: ("shl", lambda a, b: a << b if b < 64 else 0),
    0x25: ("shr", lambda a, b: a >> b if b < 64 else 0),
    0x26: ("shra", lambda a, b: _signed(a) >> min(b, 64)),
    0x27: ("xor", lambda a, b: a ^ b),
    0x29: ("eq", lambda a, b: a == b),
    0x2A: ("ge", lambda a, b: _signed(a) >= _signed(b)),
    0x2B: ("gt", lambda a, b: _signed(a) > _signed(b)),
    0x2C: ("le", lambda a, b: _signed(a) <= _signed(b)),
    0x2D: ("lt", lambda a, b: _signed(a) < _signed(b)),
    0x2E: ("ne", lambda a, b: a != b),
}
_UNARY: dict[int, tuple[str, Callable[[int], int]]] = {
    0x19: ("abs", lambda a: abs(_signed(a))),
    0x1F: ("neg", lambda a: -a),
    0x20: ("not", lambda a: ~a),
}
_CONSTANTS: dict[int, Callable[[Cursor], int]] = {
    0x08: lambda c: c.unsigned(1),
    0x09: lambda c: c.signed(1),
    0x0A: lambda c: c.unsigned(2),
    0x0B: lambda c: c.signed(2),
    0x0C: lambda c: c.unsigned(4),
    0x0D: lambda c: c.signed(4),
    0x0E: lambda c: c.unsigned(8),
    0x0F: lambda c: c.signed(8),
    0x10: Cursor.uleb,
    0x11: Cursor.sleb,
}
_PICKS = {0x12: 0, 0x14: 1}
"""``dup`` and ``over`` are ``pick`` with an operand of their own."""
_SIMPLE = {0x06: "deref", 0x13: "drop", 0x16: "swap", 0x17: "rot", 0x96: "nop"}
_SIMPLE |= {code: name for code, (name, _) in (*_BINARY.items(), *_UNARY.items())}
_ADDR, _DEREF, _CONSTU, _DROP, _PICK, _SWAP, _ROT = 0x03, 0x06, 0x10, 0x13, 0x15, 0x16, 0x17
_PLUS_UCONST, _BRA, _SKIP, _BREGX, _NOP, _CALL_FRAME_CFA = 0x23, 0x28, 0x2F, 0x92, 0x96, 0x9C
_LIT0, _BREG0 = range(0x30, 0x50), range(0x70, 0x90)


class _Operation(NamedTuple):
    """One operation, its operands read."""

    code: int
    """``DW_OP_*``; of operations that do the same, one stands for all: ``constu`` for constants,
    ``bregx`` for registers, ``pick`` for copies."""
    name: str
    operand: int | None = None
    """A constant, the number of a register, or where a jump leads, in bytes from the start."""
    offset: int = 0
    """Bytes that are added to a register."""

    def __str__(self) -> str:
        if self.code == _BREGX:
            base = "cfa" if self.operand == CFA else f"r{self.operand}"
            return f"{base} {self.offset:+}" if self.offset else base
        return self.name if self.operand is None else f"{self.name} {self.operand:#x}"


def decode(cursor: Cursor, *, bias: int, initial: bool, deref: bool) -> Place | Expression:
    """The value that an expression computes; a place, where that says the same.

    :param cursor: spans the expression.
    :param bias: bytes by which addresses are above those that were linked.
    :param initial: the CFA is on the stack from the start, and may be asked for: the expression
        is that of a register, not the CFA's own.
    :param deref: the value is the word at the address that is computed.
    :raises BadRule: if it is malformed or of operations that are not supported.
    """
    start = cursor.at
    operations: list[_Operation] = []
    places: dict[int, int] = {}
    while cursor.at < cursor.end:
        if len(operations) == _LONGEST:
            raise BadRule(f"{cursor.where(start)}: an expression of over {_LONGEST} operations")
        places[cursor.at - start] = len(operations)
        operations.append(_operation(cursor, start, bias, initial))
    places[cursor.end - start] = len(operations)
    if not operations:
        raise BadRule(f"{cursor.where(start)}: an empty expression")
    for operation in operations:
        if operation.code in (_BRA, _SKIP) and operation.operand not in places:
            raise BadRule(f"{cursor.where(start)}: {operation} leads to no operation")
    place = _as_place(operations, initial, deref)
    if place is not None:
        return place
    program = _Program(operations, places, initial, cursor.where(start))
    return Expression(", ".join(map(str, operations)), program.run, deref)


def _operation(cursor: Cursor, start: int, bias: int, initial: bool) -> _Operation:
    """Read one operation."""
    at = cursor.at
    code = cursor.byte()
    if code in _SIMPLE:
        return _Operation(code, _SIMPLE[code])
    if code in _BREG0:
        return _Operation(_BREGX, "bregx", code - _BREG0.start, cursor.sleb())
    if code == _BREGX:
        number = cursor.uleb()
        return _Operation(_BREGX, "bregx", number, cursor.sleb())
    if code == _CALL_FRAME_CFA and initial:
        return _Operation(_BREGX, "bregx", CFA)
    if code == _PLUS_UCONST:
        return _Operation(code, "plus_uconst", cursor.uleb())
    if code in _LIT0:
        return _Operation(_CONSTU, "const", code - _LIT0.start)
    if code in _CONSTANTS:
        return _Operation(_CONSTU, "const", _CONSTANTS[code](cursor) & MASK)
    if code == _ADDR:
        return _Operation(_CONSTU, "const", cursor.unsigned(8) + bias & MASK)
    if code in _PICKS or code == _PICK:
        return _Operation(_PICK, "pick", _PICKS[code] if code in _PICKS else cursor.byte())
    if code in (_BRA, _SKIP):
        distance = cursor.signed(2)
        name = "bra" if code == _BRA else "skip"
        return _Operation(code, name, cursor.at - start + distance)
    raise BadRule(f"{cursor.where(at)}: DWARF operation {code:#x} is not supported")


def _as_place(operations: list[_Operation], initial: bool, deref: bool) -> Place | None:
    """What the operations compute as a place; None if it is more than that.

    None of the operations that are known here take more than the top of the stack, so that what
    lies below does not count.
    """
    place = Place(CFA) if initial else None
    for code, _, operand, offset in operations:
        if code == _BREGX and operand is not None:
            place = Place(operand, offset)
        elif place is not None and code == _PLUS_UCONST and operand is not None:
            if place.deref:
                place = place._replace(then=place.then + operand)
            else:
                place = place._replace(offset=place.offset + operand)
        elif place is not None and code == _DEREF and not place.deref:
            place = place._replace(deref=True)
        elif code != _NOP:
            return None
    if place is None or not deref:
        return place
    return None if place.deref else place._replace(deref=True)


class _Program:
    """Operations that are ready to be computed.

    :param places: number of the operation at each offset in bytes.
    :param where: what messages call it.
    """

    def __init__(
        self, operations: list[_Operation], places: dict[int, int], initial: bool, where: str
    ) -> None:
        self._operations = operations
        self._places = places
        self._initial = initial
        self._where = where

    def run(self, register: _Read, read: _Read) -> int:
        """The value.

        :param register: gives a register's value by its number.
        :param read: gives the word at an address.
        :raises Unknown: if one of them does, or the computation fails.
        """
        stack = [register(CFA)] if self._initial else []
        at = 0
        try:
            for _ in range(_MOST_STEPS):
                if at == len(self._operations):
                    return stack[-1]
                at = self._step(self._operations[at], at + 1, stack, register, read)
                if len(stack) > _DEEPEST:
                    break
        except (IndexError, ZeroDivisionError) as error:
            wrong = "its stack runs empty" if isinstance(error, IndexError) else "division by 0"
            raise Unknown(f"DWARF expression at {self._where}: {wrong}") from None
        raise Unknown(f"DWARF expression at {self._where}: does not end")

    def _step(
        self, operation: _Operation, after: int, stack: list[int], register: _Read, read: _Read
    ) -> int:
        """Carry one operation out; gives the number of the next."""
        code, _, operand, offset = operation
        if operand is None:
            _compute(code, stack, read)
        elif code == _BREGX:
            stack.append(register(operand) + offset & MASK)
        elif code == _CONSTU:
            stack.append(operand)
        elif code == _PLUS_UCONST:
            stack.append(stack.pop() + operand & MASK)
        elif code == _PICK:
            stack.append(stack[-1 - operand])
        elif code == _SKIP or stack.pop():
            return self._places[operand]
        return after


def _compute(code: int, stack: list[int], read: _Read) -> None:
    """Carry out an operation that has no operand."""
    if code in _BINARY:
        second = stack.pop()
        stack.append(_BINARY[code][1](stack.pop(), second) & MASK)
    elif code in _UNARY:
        stack.append(_UNARY[code][1](stack.pop()) & MASK)
    elif code == _DEREF:
        stack.append(read(stack.pop()))
    elif code == _DROP:
        stack.pop()
    elif code == _SWAP:
        stack[-1], stack[-2] = stack[-2], stack[-1]
    elif code == _ROT:
        stack[-3:] = [stack[-1], stack[-3], stack[-2]]
