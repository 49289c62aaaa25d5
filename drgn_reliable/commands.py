# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command once: its words, its arguments, and what it does.

:mod:`drgn_reliable.cli` offers the commands to a terminal, :mod:`drgn_reliable.plugin` to drgn's
shell; both take everything from here, so that they cannot drift apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TextIO

from drgn_reliable.command import Command, argument
from drgn_reliable.errors import UsageError
from drgn_reliable.exits import GENERAL, Exit
from drgn_reliable.explain import explain_task
from drgn_reliable.explanation import Explanation
from drgn_reliable.facts import kernel_facts
from drgn_reliable.fleet.onedump import one_dump_report
from drgn_reliable.kernel import Kernel
from drgn_reliable.livepatch import analyse, analyse_living
from drgn_reliable.model import CapsuleSummary, DumpReport, KernelVerdict
from drgn_reliable.parallel import ParallelScanner, walkers_for
from drgn_reliable.reasons import CATALOGUE, SECTIONS, ReasonKind
from drgn_reliable.render import FORMATS, Style, render
from drgn_reliable.render.explanation import write_explanations, write_explanations_json
from drgn_reliable.render.livepatch import write_livepatch, write_livepatch_json
from drgn_reliable.render.machine import capsule_dict
from drgn_reliable.render.page import write_page
from drgn_reliable.render.table import write_capsule_summary, write_facts, write_reasons
from drgn_reliable.report import Scan, Scanner, collector_paused
from drgn_reliable.selection import ONLY, Filter, Tally, check_reasons
from drgn_reliable.tasks import Task
from drgn_reliable.transition import Decision, LivepatchReport

__all__ = (
    "CAPSULE",
    "EXPLAIN",
    "INFO",
    "KLP",
    "REASONS",
    "SCAN",
    "exit_code",
    "klp_exit_code",
    "run_explain",
    "run_info",
    "run_klp",
    "run_reasons",
    "show_capsule",
    "start_scan",
    "write_scan",
)


_VERDICTS = """\
Two verdicts stand side by side. KERNEL is what the dumped kernel's own
stack_trace_save_tsk_reliable() would have answered for the task: reliable,
unreliable, running (on a CPU, not asked) or unsupported. PROOF is what the dump
can show: proven, refuted or undecided. REASON names what is wrong, with the section of
the kernel's reliable-stacktrace document; `reasons` explains each."""

_FORMAT_ARGUMENT = argument(
    "--format",
    choices=("table", "html", *FORMATS),
    default="table",
    help="table for people (default), html for a browser; json, jsonl, csv, folded and speedscope "
    "(for flame graphs) for machines",
)

_FACTS_FORMAT = argument(
    "--format",
    choices=("table", "json"),
    default="table",
    help="table for people (default) or json for machines",
)

SCAN = Command(
    "scan",
    "say of every task whether its kernel stack trace is reliable, and why not",
    _VERDICTS,
    """\
  drgn-reliable scan vmcore                        every task, what matters first
  drgn-reliable scan vmcore --only unreliable -v   traces and reasons of the unreliable
  drgn-reliable scan vmcore --task 1 --task 0xffff888100be8000 -v
  drgn-reliable scan vmcore --group                identical stacks once
  drgn-reliable scan vmcore --format json -o report.json
  drgn-reliable scan vmcore --format html -o report.html
  drgn-reliable scan vmcore --format folded | flamegraph.pl > stacks.svg
""",
    (
        argument(
            "--only",
            action="append",
            choices=tuple(ONLY),
            default=[],
            help="only tasks with this verdict or of this kind; may be given more than once",
        ),
        argument(
            "--reason",
            action="append",
            metavar="ID",
            default=[],
            help="only tasks with this reason (see the reasons command); may be repeated",
        ),
        _FORMAT_ARGUMENT,
        argument(
            "-v",
            "--verbose",
            action="store_true",
            help="show every frame, how it was found, and every reason",
        ),
        argument(
            "--group",
            action="store_true",
            help="show identical stacks once, with the tasks that share them",
        ),
        argument(
            "--all",
            action="store_true",
            help="give every task a line of its own; without it, of more than a thousand tasks "
            "those that are alike share one",
        ),
    ),
    {
        Exit.DONE: "no task is unreliable (tasks running on a CPU do not count)",
        Exit.FOUND: "at least one of the tasks reported is unreliable, or the kernel has no "
        "reliable stack trace",
        Exit.USAGE: GENERAL[Exit.USAGE],
        Exit.DUMP: "the dump cannot be opened, lacks what is needed, or could not be read whole",
    },
)

