# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever has a name can have any: each is put in the place of every name that a report has, and
every format is to look as if the name had been harmless text from the start.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TextIO

import pytest
from drgn.commands import CommandArgumentError, CommandError, run_command

from drgn_reliable import Kernel, open_dump
from drgn_reliable.cli import main, make_parser
from drgn_reliable.errors import DumpError, UsageError
from drgn_reliable.explain import explain_task
from drgn_reliable.facts import kernel_facts
from drgn_reliable.fleet.events import Finished, line_of
from drgn_reliable.livepatch import analyse
from drgn_reliable.model import CapsuleSummary
from drgn_reliable.render import FORMATS, Style, render
from drgn_reliable.render.explanation import write_explanations, write_explanations_json
from drgn_reliable.render.livepatch import write_livepatch, write_livepatch_json
from drgn_reliable.render.machine import capsule_dict
from drgn_reliable.render.table import write_capsule_summary, write_facts
from drgn_reliable.report import Scanner
from drgn_reliable.transition import Difference, LivepatchReport
from tests.dumps import HOSTILE, TRANSITIONS
from tests.hostile import NAMES, as_shown, controls, formulas, poisoned

UNRELIABLE = next(d for d in TRANSITIONS if d.name == "x86_64-6.12-unreliable.kdump")
"""A transition with reasons, blockers, log lines and notes: a source of names of every kind."""


@cache
def data() -> dict[str, Any]:
    """Of each kind of report one that has all of its parts."""
    kernel = Kernel(open_dump(str(UNRELIABLE.path)))
    scanner = Scanner(kernel)
    tasks = list(scanner.reports(kernel.tasks))
    report = scanner.dump_report(kernel.path, tasks)
    report = type(report)(
        *(getattr(report, f) for f in report.__slots__[:-2]), ("a problem",), ("a warning",)
    )
    blocked = [task for task in kernel.tasks if task.comm.startswith(("u_lp", "k_lp"))][:2]
    livepatch = analyse(kernel)
    difference = Difference(1, "comm", "here", "kernel")
    pieces = {f: getattr(livepatch, f) for f in livepatch.__slots__}
    pieces |= {"problems": ("a problem",), "differences": (difference,)}
    return {
        "scan": report,
        "klp": LivepatchReport(**pieces),
        "explain": [explain_task(kernel, task) for task in blocked],
        "info": {**kernel_facts(kernel), "preflight": ["a warning"]},
        "capsule": CapsuleSummary("path", 1, 4096, 1, 1, 1, True, report),
    }


SINKS: dict[str, tuple[str, Callable[[Any, TextIO], object]]] = {
    "scan, table": ("scan", lambda r, out: render(r, "table", Style(), out)),
    "scan, traces": ("scan", lambda r, out: render(r, "table", Style(frames=True), out)),
    "scan, groups": ("scan", lambda r, out: render(r, "table", Style(group=True), out)),
    "scan, csv": ("scan", FORMATS["csv"]),
    "scan, folded": ("scan", FORMATS["folded"]),
    "scan, speedscope": ("scan", FORMATS["speedscope"]),
    "klp": ("klp", lambda r, out: write_livepatch(r, out, verbose=False)),
    "klp, verbose": ("klp", lambda r, out: write_livepatch(r, out, verbose=True)),
    "explain": ("explain", lambda r, out: write_explanations(r, ["a warning"], out, "all")),
    "info": ("info", write_facts),
    "capsule": ("capsule", write_capsule_summary),
}
"""What writes names for people, and from what. The page: ``test_page.py``."""


def written(sink: str, name: str) -> str:
    kind, write = SINKS[sink]
    out = io.StringIO()
    write(poisoned(data()[kind], name), out)
    return out.getvalue()


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("sink", SINKS)
def test_a_name_looks_like_its_visible_form(sink: str, what: str) -> None:
    """Every name at once: no more lines, columns or colours than if it had been harmless."""
    text = written(sink, NAMES[what])
    assert controls(text) == set()
    assert text == written(sink, as_shown(NAMES[what]))


@pytest.mark.parametrize("what", NAMES)
def test_no_cell_is_a_formula(what: str) -> None:
    """Of CSV, read with the comma and with the semicolon."""
    assert formulas(written("scan, csv", NAMES[what])) == []


