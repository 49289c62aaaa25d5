# SPDX-License-Identifier: LGPL-2.1-or-later
"""The documentation says what is so: outputs, commands, options, links, figures."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from drgn.commands import DEFAULT_COMMAND_NAMESPACE

import drgn_reliable.plugin  # noqa: F401 (registers the commands of drgn's shell)
from contrib.docs.manpage import COMMANDS
from drgn_reliable.exits import GENERAL, rows_of
from drgn_reliable.fleet.sources import read_sources
from drgn_reliable.reasons import CATALOGUE
from tests.dumps import VMCORES, load_manifest
from tests.framebytes import EXEC, elf
from tests.markdown import (
    DOCS,
    ROOT,
    anchors,
    blocks,
    command_lines,
    links,
    shown,
    spans,
    table,
)
from tests.parsers import LEAVES, PARSERS, make_parser, options

CHAPTERS = [page for page in DOCS if page.startswith("docs/") and shown(page)]
"""Those with commands and their output, for people in a hurry."""

LINES = 130
"""The most that a chapter has."""


# What is shown -------------------------------------------------------------------------------


def run(command: str, folder: Path) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "drgn_reliable", *shlex.split(command)[1:]],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
    )
    return done.stdout


def differs(output: str, printed: str) -> str:
    """The first part of what is shown that was not printed there; empty if all of it was.

    A line of three dots stands for any lines; nothing else may be left out.
    """
    lines = [line.rstrip() for line in printed.splitlines()]
    parts = [part.splitlines() for part in re.split(r"^\.\.\.$\n", output, flags=re.MULTILINE)]
    at = 0
    for number, part in enumerate(parts):
        starts = range(at, len(lines) - len(part) + 1)
        if number == 0:
            starts = starts[:1]
        if number == len(parts) - 1:
            starts = starts[-1:]
        for start in starts:
            if lines[start : start + len(part)] == part:
                at = start + len(part)
                break
        else:
            return "\n".join(part)
    return "" if at == len(lines) or output.endswith("...\n") else "\n".join(lines[at:])


@pytest.mark.parametrize(
    ("output", "same"),
    [
        ("a\nb\nc\n", True),
        ("a\n...\nc\n", True),
        ("a\n...\n", True),
        ("...\nc\n", True),
        ("...\nb\n...\n", True),
        ("a\nb\n", False),
        ("b\nc\n", False),
        ("a\nc\n", False),
        ("a\n...\nb\n", False),
        ("c\n...\na\n", False),
    ],
)
def test_what_is_the_same(output: str, same: bool) -> None:
    """Lines are compared whole and in order; only three dots leave any out."""
    assert (differs(output, "a\nb \nc\n") == "") is same


@pytest.mark.parametrize("page", [page for page in DOCS if shown(page)])
def test_the_output_is_real(page: str, tmp_path: Path) -> None:
    """A page's commands, one after the other, print what the page says."""
    (tmp_path / "vmcores").symlink_to(VMCORES)
    for each in shown(page):
        printed = run(each.command, tmp_path)
        missing = differs(each.output, printed)
        assert not missing, f"{page}: {each.command} does not print\n{missing}\nbut\n{printed}"


def test_chapters_are_short() -> None:
    """A chapter is read at an incident; the README in five minutes."""
    assert len(CHAPTERS) >= 5
    assert [page for page in CHAPTERS if DOCS[page].count("\n") > LINES] == []
    assert DOCS["README.md"].count("\n") <= 2 * LINES


# What is named -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", DOCS)
def test_commands_are_commands(page: str) -> None:
    """Every command line is one that the program takes, but for the files that it names."""
    for line in command_lines(page):
        parses(line)


@pytest.mark.parametrize("name", LEAVES)
def test_examples_are_commands(name: str) -> None:
    """Those in the help and on the man pages."""
    for line in re.split(r"\n(?=  \S)", COMMANDS[name].examples.strip("\n")):
        whole = re.sub(r" ?\\?\n +", " ", line.strip())  # continued in the next line
        parses(re.split(r" {2,}| \| ", whole)[0])


def parses(line: str) -> None:
    """Hold a command against the parser."""
    problems = io.StringIO()
    with contextlib.redirect_stderr(problems), contextlib.redirect_stdout(io.StringIO()):
        try:
            make_parser().parse_args(shlex.split(line)[1:])
        except SystemExit as end:
            assert end.code == 0, f"{line}: {problems.getvalue()}"


@pytest.mark.parametrize("page", DOCS)
def test_options_are_options(page: str) -> None:
    """What running text names is there: commands of the program, their options, drgn's commands."""
    every = set().union(*map(options, PARSERS))
    for span in spans(page):
        if span.startswith("drgn-reliable "):
            words = span.split()
            name = max(
                (name for name in PARSERS if words[: len(name.split())] == name.split()), key=len
            )
            named = {word.partition("=")[0] for word in words if word.startswith("-")}
            assert named - {"-"} <= options(name), span
            following = words[len(name.split()) :]
            assert name in LEAVES or not following or following[0].startswith(("-", "...")), span
        elif span.startswith("--") and page in ("README.md", *CHAPTERS):
            assert re.split(r"[ =]", span)[0] in every, f"{page}: {span}"
        elif re.match(r"%\w", span):
            assert span.split()[0][1:] in DEFAULT_COMMAND_NAMESPACE._commands, f"{page}: {span}"


