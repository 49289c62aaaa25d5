# SPDX-License-Identifier: LGPL-2.1-or-later
"""Say of a program counter what code it is: ``__kernel_text_address()`` with a name for each
way of being text. Every program counter is decided once for the whole dump.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from drgn import FaultError, Program

from drgn_reliable.generated import GeneratedText
from drgn_reliable.memory import MASK
from drgn_reliable.model import Code, CodeKind, CodeRole
from drgn_reliable.modules import Module, ModuleList
from drgn_reliable.owners import Owners
from drgn_reliable.roles import CodeNames, Roles
from drgn_reliable.symbols import Symbols

__all__ = ("CodeRules", "Text", "lookup_address")

_DOUBTS = {
    CodeKind.VSYSCALL: "vsyscall-page",
    CodeKind.INIT: "init-text-freed",
    CodeKind.OPTPROBE: "optprobe-hides-function",
}
"""Text that the kernel accepts and that nevertheless holds no function to return to."""

_RETURNING = {
    "return_to_handler": "fgraph-returning",
    "arch_rethook_trampoline": "rethook-returning",
    "__kretprobe_trampoline": "rethook-returning",
}
"""Trampolines that give a rewritten return address back: what it means to be inside one."""


def lookup_address(pc: int, exact: bool) -> int:
    """The address to look up for a program counter: the one place for the ``pc - 1`` rule.

    A return address may lie past the end of its function, after a call that never returns; the
    byte before belongs to the call. An interrupted instruction's address is taken as it is.
    """
    return pc if exact else pc - 1 & MASK


def _no_gate(prog: Program, symbols: Symbols) -> tuple[int, int] | None:
    return None


@dataclass(frozen=True)
class CodeRules:
    """What an architecture says of code."""

    ends_call: Callable[[bytes], bool]
    """Whether ``longest_call`` bytes of code end with a call instruction."""
    longest_call: int
    """Bytes before a return address that are looked at for one."""
    pushed_returns: Collection[str] = ()
    """Functions to which the return address is pushed, not left by a call."""
    pushing_kinds: Collection[CodeKind] = ()
    """Kinds of generated code to which all return addresses are pushed so."""
    gate: Callable[[Program, Symbols], tuple[int, int] | None] = _no_gate
    """The gate area, text by ``in_gate_area_no_mm()`` though no kernel function is there: first
    address and the one behind it, None if there is none."""
    names: CodeNames = field(default_factory=CodeNames)
    """By which special code is known."""


class Text:
    """The dump's text, core, modules and generated.

    :param trampolines: addresses that a tracer puts in place of return addresses.
    :param owners: tells what generated code was made for; without it, :attr:`Code.of` is None.
    """

    def __init__(
        self,
        prog: Program,
        symbols: Symbols,
        modules: ModuleList,
        generated: GeneratedText,
        rules: CodeRules,
        trampolines: Collection[int | None] = (),
        owners: Owners | None = None,
    ) -> None:
        self._prog = prog
        self._symbols = symbols
        self._rules = rules
        self._roles = Roles(prog, symbols, generated, rules.names, owners)
        self._trampolines = frozenset(trampolines)
        self.modules = modules
        self.generated = generated
        self.core = (symbols.required("_stext"), symbols.required("_etext"))
        self.init = (symbols.required("_sinittext"), symbols.required("_einittext"))
        self._gate = rules.gate(prog, symbols) or (0, 0)
        self._interrupted: dict[int, Code] = {}
        self._returned_to: dict[int, Code] = {}

    def at(self, pc: int, exact: bool) -> Code:
        """Classify and name a program counter.

        :param exact: ``pc`` is an interrupted instruction, not a return address.
        """
        known = self._interrupted if exact else self._returned_to
        code = known.get(pc)
        if code is None:
            code = known[pc] = self._decide(pc, exact)
        return code

    def in_core(self, address: int) -> bool:
        """Whether an address lies between ``_stext`` and ``_etext``."""
        return self.core[0] <= address < self.core[1]

    def in_init(self, address: int) -> bool:
        """Whether an address lies in the core kernel's init text."""
        return self.init[0] <= address < self.init[1]

    def nature(self, address: int) -> str | None:
        """What is known of an address that is no kernel text, in words; None if nothing is."""
        code = self.at(address, exact=True)
        if code.module:
            return f"data of module {code.module}"
        if code.role is not CodeRole.UNKNOWN:
            return str(code.role.value)
        end = self._symbols.address("_end")
        if end is not None and self.core[1] <= address < end:
            named = self._symbols.at(address)
            # Without its data in kallsyms the last function seems to go on.
            if named and named.start >= self.core[1]:
                return f"kernel data {named.name}+{address - named.start:#x}"
            return "kernel data"
        return None

    def _decide(self, pc: int, exact: bool) -> Code:
        exact = exact or pc in self._trampolines
        kind, module = self._kind(pc)
        address = lookup_address(pc, exact)
        symbol, offset = self._name(pc, address, kind, module)
        doubt = _DOUBTS.get(kind)
        if symbol in _RETURNING and offset:
            doubt = _RETURNING[symbol]
        # Some return addresses are pushed, not left by a call, and what is no text is not read.
        pushed = symbol in self._rules.pushed_returns or kind in self._rules.pushing_kinds
        called = not exact and not pushed and kind is not CodeKind.UNKNOWN
        if called and doubt is None and self._follows_call(pc) is False:
            doubt = "no-call-before"
        role = self._roles.of(pc, address, kind, symbol, module)
        of = self._roles.which(pc, address, role, kind, self.name)
        name = module.name if module else None
        return Code(pc, kind, symbol, offset, name, doubt, role, of)

    def _kind(self, pc: int) -> tuple[CodeKind, Module | None]:
        """The order is that of ``__kernel_text_address()`` (kernel/extable.c)."""
        if self.in_core(pc):
            return CodeKind.CORE, None
        if self._gate[0] <= pc < self._gate[1]:
            return CodeKind.VSYSCALL, None
        module = self.modules.containing(pc)
        region = module.region(pc) if module else None
        if region and region.text:
            return (CodeKind.MODULE_INIT if region.init else CodeKind.MODULE), module
        if self.generated.ftrace(pc):
            return CodeKind.FTRACE, None
        page = self.generated.kprobe(pc)
        if page:
            return (CodeKind.OPTPROBE if page.optimised else CodeKind.KPROBE), None
        if self.generated.bpf(pc):
            return CodeKind.BPF, None
        if self.in_init(pc):
            return CodeKind.INIT, None
        return CodeKind.UNKNOWN, module

    def _name(
        self, pc: int, address: int, kind: CodeKind, module: Module | None
    ) -> tuple[str | None, int]:
        named = None
        if kind in (CodeKind.CORE, CodeKind.INIT):
            named = self._symbols.at(address)
        elif module:
            region = module.region(address) or module.region(pc)
            named = module.symbol(self._prog, address, region) if region else None
        elif kind == CodeKind.BPF and (bpf := self.generated.bpf(pc)):
            return bpf.name, pc - bpf.start
        elif kind == CodeKind.FTRACE and (trampoline := self.generated.ftrace(pc)):
            return f"ftrace_trampoline({self.name(trampoline.callback)})", (pc - trampoline.start)
        elif kind in (CodeKind.KPROBE, CodeKind.OPTPROBE):
            page = self.generated.kprobe(pc)
            spelling = "kprobe_insn_page" if kind == CodeKind.KPROBE else "kprobe_optinsn_page"
            return spelling, pc - page.start if page else 0
        return (named.name, pc - named.start) if named else (None, 0)

    def name(self, address: int) -> str:
        """The name of a place, the symbol alone at its beginning."""
        kind, module = self._kind(address)
        # Never into another trampoline: a corrupt one could name itself.
        symbol, offset = None, 0
        if kind is not CodeKind.FTRACE:
            symbol, offset = self._name(address, address, kind, module)
        if symbol is None:
            return f"{address:#x}"
        return f"{symbol}+{offset:#x}" if offset else symbol

    def _follows_call(self, pc: int) -> bool | None:
        try:
            size = self._rules.longest_call
            return self._rules.ends_call(self._prog.read(pc - size & MASK, size))
        except FaultError:
            return None
