# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs in the process of one dump: limits for itself, one attempt, one answer.

The process writes lines of JSON to a pipe: how far it is (:class:`Said`), and at last a record or
why there is none. Whatever a dump does to it, nobody else sees more of it than that.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import msgspec
from drgn import FaultError

from drgn_reliable.errors import MissingInformation, ReliableError, UnsupportedKernel, UsageError
from drgn_reliable.facts import kernel_facts
from drgn_reliable.files.buildid import build_id_of
from drgn_reliable.files.kdump import KdumpFile
from drgn_reliable.files.notes import find_vmcoreinfo
from drgn_reliable.files.packed import unwatched
from drgn_reliable.files.source import DumpFormatError
from drgn_reliable.files.vmcoreinfo import values_of
from drgn_reliable.fleet.origin import add_origin, crash_time, node_of_file
from drgn_reliable.fleet.record import BadRecord, Record, clean, record_of
from drgn_reliable.kernel import Kernel
from drgn_reliable.livepatch import analyse
from drgn_reliable.memory import missing
from drgn_reliable.model import TaskReport
from drgn_reliable.opening import inspect_dump, open_dump
from drgn_reliable.report import Scanner, collector_paused
from drgn_reliable.tasks import Task
from drgn_reliable.transition import LivepatchReport

__all__ = ("Order", "Rung", "Said", "peak_memory", "run", "said_of")

_SAY_EVERY = 0.3
"""Seconds."""
_PR_SET_PDEATHSIG = 1
_NUL = re.compile(rb"(?<!\\)(\\\\)*\\u0000")
"""In JSON."""

Rung = str
"""``debug information``, ``BTF`` or ``headers``."""


class Order(msgspec.Struct, kw_only=True):
    """What the process is to do."""

    dump: str
    rung: Rung
    symbols: tuple[str, ...] = ()
    """Debug files of kernels, of which those that fit are taken."""
    vmcoreinfo: str | None = None
    memory: int
    """The most of its own memory that it may have, in bytes."""
    parent: int
    """The process that waits for it, without which it ends."""
    pipe: int
    """The file descriptor to write to."""


class Said(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line from the process."""

    stage: str = ""
    """What it does from now on."""
    done: int = 0
    total: int = 0
    """Tasks."""
    debug: bool | None = None
    """Whether types come from debug information, once that is known."""
    outcome: str = ""
    """Of the whole attempt, with ``detail`` or ``record``; it is the last line then."""
    detail: str = ""
    record: Record | None = None
    memory: int = 0
    """The most that the process had, in bytes; with the outcome."""


Say = Callable[[Said], None]


def said_of(line: bytes) -> Said:
    """What a line says.

    :raises BadRecord: if it is none that this process writes: what has read a damaged dump is not
        trusted.
    """
    if _NUL.search(line):
        raise BadRecord("it has a NUL")
    try:
        said = msgspec.json.decode(line, type=Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadRecord(str(e)) from e
    if said.outcome not in _SAID_OUTCOMES:
        raise BadRecord(f"the outcome {said.outcome!r}")
    if (said.outcome in ("scanned", "read")) is not (said.record is not None):
        raise BadRecord(f"{said.outcome or 'no outcome'} and {'a' if said.record else 'no'} record")
    if said.record:
        said.record.check()
    return said


def run(data: bytes) -> None:
    """Do what an :class:`Order`, as JSON, says."""
    order = msgspec.convert(json.loads(data), Order)
    _limit(order)

    def say(said: Said) -> None:
        left = msgspec.json.encode(said) + b"\n"
        while left:
            left = left[os.write(order.pipe, left) :]

    answer = _attempt(order, say)
    answer.memory = peak_memory(os.getpid())
    say(answer)


def peak_memory(process: int) -> int:
    """The most that a process has had in memory, in bytes, mapped files included; 0 if it is gone.

    What ``wait4`` tells includes what its parent had when it was forked.
    """
    try:
        with open(f"/proc/{process}/status", encoding="utf-8") as file:
            found = re.search(r"^VmHWM:\s+([0-9]+) kB$", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) << 10 if found else 0


def _limit(order: Order) -> None:
    """Keep to the limits, leave no core file, and end when nobody waits any more."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Counts anonymous memory, and not the dump that is mapped (Linux 4.7).
    resource.setrlimit(resource.RLIMIT_DATA, (order.memory, order.memory))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != order.parent:
        os._exit(1)


_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (DumpFormatError, "format"),
    (UnsupportedKernel, "unsupported"),
    (MissingInformation, "missing"),
    (ReliableError, "refused"),
    (FaultError, "missing"),
    (OSError, "unreadable"),
    (MemoryError, "memory"),
)
"""What an exception says of a dump; any other is a defect of this package."""
_SAID_OUTCOMES = {"", "scanned", "read", "defect", *(word for _, word in _OUTCOMES)}


