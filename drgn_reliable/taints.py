# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has tainted a kernel, and which of it matters to stack traces.

The bits are numbered in include/linux/panic.h; a module's ``taints`` uses the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("Taint", "letters", "taints")


class Taint(NamedTuple):
    """One bit of ``tainted_mask``."""

    letter: str
    words: str
    matters: str = ""
    """Why a stack trace may suffer; empty if it does not."""

    def __str__(self) -> str:
        return f"{self.letter}: {self.words}"


_FOREIGN = "its code and its unwind data come from elsewhere"

_TAINTS = (
    Taint("P", "proprietary module", _FOREIGN),
    Taint("F", "module loaded by force", "its unwind data may not fit this kernel"),
    Taint("S", "hardware out of specification"),
    Taint("R", "module unloaded by force", "a stack may still lead into its code"),
    Taint("M", "machine check", "memory may be damaged"),
    Taint("B", "bad page", "memory may be damaged"),
    Taint("U", "by request from user space"),
    Taint("D", "an oops or a BUG", "a task died in the middle of kernel code"),
    Taint("A", "ACPI table overridden"),
    Taint("W", "a warning", "it may be the unwinder's: look for it in the log"),
    Taint("C", "staging driver"),
    Taint("I", "workaround for a firmware bug"),
    Taint("O", "module from out of tree", _FOREIGN),
    Taint("E", "module without a valid signature"),
    Taint("L", "soft lockup", "a task did not leave the kernel for long"),
    Taint("K", "livepatched", "functions may be entered by a detour and exist twice"),
    Taint("X", "auxiliary, by the distribution"),
    Taint("T", "randomised structures"),
    Taint("N", "a test has run", "it may have damaged kernel structures"),
    Taint("J", "firmware changed through fwctl"),
)
"""By the number of the bit."""


def taints(mask: int) -> list[Taint]:
    """The bits that are set.

    >>> [str(taint) for taint in taints(1 << 15 | 1 << 9)]
    ['W: a warning', 'K: livepatched']
    """
    found = [taint for bit, taint in enumerate(_TAINTS) if mask >> bit & 1]
    unknown = mask >> len(_TAINTS) << len(_TAINTS)
    return [*found, Taint("?", f"unknown bits {unknown:#x}")] if unknown else found


def letters(mask: int) -> str:
    """The bits that are set, as ``/proc/modules`` shows them.

    >>> letters(1 << 12 | 1 << 13)
    'OE'
    """
    return "".join(taint.letter for taint in taints(mask))
