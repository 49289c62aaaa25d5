# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that go on running while they are looked at: from inside, or from outside.

A task that stood still has the very same row in the kernel's verdicts of before and after: the
same verdict, entries, state and number of switches. What was said of it in between has to be that.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import lab, oracle, verdicts
from .guest import Guest, GuestError
from .machines import MACHINES
from .scenario import Scenario

SENDING = re.compile(r"vmlab: sending (\d+) lines, sha256 ([0-9a-f]{64})")
SENT = re.compile(r"vmlab: sent")
DATA = re.compile(r"vmlab-data: (\S+)")
NUMBER = re.compile(r"^N (\d+)$", re.MULTILINE)
SECONDS = 400


def observe(scenario: Scenario, directory: Path, options: lab.Options, say: lab.Say) -> Any:
    """What ``guest/observe.py`` has found."""
    patience = MACHINES[scenario.architecture].patience
    with lab.booted(scenario, directory, options, say) as running:
        said = running.wait_for(SENDING, SECONDS * patience)
        running.wait_for(SENT, SECONDS * patience)
    console = (directory / "console.log").read_text(errors="replace")
    lines = DATA.findall(console)
    packed = base64.b64decode("".join(lines), validate=True)
    if len(lines) != int(said[1]) or hashlib.sha256(packed).hexdigest() != said[2]:
        raise GuestError(f"{len(lines)} of {said[1]} lines came, or not as they were sent")
    return json.loads(zlib.decompress(packed))


def rows_now(running: Guest, address: int, seconds: float = 60) -> tuple[int, str]:
    """The number of a guest's last glance, and its rows.

    :param address: physical, of the oracle's header.
    """
    for _ in range(100):
        running.wait_until_ready(address, seconds)
        rows = oracle.read_rows(running.read_physical, address)
        # It may have been written anew while it was read.
        if rows == oracle.read_rows(running.read_physical, address):
            return number_of(rows), rows
    raise GuestError("the verdicts change whenever they are read")


def number_of(rows: str) -> int:
    """How many glances there had been with that one."""
    found = NUMBER.search(rows)
    if found is None:
        raise oracle.OracleError("the rows have no number: not of a glance")
    return int(found[1])


def stood_still(before: str, after: str) -> dict[int, verdicts.Recorded]:
    """By address, the tasks that did not move from one glance to the other."""
    rows = set(_tasks(before)) & set(_tasks(after))
    return {row.task: row for row in verdicts.parse("\n".join(rows)) if not row.on_cpu}


def differences(
    reports: Iterable[Mapping[str, Any]], still: Mapping[int, verdicts.Recorded]
) -> list[str]:
    """Every task that stood still and of which a report is not what the kernel said.

    :param reports: as JSON has them.
    """
    by_task = {int(report["task"], 16): report for report in reports}
    wrong = []
    for address, row in still.items():
        report = by_task.get(address)
        wanted = (row.verdict, [f"{entry:#x}" for entry in row.entries])
        if report is None:
            wrong.append(f"{row.pid} {row.comm}: missing")
            continue
        found = (report["kernel"]["verdict"], report["kernel"]["entries"])
        if (report["pid"], report["comm"]) != (row.pid, row.comm) or found != wanted:
            wrong.append(f"{row.pid} {row.comm}: {found}, recorded {wanted}")
    return wrong


def _tasks(rows: str) -> list[str]:
    return [row for row in verdicts.lines(rows) if row.startswith("T ")]
