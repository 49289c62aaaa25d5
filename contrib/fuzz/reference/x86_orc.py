# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64 with ORC: arch/x86/kernel/unwind_orc.c and ``arch_stack_walk_reliable()`` of
arch/x86/kernel/stacktrace.c, of 6.1, 6.12 and 7.2.
"""

from __future__ import annotations

from contrib.fuzz.reference.answers import Unreliable
from contrib.fuzz.reference.code import Code
from contrib.fuzz.reference.machine import M, Machine
from contrib.fuzz.reference.orc import FRAME_POINTER_ENTRY, NULL_ENTRY, Orc
from contrib.fuzz.reference.tracers import Tracers

FRAME = 56
"""``sizeof(struct inactive_task_frame)``; ``bp`` is at 40, ``ret_addr`` at 48."""
UNDEFINED, END, CALL, REGS, PARTIAL = range(5)
"""Types of entries, numbered as since 6.4."""
OLD_NAMES = (
    *("undefined", "prev_sp", "dx", "di", "bp"),
    *("sp", "r10", "r13", "bp_indirect", "sp_indirect"),
)
NEW_NAMES = (
    *("undefined", "ax", "dx", "sp", "bp", "di"),
    *("r10", "r13", "prev_sp", "sp_indirect", "bp_indirect"),
)
CODE = 0x300
"""Bytes of ``__unwind_start()`` that the comparison is among."""
NEW_HASH = "137c36ad7627c4dd55932176bb0ecdbd5041fc82"


class Entry:
    """One ``struct orc_entry``."""

    def __init__(self, sp: str, sp_offset: int, bp: str, bp_offset: int, kind: int, signal: bool):
        self.sp, self.sp_offset, self.bp, self.bp_offset = sp, sp_offset, bp, bp_offset
        self.kind, self.signal = kind, signal


class Walk:
    """``struct unwind_state`` and what moves it. ``done`` and ``error`` are the kernel's."""

    def __init__(self, machine: Machine, code: Code, task: int, stack: int) -> None:
        self.m, self.code, self.task = machine, code, task
        self.tracers = Tracers(machine, task)
        self.begin, self.end = stack, stack + machine.thread_size
        self.old = machine.symbol("__start_orc_header") is None
        header = machine.symbol("__start_orc_header")
        renumbered = header is not None and bytes(
            machine.number(header + i, 1) for i in range(20)
        ).hex() == NEW_HASH  # fmt: skip
        self.names = NEW_NAMES if renumbered else OLD_NAMES
        self.orc = Orc(machine, code, 6, bpf=machine.has("bpf_ksym", "fp_start"))
        self.frame_pointers = self.blind = False
        self.visited = self.error = False
        self.regs = self.prev_regs = 0
        self.full = False
        self.on_task_stack = False
        self._start()

    @property
    def done(self) -> bool:
        return not self.on_task_stack

    # Stacks ------------------------------------------------------------------------------

    def _on_stack(self, address: int, size: int) -> bool:
        return (
            self.on_task_stack
            and self.begin <= address < self.end
            and self.begin < address + size <= self.end
        )

    def _stack_info(self, address: int) -> bool:
        """``get_stack_info()`` for a task that is not current: its own stack, once."""
        self.on_task_stack = self.begin <= address < self.end and not self.visited and address != 0
        self.visited |= self.on_task_stack
        return self.on_task_stack

    def _access(self, address: int, size: int) -> None:
        if self._on_stack(address, size):
            return
        if not (self._stack_info(address) and self._on_stack(address, size)):
            raise Unreliable(f"{address:#x} is off the stack")

    def _deref(self, address: int) -> int:
        self._access(address & M, 8)
        return self.m.number(address)

    # Start -------------------------------------------------------------------------------

    def _start(self) -> None:
        m = self.m
        ready = m.symbol("orc_init")
        if ready is not None and not m.number(ready, 1):
            raise Unreliable("no ORC")
        frame = m.get("task_struct", self.task, "thread.sp")
        self.sp = frame + FRAME & M
        self.bp = m.number(frame + 40) if self._readable(frame) else 0
        self.ip = m.number(frame + 48) if self._readable(frame) else 0
        self.signal = self._never_ran()
        if not self._stack_info(self.sp):
            raise Unreliable("the saved stack pointer is off the stack")
        while not self.done and (not self._on_stack(frame, 8) or self.sp <= frame):
            self.blind = True
            self.next()

    def _never_ran(self) -> bool:
        """All kernels of the dumps compare with the stub. Some of others compare with the C
        function: only the code tells."""
        stub, function = (self.m.symbol(f"ret_from_fork{end}") for end in ("_asm", ""))
        if self.ip in (stub, function) and stub is not None:
            start = self.m.need("__unwind_start")
            for at in (start, start + CODE - 1):
                self.m.number(at, 1)
        return self.ip == (stub or function)

    def _readable(self, frame: int) -> bool:
        """Where the frame is off the stack, the walk fails whatever is there: the dump need not
        have it."""
        return self.begin <= self.sp < self.end and frame <= self.sp

    # One step ----------------------------------------------------------------------------

    def next(self) -> None:
        if self.done:
            return
        try:
            self.on_task_stack = self._step() and self.on_task_stack
        except Unreliable:
            self.error, self.on_task_stack = True, False

    def user_mode(self) -> bool:
        return bool(self.m.get("pt_regs", self.regs, "cs") & 3)

    def _entry(self, ip: int) -> Entry:
        place = self.orc.find(ip)
        if place == NULL_ENTRY:
            return Entry("sp", 8, "undefined", 0, CALL, False)
        if place is None or place == FRAME_POINTER_ENTRY:
            self.error |= place is None
            return Entry("bp", 16, "prev_sp", -16, CALL, False)
        sp_offset, bp_offset = (self.m.number(place + at, 2, signed=True) for at in (0, 2))
        flags = self.m.number(place + 4, 2)
        sp, bp = (self._name(flags >> shift & 15) for shift in (0, 4))
        if self.old:
            kind = (CALL, REGS, PARTIAL, -1)[flags >> 8 & 3]
            if sp == "undefined":
                kind = END if flags >> 10 & 1 else UNDEFINED
            signal = kind != CALL
        else:
            kind, signal = flags >> 8 & 7, bool(flags >> 11 & 1)
        return Entry(sp, sp_offset, bp, bp_offset, kind, signal)

    def _name(self, number: int) -> str:
        return self.names[number] if number < len(self.names) else "unknown"

    def _register(self, name: str) -> int | None:
        """``get_reg()``."""
        if not self.regs:
            return None
        regs = self.regs if self.full else self.prev_regs
        return self.m.get("pt_regs", regs, name) if regs else None

    def _step(self) -> bool:
        """``unwind_next_frame()``; False at an end that is no error."""
        if self.regs and self.user_mode():
            return False
        entry = self._entry(self.ip if self.signal else self.ip - 1 & M)
        if entry.kind == UNDEFINED:
            raise Unreliable("undefined")
        if entry.kind == END:
            return False
        self.signal = entry.signal
        before = self.sp
        sp = self._previous_sp(entry)
        if entry.kind == CALL:
            ip = self._deref(sp - 8)
            self.ip = self._hooked(self.tracers.graph_return(ip, sp - 8 & M), sp - 8)
            self.sp, self.regs, self.prev_regs = sp, 0, 0
        elif entry.kind in (REGS, PARTIAL):
            self._to_regs(sp, entry.kind == REGS)
        else:
            raise Unreliable("unknown type")
        self._previous_bp(entry, sp)
        if self._on_stack(self.sp, 8) and self.sp <= before:
            raise Unreliable("the stack pointer went down")
        return True

    def _hooked(self, ip: int, slot: int) -> int:
        if ip != self.tracers.probe_trampoline:
            return ip
        return self.tracers.probe_return(slot & M)

    def _previous_sp(self, entry: Entry) -> int:
        if entry.sp == "sp":
            return self.sp + entry.sp_offset & M
        if entry.sp == "bp":
            return self.bp + entry.sp_offset & M
        if entry.sp == "sp_indirect":
            return self._deref(self.sp) + entry.sp_offset & M
        if entry.sp == "bp_indirect":
            return self._deref(self.bp + entry.sp_offset)
        if entry.sp not in ("ax", "dx", "di", "r10", "r13"):
            raise Unreliable("unknown base")
        found = self._register(entry.sp)
        if found is None:
            raise Unreliable("register not saved")
        return found

    def _to_regs(self, sp: int, full: bool) -> None:
        m = self.m
        missing = 0 if full else m.offset("pt_regs", "ip")
        size = m.size("pt_regs") - missing
        self._access(sp, size)
        regs = sp - missing & M
        self.ip, self.sp = m.get("pt_regs", regs, "ip"), m.get("pt_regs", regs, "sp")
        self.ip = self._hooked(self.ip, self.sp - 8)
        if full:
            self.prev_regs = 0
        elif self.full:
            self.prev_regs = self.regs
        self.regs, self.full = regs, full

    def _previous_bp(self, entry: Entry, sp: int) -> None:
        if entry.bp == "undefined":
            found = self._register("bp")
            self.bp = self.bp if found is None else found
        elif entry.bp == "prev_sp":
            self.bp = self._deref(sp + entry.bp_offset)
        elif entry.bp == "bp":
            self.bp = self._deref(self.bp + entry.bp_offset)
        else:
            raise Unreliable("unknown base of bp")
