# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks made by several processes: the same reports, and nothing left behind whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drgn_reliable import Kernel, Scanner, open_dump, parallel
from drgn_reliable.errors import DumpError
from drgn_reliable.parallel import ParallelScanner, walkers_for
from drgn_reliable.report import Scan
from tests.dumps import DUMP_6_1, DUMPS, Dump

SOME = [dump for dump in DUMPS if dump.name in ("x86_64-6.12.kdump", "aarch64-6.12.kdump")]


def scanner_of(path: Path, count: int = 2) -> ParallelScanner:
    return ParallelScanner(Kernel(open_dump(str(path))), count, (), None)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_PORTION", 16)


@pytest.mark.parametrize("dump", SOME, ids=lambda dump: dump.name)
def test_reports_are_those_of_one_process_in_the_same_order(dump: Dump) -> None:
    """Tasks of every kind of verdict, with frames, reasons and evidence."""
    path = dump.path
    alone = Scanner(Kernel(open_dump(str(path))))
    expected = Scan(alone, alone.kernel.tasks).whole()
    many = scanner_of(path)
    assert Scan(many, many.kernel.tasks).whole() == expected


def processes_of(scanner: ParallelScanner) -> list[subprocess.Popen[bytes]]:
    return [walker._process for walker in scanner._walkers]


@pytest.mark.parametrize("taken", [1, 40, 10**6])
def test_no_process_is_left_when_the_reports_are_taken_no_further(taken: int) -> None:
    """Whoever stops early, as one who is interrupted does, closes the scan."""
    scanner = scanner_of(DUMP_6_1.path)
    with Scan(scanner, scanner.kernel.tasks) as scan:
        for count, _ in enumerate(scan.tasks, 1):
            if count == taken:
                break
    found = processes_of(scanner)
    assert len(found) == 2 and all(process.poll() is not None for process in found)


FAILURES = {
    "killed": ("import os; os.kill(os.getpid(), 9)", "a walking process died of SIGKILL"),
    "ended": ("import sys; sys.exit(7)", "a walking process ended with status 7"),
    "nonsense": (
        r"import sys; sys.stdin.buffer.read(9); sys.stdout.write('\5\0\0\0hello')",
        "a walking process answered nonsense",
    ),
    "cut off": (
        r"import sys; sys.stdin.buffer.read(9); sys.stdout.write('\5\0\0\0he')",
        "a walking process ended with status 0",
    ),
    "too few": (
        "import sys; sys.path[:] = {path!r}; from drgn_reliable import parallel as w;"
        "w._receive(sys.stdin.buffer); w._receive(sys.stdin.buffer);"
        "w._send(sys.stdout.buffer, w._pack(w._Answer()))",
        "a walking process answered for 0 tasks",
    ),
    "an error": (
        "import sys; sys.path[:] = {path!r}; from drgn_reliable import parallel as w;"
        "w._receive(sys.stdin.buffer); w._receive(sys.stdin.buffer);"
        "w._send(sys.stdout.buffer, w._pack(w._Answer(error='no more memory')))",
        "no more memory",
    ),
    "a disk that fails": (
        "import sys; sys.path[:] = {path!r}; from drgn_reliable import parallel as w;"
        "w.open_dump = lambda *a, **n: open('/proc/self/mem', 'rb').read(1); w.serve()",
        r"^[^:]*: cannot be read \(Input/output error\)$",
    ),
}


@pytest.mark.parametrize(("program", "said"), FAILURES.values(), ids=FAILURES)
def test_a_walker_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    """It names the dump and what happened; no report is made up, no process is left."""
    monkeypatch.setattr(parallel, "_START", program)
    scanner = scanner_of(DUMP_6_1.path)
    with pytest.raises(DumpError, match=said) as error:
        list(scanner.reports(scanner.kernel.tasks))
    assert str(error.value).startswith(str(DUMP_6_1.path)) and "\n" not in str(error.value)
    assert all(process.poll() is not None for process in processes_of(scanner))


def test_a_dump_that_is_gone_is_told_by_the_walker(tmp_path: Path) -> None:
    """Between its opening here and there."""
    path = tmp_path / "vmcore"
    path.symlink_to(DUMP_6_1.path)
    scanner = scanner_of(path)
    path.unlink()
    with pytest.raises(DumpError, match="does not exist"):
        list(scanner.reports(scanner.kernel.tasks))


@pytest.mark.parametrize(
    ("jobs", "expected", "cpus", "count"),
    [
        pytest.param(None, 269, 8, 0, id="few tasks are walked at once"),
        pytest.param(None, 20_000, 8, 4, id="many by four, whom the one that lists can feed"),
        pytest.param(None, 20_000, 2, 2, id="or by as many as there are CPUs"),
        pytest.param(None, 20_000, 1, 0, id="of which one is not enough"),
        pytest.param(1, 20_000, 8, 0, id="one is this one"),
        pytest.param(6, 269, 1, 6, id="what the user says holds"),
    ],
)
def test_how_many_walk(
    monkeypatch: pytest.MonkeyPatch, jobs: int | None, expected: int, cpus: int, count: int
) -> None:
    kernel = Kernel(open_dump(str(DUMP_6_1.path)))
    monkeypatch.setattr(kernel, "expected_tasks", lambda: expected)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    assert walkers_for(kernel, jobs) == count


def test_an_interrupted_scan_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C goes to every process of a terminal's job, and to one that is just starting, too;
    the answer is one line and status 130."""
    out = tmp_path / "report"
    command = [sys.executable, "-m", "drgn_reliable", "scan", str(DUMP_6_1.path), "--jobs", "2"]
    slow = "import sys, time; time.sleep(60)"
    starter = (
        "import sys; from drgn_reliable import cli, parallel;"
        f"parallel._START = {slow!r}; sys.exit(cli.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", starter, *command[3:], "-o", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while len(found := children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == 2
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (said, process.returncode) == ("drgn-reliable: interrupted\n", 130)
    assert not out.exists() and os.listdir(tmp_path) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in found)
