# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command ``drgn-reliable``."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from textwrap import fill
from typing import BinaryIO, cast

import shtab
from drgn import FaultError
from tqdm import tqdm

import drgn_reliable
from drgn_reliable.capsule import write_capsule
from drgn_reliable.command import Command, CommandParser, at_least
from drgn_reliable.commands import (
    CAPSULE,
    EXPLAIN,
    INFO,
    KLP,
    REASONS,
    SCAN,
    exit_code,
    klp_exit_code,
    run_explain,
    run_info,
    run_klp,
    run_reasons,
    show_capsule,
    start_scan,
    write_scan,
)
from drgn_reliable.errors import DumpError, ReliableError, UsageError
from drgn_reliable.exits import Exit
from drgn_reliable.fleet.commands import FLEET, Terminated, run_fleet
from drgn_reliable.kernel import Kernel
from drgn_reliable.outfile import drop_standard_output, not_written, output, output_file
from drgn_reliable.parallel import MANY
from drgn_reliable.qemu import Snapshot
from drgn_reliable.render.visible import visible
from drgn_reliable.report import Scanner
from drgn_reliable.target import check_target, open_target
from drgn_reliable.tasks import Task

__all__ = ("main", "make_parser")

_FILES = ("FILE", "STORE", "OLD", "PATH|GLOB|MANIFEST")

_EPILOG = """\
examples:
  drgn-reliable scan vmcore                 a verdict for every task
  drgn-reliable scan vmcore --only unreliable -v
  drgn-reliable klp vmcore                  why does the livepatch not finish
  drgn-reliable explain vmcore 4711         how one task's verdicts came about
  drgn-reliable info vmcore                 what kernel is in it
  drgn-reliable scan --live                 the kernel that runs here
  drgn-reliable scan --qemu SOCKET          that of a QEMU guest, as it is now
  drgn-reliable fleet scan /var/crash --store fleet.db    many dumps
  drgn-reliable reasons                     what can make a trace unreliable

Nothing but the dump is needed: types, symbols and unwind data come from its own memory. In
drgn's shell the same is at hand as %reliable, %unreliable, %klp, %reliable-explain and
%reliable-reasons.
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="drgn-reliable",
        description="Say of every task in a Linux kernel dump whether its kernel stack trace is "
        "reliable, and if not, why.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=drgn_reliable.__version__)
    shtab.add_argument_to(parser, "--print-completion", help="print a completion script for SHELL")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    scan = _add(commands, SCAN)
    _add_dump(scan, live=True)
    _add_tasks(scan, "only this thread")
    scan.add_argument(
        "-o", "--output", metavar="FILE", help="write the report to FILE, whole or not at all"
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    scan.add_argument(
        "--jobs",
        type=at_least(int, 1),
        metavar="N",
        help="processes that walk at once, each with the dump open; by default one, and for more "
        f"than {MANY:,} tasks as many as there are CPUs, four at most",
    )
    klp = _add(commands, KLP)
    _add_dump(klp, live=True)
    _add_tasks(klp, "look at this thread only")
    explain = _add(commands, EXPLAIN)
    _add_dump(explain, live=True)
    explain.add_argument(
        "task",
        nargs="+",
        metavar="PID|ADDR",
        help="a thread (PID 0: the idle tasks), or the address of its task_struct",
    )
    _add_dump(_add(commands, INFO), live=True)
    capsule = _add(commands, CAPSULE)
    _add_dump(capsule)
    _add_tasks(capsule, "keep the stack of this thread only")
    capsule.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="where to write the capsule"
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    _add(commands, REASONS)
    _add_fleet(commands)
    return parser


def _add(
    commands: argparse._SubParsersAction[CommandParser], command: Command
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        command.name,
        help=command.summary,
        description=fill(command.description, 80),
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for argument in command.arguments:
        action = parser.add_argument(*argument.names, **argument.options)
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _add_fleet(commands: argparse._SubParsersAction[CommandParser]) -> None:
    fleet = commands.add_parser(
        "fleet",
        help="scan many dumps, and say what they have in common",
        description="Scan many dumps into one SQLite file, and ask what they have in common.",
    )
    of_fleet = fleet.add_subparsers(dest="fleet", metavar="COMMAND", required=True)
    for command in FLEET:
        _add(of_fleet, command)


def _add_tasks(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--task",
        action="append",
        metavar="PID|ADDR",
        default=[],
        help=f"{what} (PID 0: the idle tasks), or the task_struct's address; may be repeated",
    )


def _add_dump(parser: argparse.ArgumentParser, *, live: bool = False) -> None:
    parser.add_argument(
        "dump",
        metavar="DUMP",
        nargs="?",
        help="a vmcore: ELF or kdump-compressed; flattened or not; also as .gz, .xz, .zst, .bz2",
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    if live:
        parser.add_argument(
            "--live",
            action="store_true",
            help="instead of a DUMP: the kernel that runs on this machine (/proc/kcore; root)",
        )
    parser.add_argument(
        "--qemu",
        metavar="SOCKET",
        help="instead of a DUMP: the guest of the QEMU with this QMP socket, as it is now; it "
        "stands still while QEMU copies its memory to a temporary file (TMPDIR), and goes on",
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    parser.add_argument(
        "--symbols",
        action="append",
        metavar="FILE",
        help="the kernel's vmlinux or debug file, or a module's (may be repeated): its call frame "
        "information can prove more; without it, the standard places are searched and then the "
        "dump's own BTF and kallsyms are used",
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    parser.add_argument(
        "--vmcoreinfo",
        metavar="FILE",
        help="the text of the kernel's VMCOREINFO; without it, it is taken from the dump's notes "
        "or looked for in the dump's memory",
    ).complete = shtab.FILE  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know all of Unicode
    logging.getLogger("drgn").addHandler(_DRGN)
    args = _parse(argv)
    try:
        return _run(args)
    except UsageError as e:
        return _fail(e, Exit.USAGE)
    except DumpError as e:
        return _fail(e, Exit.DUMP)
    except FaultError as e:
        return _fail(f"{args.dump}: the dump lacks memory that is needed ({e})", Exit.DUMP)
    except MemoryError:
        return _fail(f"{_subject(args)}: takes more memory than this process may have", Exit.DUMP)
    except BrokenPipeError:
        # The reader of a pipe went away: nobody is left to tell.
        drop_standard_output()
        return 0
    except OSError as e:  # of what is written, outfile tells
        what = e.filename or _subject(args)
        return _fail(f"{what}: cannot be read ({e.strerror or e})", Exit.DUMP)
    except Terminated:
        return _fail("terminated", Exit.TERMINATED)
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.INTERRUPTED)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        try:
            return make_parser().parse_args(argv)
        finally:
            sys.stdout.flush()  # help, or a completion script
    except BrokenPipeError:
        drop_standard_output()
        sys.exit(Exit.DONE)
    except OSError as e:
        sys.exit(_fail(str(not_written(e)), Exit.USAGE))


def _subject(args: argparse.Namespace) -> str:
    return str(getattr(args, "dump", args.command))


def _fail(error: ReliableError | str, status: int) -> int:
    _tell(str(error))
    return status


def _tell(text: str) -> None:
    with suppress(OSError):  # where nobody listens, the report is worth no less
        print(f"drgn-reliable: {visible(text)}", file=sys.stderr)


class _Teller(logging.Handler):
    """Tells what drgn itself says of a dump."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell(record.getMessage())


