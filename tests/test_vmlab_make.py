# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmlab's command line, and what is left of a dump that was made, failed or was interrupted."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from contrib.vmlab import __main__, dumping, lab, oracle, scenario
from contrib.vmlab.build import Kernel
from contrib.vmlab.guest import GuestError
from contrib.vmlab.packages import PackageError
from contrib.vmlab.scenario import ScenarioError

from .guests import ROWS, elf_core, is_alive, put_program

ROOT = Path(__file__).parents[1]
SCENARIO = scenario.Scenario("mine", "a test", "x86_64", ("sid",), "6.1.0-*")

# Making a dump ----------------------------------------------------------------------------------

FAKE_QEMU = """#!/bin/sh
[ "$1" = --version ] && { echo "QEMU emulator version 0.1"; echo more; exit; }
echo $$ >"$PID_FILE"
exec sleep 60
"""


@pytest.fixture(autouse=True)
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that tells its version, and otherwise hangs."""
    put_program(monkeypatch, tmp_path / "programs", "qemu-system-x86_64", FAKE_QEMU)


def fake_prepare(
    wanted: scenario.Scenario, machine: object, initramfs: Path, options: object, say: lab.Say
) -> Kernel:
    """Stands for packages and compiler: a kernel that is beside the initramfs."""
    initramfs.write_bytes(b"initramfs")
    return Kernel("6.1.0-1-amd64", ROOT)


def fake_dump(
    dump: scenario.Dump, command: list[str], directory: Path, say: dumping.Say, patience: int
) -> str:
    """Stands for the guest: a console, a dump, its rows."""
    (directory / "console.log").write_text("booting\nthe last line\n")
    (directory / "vmcore").write_bytes(b"dump")
    return ROWS + "T task 1 1 1 1 0 1 -22  B  \udcff\n"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither packages nor a guest, but a dump."""
    monkeypatch.setattr(lab, "prepare", fake_prepare)
    monkeypatch.setattr(lab, "qemu_command", lambda *arguments: ["qemu-system-x86_64"])
    monkeypatch.setattr(dumping, "take", fake_dump)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("kvm", "accelerator"), [(False, "tcg"), (True, "kvm")])
