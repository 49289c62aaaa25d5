# SPDX-License-Identifier: LGPL-2.1-or-later
"""An error names the thing it is of: the dump that was read, or the output that was written."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from drgn_reliable import capsule, cli
from drgn_reliable.cli import main
from drgn_reliable.errors import ReliableError
from drgn_reliable.fleet import isolation
from tests.containers import flattened
from tests.dumps import DUMPS, TRANSITIONS, VMCORES
from tests.fleets import LIMITS, fleet_of, record
from tests.test_opening import as_elf

S390X = next(dump for dump in DUMPS if dump.name == "s390x-6.12.kdump").path
X86_64 = TRANSITIONS[0].path
UNREADABLE = "/proc/self/mem"
"""A regular file that gives EIO where nothing is mapped, as at its start."""


READERS: dict[str, Callable[[], bytes]] = {
    "our reader": S390X.read_bytes,
    "our reader, flattened": lambda: flattened(X86_64.read_bytes()),
    "drgn's reader of ELF": as_elf,
}


def fail_from_now_on(path: Path) -> None:
    """Have every read of an open file fail as that of a broken disk does."""
    broken = os.open(UNREADABLE, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{name}") == str(path):
            os.dup2(broken, int(name))
    os.close(broken)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A dump that drgn does not read itself, beside which reports may lie."""
    path = tmp_path / "dump"
    path.write_bytes(S390X.read_bytes())
    return path


def broken_disk(monkeypatch: pytest.MonkeyPatch, path: Path, module: object, name: str) -> None:
    """Let the disk of a dump break when a function is called."""
    real = getattr(module, name)

    def breaking(*arguments: object, **named: object) -> object:
        fail_from_now_on(path)
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, breaking)


# Reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("format", ["jsonl", "html"])
def test_a_dump_that_fails_while_a_report_is_written(
    reader: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The dump is named, the status is that of a dump, and an earlier report stays."""
    path, report = tmp_path / "dump", tmp_path / "report"
    path.write_bytes(READERS[reader]())
    report.write_text("earlier")
    broken_disk(monkeypatch, path, cli, "write_scan")
    assert main(["scan", str(path), "--format", format, "-o", str(report)]) == 3
    said = capsys.readouterr().err
    assert said == f"drgn-reliable: {path}: cannot be read (Input/output error)\n"
    assert report.read_text() == "earlier"
    assert {each.name for each in tmp_path.iterdir()} == {"dump", "report"}


@pytest.mark.parametrize("when", ["_report", "write_kdump"])
def test_a_dump_that_fails_while_a_capsule_is_made(
    when: str, dump: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dump is named, whether it fails in the analysis or when its pages are copied."""
    dump.write_bytes(as_elf())  # our own reader would have the pages already
    broken_disk(monkeypatch, dump, capsule, when)
    assert main(["capsule", str(dump), "-o", str(dump.parent / "capsule")]) == 3
    said = capsys.readouterr().err
    assert said == f"drgn-reliable: {dump}: cannot be read (Input/output error)\n"
    assert [each.name for each in dump.parent.iterdir()] == ["dump"]


def test_a_dump_that_becomes_shorter_while_it_is_read(
    dump: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is told of the dump, and no task is called reliable."""
    real = cli.start_scan

    def shortened(*arguments: object) -> object:
        os.truncate(dump, 4096)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cli, "start_scan", shortened)
    report = dump.parent / "report"
    assert main(["scan", str(dump), "--format", "jsonl", "-o", str(report)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith(f"drgn-reliable: {dump}: ") for line in lines)
    assert '"verdict": "reliable"' not in report.read_text()


def test_a_mapped_dump_that_becomes_shorter_leaves_no_half_report(tmp_path: Path) -> None:
    """drgn's library maps kdump files: the process may end by SIGBUS; what was there stays."""
    dump, report = tmp_path / "dump", tmp_path / "report"
    dump.write_bytes(X86_64.read_bytes())
    report.write_text("earlier")
    code = (
        "import os, sys\nfrom drgn_reliable import cli\nreal = cli.start_scan\n"
        f"cli.start_scan = lambda *args: (os.truncate({str(dump)!r}, 4096), real(*args))[1]\n"
        f"sys.exit(cli.main(['scan', {str(dump)!r}, '-o', {str(report)!r}]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(VMCORES.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode in (-signal.SIGBUS, 3)
    assert (report.read_text() == "earlier") == (done.returncode < 0)
    assert {each.name for each in tmp_path.iterdir()} == {"dump", "report"}


UNREAD = {
    "debug files": (["scan", str(X86_64), "--symbols", UNREADABLE], 2, f"--symbols {UNREADABLE}: "),
    "VMCOREINFO": (
        ["scan", str(X86_64), "--vmcoreinfo", UNREADABLE],
        2,
        f"--vmcoreinfo {UNREADABLE}: ",
    ),
    "a dump that is not there, for a capsule": (
        ["capsule", "absent", "-o", "report"],
        3,
        "absent: does not exist",
    ),
}


@pytest.mark.parametrize("what", UNREAD)
def test_what_cannot_be_read_is_named(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not the output, which is there already."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").touch()
    arguments, status, said = UNREAD[what]
    assert main(arguments) == status
    assert capsys.readouterr().err.startswith(f"drgn-reliable: {said}")


def test_of_two_stores_the_damaged_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that is damaged behind its header is found out when it is read."""
    paths = [tmp_path / "new.db", tmp_path / "old.db"]
    tasks = [f"{pid} a{pid} reliable proven do_wait{pid} schedule" for pid in range(1, 500)]
    for path in paths:
        fleet_of(("one", record(*tasks)), path=path).store.close()
    for damaged in paths:
        whole = damaged.read_bytes()
        with sqlite3.connect(damaged) as db:
            (page,) = db.execute(
                "SELECT rootpage FROM sqlite_schema WHERE name = 'task'"
            ).fetchone()
            (size,) = db.execute("PRAGMA page_size").fetchone()
        db.close()
        start = size * (page - 1)
        damaged.write_bytes(whole[:start] + b"\xff" * size + whole[start + size :])
        assert main(["fleet", "report", str(paths[0]), "--compare", str(paths[1])]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"drgn-reliable: {damaged}: the store ") and said.count("\n") == 1
        damaged.write_bytes(whole)


def test_a_report_does_not_replace_the_store_that_it_is_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As little as the store that it is of."""
    new, old = str(tmp_path / "new.db"), str(tmp_path / "old.db")
    for path in (new, old):
        fleet_of(path=Path(path)).store.close()
    before = Path(old).read_bytes()
    assert main(["fleet", "report", new, "--compare", old, "-o", old]) == 2
    assert "what the report is of; name another file" in capsys.readouterr().err
    assert Path(old).read_bytes() == before


def test_a_process_that_cannot_be_started_is_no_fault_of_the_dump(
    monkeypatch: pytest.MonkeyPatch, dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says what could not be done; a fleet's dump is not noted as one that failed."""

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    why = "cannot be started (Resource temporarily unavailable)"
    assert main(["scan", str(dump), "--jobs", "2"]) == 3
    said = capsys.readouterr().err
    assert said == f"drgn-reliable: {dump}: a walking process {why}; try --jobs 1\n"
    with pytest.raises(ReliableError, match="its process cannot be started"):
        isolation.attempt(isolation.Job(str(dump)), "BTF", LIMITS, lambda said: None, bool)


# Writing -----------------------------------------------------------------------------------------


def run(arguments: list[str], stdout: str | int, limit: int | None = None) -> tuple[int, str]:
    """Exit status and standard error of a process that may write files of at most so many bytes."""
    before = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit or 0, limit or 0))
    environment = {**os.environ, "PYTHONPATH": str(VMCORES.parent)}
    environment.pop("PYTHONUNBUFFERED", None)
    target = stdout if isinstance(stdout, int) else os.open(stdout, os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-m", "drgn_reliable", *arguments],
        stdout=target, stderr=subprocess.PIPE, text=True, env=environment, timeout=120,
        preexec_fn=before if limit is not None else None,
    )  # fmt: skip
    if not isinstance(stdout, int):
        os.close(target)
    return done.returncode, done.stderr


DUMP, STORE, TO = str(X86_64), "{folder}/fleet.db", "{folder}/out"
ON_STANDARD_OUTPUT: dict[str, list[str]] = {
    "scan": ["scan", DUMP],
    "scan as JSON Lines": ["scan", DUMP, "--format", "jsonl"],
    "scan as a page": ["scan", DUMP, "--format", "html"],
    "info": ["info", DUMP],
    "klp": ["klp", DUMP],
    "explain": ["explain", DUMP, "1"],
    "capsule": ["capsule", DUMP, "-o", TO],
    "reasons": ["reasons"],
    "fleet scan": ["fleet", "scan", DUMP, "--store", STORE],
    "fleet report": ["fleet", "report", STORE],
    "fleet query": ["fleet", "query", STORE, "host"],
    "help": ["scan", "--help"],
    "completion": ["--print-completion", "bash"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a store in it."""
    made = tmp_path_factory.mktemp("named")
    path = made / "fleet.db"
    fleet_of(("one", record("1 sleeper reliable proven do_wait")), path=path).store.close()
    return made


@pytest.mark.parametrize("command", ON_STANDARD_OUTPUT)
def test_standard_output_on_a_full_disk(command: str, folder: Path) -> None:
    """It is named, once, whatever the command; nothing is wrong with what was read."""
    arguments = [each.format(folder=folder) for each in ON_STANDARD_OUTPUT[command]]
    assert run(arguments, "/dev/full") == (
        2,
        "drgn-reliable: standard output: cannot be written (No space left on device)\n",
    )


@pytest.mark.parametrize("command", ["scan", "reasons", "fleet query", "help", "completion"])
def test_standard_output_that_nobody_reads(command: str, folder: Path) -> None:
    """A pipe without a reader is no error: nobody is left to tell."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [each.format(folder=folder) for each in ON_STANDARD_OUTPUT[command]]
    try:
        assert run(arguments, writer) == (0, "")
    finally:
        os.close(writer)


TO_A_FILE: dict[str, list[str]] = {
    "scan": ["scan", DUMP, "-o", TO],
    "scan as JSON Lines": ["scan", DUMP, "--format", "jsonl", "-o", TO],
    "scan as a page": ["scan", DUMP, "--format", "html", "-o", TO],
    "capsule": ["capsule", DUMP, "-o", TO],
    "fleet report": ["fleet", "report", STORE, "--format", "html", "-o", TO],
    "fleet query": [
        "fleet",
        "query",
        STORE,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        "WHERE i < 999) SELECT i FROM n",
        "-o",
        TO,
    ],
}


@pytest.mark.parametrize("limit", [0, 1024])
@pytest.mark.parametrize("command", TO_A_FILE)
def test_a_file_that_may_not_become_so_large(command: str, limit: int, folder: Path) -> None:
    """The file is named and not the dump; the earlier one stays, and nothing is beside it."""
    out = folder / "out"
    out.write_text("earlier")
    before = {path.name for path in folder.iterdir()}
    arguments = [each.format(folder=folder) for each in TO_A_FILE[command]]
    said = f"drgn-reliable: --output {out}: cannot be written (File too large)\n"
    assert run(arguments, os.devnull, limit) == (2, said)
    assert out.read_text() == "earlier"
    assert {path.name for path in folder.iterdir()} == before


def test_a_dump_that_cannot_be_unpacked(tmp_path: Path) -> None:
    """The directory is named in which there is no room for it."""
    (tmp_path / "dump.gz").write_bytes(gzip.compress(X86_64.read_bytes(), 1))
    status, said = run(["info", str(tmp_path / "dump.gz")], os.devnull, 4096)
    assert status == 3
    assert said.startswith(f"drgn-reliable: {tmp_path / 'dump.gz'}: cannot be unpacked in ")
    assert said.endswith("(File too large); set TMPDIR\n")


def test_events_on_a_full_disk_end_no_scan(folder: Path, tmp_path: Path) -> None:
    """It is said that they are not written, and the status is that of the scan."""
    store = str(tmp_path / "fleet.db")
    arguments = ["fleet", "scan", DUMP, "--store", store, "--events", "/dev/full"]
    status, said = run(arguments, os.devnull)
    assert status in (0, 1)
    assert said == (
        "drgn-reliable: --events /dev/full: No space left on device; the scan goes on without\n"
    )
