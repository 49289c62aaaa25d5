# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions that a store answers: a name, what it asks, and the SQL.

A report is made of these answers; ``fleet query`` gives any of them, or the one to SQL of your
own.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet.store import Store

__all__ = ("QUESTIONS", "Answer", "Question", "answer", "ask")


class Question(NamedTuple):
    """A row of the table."""

    asks: str
    sql: str


class Answer(NamedTuple):
    """What a store answers."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> Iterator[dict[str, Any]]:
        """Each row by the names of its columns."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)


_COUNTED = """
WITH counted AS (
    SELECT DISTINCT {key} AS key, current.id, current.status = 'failed' AS failed,
           current.tasks, current.unreliable, current.stalled
    FROM {tables})
SELECT key, count(*) AS dumps,
       (SELECT count(DISTINCT host.host) FROM host JOIN counted AS same ON same.id = host.dump
        WHERE same.key = counted.key) AS hosts,
       sum(failed) AS failed, sum(tasks) AS tasks, sum(unreliable) AS unreliable,
       sum(stalled) AS stalled
FROM counted WHERE key IS NOT NULL
GROUP BY key ORDER BY stalled DESC, unreliable DESC, dumps DESC, key"""
"""Dumps and what is in them, by something that a dump has."""

QUESTIONS: dict[str, Question] = {
    "totals": Question(
        "how much there is of everything",
        """
SELECT count(*) AS dumps, coalesce(sum(status = 'failed'), 0) AS failed,
       coalesce(sum(status = 'incomplete'), 0) AS incomplete,
       (SELECT count(DISTINCT host) FROM host) AS hosts,
       count(DISTINCT release) AS releases, coalesce(sum(tasks), 0) AS tasks,
       coalesce(sum(unreliable), 0) AS unreliable, coalesce(sum(stalled), 0) AS stalled
FROM current""",
    ),
    "blocking": Question(
        "what keeps livepatch transitions from finishing, and on how many hosts",
        """
SELECT blocking.patch, blocking.decision, blocking.function, blocking.module, blocking.reason,
       count(DISTINCT blocking.dump) AS dumps, count(DISTINCT host.host) AS hosts,
       count(DISTINCT blocking.task) AS tasks
FROM blocking JOIN host ON host.dump = blocking.dump
GROUP BY 1, 2, 3, 4, 5
ORDER BY hosts DESC, dumps DESC, tasks DESC, blocking.patch, blocking.function""",
    ),
    "transitions": Question(
        "the livepatch transitions in progress",
        """
SELECT transition.dump, transition.patch, transition.target, transition.pending,
       transition.switched, transition.attempts, transition.seconds, transition.stalled,
       count(CASE pending.decision WHEN 'sleeping' THEN 1 END) AS sleeping,
       count(CASE pending.decision WHEN 'unreliable' THEN 1 END) AS unreliable,
       count(CASE pending.decision WHEN 'running' THEN 1 END) AS running,
       count(CASE pending.decision WHEN 'would-switch' THEN 1 END) AS would_switch
FROM transition JOIN current ON current.id = transition.dump
LEFT JOIN task ON task.dump = transition.dump
LEFT JOIN pending ON pending.task = task.id
GROUP BY transition.dump
ORDER BY transition.stalled DESC, transition.pending DESC, transition.dump""",
    ),
    "reason": Question(
        "why traces are unreliable or in doubt, and on which kernels",
        """
SELECT task_reason.reason, count(DISTINCT task.dump) AS dumps,
       count(DISTINCT host.host) AS hosts, count(DISTINCT task.id) AS tasks
FROM task_reason JOIN current_task AS task ON task.id = task_reason.task
JOIN host ON host.dump = task.dump
GROUP BY 1 ORDER BY tasks DESC, reason""",
    ),
    "function": Question(
        "in which functions unreliable tasks are",
        """
SELECT task.waits_in AS function, count(DISTINCT task.dump) AS dumps,
       count(DISTINCT host.host) AS hosts, count(DISTINCT task.id) AS tasks
FROM current_task AS task JOIN host ON host.dump = task.dump
WHERE task.kernel = 'unreliable' AND task.waits_in IS NOT NULL
GROUP BY 1 ORDER BY dumps DESC, tasks DESC, function""",
    ),
    "release": Question("by kernel", _COUNTED.format(key="release", tables="current")),
    "architecture": Question(
        "by architecture", _COUNTED.format(key="architecture", tables="current")
    ),
    "host": Question(
        "by host",
        _COUNTED.format(key="h.host", tables="current JOIN host AS h ON h.dump = current.id"),
    ),
    "label": Question(
        "by label of a manifest",
        _COUNTED.format(
            key="label.name || '=' || label.value",
            tables="current JOIN place ON place.dump = current.id JOIN label USING (path)",
        ),
    ),
    "stack": Question(
        "stacks of tasks that are unreliable or hold up a livepatch, alike in all releases",
        """
SELECT stack.normalised, task.kernel, task.proof, min(task.waits_in) AS function,
       count(DISTINCT task.dump) AS dumps, count(DISTINCT host.host) AS hosts,
       count(DISTINCT task.id) AS tasks, count(DISTINCT current.release) AS releases
FROM current_task AS task JOIN stack ON stack.id = task.stack
JOIN current ON current.id = task.dump JOIN host ON host.dump = task.dump
WHERE task.kernel = 'unreliable' OR task.id IN (SELECT task FROM blocking)
GROUP BY 1, 2, 3 ORDER BY dumps DESC, tasks DESC, stack.normalised""",
    ),
    "dump": Question(
        "the dumps",
        """
SELECT current.id AS dump, place.path, host.host, current.status, current.cause, current.release,
       current.architecture, current.tasks, current.unreliable, current.stalled, current.detail
FROM current JOIN place ON place.dump = current.id
JOIN host ON host.dump = current.id AND host.host IS coalesce(place.host, current.node)
ORDER BY place.path""",
    ),
    "failed": Question(
        "the dumps that could not be scanned, and what was tried",
        """
SELECT place.path, current.cause, attempt.number + 1 AS attempt, attempt.rung, attempt.outcome,
       attempt.seconds, attempt.memory >> 20 AS mib, attempt.detail
FROM current JOIN place ON place.dump = current.id
LEFT JOIN attempt ON attempt.dump = current.id
WHERE current.status = 'failed' ORDER BY place.path, attempt.number""",
    ),
    "incomplete": Question(
        "the dumps in which something was missing",
        """
SELECT place.path, problem.kind, problem.text
FROM problem JOIN place ON place.dump = problem.dump ORDER BY place.path, problem.number""",
    ),
    "passed-over": Question(
        "the files that are no dumps", "SELECT path, why FROM passed_over ORDER BY path"
    ),
    "scan": Question(
        "the scans",
        """
SELECT scan.id AS scan, scan.started, scan.finished, scan.state, scan.version,
       count(dump.id) AS scanned, coalesce(sum(dump.status = 'failed'), 0) AS failed
FROM scan LEFT JOIN dump ON dump.scan = scan.id GROUP BY scan.id ORDER BY scan.id""",
    ),
}