def _attempt(order: Order, say: Say) -> Said:
    try:
        if order.rung == "headers":
            return Said(outcome="read", record=_headers(order))
        return Said(outcome="scanned", record=_scan(order, say))
    except Exception as e:
        outcome = next((word for kind, word in _OUTCOMES if isinstance(e, kind)), "defect")
        if outcome == "defect":
            traceback.print_exc()
        detail = str(e).removeprefix(f"{order.dump}: ") or type(e).__name__
        if outcome == "memory":
            detail = f"more than {order.memory >> 20} MiB of memory"
        return Said(outcome=outcome, detail=clean(detail))


# A scan -------------------------------------------------------------------------------------


def _scan(order: Order, say: Say) -> Record:
    def watch(file: BinaryIO, size: int, what: str) -> AbstractContextManager[BinaryIO]:
        say(Said(stage=what))
        return unwatched(file, size, what)

    def choose(build_id: bytes | None) -> Sequence[str]:
        say(Said(stage="looking for debug information"))
        if order.rung == "BTF":
            return ()
        return [file for file in order.symbols if build_id and _build_id(file) == build_id]

    say(Said(stage="opening"))
    searching = order.rung != "BTF"
    prog = open_dump(order.dump, choose, watch, order.vmcoreinfo, searching)
    say(Said(stage="symbols and types"))
    kernel = Kernel(prog)
    say(Said(stage="walking", debug=kernel.has_debug_information))
    scanner, reports = Scanner(kernel), {}
    with collector_paused():
        for task in _told(kernel.tasks, kernel.expected_tasks(), say):
            reports[task.address] = scanner.report(task)
    say(Said(stage="livepatches and facts"))
    report = scanner.dump_report(order.dump, reports.values())
    livepatch, facts, lacking = _more(kernel, reports)
    record = record_of(report, livepatch, facts)
    if lacking:
        record.status, record.problems = "incomplete", (*record.problems, *lacking)
    add_origin(record, kernel)
    return record


def _build_id(path: str) -> bytes:
    """Of a debug file; one that cannot be read here fits no dump."""
    try:
        return build_id_of(path)
    except UsageError:
        return b""


def _told(tasks: Iterable[Task], total: int, say: Say) -> Iterator[Task]:
    """Tasks, telling now and then how many there have been."""
    said = time.monotonic()
    for done, task in enumerate(tasks):
        if done % 64 == 0 and time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            say(Said(stage="walking", done=done, total=max(done, total)))
        yield task


def _more(
    kernel: Kernel, reports: dict[int, TaskReport]
) -> tuple[LivepatchReport | None, dict[str, Any] | None, list[str]]:
    """Livepatches, facts, and what was missing for them: no reason to lose the tasks."""
    livepatch, facts, lacking = None, None, []
    try:
        livepatch = analyse(kernel, report_of=lambda task: reports[task.address])
    except (FaultError, LookupError) as e:
        lacking.append(f"livepatches: {missing(e)}")
    try:
        facts = kernel_facts(kernel)
    except (FaultError, LookupError) as e:
        lacking.append(f"facts of the kernel: {missing(e)}")
    return livepatch, facts, lacking


# What is left without a scan -----------------------------------------------------------------


def _headers(order: Order) -> Record:
    """What the headers and VMCOREINFO of a dump say that cannot be scanned."""
    dump = inspect_dump(order.dump)
    note = find_vmcoreinfo(dump.file.notes, little_endian=dump.file.little_endian)
    text = note.description.rstrip(b"\0").decode("ascii", "replace") if note else ""
    values = values_of(text)
    uts = dump.file.header.uts if isinstance(dump.file, KdumpFile) else None
    return Record(
        status="failed",
        stored=dump.stored,
        release=clean(values.get("OSRELEASE") or (uts.release if uts else "")) or None,
        architecture=dump.file.machine or None,
        node=node_of_file(dump),
        crashed=crash_time(values),
        problems=dump.problems,
    )
