# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's QEMU, asked for a dump of it: a fake that does what QEMU does, or fails to.

``test_live_guest.py`` has a real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from drgn_reliable import DumpError, qemu
from drgn_reliable.capsule import write_capsule
from drgn_reliable.cli import main
from drgn_reliable.opening import open_dump
from drgn_reliable.qemu import COMMANDS, open_guest, take_snapshot
from tests.conftest import scan_dump
from tests.dumps import DUMPS
from tests.reports import reported

DUMP = next(dump for dump in DUMPS if dump.name == "x86_64-6.12.kdump")
GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}
MEGABYTES = 160
Answer = Callable[["FakeQemu", dict[str, Any]], Any]


class Refused(Exception):
    """An answer that is an error."""


class FakeQemu:
    """Answers as QEMU does, and meanwhile writes a dump into the pipe that it is given."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content
        self.requests: list[str] = []
        self.status = "running"
        self.result = "none"
        self.halfway, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.at_half: Callable[[], object] = self.go_on.wait
        """What happens when half of the dump is written."""
        self.files: dict[str, int] = {}
        self.answers: dict[str, Answer] = {
            "qmp_capabilities": lambda fake, arguments: {},
            "query-status": lambda fake, arguments: {"status": fake.status, "running": True},
            "query-memory-size-summary": lambda fake, arguments: {"base-memory": MEGABYTES << 20},
            "getfd": lambda fake, arguments: {},
            "closefd": lambda fake, arguments: fake.closed(arguments["fdname"]),
            "dump-guest-memory": FakeQemu.dump,
            "query-dump": lambda fake, arguments: {"status": fake.result},
        }
        self.greeting: bytes | None = json.dumps(GREETING).encode() + b"\n"
        self._writer = threading.Thread()
        self._sending = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.go_on.set()
        self._thread.join(10)
        if self._writer.ident:
            self._writer.join(10)

    def closed(self, name: str) -> dict[str, Any]:
        os.close(self.files.pop(name))
        return {}

    def dump(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What dump-guest-memory does, detached: it is answered at once."""
        assert arguments["paging"] is False and arguments["detach"] is True
        self.result = "active"
        descriptor = self.files.pop(arguments["protocol"].removeprefix("fd:"))
        self._writer = threading.Thread(target=self._write, args=(descriptor,), daemon=True)
        self._writer.start()
        return {}

    def _write(self, descriptor: int) -> None:
        """The guest stands still meanwhile, and goes on however it ends."""
        before, half = self.status, len(self.content) // 2
        if before == "running":
            self.status = "save-vm"
            self.event("STOP", 10, 250000)
        try:
            with open(descriptor, "wb", buffering=0) as file:
                self._page_by_page(file, self.content[:half])
                self.halfway.set()
                self.at_half()
                self._page_by_page(file, self.content[half:])
            self.result = "completed"
        except BrokenPipeError as error:
            self.result = "failed"
            self.event("DUMP_COMPLETED", 10, 500000, error=f"dump: {error.strerror}")
        self.status = before
        if before == "running":
            self.event("RESUME", 10, 750000)

    def _page_by_page(self, file: BinaryIO, data: bytes) -> None:
        for at in range(0, len(data), 4096):
            file.write(data[at : at + 4096])

    def wait(self) -> None:
        """Until the dump is over."""
        self._writer.join(30)
        assert not self._writer.is_alive()

    def hang_up(self) -> None:
        """End as a process does that is killed: nothing of its is open any more."""
        self._connection.shutdown(socket.SHUT_RDWR)
        raise BrokenPipeError

    def event(self, name: str, seconds: int, microseconds: int, **data: Any) -> None:
        stamp = {"seconds": seconds, "microseconds": microseconds}
        with contextlib.suppress(OSError):  # nobody listens
            self._send({"event": name, "timestamp": stamp, "data": data})

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                with self._connection, contextlib.suppress(OSError):
                    self._talk()

    def _talk(self) -> None:
        if self.greeting:
            self._connection.sendall(self.greeting)
        buffer = b""
        while True:
            data, files, _, _ = socket.recv_fds(self._connection, 1 << 16, 1)
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                request = json.loads(line)
                self.requests.append(request["execute"])
                if files:
                    self.files[request["arguments"]["fdname"]] = files.pop()
                try:
                    found = self.answers[request["execute"]](self, request["arguments"])
                    self._send({"return": found})
                except Refused as error:
                    self._send({"error": {"class": "GenericError", "desc": str(error)}})


