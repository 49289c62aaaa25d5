# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands of ``drgn-reliable fleet``: their words, their arguments, and what they do."""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import BinaryIO

from drgn_reliable.command import Command, argument, at_least
from drgn_reliable.errors import UsageError
from drgn_reliable.exits import Exit
from drgn_reliable.fleet.changes import Changes, Earlier, changes_between, changes_since
from drgn_reliable.fleet.engines import DaskEngine, Engine, EngineLost, LocalEngine
from drgn_reliable.fleet.events import Event, line_of
from drgn_reliable.fleet.groups import all_stacks
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.questions import QUESTIONS, answer, ask
from drgn_reliable.fleet.report import fleet_report
from drgn_reliable.fleet.scan import Tally, scan_fleet
from drgn_reliable.fleet.sources import read_sources
from drgn_reliable.fleet.store import Store
from drgn_reliable.outfile import drop_standard_output, output
from drgn_reliable.render.flames import FLAMES, Stack, write_stacks
from drgn_reliable.render.fleet import (
    ANSWER_FORMATS,
    REPORT_FORMATS,
    write_answer,
    write_questions,
    write_report,
    write_tally,
)
from drgn_reliable.render.progress import FleetProgress
from drgn_reliable.render.visible import visible

__all__ = ("FLEET", "Terminated", "run_fleet")

SCAN = Command(
    "scan",
    "scan many dumps, each in a process of its own, into a store",
    "Find the dumps in directories, behind patterns and in manifests (by content, not by name), "
    "scan each in a process of its own with limits of time and memory, and keep what was found "
    "in an SQLite file. A dump that was scanned before is not scanned again, unless it has "
    "changed; an interrupted scan goes on where it stopped. A dump that cannot be scanned "
    "becomes a record that says why.",
    """\
  drgn-reliable fleet scan /var/crash --store fleet.db
  drgn-reliable fleet scan '/crash/*/vmcore' fleet.yaml --store fleet.db --jobs 8
  drgn-reliable fleet scan /crash --store fleet.db --events events.jsonl
  drgn-reliable fleet scan /crash --store fleet.db --engine dask --scheduler tcp://head:8786
""",
    (
        argument("paths", nargs="+", metavar="PATH|GLOB|MANIFEST", help="what to scan"),
        argument("--store", required=True, metavar="FILE", help="the SQLite file to add to"),
        argument(
            "--jobs",
            type=at_least(int, 1),
            default=len(os.sched_getaffinity(0)),
            metavar="N",
            help="how many dumps at a time (default: as many as this machine has CPUs)",
        ),
        argument(
            "--timeout",
            type=at_least(float, 0.001),
            default=Limits().seconds,
            metavar="S",
            help="seconds for each attempt at a dump (default: %(default)g)",
        ),
        argument(
            "--memory",
            type=at_least(int, 128),
            default=Limits().memory >> 20,
            metavar="MB",
            help="MiB of memory for each process, the mapped dump not counted (default: "
            "%(default)s)",
        ),
        argument(
            "--engine",
            choices=("local", "dask"),
            default="local",
            help="processes of this machine (default), or the workers of Dask",
        ),
        argument(
            "--scheduler",
            metavar="ADDR",
            help="Dask's scheduler, such as tcp://head:8786; without it, --engine dask starts "
            "--jobs workers here",
        ),
        argument(
            "--symbols",
            action="append",
            default=[],
            metavar="FILE",
            help="a kernel's vmlinux or debug file, used for the dumps that it fits; may be "
            "repeated",
        ),
        argument("--retry", action="store_true", help="scan again what failed before"),
        argument(
            "--events",
            metavar="FILE",
            help="write what happens as lines of JSON; - for standard output",
        ),
    ),
    {
        Exit.DONE: "every dump was scanned; no task is unreliable, no transition stalled",
        Exit.FOUND: "some tasks are unreliable, or a livepatch transition is stalled",
        Exit.USAGE: "usage: an argument is wrong, or a path holds nothing",
        Exit.DUMP: "some dumps could not be scanned, or not be read whole; the store says which "
        "and why",
        Exit.LOST: "the workers, Dask's scheduler or the store's disk were lost; the same command "
        "goes on where this one stopped",
        Exit.INTERRUPTED: "interrupted; the same command goes on",
        Exit.TERMINATED: "interrupted; the same command goes on",
    },
)

