# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every task of every real dump, against what its own kernel answered. No exception list."""

from __future__ import annotations

import hashlib
from collections import Counter

import drgn
import pytest

from drgn_reliable import CATALOGUE, Kernel, KernelVerdict, ProofVerdict, Scanner, open_dump
from drgn_reliable.arch.x86_orc import OrcUnwinder
from drgn_reliable.model import CodeKind, FoundBy
from tests.conftest import Scanned
from tests.dumps import VMCORES, Recorded

MEGABYTE = 1 << 20


def recorded_answer(row: Recorded) -> tuple[str, tuple[int, ...]]:
    if row.answer >= 0:
        return "reliable", row.entries
    return {-22: "unreliable", -16: "running"}[row.answer], ()


def test_the_manifest_names_the_file_that_is_there(scanned: Scanned) -> None:
    """A dump is the one that its verdicts were recorded for."""
    assert hashlib.sha256(scanned.dump.path.read_bytes()).hexdigest() == scanned.dump.sha256
    assert scanned.kernel.release == scanned.dump.release
    assert scanned.kernel.unwinder.name == scanned.dump.unwinder


def test_dumps_stay_small() -> None:
    """Each file stays under 8 MB and all of them under 80 MB: git keeps them for ever."""
    sizes = [path.stat().st_size for path in VMCORES.iterdir()]
    assert max(sizes) < 8 * MEGABYTE
    assert sum(sizes) < 80 * MEGABYTE


def test_the_same_tasks_in_the_kernels_order(scanned: Scanned) -> None:
    """The tasks are those that the kernel itself went through, in its order."""
    recorded = [(r.task, r.pid, r.tgid, r.comm) for r in scanned.dump.recorded]
    assert [(r.task, r.pid, r.tgid, r.comm) for r in scanned.reports] == recorded


def test_every_verdict_and_entry_is_the_kernels_own(scanned: Scanned) -> None:
    """For every task: the verdict that the kernel gave, and the same entries in the same order."""
    reports = {report.task: report for report in scanned.reports}
    differences = []
    for row in scanned.dump.recorded:
        if row.pid in scanned.dump.damaged:
            continue
        answer = reports[row.task].kernel
        if (answer.verdict.value, answer.entries) != recorded_answer(row):
            differences.append((row.comm, row.pid, row.answer, answer))
    assert differences == []


def test_a_damaged_stack_is_not_called_reliable(scanned: Scanned) -> None:
    """Tasks damaged after their kernel had answered are refused now, and the proof refutes them."""
    damaged = [r for r in scanned.reports if r.pid in scanned.dump.damaged]
    assert len(damaged) == len(scanned.dump.damaged)
    for report in damaged:
        assert report.kernel.verdict is KernelVerdict.UNRELIABLE
        assert report.proof.verdict is ProofVerdict.REFUTED


def test_the_fast_path_changes_nothing(scanned: Scanned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, without skipping plain frames, every report is the same."""
    monkeypatch.setattr(OrcUnwinder, "skip_plain", lambda *args: None)
    scanner = Scanner(Kernel(open_dump(str(scanned.dump.path))))
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
    """Where the kernel was right, the strict checks of ends, calls and stacks agree with it."""
    doubted = [
        (r.comm, r.reasons)
        for r in scanned.reports
        if r.kernel.verdict is KernelVerdict.RELIABLE and r.proof.verdict is not ProofVerdict.PROVEN
    ]
    assert doubted == []


def test_running_tasks_are_walked_from_the_cpus_registers(scanned: Scanned) -> None:
    """A task on a CPU is shown from the registers in the dump, down to where it began."""
    running = [r for r in scanned.reports if r.kernel.verdict is KernelVerdict.RUNNING]
    assert running
    for report in running:
        assert report.frames[0].found_by is FoundBy.CRASH_REGISTERS
        assert report.kernel.errno == -16
        names = [frame.code.symbol for frame in report.frames]
        if names[0] == "__crash_kexec":  # where a panicking kernel saves its own registers
            assert names[1] == "panic" and names[-1] == "ret_from_fork_asm"
            assert [r.id for r in report.reasons[1:]] == [
                "undefined-unwind-data",
                "caller-searched",
            ]
        else:
            assert report.proof.verdict is ProofVerdict.PROVEN


@pytest.mark.parametrize(
    ("comm", "found_by", "function"),
    [
        pytest.param("hold_pspin", FoundBy.KRETPROBE, "pspin_outer", id="a kretprobed return"),
        pytest.param("hold_pspin", FoundBy.PT_REGS, "pspin_inner", id="an interrupted frame"),
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
    assert [r.kernel.entries for r in reports if r.state == "Z"] == [()]


def test_plain_drgn_opens_the_dumps(scanned: Scanned) -> None:
    """A capsule is an ordinary dump for drgn: VMCOREINFO and memory, with nothing of ours."""
    prog = drgn.Program()
    prog.set_core_dump(str(scanned.dump.path))
    assert prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    assert f"OSRELEASE={scanned.dump.release}" in prog["VMCOREINFO"].string_().decode()
    first = scanned.reports[0]
    assert prog.read(first.task, 16) == scanned.kernel.prog.read(first.task, 16)
