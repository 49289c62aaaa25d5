# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is kept of one scanned dump: plain data that goes through a pipe as JSON.

Stacks are kept once, however many tasks share them, and have two hashes. The first is over all of
a stack's frames as they are. The second is *normalised*, so that stacks of different builds and
releases meet: no offsets, no addresses, no modules, no suffixes that a compiler gave, and no
assembly that takes system calls and exceptions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec

from drgn_reliable.advice import advice_for
from drgn_reliable.judge import refusal
from drgn_reliable.model import (
    CodeRole,
    DumpReport,
    Frame,
    KernelVerdict,
    ProofVerdict,
    TaskReport,
)
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.transition import LivepatchReport, PendingTask, Transition
from drgn_reliable.waiting import channel_of

__all__ = (
    "AttemptRecord",
    "BadRecord",
    "BlockerRecord",
    "FrameRecord",
    "PatchRecord",
    "PendingRecord",
    "ReasonRecord",
    "Record",
    "StackRecord",
    "TaskRecord",
    "TransitionRecord",
    "clean",
    "normal_name",
    "record_of",
)

_SUFFIX = re.compile(r"\.(isra|constprop|part|cold|llvm|lto_priv)\b.*$")
_BPF_TRAMPOLINE = re.compile(r"^bpf_trampoline_[0-9]+$")
"""Its number is that of a type in the kernel's BTF, another in each build."""
Integer = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""As SQLite has them."""


_KERNEL = {verdict.value for verdict in KernelVerdict}
_PROOF = {verdict.value for verdict in ProofVerdict}


class BadRecord(ValueError):
    """What a worker sent is no record."""


class FrameRecord(NamedTuple):
    """One frame of a stack."""

    symbol: str | None
    """None where the code has no name."""
    offset: Integer
    """Bytes from the symbol's start, or 0."""
    module: str | None
    code: str
    """A :class:`drgn_reliable.model.CodeKind`."""
    role: str
    """A :class:`drgn_reliable.model.CodeRole`."""
    of: str | None
    address: str | None
    """In hex, where the code has no name."""


class StackRecord(NamedTuple):
    """A stack that at least one task has."""

    hash: str
    normalised: str
    frames: tuple[FrameRecord, ...]
    """The innermost first."""


class ReasonRecord(NamedTuple):
    """One reason of a task."""

    id: str
    frame: Integer
    detail: str
    refused: bool
    """Whether it is the one for which the kernel refuses the trace."""


class TaskRecord(NamedTuple):
    """A task and its verdicts."""

    address: str
    pid: Integer
    tgid: Integer
    cpu: Integer
    comm: str
    state: str
    kind: str
    kernel: str
    errno: Integer
    """0, or the negative error number."""
    proof: str
    stack: Integer
    """Index in :attr:`Record.stacks`."""
    waits_in: str | None
    """The innermost function that is not the scheduler's."""
    reasons: tuple[ReasonRecord, ...]


class BlockerRecord(NamedTuple):
    """A function of the transition on a task's stack."""

    function: str
    module: str | None
    version: str
    frame: Integer | None


class PendingRecord(NamedTuple):
    """A task that has not switched."""

    task: Integer
    """Index in :attr:`Record.tasks`."""
    decision: str
    waits_for: str | None
    file: str | None
    leaves_by: str
    advice: str
    advice_text: str
    blockers: tuple[BlockerRecord, ...]


class TransitionRecord(NamedTuple):
    """The livepatch transition in progress."""

    patch: str
    target: str
    replaces: bool
    pending: Integer
    switched: Integer
    attempts: Integer | None
    seconds: float | None
    stalled: bool


class PatchRecord(NamedTuple):
    """A livepatch that is loaded."""

    name: str
    enabled: bool
    replaces: bool
    forced: bool


