# SPDX-License-Identifier: LGPL-2.1-or-later
"""powerpc64, little-endian: the back chain, as arch/powerpc/kernel/stacktrace.c follows it.

At the stack pointer is the back chain; the word at +16 is the return address into the frame's
owner, put there by what it calls. The reliable walk has one end only: the frame at the very
place where copy_thread() begins a stack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from drgn import FaultError, Program

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
from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import MASK, StackMemory, member_offset, named_type, size_of
from drgn_reliable.model import CodeKind, CodeRole, End, FoundBy, TaskKind, Walk
from drgn_reliable.roles import CodeNames
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.framerule import Abi, CallerRegisters
from drgn_reliable.tasks import SavedContext, Task
from drgn_reliable.text import CodeRules

__all__ = ("ARCHITECTURE", "Facts", "Ppc64Unwinder", "ends_call")

LR_AT = 16
"""``STACK_FRAME_LR_SAVE``, in bytes."""
MIN_FRAME = 32
"""``STACK_FRAME_MIN_SIZE`` of the ELFv2 ABI."""
OLD_OVERHEAD = 112
"""``STACK_FRAME_OVERHEAD`` of kernels before 6.2, which use ELFv1's for exceptions."""
REGS_OVERHEAD = 48
"""What precedes the registers of an exception since (``STACK_INT_FRAME_REGS``)."""
RED_ZONE = 288
"""``KERNEL_REDZONE_SIZE``."""
REGS_MARKERS = (0x53474552, 0x7265677368657265)
"""``STACK_FRAME_REGS_MARKER`` since 6.1, and before."""
MARKER_AT, OLD_MARKER_AT = 32, 96
"""Where an exception's frame has it."""

WALK_SIZE = 512
"""Bytes of ``arch_stack_walk_reliable()`` that are looked at; it is a little longer."""
LOAD_MASK, LOAD = 0xFC000003, 0xE8000000
"""The instruction ``ld``; its offset is the lower half, its base register bits 16 to 20."""

LIVEPATCH_STUB = "livepatch_handler"

NAMES = CodeNames(
    exact={LIVEPATCH_STUB: CodeRole.LIVEPATCH_STUB},
    patterns={
        # exceptions-64s.S: what the vectors jump to; interrupt_64.S: the ways in and out.
        r".*_common_(real|virt)|(soft_nmi|machine_check_idle)_common": CodeRole.ENTRY,
        r"masked_H?interrupt|(fast_)?interrupt_return_.*": CodeRole.ENTRY,
        r"system_call_(common|vectored_).*|ret_from_(fork|kernel_).*": CodeRole.ENTRY,
        # What linkers put in for branches over more than 32 MB and calls through the TOC.
        r".*\.(plt_call|plt_branch|long_branch)\..*": CodeRole.PLT,
    },
    # The vectors, at the beginning of the kernel's text.
    between=(("_stext", "__end_interrupts", CodeRole.VECTORS),),
    sections={
        ".stubs": CodeRole.PLT,
        ".init.stubs": CodeRole.PLT,
        ".tramp.ftrace.text": CodeRole.PLT,
        ".tramp.ftrace.init": CodeRole.PLT,
    },
)
"""By it a livepatched function is entered, and returns (arch/powerpc/kernel/trace)."""

EMERGENCY_STACKS = ("emergency_sp", "nmi_emergency_sp", "mc_emergency_sp")
"""Members of ``struct paca_struct`` with the end of each."""
CONTEXT_STACKS = ("hardirq_ctx", "softirq_ctx")
"""Arrays with the start of each CPU's stack."""

USER_MODE = 1 << 14
"""``MSR_PR``."""

REGISTERS: Mapping[str, str] = {"nip": "nip", "link": "lr", "msr": "msr"}
"""Members of ``struct pt_regs``, and what drgn calls these registers; the others are elements of
its array ``gpr``."""

ABI = Abi(
    names={**{i: f"r{i}" for i in range(32)}, 65: "link"},
    sp=1,
    fp=31,
    ra=65,
    preserved=range(14, 32),
)


