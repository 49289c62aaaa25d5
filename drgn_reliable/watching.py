# SPDX-License-Identifier: LGPL-2.1-or-later
"""Look over the shoulder of a walk: the rules of each step, and the words that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from drgn_reliable.arch.base import CpuRegisters, StackRegisters, StackState, StackUnwinder
from drgn_reliable.explanation import Read, Replaced, ShownRule
from drgn_reliable.formulas import evaluate
from drgn_reliable.memory import StackMemory
from drgn_reliable.model import End, FoundBy, Walk

__all__ = ("SeenStep", "Watcher")

_LONGEST_CALL = 16
"""No call instruction has more bytes."""
_LISTS = {
    FoundBy.FUNCTION_GRAPH: "the real one is on the tracer's own stack of the task",
    FoundBy.KRETPROBE: "the real one is in the task's list of probed returns",
}
"""Where a return address was found that is not on the stack."""


class _WatchedStack(StackMemory):
    """A stack that takes note of what is read."""

    __slots__ = ("_log",)

    def __init__(self, log: list[tuple[int, int | None]], *stack: Any) -> None:
        self._log = log
        super().__init__(*stack)

    def word(self, address: int) -> int | None:
        found = StackMemory.word(self, address)
        self._log.append((address, found))
        return found


@dataclass
class SeenStep:
    """What a watcher saw of one step."""

    frame: int
    """Number of the frame that it starts from."""
    known: dict[str, int]
    """The registers of that frame."""
    stack: str
    """Name of the stack that it is on."""
    rules: list[ShownRule]
    reads: list[Read] = field(default_factory=list)
    registers_at: int | None = None
    """Address of the ``struct pt_regs`` that the step leads to."""
    replaced: Replaced | None = None


class Watcher:
    """Notes every step of a walk (see :class:`drgn_reliable.walk.Watcher`)."""

    def __init__(self, unwinder: StackUnwinder[Any]) -> None:
        self._unwinder = unwinder
        self._log: list[tuple[int, int | None]] = []
        self._regs: StackRegisters | CpuRegisters | None = None
        """Those of the frame that the step starts from, if it was interrupted."""
        self.steps: list[SeenStep] = []
        self.stacks: dict[str, StackMemory] = {}
        """The stacks that the walk came by, by name."""
        self.registers: dict[int, dict[str, int]] = {}
        """The ``struct pt_regs`` that were met, by address: the address of each register."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have the unwinder read from stacks that take notes."""

        def make(*where: Any) -> StackMemory:
            stack = _WatchedStack(self._log, *where)
            self.stacks[stack.name] = stack
            return stack

        unwinder = self._unwinder
        unwinder.stack_memory, usual = make, unwinder.stack_memory
        try:
            yield
        finally:
            unwinder.stack_memory = usual

    def before(self, state: StackState, walk: Walk) -> None:
        """The last of the walk's frames has been found; a step to its caller follows."""
        if state.regs is not None and state.regs.address is not None:
            at = state.regs.address
            offsets = self._unwinder.facts.register_offsets
            self.registers[at] = {name: at + offset for name, offset in offsets.items()}
        self._regs = state.regs
        known = self._unwinder.known_registers(state)
        every = self._every_register(state, known)
        peek = partial(self._unwinder.peek, state)
        rules = [
            ShownRule(who, formula, tuple(evaluate(formula, every, peek) or ()))
            for who, formula in self._unwinder.formulas(state)
        ]
        self.steps.append(SeenStep(len(walk.frames) - 1, known, state.stack.name, rules))
        self._log.clear()

    def _every_register(self, state: StackState, known: dict[str, int]) -> dict[str, int]:
        """All registers of the frame that are known, by the names that formulas use."""
        names = self._unwinder.ABI.names
        found = {names[i]: value for i, value in (state.registers or {}).items() if i in names}
        if state.regs is not None:
            for name in self._unwinder.facts.register_offsets:
                value = state.regs.get(name)
                if value is not None:
                    found[name] = value
        every = known | found
        if not found and not self._unwinder.sp_is_exact:
            del every["sp"]
        return every

    def after(self, state: StackState, walk: Walk) -> None:
        """The step was made."""
        step = self.steps[-1]
        moved = self._unwinder.known_registers(state)
        if state.regs is not self._regs and (not state.done or state.end is End.USER_REGS):
            step.registers_at = state.regs.address if state.regs else None
        # The same value may stand in several registers; what was read last was meant.
        roles = {self._role(value, step.known, moved): at for at, value in self._log}
        step.reads = [
            Read(at, value, role if roles[role] == at else "")
            for at, value in dict.fromkeys(self._log)
            for role in (self._role(value, step.known, moved),)
        ]
        if state.found_by is FoundBy.SEARCH:  # all but the last word were only passed
            step.reads = [read for read in step.reads if read.role == "pc"]
        if not state.done:
            words = [read.value for read in step.reads if read.role == "pc"]
            step.replaced = self._replaced(words, state)

    def _role(self, value: int | None, before: dict[str, int], after: dict[str, int]) -> str:
        """Which register of the caller a word has become."""
        if value is None:
            return ""
        if value in self._unwinder.trampolines:
            return "pc"
        stands_for = self._unwinder.may_stand_for(value)
        if after["pc"] in stands_for:
            return "pc"
        names = (name for name, found in after.items() if name != "pc" and found == value)
        return next((name for name in names if before.get(name) != value), "")

    def _replaced(self, words: list[int | None], state: StackState) -> Replaced | None:
        """What became of the word that was read as a return address, if it was not taken."""
        word = words[-1] if words else None
        if word is None or word == state.pc:
            return None
        whose = self._unwinder.trampolines.get(word)
        if whose is None:
            return Replaced(word, state.pc, self._what(word, state.pc))
        if state.pc in self._unwinder.trampolines:
            return None
        name = self._unwinder.text.at(word, exact=True).symbol
        where = _LISTS.get(state.found_by, "the real one was found elsewhere")
        return Replaced(word, state.pc, f"{name} is {whose}; {where}")

    def _what(self, word: int, pc: int) -> str:
        """What was taken of an address that no tracer replaced."""
        if self._unwinder.plain_address(word) == pc:
            return "without its authentication code"
        if word - pc in range(1, _LONGEST_CALL):
            return "looked up at the call before it"
        return "looked up in what the vectors were copied from"
