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
from drgn_reliable.memory import StackMemory, byte_order, word_places
from drgn_reliable.model import End, Frames, KernelAnswer, ProofAnswer, TaskKind, Trace, Walk
from drgn_reliable.tasks import Task
from drgn_reliable.walk import walk_task

__all__ = ("KnownWalk", "Repeats")

_LIMIT = 8192
"""Walks that are remembered. A dump of more different stacks than that starts anew."""
_ALIKE_LIMIT = 128
"""Of those, walks that start alike, all of which a task may be held against."""
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
    elsewhere: dict[int, None] = field(default_factory=dict)
    """Addresses of words that do not point into the stack, whatever they are."""
    start: int = 0
    """Address from which on the stack was asked for; 0 before there is one."""
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

    def glance(self, address: int) -> int | None:
        found = StackMemory.word(self, address)
        if found is None or address & 7:
            self._notes.told = False
        elif address < self._notes.start:
            self._notes.start = address
        return found

    def word(self, address: int) -> int | None:
        found = self.glance(address)
        if found is not None:
            self._notes.words[address] = found
        return found

    def number(self, address: int) -> int | None:
        found = self.glance(address)
        if found is not None:
            self._notes.numbers[address] = found
        return found

    def elsewhere(self, address: int) -> int | None:
        found = self.glance(address)
        if found is not None and self.low <= found <= self.high:
            self._notes.told = False
        self._notes.elsewhere[address] = None
        return found

    def holds(self, address: int, value: int) -> bool | None:
        found = self.glance(address)
        if found is None:
            return None
        if found == value:
            self._notes.words[address] = found
        else:
            self._notes.others[address, value] = None
        return found == value

    def places_of(self, value: int, low: int, high: int) -> list[int]:
        found = StackMemory.places_of(self, value, low, high)
        if found or low & 7 or low < self._notes.start or high > self.high:
            self._notes.told = False
        elif high > low:
            self._notes.absent[value, low, high] = None
        return found


class _Start(NamedTuple):
    """From where a walk starts, counted from the task's stack, and whose it is."""

    idle: bool
    user: bool
    sp: int
    pc: int
    fp: int
    fp_on_stack: bool


class _Words:
    """Takes the words at some places of a stack, in ascending order, out of a part of it.

    >>> _Words((16, 32), "<").of(bytes(8) + bytes([1]) + bytes(15) + bytes([2]) + bytes(7), 8)
    (1, 2)
    """

    __slots__ = ("_first", "_unpack")

    def __init__(self, places: Sequence[int], order: str) -> None:
        self._first = at = places[0] if places else 0
        spelling = order
        for place in places:
            spelling += f"{place - at}xQ"
            at = place + 8
        self._unpack = struct.Struct(spelling).unpack_from

    def of(self, data: bytes, start: int) -> tuple[int, ...]:
        """The words, from data that begins at ``start``."""
        return self._unpack(data, self._first - start) if self._first else ()


class _Value(NamedTuple):
    """A word that was looked for: a number, or a place on the stack."""

    value: int
    moves: bool

    def on(self, stack: int) -> int:
        """The word for a stack at an address."""
        return stack + self.value if self.moves else self.value


@dataclass(frozen=True, eq=False)
class KnownWalk:
    """A walk that can be recognised on another task's stack, and what is to be said of it.

    Places are counted from the stack's lowest address, in bytes.
    """

    trace: Trace
    kernel: KernelAnswer
    proof: ProofAnswer
    pointers: _Words
    """The words that point into the stack."""
    targets: tuple[int, ...]
    """Where they point to."""
    others: tuple[tuple[int, _Value], ...]
    """Places, and what is not there."""
    absent: tuple[tuple[_Value, int, int], ...]
    """What is not in a part of the stack, and where that begins and ends."""
    elsewhere: tuple[int, ...]
    """Places of words that do not point into the stack."""


@dataclass
class _Alike:
    """Walks that read the same places."""

    fixed: _Words
    """The words that do not point into the stack."""
    walks: dict[tuple[int, ...], list[KnownWalk]] = field(default_factory=dict)
    """By what these words are."""


