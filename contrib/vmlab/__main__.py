# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m contrib.vmlab: boots distribution kernels and takes dumps of them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import lab, scenario
from .guest import GuestError
from .oracle import OracleError
from .packages import PackageError
from .qmp import QmpError

PROBLEMS = (scenario.ScenarioError, PackageError, GuestError, QmpError, OracleError, OSError)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="vmlab", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the scenarios")
    make = commands.add_parser("make", help="make the dumps of scenarios")
    make.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="a name, or a YAML file")
    make.add_argument("-o", "--output", type=Path, required=True, help="directory for the dumps")
    make.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    make.add_argument("--mirror", help="a Debian mirror (default: that of this machine's apt)")
    make.add_argument("--refresh", action="store_true", help="fetch the package lists again")
    make.add_argument("--kernel", help="another release, or a pattern of releases")
    make.add_argument("--kvm", action="store_true", help="use KVM (default: emulation)")
    return top


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "drgn-reliable" / "vmlab"


def interrupt(number: int, frame: object) -> None:
    """End as an exception does, so that everything is cleaned up on the way."""
    raise SystemExit(128 + number)


def list_scenarios() -> None:
    for name in scenario.names():
        print(f"{name:24} {scenario.load(name).about}")


def make_one(name: str, arguments: argparse.Namespace) -> None:
    """Make one dump and say what is in it."""
    wanted = scenario.load(name)
    if arguments.kernel:
        suffix = arguments.kernel.replace("*", "")
        wanted = replace(wanted, kernel=arguments.kernel, name=f"{wanted.name}@{suffix}")
    options = lab.Options(
        arguments.cache.absolute(), arguments.mirror, arguments.refresh, arguments.kvm
    )
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{wanted.name} {time.monotonic() - started:5.1f}s] {text}", flush=True)

    output = arguments.output.absolute() / wanted.name
    manifest = lab.make(wanted, output, options, say)
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest["verdicts"].items())
    say(f"{output}: {manifest['size'] >> 20} MiB; {counts}")


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    if given.command == "list":
        list_scenarios()
        return 0
    try:
        for name in given.scenarios:
            make_one(name, given)
    except PROBLEMS as error:
        print(f"vmlab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
