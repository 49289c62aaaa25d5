# SPDX-License-Identifier: LGPL-2.1-or-later
"""One attempt at a dump in a process of its own, and the ladder of attempts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drgn_reliable.fleet.child import Said, peak_memory
from drgn_reliable.fleet.isolation import Attempt, Job, Limits, Stopped, attempt
from drgn_reliable.fleet.ladder import scan_job
from tests.dumps import VMCORES
from tests.faults import fault, faults, is_gone, wait_for

__all__ = ("faults",)

SMALL = VMCORES / "livepatch" / "x86_64-6.12-user.kdump"
LIMITS = Limits(seconds=20, memory=1 << 30)


def tried(path: Path, limits: Limits = LIMITS, said: list[Said] | None = None) -> Attempt:
    """The first rung for a file."""
    say = (lambda each: None) if said is None else said.append
    return attempt(Job(str(path)), "debug information", limits, say, lambda: False)


@pytest.mark.parametrize(
    ("act", "outcome", "detail"),
    [
        ("signal SIGSEGV", "crash", "opening: SIGSEGV"),
        ("signal SIGABRT", "crash", "opening: SIGABRT"),
        ("signal SIGFPE", "crash", "opening: SIGFPE"),
        ("signal SIGKILL", "killed", "opening: SIGKILL"),
        ("exit 0", "crash", "ended without an answer, with status 0"),
        ("exit 7", "crash", "ended without an answer, with status 7"),
        ("say nonsense", "crash", "the process answered nonsense"),
        ('say {"stage":7}', "crash", "the process answered nonsense"),
        ('say {"outcome":"scanned","record":{"status":"whole","x":1}}', "crash", "nonsense"),
        ("memory", "memory", "opening: more than 1024 MiB of memory"),
        ("map", "refused", "mapped 4 GiB"),
        ("raise RuntimeError of some kind", "defect", "of some kind"),
        ("raise OSError cannot", "unreadable", "cannot"),
        ("raise RecursionError deep", "defect", "deep"),
        ("raise RuntimeError a\0b", "defect", "opening: a\\x00b"),
        ("print", "crash", "with status 3"),
    ],
)
def test_whatever_a_dump_does_to_its_process_is_an_outcome(
    act: str, outcome: str, detail: str, tmp_path: Path, faults: None
) -> None:
    """The process is dead or has failed; the attempt says how, and at which stage."""
    found = tried(fault(tmp_path / "dump", act))
    assert found.record is None
    assert found.told.outcome == outcome
    assert detail in found.told.detail
    assert is_gone(tmp_path / "dump")


@pytest.mark.parametrize("act", ["hang", "busy", "deaf"])
def test_a_process_that_does_not_answer_is_ended(act: str, tmp_path: Path, faults: None) -> None:
    """It blocks all signals, or is in code that cannot be interrupted, or has closed its pipe."""
    path = fault(tmp_path / "dump", act)
    started = time.monotonic()
    found = tried(path, Limits(seconds=2, memory=1 << 30))
    assert found.told.outcome == "timeout"
    assert time.monotonic() - started < 6
    assert is_gone(path)


def test_an_endless_answer_is_cut_off(
    tmp_path: Path, faults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's own memory is bounded, too."""
    monkeypatch.setattr("drgn_reliable.fleet.isolation._ANSWER_LIMIT", 1 << 20)
    found = tried(fault(tmp_path / "dump", "flood"))
    assert (found.told.outcome, "more than 1048576 bytes" in found.told.detail) == ("crash", True)


def test_a_process_has_one_thread_no_core_file_and_its_limit(tmp_path: Path, faults: None) -> None:
    """And a session of its own: Ctrl-C on a terminal is the scan's alone to take."""
    found = tried(fault(tmp_path / "dump", "limits"), Limits(seconds=20, memory=777 << 20))
    assert found.told.detail == str(["1", 0, 777 << 20, True])


def test_what_a_failed_process_printed_is_kept_to_its_end(tmp_path: Path, faults: None) -> None:
    """A traceback of a defect of ours, or the last words of a library."""
    assert (
        "RuntimeError: told" in tried(fault(tmp_path / "a", "raise RuntimeError told")).told.output
    )
    assert len(tried(fault(tmp_path / "b", "print")).told.output) == 4000


