# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which reports are shown, and in which order."""

from __future__ import annotations

from itertools import chain

import pytest

from drgn_reliable.errors import UsageError
from drgn_reliable.model import (
    Code,
    CodeKind,
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
from drgn_reliable.selection import (
    ONLY,
    Filter,
    StackGroup,
    by_importance,
    group_stacks,
    summary_counts,
)


def report(
    kernel: str,
    proof: str = "proven",
    kind: str = "user",
    *reasons: str,
    pid: int = 1,
    cpu: int = 0,
    pcs: tuple[int, ...] = (0x1000,),
    comm: str = "task",
) -> TaskReport:
    """A report of a task."""
    frames = [
        Frame(Code(pc, CodeKind.CORE, "f", 0, None), 0xFFFFC90000003F00 + pid, FoundBy.ORC)
        for pc in pcs
    ]
    return TaskReport(
        task=0xFFFF888000000000 + pid, pid=pid, tgid=pid, cpu=cpu, comm=comm, state="S",
        kind=TaskKind(kind), kernel=KernelAnswer(KernelVerdict(kernel), 0, ()),
        proof=ProofAnswer(ProofVerdict(proof), pcs), frames=tuple(frames),
        reasons=tuple(Reason(id, None, None, 0, "a test") for id in reasons),
    )  # fmt: skip


# Filter -----------------------------------------------------------------------------------------

ONE = report("unreliable", "refuted", "kthread", "loop", "no-call-before")


@pytest.mark.parametrize(
    ("only", "reasons", "passes"),
    [
        pytest.param([], [], True, id="no condition"),
        pytest.param(["unreliable"], [], True, id="its kernel verdict"),
        pytest.param(["reliable"], [], False, id="another kernel verdict"),
        pytest.param(["refuted"], [], True, id="its proof verdict"),
        pytest.param(["kthread"], [], True, id="its kind"),
        pytest.param(["user"], [], False, id="another kind"),
        pytest.param(["reliable", "unreliable"], [], True, id="one of two kernel verdicts"),
        pytest.param(["reliable", "running"], [], False, id="neither of two"),
        pytest.param(["unreliable", "refuted", "kthread"], [], True, id="one of each"),
        pytest.param(["unreliable", "proven"], [], False, id="the proof verdict fails"),
        pytest.param(["unreliable", "user"], [], False, id="the kind fails"),
        pytest.param(["unreliable", "refuted", "user"], [], False, id="the kind alone fails"),
        pytest.param(["user", "kthread", "proven", "refuted"], [], True, id="either and either"),
        pytest.param(["unreliable", "unreliable"], [], True, id="the same word twice"),
        pytest.param([], ["loop"], True, id="a reason"),
        pytest.param([], ["running"], False, id="a reason that it lacks"),
        pytest.param([], ["running", "no-call-before"], True, id="one of two reasons"),
        pytest.param(["unreliable"], ["loop"], True, id="a verdict and a reason"),
        pytest.param(["reliable"], ["loop"], False, id="a reason but not the verdict"),
        pytest.param(["unreliable"], ["running"], False, id="the verdict but no reason"),
    ],
)
def test_words_of_one_kind_are_alternatives_and_of_several_must_all_hold(
    only: list[str], reasons: list[str], passes: bool
) -> None:
    assert Filter(only, reasons)(ONE) is passes


def test_an_unknown_reason_is_named_with_where_to_look() -> None:
    with pytest.raises(UsageError, match=r"'lop' .*`drgn-reliable reasons`"):
        Filter(reasons=["loop", "lop"])


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(UsageError, match="relible"):
        Filter(["relible"])


def test_every_word_of_the_verdicts_and_kinds_can_be_filtered_by() -> None:
    assert list(ONLY) == [
        "reliable", "unreliable", "running", "unsupported", "proven", "refuted", "undecided",
        "user", "kthread", "idle",
    ]  # fmt: skip


# Order ------------------------------------------------------------------------------------------

IN_ORDER = [
    report("unreliable", "refuted", pid=900),
    report("unreliable", "undecided", pid=800),
    report("unreliable", "proven", pid=700),
    report("unsupported", "refuted", pid=650),
    report("unsupported", "proven", pid=600),
    report("running", "refuted", pid=500),
    report("running", "proven", pid=400),
    report("reliable", "refuted", pid=300),
    report("reliable", "undecided", pid=200),
    report("reliable", "proven", "idle", pid=0, cpu=0),
    report("reliable", "proven", "idle", pid=0, cpu=1),
    report("reliable", "proven", pid=7),
    report("reliable", "proven", pid=10),
]
"""Verdicts go before PIDs, the kernel's before the proof's, and idle tasks by CPU."""


@pytest.mark.parametrize("step", [1, -1, 5, -4])
def test_what_needs_attention_comes_first(step: int) -> None:
    """Whatever order the reports are in: here backwards, or every fifth of them in turn."""
    count = len(IN_ORDER)
    shuffled = [IN_ORDER[step * i % count] for i in range(count)]
    assert by_importance(shuffled) == IN_ORDER


def test_reports_of_the_same_weight_keep_their_order() -> None:
    one, two = report("reliable", comm="one"), report("reliable", comm="two")
    assert by_importance([one, two]) == [one, two]
    assert by_importance([two, one]) == [two, one]


# Groups -----------------------------------------------------------------------------------------


def pids(groups: list[StackGroup]) -> list[list[int]]:
    return [sorted(chain.from_iterable(group.members.pids.values())) for group in groups]


def test_tasks_with_the_same_stack_are_one_group() -> None:
    """Names, PIDs, CPUs and stack pointers may differ."""
    reports = [
        report("reliable", pid=1, pcs=(1, 2, 3), comm="a"),
        report("reliable", pid=2, pcs=(1, 2)),
        report("reliable", "proven", "kthread", pid=3, pcs=(1, 2, 3), cpu=5),
    ]
    assert pids(group_stacks(reports)) == [[1, 3], [2]]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(report("unreliable", "proven", "user", "loop", pid=2), id="kernel verdict"),
        pytest.param(report("reliable", "refuted", "user", "loop", pid=2), id="proof verdict"),
        pytest.param(report("reliable", "proven", "user", "running", pid=2), id="reason"),
        pytest.param(
            report("reliable", "proven", "user", "loop", "running", pid=2), id="one more reason"
        ),
        pytest.param(
            report("reliable", "proven", "user", "loop", pid=2, pcs=(0x1001,)), id="address"
        ),
        pytest.param(
            report("reliable", "proven", "user", "loop", pid=2, pcs=()), id="number of frames"
        ),
    ],
)
def test_tasks_that_differ_in_what_matters_are_two_groups(other: TaskReport) -> None:
    assert len(group_stacks([report("reliable", "proven", "user", "loop"), other])) == 2


