# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens during a scan, as it happens: a line of JSON each for machines, ``event`` first.

The lines are ASCII: a terminal can show them, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone

import msgspec

__all__ = (
    "Begun",
    "Ended",
    "Event",
    "Finished",
    "Kept",
    "Listener",
    "Located",
    "Working",
    "line_of",
)


class Event(msgspec.Struct, kw_only=True, tag_field="event", tag=str.lower):
    """Any of them."""


class Begun(Event):
    """A scan begins."""

    scan: int
    store: str
    engine: str


class Located(Event):
    """All sources were looked through."""

    dumps: int
    passed_over: int


class Working(Event):
    """How far a dump is."""

    path: str
    worker: str
    stage: str
    done: int
    total: int
    """Tasks; 0 where they are not counted yet."""


class Kept(Event):
    """A dump was scanned before, with the same options, and was not scanned again."""

    path: str
    dump: int
    status: str


class Finished(Event):
    """A dump was scanned, or could not be."""

    path: str
    dump: int
    """Its number in the store."""
    status: str
    cause: str | None
    detail: str | None
    tasks: int
    unreliable: int
    stalled: bool
    seconds: float


class Ended(Event):
    """The scan has ended."""

    scan: int
    dumps: int
    kept: int
    incomplete: int
    failed: int
    passed_over: int
    interrupted: bool
    seconds: float


Listener = Callable[[Event], None]
"""What is told of each event."""


def line_of(event: Event) -> bytes:
    """An event as a line of JSON with the time.

    >>> line_of(Located(dumps=2, passed_over=0))[:38]
    b'{"event":"located","dumps":2,"passed_o'
    """
    plain = msgspec.to_builtins(event)
    plain["time"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps(plain, separators=(",", ":")).encode("ascii") + b"\n"
