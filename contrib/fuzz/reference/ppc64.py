# SPDX-License-Identifier: LGPL-2.1-or-later
"""powerpc64, little-endian, since 6.4: ``arch_stack_walk_reliable()`` of
arch/powerpc/kernel/stacktrace.c, read in 6.12.
"""

from __future__ import annotations

from collections.abc import Iterator

from contrib.fuzz.reference.answers import Unreliable
from contrib.fuzz.reference.code import Code
from contrib.fuzz.reference.machine import Machine
from contrib.fuzz.reference.tracers import Tracers

KTHREAD = 0x200000
MIN_SIZE, REGS_OVERHEAD, REDZONE = 32, 48, 288
MARKER, MARKER_AT, LR_AT = 0x53474552, 32, 16


def entries(m: Machine, code: Code, task: int, stack: int) -> Iterator[int]:
    """Each entry, in the order of the kernel's."""
    tracers = Tracers(m, task)
    user_frame = m.size("pt_regs") + REGS_OVERHEAD
    end = stack + m.thread_size
    end -= MIN_SIZE if m.get("task_struct", task, "flags") & KTHREAD else user_frame
    sp = m.get("task_struct", task, "thread.ksp")
    if sp < stack + m.size("thread_struct") or sp > end - MIN_SIZE:
        raise Unreliable("the saved stack pointer is off the stack")
    first = True
    while sp != end:
        if sp & 15:
            raise Unreliable("misaligned")
        following = m.number(sp)
        if following <= sp:
            raise Unreliable("the chain goes down")
        if following != end and following > end - MIN_SIZE:
            raise Unreliable("the chain leaves the stack")
        if not first:
            if sp <= end - user_frame - REDZONE and m.number(sp + MARKER_AT) == MARKER:
                raise Unreliable("registers")
            ip = m.number(sp + LR_AT)
            if not code.is_text(ip):
                raise Unreliable("not text")
            ip = tracers.graph_return(ip, sp)
            if ip == tracers.probe_trampoline:
                raise Unreliable("probed")
            yield ip
        first = False
        sp = following
