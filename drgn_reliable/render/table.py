# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables and traces for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from tabulate import tabulate

from drgn_reliable.model import CapsuleSummary, DumpReport, Frame, Reason, TaskReport
from drgn_reliable.reasons import CATALOGUE, Effect, ReasonKind
from drgn_reliable.render.visible import brief, visible
from drgn_reliable.selection import group_stacks, summary_counts
from drgn_reliable.waiting import channel_of

__all__ = (
    "counted_words",
    "reason_line",
    "task_title",
    "write_capsule_summary",
    "write_facts",
    "write_groups",
    "write_reasons",
    "write_table",
    "write_traces",
)


def _waits_in(report: TaskReport) -> str:
    if channel := channel_of(report):
        return channel
    return report.frames[0].function if report.frames else "-"


def _why(reasons: tuple[Reason, ...]) -> str:
    if not reasons:
        return ""
    ids = list(dict.fromkeys(reason.id for reason in reasons))
    more = f" (+{len(ids) - 1})" if len(ids) > 1 else ""
    return f"{CATALOGUE[ids[0]].section} {ids[0]}{more}"


def write_table(report: DumpReport, out: TextIO) -> None:
    """A line for each task and a summary."""
    rows = [
        (
            task.pid,
            task.cpu,
            task.state,
            task.kind.value,
            visible(task.comm),
            task.kernel.verdict.value,
            task.proof.verdict.value,
            len(task.frames),
            brief(_waits_in(task)),
            _why(task.reasons),
        )
        for task in report.tasks
    ]
    headers = ("PID", "CPU", "S", "KIND", "COMMAND", "KERNEL", "PROOF", "#", "IN", "REASON")
    if rows:
        out.write(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) + "\n\n")
    _write_summary(report, out)


def write_traces(report: DumpReport, out: TextIO) -> None:
    """Every frame and reason of every task, and a summary."""
    for task in report.tasks:
        out.write(task_title(task) + "\n")
        _write_frames(task.frames, out)
        _write_why(task.reasons, out)
        out.write("\n")
    _write_summary(report, out)


def write_groups(report: DumpReport, out: TextIO) -> None:
    """Identical stacks once, with how many tasks share each, and a summary."""
    for group in group_stacks(report.tasks):
        first = group[0]
        verdicts = f"{first.kernel.verdict.value}, {first.proof.verdict.value}"
        plural = "task" if len(group) == 1 else "tasks"
        out.write(f"{len(group)} {plural}: {verdicts}: {_names(group)}\n")
        _write_frames(first.frames, out)
        _write_why(first.reasons, out)
        out.write("\n")
    _write_summary(report, out)


def task_title(task: TaskReport) -> str:
    """Who a task is, and its verdicts: two lines."""
    return (
        f"PID {task.pid} ({visible(task.comm)}), TGID {task.tgid}, {task.kind.value}, state "
        f"{task.state}, CPU {task.cpu}, task {task.task:#x}\n"
        f"  kernel: {task.kernel.verdict.value}"
        + (f" (errno {task.kernel.errno})" if task.kernel.errno else "")
        + f"; proof: {task.proof.verdict.value}"
    )


def _names(group: Iterable[TaskReport]) -> str:
    """Commands with their PIDs, the most frequent first, cut to a line."""
    pids: dict[str, list[int]] = {}
    for task in group:
        pids.setdefault(task.comm, []).append(task.pid)
    counted = Counter({comm: len(found) for comm, found in pids.items()})
    shown = []
    for comm, count in counted.most_common(6):
        some = " ".join(map(str, pids[comm][:4])) + (" ..." if count > 4 else "")
        shown.append(f"{visible(comm)} ({some})")
    return ", ".join(shown) + (f" and {len(counted) - 6} more" if len(counted) > 6 else "")


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


def reason_line(reason: Reason) -> str:
    """One reason with its evidence."""
    kind = CATALOGUE[reason.id]
    weight = "advisory" if kind.advisory else "refused"
    return (
        f"  {kind.section} {reason.id} ({weight}) before frame #{reason.frame}: "
        f"{kind.title}: {visible(reason.detail)}"
    )


def _write_why(reasons: tuple[Reason, ...], out: TextIO) -> None:
    for reason in reasons:
        out.write(reason_line(reason) + "\n")


def _write_summary(report: DumpReport, out: TextIO) -> None:
    counts = summary_counts(report.tasks)
    plural = "task" if len(report.tasks) == 1 else "tasks"
    out.write(
        f"{len(report.tasks)} {plural} of {visible(report.release)} ({report.architecture}): "
        f"kernel: {counted_words(counts['kernel'])}; proof: {counted_words(counts['proof'])}\n"
    )
    for problem in report.problems:
        out.write(f"incomplete: {visible(problem)}\n")
    for warning in report.warnings:
        out.write(f"warning: {visible(warning)}\n")


def counted_words(counts: Mapping[str, int]) -> str:
    """How many there are of each, of those that there are."""
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none"


def write_reasons(kinds: Iterable[ReasonKind], out: TextIO, details: bool) -> None:
    """The catalogue: a line each, or everything that is known of each."""
    proof = {
        Effect.REFUTES: "refuted",
        Effect.LEAVES_OPEN: "undecided",
        Effect.ENDS: "undecided",
        Effect.NONE: "-",
    }
    if not details:
        rows = [
            (k.section, k.id, "accepts" if k.advisory else "refuses", proof[k.proof], k.title)
            for k in kinds
        ]
        headers = ("SECTION", "ID", "KERNEL", "PROOF", "TITLE")
        out.write(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) + "\n")
        return
    for k in kinds:
        kernel = "accepts the trace (advisory)" if k.advisory else "refuses the trace"
        out.write(f"{k.id} (section {k.section})\n  {k.title}.\n")
        effect = proof[k.proof] if k.proof is not Effect.NONE else "not touched"
        out.write(f"  Kernel: {kernel}; decided by {k.decided_by}. Proof: {effect}.\n")
        out.write(f"  {k.remedy}\n\n")


_WARNINGS = "preflight"
"""The fact that is a list of lines to be read one by one."""


def write_facts(facts: Mapping[str, Any], out: TextIO) -> None:
    """A line for each fact; what the kernel does not have (None) is left out."""
    rows = [
        (name.replace("_", " "), _fact(value))
        for name, value in facts.items()
        if name != _WARNINGS and value is not None
    ]
    out.write(tabulate(rows, tablefmt="plain", disable_numparse=True) + "\n")
    for line in facts.get(_WARNINGS, ()):
        out.write(f"{_WARNINGS}: {visible(line)}\n")


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "":
        return "none"
    if isinstance(value, list):
        return ", ".join(map(visible, value)) or "none"
    return visible(str(value))


def write_capsule_summary(made: CapsuleSummary, out: TextIO) -> None:
    """What is in a capsule and what is not, and a warning."""
    pages = made.pages + made.left_out_pages
    left_out = f"{made.left_out_pages:,} of the dump's {pages:,} pages are left out"
    tasks = len(made.report.tasks)
    stacks = "the stack of 1 task" if tasks == 1 else f"the stacks of {tasks} tasks"
    out.write(
        f"{visible(made.path)}: {made.size / 1e6:.1f} MB, {stacks}"
        f"{' and the kernel code' if made.text else ''} in {made.pages:,} pages; {left_out}"
        f"{'' if made.text else ', most kernel code among them'}.\n"
        "Kernel stacks and structures can hold secrets (keys, file names, user data): "
        "look at who will read it.\n"
    )