REPORT = Command(
    "report",
    "say what a fleet's store holds: what blocks which patch, on how many hosts",
    "Show what the dumps of a store have in common: what blocks livepatches, which reasons make "
    "traces unreliable and on which kernels, which dumps failed. The HTML form is one file that "
    "works offline, with every group of stacks.",
    """\
  drgn-reliable fleet report fleet.db
  drgn-reliable fleet report fleet.db --format html -o fleet.html
  drgn-reliable fleet report fleet.db --since 2026-11-01
  drgn-reliable fleet report fleet.db --compare last-month.db
  drgn-reliable fleet report fleet.db --by function --format csv
  drgn-reliable fleet report fleet.db --format speedscope -o fleet.speedscope.json
""",
    (
        argument("store", metavar="STORE", help="what `fleet scan` has written"),
        argument(
            "--format",
            choices=(*REPORT_FORMATS, "csv", *FLAMES),
            default="table",
            help="table for people (default), html for a browser; json, csv (with --by), folded "
            "and speedscope (for flame graphs) for machines",
        ),
        argument(
            "--by",
            choices=tuple(QUESTIONS),
            help="only one table of the report, as table, json or csv",
        ),
        argument(
            "--since",
            metavar="SCAN|DATE",
            help="say also what is new in the dumps that were scanned then or since",
        ),
        argument("--compare", metavar="OLD", help="say also what is not in an older store"),
        argument("-o", "--output", metavar="FILE", help="write to FILE, whole or not at all"),
    ),
    {
        Exit.DONE: "the report was written",
        Exit.USAGE: "usage: an argument is wrong, or the store cannot be read",
    },
)

QUERY = Command(
    "query",
    "ask a fleet's store a question, by name or in SQL",
    "Ask a store one of the questions of which the report is made, or any question in SQL; the "
    "store is only read. Without a question, list those that have a name.",
    """\
  drgn-reliable fleet query fleet.db
  drgn-reliable fleet query fleet.db blocking
  drgn-reliable fleet query fleet.db \\
    "SELECT path, detail FROM dump JOIN place ON place.dump = dump.id
    WHERE status = 'failed'" --format csv
""",
    (
        argument("store", metavar="STORE", help="what `fleet scan` has written"),
        argument("question", nargs="?", metavar="NAME|SQL", help="what to ask"),
        argument(
            "--format",
            choices=tuple(ANSWER_FORMATS),
            default="table",
            help="table for people (default), csv or json for machines",
        ),
        argument("-o", "--output", metavar="FILE", help="write to FILE, whole or not at all"),
    ),
    {
        Exit.DONE: "the answer was written",
        Exit.USAGE: "usage: an argument is wrong, or the store cannot be read",
    },
)

FLEET = (SCAN, REPORT, QUERY)


def run_fleet(args: argparse.Namespace) -> int:
    """Run one of :data:`FLEET` and return its exit status.

    :raises UsageError: if an argument is wrong.
    """
    if args.fleet == SCAN.name:
        return _scan(args)
    with _reading(args.store) as store:
        if args.fleet == REPORT.name:
            _report(store, args)
        else:
            _query(store, args)
    return 0


# Scan ----------------------------------------------------------------------------------------


def _scan(args: argparse.Namespace) -> int:
    if args.scheduler and args.engine != "dask":
        raise UsageError(f"--scheduler {args.scheduler}: only --engine dask has one")
    sources = read_sources(args.paths, args.symbols)
    limits = Limits(args.timeout, args.memory << 20)
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(_terminated())
        events = _Events(args.events, _events_file(args.events, stack))
        store = stack.enter_context(Store(args.store, write=True))
        engine = _engine(args)
        stack.callback(engine.close)
        progress = FleetProgress()
        stack.callback(progress.close)

        def listen(event: Event) -> None:
            progress(event)
            events.write(event)

        try:
            tally = scan_fleet(sources, store, engine, limits, retry=args.retry, listen=listen)
            failed = store.failed(tally.scan)
        except (EngineLost, sqlite3.Error) as e:
            lost = f"--store {args.store}: {e}; scan again to go on"
            said = str(e) if isinstance(e, EngineLost) else lost
            print(f"drgn-reliable: {visible(said)}", file=sys.stderr)
            return Exit.LOST
        progress.close()
        seconds = time.monotonic() - started
        with nullcontext(sys.stderr) if args.events == "-" else output(None) as out:
            write_tally(tally, failed, seconds, out)
    return _status(tally)


