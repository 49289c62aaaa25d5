# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmlab and a fake QEMU: its console, its end, and both ways to take a dump."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contrib.vmlab import dumping, guest
from contrib.vmlab.guest import GuestError
from contrib.vmlab.oracle import OracleError
from contrib.vmlab.qmp import QmpError
from contrib.vmlab.scenario import Dump

from .containers import flattened
from .guests import HEADER_AT, ROWS, elf_core, is_alive, oracle_pages


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go, but not pytest's own; the path is short, for sockets."""
    with tempfile.TemporaryDirectory(prefix="q") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        monkeypatch.setattr(guest, "POLL_SECONDS", 0.01)
        yield Path(directory)


# The console ------------------------------------------------------------------------------------

QEMU = """
import json, os, pathlib, re, signal, socket, sys, time
home = pathlib.Path(sys.argv[1])
(home / "pid").write_text(str(os.getpid()))

def say(text):
    print(text, flush=True)

def connect():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(re.search("unix:(.*?),", sys.argv[-1])[1])
    listener.listen()
    stream = listener.accept()[0].makefile("rw")
    answer(stream, {"QMP": {}})
    request(stream)
    answer(stream, {"return": {}})
    return stream

def request(stream):
    line = stream.readline() or sys.exit()
    return json.loads(line)["arguments"]

def answer(stream, reply):
    stream.write(json.dumps(reply) + chr(10))
    stream.flush()

def serve(stream, count=1000, final={"return": {}}):
    for number in range(count):
        wanted = request(stream)
        if "val" in wanted:
            memory = (home / "memory").read_bytes()
            data = memory[wanted["val"] :][: wanted["size"]]
            pathlib.Path(wanted["filename"]).write_bytes(data)
        else:
            (home / "format").write_text(wanted.get("format", "elf"))
            dump = (home / "core").read_bytes()
            pathlib.Path(wanted["protocol"].removeprefix("file:")).write_bytes(dump)
        answer(stream, {"return": {}})
"""
READY = "vmlab: oracle header at physical 0x1000"


def fake_qemu(home: Path, body: str, *arguments: str) -> list[str]:
    """The command of a program that does this with QEMU's last argument."""
    (home / "qemu.py").write_text(QEMU + body)
    return [sys.executable, "-IS", str(home / "qemu.py"), str(home), *arguments]


def put_memory(home: Path, pages: dict[int, bytes]) -> None:
    """What the guest's memory holds."""
    memory = bytearray(max(pages) + 4096)
    for address, page in pages.items():
        memory[address : address + len(page)] = page
    (home / "memory").write_bytes(memory)


def assert_gone(home: Path, scratch: Path) -> None:
    """Neither QEMU nor a temporary file is there."""
    assert not is_alive(int((home / "pid").read_text()))
    assert list(scratch.iterdir()) == []


def boot(home: Path, body: str, seconds: float = 20, patience: float = 20) -> list[str]:
    """Wait for the oracle's announcement and for its verdicts; returns what was told."""
    said: list[str] = []
    command = fake_qemu(home, body)
    with guest.running(command, home / "console.log", said.append, seconds) as running:
        assert is_alive(int((home / "pid").read_text()))
        found = running.wait_for(guest.ANNOUNCEMENT, patience)
        running.wait_until_ready(int(found[1], 16), patience)
    return said


def test_a_guest_that_is_ready(tmp_path: Path, scratch: Path) -> None:
    """All of the console is logged, vmlab's own lines are told, and no process is left."""
    put_memory(tmp_path, oracle_pages(ROWS.encode()))
    body = f"""
sys.stdout.buffer.write(b"SeaBIOS \\xff\\r\\n")
say("[1.0] {READY}")
say("[2.0] Kernel panic - not syncing: vmlab: the verdicts are taken")
say("states: started")
serve(connect())
"""
    assert [line.rpartition("] ")[2] for line in boot(tmp_path, body)] == [
        READY,
        "Kernel panic - not syncing: vmlab: the verdicts are taken",
        "states: started",
    ]
    log = (tmp_path / "console.log").read_bytes()
    assert log.startswith(b"SeaBIOS \xff\r\n[1.0] vmlab: ")
    assert log.endswith(b"states: started\n")
    assert_gone(tmp_path, scratch)


def test_verdicts_are_waited_for(tmp_path: Path) -> None:
    """A header that is only armed is asked again."""
    put_memory(tmp_path, oracle_pages(ROWS.encode(), state=1))
    ready = oracle_pages(ROWS.encode())[HEADER_AT]
    body = f"""
say("{READY}")
stream = connect()
serve(stream, 2)
memory = (home / "memory").read_bytes()
(home / "memory").write_bytes(memory[:{HEADER_AT}] + {ready!r})
serve(stream)
"""
    assert boot(tmp_path, body) == [READY]


