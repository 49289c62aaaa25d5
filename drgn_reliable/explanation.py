# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an explanation of a task's trace consists of: pure data.

:mod:`drgn_reliable.explain` makes it, :mod:`drgn_reliable.render.explanation` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from drgn_reliable.formulas import Assigned
from drgn_reliable.model import Code, FoundBy, Frame, Reason, TaskReport

__all__ = (
    "ExplainedStack",
    "ExplainedStep",
    "Explanation",
    "Read",
    "Replaced",
    "ShownRule",
    "StackWord",
)


class Read(NamedTuple):
    """A word that a step read from a stack."""

    address: int
    value: int | None
    """None if the dump lacks it."""
    role: str
    """What it turned out to be: ``pc``, ``fp``, …; empty if the walk only looked at it."""


class Replaced(NamedTuple):
    """A return address that was not taken as it was read."""

    read: int
    taken: int
    why: str
    """What was read, and where the one that was taken comes from."""


@dataclass(frozen=True, slots=True)
class ShownRule:
    """A rule for a step."""

    provider: str
    """Who gives it."""
    formula: str
    values: tuple[Assigned, ...]
    """The formula with numbers; empty where it has none, as at the end of a stack, or needs what
    is not known of the frame."""


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """From one frame to the next."""

    frame: int
    """Number of the frame that it starts from."""
    code: Code
    sp: int
    stack: str
    """Name of the stack that the frame is on."""
    found_by: FoundBy
    """How the frame was found."""
    rules: tuple[ShownRule, ...]
    """The one that was followed first, then those that it can be held against."""
    registers_at: int | None
    """Address of the ``struct pt_regs`` that it leads to, None if it leads to a caller."""
    reads: tuple[Read, ...]
    replaced: Replaced | None
    kernel: bool
    """The kernel's walk came by this frame, too."""
    reasons: tuple[Reason, ...]
    """What was noted at this step, by either walk."""


@dataclass(frozen=True, slots=True)
class StackWord:
    """One word of a stack."""

    address: int
    value: int | None
    notes: tuple[str, ...]
    """What it is, as far as the walk tells, and what it looks like."""


@dataclass(frozen=True, slots=True)
class ExplainedStack:
    """A stack that the walk came by, from the lowest word that matters up to its end."""

    name: str
    low: int
    high: int
    """One past its last byte."""
    words: tuple[StackWord, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that there is to say of one task's trace."""

    report: TaskReport
    start: tuple[tuple[str, int], ...]
    """The registers from which the walk starts, by name."""
    steps: tuple[ExplainedStep, ...]
    """One for each frame of the report; none if there is no frame."""
    end: str
    """How the proof's walk ended."""
    kernel_end: str
    """How the kernel's did."""
    kernel_frames: tuple[Frame, ...]
    """What the kernel's walk came by."""
    stacks: tuple[ExplainedStack, ...]
