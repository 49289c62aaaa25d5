# SPDX-License-Identifier: LGPL-2.1-or-later
"""What code is there for: by its name, by where it is, and by who made it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from drgn import FaultError, Program

from drgn_reliable.bpfcode import bpf_role
from drgn_reliable.generated import GeneratedText
from drgn_reliable.model import CodeKind, CodeRole
from drgn_reliable.modules import Module
from drgn_reliable.owners import Owners
from drgn_reliable.symbols import Symbols

__all__ = ("CodeNames", "Pages", "Roles")


class Pages(NamedTuple):
    """Memory that a variable of the kernel points to, or each element of an array of them."""

    pointer: str
    """The variable."""
    size: int
    """Bytes at each place that is pointed to."""
    how_many: str | None = None
    """The variable (``unsigned int``) that says how many there are; None for one."""


@dataclass(frozen=True)
class CodeNames:
    """The names and places by which an architecture's code of a special kind is known."""

    exact: Mapping[str, CodeRole] = field(default_factory=dict)
    patterns: Mapping[str, CodeRole] = field(default_factory=dict)
    """By regular expressions that match the whole name."""
    between: Sequence[tuple[str, str, CodeRole]] = ()
    """By the symbols at the first byte and behind the last."""
    vectors: Sequence[Pages] = ()
    """Exception vectors that are not in the kernel's text."""
    sections: Mapping[str, CodeRole] = field(default_factory=dict)
    """By the section of a module."""


_EXACT = {
    "return_to_handler": CodeRole.GRAPH_RETURN,
    "arch_rethook_trampoline": CodeRole.RETURN_PROBE,
    "__kretprobe_trampoline": CodeRole.RETURN_PROBE,
    "kretprobe_trampoline": CodeRole.RETURN_PROBE,
    "ftrace_caller": CodeRole.FTRACE,
    "ftrace_common": CodeRole.FTRACE,
    "ftrace_common_return": CodeRole.FTRACE,
    "ftrace_epilogue": CodeRole.FTRACE,
    "ftrace_stub_direct_tramp": CodeRole.FTRACE,
    "bpf_dispatcher_nop_func": CodeRole.BPF_DISPATCHER,
}
_PATTERNS = {
    r"__SCT__.*": CodeRole.STATIC_CALL,
    r"ftrace_(regs_)?call(er_.*)?|ftrace_regs_caller|ftrace_graph_call(er)?": CodeRole.FTRACE,
}
_BETWEEN = (
    ("__entry_text_start", "__entry_text_end", CodeRole.ENTRY),
    ("__exittext_begin", "__exittext_end", CodeRole.EXIT),
)
_SECTIONS = {
    ".exit.text": CodeRole.EXIT,
    ".init.text": CodeRole.MODULE_INIT,
    ".entry.text": CodeRole.ENTRY,
}
"""What these mean on every architecture."""

_BY_KIND = {
    CodeKind.VSYSCALL: CodeRole.VSYSCALL,
    CodeKind.FTRACE: CodeRole.FTRACE,
    CodeKind.KPROBE: CodeRole.KPROBE,
    CodeKind.OPTPROBE: CodeRole.OPTPROBE,
    CodeKind.INIT: CodeRole.INIT,
    CodeKind.MODULE_INIT: CodeRole.MODULE_INIT,
}


