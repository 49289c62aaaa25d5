# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m contrib.vmlab: boots distribution kernels and takes dumps of them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from drgn_reliable import ReliableError
from drgn_reliable.livepatch import analyse
from drgn_reliable.render.visible import visible

from . import chains, conform, klp, lab, living, scenario, vmcores
from .guest import GuestError
from .oracle import OracleError
from .packages import PackageError
from .qmp import QmpError

PROBLEMS = (
    *(scenario.ScenarioError, PackageError, GuestError, QmpError, OracleError),
    *(chains.ChainsError, vmcores.VmcoresError, ReliableError, OSError),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="vmlab", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the scenarios")
    make = commands.add_parser("make", help="make the dumps of scenarios")
    make.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="a name, or a YAML file")
    make.add_argument("-o", "--output", type=Path, required=True, help="directory for the dumps")
    make.add_argument("--kernel", help="another release, or a pattern of releases")
    live = commands.add_parser("live", help="boot guests that go on, and scan them while they run")
    live.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="such as x86_64-6.12-live")
    live.add_argument("-o", "--output", type=Path, required=True, help="directory for what is said")
    live.add_argument(
        "--stay", action="store_true", help="keep the guest until Ctrl-C, for --qemu by hand"
    )
    rebuild = commands.add_parser("rebuild", help="make a directory's small dumps again")
    rebuild.add_argument("directory", type=Path, help="where their manifest.yaml is")
    rebuild.add_argument("files", nargs="*", metavar="FILE", help="only these of its dumps")
    for command in (make, live, rebuild):
        command.add_argument("--cache", type=Path, default=default_cache(), help="%(default)s")
        command.add_argument("--mirror", help="a Debian mirror (default: that of apt here)")
        command.add_argument("--refresh", action="store_true", help="fetch package lists again")
        command.add_argument("--kvm", action="store_true", help="use KVM (default: emulation)")
    hold = commands.add_parser("conform", help="hold scans of dumps against what is known of them")
    hold.add_argument("dumps", nargs="+", type=Path, metavar="DUMP", help="made by vmlab")
    hold.add_argument("--symbols", metavar="FILE", help="the kernel's vmlinux or debug file")
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


def options_of(arguments: argparse.Namespace) -> lab.Options:
    cache = arguments.cache.absolute()
    return lab.Options(cache, arguments.mirror, arguments.refresh, arguments.kvm)


def teller(name: str) -> lab.Say:
    """A function that says how far something is, and since when."""
    started = time.monotonic()

    def say(text: str) -> None:
        shown = "\n".join(map(visible, text.split("\n")))  # it may be a guest's
        print(f"[{name} {time.monotonic() - started:5.1f}s] {shown}", flush=True)

    return say


def make_one(name: str, arguments: argparse.Namespace) -> None:
    """Make one dump and say what is in it."""
    wanted = scenario.load(name)
    if arguments.kernel:
        suffix = arguments.kernel.replace("*", "")
        wanted = replace(wanted, kernel=arguments.kernel, name=f"{wanted.name}@{suffix}")
    say = teller(wanted.name)
    output = arguments.output.absolute() / wanted.name
    manifest = lab.make(wanted, output, options_of(arguments), say)
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest["verdicts"].items())
    say(f"{output}: {manifest['size'] >> 20} MiB; {counts}")


def live_one(name: str, arguments: argparse.Namespace) -> bool:
    """Boot a guest that goes on, and hold scans from inside and outside to what its kernel says."""
    wanted = scenario.load(name)
    say = teller(wanted.name)
    output = arguments.output.absolute() / wanted.name
    output.mkdir(parents=True)
    with living.running(wanted, output, options_of(arguments), say) as guest:
        scans = []
        if guest.found is not None:
            (output / "found.json").write_text(json.dumps(guest.found, indent=1))
            scans.append(living.Scan(*map(guest.found["scan"].get, ("before", "out", "after"))))
        scans.append(living.scan_over_qmp(guest))
        wrong = [line for each in scans for line in each.differences()]
        for each in scans:
            say(f"{len(each.reports())} tasks, of which {len(each.still())} stood still")
        for line in wrong:
            say(line)
        say(f"{len(wrong) or 'no'} differences; QMP: {guest.socket}")
        if arguments.stay:
            signal.pause()
    return not wrong


def conform_one(dump: Path, symbols: str | None) -> bool:
    """Hold one dump against the verdicts beside it and the known chains; say what differs."""
    rows = dump.with_name("oracle.txt").read_text("utf-8", "surrogateescape")
    kernel, reports = conform.scan(dump, symbols=symbols)
    wrong, lacking = conform.differences(reports, rows), chains.missing_functions(reports)
    wrong += klp.livepatch_differences(analyse(kernel), rows)
    for line in (*wrong, *lacking):
        print(visible(f"{dump}: {line}"))
    known, proven = chains.coverage(reports)
    print(
        f"{dump}: {len(reports)} tasks, {len(wrong) or 'no'} differences; "
        f"{proven} of {known} known chains proven, {len(lacking) or 'none'} incomplete",
        flush=True,
    )
    return not wrong and not lacking


def run(given: argparse.Namespace) -> int:
    if given.command == "list":
        list_scenarios()
    elif given.command == "make":
        for name in given.scenarios:
            make_one(name, given)
    elif given.command == "live":
        return int(not all(list(map(partial(live_one, arguments=given), given.scenarios))))
    elif given.command == "rebuild":
        vmcores.rebuild(given.directory, given.files, options_of(given), teller)
    else:
        conforming = [conform_one(dump, given.symbols) for dump in given.dumps]
        return int(not all(conforming))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        return run(given)
    except PROBLEMS as error:
        print(f"vmlab: {visible(str(error))}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