REASONS = Command(
    "reasons",
    "list the reasons that make a trace unreliable",
    "List the catalogue of reasons: the section of the kernel's reliable-stacktrace "
    "document, whether the kernel itself refuses the trace because of it or accepts it "
    "(advisory), and what it does to the proof.",
    """\
  drgn-reliable reasons                   all of them, a line each
  drgn-reliable reasons kprobe-slot       all that is known of one
  drgn-reliable reasons --section 4.4     a section's
""",
    (
        argument("id", nargs="*", metavar="ID", help="only these reasons, in full"),
        argument(
            "--section",
            choices=tuple(SECTIONS),
            help="only the reasons of a section of the document",
        ),
        _FACTS_FORMAT,
        argument("-v", "--verbose", action="store_true", help="show all that is known of each"),
    ),
    {Exit.DONE: "the reasons were listed", Exit.USAGE: GENERAL[Exit.USAGE]},
)

INFO = Command(
    "info",
    "show what kernel a dump holds and what makes its traces unreliable as such",
    "Show the dumped kernel's release, architecture and unwinder, where types and symbols "
    "come from, whether it supports livepatch and reliable stack traces, what unwind data it "
    "has, what has tainted it, and which tracers, probes, BPF code and livepatches change its "
    "code. Lines that begin with `preflight` say what makes traces unreliable whatever the "
    "task. What the dump would have to hold is `not in this dump`; what this kernel does not "
    "have at all is left out (null in JSON).",
    """\
  drgn-reliable info vmcore
  drgn-reliable info vmcore --format json
""",
    (_FACTS_FORMAT,),
    {
        Exit.DONE: "what is known was shown",
        Exit.USAGE: GENERAL[Exit.USAGE],
        Exit.DUMP: "the dump cannot be opened or lacks what is needed",
    },
)

EXPLAIN = Command(
    "explain",
    "show how a task's verdicts came about, step by step",
    "Walk a task's stack step by step: for each frame the rule that leads to its caller as a "
    "formula, who gives it (the kernel's own unwinder, DWARF or SFrame call frame information), "
    "the words that were read, what was noted, and how far the kernel itself would have come. "
    "Then draw the stacks: which word is a return address, a saved register, a part of a struct "
    "pt_regs, and what merely looks like code.",
    """\
  drgn-reliable explain vmcore 4711
  drgn-reliable explain vmcore 0xffff888100be8000 --words all
  drgn-reliable explain vmcore 1 --symbols vmlinux --symbols mod.ko.debug
""",
    (
        argument(
            "--words",
            choices=("marked", "all", "none"),
            default="marked",
            help="which words of the stacks to show: those that the walk or their value says "
            "something about (default), all, or none",
        ),
        _FACTS_FORMAT,
    ),
    {
        Exit.DONE: "the tasks were explained",
        Exit.USAGE: "usage: an argument is wrong, or there is no such task",
        Exit.DUMP: "the dump cannot be opened or lacks what is needed",
    },
    """\
In formulas, *x is the word at x, and cfa the stack pointer before the call; all is
assigned at once, but for cfa, which the others use. The first rule is followed; those after
`also` are what it is held against. Where they lead to different callers, that is the reason
providers-disagree. A scan looks for it in the tasks that the kernel refuses or that something
is held against; explain does for every task.
""",
)

