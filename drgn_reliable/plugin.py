# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands in drgn's interactive shell: ``%reliable``, ``%unreliable``, ``%klp``,
``%reliable-explain``, ``%reliable-reasons``. drgn imports this module through its entry point
group ``drgn.plugins``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drgn import Program
from drgn.commands import CommandArgumentError, CommandError, argument
from drgn.commands.linux import linux_kernel_command

from drgn_reliable.command import Command
from drgn_reliable.commands import (
    EXPLAIN,
    KLP,
    REASONS,
    SCAN,
    run_explain,
    run_klp,
    run_reasons,
    start_scan,
    write_scan,
)
from drgn_reliable.errors import ReliableError, UsageError
from drgn_reliable.explanation import Explanation
from drgn_reliable.kernel import Kernel
from drgn_reliable.model import DumpReport
from drgn_reliable.reasons import ReasonKind
from drgn_reliable.render.visible import visible
from drgn_reliable.transition import LivepatchReport

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


def _scan(prog: Program, args: argparse.Namespace) -> DumpReport:
    if len(args.task) == 1:
        args.verbose = args.format == "table" and not args.group
    return _scanned(prog, args)


def _scanned(prog: Program, args: argparse.Namespace) -> DumpReport:
    kernel = _kernel(prog)
    report = start_scan(kernel, args, args.task).whole()
    write_scan(kernel, report, args, sys.stdout)
    return report


def _unreliable(prog: Program, args: argparse.Namespace) -> DumpReport:
    args.only = [*args.only, "unreliable"]
    args.verbose = args.format == "table" and not args.group
    return _scanned(prog, args)


def _klp(prog: Program, args: argparse.Namespace) -> LivepatchReport:
    return run_klp(_kernel(prog), args, args.task, sys.stdout)


def _explain(prog: Program, args: argparse.Namespace) -> list[Explanation]:
    if not args.task:
        raise UsageError("name a task: its PID or the address of its task_struct")
    return run_explain(_kernel(prog), args, args.task, sys.stdout)


def _reasons(prog: Program, args: argparse.Namespace) -> list[ReasonKind]:
    return run_reasons(args, sys.stdout)


@dataclass(frozen=True)
class _Offer:
    """A command of drgn's shell."""

    name: str
    command: Command
    run: Callable[[Program, argparse.Namespace], Any]
    result: str
    """What the command returns, for its help."""
    tasks: argument | None = _TASKS
    summary: str = ""
    description: str = ""
    """Where they are others than the command's own."""

    def register(self) -> None:
        """Make it known to drgn."""
        tasks = () if self.tasks is None else (self.tasks,)

        @linux_kernel_command(  # type: ignore[untyped-decorator]
            name=self.name,
            description=self.summary or self.command.summary,
            long_description=self.description or self.command.description,
            epilog=f"The result is {self.result}.",
            arguments=(*tasks, *_arguments(self.command), _HELP),
        )
        def _cmd(
            prog: Program,
            name: str,
            args: argparse.Namespace,
            *,
            parser: argparse.ArgumentParser,
            **kwargs: Any,
        ) -> Any:
            if args.help:
                parser.print_help(sys.stdout)
                return None
            try:
                return self.run(prog, args)
            except UsageError as e:
                raise CommandArgumentError(visible(str(e))) from e
            except ReliableError as e:
                raise CommandError(visible(str(e))) from e


for _offer in (
    _Offer("reliable", SCAN, _scan, "the report (drgn_reliable.DumpReport)"),
    _Offer(
        "unreliable",
        SCAN,
        _unreliable,
        "the report (drgn_reliable.DumpReport)",
        summary="show the traces and reasons of the unreliable tasks",
        description="Short for %reliable --only unreliable --verbose.",
    ),
    _Offer("klp", KLP, _klp, "the report (drgn_reliable.transition.LivepatchReport)"),
    _Offer(
        "reliable-explain",
        EXPLAIN,
        _explain,
        "a list of drgn_reliable.explanation.Explanation",
        _ONE_OR_MORE,
    ),
    _Offer(
        "reliable-reasons",
        REASONS,
        _reasons,
        "a list of rows of the catalogue (drgn_reliable.reasons.ReasonKind)",
        None,
    ),
):
    _offer.register()
