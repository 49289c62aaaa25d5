# SPDX-License-Identifier: LGPL-2.1-or-later
"""Renderers: reports in, text out. None of them analyses anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TextIO

from drgn_reliable.model import DumpReport
from drgn_reliable.render import flames, machine, table

__all__ = ("FORMATS", "Style", "render")


@dataclass(frozen=True)
class Style:
    """How a person wants the table."""

    frames: bool = False
    """Every frame and every reason of each task, instead of a line each."""
    group: bool = False
    """Identical stacks once, with their tasks."""


def _write_stacks(format: str, report: DumpReport, out: TextIO) -> None:
    flames.write_stacks(flames.stacks_of_dump(report), format, report.dump, out)


FORMATS: dict[str, Callable[[DumpReport, TextIO], None]] = {
    "json": machine.write_json,
    "jsonl": machine.write_jsonl,
    "csv": machine.write_csv,
    **{name: partial(_write_stacks, name) for name in flames.FLAMES},
}
"""Formats for machines, by name; ``table`` is the one for people."""


def render(report: DumpReport, format: str, style: Style, out: TextIO) -> None:
    """Write a report in one of :data:`FORMATS` or as a table."""
    if format in FORMATS:
        FORMATS[format](report, out)
    elif style.group:
        table.write_groups(report, out)
    elif style.frames:
        table.write_traces(report, out)
    else:
        table.write_table(report, out)
