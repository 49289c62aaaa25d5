# SPDX-License-Identifier: LGPL-2.1-or-later
"""How does a scan grow with the number of tasks, and where does its time go?

    python -m contrib.bench.scale vmcores/x86_64-6.12.kdump
    python -m contrib.bench.scale DUMP --symbols VMLINUX --crash crash --counts 1000,10000,100000

Makes dumps of so many tasks of the one that is given (contrib.scale), and measures in one run:

* time and memory of ``drgn-reliable scan`` in every format;
* the exponent with which time grows: 1 is in proportion to the number of tasks;
* with --symbols, time per task beside drgn's own loop over a sample of the tasks, and with --crash
  beside crash's ``foreach user bt`` (its dump has to have what crash reads: make it with
  ``drgn-reliable capsule --add-crash``);
* how long it takes merely to read the same bytes, and to decompress the pages that they are in;
* what the walk, the names and the printing take, by the clock and by the profiler.

Each figure is of a process of its own, and is CPU time where it says nothing else: the machine may
have other things to do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from contrib.bench.processes import run
from contrib.scale.crowd import write_crowd

_FORMATS = ("table", "jsonl", "json", "csv", "html", "folded", "speedscope")
_CRASH_BACKTRACES = "foreach user bt\nquit\n"
_DONE = (0, 1)
"""What a scan that saw every task returns."""

Record = dict[str, Any]


def _step(name: str, *arguments: str) -> Record:
    """Run a step of :mod:`contrib.bench.scalesteps`."""
    command = [sys.executable, "-m", "contrib.bench.scalesteps", name, *arguments]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    found: Record = json.loads(done.stdout)
    return found


def _scan(dump: Path, format: str, folder: Path, args: argparse.Namespace) -> Record:
    """Time and memory of one scan of some (the middle one by CPU), and how much it wrote."""
    output = folder / "report"
    command = [sys.executable, "-m", "drgn_reliable", "scan", str(dump), "--format", format]
    every = [run(command, output=output, timeout=args.timeout) for _ in range(args.runs)]
    found = sorted(every, key=lambda each: each.cpu_seconds)[len(every) // 2]
    size = output.stat().st_size
    output.unlink()
    return {**vars(found), "output_bytes": size, "complete": found.status in _DONE}


def _crash(command: str, dump: Path, symbols: str, folder: Path, timeout: float) -> Record:
    """Time per task of crash's backtraces, beyond that of its start."""
    output = folder / "crash"
    words = [*command.split(), "-s", "--no_panic", symbols, str(dump)]
    start = run(words, stdin="quit\n", timeout=timeout)
    found = run(words, output=output, stdin=_CRASH_BACKTRACES, timeout=timeout)
    with output.open("rb") as lines:
        printed = sum(line.startswith(b"PID: ") for line in lines)
    output.unlink()
    survived = found.status == 0 and printed > 0
    each = (found.cpu_seconds - start.cpu_seconds) / printed if survived else None
    return {
        "status": found.status,
        "tasks": printed,
        "survived": survived,
        "open": start.cpu_seconds,
        "seconds": found.cpu_seconds,
        "task": each,
    }


def measure(dump: Path, name: str, args: argparse.Namespace, folder: Path) -> Record:
    """Everything about one dump."""
    print(f"measuring {name}", file=sys.stderr)
    found: Record = {"dump": name, "file_bytes": dump.stat().st_size}
    found["stages"] = _step("stages", str(dump))
    found["scans"] = {format: _scan(dump, format, folder, args) for format in args.formats}
    places = str(folder / "places")
    found["same bytes"] = _step("places", str(dump), places)
    found["reading"] = _step("reading", str(dump), places)
    found["decompressing"] = _step("decompressing", str(dump), places)
    found["profile"] = _step("profile", str(dump))
    if args.symbols:
        found["drgn"] = _step("drgn", str(dump), args.symbols)
        if args.crash:
            found["crash"] = _crash(args.crash, dump, args.symbols, folder, args.timeout)
    return found


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The exponent of the power of size that fits times best (least squares of logarithms).

    >>> exponent([1, 10, 100], [3, 30, 300])
    1.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(time) for time in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(above / sum((a - mean_x) ** 2 for a in x), 6)


def growth(records: list[Record], formats: Sequence[str]) -> Record:
    """The exponent of the time of each format, and of the walk alone."""
    if len(records) < 2:
        return {}
    sizes = [record["stages"]["tasks"] for record in records]
    found = {"walk": exponent(sizes, [record["stages"]["walk"] for record in records])}
    for format in formats:
        times = [
            # What a process takes to start and to open is the same for any number of tasks.
            max(1e-3, record["scans"][format]["cpu_seconds"] - _start(record))
            for record in records
        ]
        found[format] = exponent(sizes, times)
    return found


def _start(record: Record) -> float:
    start: float = record["stages"]["import"] + record["stages"]["open"]
    return start


# Tables -----------------------------------------------------------------------------------


def _print(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True))
    print()


