# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hold a scan of a dump against what its own kernel answered."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from drgn_reliable import Kernel, ProofVerdict, Scanner, TaskReport, open_dump

from . import verdicts


def scan(
    dump: Path, only: Collection[int] = (), symbols: str | None = None
) -> tuple[Kernel, list[TaskReport]]:
    """The dump's kernel and the reports of its tasks, from its own memory alone by default.

    :param only: the addresses of the tasks whose stacks are in the dump; all by default.
    :param symbols: the kernel's vmlinux or debug file.
    """
    kernel = Kernel(open_dump(str(dump), symbols))
    tasks = kernel.tasks.select(map(hex, only)) if only else kernel.tasks
    return kernel, list(Scanner(kernel).reports(tasks))


def differences(reports: Iterable[TaskReport], rows: str) -> list[str]:
    """Every task for which a report is not what the kernel answered, a line each.

    Tasks, their order, verdicts and entries have to be the kernel's. Of tasks whose stacks were
    damaged after the answer, it is what the kernel said when it was asked again, if it was; and
    nothing may be proven of them: not every kernel would notice.
    """
    found = list(reports)
    recorded = verdicts.parse(rows)
    damaged, again = verdicts.damaged_pids(rows), verdicts.after_damage(rows)
    wrong = []
    if [report.task for report in found] != [row.task for row in recorded]:
        wrong.append(f"{len(found)} tasks, not the {len(recorded)} recorded in their order")
    by_task = {report.task: report for report in found}
    for row in recorded:
        report = by_task.get(row.task)
        if report is None:
            wrong.append(f"{row.pid} {row.comm}: missing")
            continue
        answer = report.kernel
        ours = (report.pid, report.tgid, report.comm, answer.verdict.value, answer.entries)
        verdict, entries = again.get(row.task, (row.verdict, row.entries))
        wanted = (row.pid, row.tgid, row.comm, verdict, entries)
        if row.pid in damaged and report.proof.verdict is ProofVerdict.PROVEN:
            wrong.append(f"{row.pid} {row.comm}: proven, though its stack was damaged")
        if row.pid in damaged and row.task not in again:
            continue
        if ours != wanted:
            wrong.append(f"{row.pid} {row.comm}: {_shown(ours)}, recorded {_shown(wanted)}")
    return wrong


def _shown(answer: tuple[int, int, str, str, tuple[int, ...]]) -> str:
    *_, verdict, entries = answer
    return f"{verdict} {' '.join(f'{entry:#x}' for entry in entries)}".rstrip()
