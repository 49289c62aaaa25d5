# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a livepatch transition does not finish: the kernel's decision on every task, and why.

The kernel tries each task about once a second (``klp_try_switch_task()``): one that runs on a CPU
is left alone, one whose stack trace is not reliable or has a function on it that the transition
replaces or removes stays as it is. All that is done here again, from the dump.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from errno import EFAULT
from functools import partial

from drgn_reliable.inlined import inlined_at
from drgn_reliable.kernel import Kernel
from drgn_reliable.kernellog import (
    LogLine,
    forced,
    history,
    last_attempt,
    livepatch_lines,
    started,
)
from drgn_reliable.model import KernelVerdict, TaskKind, TaskReport
from drgn_reliable.patches import Patch, PatchedFunction, PatchedObject
from drgn_reliable.patchstate import PatchStates, clock, offline_cpus
from drgn_reliable.report import Scanner
from drgn_reliable.tasks import Task
from drgn_reliable.transition import (
    Blocker,
    Checked,
    Decision,
    Difference,
    LivepatchReport,
    PendingTask,
    Transition,
)
from drgn_reliable.waiting import wait_of

__all__ = ("analyse", "analyse_living", "checked_functions")

PATCHED, UNPATCHED = 1, 0
"""``KLP_TRANSITION_PATCHED`` and ``_UNPATCHED``."""


# What may not be on a stack ------------------------------------------------------------------


def checked_functions(
    patch: Patch, patches: Sequence[Patch], stacks: dict[int, tuple[int, ...]], target: int
) -> list[Checked]:
    """The code that ``klp_check_stack_func()`` looks for, in its order.

    To patch, that is the version of each function before this patch's: the original, or an
    earlier patch's. To unpatch, it is this patch's own.

    :param stacks: the versions of each diverted function, the newest first.
    """
    by_address = {f.address: (p, f) for p in patches for f in p.functions()}
    found = []
    for each in patch.objects:
        if not each.patched:
            continue
        for function in each.functions:
            if target == UNPATCHED:
                found.append(_version(each, function, patch, function))
                continue
            stack = stacks.get(function.old_func, ())
            after = stack.index(function.address) + 1 if function.address in stack else len(stack)
            if after < len(stack) and stack[after] in by_address:
                previous, version = by_address[stack[after]]
                found.append(_version(each, function, previous, version))
            else:
                found.append(_original(each, function))
    return found


def _version(
    each: PatchedObject, function: PatchedFunction, patch: Patch, version: PatchedFunction
) -> Checked:
    name = "original" if version.nop else patch.name
    return Checked(function.name, each.name, version.new_func, version.new_size, name)


def _original(each: PatchedObject, function: PatchedFunction) -> Checked:
    return Checked(function.name, each.name, function.old_func, function.old_size, "original")


def _blockers(
    entries: Sequence[int], shown: Sequence[int], checked: Iterable[Checked]
) -> Iterator[Blocker]:
    """The kernel compares return addresses as they are, and in the order of the functions.

    :param entries: the return addresses that the kernel compares.
    :param shown: those of the frames that are shown: some kernels' traces have a frame twice.
    """
    for function in checked:
        hits = [address for address in entries if address in function]
        frames = [(number, address) for number, address in enumerate(shown) if address in hits]
        for number, address in frames:
            yield Blocker(function, number, address)
        if hits and not frames:
            yield Blocker(function, None, hits[0])


# The analysis --------------------------------------------------------------------------------


