# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stores of a fleet that a test spells out, a line for each task, and the records of real dumps."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema

from drgn_reliable.facts import kernel_facts
from drgn_reliable.fleet.groups import all_stacks
from drgn_reliable.fleet.identity import Identity, Stamp
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.questions import Answer
from drgn_reliable.fleet.record import (
    AttemptRecord,
    BlockerRecord,
    PatchRecord,
    PendingRecord,
    Record,
    TransitionRecord,
    record_of,
)
from drgn_reliable.fleet.report import fleet_report
from drgn_reliable.fleet.store import Store
from drgn_reliable.livepatch import analyse
from drgn_reliable.model import (
    Code,
    CodeKind,
    CodeRole,
    DumpReport,
    FoundBy,
    Frame,
    KernelAnswer,
    KernelVerdict,
    ProofAnswer,
    ProofVerdict,
    Reason,
    TaskKind,
    TaskReport,
)
from drgn_reliable.render.flames import Stack, write_stacks
from drgn_reliable.render.fleet import write_answer, write_report
from drgn_reliable.report import Scanner
from drgn_reliable.transition import LivepatchReport
from tests.conftest import scan_dump
from tests.dumps import VMCORES, Dump

LIMITS = Limits(seconds=10, memory=1 << 30)
OPTIONS = "options"
RELEASE = "6.12.107"
BASE = 0xFFFFFFFF81000000

_ERRNO = {"reliable": 0, "unreliable": -22, "running": -16, "unsupported": -38}
_ROLES = {"entry_SYSCALL_64": CodeRole.ENTRY, "ret_from_fork": CodeRole.ENTRY}
_FRAME = re.compile(r"(?P<symbol>[^+\[]+)(\+(?P<offset>0x[0-9a-f]+))?(\[(?P<module>\w+)\])?")


# Hand-made tasks ---------------------------------------------------------------------------------


def frame(text: str) -> Frame:
    """``symbol+0x10[module]``, where offset and module may be left out; or an address.

    >>> code = frame("vmlab_wait.cold+0x10[vmlab]").code
    >>> code.symbol, code.offset, code.module, frame("0xdead").code.symbol
    ('vmlab_wait.cold', 16, 'vmlab', None)
    """
    if text.startswith("0x"):
        code = Code(int(text, 16), CodeKind.UNKNOWN, None, 0, None, None, CodeRole.UNKNOWN)
        return Frame(code, 0, FoundBy.ORC)
    found = _FRAME.fullmatch(text)
    assert found is not None, text
    symbol, offset, module = found["symbol"], int(found["offset"] or "0x1", 16), found["module"]
    start = BASE + int(hashlib.sha1(symbol.encode()).hexdigest()[:6], 16) * 0x1000
    kind = CodeKind.MODULE if module else CodeKind.CORE
    role = _ROLES.get(symbol, CodeRole.FUNCTION)
    return Frame(Code(start + offset, kind, symbol, offset, module, None, role), 0, FoundBy.ORC)


def stack(text: str) -> tuple[Frame, ...]:
    """Frames, the innermost first."""
    return tuple(frame(word) for word in text.split())


class Row(NamedTuple):
    """A task: ``PID COMM KERNEL PROOF FRAME ... ! REASON ... @ DECISION FUNCTION ...``."""

    task: TaskReport
    decision: str
    functions: tuple[str, ...]


def row(text: str) -> Row:
    """Read one.

    >>> one = row("7 web unreliable refuted pipe_read vfs_read ! loop @ sleeping pipe_read")
    >>> one.task.comm, [f.function for f in one.task.frames], one.task.reasons[0].id
    ('web', ['pipe_read', 'vfs_read'], 'loop')
    >>> one.decision, one.functions
    ('sleeping', ('pipe_read',))
    """
    head, _, blocked = text.partition(" @ ")
    head, _, reasons = head.partition(" ! ")
    pid, comm, kernel, proof, *frames = head.split()
    report = TaskReport(
        task=0xFFFF888000000000 + int(pid),
        pid=int(pid),
        tgid=int(pid),
        cpu=int(pid) % 4,
        comm=comm,
        state="R" if kernel == "running" else "S",
        kind=TaskKind.USER,
        kernel=KernelAnswer(KernelVerdict(kernel), _ERRNO[kernel], ()),
        proof=ProofAnswer(ProofVerdict(proof), ()),
        frames=stack(" ".join(frames)),
        reasons=tuple(Reason(id, None, None, 0, "a test") for id in reasons.split()),
    )
    decision, *functions = blocked.split() or [""]
    return Row(report, decision, tuple(functions))


def record(*lines: str, patch: str | None = None, **known: Any) -> Record:
    """A dump of tasks.

    :param lines: see :class:`Row`.
    :param patch: in transition, which the tasks with a decision have not switched to.
    :param known: other members of the record; ``problems`` make it incomplete.
    """
    rows = [row(line) for line in lines]
    release, architecture = known.pop("release", RELEASE), known.pop("architecture", "x86_64")
    found = record_of(
        DumpReport(
            "vmcore", release, architecture, "ORC", "BTF", "kallsyms",
            tuple(each.task for each in rows), known.pop("problems", ()),
            known.pop("warnings", ()),
        )
    )  # fmt: skip
    if patch is not None:
        found.patches = (PatchRecord(patch, True, False, False),)
        found.pending = tuple(_pending(i, rows[i]) for i in range(len(rows)) if rows[i].decision)
        stalled = any(each.decision != "would-switch" for each in found.pending)
        count = len(found.pending)
        found.transition = TransitionRecord(
            patch, "patched", False, count, len(rows) - count, 3, 3.5, stalled
        )
    for name, value in known.items():
        assert hasattr(found, name), name
        setattr(found, name, value)
    return found