def _show_scans(records: list[Record]) -> None:
    rows = []
    for record in records:
        tasks = record["stages"]["tasks"]
        for format, scan in record["scans"].items():
            rows.append(
                (
                    record["dump"],
                    f"{tasks:.0f}",
                    format if scan["complete"] else f"{format} (status {scan['status']})",
                    f"{scan['seconds']:.2f}",
                    f"{scan['cpu_seconds']:.2f}",
                    f"{scan['cpu_seconds'] / tasks * 1e6:.0f}",
                    f"{scan['anonymous_kib'] / 1024:.0f}",
                    f"{scan['file_kib'] / 1024:.0f}",
                    f"{scan['output_bytes'] / 1e6:.1f}",
                )
            )
    headers = (
        "dump",
        "tasks",
        "scan",
        "s",
        "CPU s",
        "us a task",
        "own MiB",
        "mapped MiB",
        "written MB",
    )
    _print(headers, rows)


def _show_stages(records: list[Record]) -> None:
    rows = []
    for record in records:
        stages = record["stages"]
        walk, reading = stages["walk"], record["reading"]["seconds"]
        unpacking = record["decompressing"]["seconds"]
        lines = record["scans"].get("jsonl")
        rest = lines["cpu_seconds"] - _start(record) - walk - stages["name"] if lines else 0.0
        seconds = (_start(record), unpacking, reading - unpacking, walk - reading, stages["name"])
        rows.append(
            (
                f"{stages['tasks']:.0f}",
                *(f"{each:.2f}" for each in seconds),
                f"{rest:.2f}" if lines else "",
                f"{walk / reading:.2f}",
            )
        )
    headers = ("seconds of tasks", "start, open", "decompress", "read", "walk", "name")
    _print((*headers, "print jsonl", "walk over mere reading"), rows)
    names = list(records[0]["profile"])
    shares = [
        (f"{r['stages']['tasks']:.0f}", *(f"{100 * r['profile'][name]:.0f} %" for name in names))
        for r in records
    ]
    _print(("profiled, tasks", *names), shares)


def _show_others(records: list[Record]) -> None:
    rows = []
    for record in records:
        drgn, tasks = record.get("drgn"), record["stages"]["tasks"]
        if not drgn:
            continue
        whole = min(scan["cpu_seconds"] for scan in record["scans"].values()) / tasks
        ours = record["stages"]["walk"] / tasks
        named = ours + record["stages"]["name"] / tasks
        theirs, theirs_named = drgn["walk"], drgn["walk"] + drgn["name"]
        row = [f"{tasks:.0f}", f"{ours * 1e6:.0f}", f"{named * 1e6:.0f}"]
        row += [f"{theirs * 1e6:.0f}", f"{theirs_named * 1e6:.0f}"]
        row += [f"{theirs / ours:.0f}", f"{theirs_named / named:.0f}", f"{theirs / whole:.0f}"]
        crash = record.get("crash")
        row.append("" if not crash else _crash_cell(crash))
        rows.append(row)
    if rows:
        headers = ("us a task", "ours", "and names", "drgn", "and names", "times", "with names")
        _print((*headers, "whole scan", "crash"), rows)


def _crash_cell(crash: Record) -> str:
    if not crash["survived"]:
        return f"ends with status {crash['status']} after {crash['tasks']} tasks"
    return f"{crash['task'] * 1e6:.0f}"


def show(result: Record) -> None:
    """Print the tables."""
    records = result["records"]
    _show_scans(records)
    _show_stages(records)
    _show_others(records)
    if result["growth"]:
        _print(
            ("time grows with the power of tasks", "exponent"),
            [(name, f"{value:.2f}") for name, value in result["growth"].items()],
        )


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m contrib.bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dump", type=Path, help="a kdump-compressed vmcore whose tasks are cloned")
    parser.add_argument("--symbols", help="its vmlinux, which drgn and crash need")
    parser.add_argument("--crash", metavar="COMMAND", help="crash, to measure it too")
    parser.add_argument("--counts", type=_numbers, default=[1000, 10_000, 100_000], metavar="N,N")
    parser.add_argument("--million", action="store_true", help="and a million: 2 GB of disk")
    parser.add_argument(
        "--formats", type=lambda text: tuple(text.split(",")), default=_FORMATS, metavar="F,F"
    )
    parser.add_argument("--scattered", action="store_true", help="see contrib.scale")
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="DUMP",
        help="measure this one too, as it is, of the same kernel; it is left out of the growth",
    )
    parser.add_argument("--runs", type=int, default=1, help="of each scan; the middle one counts")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make dumps there, or use them")
    parser.add_argument("--timeout", type=float, default=3600, help="of each process, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def _machine() -> Record:
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "drgn": version("drgn"),
        "machine": platform.machine(),
    }


def main() -> None:
    """Measure and print."""
    args = _parser().parse_args()
    counts = sorted({*args.counts, *([1_000_000] if args.million else [])})
    records = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for tasks in counts:
            kept = args.keep and args.keep / f"{args.dump.stem}-{tasks}.kdump"
            dump = kept or folder / "vmcore"
            if not (kept and kept.exists()):
                write_crowd(str(args.dump), dump, tasks, scattered=args.scattered)
            records.append(measure(dump, f"{tasks} clones", args, folder))
        others = [measure(dump, dump.name, args, folder) for dump in args.also]
    result = {
        "dump": args.dump.name,
        "machine": _machine(),
        "records": [*records, *others],
        "growth": growth(records, args.formats),
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
