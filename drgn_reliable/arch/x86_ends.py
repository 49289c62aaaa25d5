# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: does a trace end where a kernel stack begins (section 4.1)?

The kernel asks none of this: every reason noted here is advisory.
"""

from __future__ import annotations

from drgn_reliable.arch.x86_64 import (
    FORK_RETURN,
    IDLE_TOP_SLACK,
    STARTUP,
    Facts,
)
from drgn_reliable.model import End, TaskKind, Walk
from drgn_reliable.tasks import Task
from drgn_reliable.text import Text
from drgn_reliable.walk import State

__all__ = ("Ends",)


class Ends:
    """Compares the end of a walk with the beginnings that the kernel gives its stacks."""

    def __init__(self, facts: Facts, text: Text) -> None:
        self._facts = facts
        self._text = text

    def check(
        self, task: Task, state: State, regs: int | None, walk: Walk, *, by_rule: bool
    ) -> None:
        """Note what is wrong with the end that a walk reached.

        :param regs: address of the user registers, if the walk ended at some on a stack.
        :param by_rule: the end is where unwind data say, rather than at the end of the stack.
        """
        if state.end is End.USER_REGS and regs is not None:
            self._check_user_regs(task, state, regs, walk)
        elif state.end is End.END_OF_STACK and by_rule and not self._begins_here(task, state):
            code = self._text.at(state.pc, exact=True)
            walk.note("end-unexpected", str(code), pc=state.pc, sp=state.sp)

    def _check_user_regs(self, task: Task, state: State, regs: int, walk: Walk) -> None:
        expected = self._facts.user_regs(task.stack)
        if regs != expected:
            detail = f"at {regs:#x}, expected at {expected:#x}"
            walk.note("user-regs-misplaced", detail, pc=None, sp=state.sp, value=regs)

    def _begins_here(self, task: Task, state: State) -> bool:
        """Whether a stack begins at this function and stack pointer."""
        if self._text.at(state.pc, exact=True).symbol in FORK_RETURN:
            return state.sp == self._facts.user_regs(task.stack)
        symbol = self._text.at(state.pc, exact=False).symbol
        below_top = task.stack + self._facts.thread_size - state.sp
        idle = task.kind is TaskKind.IDLE and 0 <= below_top <= IDLE_TOP_SLACK
        return idle and symbol in STARTUP
