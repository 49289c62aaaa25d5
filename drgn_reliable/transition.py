# SPDX-License-Identifier: LGPL-2.1-or-later
"""A livepatch transition as it is told: the report of :mod:`drgn_reliable.livepatch`, as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from drgn_reliable.kernellog import LogLine
from drgn_reliable.model import ProofVerdict, TaskReport
from drgn_reliable.patches import Patch, PatchedFunction, PatchedObject
from drgn_reliable.waiting import Wait

__all__ = (
    "Blocker",
    "Checked",
    "Decision",
    "Difference",
    "LivepatchReport",
    "PendingTask",
    "Transition",
    "each_version",
    "grouped",
)

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
    frame: int | None
    """Number of the frame, counted from the innermost; None if only the kernel's trace has it."""
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
    replaces: bool
    """The patch takes the place of all earlier ones."""
    pending: int
    """Tasks that have not reached the target state."""
    switched: int
    """Tasks that have reached the target state."""
    attempts: int | None
    """How often the kernel has tried in vain; it tries about once a second."""
    seconds: float | None
    """Since it began or was reversed, by the log; None if the log does not say."""
    back: int | None
    """Tasks that would be in the way of reversing it: they have switched, and are in the other
    version already or have a stack that the kernel cannot tell. None if not all were looked at."""

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
    forced: bool = False
    """The log tells that the last transition was forced, so tasks may be in old versions still."""
    history: tuple[LogLine, ...] = ()
    """What the log last said of livepatches: begun, woken, forced, complete."""
    problems: tuple[str, ...] = ()

    @property
    def stalled(self) -> bool:
        """Whether some task cannot be switched."""
        return any(task.decision is not Decision.WOULD_SWITCH for task in self.tasks)


def grouped(tasks: Iterable[PendingTask]) -> list[list[PendingTask]]:
    """The tasks that are in the same way for the same reason: same name and stack."""
    groups: dict[object, list[PendingTask]] = {}
    for task in tasks:
        report = task.report
        stack = tuple(frame.function for frame in report.frames)
        key = (report.comm, task.decision, task.functions, task.wait, stack)
        groups.setdefault(key, []).append(task)
    return list(groups.values())


def each_version(report: LivepatchReport) -> Iterator[tuple[Patch, PatchedObject, PatchedFunction]]:
    """Every function of every patch with its patch and object."""
    for patch in report.patches:
        for each in patch.objects:
            for function in each.functions:
                yield patch, each, function
