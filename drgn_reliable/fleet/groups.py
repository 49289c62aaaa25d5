# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks with alike stacks, verdicts and reasons, over all dumps of a store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from drgn_reliable.fleet.record import normal_name
from drgn_reliable.fleet.store import Store
from drgn_reliable.selection import importance

__all__ = ("Group", "Member", "all_stacks", "frame_names", "grouped_tasks")


class Member(NamedTuple):
    """A task of a group."""

    dump: int
    pid: int
    comm: str
    cpu: int
    state: str
    kind: str
    task: str
    """Address of its structure, in hex."""


@dataclass
class Group:
    """Tasks whose stacks are the same but for builds and releases."""

    normalised: str
    kernel: str
    proof: str
    reasons: tuple[str, ...]
    stack: int
    """The stack of the first of them."""
    waits_in: str
    members: list[Member] = field(default_factory=list)
    """The first few."""
    tasks: int = 0
    dumps: set[int] = field(default_factory=set)
    blocks: set[str] = field(default_factory=set)
    """Patches whose transitions they hold up."""


def grouped_tasks(store: Store, members: int | None) -> tuple[list[Group], dict[int, int]]:
    """The groups, the most important first; and the index of the group of each task that holds up
    a livepatch.

    :param members: how many tasks to name of a group; None for all.
    """
    reasons = _reasons(store)
    blocked = defaultdict(set)
    for task, patch in store.db.execute("SELECT task, patch FROM blocking"):
        blocked[task].add(patch)
    groups: dict[tuple[object, ...], Group] = {}
    of_blocking: dict[int, Group] = {}
    for number, normalised, kernel, proof, stack, waits_in, *member in store.db.execute(
        "SELECT task.id, stack.normalised, kernel, proof, stack.id, waits_in, "
        "dump, pid, comm, cpu, state, kind, address "
        "FROM current_task AS task JOIN stack ON stack.id = task.stack ORDER BY task.id"
    ):
        why = reasons.get(number, ())
        key = (normalised, kernel, proof, why)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(normalised, kernel, proof, why, stack, waits_in or "")
        group.tasks += 1
        group.dumps.add(member[0])
        if members is None or len(group.members) < members:
            group.members.append(Member(*member))
        if number in blocked:
            group.blocks |= blocked[number]
            of_blocking[number] = group
    ordered = sorted(
        groups.values(),
        key=lambda g: (not g.blocks, importance(g.kernel, g.proof), -len(g.dumps), -g.tasks),
    )
    places = {id(group): index for index, group in enumerate(ordered)}
    return ordered, {task: places[id(group)] for task, group in of_blocking.items()}


def _reasons(store: Store) -> dict[int, tuple[str, ...]]:
    """The reasons of each task that has any, each once."""
    found: dict[int, dict[str, None]] = {}
    for task, reason in store.db.execute(
        "SELECT task, reason FROM task_reason ORDER BY task, number"
    ):
        found.setdefault(task, {})[reason] = None
    return {task: tuple(reasons) for task, reasons in found.items()}


def all_stacks(store: Store) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """All stacks: their functions, the outermost first, the kernel's verdict, and how many tasks
    have them."""
    groups, _ = grouped_tasks(store, 0)
    counted: Counter[tuple[tuple[str, ...], str]] = Counter()
    for group in groups:
        counted[tuple(frame_names(store, group.stack)[::-1]), group.kernel] += group.tasks
    return ((*key, tasks) for key, tasks in counted.items())


def frame_names(store: Store, stack: int) -> list[str]:
    """The functions of a stack, the innermost first; addresses where there is no name."""
    rows = store.db.execute(
        "SELECT symbol, address FROM frame WHERE stack = ? ORDER BY number", (stack,)
    )
    return [normal_name(symbol) if symbol else address for symbol, address in rows]
