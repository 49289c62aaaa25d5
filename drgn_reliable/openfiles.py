# SPDX-License-Identifier: LGPL-2.1-or-later
"""The file that a task's system call works on."""

from __future__ import annotations

from drgn import FaultError, Object
from drgn.helpers.linux.fs import d_path, fget

from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import member_offset
from drgn_reliable.tasks import Task

__all__ = ("file_of_call",)

FIRST_ARGUMENT = ("di", "orig_x0", "orig_gpr2", "orig_gpr3", "orig_a0")
"""The member of ``struct pt_regs`` with a system call's first argument, of whichever architecture
the dump is."""
_DESCRIPTOR_LIMIT = 1 << 20
_PATH_LIMIT = 300


def file_of_call(kernel: Kernel, task: Task) -> str:
    """The path of the file whose descriptor is the first argument of the task's system call, as
    ``fd 3: /path``; empty if there is none or the dump lacks what it takes."""
    prog = kernel.prog
    regs = prog.type("struct pt_regs")
    offset = next((o for n in FIRST_ARGUMENT if (o := member_offset(regs, n)) is not None), None)
    if offset is None:
        return ""
    try:
        number = prog.read_u64(kernel.facts.user_regs(task.stack) + offset)
        if number >= _DESCRIPTOR_LIMIT:
            return ""
        pointer = Object(prog, "struct task_struct *", task.address)
        file = fget(pointer, number)
        if not file:
            return ""
        path = d_path(file.f_path.address_of_()).decode("utf-8", "backslashreplace")
    except (FaultError, LookupError, ValueError, TypeError, AttributeError):
        return ""
    return f"fd {number}: {path[:_PATH_LIMIT]}"
