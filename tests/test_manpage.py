# SPDX-License-Identifier: LGPL-2.1-or-later
"""The man pages say what the commands take, and every formatter takes the pages."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from contrib.docs import manpage
from drgn_reliable.exits import GENERAL, Exit
from tests.parsers import LEAVES, PARSERS
from tests.programs import program

ROOT = Path(__file__).parent.parent
FILES = sorted(manpage.PAGES.glob("*.1"))
NAMES = [file.name for file in FILES]
FORMATTERS = {
    "groff": ["groff", "-man", "-ww", "-z"],
    "man": ["man", "--warnings", "-l"],
    "mandoc": ["mandoc", "-T", "lint", "-W", "style"],
}


def plain(page: str) -> str:
    """A page without its fonts and escapes."""
    return re.sub(r"\\f[BIR]|\\:|\\&", "", page).replace("\\-", "-")


def test_the_pages_are_current() -> None:
    """docs/man is what the generator makes of the parser; else: python -m contrib.docs.manpage."""
    made = manpage.pages()
    assert sorted(made) == NAMES
    for file in FILES:
        before = file.read_text()
        assert manpage.dated(made[file.name], before, date.max) == before, file.name


def test_the_pages_are_the_same_on_any_machine() -> None:
    """Neither the number of CPUs, the width of a terminal nor the user's directory is on them."""
    script = "import json; from contrib.docs.manpage import pages; print(json.dumps(pages()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "40", "HOME": "/nowhere", "TMPDIR": "/tmp"},
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == manpage.pages()


@pytest.mark.parametrize("name", PARSERS)
def test_a_page_has_every_argument(name: str) -> None:
    """Each option with all its names, each positional argument, each command."""
    page = plain((manpage.PAGES / f"{name.replace(' ', '-')}.1").read_text())
    tags = page.split("\n.TP\n")[1:]
    for action in PARSERS[name]._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(any(tag.startswith(f"{c}\n") for tag in tags) for c in action.choices)
            continue
        shown = action.option_strings or [str(action.metavar or action.dest)]
        (tag,) = (tag for tag in tags if tag.startswith(shown[0]))
        assert all(each in tag.split("\n")[0] for each in shown)
        if action.choices and name != "drgn-reliable":
            assert all(str(choice) in tag for choice in action.choices)


@pytest.mark.parametrize("name", LEAVES)
def test_a_page_has_every_exit_status(name: str) -> None:
    """Each number that the command documents, and no other."""
    page = (manpage.PAGES / f"{name.replace(' ', '-')}.1").read_text()
    section = page.partition(".SH EXIT STATUS\n")[2].partition("\n.SH ")[0]
    numbers = {
        int(n)
        for tag in re.findall(r"^\\fB([\d or]+)\\fR$", section, re.M)
        for n in tag.split(" or ")
    }
    assert numbers == set(manpage.COMMANDS[name].exits)
    assert set(GENERAL) == set(Exit) >= numbers


def test_the_environment_is_all_that_is_read() -> None:
    """Every variable that the package looks up, and none that it does not."""
    code = "\n".join(file.read_text() for file in (ROOT / "drgn_reliable").rglob("*.py"))
    read = re.findall(r"""(?:environ\.get\(|environ\[|getenv\()\s*["'](\w+)""", code)
    assert set(read) == set(manpage.ENVIRONMENT)


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_formatters_have_nothing_to_say(formatter: str) -> None:
    """No warning, no matter of style, from any of them."""
    program(formatter)
    for file in FILES:
        done = subprocess.run(
            [*FORMATTERS[formatter], str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        if formatter == "man":
            assert "NAME\n" in done.stdout and "warning" not in done.stdout
            assert max(map(len, done.stdout.splitlines())) <= 80
        else:
            assert done.stdout == ""
