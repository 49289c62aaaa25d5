# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's machine protocol, as vmlab speaks it to a fake server."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from contrib.vmlab.qmp import Qmp, QmpError
from drgn_reliable import qmp

GREETING = '{"QMP": {"version": {}, "capabilities": []}}'
OK = '{"return": {}}'
EVENT = '{"event": "DUMP_COMPLETED", "data": {"error": "not an answer", "result": {}}}'
STOP = '{"timestamp": {}, "event": "STOP"}'
REFUSED = '{"error": {"class": "GenericError", "desc": "dump: no space"}}'
Server = Callable[..., Path]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer of a fake server takes long."""
    monkeypatch.setattr(qmp, "ANSWER_SECONDS", 5)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory whose path is short, for sockets."""
    with tempfile.TemporaryDirectory(prefix="q") as directory:
        yield Path(directory)


@pytest.fixture
def server(scratch: Path) -> Iterator[Server]:
    """Starts servers that send the lines of one answer at first and of one more for each request.

    Then the connection is closed, or left open and silent. The requests are in "requests".
    """
    with contextlib.ExitStack() as stack:

        def start(*answers: Sequence[str], silent: bool = False) -> Path:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(scratch / "qmp"))
            listener.listen()

            def serve() -> None:
                connection, _ = listener.accept()
                with connection, connection.makefile("rw") as stream:
                    for number, lines in enumerate(answers):
                        if number:
                            requests.append(json.loads(stream.readline()))
                        stream.write("".join(f"{line}\n" for line in lines))
                        stream.flush()
                    if silent:
                        while connection.recv(4096):
                            pass  # until the other side closes

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return scratch / "qmp"

        requests: list[dict[str, Any]] = []
        start.requests = requests  # type: ignore[attr-defined]
        yield start


@contextlib.contextmanager
def connected(path: Path) -> Iterator[Qmp]:
    """A connection that does not outlive the test."""
    with contextlib.closing(Qmp(path, 5)) as connection:
        yield connection


def test_a_dump_is_asked_for_in_the_words_of_qemu(server: Server) -> None:
    """Capabilities first; a format is named unless it is the usual one; events are no answers."""
    path = server([GREETING], [STOP, OK], [OK], [EVENT, STOP, OK])
    with connected(path) as connection:
        connection.dump(Path("/out/a"))
        connection.dump(Path("/out/b"), "kdump-zlib")
    usual = {"paging": False, "protocol": "file:/out/a"}
    other = {"paging": False, "protocol": "file:/out/b", "format": "kdump-zlib"}
    assert server.requests == [  # type: ignore[attr-defined]
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "dump-guest-memory", "arguments": usual},
        {"execute": "dump-guest-memory", "arguments": other},
    ]


def test_the_answer_to_one_command_is_not_that_to_the_next(server: Server) -> None:
    """After a refusal the connection is still good, and each call has its own answer."""
    path = server([GREETING], [OK], ['{"return": 1}'], [EVENT, REFUSED], [STOP, '{"return": [2]}'])
    with connected(path) as connection:
        assert connection.execute("one") == 1
        with pytest.raises(QmpError, match=r"^two: dump: no space$"):
            connection.execute("two", argument=2)
        assert connection.execute("three") == [2]


ANSWERS = {
    "nothing": ([], "greeting: QEMU closed the connection"),
    "no JSON": ([["HTTP/1.1 400 Bad Request"]], "greeting: QEMU answered b'HTTP/1.1"),
    "no object": ([["[1]"]], "greeting: QEMU answered b'[1]"),
    "a greeting only": ([[GREETING]], "qmp_capabilities: QEMU closed the connection"),
    "no capabilities": ([[GREETING], [REFUSED]], "qmp_capabilities: dump: no space"),
    "no answer": ([[GREETING], [OK], []], "dump-guest-memory: QEMU closed the connection"),
    "events only": ([[GREETING], [OK], [EVENT, STOP]], "dump-guest-memory: QEMU closed"),
    "no JSON for an answer": ([[GREETING], [OK], ["{"]], "dump-guest-memory: QEMU answered b'{"),
    "a refusal": ([[GREETING], [OK], [EVENT, REFUSED]], "dump-guest-memory: dump: no space"),
}


@pytest.mark.parametrize(("answers", "message"), ANSWERS.values(), ids=ANSWERS.keys())
def test_what_is_no_answer_is_one_line(
    server: Server, answers: list[list[str]], message: str
) -> None:
    """The error names the command that it was the answer to."""
    path = server(*answers)
    with pytest.raises(QmpError) as caught, connected(path) as connection:
        connection.dump(Path("/out"))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_connection_lost_before_the_request_is_one_line(server: Server) -> None:
    """Whether writing or reading finds it first, it is a QmpError, when closing too."""
    path = server([GREETING], [OK])
    with connected(path) as connection:
        time.sleep(0.05)
        for _ in range(2):
            with pytest.raises(QmpError, match=r"^stop: QEMU closed the connection$"):
                connection.execute("stop")


@pytest.mark.parametrize(
    ("answers", "command"), [([], "greeting"), ([[GREETING]], "qmp_capabilities")]
)
def test_silence_is_not_waited_for_without_end(
    server: Server, answers: list[list[str]], command: str
) -> None:
    """A server that accepts and says nothing is given up after the time that was given."""
    path = server(*answers, silent=True)
    with pytest.raises(QmpError, match=f"^{command}: no answer from QEMU in 0.1 seconds$"):
        Qmp(path, 0.1)


def test_a_command_may_take_longer_than_connecting_but_not_forever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump takes its time, which has an end."""
    monkeypatch.setattr(qmp, "ANSWER_SECONDS", 0.1)
    path = server([GREETING], [OK], silent=True)
    with (
        connected(path) as connection,
        pytest.raises(QmpError, match=r"^stop: no answer from QEMU in 0.1 seconds$"),
    ):
        connection.execute("stop")


def test_a_socket_that_never_comes_is_given_up(scratch: Path) -> None:
    """At once if QEMU is known to be gone, in the given time otherwise."""
    for arguments in ((0.1,), (60, lambda: False)):
        start = time.monotonic()
        with pytest.raises(QmpError, match=r"^no connection to QEMU: .*No such file"):
            Qmp(scratch / "qmp", *arguments)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("content", "answer", "error"),
    [
        pytest.param(b"12345678", OK, None, id="as asked for"),
        pytest.param(b"1234", OK, "pmemsave: 4 of 8 bytes at 0x1000", id="too little"),
        pytest.param(b"", REFUSED, "pmemsave: dump: no space", id="refused"),
    ],
)
def test_memory_comes_by_way_of_a_file_that_goes_again(
    server: Server, scratch: Path, content: bytes, answer: str, error: str | None
) -> None:
    """The bytes are those of the file, all of them, and the file is gone in any case."""
    (scratch / "memory").write_bytes(content)
    with connected(server([GREETING], [OK], [answer])) as connection:
        if error is None:
            assert connection.physical_memory(0x1000, 8, scratch / "memory") == content
        else:
            with pytest.raises(QmpError, match=f"^{error}$"):
                connection.physical_memory(0x1000, 8, scratch / "memory")
    assert not (scratch / "memory").exists()
    arguments = {"val": 0x1000, "size": 8, "filename": str(scratch / "memory")}
    assert server.requests[1] == {  # type: ignore[attr-defined]
        "execute": "pmemsave",
        "arguments": arguments,
    }
