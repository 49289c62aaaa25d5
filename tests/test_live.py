# SPDX-License-Identifier: LGPL-2.1-or-later
"""Looking at a kernel that runs: what moves, ends or begins meanwhile is never guessed at.

The kernels here are dumps whose memory changes as they are read; ``test_live_guest.py`` has a real
one.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from drgn.commands import run_command

import drgn_reliable.cli
import drgn_reliable.plugin
from drgn_reliable import (
    DumpError,
    Kernel,
    KernelVerdict,
    ProofVerdict,
    TaskNotFound,
    TaskReport,
    scan,
)
from drgn_reliable.commands import run_explain, run_klp
from drgn_reliable.explain import explain_task
from drgn_reliable.kcore import check_kcore
from drgn_reliable.opening import opened_dump
from drgn_reliable.report import Scanner
from tests.conftest import scan_dump
from tests.dumps import DUMPS, TRANSITIONS
from tests.living import Living

DUMP = next(dump for dump in DUMPS if dump.name == "x86_64-6.12.kdump")
POISON = 0xDEAD000000000122
"""``LIST_POISON2``: what ``list_del_rcu()`` leaves in a node."""


@pytest.fixture(scope="module")
def shared() -> Living:
    return Living(DUMP)


@pytest.fixture
def living(shared: Living) -> Living:
    """A kernel in which nothing moves as yet."""
    words = dict(shared.words)
    yield shared
    shared.words, shared.before = words, lambda address, size: None
    shared.reads.clear()


def task_of(comm: str) -> TaskReport:
    """What the dump says of the first task of a name."""
    return scan_dump(DUMP).task(comm)


def on_stack_read(living: Living, stack: int, act: Callable[[int], None]) -> None:
    """Have something happen just before a stack is read, and say how often that was."""
    times = [0]

    def before(address: int, size: int) -> None:
        if stack <= address < stack + (1 << 14) and size > 8:
            times[0] += 1
            act(times[0])

    living.before = before


# A task -----------------------------------------------------------------------------------


def test_who_stands_still_is_as_in_a_dump(living: Living) -> None:
    """Nothing moves: all reports are those of the dump, but registers are nobody's."""
    found = {report.task: report for report in scan(living.prog).tasks}
    there = {report.task: report for report in scan_dump(DUMP).reports}
    assert list(found) == list(there)
    for address, report in there.items():
        assert found[address].kernel == report.kernel
        if report.kernel.verdict is not KernelVerdict.RUNNING:
            assert found[address] == report


def test_an_ordinary_task_takes_nine_reads(living: Living) -> None:
    """Each read of a living kernel is a system call, so there are few."""
    kernel = living.kernel()
    tasks = [task for task in kernel.tasks if task.comm in ("pause", "poll", "nanosleep")]
    scanner = Scanner(kernel)
    list(scanner.reports(tasks))  # names and unwind data are read once
    alone = []
    for count in (1, 3):
        living.reads.clear()
        list(scanner.reports(tasks[:count]))
        alone.append(len(living.reads))
    assert alone[1] - alone[0] == 2 * 9


