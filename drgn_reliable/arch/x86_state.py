# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: where an ORC walk stands."""

from __future__ import annotations

from drgn_reliable.arch.base import CpuRegisters, StackRegisters, StackState
from drgn_reliable.memory import StackMemory
from drgn_reliable.tasks import Task

__all__ = ("OrcState",)


class OrcState(StackState):
    """The registers that the ORC unwinder follows."""

    __slots__ = ("bp", "full_regs", "previous_regs")

    def __init__(self, task: Task, stack: StackMemory, proving: bool) -> None:
        super().__init__(task, stack, proving)
        self.bp = 0
        self.full_regs = False
        self.previous_regs: StackRegisters | CpuRegisters | None = None

    def register(self, name: str) -> int | None:
        """A register of the interrupted context, if one is known (``get_reg()``)."""
        if self.regs and self.full_regs:
            return self.regs.get(name)
        if self.regs and self.previous_regs:
            return self.previous_regs.get(name)
        return None
