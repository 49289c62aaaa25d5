# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real dump in which everything has a name that is to do harm, by every command, in every format:
on a terminal, in a pipe, a page, a spreadsheet, a database and drgn's own shell.

``contrib/vmlab/guest/hostile.h`` lists the names, and what each is to do.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from contrib.vmlab.conform import differences
from contrib.vmlab.klp import livepatch_differences
from drgn_reliable.cli import main
from drgn_reliable.fleet.questions import QUESTIONS
from drgn_reliable.livepatch import analyse
from drgn_reliable.render.visible import visible
from tests.conftest import scan_dump
from tests.dumps import HOSTILE
from tests.hostile import NAMES, controls, formulas
from tests.pages import Browser
from tests.prompt import prompt, read_until
from tests.terminal import emulated, run_in_terminal, shown
from tests.test_page import chromium, page

__all__ = ("chromium", "page")

COMMS = {row.comm for row in HOSTILE.recorded}
BAD = {comm for comm in COMMS if controls(comm)}
"""Names that a terminal must not get as they are."""
DUMP = str(HOSTILE.path)
ON_STACK = [row.pid for row in HOSTILE.recorded if row.comm in BAD][:6]


def test_the_dump_is_as_hostile_as_can_be() -> None:
    """Of each kind of name there is a task; function, module, livepatch, file and host have such
    names too, and so has the log."""
    assert len(BAD) >= 11
    for part in (
        *("\x1b[2J", "\x1b]0;", "\x1bP", "\x9b", "\n", "\r", "\t", "\x7f", "\u202e", "\u200b"),
        *("\u2028", r"\xff\xfe\x80\x9b", r"\xed\xb3\xbf", "</script>", "=cmd|", "@SUM", "+1"),
        *("-2", "\uff1d1", "'; DROP TABLE", "%s%n", "../../", "$(reboot)", "x;="),
    ):
        assert any(part in comm for comm in COMMS), part
    assert {"", "   "} <= COMMS
    scanned = scan_dump(HOSTILE)
    frames = [frame.code for report in scanned.reports for frame in report.frames]
    for name in ("../../../etc/passwd\x1b]0;", "@SUM(1)\n#0 0x0 PID 1", "=2+3;\x1b[32m<script>"):
        assert any((code.symbol or "").startswith(name) for code in frames)
    assert any(code.module == "../../../tmp/m\n=m,<b>\x1b[35m\u202e\x1b]0;m\x07" for code in frames)
    found = analyse(scanned.kernel)
    assert found.patches[0].name == "'; DROP--\x1b[41m<u>=2+2;\u202e../../p %s"
    files = {task.wait.file for task in found.tasks}
    assert any(file.startswith("fd 3: /tmp/\x1b[5m<img src=x") for file in files)
    assert any(file.startswith("fd 3: /proc/\x1b[7m<i>=1+1\n\x9bJ") for file in files)
    assert any("\x1b[2J<script>alert(3)" in line.text for line in found.history)


def test_its_verdicts_are_its_own_kernels() -> None:
    """Names change nothing of what is found: tasks, entries, livepatch, blockers, log."""
    scanned = scan_dump(HOSTILE)
    assert differences(scanned.reports, HOSTILE.rows) == []
    assert livepatch_differences(analyse(scanned.kernel), HOSTILE.rows) == []


# Every command -----------------------------------------------------------------------------------


