# SPDX-License-Identifier: LGPL-2.1-or-later
"""The catalogue of reasons against the hand-written stacks of every unwinder."""

from __future__ import annotations

from drgn_reliable.reasons import CATALOGUE
from tests import (
    test_walk_arm64,
    test_walk_loongarch64,
    test_walk_metadata,
    test_walk_ppc64,
    test_walk_s390x,
    test_walk_x86,
    test_walk_x86_fp,
)

TABLES = (
    test_walk_x86.CASES,
    test_walk_x86_fp.CASES,
    test_walk_arm64.CASES,
    test_walk_arm64.OLD_CASES,
    test_walk_s390x.CASES,
    test_walk_ppc64.CASES,
    test_walk_ppc64.OLD_CASES,
    test_walk_loongarch64.CASES,
    test_walk_metadata.CASES,
)

SHOWN_ELSEWHERE = {"loop"}
"""A walk of its own shows it: test_a_trace_without_end_is_a_loop."""


def test_every_reason_has_a_stack_that_shows_it() -> None:
    """The catalogue has no row that nothing can produce, and no stack a reason without a row."""
    shown = {reason for table in TABLES for case in table for reason in case.reasons}
    assert shown == set(CATALOGUE) - SHOWN_ELSEWHERE
