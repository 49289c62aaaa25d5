# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks for people: a table, traces, and stacks with the tasks that share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TextIO

from tabulate import tabulate

from drgn_reliable.model import DumpReport, Frame, Frames, Reason, TaskReport, Trace
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.render.once import OnceFor
from drgn_reliable.render.table import counted_words
from drgn_reliable.render.visible import brief, visible
from drgn_reliable.report import Scan
from drgn_reliable.selection import Members, Tally, by_importance, group_stacks, importance
from drgn_reliable.waiting import channel_of

__all__ = ("reason_line", "task_title", "write_groups", "write_table", "write_traces")

LINES = 1000
"""Tasks that have a line each in a table; of more, those that are alike share a line."""

_HEADERS = ("PID", "CPU", "S", "KIND", "COMMAND", "KERNEL", "PROOF", "#", "IN", "REASON")
_HEADERS_ALIKE = ("TASKS", "S", "KIND", "KERNEL", "PROOF", "IN", "REASON", "COMMAND")


class _Alike(NamedTuple):
    """What tasks have in common that share a line."""

    state: str
    kind: str
    kernel: str
    proof: str
    waits_in: str
    why: str


class _Line(NamedTuple):
    """A task in the table, in the order in which the lines are to be."""

    rank: tuple[int, int]
    pid: int
    cpu: int
    number: int
    comm: str
    depth: int
    alike: _Alike

    def cells(self) -> tuple[object, ...]:
        """As a row."""
        state, kind, kernel, proof, waits_in, why = self.alike
        comm = visible(self.comm)
        return self.pid, self.cpu, state, kind, comm, kernel, proof, self.depth, waits_in, why