@pytest.fixture
def fake() -> Iterator[FakeQemu]:
    """A QEMU whose guest is that of the dump."""
    with tempfile.TemporaryDirectory(prefix="q") as directory:
        served = FakeQemu(Path(directory) / "qmp", DUMP.path.read_bytes())
        yield served
        served.close()


def refuse(why: str) -> Answer:
    def answer(fake: FakeQemu, arguments: dict[str, Any]) -> Any:
        raise Refused(why)

    return answer


def say(found: Any) -> Answer:
    return lambda fake, arguments: found


def test_a_guest_is_as_its_dump(fake: FakeQemu, capsys: pytest.CaptureFixture[str]) -> None:
    """scan --qemu says what a scan of the dump does, and for how long the guest stood still."""
    assert main(["scan", "--qemu", str(fake.path), "--format", "json"]) == 1
    shown = capsys.readouterr()
    found, there = json.loads(shown.out), json.loads(reported(str(DUMP.path)))
    assert found["dump"] == str(fake.path)
    assert found["tasks"] == there["tasks"]
    assert "the guest stood still for 0.50 seconds, and is running" in shown.err


def test_only_these_commands_are_sent(fake: FakeQemu) -> None:
    """Whatever is done, QEMU is sent what is in one list, and that stops and changes nothing."""
    for words in (["info"], ["klp"], ["explain", str(DUMP.find("pause").pid)]):
        main([words[0], "--qemu", str(fake.path), *words[1:]])
    fake.answers["dump-guest-memory"] = refuse("not now")
    main(["scan", "--qemu", str(fake.path)])
    assert set(fake.requests) == set(COMMANDS)
    assert not {"stop", "cont", "system_reset", "memsave", "human-monitor-command"} & set(COMMANDS)


