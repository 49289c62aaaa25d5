# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rows that the oracle writes: what a running kernel answered for each of its tasks."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

NAMES = {-22: "unreliable", -16: "running", -38: "unsupported"}
"""By error number: EINVAL, EBUSY (a running task is not asked), ENOSYS (there is no such walk)."""
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True)
class Recorded:
    """One "T" row."""

    kind: str
    """``task`` or ``idle``."""
    task: int
    """Address of its task_struct."""
    pid: int
    tgid: int
    on_cpu: bool
    answer: int
    """Number of entries, or a negative error number."""
    entries: tuple[int, ...]
    comm: str

    @property
    def verdict(self) -> str:
        """As :class:`drgn_reliable.KernelVerdict` says it; an unknown error is never reliable."""
        return _name(self.answer)


def parse(rows: str) -> list[Recorded]:
    """The "T" rows: ``T kind task pid tgid switches on_cpu state answer entries B plain comm``."""
    return [_parse_row(row) for row in lines(rows) if row.startswith("T ")]


def damaged_pids(rows: str) -> set[int]:
    """The tasks of "D" rows, whose stacks were damaged after their kernel had answered."""
    return {int(row.split()[2]) for row in lines(rows) if row.startswith("D ")}


def lines(rows: str) -> list[str]:
    """The rows; a task's name can have what other systems end a line with."""
    return rows.split("\n")


def text_of(written: str) -> str:
    r"""A name or a line of the log: the oracle writes all that is not printable ASCII as ``\xNN``.

    >>> text_of(r"caf\xc3\xa9 \x5c \xff")
    'café \\ \\xff'
    """
    data = written.encode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), data).decode(
        "utf-8", "backslashreplace"
    )


def after_damage(rows: str) -> dict[int, tuple[str, tuple[int, ...]]]:
    """By the addresses of damaged tasks, what their kernel said when it was asked again, in "H"
    rows: ``H task pid answer entries comm``; its verdict and its entries."""
    found = {}
    for row in lines(rows):
        if row.startswith("H "):
            _, task, _, answer, entries, _ = row.split(" ", 5)
            found[int(task, 16)] = (_name(int(answer)), _entries(entries))
    return found


def of_names(rows: str, patterns: Iterable[str]) -> str:
    """The rows of the tasks whose names match one of these patterns, and those of no task."""
    wanted = tuple(patterns)
    chosen = {
        row.task
        for row in parse(rows)
        if any(fnmatch.fnmatchcase(row.comm, pattern) for pattern in wanted)
    }
    return "\n".join(row for row in lines(rows) if _task_of(row) in (None, *chosen))


def counts(recorded: Iterable[Recorded]) -> dict[str, int]:
    """How many tasks there are of each verdict."""
    return dict(Counter(row.verdict for row in recorded))


def _task_of(row: str) -> int | None:
    """The task that a row is about, if it is about one."""
    if row.startswith("T "):
        return int(row.split(" ", 3)[2], 16)
    return int(row.split(" ", 2)[1], 16) if row.startswith(("D ", "H ", "S ")) else None


def _name(answer: int) -> str:
    return "reliable" if answer >= 0 else NAMES.get(answer, f"error {answer}")


def _entries(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.strip().split(",") if word)


def _parse_row(row: str) -> Recorded:
    head, _, tail = row.partition(" B ")
    _, kind, task, pid, tgid, _, on_cpu, _, answer, entries = head.split(" ", 9)
    return Recorded(
        kind,
        int(task, 16),
        int(pid),
        int(tgid),
        on_cpu != "0",
        int(answer),
        _entries(entries),
        text_of(tail.partition(" ")[2]),
    )
