# SPDX-License-Identifier: LGPL-2.1-or-later
"""What taking a dump needs of QEMU's machine protocol, beside the protocol itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drgn_reliable.qmp import Qmp as Client
from drgn_reliable.qmp import QmpError, QmpLost

__all__ = ("Qmp", "QmpError", "QmpLost")


class Qmp(Client):
    """A connection to the QMP socket of a QEMU process of our own."""

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
