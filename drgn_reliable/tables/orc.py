# SPDX-License-Identifier: LGPL-2.1-or-later
"""ORC unwind tables: how they are searched, and every x86_64 layout in one rule type.

objtool writes for each range of text how to find the caller's frame from there. The tables stay
in kernel memory: an array of self-relative addresses and beside it an array of 6-byte entries.
How the 16 flag bits of an entry are laid out changed three times; the image says which layout
it has by a hash in ``.orc_header`` (since 6.4), and older ones by the bit fields of
``struct orc_entry``. The release is never asked: distributions backport.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation, UnsupportedKernel
from drgn_reliable.memory import MASK
from drgn_reliable.symbols import Symbols
from drgn_reliable.text import Text

__all__ = (
    "FRAME_POINTER_RULE",
    "Base",
    "EntryFormat",
    "OrcFormat",
    "OrcTables",
    "Rule",
    "Shape",
    "orc_format",
)


class Base(IntEnum):
    """From what an offset is counted."""

    UNDEFINED = 0
    SP = 1
    BP = 2
    SP_INDIRECT = 3
    """The word at SP, then the offset."""
    BP_INDIRECT = 4
    """The word at BP plus the offset."""
    PREV_SP = 5
    """The caller's stack pointer, as computed by the same rule."""
    AX = 6
    DX = 7
    DI = 8
    R10 = 9
    R13 = 10


class Shape(IntEnum):
    """What lies at the caller's stack pointer, and whether there is a caller."""

    UNDEFINED = 0
    END = 1
    CALL = 2
    """``ip = *(sp - 8)``"""
    REGS = 3
    """A full ``struct pt_regs``."""
    REGS_PARTIAL = 4
    """Only the five words that the CPU pushed."""
    UNKNOWN = 5
    """A type that the layout does not define."""


class Rule(NamedTuple):
    """How to step from one program counter: ``sp = base + offset``, then by shape."""

    shape: Shape
    exact: bool
    """The program counter found by this step is an interrupted instruction: look it up as it
    is, not the byte before."""
    sp_base: Base | None
    """None for a register number that the layout does not define."""
    sp_offset: int
    bp_base: Base | None
    bp_offset: int

    def formula(self) -> str:
        """As a person writes it.

        >>> Rule(Shape.CALL, False, Base.SP, 48, Base.PREV_SP, -16).formula()
        'cfa = sp + 48, pc = *(cfa - 8), bp = *(cfa - 16)'
        """
        if self.shape in _NO_CALLER:
            return _NO_CALLER[self.shape]
        text = f"cfa = {_based(self.sp_base, self.sp_offset)}"
        text += f", {_RESULTS.get(self.shape, 'unknown type')}"
        if self.bp_base is not Base.UNDEFINED:
            text += f", bp = *({_based(self.bp_base, self.bp_offset)})"
        return text


_NO_CALLER = {Shape.UNDEFINED: "not unwindable", Shape.END: "the end of the stack"}
_RESULTS = {
    Shape.CALL: "pc = *(cfa - 8)",
    Shape.REGS: "struct pt_regs at cfa",
    Shape.REGS_PARTIAL: "the words that the CPU pushed at cfa",
}


def _based(base: Base | None, offset: int) -> str:
    if base is None:
        return "a register that does not exist"
    sign = f" {'-' if offset < 0 else '+'} {abs(offset)}" if offset else ""
    if base is Base.SP_INDIRECT:
        return f"*sp{sign}"
    if base is Base.BP_INDIRECT:
        return f"*(bp{sign})"
    return ("cfa" if base is Base.PREV_SP else base.name.lower()) + sign


FRAME_POINTER_RULE = Rule(Shape.CALL, False, Base.BP, 16, Base.PREV_SP, -16)
"""``(sp, ip, bp) = (bp + 16, *(bp + 8), *bp)``: for code that keeps a frame pointer."""

NULL_CALL_RULE = Rule(Shape.CALL, False, Base.SP, 8, Base.UNDEFINED, 0)
"""For a program counter of 0, a call through a null pointer: only the return address has been
pushed."""


R_co = TypeVar("R_co", covariant=True)


class EntryFormat(Protocol[R_co]):
    """How the entries of an architecture's tables are to be read."""

    @property
    def name(self) -> str:
        """What it goes by, for people."""
        ...

    @property
    def size(self) -> int:
        """Bytes of an entry."""
        ...

    @property
    def null_call(self) -> R_co:
        """The rule for a program counter of 0, a call through a null pointer."""
        ...

    @property
    def frame_pointer(self) -> R_co:
        """The rule for code that keeps a frame pointer."""
        ...

    def decode(self, entry: bytes) -> R_co:
        """The rule of an entry."""
        ...


