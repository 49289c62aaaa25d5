# SPDX-License-Identifier: LGPL-2.1-or-later
"""``stack_trace_save_tsk_reliable()`` (kernel/stacktrace.c): the loop around each walk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from contrib.fuzz.reference import arm64, loongarch64, ppc64, s390x, x86_fp, x86_orc
from contrib.fuzz.reference.answers import Answer, Fault, Unreliable, Verdict
from contrib.fuzz.reference.code import Code
from contrib.fuzz.reference.machine import Machine

ROOM = 100
"""``MAX_STACK_ENTRIES`` of kernel/livepatch/transition.c."""


class Reference:
    """Answers for the tasks of one kernel.

    :param architecture: ``uname -m``.
    """

    def __init__(self, machine: Machine, architecture: str) -> None:
        self.m = machine
        self.supported = machine.symbol("arch_stack_walk_reliable") is not None
        self.code = Code(machine, gate=architecture == "x86_64")
        has_orc = machine.symbol("__start_orc_unwind_ip") is not None
        self._entries: Callable[[int, int], Iterator[int]] = {
            "x86_64": self._x86_orc if has_orc else self._x86_fp,
            "aarch64": self._arm64,
            "s390x": self._s390x,
            "ppc64le": self._ppc64,
            "loongarch64": self._loongarch64,
        }[architecture]

    def answer(self, task: int) -> Answer:
        """For a task, by the address of its ``struct task_struct``."""
        m = self.m
        if not self.supported:
            return Answer(Verdict.UNSUPPORTED)
        try:
            if m.has("task_struct", "on_cpu") and m.get("task_struct", task, "on_cpu"):
                return Answer(Verdict.RUNNING)
            stack = m.get("task_struct", task, "stack")
            if not stack or not m.get("task_struct", task, "stack_refcount.refs.counter"):
                return Answer(Verdict.RELIABLE)
            found: list[int] = []
            self._blind = False
            for entry in self._entries(task, stack):
                found.append(entry)
                if len(found) >= ROOM:
                    return Answer(Verdict.UNRELIABLE)
        except Unreliable:
            return Answer(Verdict.UNRELIABLE)
        except Fault:
            return Answer(Verdict.FAULT)
        return Answer(Verdict.RELIABLE, tuple(found), self._blind)

    def _x86_orc(self, task: int, stack: int) -> Iterator[int]:
        return self._x86(x86_orc.Walk(self.m, self.code, task, stack))

    def _x86_fp(self, task: int, stack: int) -> Iterator[int]:
        return self._x86(x86_fp.Walk(self.m, self.code, task, stack))

    def _x86(self, walk: x86_orc.Walk | x86_fp.Walk) -> Iterator[int]:
        self._blind = walk.blind
        while not walk.done and not walk.error:
            if walk.regs:
                if walk.user_mode():
                    return
                if walk.frame_pointers:
                    raise Unreliable("kernel registers")
            yield self._text(walk.ip)
            walk.next()
        if walk.error:
            raise Unreliable("error")

    def _text(self, ip: int) -> int:
        if not self.code.is_text(ip):
            raise Unreliable("not text")
        return ip

    def _arm64(self, task: int, stack: int) -> Iterator[int]:
        walk = arm64.Walk(self.m, task, stack)
        yield walk.pc
        while walk.next():
            yield walk.pc

    def _s390x(self, task: int, stack: int) -> Iterator[int]:
        walk = s390x.Walk(self.m, self.code, task, stack)
        while not walk.done:
            yield self._text(walk.ip)
            walk.next()

    def _ppc64(self, task: int, stack: int) -> Iterator[int]:
        return ppc64.entries(self.m, self.code, task, stack)

    def _loongarch64(self, task: int, stack: int) -> Iterator[int]:
        walk = loongarch64.Walk(self.m, self.code, task, stack)
        while not walk.done and not walk.error:
            yield self._text(walk.pc)
            walk.next()
        self._blind = walk.blind
        if walk.error:
            raise Unreliable("error")
