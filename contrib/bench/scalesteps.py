# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``contrib.bench.scale`` measures from inside: each in a process of its own.

    python -m contrib.bench.scalesteps STEP DUMP [VMLINUX] [FILE]

prints the step's figures as JSON. Seconds are of the CPU: other things that run on the machine
lengthen them less.
"""

from __future__ import annotations

import contextlib
import cProfile
import json
import pstats
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from drgn import FaultError

Figures = dict[str, float]

_PAGES = 50_000
"""Pages that are decompressed, at least, if there are so many."""
_SAMPLE = 500
"""Tasks of which drgn walks the stacks."""

_GROUPS = (
    ("reading", ("_drgn.Program", "drgn_reliable/memory.py", "drgn_reliable/files/")),
    ("listing tasks", ("drgn_reliable/tasks.py",)),
    ("opening", (
        "drgn_reliable/btf", "drgn_reliable/opening", "drgn_reliable/kernel.py", "importlib",
        "<frozen", "drgn_reliable/symbols.py", "drgn_reliable/kallsyms",
        "drgn_reliable/modules.py", "_drgn.", "marshal",
    )),
    ("printing", (
        "drgn_reliable/render", "json/", "csv.py", "_csv", "tabulate", "_io.", "write",
        "drgn_reliable/selection", "drgn_reliable/fleet", "codecs.py",
    )),
    ("naming", ("drgn_reliable/text.py", "drgn_reliable/model.py")),
    ("walking", (
        "drgn_reliable/walk", "drgn_reliable/arch/", "drgn_reliable/tables/",
        "drgn_reliable/judge", "drgn_reliable/report.py", "drgn_reliable/returns.py",
        "drgn_reliable/",
    )),
)  # fmt: skip
"""Where a function's own time belongs: the first group of which a part is in its name. Reading has
libkdumpfile's decompressing in it, and "other" what is Python's own."""


def stages(dump: str) -> Figures:
    """The parts of a scan, one after the other: seconds of each."""
    start = time.process_time()
    from drgn_reliable import Kernel, Scanner, open_dump
    from drgn_reliable.report import collector_paused

    imported = time.process_time()
    kernel = Kernel(open_dump(dump))
    opened = time.process_time()
    tasks = naming = 0.0
    with collector_paused():
        for report in Scanner(kernel).reports(kernel.tasks):
            tasks += 1
            before = time.process_time()
            for frame in report.frames:
                str(frame.code)
            naming += time.process_time() - before
    done = time.process_time()
    return {
        "tasks": tasks,
        "import": imported - start,
        "open": opened - imported,
        "walk": done - opened - naming,
        "name": naming,
    }


def places(dump: str, file: str) -> Figures:
    """Put down what a scan reads of each task: address and size of what it takes of the task
    structure and of the used part of the stack."""
    from drgn_reliable import Kernel, open_dump
    from drgn_reliable.memory import member_offset

    kernel = Kernel(open_dump(dump))
    type_ = kernel.prog.type("struct task_struct")
    names = ("thread_info", "__state", "thread.sp", "thread.cpu_context.sp")
    offsets = [each for name in names if (each := member_offset(type_, name)) is not None]
    first, size = min(offsets), max(offsets) + 8 - min(offsets)
    page = int(kernel.vmcoreinfo["PAGESIZE"])
    found = array("Q")
    for task in kernel.tasks:
        found.extend((task.address + first, size))
        if task.has_stack and not task.on_cpu:
            # Stacks are aligned to their size, which is at least four pages of 4 KiB.
            top = (task.saved_sp & -max(page, 1 << 14)) + max(page, 1 << 14)
            found.extend((task.saved_sp, top - task.saved_sp))
    Path(file).write_bytes(found.tobytes())
    return {"reads": len(found) // 2, "bytes": sum(found[1::2])}


def _pairs(file: str) -> Iterator[tuple[int, int]]:
    found = array("Q", Path(file).read_bytes())
    yield from zip(found[::2], found[1::2], strict=True)


def reading(dump: str, file: str) -> Figures:
    """Read the very same by drgn, and do nothing with it."""
    from drgn_reliable import open_dump

    prog = open_dump(dump)
    read, total = prog.read, 0
    pairs = list(_pairs(file))
    start = time.process_time()
    for address, size in pairs:
        try:
            total += len(read(address, size))
        except FaultError:
            continue
    return {"seconds": time.process_time() - start, "bytes": total}


def decompressing(dump: str, file: str) -> Figures:
    """Decompress each page that the very same is in once, and do nothing with it. Of very many
    pages some are, and the seconds are those of all in proportion."""
    from contrib.scale.machines import machine_of
    from contrib.scale.memory import Memory, PageTables
    from drgn_reliable import Kernel, open_dump
    from drgn_reliable.files.codecs import unpack_page
    from drgn_reliable.files.kdump import KdumpFile
    from drgn_reliable.opening import opened_dump

    kernel = Kernel(open_dump(dump))
    opened = opened_dump(kernel.prog)
    if opened is None or not isinstance(opened.file, KdumpFile):
        raise SystemExit(f"{dump}: not a kdump-compressed file")
    file_, memory = opened.file, Memory(opened.file)
    machine = machine_of(kernel, memory)
    tables = PageTables(memory, machine.paging, machine.root)
    page = machine.paging.page_size
    addresses = {
        each
        for address, size in _pairs(file)
        for each in range(address & -page, address + size, page)
    }
    some = sorted(addresses)[:: max(1, len(addresses) // _PAGES)]
    stored = []
    for address in some:
        with contextlib.suppress(FaultError, LookupError):
            stored.append(file_.stored_page(tables.physical(address) // page))
    start = time.process_time()
    for flags, data in stored:
        unpack_page(flags, data, page)
    seconds = (time.process_time() - start) * len(addresses) / len(some)
    return {"seconds": seconds, "pages": len(addresses), "measured": len(stored)}


def drgns(dump: str, symbols: str) -> Figures:
    """drgn's own loop over tasks: seconds to list them all, to walk some, to print those."""
    from drgn import Program
    from drgn.helpers.linux.pid import for_each_task

    prog = Program()
    prog.set_core_dump(dump)
    start = time.process_time()
    prog.load_debug_info([symbols], main=True)
    opened = time.process_time()
    tasks = list(for_each_task(prog))
    listed = time.process_time()
    some = tasks[:: max(1, len(tasks) // _SAMPLE)]
    walking = naming = 0.0
    walked = 0
    for task in some:
        before = time.process_time()
        try:
            trace = prog.stack_trace(task)
        except (FaultError, ValueError):
            continue  # drgn has no stack trace for a task without a stack or on a CPU
        after = time.process_time()
        str(trace)
        walking += after - before
        naming += time.process_time() - after
        walked += 1
    return {
        "tasks": len(tasks),
        "open": opened - start,
        "list": (listed - opened) / len(tasks),
        "walked": walked,
        "walk": walking / walked,
        "name": naming / walked,
    }


def profile(dump: str) -> Figures:
    """Shares of a scan that prints JSON lines, by the profiler: it makes calls slower than they
    are, so what is made of many is too large."""
    from drgn_reliable.cli import main

    profiler = cProfile.Profile(time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "report")
        status = profiler.runcall(
            main, ["scan", dump, "--format", "jsonl", "--jobs", "1", "-o", output]
        )
    if status not in (0, 1):
        raise SystemExit(f"{dump}: the scan ended with status {status}")
    shares = dict.fromkeys((*(name for name, _ in _GROUPS), "other"), 0.0)
    for (path, _, function), row in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        where = f"{path}:{function}"
        group = next((n for n, parts in _GROUPS if any(p in where for p in parts)), "other")
        shares[group] += row[2]
    total = sum(shares.values())
    return {name: seconds / total for name, seconds in shares.items()}


STEPS: dict[str, Callable[..., Figures]] = {
    "stages": stages,
    "places": places,
    "reading": reading,
    "decompressing": decompressing,
    "drgn": drgns,
    "profile": profile,
}


if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](*sys.argv[2:])))
