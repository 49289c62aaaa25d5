# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: what the ORC and the frame pointer unwinder share."""

from __future__ import annotations

from typing import TypeVar

from drgn_reliable.arch.base import Parts, StackState, StackUnwinder
from drgn_reliable.arch.x86_64 import ABI, STACK_ORDER, USER_MODE
from drgn_reliable.arch.x86_ends import Ends
from drgn_reliable.model import Walk

__all__ = ("X86Unwinder", "in_user_mode")

S = TypeVar("S", bound=StackState)


def in_user_mode(state: StackState) -> bool:
    """Whether a walk stands at registers of user mode (``user_mode()``)."""
    return state.regs is not None and bool((state.regs.flags("cs") or 0) & USER_MODE)


class X86Unwinder(StackUnwinder[S]):
    """Rewritten return addresses and the ends of stacks."""

    ABI = ABI
    STACK_ORDER = STACK_ORDER
    ends_by_rule = True
    """Whether unwind data say where a stack ends."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._ends = Ends(parts.facts, parts.text)

    def recovered(self, state: S, walk: Walk, pc: int, slot: int) -> int | None:
        """The return address behind what a slot of the stack holds (``unwind_recover_ret_addr()``);
        None if it is not to be had."""
        found: int | None = pc
        if found == self._graph.trampoline:
            found = self.traced_return(state, walk, slot)
        if found == self._probes.trampoline:
            found = self.probed_return(state, walk, slot)
        return found

    def finish(self, state: S, walk: Walk) -> None:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        regs = state.regs.address if state.regs else None
        self._ends.check(state.task, state, regs, walk, by_rule=self.ends_by_rule)
        super().finish(state, walk)
