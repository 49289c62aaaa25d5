# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a command looks at: a DUMP, the running kernel (``--live``), or a guest (``--qemu``)."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from drgn import Program

from drgn_reliable.errors import UsageError
from drgn_reliable.files.packed import Watch
from drgn_reliable.kcore import KCORE, open_kcore
from drgn_reliable.opening import open_dump
from drgn_reliable.qemu import Snapshot, open_guest

__all__ = ("check_target", "open_target")


def check_target(args: argparse.Namespace) -> None:
    """See that exactly one target is named, and call it ``args.dump`` from now on.

    :raises UsageError: if none is, or more than one.
    """
    elsewhere = [name for name in ("live", "qemu") if getattr(args, name, None)]
    if elsewhere and args.command == "explain" and args.dump is not None:
        args.task.insert(0, args.dump)  # where no DUMP is named, the first is a task too
        args.dump = None
    options = " or ".join(f"--{name}" for name in ("live", "qemu") if hasattr(args, name))
    named = [f"--{name}" for name in elsewhere] + ([] if args.dump is None else ["DUMP"])
    if not named and args.command == "explain":
        raise UsageError("the following arguments are required: PID|ADDR")
    if not named:
        raise UsageError(f"nothing to look at: name a DUMP, or give {options}")
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} exclude each other: they are different kernels")
    if "live" in elsewhere and args.vmcoreinfo is not None:
        raise UsageError("--vmcoreinfo is for dumps; the running kernel tells its own")
    args.dump = args.dump or (KCORE if "live" in elsewhere else args.qemu)


def open_target(
    args: argparse.Namespace, watch: Watch, told: Callable[[Snapshot], None]
) -> Program:
    """The program of what :func:`check_target` has found.

    :param told: is given the snapshot of a guest when it was taken.
    """
    if getattr(args, "live", False):
        return open_kcore(args.symbols)
    if getattr(args, "qemu", None):
        return open_guest(args.qemu, args.symbols, watch, args.vmcoreinfo, told)
    return open_dump(args.dump, args.symbols, watch, args.vmcoreinfo)
