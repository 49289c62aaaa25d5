# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which one: what a piece of generated or patched code was made for.

Everything here only adds names to what :mod:`drgn_reliable.text` has decided. What the dump
lacks is None, without a word.
"""

from __future__ import annotations

from collections.abc import Callable

from drgn import FaultError, Program

from drgn_reliable.bpfcode import BpfOwners
from drgn_reliable.firmware import Firmware
from drgn_reliable.generated import BpfText, FtraceTrampoline, GeneratedText
from drgn_reliable.memory import gather
from drgn_reliable.modules import Module
from drgn_reliable.patches import Patches
from drgn_reliable.probes import Kprobes
from drgn_reliable.sections import ModuleSections
from drgn_reliable.symbols import Symbols

__all__ = ("Owners", "ftrace_user")

Namer = Callable[[int], str]
"""Names an address, in hex if need be."""

_LIVEPATCH_CALLBACK = "klp_ftrace_handler"

_FTRACE_USERS = (
    (_LIVEPATCH_CALLBACK, "livepatch"),
    ("kprobe_ftrace_handler", "kprobes"),
    ("fprobe_", "fprobes"),
    ("function_", "function tracer"),
    ("ftrace_graph_func", "function graph tracer"),
    ("call_direct_funcs", "direct calls"),
    ("perf_ftrace_function_call", "perf"),
    ("stack_trace_call", "stack tracer"),
)
"""Who registers a callback of a name that begins so."""

_EVERY_OPS = ("ftrace_ops_list_func", "arch_ftrace_ops_list_func")
"""Called where one trampoline serves several users: goes through the list of them."""
_NO_OPS = ("ftrace_stub",)
_FEW = 3
"""Callbacks that are named where any of them may be meant."""


def ftrace_user(callback: str) -> str | None:
    """Who registers an ftrace callback of this name.

    >>> ftrace_user("klp_ftrace_handler"), ftrace_user("my_callback")
    ('livepatch', None)
    """
    return next((who for begin, who in _FTRACE_USERS if callback.startswith(begin)), None)


class Owners:
    """What the dump tells of the users of generated code."""

    def __init__(self, prog: Program, symbols: Symbols, generated: GeneratedText) -> None:
        self._prog = prog
        self._symbols = symbols
        self._generated = generated
        self._bpf = BpfOwners(prog, symbols, generated.problems)
        self._sections = ModuleSections(prog)
        self.patches = Patches(prog, symbols, generated.problems)
        self.kprobes = Kprobes(prog, symbols, generated.problems)
        self.firmware = Firmware(prog, symbols)

    def ftrace(self, trampoline: FtraceTrampoline, name: Namer) -> str:
        """The callback of a trampoline and, if that is known, whose it is."""
        return self._callback(trampoline.callback, trampoline.ops, name)

    def static_ftrace(self, name: Namer) -> str | None:
        """The callback that ftrace's own entry code calls, which serves those that have no
        trampoline of their own."""
        place = self._symbols.address("ftrace_trace_function")
        try:
            callback = self._prog.read_u64(place) if place is not None else 0
        except FaultError:
            return None
        called = name(callback)
        if not callback or called in _NO_OPS:
            return None
        if called not in _EVERY_OPS:
            return self._callback(callback, 0, name)
        # Not the list as the text has it, which would make a line of what the dump lacks of it.
        registered, _ = gather([], "ftrace ops", self._generated.each_ops)
        callbacks = dict.fromkeys(ops.callback for ops in registered)
        if len(callbacks) > _FEW:
            return f"one of {len(callbacks)} callbacks"
        return " or ".join(self._callback(each, 0, name) for each in callbacks) or None

    def _callback(self, callback: int, ops: int, name: Namer) -> str:
        called = name(callback)
        user = ftrace_user(called)
        if user is None:
            return called
        patched = self.patches.traced(ops) if ops and called == _LIVEPATCH_CALLBACK else None
        return f"{called} ({user} of {patched})" if patched else f"{called} ({user})"

    def kprobe(self, pc: int, optimised: bool, name: Namer) -> str | None:
        """The probed place whose slot an address is in."""
        probe = self.kprobes.of_slot(pc, optimised)
        return name(probe.probed) if probe else None

    def bpf(self, code: BpfText, name: Namer) -> str | None:
        """What BPF code is attached to."""
        return self._bpf.of(code, name)

    def livepatch(self, address: int) -> str | None:
        """What the function at an address replaces, and the patch; None if the address is in none
        that replaces another."""
        found = self.patches.replacing(address)
        if found is None:
            return None
        patch, functions = found
        return f"{', '.join(function.name for function in functions)} ({patch.name})"

    def section(self, module: Module, address: int) -> str | None:
        """The section of a module that an address is in."""
        return self._sections.at(module, address)
