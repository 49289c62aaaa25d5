# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the dump's own log buffer says of livepatching.

With dynamic debug (``dyndbg="file kernel/livepatch/transition.c +p"``) the kernel tells of every
task that it cannot switch, at each attempt: its own answer to what this package works out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from drgn import FaultError, Program
from drgn.helpers.linux.printk import get_printk_records

__all__ = (
    "LogLine",
    "Told",
    "forced",
    "history",
    "last_attempt",
    "livepatch_lines",
    "started",
    "told",
)

_PREFIX = re.compile(r"(?:\[[^]]*\] )?(?:[\w./-]+:)* ?livepatch: ")
"""Dynamic debug can put the thread, the module, the function and the line before its messages."""
_NANOSECOND = 1e-9
_HISTORY = 6
"""Lines."""
_GAP = 0.3
"""Seconds between two lines that belong to different attempts: those are a second apart."""

_TOLD = re.compile(
    r"(?:klp_try_switch_task: )?(?P<comm>.*):(?P<pid>\d+) "
    r"(?:(?P<running>is running)|(?P<unreliable>has an unreliable stack)"
    r"|is sleeping on function (?P<function>.+))",
    re.DOTALL,
)
_STARTED = re.compile(r"'(?P<patch>.*)': (?:starting|reversing) (?:\w+ )?transition.*")
_FORCED = "forcing remaining tasks to the patched state"
_ENDED = re.compile(r"'.*': (?:completing .*|canceling .*|(?:un)?patching complete)")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the log."""

    time: float
    """Seconds on the clock of the log, which starts with the kernel."""
    text: str
    """Without ``livepatch:``."""
    caller: int | None = None
    """The thread that wrote it; None if that is not known."""


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
            text = record.text.decode("utf-8", "backslashreplace")
            if prefix := _PREFIX.match(text):
                time = record.timestamp * _NANOSECOND
                found.append(LogLine(time, text[prefix.end() :], record.caller_tid))
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


def last_attempt(lines: Iterable[LogLine]) -> tuple[float, list[Told]] | None:
    """When the kernel last tried to complete the transition, and what it told of each task then;
    None if it told nothing since the transition began, was reversed or forced.

    What a task says of itself is left out: the scheduler has those that run try it at any time.
    """
    attempt: list[Told] = []
    time = 0.0
    for line in lines:
        said = told(line.text)
        if said is None:
            if _STARTED.fullmatch(line.text) or _ENDED.fullmatch(line.text) or line.text == _FORCED:
                attempt = []
        elif not said.pid or said.pid != line.caller:
            if line.time - time > _GAP or said in attempt:
                attempt = []
            time = line.time
            attempt.append(said)
    return (time, attempt) if attempt else None


def forced(lines: Iterable[LogLine]) -> bool:
    """Whether the log tells that the transition that began last was forced."""
    found = False
    for line in lines:
        found = line.text == _FORCED or (found and not _STARTED.fullmatch(line.text))
    return found


def started(lines: Iterable[LogLine], patch: str) -> float | None:
    """When the last transition of a patch began or was reversed, None if the log does not say."""
    times = [
        line.time
        for line in lines
        if (found := _STARTED.fullmatch(line.text)) and found["patch"] == patch
    ]
    return times[-1] if times else None


def history(lines: Iterable[LogLine]) -> tuple[LogLine, ...]:
    """The last lines that are about livepatches and not about single tasks."""
    return tuple([line for line in lines if told(line.text) is None][-_HISTORY:])
