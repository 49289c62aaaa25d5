# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m contrib.fuzz: damages dumps and judges what the package says of them.

``campaign`` tries many mutations; the line of a violation begins with the ``repeat`` command that
tries that one again and tells of it. ``kinds`` lists the kinds of damage. The exit status is 1 if
there were violations.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from contrib.fuzz import campaign, worker
from contrib.fuzz.specimen import Specimen
from contrib.fuzz.trial import ALL_KINDS, Trials

VMCORES = Path(__file__).parent.parent.parent / "vmcores"


def dumps() -> list[Path]:
    """Those of this repository."""
    return sorted([*VMCORES.glob("*.kdump"), *VMCORES.glob("livepatch/*.kdump")])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m contrib.fuzz", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("kinds", help="list the kinds of damage")
    many = commands.add_parser("campaign", help="try many mutations")
    many.add_argument("dumps", nargs="*", type=Path, metavar="DUMP", help="default: vmcores/")
    many.add_argument("--count", type=int, default=10_000, help="mutations (%(default)s)")
    many.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    many.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="(%(default)s)")
    many.add_argument("-o", "--output", type=Path, metavar="FILE", help="summary, as JSON")
    once = commands.add_parser("repeat", help="try one mutation and tell of it")
    once.add_argument("which", metavar="SEED:NUMBER")
    once.add_argument("dump", type=Path)
    part = commands.add_parser("worker", help="what a campaign starts")
    part.add_argument("dump", type=Path)
    for name in ("seed", "start", "end"):
        part.add_argument(name, type=int)
    part.add_argument("--memory", type=int, default=campaign.MEMORY)
    for command in (many, once, part):
        command.add_argument(
            *("--kind",), action="append", default=[], choices=[k.name for k in ALL_KINDS],
            metavar="KIND", help="only this kind; can be given again",
        )  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.command == "kinds":
        for kind in ALL_KINDS:
            print(f"{kind.name:18} {kind.weight:3}  {kind.scope.value}")
        return 0
    only = frozenset(args.kind)
    if args.command == "worker":
        worker.run(str(args.dump), args.seed, args.start, args.end, only, args.memory)
        return 0
    if args.command == "repeat":
        return repeat(args.which, args.dump, only)
    with tqdm(total=args.count, unit=" mutations", disable=None, file=sys.stderr) as bar:
        summary = campaign.run(
            args.dumps or dumps(), args.seed, args.count, args.jobs, only, bar.update
        )
    text = json.dumps(summary.plain(), indent=1)
    if args.output:
        args.output.write_text(text + "\n")
    else:
        print(text)
    for line in summary.violations:
        print(line, file=sys.stderr)
    return 1 if summary.violations else 0


def repeat(which: str, dump: Path, only: frozenset[str]) -> int:
    """Try one mutation, and tell what was damaged and what is wrong."""
    seed, _, number = which.partition(":")
    trials = Trials(Specimen(str(dump)), int(seed), only)
    kind, damage = trials.mutation(int(number))
    print(f"{kind.name}: {damage.what}")
    found = trials.one(int(number))
    for violation in found:
        print(f"VIOLATION {violation.what}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
