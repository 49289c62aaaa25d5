# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the README shows of the commands is what they print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHOWN = re.findall(
    r"^```\n\$ drgn-reliable ([^\n]*)\n(.*?)^```$",
    (ROOT / "README.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
"""Commands and their output, shortened by lines of three dots."""


def test_there_are_some() -> None:
    assert SHOWN


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the dumps, in which the fleet was scanned."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "vmcores").symlink_to(ROOT / "vmcores")
    (scan,) = (command for command, _ in SHOWN if command.startswith("fleet scan"))
    run(scan, folder)
    return folder


def run(command: str, folder: Path) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "drgn_reliable", *shlex.split(command)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
    )
    return done.stdout


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_output_is_real(command: str, shown: str, place: Path) -> None:
    """Every line is there, in that order; nothing is left out but where three dots say so."""
    at, printed = 0, run(command, place)
    for part in shown.split("...\n"):
        found = printed.find(part, at)
        assert found >= at, part
        at = found + len(part)