def analyse(
    kernel: Kernel,
    tasks: Iterable[Task] | None = None,
    only: Collection[int] | None = None,
    report_of: Callable[[Task], TaskReport] | None = None,
) -> LivepatchReport:
    """What the dump says of livepatching.

    :param tasks: all tasks, in the kernel's order, as they are to be gone through.
    :param only: the addresses of the tasks whose stacks to look at; by default all.
    :param report_of: gives the reports of a scan that was made already; by default the stacks are
        walked.
    """
    patches = kernel.owners.patches
    lines = livepatch_lines(kernel.prog)
    empty = LivepatchReport(
        kernel.path,
        kernel.release,
        kernel.architecture,
        kernel.supports_livepatch,
        patches.all,
        patches.stacks,
        None,
        (),
        (),
        None,
        (),
        forced(lines),
        history(lines) if patches.all else (),
    )
    patch = patches.in_transition
    target = patches.target
    if patch is None or target not in (PATCHED, UNPATCHED):
        return replace(empty, problems=tuple(_unknown(kernel)))
    versions = partial(checked_functions, patch, patches.all, patches.stacks)
    looked = _Looked(kernel, target, versions(target), versions(1 - target))
    for task in kernel.tasks if tasks is None else tasks:
        if only is None or task.address in only:
            looked.look(task, report_of)
        else:
            looked.pass_by(task)
    transition = Transition(
        patch.name,
        "patched" if target == PATCHED else "unpatched",
        patch.replace,
        len(looked.waiting),
        looked.switched,
        patches.attempts,
        _since(kernel, lines, patch.name),
        looked.returning if only is None and not looked.unseen else None,
    )
    pending = looked.states.flagged(looked.pending, looked.waiting)
    compared, differences = _compare(pending, looked.passed, lines)
    return replace(
        empty,
        transition=transition,
        checked=tuple(looked.checked),
        tasks=tuple(pending),
        compared=compared,
        differences=tuple(differences),
        problems=tuple(looked.problems()),
    )


def analyse_living(
    kernel: Kernel, tasks: Iterable[Task] | None = None, only: Collection[int] | None = None
) -> LivepatchReport:
    """The same of a kernel that runs: the stacks are walked before anything else is looked at, and
    a transition that ended or turned meanwhile is a problem.

    :param tasks: see :func:`analyse`, and so the others.
    """
    before = kernel.live.transition() if kernel.live else None
    every = list(kernel.tasks if tasks is None else tasks)
    chosen = {task.address for task in every} if only is None else set(only)
    wanted = (task for task in every if task.address in chosen)
    reports = {report.task: report for report in Scanner(kernel).reports(wanted)}
    ended = chosen - set(reports)
    left = [task for task in every if task.address not in ended]
    found = analyse(kernel, left, only, lambda task: reports[task.address])
    # The state of one that ended meanwhile was read of memory that was freed.
    there = {(task.address, task.pid) for task in kernel.tasks}
    waited = tuple(t for t in found.tasks if (t.report.task, t.report.pid) in there)
    if found.transition:
        pending = found.transition.pending - len(found.tasks) + len(waited)
        transition = replace(found.transition, pending=pending)
        found = replace(found, tasks=waited, transition=transition)
    if kernel.live and kernel.live.transition() != before:
        problem = "the transition ended, began or turned while it was looked at; look again"
        found = replace(found, problems=(*found.problems, problem))
    return found


class _Looked:
    """The tasks that were looked at, and what there is to say of them.

    :param checked: what may not be on the stack of a task that is switched.
    :param back: the same for one that is switched back.
    """

    def __init__(
        self, kernel: Kernel, target: int, checked: list[Checked], back: list[Checked]
    ) -> None:
        self._kernel, self._target = kernel, target
        self.checked, self._back = checked, back
        self._scanner, self._offline = Scanner(kernel), offline_cpus(kernel)
        self.states = PatchStates(kernel)
        self.pending: list[PendingTask] = []
        self.waiting: set[int] = set()
        """The addresses of all tasks that have not switched, looked at or not."""
        self.passed: list[Task] = []
        """Tasks of whose stacks nothing is known."""
        self.switched = self.returning = self.unseen = 0

    def pass_by(self, task: Task) -> None:
        """Count a task."""
        self._count(task)
        self.passed.append(task)

    def _count(self, task: Task) -> int | None:
        state = self.states.of(task)
        if state is not None and state != self._target:
            self.waiting.add(task.address)
        self.switched += state == self._target
        return state

    def look(self, task: Task, report_of: Callable[[Task], TaskReport] | None) -> None:
        """Count a task and look at its stack."""
        state = self._count(task)
        if state is None:
            return
        report = (report_of or self._scanner.report)(task)
        if report.kernel.errno == -EFAULT:
            self.passed.append(task)
            self.unseen += 1
        if state != self._target:
            self.pending.append(
                _pending(self._kernel, task, report, state, self.checked, self._offline)
            )
        else:
            # Reversing is the same decision the other way round.
            decision, _ = _decide(report, self._back)
            self.returning += decision in (Decision.SLEEPING, Decision.UNRELIABLE)

    def problems(self) -> Iterator[str]:
        """What kept from seeing everything, one line each."""
        yield from self._scanner.problems()
        yield from self.states.problems()
        if self.unseen:
            yield f"stacks of {self.unseen} tasks are not in this dump"


