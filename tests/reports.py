# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scan a dump and say what came out, to be compared."""

from __future__ import annotations

import io

from drgn_reliable import Kernel, Scanner, TaskReport, open_dump
from drgn_reliable.render.machine import write_json


def reports_of(path: str) -> list[TaskReport]:
    """The reports of all tasks."""
    kernel = Kernel(open_dump(path))
    return list(Scanner(kernel).reports(kernel.tasks))


def reported(path: str, *wanted: str) -> str:
    """The JSON of a scan, of some tasks or all, but for the dump's name."""
    scanner = Scanner(Kernel(open_dump(path)))
    tasks = scanner.kernel.tasks
    report = scanner.dump_report("", scanner.reports(tasks.select(wanted) if wanted else tasks))
    out = io.StringIO()
    write_json(report, out)
    return out.getvalue()
