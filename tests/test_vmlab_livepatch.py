# SPDX-License-Identifier: LGPL-2.1-or-later
"""What vmlab's rows have of livepatches: the kernel's state, and its log held against it."""

from __future__ import annotations

import pytest

from contrib.vmlab import livepatch, scenario, verdicts
from contrib.vmlab.livepatch import Decision, Function, Object, Patch, Said, TaskState
from contrib.vmlab.scenario import ScenarioError

TASKS = """\
T task ff01 1 1 93 0 1 1 ffffffff81000100, B  init
T task ff02 7 7 12 0 1 2 ffffffff81000100,ffffffffc0000020, B  u_lp sleep
T task ff03 8 8 12 0 2 -22  B ffffffff81000100, k_lp:1
T task ff04 9 9 12 1 0 -16  B  spin
T idle ff05 0 0 0 0 0 1 ffffffff81000100, B  swapper/0
"""
PATCHES = """\
L second 1 3
P ffffffffc0010000 first 1 0 0
O first vmlinux 1 1
F first vmlinux cmdline_proc_show ffffffff81000000 96 ffffffffc0011000 48 0 1 0 1
O first absent 0 0
F first absent nothing 0 0 ffffffffc0011100 0 0 0 0 -1
P ffffffffc0020000 second 1 1 0
O second vmlinux 1 1
F second vmlinux cmdline_proc_show ffffffff81000000 96 ffffffff81000000 96 1 1 1 0
S ff01 1 0
S ff02 0 1
S ff03 0 1
S ff04 0 1
S ff05 1 0
"""
LOG = """\
K [   10.000001] livepatch: enabling patch 'first'
K [   10.000002] livepatch: 'first': starting patching transition
K [   10.000003] livepatch: klp_try_switch_task: swapper/0:0 is running
K [   10.900000] livepatch: 'first': patching complete
K [   11.000000] livepatch: 'second': starting patching transition
K [   11.100000] livepatch: klp_try_switch_task: init:1 is running
K [   11.100001] livepatch: klp_try_switch_task: u_lp sleep:7 is sleeping on function one
K [  112.100002] livepatch: klp_try_switch_task: u_lp sleep:7 is sleeping on function one
K [  112.200003][    T9] livepatch: klp_try_switch_task: k_lp:1:8 has an unreliable stack
K [  112.200003] livepatch: signaling remaining tasks
K [  112.300003] livepatch: klp_try_switch_task: spin:9 is running
"""
ROWS = f"{TASKS}{PATCHES}{LOG}END\n"
SAID = (
    Decision("u_lp sleep", 7, "sleeping", "one"),
    Decision("k_lp:1", 8, "unreliable"),
    Decision("spin", 9, "running"),
)


def test_the_kernel_s_state() -> None:
    """Patches with what is in them, in their order; the tasks; who is left."""
    found = livepatch.parse(ROWS)
    assert found is not None
    assert (found.transition, found.target, found.tries) == ("second", 1, 3)
    old, new = 0xFFFFFFFF81000000, 0xFFFFFFFFC0011000
    first = Function("cmdline_proc_show", old, 96, new, 48, False, True, False, 1)
    absent = Function("nothing", 0, 0, new + 0x100, 0, False, False, False, -1)
    nop = Function("cmdline_proc_show", old, 96, old, 96, True, True, True, 0)
    assert found.patches == (
        Patch(
            *(0xFFFFFFFFC0010000, "first", True, False, False),
            (Object("vmlinux", True, True, (first,)), Object("absent", False, False, (absent,))),
        ),
        Patch(
            *(0xFFFFFFFFC0020000, "second", True, True, False),
            (Object("vmlinux", True, True, (nop,)),),
        ),
    )
    assert found.tasks[:2] == (TaskState(0xFF01, 1, False), TaskState(0xFF02, 0, True))
    assert [task.task for task in found.remaining] == [0xFF02, 0xFF03, 0xFF04]
    assert found.log[0] == Said(10.000001, "enabling patch 'first'")
    assert len(found.log) == len(LOG.splitlines())
    assert found.decisions == SAID
    assert [row.pid for row in verdicts.parse(ROWS)] == [1, 7, 8, 9, 0]


def test_without_a_livepatch_there_is_nothing() -> None:
    """Not every kernel has such rows, and a task's name is none."""
    assert livepatch.parse(TASKS + "END\n") is None
    assert livepatch.parse(TASKS.replace("init", "a\rL x 1 1") + "END\n") is None
    assert livepatch.differences(TASKS + "END\n") == []


