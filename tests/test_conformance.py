# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every task of every real dump, against what its own kernel answered. No exception list."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from importlib import resources

import drgn
import jsonschema
import pytest

from contrib.vmlab import chains
from contrib.vmlab.conform import differences
from drgn_reliable import CATALOGUE, Kernel, KernelVerdict, ProofVerdict, Scanner, open_dump
from drgn_reliable.model import CodeKind, FoundBy
from drgn_reliable.repeats import KnownWalk, Repeats
from drgn_reliable.tasks import Task
from tests.conftest import CONFORMING, Scanned, scan_dump
from tests.dumps import DUMPS, VMCORES
from tests.reports import reported

MEGABYTE = 1 << 20
TRANSLATED = ("aarch64", "x86_64")
"""Architectures whose page tables drgn's library for kdump-compressed files knows."""


def test_the_manifest_names_the_file_that_is_there(scanned: Scanned) -> None:
    """A dump is the one that its verdicts were recorded for."""
    assert hashlib.sha256(scanned.dump.path.read_bytes()).hexdigest() == scanned.dump.sha256
    assert scanned.kernel.release == scanned.dump.release
    assert scanned.kernel.unwinder.name == scanned.dump.unwinder


def test_dumps_stay_small() -> None:
    """Each file stays under 8 MB and all of them under 80 MB: git keeps them for ever."""
    sizes = [path.stat().st_size for path in VMCORES.rglob("*")]
    assert max(sizes) < 8 * MEGABYTE
    assert sum(sizes) < 80 * MEGABYTE


def test_every_verdict_and_entry_is_the_kernels_own(
    scanned: Scanned, request: pytest.FixtureRequest
) -> None:
    """The kernel's tasks in its order, and for each the verdict that it gave and its entries."""
    total, wrong = len(scanned.reports), differences(scanned.reports, scanned.dump.rows)
    unasked = len(scanned.dump.damaged - scanned.dump.asked_again)
    equal = total - len(wrong) - unasked
    line = f"{scanned.dump.name:26} {scanned.kernel.unwinder.name:20} {equal} of {total}"
    line += f", {len(scanned.dump.damaged)} damaged on purpose" if scanned.dump.damaged else ""
    request.config.stash[CONFORMING].append(line)
    assert total > 50
    assert wrong == []


def test_the_json_of_every_dump_is_what_the_schema_says(scanned: Scanned) -> None:
    """The contract holds for every architecture."""
    name = "schema/drgn-reliable-1.json"
    schema = json.loads(resources.files("drgn_reliable").joinpath(name).read_text())
    jsonschema.validate(json.loads(reported(str(scanned.dump.path))), schema)


def test_a_difference_is_seen(scanned_6_1: Scanned) -> None:
    """What is not as recorded is named: a missing task, another verdict, another entry."""
    rows = scanned_6_1.dump.rows
    *reports, last = scanned_6_1.reports
    assert [line.partition(":")[0] for line in differences(reports, rows)] == [
        f"{len(reports)} tasks, not the {len(reports) + 1} recorded in their order",
        f"{last.pid} {last.comm}",
    ]
    entries = last.kernel.entries
    for answer in (
        last.kernel._replace(entries=entries[:-1]),
        last.kernel._replace(verdict=KernelVerdict.UNRELIABLE, entries=()),
    ):
        (line,) = differences([*reports, replace(last, kernel=answer)], rows)
        assert line.startswith(f"{last.pid} {last.comm}: {answer.verdict.value}")


def test_a_difference_after_damage_is_seen() -> None:
    """Of a damaged task that the kernel was asked about again, its second answer counts; and
    whatever it says, damage is not proven."""
    dump = next(dump for dump in DUMPS if dump.name == "x86_64-6.12.kdump")
    reports, rows = scan_dump(dump).reports, dump.rows
    at, report = next((i, r) for i, r in enumerate(reports) if r.comm == "hurt_early")
    assert report.kernel.entries == report.proof.entries != dump.find("hurt_early").entries
    proven = report.proof._replace(verdict=ProofVerdict.PROVEN)
    for wrong, told in (
        (replace(report, kernel=report.kernel._replace(entries=())), "reliable, recorded reliable"),
        (replace(report, proof=proven), "proven, though its stack was damaged"),
    ):
        (line,) = differences([*reports[:at], wrong, *reports[at + 1 :]], rows)
        assert line.startswith(f"{report.pid} hurt_early: {told}")
    unasked = "\n".join(row for row in rows.split("\n") if not row.startswith("H "))
    assert differences(reports, unasked) == []


