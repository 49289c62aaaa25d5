# SPDX-License-Identifier: LGPL-2.1-or-later
"""The livepatch report: for people, and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from tabulate import tabulate

from drgn_reliable.advice import advice_for, ways_out
from drgn_reliable.patches import Patch, PatchedFunction, PatchedObject
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.render.machine import SCHEMA, hex_or_null, reason_dict
from drgn_reliable.render.visible import visible
from drgn_reliable.transition import (
    Blocker,
    Decision,
    LivepatchReport,
    PendingTask,
    Transition,
    each_version,
    grouped,
)

__all__ = ("livepatch_dict", "write_livepatch", "write_livepatch_json")

_WIDTH = 100
_UNBROKEN: Any = {"break_long_words": False, "break_on_hyphens": False}
_SAID = {
    Decision.RUNNING: "running on a CPU",
    Decision.UNRELIABLE: "has an unreliable stack",
    Decision.SLEEPING: "sleeping in",
    Decision.WOULD_SWITCH: "would switch",
}


def write_livepatch(report: LivepatchReport, out: TextIO, *, verbose: bool) -> None:
    """The state, and for each group of tasks that have not switched why, and what to do.

    :param verbose: show whole stacks, and every function of every patch.
    """
    if report.transition is None:
        out.write(_no_transition(report) + "\n")
    else:
        out.write(_headline(report, report.transition) + "\n")
    if report.patches:
        out.write("\n")
        _write_patches(report, out, every=verbose)
    if report.transition is not None:
        out.write("\n")
        _write_groups(report, report.transition, out, stacks=verbose)
        _write_end(report, report.transition, out)
    if report.history:
        out.write("\nFrom the kernel's log:\n")
        for line in report.history:
            out.write(f"  [{line.time:12.6f}] {visible(line.text)}\n")
    for problem in report.problems:
        out.write(f"incomplete: {visible(problem)}\n")


def _no_transition(report: LivepatchReport) -> str:
    if not report.built_in:
        return f"{visible(report.release)} was built without livepatching."
    if report.problems:
        return "Whether a transition is in progress cannot be told."
    if not report.patches:
        return "No livepatch is loaded."
    if report.forced:
        return (
            "No transition is in progress. The last one was forced, by the log: tasks may still be "
            "in what was replaced."
        )
    return "No transition is in progress."


def _headline(report: LivepatchReport, transition: Transition) -> str:
    counts = dict.fromkeys(Decision, 0)
    for task in report.tasks:
        counts[task.decision] += 1
    parts = [
        f"{counts[decision]} {word}"
        for decision, word in (
            (Decision.SLEEPING, "asleep in a function of the patch"),
            (Decision.UNRELIABLE, "with an unreliable stack"),
            (Decision.RUNNING, "running on a CPU"),
            (Decision.WOULD_SWITCH, "about to switch"),
        )
        if counts[decision]
    ]
    doing = "patching" if transition.target == "patched" else "unpatching"
    since = f" for {transition.seconds:.0f} s" if transition.seconds is not None else ""
    tried = "" if transition.attempts is None else f", {transition.attempts} attempts in vain"
    times = "once" if transition.signals == 1 else f"{transition.signals} times"
    woken = f", tasks woken {times}" if transition.signals else ""
    return (
        f"{visible(transition.patch or 'a livepatch')}: {doing}{since}{tried}{woken}; "
        f"{transition.switched} tasks have switched, {transition.pending} have not"
        + (f": {', '.join(parts)}" if parts else "")
    )


def _write_patches(report: LivepatchReport, out: TextIO, *, every: bool) -> None:
    rows = [
        (
            number,
            visible(patch.name) or hex(patch.address),
            _state(patch, report),
            "yes" if patch.replace else "no",
            "yes" if patch.forced else "no",
            ", ".join(_object(each) for each in patch.objects),
        )
        for number, patch in enumerate(report.patches, 1)
    ]
    headers = ("#", "PATCH", "STATE", "REPLACE", "FORCED", "OBJECTS")
    out.write(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) + "\n")
    if every:
        functions = [
            (
                visible(patch.name),
                _name(each),
                visible(function.name),
                f"{function.old_func:#x}+{function.old_size}",
                "original" if function.nop else f"{function.new_func:#x}+{function.new_size}",
                _position(report, function),
            )
            for patch, each, function in each_version(report)
        ]
        headers_ = ("PATCH", "OBJECT", "FUNCTION", "OLD", "NEW", "VERSION")
        out.write("\n" + tabulate(functions, headers_, tablefmt="plain", disable_numparse=True))
        out.write("\n")


def _state(patch: Patch, report: LivepatchReport) -> str:
    transition = report.transition
    if transition and transition.patch == patch.name:
        return "being applied" if transition.target == "patched" else "being removed"
    return "enabled" if patch.enabled else "disabled"


def _object(each: PatchedObject) -> str:
    if each.patched:
        return _name(each)
    return f"{_name(each)} ({'not patched' if _is_loaded(each) else 'not loaded'})"


def _name(each: PatchedObject) -> str:
    return visible(each.name or "vmlinux")


def _is_loaded(each: PatchedObject) -> bool:
    """Whether what the object patches is there: a module may not be loaded."""
    return each.name is None or each.module != 0


def _position(report: LivepatchReport, function: PatchedFunction) -> str:
    """Which of the versions of the function: 1 is the oldest patch's, on top of the original."""
    stack = report.stacks.get(function.old_func, ())
    if function.address not in stack:
        return "-"
    return f"{len(stack) - stack.index(function.address)} of {len(stack)}"


