# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a dump with as many tasks as you like of one that is at hand.

python -m contrib.scale vmcores/x86_64-6.12.kdump --tasks 100000 -o FILE
"""

from __future__ import annotations

import argparse
import sys

from contrib.scale.crowd import write_crowd
from drgn_reliable.errors import ReliableError
from drgn_reliable.files.codecs import COMPRESSION


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m contrib.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dump", help="a kdump-compressed vmcore, as of vmcores/")
    parser.add_argument("--tasks", type=int, required=True, help="how many clones")
    parser.add_argument("-o", "--output", metavar="FILE", required=True)
    parser.add_argument("--seed", type=int, default=0, help="another one, another mix (default: 0)")
    parser.add_argument(
        "--scattered",
        action="store_true",
        help="neighbours in the task list are anywhere in memory, as on a machine long up",
    )
    parser.add_argument(
        "--compression", choices=(*COMPRESSION, "none"), default="zlib", help="(default: zlib)"
    )
    args = parser.parse_args()
    if args.tasks < 1:
        parser.error(f"--tasks {args.tasks}: at least one")
    try:
        made = write_crowd(
            args.dump,
            args.output,
            args.tasks,
            seed=args.seed,
            scattered=args.scattered,
            compression=args.compression,
        )
    except (ReliableError, OSError) as e:
        print(f"python -m contrib.scale: {e}", file=sys.stderr)
        return 2
    plan = made.plan
    print(
        f"{plan.tasks} clones of {len(made.templates)} tasks in {plan.processes} processes, PIDs "
        f"from {made.first_pid}: {made.file.pages} pages, {made.file.file_size / 1e6:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
