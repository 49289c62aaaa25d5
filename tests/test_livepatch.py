# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a livepatch does not finish: the kernel's decision by hand, what is told of it, and the
dumps of real transitions."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import drgn
import jsonschema
import pytest
from drgn.commands import CommandArgumentError, run_command

import drgn_reliable.plugin  # noqa: F401  (registers the commands, as drgn's shell does)
from contrib.vmlab import livepatch as rows_of
from contrib.vmlab.__main__ import main
from contrib.vmlab.klp import livepatch_differences
from drgn_reliable.advice import ADVICE, advice_for, ways_out
from drgn_reliable.commands import klp_exit_code
from drgn_reliable.kernel import Kernel
from drgn_reliable.kernellog import LogLine, forced, last_attempt, started, told
from drgn_reliable.livepatch import analyse, checked_functions
from drgn_reliable.model import KernelVerdict, ProofVerdict, TaskKind
from drgn_reliable.patches import Patch, PatchedObject
from drgn_reliable.patchstate import PatchStates, offline_cpus
from drgn_reliable.render.livepatch import livepatch_dict, write_livepatch
from drgn_reliable.tasks import Task
from drgn_reliable.transition import Decision, LivepatchReport, PendingTask, grouped
from drgn_reliable.waiting import Leaves, leaves, wait_of
from tests.conftest import Scanned, scan_dump
from tests.dumps import DUMPS, TRANSITIONS, VMCORES, Dump
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes
from tests.patching import (
    NEW,
    NEWER,
    OLD,
    SIZE,
    analysed,
    function,
    patch,
    pending,
    report,
    transition,
    wait,
)
from tests.prompt import prompt, read_until

SCHEMA = json.loads(
    resources.files("drgn_reliable").joinpath("schema/drgn-reliable-livepatch-1.json").read_text()
)
PATCHED, UNPATCHED = 1, 0
FIRST, SECOND = 0x100, 0x200
"""Addresses of two ``struct klp_func``."""


def shown(report: LivepatchReport, *, verbose: bool = False) -> str:
    out = io.StringIO()
    write_livepatch(report, out, verbose=verbose)
    return out.getvalue()


# What may not be on a stack ---------------------------------------------------------------------

ONE = patch("one", function(FIRST))
TWO = patch("two", function(SECOND, new_func=NEWER, new_size=0x30))
NOP = patch("nop", function(FIRST, new_func=OLD, new_size=SIZE, nop=True))


@pytest.mark.parametrize(
    ("patches", "stack", "target", "expected"),
    [
        pytest.param([ONE], (FIRST,), PATCHED, (OLD, SIZE, "original"), id="patch the original"),
        pytest.param([ONE], (FIRST,), UNPATCHED, (NEW, 0x20, "one"), id="unpatch"),
        pytest.param(
            [ONE, TWO], (SECOND, FIRST), PATCHED, (NEW, 0x20, "one"), id="patch an earlier patch's"
        ),
        pytest.param(
            [ONE, TWO], (SECOND, FIRST), UNPATCHED, (NEWER, 0x30, "two"), id="unpatch the newer"
        ),
        pytest.param(
            [NOP, TWO], (SECOND, FIRST), PATCHED, (OLD, SIZE, "original"), id="patch over a nop"
        ),
        pytest.param(
            [ONE, patch("nop", function(SECOND, new_func=OLD, new_size=SIZE, nop=True))],
            (SECOND, FIRST),
            PATCHED,
            (NEW, 0x20, "one"),
            id="a nop replaces a patch's",
        ),
        pytest.param([NOP], (FIRST,), UNPATCHED, (OLD, SIZE, "original"), id="unpatch a nop"),
        pytest.param(
            [TWO], (SECOND, 0x999), PATCHED, (OLD, SIZE, "original"), id="the version is unknown"
        ),
        pytest.param([ONE], (), PATCHED, (OLD, SIZE, "original"), id="not on its stack"),
    ],
)
def test_the_version_that_is_in_the_way(
    patches: list[Patch],
    stack: tuple[int, ...],
    target: int,
    expected: tuple[int, int, str],
) -> None:
    """The function before this patch's to patch, and this patch's own to unpatch."""
    stacks = {OLD: stack} if stack else {}
    (found,) = checked_functions(patches[-1], patches, stacks, target)
    assert (found.start, found.size, found.version) == expected
    assert (found.name, found.module) == ("old", None)


def test_what_is_in_a_module_that_is_not_loaded_is_in_nobodys_way() -> None:
    absent = PatchedObject(0x70, "late", 0, False, (function(FIRST, old_func=0),))
    here = PatchedObject(0x71, "there", 0x9000, True, (function(SECOND, "other"),))
    both = patch("fix", objects=(absent, here))
    (found,) = checked_functions(both, [both], {OLD: (SECOND,)}, PATCHED)
    assert (found.name, found.module) == ("other", "there")


# The decision -----------------------------------------------------------------------------------

