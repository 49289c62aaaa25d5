# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which clones there are: of what, in which process, where."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

__all__ = ("Plan", "make_plan")

_PROCESS_SIZES = (1, 4, 16, 64, 256)
_PROCESS_WEIGHTS = (60, 20, 12, 6, 2)
"""How many threads a process has, and how many in a hundred processes have so many."""


@dataclass(frozen=True)
class Plan:
    """The clones, numbered in the order of the kernel's task list."""

    template: array[int]
    """Of each clone, the number of what it is a clone of."""
    process: array[int]
    """Of each clone, the number of its process."""
    first: array[int]
    """Of each process, its leader; one more than the processes, the last is how many clones."""
    task_slot: array[int]
    stack_slot: array[int]
    """Of each clone, where in memory its task structure and its stack are."""

    @property
    def tasks(self) -> int:
        """How many clones."""
        return len(self.template)

    @property
    def processes(self) -> int:
        """How many processes they are in."""
        return len(self.first) - 1

    def template_of_process(self, process: int) -> int:
        """What the leader of a process is a clone of."""
        return self.template[self.first[process]]

    def position(self, clone: int) -> tuple[int, int]:
        """Which thread of its process a clone is, and how many that has."""
        process = self.process[clone]
        first = self.first[process]
        return clone - first, self.first[process + 1] - first


def make_plan(tasks: int, weights: Sequence[float], random: Random, *, scattered: bool) -> Plan:
    """Plan some number of clones.

    :param weights: how often each template is to be cloned; each is once, if the number allows.
    :param scattered: whether tasks that follow each other in the list lie anywhere in memory, as
        on a machine that has been up for long. Otherwise they lie one after the other.
    """
    each_once = min(tasks, len(weights))
    template = array("I", random.sample(range(len(weights)), each_once))
    template.extend(random.choices(range(len(weights)), weights, k=tasks - each_once))
    random.shuffle(template)
    process, first = array("I"), array("I")
    while len(process) < tasks:
        size = random.choices(_PROCESS_SIZES, _PROCESS_WEIGHTS)[0]
        size = min(size, tasks - len(process))
        process.extend([len(first)] * size)
        first.append(len(process) - size)
    first.append(tasks)
    slots = [array("I", range(tasks)) for _ in range(2)]
    if scattered:
        for each in slots:
            random.shuffle(each)
    return Plan(template, process, first, *slots)
