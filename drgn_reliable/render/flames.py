# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stacks for tools that draw them: folded (flamegraph.pl, inferno, speedscope) and speedscope's
own format, in which each verdict is a profile.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, TextIO

from drgn_reliable.model import Frames, TaskReport, Trace
from drgn_reliable.render.once import OnceFor
from drgn_reliable.render.visible import visible
from drgn_reliable.version import VERSION

__all__ = ("FLAMES", "Stack", "stacks_of_tasks", "write_stacks")

_SPEEDSCOPE = "https://www.speedscope.app/file-format-schema.json"


class Stack(NamedTuple):
    """A stack and how many tasks have it."""

    frames: tuple[str, ...]
    """The outermost first: above functions, what the tool should group by."""
    verdict: str
    """The kernel's."""
    tasks: int


def stacks_of_tasks(reports: Iterable[TaskReport]) -> list[Stack]:
    """The stacks of one dump, under the names of their tasks."""
    names = OnceFor(_names)
    counted = Counter(
        (task.comm, names(Frames.of(task.frames).trace), task.kernel.verdict.value)
        for task in reports
    )
    return [
        Stack((comm, *names), verdict, tasks) for (comm, names, verdict), tasks in counted.items()
    ]


def _names(trace: Trace) -> tuple[str, ...]:
    return tuple(code.function for code in trace.codes[::-1])


def _write_folded(stacks: Iterable[Stack], name: str, out: TextIO) -> None:
    """A line for each stack: ``outermost;...;innermost;[verdict] count``."""
    lines = Counter[str]()
    for stack in stacks:
        parts = [visible(part).replace(";", ":") for part in (*stack.frames, f"[{stack.verdict}]")]
        lines[";".join(parts)] += stack.tasks
    for line, count in sorted(lines.items()):
        out.write(f"{line} {count}\n")


def _write_speedscope(stacks: Iterable[Stack], name: str, out: TextIO) -> None:
    """One document for speedscope."""
    numbers: dict[str, int] = {}
    profiles: dict[str, list[Stack]] = {}
    for stack in stacks:
        profiles.setdefault("all", []).append(stack)
        profiles.setdefault(stack.verdict, []).append(stack)
        for frame in stack.frames:
            numbers.setdefault(frame, len(numbers))
    document = {
        "$schema": _SPEEDSCOPE,
        "exporter": f"drgn-reliable {VERSION}",
        "name": visible(name),
        "shared": {"frames": [{"name": visible(frame)} for frame in numbers]},
        "profiles": [
            {
                "type": "sampled",
                "name": verdict,
                "unit": "none",
                "startValue": 0,
                "endValue": sum(stack.tasks for stack in of_verdict),
                "samples": [[numbers[frame] for frame in stack.frames] for stack in of_verdict],
                "weights": [stack.tasks for stack in of_verdict],
            }
            for verdict, of_verdict in profiles.items()
        ],
    }
    out.write(json.dumps(document) + "\n")


FLAMES: dict[str, Callable[[Iterable[Stack], str, TextIO], None]] = {
    "folded": _write_folded,
    "speedscope": _write_speedscope,
}
"""Formats by name."""


def write_stacks(stacks: Iterable[Stack], format: str, name: str, out: TextIO) -> None:
    """Write stacks in one of :data:`FLAMES`.

    :param name: what they are of.
    """
    FLAMES[format](stacks, name, out)