TWICE = patch("fix", function(FIRST), function(SECOND, "outer", old_func=0x2000))
STACKS = {OLD: (FIRST,), 0x2000: (SECOND,)}


@pytest.mark.parametrize(
    ("pcs", "decision", "functions"),
    [
        pytest.param((0x5000, OLD + 4), "sleeping", ("old",), id="on its stack"),
        pytest.param((0x5000, 0x6000), "would-switch", (), id="not on its stack"),
        pytest.param((OLD,), "sleeping", ("old",), id="at its first byte"),
        pytest.param((OLD + SIZE - 1,), "sleeping", ("old",), id="at its last byte"),
        pytest.param((OLD + SIZE,), "would-switch", (), id="a call at its end is missed"),
        pytest.param((0x2004, OLD + 4), "sleeping", ("old", "outer"), id="the kernel's order"),
        pytest.param((OLD + 4, OLD + 8), "sleeping", ("old",), id="twice on its stack"),
        pytest.param((), "would-switch", (), id="empty stack"),
    ],
)
def test_a_reliable_stack_decides(
    monkeypatch: pytest.MonkeyPatch, pcs: tuple[int, ...], decision: str, functions: tuple[str, ...]
) -> None:
    found = analysed(monkeypatch, [(report(*pcs), 0)], [TWICE], STACKS)
    (task,) = found.tasks
    assert (task.decision.value, task.functions) == (decision, functions)
    assert found.stalled == (decision == "sleeping")
    for blocker in task.blockers:
        assert blocker.frame is not None and task.report.frames[blocker.frame].pc in pcs


@pytest.mark.parametrize(
    ("verdict", "decision"),
    [(KernelVerdict.UNRELIABLE, "unreliable"), (KernelVerdict.RUNNING, "running")],
)
def test_who_cannot_be_checked_is_told_what_was_found(
    monkeypatch: pytest.MonkeyPatch, verdict: KernelVerdict, decision: str
) -> None:
    tasks = [(report(OLD + 4, verdict=verdict), 0), (report(0x5000, pid=2, verdict=verdict), 0)]
    first, second = analysed(monkeypatch, tasks, [ONE], {OLD: (FIRST,)}).tasks
    assert (first.decision.value, first.functions) == (decision, ("old",))
    assert (second.decision.value, second.functions) == (decision, ())
    assert not first.proof_clears
    assert second.proof_clears is (decision == "unreliable")


def test_what_is_not_proven_clears_nobody() -> None:
    task = report(0x5000, verdict=KernelVerdict.UNRELIABLE, proof=ProofVerdict.UNDECIDED)
    assert not pending(Decision.UNRELIABLE, task, functions=()).proof_clears


def test_frames_that_only_the_kernels_own_trace_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """loongarch64's has inner frames twice; what is shown has them once."""
    twice = report(0x5000, OLD + 4, entries=(0x5000, OLD + 4, 0x5000, OLD + 4))
    alien = report(0x5000, pid=2, entries=(0x5000, OLD + 8))
    found = analysed(monkeypatch, [(twice, 0), (alien, 0)], [ONE], {OLD: (FIRST,)})
    assert [[b.frame for b in task.blockers] for task in found.tasks] == [[1], [None]]
    assert "0x1008 in the kernel's trace is in old, the original" in shown(found)


def test_who_has_switched_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever of them would be in the way of reversing: in the new function, or unknown."""
    tasks = [
        (report(0x5000, pid=1), 1),
        (report(NEW + 4, pid=2), 1),
        (report(0x5000, pid=3, verdict=KernelVerdict.UNRELIABLE), 1),
        (report(0x5000, pid=4, verdict=KernelVerdict.RUNNING), 1),
        (report(OLD, pid=5), 0),
    ]
    found = analysed(monkeypatch, tasks, [ONE], {OLD: (FIRST,)})
    assert found.transition is not None
    assert (found.transition.pending, found.transition.switched) == (1, 4)
    assert (found.transition.patch, found.transition.target) == ("one", "patched")
    assert found.transition.back == 2


def test_the_idle_task_of_a_cpu_that_is_offline_switches_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = [
        (report(OLD, pid=0, cpu=cpu, comm=f"swapper/{cpu}", kind=TaskKind.IDLE), 0)
        for cpu in (0, 1)
    ]
    found = analysed(monkeypatch, idle, [ONE], {OLD: (FIRST,)}, offline=[1])
    assert [task.decision.value for task in found.tasks] == ["sleeping", "would-switch"]


def test_some_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted, those that are named are looked at, and the log of the others left out."""
    tasks = [(report(OLD, pid=1), 0), (report(OLD, pid=2), 0), (report(0x5000, pid=3), 1)]
    log = [LogLine(1.0, f"sleeper:{pid} is sleeping on function old") for pid in (1, 2)]
    found = analysed(monkeypatch, tasks, [ONE], {OLD: (FIRST,)}, only=[tasks[0][0].task], log=log)
    assert [task.report.pid for task in found.tasks] == [1]
    assert found.transition is not None
    assert (found.transition.pending, found.transition.switched) == (2, 1)
    assert found.transition.back is None
    assert (found.compared, found.differences) == (1, ())
    assert "would be in the way" not in shown(found)