def answer(store: Store, name: str) -> Answer:
    """What a store answers to one of :data:`QUESTIONS`."""
    return _answer(store, QUESTIONS[name].sql)


def ask(store: Store, question: str, seconds: float = 60) -> Answer:
    """What a store answers to a name of :data:`QUESTIONS` or to SQL.

    :param store: opened to read: SQL cannot change it.
    :param seconds: after which SQL is given up.
    :raises UsageError: for SQL that is wrong, gives no rows, or takes too long.
    """
    if question in QUESTIONS:
        return answer(store, question)
    if not question.strip():
        raise UsageError("an empty question; `fleet query STORE` lists those that have a name")
    deadline = time.monotonic() + seconds
    store.db.set_authorizer(_reading_only)
    store.db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        return _answer(store, question)
    except (sqlite3.Error, sqlite3.Warning, UnicodeError) as e:
        late = time.monotonic() > deadline
        why = f"no answer within {seconds:g} s" if late else e
        known = ", ".join(QUESTIONS)
        raise UsageError(f"query {question!r}: {why}; named questions are {known}") from e
    finally:
        store.db.set_progress_handler(None, 0)
        store.db.set_authorizer(None)


_READING = (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)


def _reading_only(action: int, *names: object) -> int:
    """SQL may read the store, and neither change it nor open another file."""
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _answer(store: Store, sql: str) -> Answer:
    cursor = store.db.execute(sql)
    if cursor.description is None:
        raise sqlite3.ProgrammingError("not a SELECT")
    return Answer(tuple(column[0] for column in cursor.description), cursor.fetchall())