@cache
def piped(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of a command."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        status = main(arguments)
    return status, out.getvalue(), errors.getvalue()


TASKS = [str(pid) for pid in ON_STACK]
FOR_PEOPLE: dict[str, tuple[int, tuple[str, ...]]] = {
    "scan": (0, ("scan", DUMP)),
    "scan -v": (0, ("scan", DUMP, "-v")),
    "scan --group": (0, ("scan", DUMP, "--group")),
    "klp": (1, ("klp", DUMP)),
    "klp -v": (1, ("klp", DUMP, "-v")),
    "explain": (0, ("explain", DUMP, *TASKS)),
    "explain --words all": (0, ("explain", DUMP, *TASKS, "--words", "all")),
    "info": (0, ("info", DUMP)),
    "scan csv": (0, ("scan", DUMP, "--format", "csv")),
    "scan folded": (0, ("scan", DUMP, "--format", "folded")),
}
FOR_MACHINES: dict[str, tuple[int, tuple[str, ...]]] = {
    "scan json": (0, ("scan", DUMP, "--format", "json")),
    "scan jsonl": (0, ("scan", DUMP, "--format", "jsonl")),
    "scan speedscope": (0, ("scan", DUMP, "--format", "speedscope")),
    "scan html": (0, ("scan", DUMP, "--format", "html")),
    "klp json": (1, ("klp", DUMP, "--format", "json")),
    "explain json": (0, ("explain", DUMP, *TASKS, "--format", "json")),
    "info json": (0, ("info", DUMP, "--format", "json")),
}


@pytest.mark.parametrize("name", [*FOR_PEOPLE, *FOR_MACHINES])
def test_nothing_but_text_goes_through_a_pipe(name: str) -> None:
    """No character that does not show itself, on either stream; formats of machines are ASCII."""
    status, arguments = {**FOR_PEOPLE, **FOR_MACHINES}[name]
    code, out, errors = piped(*arguments)
    assert code == status
    assert controls(out) == controls(errors) == set()
    assert name in FOR_PEOPLE or out.isascii()
    assert len(out) > 1000 and "Traceback" not in errors


@pytest.mark.parametrize("name", [*FOR_PEOPLE, "klp json", "scan html"])
def test_a_terminal_shows_what_was_printed_and_does_nothing(name: str) -> None:
    """An emulator gets no title, colour, bell, question or movement, and its screen has the very
    characters that went through the pipe."""
    status, arguments = {**FOR_PEOPLE, **FOR_MACHINES}[name]
    data, code = run_in_terminal(arguments, {"PYTHONIOENCODING": "utf-8"})
    assert code == status
    screen = emulated(data)
    assert screen.done == []
    assert timeless(shown(screen)) == timeless("".join(piped(*arguments)[1].split()))


def timeless(text: str) -> str:
    return re.sub(r"T\d\d:\d\d:\d\d", "", text)


def test_the_emulator_sees_what_would_be_done() -> None:
    """What the test above is worth: the same names as they are do something to the terminal."""
    raw = "\r\n".join(sorted(COMMS)).encode("utf-8", "surrogateescape")
    done = " ".join(emulated(raw).done)
    for what in ("title", "colours", "screen erased", "cursor moved"):
        assert what in done


def test_json_has_the_true_names() -> None:
    """The names that the kernel itself recorded, byte for byte."""
    document = json.loads(piped(*FOR_MACHINES["scan json"][1])[1])
    assert [task["comm"] for task in document["tasks"]] == [row.comm for row in HOSTILE.recorded]
    lines = piped(*FOR_MACHINES["scan jsonl"][1])[1].splitlines()
    assert [json.loads(line)["comm"] for line in lines[1:-1]] == [r.comm for r in HOSTILE.recorded]


def test_a_spreadsheet_finds_no_formula() -> None:
    """One row for each task, and no cell that begins with what begins a formula."""
    text = piped(*FOR_PEOPLE["scan csv"][1])[1]
    assert len(text.splitlines()) == 1 + len(HOSTILE.recorded)
    assert formulas(text) == []
    assert "'=cmd|'/C'!A0" in text and "'@SUM(1+1)" in text


def test_stacks_stay_what_they_are_for_tools_that_draw_them() -> None:
    """Folded: a line for each stack that ends with its count, and as many parts as it has frames.
    Speedscope: as many samples, whose frames have no control in their names."""
    counted: Counter[int] = Counter()
    for line in piped(*FOR_PEOPLE["scan folded"][1])[1].splitlines():
        found = re.fullmatch(r"(.*;\[(?:reliable|running)\]) (\d+)", line)
        assert found, line
        counted[found[1].count(";")] += int(found[2])
    frames = Counter(1 + len(report.frames) for report in scan_dump(HOSTILE).reports)
    assert counted == frames
    drawn = json.loads(piped(*FOR_MACHINES["scan speedscope"][1])[1])
    assert not any(controls(frame["name"]) for frame in drawn["shared"]["frames"])
    assert sum(drawn["profiles"][0]["weights"]) == len(HOSTILE.recorded)


# A page ------------------------------------------------------------------------------------------

ELEMENTS = "return [...new Set([...document.querySelectorAll('*')].map((e) => e.localName))]"


def test_a_browser_shows_the_page_and_does_nothing_else(page: Browser, tmp_path: Path) -> None:
    """No element that a name asks for, no dialogue, no request, no complaint of the policy; the
    names are there to be read."""
    path = tmp_path / "page.html"
    assert piped("scan", DUMP, "--format", "html", "-o", str(path)) == (0, "", "")
    page.driver.get_log("performance")
    page.driver.get(path.as_uri())
    page.wait(lambda: "Stacks" in page.text("body"))
    assert not {"img", "i", "u", "s", "iframe"} & set(page.js(ELEMENTS))
    assert page.js("return document.scripts.length") == 2
    assert page.requests() == [path.as_uri()]
    for button in page.driver.find_elements("css selector", "#section-stacks .table button")[:9]:
        page.js("arguments[0].click()", button)
    text = page.js("return document.body.textContent")
    assert controls(text) <= {"\xa0"}  # the page's own
    assert r"=2+3;\x1b[32m<script>alert(2)</script>\u202e f" in text
    assert "alert" not in page.driver.title


# A fleet -----------------------------------------------------------------------------------------

FOLDER = "x\x1b]0;t\x07\n=1+1;<b>\u202e\udcff"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of a fleet in a directory with a hostile name: the dump, and what is none."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "'; DROP TABLE task; --\x1b[31m.kdump.xz").symlink_to(DUMP)
    (folder / FOLDER / "@SUM(1)\r\x9b2J.kdump").write_bytes(b"KDUMP   " + bytes(5000))
    path = folder / "fleet.db"
    arguments = ("fleet", "scan", str(folder / FOLDER), "--store", str(path), "--events", "-")
    data, status = run_in_terminal(arguments, {"PYTHONIOENCODING": "utf-8"})
    assert status == 3
    (folder / "terminal").write_bytes(data)
    yield path


def test_a_scan_of_many_dumps_does_nothing_to_the_terminal(store: Path) -> None:
    """Progress moves the cursor up and down; of names there is only what can be seen."""
    text = store.with_name("terminal").read_bytes().decode()
    plain = re.sub(r"\x1b\[A|[\r\n]", "", text)
    assert controls(plain) == set()
    assert r"\x1b[31m.kdump.xz" in plain and '"event":"finished"' in plain


@pytest.mark.parametrize("options", [
    [], ["--format", "json"], ["--format", "html"], ["--format", "folded"],
    ["--format", "speedscope"], ["--since", "1"],
    *(["--by", name, "--format", format] for name in QUESTIONS for format in ("csv", "table")),
], ids=" ".join)  # fmt: skip
def test_reports_of_a_store_are_text(store: Path, options: list[str]) -> None:
    status, out, errors = piped("fleet", "report", str(store), *options)
    assert (status, errors) == (0, "")
    assert controls(out) == set()
    assert "csv" not in options or formulas(out) == []


def test_a_store_has_the_true_names(store: Path) -> None:
    """No table was dropped, and nothing is in it but what was bound to a statement."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = Counter(comm for (comm,) in db.execute("SELECT comm FROM task"))
        assert found == Counter(row.comm for row in HOSTILE.recorded)
        assert db.execute("SELECT count(*) FROM place").fetchone() == (2,)
        (host,) = db.execute("SELECT node FROM dump WHERE node IS NOT NULL").fetchone()
    assert host.startswith("\x1b]0;h\x07<b>=1+1\n../x")
    status, out, _ = piped(
        "fleet", "query", str(store), "SELECT comm FROM task", "--format", "json"
    )
    assert Counter(row["comm"] for row in json.loads(out)) == found
    assert status == 0


# Files with such names ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", sorted(set(NAMES) - {"NUL", "long", "nothing", "no UTF-8"}))
def test_the_names_of_files_are_text_too(what: str, tmp_path: Path) -> None:
    """Of a dump and of a capsule: told on either stream."""
    name = NAMES[what].replace("/", "!")
    dump, capsule = tmp_path / f"d{name}", tmp_path / f"c{name}"
    dump.symlink_to(DUMP)
    for arguments in (("scan", str(dump / "none")), ("info", f"{dump}.none")):
        status, out, errors = piped(*arguments)
        assert (status, out, controls(errors)) == (3, "", set())
        assert errors.count("\n") == 1
    status, out, errors = piped("scan", str(dump), "--format", "speedscope")
    assert status == 0 and json.loads(out)["name"] == visible(str(dump))
    if what == "clears the screen":
        status, out, errors = piped("capsule", str(dump), "-o", str(capsule))
        assert (status, controls(out), errors) == (0, set(), "")
        assert out.startswith(visible(str(capsule)))


# drgn's shell ------------------------------------------------------------------------------------


def test_drgns_shell_shows_text(tmp_path: Path) -> None:
    """At a real prompt: the commands, and the line for a wrong argument."""
    dump = tmp_path / "vmcore"
    dump.write_bytes(lzma.decompress(HOSTILE.path.read_bytes()))
    printed = ""
    with prompt(str(dump), tmp_path) as terminal:
        for number, line in enumerate((
            "%reliable", "%reliable --group", "%klp -v", f"%reliable-explain {' '.join(TASKS)}",
            "%reliable --format csv",
        )):  # fmt: skip
            os.write(terminal, f"{line}\n".encode())
            os.write(terminal, f"print('end' * 2, {number})\n".encode())
            printed += read_until(terminal, f"endend {number}")
    ours = re.sub(r"\x1b\[\?2004[hl]|\x1b\[\?1[hl]|\x1b[=>]|[\r\n\x08]", "", printed)
    assert controls(ours) == set()
    for comm in ("\x1b[2J\x1b[31mred", "\u202egpj.exe", "a\nPID 1 proven"):
        assert visible(comm) in printed