MOVES: dict[str, tuple[Callable[[Living, int, int], None], str, tuple[str, ...]]] = {
    "it ran, and sleeps as before": (
        lambda living, task, time: living.add(living.place(task, "nvcsw")) if time < 3 else None,
        "reliable",
        (),
    ),
    "it was preempted, and sleeps as before": (
        lambda living, task, time: living.add(living.place(task, "nivcsw")) if time < 3 else None,
        "reliable",
        (),
    ),
    "it runs all the time, and is never seen to": (
        lambda living, task, time: living.add(living.place(task, "nvcsw")),
        "running",
        ("task-moved",),
    ),
    "its stack pointer changes all the time": (
        lambda living, task, time: living.add(living.place(task, "thread.sp"), 8),
        "running",
        ("task-moved",),
    ),
    "it runs now": (
        lambda living, task, time: living.set(living.place(task, "on_cpu"), 1, 4),
        "running",
        ("running", "no-crash-registers"),
    ),
    "it was woken, and does not run yet": (
        lambda living, task, time: living.set(living.place(task, "__state"), 0, 4),
        "reliable",
        (),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_who_moves_is_not_guessed_at(living: Living, name: str) -> None:
    """Whatever happens while a stack is read: it is read again, or nothing is said of it."""
    move, verdict, reasons = MOVES[name]
    there = task_of("pause")
    kernel = living.kernel()
    (task,) = kernel.tasks.find(str(there.pid))
    on_stack_read(living, task.stack, lambda time: move(living, task.address, time))
    (report,) = Scanner(kernel).reports([task])
    assert report.kernel.verdict.value == verdict
    assert tuple(reason.id for reason in report.reasons) == reasons
    if verdict == "running":
        assert report.kernel.errno == -16
        assert report.proof.verdict is ProofVerdict.UNDECIDED
        assert report.frames == report.kernel.entries == ()
    else:
        assert report.kernel == there.kernel
        assert report.proof == there.proof


def test_the_count_is_read_after_on_cpu(living: Living) -> None:
    """A switch that is counted just after the task was last seen not to run is noticed."""
    there = task_of("pause")
    kernel = living.kernel()
    (task,) = kernel.tasks.find(str(there.pid))
    scanner = Scanner(kernel)
    scanner.report(task)
    count = living.place(task.address, "nvcsw")
    walked = [False]

    def before(address: int, size: int) -> None:
        if task.stack <= address < task.stack + (1 << 14) and size > 8:
            walked[0] = True
        # The last look at the counters begins at the link of the list and reaches over them.
        elif walked[0] and living.place(task.address, "thread_node") <= address <= count:
            walked[0] = False
            living.add(count)

    living.before = before
    assert [reason.id for reason in scanner.report(task).reasons] == ["task-moved"]


def unlink(living: Living, kernel: Kernel, task: int) -> None:
    """Take a process from the list of all, and from the kernel's count."""
    node = living.place(task, "tasks.next")
    before, after = living.word(node + 8), living.word(node)
    living.set(before, after)
    threads = kernel.symbols.required("nr_threads")
    living.set(threads, (living.word(threads) - 1) % (1 << 32), 4)


@pytest.mark.parametrize(
    "freed",
    [
        lambda living, task: living.set(living.place(task, "thread_node.prev"), POISON),
        lambda living, task: living.set(living.word(living.place(task, "thread_node.prev")), 8),
    ],
    ids=["taken from its list", "another task's memory, in no list"],
)
def test_who_ended_is_not_reported(living: Living, freed: Callable[[Living, int], None]) -> None:
    """A task that is freed while it is looked at is left out, and the report says so."""
    there = task_of("pause")
    kernel = living.kernel()
    scanner = Scanner(kernel)
    tasks = list(kernel.tasks)
    stack = next(task.stack for task in tasks if task.pid == there.pid)

    def end(time: int) -> None:
        if time == 1:
            freed(living, there.task)
            unlink(living, kernel, there.task)

    on_stack_read(living, stack, end)
    reports = list(scanner.reports(tasks))
    assert there.pid not in [report.pid for report in reports]
    assert len(reports) == len(tasks) - 1
    assert scanner.problems() == () and scanner.warnings() == ("1 task ended meanwhile",)
    with pytest.raises(TaskNotFound, match="ended while it was looked at"):
        scanner.report(kernel.tasks.read(there.task))


def test_who_seems_to_have_ended_and_is_listed_is_not_left_out(living: Living) -> None:
    """Nothing leads to it among its process's threads, but the list of processes has it: then
    nothing is known of it, and that is said."""
    there = task_of("pause")
    kernel = living.kernel()
    (task,) = kernel.tasks.find(str(there.pid))
    living.set(living.place(task.address, "thread_node.prev"), POISON)
    scanner = Scanner(kernel)
    (report,) = scanner.reports([task])
    assert [reason.id for reason in report.reasons] == ["task-moved"]
    assert scanner.warnings() == ()


def test_what_moves_is_not_explained(living: Living) -> None:
    """An explanation is of a task that stood still, or there is none."""
    kernel = living.kernel()
    (task,) = kernel.tasks.find(str(task_of("pause").pid))
    assert explain_task(kernel, task).report.kernel == task_of("pause").kernel
    count = living.place(task.address, "nvcsw")
    on_stack_read(living, task.stack, lambda time: living.add(count))
    args = argparse.Namespace(format="table", words="none")
    with pytest.raises(DumpError, match=r"\(pause\) ran while its stack was read, 3 times"):
        run_explain(kernel, args, [str(task.pid)], io.StringIO())


# Lists ------------------------------------------------------------------------------------


def test_a_list_that_changes_is_read_again(living: Living) -> None:
    """A task that ends while the tasks are listed breaks the list for an instant: no problem."""
    kernel = living.kernel()
    there = task_of("pause")
    following = living.place(there.task, "tasks.next")
    intact, times = living.word(following), [0]

    def before(address: int, size: int) -> None:
        if address <= following < address + size:
            times[0] += 1
            living.set(following, 0 if times[0] == 1 else intact)

    living.before = before
    assert [task.address for task in kernel.tasks] == [r.task for r in scan_dump(DUMP).reports]
    assert times[0] == 2 and kernel.tasks.problems == []


def test_a_list_that_stays_broken_is_a_problem(living: Living) -> None:
    """A list that is broken at every look is broken."""
    kernel = living.kernel()
    living.set(living.place(task_of("pause").task, "tasks.next"), 0)
    assert 0 < len(list(kernel.tasks)) < len(scan_dump(DUMP).reports)
    assert "leads to a null pointer" in kernel.tasks.problems[0]
    assert "the kernel counts" in kernel.tasks.problems[1]


def test_a_list_that_leads_elsewhere_is_noticed(living: Living) -> None:
    """Memory of a task that ended is another's now, at the list's end: those between are missed,
    which the kernel's own count tells."""
    kernel = living.kernel()
    init = kernel.symbols.required("init_task")
    living.set(living.place(task_of("pause").task, "tasks.next"), living.place(init, "tasks"))
    assert 0 < len(list(kernel.tasks)) < len(scan_dump(DUMP).reports)
    (problem,) = kernel.tasks.problems
    assert problem.startswith("task list: ") and "the kernel counts" in problem


def test_what_one_listing_misses_another_finds(living: Living) -> None:
    """While tasks begin and end the kernel's count tells little, so they are listed twice: what was
    missed because a task's memory was another's for an instant is found."""
    kernel = living.kernel()
    threads, forks = (kernel.symbols.required(name) for name in ("nr_threads", "total_forks"))
    init, gone = kernel.symbols.required("init_task"), task_of("pause").task
    node, intact = living.place(gone, "tasks.next"), living.word(living.place(gone, "tasks.next"))
    times = [0]

    def before(address: int, size: int) -> None:
        if address <= node < address + size:
            times[0] += 1
            living.add(forks, 1000)  # and as many end: the count stays
            living.set(node, living.place(init, "tasks") if times[0] == 1 else intact)

    living.before = before
    assert {task.address for task in kernel.tasks} == {r.task for r in scan_dump(DUMP).reports}
    assert times[0] == 2 and kernel.tasks.problems == []
    assert living.word(threads)


def test_tasks_that_begin_and_end_are_no_problem(living: Living) -> None:
    """The kernel's count may change while the tasks are listed, by those that come and go."""
    kernel = living.kernel()
    threads, forks = (kernel.symbols.required(name) for name in ("nr_threads", "total_forks"))
    node = living.place(task_of("pause").task, "tasks")

    def before(address: int, size: int) -> None:
        if address <= node < address + size:
            living.set(threads, living.word(threads) % (1 << 32) + 1, 4)
            living.add(forks, 3)

    living.before = before
    assert len(list(kernel.tasks)) == len(scan_dump(DUMP).reports)
    assert kernel.tasks.problems == []


def test_modules_that_come_are_known(living: Living) -> None:
    """A module that is loaded during the scan is found, though the lists were read before."""
    head = scan_dump(DUMP).kernel.symbols.required("modules")
    first = living.word(head)
    second = living.word(first)
    living.set(head, second)  # the newest is not there yet
    kernel = living.kernel()
    scanner = Scanner(kernel)
    there = [r for r in scan_dump(DUMP).reports if any(f.code.module for f in r.frames)]
    stack = kernel.tasks.read(there[0].task).stack
    on_stack_read(living, stack, lambda time: living.set(head, first))
    found = list(scanner.reports(kernel.tasks.read(report.task) for report in there))
    assert [report.kernel for report in found] == [report.kernel for report in there]
    (note,) = scanner.warnings()
    assert note == "modules or generated code changed meanwhile (1 looks made again)"


def test_code_that_never_rests_is_a_problem(living: Living) -> None:
    """Where modules come and go faster than a task is walked, it is left out, and that is said."""
    head = scan_dump(DUMP).kernel.symbols.required("modules")
    first = living.word(head)
    second = living.word(first)
    kernel = living.kernel()
    scanner = Scanner(kernel)
    (task,) = kernel.tasks.find(str(task_of("pause").pid))
    on_stack_read(living, task.stack, lambda time: living.set(head, (first, second)[time % 2]))
    assert list(scanner.reports([task])) == []
    (problem,) = scanner.problems()
    assert problem.startswith("1 tasks are missing from this report: modules or generated code")


def test_what_ends_while_klp_looks_is_left_out_or_a_problem() -> None:
    """A task that ended is not waited for; what is said of a transition that is no more would
    mislead."""
    dump = next(dump for dump in TRANSITIONS if dump.name.endswith("x86_64-6.12-user.kdump"))
    living = Living(dump)
    kernel = living.kernel()
    args = argparse.Namespace(format="json", only=[], verbose=False)
    still = run_klp(kernel, args, [], io.StringIO())
    assert still.transition and still.tasks and still.problems == ()

    # One of those that it waits for ends when its stack was read.
    gone = still.tasks[0].report
    kernel = living.kernel()
    (task,) = kernel.tasks.find(str(gone.pid))
    on_stack_read(
        living, task.stack, lambda time: unlink(living, kernel, task.address) if time == 1 else None
    )
    found = run_klp(kernel, args, [], io.StringIO())
    assert [t.report.pid for t in found.tasks] == [t.report.pid for t in still.tasks[1:]]
    assert found.transition and found.transition.pending == still.transition.pending - 1
    assert found.problems == ()

    transition = kernel.symbols.required("klp_transition_patch")
    kernel = living.kernel()
    (task,) = kernel.tasks.find(str(still.tasks[1].report.pid))
    on_stack_read(living, task.stack, lambda time: living.set(transition, 0))
    found = run_klp(kernel, args, [], io.StringIO())
    assert any("the transition ended" in problem for problem in found.problems)


# In drgn's shell, and without root ----------------------------------------------------------


def test_in_the_shell_it_is_checked_too(living: Living, capsys: pytest.CaptureFixture[str]) -> None:
    """%reliable on a live program sees that nothing moves, and opens the kernel anew each time."""
    there = task_of("pause")
    stack = scan_dump(DUMP).kernel.tasks.read(there.task).stack
    count = living.place(there.task, "nvcsw")
    on_stack_read(living, stack, lambda time: living.add(count))
    report = run_command(living.prog, f"reliable {there.pid}")
    assert [reason.id for reason in report.tasks[0].reasons] == ["task-moved"]
    assert "2 task-moved (refused)" in capsys.readouterr().out
    living.before = lambda address, size: None
    report = run_command(living.prog, f"reliable {there.pid}")
    assert report.tasks[0].kernel == there.kernel


def test_a_living_program_has_no_file(living: Living) -> None:
    """What /proc/kcore says of registers is not taken for a dump's."""
    assert opened_dump(living.prog) is None


def test_a_kernel_that_hides_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps from reading the running kernel is told in one line."""
    none, empty, lockdown = (tmp_path / name for name in ("none", "empty", "lockdown"))
    empty.touch()
    lockdown.write_text("none integrity [confidentiality]\n")

    def why(path: Path, locked: Path = none) -> str:
        with pytest.raises(DumpError) as caught:
            check_kcore(str(path), str(locked))
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{path}: ")

    assert why(none).startswith("is not there: ")
    assert why(empty) == "not the kernel's memory: a container hides it"
    assert why(tmp_path) == "cannot be read (Is a directory)"

    def forbidden(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("builtins.open", forbidden)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "CAP_SYS_RAWIO" in why(empty)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why(empty) == "may not be read: only root may (Operation not permitted)"


def test_a_locked_down_kernel_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's lockdown is told apart from other ways of not being permitted."""
    lockdown = tmp_path / "lockdown"
    lockdown.write_text("none integrity [confidentiality]\n")
    kcore = tmp_path / "kcore"
    kcore.touch()
    real = open

    def forbidden(path: object, *args: object, **options: object) -> object:
        if path == str(kcore):
            raise PermissionError(1, "Operation not permitted")
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(DumpError, match=r"locked down \(kernel_lockdown, confidentiality\)"):
        check_kcore(str(kcore), str(lockdown))


USAGE = {
    "nothing": (["scan"], "nothing to look at: name a DUMP, or give --live or --qemu"),
    "both": (["scan", "vmcore", "--live"], "--live and DUMP exclude each other"),
    "two": (["klp", "--qemu", "s", "--live"], "--live and --qemu exclude each other"),
    "a dump is no task": (["explain", "--live", "vmcore", "1"], "task 'vmcore' is neither"),
    "VMCOREINFO": (["info", "--live", "--vmcoreinfo", "f"], "--vmcoreinfo is for dumps"),
    "capsule": (["capsule", "-o", "f"], "nothing to look at: name a DUMP, or give --qemu"),
}


@pytest.mark.parametrize("name", USAGE)
def test_what_to_look_at_is_said_once(
    monkeypatch: pytest.MonkeyPatch, living: Living, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A DUMP, --live and --qemu exclude each other, and none is taken where none is named."""
    monkeypatch.setattr("drgn_reliable.target.open_kcore", lambda symbols: living.prog)
    words, said = USAGE[name]
    assert drgn_reliable.cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_nothing_living_is_looked_at_unasked() -> None:
    """Naming /proc/kcore as a dump does not scan the running kernel."""
    done = subprocess.run(
        [sys.executable, "-m", "drgn_reliable", "scan", "/proc/kcore"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1


def test_the_command_line_scans_what_lives(
    monkeypatch: pytest.MonkeyPatch, living: Living, capsys: pytest.CaptureFixture[str]
) -> None:
    """scan --live says of every task what a scan of the dump does; explain --live takes tasks
    where else a DUMP is named."""
    monkeypatch.setattr("drgn_reliable.target.open_kcore", lambda symbols: living.prog)
    assert drgn_reliable.cli.main(["scan", "--live", "--format", "csv"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(scan_dump(DUMP).reports)
    first, second = str(task_of("pause").pid), str(task_of("poll").pid)
    words = ["explain", "--live", first, "--words", "none", second]
    assert drgn_reliable.cli.main(words) == 0
    assert capsys.readouterr().out.count("kernel: reliable") == 2
    assert drgn_reliable.cli.main(["info", "--live"]) == 0
    assert re.search(r"^types +BTF in memory$", capsys.readouterr().out, re.MULTILINE)
