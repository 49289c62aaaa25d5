# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the README shows of the commands is what they print."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from drgn_reliable.fleet.sources import read_sources
from tests.framebytes import EXEC, elf

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


def blocks(language: str) -> list[str]:
    """What docs/fleet.md shows in a language."""
    text = (ROOT / "docs" / "fleet.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_questions_in_sql_have_answers(place: Path) -> None:
    """Each of docs/fleet.md, by any SQLite."""
    (sql,) = blocks("sql")
    questions = [each for each in sql.split(";\n") if each.strip()]
    assert len(questions) == 4
    with sqlite3.connect(f"file:{place / 'fleet.db'}?mode=ro", uri=True) as db:
        for question in questions:
            assert db.execute(question).fetchall(), question
    db.close()


def test_the_manifest_is_one(tmp_path: Path) -> None:
    """That of docs/fleet.md, but for the files that it names."""
    (manifest,) = blocks("yaml")
    (tmp_path / "fleet.yaml").write_text(manifest)
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "vmlinux-6.1").write_bytes(elf(EXEC, 62))
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "vmcoreinfo.txt").write_text("OSRELEASE=6.1\n")
    sources = read_sources([str(tmp_path / "fleet.yaml")])
    assert [source.host for source in sources] == ["web1", None, None]
    assert [source.worker for source in sources] == [None, None, "web2"]
    assert sources[0].labels == {"site": "north", "rack": "a7", "service": "shop"}


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_output_is_real(command: str, shown: str, place: Path) -> None:
    """Every line is there, in that order; nothing is left out but where three dots say so."""
    at, printed = 0, run(command, place)
    for part in shown.split("...\n"):
        found = printed.find(part, at)
        assert found >= at, part
        at = found + len(part)