class OrcFormat(NamedTuple):
    """The layout of an entry's flag bits. ``sp_reg`` is in bits 0-3 and ``bp_reg`` in 4-7."""

    name: str
    registers: Sequence[Base]
    """Meaning of each register number."""
    shapes: Sequence[Shape]
    """Meaning of each value of the type field, which starts at bit 8."""
    signal_bit: int | None
    """Says that the rule's result is exact; None where the shape says so."""
    end_bit: int | None
    """Tells the end of a stack from missing data where ``sp_reg`` is undefined; None where the
    type says so."""

    @property
    def size(self) -> int:
        """Bytes of an entry."""
        return 6

    @property
    def null_call(self) -> Rule:
        """See :class:`EntryFormat`."""
        return NULL_CALL_RULE

    @property
    def frame_pointer(self) -> Rule:
        """See :class:`EntryFormat`."""
        return FRAME_POINTER_RULE

    def decode(self, entry: bytes) -> Rule:
        """The rule of one 6-byte entry."""
        sp_offset, bp_offset, flags = struct.unpack("<hhH", entry)
        type_bits = 3 if self.end_bit is None else 2
        number = flags >> 8 & (1 << type_bits) - 1
        shape = self.shapes[number] if number < len(self.shapes) else Shape.UNKNOWN
        sp_base = self._register(flags & 0xF)
        if self.end_bit is not None and sp_base == Base.UNDEFINED:
            shape = Shape.END if flags >> self.end_bit & 1 else Shape.UNDEFINED
        if self.signal_bit is None:
            exact = shape in (Shape.REGS, Shape.REGS_PARTIAL)
        else:
            exact = bool(flags >> self.signal_bit & 1)
        bp_base = self._register(flags >> 4 & 0xF)
        return Rule(shape, exact, sp_base, sp_offset, bp_base, bp_offset)

    def _register(self, number: int) -> Base | None:
        return self.registers[number] if number < len(self.registers) else None


_REGISTERS = (
    Base.UNDEFINED,
    Base.PREV_SP,
    Base.DX,
    Base.DI,
    Base.BP,
    Base.SP,
    Base.R10,
    Base.R13,
    Base.BP_INDIRECT,
    Base.SP_INDIRECT,
)
_RENUMBERED = (
    Base.UNDEFINED,
    Base.AX,
    Base.DX,
    Base.SP,
    Base.BP,
    Base.DI,
    Base.R10,
    Base.R13,
    Base.PREV_SP,
    Base.SP_INDIRECT,
    Base.BP_INDIRECT,
)
_SHAPES_2BIT = (Shape.CALL, Shape.REGS, Shape.REGS_PARTIAL)
_SHAPES_3BIT = (Shape.UNDEFINED, Shape.END, Shape.CALL, Shape.REGS, Shape.REGS_PARTIAL)

FORMATS = {
    1: OrcFormat("ORC 1 (before 6.3)", _REGISTERS, _SHAPES_2BIT, None, 10),
    2: OrcFormat("ORC 2 (6.3)", _REGISTERS, _SHAPES_2BIT, 10, 11),
    3: OrcFormat("ORC 3 (6.4 to 7.0)", _REGISTERS, _SHAPES_3BIT, 11, None),
    4: OrcFormat("ORC 4 (since 7.1)", _RENUMBERED, _SHAPES_3BIT, 11, None),
}
"""Every layout. 2: commit ffb1b4a41016; 3: commits fb799447ae29 and b9f174c811e3; 4: read in the
sources of 7.2 and 7.3."""

HEADERS = {
    "db84aed4103b31dd51e017f8f79783ca985c2c51": FORMATS[2],
    "fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24": FORMATS[3],
    "137c36ad7627c4dd55932176bb0ecdbd5041fc82": FORMATS[4],
}
"""Layouts by the 20 bytes at ``__start_orc_header``, in hex (scripts/orc_hash.sh)."""


def orc_format(prog: Program, symbols: Symbols) -> OrcFormat:
    """The layout that the dump's kernel has.

    :raises UnsupportedKernel: if the image names a layout that this code does not know.
    :raises MissingInformation: if the dump lacks the page with the hash.
    """
    header = symbols.address("__start_orc_header")
    if header is not None:
        try:
            found = prog.read(header, 20).hex()
        except FaultError as e:
            raise MissingInformation(f"the dump lacks the ORC header at {header:#x}") from e
        if found not in HEADERS:
            raise UnsupportedKernel(
                f"ORC format {found} is not known to this version of drgn_reliable; please "
                "report it with the kernel's release"
            )
        return HEADERS[found]
    # Without a header: before 6.4, or 3 backported without it (RHEL 9). The bit fields tell.
    members = {m.name for m in prog.type("struct orc_entry").members or ()}
    if "end" not in members:
        return FORMATS[3]
    return FORMATS[2] if "signal" in members else FORMATS[1]


_BLOCK = 256
"""Bytes of text for each slot of ``orc_lookup`` (``LOOKUP_BLOCK_SIZE``)."""
_NESTED = 4
"""Trampolines of trampolines."""
_SHORT_TABLE = 256
"""Entries: more than a block of text has."""


