# SPDX-License-Identifier: LGPL-2.1-or-later
"""``__kernel_text_address()`` (kernel/extable.c) and what it asks.

The kernel finds a module by a tree that the dump's ``modules`` list is the same as; where that list
is damaged, what is before the damage counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from contrib.fuzz.reference.answers import Fault
from contrib.fuzz.reference.machine import LOOPS, M, Machine

UNFORMED = 3
MOD_TEXT, MOD_INIT_TEXT = 0, 4
VSYSCALL, VSYSCALL_SIZE = 0xFFFFFFFFFF600000, 0x1000
VSYSCALL_NONE = 2


class Code:
    """What is kernel text."""

    def __init__(self, machine: Machine, gate: bool) -> None:
        self.m = machine
        self.gate = gate
        """x86_64: whether the vsyscall page counts."""

    def is_text(self, ip: int) -> bool:
        return (
            self.in_core(ip)
            or self._in_gate(ip)
            or self._in_module_text(ip)
            or self.trampoline_of(ip) is not None
            or self._in_kprobe_slot(ip)
            or self.bpf_at(ip) is not None
            or self.in_init(ip)
        )

    def in_core(self, ip: int) -> bool:
        return self.m.need("_stext") <= ip < self.m.need("_etext")

    def in_init(self, ip: int) -> bool:
        return self.m.need("_sinittext") <= ip < self.m.need("_einittext")

    def _in_gate(self, ip: int) -> bool:
        if not self.gate or not VSYSCALL <= ip < VSYSCALL + VSYSCALL_SIZE:
            return False
        mode = self.m.symbol("vsyscall_mode")
        return mode is not None and self.m.number(mode, 4) != VSYSCALL_NONE

    # Modules -----------------------------------------------------------------------------

    def module_at(self, ip: int) -> int | None:
        """``__module_address()``."""
        if not self._may_be_module(ip):
            return None
        return next((mod for mod in self._modules() if self._within(mod, ip)), None)

    def _may_be_module(self, ip: int) -> bool:
        """Whether the kernel searches at all: between the bounds of all modules that ever were, of
        which none was at 0. Small dumps lack the bounds."""
        tree = self.m.symbol("mod_tree")
        if tree is None or not self.m.has("mod_tree_root", "addr_min"):
            return ip != 0
        try:
            found = [
                self.m.get("mod_tree_root", tree, f"{data}addr_min") <= ip
                and ip <= self.m.get("mod_tree_root", tree, f"{data}addr_max")
                for data in ("", "data_")
                if self.m.has("mod_tree_root", f"{data}addr_min")
            ]
        except Fault:
            return ip != 0
        return ip != 0 and any(found)

    def _modules(self) -> Iterator[int]:
        head = self.m.symbol("modules")
        if head is None:
            return
        try:
            for mod in self.m.each("module", head, "list"):
                list(self._regions(mod))  # what cannot be read is no module
                if self.m.get("module", mod, "state") != UNFORMED:
                    yield mod
        except Fault:
            return

    def _regions(self, mod: int) -> Iterator[tuple[int, int, bool]]:
        """Base, size and whether it is text."""
        m = self.m
        if not m.has("module", "mem"):
            for name in ("core_layout", "init_layout"):
                base = m.get("module", mod, f"{name}.base")
                text = m.get("module", mod, f"{name}.text_size")
                yield base, text, True
                yield base, m.get("module", mod, f"{name}.size"), False
            return
        array = m.types.type("struct module").member("mem").type
        for kind in range(array.length or 0):
            path = f"mem[{kind}]"
            at = mod + m.offset("module", path)
            yield (
                m.get("module_memory", at, "base"),
                m.get("module_memory", at, "size"),
                kind in (MOD_TEXT, MOD_INIT_TEXT),
            )

    def _within(self, mod: int, ip: int) -> bool:
        return any((ip - base & M) < size for base, size, _ in self._regions(mod))

    def _in_module_text(self, ip: int) -> bool:
        mod = self.module_at(ip)
        if mod is None:
            return False
        return any((ip - base & M) < size for base, size, text in self._regions(mod) if text)

    # Generated code ----------------------------------------------------------------------

    def trampoline_of(self, ip: int) -> int | None:
        """``ftrace_ops_trampoline()``: the ops."""
        m = self.m
        head = m.symbol("ftrace_ops_list")
        if head is None or not m.has("ftrace_ops", "trampoline"):
            return None
        last = m.symbol("ftrace_list_end")
        try:
            ops = m.number(head)
            for _ in range(LOOPS):
                if ops in (0, last):
                    return None
                start = m.get("ftrace_ops", ops, "trampoline")
                size = m.get("ftrace_ops", ops, "trampoline_size")
                if start and size and start <= ip < start + size:
                    return ops
                ops = m.get("ftrace_ops", ops, "next")
        except Fault:
            pass
        return None

    def _in_kprobe_slot(self, ip: int) -> bool:
        for name in ("kprobe_optinsn_slots", "kprobe_insn_slots"):
            cache = self.m.symbol(name)
            if cache is None:
                continue
            head = cache + self.m.offset("kprobe_insn_cache", "pages")
            try:
                for page in self.m.each("kprobe_insn_page", head, "list"):
                    start = self.m.get("kprobe_insn_page", page, "insns")
                    if start <= ip < start + self.m.page_size:
                        return True
            except Fault:
                continue
        return False

    def bpf_at(self, ip: int) -> int | None:
        """``bpf_ksym_find()``."""
        head = self.m.symbol("bpf_kallsyms")
        if head is None:
            return None
        try:
            for ksym in self.m.each("bpf_ksym", head, "lnode"):
                start, end = (self.m.get("bpf_ksym", ksym, name) for name in ("start", "end"))
                if start <= ip <= end:
                    return ksym
        except Fault:
            pass
        return None

    def bpf_has_frame_pointer(self, ip: int) -> bool:
        ksym = self.bpf_at(ip)
        if ksym is None or not self.m.has("bpf_ksym", "fp_start"):
            return False
        first, last = (self.m.get("bpf_ksym", ksym, name) for name in ("fp_start", "fp_end"))
        offset = ip - self.m.get("bpf_ksym", ksym, "start") & M
        return bool(first and last and first <= offset < last)
