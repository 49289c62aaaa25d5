# SPDX-License-Identifier: LGPL-2.1-or-later
"""Renderers: reports in, text out. None of them analyses anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


FORMATS: dict[str, Callable[[DumpReport, TextIO], None]] = {
    "json": machine.write_json,
    "jsonl": machine.write_jsonl,
    "csv": machine.write_csv,
    "folded": lambda report, out: flames.write_folded(flames.stacks_of_dump(report), out),
    "speedscope": lambda report, out: flames.write_speedscope(
        flames.stacks_of_dump(report), report.dump, out
    ),
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
