# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ten thousand seeded mutations of the dumps in ``vmcores/``, judged by the reference; and proof
that the judge is none that cannot say no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

import pytest
from drgn import FaultError

from contrib.fuzz import campaign
from contrib.fuzz.__main__ import dumps, main
from contrib.fuzz.damage import Scope
from contrib.fuzz.specimen import Specimen
from contrib.fuzz.trial import ALL_KINDS, READS, Trials, Violation
from drgn_reliable import KernelVerdict, Scanner, TaskReport
from drgn_reliable.memory import StackMemory
from drgn_reliable.text import Text
from tests.dumps import VMCORES

SEED, COUNT = 8, 10_000
SMALL = str(VMCORES / "livepatch" / "x86_64-6.12-kthread.kdump")
BACK_CHAIN = str(VMCORES / "s390x-6.12.kdump")
ARCHITECTURES = {"x86_64", "aarch64", "s390x", "ppc64le", "loongarch64"}
NEVER_PROVEN = ("stack-nonsense", "stack-hole", "stack-hidden")
"""Damage after which no trace with another verdict or other entries may be proven complete. Where a
return address is another plausible one, nothing in the dump tells."""
MEMORY = 640 << 20
"""Bytes: the package, two programs of the dump, the reference."""


@pytest.fixture(scope="module")
def summary() -> campaign.Summary:
    return campaign.run(dumps(), SEED, COUNT, jobs=os.cpu_count() or 1)


def test_nothing_is_violated(summary: campaign.Summary) -> None:
    """No false verdict, no traceback, no hang; the undamaged keep their reports."""
    assert summary.violations == []
    assert summary.mutations == COUNT
    assert set(summary.architectures) == ARCHITECTURES


def test_every_kind_of_damage_bites(summary: campaign.Summary) -> None:
    """Each is tried on many tasks, and what the package says is another thing for it."""
    for kind in ALL_KINDS:
        assert summary.counts["tried"][kind.name] >= 5, kind.name
        assert summary.counts["noticed"][kind.name] > 0, kind.name
    changed = summary.counts["changed"]
    assert all(changed[kind.name] for kind in ALL_KINDS if kind.scope is Scope.KERNEL)
    assert sum(changed.values()) > COUNT // 4
    assert sum(summary.counts["reliable"].values()) > COUNT // 4
    assert sum(summary.counts["refused"].values()) > COUNT // 200


def test_what_is_lost_is_told(summary: campaign.Summary) -> None:
    """A scan that lacks tasks because a list was damaged says so; but for a process whose list of
    threads seems to be of one."""
    lists = sum(summary.counts["tried"][k.name] for k in ALL_KINDS if k.scope is Scope.LISTS)
    assert sum(summary.counts["unsaid"].values()) <= lists // 20


def test_damage_is_not_proven(summary: campaign.Summary) -> None:
    """Nonsense in a word of the walk never makes a proven trace another one."""
    assert {kind: summary.counts["proven"][kind] for kind in NEVER_PROVEN} == dict.fromkeys(
        NEVER_PROVEN, 0
    )


def test_the_campaign_is_bounded(summary: campaign.Summary) -> None:
    """Reads of a scan, in times of the sound dump's, and memory of a process."""
    assert summary.reads <= 2 * READS
    assert 0 < summary.memory <= MEMORY


# The judge -------------------------------------------------------------------------------


@cache
def small(path: str = SMALL) -> Specimen:
    return Specimen(path)


def tried(only: str, count: int = 48, path: str = SMALL) -> list[Violation]:
    """The violations of some mutations of one kind; the package starts anew."""
    specimen = small(path)
    specimen.renew()
    found = list(Trials(specimen, SEED, frozenset([only])).run(0, count))
    specimen.stale = True
    return found


def test_the_judge_agrees_with_the_honest() -> None:
    """What the lies below are measured against."""
    for kind in ("stack-nonsense", "stack-own", "saved-other", "stack-beside", "tasks-pointer"):
        assert tried(kind) == []


def test_a_text_check_that_lies_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any program counter passes for kernel text."""
    honest = Text.at

    def lie(self: Text, pc: int, exact: bool) -> object:
        code = honest(self, pc, exact)
        return honest(self, self.core[0] + 1, True) if code.kind.value == "unknown" else code

    monkeypatch.setattr(Text, "at", lie)
    found = tried("stack-nonsense", 100, BACK_CHAIN)
    assert any("is reliable" in violation.what for violation in found)


def test_a_stack_bound_that_lies_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stack is all of memory."""
    small()

    def word(self: StackMemory, address: int) -> int | None:
        try:
            return small().prog.read_u64(address)
        except (FaultError, OverflowError):
            return None

    monkeypatch.setattr(StackMemory, "contains", lambda self, address, size: True)
    monkeypatch.setattr(StackMemory, "word", word)
    found = tried("saved-other", 100)
    assert any("is reliable" in violation.what for violation in found)