def test_who_prints_without_end_fills_nothing(
    tmp_path: Path, faults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a disk nor this process; its time ends, and its last words are kept."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    before = peak_memory(os.getpid())
    found = tried(fault(tmp_path / "dump", "chatter"), Limits(seconds=2, memory=1 << 30))
    assert (found.told.outcome, len(found.told.output)) == ("timeout", 4000)
    assert peak_memory(os.getpid()) - before < 20 << 20


def test_a_process_does_not_outlive_who_waits_for_it(tmp_path: Path, faults: None) -> None:
    """Even one that blocks all signals ends when the scan is killed."""
    path = fault(tmp_path / "dump", "hang")
    code = (
        "import sys; from tests.test_fleet_isolation import tried; from pathlib import Path\n"
        "tried(Path(sys.argv[1]))"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code, str(path)])
    wait_for(Path(f"{path}.pid").exists)
    waiting.kill()
    waiting.wait()
    wait_for(lambda: is_gone(path))


def test_an_attempt_can_be_given_up(tmp_path: Path, faults: None) -> None:
    """The process is gone by the time that the caller knows."""
    path = fault(tmp_path / "dump", "hang")
    with pytest.raises(Stopped):
        attempt(Job(str(path)), "BTF", LIMITS, lambda said: None, Path(f"{path}.pid").exists)
    assert is_gone(path)


def test_a_sound_dump_says_how_far_it_is() -> None:
    """Stages in order, and whether debug information is in use; memory is measured."""
    said: list[Said] = []
    found = tried(SMALL, said=said)
    assert found.record is not None and len(found.record.tasks) == 71
    assert [each.stage for each in said] == [
        "opening",
        "looking for debug information",
        "symbols and types",
        "walking",
        "livepatches and facts",
    ]
    assert found.debug is False
    assert 20 << 20 < found.told.memory < 1 << 30


def test_the_memory_of_who_waits_is_not_the_dumps() -> None:
    """However much this process has, and had when it started the other."""
    held = bytearray(b"\1") * (300 << 20)
    found = tried(SMALL)
    assert 20 << 20 < found.told.memory < len(held)


@pytest.mark.parametrize(
    ("content", "seconds", "rungs", "cause"),
    [
        (b"no dump", 60, ["debug information", "headers"], "format"),
        (b"FAULT signal SIGSEGV\n", 60, ["debug information", "headers"], "crash"),
        (b"FAULT hang\n", 3, ["debug information"], "timeout"),
        (b"FAULT memory\n", 60, ["debug information"], "memory"),
    ],
    ids=["text", "segv", "hang", "memory"],
)
def test_the_ladder_ends_where_no_other_rung_can_hold(
    content: bytes, seconds: int, rungs: list[str], cause: str, tmp_path: Path, faults: None
) -> None:
    """What would fail alike at the same cost is not tried again; the first failure is the cause."""
    path = tmp_path / "dump"
    path.write_bytes(content)
    record = scan_job(Job(str(path)), Limits(seconds=seconds, memory=1 << 30))
    assert [each.rung for each in record.attempts] == rungs
    assert (record.status, record.cause) == ("failed", cause)


def test_debug_information_that_kills_the_reader_is_left_out(tmp_path: Path, faults: None) -> None:
    """The second rung scans with BTF alone; the record tells of both."""
    record = scan_job(Job(str(fault(tmp_path / "dump", f"rungs {SMALL}"))), LIMITS)
    assert [(each.rung, each.outcome) for each in record.attempts] == [
        ("debug information", "crash"),
        ("BTF", "scanned"),
    ]
    assert (record.status, record.cause, len(record.tasks)) == ("whole", None, 71)


def test_headers_are_read_of_what_cannot_be_scanned(tmp_path: Path) -> None:
    """A dump without the kernel's memory still says which kernel it was."""
    path = tmp_path / "short"
    path.write_bytes(SMALL.read_bytes()[: SMALL.stat().st_size // 8])
    record = scan_job(Job(str(path)), LIMITS)
    assert [each.outcome for each in record.attempts][-1] == "read"
    assert (record.status, record.cause) == ("failed", "missing")
    assert (record.release, record.architecture) == ("6.12.107-x86_64", "x86_64")
    assert any("incomplete dump" in problem for problem in record.problems)


def test_the_running_kernel_is_never_taken_for_a_dump() -> None:
    """Not by name, and not as what is left when all else fails."""
    record = scan_job(Job("/proc/kcore"), LIMITS)
    assert (record.status, record.tasks) == ("failed", ())
