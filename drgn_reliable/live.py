# SPDX-License-Identifier: LGPL-2.1-or-later
"""A living kernel: its tasks run, end and begin while they are looked at, and code comes and goes.

Nothing can be held still from outside, so every look is checked for having been overtaken, and
made again, a few times; then it is said that nothing is known. The order of the reads is what
counts. The scheduler counts a switch before it clears ``on_cpu`` of the task that it leaves
(``__schedule()``, kernel/sched/core.c), and sets ``on_cpu`` before a task begins to run. So if ::

    its switches were counted                   c
    then on_cpu was read                        0
    then the task structure and the stack
    then on_cpu was read                        0
    then its switches were counted              c

the task did not run from the second read to the fourth, in whatever order each of them copied its
bytes. That the task structure is the same at the end finds what others do to a task that does not
run (they wake it, free its stack), and a link of its list that it was not freed itself. Each read
of ``/proc/kcore`` is a system call: an ordinary task takes nine.

Module text and generated code are checked likewise, once for many tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from drgn import FaultError

from drgn_reliable.errors import DumpError, TaskNotFound
from drgn_reliable.generated import GeneratedText
from drgn_reliable.judge import kernel_answer, proof_answer
from drgn_reliable.memory import MASK, Layout, member_offset
from drgn_reliable.model import TaskReport, Walk
from drgn_reliable.modules import ModuleList
from drgn_reliable.patches import Patches
from drgn_reliable.tasks import Task, TaskList

if TYPE_CHECKING:
    from drgn_reliable.kernel import Kernel

__all__ = ("LiveKernel", "LiveTaskList", "no_registers")

ATTEMPTS = 3
"""To look at one task, or at many while code comes and goes."""
_LISTINGS = 5
"""Attempts to list the tasks."""
_TOGETHER = 256
"""Tasks between two looks at the lists of code."""

T = TypeVar("T")


class _Moved(Exception):
    """The task ran while it was looked at, at every attempt."""


class _Ended(Exception):
    """The task was freed."""


def no_registers(task: Task) -> None:
    """The registers of a CPU that goes on running are nowhere."""


class LiveKernel:
    """Looks at the tasks of a kernel while it runs.

    :param kernel: of a drgn program that says that it is live.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._prog = kernel.prog
        task = self._prog.type("struct task_struct")
        members = {
            "before": "thread_node.prev",
            "voluntary": "nvcsw",
            "involuntary": "nivcsw",
        }
        self._counted = Layout(task, members)
        self._node = member_offset(task, "thread_node")
        self._on_cpu = member_offset(task, "on_cpu")
        self._code = self._all_code()
        self._ended = self._left_out = self._changes = 0

    # Tasks -------------------------------------------------------------------------------

    def still(self, task: Task, look: Callable[[Task], T]) -> T:
        """What a look at a task finds, of which it is sure that the task did not run meanwhile.

        :param look: is given the task as it is now, perhaps more than once.
        :raises DumpError: if it ran at every attempt, or ended.
        """
        who = f"task {task.pid} ({task.comm})"
        try:
            for _ in range(ATTEMPTS):
                found = self._look(task.address, look)
                if not self._code_changed():
                    return found
        except _Ended:
            raise TaskNotFound(f"{who} ended while it was looked at") from None
        except _Moved:
            raise DumpError(
                f"{who} ran while its stack was read, {ATTEMPTS} times; try again, or take a dump"
            ) from None
        raise DumpError(f"{who}: modules or generated code change all the time; try again")

    def report(self, task: Task, walked: Callable[[Task], TaskReport]) -> TaskReport:
        """The report of one task.

        :param walked: makes a report, of a task that does not move.
        :raises TaskNotFound: if it ended meanwhile.
        :raises DumpError: if modules or generated code change all the time.
        """
        found = self._together([task], walked)
        if found is None:
            raise DumpError("modules or generated code change all the time; try again")
        if not found:
            raise TaskNotFound(f"task {task.pid} ({task.comm}) ended while it was looked at")
        return found[0]

    def reports(
        self, tasks: Iterable[Task], walked: Callable[[Task], TaskReport]
    ) -> Iterator[TaskReport]:
        """The reports of tasks, but of those that end meanwhile."""
        rest = iter(tasks)
        while batch := list(islice(rest, _TOGETHER)):
            found = self._together(batch, walked)
            if found is not None:
                yield from found
                continue
            for task in batch:
                alone = self._together([task], walked)
                self._left_out += alone is None
                yield from alone or ()

    def _together(
        self, tasks: list[Task], walked: Callable[[Task], TaskReport]
    ) -> list[TaskReport] | None:
        """The reports of a few tasks; None if code came or went at every attempt."""
        for _ in range(ATTEMPTS):
            ended, found = [], []
            for task in tasks:
                try:
                    found.append(self._look(task.address, walked))
                except _Moved:
                    found.append(self._moved(task))
                except _Ended:
                    ended.append(task)
            if not self._code_changed():
                return found + self._not_ended(ended)
        return None

    def _not_ended(self, ended: list[Task]) -> list[TaskReport]:
        """What is said of tasks that seemed to have ended and are listed nevertheless."""
        there = {(task.address, task.pid) for task in self._kernel.tasks} if ended else set()
        back = [task for task in ended if (task.address, task.pid) in there]
        self._ended += len(ended) - len(back)
        return [self._moved(task) for task in back]

    def _look(self, address: int, look: Callable[[Task], T]) -> T:
        for _ in range(ATTEMPTS):
            counted = self._count(address)
            was_running = self._is_running(address)
            task = self._read(address)
            if was_running and not task.on_cpu:
                continue  # perhaps not quite: its registers may not have been saved yet
            found = look(task)
            after = self._read(address)
            if task.on_cpu:
                # Who runs, runs. Its stack was not looked at, and only must not have been freed.
                if after.stack == task.stack and after.pid == task.pid:
                    return found
            elif after == task and self._count(address) == counted:
                return found
        raise _Moved

    def _count(self, address: int) -> dict[str, Any]:
        """How often a task was switched, and the link that leads to it.

        :raises _Ended: if it is in its list no more: the memory may be another task's.
        """
        for _ in range(2):  # between two reads a neighbour can end
            with suppress(FaultError):
                found = self._counted.read(self._prog, address)
                # Nothing leads to the idle tasks, and nobody frees them.
                if self._links(found["before"], address) or not self._read(address).pid:
                    return found
        raise _Ended

    def _links(self, before: int, address: int) -> bool:
        """Whether a node of the list of a process's threads leads to a task."""
        with suppress(FaultError):  # what was taken from a list has no address there
            return bool(self._prog.read_u64(before) == address + (self._node or 0) & MASK)
        return False

    def _is_running(self, address: int) -> bool:
        if self._on_cpu is None:
            return False  # one CPU, and that reads
        try:
            return bool(self._prog.read_u32(address + self._on_cpu & MASK))
        except FaultError:
            raise _Ended from None

    def _read(self, address: int) -> Task:
        try:
            return self._kernel.tasks.read(address)
        except FaultError:
            raise _Ended from None

    def _moved(self, task: Task) -> TaskReport:
        walk = Walk()
        walk.note("task-moved", f"{ATTEMPTS} attempts", pc=None, sp=None)
        supported = self._kernel.supports_reliable
        answer = kernel_answer(walk, running=True, supported=supported)
        return task.report(answer, proof_answer(walk), (), tuple(walk.reasons))

    # Code --------------------------------------------------------------------------------

    def _code_changed(self) -> bool:
        """Whether code came or went since the kernel's lists were read; then they are read anew."""
        if self._all_code() == self._code:
            return False
        self._changes += 1
        self._code = self._all_code()
        self._kernel.assemble()
        return True

    def _all_code(self) -> tuple[Any, ...]:
        """All code beside the kernel's own, as its lists tell of it now."""
        kernel = self._kernel
        modules = ModuleList.of_kernel(self._prog, kernel.symbols)
        generated = GeneratedText(self._prog, kernel.symbols, kernel.generated.page_size)
        everything = generated.everything()
        regions = tuple((module.address, module.regions) for module in modules)
        return regions, everything, modules.problem, tuple(generated.problems)

    # Livepatches -------------------------------------------------------------------------

    def transition(self) -> tuple[str, int | None] | None:
        """The livepatch transition that is in progress now: the patch's name, and what it leads
        to."""
        patches = Patches(self._prog, self._kernel.symbols, [])
        patch = patches.in_transition
        return (patch.name, patches.target) if patch else None

    # What there is to say -------------------------------------------------------------------

    def problems(self) -> Iterator[str]:
        """What kept from seeing all tasks, one line each."""
        if self._left_out:
            yield (
                f"{self._left_out} tasks are missing from this report: modules or generated code "
                "changed whenever they were looked at"
            )

    def notes(self) -> Iterator[str]:
        """What changed meanwhile, one line each."""
        if self._ended:
            what = "task" if self._ended == 1 else "tasks"
            yield f"{self._ended} {what} ended meanwhile"
        if self._changes:
            yield f"modules or generated code changed meanwhile ({self._changes} looks made again)"


