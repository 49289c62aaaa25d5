# SPDX-License-Identifier: LGPL-2.1-or-later
"""s390x: the back chain, as arch/s390/kernel/unwind_bc.c follows it, unchanged from 6.1 to 7.3.

The kernel is built with a packed stack: of the 160 bytes at the stack pointer, the last word is
the back chain, and a function saves its registers r6 to r15 there in its *caller's* frame. The
return address in a frame is therefore where its owner goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drgn import Program

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
from drgn_reliable.memory import MASK, member_offset, named_type
from drgn_reliable.model import CodeRole, End, FoundBy, Walk
from drgn_reliable.roles import CodeNames
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.framerule import Abi, CallerRegisters
from drgn_reliable.tasks import SavedContext, Task
from drgn_reliable.text import CodeRules

__all__ = ("ARCHITECTURE", "Facts", "S390xUnwinder", "ends_call")

FRAME_SIZE = 160
"""``struct stack_frame`` and ``STACK_FRAME_OVERHEAD``."""
R14_AT, BACK_CHAIN_AT = 136, 152

LOWCORE_STACKS = ("async_stack", "nodat_stack", "mcck_stack", "restart_stack")
"""Members of ``struct lowcore`` with the stack pointer at the start of each."""

USER_MODE = 1 << 48
"""``PSW_MASK_PSTATE``: the problem state bit."""

REGISTERS: Mapping[str, str] = {"psw.mask": "pswm", "psw.addr": "pswa"}
"""Members of ``struct pt_regs``, and what drgn calls these registers; r14 and r15 are elements of
its array ``gprs``."""

ABI = Abi(
    names={i: f"r{i}" for i in range(16)},
    sp=15,
    fp=11,
    ra=14,
    preserved=range(6, 14),
    sp_below_cfa=FRAME_SIZE,
)

NAMES = CodeNames(
    patterns={
        # arch/s390/kernel/entry.S: the new PSWs in the lowcore lead to these.
        r"(early_)?pgm_check_handler|(ext|io|mcck|restart)_int_handler": CodeRole.VECTORS,
        r"system_call|ret_from_fork": CodeRole.ENTRY,
        r"__s390_indirect_jump.*": CodeRole.THUNK,
    },
)


def ends_call(code: bytes) -> bool:
    """Whether 6 bytes of code end with BRASL, BRAS or BASR, with r14 for the return address, or JG
    (BRCL 15), to which ftrace patches the entry of a function that it comes back to.

    >>> ends_call(bytes.fromhex("c0e500001234")), ends_call(bytes.fromhex("00000000 0de1"))
    (True, True)
    >>> ends_call(bytes.fromhex("07fe07fe07fe"))
    False
    """
    return (
        code[:2] in (b"\xc0\xe5", b"\xc0\xf4")
        or code[-4:-2] == b"\xa7\xe5"
        or (code[-2] == 0x0D and code[-1] >> 4 == 14)
    )


class Facts(KernelFacts):
    """Sizes and places of the dumped kernel."""

    registers = REGISTERS

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        super().__init__(prog, symbols)
        gprs = self._offset(prog.type("struct pt_regs"), "gprs")
        self.register_offsets |= {name: gprs + 8 * i for i, name in ABI.names.items()}

    @property
    def status_offsets(self) -> Mapping[str, int]:
        """See :class:`drgn_reliable.arch.kernelfacts.KernelFacts`: ``s390_regs`` begins with the
        PSW and the general registers."""
        return {"psw.mask": 0, "psw.addr": 8, **{r: 16 + 8 * i for i, r in ABI.names.items()}}

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        """See :class:`drgn_reliable.arch.kernelfacts.KernelFacts`; arch/s390/kernel/dumpstack.c."""
        pointers = self._symbols.address("lowcore_ptr")
        if pointers is None:
            return
        lowcore = self._prog.read_u64(pointers + 8 * cpu & MASK)
        type_ = named_type(self._prog, "struct lowcore")
        for name in LOWCORE_STACKS:
            offset = member_offset(type_, name)
            start = self._prog.read_u64(lowcore + offset & MASK) if offset is not None else 0
            if start:
                low = start - (self.thread_size - FRAME_SIZE - self.regs_size)
                yield Range(name.removesuffix("_stack"), low, low + self.thread_size)


class S390xUnwinder(ChainUnwinder[StackState]):
    """See :class:`drgn_reliable.walk.Unwinder`."""

    ABI = ABI
    name = "back chain"

    # Start -------------------------------------------------------------------------------

    def start(self, task: Task, walk: Walk, *, proving: bool) -> StackState:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        state = StackState(task, self.task_stack_memory(task, task.saved_sp), proving)
        if task.on_cpu:
            self._start_running(state, walk)
        elif task.saved_sp & 7:
            sp = task.saved_sp
            walk.note("frame-misaligned", f"{sp:#x}", pc=None, sp=sp, value=sp)
            state.done = True
        elif not state.stack.contains(task.saved_sp, FRAME_SIZE):
            self.note_outside(state, walk, task.saved_sp, "saved stack pointer")
        else:
            self._to_frame(state, walk, task.saved_sp)
            if state.found_by is FoundBy.BACK_CHAIN:
                state.found_by = FoundBy.SWITCH_FRAME
        return state

    def _start_running(self, state: StackState, walk: Walk) -> None:
        registers = self.running_registers(state, walk, "psw.mask", "psw.addr", "r15")
        if registers is None:
            return
        state.regs = registers
        state.pc, state.sp = registers.get("psw.addr") or 0, registers.get("r15") or 0
        if not self.in_user_mode(state):
            self.enter_first(state, walk, state.sp)

    # One step ----------------------------------------------------------------------------

    def is_user_mode(self, regs: StackRegisters | CpuRegisters) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        return bool((regs.flags("psw.mask") or 0) & USER_MODE)

    def chain_fits(self, state: StackState, caller: CallerRegisters) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`: r15 is the caller's own, or
        the chain of the new frame leads to it."""
        return caller.sp in (state.sp, state.stack.word(state.sp + BACK_CHAIN_AT & MASK))

    def chain_formula(self, state: StackState) -> str:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        if not state.stack.word(state.sp + BACK_CHAIN_AT & MASK):
            last = state.sp + FRAME_SIZE == self.facts.user_regs(state.task.stack)
            what = "the end of the stack" if last else f"struct pt_regs at sp + {FRAME_SIZE}"
            return f"no back chain: {what}"
        return f"sp = *(sp + {BACK_CHAIN_AT}), pc = *(*(sp + {BACK_CHAIN_AT}) + {R14_AT})"

    def return_to(self, state: StackState, walk: Walk, caller: CallerRegisters) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        state.sp = caller.sp
        self._go_on_at(state, walk, caller.pc)

    def follow_chain(self, state: StackState, walk: Walk) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        state.done = True  # until it is known where to go on
        chain = self.read(state, walk, state.sp + BACK_CHAIN_AT & MASK)
        if chain is None:
            return
        if not chain:
            self._to_registers(state, walk, state.sp + FRAME_SIZE & MASK)
        elif self._reachable(state, walk, chain):
            state.done = False
            self._to_frame(state, walk, chain)

    def _reachable(self, state: StackState, walk: Walk, sp: int) -> bool:
        """Whether a walk may go on to a stack pointer (``outside_of_stack()`` and what
        follows)."""
        stack = state.stack
        if sp & 7:
            walk.note("frame-misaligned", f"{sp:#x}", pc=state.pc, sp=state.sp, value=sp)
            return False
        if state.sp < sp <= stack.high - FRAME_SIZE:
            return True
        if stack.contains(sp, FRAME_SIZE):
            detail = f"the back chain goes from {state.sp:#x} to {sp:#x}"
            walk.note("wrong-direction", detail, pc=state.pc, sp=state.sp, value=sp)
            return False
        if not self.enter(state, walk, sp, FRAME_SIZE):
            detail = f"the frame at {sp:#x} is not within an accessible stack"
            walk.note("frame-outside-stack", detail, pc=state.pc, sp=state.sp, value=sp)
            return False
        return True

    def _to_frame(self, state: StackState, walk: Walk, sp: int) -> None:
        pc = state.stack.word(sp + R14_AT)
        if pc is None:
            self.stop_unreadable(state, walk, sp + R14_AT)
            return
        state.regs, state.found_by = None, FoundBy.BACK_CHAIN
        state.exact = pc == self.facts.fork_return
        state.sp = sp
        self._go_on_at(state, walk, pc)

    def _to_registers(self, state: StackState, walk: Walk, at: int) -> None:
        """Where the back chain ends, there are registers: the last of a stack, or those of an
        interrupt."""
        size = self.facts.regs_size
        if not state.stack.contains(at, size):
            detail = f"the back chain ends at {state.sp:#x}, the stack at {state.stack.high:#x}"
            walk.note("end-misplaced", detail, pc=state.pc, sp=state.sp, value=state.sp)
            return
        if at == self.facts.user_regs(state.task.stack):
            state.end = End.END_OF_STACK
            return
        regs = StackRegisters(state.stack, at, self.facts.register_offsets)
        pc, sp, mask = regs.get("psw.addr"), regs.get("r15"), regs.flags("psw.mask")
        if pc is None or sp is None or mask is None:
            self.stop_unreadable(state, walk, at)
        elif mask & USER_MODE and state.stack.name == "async" and at + size == state.stack.high:
            state.end = End.USER_REGS
        elif self._reachable(state, walk, sp):
            state.regs, state.exact, state.found_by = regs, True, FoundBy.PT_REGS
            state.sp, state.done = sp, False
            self._go_on_at(state, walk, pc)

    def _go_on_at(self, state: StackState, walk: Walk, pc: int) -> None:
        """Put the real return address in place of a tracer's; the key is the stack pointer."""
        found: int | None = pc
        if found == self._graph.trampoline:
            found = self.traced_return(state, walk, state.sp)
        if found is not None and found == self._probes.trampoline:
            found = self.probed_return(state, walk, state.sp)
        if found is None:
            state.done = True
        else:
            state.pc = found


def _unwinder(parts: Parts, symbols: Symbols) -> StackUnwinder[Any]:
    return S390xUnwinder(parts)


ARCHITECTURE = Architecture(
    name="s390x",
    saved=SavedContext(sp="thread.ksp"),  # written by __switch_to_asm
    facts=Facts,
    code=CodeRules(ends_call, longest_call=6, names=NAMES),
    unwinder=_unwinder,
)
