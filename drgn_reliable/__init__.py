# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reliability of every task's kernel stack trace in a Linux dump, with reasons.

The Python API, on any :class:`drgn.Program` of a Linux kernel::

    from drgn_reliable import KernelVerdict, open_dump, scan

    report = scan(open_dump("vmcore"))
    for task in report.tasks:
        if task.kernel.verdict is not KernelVerdict.RELIABLE:
            print(task.pid, task.comm, [reason.id for reason in task.reasons])
"""

from drgn_reliable.errors import (
    DumpError,
    MissingInformation,
    ReliableError,
    TaskNotFound,
    UnsupportedKernel,
    UsageError,
)
from drgn_reliable.kernel import Kernel
from drgn_reliable.model import (
    DumpReport,
    Frame,
    KernelVerdict,
    ProofVerdict,
    Reason,
    TaskKind,
    TaskReport,
)
from drgn_reliable.opening import open_dump
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.report import Scanner, scan, scan_task
from drgn_reliable.version import VERSION

__version__ = VERSION

__all__ = (
    "CATALOGUE",
    "DumpError",
    "DumpReport",
    "Frame",
    "Kernel",
    "KernelVerdict",
    "MissingInformation",
    "ProofVerdict",
    "Reason",
    "ReliableError",
    "Scanner",
    "TaskKind",
    "TaskNotFound",
    "TaskReport",
    "UnsupportedKernel",
    "UsageError",
    "open_dump",
    "scan",
    "scan_task",
)
