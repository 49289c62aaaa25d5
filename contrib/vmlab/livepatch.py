# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rows about livepatches: what a running kernel had of them, and what it said of its tasks.

They are there when a livepatch is loaded. ``README.md`` says what each row has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import verdicts
from .verdicts import lines, text_of

PASS_SECONDS = 0.5
"""The kernel asks all remaining tasks about once a second: what is closer together is one pass."""

_LINE = re.compile(r"K \[ *(\d+\.\d+)\](?:\[[^]]*\])? livepatch: (.*)")
_TASK = re.compile(
    r"klp_try_switch_task: (.*):(\d+) "
    r"(?:is (running)|has an (unreliable) stack|is (sleeping) on function (.+))"
)
_BEGINNING = re.compile(r"'.*': starting (?:un)?patching transition")
_END = re.compile(r"'.*': (?:un)?patching complete|forcing remaining tasks to the patched state")


@dataclass(frozen=True)
class Function:
    """One "F" row."""

    name: str
    old_func: int
    old_size: int
    new_func: int
    new_size: int
    nop: bool
    patched: bool
    transition: bool
    place: int
    """How many newer replacements of the same function there are; -1 for one not applied."""


@dataclass(frozen=True)
class Object:
    """One "O" row, with the functions below it."""

    name: str
    """``vmlinux`` for the kernel itself."""
    loaded: bool
    patched: bool
    functions: tuple[Function, ...]


@dataclass(frozen=True)
class Patch:
    """One "P" row, with the objects below it."""

    address: int
    name: str
    enabled: bool
    replace: bool
    forced: bool
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class TaskState:
    """One "S" row."""

    task: int
    """Address of its task_struct."""
    patch_state: int
    """0 for the old functions, 1 for the new ones, -1 outside a transition."""
    pending: bool
    """TIF_PATCH_PENDING."""


@dataclass(frozen=True)
class Said:
    """One "K" row: a line of the kernel's log, without what all of them begin with."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Decision:
    """What the kernel said of a task that it did not switch."""

    comm: str
    pid: int
    decision: str
    """``running``, ``unreliable`` or ``sleeping``."""
    function: str | None = None
    """The one that the task sleeps in: the first that the kernel came upon."""


@dataclass(frozen=True)
class Livepatches:
    """Everything that the rows have of livepatches."""

    transition: str | None
    """The patch that is being applied or removed."""
    target: int
    """``klp_target_state``: 1 to apply it, 0 to remove it, -1 for no transition."""
    tries: int
    """``klp_signals_cnt``: how often the kernel has asked all tasks and some were left."""
    patches: tuple[Patch, ...]
    """In the order in which they were applied."""
    tasks: tuple[TaskState, ...]
    log: tuple[Said, ...]

    @property
    def remaining(self) -> tuple[TaskState, ...]:
        """The tasks that were not switched at the instant of the dump."""
        if self.transition is None:
            return ()
        return tuple(task for task in self.tasks if task.patch_state != self.target)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What the kernel said, the last time that it asked, of each task that it did not switch.

        Nothing if its log does not have what it said of this transition.
        """
        return last_pass(self.log)


def parse(rows: str) -> Livepatches | None:
    """What the rows have of livepatches, None if nothing."""
    words = [[text_of(word) for word in row.split(" ")] for row in lines(rows)]
    state = next((fields for kind, *fields in words if kind == "L"), None)
    if state is None:
        return None
    tasks = [fields for kind, *fields in words if kind == "S"]
    return Livepatches(
        None if state[0] == "-" else state[0],
        int(state[1]),
        int(state[2]),
        tuple(_patches(words)),
        tuple(TaskState(int(task, 16), int(at), on == "1") for task, at, on in tasks),
        tuple(log(rows)),
    )


def differences(rows: str) -> list[str]:
    """Where the log is not about the instant of the dump, a line each.

    The kernel asks the remaining tasks once a second, so those that it spoke of last have to be
    those that remain; else the dump came before all were in their final states, or in the middle
    of the kernel's asking. And what was running is to be running now.
    """
    found = parse(rows)
    if found is None:
        return []
    known = {row.task: row for row in verdicts.parse(rows)}
    remaining = [known[task.task] for task in found.remaining]
    wrong = []
    if {(d.comm, d.pid) for d in found.decisions} != {(row.comm, row.pid) for row in remaining}:
        spoken = ", ".join(f"{d.comm}:{d.pid}" for d in found.decisions)
        left = ", ".join(f"{row.comm}:{row.pid}" for row in remaining)
        wrong.append(f"the kernel spoke of {spoken or 'no task'}; left are {left or 'none'}")
    now = {(row.comm, row.pid): row.verdict for row in remaining}
    for one in found.decisions:
        expected = {"sleeping": "reliable"}.get(one.decision, one.decision)
        verdict = now.get((one.comm, one.pid), expected)
        if verdict != expected:
            wrong.append(f"{one.comm}:{one.pid} was {one.decision}, and its trace is {verdict}")
    return wrong


def log(rows: str) -> Iterator[Said]:
    """The "K" rows."""
    for row in lines(rows):
        if found := _LINE.fullmatch(text_of(row)):
            yield Said(float(found[1]), found[2])


def decision(text: str) -> Decision | None:
    """What a line of the log says of a task, if it does."""
    if found := _TASK.fullmatch(text):
        comm, pid, running, unreliable, sleeping, function = found.groups()
        return Decision(comm, int(pid), running or unreliable or sleeping, function)
    return None


def last_pass(said: Iterable[Said]) -> tuple[Decision, ...]:
    """The decisions of the kernel's last look at all tasks, if a transition is in progress."""
    found: list[Decision] = []
    last = float("-inf")
    for line in said:
        if _BEGINNING.fullmatch(line.text) or _END.fullmatch(line.text):
            found.clear()
        elif one := decision(line.text):
            if line.seconds - last > PASS_SECONDS:
                found.clear()
            last = line.seconds
            found.append(one)
    return tuple(found)


def _patches(words: list[list[str]]) -> Iterator[Patch]:
    """The "P" rows; those of their objects and functions say whose they are."""
    for kind, *fields in words:
        if kind == "P":
            address, name, *flags = fields
            enabled, replace, forced = (flag == "1" for flag in flags)
            objects = tuple(_objects(words, name))
            yield Patch(int(address, 16), name, enabled, replace, forced, objects)


def _objects(words: list[list[str]], patch: str) -> Iterator[Object]:
    for kind, *fields in words:
        if kind == "O" and fields[0] == patch:
            _, name, *flags = fields
            loaded, patched = (flag == "1" for flag in flags)
            yield Object(name, loaded, patched, tuple(_functions(words, patch, name)))


def _functions(words: list[list[str]], patch: str, owner: str) -> Iterator[Function]:
    for kind, *fields in words:
        if kind == "F" and fields[:2] == [patch, owner]:
            name, old, old_size, new, new_size, *flags, place = fields[2:]
            nop, patched, transition = (flag == "1" for flag in flags)
            yield Function(
                name,
                int(old, 16),
                int(old_size),
                int(new, 16),
                int(new_size),
                nop,
                patched,
                transition,
                int(place),
            )
