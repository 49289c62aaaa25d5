# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong before the first task is walked; each message is one line for a person.

Nothing here is raised for a single bad task: what is wrong with a task is a reason
(:mod:`drgn_reliable.reasons`).
"""

from __future__ import annotations

__all__ = (
    "DumpError",
    "MissingInformation",
    "ReliableError",
    "TaskNotFound",
    "UnsupportedKernel",
    "UsageError",
)


class ReliableError(Exception):
    """Base of all errors that the package raises for its user."""


class UsageError(ReliableError):
    """An argument is wrong; the message says which, its value and what to do."""


class TaskNotFound(UsageError):
    """No task has the process identifier or address that was asked for."""


class DumpError(ReliableError):
    """The dump cannot be opened or is not a Linux kernel dump."""


class MissingInformation(DumpError):
    """Neither the dump nor debug information holds something that is needed."""


class UnsupportedKernel(DumpError):
    """The dump is sound, but of an architecture or unwinder that the package does not know."""
