# SPDX-License-Identifier: LGPL-2.1-or-later
"""The few words of QEMU's machine protocol (QMP) that taking a dump needs."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 600  # a dump is answered when it is written


class QmpError(Exception):
    """QEMU refused a command, or did not answer."""


class QmpLost(QmpError):
    """QEMU went away."""


class Qmp:
    """A connection to the QMP socket of a QEMU process."""

    def __init__(
        self, path: Path, timeout: float = 30.0, alive: Callable[[], bool] = lambda: True
    ) -> None:
        """Wait for the socket, as long as that and as long as QEMU is alive."""
        self._socket = _connect(path, timeout, alive)
        self._stream = self._socket.makefile("rb")
        try:
            self._receive("greeting")
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise
        self._socket.settimeout(ANSWER_SECONDS)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what it returns; events in between are dropped."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            raise QmpLost(f"{command}: QEMU closed the connection") from None
        while True:
            reply = self._receive(command)
            if "error" in reply:
                raise QmpError(f"{command}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]

    def physical_memory(self, address: int, size: int, scratch: Path) -> bytes:
        """Read guest physical memory, by way of a file that is removed again."""
        try:
            self.execute("pmemsave", val=address, size=size, filename=str(scratch))
            data = scratch.read_bytes()
        finally:
            scratch.unlink(missing_ok=True)
        if len(data) != size:
            raise QmpError(f"pmemsave: {len(data)} of {size} bytes at {address:#x}")
        return data

    def dump(self, output: Path, file_format: str = "elf") -> None:
        """Write the guest's whole physical memory and its CPUs' registers."""
        arguments: dict[str, Any] = {"paging": False, "protocol": f"file:{output}"}
        if file_format != "elf":
            arguments["format"] = file_format
        self.execute("dump-guest-memory", **arguments)

    def _receive(self, what: str) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except TimeoutError:
            seconds = self._socket.gettimeout()
            raise QmpError(f"{what}: no answer from QEMU in {seconds:g} seconds") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise QmpLost(f"{what}: QEMU closed the connection")
        try:
            return dict(json.loads(line))
        except (TypeError, ValueError):
            raise QmpError(f"{what}: QEMU answered {line!r}") from None


def _connect(path: Path, timeout: float, alive: Callable[[], bool]) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            kind = QmpError if alive() else QmpLost
            if kind is QmpLost or time.monotonic() > deadline:
                raise kind(f"no connection to QEMU: {error}") from None
        time.sleep(0.05)
