# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hold the livepatch analysis of a dump against what its own kernel had and said of livepatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drgn_reliable.patches import Patch, PatchedFunction, PatchedObject
from drgn_reliable.transition import Decision, LivepatchReport

from . import livepatch


def livepatch_differences(report: LivepatchReport, rows: str) -> list[str]:
    """Where an analysis is not what the rows about livepatches say, a line each; nothing if there
    are no such rows.

    The kernel spoke of every task that it did not switch, and of no other, a moment before the
    dump: what is said here of each has to be the same, and the analysis has to see that itself.
    """
    known = livepatch.parse(rows)
    if known is None:
        return []
    wrong = list(_patches(report, known))
    wrong += _transition(report, known)
    wrong += _tasks(report, known)
    wrong += _log(report, known)
    wrong += [f"incomplete: {problem}" for problem in report.problems]
    return wrong


def _patches(report: LivepatchReport, known: livepatch.Livepatches) -> Iterator[str]:
    found = tuple(_patch(report, patch) for patch in report.patches)
    if found == known.patches:
        return
    for ours, theirs in zip(found, known.patches, strict=False):
        if ours != theirs:
            yield f"livepatch {ours}, recorded {theirs}"
    if len(found) != len(known.patches):
        yield f"{len(found)} livepatches, recorded {len(known.patches)}"


def _patch(report: LivepatchReport, patch: Patch) -> livepatch.Patch:
    objects = tuple(_object(report, each) for each in patch.objects)
    return livepatch.Patch(
        patch.address, patch.name, patch.enabled, patch.replace, patch.forced, objects
    )


def _object(report: LivepatchReport, each: PatchedObject) -> livepatch.Object:
    functions = tuple(_function(report, function) for function in each.functions)
    loaded = each.name is None or each.module != 0
    return livepatch.Object(each.name or "vmlinux", loaded, each.patched, functions)


def _function(report: LivepatchReport, function: PatchedFunction) -> livepatch.Function:
    stack = report.stacks.get(function.old_func, ())
    return livepatch.Function(
        function.name,
        function.old_func,
        function.old_size,
        function.new_func,
        function.new_size,
        function.nop,
        function.patched,
        function.transition,
        stack.index(function.address) if function.address in stack else -1,
    )


def _transition(report: LivepatchReport, known: livepatch.Livepatches) -> Iterator[str]:
    transition = report.transition
    target = {"patched": 1, "unpatched": 0, None: -1}[transition.target if transition else None]
    found = (transition.patch if transition else None, target)
    if found != (known.transition, known.target):
        yield f"transition {found}, recorded {(known.transition, known.target)}"
    if transition and transition.attempts != known.tries:
        yield f"{transition.attempts} attempts, recorded {known.tries}"


def _tasks(report: LivepatchReport, known: livepatch.Livepatches) -> Iterator[str]:
    """Those that have not switched, in the kernel's order, with their states and flags."""
    found = [(t.report.task, t.patch_state, t.flagged) for t in report.tasks]
    expected = [(t.task, t.patch_state, t.pending) for t in known.remaining]
    if found != expected:
        yield f"not switched: {_shown(found)}, recorded {_shown(expected)}"
    transition = report.transition
    switched = len(known.tasks) - len(known.remaining)
    if transition and transition.switched != switched:
        yield f"{transition.switched} tasks have switched, recorded {switched}"


def _shown(tasks: Sequence[tuple[int, int, bool | None]]) -> str:
    return ", ".join(f"{task:#x} {state} {flag}" for task, state, flag in tasks) or "none"


def _log(report: LivepatchReport, known: livepatch.Livepatches) -> Iterator[str]:
    said = {(one.comm, one.pid): one for one in known.decisions}
    for task in report.tasks:
        who = (task.report.comm, task.report.pid)
        name = f"{who[1]} {who[0]}"
        one = said.pop(who, None)
        ours = (task.decision.value, next(iter(task.functions), None))
        if task.decision is not Decision.SLEEPING:
            ours = (ours[0], None)
        if one is None:
            yield f"{name}: {ours[0]}, and the kernel said nothing of it"
        elif ours != (one.decision, one.function):
            yield f"{name}: {ours}, the kernel said {(one.decision, one.function)}"
    for comm, pid in said:
        yield f"{pid} {comm}: the kernel said that it is left"
    told = len(known.decisions)
    if report.transition and report.compared != (told or None):
        yield f"{report.compared} tasks compared with the log, which tells of {told}"
    for seen in report.differences:
        yield f"{seen.pid} {seen.comm}: {seen.here}, in the log {seen.kernel}"
