# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real livepatch transitions: every decision against the kernel's own, which is in the log."""

from __future__ import annotations

from functools import cache

import pytest

from contrib.vmlab import chains, conform, livepatch
from drgn_reliable import open_dump
from drgn_reliable.advice import advice_for
from drgn_reliable.kernel import Kernel
from drgn_reliable.livepatch import analyse
from drgn_reliable.report import Scanner
from drgn_reliable.transition import Decision, LivepatchReport
from tests.dumps import TRANSITIONS, Dump

NAMES = [dump.name for dump in TRANSITIONS]


@cache
def analysed(dump: Dump) -> LivepatchReport:
    return analyse(Kernel(open_dump(str(dump.path))))


def of(name: str) -> LivepatchReport:
    return analysed(next(dump for dump in TRANSITIONS if dump.name == f"{name}.kdump"))


def seen(report: LivepatchReport) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Decision and functions by the name of the task."""
    return {t.report.comm: (t.decision.value, t.functions) for t in report.tasks}


@pytest.fixture(params=TRANSITIONS, ids=lambda dump: dump.name)
def dump(request: pytest.FixtureRequest) -> Dump:
    found: Dump = request.param
    return found


def test_every_verdict_is_the_kernels_own(dump: Dump) -> None:
    """The tasks, their verdicts and their entries, as of the other dumps."""
    kernel = Kernel(open_dump(str(dump.path)))
    reports = list(Scanner(kernel).reports(kernel.tasks))
    assert conform.differences(reports, dump.rows) == []
    assert chains.missing_functions(reports) == []


def test_every_decision_is_what_the_kernels_log_says(dump: Dump) -> None:
    """Of each task that has not switched the kernel told why, at its last attempt, and of no other;
    the function that it named is the first of those found."""
    report = analysed(dump)
    assert report.problems == ()
    assert report.differences == ()
    if report.transition is None:
        assert report.tasks == ()
    else:
        assert report.compared == len(report.tasks) > 0
        assert report.stalled


def test_patch_state_and_pending_flag_are_the_kernels(dump: Dump) -> None:
    """ "S" rows have both for every task, taken by the kernel itself."""
    rows = [row.split() for row in dump.rows.split("\n") if row.startswith("S ")]
    states = {int(task, 16): (int(state), flag == "1") for _, task, state, flag in rows}
    report = analysed(dump)
    assert len(states) == len(dump.recorded)
    pending = {t.report.task: (t.patch_state, t.flagged) for t in report.tasks}
    if report.transition is None:
        assert {state for state, _ in states.values()} == {-1}
        return
    target = int(report.transition.target == "patched")
    assert pending == {task: found for task, found in states.items() if found[0] != target}
    assert report.transition.switched == len(states) - len(pending)


def test_the_patches_are_the_kernels(dump: Dump) -> None:
    """Names, flags, addresses and sizes of all patches, objects and functions."""
    told = livepatch.parse(dump.rows)
    assert told
    report = analysed(dump)
    for patch, expected in zip(report.patches, told.patches, strict=True):
        found = (patch.address, patch.name, patch.enabled, patch.replace, patch.forced)
        assert found == (
            expected.address,
            expected.name,
            expected.enabled,
            expected.replace,
            expected.forced,
        )
        for each, object_ in zip(patch.objects, expected.objects, strict=True):
            assert (each.name or "vmlinux", each.patched) == (object_.name, object_.patched)
            assert [
                (f.name, f.old_func, f.old_size, f.new_func, f.new_size, f.nop, f.patched)
                for f in each.functions
            ] == [
                (f.name, f.old_func, f.old_size, f.new_func, f.new_size, f.nop, f.patched)
                for f in object_.functions
            ]


USER = {
    "eventfd": ("sleeping", ("eventfd_read",)),
    "inotify": ("sleeping", ("inotify_read",)),
    "u_lp_sleep": ("sleeping", ("vmlab_lp_sleep",)),
    "u_lp_dstate": ("sleeping", ("vmlab_lp_dstate",)),
    "u_lp_killable": ("sleeping", ("vmlab_lp_killable",)),
    "u_lp_nested": ("sleeping", ("vmlab_lp_inner", "vmlab_lp_outer")),
}
THREADS = {
    "oom_reaper": ("sleeping", ("oom_reaper",)),
    "k_lp_sleep": ("sleeping", ("vmlab_lp_sleep",)),
    "k_lp_dstate": ("sleeping", ("vmlab_lp_dstate",)),
    "k_lp_loop": ("sleeping", ("vmlab_lp_loop",)),
}
EXPECTED = {
    **{f"{kernel}-user": USER for kernel in ("x86_64-6.12", "x86_64-6.1", "aarch64-7.2")},
    **{f"{kernel}-kthread": THREADS for kernel in ("x86_64-6.12", "x86_64-6.1", "aarch64-7.2")},
    "x86_64-6.12-running": {
        "u_lp_busy": ("running", ()),
        "k_lp_spin": ("running", ("vmlab_lp_spin",)),
        "swapper/2": ("sleeping", ("cpu_startup_entry",)),
        "swapper/3": ("sleeping", ("cpu_startup_entry",)),
    },
    "x86_64-6.12-unpatch": {
        "u_lp_sleep": ("sleeping", ("vmlab_lp_sleep",)),
        "u_lp_dstate": ("sleeping", ("vmlab_lp_dstate",)),
        "k_lp_sleep": ("sleeping", ("vmlab_lp_sleep",)),
    },
    "x86_64-6.12-replace": {
        "eventfd": ("sleeping", ("eventfd_read",)),
        "u_lp_sleep": ("sleeping", ("vmlab_lp_sleep",)),
        "k_lp_dstate": ("sleeping", ("vmlab_lp_dstate",)),
        "u_lp_killable": ("sleeping", ("vmlab_lp_killable",)),
    },
    "x86_64-6.12-forced": {},
    "x86_64-6.12-done": {},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_tasks_and_functions_in_the_way(name: str) -> None:
    """What the guest's sources put there: all functions on a stack, not just the first."""
    assert seen(of(name)) == EXPECTED[name]


