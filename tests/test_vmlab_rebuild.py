# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remaking the small dumps: replaced when they are their kernel's, and only then."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from contrib.vmlab import __main__, chains, conform, lab, livepatch, scenario, verdicts, vmcores
from tests.dumps import DUMP_6_1
from tests.reports import reported

KRETPROBED = ("return", "sleep", "spin", "twice")
HEADER = "# What a person wrote.\n"
ENTRY = {
    "file": "mine.kdump",
    "scenario": "x86_64-6.1",
    "release": "6.1.0-1",
    "architecture": "x86_64",
    "unwinder": "an older one",
    "sha256": "0",
    "verdicts": "mine.verdicts",
    "shows": "a test",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of one small dump, of an earlier day."""
    other = {**ENTRY, "file": "other.kdump", "scenario": "no such scenario"}
    text = yaml.safe_dump({"dumps": [ENTRY, other]}, sort_keys=False)
    (tmp_path / "manifest.yaml").write_text(HEADER + text)
    (tmp_path / "mine.kdump").write_bytes(b"earlier")
    (tmp_path / "mine.verdicts").write_text("earlier")
    return tmp_path


def fake_make(change: Callable[[str], str] = str) -> Callable[..., None]:
    """Stands for the guest: leaves a dump of these tests, and its verdicts with a change."""

    def make(wanted: scenario.Scenario, output: Path, options: object, say: object) -> None:
        assert wanted.name == "x86_64-6.1"
        output.mkdir()
        shutil.copy(DUMP_6_1.path, output / "vmcore")
        (output / "oracle.txt").write_text(change(DUMP_6_1.rows))

    return make


def test_a_rebuilt_dump_is_its_kernel_s_and_so_is_its_entry(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The capsule, the verdicts and the entry are new; comments and other entries stay."""
    monkeypatch.setattr(lab, "make", fake_make())
    assert __main__.main(["rebuild", str(directory), "mine.kdump"]) == 0
    shown = capsys.readouterr().out
    told = f"{DUMP_6_1.count()} tasks, all as their kernel says"
    assert f"vmcore: {told}" in shown and f"capsule: {told}" in shown
    text = (directory / "manifest.yaml").read_text()
    mine, other = yaml.safe_load(text)["dumps"]
    data = (directory / "mine.kdump").read_bytes()
    assert text.startswith(HEADER) and other["sha256"] == "0"
    assert mine == {
        **ENTRY,
        "release": DUMP_6_1.release,
        "unwinder": DUMP_6_1.unwinder,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert (directory / "mine.verdicts").read_text() == DUMP_6_1.rows
    assert reported(str(directory / "mine.kdump")) == reported(str(DUMP_6_1.path))
    assert sorted(os.listdir(directory)) == ["manifest.yaml", "mine.kdump", "mine.verdicts"]


@pytest.fixture
def some_tasks(directory: Path) -> Path:
    """The directory, of whose dump only a few tasks are wanted."""
    entry = {**ENTRY, "tasks": ["k_krp_*", "nobody"]}
    (directory / "manifest.yaml").write_text(yaml.safe_dump({"dumps": [entry]}, sort_keys=False))
    return directory


def test_a_capsule_can_be_of_some_tasks(some_tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tasks of such names there are the stacks and the verdicts, of others neither."""
    monkeypatch.setattr(lab, "make", fake_make())
    vmcores.rebuild(some_tasks, [], lab.Options(some_tasks), lambda name: print)
    rows = (some_tasks / "mine.verdicts").read_text()
    recorded = verdicts.parse(rows)
    assert {row.comm for row in recorded} == {f"k_krp_{x}" for x in KRETPROBED}
    assert set(rows.split("\n")) < set(DUMP_6_1.rows.split("\n"))
    assert rows.endswith("\nEND\n")
    small = some_tasks / "mine.kdump"
    _, reports = conform.scan(small, [row.task for row in recorded])
    assert conform.differences(reports, rows) == []
    (told,) = conform.differences(reports, DUMP_6_1.rows)[:1]
    assert told == f"4 tasks, not the {DUMP_6_1.count()} recorded in their order"
    assert small.stat().st_size < DUMP_6_1.path.stat().st_size
    assert yaml.safe_load((some_tasks / "manifest.yaml").read_text())["dumps"][0]["tasks"]


def test_a_damaged_task_keeps_its_row() -> None:
    """What was damaged is known of the tasks that are kept, and of no others."""
    end = "0  B  "
    rows = [f"T task a 1 1 1 0 1 {end}one", f"T task b 2 2 1 0 1 {end}two", "D a 1 f 0 1 one"]
    again = ["H a 1 2 ff,fe, one", "H b 2 -22  two"]
    text = "\n".join([*rows, again[0], "D b 2 f 0 1 two", again[1], "END", ""])
    kept = verdicts.of_names(text, ["o*"])
    assert kept == "\n".join([rows[0], rows[2], again[0], "END", ""])
    assert verdicts.after_damage(kept) == {10: ("reliable", (0xFF, 0xFE))}
    assert verdicts.after_damage(text)[11] == ("unreliable", ())


def test_no_task_of_such_a_name_replaces_nothing(
    some_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capsule of no tasks would hold every check."""
    monkeypatch.setattr(lab, "make", fake_make())
    monkeypatch.setattr(verdicts, "of_names", lambda rows, patterns: "END\n")
    with pytest.raises(vmcores.VmcoresError, match=r"^mine.kdump: no task is called k_krp_\*, nob"):
        vmcores.rebuild(some_tasks, [], lab.Options(some_tasks), lambda name: print)
    assert (some_tasks / "mine.kdump").read_bytes() == b"earlier"


def test_a_proven_trace_that_lacks_a_function_replaces_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The known chains hold for what is rebuilt, too."""
    monkeypatch.setattr(lab, "make", fake_make())
    monkeypatch.setattr(chains, "missing_functions", lambda reports: ["1 mine: proven, but no"])
    with pytest.raises(vmcores.VmcoresError, match=r"^vmcore: 1 differences"):
        vmcores.rebuild(directory, ["mine.kdump"], lab.Options(directory), lambda name: print)
    assert (directory / "mine.kdump").read_bytes() == b"earlier"


FAILURES: dict[str, tuple[list[str], Callable[[str], str], str]] = {
    "another verdict": (
        ["mine.kdump"],
        lambda rows: rows.replace(" -22  B ", " -5  B ", 1),
        "vmlab: vmcore: 1 differences from its kernel's verdicts",
    ),
    "an unknown dump": (["your.kdump"], str, "no your.kdump; there are mine.kdump, other.kdump"),
    "an unknown scenario": (["other.kdump"], str, "no scenario 'no such scenario'"),
}


@pytest.mark.parametrize(("files", "change", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_what_does_not_conform_replaces_nothing(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    change: Callable[[str], str],
    message: str,
) -> None:
    """One line says what is wrong; every file is as it was, and none is left over."""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    monkeypatch.setattr(lab, "make", fake_make(change))
    assert __main__.main(["rebuild", str(directory), *files]) == 1
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_large_capsule_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git would have to keep for ever has a limit."""
    monkeypatch.setattr(lab, "make", fake_make())
    monkeypatch.setattr(vmcores, "LARGEST", 1 << 20)
    with pytest.raises(vmcores.VmcoresError, match=r"^mine.kdump: \d+ bytes, over 1048576$"):
        vmcores.rebuild(directory, ["mine.kdump"], lab.Options(directory), lambda name: print)
    assert (directory / "mine.kdump").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("change", "status"), [(str, 0), (lambda r: r.replace(" -22  B ", " -5  B ", 1), 1)]
)
def test_conform_says_whether_a_dump_is_its_kernel_s(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str], str],
    status: int,
) -> None:
    """Every difference is a line, and the exit status says whether there is one."""
    made = tmp_path / "made"
    fake_make(change)(scenario.load("x86_64-6.1"), made, None, None)
    assert __main__.main(["conform", str(made / "vmcore")]) == status
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == status
    count = "1" if status else "no"
    told, _, known = last.partition("; ")
    assert told == f"{made / 'vmcore'}: {DUMP_6_1.count()} tasks, {count} differences"
    assert known == "89 of 97 known chains proven, none incomplete"


