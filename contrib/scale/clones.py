# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is in the memory of the clones."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from contrib.scale.plan import Plan
from contrib.scale.templates import Part, Pattern, Template, offset_of
from drgn_reliable import Kernel
from drgn_reliable.memory import member_offset

__all__ = ("Clones", "Places", "Sizes")

_PID, _TGID = 0, 1
_WORD, _INT = struct.Struct("<Q").pack_into, struct.Struct("<I").pack_into
_COUNTERS = (
    ("se.sum_exec_runtime", 34),
    ("se.vruntime", 36),
    ("utime", 28),
    ("stime", 28),
    ("nvcsw", 16),
    ("nivcsw", 8),
    ("start_time", 44),
    ("start_boottime", 44),
    ("last_switch_time", 8),
)
"""Members of a task that count, which no two tasks have alike, and how many bits they have."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a task has of its own, and how it is put into memory."""

    task: int
    tasks_in_slab: int
    slab: int
    stack: int
    stack_stride: int
    """Of virtual memory, from one stack to the next."""
    pid: int
    signal: int


@dataclass(frozen=True)
class Places:
    """Where the parts of clones are, as virtual addresses."""

    tasks: int
    stacks: int
    pids: int
    signals: int
    first_pid: int


class Clones:
    """Clones of a kernel's tasks.

    :param before, after: the addresses of the nodes in ``task_struct.tasks`` between which the
        clones are in the list of processes.
    """

    def __init__(
        self,
        kernel: Kernel,
        templates: list[Template],
        plan: Plan,
        sizes: Sizes,
        places: Places,
        between: tuple[int, int],
        seed: int,
    ) -> None:
        self._templates = templates
        self._plan = plan
        self._sizes = sizes
        self._places = places
        self._between = between
        self._seed = seed
        self._task = {
            name: offset_of(kernel, "struct task_struct", name)
            for name in (
                "pid", "tgid", "tasks", "thread_node", "group_leader", "signal", "thread_pid",
                "pid_links", "children", "sibling",
            )
        }  # fmt: skip
        task_type = kernel.prog.type("struct task_struct")
        self._counters = [
            (offset, bits)
            for name, bits in _COUNTERS
            if (offset := member_offset(task_type, name)) is not None
        ]
        self._pid_tasks = offset_of(kernel, "struct pid", "tasks")
        self._pid_number = offset_of(kernel, "struct pid", "numbers")
        self._pid_types = kernel.prog.type("struct pid").member("tasks").type.length or 0
        self._signal = {
            name: offset_of(kernel, "struct signal_struct", name)
            for name in ("thread_head", "pids", "nr_threads")
        }

    # Where the parts of a clone are -------------------------------------------------------

    def task(self, clone: int) -> int:
        """The address of a clone's task structure."""
        slab, place = divmod(self._plan.task_slot[clone], self._sizes.tasks_in_slab)
        return self._places.tasks + slab * self._sizes.slab + place * self._sizes.task

    def stack(self, clone: int) -> int:
        """The lowest address of a clone's stack."""
        return self._places.stacks + self._plan.stack_slot[clone] * self._sizes.stack_stride

    def pid(self, clone: int) -> int:
        """The address of a clone's ``struct pid``."""
        return self._places.pids + clone * self._sizes.pid

    def signal(self, process: int) -> int:
        """The address of a process's ``struct signal_struct``."""
        return self._places.signals + process * self._sizes.signal

    def number(self, clone: int) -> int:
        """A clone's PID."""
        return self._places.first_pid + clone

    def leader_node(self, process: int) -> int:
        """The address of a process's node in the list of processes."""
        if process < 0:
            return self._between[0]
        if process == self._plan.processes:
            return self._between[1]
        return self.task(self._plan.first[process]) + self._task["tasks"]

    # What is in them ----------------------------------------------------------------------

    def task_slabs(self) -> Iterator[bytes]:
        """All task structures, a slab at a time."""
        sizes, at_slot = self._sizes, _inverse(self._plan.task_slot)
        for first in range(0, self._plan.tasks, sizes.tasks_in_slab):
            slab = bytearray(sizes.slab)
            for place, clone in enumerate(at_slot[first : first + sizes.tasks_in_slab]):
                self._write_task(slab, place * sizes.task, clone)
            yield bytes(slab)

    def stacks(self) -> Iterator[tuple[bytes, tuple[bool, ...]]]:
        """All stacks, and which of their pages the dump has."""
        for clone in _inverse(self._plan.stack_slot):
            pattern = self._templates[self._plan.template[clone]].parts[Part.STACK]
            stack = bytearray(self._sizes.stack)
            self._copy(stack, 0, pattern, clone)
            random = Random(f"{self._seed} stack {clone}")
            for offset, value in pattern.user:
                _WORD(stack, offset, value ^ random.getrandbits(16) << 12)
            yield bytes(stack), pattern.present

    def pids(self) -> Iterator[bytes]:
        """Every ``struct pid``."""
        for clone in range(self._plan.tasks):
            pid = bytearray(self._sizes.pid)
            self._copy(pid, 0, self._templates[self._plan.template[clone]].parts[Part.PID], clone)
            _INT(pid, self._pid_number, self.number(clone))
            links = self.task(clone) + self._task["pid_links"]
            heads = [0] * self._pid_types
            heads[_PID] = links
            if self._plan.position(clone)[0] == 0:
                heads[_TGID] = links + 16 * _TGID
            struct.pack_into(f"<{len(heads)}Q", pid, self._pid_tasks, *heads)
            yield bytes(pid)

    def signals(self) -> Iterator[bytes]:
        """Every ``struct signal_struct``."""
        plan, node = self._plan, self._task["thread_node"]
        for process in range(plan.processes):
            signal = bytearray(self._sizes.signal)
            leader, end = plan.first[process], plan.first[process + 1]
            pattern = self._templates[plan.template[leader]].parts[Part.SIGNAL]
            self._copy(signal, 0, pattern, leader)
            head = self._signal["thread_head"]
            _WORD(signal, head, self.task(leader) + node)
            _WORD(signal, head + 8, self.task(end - 1) + node)
            _INT(signal, self._signal["nr_threads"], end - leader)
            _WORD(signal, self._signal["pids"] + 8 * _TGID, self.pid(leader))
            yield bytes(signal)

    def _copy(self, into: bytearray, at: int, pattern: Pattern, clone: int) -> None:
        """Copy a part of a task; its pointers into the task's parts become those of the clone."""
        into[at : at + len(pattern.data)] = pattern.data
        bases = (
            self.task(clone),
            self.stack(clone),
            self.pid(clone),
            self.signal(self._plan.process[clone]),
        )
        for offset, part, distance in pattern.pointers:
            _WORD(into, at + offset, bases[part] + distance)

    def _write_task(self, slab: bytearray, at: int, clone: int) -> None:
        self._copy(slab, at, self._templates[self._plan.template[clone]].parts[Part.TASK], clone)
        task, members, plan = self.task(clone), self._task, self._plan
        process = plan.process[clone]
        leader = plan.first[process]
        _INT(slab, at + members["pid"], self.number(clone))
        _INT(slab, at + members["tgid"], self.number(leader))
        _WORD(slab, at + members["group_leader"], self.task(leader))
        _WORD(slab, at + members["signal"], self.signal(process))
        _WORD(slab, at + members["thread_pid"], self.pid(clone))
        for name in ("children", "sibling"):
            struct.pack_into("<QQ", slab, at + members[name], *[task + members[name]] * 2)
        self._link(slab, at, clone)
        random = Random(f"{self._seed} task {clone}")
        for offset, bits in self._counters:
            _WORD(slab, at + offset, random.getrandbits(bits))

    def _link(self, slab: bytearray, at: int, clone: int) -> None:
        """Put a task into the lists of its process, of processes and of its PID."""
        members, process = self._task, self._plan.process[clone]
        place, count = self._plan.position(clone)
        head = self.signal(process) + self._signal["thread_head"]
        node = members["thread_node"]
        after = self.task(clone + 1) + node if place + 1 < count else head
        before = self.task(clone - 1) + node if place else head
        struct.pack_into("<QQ", slab, at + node, after, before)
        links = [0] * (2 * self._pid_types)
        heads = self.pid(clone) + self._pid_tasks
        links[2 * _PID + 1] = heads + 8 * _PID
        if place == 0:
            links[2 * _TGID + 1] = heads + 8 * _TGID
            nodes = self.leader_node(process + 1), self.leader_node(process - 1)
            struct.pack_into("<QQ", slab, at + members["tasks"], *nodes)
        struct.pack_into(f"<{len(links)}Q", slab, at + members["pid_links"], *links)


def _inverse(slots: array[int]) -> array[int]:
    """What is in each slot."""
    found = array("I", bytes(len(slots) * slots.itemsize))
    for clone, slot in enumerate(slots):
        found[slot] = clone
    return found
