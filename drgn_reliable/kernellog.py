# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the dump's own log buffer says of livepatching.

With dynamic debug (``dyndbg="file kernel/livepatch/transition.c +p"``) the kernel tells of every
task that it cannot switch, at each attempt: its own answer to what this package works out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drgn import FaultError, Program
from drgn.helpers.linux.printk import get_printk_records

__all__ = (
    "LogLine",
    "Told",
    "history",
    "last_attempt",
    "livepatch_lines",
    "started",
    "told",
)

_PREFIX = "livepatch: "
_NANOSECOND = 1e-9
_HISTORY = 6
"""Lines."""
_GAP = 0.3
"""Seconds between two lines that belong to different attempts: those are a second apart."""

_TOLD = re.compile(
    r"(?:klp_try_switch_task: )?(?P<comm>.*):(?P<pid>\d+) "
    r"(?:(?P<running>is running)|(?P<unreliable>has an unreliable stack)"
    r"|is sleeping on function (?P<function>\S+))",
    re.DOTALL,
)
_OVERTAKEN = re.compile(r"forcing remaining tasks|: reversing transition|: starting \w+ transition")
_STARTED = re.compile(r"'(?P<patch>.*)': (?:starting|reversing) (?:\w+ )?transition")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the log."""

    time: float
    """Seconds on the clock of the log, which starts with the kernel."""
    text: str
    """Without ``livepatch:``."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the kernel told of one task that it did not switch."""

    comm: str
    pid: int
    decision: str
    """``running``, ``unreliable`` or ``sleeping``."""
    function: str | None
    """On which it sleeps: the first that the kernel came by."""


def livepatch_lines(prog: Program) -> list[LogLine]:
    """The lines of the livepatch core, in their order; none if the dump lacks its log."""
    found = []
    try:
        for record in get_printk_records(prog):
            text = record.text.decode("utf-8", "replace")
            if text.startswith(_PREFIX):
                found.append(LogLine(record.timestamp * _NANOSECOND, text.removeprefix(_PREFIX)))
    except (FaultError, LookupError, TypeError, ValueError, OverflowError):
        pass
    return found


def told(text: str) -> Told | None:
    """What a line says of a task, None if it is another.

    >>> told("klp_try_switch_task: cat:42 is sleeping on function pipe_read")
    Told(comm='cat', pid=42, decision='sleeping', function='pipe_read')
    >>> told("klp_try_switch_task: a:b:7 has an unreliable stack").comm
    'a:b'
    >>> told("'fix': patching complete")
    """
    found = _TOLD.fullmatch(text)
    if found is None:
        return None
    decision = "running" if found["running"] else "unreliable" if found["unreliable"] else ""
    return Told(found["comm"], int(found["pid"]), decision or "sleeping", found["function"])


def last_attempt(lines: Sequence[LogLine]) -> tuple[float, list[Told]] | None:
    """When the kernel last tried to complete the transition, and what it told of each task then;
    None if it told nothing, or has forced or reversed the transition since."""
    attempt: list[Told] = []
    time = 0.0
    for line in reversed(lines):
        said = told(line.text)
        if not attempt and _OVERTAKEN.search(line.text):
            return None
        if said is None:
            if attempt:
                break
            continue
        if attempt and time - line.time > _GAP:
            break
        time = line.time
        attempt.append(said)
    return (time, attempt[::-1]) if attempt else None


def started(lines: Iterable[LogLine], patch: str) -> float | None:
    """When the last transition of a patch began or was reversed, None if the log does not say."""
    times = [
        line.time
        for line in lines
        if (found := _STARTED.match(line.text)) and found["patch"] == patch
    ]
    return times[-1] if times else None


def history(lines: Iterable[LogLine]) -> tuple[LogLine, ...]:
    """The last lines that are about livepatches and not about single tasks."""
    return tuple([line for line in lines if told(line.text) is None][-_HISTORY:])
