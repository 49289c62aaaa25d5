# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open the kernel that runs on this machine, by ``/proc/kcore``, for reading only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from drgn import Program

from drgn_reliable.errors import DumpError
from drgn_reliable.files.elfcore import ELF_SIGNATURE
from drgn_reliable.opening import find_debug_info, named_symbols

__all__ = ("KCORE", "check_kcore", "open_kcore")

KCORE = "/proc/kcore"
_LOCKDOWN = "/sys/kernel/security/lockdown"


def open_kcore(symbols: str | Sequence[str] | None = None) -> Program:
    """A program of the running kernel. What is read of it changes all the time:
    :mod:`drgn_reliable.live` sees to that.

    :param symbols: as for :func:`drgn_reliable.opening.open_dump`.
    :raises DumpError: if it may not be read.
    :raises UsageError: if the symbols cannot be used.
    """
    named = named_symbols(symbols)
    check_kcore()
    prog = Program()
    try:
        prog.set_kernel()
    except Exception as e:
        raise DumpError(f"{KCORE}: drgn cannot read the running kernel ({e})") from e
    find_debug_info(prog, named, search=True)
    return prog


def check_kcore(path: str = KCORE, lockdown: str = _LOCKDOWN) -> None:
    """See whether the running kernel's memory can be read.

    :param lockdown: the file in which the kernel says how far it is locked down.
    :raises DumpError: if not; it says why.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(len(ELF_SIGNATURE))
    except FileNotFoundError:
        why = "is not there: this kernel is built without it, or a container hides it"
        raise DumpError(f"{path}: {why}") from None
    except PermissionError as e:
        raise DumpError(f"{path}: may not be read: {_forbidden(lockdown)} ({e.strerror})") from None
    except OSError as e:
        raise DumpError(f"{path}: cannot be read ({e.strerror})") from None
    if start != ELF_SIGNATURE:
        raise DumpError(f"{path}: not the kernel's memory: a container hides it")


def _forbidden(lockdown: str) -> str:
    """Why reading is not permitted."""
    try:
        level = Path(lockdown).read_text(encoding="ascii", errors="replace")
    except OSError:
        level = ""
    if "[confidentiality]" in level:
        return "this kernel is locked down (kernel_lockdown, confidentiality); take a dump"
    if os.geteuid():
        return "only root may"
    return "it takes the capability CAP_SYS_RAWIO, which root lacks in most containers"
