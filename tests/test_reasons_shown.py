# SPDX-License-Identifier: LGPL-2.1-or-later
"""The catalogue of reasons against what shows them: hand-written stacks and real dumps."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrib.docs import reasons as page
from contrib.docs.reasons import Evidence, EvidenceError
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
from tests.conftest import Scanned
from tests.dumps import DUMPS
from tests.walkers import Case

TABLES: dict[str, list[Case]] = {
    "test_walk_x86": test_walk_x86.CASES,
    "test_walk_x86_fp": test_walk_x86_fp.CASES,
    "test_walk_arm64": test_walk_arm64.CASES + test_walk_arm64.OLD_CASES,
    "test_walk_s390x": test_walk_s390x.CASES,
    "test_walk_ppc64": test_walk_ppc64.CASES + test_walk_ppc64.OLD_CASES,
    "test_walk_loongarch64": test_walk_loongarch64.CASES,
    "test_walk_metadata": test_walk_metadata.CASES,
}

SHOWN = {
    f"tests/{name}.py": {reason for case in table for reason in case.reasons}
    for name, table in TABLES.items()
}
"""By the file of their tests, the reasons of which there are hand-written stacks."""
SHOWN["tests/test_walk_x86.py"].add("loop")  # test_a_trace_without_end_is_a_loop
SHOWN["tests/test_live.py"] = {"task-moved"}

EVIDENCE = page.load()


def test_every_reason_has_a_stack_that_shows_it() -> None:
    """The catalogue has no row that nothing can produce, and no stack a reason without a row."""
    assert set().union(*SHOWN.values()) == set(CATALOGUE)


def test_every_reason_has_evidence() -> None:
    """A row for each reason, in the catalogue's order; those without a dump say why."""
    assert list(EVIDENCE) == list(CATALOGUE)
    for evidence in EVIDENCE.values():
        assert {file for file, _ in evidence.dumps} <= {dump.name for dump in DUMPS}
        assert bool(evidence.dumps) != bool(evidence.why.endswith("."))


def test_what_no_dump_shows_a_stack_does() -> None:
    """The file that a row names has a hand-written stack with that reason."""
    by_hand = {reason: row.by_hand for reason, row in EVIDENCE.items() if not row.dumps}
    assert [reason for reason, file in by_hand.items() if reason not in SHOWN[file]] == []


def test_the_dumps_show_what_is_said_of_them(scanned: Scanned) -> None:
    """The tasks have the reasons, and nothing that a dump shows is said to be in none."""
    claimed = {
        (reason, task)
        for reason, row in EVIDENCE.items()
        for file, task in row.dumps
        if file == scanned.dump.name
    }
    shown = {(reason.id, task.comm) for task in scanned.reports for reason in task.reasons}
    assert claimed - shown == set()
    assert [reason for reason, _ in sorted(shown) if not EVIDENCE[reason].dumps] == []


def test_the_page_is_current() -> None:
    """docs/reasons.md is what the catalogue and the evidence say."""
    text = page.PAGE.read_text()
    assert page.written(text, EVIDENCE) == text, "run python -m contrib.docs.reasons"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param("{}", id="nothing"),
        pytest.param("{dumps: {}}", id="no dumps"),
        pytest.param("{why: none.}", id="no stack"),
        pytest.param("{dumps: {a: b}, why: none., by_hand: c}", id="both"),
    ],
)
def test_evidence_is_a_dump_or_a_stack(tmp_path: Path, row: str) -> None:
    """Never neither, and never both."""
    (tmp_path / "rows.yaml").write_text(f"loop: {row}\n")
    with pytest.raises(EvidenceError, match=r"rows\.yaml: loop: either dumps, or why and by_hand"):
        page.load(tmp_path / "rows.yaml")


def test_a_page_without_markers_is_left_alone() -> None:
    """What is not between the markers is never written."""
    rows = {reason: Evidence(why="none.", by_hand="x") for reason in CATALOGUE}
    assert page.written(f"a{page.BEGIN}b{page.END}c", rows)[:1] == "a"
    for text in ("", page.BEGIN, page.END + page.BEGIN):
        with pytest.raises(EvidenceError, match="lacks the markers"):
            page.written(text, rows)