def test_a_capsule_of_a_guest(
    fake: FakeQemu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """capsule --qemu leaves a dump that tells the same."""
    output = tmp_path / "capsule"
    task = str(DUMP.find("pause").pid)
    words = ["capsule", "--qemu", str(fake.path), "-o", str(output), "--task", task]
    assert main(words) == 0
    write_capsule(str(DUMP.path), str(tmp_path / "other"), wanted=[task])
    assert output.read_bytes() == (tmp_path / "other").read_bytes()


def test_a_paused_guest_stays_paused(fake: FakeQemu) -> None:
    """Nothing is said of a standstill where the guest stood still before."""
    fake.status = "paused"
    snapshot = take_snapshot(str(fake.path))
    assert (snapshot.status, snapshot.seconds) == ("paused", 0.0)
    assert fake.status == "paused"
    snapshot.file.seek(0)
    assert snapshot.file.read() == fake.content


def test_a_dump_is_waited_for_until_the_guest_goes_on(fake: FakeQemu) -> None:
    """QEMU says that a dump is complete before it lets the guest go on."""
    states = iter(["running", "paused", "paused", "running"])
    results = iter(["active", "active", "completed"])
    fake.answers["query-status"] = lambda fake, arguments: {"status": next(states)}
    fake.answers["query-dump"] = lambda fake, arguments: {"status": next(results)}
    assert take_snapshot(str(fake.path)).status == "running"
    assert list(states) == list(results) == []


def test_nothing_is_left_of_the_copy(fake: FakeQemu, tmp_path: Path) -> None:
    """The guest's memory goes to a file without a name, where TMPDIR says."""
    before = set(os.listdir(tempfile.gettempdir()))
    prog = open_guest(str(fake.path))
    assert set(os.listdir(tempfile.gettempdir())) <= before | {fake.path.parent.name}
    assert prog["init_task"].pid.value_() == 0 if "init_task" in prog else True


def no_dump(fake: FakeQemu) -> None:
    fake.content = b"nothing of the kind"


def no_greeting(fake: FakeQemu) -> None:
    fake.greeting = None


def other_greeting(fake: FakeQemu) -> None:
    fake.greeting = b"QEMU 7.2.22 monitor - type 'help' for more information\n"


def failing_dump(fake: FakeQemu) -> None:
    def answer(fake: FakeQemu, arguments: dict[str, Any]) -> Any:
        fake.closed(arguments["protocol"].removeprefix("fd:"))
        fake.event("DUMP_COMPLETED", 1, 0, error="dump: failed to save memory")
        return {}

    fake.result, fake.answers["dump-guest-memory"] = "failed", answer


def answering(command: str, answer: Answer) -> Callable[[FakeQemu], None]:
    return lambda fake: fake.answers.update({command: answer})


FAILURES: dict[str, tuple[Callable[[FakeQemu], None], str]] = {
    "in use": (no_greeting, "greeting: no answer from QEMU in 0.2 seconds; another client has"),
    "not QMP": (other_greeting, 'QEMU answered b"QEMU 7.2.22 monitor'),
    "something else": (
        lambda fake: setattr(fake, "greeting", b'{"SMTP": 1}\n'),
        "greeting: not QMP, but {'SMTP': 1}",
    ),
    "no such command": (
        answering("dump-guest-memory", refuse("The command dump-guest-memory has not been found")),
        "dump-guest-memory: The command dump-guest-memory has not been found",
    ),
    "an architecture that QEMU cannot dump": (
        answering("dump-guest-memory", refuse("this feature is not currently supported")),
        "dump-guest-memory: this feature is not currently supported",
    ),
    "a dump that fails": (failing_dump, "dump-guest-memory: dump: failed to save memory"),
    "QEMU ends midway": (
        lambda fake: setattr(fake, "at_half", fake.hang_up),
        "query-dump: QEMU closed the connection",
    ),
    "more memory than room": (
        answering("query-memory-size-summary", say({"base-memory": 1 << 60})),
        "the guest's memory takes 1,152,921,504,674 MB, and ",
    ),
    "memory without a size": (
        answering("query-memory-size-summary", say({"base-memory": "much"})),
        "query-memory-size-summary: QEMU returned {'base-memory': 'much'}",
    ),
    "nonsense": (answering("query-status", say([1])), "query-status: QEMU returned [1]"),
    "a guest that stays": (
        lambda fake: fake.answers.update(
            {
                "query-status": lambda fake, arguments: {
                    "status": ("running", "paused")["query-dump" in fake.requests]
                }
            }
        ),
        "the guest was running, and is paused now, though the dump is done",
    ),
    "no kernel": (no_dump, "not a dump, but "),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line(
    fake: FakeQemu,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It names the socket and what QEMU said; the status is that of a dump that cannot be read."""
    monkeypatch.setattr(qemu, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(qemu, "_RESUME_SECONDS", 0.2)
    prepare, said = FAILURES[name]
    prepare(fake)
    assert main(["scan", "--qemu", str(fake.path)]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    line = shown.err.splitlines()[-1]
    assert str(fake.path) in line and said in line
    assert fake.files == {}


def test_a_copy_that_cannot_be_made_is_one_line(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the temporary directory that is not there, and not the guest."""
    monkeypatch.setattr(tempfile, "tempdir", str(fake.path.parent / "absent"))
    assert main(["scan", "--qemu", str(fake.path)]) == 3
    assert capsys.readouterr().err == (
        f"drgn-reliable: --qemu {fake.path}: no temporary file can be made (No such file or "
        "directory); name another directory with TMPDIR\n"
    )
    assert "dump-guest-memory" not in fake.requests


def test_no_socket_is_one_line(tmp_path: Path) -> None:
    """There is none, it is something else, nobody listens, or it may not be used."""
    file, socket_file = tmp_path / "file", tmp_path / "socket"
    file.touch()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(socket_file))
    for path, said in (
        (tmp_path / "none", "No such file or directory; start QEMU with -qmp"),
        (file, "not a socket; start QEMU with -qmp"),
        (socket_file, "Connection refused"),
    ):
        with pytest.raises(DumpError, match=said):
            take_snapshot(str(path))


def test_a_socket_of_another_user_is_one_line(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission is asked for before anything is sent."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DumpError, match="Permission denied; be the user whose QEMU it is"):
        take_snapshot(str(fake.path))
    assert fake.requests == []


def test_a_client_that_is_served_already_is_waited_for_a_while_only(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU serves one client at a time; another one is told so instead of hanging."""
    monkeypatch.setattr(qemu, "CONNECT_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(fake.path))
        first.recv(1 << 16)
        started = time.monotonic()
        for _ in range(3):  # until QEMU's queue is full, too
            with pytest.raises(DumpError, match="QEMU serves one at a time"):
                take_snapshot(str(fake.path))
        assert time.monotonic() - started < 20


OWN_GROUP = """
import os, sys
os.setpgid(0, 0)
from drgn_reliable.cli import main
sys.exit(main())
"""
"""The command in a process group of its own, whose parent is in another: else Ctrl-Z would be
nothing to it."""


@contextlib.contextmanager
def halfway(fake: FakeQemu) -> Iterator[subprocess.Popen[str]]:
    """A scan of a guest of which QEMU has written half, and writes no more before ``go_on``."""
    fake.go_on.clear()
    command = [sys.executable, "-c", OWN_GROUP, "scan", "--qemu", str(fake.path)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert fake.halfway.wait(30)
            yield process
        finally:
            process.kill()


ENDS: dict[str, tuple[signal.Signals, int, list[str]]] = {
    "Ctrl-C": (signal.SIGINT, 130, ["drgn-reliable: interrupted"]),
    "terminated": (signal.SIGTERM, -signal.SIGTERM, []),
    "killed": (signal.SIGKILL, -signal.SIGKILL, []),
}


@pytest.mark.parametrize("name", ENDS)
def test_whatever_ends_it_the_dump_ends_too(fake: FakeQemu, name: str) -> None:
    """QEMU's next write fails, the guest goes on, and the next snapshot is whole; QEMU is sent
    nothing for that."""
    number, status, said = ENDS[name]
    with halfway(fake) as process:
        process.send_signal(number)
        assert process.communicate(timeout=30)[1].splitlines() == said
    assert process.returncode == status
    assert fake.status == "save-vm"
    fake.go_on.set()
    fake.wait()
    assert (fake.result, fake.status) == ("failed", "running")
    assert set(fake.requests) <= set(COMMANDS) - {"closefd"}
    assert_whole(fake)


def assert_whole(fake: FakeQemu) -> None:
    """A snapshot is all that QEMU writes."""
    with take_snapshot(str(fake.path)).file as file:
        file.seek(0)
        assert file.read() == fake.content


def test_a_suspended_reader_does_not_hold_the_guest(fake: FakeQemu) -> None:
    """Ctrl-Z meanwhile is put off until all is read."""
    with halfway(fake) as process:
        process.send_signal(signal.SIGTSTP)
        fake.go_on.set()
        fake.wait()
        assert (fake.result, fake.status) == ("completed", "running")
        stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert stopped is not None and stopped.si_code == os.CLD_STOPPED
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said == "drgn-reliable: the guest stood still for 0.50 seconds, and is running\n"


def test_a_disk_that_is_full_midway_is_one_line(
    fake: FakeQemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names TMPDIR, and is said when the guest runs again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, most))
    try:
        with pytest.raises(DumpError) as failed:
            take_snapshot(str(fake.path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert fake.status == "running"
    assert str(failed.value) == (
        f"--qemu {fake.path}: the guest's memory cannot be written to {tmp_path} (File too "
        "large); name another directory with TMPDIR"
    )
    fake.wait()
    assert fake.result == "failed"
    assert_whole(fake)


def test_a_pipe_that_stays_open_is_read_as_far_as_the_dump_goes(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever else may have it: QEMU says when its dump is done."""
    monkeypatch.setattr(qemu, "_QUIET_SECONDS", 0.1)
    kept: list[int] = []

    def keep(fake: FakeQemu, arguments: dict[str, Any]) -> Any:
        kept.append(os.dup(fake.files[arguments["fdname"]]))
        return {}

    fake.answers["getfd"] = keep
    fake.at_half = lambda: time.sleep(0.5)
    assert_whole(fake)
    assert fake.requests.count("query-dump") > 1
    os.close(kept[0])


def test_a_qemu_that_hangs_midway_is_waited_for_a_while_only(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes, and QEMU does not answer either."""
    monkeypatch.setattr(qemu, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(qemu, "_ANSWER_SECONDS", 1.0)
    fake.go_on.clear()
    fake.answers["query-dump"] = lambda fake, arguments: fake.go_on.wait()
    with pytest.raises(DumpError, match="query-dump: no answer from QEMU in 1 seconds"):
        take_snapshot(str(fake.path))


def test_a_user_has_neither_a_large_pipe_nor_priority(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may be refused: it takes longer then."""
    asked: list[int] = []

    def refused(what: int, which: int, value: int) -> int:
        asked.append(value)
        raise PermissionError

    monkeypatch.setattr(qemu, "fcntl", refused)
    monkeypatch.setattr(os, "setpriority", lambda *given: given[2] == -20 and refused(*given))
    assert_whole(fake)
    assert asked == [-20, 1 << 20]


def test_the_priority_is_as_before(fake: FakeQemu) -> None:
    """It is raised while QEMU writes only, if at all."""
    seen: list[int] = []
    thread = threading.get_native_id()
    fake.at_half = lambda: seen.append(os.getpriority(os.PRIO_PROCESS, thread))
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert_whole(fake)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert seen in ([before], [-20])


def test_the_dump_is_that_of_the_path_elsewhere(fake: FakeQemu) -> None:
    """A program of a guest answers as one of its dump."""
    assert open_guest(str(fake.path)).platform == open_dump(str(DUMP.path)).platform
    assert scan_dump(DUMP).problems == ()