@pytest.mark.parametrize(
    ("current", "target", "whole", "problem"),
    [
        pytest.param(0, -1, True, "", id="none"),
        pytest.param(0x7003, -1, True, "", id="about to begin or just ended"),
        pytest.param(0x7003, None, True, "klp_target_state is not in this dump", id="no target"),
        pytest.param(0xBAD, 1, True, "klp_transition_patch is 0xbad, which is no", id="freed"),
        pytest.param(0, -1, False, "the list of livepatches is not in this dump", id="no list"),
    ],
)
def test_whether_there_is_a_transition(
    monkeypatch: pytest.MonkeyPatch, current: int, target: int | None, whole: bool, problem: str
) -> None:
    found = analysed(monkeypatch, [], [ONE], {}, current=current, target=target, whole=whole)
    assert found.transition is None
    assert [text.startswith(problem) for text in found.problems] == [True] * bool(problem)
    assert klp_exit_code(found) == (3 if problem else 0)
    cannot = "Whether a transition is in progress cannot be told."
    assert shown(found).startswith(cannot if problem else "No transition is in progress.")


def test_stacks_that_the_dump_lacks_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel had them: nothing is said of what it made of them."""
    unreliable = KernelVerdict.UNRELIABLE
    tasks = [
        (report(pid=1, verdict=unreliable, error=-errno.EFAULT), 0),
        (report(pid=2, verdict=unreliable, error=-errno.EFAULT), 1),
        (report(OLD, pid=3), 0),
    ]
    said = [LogLine(1.0, f"sleeper:{pid} is sleeping on function old") for pid in (1, 3)]
    found = analysed(monkeypatch, tasks, [ONE], {OLD: (FIRST,)}, log=said)
    assert found.problems == ("stacks of 2 tasks are not in this dump",)
    assert found.transition is not None and found.transition.back is None
    assert (found.compared, found.differences) == (1, ())
    assert klp_exit_code(found) == 3


# The kernel's log -------------------------------------------------------------------------------


def log(*lines: tuple[float, str]) -> list[LogLine]:
    return [LogLine(time, text) for time, text in lines]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("klp_try_switch_task: cat:42 is running", ("cat", 42, "running", None)),
        ("cat:42 has an unreliable stack", ("cat", 42, "unreliable", None)),
        ("a:b is running:7 is sleeping on function f", ("a:b is running", 7, "sleeping", "f")),
        ("line\nbreak:8 is running", ("line\nbreak", 8, "running", None)),
        ("swapper/0:0 is running", ("swapper/0", 0, "running", None)),
        (":9 is running", ("", 9, "running", None)),
        ("cat:42 is sleeping on function ", None),
        ("'fix': starting patching transition", None),
        ("signaling remaining tasks", None),
    ],
)
def test_what_a_line_says_of_a_task(
    text: str, expected: tuple[str, int, str, str | None] | None
) -> None:
    found = told(text)
    assert (found and (found.comm, found.pid, found.decision, found.function)) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([], None, id="empty"),
        pytest.param([(1, "a:1 is running"), (1.01, "b:2 is running")], ["a", "b"], id="one"),
        pytest.param([(1, "a:1 is running"), (2, "b:2 is running")], ["b"], id="a second later"),
        pytest.param(
            [(1, "a:1 is running"), (1.1, "a:1 is running")], ["a"], id="the same task again"
        ),
        pytest.param(
            [(1, "a:1 is running"), (1.01, "signaling remaining tasks")], ["a"], id="signals"
        ),
        pytest.param(
            [(1, "a:1 is running"), (1.1, "'p': reversing transition from patching to unpatching")],
            None,
            id="reversed since",
        ),
        pytest.param(
            [(1, "a:1 is running"), (1.1, "forcing remaining tasks to the patched state")],
            None,
            id="forced since",
        ),
        pytest.param(
            [(1, "a:1 is running"), (1.1, "'p': patching complete")], None, id="ended since"
        ),
        pytest.param(
            [(1, "a:1 is running"), (1.1, "'p': starting patching transition")],
            None,
            id="of another transition",
        ),
    ],
)
def test_the_last_attempt(lines: list[tuple[float, str]], expected: list[str] | None) -> None:
    found = last_attempt(log(*lines))
    assert (found and [said.comm for said in found[1]]) == expected


def test_what_a_task_says_of_itself_is_no_attempt() -> None:
    """The scheduler has a running task try it at any time."""
    lines = [
        LogLine(1.0, "a:1 is running", caller=9),
        LogLine(1.1, "b:2 is running", caller=9),
        LogLine(1.7, "b:2 is sleeping on function f", caller=2),
    ]
    found = last_attempt(lines)
    assert found is not None and [said.pid for said in found[1]] == [1, 2]


def test_since_when() -> None:
    lines = log(
        (1, "'fix:1': starting patching transition"),
        (2, "'other': starting patching transition"),
        (5, "'fix:1': reversing transition from patching to unpatching"),
    )
    assert started(lines, "fix:1") == 5
    assert started(lines[:2], "fix:1") == 1
    assert started(lines[1:2], "fix:1") is None, "the log has wrapped"
    assert started([], "fix:1") is None


def test_whether_it_was_forced() -> None:
    begun, force = (
        "'p': starting patching transition",
        "forcing remaining tasks to the patched state",
    )
    done = "'p': patching complete"
    assert not forced(log((1, begun), (2, done)))
    assert forced(log((1, begun), (2, force), (3, done)))
    assert not forced(log((1, begun), (2, force), (3, done), (4, begun)))


def test_differences_from_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        (report(OLD, pid=1, comm="same"), 0),
        (report(OLD, pid=2, comm="other"), 0),
        (report(0x5000, pid=3, comm="switches"), 0),
        (report(OLD, pid=4, comm="untold"), 0),
        (report(OLD, pid=0, comm="swapper/1", kind=TaskKind.IDLE), 0),
    ]
    said = log(
        (1, "'one': starting patching transition"),
        (7, "same:1 is sleeping on function old"),
        (7, "other:2 is running"),
        (7, "swapper/0:0 is running"),
        (7, "swapper/1:0 is sleeping on function old"),
    )
    found = analysed(monkeypatch, tasks, [ONE], {OLD: (FIRST,)}, log=said)
    assert found.compared == 4
    assert {(d.comm, d.here, d.kernel) for d in found.differences} == {
        ("other", "sleeping on old", "running"),
        ("untold", "sleeping on old", "nothing"),
        ("swapper/0", "switched or gone", "running"),
    }
    assert found.transition is not None and found.transition.seconds == 99.0
    assert "The kernel's log differs: other (2): running at its last attempt" in shown(found)


# What it waits for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "running", "expected"),
    [
        (0, False, Leaves.RUNS),
        (1, True, Leaves.RUNS),
        (1, False, Leaves.SIGNAL),
        (0x2001, False, Leaves.SIGNAL),
        (2, False, Leaves.EVENT),
        (0x402, False, Leaves.EVENT),
        (0x102, False, Leaves.FATAL),
        (0x104, False, Leaves.CONTINUED),
        (0x108, False, Leaves.CONTINUED),
        (0x8000, False, Leaves.CONTINUED),
    ],
)
def test_what_makes_it_go_on(state: int, running: bool, expected: Leaves) -> None:
    assert leaves(state, running=running) is expected


@pytest.mark.parametrize(
    ("names", "channel", "event"),
    [
        (["__schedule", "schedule", "anon_pipe_read", "vfs_read"], "anon_pipe_read",
         "data in a pipe"),
        (["__schedule", "schedule", "futex_wait_queue", "__futex_wait"], "futex_wait_queue",
         "a futex"),
        (["__schedule", "schedule_preempt_disabled", "__mutex_lock.constprop.0", "pipe_read"],
         "__mutex_lock", "a mutex"),
        (["__schedule", "io_schedule", "folio_wait_bit_common"], "folio_wait_bit_common",
         "input or output"),
        (["__schedule", "do_task_dead", "do_exit"], "do_task_dead", "its parent, to reap it"),
        (["__schedule", "schedule", "of_some_driver"], "of_some_driver", ""),
        ([], "", ""),
    ],
)  # fmt: skip
def test_what_it_waits_for(names: list[str], channel: str, event: str) -> None:
    """By the innermost function that is known."""
    task = SimpleNamespace(run_state=2)
    found = wait_of(
        cast(Kernel, None), cast(Task, task), report(names=names, kind=TaskKind.KTHREAD)
    )
    assert (found.channel, found.event, found.leaves) == (channel, event, Leaves.EVENT)
    task.run_state = 0
    kind = TaskKind.USER
    preempted = wait_of(cast(Kernel, None), cast(Task, task), report(names=names, kind=kind))
    assert (preempted.event, preempted.leaves) == ("", Leaves.RUNS)


def test_what_a_kernel_thread_was_started_with() -> None:
    task = cast(Task, SimpleNamespace(run_state=1))
    names = ["__schedule", "schedule", "kswapd_try_to_sleep", "kswapd", "kthread", "ret_from_fork"]
    thread = wait_of(cast(Kernel, None), task, report(names=names, kind=TaskKind.KTHREAD))
    assert thread.loop == "kswapd"


# Flags and clocks -------------------------------------------------------------------------------


class Flags:
    """A kernel whose tasks have flags and a state; ``thread_info`` is where it says."""

    def __init__(self, *, in_task: bool = True, architecture: str = "x86_64") -> None:
        self.memory = FakeMemory()
        types = FakeTypes(self.memory.prog)
        types.struct("thread_info", flags="unsigned long")
        inside = {"thread_info": "struct thread_info"} if in_task else {}
        types.struct("task_struct", **inside, patch_state="int")
        self.in_task = in_task
        self.kernel = cast(
            Kernel, SimpleNamespace(prog=self.memory.prog, architecture=architecture)
        )

    def task(self, number: int, flags: int, state: int) -> Task:
        address, stack = 0x10000 + 0x1000 * number, 0x90000 + 0x1000 * number
        inside = {"thread_info": {"flags": flags}} if self.in_task else {}
        self.memory.put_struct(address, "struct task_struct", **inside, patch_state=state)
        if not self.in_task:
            self.memory.put_words(stack, flags)
        return cast(Task, SimpleNamespace(address=address, stack=stack))

    def flagged(self, *tasks: tuple[int, int]) -> list[bool | None]:
        """Of tasks with flags and a state, those that have not switched to 1."""
        states = PatchStates(self.kernel)
        found = [self.task(i, *task) for i, task in enumerate(tasks)]
        waiting = [task.address for task in found if states.of(task) == 0]
        told = [
            replace(pending(SLEEPING), report=replace(report(), task=at), flagged=None)
            for at in waiting
        ]
        assert states.problems() == ()
        return [task.flagged for task in states.flagged(told, waiting)]


@pytest.mark.parametrize("in_task", [True, False], ids=["in the task", "below the stack"])
@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        pytest.param([(1 << 13, 0), (0, 1)], [True], id="before 7.0"),
        pytest.param([(1 << 9, 0), (0, 1)], [True], id="since 7.0"),
        pytest.param([(1 << 13, 0), (1 << 13, 1)], [None], id="who has switched has it, too"),
        pytest.param([(1 << 13 | 1 << 9, 0), (0, 1)], [None], id="either"),
        pytest.param([(1 << 13 | 1 << 9, 0), (1 << 9, 1)], [True], id="the other is another's"),
        pytest.param([(1 << 13, 0), (0, 0)], [None, None], id="not all have it"),
    ],
)
def test_which_flag_fits(
    tasks: list[tuple[int, int]], expected: list[bool | None], in_task: bool
) -> None:
    assert Flags(in_task=in_task).flagged(*tasks) == expected


def test_an_architecture_whose_flag_is_not_known() -> None:
    assert Flags(architecture="parisc").flagged((1 << 13, 0), (0, 1)) == [None]


def test_states_that_the_dump_lacks_are_a_problem() -> None:
    flags = Flags()
    states = PatchStates(flags.kernel)
    there, lost = flags.task(0, 0, -1), cast(Task, SimpleNamespace(address=0x50000, stack=0))
    assert (states.of(there), states.of(lost)) == (-1, None)
    assert states.problems() == ("patch_state of 1 tasks is not in this dump",)


def test_types_without_the_state_are_a_problem() -> None:
    memory = FakeMemory()
    FakeTypes(memory.prog).struct("task_struct", pid="int")
    states = PatchStates(cast(Kernel, SimpleNamespace(prog=memory.prog, architecture="x86_64")))
    assert states.of(cast(Task, SimpleNamespace(address=0x1000, stack=0))) is None
    assert states.of(cast(Task, SimpleNamespace(address=0x1000, stack=0))) is None
    (problem,) = states.problems()
    assert "patch_state" in problem


@pytest.mark.parametrize(
    ("possible", "online", "expected"), [(0b111, 0b101, {1}), (1, 1, set()), (1, None, set())]
)
def test_which_cpus_are_offline(possible: int, online: int | None, expected: set[int]) -> None:
    memory = FakeMemory()
    FakeTypes(memory.prog).struct("cpumask", bits="unsigned long [1]")
    memory.put_words(0x1000, possible)
    if online is not None:
        memory.put_words(0x2000, online)
    symbols = FakeSymbols({"__cpu_possible_mask": 0x1000, "__cpu_online_mask": 0x2000})
    kernel = SimpleNamespace(prog=memory.prog, symbols=symbols)
    assert offline_cpus(cast(Kernel, kernel)) == expected


# What to do -------------------------------------------------------------------------------------

IDLE = report(OLD, pid=0, cpu=2, comm="swapper/2", kind=TaskKind.IDLE)
THREAD = report(OLD, kind=TaskKind.KTHREAD)
SLEEPING = Decision.SLEEPING

CASES = [
    ("next-attempt", pending(Decision.WOULD_SWITCH), {}),
    ("user-mode", pending(Decision.RUNNING, report(), functions=()), {}),
    ("idle", pending(SLEEPING, IDLE, wait(Leaves.RUNS)), {}),
    ("thread-loop", pending(SLEEPING, THREAD, wait(loop="old")), {}),
    ("spins", pending(Decision.RUNNING, waits=wait(Leaves.RUNS)), {}),
    ("preempted", pending(Decision.UNRELIABLE, waits=wait(Leaves.RUNS)), {}),
    ("unreliable", pending(Decision.UNRELIABLE), {}),
    ("continue", pending(SLEEPING, waits=wait(Leaves.CONTINUED)), {}),
    ("kthread-woken", pending(SLEEPING, THREAD), {}),
    ("kthread-event", pending(SLEEPING, THREAD, wait(Leaves.EVENT)), {}),
    ("signal", pending(SLEEPING), {}),
    ("signalled", pending(SLEEPING, waits=wait(event="data in a pipe")), {"attempts": 17}),
    ("fatal", pending(SLEEPING, waits=wait(Leaves.FATAL)), {}),
    ("event", pending(SLEEPING, waits=wait(Leaves.EVENT)), {}),
    ("runnable", pending(SLEEPING, waits=wait(Leaves.RUNS)), {}),
]


@pytest.mark.parametrize(("row", "task", "members"), CASES, ids=[case[0] for case in CASES])
def test_each_row_of_the_table(row: str, task: PendingTask, members: dict[str, int]) -> None:
    """A sentence that is whole."""
    found, text = advice_for(task, transition(**members))
    assert found == row
    assert "{" not in text and text.endswith(".")


def test_every_row_has_an_example_and_is_documented() -> None:
    assert [case[0] for case in CASES] == [row.id for row in ADVICE]
    documented = (VMCORES.parent / "docs" / "livepatch.md").read_text()
    assert [row.id for row in ADVICE if f"| {row.text} |" not in documented] == []


def test_advice_names_what_is_waited_for() -> None:
    task = pending(SLEEPING, waits=wait(Leaves.EVENT, event="a mutex"), functions=("f", "g"))
    assert advice_for(task, transition())[1] == (
        "It sleeps uninterruptibly, no signal reaches it: what it waits for (a mutex) has to come "
        "before it leaves f, g."
    )


def test_advice_on_an_unreliable_stack() -> None:
    """The remedy of the reason that the kernel refused it for, and what the dump shows."""
    task = report(0x5000, verdict=KernelVerdict.UNRELIABLE, reasons=("too-deep",))
    clear = pending(Decision.UNRELIABLE, task, wait(Leaves.EVENT), functions=())
    found = pending(Decision.UNRELIABLE, task)
    assert "none of the patch's functions is on its stack" in advice_for(clear, transition())[1]
    text = advice_for(found, transition())[1]
    assert "it is in old" in text and "a signal take it out of the kernel" in text


@pytest.mark.parametrize(
    ("attempts", "signals"), [(None, None), (0, 0), (15, 0), (16, 1), (30, 1), (31, 2)]
)
def test_how_often_the_kernel_woke_them(attempts: int | None, signals: int | None) -> None:
    """``klp_signals_cnt`` is looked at before it is counted up."""
    assert transition(attempts=attempts).signals == signals


@pytest.mark.parametrize(
    ("members", "reverse", "force"),
    [
        ({}, "echo 0 > /sys/kernel/livepatch/fix/enabled", "prepared."),
        ({"replaces": True}, "none would be in", "that it replaces can never be unloaded"),
        ({"target": "unpatched"}, "echo 1 >", "fix can never be unloaded afterwards."),
        ({"back": 2}, "of the tasks that have switched, 2 would be in", "the task above"),
        ({"back": None}, "enabled.", "old version"),
        ({"pending": 3}, "none would", "the 3 tasks above"),
    ],
)
def test_ways_out(members: dict[str, object], reverse: str, force: str) -> None:
    first, second = ways_out(transition(**members))
    assert reverse in first and force in second


# What is printed --------------------------------------------------------------------------------


def test_same_name_and_stack_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [(report(OLD, pid=pid, comm="mysqld"), 0) for pid in range(1, 13)]
    tasks.append((report(OLD, 0x5000, pid=20, comm="mysqld"), 0))
    tasks.append((report(OLD, pid=21, comm="other"), 0))
    found = analysed(monkeypatch, tasks, [ONE], {OLD: (FIRST,)})
    assert [len(group) for group in grouped(found.tasks)] == [12, 1, 1]
    text = shown(found)
    assert "12 times mysqld (1, 2, 3, 4, 5, 6, 7, 8 and 4 more): sleeping in old" in text
    assert "one: patching for" not in text, "the log does not say since when"
    assert "0 tasks have switched, 14 have not: 14 asleep in a function of the patch" in text


def test_what_is_not_there_of_a_patch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = (
        PatchedObject(0x70, "late", 0, False, ()),
        PatchedObject(0x71, "there", 0x9000, False, ()),
        PatchedObject(0x72, None, 0, True, (function(FIRST),)),
    )
    found = analysed(monkeypatch, [], [patch("fix", objects=objects)], {OLD: (FIRST,)})
    text = shown(found, verbose=True)
    assert "late (not loaded), there (not patched), vmlinux\n" in text
    assert "0x1000+64" in text and "1 of 1" in text
    assert "All tasks have switched: the kernel ends it at its next attempt." in text


def test_a_forced_transition_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = log((1, "'one': starting patching transition"),
               (2, "forcing remaining tasks to the patched state"))  # fmt: skip
    during = analysed(monkeypatch, [], [ONE], {}, log=said)
    assert "It was forced, by the log.\n" in shown(during)
    after = analysed(monkeypatch, [], [ONE], {}, log=said, current=0, target=-1)
    assert "The last one was forced, by the log" in shown(after)


def test_without_livepatches_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    none = analysed(monkeypatch, [], [], {}, current=0, target=-1)
    assert shown(none) == "No livepatch is loaded.\n"
    without = replace(none, built_in=False)
    assert shown(without) == "6.12 was built without livepatching.\n"
    assert klp_exit_code(none) == klp_exit_code(without) == 0


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = {OLD: (FIRST,)}
    stalled = analysed(monkeypatch, [(report(OLD), 0)], [ONE], stacks)
    moving = analysed(monkeypatch, [(report(0x5000), 0)], [ONE], stacks)
    assert klp_exit_code(stalled) == 1 and klp_exit_code(moving) == 0
    assert klp_exit_code(replace(stalled, problems=("lost",))) == 3


def test_json_of_what_has_no_dump_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Null where nothing is known, and frames that only the kernel has."""
    task = report(0x5000, entries=(OLD,), reasons=("too-deep",))
    found = analysed(monkeypatch, [(task, 0)], [ONE], {OLD: (FIRST,)}, only=[task.task])
    document = livepatch_dict(found)
    jsonschema.validate(document, SCHEMA)
    (shown_task,) = document["tasks"]
    assert shown_task["blockers"][0]["frame"] is None
    assert shown_task["decision"] == "sleeping" and shown_task["functions"] == ["old"]
    assert document["transition"]["pending"] == 1
    assert document["transition"]["blocks_reversal"] is None


