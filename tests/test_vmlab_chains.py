# SPDX-License-Identifier: LGPL-2.1-or-later
"""Holding proven traces against the functions that are known to be on the stack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contrib.vmlab import chains
from contrib.vmlab.chains import ChainsError, Table, missing_functions, what_is_missing
from drgn_reliable import ProofVerdict
from tests.conftest import Scanned

TABLE = r"""
acts:
  mine: ... mine
tasks:
  gap: first ... last
  twice: first again x2 last
  maybe: first between ? last
  part: first $end
  "some*": one|other
parts:
  thread: thread_main ...
  process: states_write ...
  end: middle end ...
callers:
  callee: caller(_\w+)?
below:
  deep: bottom
"""


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """A small one."""
    return chains.load(put(tmp_path, TABLE))


def put(directory: Path, text: str) -> Path:
    path = directory / "chains.yaml"
    path.write_text(text)
    return path


COMPLETE = {
    "nothing between": ("gap", "first last"),
    "something between": ("gap", "first one two last"),
    "as often": ("twice", "first again again last"),
    "what may be inlined": ("maybe", "first between last"),
    "what was inlined": ("maybe", "first last"),
    "a part": ("part", "first middle end and more"),
    "a pattern, the one": ("something", "one"),
    "a pattern, the other": ("somebody", "other"),
    "a part of a function": ("gap", "first.isra.0 last.cold"),
    "a thread's act": ("k_mine", "schedule mine thread_main kthread"),
    "a process's act": ("u_mine", "schedule mine states_write vfs_write"),
    "labels": ("twice", "first .L1 .LVL2 last"),
    "a task of which nothing is known": ("other", ""),
    "a caller": ("other", "callee caller_one"),
    "the bottom": ("other", "deep one two bottom"),
}


@pytest.mark.parametrize(("comm", "names"), COMPLETE.values(), ids=COMPLETE.keys())
def test_what_is_complete_is_not_told(table: Table, comm: str, names: str) -> None:
    """Nothing is missing."""
    assert what_is_missing(comm, names.split(), table) is None


INCOMPLETE = {
    "the first": ("gap", "last", "no first at the top"),
    "the last": ("gap", "first one", "no last below one"),
    "everything": ("gap", "", "no first at the top"),
    "once instead of twice": ("twice", "first again last", "no again below first"),
    "thrice instead of twice": ("twice", "first again again again last", "no last below again"),
    "one too many": ("maybe", "first last more", "more is below the end of the chain"),
    "another one": ("maybe", "first another last", "no last below first"),
    "the same twice": ("gap", "first first last", "first is there 2 times, not 1"),
    "a name's beginning": ("gap", "first_of last", "no first at the top"),
    "too few labels": ("twice", "first .L1 last", "no again below first"),
    "the act": ("k_mine", "schedule thread_main kthread", "no mine below kthread"),
    "what ends a thread": ("k_mine", "mine states_write", "no thread_main below mine"),
    "a caller": ("other", "callee other", r"no caller(_\w+)? below callee"),
    "any caller": ("other", "callee", r"no caller(_\w+)? below callee"),
    "the bottom": ("other", "bottom deep", "no bottom anywhere below deep"),
}


@pytest.mark.parametrize(("comm", "names", "told"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_what_is_missing_is_told(table: Table, comm: str, names: str, told: str) -> None:
    """One function, and where it should have been."""
    assert what_is_missing(comm, names.split(), table) == told


TABLES = {
    "a section": ("chain: {}", "chains.yaml: no section is called chain"),
    "a part": ("tasks: {a: $b}", "there is no part \\$b"),
    "a pattern": ("tasks: {a: (b}", "\\(b: missing \\)"),
}


@pytest.mark.parametrize(("text", "message"), TABLES.values(), ids=TABLES.keys())
def test_a_table_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A spelling mistake does not make a check vanish."""
    with pytest.raises(ChainsError, match=message):
        chains.load(put(tmp_path, text))


def test_a_function_taken_out_of_any_trace_is_missed(scanned: Scanned) -> None:
    """Whichever function of a known chain goes from whichever proven trace: it is told."""
    table = chains.load()
    seen = 0
    for report in scanned.reports:
        chain = table.chain(report.comm)
        if not chain or report.proof.verdict is not ProofVerdict.PROVEN:
            continue
        names = chains.names_of(report)
        wanted = {item.text for item in chain if item.least}
        for place in (place for place, name in enumerate(names) if name in wanted):
            without = [*names[:place], *names[place + 1 :]]
            assert what_is_missing(report.comm, without, table), (report.comm, names[place])
            seen += 1
    _, proven = chains.coverage(scanned.reports)
    assert seen > 2 * proven > 0


def test_only_what_is_said_to_be_proven_is_held(scanned_6_1: Scanned) -> None:
    """The line names the task and the function; a task that is not proven may lack any."""
    whole = scanned_6_1.task("k_krp_twice")
    assert [f.code.symbol for f in whole.frames[3:5]] == ["vmlab_krp_sleep", "vmlab_krp_outer"]
    report = replace(whole, frames=[*whole.frames[:4], *whole.frames[5:]])
    told = "proven, but no vmlab_krp_outer below vmlab_krp_sleep"
    assert missing_functions([whole, report]) == [f"{whole.pid} k_krp_twice: {told}"]
    doubted = whole.proof._replace(verdict=ProofVerdict.UNDECIDED)
    assert missing_functions([replace(report, proof=doubted)]) == []
    assert chains.coverage([whole, report, replace(report, proof=doubted)]) == (3, 2)
    assert chains.coverage([replace(whole, comm="nobody")]) == (0, 0)
