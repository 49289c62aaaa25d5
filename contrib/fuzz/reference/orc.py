# SPDX-License-Identifier: LGPL-2.1-or-later
"""``orc_find()`` and ``__orc_find()`` (arch/x86/kernel/unwind_orc.c, arch/loongarch the same): the
place of an entry. They search as the kernel does, step for step, so that a damaged table leads to
the entry to which it would have led the kernel.
"""

from __future__ import annotations

from contrib.fuzz.reference.answers import Fault
from contrib.fuzz.reference.code import Code
from contrib.fuzz.reference.machine import M, Machine

BLOCK = 256
SAVE_REGS = 1 << 2
NULL_ENTRY, FRAME_POINTER_ENTRY = -1, -2
"""Of the entries that are built into the code."""


class Orc:
    """The tables.

    :param size: bytes of an entry.
    :param bpf: whether the kernel knows of BPF code with frame pointers.
    """

    def __init__(self, machine: Machine, code: Code, size: int, bpf: bool) -> None:
        self.m, self.code, self.size, self.bpf = machine, code, size, bpf
        self.ip = machine.need("__start_orc_unwind_ip")
        self.ip_end = machine.need("__stop_orc_unwind_ip")
        self.entries = machine.need("__start_orc_unwind")
        self.lookup = machine.need("orc_lookup")
        self.blocks = (machine.need("orc_lookup_end") - self.lookup) // 4

    def find(self, ip: int) -> int | None:
        """Address of the entry, or one of the built-in ones."""
        m = self.m
        if ip == 0:
            return NULL_ENTRY
        if self.code.in_core(ip):
            index = (ip - m.need("_stext")) // BLOCK
            if index >= self.blocks - 1:
                return None
            start = m.number(self.lookup + 4 * index, 4)
            stop = m.number(self.lookup + 4 * index + 4, 4) + 1 & 0xFFFFFFFF
            count = (self.ip_end - self.ip) // 4
            if start >= count or stop > count:
                return None
            return self._search(
                self.ip + 4 * start, self.entries + self.size * start, stop - start, ip
            )
        if self.code.in_init(ip):
            return self._search(self.ip, self.entries, (self.ip_end - self.ip) // 4, ip)
        found = self._in_module(ip)
        if found is None and self.bpf and self.code.bpf_has_frame_pointer(ip):
            return FRAME_POINTER_ENTRY
        return self._in_trampoline(ip) if found is None else found

    def _search(self, ip_table: int, entries: int, count: int, ip: int) -> int | None:
        if not count:
            return None
        if count < 0:
            raise Fault("the search begins beyond its end")
        first, last, found = 0, count - 1, 0
        while first <= last:
            mid = first + (last - first) // 2
            place = ip_table + 4 * mid
            if place + self.m.number(place, 4, signed=True) & M <= ip:
                found, first = mid, mid + 1
            else:
                last = mid - 1
        return entries + self.size * found & M

    def _in_module(self, ip: int) -> int | None:
        m, mod = self.m, self.code.module_at(ip)
        if mod is None or not m.has("module", "arch.orc_unwind"):
            return None
        entries = m.get("module", mod, "arch.orc_unwind")
        ip_table = m.get("module", mod, "arch.orc_unwind_ip")
        if not entries or not ip_table:
            return None
        return self._search(ip_table, entries, m.get("module", mod, "arch.num_orcs"), ip)

    def _in_trampoline(self, ip: int) -> int | None:
        ops = self.code.trampoline_of(ip)
        if ops is None:
            return None
        saves = self.m.get("ftrace_ops", ops, "flags") & SAVE_REGS
        source = self.m.symbol("ftrace_regs_caller" if saves else "ftrace_caller")
        if source is None:
            return None
        place = source + ip - self.m.get("ftrace_ops", ops, "trampoline") & M
        try:
            return None if place == ip else self.find(place)
        except RecursionError as e:
            raise Fault("trampolines of trampolines") from e
