# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the unwinders share that follow a chain of frame records or of stack pointers.

The chain tells nothing of a function that was interrupted before it had linked itself in, or
after it had taken itself out: its caller is missing (4.3), or is in the link register (4.6). The
kernel refuses such a trace. To prove, a walk asks the providers of call frame information for
the interrupted instruction, goes to the caller by their rule, and holds the chain against it.
"""

from __future__ import annotations

from typing import TypeVar

from drgn import FaultError

from drgn_reliable.arch.base import (
    CpuRegisters,
    Parts,
    StackRegisters,
    StackState,
    StackUnwinder,
)
from drgn_reliable.arch.callers import CallerFinder, Outcome
from drgn_reliable.model import CodeKind, Walk
from drgn_reliable.tables.framerule import CallerRegisters

__all__ = ("ChainUnwinder",)

S = TypeVar("S", bound=StackState)


class ChainUnwinder(StackUnwinder[S]):
    """The base of the unwinders that need no metadata to walk, and metadata to prove."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        kept = parts.facts.register_offsets
        self._callers = CallerFinder(self.ABI, parts.information, kept)
        self._called: dict[int, str | None] = {}

    # What an architecture adds -----------------------------------------------------------

    def is_user_mode(self, regs: StackRegisters | CpuRegisters) -> bool:
        """Whether registers are of user mode."""
        raise NotImplementedError

    def follow_chain(self, state: S, walk: Walk) -> None:
        """Go to the next frame of the chain as the kernel does."""
        raise NotImplementedError

    def chain_fits(self, state: S, caller: CallerRegisters) -> bool:
        """Whether the chain, as it is at an interrupted instruction, can lead to this caller: the
        function has linked itself in, or has not yet, or not any more."""
        raise NotImplementedError

    def chain_formula(self, state: S) -> str:
        """The next frame of the chain, as a formula."""
        raise NotImplementedError

    def return_to(self, state: S, walk: Walk, caller: CallerRegisters) -> None:
        """Stand in the caller that metadata found, its rewritten return address given back."""
        raise NotImplementedError

    # The walk ----------------------------------------------------------------------------

    def in_user_mode(self, state: S) -> bool:
        """Whether the walk stands at registers of user mode, where it ends. Of those on a stack it
        sees only where they are: it ends before."""
        regs = state.regs
        return regs is not None and regs.address is None and self.is_user_mode(regs)

    def at_user_registers(self, state: S, walk: Walk) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        if state.regs is None:
            return False
        if self.in_user_mode(state):
            return True
        if not state.proving:
            self.note_boundary(state, walk)
        return False

    def step(self, state: S, walk: Walk) -> None:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        if not state.proving:
            self.follow_chain(state, walk)
        elif state.regs is not None:
            self._cross(state, walk)
        else:
            self._follow_and_compare(state, walk)

    def formulas(self, state: S) -> list[tuple[str, str]]:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        chain = [(self.name, self.chain_formula(state))]
        others = self._callers.formulas(state)
        return others + chain if state.proving and state.regs is not None else chain + others

    # Frames passed over ------------------------------------------------------------------

    def note_passed_over(self, state: S, walk: Walk, inner: int, low: int, record: int) -> None:
        """See whether a record lies unused between two frames of a chain of records, and leads to
        the same place: then a frame has been passed over, or it is a stale one. The call that
        left the outer frame's address tells, if it names the function that it calls.

        :param inner: program counter of the inner frame; the walk stands in the outer one.
        :param low: where the words of the inner frame's record end.
        :param record: address of the outer frame's record.
        """
        called = self._called_at(state.pc)
        function = self.text.at(inner, exact=True).symbol
        if called is not None and called == function:
            return
        for at in state.stack.places_of(record, low, record - 8):
            pc = self.plain_address(state.stack.word(at + 8) or 0)
            code = self.text.at(pc, exact=False)
            known = code.kind is not CodeKind.UNKNOWN and code.doubt is None
            seen = any(code.symbol == frame.code.symbol for frame in walk.frames[-2:])
            if known and not seen and called in (None, code.symbol):
                detail = f"the record at {at:#x}, of a function that returns to {code}"
                walk.note("record-passed-over", detail, pc=state.pc, sp=at, value=pc)
                return

    def _called_at(self, pc: int) -> str | None:
        """The function that the call before a return address names; None if it names none."""
        if pc not in self._called:
            try:
                target = self.direct_call(pc)
            except FaultError:
                target = None
            self._called[pc] = None if target is None else self.text.at(target, exact=True).symbol
        return self._called[pc]

    def direct_call(self, pc: int) -> int | None:
        """Where the call before a return address leads, None if its instruction does not say.

        :raises drgn.FaultError: if the dump lacks the code.
        """
        return None

    # Across an exception -----------------------------------------------------------------

    def _cross(self, state: S, walk: Walk) -> None:
        if not state.stack.contains(state.sp, 8):
            self.enter(state, walk, state.sp)
        outcomes, failures = self._callers.find(state, self._callers.interrupted(state))
        if not outcomes:
            code = self.text.at(state.pc, exact=True)
            why = "; ".join(failures) or f"no call frame information for {code}"
            self.note_boundary(state, walk, why)
            self.follow_chain(state, walk)
            return
        self._callers.compare(state, walk, outcomes)
        found, caller = outcomes[0]
        if not self._callers.is_above(state, walk, caller):
            return
        if not self.chain_fits(state, caller):
            detail = (
                f"{found.name} finds the caller at SP {caller.sp:#x}, to which the chain of frames "
                f"does not lead ({self.text.at(state.pc, exact=True)})"
            )
            walk.note("providers-disagree", detail, pc=state.pc, sp=state.sp, value=caller.sp)
        state.regs, state.exact = None, found.rule.exact
        state.registers = caller.registers
        by_link = caller.pc_at is None
        state.found_by = found.source.by_link if by_link else found.source.found_by
        self.return_to(state, walk, caller)

    # Beside the chain --------------------------------------------------------------------

    def _follow_and_compare(self, state: S, walk: Walk) -> None:
        """Follow the chain, and see that metadata lead to the same caller while all that their
        rules need is known: from an exception on."""
        stack, registers = state.stack, state.registers
        outcomes: list[Outcome] = []
        if registers is not None:
            outcomes, _ = self._callers.find(state, registers)
        pc, sp = state.pc, state.sp
        self.follow_chain(state, walk)
        state.registers = None
        if state.done or state.stack is not stack:
            return
        if state.regs is None and outcomes:
            found, caller = outcomes[0]
            state.registers = caller.registers
            if not self._same_place(state, caller):
                state.registers = None
                detail = (
                    f"{found.name}: from {self.text.at(pc, exact=False)} to {caller.pc:#x}, SP "
                    f"{caller.sp:#x}; the chain of frames: to {state.pc:#x}"
                )
                walk.note("providers-disagree", detail, pc=pc, sp=sp, value=caller.pc)

    def _same_place(self, state: S, caller: CallerRegisters) -> bool:
        pc = self.plain_address(caller.pc)
        return pc in self.trampolines or pc == state.pc