_DRGN = _Teller()


def _run(args: argparse.Namespace) -> int:
    if args.command == REASONS.name:
        with output(None) as out:
            run_reasons(args, out)
        return 0
    if args.command == "fleet":
        return run_fleet(args)
    check_target(args)
    if args.command == CAPSULE.name:
        return _capsule(args)
    kernel = Kernel(open_target(args, _watch, _say_stood_still))
    if args.command == INFO.name:
        with output(None) as out:
            run_info(kernel, args, out)
        return 0
    if args.command == KLP.name:
        with output(None) as out:
            found = run_klp(kernel, args, args.task, out, _progress)
        return klp_exit_code(found)
    if args.command == EXPLAIN.name:
        with output(None) as out:
            run_explain(kernel, args, args.task, out)
        _warn(args, Scanner(kernel).warnings())
        return 0
    scan = start_scan(kernel, args, args.task, _progress)
    with scan, output(args.output, [args.dump] if args.dump else []) as out:
        tally = write_scan(kernel, scan, args, out)
    _warn(args, scan.warnings)
    for problem in scan.problems:
        _fail(f"{args.dump}: {problem}", Exit.DUMP)
    return exit_code(scan, tally)


def _warn(args: argparse.Namespace, warnings: Iterable[str]) -> None:
    """Tell of what a table has told of already."""
    for warning in warnings if args.format != "table" else ():
        _tell(f"{args.dump}: warning: {warning}")


def _say_stood_still(snapshot: Snapshot) -> None:
    _tell(f"the guest stood still for {snapshot.seconds:.2f} seconds, and is {snapshot.status}")


def _capsule(args: argparse.Namespace) -> int:
    prog = open_target(args, _watch, _say_stood_still) if args.qemu else None
    with output_file(args.output):
        made = write_capsule(
            args.dump,
            args.output,
            args.symbols,
            vmcoreinfo=args.vmcoreinfo,
            wanted=args.task,
            text=args.add_text,
            crash=args.add_crash,
            progress=lambda tasks: _progress(tasks, 0),
            watch=_watch,
            prog=prog,
        )
    with output(None) as out:
        show_capsule(made, args, out)
    return 0


def _watch(file: BinaryIO, size: int, what: str) -> AbstractContextManager[BinaryIO]:
    """A bar for a file that is read from start to end."""
    bar = tqdm.wrapattr(file, "read", total=size, desc=what, leave=False, delay=1, disable=None)
    return cast(AbstractContextManager[BinaryIO], bar)


def _progress(tasks: Iterable[Task], total: int) -> Iterable[Task]:
    """A bar on a terminal, for what takes long enough to be noticed; nothing in a pipe."""
    bar: Iterable[Task] = tqdm(
        tasks, total=total or None, unit=" tasks", leave=False, delay=1, disable=None
    )
    return bar