class _Table:
    """One pair of arrays: ``ip`` holds for each entry its address minus its own place.

    The search is the kernel's, step for step: in a table whose order is damaged it comes to the
    entry to which the kernel would have come. A short table's addresses are read at once; of a long
    one nothing is read but what the search touches.
    """

    def __init__(self, prog: Program, ip: int, entries: int, count: int, entry_size: int) -> None:
        self._prog = prog
        self._ip = ip
        self._entries = entries
        self._count = count
        self._entry_size = entry_size

    def _address(self, index: int) -> int:
        place = self._ip + 4 * index & MASK
        relative: int = struct.unpack("<i", self._prog.read(place, 4))[0]
        return place + relative & MASK

    def _addresses(self) -> list[int] | None:
        """All of them; None if the dump lacks some, which the search may not touch."""
        try:
            data = self._prog.read(self._ip, 4 * self._count)
        except FaultError:
            return None
        relative = struct.unpack(f"<{self._count}i", data)
        return [self._ip + 4 * i + value & MASK for i, value in enumerate(relative)]

    def find(self, address: int) -> bytes | None:
        """The rightmost entry at or before an address; the first if there is none before.

        Of entries for the same address the last one counts: the section terminators that
        objtool adds sort before the entry that they would hide.
        """
        if self._count <= 0:
            return None
        short = self._addresses() if self._count <= _SHORT_TABLE else None
        first, last, found = 0, self._count - 1, 0
        while first <= last:
            middle = (first + last) // 2
            if (short[middle] if short else self._address(middle)) <= address:
                found, first = middle, middle + 1
            else:
                last = middle - 1
        place = self._entries + found * self._entry_size & MASK
        entry: bytes = self._prog.read(place, self._entry_size)
        return entry


R = TypeVar("R")


class OrcTables(Generic[R]):
    """``orc_find()``: the rule for any address, from the table that the kernel would consult.

    :raises MissingInformation: if the kernel lacks a symbol of the tables.
    """

    def __init__(
        self, prog: Program, symbols: Symbols, text: Text, format_: EntryFormat[R]
    ) -> None:
        self._prog = prog
        self._text = text
        self.format = format_
        self._ip = symbols.required("__start_orc_unwind_ip")
        self._orc = symbols.required("__start_orc_unwind")
        self._count = (symbols.required("__stop_orc_unwind_ip") - self._ip) // 4
        self._lookup = symbols.required("orc_lookup")
        self._blocks = (symbols.required("orc_lookup_end") - self._lookup) // 4
        self._copied_from = (
            symbols.address("ftrace_caller"),
            symbols.address("ftrace_regs_caller"),
        )

    def find(self, address: int, nested: int = 0) -> R | None:
        """The rule for an address, None if there is none.

        :param nested: of how many trampolines this is the original. Only damage makes a
            trampoline of another one, and the kernel would go round for ever.
        :raises drgn.FaultError: if the dump lacks the part of the table.
        """
        if address == 0:
            return self.format.null_call
        if self._text.in_core(address):
            return self._decoded(self._in_block(address))
        if self._text.in_init(address):
            return self._decoded(self._table(0, self._count).find(address))
        entry = self._in_module(address)
        if entry is not None:
            return self._decoded(entry)
        bpf = self._text.generated.bpf(address)
        if bpf and bpf.keeps_frame_pointer(address):
            return self.format.frame_pointer
        return self._in_trampoline(address, nested)

    def _decoded(self, entry: bytes | None) -> R | None:
        return None if entry is None else self.format.decode(entry)

    def _in_block(self, address: int) -> bytes | None:
        """The core kernel's entry, by way of the block index as the kernel goes."""
        block = (address - self._text.core[0]) // _BLOCK
        if block >= self._blocks - 1:
            return None
        data = self._prog.read(self._lookup + 4 * block, 8)
        first, last = struct.unpack("<2I", data)
        if first >= self._count or not first <= last < self._count:
            return None
        return self._table(first, last + 1 - first).find(address)

    def _table(self, first: int, count: int) -> _Table:
        """A part of the core kernel's table."""
        size = self.format.size
        return _Table(self._prog, self._ip + 4 * first, self._orc + size * first, count, size)

    def _in_module(self, address: int) -> bytes | None:
        module = self._text.modules.containing(address)
        if module is None or not module.orc or not module.orc_ip:
            return None
        size = self.format.size
        return _Table(self._prog, module.orc_ip, module.orc, module.orc_count, size).find(address)

    def _in_trampoline(self, address: int, nested: int) -> R | None:
        """A dynamic ftrace trampoline is a copy of code that has entries of its own."""
        trampoline = self._text.generated.ftrace(address)
        source = self._copied_from[trampoline.saves_registers] if trampoline else None
        if trampoline is None or source is None or nested >= _NESTED:
            return None
        original = source + address - trampoline.start
        return None if original == address else self.find(original, nested + 1)