JSON: dict[str, tuple[str, Callable[[Any, TextIO], object]]] = {
    "scan, json": ("scan", FORMATS["json"]),
    "scan, jsonl": ("scan", FORMATS["jsonl"]),
    "klp, json": ("klp", write_livepatch_json),
    "explain, json": ("explain", lambda r, out: write_explanations_json(r, [], out)),
    "info, json": ("info", lambda r, out: out.write(json.dumps(r) + "\n")),
    "capsule, json": ("capsule", lambda r, out: out.write(json.dumps(capsule_dict(r)) + "\n")),
    "events": (
        "capsule",
        lambda r, out: out.write(
            line_of(
                Finished(path=r.path, dump=1, status="failed", cause=r.path, detail=r.path,
                         tasks=0, unreliable=0, stalled=False, seconds=0.0)
            ).decode()
        ),
    ),
}  # fmt: skip


def strings(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(strings(each) for each in value.values()))
    if isinstance(value, list):
        return set().union(*(strings(each) for each in value))
    return {value} if isinstance(value, str) else set()


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("sink", JSON)
def test_json_has_the_name_as_it_is(sink: str, what: str) -> None:
    """In ASCII, escaped as JSON does: the text is harmless, and what is read from it is true."""
    kind, write = JSON[sink]
    out = io.StringIO()
    write(poisoned(data()[kind], NAMES[what]), out)
    text = out.getvalue()
    assert text.isascii() and controls(text) <= {"\x7f"}
    lines = text.splitlines() if sink in ("scan, jsonl", "events") else [text]
    assert NAMES[what] in set().union(*(strings(json.loads(line)) for line in lines))


# What is said on standard error ------------------------------------------------------------------


@pytest.mark.parametrize("what", NAMES)
def test_an_error_is_one_harmless_line(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it holds of a dump or of its file's name."""
    name = NAMES[what]

    def fail(*arguments: object, **named: object) -> None:
        raise (UsageError if what == "SQL" else DumpError)(f"{name}: not a dump")

    monkeypatch.setattr("drgn_reliable.cli.open_target", fail)
    assert main(["scan", "x"]) in (2, 3)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"drgn-reliable: {as_shown(name)}: not a dump\n"


@pytest.mark.parametrize("what", NAMES)
def test_a_warning_is_one_harmless_line(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Problems and warnings of a scan, and what drgn itself says of a dump."""
    name = NAMES[what]
    monkeypatch.setattr(Scanner, "warnings", lambda self: (name,))
    monkeypatch.setattr(Scanner, "problems", lambda self: (name,))
    path = str(UNRELIABLE.path)
    assert main(["scan", path, "--format", "jsonl"]) == 3
    logging.getLogger("drgn").warning("%s", name)
    assert capsys.readouterr().err == (
        f"drgn-reliable: {path}: warning: {as_shown(name)}\n"
        f"drgn-reliable: {path}: {as_shown(name)}\n"
        f"drgn-reliable: {as_shown(name)}\n"
    )


def test_a_wrong_argument_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell's pattern makes arguments of the names of files."""
    with pytest.raises(SystemExit):
        make_parser().parse_args(["scan", "x", "\x1b]0;t\x07.kdump"])
    assert r"unrecognized arguments: \x1b]0;t\x07.kdump" in capsys.readouterr().err
    with pytest.raises(argparse.ArgumentError):
        raise argparse.ArgumentError(None, "as argparse's own are")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_need_not_know_all_of_unicode(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its encoding lacks is shown as an escape, and is no error."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert main(["scan", str(HOSTILE.path)]) == 0
    text = raw.getvalue().decode(encoding)
    assert ("\uff1d1+1" if encoding == "utf-8" else r"\uff1d1+1") in text


def test_an_error_in_drgns_shell_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an argument and of the dump: the shell prints it as it comes."""
    prog = open_dump(str(UNRELIABLE.path))
    for error, expected in ((UsageError, CommandArgumentError), (DumpError, CommandError)):

        def fail(*arguments: object, error: type[Exception] = error) -> None:
            raise error(NAMES["renames the window"])

        monkeypatch.setattr("drgn_reliable.plugin.start_scan", fail)
        with pytest.raises(expected) as caught:
            run_command(prog, "reliable")
        assert str(caught.value) == as_shown(NAMES["renames the window"])
