# SPDX-License-Identifier: LGPL-2.1-or-later
"""arm64: frame records, as arch/arm64/kernel/stacktrace.c walks them.

A frame record is two words at x29, the caller's x29 and the return address. A record of two
zeroes is *meta* data since 6.13: a third word says whether it is the final one or the start of a
``struct pt_regs``. Older kernels end at the same place, but leave an ordinary record in the
registers of an exception, and have no reliable walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drgn import FaultError, Program, TypeKind

from drgn_reliable.arch.base import (
    Architecture,
    CpuRegisters,
    Parts,
    StackRegisters,
    StackState,
    StackUnwinder,
)
from drgn_reliable.arch.chain import ChainUnwinder
from drgn_reliable.arch.kernelfacts import KernelFacts, Range
from drgn_reliable.files.vmcoreinfo import number_in, values_of
from drgn_reliable.memory import MASK, StackMemory, member_type
from drgn_reliable.model import CodeKind, CodeRole, End, FoundBy, Walk
from drgn_reliable.roles import CodeNames
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.framerule import Abi, CallerRegisters
from drgn_reliable.tasks import SavedContext, Task
from drgn_reliable.text import CodeRules

__all__ = ("ARCHITECTURE", "Arm64Unwinder", "Facts", "ends_call")

RECORD_SIZE = 16
META_SIZE = 24
"""``struct frame_record_meta``: a record and a type."""
META_FINAL, META_PT_REGS = 1, 2
"""``FRAME_META_TYPE_FINAL`` and ``_PT_REGS``."""

USER_MODE = 0xF
"""Mode bits of PSTATE, which are 0 in EL0."""

USER_CODE_BITS = (1 << 55) - 1
"""Below bit 55; what is above is no part of the code of an address of user mode, and stays
(XPACLRI, with the top byte ignored)."""

OVERFLOW_STACK_SIZE = 4096

SDEI_STACKS = ("sdei_stack_normal_ptr", "sdei_stack_critical_ptr")

REGISTERS: Mapping[str, str] = {"pc": "pc", "sp": "sp", "pstate": "pstate"}
"""Members of ``struct pt_regs``, and what drgn calls these registers. x29 and x30 are elements of
its array ``regs``."""

FRAME_POINTER, LINK_REGISTER, STACK_POINTER = 29, 30, 31
"""As DWARF numbers them (AADWARF64); the first two are elements of ``regs``, too."""

ABI = Abi(
    names={
        **{i: f"x{i}" for i in range(FRAME_POINTER)},
        FRAME_POINTER: "fp",
        LINK_REGISTER: "lr",
        STACK_POINTER: "sp",
    },
    sp=STACK_POINTER,
    fp=FRAME_POINTER,
    ra=LINK_REGISTER,
    preserved=range(19, LINK_REGISTER),
)

NAMES = CodeNames(
    patterns={
        r"vectors|tramp_vectors|__bp_harden_el1_vectors|__hyp_stub_vectors": CodeRole.VECTORS,
        # What linkers put in for branches over more than 128 MB.
        r"__AArch64(ADRP|AbsLong)Thunk_.*|.*_veneer": CodeRole.PLT,
    },
    sections={
        ".plt": CodeRole.PLT,
        ".init.plt": CodeRole.PLT,
        ".text.ftrace_trampoline": CodeRole.PLT,
        ".init.text.ftrace_trampoline": CodeRole.PLT,
    },
)
"""The rest of the entry code is between ``__entry_text_start`` and ``__entry_text_end``."""


def ends_call(code: bytes) -> bool:
    """Whether 4 bytes of code are BL, BLR or one of its authenticating forms.

    >>> ends_call(bytes.fromhex("20010094")), ends_call(bytes.fromhex("60023fd6"))
    (True, True)
    >>> ends_call(bytes.fromhex("c0035fd6"))
    False
    """
    word = int.from_bytes(code, "little")
    return word >> 26 == 0b100101 or word & 0xFEFFF000 == 0xD63F0000


class Facts(KernelFacts):
    """Sizes and places of the dumped kernel."""

    registers = REGISTERS

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        super().__init__(prog, symbols)
        regs = prog.type("struct pt_regs")
        array = self._offset(regs, "regs")
        self.register_offsets |= {
            name: array + 8 * i for i, name in ABI.names.items() if i != STACK_POINTER
        }
        self.record_offset = self._offset(regs, "stackframe")
        """Of the frame record in ``struct pt_regs``."""
        self.has_meta = _is_meta(regs)
        self.pac_mask = _pac_mask(prog)

    def final_record(self, stack: int) -> int:
        """Where the outermost record of a task's stack is."""
        return self.user_regs(stack) + self.record_offset

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        """See :class:`drgn_reliable.arch.kernelfacts.KernelFacts`
        (arch/arm64/include/asm/stacktrace.h)."""
        prog, symbols, base = self._prog, self._symbols, self.per_cpu_base(cpu)

        def pointed(name: str) -> int:
            place = symbols.address(name)
            found: int = prog.read_u64(place + base & MASK) if place is not None else 0
            return found

        if irq := pointed("irq_stack_ptr"):
            yield Range("irq", irq, irq + self.thread_size)
        overflow = symbols.address("overflow_stack")
        if overflow is not None:
            low = overflow + base & MASK
            yield Range("overflow", low, low + OVERFLOW_STACK_SIZE)
        for name in SDEI_STACKS:
            if low := pointed(name):
                yield Range(name.removesuffix("_ptr"), low, low + self.thread_size)
        top = symbols.address("efi_rt_stack_top")
        if top is not None and (high := prog.read_u64(top)):
            yield Range("efi", high - self.thread_size, high)


