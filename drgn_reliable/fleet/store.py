# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the results of a fleet are kept: one SQLite file, described in ``schema.sql``.

Each dump is added in one transaction: whenever the scan ends, and however, what was there before
the dump in hand is there afterwards. Others may read at any time; one scan writes.

A store may come from anywhere: what its tables and views are is compared with ``schema.sql``, so
that no question runs what somebody else has written, and SQLite is told to trust nothing in it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import quote

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet.identity import Identity, Stamp
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.record import Record, StackRecord
from drgn_reliable.model import KernelVerdict, ProofVerdict
from drgn_reliable.reasons import CATALOGUE, SECTIONS
from drgn_reliable.version import VERSION

__all__ = ("SCHEMA_VERSION", "Brief", "Store", "options_hash", "text_of_path")

SCHEMA_VERSION = 1
"""Of the tables (``schema.sql``); a store of another version is refused."""
_APPLICATION = 0x6472726C
"""``PRAGMA application_id`` of a store: ``drrl``."""
_LIMITED = ("timeout", "memory")
"""Failures that other limits may change."""
_PASSING = ("killed", "lost", "unreadable")
"""Failures that say nothing of the dump."""


_KINDS = {"INTEGER": ("integer",), "REAL": ("real", "integer"), "TEXT": ("text",)}
"""What SQLite says of values in a column of a type."""
_WORDS = {
    "kernel": {verdict.value for verdict in KernelVerdict},
    "proof": {verdict.value for verdict in ProofVerdict},
}
_SETTINGS = (
    "foreign_keys = ON",
    "busy_timeout = 30000",
    "trusted_schema = OFF",
    "cell_size_check = ON",
)
_COMMENT_OR_SPACE = re.compile(r"--[^\n]*|\s+")


def _schema_text() -> str:
    return resources.files("drgn_reliable.fleet").joinpath("schema.sql").read_text("utf-8")


