# SPDX-License-Identifier: LGPL-2.1-or-later
"""s390x: arch/s390/kernel/unwind_bc.c, stacktrace.c and dumpstack.c, read in 6.12.

Registers in the chain end a reliable walk, so that it never goes on from any.
"""

from __future__ import annotations

from contrib.fuzz.reference.answers import Unreliable
from contrib.fuzz.reference.code import Code
from contrib.fuzz.reference.machine import M, Machine
from contrib.fuzz.reference.tracers import Tracers

OVERHEAD = 160
"""``STACK_FRAME_OVERHEAD``."""


class Walk:
    """``struct unwind_state`` and what moves it."""

    def __init__(self, machine: Machine, code: Code, task: int, stack: int) -> None:
        self.m, self.code, self.tracers = machine, code, Tracers(machine, task)
        self.begin, self.end = stack, stack + machine.thread_size
        self.frame = machine.size("stack_frame")
        self.r14 = machine.offset("stack_frame", "gprs") + 8 * 8
        self.chain = machine.offset("stack_frame", "back_chain")
        self.done = False
        sp = machine.get("task_struct", task, "thread.ksp")
        if not sp or sp & 7 or not self.begin <= sp < self.end or not self._on(sp, self.frame):
            raise Unreliable("the saved stack pointer is off the stack")
        self._at(sp)

    def _on(self, address: int, size: int) -> bool:
        return address + size <= M and self.begin <= address and address + size <= self.end

    def _at(self, sp: int) -> None:
        self.sp = sp
        ip = self.m.number(sp + self.r14)
        ip = self.tracers.graph_return(ip, sp)
        if ip == self.tracers.probe_trampoline:
            ip = self.tracers.probe_return(sp)
        self.ip = ip

    def next(self) -> None:
        """``unwind_next_frame()``."""
        sp = self.m.number(self.sp + self.chain)
        if not sp:
            regs = self.sp + OVERHEAD
            size = self.m.size("pt_regs")
            if not self._on(regs, size) or regs != self.end - size:
                raise Unreliable("no registers, or those of an interrupt")
            self.done = True
            return
        # Another stack than this one would have to be found, and a task has only one.
        if sp <= self.sp or sp > self.end - self.frame or sp & 7:
            raise Unreliable("the back chain leaves the stack")
        self._at(sp)