def _is_meta(regs: Any) -> bool:
    """Whether the kernel marks the records of registers: then the member is a struct."""
    return bool(member_type(regs, "stackframe").kind == TypeKind.STRUCT)


def _pac_mask(prog: Program) -> int:
    """The bits of a kernel address that hold an authentication code
    (``NUMBER(KERNELPACMASK)``)."""
    values = values_of(prog["VMCOREINFO"].string_().decode("ascii", "replace"))
    return number_in(values, "NUMBER(KERNELPACMASK)", 0, 16)


class Arm64State(StackState):
    """The frame record that a walk is at."""

    __slots__ = ("fp", "consumed")

    def __init__(self, task: Task, stack: StackMemory, proving: bool) -> None:
        super().__init__(task, stack, proving)
        self.fp = 0
        self.consumed = 0
        """What was read of the present stack ends here; the next record is not below."""


class Arm64Unwinder(ChainUnwinder[Arm64State]):
    """See :class:`drgn_reliable.walk.Unwinder`."""

    ABI = ABI
    name = "frame records"
    frame_pointers = True
    sp_is_exact = False
    checks_text = False

    # Start -------------------------------------------------------------------------------

    def start(self, task: Task, walk: Walk, *, proving: bool) -> Arm64State:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        used_from = min(task.saved_sp, task.saved_fp) or task.stack
        state = Arm64State(task, self.task_stack_memory(task, used_from), proving)
        if task.on_cpu:
            self._start_running(state, walk)
        else:
            state.pc, state.fp, state.sp = task.saved_pc, task.saved_fp, task.saved_sp
            state.exact = state.pc == self.facts.fork_return
            state.done = not self._recover(state, walk)
        return state

    def _start_running(self, state: Arm64State, walk: Walk) -> None:
        registers = self.running_registers(state, walk, "pc", "sp", "fp", "pstate")
        if registers is None:
            return
        state.regs = registers
        state.pc, state.sp, state.fp = (registers.get(name) or 0 for name in ("pc", "sp", "fp"))
        if not self.in_user_mode(state):
            self.enter_first(state, walk, state.sp)

    # One step ----------------------------------------------------------------------------

    def is_user_mode(self, regs: StackRegisters | CpuRegisters) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        return not (regs.flags("pstate") or 0) & USER_MODE

    def chain_fits(self, state: Arm64State, caller: CallerRegisters) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`: x29 is the caller's own, or points
        to the record with which the function saved it."""
        fp = caller.registers.get(FRAME_POINTER)
        word = state.stack.word
        if fp == state.fp:
            return True
        saved = word(state.fp + 8)
        return fp == word(state.fp) and saved is not None and self._is_same(saved, caller.pc)

    def _is_same(self, one: int, other: int) -> bool:
        return self.plain_address(one) == self.plain_address(other)

    def chain_formula(self, state: Arm64State) -> str:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        if not self.facts.has_meta:
            if state.fp == self.facts.final_record(state.task.stack):
                return "fp is at the outermost record: the end of the stack"
        elif not (state.stack.word(state.fp) or state.stack.word(state.fp + 8)):
            kind = state.stack.word(state.fp + RECORD_SIZE)
            what = {META_PT_REGS: "the one in a struct pt_regs", META_FINAL: "the final one"}
            return f"a record of zeroes at fp, of type {kind}: {what.get(kind or 0, 'unknown')}"
        return "pc = *(fp + 8), sp = fp + 16, fp = *fp"

    def return_to(self, state: Arm64State, walk: Walk, caller: CallerRegisters) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        state.fp = caller.registers.get(FRAME_POINTER, 0)
        state.pc, state.sp = self.plain_address(caller.pc), caller.sp
        state.done = not self._recover(state, walk)

    def follow_chain(self, state: Arm64State, walk: Walk) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        record = state.fp
        if not self.facts.has_meta and record == self.facts.final_record(state.task.stack):
            state.end, state.done = End.END_OF_STACK, True
            return
        if record & 7:
            walk.note("frame-misaligned", f"{record:#x}", pc=state.pc, sp=state.sp, value=record)
            state.done = True
            return
        if not self._accessible(state, walk, record, RECORD_SIZE):
            return
        fp, pc = state.stack.word(record), state.stack.word(record + 8)
        if fp is None or pc is None:
            self.stop_unreadable(state, walk, record)
        elif not fp and not pc and self.facts.has_meta:
            self._to_meta(state, walk, record)
        elif not self._to_exception(state, walk, record, fp, pc):
            inner, low = state.pc, state.consumed or state.sp
            state.regs, state.exact, state.found_by = None, False, FoundBy.FRAME_POINTER
            state.consumed = record + RECORD_SIZE
            state.fp, state.pc, state.sp = fp, self.plain_address(pc), record + RECORD_SIZE
            state.done = not self._recover(state, walk)
            if not state.done:
                self.note_passed_over(state, walk, inner, low, record)

    def direct_call(self, pc: int) -> int | None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`: BL has 26 bits of words."""
        word = int.from_bytes(self._prog.read(pc - 4 & MASK, 4), "little")
        if word >> 26 != 0b100101:
            return None
        words = word & 0x3FFFFFF
        return pc - 4 + 4 * (words - (words >> 25 << 26)) & MASK

    def _accessible(self, state: Arm64State, walk: Walk, at: int, size: int) -> bool:
        """Whether the walk may read there: on a stack, above what it has read of it."""
        left = state.stack
        if not left.contains(at, size) and not self.enter(state, walk, at, size):
            registers = size == self.facts.regs_size
            reason = "regs-outside-stack" if registers else "frame-outside-stack"
            detail = f"the frame at {at:#x} is not within an accessible stack"
            walk.note(reason, detail, pc=state.pc, sp=state.sp, value=at)
            state.done = True
            return False
        if state.stack is not left:
            state.consumed = 0
        elif at < state.consumed:
            detail = f"the frame at {at:#x} is not above {state.consumed:#x}"
            walk.note("wrong-direction", detail, pc=state.pc, sp=state.sp, value=at)
            state.done = True
            return False
        return True

    def _to_meta(self, state: Arm64State, walk: Walk, record: int) -> None:
        if not self._accessible(state, walk, record, META_SIZE):
            return
        kind = state.stack.number(record + RECORD_SIZE)
        if kind is None:
            self.stop_unreadable(state, walk, record + RECORD_SIZE)
        elif kind == META_PT_REGS:
            self._to_registers(state, walk, record - self.facts.record_offset)
        elif kind == META_FINAL and record == self.facts.final_record(state.task.stack):
            state.end, state.done = End.END_OF_STACK, True
        else:
            what = "the final record" if kind == META_FINAL else f"a record of type {kind}"
            expected = self.facts.final_record(state.task.stack)
            detail = f"{what} at {record:#x}, the stack ends at {expected:#x}"
            walk.note("end-misplaced", detail, pc=state.pc, sp=state.sp, value=record)
            state.done = True

    def _to_exception(self, state: Arm64State, walk: Walk, record: int, fp: int, pc: int) -> bool:
        """Before 6.13 the record in an exception's registers is an ordinary one: it is known by
        the registers around it, which hold the same two words."""
        if self.facts.has_meta or state.regs is not None or not pc:
            return False
        at = record - self.facts.record_offset
        if not state.stack.contains(at, self.facts.regs_size):
            return False
        regs = StackRegisters(state.stack, at, self.facts.register_offsets)
        if not (regs.holds("fp", fp) and regs.holds("pc", pc)):
            return False
        self._to_registers(state, walk, at)
        return True

    def _to_registers(self, state: Arm64State, walk: Walk, at: int) -> None:
        size = self.facts.regs_size
        if not self._accessible(state, walk, at, size):
            return
        regs = StackRegisters(state.stack, at, self.facts.register_offsets)
        pc, sp, fp = (regs.get(name) for name in ("pc", "sp", "fp"))
        if pc is None or sp is None or fp is None:
            self.stop_unreadable(state, walk, at)
            return
        state.consumed = at + size
        state.regs, state.exact, state.found_by = regs, True, FoundBy.PT_REGS
        state.fp, state.pc, state.sp = fp, self.plain_address(pc), sp
        state.done = not self._recover(state, walk)

    # Return addresses --------------------------------------------------------------------

    @property
    def signs_returns(self) -> bool:
        """See :class:`drgn_reliable.arch.base.StackUnwinder`: with an authentication code."""
        return bool(self.facts.pac_mask)

    def plain_address(self, pc: int) -> int:
        """See :class:`drgn_reliable.arch.base.StackUnwinder`: without its authentication code; bit
        55 tells a kernel address."""
        mask: int = self.facts.pac_mask
        return pc | mask if pc >> 55 & 1 else pc & ~(mask & USER_CODE_BITS)

    def _recover(self, state: Arm64State, walk: Walk) -> bool:
        """Put the real return address in place of a tracer's; the key is the frame pointer that
        the traced function's caller had. Of a task that the tracer has no list for, the kernel
        takes the trampoline for the caller."""
        pc: int | None = state.pc
        if pc == self._graph.trampoline:
            listed = bool(state.task.ret_stack)
            reason = "fgraph-entry-missing" if listed else "fgraph-unrecovered"
            pc = self.traced_return(state, walk, state.fp, reason, looked_up=listed)
            if listed and pc == self._graph.trampoline:
                return False
        if pc is not None and pc == self._probes.trampoline:
            pc = self.probed_return(state, walk, state.fp)
        if pc is None:
            return False
        state.pc = pc
        return True

    def excuses(self, doubt: str, state: Arm64State) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`. ``ftrace_caller`` leaves a record with the
        address of the call that was patched in at a function's entry, not of what follows it."""
        if doubt != "no-call-before":
            return super().excuses(doubt, state)
        try:
            return ends_call(self._prog.read(state.pc, 4))
        except FaultError:
            return False


def _unwinder(parts: Parts, symbols: Symbols) -> StackUnwinder[Any]:
    return Arm64Unwinder(parts)


ARCHITECTURE = Architecture(
    name="aarch64",
    saved=SavedContext(  # written by cpu_switch_to
        sp="thread.cpu_context.sp", pc="thread.cpu_context.pc", fp="thread.cpu_context.fp"
    ),
    facts=Facts,
    # A BPF trampoline calls the traced function by a return to it.
    code=CodeRules(ends_call, longest_call=4, pushing_kinds=(CodeKind.BPF,), names=NAMES),
    unwinder=_unwinder,
)