class _Table:
    """The lines of a table, folded when they become too many."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._lines: list[_Line] = []
        self._folded: dict[_Alike, Members] = {}
        self._waits_in = OnceFor(_waits_in)

    def add(self, task: TaskReport) -> None:
        """Take a task in."""
        alike = _Alike(
            task.state,
            task.kind.value,
            task.kernel.verdict.value,
            task.proof.verdict.value,
            self._waits_in(Frames.of(task.frames).trace),
            _why(task.reasons),
        )
        if self._folded:
            self._fold(alike, task.comm, task.pid)
            return
        rank = importance(task.kernel.verdict, task.proof.verdict)
        number, depth = len(self._lines), len(task.frames)
        self._lines.append(_Line(rank, task.pid, task.cpu, number, task.comm, depth, alike))
        if self._limit is not None and len(self._lines) > self._limit:
            for line in self._lines:
                self._fold(line.alike, line.comm, line.pid)
            self._lines.clear()

    def _fold(self, alike: _Alike, comm: str, pid: int) -> None:
        members = self._folded.get(alike)
        if members is None:
            members = self._folded[alike] = Members()
        members.add(comm, pid)

    def write(self, out: TextIO) -> None:
        """Write the lines, what matters first."""
        rows: list[tuple[object, ...]] = [line.cells() for line in sorted(self._lines)]
        headers: tuple[str, ...] = _HEADERS
        if self._folded:
            headers, rows = _HEADERS_ALIKE, self._folded_rows()
        if rows:
            out.write(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) + "\n\n")
        if self._folded:
            out.write("Tasks that are alike share a line; --all gives each its own.\n")

    def _folded_rows(self) -> list[tuple[object, ...]]:
        folded = sorted(
            self._folded.items(),
            key=lambda item: (importance(item[0].kernel, item[0].proof), -len(item[1])),
        )
        return [(len(members), *alike, _names(members, 2)) for alike, members in folded]


def write_table(report: DumpReport | Scan, out: TextIO, *, every: bool = False) -> Tally:
    """A line for each task, what matters first, or for tasks that are alike, and a summary.

    :param every: a line for each task, however many there are.
    """
    tally, table = Tally(), _Table(None if every else LINES)
    for task in tally.over(report.tasks):
        table.add(task)
    table.write(out)
    _write_summary(report, tally, out)
    return tally


def write_traces(report: DumpReport | Scan, out: TextIO) -> Tally:
    """Every frame and reason of every task, what matters first, and a summary."""
    tally = Tally()
    for task in by_importance(tally.over(report.tasks)):
        out.write(task_title(task) + "\n")
        _write_frames(task.frames, out)
        _write_why(task.reasons, out)
        out.write("\n")
    _write_summary(report, tally, out)
    return tally


def write_groups(report: DumpReport | Scan, out: TextIO) -> Tally:
    """Identical stacks once, with how many tasks share each, and a summary."""
    tally = Tally()
    for first, members in group_stacks(tally.over(report.tasks)):
        verdicts = f"{first.kernel.verdict.value}, {first.proof.verdict.value}"
        plural = "task" if len(members) == 1 else "tasks"
        out.write(f"{len(members)} {plural}: {verdicts}: {_names(members, 6)}\n")
        _write_frames(first.frames, out)
        _write_why(first.reasons, out)
        out.write("\n")
    _write_summary(report, tally, out)
    return tally


def task_title(task: TaskReport) -> str:
    """Who a task is, and its verdicts: two lines."""
    return (
        f"PID {task.pid} ({visible(task.comm)}), TGID {task.tgid}, {task.kind.value}, state "
        f"{task.state}, CPU {task.cpu}, task {task.task:#x}\n"
        f"  kernel: {task.kernel.verdict.value}"
        + (f" (errno {task.kernel.errno})" if task.kernel.errno else "")
        + f"; proof: {task.proof.verdict.value}"
    )


def reason_line(reason: Reason) -> str:
    """One reason with its evidence."""
    kind = CATALOGUE[reason.id]
    weight = "advisory" if kind.advisory else "refused"
    return (
        f"  {kind.section} {reason.id} ({weight}) before frame #{reason.frame}: "
        f"{kind.title}: {visible(reason.detail)}"
    )


def _waits_in(trace: Trace) -> str:
    first = trace.codes[0].function if trace.codes else "-"
    return brief(channel_of(trace.codes) or first)


def _why(reasons: tuple[Reason, ...]) -> str:
    if not reasons:
        return ""
    ids = list(dict.fromkeys(reason.id for reason in reasons))
    more = f" (+{len(ids) - 1})" if len(ids) > 1 else ""
    return f"{CATALOGUE[ids[0]].section} {ids[0]}{more}"


def _names(members: Members, shown: int) -> str:
    """Commands with some of their PIDs, the most frequent first, cut to a line."""
    words = []
    for comm, count in members.counted.most_common(shown):
        pids = members.pids[comm]
        some = " ".join(map(str, pids)) + (" ..." if count > len(pids) else "")
        words.append(f"{visible(comm)} ({some})")
    more = len(members.counted) - shown
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _write_frames(frames: Sequence[Frame], out: TextIO) -> None:
    rows = [
        (f"  #{i}", f"{frame.pc:#x}", visible(str(frame.code)), _found(frame))
        for i, frame in enumerate(frames)
    ]
    if rows:
        table = tabulate(rows, tablefmt="plain", disable_numparse=True)
        out.write("\n".join(f"  {line}" for line in table.splitlines()) + "\n")
    else:
        out.write("  no kernel frames\n")


def _found(frame: Frame) -> str:
    """How it was found and, unless it is an ordinary function, what the code is."""
    return f"({frame.found_by.value}) {visible(frame.code.purpose)}".rstrip()


def _write_why(reasons: tuple[Reason, ...], out: TextIO) -> None:
    for reason in reasons:
        out.write(reason_line(reason) + "\n")


def _write_summary(report: DumpReport | Scan, tally: Tally, out: TextIO) -> None:
    counts = tally.counts()
    plural = "task" if tally.total == 1 else "tasks"
    out.write(
        f"{tally.total} {plural} of {visible(report.release)} ({report.architecture}): "
        f"kernel: {counted_words(counts['kernel'])}; proof: {counted_words(counts['proof'])}\n"
    )
    for problem in report.problems:
        out.write(f"incomplete: {visible(problem)}\n")
    for warning in report.warnings:
        out.write(f"warning: {visible(warning)}\n")
