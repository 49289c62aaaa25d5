# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64 with frame pointers: arch/x86/kernel/unwind_frame.c, the same from 6.1 to 7.3."""

from __future__ import annotations

from contrib.fuzz.reference.code import Code
from contrib.fuzz.reference.machine import M, Machine
from contrib.fuzz.reference.tracers import Tracers

HEADER = 16


class Walk:
    """``struct unwind_state`` and what moves it."""

    def __init__(self, machine: Machine, code: Code, task: int, stack: int) -> None:
        self.m, self.code = machine, code
        self.tracers = Tracers(machine, task)
        self.begin, self.end = stack, stack + machine.thread_size
        padding = 16 if machine.symbol("asm_fred_entrypoint_user") else 0
        self.bottom_regs = self.end - padding - machine.size("pt_regs") & M
        self.frame_pointers, self.blind = True, False
        self.error = self.visited = self.on_task_stack = False
        self.bp = self.ip = self.regs = self.first = 0
        saved = machine.get("task_struct", task, "thread.sp")
        self._stack_info(saved + 40 & M)
        self._update(saved + 40 & M)
        while not self.done and (not self._on_stack(saved, 8) or self.bp < saved):
            self.next()

    @property
    def done(self) -> bool:
        return not self.on_task_stack

    def _stack_info(self, address: int) -> bool:
        self.on_task_stack = self.begin <= address < self.end and not self.visited and address != 0
        self.visited |= self.on_task_stack
        return self.on_task_stack

    def _on_stack(self, address: int, size: int) -> bool:
        return (
            self.on_task_stack
            and self.begin <= address < self.end
            and self.begin < address + size <= self.end
        )

    def user_mode(self) -> bool:
        return bool(self.m.get("pt_regs", self.regs, "cs") & 3)

    def _is_last(self) -> bool:
        """``is_last_task_frame()``."""
        m, last = self.m, self.bottom_regs - 16
        if self.bp == last:
            return True
        if self.bp == last - 8:
            return m.number(last) == m.number(last + 8)
        if self.bp == last - 24:
            return m.number(self.bp) == m.number(self.bp + 16) and m.number(
                self.bp + 8
            ) == m.number(self.bp + 32)
        return False

    def next(self) -> None:
        """``unwind_next_frame()``."""
        m = self.m
        if self.done:
            return
        if self.regs and self.user_mode():
            self.on_task_stack = False
        elif self._is_last():
            if not m.get("pt_regs", self.bottom_regs, "cs") & 3:
                self.on_task_stack = False
                return
            self.regs, self.bp, self.ip = self.bottom_regs, 0, 0
        else:
            following = m.get("pt_regs", self.regs, "bp") if self.regs else m.number(self.bp)
            if not self._update(following):
                self.error, self.on_task_stack = True, False

    def _update(self, bp: int) -> bool:
        """``update_stack_state()``. A task's stack leads to no other."""
        m = self.m
        previous = self.regs + m.size("pt_regs") if self.regs else self.bp + HEADER
        regs = bp & ~1 if bp & 1 else 0
        frame, size = (regs, m.size("pt_regs")) if regs else (bp, HEADER)
        if not self._on_stack(frame, size):
            self.on_task_stack = False
            return False
        if self.first and frame < previous:
            return False
        self.regs, self.bp = (regs, 0) if regs else (0, bp)
        if self.regs and self.user_mode():
            self.ip = 0
        else:
            slot = regs + m.offset("pt_regs", "ip") if regs else bp + 8
            ip = self.tracers.graph_return(m.number(slot), slot)
            if ip == self.tracers.probe_trampoline:
                ip = self.tracers.probe_return(slot)
            self.ip = ip
        self.first = self.first or frame
        return True