def _engine(args: argparse.Namespace) -> Engine:
    if args.engine == "dask":
        return DaskEngine(args.scheduler, args.jobs)
    return LocalEngine(args.jobs)


def _events_file(path: str | None, stack: ExitStack) -> BinaryIO | None:
    if path is None or path == "-":
        return sys.stdout.buffer if path else None
    if os.path.islink(path) and (os.path.isfile(path) or not os.path.exists(path)):
        raise UsageError(
            f"--events {path}: a symbolic link to a file, which anybody may have put there; name "
            "the file itself"
        )
    try:
        return stack.enter_context(open(path, "ab"))
    except OSError as e:
        raise UsageError(f"--events {path}: cannot be written ({e.strerror})") from e


class _Events:
    """Where events are written, as long as somebody reads them."""

    def __init__(self, path: str | None, file: BinaryIO | None) -> None:
        self._path, self._file = path, file

    def write(self, event: Event) -> None:
        """Write an event; a scan is not worth less because nobody can be told of it."""
        if self._file is None:
            return
        try:
            self._file.write(line_of(event))
            self._file.flush()
        except OSError as e:
            print(
                f"drgn-reliable: --events {visible(str(self._path))}: {e.strerror}; the scan goes "
                "on without",
                file=sys.stderr,
            )
            if self._path == "-":  # what is left in its buffer has nowhere to go
                drop_standard_output()
            else:
                with suppress(OSError):
                    self._file.close()
            self._file = None


def _status(tally: Tally) -> Exit:
    if tally.failed or tally.incomplete:
        return Exit.DUMP
    return Exit.FOUND if tally.unreliable or tally.stalled else Exit.DONE


class Terminated(KeyboardInterrupt):
    """SIGTERM came; the scan ends as it does by Ctrl-C."""


@contextmanager
def _terminated() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Report and query ----------------------------------------------------------------------------


@contextmanager
def _reading(path: str) -> Iterator[Store]:
    """A store that is only read; what is wrong in it is said of it.

    :raises UsageError: if it cannot be read, or holds what no scan has written.
    """
    with Store(path) as store:
        try:
            yield store
        except sqlite3.Error as e:
            raise UsageError(f"{path}: the store cannot be read ({e})") from e
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
            with Store(path) as again:
                if not (damage := again.damage()):
                    raise
            raise UsageError(f"{path}: the store is damaged ({damage})") from e


def _report(store: Store, args: argparse.Namespace) -> None:
    if args.by and args.format not in ANSWER_FORMATS:
        raise UsageError(f"--by {args.by}: as {', '.join(ANSWER_FORMATS)}, not {args.format}")
    if args.format == "csv" and not args.by:
        raise UsageError(f"--format csv is one table: say which with --by ({', '.join(QUESTIONS)})")
    read = [args.store, args.compare] if args.compare else [args.store]
    if args.by:
        found = answer(store, args.by)
        with output(args.output, read) as out:
            write_answer(found, args.format, out)
        return
    if args.format in FLAMES:
        stacks = [Stack(*each) for each in all_stacks(store)]
        with output(args.output, read) as out:
            write_stacks(stacks, args.format, store.path, out)
        return
    data = fleet_report(store, changes=_changes(store, args))
    with output(args.output, read) as out:
        write_report(data, args.format, out)


def _changes(store: Store, args: argparse.Namespace) -> Changes | None:
    if args.since and args.compare:
        raise UsageError("--since and --compare: give one of them")
    if args.since:
        return changes_since(store, args.since)
    if args.compare:
        with _reading(args.compare) as store_then:
            older = Earlier(store_then)
        return changes_between(store, older)
    return None


def _query(store: Store, args: argparse.Namespace) -> None:
    found = ask(store, args.question) if args.question is not None else None
    with output(args.output, [args.store]) as out:
        if found is None:
            write_questions(out)
        else:
            write_answer(found, args.format, out)