# Against the rows of a kernel -------------------------------------------------------------------

ROWS = """\
L one 1 3
P 7003 one 1 0 0
O one vmlinux 1 1
F one vmlinux old 1000 64 a000 32 0 1 1 0
S 8100 0 1
S 8200 1 0
K [    1.000000] livepatch: 'one': starting patching transition
K [    2.000000] livepatch: klp_try_switch_task: sleeper:1 is sleeping on function old
END
"""


@pytest.mark.parametrize(
    ("row", "other", "differs"),
    [
        ("", "", ""),
        ("L one 1 3", "L one 1 4", "3 attempts, recorded 4"),
        ("L one 1 3", "L one 0 3", "transition ('one', 1), recorded ('one', 0)"),
        ("one 1 0 0", "one 0 0 0", "livepatch Patch("),
        ("0 1 1 0", "0 1 1 1", "livepatch Patch("),
        ("P 7003 one 1 0 0", "P 7003 one 1 0 0\nP 9000 two 1 0 0", "1 livepatches, recorded 2"),
        ("S 8100 0 1", "S 8100 0 0", "not switched: 0x8100 0 True, recorded 0x8100 0 False"),
        ("S 8200 1 0", "S 8200 0 1", "not switched: "),
        ("is sleeping on function old", "is running", "1 sleeper: ('sleeping', 'old'), the kernel"),
        ("on function old", "on function new", "1 sleeper: ('sleeping', 'old'), the kernel"),
        ("sleeper:1 is", "other:7 is", "1 sleeper: sleeping, and the kernel said nothing of it"),
    ],
)
def test_a_difference_from_the_rows_is_told(
    monkeypatch: pytest.MonkeyPatch, row: str, other: str, differs: str
) -> None:
    said = log((1, "'one': starting patching transition"),
               (2, "sleeper:1 is sleeping on function old"))  # fmt: skip
    tasks = [(report(OLD), 0), (report(0x5000, pid=2), 1)]
    found = analysed(monkeypatch, tasks, [ONE], {OLD: (FIRST,)}, log=said)
    wrong = livepatch_differences(found, ROWS.replace(row, other) if row else ROWS)
    assert bool(wrong) == bool(differs)
    assert not differs or wrong[0].startswith(differs)
    assert livepatch_differences(found, "END\n") == []