ENDINGS = {
    "exits at once": (
        "sys.exit('qemu: no such accelerator')",
        "QEMU ended early: qemu: no such accelerator",
    ),
    "exits at once without a word": ("sys.exit(1)", "QEMU ended early"),
    "is killed": (
        "say('booting'); os.kill(os.getpid(), signal.SIGKILL)",
        "QEMU ended early: booting",
    ),
    "exits when connected": (
        "connect(); say('Rebooting.'); say('')",
        "QEMU ended early: Rebooting.",
    ),
    "says that it failed": (
        "connect(); say('vmlab: failed: module x does not load'); time.sleep(60)",
        "module x does not load",
    ),
    "fails without a word": (
        "connect(); say('vmlab: failed: '); time.sleep(60)",
        "vmlab: failed:",
    ),
    "panics before the announcement": (
        f"connect(); say('Kernel panic - not syncing: no init'); say('{READY}'); time.sleep(9)",
        "no init",
    ),
    "is damaged": (
        f"say('{READY}'); serve(connect(), 1); say('[1.0] Oops: Kernel access [#1]')",
        "Oops: Kernel access [#1]",
    ),
    "panics after the announcement": (
        f"say('{READY}'); serve(connect(), 1); say('Kernel panic - not syncing: BUG')",
        "BUG",
    ),
    "panics and stays": (
        f"say('{READY}'); stream = connect(); serve(stream, 1); "
        "say('Kernel panic - not syncing: BUG'); serve(stream)",
        "BUG",
    ),
    "ends after the announcement": (
        f"say('{READY}'); serve(connect(), 1); say('segmentation fault')",
        "QEMU ended early: segmentation fault",
    ),
}


@pytest.mark.parametrize(("body", "message"), ENDINGS.values(), ids=ENDINGS.keys())
def test_a_guest_that_ends_or_fails_says_why_at_once(
    tmp_path: Path, scratch: Path, body: str, message: str
) -> None:
    """One line, from the guest or from QEMU itself; no process, no file, and no waiting."""
    put_memory(tmp_path, oracle_pages(ROWS.encode(), state=1))
    start = time.monotonic()
    with pytest.raises(GuestError) as caught:
        boot(tmp_path, body)
    assert str(caught.value) == message
    assert time.monotonic() - start < 15
    assert_gone(tmp_path, scratch)


SILENT = "connect(); say('booting'); time.sleep(60)"
ARMED = f"say('{READY}'); serve(connect())"

HANGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "hangs on the way": (SILENT, {}, r"the console never said 'vmlab: .*' in 0.3 seconds"),
    "has no verdicts": (ARMED, {"state": 1}, "no verdicts after 0.3 seconds"),
    "has too many": (ARMED, {"state": 3}, "the oracle's buffer is too small for this guest"),
    "announces what is not": (ARMED, {"magic": b"?" * 16}, "no oracle header at physical 0x1000"),
}


@pytest.mark.parametrize(("body", "header", "message"), HANGS.values(), ids=HANGS.keys())
def test_a_guest_that_does_not_get_there_is_killed(
    tmp_path: Path, scratch: Path, body: str, header: dict[str, Any], message: str
) -> None:
    """One line says what was waited for, and for how long; no process and no file is left."""
    put_memory(tmp_path, oracle_pages(ROWS.encode(), **header))
    with pytest.raises(GuestError) as caught:
        boot(tmp_path, body, patience=0.3)
    assert re.fullmatch(message, str(caught.value))
    assert_gone(tmp_path, scratch)


def test_a_qemu_that_hangs_before_its_socket_is_killed(tmp_path: Path, scratch: Path) -> None:
    """Nothing is printed and nothing listens: the time to start is limited."""
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(
        GuestError, match=r"^QEMU did not start: no connection to QEMU: .*file"
    ) as e:
        boot(tmp_path, body, seconds=1)
    assert "\n" not in str(e.value)
    assert_gone(tmp_path, scratch)


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), SystemExit(143), OracleError("no")])
def test_a_guest_does_not_outlive_what_it_was_booted_for(
    tmp_path: Path, scratch: Path, reason: BaseException
) -> None:
    """Whatever ends the work ends QEMU too, and is not replaced by another exception."""
    command = fake_qemu(tmp_path, "connect(); time.sleep(60)")
    with (
        pytest.raises(type(reason)) as caught,
        guest.running(command, tmp_path / "console.log", print),
    ):
        assert is_alive(int((tmp_path / "pid").read_text()))
        raise reason
    assert caught.value is reason
    assert_gone(tmp_path, scratch)


def test_a_refusal_of_a_living_qemu_stays_what_it_is(tmp_path: Path, scratch: Path) -> None:
    """Only when QEMU has ended are its last words taken for the reason."""
    body = "stream = connect(); request(stream); answer(stream, {'error': {'desc': 'no space'}})"
    command = fake_qemu(tmp_path, f"{body}; say('something'); time.sleep(60)")
    with (
        pytest.raises(QmpError, match=r"^dump-guest-memory: no space$"),
        guest.running(command, tmp_path / "console.log", print) as running,
    ):
        running.qmp.dump(tmp_path / "vmcore")
    assert_gone(tmp_path, scratch)


def test_a_qemu_that_is_not_there_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    """The system's own error names the program."""
    with (
        pytest.raises(OSError, match=r"No such file or directory: 'qemu-of-nobody'"),
        guest.running(["qemu-of-nobody"], tmp_path / "console.log", print),
    ):
        pytest.fail("it runs")
    assert list(scratch.iterdir()) == []