def test_the_manifest_says_what_the_dump_is(tmp_path: Path, kvm: bool, accelerator: str) -> None:
    """Release, architecture, how it was made, verdicts and checksums are those of the files."""
    output = tmp_path / "out/mine"
    returned = lab.make(SCENARIO, output, lab.Options(tmp_path / "cache", kvm=kvm), print)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(returned))
    files = {name: (output / name).read_bytes() for name in ("vmcore", "oracle.txt")}
    assert files["oracle.txt"].endswith(b" B  \xff\n")
    table = {
        "name": "mine",
        "release": "6.1.0-1-amd64",
        "architecture": "x86_64",
        "qemu": "QEMU emulator version 0.1",
        "accelerator": accelerator,
        "verdicts": {"reliable": 2, "unreliable": 2, "running": 1},
        "size": 4,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    assert {key: manifest[key] for key in table} == table
    assert manifest["scenario"]["dump"]["how"] == "qmp"
    assert manifest["scenario"]["kernel"] == "6.1.0-*"


@pytest.mark.usefixtures("fakes")
def test_what_is_left_is_the_dump_and_nothing_else(tmp_path: Path) -> None:
    """The initramfs and temporary directories are gone; others may look at the result."""
    output = tmp_path / "out/mine"
    lab.make(SCENARIO, output, lab.Options(tmp_path / "cache"), print)
    assert [path.name for path in output.parent.iterdir()] == ["mine"]
    found = sorted(path.name for path in output.iterdir())
    assert found == ["console.log", "manifest.json", "oracle.txt", "vmcore"]
    assert output.stat().st_mode & 0o777 == 0o755


SAID = "vmlab: VMCOREINFO at physical 0x0000000003bca000, 0x1024 bytes\n"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("note", [False, True])
def test_the_manifest_says_where_vmcoreinfo_is(
    tmp_path: Path, order: Literal["<", ">"], note: bool
) -> None:
    """Whether the file has the note, and the place in memory that the guest told, if it did."""
    text = b"OSRELEASE=6.1\0\0\0"
    notes = struct.pack(order + "III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text
    core = elf_core({0x1000: bytes(4096)}, notes if note else b"", order=order)
    (tmp_path / "vmcore").write_bytes(core)
    (tmp_path / "console.log").write_text("booting\n")
    assert lab.vmcoreinfo_of(tmp_path) == {"note": note}
    (tmp_path / "console.log").write_text(f"booting\n[ 1.0] {SAID}")
    place = {"physical": "0x0000000003bca000", "bytes": 0x1024}
    assert lab.vmcoreinfo_of(tmp_path) == {"note": note, **place}


PROBLEMS = (
    PackageError("cc failed: x.c:1: error: boom", ["In file x.c", "x.c:1: error: boom"]),
    GuestError("the guest died"),
    oracle.OracleError("no rows"),
    OSError(28, "No space left on device"),
    KeyboardInterrupt(),
    SystemExit(143),
)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("step", [(lab, "prepare"), (dumping, "take"), (lab, "describe")])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: type(problem).__name__)
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: tuple[object, str],
    problem: BaseException,
) -> None:
    """Whichever step fails or is interrupted: no output, no temporary directory, that exception."""

    def fail(*arguments: object) -> None:
        raise problem

    monkeypatch.setattr(*step, fail)
    with pytest.raises(type(problem)) as caught:
        lab.make(SCENARIO, tmp_path / "out/mine", lab.Options(tmp_path / "cache"), print)
    assert caught.value is problem
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("fakes")
def test_a_dump_whose_log_is_not_of_its_instant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If its scenario has steps, for then an analysis is held against the log."""
    left = "L patch 1 2\nS ffff888003a51000 0 1\n"

    def taken(*arguments: Any) -> str:
        return fake_dump(*arguments) + left

    monkeypatch.setattr(dumping, "take", taken)
    steps = replace(SCENARIO, workload=scenario.Workload(steps=("load patch",)))
    with pytest.raises(oracle.OracleError, match="the kernel spoke of no task; left are hq:7"):
        lab.make(steps, tmp_path / "out/mine", lab.Options(tmp_path), print)
    assert list((tmp_path / "out").iterdir()) == []
    lab.make(SCENARIO, tmp_path / "out/mine", lab.Options(tmp_path), print)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (PROBLEMS[0], "    In file x.c\n    x.c:1: error: boom"),
        (PROBLEMS[1], "    booting\n    the last line"),
    ],
    ids=["of the compiler", "of the guest"],
)
def test_the_last_words_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, words: str
) -> None:
    """The directory goes, and what was said before the failure is on the terminal."""

    def fail(*arguments: object) -> None:
        raise problem

    monkeypatch.setattr(lab, "describe", fail)
    said: list[str] = []
    with pytest.raises(type(problem)):
        lab.make(SCENARIO, tmp_path / "out/mine", lab.Options(tmp_path), said.append)
    assert said[-1].endswith(words)


@pytest.mark.usefixtures("fakes")
def test_nothing_is_left_when_the_last_words_cannot_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of the terminal that went away does not keep the directory from being removed."""

    def fail(*arguments: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(lab, "describe", fail)
    with pytest.raises(BrokenPipeError):
        lab.make(SCENARIO, tmp_path / "out/mine", lab.Options(tmp_path), fail)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("kind", ["a directory", "a file"])
def test_an_output_that_exists_is_refused(tmp_path: Path, kind: str) -> None:
    """What is there stays, even if it is empty."""
    output = tmp_path / "mine"
    output.mkdir() if kind == "a directory" else output.touch()
    with pytest.raises(ScenarioError, match=f"^{output} exists already$"):
        lab.make(SCENARIO, output, lab.Options(tmp_path / "cache"), print)
    assert output.exists() and not list(tmp_path.glob("mine/*")) and not list(tmp_path.glob(".*"))


def test_without_qemu_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is asked for first, not after ten minutes of packages."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(lab, "prepare", lambda *arguments: pytest.fail("packages were fetched"))
    with pytest.raises(OSError, match="No such file or directory: 'qemu-system-x86_64'"):
        lab.make(SCENARIO, tmp_path / "out/mine", lab.Options(tmp_path), print)
    assert not (tmp_path / "out").exists()


# The command line -------------------------------------------------------------------------------


@pytest.fixture
def handlers() -> Iterator[None]:
    """The signal handlers of pytest, put back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


pytestmark = pytest.mark.usefixtures("handlers")


def test_list_prints_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each: its name, and what it is about."""
    assert __main__.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == scenario.names()
    assert all(len(line.split()) > 3 for line in lines)


KERNELS = {
    "a release": ("6.1.0-9-amd64", "x86_64-6.12@6.1.0-9-amd64"),
    "a pattern": ("7.2.*-amd64", "x86_64-6.12@7.2.-amd64"),
    "none": (None, "x86_64-6.12"),
}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("kernel", "name"), KERNELS.values(), ids=KERNELS.keys())
def test_another_kernel_makes_another_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: str | None, name: str
) -> None:
    """A dump of another kernel than the scenario's neither takes its name nor its pattern."""
    arguments = ["make", "x86_64-6.12", "-o", str(tmp_path / "out")]
    assert __main__.main(arguments + (["--kernel", kernel] if kernel else [])) == 0
    manifest = json.loads((tmp_path / "out" / name / "manifest.json").read_text())
    assert manifest["name"] == name
    own = scenario.load("x86_64-6.12").kernel
    assert manifest["scenario"]["kernel"] == (kernel or own)
    assert f"{tmp_path}/out/{name}: 0 MiB; 2 reliable, 2 unreliable" in capsys.readouterr().out


