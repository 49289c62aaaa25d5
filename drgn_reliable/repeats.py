# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks that repeat another task's walk, which on a large machine nearly all do.

A walk of a task that does not run is decided by little: the saved registers, the words of its
stack that were read, and facts of the kernel that hold for every task. While a walk is made,
its stack takes note of every word that it was asked for and of what the answer was used for. If
another task's stack has the same words in the same places, or such as point to the same place
of its own stack, then its walk is the same one, moved.

Only walks without any reason are repeated, and only those that met nothing else of the task: no
other stack, no tracer's list. What lies beside the words, the magic at the stack's end and the
tracers' lists, is looked at for every task.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from drgn import FaultError, Program

from drgn_reliable.arch.base import StackUnwinder
from drgn_reliable.judge import kernel_answer, proof_answer
from drgn_reliable.memory import StackMemory, byte_order
from drgn_reliable.model import End, Frames, KernelAnswer, ProofAnswer, TaskKind, Trace, Walk
from drgn_reliable.tasks import Task
from drgn_reliable.walk import walk_task

__all__ = ("KnownWalk", "Repeats")

_LIMIT = 8192
"""Walks that are remembered. A dump of more different stacks than that starts anew."""
_LOWEST = 1 << 16
"""No number that a walk compares with is as high as an address above it."""
_ALIGNMENT = 4096
"""Bytes: every stack begins at a page, so that what is asked of the low bits of an address has one
answer for all of them."""


@dataclass
class _Notes:
    """What a walk asked of its stack."""

    words: dict[int, int] = field(default_factory=dict)
    """By address, those that it used."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Those that it took for a number."""
    others: dict[tuple[int, int], None] = field(default_factory=dict)
    """Address and value: it asked whether that is there, and it was not."""
    absent: dict[tuple[int, int, int], None] = field(default_factory=dict)
    """Value, low and high: it looked for the value in that part, and did not find it."""
    start: int = 0
    """Where the part of the stack begins that was read."""
    told: bool = True
    """Whether the notes tell all that the walk depended on."""


class _NotedStack(StackMemory):
    """A stack that takes notes of what it is asked."""

    __slots__ = ("_notes",)

    def __init__(self, notes: _Notes, prog: Program, low: int, high: int, used: int, *rest: Any):
        self._notes = notes
        notes.told = notes.told and not notes.start
        notes.start = used if low <= used < high else low
        super().__init__(prog, low, high, used, *rest)

    def _known(self, address: int, noted: dict[int, int]) -> int | None:
        found = super().word(address)
        if found is None or address < self._notes.start or address & 7:
            self._notes.told = False
        else:
            noted[address] = found
        return found

    def word(self, address: int) -> int | None:
        return self._known(address, self._notes.words)

    def number(self, address: int) -> int | None:
        return self._known(address, self._notes.numbers)

    def glance(self, address: int) -> int | None:
        found = super().word(address)
        if found is None or address < self._notes.start:
            self._notes.told = False
        return found

    def holds(self, address: int, value: int) -> bool | None:
        found = self.glance(address)
        if found != value:
            self._notes.others[address, value] = None
            return None if found is None else False
        self.word(address)
        return True

    def places_of(self, value: int, low: int, high: int) -> list[int]:
        found = [
            place for place in range(max(low, self.low), high - 7, 8) if self.glance(place) == value
        ]
        if found:
            self._notes.told = False
        self._notes.absent[value, max(low, self.low), high] = None
        return found


class _Start(NamedTuple):
    """From where a walk starts, counted from the task's stack, and whose it is."""

    idle: bool
    user: bool
    sp: int
    pc: int
    fp: int
    fp_on_stack: bool


@dataclass(frozen=True, eq=False)
class KnownWalk:
    """A walk that can be recognised on another task's stack, and what is to be said of it.

    Addresses of the stack are counted from its lowest byte, in bytes.
    """

    trace: Trace
    kernel: KernelAnswer
    proof: ProofAnswer
    pointers: struct.Struct
    """Finds the words that point into the stack."""
    targets: tuple[int, ...]
    """Where they point to."""
    others: tuple[tuple[int, int, bool], ...]
    """Place and value of each word that is another one; whether the value points into the stack."""
    absent: tuple[tuple[int, int, int, bool], ...]
    """Value, low and high of what is not in a part; whether the value points into the stack."""

    def is_on(self, stack: int, start: int, data: bytes, word: struct.Struct) -> bool:
        """Whether another stack has the words of the walk that point into the stack, and lacks
        what this one lacked.

        :param stack: its lowest address.
        :param start: where ``data`` begins, counted from there.
        :param word: a 64-bit word in the dump's byte order.
        """
        if self.pointers.unpack_from(data) != tuple([stack + to for to in self.targets]):
            return False
        for place, value, moves in self.others:
            if word.unpack_from(data, place - start)[0] == (stack + value if moves else value):
                return False
        for value, low, high, moves in self.absent:
            wanted = word.pack(stack + value if moves else value)
            at = data.find(wanted, low - start, high - start)
            while at >= 0:
                if not (at + start - low) & 7:
                    return False
                at = data.find(wanted, at + 1, high - start)
        return True


