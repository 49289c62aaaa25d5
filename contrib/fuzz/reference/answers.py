# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the reference answers."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """Of a kernel, for one task."""

    RELIABLE = "reliable"
    UNRELIABLE = "unreliable"
    RUNNING = "running"
    UNSUPPORTED = "unsupported"
    FAULT = "fault"
    """The walk needs memory that is not there: the kernel would have died of it, or the dump
    lacks it."""


class Answer(NamedTuple):
    """A verdict, and the entries if it is reliable."""

    verdict: Verdict
    entries: tuple[int, ...] = ()
    blind: bool = False
    """The walk left the task's stack and the kernel took that for its end. It says "reliable";
    nothing is proven wrong by refusing."""


class Unreliable(Exception):
    """The kernel returns -EINVAL here."""


class Fault(Exception):
    """The kernel would read memory here that is not there."""