KLP = Command(
    "klp",
    "say why a livepatch transition does not finish",
    "Show the livepatches of the dumped kernel and, while one is being applied or removed, every "
    "task that has not switched: what the kernel decides on it at each attempt (running, "
    "unreliable stack, sleeping on a function of the patch), all such functions on its stack, what "
    "it waits for, and what to do. What the kernel's own log says of each task is compared.",
    """\
  drgn-reliable klp vmcore                      why does it not finish
  drgn-reliable klp vmcore -v                   with stacks and every patched function
  drgn-reliable klp vmcore --only sleeping      one kind only
  drgn-reliable klp vmcore --format json
""",
    (
        argument(
            "--only",
            action="append",
            choices=[decision.value for decision in Decision],
            default=[],
            help="only tasks with this decision; may be given more than once",
        ),
        _FACTS_FORMAT,
        argument(
            "-v",
            "--verbose",
            action="store_true",
            help="show whole stacks, and every function of every patch",
        ),
    ),
    {
        Exit.DONE: "no transition, or all tasks would switch at the next attempt",
        Exit.FOUND: "stalled: at least one task cannot be switched",
        Exit.USAGE: GENERAL[Exit.USAGE],
        Exit.DUMP: "the dump cannot be opened, lacks what is needed, or could not be read whole",
    },
)

CAPSULE = Command(
    "capsule",
    "write a small dump that holds only what the analysis reads",
    "Write a capsule: a kdump-compressed dump of the same kernel, a few megabytes large, that "
    "holds only the pages which the analysis touches. It gives the same report as the original, "
    "opens in plain drgn, and can be sent with a bug report. Kernel stacks can hold secrets "
    "(keys, file names, user data): look at who will read it.",
    """\
  drgn-reliable capsule vmcore -o small.kdump
  drgn-reliable capsule vmcore -o one.kdump --task 4711
  drgn-reliable capsule vmcore -o code.kdump --add-text   for drgn to disassemble
  drgn-reliable capsule vmcore -o big.kdump --add-crash   opens in crash, too (x86_64)
""",
    (
        argument(
            "--add-text",
            action="store_true",
            help="keep the code of the kernel and its modules",
        ),
        argument(
            "--add-crash",
            action="store_true",
            help="keep what the crash utility reads: whole stacks, task structures, the kernel log",
        ),
        _FACTS_FORMAT,
    ),
    {
        Exit.DONE: "the capsule was written and gives the same report",
        Exit.USAGE: "usage: an argument is wrong, or the capsule cannot be written",
        Exit.DUMP: "the dump cannot be opened, or the capsule would not give the same report",
    },
    """\
With --task, a scan of the capsule needs the same --task: of other tasks it has the task
structure at most, and says that their stacks are not there.
""",
)

Progress = Callable[[Iterable[Task], int], Iterable[Task]]


def _no_progress(tasks: Iterable[Task], total: int) -> Iterable[Task]:
    return tasks


def start_scan(
    kernel: Kernel,
    args: argparse.Namespace,
    wanted: Sequence[str],
    progress: Progress = _no_progress,
) -> Scan:
    """A scan of the wanted tasks (all if none is named), of which none has been walked yet.

    :param wanted: PIDs or task addresses.
    :raises UsageError: if an argument is wrong.
    """
    passes = Filter(args.only, args.reason)
    if args.format != "table" and (args.verbose or args.group or args.all):
        raise UsageError(
            "--verbose, --group and --all are for tables; "
            f"--format {args.format} has every task and frame"
        )
    every = kernel.tasks
    tasks = every.select(wanted) if wanted else progress(every, kernel.expected_tasks())
    # The page needs all reports at once, which is memory enough.
    hurry = args.format != "html"
    walkers = 0 if wanted else walkers_for(kernel, getattr(args, "jobs", 1), hurry=hurry)
    if walkers:
        scanner: Scanner = ParallelScanner(kernel, walkers, args.symbols or (), args.vmcoreinfo)
    else:
        scanner = Scanner(kernel)
    return Scan(scanner, tasks, passes if args.only or args.reason else None)


