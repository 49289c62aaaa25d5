# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that go on running while they are looked at: from inside, or from outside.

A task that stood still has the very same row in the kernel's verdicts of before and after: the
same verdict, entries, state and number of switches. What was said of it in between has to be that.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import lab, oracle, verdicts
from .guest import ANNOUNCEMENT, POLL_SECONDS, Guest, GuestError
from .machines import MACHINES
from .scenario import Scenario

SENDING = re.compile(r"vmlab: sending (\d+) lines, sha256 ([0-9a-f]{64})")
SENT = re.compile(r"vmlab: sent")
GLANCING = re.compile(r"vmlab: glancing")
DATA = re.compile(r"vmlab-data: (\S+)")
NUMBER = re.compile(r"^N (\d+)$", re.MULTILINE)
SECONDS = 400


@dataclass(frozen=True)
class Living:
    """A guest that runs."""

    guest: Guest
    oracle: int
    """The physical address of the oracle's header."""
    socket: Path
    """A QMP socket of its QEMU that nobody else uses."""
    found: Any
    """What ``guest/observe.py`` has found; None without Python."""

    def rows(self) -> str:
        """The rows of the kernel's last glance at its tasks."""
        read = partial(oracle.read_rows, self.guest.read_physical, self.oracle)
        for _ in range(100):
            self.guest.wait_until_ready(self.oracle, SECONDS)
            # They may be written anew while they are read.
            with contextlib.suppress(oracle.OracleError):
                rows = read()
                if rows == read():
                    return rows
        raise GuestError("the verdicts change whenever they are read")

    def rows_after(self, number: int) -> str:
        """The rows of a glance after that number of them."""
        deadline = time.monotonic() + SECONDS
        while number_of(rows := self.rows()) <= number:
            if time.monotonic() > deadline:
                raise GuestError(f"the guest has not gone on after glance {number}")
            time.sleep(POLL_SECONDS)
        return rows


@contextlib.contextmanager
def running(
    scenario: Scenario, directory: Path, options: lab.Options, say: lab.Say
) -> Iterator[Living]:
    """A scenario's guest as a context, when it has observed itself and goes on."""
    patience = SECONDS * MACHINES[scenario.architecture].patience
    with tempfile.TemporaryDirectory(prefix="vmlab-") as scratch:
        socket = Path(scratch) / "qmp"
        more = ("-qmp", f"unix:{socket},server=on,wait=off")
        with lab.booted(scenario, directory, options, say, more) as guest:
            header = int(guest.wait_for(ANNOUNCEMENT, patience)[1], 16)
            found = None
            if scenario.dump.how == "live":
                said = guest.wait_for(SENDING, patience)
                guest.wait_for(SENT, patience)
                found = _received((directory / "console.log").read_text(errors="replace"), said)
            guest.wait_for(GLANCING, patience)
            yield Living(guest, header, socket, found)


def _received(console: str, said: re.Match[str]) -> Any:
    lines = DATA.findall(console)
    packed = base64.b64decode("".join(lines))
    if len(lines) != int(said[1]) or hashlib.sha256(packed).hexdigest() != said[2]:
        raise GuestError(f"{len(lines)} of {said[1]} lines came, or not as they were sent")
    return json.loads(zlib.decompress(packed))


def number_of(rows: str) -> int:
    """How many glances there had been with that one."""
    found = NUMBER.search(rows)
    if found is None:
        raise oracle.OracleError("the rows have no number: not of a glance")
    return int(found[1])


@dataclass(frozen=True)
class Scan:
    """A scan of what goes on, and the rows of glances before and after it."""

    before: str
    lines: str
    """The scan's, of JSON: the kernel first, then a task each, a summary last."""
    after: str

    def reports(self) -> list[dict[str, Any]]:
        """What the scan says of each task."""
        return [json.loads(line) for line in self.lines.splitlines()[1:-1]]

    def summary(self) -> dict[str, Any]:
        """What it says of the whole."""
        first, *_, last = self.lines.splitlines()
        return {**json.loads(first), **json.loads(last)}

    def still(self) -> dict[int, verdicts.Recorded]:
        """By address, the tasks that did not move from one glance to the other."""
        rows = set(_tasks(self.before)) & set(_tasks(self.after))
        return {row.task: row for row in verdicts.parse("\n".join(rows)) if not row.on_cpu}

    def differences(self) -> list[str]:
        """Every task that stood still and of which the scan does not say what the kernel does."""
        by_task = {int(report["task"], 16): report for report in self.reports()}
        wrong = []
        for address, row in self.still().items():
            report = by_task.get(address)
            wanted = (row.verdict, [f"{entry:#x}" for entry in row.entries])
            if report is None:
                wrong.append(f"{row.pid} {row.comm}: missing")
                continue
            found = (report["kernel"]["verdict"], report["kernel"]["entries"])
            if (report["pid"], report["comm"]) != (row.pid, row.comm) or found != wanted:
                wrong.append(f"{row.pid} {row.comm}: {found}, recorded {wanted}")
        return wrong


def scan_over_qmp(living: Living) -> Scan:
    """Scan a guest from outside."""
    command = [sys.executable, "-m", "drgn_reliable", "scan", "--qemu", str(living.socket)]
    before = living.rows()
    done = subprocess.run([*command, "--format", "jsonl"], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise GuestError(done.stderr.strip())
    return Scan(before, done.stdout, living.rows_after(number_of(before) + 1))


def _tasks(rows: str) -> list[str]:
    return [row for row in verdicts.lines(rows) if row.startswith("T ")]