def ends_call(code: bytes) -> bool:
    """Whether 4 bytes of code branch and link: BL, BCTRL or BLRL.

    >>> ends_call(bytes.fromhex("0100 004b")), ends_call(bytes.fromhex("2104804e"))
    (True, True)
    >>> ends_call(bytes.fromhex("2000804e"))
    False
    """
    word = int.from_bytes(code, "little")
    return word & 0xFC000003 == 0x48000001 or word & 0xFC0007FF in (0x4C000421, 0x4C000021)


class Facts(KernelFacts):
    """Sizes and places of the dumped kernel."""

    registers = REGISTERS

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        super().__init__(prog, symbols)
        gpr = self._offset(prog.type("struct pt_regs"), "gpr")
        self.register_offsets |= {f"r{i}": gpr + 8 * i for i in range(32)}
        self.thread_struct_size = size_of(prog.type("struct thread_struct"))
        self.old_ends = symbols.address("start_kernel_thread") is None
        """Kernel threads have as much above their last frame as user tasks, as before 6.4."""
        self.old_layout = self._has_old_layout()
        overhead = OLD_OVERHEAD if self.old_layout else REGS_OVERHEAD
        self.regs_at = overhead
        """Of the registers in an exception's frame, in bytes."""
        self.marker_at = OLD_MARKER_AT if self.old_layout else MARKER_AT
        self.user_frame_size = self.regs_size + overhead
        """``STACK_USER_INT_FRAME_SIZE``."""
        self.exception_frame_size = self.user_frame_size + RED_ZONE
        """``STACK_INT_FRAME_SIZE``."""

    def _has_old_layout(self) -> bool:
        """Whether the frames of exceptions are those before 6.2. No type and no symbol tells, but
        the code of the kernel's walk does: from a frame it loads the back chain, the return
        address and the marker, wherever that is.

        :raises MissingInformation: if the dump lacks that code, and nothing else tells.
        """
        start = self._symbols.address("arch_stack_walk_reliable")
        code = b""
        try:
            code = self._prog.read(start, WALK_SIZE) if start is not None else code
        except FaultError as e:
            if self.old_ends:  # later than 6.3, it has the new one
                raise MissingInformation(
                    f"the dump lacks the code of arch_stack_walk_reliable at {start:#x}, which "
                    "tells how this kernel saves registers"
                ) from e
        loaded: dict[int, set[int]] = {}
        for (word,) in struct.iter_unpack("<I", code):
            if word & LOAD_MASK == LOAD:
                loaded.setdefault(word >> 16 & 31, set()).add(word & 0xFFFF)
        frames = [at for register, at in loaded.items() if register != 1 and {0, LR_AT} <= at]
        found = {at for offsets in frames for at in offsets & {MARKER_AT, OLD_MARKER_AT}}
        return found == {OLD_MARKER_AT} if len(found) == 1 else self.old_ends

    def user_regs(self, stack: int) -> int:
        """``task_pt_regs()``."""
        return stack + self.thread_size - self.user_frame_size + self.regs_at

    def stack_end(self, task: Task) -> int:
        """The frame at which the walk of a task has to end."""
        top = task.stack + self.thread_size
        smallest = OLD_OVERHEAD if self.old_layout else MIN_FRAME
        bare = (TaskKind.IDLE,) if self.old_ends else (TaskKind.IDLE, TaskKind.KTHREAD)
        return top - (smallest if task.kind in bare else self.user_frame_size)

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        """See :class:`drgn_reliable.arch.kernelfacts.KernelFacts`.

        The stacks are those of arch/powerpc/kernel/process.c.
        """
        prog, size = self._prog, self.thread_size
        for name in CONTEXT_STACKS:
            array = self._symbols.address(name)
            low = prog.read_u64(array + 8 * cpu & MASK) if array is not None else 0
            if low:
                yield Range(name.removesuffix("_ctx"), low, low + size)
        pacas = self._symbols.address("paca_ptrs")
        if pacas is None:
            return
        paca = prog.read_u64(prog.read_u64(pacas) + 8 * cpu & MASK)
        type_ = named_type(prog, "struct paca_struct")
        for name in EMERGENCY_STACKS:
            offset = member_offset(type_, name)
            high = prog.read_u64(paca + offset & MASK) if offset is not None else 0
            if high:
                yield Range(name.removesuffix("_sp"), high - size, high)


