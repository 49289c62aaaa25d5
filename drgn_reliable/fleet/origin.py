# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which machine a dump is of, when it was taken and how it is stored."""

from __future__ import annotations

from collections.abc import Mapping

from drgn import FaultError, Program

from drgn_reliable.files.kdump import KdumpFile
from drgn_reliable.fleet.record import Record
from drgn_reliable.kernel import Kernel
from drgn_reliable.opening import OpenedDump, opened_dump

__all__ = ("add_origin", "crash_time", "node_of_file")

_NEVER_NAMED = ("", "(none)", "localhost")
"""Names of machines that were given none."""


def add_origin(record: Record, kernel: Kernel) -> None:
    """Add what a kernel's dump says of its machine to the record of it."""
    dump = opened_dump(kernel.prog)
    record.stored = dump.stored if dump else None
    record.node = (dump and node_of_file(dump)) or _node_in_memory(kernel.prog)
    record.crashed = crash_time(kernel.vmcoreinfo)


def node_of_file(dump: OpenedDump) -> str | None:
    """The machine's own name (``uname -n``), where the file's header has it."""
    return _named(dump.file.header.uts.nodename) if isinstance(dump.file, KdumpFile) else None


def _node_in_memory(prog: Program) -> str | None:
    try:
        name: bytes = prog["init_uts_ns"].name.nodename.string_()
    except (FaultError, LookupError):
        return None
    return _named(name.decode("utf-8", "backslashreplace"))


def _named(node: str) -> str | None:
    return None if node in _NEVER_NAMED else node


def crash_time(vmcoreinfo: Mapping[str, str]) -> int | None:
    """When the kernel crashed, in seconds since 1970; None unless it says so (CRASHTIME of
    VMCOREINFO, ``crash_save_vmcoreinfo()``)."""
    text = vmcoreinfo.get("CRASHTIME", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
