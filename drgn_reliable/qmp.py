# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of QEMU's machine protocol (QMP): requests and answers, a line of JSON each.

``qemu.qmp`` of the QEMU project is not used: it is a framework for asynchronous programs, and its
interface for others is GPL-2.0-only, which this package cannot depend on.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from errno import EAGAIN
from os import PathLike, fspath
from typing import Any

from drgn_reliable.errors import DumpError

__all__ = ("Qmp", "QmpBusy", "QmpError", "QmpLost")

ANSWER_SECONDS = 600.0
"""Some commands are answered when their work is done."""
_LONGEST_LINE = 1 << 24
"""Bytes; no answer comes near it."""


class QmpError(DumpError):
    """QEMU refused a command, or did not answer."""


class QmpLost(QmpError):
    """QEMU went away."""


class QmpBusy(QmpError):
    """QEMU takes nobody, or does not answer in time: it serves one client at a time."""


class Qmp:
    """A connection to the QMP socket of a QEMU process.

    :param path: of the socket.
    :param timeout: how many seconds to wait for it, and then for QEMU's greeting.
    :param alive: whether QEMU still runs: while it does, its socket may yet appear.
    :raises QmpError: if there is no QEMU, or it does not answer: it serves one client at a time.

    :attr:`events` are those that came so far, as QEMU sends them.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        timeout: float = 30.0,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = _connect(fspath(path), timeout, alive)
        self._buffer = b""
        try:
            deadline = time.monotonic() + timeout
            greeting = self._receive("greeting", deadline, timeout)
            if "QMP" not in greeting:
                raise QmpError(f"greeting: not QMP, but {greeting!r:.80}")
            self.execute("qmp_capabilities", timeout=timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another client have the socket."""
        self._socket.close()

    def execute(
        self,
        command: str,
        *,
        files: Sequence[int] = (),
        timeout: float | None = None,
        **arguments: Any,
    ) -> Any:
        """Run one command and return what it returns.

        :param files: descriptors to send with it.
        :param timeout: seconds for its answer.
        :raises QmpError: if QEMU refuses it, or does not answer in time.
        """
        seconds = ANSWER_SECONDS if timeout is None else timeout
        deadline = time.monotonic() + seconds
        request = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            self._socket.settimeout(seconds)
            if files:
                sent = socket.send_fds(self._socket, [request], files)
                request = request[sent:]
            self._socket.sendall(request)
        except OSError:
            raise QmpLost(f"{command}: QEMU closed the connection") from None
        while True:
            reply = self._receive(command, deadline, seconds)
            if "error" in reply:
                error = reply["error"]
                said = error.get("desc") if isinstance(error, dict) else error
                raise QmpError(f"{command}: {said}")
            if "return" in reply:
                return reply["return"]
            self.events.append(reply)

    def _receive(self, what: str, deadline: float, seconds: float) -> dict[str, Any]:
        """The next line. That is one dictionary, whatever the other side is."""
        line = self._line(what, deadline, seconds)
        try:
            return dict(json.loads(line))
        except (TypeError, ValueError, RecursionError):
            raise QmpError(f"{what}: QEMU answered {line!r:.80}") from None

    def _line(self, what: str, deadline: float, seconds: float) -> bytes:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise QmpBusy(f"{what}: no answer from QEMU in {seconds:g} seconds") from None
            except OSError:
                data = b""
            self._buffer += data
            if not data:
                raise QmpLost(f"{what}: QEMU closed the connection")
            if len(self._buffer) > _LONGEST_LINE:
                raise QmpError(f"{what}: QEMU answered without an end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _connect(path: str, timeout: float, alive: Callable[[], bool]) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            return connection
        except OSError as error:
            connection.close()
            kind = QmpError if alive() else QmpLost
            if error.errno == EAGAIN:
                kind = QmpBusy  # as many wait already as there is room for
            if kind is QmpLost or time.monotonic() > deadline:
                raise kind(f"no connection to QEMU: {error}") from None
        time.sleep(0.05)
