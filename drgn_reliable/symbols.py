# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel symbols by name and by address.

The core kernel's come from the kallsyms tables in the dump's memory (drgn decodes them), or,
where VMCOREINFO does not say where those are (Linux before 6.0), from the ELF symbol table of
the debug information. A module's come from the symbol table that the kernel keeps for it.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from drgn import (
    BadDataError,
    FaultError,
    MissingDebugInfoError,
    Program,
    ProgramFlags,
    Symbol,
    SymbolBinding,
)
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

from drgn_reliable.errors import DumpError, MissingInformation
from drgn_reliable.kallsyms import check_kallsyms
from drgn_reliable.memory import MASK, Layout, byte_order, named_type

__all__ = ("Named", "Symbols", "module_symbols")


_UNUSABLE = (
    LookupError, ValueError, OverflowError, FaultError, BadDataError, MissingDebugInfoError
)  # fmt: skip
"""What drgn raises for kallsyms that are not there or damaged."""


class Named(NamedTuple):
    """The symbol that an address belongs to."""

    name: str
    start: int


class Symbols:
    """The core kernel's symbols.

    :attr:`source` says in words where they come from.
    :raises MissingInformation: if neither kallsyms nor ELF symbols are to be had.
    """

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._find: Callable[[Program, str | None, int | None, bool], Sequence[Symbol]]
        why = _damage(prog)
        try:
            self._find = _elf_symbols if why else load_vmlinux_kallsyms(prog)
        except _UNUSABLE as e:
            self._find = _elf_symbols
            why = str(e)
        self.kallsyms = self._find is not _elf_symbols
        self.source = "ELF symbols of the debug information"
        if self.kallsyms:
            live = prog.flags & ProgramFlags.IS_LIVE
            self.source = f"kallsyms in {'memory' if live else 'the dump'}"
        self._addresses: dict[str, int | None] = {}
        if self.address("_stext") is None:
            raise MissingInformation(
                "no kernel symbols: there is no debug information, and the dump's kallsyms cannot "
                f"be used ({why or 'no _stext'}); name the kernel's vmlinux with --symbols"
            )

    def finder(
        self, prog: Program, name: str | None, address: int | None, one: bool
    ) -> Sequence[Symbol]:
        """Symbol finder for :meth:`drgn.Program.register_symbol_finder`."""
        return self._find(prog, name, address, one)

    def address(self, name: str) -> int | None:
        """A symbol's address, the global one where several files have the name."""
        if name not in self._addresses:
            found = self._find(self._prog, name, None, False)
            if not found and self.kallsyms:
                # Without CONFIG_KALLSYMS_ALL it has no data; debug information does.
                found = _elf_symbols(self._prog, name, None, False)
            best = next((s for s in found if s.binding == SymbolBinding.GLOBAL), None)
            best = best or next(iter(found), None)
            self._addresses[name] = best.address if best else None
        return self._addresses[name]

    def required(self, name: str) -> int:
        """A symbol's address.

        :raises MissingInformation: if the kernel has no such symbol.
        """
        address = self.address(name)
        if address is None:
            raise MissingInformation(
                f"the kernel has no symbol {name!r} in its {self.source}; "
                "name the kernel's vmlinux with --symbols"
            )
        return address

    def first(self, *names: str) -> int | None:
        """The address of the first of the names that the kernel has (symbols get renamed)."""
        return next((a for a in map(self.address, names) if a is not None), None)

    def at(self, address: int) -> Named | None:
        """The function or object that an address lies in; none, if its name is no text."""
        found = self._find(self._prog, None, address, True)
        try:
            return Named(found[0].name, found[0].address) if found else None
        except UnicodeDecodeError:
            return None


def _damage(prog: Program) -> str:
    """What is wrong with kallsyms, empty if nothing is."""
    try:
        check_kallsyms(prog)
    except (DumpError, FaultError, ValueError) as e:
        return str(e)
    return ""


def _elf_symbols(
    prog: Program, name: str | None, address: int | None, one: bool
) -> Sequence[Symbol]:
    try:
        if one:
            return [prog.symbol(name if name is not None else address or 0)]
        found: list[Symbol] = prog.symbols(name if name is not None else address)
        return found
    except LookupError:
        return []


_SYMBOL_ENTRY = "IBBHQQ"  # Elf64_Sym: st_name st_info st_other st_shndx st_value st_size
_UNDEFINED_SECTION = 0
_SYMBOL_LIMIT = 1 << 20
"""Symbols: no module comes near it. A larger count is a corrupt one."""


class ModuleSymbols:
    """A module's symbols in order of address (``struct mod_kallsyms``)."""

    def __init__(self, entries: list[Named]) -> None:
        self._entries = sorted(entries, key=lambda named: named.start)
        self._starts = [named.start for named in self._entries]

    def at(self, address: int, low: int) -> Named | None:
        """The last symbol at or before an address and not below ``low`` (its section)."""
        i = bisect.bisect_right(self._starts, address) - 1
        # Of several names for one address the first in the table, as kallsyms shows it.
        while i > 0 and self._starts[i - 1] == self._starts[i]:
            i -= 1
        return self._entries[i] if i >= 0 and self._starts[i] >= low else None


def module_symbols(prog: Program, kallsyms: int) -> ModuleSymbols:
    """Read the symbols of a module.

    :param kallsyms: address of its ``struct mod_kallsyms``; 0 gives no symbols.
    :raises drgn.FaultError: if the dump lacks the tables.
    :raises MissingInformation: if the types do not say where they are.
    """
    if not kallsyms:
        return ModuleSymbols([])
    layout = Layout(
        named_type(prog, "struct mod_kallsyms"),
        {"symtab": "symtab", "count": "num_symtab", "strtab": "strtab"},
    )
    table = layout.read(prog, kallsyms)
    entry = struct.Struct(byte_order(prog) + _SYMBOL_ENTRY)
    if table["count"] > _SYMBOL_LIMIT:
        return ModuleSymbols([])
    data = prog.read(table["symtab"], entry.size * table["count"])
    rows: list[tuple[Any, ...]] = [
        row for row in entry.iter_unpack(data) if row[0] and row[3] != _UNDEFINED_SECTION
    ]
    if not rows:
        return ModuleSymbols([])
    last = max(row[0] for row in rows)
    tail = prog.read_c_string(table["strtab"] + last & MASK)
    strings: bytes = prog.read(table["strtab"], last + len(tail) + 1)

    def name(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode("utf-8", "backslashreplace")

    named = [Named(name(row[0]), row[4]) for row in rows]
    return ModuleSymbols([found for found in named if found.name and not _is_label(found.name)])


def _is_label(name: str) -> bool:
    """Whether a symbol marks code or data for the assembler rather than names it
    (``is_mapping_symbol()``, include/linux/module_symbol.h).

    >>> [_is_label(name) for name in (".LVL56", "L0^A", "$d", "foo")]
    [True, True, True, False]
    """
    return name.startswith((".L", "L0", "$"))
