# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: where an ORC walk stands."""

from __future__ import annotations

from drgn_reliable.arch.base import CpuRegisters, StackRegisters, StackState
from drgn_reliable.memory import StackMemory
from drgn_reliable.tasks import Task

__all__ = ("OrcState",)


class OrcState(StackState):
    """The registers that the ORC unwinder follows."""

    __slots__ = ("full_regs", "previous_regs", "_bp", "_bp_saved")

    def __init__(self, task: Task, stack: StackMemory, proving: bool) -> None:
        super().__init__(task, stack, proving)
        self._bp = 0
        self._bp_saved: tuple[StackMemory, int] | None = None
        self.full_regs = False
        self.previous_regs: StackRegisters | CpuRegisters | None = None

    @property
    def bp(self) -> int:
        """BP in this frame. Many functions save it for their own use, and what was in it is then
        nothing to the walk: the stack is told that the word matters only when it does."""
        if self._bp_saved is not None:
            stack, slot = self._bp_saved
            return stack.word(slot) or 0
        return self._bp

    @bp.setter
    def bp(self, value: int) -> None:
        self._bp, self._bp_saved = value, None

    def bp_saved_at(self, slot: int) -> None:
        """BP is the word at an address of the present stack, which can be read."""
        self._bp_saved = (self.stack, slot)

    def take_saved_bp(self) -> None:
        """BP is that of the interrupted context, if one is known."""
        regs = self._context
        if regs is not None and regs.glance("bp") is not None:
            self._bp_saved = regs.saved("bp")
            self._bp = regs.glance("bp") or 0

    def register(self, name: str) -> int | None:
        """A register of the interrupted context, if one is known (``get_reg()``)."""
        return self._context.get(name) if self._context else None

    @property
    def _context(self) -> StackRegisters | CpuRegisters | None:
        return self.regs if self.regs and self.full_regs else self.regs and self.previous_regs
