# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures over the real dumps; each is opened and scanned once for the whole run."""

from __future__ import annotations

import signal
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from drgn_reliable import Kernel, TaskReport, open_dump
from drgn_reliable.report import Scanner
from tests.dumps import DUMP_6_1, DUMPS, Dump

pytest.register_assert_rewrite("tests.walkers")

CONFORMING = pytest.StashKey[list[str]]()
"""A line for each dump: how many of its tasks are as their kernel says."""


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach what tests start, though a shell began them in the background."""
    config.stash[CONFORMING] = []
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed is sent as UTF-8 where several processes test."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several that test tells its lines to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["conforming"] = session.config.stash[CONFORMING]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the lines of such a process."""
    node.config.stash[CONFORMING] += getattr(node, "workeroutput", {}).get("conforming", [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say of each dump how many tasks equal the kernel's own verdict."""
    if lines := config.stash[CONFORMING]:
        terminalreporter.section("tasks equal to their kernel's own verdict, entry for entry")
        for line in lines:
            terminalreporter.line(line)


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


@pytest.fixture(
    params=[dump for dump in DUMPS if dump.architecture == "x86_64"], ids=lambda dump: dump.name
)
def scanned_x86(request: pytest.FixtureRequest) -> Scanned:
    """Each dump of x86_64 in turn."""
    return scan_dump(request.param)


@pytest.fixture
def scanned_6_1() -> Scanned:
    """The dump of Debian's 6.1."""
    return scan_dump(DUMP_6_1)
