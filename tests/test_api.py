# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API: scan a program, scan one task, get data."""

from __future__ import annotations

import dataclasses
import gc

import drgn
import pytest
from drgn.helpers.linux.pid import find_task

import drgn_reliable
from drgn_reliable import (
    DumpReport,
    Kernel,
    KernelVerdict,
    TaskReport,
    UnsupportedKernel,
    open_dump,
    scan,
    scan_task,
)
from tests.conftest import Scanned
from tests.dumps import DUMP_6_1

DUMP = str(DUMP_6_1.path)


def test_scan_gives_every_task(scanned_6_1: Scanned) -> None:
    """scan() of a program is the report of all its tasks."""
    report = scan(open_dump(DUMP))
    assert isinstance(report, DumpReport)
    assert report.tasks == scanned_6_1.reports
    assert (report.dump, report.release) == (DUMP, DUMP_6_1.release)
    assert report.problems == ()


def test_scan_shows_how_far_it_is() -> None:
    """The tasks go through the caller's progress as they are walked."""
    seen = []

    def progress(tasks):  # type: ignore[no-untyped-def]
        for task in tasks:
            seen.append(task.pid)
            yield task

    assert len(scan(open_dump(DUMP), progress).tasks) == len(seen) == DUMP_6_1.count()


def test_scan_leaves_the_collector_as_it_was() -> None:
    """Python's cycle collector is on again afterwards."""
    assert gc.isenabled()
    scan(open_dump(DUMP))
    assert gc.isenabled()


def test_scan_task_takes_any_task_of_drgns(scanned_6_1: Scanned) -> None:
    """scan_task() of a struct task_struct * is that task's report."""
    prog = open_dump(DUMP)
    Kernel(prog)  # gives drgn's helper its types
    report = scan_task(find_task(prog, DUMP_6_1.find("k_krp_spin").pid))
    assert report == scanned_6_1.task("k_krp_spin")
    assert isinstance(report, TaskReport)
    assert report.kernel.verdict is KernelVerdict.UNRELIABLE


def test_reports_are_plain_data(scanned_6_1: Scanned) -> None:
    """A report cannot be changed, and holds no drgn object."""
    report = scanned_6_1.reports[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.pid = 2  # type: ignore[misc]
    assert "drgn." not in repr(dataclasses.asdict(report)).replace("drgn_reliable.", "")


def test_a_program_that_is_no_kernel_is_refused() -> None:
    """A program without a kernel gives one of the package's errors."""
    with pytest.raises(UnsupportedKernel):
        scan(drgn.Program(drgn.Platform(drgn.Architecture.RISCV64)))
    with pytest.raises(drgn_reliable.DumpError):
        scan(drgn.Program(drgn.Platform(drgn.Architecture.X86_64)))


def test_public_names_are_there() -> None:
    """Everything that the package exports exists."""
    assert all(hasattr(drgn_reliable, name) for name in drgn_reliable.__all__)
