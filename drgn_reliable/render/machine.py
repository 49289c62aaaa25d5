# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formats for machines: JSON, JSON Lines and CSV.

The JSON form is a contract, described by ``drgn_reliable/schema/drgn-reliable-1.json``: members
may be added, none changes its meaning without a new schema number. Addresses are strings in
hex, for JSON numbers lose 64-bit precision in many readers.
"""

from __future__ import annotations

import csv
import json
from typing import Any, TextIO

from drgn_reliable.model import (
    CapsuleSummary,
    DumpReport,
    Frame,
    Frames,
    KernelAnswer,
    ProofAnswer,
    Reason,
    TaskReport,
    Trace,
)
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.render.once import OnceFor
from drgn_reliable.render.visible import inert, visible
from drgn_reliable.report import Scan
from drgn_reliable.selection import Tally

__all__ = (
    "SCHEMA",
    "capsule_dict",
    "dump_header",
    "frame_dict",
    "hex_or_null",
    "reason_dict",
    "task_dict",
    "write_csv",
    "write_json",
    "write_jsonl",
)

SCHEMA = "drgn-reliable/1"


def hex_or_null(value: int | None) -> str | None:
    """An address or a word as JSON has it."""
    return None if value is None else f"{value:#x}"


def frame_dict(frame: Frame) -> dict[str, Any]:
    """One element of a task's ``frames``."""
    code = frame.code
    return {
        "pc": hex_or_null(code.pc),
        "sp": hex_or_null(frame.sp),
        "symbol": code.symbol,
        "offset": code.offset if code.symbol is not None else None,
        "module": code.module,
        "code": code.kind.value,
        "role": code.role.value,
        "of": code.of,
        "found_by": frame.found_by.value,
    }


def reason_dict(reason: Reason) -> dict[str, Any]:
    """One element of a task's ``reasons``."""
    kind = CATALOGUE[reason.id]
    return {
        "id": reason.id,
        "section": kind.section,
        "advisory": kind.advisory,
        "pc": hex_or_null(reason.pc),
        "sp": hex_or_null(reason.sp),
        "frame": reason.frame,
        "value": hex_or_null(reason.value),
        "detail": reason.detail,
    }


def task_dict(report: TaskReport) -> dict[str, Any]:
    """One element of ``tasks``."""
    return {
        **_task_members(report),
        **_verdicts(report.kernel, report.proof),
        "frames": [frame_dict(frame) for frame in report.frames],
        "reasons": [reason_dict(reason) for reason in report.reasons],
    }


def _task_members(report: TaskReport) -> dict[str, Any]:
    return {
        "task": hex_or_null(report.task),
        "pid": report.pid,
        "tgid": report.tgid,
        "cpu": report.cpu,
        "comm": report.comm,
        "state": report.state,
        "kind": report.kind.value,
    }


def _verdicts(kernel: KernelAnswer, proof: ProofAnswer) -> dict[str, Any]:
    return {
        "kernel": {
            "verdict": kernel.verdict.value,
            "errno": kernel.errno,
            "entries": [hex_or_null(entry) for entry in kernel.entries],
        },
        "proof": {
            "verdict": proof.verdict.value,
            "entries": [hex_or_null(entry) for entry in proof.entries],
        },
    }


class _TaskWriter:
    """Writes :func:`task_dict` as JSON, and what many tasks share only once."""

    def __init__(self) -> None:
        self._frames = OnceFor(_frames_template)
        self._verdicts = OnceFor(_verdicts_text)

    def text(self, report: TaskReport) -> str:
        """One element of ``tasks``."""
        frames = Frames.of(report.frames)
        base = frames.base
        shown = self._frames(frames.trace) % tuple([base + at for at in frames.trace.offsets])
        reasons = json.dumps([reason_dict(reason) for reason in report.reasons])
        task = json.dumps(_task_members(report))
        verdicts = self._verdicts(report.kernel, report.proof)
        return f'{task[:-1]}, {verdicts}, "frames": {shown}, "reasons": {reasons}}}'


