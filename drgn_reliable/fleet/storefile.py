# SPDX-License-Identifier: LGPL-2.1-or-later
"""The file of a store: opened, locked, and held against ``schema.sql``.

A store may come from anywhere: what its tables and views are is compared with ``schema.sql``, so
that no question runs what somebody else has written, and SQLite is told to trust nothing in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import quote

from drgn_reliable.errors import UsageError
from drgn_reliable.model import KernelVerdict, ProofVerdict

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ("SCHEMA_VERSION", "StoreFile")

SCHEMA_VERSION = 1
"""Of the tables (``schema.sql``); a store of another version is refused."""
_APPLICATION = 0x6472726C
"""``PRAGMA application_id`` of a store: ``drrl``."""
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


class StoreFile:
    """An open store, whatever is in it.

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

    def __enter__(self) -> Self:
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