# Real dumps -------------------------------------------------------------------------------------

UNPATCHED_DUMP = next(dump for dump in DUMPS if dump.name == "x86_64-6.12.kdump")
WITHOUT = next(dump for dump in DUMPS if dump.name == "s390x-6.12.kdump")


@pytest.fixture(params=TRANSITIONS, ids=lambda dump: dump.name)
def patching(request: pytest.FixtureRequest) -> Scanned:
    """Each dump whose kernel told of its livepatches."""
    return scan_dump(request.param)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drgn_reliable", "klp", *args],
        capture_output=True,
        text=True,
        cwd=VMCORES.parent,
        timeout=120,
    )


def test_everything_is_as_the_kernel_had_and_said_it(patching: Scanned) -> None:
    """Patches, transition, each task's state, and for each that is left what the kernel said."""
    assert livepatch_differences(analyse(patching.kernel), patching.dump.rows) == []


def test_the_json_of_every_transition_is_what_the_schema_says(patching: Scanned) -> None:
    found = analyse(patching.kernel)
    document = livepatch_dict(found)
    jsonschema.validate(document, SCHEMA)
    assert len(document["tasks"]) == (found.transition.pending if found.transition else 0)


def test_a_difference_from_the_kernel_is_seen(patching: Scanned) -> None:
    found, rows = analyse(patching.kernel), patching.dump.rows
    wrong = [replace(found, patches=found.patches[:-1]), replace(found, problems=("lost",))]
    if found.transition:
        wrong.append(replace(found, transition=None))
        wrong.append(replace(found, transition=replace(found.transition, switched=0)))
    if found.tasks:
        wrong.append(replace(found, tasks=found.tasks[:-1]))
        other = replace(found.tasks[-1], decision=Decision.WOULD_SWITCH)
        wrong.append(replace(found, tasks=(*found.tasks[:-1], other)))
        unflagged = replace(found.tasks[-1], flagged=None)
        wrong.append(replace(found, tasks=(*found.tasks[:-1], unflagged)))
    assert [report for report in wrong if not livepatch_differences(report, rows)] == []


