# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which reports to show, and in which order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from drgn_reliable.errors import UsageError
from drgn_reliable.model import KernelVerdict, ProofVerdict, TaskKind, TaskReport
from drgn_reliable.reasons import CATALOGUE

__all__ = (
    "ONLY",
    "Filter",
    "Members",
    "StackGroup",
    "Tally",
    "by_importance",
    "check_reasons",
    "group_stacks",
    "importance",
    "summary_counts",
)

ONLY: dict[str, type[KernelVerdict] | type[ProofVerdict] | type[TaskKind]] = {
    member.value: enum for enum in (KernelVerdict, ProofVerdict, TaskKind) for member in enum
}
"""Words that a report can be filtered by, and the enumeration each belongs to."""

_PIDS = 4
"""How many tasks of one name are named by their PIDs."""


def check_reasons(ids: Iterable[str]) -> None:
    """See that reasons are in the catalogue.

    :raises UsageError: for the first that is not.
    """
    for id in ids:
        if id not in CATALOGUE:
            raise UsageError(
                f"reason {id!r} is not in the catalogue; `drgn-reliable reasons` lists it"
            )


@dataclass(frozen=True)
class Filter:
    """Which reports pass.

    :raises UsageError: for a word or a reason that does not exist.
    """

    only: Sequence[str] = ()
    """Words of :data:`ONLY`: of one enumeration any may hold, of several all must."""
    reasons: Sequence[str] = ()
    """Identifiers of reasons, of which the report must have one."""
    _wanted: list[set[str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        for word in self.only:
            if word not in ONLY:
                raise UsageError(f"{word!r} is no verdict or kind; choose from {', '.join(ONLY)}")
        check_reasons(self.reasons)
        for enum in dict.fromkeys(ONLY.values()):
            words = {word for word in self.only if ONLY[word] is enum}
            if words:
                self._wanted.append(words)

    def __call__(self, report: TaskReport) -> bool:
        """Whether a report passes."""
        has = {report.kernel.verdict.value, report.proof.verdict.value, report.kind.value}
        if not all(has & words for words in self._wanted):
            return False
        return not self.reasons or any(reason.id in self.reasons for reason in report.reasons)


_KERNEL_RANK = {
    KernelVerdict.UNRELIABLE: 0,
    KernelVerdict.UNSUPPORTED: 1,
    KernelVerdict.RUNNING: 2,
    KernelVerdict.RELIABLE: 3,
}
_PROOF_RANK = {ProofVerdict.REFUTED: 0, ProofVerdict.UNDECIDED: 1, ProofVerdict.PROVEN: 2}


def importance(kernel: str, proof: str) -> tuple[int, int]:
    """By what to sort verdicts: unreliable first; among the reliable, those whose proof fails."""
    return _KERNEL_RANK[KernelVerdict(kernel)], _PROOF_RANK[ProofVerdict(proof)]


def by_importance(reports: Iterable[TaskReport]) -> list[TaskReport]:
    """Unreliable first; among the reliable, those whose proof fails; then by PID."""
    return sorted(
        reports,
        key=lambda r: (importance(r.kernel.verdict, r.proof.verdict), r.pid, r.cpu),
    )


class Members:
    """The tasks of a group: how many have each name, and the PIDs of a few."""

    __slots__ = ("counted", "pids")

    def __init__(self) -> None:
        self.counted = Counter[str]()
        self.pids: dict[str, list[int]] = {}

    def add(self, comm: str, pid: int) -> None:
        """Take a task in."""
        self.counted[comm] += 1
        pids = self.pids.setdefault(comm, [])
        if len(pids) < _PIDS:
            pids.append(pid)

    def __len__(self) -> int:
        return self.counted.total()


class StackGroup(NamedTuple):
    """Tasks with the same stack and the same to be said of it."""

    first: TaskReport
    members: Members


def group_stacks(reports: Iterable[TaskReport]) -> list[StackGroup]:
    """Reports with the same verdicts, reasons and functions together; the most important group
    first, then the largest. Of each group one report is kept."""
    groups: dict[tuple[object, ...], StackGroup] = {}
    for report in reports:
        key = (
            report.kernel.verdict.value,
            report.proof.verdict.value,
            tuple([reason.id for reason in report.reasons]),
            report.proof.entries,
        )
        group = groups.get(key)
        if group is None:
            group = groups[key] = StackGroup(report, Members())
        group.members.add(report.comm, report.pid)
    return sorted(
        groups.values(),
        key=lambda group: (
            importance(group.first.kernel.verdict, group.first.proof.verdict),
            -len(group.members),
        ),
    )


class Tally:
    """How many reports have each verdict, and each reason."""

    def __init__(self) -> None:
        self._kernel, self._proof, self._reasons = Counter[str](), Counter[str](), Counter[str]()

    @classmethod
    def of(cls, reports: Iterable[TaskReport]) -> Tally:
        """That of all reports at once."""
        tally = cls()
        deque(tally.over(reports), maxlen=0)
        return tally

    def over(self, reports: Iterable[TaskReport]) -> Iterator[TaskReport]:
        """The same reports, counted as they pass."""
        kernel, proof = self._kernel, self._proof
        for report in reports:
            kernel[report.kernel.verdict.value] += 1
            proof[report.proof.verdict.value] += 1
            if report.reasons:
                self._reasons.update({reason.id for reason in report.reasons})
            yield report

    @property
    def total(self) -> int:
        """How many there were."""
        return self._kernel.total()

    def counts(self) -> dict[str, dict[str, int]]:
        """By verdict, and by reason; of reasons only those that there were."""
        return {
            "kernel": {v.value: self._kernel[v.value] for v in KernelVerdict},
            "proof": {v.value: self._proof[v.value] for v in ProofVerdict},
            "reasons": {id: self._reasons[id] for id in CATALOGUE if self._reasons[id]},
        }


def summary_counts(reports: Iterable[TaskReport]) -> dict[str, dict[str, int]]:
    """How many reports have each verdict, and each reason."""
    return Tally.of(reports).counts()