def _write_groups(
    report: LivepatchReport, transition: Transition, out: TextIO, *, stacks: bool
) -> None:
    for group in grouped(report.tasks):
        task = group[0]
        out.write(f"{_who(group)}: {_what(task)}\n")
        for blocker in task.blockers:
            function = blocker.function
            module = f" [{visible(function.module)}]" if function.module else ""
            out.write(
                f"    {_where(task, blocker)} is in {visible(function.name)}{module}, "
                f"{_version(function.version)}\n"
            )
        for reason in task.report.reasons:
            if task.decision is Decision.UNRELIABLE and CATALOGUE[reason.id].kernel:
                out.write(f"    {reason.id}: {CATALOGUE[reason.id].title}\n")
        if task.decision is Decision.UNRELIABLE:
            out.write(f"    proof: {task.report.proof.verdict.value}\n")
        out.write(textwrap.indent(textwrap.fill(_waits(task), _WIDTH - 4), "    ") + "\n")
        if task.inlined:
            out.write(f"    inlined there: {', '.join(map(visible, task.inlined))}\n")
        if stacks:
            for number, found in enumerate(task.report.frames):
                out.write(f"      #{number} {visible(str(found.code))}\n")
        text = visible(advice_for(task, transition)[1])
        out.write(
            textwrap.fill(
                text, _WIDTH, initial_indent="    -> ", subsequent_indent="       ", **_UNBROKEN
            )
        )
        out.write("\n\n")


def _who(group: Sequence[PendingTask]) -> str:
    first = group[0].report
    kind = {"user": "", "kthread": "kernel thread ", "idle": "idle task "}[first.kind.value]
    if len(group) == 1:
        return f"{kind}{visible(first.comm)} ({first.pid})"
    pids = ", ".join(str(task.report.pid) for task in group[:8])
    more = f" and {len(group) - 8} more" if len(group) > 8 else ""
    return f"{len(group)} times {kind}{visible(first.comm)} ({pids}{more})"


def _what(task: PendingTask) -> str:
    said = _SAID[task.decision]
    if task.decision is Decision.SLEEPING:
        return f"{said} {', '.join(map(visible, task.functions))}"
    return said


def _where(task: PendingTask, blocker: Blocker) -> str:
    if blocker.frame is None:
        return f"{blocker.address:#x} in the kernel's trace"
    return f"frame #{blocker.frame} {visible(str(task.report.frames[blocker.frame].code))}"


def _version(version: str) -> str:
    return "the original" if version == "original" else f"the version of {visible(version)}"


def _waits(task: PendingTask) -> str:
    wait = task.wait
    flag = {True: ", pending", False: ", not marked pending", None: ""}[task.flagged]
    parts = [f"patch state {task.patch_state}{flag}; state {task.report.state}"]
    if wait.channel:
        parts.append(f"in {visible(wait.channel)}")
    if wait.event:
        parts.append(f"waits for {visible(wait.event)}")
    if wait.file:
        parts.append(f"file {visible(wait.file)}")
    parts.append(f"goes on by {wait.leaves.value}" if wait.leaves.value != "runs" else "runs")
    return ", ".join(parts)


