# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the results of a fleet are kept: one SQLite file, described in ``schema.sql``.

Each dump is added in one transaction: whenever the scan ends, and however, what was there before
the dump in hand is there afterwards. Others may read at any time; one scan writes.
:mod:`drgn_reliable.fleet.storefile` opens the file and sees that it is one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from drgn_reliable.fleet.identity import Identity, Stamp
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.record import Record, StackRecord
from drgn_reliable.fleet.storefile import StoreFile
from drgn_reliable.reasons import CATALOGUE, SECTIONS
from drgn_reliable.version import VERSION

__all__ = ("Brief", "Store", "options_hash", "text_of_path")

_LIMITED = ("timeout", "memory")
"""Failures that other limits may change."""
_PASSING = ("killed", "lost", "unreadable")
"""Failures that say nothing of the dump."""


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


class Store(StoreFile):
    """An open store: the scans, the dumps, and what was found of them; opened as
    :class:`~drgn_reliable.fleet.storefile.StoreFile` says."""

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