def _pending(index: int, found: Row) -> PendingRecord:
    names = [function.partition("[") for function in found.functions]
    blockers = tuple(
        BlockerRecord(name, module.rstrip("]") or None, "original", None)
        for name, _, module in names
    )
    return PendingRecord(
        index, found.decision, None, None, "any signal", "signal",
        f"Wake {found.task.comm}.", blockers,
    )  # fmt: skip


def failed(cause: str, detail: str = "it is broken", *rungs: str) -> Record:
    """A dump that could not be scanned."""
    attempts = tuple(
        AttemptRecord(rung, cause, detail, 1.5, 1 << 20, "the last words") for rung in rungs
    )
    return Record(status="failed", cause=cause, detail=detail, attempts=attempts)


# Stores ------------------------------------------------------------------------------------------


def identity_of(content: str) -> Identity:
    """A file with some content, last changed at some time."""
    digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    return Identity(digest, Stamp(len(content), 1, 2))


class Fleet:
    """A store that is filled dump by dump.

    :param path: a file, or ``:memory:``.
    """

    def __init__(self, path: Path | str = ":memory:") -> None:
        self.store = Store(str(path), write=True)
        self.scan = self.store.begin_scan()

    def next_scan(self) -> int:
        """End the scan and begin another."""
        self.store.end_scan(self.scan, whole=True)
        self.scan = self.store.begin_scan()
        return self.scan

    def put(
        self,
        path: str,
        found: Record,
        *,
        host: str | None = None,
        labels: dict[str, str] | None = None,
        content: str | None = None,
        options: str = OPTIONS,
        limits: Limits = LIMITS,
    ) -> int:
        """Add a dump as a scan does, and give its number.

        :param content: of the file, by default another for each path; empty if it cannot be read.
        """
        content = path if content is None else content
        identity = identity_of(content) if content else None
        dump = self.store.add(self.scan, found, limits, options, identity)
        self.store.put(path, dump, self.scan, identity, host, labels or {})
        return dump

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the store."""
        return self.store.db.execute(sql, values).fetchall()

    def close(self) -> None:
        """End the scan and close the store."""
        self.store.end_scan(self.scan, whole=True)
        self.store.close()


def fleet_of(*hosts: tuple[str, Record], path: Path | str = ":memory:") -> Fleet:
    """A store with a dump of each host."""
    fleet = Fleet(path)
    for number, (host, found) in enumerate(hosts, 1):
        fleet.put(f"/crash/{number:02}", found, host=host)
    return fleet


@contextmanager
def writer(path: Path, code: str = "") -> Iterator[None]:
    """Another process that has a store open, ``f``, and has done something with it."""
    lines = (
        "from tests.fleets import *",
        f"f = Fleet({str(path)!r})",
        code,
        "print(1, flush=True)",
    )
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join((*lines, "input()"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=VMCORES.parent,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"1\n"
            yield
        finally:
            process.kill()


def whole(fleet: Fleet) -> None:
    """See that the database is sound, and that whatever refers to something has it."""
    assert fleet.rows("PRAGMA integrity_check") == [("ok",)]
    assert fleet.rows("PRAGMA foreign_key_check") == []


# What a store says -------------------------------------------------------------------------------

SCHEMA = json.loads(
    resources.files("drgn_reliable").joinpath("schema/drgn-reliable-fleet-1.json").read_text()
)


def closed(schema: Any) -> Any:
    """The schema with every object closed: what it does not describe is not there."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and "required" in schema:
        found.setdefault("additionalProperties", False)
    return found


STRICT = jsonschema.Draft202012Validator(
    closed(SCHEMA), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)


def reported(fleet: Fleet, **options: Any) -> dict[str, Any]:
    """The report of a store, which is as the schema says, and JSON."""
    found = fleet_report(fleet.store, **options)
    text = json.dumps(found, allow_nan=False)
    STRICT.validate(json.loads(text))
    return found


def shown(data: dict[str, Any], format: str = "table") -> str:
    out = io.StringIO()
    write_report(data, format, out)
    return out.getvalue()


def drawn(fleet: Fleet, format: str, name: str = "x") -> str:
    """All stacks of a store, for a flame graph tool."""
    out = io.StringIO()
    write_stacks([Stack(*each) for each in all_stacks(fleet.store)], format, name, out)
    return out.getvalue()


def answered(found: Answer, format: str) -> str:
    out = io.StringIO()
    write_answer(found, format, out)
    return out.getvalue()


# Real dumps --------------------------------------------------------------------------------------


class Real(NamedTuple):
    """A dump of ``vmcores/``, and the record of it."""

    report: DumpReport
    livepatch: LivepatchReport
    record: Record


@cache
def real(dump: Dump) -> Real:
    """Scan a dump as the process of a fleet's scan does."""
    scanned = scan_dump(dump)
    report = Scanner(scanned.kernel).dump_report(str(dump.path), scanned.reports)
    reports = {task.task: task for task in scanned.reports}
    livepatch = analyse(scanned.kernel, report_of=lambda task: reports[task.address])
    return Real(report, livepatch, record_of(report, livepatch, kernel_facts(scanned.kernel)))


def fleet_of_dumps(
    dumps: Iterable[Dump],
    path: Path | str = ":memory:",
    host_of: Callable[[Dump], str] = lambda dump: dump.name,
) -> Fleet:
    """A store of real dumps, each of another host unless told otherwise."""
    fleet = Fleet(path)
    for dump in dumps:
        fleet.put(f"/crash/{dump.name}", real(dump).record, host=host_of(dump))
    return fleet
