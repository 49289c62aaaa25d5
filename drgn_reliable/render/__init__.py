# SPDX-License-Identifier: LGPL-2.1-or-later
"""Renderers: reports in, text out. None of them analyses anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TextIO

from drgn_reliable.model import DumpReport
from drgn_reliable.render import flames, machine, tasks
from drgn_reliable.report import Scan
from drgn_reliable.selection import Tally

__all__ = ("FORMATS", "Style", "render")


@dataclass(frozen=True)
class Style:
    """How a person wants the table."""

    frames: bool = False
    """Every frame and every reason of each task, instead of a line each."""
    group: bool = False
    """Identical stacks once, with their tasks."""
    every: bool = False
    """A line for each task, however many there are."""


def _write_stacks(format: str, report: DumpReport | Scan, out: TextIO) -> Tally:
    tally = Tally()
    stacks = flames.stacks_of_tasks(tally.over(report.tasks))
    flames.write_stacks(stacks, format, report.dump, out)
    return tally


FORMATS: dict[str, Callable[[DumpReport | Scan, TextIO], Tally]] = {
    "json": machine.write_json,
    "jsonl": machine.write_jsonl,
    "csv": machine.write_csv,
    **{name: partial(_write_stacks, name) for name in flames.FLAMES},
}
"""Formats for machines, by name; ``table`` is the one for people."""


def render(report: DumpReport | Scan, format: str, style: Style, out: TextIO) -> Tally:
    """Write a report in one of :data:`FORMATS` or as a table, and say how many tasks were what.

    Each task is taken from the report once, in its order, and is not kept where the format does
    not need all of them at once.
    """
    if format in FORMATS:
        return FORMATS[format](report, out)
    if style.group:
        return tasks.write_groups(report, out)
    if style.frames:
        return tasks.write_traces(report, out)
    return tasks.write_table(report, out, every=style.every)