def _frames_template(trace: Trace) -> str:
    """JSON of a trace's frames, with a ``%x`` for each stack pointer."""
    shown = []
    for code, found_by in zip(trace.codes, trace.found_by, strict=True):
        text = json.dumps(frame_dict(Frame(code, 0, found_by))).replace("%", "%%")
        shown.append(text.replace('"sp": "0x0"', '"sp": "0x%x"', 1))
    return f"[{', '.join(shown)}]"


def _verdicts_text(kernel: KernelAnswer, proof: ProofAnswer) -> str:
    return json.dumps(_verdicts(kernel, proof))[1:-1]


def dump_header(report: DumpReport | Scan) -> dict[str, Any]:
    """What is known of a dump before its tasks are."""
    return {
        "schema": SCHEMA,
        "dump": report.dump,
        "release": report.release,
        "architecture": report.architecture,
        "unwinder": report.unwinder,
        "types": report.types,
        "symbols": report.symbols,
    }


def _outcome(report: DumpReport | Scan, tally: Tally) -> dict[str, Any]:
    """What is known when all tasks have been walked."""
    return {
        "problems": list(report.problems),
        "warnings": list(report.warnings),
        "summary": tally.counts(),
    }


def write_json(report: DumpReport | Scan, out: TextIO) -> Tally:
    """One document, one line for each task; problems and the summary come last."""
    tally, writer = Tally(), _TaskWriter()
    header = json.dumps(dump_header(report), indent=1)
    out.write(header[: header.rindex("\n}")] + ',\n "tasks": [')
    separator = "\n  "
    for task in tally.over(report.tasks):
        out.write(separator + writer.text(task))
        separator = ",\n  "
    outcome = json.dumps(_outcome(report, tally), indent=1)
    out.write("\n ]," + outcome[1:] + "\n")
    return tally


def write_jsonl(report: DumpReport | Scan, out: TextIO) -> Tally:
    """A document a line, each with the schema: first the dump's, then one for each task as soon as
    it is known, last the outcome. Without the last line, it is not the whole report."""
    tally, writer = Tally(), _TaskWriter()
    out.write(json.dumps(dump_header(report)) + "\n")
    start = json.dumps({"schema": SCHEMA})[:-1]
    for task in tally.over(report.tasks):
        out.write(f"{start}, {writer.text(task)[1:]}\n")
    out.write(json.dumps({"schema": SCHEMA, **_outcome(report, tally)}) + "\n")
    return tally


CSV_COLUMNS = (
    "task", "pid", "tgid", "cpu", "comm", "state", "kind", "kernel", "errno", "proof",
    "reasons", "entries", "stack",
)  # fmt: skip


def write_csv(report: DumpReport | Scan, out: TextIO) -> Tally:
    """One row a task; reasons and functions are separated by spaces, innermost first.

    Names are as :func:`~drgn_reliable.render.visible.inert` shows them, spaces in the names of
    functions as ``\\x20``; JSON has them as they are.
    """
    tally, stack, entries = Tally(), OnceFor(_stack_cell), OnceFor(_entries_cell)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for task in tally.over(report.tasks):
        writer.writerow(
            (
                hex_or_null(task.task),
                task.pid,
                task.tgid,
                task.cpu,
                inert(task.comm),
                task.state,
                task.kind.value,
                task.kernel.verdict.value,
                task.kernel.errno,
                task.proof.verdict.value,
                " ".join(reason.id for reason in task.reasons),
                entries(task.kernel),
                stack(Frames.of(task.frames).trace),
            )
        )
    return tally


def _entries_cell(kernel: KernelAnswer) -> str:
    return " ".join(f"{entry:#x}" for entry in kernel.entries)


def _stack_cell(trace: Trace) -> str:
    return inert(" ".join(visible(code.function).replace(" ", r"\x20") for code in trace.codes))


def capsule_dict(made: CapsuleSummary) -> dict[str, Any]:
    """What is in a capsule; sizes in bytes."""
    return {
        "capsule": made.path,
        "size": made.size,
        "page_size": made.page_size,
        "pages": made.pages,
        "left_out_pages": made.left_out_pages,
        "original_size": made.original_size,
        "kernel_code": made.text,
        "tasks": len(made.report.tasks),
        "may_hold_secrets": True,
    }
