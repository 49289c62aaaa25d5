# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store of a fleet: what it refuses, that nothing ends it half written, and what it keeps of a
dump that is scanned again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet import report
from drgn_reliable.fleet.engines import LocalEngine
from drgn_reliable.fleet.events import Event, Located
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.record import Record
from drgn_reliable.fleet.report import fleet_report
from drgn_reliable.fleet.scan import scan_fleet
from drgn_reliable.fleet.sources import Source
from drgn_reliable.fleet.store import Store
from drgn_reliable.fleet.storefile import SCHEMA_VERSION
from drgn_reliable.reasons import CATALOGUE
from tests.dumps import TRANSITIONS, VMCORES
from tests.fleets import (
    LIMITS,
    OPTIONS,
    Fleet,
    failed,
    fleet_of_dumps,
    identity_of,
    real,
    record,
    whole,
    writer,
)

SCHEMA = resources.files("drgn_reliable.fleet").joinpath("schema.sql").read_text("utf-8")
ONE = record("1 init reliable proven do_wait+0x10 ret_from_fork")
TWO = record(
    "1 init reliable proven do_wait+0x10 ret_from_fork",
    "7 web unreliable undecided pipe_read vfs_read ! loop @ unreliable",
    "8 db reliable proven eventfd_read vfs_read @ sleeping eventfd_read",
    patch="fix",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


def sql(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Execute statements as any program does; the rows of the last."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return [db.execute(statement).fetchall() for statement in statements][-1]


# Opening -----------------------------------------------------------------------------------------


def test_a_new_store_says_what_it_is(path: Path) -> None:
    Fleet(path).close()
    assert sql(path, "PRAGMA application_id") == [(int.from_bytes(b"drrl", "big"),)]
    assert sql(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    with Store(str(path)) as store:
        assert store.db.execute("SELECT state FROM scan").fetchall() == [("finished",)]
        reasons = store.db.execute("SELECT id FROM reason").fetchall()
        assert {id for (id,) in reasons} == set(CATALOGUE)


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    Fleet(path).close()


@pytest.mark.parametrize("name", ["with space.db", "a?mode=rw#b%41.db", "café.db", "\udcff.db"])
def test_a_store_may_have_any_name(tmp_path: Path, name: str) -> None:
    Fleet(tmp_path / name).close()
    assert [each.name for each in tmp_path.iterdir()] == [name]
    Store(str(tmp_path / name)).close()


def newer(path: Path) -> None:
    Fleet(path).close()
    sql(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def foreign(path: Path, mode: str = "DELETE") -> None:
    sql(path, f"PRAGMA journal_mode = {mode}", "CREATE TABLE cookies (name)")


def damaged(path: Path) -> None:
    Fleet(path).close()
    path.write_bytes(path.read_bytes()[:100] + b"\xa5" * 4096)


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("newer", newer, f"version {SCHEMA_VERSION + 1}.* knows version {SCHEMA_VERSION}; scan into"),
    ("foreign database", foreign, "an SQLite database, but no store"),
    ("foreign database in WAL mode", lambda path: foreign(path, "WAL"), "but no store"),
    ("text file", lambda path: path.write_text("hello, " * 99), "cannot be opened as a store"),
    ("dump", lambda path: shutil.copy(TRANSITIONS[0].path, path), "cannot be opened as a store"),
    ("damaged", damaged, "cannot be opened as a store"),
]


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize(
    ("make", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_no_store_is_refused_as_it_is(
    path: Path, make: Callable[[Path], object], expected: str, write: bool
) -> None:
    """In one line that names it; nothing of it is changed."""
    make(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=expected) as error:
        Store(str(path), write)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == before
    if write:  # a reader of a database in WAL mode may not tidy up behind itself
        assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("make", "write", "expected"),
    [
        pytest.param(lambda path: None, False, "no such store; `fleet scan", id="missing"),
        pytest.param(Path.mkdir, False, "no such store", id="directory"),
        pytest.param(Path.mkdir, True, r"--store .* cannot be written \(Is a dir", id="to write"),
        pytest.param(
            lambda path: path.symlink_to("nowhere/at/all"), True, "a symbolic link", id="link"
        ),
    ],
)
def test_what_is_no_file_is_refused(
    path: Path, make: Callable[[Path], object], write: bool, expected: str
) -> None:
    make(path)
    with pytest.raises(UsageError, match=expected):
        Store(str(path), write)


# Several at a time -------------------------------------------------------------------------------


def test_one_process_writes(path: Path) -> None:
    with writer(path):
        with pytest.raises(UsageError, match="another scan writes to it; wait for it"):
            Store(str(path), write=True)
        with Store(str(path)) as store:
            assert fleet_report(store)["scans"][0]["state"] == "running"
    with Store(str(path), write=True) as store:
        store.begin_scan()
        states = store.db.execute("SELECT state FROM scan ORDER BY id").fetchall()
    assert states == [("interrupted",), ("running",)]


def test_others_read_while_a_dump_is_being_added(path: Path) -> None:
    """They see what was there before, at once."""
    adding = "f.put('/crash/1', record('1 a reliable proven f')); f.store.db.execute('BEGIN "
    adding += "IMMEDIATE'); f.store.db.execute('DELETE FROM task'); "
    with writer(path, adding), Store(str(path)) as store:
        started = time.monotonic()
        assert fleet_report(store)["totals"]["tasks"] == 1
        assert time.monotonic() - started < 5


def test_a_report_is_of_one_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is added while it is being made."""
    fleet = Fleet(path)
    fleet.put("/crash/1", ONE)

    def grouped_and_then_more(store: Store, members: int | None) -> object:
        found = grouped_tasks(store, members)
        add = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"
        subprocess.run([sys.executable, "-c", add, str(path), ADD_BLOCKING], check=True)
        return found

    grouped_tasks = report.grouped_tasks
    monkeypatch.setattr(report, "grouped_tasks", grouped_and_then_more)
    with Store(str(path)) as store:
        found = fleet_report(store)
    assert found["totals"]["tasks"] == sum(group["tasks"] for group in found["groups"]) == 1
    assert found["blocking"] == []
    fleet.close()


ADD_BLOCKING = """
INSERT INTO task SELECT 99, dump, address, 99, 99, cpu, comm, state, kind, kernel, errno, proof,
    stack, waits_in FROM task;
INSERT INTO transition VALUES (1, 'fix', 'patched', 0, 1, 1, 1, 1.0, 1);
INSERT INTO pending VALUES (99, 'running', NULL, NULL, 'runs', '', '');
"""


def test_a_closed_store_is_one_file_that_needs_no_writing(path: Path) -> None:
    fleet = Fleet(path)
    fleet.put("/crash/1", TWO)
    assert (path.parent / "fleet.db-wal").exists()
    fleet.close()
    assert os.listdir(path.parent) == ["fleet.db"]
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        with Store(str(path)) as store:
            assert store.db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            assert fleet_report(store)["totals"]["tasks"] == 3
        assert os.listdir(path.parent) == ["fleet.db"]
    finally:
        path.parent.chmod(0o755)


def test_a_reader_that_is_there_at_the_end_does_not_hold_it_up(path: Path) -> None:
    """And all is in the one file nevertheless: whoever copies it has the whole scan."""
    fleet = Fleet(path)
    with Store(str(path)) as reader:
        reader.db.execute("SELECT count(*) FROM dump").fetchall()
        fleet.put("/crash/1", TWO)
        started = time.monotonic()
        fleet.close()
        assert time.monotonic() - started < 5
        shutil.copy(path, path.with_name("copy.db"))
    with Store(str(path.with_name("copy.db"))) as store:
        assert store.db.execute("SELECT count(*) FROM task").fetchone() == (3,)


# The end of a process at any moment --------------------------------------------------------------

KILLED = """
import os, signal, sys
from tests.fleets import *
from tests.test_fleet_store import ONE, TWO
path, at = sys.argv[1], int(sys.argv[2])
fleet = Fleet(path)
fleet.put('/crash/1', ONE)
seen = 0
def traced(sql):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
fleet.store.db.set_trace_callback(traced)
fleet.put('/crash/2', TWO)
print(seen, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path, at: int) -> int:
    """Have a process killed at a statement, 0 for after the last; how many there were."""
    found = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(at)],
        capture_output=True,
        text=True,
        cwd=VMCORES.parent,
    )
    assert found.returncode == -signal.SIGKILL, found.stderr
    return int(found.stdout or 0)


def test_a_kill_at_any_moment_leaves_what_was_there(tmp_path: Path) -> None:
    """And the dump in hand wholly or not at all; the next scan goes on from there."""
    statements = killed(tmp_path / "whole", 0)
    assert statements > 20
    points = [1, 2, statements // 3, statements // 2, statements - 8, statements - 1, statements, 0]
    tasks = []
    for number, at in enumerate(points):
        path = tmp_path / str(number)
        killed(path, at)
        with Store(str(path)) as store:
            rows = store.db.execute("SELECT task.comm FROM task ORDER BY id").fetchall()
            assert rows[0] == ("init",)
            tasks.append(len(rows))
            assert store.db.execute("SELECT count(*) FROM pending").fetchone()[0] in (0, 2)
            fleet_report(store)
        after = Fleet(path)
        assert after.rows("SELECT state FROM scan") == [("interrupted",), ("running",)]
        after.put("/crash/2", TWO)
        assert after.rows("SELECT path FROM place") == [("/crash/1",), ("/crash/2",)]
        assert after.rows("SELECT count(*) FROM current_task") == [(4,)]
        whole(after)
        after.close()
    assert tasks[:4] == [1] * 4 and tasks[-1] == 4 and set(tasks) == {1, 4}, tasks


def test_a_scan_of_the_directory_of_its_store_keeps_the_locks(path: Path) -> None:
    """Whoever closes any file of a store gives up all its locks in this process: the next reader
    that ends would take away the log of the open store, and with it what is written afterwards."""
    fleet = Fleet(path)
    read = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
    read += "print(db.execute('SELECT id, state FROM scan').fetchall()); db.close()"

    def another_reads() -> str:
        found = [sys.executable, "-c", read, str(path)]
        return subprocess.run(found, check=True, capture_output=True, text=True).stdout

    def listen(event: Event) -> None:
        if isinstance(event, Located):
            another_reads()

    engine = LocalEngine(1)
    scan_fleet([Source(str(path.parent))], fleet.store, engine, listen=listen)
    engine.close()
    assert another_reads() == "[(1, 'interrupted'), (2, 'finished')]\n"
    fleet.store.close()


# What is kept ------------------------------------------------------------------------------------


def test_a_dump_that_is_replaced_keeps_its_results_to_compare_with() -> None:
    fleet = Fleet()
    old = fleet.put("/crash/1", ONE, content="old")
    fleet.next_scan()
    new = fleet.put("/crash/1", TWO, content="new")
    assert fleet.rows("SELECT id FROM dump ORDER BY id") == [(old,), (new,)]
    assert fleet.rows("SELECT id, tasks FROM current") == [(new, 3)]
    assert fleet.rows("SELECT DISTINCT dump FROM current_task") == [(new,)]
    assert fleet.rows("SELECT count(*) FROM task WHERE dump = ?", old) == [(1,)]
    assert {dump for (dump,) in fleet.rows("SELECT dump FROM blocking")} == {new}
    assert [dump["path"] for dump in fleet_report(fleet.store)["dumps"]] == ["/crash/1"]


def test_a_dump_that_is_scanned_again_has_the_new_results_only() -> None:
    fleet = Fleet()
    fleet.put("/crash/other", ONE)
    first = fleet.put("/crash/1", TWO, content="same")
    fleet.next_scan()
    again = fleet.put("/crash/1", ONE, content="same", host="web")
    assert again == first
    assert fleet.rows("SELECT scan, tasks FROM current ORDER BY id") == [(1, 1), (2, 1)]
    for table in ("transition", "pending", "blocker", "patch", "task_reason"):
        assert fleet.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    whole(fleet)


def test_other_options_are_another_dump() -> None:
    fleet = Fleet()
    old = fleet.put("/crash/1", ONE, content="same", options="without symbols")
    new = fleet.put("/crash/1", TWO, content="same", options="with symbols")
    assert old != new
    assert fleet.rows("SELECT id FROM current") == [(new,)]
    assert fleet.store.finished(identity_of("same").digest, "without symbols", LIMITS) == old


def test_copies_of_one_content_are_one_dump_at_several_paths() -> None:
    fleet = Fleet()
    first = fleet.put("/crash/1", TWO, content="same", host="web")
    fleet.store.put("/copy/1", first, fleet.scan, identity_of("same"), "archive", {})
    assert fleet.rows("SELECT path, host FROM place ORDER BY path") == [
        ("/copy/1", "archive"),
        ("/crash/1", "web"),
    ]
    found = fleet_report(fleet.store)
    assert found["totals"]["dumps"] == 1 and found["totals"]["tasks"] == 3
    assert [dump["path"] for dump in found["dumps"]] == ["/copy/1", "/crash/1"]
    assert [line["tasks"] for line in found["blocking"]] == [1, 1]


def test_what_cannot_be_read_does_not_pile_up() -> None:
    """Nor does it take away what was found while it could be."""
    fleet = Fleet()
    good = fleet.put("/crash/1", ONE, content="good")
    for _ in range(3):
        fleet.next_scan()
        bad = fleet.put("/crash/1", failed("unreadable", "Permission denied"), content="")
        other = fleet.put("/crash/2", failed("unreadable", "Input/output error"), content="")
    assert fleet.rows("SELECT id FROM dump ORDER BY id") == [(good,), (bad,), (other,)]
    assert fleet.store.known("/crash/1") is None
    assert fleet.store.failed(fleet.scan) == [
        ("/crash/1", "unreadable", "Permission denied"),
        ("/crash/2", "unreadable", "Input/output error"),
    ]
    fleet.put("/crash/1", ONE, content="good")
    fleet.store.add(fleet.scan, failed("unreadable"), LIMITS, OPTIONS, None)  # and then a kill
    fleet.next_scan()
    assert fleet.rows("SELECT id FROM dump ORDER BY id") == [(good,), (other,)]


def test_the_labels_of_the_last_manifest_count() -> None:
    fleet = Fleet()
    fleet.put("/crash/1", ONE, host="web", labels={"rack": "1", "role": "web"})
    fleet.put("/crash/2", ONE, labels={"rack": "2"})
    fleet.put("/crash/1", ONE, labels={"rack": "3"})
    assert fleet.rows("SELECT path, name, value FROM label ORDER BY path") == [
        ("/crash/1", "rack", "3"),
        ("/crash/2", "rack", "2"),
    ]
    assert fleet.rows("SELECT host FROM place WHERE path = '/crash/1'") == [(None,)]


def test_a_file_is_a_dump_or_passed_over_as_it_was_last() -> None:
    """A dump in whose place there is a text now is no dump any more, and the other way round."""
    fleet = Fleet()
    fleet.store.pass_over(fleet.scan, [("/crash/1", "a text file"), ("/crash/3", "a tar archive")])
    fleet.put("/crash/1", ONE)
    fleet.put("/crash/2", ONE)
    fleet.next_scan()
    fleet.store.pass_over(fleet.scan, [("/crash/2", "a text file")])
    assert fleet.rows("SELECT path FROM passed_over ORDER BY path") == [
        ("/crash/2",),
        ("/crash/3",),
    ]
    assert fleet.rows("SELECT path FROM place") == [("/crash/1",)]


def test_a_file_is_known_as_it_was_last_seen() -> None:
    fleet = Fleet()
    fleet.put("/crash/\udcff", ONE, content="content")
    assert fleet.store.known("/crash/\udcff") == identity_of("content")
    assert fleet.store.known("/crash/other") is None
    assert fleet.rows("SELECT path FROM place") == [("/crash/\\xff",)]


MORE_TIME, MORE_MEMORY = Limits(20, LIMITS.memory), Limits(10, LIMITS.memory * 2)


@pytest.mark.parametrize(
    ("found", "limits", "retry", "again"),
    [
        pytest.param(ONE, LIMITS, False, False, id="whole"),
        pytest.param(ONE, MORE_TIME, True, False, id="whole is not retried"),
        pytest.param(record(problems=("x",)), MORE_TIME, False, False, id="incomplete"),
        pytest.param(failed("format"), LIMITS, False, False, id="no dump"),
        pytest.param(failed("format"), MORE_TIME, False, False, id="no dump, more time"),
        pytest.param(failed("format"), LIMITS, True, True, id="no dump, retried"),
        pytest.param(failed("crash"), MORE_MEMORY, False, False, id="crash, more memory"),
        pytest.param(failed("crash"), LIMITS, True, True, id="crash, retried"),
        pytest.param(failed("timeout"), LIMITS, False, False, id="timeout"),
        pytest.param(failed("timeout"), MORE_TIME, False, True, id="timeout, more time"),
        pytest.param(failed("timeout"), LIMITS, True, True, id="timeout, retried"),
        pytest.param(failed("memory"), LIMITS, False, False, id="memory"),
        pytest.param(failed("memory"), MORE_MEMORY, False, True, id="memory, more of it"),
        pytest.param(failed("killed"), LIMITS, False, True, id="killed"),
        pytest.param(failed("lost"), LIMITS, False, True, id="lost"),
        pytest.param(failed("unreadable"), LIMITS, False, True, id="unreadable"),
    ],
)
def test_what_is_scanned_again(found: Record, limits: Limits, retry: bool, again: bool) -> None:
    fleet = Fleet()
    dump = fleet.put("/crash/1", found, content="it")
    known = fleet.store.finished(identity_of("it").digest, OPTIONS, limits, retry=retry)
    assert known == (None if again else dump)
    assert fleet.store.finished(identity_of("it").digest, "others", limits) is None
    assert fleet.store.finished(identity_of("else").digest, OPTIONS, limits) is None


def test_dumps_share_their_stacks() -> None:
    fleet = Fleet()
    fleet.put("/crash/1", ONE)
    before = fleet.rows("SELECT * FROM stack"), fleet.rows("SELECT * FROM frame")
    fleet.put("/crash/2", record("9 other unreliable refuted do_wait+0x10 ret_from_fork ! loop"))
    assert (fleet.rows("SELECT * FROM stack"), fleet.rows("SELECT * FROM frame")) == before
    fleet.put("/crash/3", record("9 other reliable proven do_wait+0x14 ret_from_fork"))
    assert fleet.rows("SELECT count(*), count(DISTINCT normalised) FROM stack") == [(2, 1)]


# The schema --------------------------------------------------------------------------------------


def test_every_table_and_column_of_the_schema_is_used() -> None:
    """By dumps that failed, were scanned in part, or whole, at least one row has a value."""
    fleet = fleet_of_dumps(TRANSITIONS)
    fleet.put("/crash/failed", failed("timeout", "no answer", "BTF"), labels={"role": "web"})
    missing = {"problems": ("a page",), "stored": "ELF", "node": "web", "crashed": 1}
    fleet.put("/crash/incomplete", record("1 a unreliable refuted 0xdead ! loop", **missing))
    fleet.store.pass_over(fleet.scan, [("/crash/text", "a text file")])
    fleet.store.end_scan(fleet.scan, whole=True)
    tables = re.findall(r"^CREATE TABLE (\w+) \((.*?)^\)", SCHEMA, re.MULTILINE | re.DOTALL)
    assert len(tables) > 12
    unused = []
    for table, body in tables:
        columns = re.findall(r"^    ([a-z]\w*) +(?:INTEGER|TEXT|REAL)\b", body, re.MULTILINE)
        assert columns == [name for _, name, *_ in fleet.rows(f"PRAGMA table_info({table})")]
        for column in columns:
            found = fleet.rows(f"SELECT count(*) FROM {table} WHERE {column} IS NOT NULL")
            unused += [f"{table}.{column}"] if found == [(0,)] else []
    assert unused == []
    whole(fleet)


def test_real_dumps_keep_every_rule_of_the_database() -> None:
    fleet = fleet_of_dumps(TRANSITIONS)
    whole(fleet)
    assert fleet.rows("SELECT count(*) FROM current") == [(len(TRANSITIONS),)]
    tasks = sum(len(real(dump).report.tasks) for dump in TRANSITIONS)
    assert fleet.rows("SELECT count(*) FROM current_task") == [(tasks,)]
    assert fleet.rows("SELECT count(*) FROM frame") == fleet.rows("SELECT sum(depth) FROM stack")
