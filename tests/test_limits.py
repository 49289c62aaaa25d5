# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/limits.md is what the code does: each number, each test that it names, and every loop."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from drgn import offsetof

from contrib.fuzz.overlay import Overlay
from drgn_reliable import Kernel, KernelVerdict, ProofVerdict, Scanner, TaskReport, open_dump
from drgn_reliable.walk import _STEP_LIMIT
from tests.dumps import DUMPS, VMCORES, Dump

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "limits.md").read_text()
DUMP = str(VMCORES / "x86_64-6.12.kdump")


class Row(NamedTuple):
    what: str
    most: str
    where: str
    held_by: list[str]


def rows() -> list[Row]:
    found = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] != "What":
            found.append(Row(*cells[:3], re.findall(r"`(\S+?)`", cells[3])))
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.where.strip("`"))
def test_the_table_is_the_code(row: Row) -> None:
    """A number is that of the constant; the tests that hold it exist."""
    module, _, name = row.where.strip("`").rpartition(".")
    value = getattr(importlib.import_module(f"drgn_reliable.{module}"), name)
    if name.isupper():
        assert value == int(row.most)
    assert row.held_by
    for test in row.held_by:
        file, _, function = test.partition("::")
        assert f"def {function}" in (TESTS / file).read_text()


def test_no_limit_is_missing() -> None:
    """Every constant of the analysis that is called a limit stands in the table."""
    package = TESTS.parent / "drgn_reliable"
    named = {row.where.strip("`") for row in rows()}
    for file in [*package.glob("*.py"), *package.glob("arch/*.py")]:
        module = ".".join(file.relative_to(package).with_suffix("").parts)
        for name in re.findall(r"^(\w*(?:LIST|STEP|NODE|WORD|ARRAY|ROW|SECTION)_LIMIT) =",
                               file.read_text(), re.MULTILINE):  # fmt: skip
            assert f"{module}.{name}" in named


class Opened:
    """A dump with an overlay."""

    def __init__(self) -> None:
        sound = open_dump(DUMP, search=False)
        self.kernel = Kernel(sound)
        self.overlay = Overlay(sound.read)
        self.prog = open_dump(DUMP, search=False)
        self.overlay.lay_over(self.prog)

    def scan(self) -> tuple[dict[int, TaskReport], tuple[str, ...], int]:
        """Reports by task, problems, and how many reads the scan took."""
        scanner = Scanner(Kernel(self.prog))
        self.overlay.reads = 0
        reports = {r.task: r for r in scanner.reports(scanner.kernel.tasks)}
        return reports, scanner.problems(), self.overlay.reads

    def offset(self, struct: str, path: str) -> int:
        return offsetof(self.kernel.prog.type(f"struct {struct}"), path)

    def word(self, address: int, value: int) -> None:
        self.overlay.put(address, value.to_bytes(8, "little"))

    def number(self, address: int) -> int:
        found: int = self.kernel.prog.read_u64(address)
        return found

    def symbol(self, name: str) -> int:
        return self.kernel.symbols.required(name)


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


@pytest.fixture(scope="module")
def sound(opened: Opened) -> tuple[dict[int, TaskReport], int]:
    opened.overlay.heal()
    reports, problems, reads = opened.scan()
    assert problems == ()
    return reports, reads


def _task(opened: Opened, comm: str) -> int:
    return next(task.address for task in opened.kernel.tasks if task.comm == comm)


def _to_itself(opened: Opened, node: int) -> None:
    opened.word(node, node)


def _tasks(opened: Opened) -> int | None:
    _to_itself(opened, _task(opened, "kthreadd") + opened.offset("task_struct", "tasks"))
    return None


def _threads(opened: Opened) -> int | None:
    node = opened.offset("task_struct", "thread_node")
    _to_itself(opened, _task(opened, "threads/thread") + node)
    return None


def _modules(opened: Opened) -> int | None:
    _to_itself(opened, opened.number(opened.symbol("modules")))
    return None


def _ftrace(opened: Opened) -> int | None:
    ops = opened.number(opened.symbol("ftrace_ops_list"))
    opened.word(ops + opened.offset("ftrace_ops", "next"), ops)
    return None


def _kprobe_pages(opened: Opened) -> int | None:
    head = opened.symbol("kprobe_insn_slots") + opened.offset("kprobe_insn_cache", "pages")
    _to_itself(opened, opened.number(head))
    return None


def _bpf(opened: Opened) -> int | None:
    _to_itself(opened, opened.number(opened.symbol("bpf_kallsyms")))
    return None


def _hooks(opened: Opened) -> int | None:
    """A node that leads to itself, and is not the one that is looked for."""
    task = next(task for task in opened.kernel.tasks if task.return_hooks)
    start = task.return_hooks - opened.offset("rethook_node", "llist")
    opened.word(start + opened.offset("rethook_node", "frame"), 1)
    _to_itself(opened, task.return_hooks)
    return task.address


@pytest.mark.parametrize(
    ("lay", "told"),
    [
        (_tasks, "process list: list broken"),
        (_threads, "threads of process"),
        (_modules, "modules: list broken"),
        (_ftrace, "ftrace ops: list broken"),
        (_kprobe_pages, "kprobe_insn_slots: list broken"),
        (_bpf, "bpf_kallsyms: list broken"),
        (_hooks, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_list_that_loops_ends(
    opened: Opened,
    sound: tuple[dict[int, TaskReport], int],
    lay: Callable[[Opened], int | None],
    told: str | None,
) -> None:
    """Each list that a scan follows, led back into itself: the scan ends, within the reads that
    the list's limit allows, says so, and no report is more than it was."""
    reports, reads = sound
    opened.overlay.heal()
    victim = lay(opened)
    found, problems, count = opened.scan()
    opened.overlay.heal()
    assert count <= 2 * reads + 16 * 4096
    if told is None:
        assert victim is not None
        assert found.pop(victim).kernel.verdict is KernelVerdict.UNRELIABLE
    else:
        assert any(problem.startswith(told) for problem in problems)
    for task, report in found.items():
        refused = report.kernel.verdict is KernelVerdict.UNRELIABLE
        assert refused or report.kernel == reports[task].kernel
        proven = report.proof.verdict is ProofVerdict.PROVEN
        assert not proven or report.proof == reports[task].proof


def test_reads_of_a_scan_are_bounded(
    opened: Opened, sound: tuple[dict[int, TaskReport], int]
) -> None:
    """A scan reads a task's structure, its stack and some tables: under 64 reads a task."""
    reports, reads = sound
    assert reads <= 64 * len(reports)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.name)
def test_no_stack_has_more_words_than_a_walk_has_steps(dump: Dump) -> None:
    """Every step but a loop's needs a word of its own."""
    kernel = Kernel(open_dump(str(dump.path), search=False))
    assert kernel.facts.thread_size // 16 <= _STEP_LIMIT
