# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report of a store: plain data, described by ``schema/drgn-reliable-fleet-1.json``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from drgn_reliable.fleet.changes import Changes
from drgn_reliable.fleet.groups import frame_names, grouped_tasks
from drgn_reliable.fleet.questions import answer
from drgn_reliable.fleet.store import Store
from drgn_reliable.model import KernelVerdict, ProofVerdict
from drgn_reliable.version import VERSION

__all__ = ("SCHEMA", "fleet_report")

SCHEMA = "drgn-reliable-fleet/1"
"""``schema`` of the JSON form."""
_GROUPS, _MEMBERS, _HOSTS, _DUMPS, _ADVICE = 2000, 50, 20, 50, 5
"""The most that a report has: groups, tasks of a group, hosts and dumps of what blocks, and
sentences of advice."""
_COUNTED = ("release", "architecture", "host", "label")


def fleet_report(
    store: Store, title: str = "", changes: Changes | None = None, *, one_dump: bool = False
) -> dict[str, Any]:
    """The report of all dumps that have a place.

    :param title: by default the store's file.
    :param changes: what is new since an earlier scan.
    :param one_dump: whether the store was made for a single dump, all of whose tasks are wanted.
    """
    # All of one moment, whatever is being added.
    with store.reading():
        return _report(store, title, changes, one_dump)


def _report(store: Store, title: str, changes: Changes | None, one_dump: bool) -> dict[str, Any]:
    report = _Report(store, None if one_dump else _MEMBERS)
    return {
        "schema": SCHEMA,
        "title": title or store.path,
        "version": VERSION,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "one_dump": one_dump,
        "scans": list(answer(store, "scan").dicts()),
        "totals": report.totals(),
        "blocking": report.blocking(),
        "transitions": report.transitions(),
        "by_reason": report.by_reason(),
        **{f"by_{name}": list(answer(store, name).dicts()) for name in _COUNTED},
        "by_function": list(answer(store, "function").dicts()),
        "reasons": report.reasons(),
        "groups": [report.group(index) for index in range(len(report.groups[:_GROUPS]))],
        "groups_left_out": max(0, len(report.groups) - _GROUPS),
        "dumps": report.dumps(),
        "passed_over": list(answer(store, "passed-over").dicts()),
        "new": report.new(changes) if changes else None,
    }