def _objects(db: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """The SQL of the tables, views and triggers by kind and name, without comments."""
    return {
        (kind, name): " ".join(_COMMENT_OR_SPACE.sub(" ", sql).split())
        for kind, name, sql in db.execute(
            "SELECT type, name, sql FROM sqlite_schema WHERE type IN ('table', 'view', 'trigger')"
        )
    }


@cache
def _schema() -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(_schema_text())
        return _objects(db)


def text_of_path(path: str) -> str:
    """A path as the store has it: text, whatever bytes are in it.

    >>> text_of_path("/crash/\\udcff")
    '/crash/\\\\xff'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Brief(NamedTuple):
    """What there is to say of a dump in a line."""

    status: str
    cause: str | None
    detail: str | None
    tasks: int
    unreliable: int
    stalled: bool
    seconds: float


class Store:
    """An open store.

    :param path: its file; ``":memory:"`` for one that is kept nowhere.
    :param write: whether to scan into it: it is made if it is not there, and nobody else may.
    :raises UsageError: if it cannot be opened, is no store, or is of another version.
    """

    def __init__(self, path: str, write: bool = False) -> None:
        self.path = path
        self._lock: int | None = None
        self._logged = False
        try:
            self._open(write)
        except sqlite3.Error as e:
            self.close()
            raise UsageError(f"{path}: cannot be opened as a store ({e})") from e
        except BaseException:
            self.close()
            raise

    def _open(self, write: bool) -> None:
        memory = self.path == ":memory:"
        if not memory:
            self._check_file(write)
        name = quote(os.fsencode(self.path))
        where = self.path if memory else f"file:{name}?mode={'rwc' if write else 'ro'}"
        self.db = sqlite3.connect(where, uri=not memory, isolation_level=None)
        for setting in _SETTINGS:
            self.db.execute(f"PRAGMA {setting}")
        application, version = (
            self.db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        empty = not self.db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if write and empty:
            self._create()
        elif application != _APPLICATION:
            raise UsageError(f"{self.path}: an SQLite database, but no store of a fleet")
        elif version != SCHEMA_VERSION:
            raise UsageError(
                f"{self.path}: a store of version {version}, and this program knows version "
                f"{SCHEMA_VERSION}; scan into a new file"
            )
        elif other := self._altered():
            raise UsageError(f"{self.path}: {other}: it is no store as `fleet scan` makes one")
        if not write:
            self.db.execute("PRAGMA query_only = ON")
        if write and not memory:
            # Not before it is known to be a store, and the schema in the file itself: a copy of
            # it alone is one, too.
            self.db.execute("PRAGMA journal_mode = WAL")
            self._logged = True

    def _altered(self) -> str | None:
        """What is not as ``schema.sql`` has it, in words; None if there is nothing. A table may be
        missing columns or a view run for ever."""
        found = _objects(self.db)
        for key, text in _schema().items():
            if found.get(key) != text:
                return f"its {' '.join(key)} is another"
        triggers = sorted(name for kind, name in found if kind == "trigger")
        return f"it has a trigger {triggers[0]}" if triggers else None

    def _check_file(self, write: bool) -> None:
        if not write:
            if not os.path.isfile(self.path):
                raise UsageError(f"{self.path}: no such store; `fleet scan --store` makes one")
            return
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.open(self.path, flags, 0o666)
        except OSError as e:
            if e.errno == errno.ELOOP:
                raise UsageError(
                    f"--store {self.path}: a symbolic link, which anybody may have put there; name "
                    "the file itself"
                ) from e
            raise UsageError(f"--store {self.path}: cannot be written ({e.strerror})") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UsageError(f"--store {self.path}: another scan writes to it; wait for it") from e
        self._check_beside(self._lock)

    def _check_beside(self, store: int) -> None:
        """SQLite takes files beside its own for its unfinished work, whoever wrote them."""
        owner = os.fstat(store).st_uid
        for suffix in ("-journal", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                beside = os.stat(self.path + suffix, follow_symlinks=False)
                if not stat.S_ISREG(beside.st_mode) or beside.st_uid not in (owner, os.geteuid()):
                    raise UsageError(
                        f"--store {self.path}: {self.path}{suffix} is somebody else's; name a file "
                        "in a directory of your own"
                    )

    def _create(self) -> None:
        self.db.executescript(
            f"BEGIN; {_schema_text()}; PRAGMA application_id = {_APPLICATION}; "
            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )

    def damage(self) -> str | None:
        """What in the file no scan has written, in words; None if nothing is found. Everything is
        read, which takes a while."""
        (said,) = self.db.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            return str(said)
        for table, column, type_ in self.db.execute(
            "SELECT m.name, c.name, c.type FROM sqlite_schema AS m JOIN pragma_table_info(m.name) "
            "AS c WHERE m.type = 'table' ORDER BY 1, 2"
        ).fetchall():
            kinds = ", ".join(f"'{each}'" for each in ("null", *_KINDS[type_]))
            row = self.db.execute(
                f"SELECT typeof({column}) FROM {table} WHERE typeof({column}) NOT IN ({kinds}) "
                f"OR (typeof({column}) = 'real' AND abs({column}) > 1e300) LIMIT 1"
            ).fetchone()
            if row:
                return f"{table}.{column} holds a value of type {row[0]} that cannot be"
        for column, words in _WORDS.items():
            for (found,) in self.db.execute(f"SELECT DISTINCT {column} FROM task"):
                if found not in words:
                    return f"task.{column} holds {found!r}"
        return None

    def close(self) -> None:
        """Close it, as one file if nobody else reads."""
        if hasattr(self, "db"):
            if self._logged:
                with suppress(sqlite3.Error):
                    self.db.execute("PRAGMA wal_checkpoint")  # all that a reader leaves room for
                    self.db.execute("PRAGMA journal_mode = DELETE")
            self.db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self.db.in_transaction:  # a full disk has ended it already
                self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See everything as it is now, whatever others write meanwhile."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("ROLLBACK")

    # Scans ----------------------------------------------------------------------------------

    def begin_scan(self) -> int:
        """Note that a scan begins, and give its number."""
        with self._transaction():
            # Whoever wrote before is gone: this store is ours alone.
            self.db.execute("UPDATE scan SET state = 'interrupted' WHERE state = 'running'")
            self.db.execute(
                "DELETE FROM dump WHERE identity IS NULL AND id NOT IN (SELECT dump FROM place)"
            )
            self._write_catalogue()
            return self._insert("scan", started=_now(), state="running", version=VERSION)

    def end_scan(self, scan: int, *, whole: bool) -> None:
        """Note that a scan has ended: all dumps were dealt with, or it was interrupted."""
        with self._transaction():
            self.db.execute(
                "UPDATE scan SET finished = ?, state = ? WHERE id = ?",
                (_now(), "finished" if whole else "interrupted", scan),
            )

    def _write_catalogue(self) -> None:
        rows = [
            (
                kind.id,
                kind.section,
                SECTIONS[kind.section],
                kind.title,
                kind.decided_by,
                kind.kernel,
                kind.proof.value,
                kind.remedy,
            )
            for kind in CATALOGUE.values()
        ]
        self.db.executemany(
            "INSERT INTO reason VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "section = excluded.section, section_title = excluded.section_title, "
            "title = excluded.title, decided_by = excluded.decided_by, kernel = excluded.kernel, "
            "proof = excluded.proof, remedy = excluded.remedy",
            rows,
        )

    # Dumps ----------------------------------------------------------------------------------

    def known(self, path: str) -> Identity | None:
        """What the file at a path was when it was last seen."""
        row = self.db.execute(
            "SELECT identity, size, modified, changed FROM place WHERE path = ? "
            "AND identity IS NOT NULL",
            (text_of_path(path),),
        ).fetchone()
        return Identity(row[0], Stamp(*row[1:])) if row else None

    def finished(
        self, identity: str, options: str, limits: Limits, *, retry: bool = False
    ) -> int | None:
        """The dump with this content and these options that need not be scanned again.

        :param retry: whether those that failed are scanned again. One that met a limit is when
            the limits are others, one whose process or worker was lost always is.
        """
        row = self.db.execute(
            "SELECT id, status, cause, limits FROM dump WHERE identity = ? AND options = ?",
            (identity, options),
        ).fetchone()
        if row is None:
            return None
        number, status, cause, limited = row
        again = retry or cause in _PASSING
        again = again or (cause in _LIMITED and limited != _limits_text(limits))
        return None if status == "failed" and again else int(number)

    def add(
        self,
        scan: int,
        record: Record,
        limits: Limits,
        options: str,
        identity: Identity | None,
    ) -> int:
        """Add what was found of a dump, in the place of what was found of it before."""
        digest = identity.digest if identity else None
        with self._transaction():
            old = self.db.execute(
                "SELECT id FROM dump WHERE identity = ? AND options = ?", (digest, options)
            ).fetchone()
            columns = {
                "scan": scan,
                "identity": digest,
                "options": options,
                "limits": _limits_text(limits),
                "size": identity.stamp.size if identity else None,
                "seconds": round(sum(attempt.seconds for attempt in record.attempts), 3),
                "facts": json.dumps(record.facts) if record.facts else None,
                **{name: getattr(record, name) for name in _PLAIN},
            }
            if old:
                self._clear(old[0])
                assignments = ", ".join(f"{name} = ?" for name in columns)
                self.db.execute(
                    f"UPDATE dump SET {assignments} WHERE id = ?", (*columns.values(), old[0])
                )
            number = int(old[0]) if old else self._insert("dump", **columns)
            self._add_rows(number, record)
        return number

    def failed(self, scan: int) -> list[tuple[str, str, str]]:
        """Paths, causes and details of the dumps of a scan that could not be scanned."""
        return self.db.execute(
            "SELECT path, cause, detail FROM place JOIN dump ON dump.id = place.dump "
            "WHERE place.scan = ? AND status = 'failed' ORDER BY path",
            (scan,),
        ).fetchall()

    def brief(self, dump: int) -> Brief:
        """What there is to say of a dump in a line."""
        row = self.db.execute(
            "SELECT status, cause, detail, "
            "(SELECT count(*) FROM task WHERE task.dump = dump.id), "
            "(SELECT count(*) FROM task WHERE task.dump = dump.id AND kernel = 'unreliable'), "
            "EXISTS (SELECT 1 FROM transition WHERE transition.dump = dump.id AND stalled), "
            "seconds FROM dump WHERE id = ?",
            (dump,),
        ).fetchone()
        status, cause, detail, tasks, unreliable, stalled, seconds = row
        return Brief(status, cause, detail, tasks, unreliable, bool(stalled), seconds)

    def _clear(self, dump: int) -> None:
        for table in ("attempt", "problem", "task", "patch", "transition"):
            self.db.execute(f"DELETE FROM {table} WHERE dump = ?", (dump,))

    def _add_rows(self, dump: int, record: Record) -> None:
        self._insert_many("attempt", [(dump, n, *each) for n, each in enumerate(record.attempts)])
        problems = [("incomplete", text) for text in record.problems]
        problems += [("warning", text) for text in record.warnings]
        self._insert_many("problem", [(dump, n, *each) for n, each in enumerate(problems)])
        self._insert_many("patch", [(dump, n, *each) for n, each in enumerate(record.patches)])
        if record.transition:
            self._insert_many("transition", [(dump, *record.transition)])
        tasks = self._add_tasks(dump, record)
        pending = [(tasks[each.task], *each[1:-1]) for each in record.pending]
        self._insert_many("pending", pending)
        blockers = [
            (tasks[each.task], n, *blocker)
            for each in record.pending
            for n, blocker in enumerate(each.blockers)
        ]
        self._insert_many("blocker", blockers)

    def _add_tasks(self, dump: int, record: Record) -> range:
        """Add the tasks and give their numbers."""
        stacks = [self._stack(stack) for stack in record.stacks]
        first = self.db.execute("SELECT coalesce(max(id), 0) + 1 FROM task").fetchone()[0]
        numbers = range(first, first + len(record.tasks))
        rows = [
            (number, dump, *task[:10], stacks[task.stack], task.waits_in)
            for number, task in zip(numbers, record.tasks, strict=True)
        ]
        self._insert_many("task", rows)
        reasons = [
            (number, n, reason.id, reason.frame, reason.detail, reason.refused)
            for number, task in zip(numbers, record.tasks, strict=True)
            for n, reason in enumerate(task.reasons)
        ]
        self._insert_many("task_reason", reasons)
        return numbers

    def _stack(self, stack: StackRecord) -> int:
        row = self.db.execute("SELECT id FROM stack WHERE hash = ?", (stack.hash,)).fetchone()
        if row:
            return int(row[0])
        number = self._insert(
            "stack", hash=stack.hash, normalised=stack.normalised, depth=len(stack.frames)
        )
        self._insert_many("frame", [(number, n, *frame) for n, frame in enumerate(stack.frames)])
        return number

    def put(
        self,
        path: str,
        dump: int,
        scan: int,
        identity: Identity | None,
        host: str | None,
        labels: dict[str, str],
    ) -> None:
        """Note that a dump lies at a path."""
        where = text_of_path(path)
        digest, stamp = (identity.digest, identity.stamp) if identity else (None, (None,) * 3)
        with self._transaction():
            before = self.db.execute("SELECT dump FROM place WHERE path = ?", (where,)).fetchone()
            self.db.execute("DELETE FROM label WHERE path = ?", (where,))
            self.db.execute("DELETE FROM passed_over WHERE path = ?", (where,))
            self.db.execute(
                "INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (where, dump, scan, host, digest, *stamp),
            )
            self._insert_many("label", [(where, *label) for label in labels.items()])
            if before and before[0] != dump:
                # What could not be read is no content that would be worth keeping.
                self.db.execute("DELETE FROM dump WHERE id = ? AND identity IS NULL", before)

    def pass_over(self, scan: int, files: Iterable[tuple[str, str]]) -> None:
        """Note files that are no dumps, or not any more."""
        rows = [(text_of_path(path), scan, why) for path, why in files]
        with self._transaction():
            self.db.executemany("INSERT OR REPLACE INTO passed_over VALUES (?, ?, ?)", rows)
            self.db.executemany("DELETE FROM place WHERE path = ?", [row[:1] for row in rows])

    # Rows -----------------------------------------------------------------------------------

    def _insert(self, table: str, **columns: Any) -> int:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        cursor = self.db.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values())
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _insert_many(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self.db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


_PLAIN = (
    "status", "cause", "detail", "stored", "release", "architecture", "unwinder", "types",
    "symbols", "node", "crashed",
)  # fmt: skip
"""Members of a record that are columns of the same name."""


def _limits_text(limits: Limits) -> str:
    return f"{limits.seconds:g} s, {limits.memory} B"


def options_hash(*parts: object) -> str:
    """A hash of what, beside a dump's content, decides what a scan finds."""
    return hashlib.blake2b(repr((VERSION, *parts)).encode(), digest_size=8).hexdigest()
