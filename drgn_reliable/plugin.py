# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands in drgn's interactive shell: ``%reliable``, ``%unreliable``, ``%klp``,
``%reliable-explain``, ``%reliable-reasons``. drgn imports this module through its entry point
group ``drgn.plugins``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from drgn import Program
from drgn.commands import CommandArgumentError, argument
from drgn.commands.linux import linux_kernel_command

from drgn_reliable.commands import (
    EXPLAIN,
    KLP,
    REASONS,
    SCAN,
    Command,
    run_explain,
    run_klp,
    run_reasons,
    run_scan,
)
from drgn_reliable.errors import UsageError
from drgn_reliable.explanation import Explanation
from drgn_reliable.kernel import Kernel
from drgn_reliable.livepatch import LivepatchReport
from drgn_reliable.model import DumpReport
from drgn_reliable.reasons import ReasonKind

__all__ = ()

_CACHE = "drgn_reliable.kernel"

_HELP = argument("-h", "--help", action="store_true", help="show this help and return")
_TASKS = argument(
    "task",
    nargs="*",
    metavar="PID|ADDR",
    help="threads (PID 0: the idle tasks) or task_struct addresses; all if none is given",
)

_ONE_OR_MORE = argument(
    "task",
    nargs="*",
    metavar="PID|ADDR",
    help="threads (PID 0: the idle tasks) or task_struct addresses",
)


def _arguments(command: Command) -> tuple[argument, ...]:
    return tuple(argument(*a.names, **a.options) for a in command.arguments)


def _kernel(prog: Program) -> Kernel:
    """The program's kernel, opened once; of a running one the lists change, so anew each time."""
    live = bool(prog.flags & prog.flags.IS_LIVE)
    if live or _CACHE not in prog.cache:
        prog.cache[_CACHE] = Kernel(prog)
    kernel: Kernel = prog.cache[_CACHE]
    return kernel


def _scan(prog: Program, args: argparse.Namespace, parser: argparse.ArgumentParser) -> Any:
    if args.help:
        parser.print_help(sys.stdout)
        return None
    try:
        return run_scan(_kernel(prog), args, args.task, sys.stdout)
    except UsageError as e:
        raise CommandArgumentError(str(e)) from e


@linux_kernel_command(  # type: ignore[untyped-decorator]
    name="reliable",
    description=SCAN.summary,
    long_description=SCAN.description,
    epilog="The result is the report (drgn_reliable.DumpReport).",
    arguments=(_TASKS, *_arguments(SCAN), _HELP),
)
def _cmd_reliable(
    prog: Program,
    name: str,
    args: argparse.Namespace,
    *,
    parser: argparse.ArgumentParser,
    **kwargs: Any,
) -> DumpReport | None:
    if len(args.task) == 1:
        args.verbose = args.format == "table" and not args.group
    report: DumpReport | None = _scan(prog, args, parser)
    return report


@linux_kernel_command(  # type: ignore[untyped-decorator]
    name="unreliable",
    description="show the traces and reasons of the unreliable tasks",
    long_description="Short for %reliable --only unreliable --verbose.",
    epilog="The result is the report (drgn_reliable.DumpReport).",
    arguments=(_TASKS, *_arguments(SCAN), _HELP),
)
def _cmd_unreliable(
    prog: Program,
    name: str,
    args: argparse.Namespace,
    *,
    parser: argparse.ArgumentParser,
    **kwargs: Any,
) -> DumpReport | None:
    args.only = [*args.only, "unreliable"]
    args.verbose = args.format == "table" and not args.group
    report: DumpReport | None = _scan(prog, args, parser)
    return report


@linux_kernel_command(  # type: ignore[untyped-decorator]
    name="klp",
    description=KLP.summary,
    long_description=KLP.description,
    epilog="The result is the report (drgn_reliable.livepatch.LivepatchReport).",
    arguments=(_TASKS, *_arguments(KLP), _HELP),
)
def _cmd_klp(
    prog: Program,
    name: str,
    args: argparse.Namespace,
    *,
    parser: argparse.ArgumentParser,
    **kwargs: Any,
) -> LivepatchReport | None:
    if args.help:
        parser.print_help(sys.stdout)
        return None
    try:
        return run_klp(_kernel(prog), args, args.task, sys.stdout)
    except UsageError as e:
        raise CommandArgumentError(str(e)) from e


@linux_kernel_command(  # type: ignore[untyped-decorator]
    name="reliable-explain",
    description=EXPLAIN.summary,
    long_description=EXPLAIN.description,
    epilog="The result is a list of drgn_reliable.explanation.Explanation.",
    arguments=(_ONE_OR_MORE, *_arguments(EXPLAIN), _HELP),
)
def _cmd_reliable_explain(
    prog: Program,
    name: str,
    args: argparse.Namespace,
    *,
    parser: argparse.ArgumentParser,
    **kwargs: Any,
) -> list[Explanation] | None:
    if args.help:
        parser.print_help(sys.stdout)
        return None
    if not args.task:
        raise CommandArgumentError("name a task: its PID or the address of its task_struct")
    try:
        return run_explain(_kernel(prog), args, args.task, sys.stdout)
    except UsageError as e:
        raise CommandArgumentError(str(e)) from e


@linux_kernel_command(  # type: ignore[untyped-decorator]
    name="reliable-reasons",
    description=REASONS.summary,
    long_description=REASONS.description,
    arguments=(*_arguments(REASONS), _HELP),
)
def _cmd_reliable_reasons(
    prog: Program,
    name: str,
    args: argparse.Namespace,
    *,
    parser: argparse.ArgumentParser,
    **kwargs: Any,
) -> list[ReasonKind] | None:
    if args.help:
        parser.print_help(sys.stdout)
        return None
    try:
        return run_reasons(args, sys.stdout)
    except UsageError as e:
        raise CommandArgumentError(str(e)) from e
