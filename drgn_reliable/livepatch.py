# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a livepatch transition does not finish: the kernel's decision on every task, and why.

The kernel tries each task about once a second (``klp_try_switch_task()``): one that runs on a CPU
is left alone, one whose stack trace is not reliable or has a function on it that the transition
replaces or removes stays as it is. All that is done here again, from the dump.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from drgn_reliable.inlined import inlined_at
from drgn_reliable.kernel import Kernel
from drgn_reliable.kernellog import LogLine, history, last_attempt, livepatch_lines, started
from drgn_reliable.model import KernelVerdict, ProofVerdict, TaskKind, TaskReport
from drgn_reliable.patches import Patch, PatchedFunction, PatchedObject
from drgn_reliable.patchstate import PatchStates, clock, offline_cpus
from drgn_reliable.report import Scanner
from drgn_reliable.tasks import Task
from drgn_reliable.waiting import Wait, wait_of

__all__ = (
    "Blocker",
    "Checked",
    "Decision",
    "Difference",
    "LivepatchReport",
    "PendingTask",
    "Transition",
    "analyse",
    "checked_functions",
    "each_version",
    "grouped",
)

PATCHED, UNPATCHED = 1, 0
"""``KLP_TRANSITION_PATCHED`` and ``_UNPATCHED``."""
SIGNALS_TIMEOUT = 15
"""Attempts after which the kernel first wakes the tasks that remain."""


class Decision(str, Enum):
    """What ``klp_try_switch_task()`` would decide."""

    RUNNING = "running"
    UNRELIABLE = "unreliable"
    SLEEPING = "sleeping"
    WOULD_SWITCH = "would-switch"


@dataclass(frozen=True, slots=True)
class Checked:
    """A stretch of code that may not be on the stack of a task that is switched."""

    name: str
    """Of the function that is patched or unpatched, as the kernel's message has it."""
    module: str | None
    """In which it is; None for the kernel itself."""
    start: int
    size: int
    version: str
    """Which version of the function lies there: ``original``, or the name of a patch."""

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.start + self.size


@dataclass(frozen=True, slots=True)
class Blocker:
    """A frame in such a function."""

    function: Checked
    frame: int
    """Number of the frame, counted from the innermost."""
    address: int


@dataclass(frozen=True, slots=True)
class PendingTask:
    """A task that has not switched."""

    report: TaskReport
    patch_state: int
    flagged: bool | None
    """TIF_PATCH_PENDING; None if it cannot be told which flag that is."""
    decision: Decision
    blockers: tuple[Blocker, ...]
    """All functions in the way: of a trace that is not reliable, those in what was found of it."""
    wait: Wait
    inlined: tuple[str, ...] = ()
    """Functions that the compiler put into the blocking one at that place, where there is debug
    information to tell."""

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions in the way; the one that the kernel names first."""
        return tuple(dict.fromkeys(blocker.function.name for blocker in self.blockers))

    @property
    def proof_clears(self) -> bool:
        """The kernel cannot tell, but the dump shows that none of the functions is on the stack."""
        proven = self.report.proof.verdict is ProofVerdict.PROVEN
        return self.decision is Decision.UNRELIABLE and proven and not self.blockers


@dataclass(frozen=True, slots=True)
class Difference:
    """Where this analysis and the kernel's own last attempt part."""

    pid: int
    comm: str
    here: str
    kernel: str


@dataclass(frozen=True, slots=True)
class Transition:
    """The transition in progress."""

    patch: str
    target: str
    """``patched`` or ``unpatched``."""
    switched: int
    """Tasks that have reached the target state."""
    attempts: int | None
    """How often the kernel has tried in vain; it tries about once a second."""
    seconds: float | None
    """Since it began or was reversed, by the log; None if the log does not say."""
    back: int
    """Tasks that would be in the way of reversing it: they are in the other version already."""

    @property
    def signals(self) -> int | None:
        """How often the kernel has woken the remaining tasks (``klp_send_signals()``)."""
        return None if self.attempts is None else max(0, self.attempts - 1) // SIGNALS_TIMEOUT


@dataclass(frozen=True, slots=True)
class LivepatchReport:
    """All that there is to say of a dump's livepatches."""

    dump: str
    release: str
    architecture: str
    built_in: bool
    """Whether the kernel has livepatching."""
    patches: tuple[Patch, ...]
    """In the order in which they were applied."""
    stacks: dict[int, tuple[int, ...]]
    """The versions of each diverted function, see :attr:`drgn_reliable.patches.Patches.stacks`."""
    transition: Transition | None
    checked: tuple[Checked, ...]
    """What may not be on a task's stack."""
    tasks: tuple[PendingTask, ...]
    """Those that have not switched, in the kernel's order."""
    compared: int | None
    """Tasks of which the kernel's own log told at its last attempt; None if it told of none."""
    differences: tuple[Difference, ...]
    history: tuple[LogLine, ...] = ()
    """What the log last said of livepatches: begun, woken, forced, complete."""
    problems: tuple[str, ...] = ()

    @property
    def stalled(self) -> bool:
        """Whether some task cannot be switched."""
        return any(task.decision is not Decision.WOULD_SWITCH for task in self.tasks)


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


