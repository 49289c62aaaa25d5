# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: where an ORC walk stands."""

from __future__ import annotations

from collections.abc import Sequence

from drgn_reliable.arch.x86_64 import CpuRegisters, Range, StackRegisters
from drgn_reliable.memory import StackMemory
from drgn_reliable.model import End, FoundBy
from drgn_reliable.returns import Cursor
from drgn_reliable.tasks import Task
from drgn_reliable.walk import State

__all__ = ("OrcState",)


class OrcState(State):
    """The registers that the ORC unwinder follows, and where it may read."""

    __slots__ = (
        "task",
        "bp",
        "regs",
        "full_regs",
        "previous_regs",
        "stack",
        "stacks",
        "visited",
        "cursor",
    )

    def __init__(self, task: Task, stack: StackMemory, proving: bool) -> None:
        self.task = task
        self.proving = proving
        self.pc = self.sp = self.bp = 0
        self.exact = self.done = False
        self.end = End.STOPPED
        self.found_by = FoundBy.SWITCH_FRAME
        self.regs: StackRegisters | CpuRegisters | None = None
        """The exception's registers that gave this frame; None if a call gave it."""
        self.full_regs = False
        self.previous_regs: StackRegisters | CpuRegisters | None = None
        self.stack = stack
        self.stacks: Sequence[Range] = ()
        """Stacks that the walk may pass to: none for a task that is not running."""
        self.visited = {stack.name}
        self.cursor = Cursor()

    def register(self, name: str) -> int | None:
        """A register of the interrupted context, if one is known (``get_reg()``)."""
        if self.regs and self.full_regs:
            return self.regs.get(name)
        if self.regs and self.previous_regs:
            return self.previous_regs.get(name)
        return None