class LiveTaskList(TaskList):
    """The tasks of a kernel that runs: all are listed before the first is given.

    What reading follows can be freed, and used again for another task, which leads elsewhere, past
    some that are there. So the number of tasks is held against the kernel's own (``nr_threads``),
    give or take those that began (``total_forks``) and ended meanwhile; and if any did, they are
    listed once more, for what one reading missed.
    """

    WHERE = "now"

    def _check(self, what: str, task: int, before: int, reached_from: int) -> None:
        """What leads back changes as what leads on does: the kernel's own number tells."""

    def _check_count(self, found: int) -> None:
        """That is :meth:`__iter__`'s, which knows what came and went."""

    def __iter__(self) -> Iterator[Task]:
        found: dict[int, Task] = {}
        listed: dict[int, Task] = {}
        for _ in range(_LISTINGS):
            began = self._number("total_forks", 8)
            before = self._number("nr_threads", 4)
            listed = {task.address: task for task in super().__iter__()}
            after = self._number("nr_threads", 4)
            births = self._number("total_forks", 8) - began
            count = sum(task.pid != 0 for task in listed.values())
            ends = before + births - after
            if before and not before - ends <= count <= before + births:
                wrong = f"task list: {count} tasks were found, the kernel counts {after}"
                self.problems.append(wrong)
            if self.problems:
                continue
            again = bool(found)
            found = listed | {at: task for at, task in found.items() if at not in listed}
            if again or not (births or ends):
                break
        if found:
            self.problems.clear()  # what broke the list at another reading was a change
        yield from (found or listed).values()