class Ppc64State(StackState):
    """The frame that a walk is at, and the stack's end."""

    __slots__ = ("last",)

    def __init__(self, task: Task, stack: StackMemory, proving: bool, last: int) -> None:
        super().__init__(task, stack, proving)
        self.last = last


class Ppc64Unwinder(ChainUnwinder[Ppc64State]):
    """See :class:`drgn_reliable.walk.Unwinder`."""

    ABI = ABI
    name = "back chain"
    checks_text = False
    """It is checked before it is recovered, in :meth:`_to_frame`."""

    # Start -------------------------------------------------------------------------------

    def start(self, task: Task, walk: Walk, *, proving: bool) -> Ppc64State:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        last = self.facts.stack_end(task)
        state = Ppc64State(task, self.task_stack_memory(task, task.saved_sp), proving, last)
        state.sp = task.saved_sp
        if task.on_cpu:
            self._start_running(state, walk)
        elif not self._is_within(state, task.saved_sp):
            self.note_outside(state, walk, task.saved_sp, "saved stack pointer")
        elif task.saved_sp & 15:
            walk.note("frame-misaligned", f"{state.sp:#x}", pc=None, sp=state.sp, value=state.sp)
            state.done = True
        else:
            # Of the switch frame only the back chain is looked at.
            self.step(state, walk)
            if state.found_by is FoundBy.BACK_CHAIN:
                state.found_by = FoundBy.SWITCH_FRAME
        return state

    def _is_within(self, state: Ppc64State, sp: int) -> bool:
        low = state.task.stack + self.facts.thread_struct_size
        return bool(low <= sp <= state.last - MIN_FRAME)

    def _start_running(self, state: Ppc64State, walk: Walk) -> None:
        registers = self.running_registers(state, walk, "nip", "r1", "msr")
        if registers is None:
            return
        state.regs = registers
        state.pc, state.sp = registers.get("nip") or 0, registers.get("r1") or 0
        if not self.in_user_mode(state):
            self.enter_first(state, walk, state.sp)

    # One step ----------------------------------------------------------------------------

    def is_user_mode(self, regs: StackRegisters | CpuRegisters) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        return bool((regs.flags("msr") or 0) & USER_MODE)

    def chain_fits(self, state: Ppc64State, caller: CallerRegisters) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`: r1 is the caller's own, or points to
        the new frame, which is linked as it is made."""
        return caller.sp in (state.sp, state.stack.word(state.sp))

    def chain_formula(self, state: Ppc64State) -> str:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        chain = state.stack.word(state.sp)
        if chain == state.last:
            return "*sp is the outermost frame: the end of the stack"
        if _is_marked(state.stack, (chain or 0) + self.facts.marker_at):
            return f"*sp is marked as an exception's: struct pt_regs at *sp + {self.facts.regs_at}"
        return f"sp = *sp, pc = *(*sp + {LR_AT})"

    def return_to(self, state: Ppc64State, walk: Walk, caller: CallerRegisters) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        self._go_on_at(state, walk, caller.pc, caller.sp)

    def follow_chain(self, state: Ppc64State, walk: Walk) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        state.done = True  # until it is known where to go on
        chain = self.read(state, walk, state.sp)
        if chain is None or not self._reachable(state, walk, chain):
            return
        if chain == state.last:
            state.end = End.END_OF_STACK
            return
        state.done = False
        self._to_frame(state, walk, chain)

    def _reachable(self, state: Ppc64State, walk: Walk, sp: int) -> bool:
        if sp == state.last and state.stack.contains(sp, 8):
            return True
        if sp & 15:
            walk.note("frame-misaligned", f"{sp:#x}", pc=state.pc, sp=state.sp, value=sp)
            return False
        if state.stack.contains(sp, MIN_FRAME):
            if sp <= state.sp:
                detail = f"the back chain goes from {state.sp:#x} to {sp:#x}"
                walk.note("wrong-direction", detail, pc=state.pc, sp=state.sp, value=sp)
                return False
            if sp > state.last - MIN_FRAME and state.stack.name == "task":
                detail = f"the back chain goes to {sp:#x}, the stack ends at {state.last:#x}"
                walk.note("end-misplaced", detail, pc=state.pc, sp=state.sp, value=sp)
                return False
            return True
        if self.enter(state, walk, sp, MIN_FRAME):
            return True
        detail = f"the frame at {sp:#x} is not within an accessible stack"
        walk.note("frame-outside-stack", detail, pc=state.pc, sp=state.sp, value=sp)
        return False

    def _to_frame(self, state: Ppc64State, walk: Walk, sp: int) -> None:
        pc = state.stack.word(sp + LR_AT)
        if pc is None:
            self.stop_unreadable(state, walk, sp + LR_AT)
            return
        state.regs, state.exact, state.found_by = None, False, FoundBy.BACK_CHAIN
        state.sp = sp
        end = state.last if state.stack.name == "task" else state.stack.high
        if sp <= end - self.facts.exception_frame_size:
            marked = _is_marked(state.stack, sp + self.facts.marker_at)
            if marked is None:
                self.stop_unreadable(state, walk, sp + self.facts.marker_at)
                return
            if marked:
                self._to_registers(state, walk, sp + self.facts.regs_at)
                return
        self._go_on_at(state, walk, pc, sp)

    def _go_on_at(self, state: Ppc64State, walk: Walk, pc: int, sp: int) -> None:
        """Put the real return address in place of a tracer's; the key is the stack pointer."""
        state.sp = sp
        if self.text.at(pc, exact=False).kind is CodeKind.UNKNOWN:
            walk.note("not-kernel-text", f"{pc:#x} is not kernel text", pc=pc, sp=sp, value=pc)
            state.done = True
            return
        found: int | None = pc
        if found == self._graph.trampoline:
            found = self.traced_return(state, walk, sp)
        if found is not None and found == self._probes.trampoline:
            found = self._probed(state, walk, sp)
        if found is None:
            state.done = True
            return
        state.pc = found
        if self.text.at(found, exact=False).symbol == LIVEPATCH_STUB:
            detail = "its caller's address is on the livepatch stack"
            walk.note("livepatch-hides-caller", detail, pc=found, sp=sp)

    def _probed(self, state: Ppc64State, walk: Walk, sp: int) -> int | None:
        """The kernel refuses every kretprobed function; the dump has the address."""
        detail = f"the return address at {sp + LR_AT:#x} belongs to a kretprobe"
        walk.note("rethook-refused", detail, pc=state.pc, sp=sp, value=sp + LR_AT)
        # Kretprobes before rethook keep no stack pointer here.
        key = sp if self._probes.refuses_runnable else 0
        return self.probed_return(state, walk, key, looked_up=False)

    def _to_registers(self, state: Ppc64State, walk: Walk, at: int) -> None:
        regs = StackRegisters(state.stack, at, self.facts.register_offsets)
        pc, sp = regs.get("nip"), regs.get("r1")
        if pc is None or sp is None:
            self.stop_unreadable(state, walk, at)
            return
        state.regs, state.exact, state.found_by = regs, True, FoundBy.PT_REGS
        state.pc = pc
        if self._reachable(state, walk, sp):
            state.sp = sp
        else:
            state.done = True

    def excuses(self, doubt: str, state: Ppc64State) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`. In 7.2 ftrace patches a function's entry with a
        branch to a stub of its own, and the stub calls."""
        if doubt != "no-call-before":
            return super().excuses(doubt, state)
        try:
            word = int.from_bytes(self._prog.read(state.pc - 4 & MASK, 4), "little")
        except FaultError:
            return False
        return word & 0xFC000003 == 0x48000000


def _is_marked(stack: StackMemory, at: int) -> bool | None:
    """Whether a frame's marker says that registers are in it; None if the dump lacks it."""
    old, new = (stack.holds(at, marker) for marker in REGS_MARKERS)
    return None if old is None or new is None else old or new


def _unwinder(parts: Parts, symbols: Symbols) -> StackUnwinder[Any]:
    return Ppc64Unwinder(parts)


ARCHITECTURE = Architecture(
    name="ppc64le",
    saved=SavedContext(sp="thread.ksp"),  # written by _switch
    facts=Facts,
    code=CodeRules(ends_call, longest_call=4, names=NAMES),
    unwinder=_unwinder,
)