def test_a_dump_can_be_packed_as_a_whole(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name's end: it is smaller, and a scan of it says the same."""
    entry = {**ENTRY, "file": "mine.kdump.xz"}
    for name, entries in (("plain", ENTRY), ("packed", entry)):
        (directory / name).mkdir()
        text = yaml.safe_dump({"dumps": [entries]}, sort_keys=False)
        (directory / name / "manifest.yaml").write_text(text)
        monkeypatch.setattr(lab, "make", fake_make())
        vmcores.rebuild(directory / name, [], lab.Options(directory), lambda name: print)
    plain, packed = directory / "plain/mine.kdump", directory / "packed/mine.kdump.xz"
    assert packed.stat().st_size < 0.75 * plain.stat().st_size
    assert reported(str(packed)) == reported(str(plain))


def test_names_in_rows_are_bytes() -> None:
    """All but printable ASCII is escaped there, and the backslash; in words, spaces too."""
    rows = (
        r"T task ff01 1 1 9 0 1 1 ff, B  a\x0ab \x1b[2J\x5cx41 caf\xc3\xa9\xff"
        "\n"
        r"L p\x20q 1 3"
        "\n"
        r"P ff p\x20q 1 0 0"
        "\n"
        r"K [    1.000000] livepatch: klp_try_switch_task: \x1b[2J:7 is sleeping on function a b"
        "\n"
    )
    (row,) = verdicts.parse(rows)
    assert row.comm == "a\nb \x1b[2J\\x41 caf\u00e9\\xff"
    found = livepatch.parse(rows)
    assert found is not None
    assert found.transition == found.patches[0].name == "p q"
    assert found.decisions[0].comm == "\x1b[2J" and found.decisions[0].function == "a b"