@dataclass
class _Place:
    """Walks that start alike."""

    start: int
    """Where the part of the stack begins that any of them asked for."""
    tables: dict[tuple[int, ...], _Alike] = field(default_factory=dict)
    """By the places of the words that do not point into the stack."""
    count: int = 0
    """Walks in them."""


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
        self._plain = self._plain_kernel if unwinder.signs_returns else None
        self._places: dict[_Start, _Place] = {}
        self._count = 0

    def _plain_kernel(self, word: int) -> int:
        """A kernel address without its code; what is none is compared as it is."""
        return self._unwinder.plain_address(word) if word >> 55 & 1 else word

    # Recognise ---------------------------------------------------------------------------

    def find(self, task: Task) -> KnownWalk | None:
        """The walk that the task's walk repeats, None if it has to be made."""
        start = self._start(task)
        place = self._places.get(start) if start else None
        if place is None:
            return None
        stack, begin = task.stack, place.start
        try:
            data = self._prog.read(stack + begin, self._size - begin)
        except (FaultError, OverflowError):
            return None
        for alike in place.tables.values():
            words = alike.fixed.of(data, begin)
            if self._plain:
                words = tuple(map(self._plain, words))
            for walk in alike.walks.get(words, ()):
                if self._is_on(walk, stack, begin, data):
                    return walk if self._unwinder.is_undisturbed(task) else None
        return None

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

    def _is_on(self, walk: KnownWalk, stack: int, begin: int, data: bytes) -> bool:
        """Whether a stack whose other words are those of a walk has its pointers too, and lacks
        what the walk's stack lacked.

        :param stack: its lowest address.
        :param data: the words from the place ``begin`` on.
        """
        if walk.pointers.of(data, begin) != tuple([stack + to for to in walk.targets]):
            return False
        unpack, plain = self._word.unpack_from, self._plain
        for place in walk.elsewhere:
            if stack <= unpack(data, place - begin)[0] <= stack + self._size:
                return False
        for place, value in walk.others:
            found, other = unpack(data, place - begin)[0], value.on(stack)
            if found == other or (plain and plain(found) == plain(other)):
                return False
        for value, low, high in walk.absent:
            word = self._word.pack(value.on(stack))
            if any(True for _ in word_places(data, word, low - begin, high - begin)):
                return False
        return True

    # Remember ----------------------------------------------------------------------------

    def walk(self, task: Task) -> tuple[Walk, KnownWalk | None]:
        """Walk a task's stack as the kernel would; the walk to remember if others may repeat it."""
        start = self._start(task)
        if start is None:
            return walk_task(self._unwinder, task), None
        notes = _Notes()
        with self._noting(notes):
            walk = walk_task(self._unwinder, task)
        if not notes.told or walk.reasons or walk.end is End.STOPPED:
            return walk, None
        if self._is_particular(task, walk, notes):
            return walk, None
        return walk, self._remember(task, start, walk, notes)

    @contextmanager
    def _noting(self, notes: _Notes) -> Iterator[None]:
        def make(*where: Any) -> StackMemory:
            return _NotedStack(notes, *where)

        usual, self._unwinder.stack_memory = self._unwinder.stack_memory, make
        try:
            yield
        finally:
            self._unwinder.stack_memory = usual

    def _is_particular(self, task: Task, walk: Walk, notes: _Notes) -> bool:
        """Whether a walk met a tracer's trampoline, or took an address of its stack for a number or
        for code."""
        unwinder, stack = self._unwinder, range(task.stack, task.stack + self._size + 1)
        replaced = (
            at in unwinder.trampolines
            for word in (*notes.words.values(), task.saved_pc)
            for at in unwinder.may_stand_for(word)
        )
        numbers = (word in stack for word in (*notes.numbers.values(), *walk.entries()))
        return any(replaced) or any(numbers)

    def _remember(self, task: Task, start: _Start, walk: Walk, notes: _Notes) -> KnownWalk:
        low, stack = task.stack, range(task.stack, task.stack + self._size + 1)
        words = dict(sorted({**notes.words, **notes.numbers}.items()))
        fixed = {at - low: word for at, word in words.items() if word not in stack}
        targets = {at - low: word - low for at, word in words.items() if word in stack}

        def value(word: int) -> _Value:
            return _Value(word - low, True) if word in stack else _Value(word, False)

        known = KnownWalk(
            Frames.of(walk.frames, low).trace,
            kernel_answer(walk, running=False, supported=self._supported),
            proof_answer(walk),
            _Words(tuple(targets), self._order),
            tuple(targets.values()),
            tuple((at - low, value(word)) for at, word in notes.others),
            tuple((value(word), a - low, b - low) for word, a, b in notes.absent),
            tuple(at - low for at in notes.elsewhere),
        )
        if self._count >= _LIMIT:
            self._places.clear()
            self._count = 0
        self._count += 1
        place = self._places.setdefault(start, _Place(notes.start - low))
        place.start = min(place.start, notes.start - low)
        place.count += 1
        if place.count > _ALIKE_LIMIT:
            place.tables.clear()
            place.count = 1
        where = tuple(fixed)
        alike = place.tables.get(where)
        if alike is None:
            alike = place.tables[where] = _Alike(_Words(where, self._order))
        key = map(self._plain, fixed.values()) if self._plain else fixed.values()
        alike.walks.setdefault(tuple(key), []).append(known)
        return known