def _write_end(report: LivepatchReport, transition: Transition, out: TextIO) -> None:
    if report.forced:
        out.write("It was forced, by the log.\n")
    if not transition.pending:
        out.write("All tasks have switched: the kernel ends it at its next attempt.\n")
        return
    for text in ways_out(transition):
        out.write(textwrap.fill(visible(text), _WIDTH, subsequent_indent="  ", **_UNBROKEN) + "\n")
    if report.compared is None:
        out.write(
            "The kernel's own log does not tell of single tasks; it does with dynamic debug of "
            "transition.c.\n"
        )
        return
    if not report.differences:
        those = "the task" if report.compared == 1 else f"all {report.compared} tasks"
        out.write(f"The kernel's own log says the same of {those}.\n")
    for difference in report.differences:
        out.write(
            f"The kernel's log differs: {visible(difference.comm)} ({difference.pid}): "
            f"{visible(difference.kernel)} at its last attempt, {visible(difference.here)} in the "
            "dump.\n"
        )


# JSON ----------------------------------------------------------------------------------------


def livepatch_dict(report: LivepatchReport) -> dict[str, Any]:
    """The report as plain data; addresses are strings in hex, sizes bytes."""
    transition = report.transition
    return {
        "schema": SCHEMA,
        "dump": report.dump,
        "release": report.release,
        "architecture": report.architecture,
        "livepatch": report.built_in,
        "transition": None
        if transition is None
        else {
            "patch": transition.patch,
            "target": transition.target,
            "replaces": transition.replaces,
            "pending": transition.pending,
            "switched": transition.switched,
            "attempts": transition.attempts,
            "signals": transition.signals,
            "seconds": transition.seconds,
            "blocks_reversal": transition.back,
        },
        "patches": [_patch_dict(report, patch) for patch in report.patches],
        "tasks": [] if transition is None else [_task_dict(t, transition) for t in report.tasks],
        "log": {
            "forced": report.forced,
            "history": [{"seconds": line.time, "text": line.text} for line in report.history],
            "compared": report.compared,
            "differences": [
                {"pid": d.pid, "comm": d.comm, "here": d.here, "kernel": d.kernel}
                for d in report.differences
            ],
        },
        "problems": list(report.problems),
    }


def _patch_dict(report: LivepatchReport, patch: Patch) -> dict[str, Any]:
    return {
        "name": patch.name,
        "address": hex_or_null(patch.address),
        "enabled": patch.enabled,
        "replace": patch.replace,
        "forced": patch.forced,
        "objects": [
            {
                "name": each.name,
                "patched": each.patched,
                "loaded": _is_loaded(each),
                "functions": [
                    {
                        "name": function.name,
                        "old": hex_or_null(function.old_func),
                        "old_size": function.old_size,
                        "new": hex_or_null(function.new_func),
                        "new_size": function.new_size,
                        "nop": function.nop,
                        "patched": function.patched,
                        "transition": function.transition,
                        "version": _position(report, function),
                    }
                    for function in each.functions
                ],
            }
            for each in patch.objects
        ],
    }


def _task_dict(task: PendingTask, transition: Transition) -> dict[str, Any]:
    report = task.report
    advice, text = advice_for(task, transition)
    return {
        "task": hex_or_null(report.task),
        "pid": report.pid,
        "tgid": report.tgid,
        "cpu": report.cpu,
        "comm": report.comm,
        "kind": report.kind.value,
        "state": report.state,
        "patch_state": task.patch_state,
        "pending_flag": task.flagged,
        "decision": task.decision.value,
        "functions": list(task.functions),
        "blockers": [
            {
                "function": b.function.name,
                "module": b.function.module,
                "version": b.function.version,
                "frame": b.frame,
                "address": hex_or_null(b.address),
            }
            for b in task.blockers
        ],
        "reasons": [reason_dict(reason) for reason in report.reasons],
        "proof": report.proof.verdict.value,
        "proof_clears": task.proof_clears,
        "waits": {
            "channel": task.wait.channel,
            "event": task.wait.event,
            "file": task.wait.file,
            "leaves_by": task.wait.leaves.value,
            "thread_function": task.wait.loop,
        },
        "inlined": list(task.inlined),
        "stack": [frame.function for frame in report.frames],
        "advice": {"id": advice, "text": text},
    }


def write_livepatch_json(report: LivepatchReport, out: TextIO) -> None:
    """The report as one JSON document."""
    out.write(json.dumps(livepatch_dict(report), indent=1) + "\n")
