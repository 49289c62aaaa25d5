# SPDX-License-Identifier: LGPL-2.1-or-later
"""One task's walk, step by step, with the memory that it read: evidence that a person can check.

The walks are those of a scan, made once more under the eyes of a watcher; the one difference is
that the proof is always walked, so that every provider's rule is shown for every frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from drgn_reliable.arch.base import StackState
from drgn_reliable.formulas import Assigned, evaluate
from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import StackMemory
from drgn_reliable.model import Code, CodeKind, FoundBy, Reason, TaskReport, Walk
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.report import Scanner, report_of
from drgn_reliable.tasks import Task
from drgn_reliable.walk import walk_task

__all__ = (
    "ExplainedStack",
    "ExplainedStep",
    "Explanation",
    "Read",
    "ShownRule",
    "StackWord",
    "explain_task",
)


@dataclass(frozen=True, slots=True)
class Read:
    """A word that a step read from a stack."""

    address: int
    value: int | None
    """None if the dump lacks it."""
    role: str
    """What it turned out to be: ``pc``, ``fp``, …; empty if the walk only looked at it."""


@dataclass(frozen=True, slots=True)
class ShownRule:
    """A rule for a step."""

    provider: str
    """Who gives it."""
    formula: str
    values: tuple[Assigned, ...]
    """The formula with numbers; empty where it has none, as at the end of a stack."""


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """From one frame to the next."""

    frame: int
    """Number of the frame that it starts from."""
    code: Code
    sp: int
    stack: str
    """Name of the stack that the frame is on."""
    found_by: FoundBy
    """How the frame was found."""
    rules: tuple[ShownRule, ...]
    """The one that was followed first, then those that it can be held against."""
    registers_at: int | None
    """Address of the ``struct pt_regs`` that it leads to, None if it leads to a caller."""
    reads: tuple[Read, ...]
    kernel: bool
    """The kernel's walk came by this frame, too."""
    reasons: tuple[Reason, ...]
    """What was noted at this frame, by either walk."""


@dataclass(frozen=True, slots=True)
class StackWord:
    """One word of a stack."""

    address: int
    value: int | None
    notes: tuple[str, ...]
    """What it is, as far as the walk tells, and what it looks like."""


