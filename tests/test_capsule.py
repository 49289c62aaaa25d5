# SPDX-License-Identifier: LGPL-2.1-or-later
"""Capsules: small, complete, and telling the very same."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from drgn import FaultError

from contrib.vmlab.conform import differences
from drgn_reliable import DumpError, Kernel, UsageError, capsule, cli, open_dump
from drgn_reliable.capsule import write_capsule
from drgn_reliable.explain import explain_task
from drgn_reliable.files.notes import iter_notes
from drgn_reliable.opening import opened_dump
from drgn_reliable.render.explanation import explanation_dict
from drgn_reliable.tasks import Task
from tests.conftest import Scanned
from tests.dumps import DUMP_6_1
from tests.reports import reported
from tests.test_explain import of_kinds

DUMP = str(DUMP_6_1.path)


def test_a_capsule_gives_the_same_report(scanned: Scanned, tmp_path: Path) -> None:
    """Of every dump: byte-identical JSON, and every verdict and entry is still the kernel's."""
    output = str(tmp_path / "capsule")
    made = write_capsule(str(scanned.dump.path), output)
    assert reported(output) == reported(str(scanned.dump.path))
    assert differences(made.report.tasks, scanned.dump.rows) == []


def test_a_capsule_explains_the_same(scanned_6_1: Scanned, tmp_path: Path) -> None:
    """Rules, words and drawings of a task of each kind, too."""
    output = str(tmp_path / "capsule")
    write_capsule(DUMP, output)
    kernel = Kernel(open_dump(output))
    for report, found in of_kinds(scanned_6_1):
        (task,) = kernel.tasks.select([f"{report.task:#x}"])
        assert explanation_dict(explain_task(kernel, task)) == explanation_dict(found)


def test_a_capsule_is_private_and_says_what_it_left_out(tmp_path: Path) -> None:
    """Only its owner may read it; the pages in it and those left out are the dump's."""
    output = str(tmp_path / "capsule")
    made = write_capsule(DUMP, output)
    assert stat.S_IMODE(os.stat(output).st_mode) == 0o600
    assert (made.path, made.size, made.page_size) == (output, os.stat(output).st_size, 4096)
    originals = {name: opened_dump(open_dump(name)) for name in (DUMP, output)}
    sizes = {name: dump.file.memory_size for name, dump in originals.items() if dump}
    assert made.pages * 4096 == sizes[output]
    assert (made.pages + made.left_out_pages) * 4096 == sizes[DUMP]


def test_a_capsule_of_one_task_has_no_other_stack(scanned_6_1: Scanned, tmp_path: Path) -> None:
    """--task keeps one stack: a scan of that task is the same, and the others' are not there."""
    output = str(tmp_path / "capsule")
    kept = DUMP_6_1.find("k_krp_spin")
    write_capsule(DUMP, output, wanted=[str(kept.pid)])
    assert reported(output, str(kept.pid)) == reported(DUMP, str(kept.pid))
    prog = open_dump(output)
    for task in scanned_6_1.kernel.tasks:
        saved = task.saved_sp
        if not saved or task.on_cpu:
            continue
        if task.address == kept.task:
            assert prog.read(saved, 8)
        else:
            with pytest.raises(FaultError):
                prog.read(saved, 8)


def test_notes_that_mislead_readers_are_not_copied(tmp_path: Path) -> None:
    """Registers and VMCOREINFO are there; QEMU's notes, whose CR3 libkdumpfile believes, not."""
    output = str(tmp_path / "capsule")
    write_capsule(DUMP, output)
    dump = opened_dump(open_dump(output))
    assert dump is not None
    assert [note.name for note in iter_notes(dump.notes)] == ["CORE", "CORE", "VMCOREINFO"]


# Complete, or not there


def interrupted(tasks: Iterable[Task]) -> Iterator[Task]:
    yield next(iter(tasks))
    raise KeyboardInterrupt


def test_an_interrupted_capsule_does_not_exist(tmp_path: Path) -> None:
    """Nothing is left when the analysis is interrupted."""
    with pytest.raises(KeyboardInterrupt):
        write_capsule(DUMP, str(tmp_path / "capsule"), progress=interrupted)
    assert os.listdir(tmp_path) == []


def test_a_capsule_that_tells_something_else_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page missing from it is noticed, and the file that was there stays."""
    (tmp_path / "capsule").write_bytes(b"earlier")
    contents = capsule._Recorder.contents
    stack_page = Kernel(open_dump(DUMP)).tasks.find("1")[0].saved_sp

    def incomplete(self: capsule._Recorder) -> Iterator[tuple[int, bytes]]:
        wanted = self.program.read(stack_page & -4096, 4096)
        return (page for page in contents(self) if page[1] != wanted)

    monkeypatch.setattr(capsule._Recorder, "contents", incomplete)
    with pytest.raises(DumpError, match="does not give the same report"):
        write_capsule(DUMP, str(tmp_path / "capsule"))
    assert os.listdir(tmp_path) == ["capsule"]
    assert (tmp_path / "capsule").read_bytes() == b"earlier"


@pytest.mark.parametrize("name", ["the dump", "a link to it"])
def test_the_dump_is_never_replaced(tmp_path: Path, name: str) -> None:
    """Naming the dump itself as the output is refused, by whatever name."""
    (tmp_path / "the dump").write_bytes(DUMP_6_1.path.read_bytes())
    (tmp_path / "a link to it").symlink_to(tmp_path / "the dump")
    with pytest.raises(UsageError, match="the dump itself; name another file"):
        write_capsule(str(tmp_path / "the dump"), str(tmp_path / name))
    assert (tmp_path / "the dump").read_bytes() == DUMP_6_1.path.read_bytes()


# The command


def test_the_command_warns_of_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how much is in, how much was left out, and that stacks can hold secrets."""
    output = str(tmp_path / "capsule")
    assert cli.main(["capsule", DUMP, "-o", output, "--task", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{output}: ") and "the stack of 1 task in " in shown
    assert "pages are left out, most kernel code among them." in shown
    assert "can hold secrets" in shown


def test_the_command_answers_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--format json has the same as numbers."""
    output = str(tmp_path / "capsule")
    assert cli.main(["capsule", DUMP, "-o", output, "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["capsule"], made["size"]) == (output, os.stat(output).st_size)
    assert (made["tasks"], made["kernel_code"]) == (DUMP_6_1.count(), False)
    assert made["may_hold_secrets"] is True


@pytest.mark.parametrize("option", [["--task", "1"], ["--task", "0", "--add-text"]])
def test_what_crash_needs_is_every_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    """--add-crash with one task is refused, and nothing is written."""
    output = str(tmp_path / "capsule")
    assert cli.main(["capsule", DUMP, "-o", output, "--add-crash", *option]) == 2
    assert "--add-crash keeps every task's stack; leave out --task" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
