# SPDX-License-Identifier: LGPL-2.1-or-later
"""Livepatches, tasks and a kernel in the middle of a transition, spelled out by a test."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drgn_reliable import livepatch
from drgn_reliable.kernel import Kernel
from drgn_reliable.kernellog import LogLine
from drgn_reliable.livepatch import analyse
from drgn_reliable.model import (
    Code,
    CodeKind,
    FoundBy,
    Frame,
    KernelAnswer,
    KernelVerdict,
    ProofAnswer,
    ProofVerdict,
    Reason,
    TaskKind,
    TaskReport,
)
from drgn_reliable.patches import Patch, PatchedFunction, PatchedObject, Patches
from drgn_reliable.tasks import Task
from drgn_reliable.transition import (
    Blocker,
    Checked,
    Decision,
    LivepatchReport,
    PendingTask,
    Transition,
)
from drgn_reliable.waiting import Leaves, Wait

OLD, NEW, NEWER = 0x1000, 0xA000, 0xB000
SIZE = 0x40


def function(address: int, name: str = "old", **members: Any) -> PatchedFunction:
    """A ``struct klp_func``; by default it replaces the function at :data:`OLD`."""
    given: dict[str, Any] = {
        "old_func": OLD,
        "old_size": SIZE,
        "new_func": NEW,
        "new_size": 0x20,
        "nop": False,
        "patched": True,
        "transition": True,
        **members,
    }
    return PatchedFunction(address, name, **given)


def patch(name: str, *functions: PatchedFunction, address: int = 0, **members: Any) -> Patch:
    """A patch of one object, the kernel itself by default."""
    each = PatchedObject(
        0x70, members.pop("module", None), members.pop("loaded", 0), True, functions
    )
    given: dict[str, Any] = {"enabled": True, "replace": False, "forced": False, **members}
    given.setdefault("objects", (each,))
    return Patch(address or 0x7000 + len(name), name, **given)


VERDICTS = {
    KernelVerdict.RELIABLE: 0,
    KernelVerdict.UNRELIABLE: -errno.EINVAL,
    KernelVerdict.RUNNING: -errno.EBUSY,
}


def report(
    *pcs: int,
    pid: int = 1,
    comm: str = "sleeper",
    kind: TaskKind = TaskKind.USER,
    verdict: KernelVerdict = KernelVerdict.RELIABLE,
    proof: ProofVerdict = ProofVerdict.PROVEN,
    entries: Sequence[int] | None = None,
    reasons: Sequence[str] = (),
    error: int | None = None,
    cpu: int = 0,
    names: Sequence[str] = (),
) -> TaskReport:
    """A task with these return addresses.

    :param entries: those that the kernel's own walk found, if they are others.
    :param names: of functions, the innermost first, instead of return addresses.
    """
    places = [(pc, None) for pc in pcs] + [(0x6000, name) for name in names]
    frames = tuple(
        Frame(Code(pc, CodeKind.CORE, name, 0, None), 0, FoundBy.ORC) for pc, name in places
    )
    own = tuple(pcs if entries is None else entries) if verdict is KernelVerdict.RELIABLE else ()
    answer = KernelAnswer(verdict, VERDICTS[verdict] if error is None else error, own)
    found = tuple(Reason(name, None, None, 0, "") for name in reasons)
    return TaskReport(
        0x8000 + 0x100 * pid + cpu,
        pid,
        pid,
        cpu,
        comm,
        "S",
        kind,
        answer,
        ProofAnswer(proof, tuple(pcs)),
        frames,
        found,
    )


def wait(leaves: Leaves = Leaves.SIGNAL, **members: str) -> Wait:
    return Wait(
        members.get("channel", ""),
        leaves,
        members.get("event", ""),
        members.get("file", ""),
        members.get("loop", ""),
    )


def pending(
    decision: Decision,
    task: TaskReport | None = None,
    waits: Wait | None = None,
    functions: Sequence[str] = ("old",),
) -> PendingTask:
    """A task that has not switched."""
    blockers = tuple(
        Blocker(Checked(name, None, OLD, SIZE, "original"), 0, OLD) for name in functions
    )
    return PendingTask(task or report(OLD), 0, True, decision, blockers, waits or wait())


def transition(**members: Any) -> Transition:
    """A transition that has just begun."""
    given: dict[str, Any] = {
        "patch": "fix",
        "target": "patched",
        "replaces": False,
        "pending": 1,
        "switched": 5,
        "attempts": 3,
        "seconds": 3.0,
        "back": 0,
        **members,
    }
    return Transition(**given)


def analysed(
    monkeypatch: pytest.MonkeyPatch,
    tasks: Sequence[tuple[TaskReport, int]],
    patches: Sequence[Patch],
    stacks: Mapping[int, tuple[int, ...]],
    *,
    target: int | None = 1,
    current: int | None = None,
    only: Sequence[int] | None = None,
    log: Sequence[LogLine] = (),
    offline: Sequence[int] = (),
    whole: bool = True,
) -> LivepatchReport:
    """What the analysis makes of tasks with their patch states; the last patch is in transition.

    :param current: ``klp_transition_patch``, if it is not the last patch.
    """
    reports = {task.task: task for task, _ in tasks}
    states = {task.task: state for task, state in tasks}

    class FakeStates:
        def __init__(self, kernel: Kernel) -> None:
            pass

        def of(self, task: Task) -> int:
            return states[task.address]

        def flagged(self, found: list[PendingTask], waiting: set[int]) -> list[PendingTask]:
            return [replace(task, flagged=True) for task in found]

        def problems(self) -> tuple[str, ...]:
            return ()

    class FakeScanner:
        def __init__(self, kernel: Kernel) -> None:
            pass

        def report(self, task: Task) -> TaskReport:
            return reports[task.address]

        def problems(self) -> tuple[str, ...]:
            return ()

    for name, value in (
        ("PatchStates", FakeStates),
        ("Scanner", FakeScanner),
        ("offline_cpus", lambda kernel: frozenset(offline)),
        ("livepatch_lines", lambda prog: list(log)),
        ("clock", lambda kernel: 100.0),
        ("wait_of", lambda kernel, task, report: wait()),
        ("inlined_at", lambda kernel, task, addresses: ()),
    ):
        monkeypatch.setattr(livepatch, name, value)
    lists = SimpleNamespace(
        all=tuple(patches),
        stacks=stacks,
        transition=patches[-1].address if current is None and patches else current,
        target=target,
        attempts=3,
        whole=whole,
    )
    lists.in_transition = Patches.in_transition.fget(lists)  # type: ignore[attr-defined]
    kernel = SimpleNamespace(
        owners=SimpleNamespace(patches=lists),
        path="dump",
        release="6.12",
        architecture="x86_64",
        supports_livepatch=True,
        prog=None,
        tasks=[
            SimpleNamespace(address=task.task, pid=task.pid, comm=task.comm) for task, _ in tasks
        ],
    )
    return analyse(cast(Kernel, kernel), only=only)