class AttemptRecord(NamedTuple):
    """One try to make something of a dump."""

    rung: str
    """What was tried, see :mod:`drgn_reliable.fleet.ladder`."""
    outcome: str
    """``scanned``, ``read`` (headers only), or why it failed."""
    detail: str
    seconds: float
    memory: Integer
    """The most that its process had in memory, in bytes; 0 if that is not known."""
    output: str = ""
    """The end of what the process printed, where it failed."""


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All that is kept of one dump; what is not known is None or empty."""

    status: str
    """``whole``, ``incomplete`` (scanned, but something was missing) or ``failed``."""
    cause: str | None = None
    """Of a failure: the outcome of the first attempt, see :class:`AttemptRecord`."""
    detail: str | None = None
    stored: str | None = None
    """How the dump's file is stored."""
    release: str | None = None
    architecture: str | None = None
    unwinder: str | None = None
    types: str | None = None
    symbols: str | None = None
    node: str | None = None
    """The dumped machine's name for itself (``uname -n``)."""
    crashed: Integer | None = None
    """When it crashed, in seconds since 1970 by its own clock (CRASHTIME of VMCOREINFO)."""
    facts: dict[str, Any] | None = None
    """As ``drgn-reliable info`` has them."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stacks: tuple[StackRecord, ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    patches: tuple[PatchRecord, ...] = ()
    transition: TransitionRecord | None = None
    pending: tuple[PendingRecord, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()

    def check(self) -> None:
        """See that what refers to something has something to refer to.

        :raises BadRecord: if not.
        """
        if self.status not in ("whole", "incomplete", "failed"):
            raise BadRecord(f"its status is {self.status!r}")
        for stack in self.stacks:
            if stack != _stack_of(stack.frames):
                raise BadRecord("the hashes of a stack are not its frames'")
        for task in self.tasks:
            if task.kernel not in _KERNEL or task.proof not in _PROOF:
                raise BadRecord(f"a task is {task.kernel!r} and {task.proof!r}")
            for reason in task.reasons:
                if reason.id not in CATALOGUE:
                    raise BadRecord(f"a task has the reason {reason.id!r}")
            if not 0 <= task.stack < len(self.stacks):
                raise BadRecord(f"a task has stack {task.stack} of {len(self.stacks)}")
        for pending in self.pending:
            if not 0 <= pending.task < len(self.tasks):
                raise BadRecord(f"a pending task is {pending.task} of {len(self.tasks)}")
        if len({pending.task for pending in self.pending}) < len(self.pending):
            raise BadRecord("a task is pending twice")


@lru_cache(1 << 16)
def clean(text: str) -> str:
    """Text that is valid UTF-8 and goes on after a NUL.

    >>> clean("a\\ud800b\\0c")
    'a\\\\ud800b\\\\x00c'
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _clean_facts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _clean_facts(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_clean_facts(each) for each in value]
    return clean(value) if isinstance(value, str) else value


def _clean_or_none(text: str | None) -> str | None:
    return clean(text) if text else None


def normal_name(symbol: str) -> str:
    """A function's name without what its compiler added.

    >>> normal_name("el0_svc_common.constprop.0"), normal_name("do_wait.part.0.isra.0.cold")
    ('el0_svc_common', 'do_wait')
    """
    return _BPF_TRAMPOLINE.sub("bpf_trampoline", _SUFFIX.sub("", symbol))


