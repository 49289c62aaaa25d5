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
    KernelAnswer,
    ProofAnswer,
    Reason,
    TaskReport,
    Walk,
)
from drgn_reliable.repeats import Repeats
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
        self._repeats = Repeats(kernel.prog, kernel.unwinder, supported=self.supported)

    def report(self, task: Task) -> TaskReport:
        """Walk one task's stack, as the kernel would and if need be to prove, and judge."""
        known = self._repeats.find(task)
        if known is None:
            walk, known = self._repeats.walk(task)
        if known is not None:
            frames = Frames(known.trace, task.stack)
            return _report(task, known.kernel, known.proof, frames, ())
        proof = walk_task(self.kernel.unwinder, task, proving=True) if walk.reasons else walk
        return report_of(task, walk, proof, supported=self.supported)

    def reports(self, tasks: Iterable[Task]) -> Iterator[TaskReport]:
        """The reports of tasks, as they are made."""
        return map(self.report, tasks)

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
        return tuple(found)

    def warnings(self) -> tuple[str, ...]:
        """What there is to prove with so far, but is damaged, one line each."""
        return tuple(self.kernel.unwind_data.problems)

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
    return _report(
        task,
        kernel_answer(walk, running=task.on_cpu, supported=supported),
        proof_answer(proof),
        Frames.of(proof.frames, task.stack),
        merged_reasons(walk, proof),
    )


def _report(
    task: Task,
    kernel: KernelAnswer,
    proof: ProofAnswer,
    frames: Frames,
    reasons: tuple[Reason, ...],
) -> TaskReport:
    return TaskReport(
        task.address,
        task.pid,
        task.tgid,
        task.cpu,
        task.comm,
        task.state,
        task.kind,
        kernel,
        proof,
        frames,
        reasons,
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