@pytest.mark.parametrize("kernel", ["x86_64-6.12", "x86_64-6.1", "x86_64-7.2", "aarch64-7.2"])
def test_an_unreliable_stack_comes_with_its_reasons(kernel: str) -> None:
    """The kernel's one word, and with it why, and what the dump can show all the same."""
    report = of(f"{kernel}-unreliable")
    deep = next(t for t in report.tasks if t.report.comm == "u_deep120")
    assert deep.decision is Decision.UNRELIABLE
    assert "too-deep" in {reason.id for reason in deep.report.reasons}
    assert deep.proof_clears
    within = next(t for t in report.tasks if t.report.comm == "u_lp_deep")
    assert within.decision is Decision.UNRELIABLE
    assert within.functions == ("vmlab_lp_shallow",)
    assert not within.proof_clears


def test_the_version_that_is_looked_for() -> None:
    """To patch over another patch, that one's; to remove a patch, its own; else the original."""
    versions = {name: {c.version for c in of(name).checked} for name in EXPECTED}
    assert versions["x86_64-6.12-replace"] == {"original", "vmlab_klp_first"}
    assert versions["x86_64-6.12-unpatch"] == {"vmlab_klp_first"}
    assert versions["x86_64-6.12-user"] == {"original"}


def test_a_forced_transition_is_over() -> None:
    """It has ended for every task, with the patch enabled."""
    report = of("x86_64-6.12-forced")
    assert report.transition is None
    assert not report.stalled
    assert "forcing remaining tasks to the patched state" in [x.text for x in report.history]
    assert [patch.enabled for patch in report.patches] == [True]


def test_a_module_that_is_not_loaded_is_not_patched() -> None:
    """Its functions wait for it; those of one that came later are patched."""
    objects = {o.name: o.patched for p in of("x86_64-6.12-module").patches for o in p.objects}
    assert set(objects.values()) == {True, False}


def test_time_and_attempts(dump: Dump) -> None:
    """Since when, by the log, and how often in vain: about once a second."""
    transition = analysed(dump).transition
    if transition is not None:
        assert transition.attempts is not None and transition.seconds is not None
        assert abs(transition.seconds - transition.attempts) < 3


ADVISED = {
    ("x86_64-6.12-user", "u_lp_sleep"): "signal",
    ("x86_64-6.12-user", "u_lp_killable"): "fatal",
    ("x86_64-6.12-user", "u_lp_dstate"): "event",
    ("x86_64-6.12-kthread", "oom_reaper"): "thread-loop",
    ("x86_64-6.12-kthread", "k_lp_sleep"): "kthread-woken",
    ("x86_64-6.12-kthread", "k_lp_dstate"): "kthread-event",
    ("x86_64-6.12-running", "k_lp_spin"): "spins",
    ("x86_64-6.12-running", "swapper/2"): "idle",
    ("x86_64-6.12-unreliable", "u_deep120"): "unreliable",
}


@pytest.mark.parametrize(("name", "comm"), ADVISED)
def test_what_to_do(name: str, comm: str) -> None:
    """One plain sentence for each case."""
    report = of(name)
    assert report.transition
    task = next(t for t in report.tasks if t.report.comm == comm)
    advice, text = advice_for(task, report.transition)
    assert advice == ADVISED[name, comm]
    assert "{" not in text