def test_every_transition_on_the_command_line(patching: Scanned) -> None:
    known = rows_of.parse(patching.dump.rows)
    assert known is not None
    done = run(str(patching.dump.path))
    assert done.stderr == ""
    assert done.returncode == int(bool(known.remaining))
    for one in known.decisions:
        assert one.comm in done.stdout
        assert one.function is None or one.function in done.stdout


@pytest.mark.parametrize(
    ("dump", "line"),
    [
        (WITHOUT, f"{WITHOUT.release} was built without livepatching."),
        (UNPATCHED_DUMP, "No livepatch is loaded."),
    ],
    ids=["not built in", "none loaded"],
)
def test_nothing_to_tell_is_one_line(dump: Dump, line: str) -> None:
    done = run(str(dump.path))
    assert (done.returncode, done.stdout, done.stderr) == (0, line + "\n", "")
    document = json.loads(run(str(dump.path), "--format", "json").stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["transition"] is None and document["tasks"] == []
    assert document["livepatch"] is (dump is UNPATCHED_DUMP)


def test_wrong_arguments() -> None:
    unknown = run(str(UNPATCHED_DUMP.path), "--task", "424242")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no task has the PID 424242" in unknown.stderr
    assert run(str(UNPATCHED_DUMP.path), "--only", "dead").returncode == 2


def test_some_decisions_only(patching: Scanned) -> None:
    found = analyse(patching.kernel)
    document = json.loads(
        run(str(patching.dump.path), "--only", "sleeping", "--format", "json").stdout
    )
    expected = [hex(t.report.task) for t in found.tasks if t.decision is SLEEPING]
    assert [task["task"] for task in document["tasks"]] == expected
    if found.transition:
        assert document["transition"]["pending"] == found.transition.pending


def test_conform_holds_the_analysis_to_the_rows(
    patching: Scanned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vmcore").symlink_to(patching.dump.path)
    rows = tmp_path / "oracle.txt"
    rows.write_text(patching.dump.rows, "utf-8", "surrogateescape")
    assert main(["conform", str(tmp_path / "vmcore")]) == 0
    other = re.sub(r"^P (\w+) \w+", r"P \1 another", patching.dump.rows, flags=re.MULTILINE)
    rows.write_text(other, "utf-8", "surrogateescape")
    assert main(["conform", str(tmp_path / "vmcore")]) == 1
    assert "livepatch Patch(" in capsys.readouterr().out


# In drgn's shell --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prog() -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(str(UNPATCHED_DUMP.path))
    return prog


def test_the_command_returns_its_report(
    prog: drgn.Program, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_command(prog, "klp")
    assert isinstance(found, LivepatchReport) and found.built_in and found.transition is None
    assert capsys.readouterr().out == "No livepatch is loaded.\n"
    assert run_command(prog, "klp -h") is None
    assert "usage: klp" in capsys.readouterr().out
    with pytest.raises(CommandArgumentError, match="no task has the PID 424242"):
        run_command(prog, "klp 424242")


def test_at_a_real_prompt(tmp_path: Path) -> None:
    with prompt(str(UNPATCHED_DUMP.path), tmp_path) as terminal:
        os.write(terminal, b"%klp\n")
        read_until(terminal, "No livepatch is loaded.")
        os.write(terminal, b"print('built in:', _.built_in)\n")
        read_until(terminal, "built in: True")
