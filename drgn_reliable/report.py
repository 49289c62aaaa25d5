# SPDX-License-Identifier: LGPL-2.1-or-later
"""Task to :class:`~drgn_reliable.model.TaskReport`, dump to report: the package's Python API."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from drgn import Object, Program

from drgn_reliable.judge import kernel_answer, proof_answer, refusal
from drgn_reliable.kernel import Kernel
from drgn_reliable.model import (
    DumpReport,
    Frames,
    Reason,
    TaskReport,
    Walk,
)
from drgn_reliable.repeats import Repeats
from drgn_reliable.tasks import Task
from drgn_reliable.walk import walk_task

__all__ = (
    "Scan",
    "Scanner",
    "collector_paused",
    "merged_reasons",
    "report_of",
    "scan",
    "scan_task",
)

_NO_TEXT = ("not-kernel-text", "text-not-checked")
"""Reasons whose value is an address that is not kernel text."""


class Scanner:
    """Reports on the tasks of one kernel, one at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.supported = kernel.supports_reliable
        self._repeats = Repeats(kernel.prog, kernel.unwinder, supported=self.supported)

    def report(self, task: Task) -> TaskReport:
        """Walk one task's stack, as the kernel would and if need be to prove, and judge. In a
        living kernel it is seen to that the task does not run meanwhile."""
        live = self.kernel.live
        return live.report(task, self._walked) if live else self._recognised(task)

    def _recognised(self, task: Task) -> TaskReport:
        """The report of a task whose walk may repeat another's."""
        known = self._repeats.find(task)
        if known is None:
            walk, known = self._repeats.walk(task)
        if known is None:
            return self._judged(task, walk)
        return task.report(known.kernel, known.proof, Frames(known.trace, task.stack), ())

    def _walked(self, task: Task) -> TaskReport:
        return self._judged(task, walk_task(self.kernel.unwinder, task))

    def _judged(self, task: Task, walk: Walk) -> TaskReport:
        proof = walk_task(self.kernel.unwinder, task, proving=True) if walk.reasons else walk
        return report_of(task, walk, proof, supported=self.supported)

    def reports(self, tasks: Iterable[Task]) -> Iterator[TaskReport]:
        """The reports of tasks, as they are made."""
        live = self.kernel.live
        return live.reports(tasks, self._walked) if live else map(self._recognised, tasks)

    def end(self) -> None:
        """Leave nothing behind that works for the scanner: this one works alone."""

    def problems(self) -> tuple[str, ...]:
        """What has kept the scan so far from seeing everything, one line each."""
        kernel = self.kernel
        found = [
            *kernel.tasks.problems,
            *kernel.generated.problems,
            *kernel.facts.problems,
            *kernel.problems,
        ]
        if kernel.modules.problem:
            found.append(kernel.modules.problem)
        found += kernel.live.problems() if kernel.live else ()
        return tuple(found)

    def warnings(self) -> tuple[str, ...]:
        """What there is to prove with so far, but is damaged; and what changed in a living kernel
        while it was looked at; one line each."""
        live = self.kernel.live
        return (*self.kernel.unwind_data.problems, *(live.notes() if live else ()))

    def dump_report(self, dump: str, tasks: Iterable[TaskReport]) -> DumpReport:
        """The report of the whole dump."""
        kernel = self.kernel
        reports = tuple(tasks)
        return DumpReport(
            dump,
            kernel.release,
            kernel.architecture,
            kernel.unwinder.name,
            kernel.types,
            kernel.symbols.source,
            reports,
            self.problems(),
            self.warnings(),
        )


class Scan:
    """A scan that is under way. It has what a :class:`~drgn_reliable.model.DumpReport` has, but its
    tasks are walked as they are taken, and are not kept.

    :param tasks: the tasks to walk.
    :param passes: which reports to give.
    """

    def __init__(
        self,
        scanner: Scanner,
        tasks: Iterable[Task],
        passes: Callable[[TaskReport], bool] | None = None,
    ) -> None:
        kernel = scanner.kernel
        self._scanner = scanner
        self.dump = kernel.path
        self.release = kernel.release
        self.architecture = kernel.architecture
        self.unwinder: str = kernel.unwinder.name
        self.types = kernel.types
        self.symbols = kernel.symbols.source
        reports = scanner.reports(tasks)
        self.tasks: Iterator[TaskReport] = filter(passes, reports) if passes else reports
        """The reports, once."""

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *of: object) -> None:
        self._scanner.end()

    @property
    def problems(self) -> tuple[str, ...]:
        """What has kept the scan so far from seeing every task, one line each."""
        return self._scanner.problems()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What there is to prove with so far, but is damaged, one line each."""
        return self._scanner.warnings()

    def whole(self) -> DumpReport:
        """All reports at once."""
        with collector_paused():
            return self._scanner.dump_report(self.dump, self.tasks)


def report_of(task: Task, walk: Walk, proof: Walk, *, supported: bool) -> TaskReport:
    """What the two walks of a task's stack say.

    :param supported: whether the kernel has a reliable stack trace.
    """
    return task.report(
        kernel_answer(walk, running=task.on_cpu, supported=supported),
        proof_answer(proof),
        Frames.of(proof.frames, task.stack),
        merged_reasons(walk, proof),
    )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's cycle collector off while many reports are made.

    Reports refer to nothing that refers back; going through all of them again and again for
    cycles takes as long as making them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def merged_reasons(walk: Walk, proof: Walk) -> tuple[Reason, ...]:
    """The reasons of both walks, each once, the one that stopped the kernel first. One that both
    met is told as the proof does, whose frames are shown."""
    first = refusal(walk.reasons)
    every = ([first] if first else []) + walk.reasons + proof.reasons
    return tuple({reason._replace(frame=0, detail=""): reason for reason in every}.values())


def scan(prog: Program, progress: Callable[[Iterable[Task]], Iterable[Task]] = iter) -> DumpReport:
    """Report on every task of a kernel.

    :param prog: a drgn program of a Linux kernel; types and symbols that it lacks are taken
        from the dump itself.
    :param progress: wraps the tasks as they are walked, to show how far the scan is.
    :raises drgn_reliable.ReliableError: if the program is no kernel that can be scanned.
    """
    scanner = Scanner(Kernel(prog))
    return Scan(scanner, progress(scanner.kernel.tasks)).whole()


def scan_task(task: Object) -> TaskReport:
    """Report on one task.

    :param task: ``struct task_struct *`` of any drgn program of a Linux kernel.
    :raises drgn_reliable.ReliableError: if the program is no kernel that can be scanned.
    :raises drgn.FaultError: if the task structure cannot be read.
    """
    kernel = Kernel(task.prog_)
    return Scanner(kernel).report(kernel.tasks.read(task.value_()))