@dataclass(frozen=True, slots=True)
class ExplainedStack:
    """A stack that the walk came by, from the lowest word that matters up to its end."""

    name: str
    low: int
    high: int
    """One past its last byte."""
    words: tuple[StackWord, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that there is to say of one task's trace."""

    report: TaskReport
    start: tuple[tuple[str, int], ...]
    """The registers from which the walk starts, by name."""
    steps: tuple[ExplainedStep, ...]
    end: str
    """How the proof's walk ended."""
    kernel_end: str
    """How the kernel's did."""
    stacks: tuple[ExplainedStack, ...]


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
class _Seen:
    """What a watcher saw of one step."""

    frame: int
    state: dict[str, int]
    stack: str
    rules: list[ShownRule]
    after: dict[str, int] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    registers_at: int | None = None


class _Watcher:
    """Notes every step of a walk."""

    def __init__(self, kernel: Kernel) -> None:
        self._unwinder = kernel.unwinder
        self._trampolines = {kernel.graph.trampoline, kernel.probes.trampoline}
        self.log: list[tuple[int, int | None]] = []
        self.steps: list[_Seen] = []
        self.stacks: dict[str, StackMemory] = {}
        self.registers: dict[int, dict[str, int]] = {}
        """The ``struct pt_regs`` that were met, by address: the address of each register."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have the unwinder read from stacks that take notes."""

        def make(*where: Any) -> StackMemory:
            stack = _WatchedStack(self.log, *where)
            self.stacks[stack.name] = stack
            return stack

        unwinder = self._unwinder
        unwinder.stack_memory, usual = make, unwinder.stack_memory
        try:
            yield
        finally:
            unwinder.stack_memory = usual

    def before(self, state: StackState, walk: Walk) -> None:
        """See :class:`drgn_reliable.walk.Watcher`."""
        if state.regs is not None and state.regs.address is not None:
            at = state.regs.address
            offsets = self._unwinder.facts.register_offsets
            self.registers[at] = {name: at + offset for name, offset in offsets.items()}
        known = self._known(state)
        rules = [
            ShownRule(who, formula, tuple(evaluate(formula, known, state.stack.word) or ()))
            for who, formula in self._unwinder.formulas(state)
        ]
        frame = len(walk.frames) - 1
        self.steps.append(_Seen(frame, _registers(state), state.stack.name, rules))
        self.log.clear()

    def _known(self, state: StackState) -> dict[str, int]:
        """The registers of the frame, by the names that formulas use."""
        names = self._unwinder.ABI.names
        found = {names[i]: value for i, value in (state.registers or {}).items() if i in names}
        if state.regs is not None:
            for name in self._unwinder.facts.register_offsets:
                value = state.regs.get(name)
                if value is not None:
                    found[name] = value
        known = _registers(state) | found
        if not found and not self._unwinder.sp_is_exact:
            del known["sp"]
        return known

    def after(self, state: StackState, walk: Walk) -> None:
        """See :class:`drgn_reliable.walk.Watcher`."""
        step = self.steps[-1]
        step.after = _registers(state)
        if not state.done and state.regs is not None:
            step.registers_at = state.regs.address
        # The same value may stand in several registers; what was read last was meant.
        roles = {self._role(value, step): at for at, value in self.log}
        step.reads = [
            Read(at, value, role if roles[role] == at else "")
            for at, value in dict.fromkeys(self.log)
            for role in (self._role(value, step),)
        ]

    def _role(self, value: int | None, step: _Seen) -> str:
        """Which register of the caller a word has become."""
        if value is None:
            return ""
        if value in self._trampolines:
            return "pc"
        plain = self._unwinder.plain_address(value)
        for name, found in step.after.items():
            if found in (value, plain) and step.state.get(name) != found:
                return name
        return ""


def _registers(state: StackState) -> dict[str, int]:
    names = ("pc", "fp", "bp", "sp")
    return {name: getattr(state, name) for name in names if hasattr(state, name)}


def explain_task(kernel: Kernel, task: Task) -> Explanation:
    """Walk a task's stack and keep everything that a person needs to check the verdicts.

    :raises drgn.FaultError: if the task structure cannot be read.
    """
    unwinder = kernel.unwinder
    walk = walk_task(unwinder, task)
    watcher = _Watcher(kernel)
    with watcher.watching():
        proof = walk_task(unwinder, task, proving=True, watcher=watcher)
    report = report_of(task, walk, proof, supported=Scanner(kernel).supported)
    same = _in_common(walk, proof)
    steps = tuple(_explained(step, report, step.frame < same) for step in watcher.steps)
    start = tuple(watcher.steps[0].state.items()) if watcher.steps else ()
    drawn = _Drawing(kernel, task, report, watcher)
    stacks = tuple(drawn.stack(stack) for stack in watcher.stacks.values())
    return Explanation(report, start, steps, proof.end.value, _kernel_end(walk), stacks)


def _in_common(walk: Walk, proof: Walk) -> int:
    """How many frames both walks have, from the first on."""
    pairs = zip(walk.entries(), proof.entries(), strict=False)
    different = (i for i, (one, other) in enumerate(pairs) if one != other)
    return next(different, min(len(walk.frames), len(proof.frames)))


def _kernel_end(walk: Walk) -> str:
    refusal = next((r for r in walk.reasons if CATALOGUE[r.id].kernel), None)
    if refusal is None:
        return walk.end.value
    return f"refused before frame #{refusal.frame}: {refusal.id}"


def _explained(step: _Seen, report: TaskReport, kernel: bool) -> ExplainedStep:
    frame = report.frames[step.frame]
    last = step.frame == len(report.frames) - 1
    noted = [
        reason
        for reason in report.reasons
        if reason.frame == step.frame + 1 or (reason.frame > step.frame and last)
    ]
    return ExplainedStep(
        step.frame,
        frame.code,
        frame.sp,
        step.stack,
        frame.found_by,
        tuple(step.rules),
        step.registers_at,
        tuple(step.reads),
        kernel,
        tuple(noted),
    )


class _Drawing:
    """Says of each word of a stack what it is."""

    def __init__(self, kernel: Kernel, task: Task, report: TaskReport, watcher: _Watcher) -> None:
        self._kernel = kernel
        self._stacks = watcher.stacks
        self._notes: dict[int, list[str]] = {}
        for number, frame in enumerate(report.frames):
            self._note(frame.sp, f"SP of #{number} {frame.code}")
        for step in watcher.steps:
            for read in step.reads:
                if read.role:
                    self._note(read.address, f"{read.role} of #{step.frame + 1}")
        for registers in watcher.registers.values():
            for name, at in registers.items():
                self._note(at, f"pt_regs.{name}")
        facts = kernel.facts
        top = facts.user_regs(task.stack)
        for name, offset in facts.register_offsets.items():
            self._note(top + offset, f"user pt_regs.{name}")
        self._note(task.stack, "end of the stack: STACK_END_MAGIC")

    def _note(self, address: int, text: str) -> None:
        found = self._notes.setdefault(address, [])
        if text not in found:
            found.append(text)

    def stack(self, stack: StackMemory) -> ExplainedStack:
        """The words of a stack from the first that matters on."""
        marked = [at for at in self._notes if stack.contains(at, 8) and at != stack.low]
        start = min(marked, default=stack.high) & ~7
        places = [stack.low, *range(start, stack.high, 8)] if marked else []
        words = tuple(self._word(stack, at) for at in places)
        return ExplainedStack(stack.name, stack.low, stack.high, words)

    def _word(self, stack: StackMemory, at: int) -> StackWord:
        value = StackMemory.word(stack, at)
        notes = list(self._notes.get(at, ()))
        if value is not None and not any(note.startswith("pc of") for note in notes):
            notes += self._looks(value)
        return StackWord(at, value, tuple(notes))

    def _looks(self, value: int) -> list[str]:
        for name, stack in self._stacks.items():
            if stack.low <= value < stack.high:
                return [f"to {value:#x} of the {name} stack"]
        text = self._kernel.text
        code = text.at(value, exact=False)
        if code.kind is CodeKind.UNKNOWN or code.symbol is None:
            return []
        return [f"looks like {code}"]