def _old_news(self: Scanner, tasks: Iterable[object]) -> Iterator[TaskReport]:
    """What was said of the sound dump."""
    return iter(small().baseline.values())


def _all_reliable(self: Scanner, tasks: Iterable[object]) -> Iterator[TaskReport]:
    """Reliable, with the entries of the frames that were found."""
    for report in _HONEST(self, tasks):  # type: ignore[arg-type]
        if report.kernel.verdict is KernelVerdict.UNRELIABLE:
            entries = tuple(frame.code.pc for frame in report.frames)
            kernel = report.kernel._replace(verdict=KernelVerdict.RELIABLE, entries=entries)
            report = replace(report, kernel=kernel)
        yield report


def _endless(self: Scanner, tasks: Iterable[object]) -> Iterator[TaskReport]:
    """A list that leads back into itself is followed for ever."""
    while True:
        yield from _HONEST(self, small().kernel.tasks)


def _raising(self: Scanner, tasks: Iterable[object]) -> Iterator[TaskReport]:
    """Something of the dump is taken for granted."""
    raise KeyError("no such register")
    yield


def _neighbours(self: Scanner, tasks: Iterable[object]) -> Iterator[TaskReport]:
    """The damage of one task is told of another too."""
    before = None
    for report in _HONEST(self, tasks):  # type: ignore[arg-type]
        hurt = before is not None and before.reasons
        yield replace(report, reasons=before.reasons) if before and hurt else report
        before = report


_HONEST = Scanner.reports


@pytest.mark.parametrize(
    ("lie", "kind", "word"),
    [
        (_old_news, "stack-nonsense", "is reliable"),
        (_old_news, "saved-other", "is reliable"),
        (_all_reliable, "stack-nonsense", "is reliable"),
        (_endless, "tasks-loop", "no bounded scan"),
        (_endless, "stack-beside", "no bounded scan"),
        (_raising, "stack-beside", "KeyError"),
        (_neighbours, "stack-magic", "the undamaged"),
    ],
)
def test_a_scan_that_lies_is_caught(
    monkeypatch: pytest.MonkeyPatch, lie: Callable[..., object], kind: str, word: str
) -> None:
    """Each way to be wrong is a violation that says which."""
    small()
    monkeypatch.setattr(Scanner, "reports", lie)
    assert any(word in violation.what for violation in tried(kind, 16))


# Repeating -------------------------------------------------------------------------------


def test_a_seed_and_a_number_are_a_mutation() -> None:
    """The same in another process; another number, seed or dump is another one."""
    specimen = small()
    here = [Trials(specimen, SEED).mutation(number)[1].what for number in range(20)]
    code = (
        "import json, sys; from contrib.fuzz.specimen import Specimen; "
        "from contrib.fuzz.trial import Trials; t = Trials(Specimen(sys.argv[1]), 8); "
        "print(json.dumps([t.mutation(n)[1].what for n in range(20)]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, SMALL], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == here
    assert len(set(here)) > 15
    assert here != [Trials(specimen, SEED + 1).mutation(n)[1].what for n in range(20)]


def test_a_violation_says_how_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its line is a command, which finds the same once more, and alone."""
    small()
    monkeypatch.setattr(Scanner, "reports", _old_news)
    found = tried("stack-nonsense", 16)[0]
    command = campaign.repeat_command(SEED, found.number, small().path, ["stack-nonsense"])
    words = command.split()
    assert words[:4] == ["python", "-m", "contrib.fuzz", "repeat"]
    monkeypatch.setattr("contrib.fuzz.__main__.Specimen", lambda path: small())
    assert main(words[3:]) == 1
    assert f"VIOLATION {found.what}" in capsys.readouterr().out


def test_a_process_that_dies_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs, too: no part of a campaign is lost without a word."""
    monkeypatch.setattr(campaign, "MEMORY", 1 << 20)
    summary = campaign.run([VMCORES / "livepatch" / "x86_64-6.12-kthread.kdump"], 1, 10, 1)
    (line,) = summary.violations
    assert "process: ended with" in line
    assert summary.mutations == 0
    monkeypatch.undo()
    monkeypatch.setattr(campaign, "PATIENCE", 0.1)
    summary = campaign.run([VMCORES / "livepatch" / "x86_64-6.12-kthread.kdump"], 1, 10, 1)
    assert "no answer in 0 seconds" in summary.violations[0]
