# SPDX-License-Identifier: LGPL-2.1-or-later
"""The few words of QEMU's machine protocol (QMP) that taking a dump needs."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or went away."""


class Qmp:
    """A connection to the QMP socket of a QEMU process."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self._socket = _connect(path, timeout)
        self._stream = self._socket.makefile("rwb")
        self._receive()  # the greeting
        self.execute("qmp_capabilities")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what it returns; events in between are dropped."""
        request = {"execute": command, "arguments": arguments}
        self._stream.write(json.dumps(request).encode() + b"\n")
        self._stream.flush()
        while True:
            reply = self._receive()
            if "error" in reply:
                raise QmpError(f"{command}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]

    def physical_memory(self, address: int, size: int, scratch: Path) -> bytes:
        """Read guest physical memory, by way of a file that is removed again."""
        try:
            self.execute("pmemsave", val=address, size=size, filename=str(scratch))
            return scratch.read_bytes()
        finally:
            scratch.unlink(missing_ok=True)

    def dump(self, output: Path, file_format: str = "elf") -> None:
        """Write the guest's whole physical memory and its CPUs' registers."""
        arguments: dict[str, Any] = {"paging": False, "protocol": f"file:{output}"}
        if file_format != "elf":
            arguments["format"] = file_format
        self.execute("dump-guest-memory", **arguments)

    def _receive(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise QmpError("QEMU closed the connection")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _connect(path: Path, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    error: OSError | None = None
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except OSError as caught:
            connection.close()
            error = caught
            time.sleep(0.05)
    raise QmpError(f"{path}: {error}")
