# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every exit status that a command documents is one that it ends with."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from contrib.docs.manpage import COMMANDS
from tests import test_fleet_scan
from tests.dumps import VMCORES

STATES = "x86_64-6.1.kdump"
DONE, STALLED = "livepatch/x86_64-6.12-done.kdump", "livepatch/x86_64-6.12-user.kdump"

ENDS = [
    ("scan", f"{STATES} --task 1", 0),
    ("scan", STATES, 1),
    ("scan", f"{STATES} --task 99999", 2),
    ("scan", f"{STATES} -o /nowhere/report.json", 2),
    ("scan", "manifest.yaml", 3),
    ("klp", DONE, 0),
    ("klp", STALLED, 1),
    ("klp", f"{STALLED} --task 99999", 2),
    ("klp", "manifest.yaml", 3),
    ("explain", f"{STATES} 260", 0),
    ("explain", f"{STATES} 99999", 2),
    ("explain", "manifest.yaml 1", 3),
    ("info", STATES, 0),
    ("info", f"{STATES} --symbols /nowhere/vmlinux", 2),
    ("info", "manifest.yaml", 3),
    ("capsule", f"{STATES} --task 1 -o {{place}}/one.kdump", 0),
    ("capsule", f"{STATES} --task 1 -o /nowhere/one.kdump", 2),
    ("capsule", "manifest.yaml -o {place}/one.kdump", 3),
    ("reasons", "", 0),
    ("reasons", "no-such-reason", 2),
    ("fleet scan", f"{DONE} --store {{place}}/done.db", 0),
    ("fleet scan", f"{STALLED} --store {{place}}/stalled.db", 1),
    ("fleet scan", "/nowhere --store {place}/nothing.db", 2),
    ("fleet scan", f"{STATES} --store {{place}}/incomplete.db", 3),
    ("fleet report", "{place}/done.db", 0),
    ("fleet report", "manifest.yaml", 2),
    ("fleet query", "{place}/done.db", 0),
    ("fleet query", "{place}/done.db 'SELECT nonsense'", 2),
]
"""A command, its arguments, and how it ends."""

ELSEWHERE = {
    ("fleet scan", 4): "test_a_full_disk_is_one_line_and_loses_nothing",
    ("fleet scan", 130): "test_an_interrupted_scan_ends_at_once_and_says_so",
    ("fleet scan", 143): "test_an_interrupted_scan_ends_at_once_and_says_so",
}
"""What takes more than a command line to bring about, and tests that do."""


def test_every_status_is_here() -> None:
    """Those of all commands."""
    here = {(command, status) for command, _, status in ENDS} | set(ELSEWHERE)
    documented = {
        (name.removeprefix("drgn-reliable "), int(status))
        for name, command in COMMANDS.items()
        for status in command.exits
    }
    assert documented == here
    for test in ELSEWHERE.values():
        assert callable(getattr(test_fleet_scan, test))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to write in."""
    return tmp_path_factory.mktemp("exits")


@pytest.mark.parametrize(("command", "arguments", "status"), ENDS)
def test_how_a_command_ends(command: str, arguments: str, status: int, place: Path) -> None:
    """With the status that is documented; what is wrong is one line."""
    line = f"{command} {arguments.format(place=place)}"
    done = subprocess.run(
        [sys.executable, "-m", "drgn_reliable", *shlex.split(line)],
        capture_output=True,
        text=True,
        cwd=VMCORES,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status in (2, 3) and command != "fleet scan":
        assert done.stderr.count("\n") == 1
