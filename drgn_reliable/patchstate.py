# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a livepatch transition has done to each task, and the clock of the dump."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from drgn import FaultError, Object
from drgn.helpers.linux.percpu import per_cpu

from drgn_reliable.errors import MissingInformation
from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import MASK, Layout, member_offset, named_type
from drgn_reliable.tasks import Task, cpus_in_mask
from drgn_reliable.transition import PendingTask

__all__ = ("PatchStates", "clock", "offline_cpus")

FLAG_BITS: dict[str, tuple[int, ...]] = {
    "x86_64": (13, 9),
    "aarch64": (13,),
    "s390x": (5, 9),
    "ppc64le": (6,),
    "loongarch64": (21, 9),
}
"""Where TIF_PATCH_PENDING is in ``thread_info.flags``: a macro that moved when Linux 7.0 made the
flags of several architectures common (include/asm-generic/thread_info_tif.h)."""


class PatchStates:
    """The livepatch state of tasks."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._problems: list[str] = []
        self._lacking = 0
        self._flags: dict[int, int] = {}

    def problems(self) -> tuple[str, ...]:
        """What could not be read so far, one line each."""
        lacking = f"patch_state of {self._lacking} tasks is not in this dump"
        return (*self._problems, *([lacking] if self._lacking else ()))

    def of(self, task: Task) -> int | None:
        """``patch_state``: 1 patched, 0 unpatched, -1 no transition; None if the dump lacks it.
        Remembers the task's flags."""
        if self._state is None:
            return None
        prog = self._kernel.prog
        try:
            state = int(self._state.read(prog, task.address)["state"])
        except FaultError:
            self._lacking += 1
            return None
        with suppress(FaultError):
            self._flags[task.address] = self._thread_flags(task)
        return state

    @cached_property
    def _state(self) -> Layout | None:
        try:
            return Layout(self._kernel.prog.type("struct task_struct"), {"state": "patch_state"})
        except MissingInformation as e:
            self._problems.append(str(e))
            return None

    def _thread_flags(self, task: Task) -> int:
        """In ``struct task_struct``, or at the low end of the stack where that holds the
        ``struct thread_info``."""
        prog = self._kernel.prog
        offset = member_offset(prog.type("struct task_struct"), "thread_info.flags")
        if offset is not None:
            return int(prog.read_u64(task.address + offset & MASK))
        offset = member_offset(named_type(prog, "struct thread_info"), "flags") or 0
        return int(prog.read_u64(task.stack + offset & MASK))

    def flagged(
        self, pending: Sequence[PendingTask], waiting: Collection[int]
    ) -> list[PendingTask]:
        """The tasks with :attr:`~drgn_reliable.transition.PendingTask.flagged` filled in.

        Which flag it is shows in the dump: all tasks that have not switched have it, and all that
        have do not. Where that fits none or several, it is not told.

        :param waiting: the addresses of all tasks that have not switched.
        """
        fitting = [
            bit
            for bit in FLAG_BITS.get(self._kernel.architecture, ())
            if all((flags >> bit & 1) == (at in waiting) for at, flags in self._flags.items())
        ]
        if len(fitting) != 1:
            return list(pending)
        bit = fitting[0]
        return [
            replace(task, flagged=bool(self._flags[task.report.task] >> bit & 1))
            if task.report.task in self._flags
            else task
            for task in pending
        ]


def offline_cpus(kernel: Kernel) -> frozenset[int]:
    """The CPUs whose idle tasks are switched without a look at their stacks."""
    possible, online = (
        kernel.symbols.address(name) for name in ("__cpu_possible_mask", "__cpu_online_mask")
    )
    try:
        if possible is None or online is None:
            return frozenset()
        prog = kernel.prog
        return frozenset(cpus_in_mask(prog, possible)) - frozenset(cpus_in_mask(prog, online))
    except (FaultError, MissingInformation):
        return frozenset()


def clock(kernel: Kernel) -> float | None:
    """Seconds on the clock of the log at the instant of the dump, as the CPUs' run queues last
    saw it; None if the dump lacks them."""
    mask = kernel.symbols.address("__cpu_online_mask")
    latest: int | None = None
    try:
        queues: Object = kernel.prog["runqueues"]
        for cpu in cpus_in_mask(kernel.prog, mask) if mask is not None else ():
            now = int(per_cpu(queues, cpu).clock.value_())
            latest = now if latest is None else max(latest, now)
    except (FaultError, LookupError, MissingInformation):
        return None
    return None if latest is None else latest / 1e9
