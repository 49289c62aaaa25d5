# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scans of a fleet by local processes: what is found, kept, gone on with, and told."""

from __future__ import annotations

import fcntl
import json
import lzma
import os
import pty
import shutil
import signal
import sqlite3
import struct
import subprocess
import termios
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from drgn_reliable.cli import main
from drgn_reliable.fleet import commands
from drgn_reliable.fleet.engines import Engine, EngineLost, LocalEngine
from drgn_reliable.fleet.events import Event, Working
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.scan import Tally, scan_fleet
from drgn_reliable.fleet.sources import read_sources
from drgn_reliable.fleet.store import Store
from tests.dumps import DUMP_6_1
from tests.faults import fault, faults, is_gone, wait_for
from tests.fleetdirs import (
    BAD,
    OTHERS,
    SMALL,
    SOUND,
    content,
    fleet_command,
    make_fleet,
    run_fleet,
)

__all__ = ("faults",)

LIMITS = Limits(seconds=60, memory=1 << 30)


def scanned(
    store: Path, *paths: Path, limits: Limits = LIMITS, retry: bool = False
) -> tuple[Tally, list[Event]]:
    """Scan in this process; the tally and what was told, but for how far each dump was."""
    told: list[Event] = []
    with Store(str(store), write=True) as opened:
        engine = LocalEngine(2)
        try:
            tally = scan_fleet(
                read_sources(map(str, paths)),
                opened,
                engine,
                limits,
                retry=retry,
                listen=lambda event: None if isinstance(event, Working) else told.append(event),
            )
        finally:
            engine.close()
    return tally, told


