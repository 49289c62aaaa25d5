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
    r"^```\n\$ drgn-reliable (.*)\n(.*?)^```$",
    (ROOT / "README.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
"""Commands and their output, shortened by lines of three dots."""


def test_there_are_some() -> None:
    assert SHOWN


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_output_is_real(command: str, shown: str) -> None:
    """Every line is there, in that order; nothing is left out but where three dots say so."""
    done = subprocess.run(
        [sys.executable, "-m", "drgn_reliable", *shlex.split(command)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    at, printed = 0, done.stdout
    for part in shown.split("...\n"):
        found = printed.find(part, at)
        assert found >= at, part
        at = found + len(part)
