# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64 with the frame pointer unwinder: steps as arch/x86/kernel/unwind_frame.c does, which
did not change from 6.1 to 7.3.

A frame record is two words, the caller's frame pointer and the return address. Entry code puts an
*encoded* frame pointer in its place, an odd number: the address of a ``struct pt_regs`` plus one.
"""

from __future__ import annotations

from drgn_reliable.arch.base import StackRegisters, StackState
from drgn_reliable.arch.chain import ChainUnwinder
from drgn_reliable.arch.x86_64 import ABI, direct_call_target
from drgn_reliable.arch.x86_unwinder import X86Unwinder, in_user_mode
from drgn_reliable.memory import MASK, StackMemory
from drgn_reliable.model import CodeKind, CodeRole, End, FoundBy, Walk
from drgn_reliable.tables.framerule import CallerRegisters
from drgn_reliable.tasks import Task

__all__ = ("FramePointerUnwinder",)

RECORD_SIZE = 16
ENTRY_CALLS = (5, 9)
"""Bytes into a function that its first instruction, if it is a call, returns to: with ENDBR64
before it, 9."""
ENCODED = 1
"""The bit that tells a ``struct pt_regs`` from a frame record."""


class FramePointerState(StackState):
    """The frame that a walk is at: a record at ``bp``, or ``regs``."""

    __slots__ = ("bp", "frame_end", "following")

    def __init__(self, task: Task, stack: StackMemory, proving: bool) -> None:
        super().__init__(task, stack, proving)
        self.bp = 0
        self.frame_end = 0
        """Where the frame's own words end; 0 before the first."""
        self.following: int | None = None
        """BP in this frame, where call frame information found it: no record did."""


