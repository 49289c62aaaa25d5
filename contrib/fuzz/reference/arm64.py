# SPDX-License-Identifier: LGPL-2.1-or-later
"""arm64 since 6.17: arch/arm64/kernel/stacktrace.c and asm/stacktrace/common.h, read in 7.2."""

from __future__ import annotations

from contrib.fuzz.reference.answers import Unreliable
from contrib.fuzz.reference.machine import M, Machine
from contrib.fuzz.reference.tracers import Tracers

RECORD, META = 16, 24
FINAL = 1


class Walk:
    """``struct kunwind_state`` and what moves it."""

    def __init__(self, machine: Machine, task: int, stack: int) -> None:
        self.m, self.tracers = machine, Tracers(machine, task)
        self.task = task
        self.low, self.high = stack, stack + machine.thread_size
        regs = self.high - machine.size("pt_regs")
        self.final = regs + machine.offset("pt_regs", "stackframe")
        self.fp = machine.get("task_struct", task, "thread.cpu_context.fp")
        self.pc = machine.get("task_struct", task, "thread.cpu_context.pc")
        self._recover()

    def _on_stack(self, at: int, size: int) -> bool:
        return bool(self.low) and self.low <= at and at + size <= min(self.high, M)

    def _recover(self) -> None:
        """``kunwind_recover_return_address()``."""
        tracers = self.tracers
        traced = tracers.has_graph and self.m.get("task_struct", self.task, "ret_stack")
        if traced and self.pc == tracers.handler:
            found = tracers.graph_return(self.pc, self.fp)
            if found == self.pc:
                raise Unreliable("not on the tracer's stack")
            self.pc = found
        if self.pc == tracers.probe_trampoline:
            self.pc = tracers.probe_return(self.fp)
            if not self.pc:
                raise Unreliable("no such probe")

    def _plain(self, pc: int) -> int:
        """XPACLRI: bit 55 fills the bits of the code, of which user addresses have none above."""
        bits = self.m.pac_bits
        if pc >> 55 & 1:
            return pc | bits
        return pc & ~(bits & (1 << 55) - 1)

    def next(self) -> bool:
        """``kunwind_next()``; False at the end. Registers (``FRAME_META_TYPE_PT_REGS``) are what
        the reliable walk refuses to go on from."""
        if self.fp & 7:
            raise Unreliable("misaligned")
        if not self._on_stack(self.fp, RECORD):
            raise Unreliable("off the stack")
        fp, pc = self.m.number(self.fp), self.m.number(self.fp + 8)
        if not fp and not pc:
            if not self._on_stack(self.fp, META):
                raise Unreliable("off the stack")
            if self.m.number(self.fp + RECORD) == FINAL and self.fp == self.final:
                return False
            raise Unreliable("another record of zeroes")
        self.low = self.fp + RECORD
        self.fp, self.pc = fp, self._plain(pc)
        self._recover()
        return True
