# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many dumps a minute does a fleet's scan get through, beside a shell loop?

    python -m contrib.bench.fleet DUMP --symbols VMLINUX
    python -m contrib.bench.fleet CAPSULE --counts 10,100,1000 --jobs 1,2

With ``--symbols`` the same copies of the dump are gone through in turn by ``fleet scan``, by a loop
over drgn that prints every task's stack, and with ``--crash`` by a loop over crash, each run in the
same mood of the machine; only the loops need the debug information. Without, it is measured how the
scan grows with the number of dumps and of jobs, what the scanning process itself takes, and how
long the report of that many dumps takes.

Copies differ in a byte behind their end: one content would be scanned once.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tabulate import tabulate

from drgn_reliable import Kernel, open_dump

_DRGN = """\
import sys
from drgn import Program
from drgn.helpers.linux.pid import for_each_task
prog = Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]], main=True)
for task in for_each_task(prog):
    try:
        print(task.pid.value_(), task.comm.string_(), prog.stack_trace(task))
    except ValueError as e:
        print(task.pid.value_(), e)
"""
_CRASH = "foreach bt\nquit\n"


@contextmanager
def copies(dump: Path, count: int) -> Iterator[Path]:
    """A directory with so many dumps."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            target = Path(folder) / f"vmcore-{number:05}"
            shutil.copyfile(dump, target)
            with target.open("ab") as file:
                file.write(number.to_bytes(4, "little"))
        yield Path(folder)


def _quiet(command: list[str], stdin: str | None = None) -> None:
    """Run a command; what it says of the tasks is written, but nobody reads it."""
    subprocess.run(
        command, input=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )


def scan(folder: Path, jobs: int, store: Path) -> float:
    """Seconds that a scan of all dumps in a directory takes."""
    command = [sys.executable, "-m", "drgn_reliable", "fleet", "scan", str(folder)]
    started = time.perf_counter()
    _quiet([*command, "--store", str(store), "--jobs", str(jobs)])
    return time.perf_counter() - started


def drgn_loop(folder: Path, symbols: str) -> float:
    """Seconds that a loop over drgn takes."""
    started = time.perf_counter()
    for dump in sorted(folder.iterdir()):
        _quiet([sys.executable, "-c", _DRGN, str(dump), symbols])
    return time.perf_counter() - started


def crash_loop(folder: Path, symbols: str, crash: str) -> float:
    """Seconds that a loop over crash takes."""
    started = time.perf_counter()
    for dump in sorted(folder.iterdir()):
        _quiet([crash, "-s", symbols, str(dump)], _CRASH)
    return time.perf_counter() - started


def shown_by_crash(dump: Path, symbols: str, crash: str) -> tuple[int, int]:
    """Of how many tasks crash shows a stack, and of how many it could: some versions know few tasks
    of newer kernels, and end as if that were all."""
    done = subprocess.run(
        [crash, "-s", symbols, str(dump)], input=_CRASH.encode(), capture_output=True
    )
    return done.stdout.count(b"\nPID: "), Kernel(open_dump(str(dump))).expected_tasks()


def beside_loops(dump: Path, symbols: str, count: int, runs: int, crash: str | None = None) -> None:
    """Print dumps a minute of each way, and ratios of paired runs."""
    jobs = len(os.sched_getaffinity(0))
    ways: dict[str, Callable[[Path, Path], float]] = {
        f"fleet scan, {jobs} jobs": lambda folder, store: scan(folder, jobs, store),
        "fleet scan, 1 job": lambda folder, store: scan(folder, 1, store),
        "shell loop over drgn": lambda folder, store: drgn_loop(folder, symbols),
    }
    if crash:
        shown, tasks = shown_by_crash(dump, symbols, crash)
        if shown < tasks:
            raise SystemExit(f"{crash} shows the stacks of {shown} tasks of {tasks}; take another")
        ways["shell loop over crash"] = lambda folder, store: crash_loop(folder, symbols, crash)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with copies(dump, count) as folder:
        for _ in range(runs):
            for way, measure in ways.items():
                with tempfile.TemporaryDirectory() as place:
                    seconds[way].append(measure(folder, Path(place) / "fleet.db"))
    first = next(iter(ways))
    rows = []
    for way, each in seconds.items():
        ratios = [a / b for a, b in zip(each, seconds[first], strict=True)]
        rate = 60 * count / statistics.median(each)
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append((way, f"{rate:.0f}", spread))
    headers = (f"{count} dumps, {runs} runs in turn", "dumps a minute", "time, times the first's")
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True))


def growth(dump: Path, counts: list[int], jobs: list[int]) -> None:
    """Print how a scan and its report grow."""
    rows = []
    for count in counts:
        with copies(dump, count) as folder, tempfile.TemporaryDirectory() as place:
            for number in jobs:
                store = Path(place) / f"{number}.db"
                seconds = scan(folder, number, store)
                rows.append((count, number, seconds, 60 * count / seconds, *_after(folder, store)))
    table = [
        (count, number, f"{seconds:.1f}", f"{rate:.0f}", *(f"{each:.1f}" for each in rest))
        for count, number, seconds, rate, *rest in rows
    ]
    headers = (
        "dumps",
        "jobs",
        "s",
        "a minute",
        "again (s)",
        "store (MB)",
        "report (s)",
        "html (s)",
    )
    print(tabulate(table, headers, tablefmt="plain", disable_numparse=True))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"the largest process had {peak:.0f} MiB")


def _after(folder: Path, store: Path) -> tuple[float, ...]:
    """Of a store: seconds to scan again what is known, MB, seconds of two reports."""
    report = [sys.executable, "-m", "drgn_reliable", "fleet", "report", str(store), "--format"]
    again = scan(folder, 1, store)
    seconds = []
    for format in ("table", "html"):
        started = time.perf_counter()
        _quiet([*report, format])
        seconds.append(time.perf_counter() - started)
    return again, store.stat().st_size / 1e6, *seconds


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m contrib.bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dump", type=Path, help="a vmcore or a capsule")
    parser.add_argument("--symbols", help="its vmlinux: compare with a loop over drgn")
    parser.add_argument("--crash", metavar="COMMAND", help="compare with a loop over crash too")
    parser.add_argument("--copies", type=int, default=10, help="for that (default: 10)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--counts", type=_numbers, default=[10, 100], metavar="N,N")
    parser.add_argument("--jobs", type=_numbers, default=[1, 2], metavar="N,N")
    args = parser.parse_args()
    if args.symbols:
        beside_loops(args.dump, args.symbols, args.copies, args.runs, args.crash)
    else:
        growth(args.dump, args.counts, args.jobs)


if __name__ == "__main__":
    main()