# Taking a dump ----------------------------------------------------------------------------------


def take(home: Path, dump: Dump, body: str) -> str:
    """Take the dump of a fake guest into a directory with a comma in its name."""
    (home / "out,put").mkdir()
    return dumping.take(dump, fake_qemu(home, body), home / "out,put", print)


@pytest.mark.parametrize(
    ("dump", "written", "kept"),
    [
        (Dump(), bytes, bytes),
        (Dump(format="kdump-zlib"), flattened, flattened),
        (Dump(format="kdump-lzo", flattened=False), flattened, bytes),
    ],
    ids=["elf", "flattened", "reassembled"],
)
def test_a_dump_by_qemu(
    tmp_path: Path,
    scratch: Path,
    dump: Dump,
    written: Callable[[bytes], bytes],
    kept: Callable[[bytes], bytes],
) -> None:
    """The rows are read from memory, the dump is QEMU's, in that format, and others may read it."""
    pages = oracle_pages(ROWS.encode())
    put_memory(tmp_path, pages)
    core = elf_core(pages)
    (tmp_path / "core").write_bytes(written(core))
    assert take(tmp_path, dump, ARMED) == ROWS
    output = tmp_path / "out,put"
    assert sorted(path.name for path in output.iterdir()) == ["console.log", "vmcore"]
    assert (output / "vmcore").read_bytes() == kept(core)
    assert (output / "vmcore").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "format").read_text() == dump.format
    assert_gone(tmp_path, scratch)


def test_a_dump_of_another_instant_is_refused(tmp_path: Path, scratch: Path) -> None:
    """What the dump holds must be what the guest's memory held."""
    put_memory(tmp_path, oracle_pages(ROWS.encode()))
    other = ROWS.replace("93", "94").encode()
    (tmp_path / "core").write_bytes(elf_core(oracle_pages(other)))
    with pytest.raises(OracleError, match=r"^the rows in the dump are not those of the guest$"):
        take(tmp_path, Dump(), ARMED)
    assert_gone(tmp_path, scratch)


CRASHED = f"""
[drive] = [word for word in sys.argv if "file=" in word]
[file] = [option for option in re.split("(?<!,),(?!,)", drive) if option.startswith("file=")]
disk = pathlib.Path(file[5:].replace(",,", ","))
core = (home / "core").read_bytes()
stream = connect()
say("{READY}")
say("Kernel panic - not syncing: vmlab: the verdicts are taken")
def save(label, data, size=2 << 30):
    with disk.open("r+b") as file:
        file.write(label.encode().ljust(511) + b"\\n" + data)
        file.truncate(size)
    say("vmlab: dumped %d bytes" % len(core))
"""


def test_a_dump_by_a_crash_kernel(tmp_path: Path, scratch: Path) -> None:
    """What it wrote behind the label is the dump, to the byte; the disk is gone."""
    core = elf_core(oracle_pages(ROWS.encode())) + b"tail"
    (tmp_path / "core").write_bytes(core)
    body = CRASHED + "save('VMLAB-DUMP %d' % len(core), core + b'older contents')"
    assert take(tmp_path, Dump(how="kdump"), body) == ROWS
    output = tmp_path / "out,put"
    assert sorted(path.name for path in output.iterdir()) == ["console.log", "vmcore"]
    assert (output / "vmcore").read_bytes() == core
    assert_gone(tmp_path, scratch)


BAD_DISKS = {
    "no label": ("save('', b'')", r"the crash kernel left no dump: \[\]"),
    "another size": ("save('VMLAB-DUMP 7', core)", r"the crash kernel left no dump: .*b'7'\]"),
    "a disk cut short": (
        "save('VMLAB-DUMP %d' % len(core), core, 612)",
        r"the disk ends \d+ bytes before the dump does",
    ),
}


@pytest.mark.parametrize(("body", "message"), BAD_DISKS.values(), ids=BAD_DISKS.keys())
def test_a_disk_without_the_dump_is_refused(
    tmp_path: Path, scratch: Path, body: str, message: str
) -> None:
    """The label must say what the console said, and all of it must be there."""
    (tmp_path / "core").write_bytes(elf_core(oracle_pages(ROWS.encode())))
    with pytest.raises(OracleError) as caught:
        take(tmp_path, Dump(how="kdump"), CRASHED + body)
    assert re.fullmatch(message, str(caught.value))
    assert not (tmp_path / "out,put/disk").exists()
    assert_gone(tmp_path, scratch)


def test_a_crash_kernel_that_fails_says_so(tmp_path: Path, scratch: Path) -> None:
    """Its failure is the error, and the disk is gone."""
    (tmp_path / "core").write_bytes(b"")
    with pytest.raises(GuestError, match=r"^makedumpfile$"):
        take(tmp_path, Dump(how="kdump"), CRASHED + "say('vmlab: failed: makedumpfile')")
    assert [path.name for path in (tmp_path / "out,put").iterdir()] == ["console.log"]
    assert_gone(tmp_path, scratch)
