# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which functions a compiler put into another one."""

from __future__ import annotations

from collections.abc import Collection

from drgn import FaultError, Object

from drgn_reliable.kernel import Kernel
from drgn_reliable.tasks import Task

__all__ = ("inlined_at",)


def inlined_at(kernel: Kernel, task: Task, addresses: Collection[int]) -> tuple[str, ...]:
    """The functions that are inlined at some return addresses of a task's stack, the innermost
    first; none without debug information.

    :param addresses: the return addresses.
    """
    if not addresses or not kernel.has_debug_information:
        return ()
    pointer = Object(kernel.prog, "struct task_struct *", task.address)
    try:
        trace = kernel.prog.stack_trace(pointer)
        found = [f.name for f in trace if f.is_inline and f.pc in addresses and f.name]
    except (FaultError, LookupError, ValueError):
        return ()
    return tuple(dict.fromkeys(found))