def children_of(number: int) -> list[int]:
    """The processes that a process has started and that still are."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == number:
            found.append(int(entry.parent.name))
    return found


# A directory with everything -----------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound, broken and other files."""
    return make_fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def whole(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted scan of it."""
    store = tmp_path_factory.mktemp("store") / "fleet.db"
    done = run_fleet("scan", fleet, "--store", store, "--timeout", 10, "--memory", 1024)
    assert done.returncode == 3, done.stderr
    assert f"{len(SOUND) + len(BAD)} dumps" in done.stdout
    assert f"{len(BAD)} failed" in done.stdout
    return store


@pytest.mark.parametrize("name", BAD)
def test_each_broken_dump_is_named_with_its_cause(name: str, fleet: Path, whole: Path) -> None:
    """It takes no other dump with it, and the store says what happened and what was tried."""
    bad = BAD[name]
    with sqlite3.connect(whole) as db:
        status, cause, detail, number = db.execute(
            "SELECT status, cause, detail, dump.id FROM dump JOIN place ON place.dump = dump.id "
            "WHERE path = ?",
            (str(fleet / name),),
        ).fetchone()
        attempts = db.execute(
            "SELECT outcome, seconds > 0, memory > 0 FROM attempt WHERE dump = ? ORDER BY number",
            (number,),
        ).fetchall()
    assert status == bad.status
    assert cause in bad.cause
    assert bad.detail in detail or cause != bad.cause[0]
    assert attempts[0] == (cause, 1, 1)
    assert 1 <= len(attempts) <= 3


def test_sound_dumps_beside_them_are_whole(fleet: Path, whole: Path) -> None:
    """Each has all its tasks, and files that are no dumps are told, not scanned."""
    found = content(whole)
    statuses = {row[0]: (row[1], row[12]) for row in found["dumps"]}
    for path, tasks in zip(SOUND, (71, 68, 70, 67), strict=True):
        assert statuses[str(fleet / path.stem / "vmcore")] == ("whole", tasks)
    over = {Path(path).name for path, _ in found["passed over"]}
    assert over == {*OTHERS, "fifo"}


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_scan_that_was_killed_goes_on_without_loss(
    after: int, fleet: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed (SIGKILL) after some dumps: none of them is scanned again, nothing is there twice,
    no process is left, and in the end the store says what that of an uninterrupted scan says."""
    store = tmp_path / "fleet.db"
    command = fleet_command(
        "scan", fleet, "--store", store, "--timeout", 10, "--memory", 1024, "--events", "-"
    )
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert first.stdout is not None
    finished = []
    for line in first.stdout:
        event = json.loads(line)
        if event["event"] == "finished":
            finished.append(event["path"])
            if len(finished) == after:
                break
    workers = children_of(first.pid)
    first.kill()
    first.wait()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    done = run_fleet(
        "scan", fleet, "--store", store, "--timeout", 10, "--memory", 1024, "--events", "-"
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kept = {event["path"] for event in events if event["event"] == "kept"}
    assert done.returncode == 3
    assert set(finished) <= kept
    assert len(kept) <= len(finished) + 2  # what was added, but not told any more
    assert content(store) == content(whole)
    with sqlite3.connect(store) as db:
        assert db.execute("SELECT state FROM scan ORDER BY id").fetchall() == [
            ("interrupted",),
            ("finished",),
        ]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    ("signal_", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "TERM"]
)
def test_an_interrupted_scan_ends_at_once_and_says_so(
    signal_: signal.Signals, status: int, tmp_path: Path, faults: None
) -> None:
    """Its processes are gone, the store is closed and whole, the exit status is documented."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    shutil.copy(SMALL, folder / "a")
    # What is no dump by its content is scanned if it is named.
    hanging = fault(tmp_path / "hang", "hang")
    store = tmp_path / "fleet.db"
    running = subprocess.Popen(
        fleet_command("scan", folder, hanging, "--store", store, "--jobs", 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(Path(f"{hanging}.pid").exists)
    wait_for(lambda: "1 row" in run_fleet("query", store, "SELECT 1 FROM place").stdout)
    running.send_signal(signal_)
    out, err = running.communicate(timeout=10)
    assert (running.returncode, out) == (status, "")
    assert err.count("\n") == 1
    assert is_gone(hanging)
    assert sorted(each.name for each in tmp_path.glob("fleet.db*")) == ["fleet.db"]
    with sqlite3.connect(store) as db:
        assert db.execute("SELECT state FROM scan").fetchall() == [("interrupted",)]
        assert db.execute("SELECT count(*) FROM place").fetchone() == (1,)


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="a file of root's")
def test_a_file_that_never_ends_holds_up_nothing(tmp_path: Path) -> None:
    """Reading it blocks, as a server's file system does that does not answer: neither the dumps
    beside it wait for it, nor the end of the scan."""
    paths = ["/proc/kmsg", "/proc/../proc/kmsg", *SOUND[:2]]
    done = run_fleet("scan", *paths, "--store", tmp_path / "fleet.db", "--timeout", 5, "--jobs", 1)
    assert done.returncode == 3, done.stderr
    assert "/proc/kmsg: timeout: reading the file: no answer within 5 s" in done.stdout
    assert "3 dumps: 3 scanned" in done.stdout
    with Store(str(tmp_path / "fleet.db")) as store:
        rows = store.db.execute("SELECT status, count(*) FROM current GROUP BY 1").fetchall()
    assert rows == [("failed", 1), ("whole", 2)]


# What is scanned again -----------------------------------------------------------------------


def test_what_is_known_is_not_scanned_again(tmp_path: Path) -> None:
    """Not the same file, nor one that was touched, moved or copied; but one that was changed."""
    dump, store = tmp_path / "dumps" / "vmcore", tmp_path / "fleet.db"
    dump.parent.mkdir()
    shutil.copy(SMALL, dump)

    def kept() -> tuple[int, int]:
        tally, _ = scanned(store, dump.parent)
        return tally.dumps, tally.kept

    assert kept() == (1, 0)
    assert kept() == (1, 1)
    os.utime(dump)
    assert kept() == (1, 1)
    shutil.copy(dump, dump.parent / "copy")
    assert kept() == (2, 2)
    dump.rename(dump.parent / "moved")
    assert kept() == (2, 2)
    with (dump.parent / "moved").open("ab") as file:
        file.write(b"\0")
    assert kept() == (2, 1)
    with Store(str(store)) as opened:
        assert opened.db.execute("SELECT count(*) FROM dump").fetchone() == (2,)


def test_copies_of_one_dump_are_scanned_once(tmp_path: Path) -> None:
    """Also when they come up while the first is being scanned."""
    for number in range(5):
        shutil.copy(SMALL, tmp_path / f"{number}.vmcore")
    tally, told = scanned(tmp_path / "fleet.db", tmp_path)
    assert (tally.dumps, tally.kept) == (5, 4)
    assert Counter(type(event).__name__ for event in told) == {
        "Begun": 1,
        "Located": 1,
        "Finished": 1,
        "Kept": 4,
        "Ended": 1,
    }


def test_failures_are_tried_again_where_that_can_help(tmp_path: Path, faults: None) -> None:
    """One that met a limit with other limits, one that was killed always, all with ``retry``."""
    store = tmp_path / "fleet.db"
    paths = [
        fault(tmp_path / "late", "hang"),
        fault(tmp_path / "killed", "signal SIGKILL"),
        fault(tmp_path / "crash", "signal SIGSEGV"),
    ]
    short, longer = Limits(seconds=1.5, memory=1 << 30), Limits(seconds=2, memory=1 << 30)

    def again(limits: Limits, retry: bool = False) -> set[str]:
        _, told = scanned(store, *paths, limits=limits, retry=retry)
        return {Path(e.path).name for e in told if type(e).__name__ == "Finished"}  # type: ignore[attr-defined]

    assert again(short) == {"late", "killed", "crash"}
    assert again(short) == {"killed"}
    assert again(longer) == {"killed", "late"}
    assert again(longer, retry=True) == {"killed", "late", "crash"}
    with Store(str(store)) as opened:
        assert opened.db.execute("SELECT count(*) FROM dump").fetchone() == (3,)


def test_debug_information_is_used_where_it_fits(tmp_path: Path) -> None:
    """A vmlinux that fits one of two dumps is used for that one; scanning with it is another scan
    than without."""
    assert DUMP_6_1.debug_info is not None
    symbols = tmp_path / "vmlinux.debug"
    symbols.write_bytes(lzma.decompress(DUMP_6_1.debug_info.read_bytes()))
    dumps = [SMALL, DUMP_6_1.path]
    store = tmp_path / "fleet.db"
    for arguments, expected in (
        ((), ["BTF in the dump", "BTF in the dump"]),
        (("--symbols", symbols), ["BTF in the dump", f"debug information ({symbols})"]),
    ):
        done = run_fleet("scan", *dumps, "--store", store, *arguments)
        assert done.returncode in (1, 3), done.stderr
        with Store(str(store)) as opened:
            rows = opened.db.execute("SELECT types FROM current ORDER BY release DESC").fetchall()
        assert [row[0] for row in rows] == expected


# Engines and errors --------------------------------------------------------------------------


def test_any_executor_will_do(tmp_path: Path) -> None:
    """A pool of processes that knows nothing of this package gives the same store."""
    stores = [tmp_path / "pool.db", tmp_path / "local.db"]
    with Store(str(stores[0]), write=True) as store:
        engine = Engine(ProcessPoolExecutor(2, mp_context=get_context("spawn")), 2)
        scan_fleet(read_sources([str(SMALL), str(SOUND[1])]), store, engine, LIMITS)
        engine.close()
    scanned(stores[1], SMALL, SOUND[1])
    assert content(stores[0]) == content(stores[1])


class Losing(LocalEngine):
    """Loses its workers at the third dump."""

    given = 0

    def scan(self, *arguments: Any) -> Future[Any]:
        """Have a dump scanned, as long as there is somebody."""
        self.given += 1
        if self.given > 2:
            raise EngineLost("nobody is left")
        return super().scan(*arguments)


def test_a_lost_engine_leaves_a_store_to_go_on_with(tmp_path: Path) -> None:
    """What was scanned is kept, and the scan is marked as interrupted."""
    store = tmp_path / "fleet.db"
    with Store(str(store), write=True) as opened:
        engine = Losing(1)
        with pytest.raises(EngineLost):
            scan_fleet(read_sources(map(str, SOUND)), opened, engine, LIMITS)
        engine.close()
    tally, _ = scanned(store, *SOUND)
    assert (tally.scan, tally.dumps) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere: does not exist; name a vmcore"),
        (["/nowhere/*.dump"], "/nowhere/*.dump: no file fits this pattern"),
        (["/dev/null"], "/dev/null: is not a file"),
        ([SMALL, "--store", "/"], "--store /: cannot be written (Is a directory)"),
        ([SMALL, "--store", "/nowhere/x.db"], "--store /nowhere/x.db: cannot be written"),
        ([SMALL, "--store", SMALL], "cannot be opened as a store"),
        ([SMALL, "--jobs", "0"], "'0' is not a number of at least 1"),
        ([SMALL, "--timeout", "nan"], "'nan' is not a number"),
        ([SMALL, "--memory", "1"], "'1' is not a number of at least 128"),
        ([SMALL, "--scheduler", "tcp://x:1"], "only --engine dask has one"),
        (
            [SMALL, "--symbols", "/nowhere"],
            "--symbols /nowhere: cannot be read (No such file or directory)",
        ),
        ([SMALL, "--events", "/nowhere/x"], "--events /nowhere/x: cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[object], message: str, tmp_path: Path
) -> None:
    """It names the argument, its value and what to do; no dump is harmed."""
    before = SMALL.read_bytes()
    done = run_fleet("scan", "--store", tmp_path / "fleet.db", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert SMALL.read_bytes() == before


def test_the_store_is_no_dump(tmp_path: Path) -> None:
    """Named by mistake it is refused, and found in a directory it is left alone."""
    store = tmp_path / "fleet.db"
    assert run_fleet("scan", SMALL, "--store", store).returncode == 1
    done = run_fleet("scan", store, "--store", store)
    assert done.returncode == 2
    assert f"{store}: the store itself" in done.stderr
    done = run_fleet("scan", tmp_path, "--store", store)
    assert (done.returncode, "0 dumps" in done.stdout) == (0, True)
    assert "0 files passed over" in done.stdout


def test_a_terminal_sees_what_each_worker_does(tmp_path: Path) -> None:
    """A bar with what has failed, a line for each worker; none of it is left at the end."""
    broken = tmp_path / "broken"
    broken.write_bytes(b"no dump")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 120, 0, 0))
    command = fleet_command("scan", broken, *SOUND[:3], "--store", tmp_path / "fleet.db")
    running = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the terminal is closed at the other end
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert running.wait() == 3
    text = shown.decode()
    assert "worker_0: " in text and "worker_1: " in text
    assert "6.12-user.kdump: " in text and "symbols and types" in text
    bars, _, summary = text.rpartition("\x1b[A")
    assert "3/4 [" in bars and ", 1 failed]" in bars
    assert "4 dumps: 4 scanned" in summary and "worker" not in summary


def test_events_are_lines_of_json_in_order(tmp_path: Path) -> None:
    """Standard output is theirs then, and the summary is for people elsewhere."""
    done = run_fleet("scan", SMALL, "--store", tmp_path / "fleet.db", "--events", "-")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names[:2] == ["begun", "located"]
    assert names[-2:] == ["finished", "ended"]
    assert set(names[2:-2]) == {"working"}
    assert "1 dump: 1 scanned" in done.stderr
    assert events[-2]["tasks"] == 71
    assert events[-2]["stalled"] is True
    assert done.returncode == 1


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The dump in hand is not added, those before are there, and a scan goes on."""
    store = tmp_path / "fleet.db"
    arguments = ["fleet", "scan", *map(str, SOUND), "--store", str(store), "--jobs", "1"]

    class Small(Store):
        """One that has room for about two dumps."""

        def begin_scan(self) -> int:
            """Begin, on what is left of the disk."""
            self.db.execute("PRAGMA max_page_count = 50")
            return super().begin_scan()

    with monkeypatch.context() as patched:
        patched.setattr(commands, "Store", Small)
        assert main(arguments) == 4
    out, err = capfd.readouterr()
    assert (out, err) == (
        "", f"drgn-reliable: --store {store}: database or disk is full; scan again to go on\n"
    )  # fmt: skip
    assert main([*arguments, "--events", "-"]) == 1
    events = [json.loads(line)["event"] for line in capfd.readouterr().out.splitlines()]
    assert events.count("kept") in (1, 2, 3)
    assert events.count("kept") + events.count("finished") == 4


def test_events_that_nobody_reads_do_not_end_a_scan(tmp_path: Path) -> None:
    """The reader of a pipe may go; the dumps are scanned nevertheless."""
    store = tmp_path / "fleet.db"
    running = subprocess.Popen(
        fleet_command("scan", *SOUND[:2], "--store", store, "--events", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None and running.stderr is not None
    running.stdout.readline()
    running.stdout.close()
    err = running.stderr.read().decode()
    running.stderr.close()
    assert running.wait() == 1
    assert "--events -: Broken pipe; the scan goes on without" in err
    assert "2 dumps: 2 scanned" in err


def test_the_store_can_be_read_during_a_scan(tmp_path: Path, faults: None) -> None:
    """By report, query and any SQLite; a second scan is refused."""
    store, hanging = tmp_path / "fleet.db", fault(tmp_path / "hang", "hang")
    running = subprocess.Popen(
        fleet_command("scan", SMALL, hanging, "--store", store),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(store.exists)
        wait_for(lambda: "1 dump of" in run_fleet("report", store).stdout)
        assert "running" in run_fleet("query", store, "SELECT state FROM scan").stdout
        second = run_fleet("scan", SMALL, "--store", store)
        assert second.returncode == 2
        assert "another scan writes to it" in second.stderr
    finally:
        running.terminate()
        assert running.wait(timeout=20) == 143
