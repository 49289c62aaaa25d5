# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is new since an earlier scan, or in one store beside an older one."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet.store import Store

__all__ = ("Changes", "Earlier", "changes_between", "changes_since")

_KEYS = {
    "reasons": "SELECT task_reason.reason, task.dump FROM task_reason "
    "JOIN task ON task.id = task_reason.task",
    "functions": "SELECT task.waits_in, task.dump FROM task WHERE kernel = 'unreliable' "
    "AND waits_in IS NOT NULL "
    "UNION SELECT blocker.function, task.dump FROM blocker "
    "JOIN task ON task.id = blocker.task",
    "stacks": "SELECT stack.normalised, task.dump FROM task JOIN stack ON stack.id = task.stack "
    "WHERE kernel = 'unreliable' OR task.id IN (SELECT task FROM pending)",
    "releases": "SELECT release, id FROM dump WHERE release IS NOT NULL",
}
"""What can be new, and in which dumps it is: of tasks that are unreliable or have not switched."""


class _Seen(NamedTuple):
    key: str
    dumps: int
    hosts: int


class Changes:
    """What there is now that there was not before.

    :param since: what it is compared with, in words.
    """

    def __init__(self, since: str, new: dict[str, list[_Seen]]) -> None:
        self._since, self._new = since, new

    def data(self, group_of: Callable[[str], int | None]) -> dict[str, Any]:
        """For the report.

        :param group_of: gives the number of the group of stacks with a normalised hash.
        """
        found: dict[str, Any] = {
            name: [seen._asdict() for seen in every] for name, every in self._new.items()
        }
        for stack in found["stacks"]:
            stack["group"] = group_of(stack["key"])
        return {"since": self._since, **found}


def changes_since(store: Store, since: str) -> Changes:
    """What is new in the dumps that were scanned in a scan or since.

    :param since: the number of a scan, or a date or time (ISO 8601, UTC).
    :raises UsageError: if it is neither, or there was no scan then or since.
    """
    condition, value = "started >= ?", since
    if re.fullmatch(r"[0-9]{1,15}", since):
        condition = "id >= CAST(? AS INTEGER)"
    else:
        try:
            if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:]+)?", since):
                raise ValueError
            value = datetime.fromisoformat(since).isoformat()
        except ValueError as e:
            raise UsageError(
                f"--since {since}: neither the number of a scan nor a date (2026-11-21)"
            ) from e
    first = store.db.execute(f"SELECT min(id) FROM scan WHERE {condition}", (value,)).fetchone()[0]
    if first is None:
        raise UsageError(f"--since {since}: no scan was made then or since; `fleet query "
                         f"{store.path} scan` lists them")  # fmt: skip
    now = _keys(store, f"dump IN (SELECT id FROM dump WHERE scan >= {first}) AND {_PRESENT}")
    before = _keys(store, f"dump IN (SELECT id FROM dump WHERE scan < {first})")
    return Changes(f"scan {first}", _new(store, now, before))


class Earlier:
    """What an older store holds, all of it read."""

    def __init__(self, store: Store) -> None:
        self.path = store.path
        self.keys = _keys(store, _PRESENT)


def changes_between(store: Store, older: Earlier) -> Changes:
    """What is new in a store beside an older one."""
    return Changes(older.path, _new(store, _keys(store, _PRESENT), older.keys))


_PRESENT = "dump IN (SELECT dump FROM place)"


def _keys(store: Store, condition: str) -> dict[str, dict[str, set[int]]]:
    """By kind and key, the dumps that have it."""
    found: dict[str, dict[str, set[int]]] = {}
    for kind, sql in _KEYS.items():
        of_kind = found.setdefault(kind, {})
        rows = store.db.execute(
            f"SELECT DISTINCT * FROM (WITH seen (key, dump) AS ({sql}) "
            f"SELECT * FROM seen WHERE {condition})"
        )
        for key, dump in rows:
            of_kind.setdefault(key, set()).add(dump)
    return found


def _new(
    store: Store,
    now: dict[str, dict[str, set[int]]],
    before: dict[str, dict[str, set[int]]],
) -> dict[str, list[_Seen]]:
    hosts = dict[int, set[str]]()
    for dump, host in store.db.execute("SELECT dump, host FROM host WHERE host IS NOT NULL"):
        hosts.setdefault(dump, set()).add(host)
    return {
        kind: sorted(
            (
                _Seen(key, len(dumps), len(set().union(*(hosts.get(d, set()) for d in dumps))))
                for key, dumps in keys.items()
                if key not in before[kind]
            ),
            key=lambda seen: (-seen.dumps, seen.key),
        )
        for kind, keys in now.items()
    }
