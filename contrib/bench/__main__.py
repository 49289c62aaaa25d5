# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fast is a scan, beside drgn's own stack traces of the same tasks?

    python -m contrib.bench DUMP --symbols VMLINUX

Each figure is taken in a process of its own, ours and drgn's in turn, so that a ratio compares
runs that shared the machine's mood. drgn needs the debug information to unwind; ours runs
without it, and with it too for comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from tabulate import tabulate

Figures = dict[str, float]


def ours(dump: str, symbols: str | None) -> Figures:
    """Scan all tasks, names of frames included."""
    start = time.perf_counter()
    from drgn_reliable import Kernel, Scanner, open_dump
    from drgn_reliable.report import collector_paused

    imported = time.perf_counter()
    kernel = Kernel(open_dump(dump, symbols))
    opened = time.perf_counter()
    with collector_paused():
        reports = [
            (report, [str(frame.code) for frame in report.frames])
            for report in Scanner(kernel).reports(kernel.tasks)
        ]
    done = time.perf_counter()
    return {
        "tasks": len(reports),
        "import": imported - start,
        "open": opened - imported,
        "whole": done - imported,
        "task": (done - opened) / len(reports),
    }


def drgns(dump: str, symbols: str | None) -> Figures:
    """drgn's stack trace of every task that it lists, with the frames' names."""
    from drgn import Program
    from drgn.helpers.linux.cpumask import for_each_possible_cpu
    from drgn.helpers.linux.pid import for_each_task
    from drgn.helpers.linux.sched import idle_task

    start = time.perf_counter()
    prog = Program()
    prog.set_core_dump(dump)
    prog.load_debug_info([symbols] if symbols else [], main=True)
    tasks = list(for_each_task(prog))
    tasks += [idle_task(prog, cpu) for cpu in for_each_possible_cpu(prog)]
    opened = time.perf_counter()
    for task in tasks:
        try:
            trace = prog.stack_trace(task)
        except ValueError:
            continue  # drgn has no stack trace for a task without a stack
        for frame in trace:
            str(frame.name)
    done = time.perf_counter()
    return {
        "tasks": len(tasks),
        "open": opened - start,
        "whole": done - start,
        "task": (done - opened) / len(tasks),
    }


MEASURES: dict[str, Callable[[str, str | None], Figures]] = {"ours": ours, "drgn": drgns}


def measure(name: str, dump: str, symbols: str | None) -> Figures:
    """Run one measurement in a new process."""
    command = [sys.executable, "-m", "contrib.bench", dump, "--one", name]
    if symbols:
        command += ["--symbols", symbols]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def _row(title: str, runs: list[Figures]) -> tuple[str, str, str, str, str]:
    def middle(key: str, scale: float) -> str:
        return f"{statistics.median(run[key] for run in runs) * scale:.1f}"

    tasks = f"{runs[0]['tasks']:.0f}"
    return title, tasks, middle("open", 1e3), middle("whole", 1e3), middle("task", 1e6)


def _ratio(name: str, upper: list[Figures], lower: list[Figures], key: str) -> str:
    ratios = [a[key] / b[key] for a, b in zip(upper, lower, strict=True)]
    return (
        f"{name}: {statistics.median(ratios):.1f} times "
        f"({min(ratios):.1f} to {max(ratios):.1f} in {len(ratios)} pairs)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m contrib.bench", description=__doc__)
    parser.add_argument("dump", help="a vmcore")
    parser.add_argument("--symbols", help="its vmlinux, without which drgn cannot unwind")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--one", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(MEASURES[args.one](args.dump, args.symbols)))
        return
    alone, with_symbols, drgn_runs = [], [], []
    for _ in range(args.runs):
        alone.append(measure("ours", args.dump, None))
        if args.symbols:
            with_symbols.append(measure("ours", args.dump, args.symbols))
            drgn_runs.append(measure("drgn", args.dump, args.symbols))
    rows = [_row("ours, dump alone", alone)]
    if args.symbols:
        rows.append(_row("ours, with debug information", with_symbols))
        rows.append(_row("drgn's stack_trace and names", drgn_runs))
    headers = ("median of each", "tasks", "open (ms)", "file to last (ms)", "per task (us)")
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True))
    if args.symbols:
        print(_ratio("drgn's time per task is", drgn_runs, alone, "task"))
        print(_ratio("drgn's time from file to last trace is", drgn_runs, alone, "whole"))


if __name__ == "__main__":
    main()