def _unknown(kernel: Kernel) -> Iterator[str]:
    """What keeps from telling whether there is a transition; nothing if there is none."""
    patches = kernel.owners.patches
    if not kernel.supports_livepatch:
        return
    if not patches.whole:
        yield "the list of livepatches is not in this dump, or broken"
    if patches.transition is None:
        yield "klp_transition_patch is not in this dump"
    elif patches.transition:
        if patches.target is None:
            yield "klp_target_state is not in this dump"
        if patches.in_transition is None:
            yield f"klp_transition_patch is {patches.transition:#x}, which is no livepatch's"


def _pending(
    kernel: Kernel,
    task: Task,
    report: TaskReport,
    state: int,
    checked: Sequence[Checked],
    offline: frozenset[int],
) -> PendingTask:
    decision, blockers = _decide(report, checked)
    if report.kind is TaskKind.IDLE and report.cpu in offline:
        decision = Decision.WOULD_SWITCH  # without a look at its stack
    inlined = inlined_at(kernel, task, [blocker.address for blocker in blockers])
    wait = wait_of(kernel, task, report)
    return PendingTask(report, state, None, decision, blockers, wait, inlined)


def _decide(report: TaskReport, checked: Sequence[Checked]) -> tuple[Decision, tuple[Blocker, ...]]:
    """``klp_check_and_switch_task()``."""
    shown = [frame.pc for frame in report.frames]
    if report.kernel.verdict is KernelVerdict.RELIABLE:
        blockers = tuple(_blockers(report.kernel.entries, shown, checked))
        return (Decision.SLEEPING if blockers else Decision.WOULD_SWITCH), blockers
    blockers = tuple(_blockers(shown, shown, checked))
    running = report.kernel.verdict is KernelVerdict.RUNNING
    return (Decision.RUNNING if running else Decision.UNRELIABLE), blockers


def _since(kernel: Kernel, lines: Sequence[LogLine], patch: str) -> float | None:
    begun, now = started(lines, patch), clock(kernel)
    if begun is None or now is None:
        return None
    return max(0.0, now - begun)


def _compare(
    pending: Iterable[PendingTask], passed: Iterable[Task], lines: Sequence[LogLine]
) -> tuple[int | None, list[Difference]]:
    """Hold the decisions against what the kernel told at its last attempt.

    :param passed: tasks whose stacks were not looked at: what is told of them is left out.
    """
    attempt = last_attempt(lines)
    if attempt is None:
        return None, []
    told = {_key(said.pid, said.comm): said for said in attempt[1]}
    skipped = {_key(one.pid, one.comm) for one in passed}
    for key in skipped:
        told.pop(key, None)
    compared = len(told)
    differences = []
    for task in pending:
        report = task.report
        if _key(report.pid, report.comm) in skipped:
            continue
        said = told.pop(_key(report.pid, report.comm), None)
        here = _said(task.decision.value, next(iter(task.functions), None))
        kernel = _said(said.decision, said.function) if said else "nothing"
        if task.decision is Decision.WOULD_SWITCH:
            here = "nothing"
        if here != kernel:
            differences.append(Difference(report.pid, report.comm, here, kernel))
    for said in told.values():
        kernel = _said(said.decision, said.function)
        differences.append(Difference(said.pid, said.comm, "switched or gone", kernel))
    return compared, differences


def _key(pid: int, comm: str) -> int | str:
    """Which task the log means: every CPU's idle task has PID 0, and the name of its CPU."""
    return pid or comm


def _said(decision: str, function: str | None) -> str:
    sleeping = decision == Decision.SLEEPING.value
    return f"{decision} on {function}" if sleeping and function else decision