class _Stacks:
    """The stacks of a dump, each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], int] = {}
        self._by_hash: dict[str, int] = {}
        self.records: list[StackRecord] = []

    def index(self, frames: Sequence[Frame]) -> int:
        """The index of a stack with these frames."""
        pcs = tuple([frame.code.pc for frame in frames])
        found = self._known.get(pcs)
        if found is None:
            found = self._known[pcs] = self._add(frames)
        return found

    def _add(self, frames: Sequence[Frame]) -> int:
        record = _stack_record(frames)
        if record.hash not in self._by_hash:
            self._by_hash[record.hash] = len(self.records)
            self.records.append(record)
        return self._by_hash[record.hash]


def _stack_record(frames: Iterable[Frame]) -> StackRecord:
    return _stack_of(tuple(_frame_record(frame) for frame in frames))


def _stack_of(records: tuple[FrameRecord, ...]) -> StackRecord:
    if any(record.symbol is None and record.address is None for record in records):
        raise BadRecord("a frame has neither a name nor an address")
    return StackRecord(
        _hash(tuple(record) for record in records),
        _hash(
            normal_name(record.symbol) if record.symbol else record.role
            for record in records
            if record.role != CodeRole.ENTRY.value
        ),
        records,
    )


def _frame_record(frame: Frame) -> FrameRecord:
    code = frame.code
    return FrameRecord(
        _clean_or_none(code.symbol),
        code.offset if code.symbol else 0,
        _clean_or_none(code.module),
        code.kind.value,
        code.role.value,
        _clean_or_none(code.of),
        None if code.symbol else f"{code.pc:#x}",
    )


def _hash(parts: Iterable[object]) -> str:
    return hashlib.blake2b(msgspec.json.encode(list(parts)), digest_size=16).hexdigest()


def _task_record(report: TaskReport, stacks: _Stacks) -> TaskRecord:
    first = refusal(report.reasons)
    return TaskRecord(
        f"{report.task:#x}",
        report.pid,
        report.tgid,
        report.cpu,
        clean(report.comm),
        report.state,
        report.kind.value,
        report.kernel.verdict.value,
        report.kernel.errno,
        report.proof.verdict.value,
        stacks.index(report.frames),
        _clean_or_none(normal_name(channel_of(frame.code for frame in report.frames))),
        tuple(
            ReasonRecord(reason.id, reason.frame, clean(reason.detail), reason is first)
            for reason in report.reasons
        ),
    )


def _transition_record(report: LivepatchReport, transition: Transition) -> TransitionRecord:
    return TransitionRecord(
        clean(transition.patch),
        transition.target,
        transition.replaces,
        transition.pending,
        transition.switched,
        transition.attempts,
        transition.seconds,
        report.stalled,
    )


def _pending_record(task: PendingTask, index: int, transition: Transition) -> PendingRecord:
    advice, text = advice_for(task, transition)
    return PendingRecord(
        index,
        task.decision.value,
        _clean_or_none(task.wait.event),
        _clean_or_none(task.wait.file),
        task.wait.leaves.value,
        advice,
        clean(text),
        tuple(
            BlockerRecord(
                clean(blocker.function.name),
                _clean_or_none(blocker.function.module),
                clean(blocker.function.version),
                blocker.frame,
            )
            for blocker in task.blockers
        ),
    )


def record_of(
    report: DumpReport,
    livepatch: LivepatchReport | None = None,
    facts: dict[str, Any] | None = None,
) -> Record:
    """The record of a dump that was scanned.

    :param livepatch: what there is to say of its livepatches.
    :param facts: of :func:`drgn_reliable.facts.kernel_facts`.
    """
    stacks = _Stacks()
    tasks = tuple([_task_record(task, stacks) for task in report.tasks])
    problems = dict.fromkeys(report.problems + (livepatch.problems if livepatch else ()))
    record = Record(
        status="incomplete" if problems else "whole",
        release=clean(report.release),
        architecture=clean(report.architecture),
        unwinder=clean(report.unwinder),
        types=clean(report.types),
        symbols=clean(report.symbols),
        facts=_clean_facts(facts) if facts else None,
        problems=tuple(map(clean, problems)),
        warnings=tuple(map(clean, report.warnings)),
        stacks=tuple(stacks.records),
        tasks=tasks,
    )
    if livepatch:
        record.patches = tuple(
            PatchRecord(clean(patch.name), patch.enabled, patch.replace, patch.forced)
            for patch in livepatch.patches
        )
    if livepatch and livepatch.transition:
        indices = {task.task: index for index, task in enumerate(report.tasks)}
        record.transition = _transition_record(livepatch, livepatch.transition)
        record.pending = tuple(
            _pending_record(task, indices[task.report.task], livepatch.transition)
            for task in livepatch.tasks
        )
    return record
