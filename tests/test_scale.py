# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps with many clones of their tasks (contrib.scale), and the measuring of them."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from drgn import Program
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.sched import task_thread_info

from contrib.bench.processes import run
from contrib.bench.scale import exponent
from contrib.scale.crowd import Crowd, write_crowd
from drgn_reliable import Kernel, Scanner, TaskReport, open_dump
from drgn_reliable.errors import UsageError
from tests.dumps import DUMP_6_1, VMCORES

CLONES = 250
"""More than any of the dumps has tasks to clone, so that each is."""
STACK_SIZE = 4 << 12
KINDS = {
    "5 levels of page tables": ("x86_64-6.1", False),
    "anywhere in memory": ("x86_64-6.12", True),
    "excluded pages": ("x86_64-6.12-crash", False),
    "the newest kernel": ("x86_64-7.2", False),
    "frame pointers": ("x86_64-7.2-fp", True),
    "arm64": ("aarch64-6.12", False),
    "pages of 16 KiB": ("aarch64-7.2-16k", True),
}


def scan(dump: Path) -> tuple[Kernel, list[TaskReport]]:
    kernel = Kernel(open_dump(str(dump)))
    return kernel, list(Scanner(kernel).reports(kernel.tasks))


def told(report: TaskReport, stack: int) -> object:
    """What must be the same of a task and its clone: all but where its memory is."""

    def place(address: int) -> object:
        on_stack = address - stack
        return ("on its stack", on_stack) if 0 <= on_stack <= STACK_SIZE else address

    return (
        report.comm,
        report.state,
        report.kind,
        report.cpu,
        (report.kernel.verdict, [place(pc) for pc in report.kernel.entries]),
        (report.proof.verdict, [place(pc) for pc in report.proof.entries]),
        [(place(frame.pc), place(frame.sp), frame.found_by) for frame in report.frames],
        [(each.id, place(each.pc or 0), each.frame) for each in report.reasons],
    )


@pytest.mark.parametrize(("name", "scattered"), KINDS.values(), ids=KINDS.keys())
def test_clones_have_the_verdicts_of_their_originals(
    name: str, scattered: bool, tmp_path: Path
) -> None:
    """Verdicts, entries, frames and reasons; and all tasks that were there have theirs still."""
    source, output = VMCORES / f"{name}.kdump", tmp_path / "vmcore"
    made = write_crowd(str(source), output, CLONES, scattered=scattered)
    kernel, reports = scan(output)
    clones = {report.pid: report for report in reports if report.pid >= made.first_pid}
    stacks = {task.address: task.stack for task in kernel.tasks}
    assert kernel.tasks.problems == []
    assert sorted(clones) == list(range(made.first_pid, made.first_pid + CLONES))
    assert {made.plan.template[i] for i in range(CLONES)} == set(range(len(made.templates)))
    for clone, report in enumerate(clones[pid] for pid in sorted(clones)):
        template = made.templates[made.plan.template[clone]]
        stack = stacks[report.task]
        assert told(report, stack) == told(template.report, template.task.stack), report
        leader = made.plan.first[made.plan.process[clone]]
        assert report.tgid == made.first_pid + leader
    before = {report.task: report for report in scan(source)[1]}
    assert {r.task: r for r in reports if r.pid < made.first_pid} == before


def test_stacks_and_task_structures_are_a_clone_s_own(tmp_path: Path) -> None:
    """No two tasks share an address, stacks are in virtual memory of their own, and processes of
    several threads are among them."""
    made = write_crowd(str(DUMP_6_1.path), tmp_path / "vmcore", CLONES)
    tasks = list(Kernel(open_dump(str(tmp_path / "vmcore"))).tasks)
    assert len({task.address for task in tasks}) == len(tasks)
    stacks = [task.stack for task in tasks if task.has_stack]
    assert len({stack >> 14 for stack in stacks}) == len(stacks)
    for task in tasks:
        if task.pid >= made.first_pid:
            assert task.stack <= task.saved_sp < task.stack + STACK_SIZE
    threads = Counter(task.tgid for task in tasks if task.pid >= made.first_pid)
    assert len(threads) == made.plan.processes > 3
    assert max(threads.values()) > 3


