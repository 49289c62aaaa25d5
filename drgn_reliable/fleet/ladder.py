# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is tried with a dump, one rung after the other, until one holds.

======================  ===========================================================================
``debug information``   a scan with the debug information that fits the dump, if there is any, or
                        else with the BTF in the dump
``BTF``                 a scan without debug information, where the first attempt may have failed
                        because of it
``headers``             no scan: what the dump's headers and VMCOREINFO say
======================  ===========================================================================

Each is an attempt in a process of its own. There is no rung below: never the live kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from drgn_reliable.fleet.child import Said
from drgn_reliable.fleet.isolation import Attempt, Job, Limits, attempt
from drgn_reliable.fleet.record import AttemptRecord, Record

__all__ = ("scan_job",)

_OF_THE_FILE = ("format", "unsupported", "unreadable")
"""Outcomes that no other debug information changes."""
_ENDLESS = ("timeout", "memory", "killed")
"""Outcomes that another attempt at the same stage would repeat at the same cost."""
_READING = ("starting", "opening", "unpacking", "looking for VMCOREINFO")
"""Stages before any debug information is read."""


def scan_job(
    job: Job,
    limits: Limits,
    say: Callable[[Said], None] = lambda said: None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Make of a dump what can be made of it; whatever happens, there is a record of it.

    :param say: is given what the processes say of how far they are.
    :param stop: says whether to give up.
    :raises drgn_reliable.fleet.isolation.Stopped: if so.
    """
    first = attempt(job, "debug information", limits, say, stop)
    attempts = [first]
    if first.record is None and _debug_information_matters(first):
        attempts.append(attempt(job, "BTF", limits, say, stop))
    if attempts[-1].record is None and not _no_headers(first):
        attempts.append(attempt(job, "headers", limits, say, stop))
    return _record(attempts)


def _debug_information_matters(first: Attempt) -> bool:
    if first.told.outcome in _OF_THE_FILE or first.stage in _READING:
        return False
    return first.debug is not False


def _no_headers(first: Attempt) -> bool:
    """Whether reading the headers is known to fail: it is what failed."""
    return first.told.outcome == "unreadable" or (
        first.told.outcome in _ENDLESS and first.stage in _READING
    )


def _record(attempts: list[Attempt]) -> Record:
    record = attempts[-1].record or Record(status="failed")
    told: list[AttemptRecord] = [each.told for each in attempts]
    if record.status == "failed":
        record.cause, record.detail = told[0].outcome, told[0].detail
    record.attempts = tuple(told)
    return record