def test_the_readme_names_every_command() -> None:
    """All of them, at a glance."""
    lines = list(command_lines("README.md"))
    assert [name for name in LEAVES if not any(line.startswith(name) for line in lines)] == []


# What is linked ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", DOCS)
def test_links_lead_somewhere(page: str) -> None:
    """To a file that is there, and to a heading or another anchor of it."""
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), f"{page}: {link}"


def test_the_readme_leads_to_every_page() -> None:
    """Whatever is under docs/ can be found."""
    linked = {link.partition("#")[0] for link in links("README.md")}
    assert {page for page in DOCS if page.startswith("docs/")} <= linked


# What is promised ----------------------------------------------------------------------------


def test_the_figures_of_the_dumps() -> None:
    """How many dumps, kernels, tasks and entries are held against their kernels' answers."""
    dumps = load_manifest() + load_manifest(VMCORES / "livepatch")
    recorded = [row for dump in dumps for row in dump.recorded]
    reliable, unreliable = (
        sum(row.verdict == verdict for row in recorded) for verdict in ("reliable", "unreliable")
    )
    figures = (
        f"{len(dumps)} dumps of {len({dump.release for dump in dumps})} kernels and "
        f"{len({dump.architecture for dump in dumps})} architectures hold {len(recorded):,} tasks, "
        f"of which their kernels called {reliable:,} reliable and {unreliable:,} unreliable, and "
        f"{sum(len(row.entries) for row in recorded):,} trace entries"
    )
    readme = " ".join(DOCS["README.md"].split())
    assert figures in readme
    assert f"{len(CATALOGUE)} reasons" in readme


def test_exit_statuses() -> None:
    """The README's table is the program's."""
    rows = [(status.strip("`"), meaning) for status, meaning in table("README.md", "Exit status")]
    assert rows == rows_of(GENERAL)


@pytest.mark.parametrize("page", CHAPTERS)
def test_exit_statuses_of_commands(page: str) -> None:
    """A chapter says of its command what the command's own help says."""
    lists = re.findall(r"^Exit status of `(.*?)`:\n\n((?:[* ] .*\n)+)", DOCS[page], re.MULTILINE)
    assert lists
    for name, items in lists:
        rows = [" ".join(item.split()).partition(": ") for item in items[2:].split("\n* ")]
        command = COMMANDS[f"drgn-reliable {name}"]
        assert [(status, meaning) for status, _, meaning in rows] == rows_of(command.exits)


def test_the_table_of_kernels() -> None:
    """As many tasks as the manifest's dumps have."""
    rows = table("docs/kernels.md", "Kernels")
    counted = {int(n) for row in rows for n in re.findall(r"\b\d{3}\b(?! KiB)", row[2])}
    assert len(counted) > 5
    assert counted <= {dump.count() for dump in load_manifest()}


def test_schemas() -> None:
    """Every JSON schema is named, and of which command it is."""
    named = {row[1].strip("`") for row in table("README.md", "JSON")}
    files = (ROOT / "drgn_reliable" / "schema").glob("*.json")
    assert named == {file.name for file in files}


def test_dependencies() -> None:
    """Each dependency is in the README with its bounds, and nothing else."""
    project = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|dask) = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    wanted = {each for found in lists for each in re.findall(r'"([^"]+)"', found)}
    rows = table("README.md", "Dependencies")
    assert {name.strip("`") + bounds.strip("`") for name, bounds, _ in rows} == wanted
    assert all(len(why) > 10 for _, _, why in rows)


# docs/fleet-store.md -------------------------------------------------------------------------


def test_the_questions_in_sql_have_answers(tmp_path: Path) -> None:
    """Each of them, by any SQLite."""
    (tmp_path / "vmcores").symlink_to(VMCORES)
    run("drgn-reliable fleet scan vmcores/fleet.yaml --store fleet.db", tmp_path)
    (sql,) = blocks("docs/fleet-store.md", "sql")
    questions = [each for each in sql.split(";\n") if each.strip()]
    assert len(questions) == 4
    with sqlite3.connect(f"file:{tmp_path / 'fleet.db'}?mode=ro", uri=True) as db:
        for question in questions:
            assert db.execute(question).fetchall(), question
    db.close()


def test_the_manifest_is_one(tmp_path: Path) -> None:
    """That of docs/fleet.md, but for the files that it names."""
    (manifest,) = blocks("docs/fleet.md", "yaml")
    (tmp_path / "fleet.yaml").write_text(manifest)
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "vmlinux-6.1").write_bytes(elf(EXEC, 62))
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "vmcoreinfo.txt").write_text("OSRELEASE=6.1\n")
    sources = read_sources([str(tmp_path / "fleet.yaml")])
    assert [source.host for source in sources] == ["web1", None, None]
    assert [source.worker for source in sources] == [None, None, "web2"]
    assert sources[0].labels == {"site": "north", "rack": "a7", "service": "shop"}
