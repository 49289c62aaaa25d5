# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the data say of themselves, and how the reasons of two walks become those of one report."""

from __future__ import annotations

import pytest

from drgn_reliable.model import Code, CodeKind, CodeRole, Walk
from drgn_reliable.report import merged_reasons


@pytest.mark.parametrize(
    ("role", "of", "expected"),
    [
        (CodeRole.FUNCTION, None, ""),
        (CodeRole.FUNCTION, "foo", ""),
        (CodeRole.ENTRY, None, "entry"),
        (CodeRole.KPROBE, "foo+0x4", "kprobe slot of foo+0x4"),
        (CodeRole.UNKNOWN, None, "nothing known"),
    ],
)
def test_purpose(role: CodeRole, of: str | None, expected: str) -> None:
    """Code says in words what it is there for, and of what, unless it is an ordinary function."""
    assert Code(1, CodeKind.CORE, "foo", 0, None, None, role, of).purpose == expected


def walk(*reasons: tuple[str, int, str]) -> Walk:
    """One with these reasons: identifier, evidence, detail; each at a frame of its own."""
    made = Walk()
    for i, (id, value, detail) in enumerate(reasons):
        made.note(id, detail, pc=value, sp=None)
        made.reasons[-1] = made.reasons[-1]._replace(frame=i)
    return made


REFUSED, ADVISORY = "exception-boundary", "stack-end-overwritten"


@pytest.mark.parametrize(
    ("claim", "kernel", "proof", "expected"),
    [
        ("none of either", [], [], []),
        (
            "one that both met is told once, as the proof tells it",
            [(REFUSED, 1, "")],
            [(REFUSED, 1, "no rule for foo")],
            [(REFUSED, "no rule for foo")],
        ),
        (
            "met elsewhere, it is another",
            [(REFUSED, 1, "kernel")],
            [(REFUSED, 2, "proof")],
            [(REFUSED, "kernel"), (REFUSED, "proof")],
        ),
        (
            "the one that stopped the kernel comes first, wherever it was met",
            [(ADVISORY, 1, ""), (REFUSED, 2, "kernel")],
            [(ADVISORY, 1, ""), (REFUSED, 2, "proof"), ("providers-disagree", 3, "")],
            [(REFUSED, "proof"), (ADVISORY, ""), ("providers-disagree", "")],
        ),
        (
            "what only the kernel's walk met is kept",
            [("fgraph-window", 1, "")],
            [(ADVISORY, 1, "")],
            [("fgraph-window", ""), (ADVISORY, "")],
        ),
    ],
)
def test_merged_reasons(
    claim: str,
    kernel: list[tuple[str, int, str]],
    proof: list[tuple[str, int, str]],
    expected: list[tuple[str, str]],
) -> None:
    """Of both walks each once, and in the proof's words, whose frames are shown."""
    found = merged_reasons(walk(*kernel), walk(*proof))
    assert [(reason.id, reason.detail) for reason in found] == expected