def test_outside_a_transition_nobody_is_left() -> None:
    """Whatever the log has of earlier ones."""
    done = PATCHES.replace("L second 1", "L - -1").replace(" 0 1\nS", " -1 0\nS")
    log = LOG + "K [  113.0] livepatch: 'second': patching complete\n"
    found = livepatch.parse(TASKS + done + log)
    assert found is not None
    assert (found.transition, found.target) == (None, -1)
    assert (found.remaining, found.decisions) == ((), ())
    assert livepatch.differences(TASKS + done + log) == []


LINES = {
    "a function": (
        "klp_try_switch_task: a:1 b:2 is sleeping on function c.isra.0",
        Decision("a:1 b", 2, "sleeping", "c.isra.0"),
    ),
    "another line": ("'a': starting patching transition", None),
    "an error that it does not know": (
        "klp_try_switch_task: Unknown error code (-1) when trying to switch a:1",
        None,
    ),
}


@pytest.mark.parametrize(("text", "expected"), LINES.values(), ids=LINES.keys())
def test_lines_of_the_log(text: str, expected: Decision | None) -> None:
    """A task's name may have colons and spaces in it."""
    assert livepatch.decision(text) == expected


FORCED = "K [  112.500000] livepatch: forcing remaining tasks to the patched state\n"
DIFFERENCES = {
    "nothing": (ROWS, []),
    "a task that came later": (
        ROWS.replace("S ff01 1", "S ff01 0"),
        ["the kernel spoke of u_lp sleep:7, k_lp:1:8, spin:9; left are init:1, u_lp sleep:7, "],
    ),
    "one that left meanwhile": (
        ROWS.replace("S ff04 0", "S ff04 1"),
        ["the kernel spoke of u_lp sleep:7, k_lp:1:8, spin:9; left are u_lp sleep:7, k_lp:1:8"],
    ),
    "one that ran": (
        ROWS.replace("k_lp:1:8 has an unreliable stack", "k_lp:1:8 is running"),
        ["k_lp:1:8 was running, and its trace is unreliable"],
    ),
    "a log that begins too late": (
        TASKS + PATCHES,
        ["the kernel spoke of no task; left are u_lp sleep:7, k_lp:1:8, spin:9"],
    ),
    "forced since then": (
        ROWS + FORCED,
        ["the kernel spoke of no task; left are u_lp sleep:7, k_lp:1:8, spin:9"],
    ),
    "forced, and all are switched": ((ROWS + FORCED).replace(" 0 1\nS", " 1 0\nS"), []),
}


@pytest.mark.parametrize(("rows", "expected"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_the_log_is_of_the_instant_of_the_dump(rows: str, expected: list[str]) -> None:
    """A dump whose log cannot be held against an analysis of it says why."""
    found = livepatch.differences(rows)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_the_state_of_a_task_goes_with_its_stack() -> None:
    """Where only some tasks are kept; what is about no task stays."""
    kept = verdicts.of_names(ROWS, ["u_lp*"])
    assert [row.comm for row in verdicts.parse(kept)] == ["u_lp sleep"]
    found = livepatch.parse(kept)
    assert found is not None
    assert [task.task for task in found.tasks] == [0xFF02]
    assert len(found.patches) == 2
    assert found.decisions == SAID


# Scenarios --------------------------------------------------------------------------------------

KLP = [name for name in scenario.names() if "-klp-" in name]


@pytest.mark.parametrize("name", KLP)
def test_every_scenario_of_a_transition_has_its_kernel_speak(name: str) -> None:
    """The kernel's messages are on, a patch is loaded, and the sleepers are there before that."""
    found = scenario.load(name)
    assert 'dyndbg="file kernel/livepatch/* +p"' in found.machine.cmdline
    steps = " / ".join(found.workload.steps)
    assert "load vmlab_klp_" in steps and "start " in steps
    assert (found.dump.hold == "interrupt") == name.endswith("-running")


STEPS = {
    "a step that nobody knows": "[explode]",
    "a step with too many words": "[load one two]",
    "a process of no act": "[start sleep]",
    "another command": "['settle 1; reboot']",
    "nothing": "['']",
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
def test_a_step_that_is_none_is_refused(
    tmp_path_factory: pytest.TempPathFactory, steps: str
) -> None:
    """It is named, and nothing of it gets into the guest's script."""
    file = tmp_path_factory.mktemp("scenarios") / "mine.yaml"
    base = "about: a\narchitecture: x86_64\nsuites: [sid]\nkernel: '6.1'\n"
    file.write_text(f"{base}workload: {{steps: {steps}}}\n")
    with pytest.raises(
        ScenarioError, match=r"mine.yaml: workload.steps has '.*', which is no step"
    ):
        scenario.load(str(file))
