# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report of a single dump in the form of a fleet's: what ``scan --format html`` shows."""

from __future__ import annotations

from typing import Any

from drgn_reliable.facts import kernel_facts
from drgn_reliable.fleet.identity import Identity, Stamp
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.origin import add_origin
from drgn_reliable.fleet.record import record_of
from drgn_reliable.fleet.report import fleet_report
from drgn_reliable.fleet.store import Store
from drgn_reliable.kernel import Kernel
from drgn_reliable.livepatch import analyse
from drgn_reliable.model import DumpReport
from drgn_reliable.opening import opened_dump

__all__ = ("one_dump_report",)


def one_dump_report(kernel: Kernel, report: DumpReport) -> dict[str, Any]:
    """As :func:`drgn_reliable.fleet.report.fleet_report`, of one dump.

    :param report: of the tasks to show, all or some.
    """
    reports = {task.task: task for task in report.tasks}
    livepatch = analyse(kernel, only=reports, report_of=lambda task: reports[task.address])
    record = record_of(report, livepatch, kernel_facts(kernel))
    add_origin(record, kernel)
    dump = opened_dump(kernel.prog)
    identity = Identity("", Stamp(dump.size, 0, 0)) if dump else None
    with Store(":memory:", write=True) as store:
        scan = store.begin_scan()
        number = store.add(scan, record, Limits(), "", identity)
        store.put(report.dump, number, scan, identity, None, {})
        store.end_scan(scan, whole=True)
        return fleet_report(store, report.dump, one_dump=True)
