# SPDX-License-Identifier: LGPL-2.1-or-later
"""One row of call frame information, whatever format it was read from, and what it computes.

A rule says for one program counter where the caller's registers are: each is a *place*, a
register or the canonical frame address (CFA) plus an offset, read from the stack or not. DWARF
CFI, SFrame and ORC all come down to this; what they cannot express they leave unknown.

>>> names = {29: "fp", 30: "lr", 31: "sp"}
>>> FrameRule(Place(31, 48), 30, {29: Place(CFA, -48, True), 30: Place(CFA, -40, True)}).formula(
...     names)
'cfa = sp + 48, fp = *(cfa - 48), lr = *(cfa - 40)'
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from drgn_reliable.memory import MASK

__all__ = (
    "CFA",
    "Abi",
    "BadRule",
    "CallerRegisters",
    "Expression",
    "FrameRule",
    "Place",
    "Provider",
    "Unknown",
    "caller_registers",
)

CFA = -1
"""In place of a register's number: the canonical frame address."""


class BadRule(Exception):
    """Call frame information that is malformed, or of a form that is not supported; says what and
    where."""


class Unknown(Exception):
    """A rule cannot be applied: it needs a register that is not known or memory that is not to be
    had.

    :param address: of the word that could not be read, None if a register is missing.
    """

    def __init__(self, why: str, address: int | None = None) -> None:
        super().__init__(why)
        self.address = address


class Place(NamedTuple):
    """``base + offset``, or the word there, plus ``then``: where a value comes from.

    >>> Place(31, 16), Place(CFA, -8, True).formula({})
    (Place(base=31, offset=16, deref=False, then=0), '*(cfa - 8)')
    """

    base: int
    """Number of a register, as DWARF numbers them, or :data:`CFA`."""
    offset: int = 0
    """Bytes."""
    deref: bool = False
    then: int = 0
    """Bytes that are added to the word that was read (ORC's indirect bases)."""

    def formula(self, names: Mapping[int, str]) -> str:
        """As a person writes it."""
        text = "cfa" if self.base == CFA else names.get(self.base, f"r{self.base}")
        if self.offset:
            text += f" {'-' if self.offset < 0 else '+'} {abs(self.offset)}"
        if not self.deref:
            return text
        text = f"*({text})"
        return f"{text} {'-' if self.then < 0 else '+'} {abs(self.then)}" if self.then else text


@dataclass(frozen=True)
class Expression:
    """A value that DWARF computes by a program.

    :ivar evaluate: takes a function from register number (:data:`CFA` among them) to value and
        one that reads a word; both raise :class:`Unknown`.
    """

    text: str
    """The operations, as a person reads them."""
    evaluate: Callable[[Callable[[int], int], Callable[[int], int]], int] = field(compare=False)
    deref: bool = False
    """The word at the address that was computed, not the address."""

    def formula(self, names: Mapping[int, str]) -> str:
        """As a person writes it."""
        return f"*({self.text})" if self.deref else f"({self.text})"


@dataclass(frozen=True)
class Abi:
    """What an architecture's calls keep, in DWARF's numbers of registers."""

    names: Mapping[int, str]
    """What the package calls the registers; only these are ever looked for."""
    sp: int
    fp: int
    ra: int
    """The link register; the column of the return address where calls push it."""
    preserved: Collection[int]
    """Registers that a function gives back as it found them, unless a rule says otherwise."""
    sp_below_cfa: int = 0
    """Bytes that the caller's stack pointer is below the CFA."""
    links: bool = True
    """Calls leave the return address in the link register, rather than on the stack."""


class FrameRule(NamedTuple):
    """How to go from one program counter to its caller.

    Of registers that are not mentioned, a *complete* rule says that preserved ones are unchanged;
    others say nothing of them.
    """

    cfa: Place | Expression
    ra: int
    """The column of the return address."""
    registers: Mapping[int, Place | Expression | None]
    """By number; None where the caller's value is lost."""
    complete: bool = True
    exact: bool = False
    """The caller was interrupted: its program counter is to be looked up as it is (a signal
    frame)."""
    outermost: bool = False
    """There is no caller."""

    def formula(self, names: Mapping[int, str]) -> str:
        """The rule as a person writes it."""
        parts = [f"cfa = {self.cfa.formula(names)}"]
        for number, place in sorted(self.registers.items()):
            name = names.get(number, f"r{number}")
            parts.append(f"{name} = {place.formula(names) if place else 'lost'}")
        return "no caller" if self.outermost else ", ".join(parts)


class Provider(Protocol):
    """Where rules come from."""

    @property
    def name(self) -> str:
        """What it goes by, for people."""
        ...

    def find(self, address: int) -> FrameRule | None:
        """The rule for the instruction at an address; None if there is none.

        :param address: of the instruction, see :func:`drgn_reliable.text.lookup_address`.
        :raises BadRule: if what is there makes no sense.
        :raises drgn.FaultError: if the dump lacks the part of the tables.
        """
        ...


class CallerRegisters(NamedTuple):
    """What a rule computed."""

    pc: int
    """The return address, as it is on the stack or in the register: neither recovered nor
    stripped."""
    sp: int
    registers: Mapping[int, int]
    """All of the caller's registers that are known, the stack pointer among them."""
    pc_at: int | None
    """Where the return address was read; None if it was in a register."""


def caller_registers(
    rule: FrameRule,
    abi: Abi,
    registers: Mapping[int, int],
    read: Callable[[int], int | None],
) -> CallerRegisters:
    """Apply a rule.

    :param registers: those that are known in the frame.
    :param read: gives the word at an address, None if it is not to be had.
    :raises Unknown: if the rule needs more than is known.
    """

    def word(address: int) -> int:
        found = read(address)
        if found is None:
            raise Unknown(f"the word at {address:#x} is not to be had", address)
        return found

    def register(number: int) -> int:
        if number not in registers:
            name = "the CFA" if number == CFA else abi.names.get(number, f"register {number}")
            raise Unknown(f"{name} is not known")
        return registers[number]

    def value(place: Place | Expression, cfa: int | None) -> tuple[int, int | None]:
        def known(number: int) -> int:
            return cfa if number == CFA and cfa is not None else register(number)

        if isinstance(place, Expression):
            at = place.evaluate(known, word) & MASK
            return (word(at), at) if place.deref else (at, None)
        at = known(place.base) + place.offset & MASK
        return (word(at) + place.then & MASK, at) if place.deref else (at, None)

    cfa, _ = value(rule.cfa, None)
    known = {n: registers[n] for n in abi.preserved if rule.complete and n in registers}
    at: int | None = None
    for number, place in rule.registers.items():
        known.pop(number, None)
        if place is None:
            continue
        try:
            known[number], where = value(place, cfa)
        except Unknown:
            if number == rule.ra:
                raise
            continue
        at = where if number == rule.ra else at
    pc = known.pop(rule.ra, None)
    if pc is None and rule.ra not in rule.registers:
        pc = register(rule.ra)
    if pc is None:
        raise Unknown("the return address is lost")
    known.setdefault(abi.sp, cfa - abi.sp_below_cfa & MASK)
    return CallerRegisters(pc, known[abi.sp], known, at)