class _Report:
    """The parts of a report that share what they are made of.

    :param members: how many tasks to name of each group; None for all.
    """

    def __init__(self, store: Store, members: int | None) -> None:
        self._store = store
        self.groups, self._of_blocking = grouped_tasks(store, members)
        self._hosts: dict[int, set[str]] = defaultdict(set)
        for dump, host in self._rows("SELECT dump, host FROM host WHERE host IS NOT NULL"):
            self._hosts[dump].add(host)
        self._releases: dict[int, str] = dict(
            self._rows("SELECT id, release FROM current WHERE release IS NOT NULL")
        )

    def _rows(self, sql: str) -> list[Any]:
        return self._store.db.execute(sql).fetchall()

    def _hosts_of(self, dumps: Iterable[int]) -> list[str]:
        return sorted(set().union(*(self._hosts[dump] for dump in dumps)))

    def _releases_of(self, dumps: Iterable[int]) -> list[str]:
        """The kernels of some dumps, the oldest first."""
        found = {self._releases[dump] for dump in dumps if dump in self._releases}
        return sorted(found, key=by_release)

    def totals(self) -> dict[str, Any]:
        """How many there are of everything."""
        statuses = Counter(dict(self._rows("SELECT status, count(*) FROM current GROUP BY 1")))
        kernel, proof = (
            Counter(dict(self._rows(f"SELECT {of}, count(*) FROM current_task GROUP BY 1")))
            for of in ("kernel", "proof")
        )
        return {
            "dumps": sum(statuses.values()),
            **{status: statuses[status] for status in ("whole", "incomplete", "failed")},
            "passed_over": self._rows("SELECT count(*) FROM passed_over")[0][0],
            "hosts": len(self._hosts_of(list(self._hosts))),
            "releases": len(set(self._releases.values())),
            "tasks": sum(kernel.values()),
            "stalled": self._rows("SELECT count(*) FROM current WHERE stalled")[0][0],
            "kernel": {verdict.value: kernel[verdict.value] for verdict in KernelVerdict},
            "proof": {verdict.value: proof[verdict.value] for verdict in ProofVerdict},
        }

    def blocking(self) -> list[dict[str, Any]]:
        """What keeps transitions from finishing, what is on the most hosts first."""
        where: dict[tuple[Any, ...], tuple[dict[int, None], set[int]]] = {}
        for *key, dump, task in self._rows(
            "SELECT patch, decision, function, module, reason, dump, task FROM blocking "
            "ORDER BY dump, task"
        ):
            dumps, groups = where.setdefault(tuple(key), ({}, set()))
            dumps[dump] = None
            groups.add(self._of_blocking[task])
        lines = []
        for line in answer(self._store, "blocking").dicts():
            key = (line[n] for n in ("patch", "decision", "function", "module", "reason"))
            dumps, groups = where[tuple(key)]
            lines.append(
                {
                    **line,
                    "host_names": self._hosts_of(dumps)[:_HOSTS],
                    "dump_ids": list(dumps)[:_DUMPS],
                    "groups": [index + 1 for index in sorted(groups) if index < _GROUPS],
                }
            )
        return lines

    def transitions(self) -> list[dict[str, Any]]:
        """Each transition with what to do, the most frequent advice first."""
        advice: dict[int, list[str]] = defaultdict(list)
        for dump, text in self._rows(
            "SELECT task.dump, advice_text FROM pending JOIN current_task AS task "
            "ON task.id = pending.task GROUP BY 1, 2 ORDER BY 1, count(*) DESC, min(task.id)"
        ):
            advice[dump].append(text)
        return [
            {**line, "stalled": bool(line["stalled"]), "advice": advice[line["dump"]][:_ADVICE]}
            for line in answer(self._store, "transitions").dicts()
        ]

    def by_reason(self) -> list[dict[str, Any]]:
        """Each reason with the kernels it was met on."""
        dumps: dict[str, set[int]] = defaultdict(set)
        for reason, dump in self._rows(
            "SELECT DISTINCT reason, task.dump FROM task_reason "
            "JOIN current_task AS task ON task.id = task_reason.task"
        ):
            dumps[reason].add(dump)
        return [
            {**line, "releases": self._releases_of(dumps[line["reason"]])}
            for line in answer(self._store, "reason").dicts()
        ]

    def reasons(self) -> dict[str, dict[str, Any]]:
        """The catalogue's rows of those that were met."""
        return {
            id: {
                "section": section,
                "section_title": section_title,
                "title": title,
                "decided_by": decided_by,
                "kernel": bool(kernel),
                "proof": proof,
                "remedy": remedy,
            }
            for id, section, section_title, title, decided_by, kernel, proof, remedy in self._rows(
                "SELECT * FROM reason WHERE id IN (SELECT reason FROM task_reason)"
            )
        }

    def group(self, index: int) -> dict[str, Any]:
        """A group, whose number is one more than its index."""
        group = self.groups[index]
        return {
            "id": index + 1,
            "hash": group.normalised,
            "frames": frame_names(self._store, group.stack),
            "kernel": group.kernel,
            "proof": group.proof,
            "reasons": list(group.reasons),
            "in": group.waits_in,
            "tasks": group.tasks,
            "dumps": len(group.dumps),
            "hosts": len(self._hosts_of(group.dumps)),
            "releases": self._releases_of(group.dumps),
            "blocks": sorted(group.blocks),
            "examples": [member._asdict() for member in group.members],
            "more": group.tasks - len(group.members),
        }

    def dumps(self) -> list[dict[str, Any]]:
        """Every file, in the order of their paths."""
        labels: dict[str, dict[str, str]] = defaultdict(dict)
        for path, name, value in self._rows("SELECT path, name, value FROM label"):
            labels[path][name] = value
        problems, attempts = self._problems(), self._attempts()
        found = []
        for row in self._rows(
            "SELECT id, path, coalesce(host, node), status, release, architecture, unwinder, "
            "tasks, unreliable, stalled, cause, detail, seconds, current.size "
            "FROM current JOIN place ON place.dump = current.id ORDER BY path"
        ):
            (
                number, path, host, status, release, architecture, unwinder, tasks, unreliable,
                stalled, cause, detail, seconds, size,
            ) = row  # fmt: skip
            found.append(
                {
                    "id": number,
                    "path": path,
                    "host": host,
                    "labels": labels.get(path, {}),
                    "status": status,
                    "release": release,
                    "architecture": architecture,
                    "unwinder": unwinder,
                    "tasks": tasks,
                    "unreliable": unreliable,
                    "stalled": bool(stalled),
                    "cause": cause,
                    "detail": detail,
                    "problems": problems[number],
                    "attempts": attempts[number],
                    "seconds": seconds,
                    "size": size,
                }
            )
        return found

    def _problems(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = defaultdict(list)
        for dump, text in self._rows("SELECT dump, text FROM problem ORDER BY dump, number"):
            found[dump].append(text)
        return found

    def _attempts(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        names = ("rung", "outcome", "detail", "seconds", "memory", "output")
        for dump, *attempt in self._rows(
            f"SELECT dump, {', '.join(names)} FROM attempt ORDER BY dump, number"
        ):
            told = dict(zip(names, attempt, strict=True))
            found[dump].append({**told, "output": told["output"].splitlines()})
        return found

    def new(self, changes: Changes) -> dict[str, Any]:
        """What is new, with the groups of new stacks."""
        of_stack: dict[str, int] = {}
        for index, group in enumerate(self.groups):
            of_stack.setdefault(group.normalised, index)  # the most important of them
        return changes.data(
            lambda stack: of_stack[stack] + 1 if of_stack.get(stack, _GROUPS) < _GROUPS else None
        )


def by_release(release: str) -> list[tuple[int, str]]:
    """A key to sort releases by: numbers as numbers.

    >>> sorted(["6.12.9", "6.12.10", "6.1.0-50"], key=by_release)
    ['6.1.0-50', '6.12.9', '6.12.10']
    """
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", release)
    return [(int(part), "") if part[0] in "0123456789" else (0, part) for part in parts]
