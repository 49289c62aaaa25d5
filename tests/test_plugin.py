# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands in drgn's shell: run by drgn's own dispatcher, and typed at a real prompt."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

import drgn
import pytest
from drgn.commands import CommandArgumentError, run_command
from drgn.helpers.linux.pid import for_each_task

import drgn_reliable.plugin  # noqa: F401  (registers the commands, as drgn's shell does)
from drgn_reliable import CATALOGUE, DumpReport
from drgn_reliable.explanation import Explanation
from tests.dumps import DUMP_6_1
from tests.prompt import prompt, read_until

DUMP = str(DUMP_6_1.path)


@pytest.fixture(scope="module")
def prog() -> drgn.Program:
    """A program as drgn's shell opens it: the dump, and no debug information."""
    prog = drgn.Program()
    prog.set_core_dump(DUMP)
    return prog


def test_the_package_registers_its_plugin() -> None:
    """drgn finds the plugin by its entry point."""
    found = {e.name: e.value for e in entry_points(group="drgn.plugins")}
    assert found["drgn_reliable"] == "drgn_reliable.plugin"


def test_reliable_returns_its_report(
    prog: drgn.Program, capsys: pytest.CaptureFixture[str]
) -> None:
    """%reliable prints the table and returns the report."""
    report = run_command(prog, "reliable")
    assert isinstance(report, DumpReport)
    assert len(report.tasks) == DUMP_6_1.count()
    assert f"{DUMP_6_1.count()} tasks of {DUMP_6_1.release}" in capsys.readouterr().out


def test_one_task_is_shown_with_its_trace(
    prog: drgn.Program, capsys: pytest.CaptureFixture[str]
) -> None:
    """%reliable with one task shows its frames."""
    report = run_command(prog, f"reliable {DUMP_6_1.find('k_krp_spin').pid}")
    assert [task.comm for task in report.tasks] == ["k_krp_spin"]
    assert "#4  0x" in capsys.readouterr().out


def test_a_page_comes_out_of_the_shell_too(
    prog: drgn.Program, capsys: pytest.CaptureFixture[str]
) -> None:
    """For %reliable --format html > FILE: the page, and nothing beside it."""
    report = run_command(prog, "reliable 1 --format html")
    shown = capsys.readouterr().out
    assert [task.pid for task in report.tasks] == [1]
    assert shown.startswith("<!doctype html>") and shown.endswith("</html>\n")


def test_unreliable_is_short_for_what_is_wrong(
    prog: drgn.Program, capsys: pytest.CaptureFixture[str]
) -> None:
    """%unreliable shows the traces and reasons of the unreliable tasks."""
    report = run_command(prog, "unreliable")
    assert len(report.tasks) == DUMP_6_1.count("unreliable")
    assert {"k_krp_spin", "u_krp_spin"} <= {task.comm for task in report.tasks}
    assert capsys.readouterr().out.count("4.4 rethook-task-runnable (refused)") == 2


def test_explain_returns_explanations(
    prog: drgn.Program, capsys: pytest.CaptureFixture[str]
) -> None:
    """%reliable-explain prints the steps of each task and returns them."""
    (found,) = run_command(prog, f"reliable-explain --words none {DUMP_6_1.find('k_krp_spin').pid}")
    assert isinstance(found, Explanation)
    assert [step.code.symbol for step in found.steps][3:5] == ["spin", "vmlab_krp_spin"]
    assert "refused after 5 frames for rethook-task-runnable" in capsys.readouterr().out
    assert len(run_command(prog, "reliable-explain 1 0 --format json > /dev/null")) == 3


def test_reasons_returns_rows(prog: drgn.Program, capsys: pytest.CaptureFixture[str]) -> None:
    """%reliable-reasons prints and returns the catalogue."""
    assert run_command(prog, "reliable-reasons") == list(CATALOGUE.values())
    assert "rethook-task-runnable" in capsys.readouterr().out


def test_redirection_and_pipes(
    prog: drgn.Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Output obeys > and |."""
    run_command(prog, f"reliable --format csv > {tmp_path}/report.csv")
    assert len((tmp_path / "report.csv").read_text().splitlines()) == DUMP_6_1.count() + 1
    run_command(prog, "reliable --only running | head -n 1")
    assert capfd.readouterr().out.split()[:3] == ["PID", "CPU", "S"]


@pytest.mark.parametrize(
    "command", ["reliable", "unreliable", "reliable-explain", "reliable-reasons"]
)
def test_every_command_has_help(
    prog: drgn.Program, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """-h shows the arguments and returns."""
    assert run_command(prog, f"{command} -h") is None
    assert f"usage: {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("reliable 4242", "no task has the PID 4242"),
        ("reliable --reason bad", "reason 'bad' is not in the catalogue"),
        ("reliable-explain 4242", "no task has the PID 4242"),
        ("reliable-explain", "name a task: its PID"),
        ("reliable-reasons bad", "reason 'bad' is not in the catalogue"),
        ("reliable --format json -v", "are for tables"),
    ],
)
def test_wrong_arguments_are_drgns_usage_errors(
    prog: drgn.Program, command: str, message: str
) -> None:
    """A wrong argument is raised as drgn's own usage error."""
    with pytest.raises(CommandArgumentError, match=message):
        run_command(prog, command)


def test_ordinary_helpers_work_on_the_types_of_the_dump(prog: drgn.Program) -> None:
    """After a command, drgn's own helpers find types and globals: there is no debug
    information, only BTF."""
    run_command(prog, "reliable 1 > /dev/null")
    names = [task.comm.string_() for task in for_each_task(prog)]
    assert b"kthreadd" in names and len(names) == DUMP_6_1.count() - 2


def test_at_a_real_prompt(tmp_path: Path) -> None:
    """In drgn's interactive shell the commands are there by themselves, and `_` is the report."""
    with prompt(DUMP, tmp_path) as terminal:
        os.write(terminal, b"%unreliable\n")
        unreliable = DUMP_6_1.count("unreliable")
        shown = read_until(terminal, f"kernel: {unreliable} unreliable")
        assert "4.4 rethook-task-runnable" in shown
        os.write(terminal, b"print('report of', len(_.tasks), 'tasks')\n")
        read_until(terminal, f"report of {unreliable} tasks")
        os.write(terminal, b"%reliable-explain 2\n")
        assert "end of the stack: STACK_END_MAGIC" in read_until(terminal, "SP of #3 ret_from_fork")
        os.write(terminal, b"print('steps:', len(_[0].steps))\n")
        read_until(terminal, "steps: 4")