class FramePointerUnwinder(X86Unwinder[FramePointerState], ChainUnwinder[FramePointerState]):
    """See :class:`drgn_reliable.walk.Unwinder`."""

    name = "frame pointers"
    frame_pointers = True
    ends_by_rule = False

    # Start -------------------------------------------------------------------------------

    def start(self, task: Task, walk: Walk, *, proving: bool) -> FramePointerState:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        state = FramePointerState(task, self.task_stack_memory(task, task.saved_sp), proving)
        if task.on_cpu:
            self._start_running(state, walk)
        else:
            self._start_switched_out(state, walk)
        return state

    def _start_switched_out(self, state: FramePointerState, walk: Walk) -> None:
        """BP and the return address of ``struct inactive_task_frame`` are the first record."""
        record = state.task.saved_sp + self.facts.frame_bp & MASK
        size = self.facts.regs_size if record & ENCODED else RECORD_SIZE
        if not state.stack.contains(record & ~ENCODED, size):
            # __unwind_start() takes a walk that cannot begin for one that is at its end.
            detail = f"the saved frame at {record:#x} is not within the task's stack"
            walk.note("start-outside-stack", detail, pc=None, sp=record, value=record)
            state.end, state.done = End.END_OF_STACK, True
            return
        state.done = not self._move(state, walk, record)
        if state.found_by is FoundBy.FRAME_POINTER:
            state.found_by = FoundBy.SWITCH_FRAME

    def _start_running(self, state: FramePointerState, walk: Walk) -> None:
        registers = self.running_registers(state, walk, "ip", "cs", "sp", "bp")
        if registers is None:
            return
        state.regs = registers
        state.pc, state.sp, state.bp = (registers.get(name) or 0 for name in ("ip", "sp", "bp"))
        if not in_user_mode(state):
            self.enter_first(state, walk, state.sp)

    # One step ----------------------------------------------------------------------------

    def in_user_mode(self, state: FramePointerState) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        return in_user_mode(state)

    def chain_fits(self, state: FramePointerState, caller: CallerRegisters) -> bool:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`: BP is the caller's own, or points to
        the record with which the function saved it."""
        bp = state.regs.get("bp") if state.regs else None
        found, word = caller.registers.get(ABI.fp), state.stack.word
        if bp is None or found is None:
            return False
        return found == bp or (word(bp), word(bp + 8)) == (found, caller.pc)

    def known_registers(self, state: FramePointerState) -> dict[str, int]:
        """See :class:`drgn_reliable.arch.base.StackUnwinder`. BP in a frame is what its record
        holds; in an interrupted one, what was saved with the registers."""
        found = {"pc": state.pc, "sp": state.sp}
        bp = self._following(state)
        return found if bp is None else {**found, "bp": bp}

    def _following(self, state: FramePointerState) -> int | None:
        """BP in the frame, which leads to the next one; None if the dump lacks it."""
        if state.following is not None:
            return state.following
        return state.regs.get("bp") if state.regs else state.stack.word(state.bp)

    def chain_formula(self, state: FramePointerState) -> str:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        if state.regs is None and state.following is None and self._is_last(state):
            return "the last record of the stack: above it are a user task's registers, or nothing"
        if state.following is None and self._at_entry(state):
            return "pc = *sp, sp = sp + 8"
        if (self._following(state) or 0) & ENCODED:
            return "bp is odd: struct pt_regs at bp - 1"
        return "pc = *(bp + 8), sp = bp + 16, bp = *bp"

    def return_to(self, state: FramePointerState, walk: Walk, caller: CallerRegisters) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        slot = caller.sp - 8 if caller.pc_at is None else caller.pc_at
        pc = self.recovered(state, walk, caller.pc, slot)
        state.following = caller.registers.get(ABI.fp)
        state.done = pc is None or state.following is None
        state.pc, state.sp = pc or 0, caller.sp

    def follow_chain(self, state: FramePointerState, walk: Walk) -> None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        found, state.following = state.following, None
        if found is not None:
            state.done = not self._move(state, walk, found)
            return
        if state.regs is None and self._is_last(state):
            self._end(state, walk)
            return
        if self._at_entry(state):
            detail = f"the caller of {self.text.at(state.pc, exact=False)} is at {state.sp:#x}"
            walk.note("entry-hides-caller", detail, pc=state.pc, sp=state.sp)
            if state.proving:
                self._to_entrys_caller(state, walk)
                return
        following = self._following(state)
        if following is None:
            at = state.regs.address if state.regs else state.bp
            self.stop_unreadable(state, walk, at or 0)
        elif not self._move(state, walk, following):
            state.done = True

    def _at_entry(self, state: FramePointerState) -> bool:
        """Whether the frame made its call from its function's entry, before it linked itself in:
        the chain goes on with the caller's record, and passes over the caller's address. (For what
        ftrace calls, its entry code puts a record of the caller there.)"""
        if state.regs is not None or state.exact:
            return False
        code = self.text.at(state.pc, exact=False)
        if code.offset not in ENTRY_CALLS or code.role is not CodeRole.FUNCTION:
            return False
        following, word = state.stack.word(state.bp), state.stack.word(state.sp)
        if following is None or following & ENCODED or following == state.sp or not word:
            return False
        caller = self.text.at(word, exact=False)
        if word in self.trampolines:
            return True
        return caller.kind is not CodeKind.UNKNOWN and caller.doubt is None

    def _to_entrys_caller(self, state: FramePointerState, walk: Walk) -> None:
        """At a function's entry the return address is the word at SP, and BP is the caller's."""
        slot, following = state.sp, state.stack.word(state.bp)
        state.found_by = FoundBy.ENTRY
        state.done = not self._return(state, walk, slot, slot + 8)
        state.following = following

    def _is_last(self, state: FramePointerState) -> bool:
        """Whether the record is where the outermost function of a stack has it: below the user
        registers, or a little lower if the compiler realigned that function's stack or an ftrace
        callback is between (``is_last_task_frame()``)."""
        last = self.facts.user_regs(state.task.stack) - RECORD_SIZE
        bp, word = state.bp, state.stack.word
        if bp == last - 8:
            return word(bp + 8) is not None and word(bp + 8) == word(last + 8)
        if bp == last - 24:
            return word(bp) == word(bp + 16) and word(bp + 8) == word(bp + 32)
        return bool(bp == last)

    def _end(self, state: FramePointerState, walk: Walk) -> None:
        """A user task's stack ends with its user registers, a kernel thread's has none."""
        at = self.facts.user_regs(state.task.stack)
        state.regs = StackRegisters(state.stack, at, self.facts.register_offsets)
        if state.regs.flags("cs") is None:
            self.stop_unreadable(state, walk, at)
        elif in_user_mode(state):
            state.pc = 0
        else:
            state.regs = None
            state.end, state.done = End.END_OF_STACK, True

    def _move(self, state: FramePointerState, walk: Walk, following: int) -> bool:
        """Go to the frame that a frame pointer names (``update_stack_state()``)."""
        encoded = bool(following & ENCODED)
        frame = following & ~ENCODED
        size = self.facts.regs_size if encoded else RECORD_SIZE
        left = state.stack
        if not left.contains(frame, size) and not self.enter(state, walk, frame, size):
            reason = "regs-outside-stack" if encoded else "frame-outside-stack"
            detail = f"the frame at {frame:#x} is not within an accessible stack"
            walk.note(reason, detail, pc=state.pc, sp=state.sp, value=following)
            return False
        if state.stack is left and frame < state.frame_end:
            detail = f"the frame at {frame:#x} is not above {state.frame_end:#x}"
            walk.note("wrong-direction", detail, pc=state.pc, sp=state.sp, value=following)
            return False
        inner, low, state.frame_end = state.pc, state.frame_end, frame + size
        if encoded:
            return self._to_registers(state, walk, frame)
        state.regs = None
        state.bp, state.found_by = frame, FoundBy.FRAME_POINTER
        moved = self._return(state, walk, frame + 8, frame + RECORD_SIZE)
        state.exact = state.pc == self.facts.fork_return
        if moved and low and state.stack is left:
            self.note_passed_over(state, walk, inner, low, frame)
        return moved

    def direct_call(self, pc: int) -> int | None:
        """See :class:`drgn_reliable.arch.chain.ChainUnwinder`."""
        return direct_call_target(self._prog.read(pc - 5 & MASK, 5), pc)

    def _to_registers(self, state: FramePointerState, walk: Walk, at: int) -> bool:
        state.regs = StackRegisters(state.stack, at, self.facts.register_offsets)
        state.bp, state.exact, state.found_by = 0, True, FoundBy.PT_REGS
        user = in_user_mode(state)
        sp = state.regs.glance("sp") if user else state.regs.get("sp")
        if sp is None or state.regs.flags("cs") is None:
            self.stop_unreadable(state, walk, at)
            return False
        if user:
            state.pc, state.sp = 0, sp
            return True
        return self._return(state, walk, at + self.facts.register_offsets["ip"], sp)

    def _return(self, state: FramePointerState, walk: Walk, slot: int, sp: int) -> bool:
        pc = state.stack.word(slot)
        if pc is None:
            self.stop_unreadable(state, walk, slot)
            return False
        pc = self.recovered(state, walk, pc, slot)
        if pc is None:
            return False
        state.pc, state.sp = pc, sp
        return True
