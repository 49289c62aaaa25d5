# SPDX-License-Identifier: LGPL-2.1-or-later
"""Task to :class:`~drgn_reliable.model.TaskReport`, dump to report: the package's Python API."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from drgn import Object, Program

from drgn_reliable.judge import kernel_answer, proof_answer, refusal
from drgn_reliable.kernel import Kernel
from drgn_reliable.model import DumpReport, Reason, TaskReport, Walk
from drgn_reliable.tasks import Task
from drgn_reliable.walk import walk_task

__all__ = (
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

    def report(self, task: Task) -> TaskReport:
        """Walk one task's stack, as the kernel would and if need be to prove, and judge. In a
        living kernel it is seen to that the task does not run meanwhile."""
        live = self.kernel.live
        return live.report(task, self._walked) if live else self._walked(task)

    def _walked(self, task: Task) -> TaskReport:
        unwinder = self.kernel.unwinder
        walk = proof = walk_task(unwinder, task)
        if walk.reasons:
            proof = walk_task(unwinder, task, proving=True)
        return report_of(task, walk, proof, supported=self.supported)

    def reports(self, tasks: Iterable[Task]) -> Iterator[TaskReport]:
        """The reports of tasks, as they are made."""
        live = self.kernel.live
        return live.reports(tasks, self._walked) if live else map(self._walked, tasks)

    def problems(self) -> tuple[str, ...]:
        """What has kept the scan so far from seeing everything, one line each."""
        kernel = self.kernel
        found = [*kernel.tasks.problems, *kernel.generated.problems, *kernel.problems]
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


def report_of(task: Task, walk: Walk, proof: Walk, *, supported: bool) -> TaskReport:
    """What the two walks of a task's stack say.

    :param supported: whether the kernel has a reliable stack trace.
    """
    return TaskReport(
        task.address,
        task.pid,
        task.tgid,
        task.cpu,
        task.comm,
        task.state,
        task.kind,
        kernel_answer(walk, running=task.on_cpu, supported=supported),
        proof_answer(proof),
        tuple(proof.frames),
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
    with collector_paused():
        reports = list(scanner.reports(progress(scanner.kernel.tasks)))
    return scanner.dump_report(scanner.kernel.path, reports)


def scan_task(task: Object) -> TaskReport:
    """Report on one task.

    :param task: ``struct task_struct *`` of any drgn program of a Linux kernel.
    :raises drgn_reliable.ReliableError: if the program is no kernel that can be scanned.
    :raises drgn.FaultError: if the task structure cannot be read.
    """
    kernel = Kernel(task.prog_)
    return Scanner(kernel).report(kernel.tasks.read(task.value_()))
