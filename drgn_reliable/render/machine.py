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

from drgn_reliable.model import CapsuleSummary, DumpReport, Frame, Reason, TaskReport
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.render.visible import inert, visible
from drgn_reliable.selection import summary_counts

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
        "task": hex_or_null(report.task),
        "pid": report.pid,
        "tgid": report.tgid,
        "cpu": report.cpu,
        "comm": report.comm,
        "state": report.state,
        "kind": report.kind.value,
        "kernel": {
            "verdict": report.kernel.verdict.value,
            "errno": report.kernel.errno,
            "entries": [hex_or_null(entry) for entry in report.kernel.entries],
        },
        "proof": {
            "verdict": report.proof.verdict.value,
            "entries": [hex_or_null(entry) for entry in report.proof.entries],
        },
        "frames": [frame_dict(frame) for frame in report.frames],
        "reasons": [reason_dict(reason) for reason in report.reasons],
    }


def dump_header(report: DumpReport) -> dict[str, Any]:
    """Everything of a report but its tasks."""
    return {
        "schema": SCHEMA,
        "dump": report.dump,
        "release": report.release,
        "architecture": report.architecture,
        "unwinder": report.unwinder,
        "types": report.types,
        "symbols": report.symbols,
        "problems": list(report.problems),
        "warnings": list(report.warnings),
        "summary": summary_counts(report.tasks),
    }


def write_json(report: DumpReport, out: TextIO) -> None:
    """One document, one line for each task."""
    header = json.dumps(dump_header(report), indent=1)
    out.write(header[: header.rindex("\n}")] + ',\n "tasks": [')
    separator = "\n  "
    for task in report.tasks:
        out.write(separator + json.dumps(task_dict(task)))
        separator = ",\n  "
    out.write("\n ]\n}\n")


def write_jsonl(report: DumpReport, out: TextIO) -> None:
    """One document a line: first the dump's, then one for each task, each with the schema."""
    out.write(json.dumps(dump_header(report)) + "\n")
    for task in report.tasks:
        out.write(json.dumps({"schema": SCHEMA, **task_dict(task)}) + "\n")


CSV_COLUMNS = (
    "task", "pid", "tgid", "cpu", "comm", "state", "kind", "kernel", "errno", "proof",
    "reasons", "entries", "stack",
)  # fmt: skip


def write_csv(report: DumpReport, out: TextIO) -> None:
    """One row a task; reasons and functions are separated by spaces, innermost first.

    Names are as :func:`~drgn_reliable.render.visible.inert` shows them, spaces in the names of
    functions as ``\\x20``; JSON has them as they are.
    """
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for task in report.tasks:
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
                " ".join(f"{entry:#x}" for entry in task.kernel.entries),
                inert(" ".join(map(_one_word, task.frames))),
            )
        )


def _one_word(frame: Frame) -> str:
    return visible(frame.function).replace(" ", r"\x20")


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
