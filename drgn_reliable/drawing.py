# SPDX-License-Identifier: LGPL-2.1-or-later
"""Say of each word of a stack what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drgn_reliable.arch.base import StackUnwinder
from drgn_reliable.explanation import ExplainedStack, StackWord
from drgn_reliable.memory import StackMemory
from drgn_reliable.model import CodeKind, Frame
from drgn_reliable.tasks import Task
from drgn_reliable.watching import SeenStep

__all__ = ("Drawing",)

_UNKNOWN = CodeKind.UNKNOWN


class Drawing:
    """The words of the stacks that a walk came by, with notes."""

    def __init__(
        self, unwinder: StackUnwinder[Any], stacks: Mapping[str, StackMemory], task: Task
    ) -> None:
        self._unwinder = unwinder
        self._stacks = stacks
        self._notes: dict[int, list[str]] = {}
        self._task = task

    def note_frames(self, frames: Sequence[Frame], steps: list[SeenStep]) -> None:
        """Where the stack pointer was in each frame of a walk, and what led to the next."""
        for number, frame in enumerate(frames):
            self._note(frame.sp, f"SP of #{number} {frame.code}")
        for step in steps:
            following = step.frame + 1
            if following == len(frames):
                continue
            for read in step.reads:
                if read.role:
                    self._note(read.address, f"{read.role} of #{following}")

    def note_registers(self, found: Mapping[int, Mapping[str, int]]) -> None:
        """Each ``struct pt_regs``, and those of user mode."""
        facts = self._unwinder.facts
        user = facts.user_regs(self._task.stack)
        for at, registers in found.items():
            for name, address in registers.items():
                self._note(address, f"{'user ' if at == user else ''}pt_regs.{name}")
        for name, offset in facts.register_offsets.items():
            self._note(user + offset, f"user pt_regs.{name}")
        self._note(self._task.stack, "end of the stack: STACK_END_MAGIC")

    def _note(self, address: int, text: str) -> None:
        found = self._notes.setdefault(address, [])
        if text not in found:
            found.append(text)

    def stack(self, stack: StackMemory) -> ExplainedStack:
        """The words of a stack from the first that matters on."""
        marked = [at for at in self._notes if stack.contains(at, 8) and at != self._task.stack]
        start = min(marked, default=stack.high) & ~7
        places = list(range(start, stack.high, 8))
        if stack.low == self._task.stack != start:
            places.insert(0, stack.low)
        words = tuple(self._word(stack, at) for at in places)
        return ExplainedStack(stack.name, stack.low, stack.high, words)

    def _word(self, stack: StackMemory, at: int) -> StackWord:
        value = StackMemory.word(stack, at)
        notes = list(self._notes.get(at, ()))
        if value is not None and not any(note.startswith("pc of") for note in notes):
            notes += self._looks(value)
        return StackWord(at, value, tuple(notes))

    def _looks(self, value: int) -> list[str]:
        """What a word looks like that the walk says nothing of, or not enough."""
        for name, stack in self._stacks.items():
            if stack.low <= value < stack.high:
                return [f"into the {name} stack"]
        address = self._unwinder.plain_address(value)
        begins = self._unwinder.text.at(address, exact=True)
        if begins.symbol is not None and not begins.offset and begins.kind is not _UNKNOWN:
            return [f"looks like the function {begins.symbol}"]
        code = self._unwinder.text.at(address, exact=False)
        if code.kind is _UNKNOWN or code.symbol is None:
            return []
        return [f"looks like a return to {code}"]