def test_a_group_names_a_few_of_its_tasks_and_counts_all() -> None:
    """Of a hundred thousand tasks alike, what is kept is one report, names, and some PIDs."""
    reports = [report("reliable", pid=pid, comm=f"pool-{pid % 2}") for pid in range(1, 100)]
    [group] = group_stacks(iter(reports))
    assert group.first == reports[0] and len(group.members) == 99
    assert group.members.counted == {"pool-1": 50, "pool-0": 49}
    assert group.members.pids == {"pool-1": [1, 3, 5, 7], "pool-0": [2, 4, 6, 8]}


def test_the_most_important_group_comes_first_then_the_largest() -> None:
    reports = [
        report("reliable", pid=1, pcs=(1,)),
        report("reliable", pid=2, pcs=(2,)),
        report("reliable", pid=3, pcs=(2,)),
        report("reliable", "refuted", pid=4, pcs=(3,)),
        report("unreliable", pid=5, pcs=(4,)),
        report("reliable", pid=6, pcs=(5,)),
    ]
    assert pids(group_stacks(reports)) == [[5], [4], [2, 3], [1], [6]]


# Counts -----------------------------------------------------------------------------------------


def test_counts_of_verdicts_and_reasons() -> None:
    """A reason that one task has twice counts once; reasons that none has are left out."""
    counts = summary_counts(
        [
            report("reliable", "proven"),
            report("reliable", "undecided", "user", "no-call-before"),
            report("unreliable", "refuted", "user", "loop", "no-call-before", "loop"),
        ]
    )
    assert counts == {
        "kernel": {"reliable": 2, "unreliable": 1, "running": 0, "unsupported": 0},
        "proof": {"proven": 1, "refuted": 1, "undecided": 1},
        "reasons": {"loop": 1, "no-call-before": 2},
    }


def test_reasons_are_counted_in_the_order_of_the_catalogue() -> None:
    reports = [report("unreliable", "undecided", "user", "optprobe-slot", "loop", "running")]
    assert list(summary_counts(reports)["reasons"]) == ["running", "loop", "optprobe-slot"]


def test_no_reports_count_nothing() -> None:
    counts = summary_counts(iter([]))
    assert set(counts["kernel"].values()) == set(counts["proof"].values()) == {0}
    assert counts["reasons"] == {}