def crowd_of_6_1(path: Path) -> tuple[Crowd, Program]:
    """A dump with clones in drgn alone, with debug information and nothing of this package."""
    made = write_crowd(str(DUMP_6_1.path), path / "vmcore", CLONES)
    assert DUMP_6_1.debug_info is not None
    symbols = path / "vmlinux"
    symbols.write_bytes(lzma.decompress(DUMP_6_1.debug_info.read_bytes()))
    prog = Program()
    prog.set_core_dump(path / "vmcore")
    prog.load_debug_info([str(symbols)], main=True)
    return made, prog


def test_drgn_finds_the_clones(tmp_path: Path) -> None:
    """By the kernel's tree of PIDs, one by one and all of them; each has a stack to read."""
    made, prog = crowd_of_6_1(tmp_path)
    every = {task.pid.value_(): task for task in for_each_task(prog)}
    clones = range(made.first_pid, made.first_pid + CLONES)
    assert set(clones) <= set(every)
    assert len(every) == CLONES + len(list(for_each_task(source_of_6_1(tmp_path))))
    for pid in clones:
        task = find_task(prog, pid)
        assert task == every[pid]
        assert task_thread_info(task)
        assert task.group_leader.pid == task.tgid
        assert prog.read(task.thread.sp.value_(), 8)


def source_of_6_1(path: Path) -> Program:
    prog = Program()
    prog.set_core_dump(DUMP_6_1.path)
    prog.load_debug_info([str(path / "vmlinux")], main=True)
    return prog


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    """Another seed gives another mix."""
    contents = []
    for number, seed in enumerate((1, 1, 2)):
        write_crowd(str(DUMP_6_1.path), tmp_path / str(number), 30, seed=seed, scattered=True)
        contents.append((tmp_path / str(number)).read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("compression", ["lzo", "snappy", "zstd", "none"])
def test_files_of_every_compression_are_read_alike(compression: str, tmp_path: Path) -> None:
    """By libkdumpfile: the very report of the one that zlib compressed."""
    write_crowd(str(DUMP_6_1.path), tmp_path / "zlib", 20)
    write_crowd(str(DUMP_6_1.path), tmp_path / "other", 20, compression=compression)
    assert scan(tmp_path / "other")[1] == scan(tmp_path / "zlib")[1]


REFUSED = {
    "another architecture": ("s390x-6.12", 5, "can be made for x86_64 and aarch64, not for s390x"),
    "more than PIDs": ("x86_64-6.1", 1 << 22, "--tasks 4194304: a machine has at most 4194304"),
}


@pytest.mark.parametrize(("name", "tasks", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_made_is_refused(
    name: str, tasks: int, message: str, tmp_path: Path
) -> None:
    """In a line, and no file is left."""
    with pytest.raises(UsageError, match=message):
        write_crowd(str(VMCORES / f"{name}.kdump"), tmp_path / "vmcore", tasks)
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_measures_what_it_says(tmp_path: Path) -> None:
    """Of two small numbers: every figure is there, every task was scanned."""
    command = [sys.executable, "-m", "contrib.bench.scale", str(DUMP_6_1.path)]
    options = ["--counts", "5,40", "--formats", "jsonl", "--json", str(tmp_path / "figures")]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads((tmp_path / "figures").read_text())
    tasks = DUMP_6_1.count()
    assert [each["stages"]["tasks"] for each in found["records"]] == [tasks + 5, tasks + 40]
    for each in found["records"]:
        scanned = each["scans"]["jsonl"]
        assert scanned["complete"]
        assert scanned["output_bytes"] > 0
        assert scanned["anonymous_kib"] > 1 << 10
        assert sum(each["profile"].values()) == pytest.approx(1)
        assert min(each["profile"][part] for part in ("reading", "walking", "printing")) > 0
        assert each["reading"]["bytes"] <= each["same bytes"]["bytes"]
        assert each["decompressing"]["pages"] > each["stages"]["tasks"]
    assert set(found["growth"]) == {"walk", "jsonl"}
    assert done.stdout.startswith("dump")


def test_the_exponent_of_growth() -> None:
    """1 where time is in proportion to size, 2 where it is to its square, 0 if constant."""
    sizes = [10, 100, 1000]
    for power in (0, 1, 2):
        assert exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_memory_of_children_counts() -> None:
    """A process's own memory, and that of those that it starts, but not the files they map."""
    hold = "x = b'1' * (64 << 20); import time; time.sleep(0.3)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    found = run([sys.executable, "-c", child])
    assert found.status == 0
    assert 64 << 10 < found.anonymous_kib < 100 << 10
    assert run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).status == -9