def test_a_damaged_stack_is_never_proven(scanned: Scanned) -> None:
    """Tasks damaged after their kernel had answered: not every kernel notices, but the proof does.
    All but those on a CPU were asked for again."""
    damaged = [r for r in scanned.reports if r.pid in scanned.dump.damaged]
    assert len(damaged) == len(scanned.dump.damaged)
    for report in damaged:
        assert report.proof.verdict is not ProofVerdict.PROVEN, report
        running = report.kernel.verdict is KernelVerdict.RUNNING
        assert running != (report.pid in scanned.dump.asked_again)


def test_repeated_walks_are_those_that_would_be_made(
    scanned: Scanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every task's stack walked by itself, every report is the same; and when all are known,
    three of four of those without a reason are recognised."""
    scanner = Scanner(Kernel(open_dump(str(scanned.dump.path))))
    found: list[KnownWalk | None] = []
    find = Repeats.find

    def noting(repeats: Repeats, task: Task) -> KnownWalk | None:
        found.append(find(repeats, task))
        return found[-1]

    monkeypatch.setattr(Repeats, "find", noting)
    for _ in range(2):
        found.clear()
        assert tuple(scanner.reports(scanner.kernel.tasks)) == scanned.reports
    plain = sum(not r.reasons and bool(r.frames) for r in scanned.reports)
    assert len(found) == len(scanned.reports)
    assert 0.75 * plain < sum(walk is not None for walk in found) <= plain
    monkeypatch.setattr(Repeats, "find", lambda *args: None)
    assert tuple(scanner.reports(scanner.kernel.tasks)) == scanned.reports


def test_nothing_kept_the_scan_from_seeing_everything(scanned: Scanned) -> None:
    """A sound dump is scanned without a problem line."""
    assert scanned.problems == ()


def test_every_unreliable_trace_has_a_reason_that_the_kernel_refuses(scanned: Scanned) -> None:
    """The first reason of an unreliable trace is one for which the kernel refuses it."""
    for report in scanned.reports:
        if report.kernel.verdict in (KernelVerdict.UNRELIABLE, KernelVerdict.RUNNING):
            assert CATALOGUE[report.reasons[0].id].kernel, report


def test_every_reliable_trace_of_these_dumps_is_proven(scanned: Scanned) -> None:
    """Where the kernel was right, the strict checks of ends, calls and stacks agree with it. It is
    wrong where a saved frame is on no stack: some unwinders take that for a trace of no entries.
    Where a record lies unused on a stack, a frame may be missing: in the forged ones it is, in one
    of a few hundred others the record is only left over."""
    doubted = [
        r
        for r in scanned.reports
        if r.kernel.verdict is KernelVerdict.RELIABLE
        and r.proof.verdict is not ProofVerdict.PROVEN
        and r.pid not in scanned.dump.damaged
    ]
    open_ = [r for r in doubted if [x.id for x in r.reasons] == ["record-passed-over"]]
    assert all(r.proof.verdict is ProofVerdict.UNDECIDED for r in open_)
    assert len([r for r in open_ if not r.comm.endswith("_bp_skip")]) <= len(scanned.reports) // 200
    wrong = [r for r in doubted if [x.id for x in r.reasons] == ["start-outside-stack"]]
    assert len(doubted) == len(wrong) + len(open_)
    assert {r.comm for r in wrong} <= {"k_alien", "u_alien"}
    assert all(r.proof.verdict is ProofVerdict.REFUTED for r in wrong)


def test_no_proven_trace_lacks_a_function(scanned: Scanned) -> None:
    """Of tasks whose callers are known from the guest's sources, a proven trace has all of them."""
    assert chains.missing_functions(scanned.reports) == []
    known, proven = chains.coverage(scanned.reports)
    assert 0 < proven <= known


def test_running_tasks_are_walked_from_the_cpus_registers(scanned: Scanned) -> None:
    """A task on a CPU is shown from the registers in the dump, down to where it began. Only ORC
    data know for every instruction whether the frame is complete: only they prove the trace."""
    on_cpu = [r for r in scanned.reports if r.reasons and r.reasons[0].id == "running"]
    running = [r for r in on_cpu if r.pid not in scanned.dump.damaged]
    assert running
    answer = (KernelVerdict.RUNNING, -16)
    if not scanned.kernel.supports_reliable:
        answer = (KernelVerdict.UNSUPPORTED, -38)
    for report in running:
        assert (report.kernel.verdict, report.kernel.errno) == answer
        names = [frame.code.symbol for frame in report.frames]
        doubts = [reason.id for reason in report.reasons[1:]]
        if scanned.dump.architecture == "loongarch64":  # whose notes lack the program counter
            assert (names, doubts) == ([], ["no-crash-registers"])
            continue
        assert report.frames[0].found_by is FoundBy.CRASH_REGISTERS
        assert names[-1] in ("ret_from_fork_asm", "ret_from_fork", "kthread")
        if names[0] == "__crash_kexec":  # where a panicking kernel saves its own registers
            assert names[1] == "panic"
            assert doubts == ["undefined-unwind-data", "caller-searched"]
        elif "ORC" in scanned.dump.unwinder:
            assert report.proof.verdict is ProofVerdict.PROVEN
        else:
            assert doubts == ["exception-boundary"]
            assert report.proof.verdict is ProofVerdict.UNDECIDED


@pytest.mark.parametrize(
    ("comm", "found_by", "function"),
    [
        pytest.param("k_krp_spin", FoundBy.KRETPROBE, "act_krp_spin", id="a kretprobed return"),
        pytest.param("k_krp_spin", FoundBy.PT_REGS, "spin", id="an interrupted frame"),
        pytest.param("init", FoundBy.SWITCH_FRAME, "__schedule", id="the scheduler's own frame"),
    ],
)
def test_how_frames_were_found(
    scanned_6_1: Scanned, comm: str, found_by: FoundBy, function: str
) -> None:
    """A frame says how it was found."""
    found = [f for f in scanned_6_1.task(comm).frames if f.code.symbol == function]
    assert [frame.found_by for frame in found] == [found_by]


def test_what_6_1_holds(scanned_6_1: Scanned) -> None:
    """The dump shows what it was made to show."""
    reports = scanned_6_1.reports
    found_by = Counter(frame.found_by for r in reports for frame in r.frames)
    kinds = Counter(frame.code.kind for r in reports for frame in r.frames)
    assert found_by[FoundBy.FUNCTION_GRAPH] and found_by[FoundBy.KRETPROBE]
    assert kinds[CodeKind.MODULE] and kinds[CodeKind.INIT]
    assert [r.kernel.entries for r in reports if r.state == "Z"] == [(), ()]


def test_plain_drgn_opens_the_dumps(scanned: Scanned) -> None:
    """A capsule is an ordinary dump for drgn: VMCOREINFO and memory, with nothing of ours."""
    prog = drgn.Program()
    if scanned.dump.architecture == "loongarch64":  # which its libkdumpfile does not know
        with pytest.raises(Exception, match="KDUMP_ATTR_ARCH_NAME"):
            prog.set_core_dump(str(scanned.dump.path))
        return
    prog.set_core_dump(str(scanned.dump.path))
    assert prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    assert f"OSRELEASE={scanned.dump.release}" in prog["VMCOREINFO"].string_().decode()
    if scanned.dump.architecture in TRANSLATED:
        first = scanned.reports[0]
        assert prog.read(first.task, 16) == scanned.kernel.prog.read(first.task, 16)