@dataclass
class _Place:
    """The walks that start alike."""

    start: int
    """Where the used part begins, counted from the stack."""
    tables: dict[tuple[int, ...], tuple[struct.Struct, dict[tuple[int, ...], list[KnownWalk]]]] = (
        field(default_factory=dict)
    )
    """By the places of the words that do not point into the stack: what finds these words, and
    the walks by what the words are."""


class Repeats:
    """The walks of one kernel that other tasks' walks may repeat.

    :param supported: whether the kernel has a reliable stack trace.
    """

    def __init__(self, prog: Program, unwinder: StackUnwinder[Any], *, supported: bool) -> None:
        self._prog = prog
        self._unwinder = unwinder
        self._supported = supported
        self._order = order = byte_order(prog)
        self._word = struct.Struct(order + "Q")
        self._size: int = unwinder.facts.thread_size
        self._init_task: int = unwinder.facts.init_task
        self._places: dict[_Start, _Place] = {}
        self._count = 0

    def find(self, task: Task) -> KnownWalk | None:
        """The walk that the task's walk repeats, None if it has to be made."""
        start = self._start(task)
        place = self._places.get(start) if start else None
        if place is None:
            return None
        stack = task.stack
        try:
            data = self._prog.read(stack + place.start, self._size - place.start)
        except (FaultError, OverflowError):
            return None
        for fixed, known in place.tables.values():
            for walk in known.get(fixed.unpack_from(data), ()):
                if walk.is_on(stack, place.start, data, self._word):
                    return walk if self._unwinder.is_undisturbed(task) else None
        return None

    def walk(self, task: Task) -> tuple[Walk, KnownWalk | None]:
        """Walk a task's stack as the kernel would; the walk to remember if others may repeat it."""
        start = self._start(task)
        if start is None:
            return walk_task(self._unwinder, task), None
        notes = _Notes()
        with self._noting(notes):
            walk = walk_task(self._unwinder, task)
        if notes.told and not walk.reasons and walk.end is not End.STOPPED:
            return walk, self._remember(task, start, walk, notes)
        return walk, None

    @contextmanager
    def _noting(self, notes: _Notes) -> Iterator[None]:
        def make(*where: Any) -> StackMemory:
            return _NotedStack(notes, *where)

        usual, self._unwinder.stack_memory = self._unwinder.stack_memory, make
        try:
            yield
        finally:
            self._unwinder.stack_memory = usual

    def _start(self, task: Task) -> _Start | None:
        """What a walk starts with; None if no other task's walk can repeat it."""
        low, high = task.stack, task.stack + self._size
        if task.on_cpu or not task.has_stack or task.return_hooks:
            return None
        if low & (_ALIGNMENT - 1) or low < _LOWEST or task.address == self._init_task:
            return None
        fp, on_stack = task.saved_fp, low <= task.saved_fp <= high
        if on_stack:
            fp -= low
        idle, user = task.kind is TaskKind.IDLE, task.kind is TaskKind.USER
        return _Start(idle, user, task.saved_sp - low, task.saved_pc, fp, on_stack)

    def _remember(self, task: Task, start: _Start, walk: Walk, notes: _Notes) -> KnownWalk | None:
        low, high = task.stack, task.stack + self._size

        def on_stack(value: int) -> bool:
            return low <= value <= high

        def moved(value: int) -> tuple[int, bool]:
            return (value - low, True) if on_stack(value) else (value, False)

        words = notes.words | notes.numbers
        replaced = any(
            at in self._unwinder.trampolines
            for word in (*notes.words.values(), task.saved_pc)
            for at in self._unwinder.may_stand_for(word)
        )
        if replaced or any(map(on_stack, (*notes.numbers.values(), *walk.entries()))):
            return None
        fixed = sorted(at - low for at, value in words.items() if not on_stack(value))
        pointing = sorted(at - low for at, value in words.items() if on_stack(value))
        begin = notes.start - low
        known = KnownWalk(
            Frames.of(walk.frames, low).trace,
            kernel_answer(walk, running=False, supported=self._supported),
            proof_answer(walk),
            self._words_at(pointing, begin),
            tuple(words[low + at] - low for at in pointing),
            tuple((at - low, *moved(value)) for at, value in notes.others),
            tuple((moved(v)[0], a - low, b - low, moved(v)[1]) for v, a, b in notes.absent),
        )
        if self._count >= _LIMIT:
            self._places.clear()
            self._count = 0
        self._count += 1
        place = self._places.setdefault(start, _Place(begin))
        if tuple(fixed) not in place.tables:
            place.tables[tuple(fixed)] = (self._words_at(fixed, begin), {})
        alike = place.tables[tuple(fixed)][1]
        alike.setdefault(tuple(words[low + at] for at in fixed), []).append(known)
        return known

    def _words_at(self, places: Sequence[int], start: int) -> struct.Struct:
        """What unpacks the words at some places of data that begins at ``start``."""
        at, spelling = start, self._order
        for place in places:
            spelling += f"{place - at}xQ"
            at = place + 8
        return struct.Struct(spelling)
