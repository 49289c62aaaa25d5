# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tasks of a dump that can be cloned, and what a clone of each is made from."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from drgn import FaultError, Object, sizeof

from drgn_reliable import Kernel, Scanner
from drgn_reliable.memory import member_offset
from drgn_reliable.model import FoundBy, KernelVerdict, TaskKind, TaskReport
from drgn_reliable.tasks import Task

__all__ = ("Part", "Pattern", "Template", "find_templates", "offset_of", "pid_size")

_USER = range(1 << 28, 1 << 47)
"""Addresses of a process, of those that its registers may hold."""
_REWRITTEN = (FoundBy.FUNCTION_GRAPH, FoundBy.KRETPROBE)
_REGISTERS = 256
"""Bytes at the end of a stack in which the registers of user mode are."""


class Part(IntEnum):
    """What each task has of its own; threads of a process share one of the last."""

    TASK = 0
    STACK = 1
    PID = 2
    SIGNAL = 3


@dataclass(frozen=True)
class Pattern:
    """A part of a task, to be copied to other places."""

    data: bytes
    present: tuple[bool, ...]
    """For each page's worth of bytes, whether the dump had any of it."""
    pointers: tuple[tuple[int, Part, int], ...]
    """Offsets of the words that point into the parts of the same task, into which, and how far."""
    user: tuple[tuple[int, int], ...] = ()
    """Offset and value of the words that are addresses of the process."""


@dataclass(frozen=True)
class Template:
    """A task that can be cloned."""

    task: Task
    report: TaskReport
    parts: tuple[Pattern, ...]
    """By :class:`Part`."""
    weight: float
    """How often it is to be cloned."""


def offset_of(kernel: Kernel, type_: str, member: str) -> int:
    """Where a member is, in bytes.

    :raises LookupError: if the kernel's type has no such member.
    """
    found = member_offset(kernel.prog.type(type_), member)
    if found is None:
        raise LookupError(f"{type_} has no member {member}")
    return found


def pid_size(kernel: Kernel) -> int:
    """Bytes of a ``struct pid`` of the first namespace."""
    upid: int = sizeof(kernel.prog.type("struct upid"))
    return offset_of(kernel, "struct pid", "numbers") + upid


def find_templates(kernel: Kernel, stack_size: int, task_size: int) -> list[Template]:
    """The tasks of which clones behave as they do, those of the commonest stack first.

    They are user tasks that are off the CPU and on their own stacks, and whose returns nobody
    probes or traces: others have state outside of their task structure and stack.

    :param task_size: bytes between task structures of one slab.
    """
    tasks = list(kernel.tasks)
    reports = list(Scanner(kernel).reports(tasks))
    chosen = [
        (task, report)
        for task, report in zip(tasks, reports, strict=True)
        if _can_be_cloned(task, report, stack_size)
    ]
    common = Counter(_stack(report) for _, report in chosen)
    chosen.sort(key=lambda each: (-common[_stack(each[1])], each[0].pid))
    ranks = {stack: rank for rank, stack in enumerate(dict.fromkeys(_stack(r) for _, r in chosen))}
    return [
        Template(
            task,
            report,
            _parts(kernel, task, stack_size, task_size),
            1 / (1 + ranks[_stack(report)]) / common[_stack(report)],
        )
        for task, report in chosen
    ]


def _can_be_cloned(task: Task, report: TaskReport, stack_size: int) -> bool:
    return (
        task.kind is TaskKind.USER
        and task.pid > 1
        and task.has_stack
        and task.stack <= task.saved_sp < task.stack + stack_size
        and not task.on_cpu
        and not task.exit_state
        and not any(frame.found_by in _REWRITTEN for frame in report.frames)
        and not task.return_hooks
        and report.kernel.verdict is not KernelVerdict.RUNNING
    )


def _stack(report: TaskReport) -> tuple[int, ...]:
    return tuple(frame.pc for frame in report.frames)


def _parts(kernel: Kernel, task: Task, stack_size: int, task_size: int) -> tuple[Pattern, ...]:
    prog = kernel.prog
    of_task = Object(prog, "struct task_struct *", task.address)
    areas = (
        (task.address, task_size),
        (task.stack, stack_size),
        (of_task.thread_pid.value_(), pid_size(kernel)),
        (of_task.signal.value_(), sizeof(prog.type("struct signal_struct"))),
    )
    return tuple(_pattern(kernel, part, areas) for part in Part)


def _pattern(kernel: Kernel, part: Part, areas: Sequence[tuple[int, int]]) -> Pattern:
    address, size = areas[part]
    page_size = int(kernel.vmcoreinfo["PAGESIZE"])
    data, present = bytearray(size), []
    for at in range(address & -page_size, address + size, page_size):
        start, end = max(at, address), min(at + page_size, address + size)
        try:
            data[start - address : end - address] = kernel.prog.read(start, end - start)
            present.append(True)
        except FaultError:
            present.append(False)
    pointers, user = [], []
    for number, (word,) in enumerate(struct.iter_unpack("<Q", data[: size & -8])):
        for of, (start, length) in enumerate(areas):
            # The end of a stack is a value of its stack pointer.
            if start <= word < start + length or (of == Part.STACK and word == start + length):
                pointers.append((8 * number, Part(of), word - start))
                break
        if part is Part.STACK and word in _USER and 8 * number >= size - _REGISTERS:
            user.append((8 * number, word))
    return Pattern(bytes(data), tuple(present), tuple(pointers), tuple(user))