def _blockers(entries: Sequence[int], checked: Iterable[Checked]) -> tuple[Blocker, ...]:
    """The kernel compares return addresses as they are, and in the order of the functions."""
    return tuple(
        Blocker(function, number, address)
        for function in checked
        for number, address in enumerate(entries)
        if address in function
    )


# The analysis --------------------------------------------------------------------------------


def analyse(kernel: Kernel, tasks: Iterable[Task] | None = None) -> LivepatchReport:
    """What the dump says of livepatching.

    :param tasks: those to look at; by default all, in the kernel's order.
    """
    patches = kernel.owners.patches
    scanner = Scanner(kernel)
    lines = livepatch_lines(kernel.prog) if patches.all else []
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
        history(lines),
    )
    patch = next((p for p in patches.all if p.address == patches.transition), None)
    target = patches.target
    if patch is None or target not in (PATCHED, UNPATCHED):
        lacking = patches.transition is None and kernel.supports_livepatch
        problem = "klp_transition_patch is not in this dump" if lacking else ""
        problem = problem or ("" if patches.whole else "the list of patches is not in this dump")
        return replace(empty, problems=(problem,) if problem else ())
    checked = checked_functions(patch, patches.all, patches.stacks, target)
    back = checked_functions(patch, patches.all, patches.stacks, 1 - target)
    states = PatchStates(kernel)
    pending, switched, returning = [], 0, 0
    offline = offline_cpus(kernel)
    for task in kernel.tasks if tasks is None else tasks:
        state = states.of(task)
        report = scanner.report(task)
        if state == target:
            switched += 1
            returning += bool(_blockers(report.proof.entries, back))
        elif state is not None:
            pending.append(_pending(kernel, task, report, state, checked, offline))
    pending = states.flagged(pending)
    transition = Transition(
        patch.name,
        "patched" if target == PATCHED else "unpatched",
        switched,
        patches.attempts,
        _since(kernel, lines, patch.name),
        returning,
    )
    compared, differences = _compare(pending, lines)
    return replace(
        empty,
        transition=transition,
        checked=tuple(checked),
        tasks=tuple(pending),
        compared=compared,
        differences=tuple(differences),
        problems=(*scanner.problems(), *states.problems),
    )


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
    if report.kernel.verdict is KernelVerdict.RELIABLE:
        blockers = _blockers(report.kernel.entries, checked)
        return (Decision.SLEEPING if blockers else Decision.WOULD_SWITCH), blockers
    blockers = _blockers(report.proof.entries, checked)
    running = report.kernel.verdict is KernelVerdict.RUNNING
    return (Decision.RUNNING if running else Decision.UNRELIABLE), blockers


def _since(kernel: Kernel, lines: Sequence[LogLine], patch: str) -> float | None:
    begun, now = started(lines, patch), clock(kernel)
    if begun is None or now is None:
        return None
    return max(0.0, now - begun)


def _compare(
    pending: Iterable[PendingTask], lines: Sequence[LogLine]
) -> tuple[int | None, list[Difference]]:
    """Hold the decisions against what the kernel told at its last attempt."""
    attempt = last_attempt(lines)
    if attempt is None:
        return None, []
    told = {said.pid: said for said in attempt[1] if said.pid}
    # Every CPU's idle task has PID 0, and the name of its CPU.
    told_idle = {said.comm: said for said in attempt[1] if not said.pid}
    differences = []
    for task in pending:
        report = task.report
        said = told.pop(report.pid, None) if report.pid else told_idle.pop(report.comm, None)
        here = _said(task.decision.value, next(iter(task.functions), None))
        kernel = _said(said.decision, said.function) if said else "nothing"
        if task.decision is Decision.WOULD_SWITCH:
            here = "nothing"
        if here != kernel:
            differences.append(Difference(report.pid, report.comm, here, kernel))
    for said in (*told.values(), *told_idle.values()):
        kernel = _said(said.decision, said.function)
        differences.append(Difference(said.pid, said.comm, "switched", kernel))
    return len(attempt[1]), differences


def _said(decision: str, function: str | None) -> str:
    sleeping = decision == Decision.SLEEPING.value
    return f"{decision} on {function}" if sleeping and function else decision


def grouped(tasks: Iterable[PendingTask]) -> list[list[PendingTask]]:
    """The tasks that are in the same way for the same reason: same name and stack."""
    groups: dict[object, list[PendingTask]] = {}
    for task in tasks:
        report = task.report
        stack = tuple(frame.code.symbol or frame.pc for frame in report.frames)
        key = (report.comm, task.decision, task.functions, task.wait, stack)
        groups.setdefault(key, []).append(task)
    return list(groups.values())


def each_version(report: LivepatchReport) -> Iterator[tuple[Patch, PatchedObject, PatchedFunction]]:
    """Every function of every patch with its patch and object."""
    for patch in report.patches:
        for each in patch.objects:
            for function in each.functions:
                yield patch, each, function