@pytest.mark.usefixtures("fakes")
def test_options_reach_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache, mirror, refresh and KVM are passed on, and relative paths are made absolute."""
    seen: list[lab.Options] = []

    def make(wanted: object, output: Path, options: lab.Options, say: object) -> dict[str, object]:
        seen.append(options)
        return {"size": 0, "verdicts": {}}

    monkeypatch.setattr(lab, "make", make)
    monkeypatch.chdir(tmp_path)
    mirror = "http://mirror.invalid/debian"
    for words in (["--mirror", mirror], ["--refresh"], ["--kvm"], []):
        make_it = ["make", "x86_64-6.1", "-o", "out", "--cache", "mine"]
        assert __main__.main([*make_it, *words]) == 0
    cache = tmp_path / "mine"
    assert seen == [
        lab.Options(cache, mirror),
        lab.Options(cache, refresh=True),
        lab.Options(cache, kvm=True),
        lab.Options(cache),
    ]


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("problem", PROBLEMS[:4], ids=lambda problem: type(problem).__name__)
def test_a_problem_is_one_line_and_status_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problem: Exception,
) -> None:
    """The second of three scenarios fails: the first is complete, the third is not begun."""

    def take(
        dump: scenario.Dump, command: list[str], directory: Path, say: dumping.Say, patience: int
    ) -> str:
        if "x86_64-6.12" in directory.name:
            raise problem
        return fake_dump(dump, command, directory, say, patience)

    monkeypatch.setattr(dumping, "take", take)
    names = ["x86_64-6.1", "x86_64-6.12", "x86_64-7.2"]
    assert __main__.main(["make", *names, "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"vmlab: {problem}\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x86_64-6.1"]


@pytest.mark.parametrize("arguments", [["make", "nothing", "-o", "."], ["list"]])
def test_a_bad_scenario_is_one_line_and_status_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    """Both commands say it alike."""
    (tmp_path / "bad.yaml").write_text("- 1")
    monkeypatch.setattr(scenario, "SCENARIOS", tmp_path)
    assert __main__.main(arguments) == 1
    assert re.fullmatch(r"vmlab: .*bad.*\n", capsys.readouterr().err)


INTERRUPTED = """
import sys
from contrib.vmlab import __main__, lab
from tests import test_vmlab_make
lab.prepare = test_vmlab_make.fake_prepare
lab.qemu_command = lambda *arguments: ["qemu-system-x86_64"]
sys.exit(__main__.main(["make", "x86_64-6.1", "-o", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_vmlab_and_its_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The exit status tells the signal; QEMU and every directory are gone; no traceback."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        for _ in range(600):
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                break
            time.sleep(0.05)
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
        process.send_signal(number)
        errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (128 + number, b"")
    assert not is_alive(pid)
    assert list((tmp_path / "out").iterdir()) == list((tmp_path / "scratch").iterdir()) == []
