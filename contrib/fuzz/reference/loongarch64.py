# SPDX-License-Identifier: LGPL-2.1-or-later
"""loongarch64 with ORC: arch/loongarch/kernel/unwind_orc.c, stacktrace.c and process.c, and
asm/unwind.h, read in 7.2.
"""

from __future__ import annotations

from contrib.fuzz.reference.answers import Unreliable
from contrib.fuzz.reference.code import Code
from contrib.fuzz.reference.machine import M, Machine
from contrib.fuzz.reference.orc import NULL_ENTRY, Orc
from contrib.fuzz.reference.tracers import Tracers

UNDEFINED, PREV_SP, SP, FP = range(4)
END, CALL, REGS = 1, 2, 3
INSTRUCTION = 4
VECTOR, INTERRUPTS, LAST_VECTOR, ROOM = 0x200, 64, 78, 128 * 0x200
"""``VECSIZE``, ``EXCCODE_INT_START``, ``EXCCODE_INT_END``, the size of ``exception_handlers``."""


class Walk:
    """``struct unwind_state`` and what moves it."""

    def __init__(self, machine: Machine, code: Code, task: int, stack: int) -> None:
        m = self.m = machine
        self.code, self.tracers = code, Tracers(machine, task)
        self.begin, self.end = stack, stack + m.thread_size
        self.orc = Orc(m, code, 8, bpf=False)
        self.fake = m.size("pt_regs") - self._reg(1)
        self.sp = m.get("task_struct", task, "thread.sched_cfa")
        self.pc = m.get("task_struct", task, "thread.sched_ra")
        self.fp = m.get("task_struct", task, "thread.reg22")
        self.ra = 0
        self.error = self.blind = False
        self._stack_info(self.sp)
        self.pc = self.tracers.graph_return(self.pc, self.sp - self.fake & M)
        if not self.done and not code.is_text(self.pc):
            self.next()

    def _reg(self, number: int) -> int:
        return self.m.offset("pt_regs", "regs") + 8 * number

    @property
    def done(self) -> bool:
        return not self.known

    def _stack_info(self, address: int) -> bool:
        self.known = bool(address) and not address & 7 and self.begin <= address < self.end
        return self.known

    def _access(self, address: int, size: int) -> None:
        def inside() -> bool:
            return self.known and self.begin <= address and address + size <= self.end

        if not inside() and not (self._stack_info(address) and inside()):
            raise Unreliable(f"{address:#x} is off the stack")

    def next(self) -> None:
        if self.done:
            return
        try:
            if not self._step():
                self.known = False
        except Unreliable:
            self.error, self.known = True, False

    def _step(self) -> bool:
        """``unwind_next_frame()``; False at an end that is no error."""
        m = self.m
        sp_offset, fp_offset, ra_offset, sp_reg, fp_reg, ra_reg, kind = self._entry()
        if kind == UNDEFINED:
            raise Unreliable("undefined")
        if kind == END:
            return False
        if sp_reg not in (SP, FP):
            raise Unreliable("unknown base")
        self.sp = self.sp + sp_offset & M if sp_reg == SP else self.fp
        if fp_reg == PREV_SP:
            place = self.sp + fp_offset & M
            self._access(place, 8)
            self.fp = m.number(place)
        elif fp_reg != UNDEFINED:
            raise Unreliable("unknown base of fp")
        if kind == CALL:
            pc = self._return_address(ra_reg, ra_offset)
        elif kind == REGS:
            found = self._registers(self.sp)
            if found is None:
                return False
            pc = found
        else:
            raise Unreliable("unknown type")
        self.pc = self._bt_address(pc)
        return True

    def _entry(self) -> tuple[int, int, int, int, int, int, int]:
        place = self.orc.find(self.pc)
        if place == NULL_ENTRY:
            return 8, 0, 0, SP, UNDEFINED, UNDEFINED, CALL
        if place is None:
            self.error = True
            return 16, -16, -8, FP, PREV_SP, PREV_SP, CALL
        offsets = [self.m.number(place + at, 2, signed=True) for at in (0, 2, 4)]
        bits = self.m.number(place + 6, 2)
        return (*offsets, bits & 15, bits >> 4 & 15, bits >> 8 & 15, bits >> 12 & 7)  # type: ignore[return-value]

    def _return_address(self, ra_reg: int, ra_offset: int) -> int:
        if ra_reg == PREV_SP:
            place = self.sp + ra_offset & M
            self._access(place, 8)
            ra = self.m.number(place)
        elif ra_reg == UNDEFINED:
            if not self.ra or self.ra == self.pc:
                raise Unreliable("no return address")
            ra, self.ra = self.ra, 0
        else:
            raise Unreliable("unknown base of ra")
        return self.tracers.graph_return(ra, self.sp - self.fake & M) - INSTRUCTION & M

    def _registers(self, regs: int) -> int | None:
        """The interrupted program counter; None at an end."""
        m = self.m
        size = m.size("pt_regs")
        self._access(regs, size)
        ra, sp, fp = (m.number(regs + self._reg(number)) for number in (1, 3, 22))
        if self.end == regs + size and not sp and not ra:
            return None
        if m.get("pt_regs", regs, "csr_prmd") & 3 == 3:
            return None
        pc = m.get("pt_regs", regs, "csr_era")
        if not self.code.is_text(pc):
            raise Unreliable("not text")
        self.sp, self.ra, self.fp = sp, ra, fp
        self.blind = not self._stack_info(self.sp)
        return pc

    def _bt_address(self, ra: int) -> int:
        m = self.m
        place = m.symbol("eentry")
        eentry = m.number(place) if place is not None else 0
        copies = m.symbol("pcpu_handlers")
        if copies is not None:
            for cpu in range(m.number(m.need("nr_cpu_ids"), 4)):
                start = m.number(copies + 8 * cpu)
                if start and start <= ra < start + ROOM:
                    ra = ra + eentry - start & M
                    break
        if eentry <= ra < eentry + LAST_VECTOR * VECTOR:
            kind, offset = divmod(ra - eentry, VECTOR)
            table = m.need("exception_table")
            handler = m.need("handle_vint") if kind >= INTERRUPTS else m.number(table + 8 * kind)
            ra = handler + offset & M
        if not self.code.is_text(ra):
            raise Unreliable("not text")
        return ra