class Roles:
    """Decides what code is there for.

    :param owners: tells which; without it nothing is told that has to be read for it.
    """

    def __init__(
        self,
        prog: Program,
        symbols: Symbols,
        generated: GeneratedText,
        names: CodeNames,
        owners: Owners | None,
    ) -> None:
        self._prog = prog
        self._symbols = symbols
        self._generated = generated
        self._names = names
        self._owners = owners
        self._exact = {**_EXACT, **names.exact}
        patterns = {**_PATTERNS, **names.patterns}
        self._patterns = [(re.compile(pattern), role) for pattern, role in patterns.items()]
        self._sections = {**_SECTIONS, **names.sections}

    def of(
        self, pc: int, address: int, kind: CodeKind, symbol: str | None, module: Module | None
    ) -> CodeRole:
        """What the code at a program counter is there for.

        :param address: what to look up for it (:func:`drgn_reliable.text.lookup_address`).
        """
        if kind in _BY_KIND:
            return _BY_KIND[kind]
        if kind is CodeKind.BPF:
            code = self._generated.bpf(pc)
            return bpf_role(code.name) if code else CodeRole.BPF_PROGRAM
        if kind is CodeKind.CORE:
            return self._named(symbol) or self._placed(address) or CodeRole.FUNCTION
        if kind is CodeKind.MODULE and module:
            return self._of_module(address, symbol, module)
        return self._of_unknown(pc)

    def which(
        self, pc: int, address: int, role: CodeRole, kind: CodeKind, name: Callable[[int], str]
    ) -> str | None:
        """Which of its role it is.

        :param name: names an address.
        """
        owners = self._owners
        if owners is None:
            return None
        if kind is CodeKind.FTRACE and (trampoline := self._generated.ftrace(pc)):
            return owners.ftrace(trampoline, name)
        if kind in (CodeKind.KPROBE, CodeKind.OPTPROBE):
            return owners.kprobe(pc, kind is CodeKind.OPTPROBE, name)
        if kind is CodeKind.BPF and (code := self._generated.bpf(pc)):
            return owners.bpf(code, name)
        if role is CodeRole.FTRACE:
            return owners.static_ftrace(name)
        if role is CodeRole.LIVEPATCH:
            return owners.livepatch(address)
        return None

    def _named(self, symbol: str | None) -> CodeRole | None:
        if symbol is None:
            return None
        matching = (role for pattern, role in self._patterns if pattern.fullmatch(symbol))
        return self._exact.get(symbol) or next(matching, None)

    def _placed(self, address: int) -> CodeRole | None:
        return next((role for start, end, role in self._ranges if start <= address < end), None)

    def _of_module(self, address: int, symbol: str | None, module: Module) -> CodeRole:
        owners = self._owners
        if owners is None:
            return self._named(symbol) or CodeRole.FUNCTION
        if owners.patches.replacing(address):
            return CodeRole.LIVEPATCH
        section = owners.section(module, address)
        role = self._sections.get(section) if section else None
        if role is None:
            role = self._named(symbol)
        return role or (CodeRole.EXIT if symbol == "cleanup_module" else CodeRole.FUNCTION)

    def _of_unknown(self, pc: int) -> CodeRole:
        if any(start <= pc < start + size for start, size in self._vectors):
            return CodeRole.VECTORS
        if self._owners is not None and pc in self._owners.firmware:
            return CodeRole.FOREIGN
        # Text once, of which the kernel knows nothing any more.
        return CodeRole.EXIT if self._placed(pc) is CodeRole.EXIT else CodeRole.UNKNOWN

    @cached_property
    def _ranges(self) -> list[tuple[int, int, CodeRole]]:
        found = []
        for first, behind, role in (*self._names.between, *_BETWEEN):
            start, end = self._symbols.address(first), self._symbols.address(behind)
            if start is not None and end is not None:
                found.append((start, end, role))
        return found

    @cached_property
    def _vectors(self) -> list[tuple[int, int]]:
        found = []
        for pages in self._names.vectors:
            try:
                found += [(start, pages.size) for start in self._pointed_to(pages) if start]
            except FaultError:
                continue
        return found

    def _pointed_to(self, pages: Pages) -> list[int]:
        place = self._symbols.address(pages.pointer)
        if place is None:
            return []
        count = 1
        if pages.how_many is not None:
            counted = self._symbols.address(pages.how_many)
            count = self._prog.read_u32(counted) if counted is not None else 0
        return [self._prog.read_u64(place + 8 * i) for i in range(min(count, 1 << 14))]
