# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which reports to show, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from drgn_reliable.errors import UsageError
from drgn_reliable.model import KernelVerdict, ProofVerdict, TaskKind, TaskReport
from drgn_reliable.reasons import CATALOGUE

__all__ = (
    "ONLY",
    "Filter",
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


def group_stacks(reports: Iterable[TaskReport]) -> list[list[TaskReport]]:
    """Reports with the same verdicts, reasons and functions together; the most important group
    first, then the largest."""
    groups: dict[tuple[object, ...], list[TaskReport]] = {}
    for report in reports:
        key = (
            report.kernel.verdict,
            report.proof.verdict,
            tuple(reason.id for reason in report.reasons),
            report.proof.entries,
        )
        groups.setdefault(key, []).append(report)
    return sorted(
        groups.values(),
        key=lambda group: (
            importance(group[0].kernel.verdict, group[0].proof.verdict),
            -len(group),
        ),
    )


def summary_counts(reports: Iterable[TaskReport]) -> dict[str, dict[str, int]]:
    """How many reports have each verdict, and each reason."""
    reports = list(reports)
    kernel = Counter(r.kernel.verdict for r in reports)
    proof = Counter(r.proof.verdict for r in reports)
    reasons = Counter(id for r in reports for id in {reason.id for reason in r.reasons})
    return {
        "kernel": {v.value: kernel[v] for v in KernelVerdict},
        "proof": {v.value: proof[v] for v in ProofVerdict},
        "reasons": {id: reasons[id] for id in CATALOGUE if reasons[id]},
    }
