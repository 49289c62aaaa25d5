# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures over the real dumps; each is opened and scanned once for the whole run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest

from drgn_reliable import Kernel, TaskReport, open_dump
from drgn_reliable.report import Scanner
from tests.dumps import DUMP_6_1, DUMPS, Dump

pytest.register_assert_rewrite("tests.walkers")


@dataclass(frozen=True)
class Scanned:
    """A dump with the reports of all its tasks."""

    dump: Dump
    kernel: Kernel
    reports: tuple[TaskReport, ...]
    problems: tuple[str, ...]

    def task(self, comm: str) -> TaskReport:
        """The first task of a name."""
        return next(r for r in self.reports if r.comm == comm)


@cache
def scan_dump(dump: Dump) -> Scanned:
    """Open and scan a dump from its own memory alone."""
    kernel = Kernel(open_dump(str(dump.path)))
    scanner = Scanner(kernel)
    return Scanned(dump, kernel, tuple(scanner.reports(kernel.tasks)), scanner.problems())


@pytest.fixture(params=DUMPS, ids=lambda dump: dump.name)
def scanned(request: pytest.FixtureRequest) -> Scanned:
    """Each dump of the manifest in turn."""
    return scan_dump(request.param)


@pytest.fixture
def scanned_6_1() -> Scanned:
    """The dump of Debian's 6.1."""
    return scan_dump(DUMP_6_1)
