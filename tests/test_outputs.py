# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is written appears whole or not at all, follows no link, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drgn_reliable.cli import main
from drgn_reliable.errors import UsageError
from drgn_reliable.fleet.store import Store
from drgn_reliable.newfile import NotWritten, new_file
from drgn_reliable.outfile import output
from tests.dumps import TRANSITIONS
from tests.fleets import fleet_of, record

SMALL = str(TRANSITIONS[0].path)


@pytest.fixture(params=["no name", "a name"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that knows files without names, and on one that does not."""
    if request.param == "no name":
        return
    real = os.open

    def refuse(path: str, flags: int, *arguments: int, **named: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("either_way")
def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """Until then there is what was there before, and nothing of the new one is left if it fails."""
    path = tmp_path / "report"
    path.write_text("earlier")
    for trouble in (KeyboardInterrupt, OSError(errno.ENOSPC, "No space left"), SystemExit(1)):
        with pytest.raises(BaseException), new_file(path) as file:  # noqa: B017
            file.write(b"half")
            file.flush()
            assert path.read_text() == "earlier"
            raise trouble
        assert [each.name for each in tmp_path.iterdir()] == ["report"]
    with new_file(path) as file:
        file.write(b"whole")
    assert path.read_text() == "whole"
    assert [each.name for each in tmp_path.iterdir()] == ["report"]


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    """Not even by SIGKILL, for the file had no name."""
    code = (
        "import os, sys, time\nfrom drgn_reliable.outfile import output\n"
        f"with output({str(tmp_path / 'report')!r}) as out:\n"
        "    out.write('x' * 99999); out.flush(); print('written', flush=True); time.sleep(99)"
    )
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(number)
        process.wait()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("target", ["victim", "absent"])
def test_a_link_in_the_way_is_replaced(target: str, tmp_path: Path) -> None:
    """What it leads to stays as it is, or is not made."""
    victim, path = tmp_path / "victim", tmp_path / "report"
    victim.write_text("precious")
    path.symlink_to(target)
    with new_file(path) as file:
        file.write(b"report")
    assert path.read_bytes() == b"report" and not path.is_symlink()
    assert victim.read_text() == "precious"
    assert {each.name for each in tmp_path.iterdir()} == {"victim", "report"}


@pytest.mark.usefixtures("either_way")
def test_nobody_is_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever knew the draft's name and put a link there gets nothing: it is not followed."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".drgn-reliable-guessed").symlink_to("victim")
    with pytest.raises(NotWritten, match="File exists"), new_file(tmp_path / "report") as file:
        file.write(b"report")
    assert not (tmp_path / "victim").exists() and not (tmp_path / "report").exists()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("mask", "before", "asked", "after"),
    [
        (0o022, None, 0o666, 0o644),
        (0o077, None, 0o666, 0o600),
        (0o000, None, 0o600, 0o600),
        (0o022, 0o600, 0o666, 0o600),
        (0o022, 0o666, 0o666, 0o644),
        (0o000, 0o644, 0o600, 0o600),
    ],
)
def test_who_may_read_it(
    mask: int, before: int | None, asked: int, after: int, tmp_path: Path,
    umask: Callable[[int], int],
) -> None:  # fmt: skip
    """The umask decides, and nobody can read what they could not read in its place before."""
    path = tmp_path / "report"
    if before is not None:
        path.touch()
        path.chmod(before)
    umask(mask)
    with new_file(path, asked) as file:
        file.write(b"x")
    assert mode(path) == after


def test_a_capsule_is_private_whatever_the_umask(
    tmp_path: Path, umask: Callable[[int], int]
) -> None:
    """It is memory; a report has names and addresses only."""
    umask(0)
    dump = tmp_path / "dump"
    dump.write_bytes(Path(SMALL).read_bytes())
    dump.chmod(0o644)
    assert main(["capsule", str(dump), "-o", str(tmp_path / "capsule")]) == 0
    assert main(["info", str(dump)]) == 0
    assert main(["scan", str(dump), "--format", "csv", "-o", str(tmp_path / "report")]) == 0
    assert (mode(tmp_path / "capsule"), mode(tmp_path / "report")) == (0o600, 0o666)
    assert {path.name for path in tmp_path.iterdir()} == {"dump", "capsule", "report"}


def pipe_at(path: Path) -> None:
    os.mkfifo(path)


def what_it_is(path: Path) -> tuple[int, ...]:
    """Of a file itself: kind and mode, inode, owner, size, and when it was changed."""
    found = path.lstat()  # its time of access moves when a link is only looked through
    return (found.st_mode, found.st_ino, found.st_uid, found.st_size, found.st_mtime_ns)


@pytest.mark.parametrize("command", ["scan", "capsule"])
@pytest.mark.parametrize(
    "make", [Path.mkdir, pipe_at, lambda path: path.symlink_to("/dev/zero")],
    ids=["directory", "pipe", "link to a device"],
)  # fmt: skip
def test_only_files_are_replaced(
    make: Callable[[Path], None], command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``-o /dev/null`` does not make a file of a device."""
    path = tmp_path / "out"
    make(path)
    before = what_it_is(path)
    assert main([command, SMALL, "-o", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"drgn-reliable: --output {path}: cannot be written (it is there, and no regular file)\n"
    )
    assert what_it_is(path) == before


def test_a_report_does_not_replace_what_it_is_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the dump nor the store."""
    dump, store = tmp_path / "dump", tmp_path / "fleet.db"
    dump.write_bytes(Path(SMALL).read_bytes())
    fleet_of(
        ("one", record("1 sleeper reliable proven do_wait schedule")), path=store
    ).store.close()
    for path, arguments in (
        (dump, ["scan", str(dump)]),
        (dump, ["capsule", str(dump)]),
        (store, ["fleet", "report", str(store)]),
        (store, ["fleet", "query", str(store), "host"]),
    ):
        before = path.read_bytes()
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").hardlink_to(path)
        for name in (path, tmp_path / "link"):
            assert main([*arguments, "-o", str(name)]) == 2
            assert "name another file" in capsys.readouterr().err
        assert path.read_bytes() == before


def test_text_that_is_no_unicode_is_written(tmp_path: Path) -> None:
    with output(str(tmp_path / "report")) as out:
        out.write("a\udcffb\n")
    assert (tmp_path / "report").read_text() == "a\\udcffb\n"


# Stores and events -------------------------------------------------------------------------------


def test_events_follow_no_link_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell's ``>(...)`` is a link to a pipe, and is followed."""
    (tmp_path / "victim").write_text("precious")
    for target in ("victim", "absent"):
        (tmp_path / "events").unlink(missing_ok=True)
        (tmp_path / "events").symlink_to(target)
        arguments = ["--store", str(tmp_path / "fleet.db"), "--events", str(tmp_path / "events")]
        assert main(["fleet", "scan", SMALL, *arguments]) == 2
        assert "a symbolic link to a file" in capsys.readouterr().err
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "absent").exists() and not (tmp_path / "fleet.db").exists()


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_files_of_somebody_else_beside_a_store_are_not_taken(suffix: str, tmp_path: Path) -> None:
    """SQLite would play back what they say."""
    path = tmp_path / "fleet.db"
    fleet_of(path=path).store.close()
    (tmp_path / f"fleet.db{suffix}").symlink_to("victim")
    with pytest.raises(UsageError, match=f"fleet.db{suffix} is somebody else's"):
        Store(str(path), write=True)
    assert not (tmp_path / "victim").exists()


ALTERED = {
    "a view that never ends": (
        "DROP VIEW host; CREATE VIEW host AS WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS dump, '' AS host FROM n",
        "its view host is another",
    ),
    "a view in the place of a table": (
        "DROP TABLE label; CREATE VIEW label AS SELECT 1 AS path, 2 AS name, 3 AS value",
        "its table label is another",
    ),
    "a table with another column": (
        "ALTER TABLE label RENAME COLUMN value TO v",
        "its table label is another",
    ),
    "a trigger": (
        "CREATE TRIGGER t AFTER INSERT ON scan BEGIN DELETE FROM dump; END",
        "it has a trigger t",
    ),
}


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("what", ALTERED)
def test_a_store_with_questions_of_its_own_is_refused(
    what: str, write: bool, tmp_path: Path
) -> None:
    """Views and triggers run when a store is read and written: they are ours, to the word."""
    path = tmp_path / "fleet.db"
    fleet_of(("one", record("1 sleeper reliable proven do_wait schedule")), path=path).store.close()
    sql, expected = ALTERED[what]
    with sqlite3.connect(path) as db:
        db.executescript(sql)
    db.close()
    with pytest.raises(UsageError, match=expected):
        Store(str(path), write)


def test_a_store_is_told_to_trust_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    fleet_of(path=path).store.close()
    with Store(str(path)) as store:
        for setting, value in (("trusted_schema", 0), ("cell_size_check", 1), ("query_only", 1)):
            assert store.db.execute(f"PRAGMA {setting}").fetchone() == (value,)


NONSENSE = {
    "text for a number": "UPDATE task SET pid = 'x'",
    "bytes for a name": "UPDATE task SET comm = x'1b5b324a'",
    "bytes for a path": "UPDATE place SET path = x'ff'",
    "a word that is none": "UPDATE task SET kernel = 'perhaps'",
    "text for a count": "UPDATE stack SET depth = 'deep'",
    "a number without end": "UPDATE scan SET started = 9e999",
    "a frame's name that is bytes": "UPDATE frame SET symbol = x'00'",
}


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("format", ["table", "json", "html", "folded"])
def test_nonsense_in_a_store_is_no_traceback(
    what: str, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report is written, or one line says what in the file cannot be."""
    path = tmp_path / "fleet.db"
    fleet_of(
        ("one", record("1 sleeper unreliable refuted do_wait schedule")), path=path
    ).store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        assert db.execute(NONSENSE[what]).rowcount
    db.close()
    status = main(["fleet", "report", str(path), "--format", format])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    if status:
        assert status == 2 and said.err.count("\n") == 1
        assert "the store" in said.err