def write_scan(
    kernel: Kernel, report: Scan | DumpReport, args: argparse.Namespace, out: TextIO
) -> Tally:
    """Write a report, and say how many tasks were what."""
    with collector_paused():
        if args.format == "html":
            whole = report.whole() if isinstance(report, Scan) else report
            write_page(one_dump_report(kernel, whole), out)
            return Tally.of(whole.tasks)
        return render(report, args.format, Style(args.verbose, args.group, args.all), out)


def exit_code(report: Scan | DumpReport, tally: Tally) -> Exit:
    """The exit status that the scan's help documents."""
    if report.problems:
        return Exit.DUMP
    verdicts = tally.counts()["kernel"]
    bad = (KernelVerdict.UNRELIABLE, KernelVerdict.UNSUPPORTED)
    return Exit.FOUND if any(verdicts[verdict.value] for verdict in bad) else Exit.DONE


def run_explain(
    kernel: Kernel, args: argparse.Namespace, wanted: Sequence[str], out: TextIO
) -> list[Explanation]:
    """Explain the walks of the wanted tasks and return the explanations.

    :param wanted: PIDs or task addresses.
    :raises UsageError: if there is no such task.
    """
    found = [explain_task(kernel, task) for task in kernel.tasks.select(wanted)]
    warnings = Scanner(kernel).warnings()
    if args.format == "json":
        write_explanations_json(found, warnings, out)
    else:
        write_explanations(found, warnings, out, args.words)
    return found


def run_klp(
    kernel: Kernel,
    args: argparse.Namespace,
    wanted: Sequence[str],
    out: TextIO,
    progress: Progress = _no_progress,
) -> LivepatchReport:
    """Write why the livepatch transition does not finish and return the report, which has every
    task that was looked at, shown or not.

    :param wanted: PIDs or task addresses; all if none is named.
    :raises UsageError: if there is no such task.
    """
    every = kernel.tasks
    chosen = {task.address for task in every.select(wanted)} if wanted else None
    with collector_paused():
        tasks = progress(every, kernel.expected_tasks())
        look = analyse_living if kernel.live else analyse
        report = look(kernel, tasks, chosen)
    shown = report
    if args.only:
        fitting = tuple(task for task in report.tasks if task.decision.value in args.only)
        shown = replace(report, tasks=fitting)
    if args.format == "json":
        write_livepatch_json(shown, out)
    else:
        write_livepatch(shown, out, verbose=args.verbose)
    return report


def klp_exit_code(report: LivepatchReport) -> Exit:
    """The exit status that the command's help documents."""
    if report.problems:
        return Exit.DUMP
    return Exit.FOUND if report.stalled else Exit.DONE


def run_reasons(args: argparse.Namespace, out: TextIO) -> list[ReasonKind]:
    """Write the wanted rows of the catalogue and return them.

    :raises UsageError: for an identifier that is not in the catalogue.
    """
    check_reasons(args.id)
    kinds = [
        kind
        for kind in CATALOGUE.values()
        if (not args.id or kind.id in args.id) and args.section in (None, kind.section)
    ]
    if args.format == "json":
        rows = [
            {**kind._asdict(), "proof": kind.proof.value, "advisory": kind.advisory}
            for kind in kinds
        ]
        out.write(json.dumps(rows, indent=1) + "\n")
    else:
        write_reasons(kinds, out, details=bool(args.id) or args.verbose)
    return kinds


def run_info(kernel: Kernel, args: argparse.Namespace, out: TextIO) -> dict[str, Any]:
    """Write what is known of the kernel and return it."""
    facts = kernel_facts(kernel)
    if args.format == "json":
        out.write(json.dumps(facts, indent=1) + "\n")
    else:
        write_facts(facts, out)
    return facts


def show_capsule(made: CapsuleSummary, args: argparse.Namespace, out: TextIO) -> None:
    """Say what is in a capsule that was written, and what was left out."""
    if args.format == "json":
        out.write(json.dumps(capsule_dict(made), indent=1) + "\n")
    else:
        write_capsule_summary(made, out)
