# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two verdicts as tables: what a walk met, and what is said of it."""

from __future__ import annotations

import pytest

from drgn_reliable.judge import kernel_answer, proof_answer
from drgn_reliable.model import (
    Code,
    CodeKind,
    End,
    FoundBy,
    Frame,
    KernelAnswer,
    KernelVerdict,
    ProofAnswer,
    ProofVerdict,
    Walk,
)
from drgn_reliable.reasons import CATALOGUE, SECTIONS, Effect

EBUSY, EINVAL, EFAULT, ENOSYS = 16, 22, 14, 38
"""include/uapi/asm-generic/errno-base.h and errno.h"""

PCS = (0xFFFFFFFF81000005, 0xFFFFFFFF81000105, 0xFFFFFFFF81000205)
RELIABLE, UNRELIABLE = KernelVerdict.RELIABLE, KernelVerdict.UNRELIABLE
PROVEN, REFUTED, UNDECIDED = ProofVerdict.PROVEN, ProofVerdict.REFUTED, ProofVerdict.UNDECIDED

# One reason of each effect on the two verdicts; what each is, the catalogue's own tests say.
REFUSED_REFUTED = "wrong-direction"
REFUSED_OPEN = "undefined-unwind-data"
REFUSED_ENDS = "bpf-no-unwind-data"
REFUSED_WHOLE = "rethook-task-runnable"
ADVISORY_REFUTED = "fgraph-unrecovered"
ADVISORY_OPEN = "no-call-before"
UNREADABLE = "memory-unreadable"


def walk(*reasons: str, end: End = End.USER_REGS, frames: int = 3) -> Walk:
    """A finished walk of three frames that met these reasons in this order."""
    codes = [Code(pc, CodeKind.CORE, "f", 5, None) for pc in PCS[:frames]]
    found = Walk([Frame(code, 0xFFFFC90000003F00, FoundBy.ORC) for code in codes], end=end)
    for reason in reasons:
        found.note(reason, "a test", pc=None, sp=None)
    return found


# The kernel's answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "verdict", "errno"),
    [
        pytest.param([], RELIABLE, 0, id="nothing"),
        pytest.param([ADVISORY_OPEN], RELIABLE, 0, id="an advisory reason"),
        pytest.param([ADVISORY_REFUTED], RELIABLE, 0, id="an advisory reason that refutes"),
        pytest.param([REFUSED_REFUTED], UNRELIABLE, -EINVAL, id="a refusal"),
        pytest.param([REFUSED_OPEN], UNRELIABLE, -EINVAL, id="a refusal that leaves open"),
        pytest.param([REFUSED_ENDS], UNRELIABLE, -EINVAL, id="a refusal that ends"),
        pytest.param([REFUSED_WHOLE], UNRELIABLE, -EINVAL, id="a refusal of a proven trace"),
        pytest.param([ADVISORY_OPEN, REFUSED_WHOLE], UNRELIABLE, -EINVAL, id="after advisory ones"),
        pytest.param([UNREADABLE], UNRELIABLE, -EFAULT, id="memory that the dump lacks"),
        pytest.param(
            [ADVISORY_OPEN, UNREADABLE], UNRELIABLE, -EFAULT, id="that after an advisory reason"
        ),
        pytest.param(
            [REFUSED_OPEN, UNREADABLE], UNRELIABLE, -EINVAL, id="the kernel had refused before"
        ),
        pytest.param(
            [UNREADABLE, REFUSED_OPEN], UNRELIABLE, -EFAULT, id="it cannot be known if it had"
        ),
    ],
)
def test_the_first_refusal_decides_the_kernels_answer(
    reasons: list[str], verdict: KernelVerdict, errno: int
) -> None:
    entries = PCS if verdict is RELIABLE else ()
    assert kernel_answer(walk(*reasons), running=False, supported=True) == KernelAnswer(
        verdict, errno, entries
    )


@pytest.mark.parametrize("reasons", [[], [REFUSED_OPEN], [UNREADABLE]])
@pytest.mark.parametrize(
    ("running", "supported", "verdict", "errno"),
    [
        (True, True, KernelVerdict.RUNNING, -EBUSY),
        (False, False, KernelVerdict.UNSUPPORTED, -ENOSYS),
        (True, False, KernelVerdict.UNSUPPORTED, -ENOSYS),
    ],
)
def test_a_running_task_and_a_kernel_without_support_are_not_asked(
    reasons: list[str], running: bool, supported: bool, verdict: KernelVerdict, errno: int
) -> None:
    answer = kernel_answer(walk(*reasons), running=running, supported=supported)
    assert answer == KernelAnswer(verdict, errno, ())


def test_a_task_without_a_stack_is_reliable_and_has_no_entries() -> None:
    """try_get_task_stack() fails: stack_trace_save_tsk_reliable() answers 0."""
    dead = walk(end=End.NO_STACK, frames=0)
    assert kernel_answer(dead, running=False, supported=True) == KernelAnswer(RELIABLE, 0, ())
    assert proof_answer(dead) == ProofAnswer(PROVEN, ())


def test_a_walk_that_reached_no_end_is_not_reliable() -> None:
    """No reason says why it stopped; a false "reliable" would be worse than that."""
    stopped = walk(end=End.STOPPED)
    answer = kernel_answer(stopped, running=False, supported=True)
    assert answer == KernelAnswer(UNRELIABLE, -EINVAL, ())


# The proof --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "end", "verdict"),
    [
        pytest.param([], End.USER_REGS, PROVEN, id="up to user registers"),
        pytest.param([], End.END_OF_STACK, PROVEN, id="up to the end of the stack"),
        pytest.param([], End.STOPPED, UNDECIDED, id="not to an end"),
        pytest.param([REFUSED_WHOLE], End.USER_REGS, PROVEN, id="the kernel had to refuse"),
        pytest.param([REFUSED_WHOLE], End.STOPPED, UNDECIDED, id="that, and not to an end"),
        pytest.param([ADVISORY_OPEN], End.USER_REGS, UNDECIDED, id="left open"),
        pytest.param([REFUSED_OPEN], End.STOPPED, UNDECIDED, id="left open by a refusal"),
        pytest.param([REFUSED_ENDS], End.USER_REGS, UNDECIDED, id="a guess"),
        pytest.param([REFUSED_REFUTED], End.STOPPED, REFUTED, id="refuted"),
        pytest.param([ADVISORY_REFUTED], End.USER_REGS, REFUTED, id="refuted, unnoticed"),
        pytest.param(
            [ADVISORY_OPEN, REFUSED_REFUTED], End.STOPPED, REFUTED, id="refuted after left open"
        ),
        pytest.param(
            [REFUSED_REFUTED, REFUSED_ENDS], End.STOPPED, REFUTED, id="refuted before a guess"
        ),
        pytest.param(
            [REFUSED_ENDS, REFUSED_REFUTED], End.STOPPED, UNDECIDED, id="a guess that went wrong"
        ),
        pytest.param(
            [REFUSED_ENDS, REFUSED_WHOLE], End.USER_REGS, UNDECIDED, id="a guess that went well"
        ),
        pytest.param(
            [REFUSED_WHOLE, ADVISORY_OPEN], End.USER_REGS, UNDECIDED, id="left open in the end"
        ),
    ],
)
def test_what_the_dump_shows(reasons: list[str], end: End, verdict: ProofVerdict) -> None:
    """Whatever the verdict, the entries are all that was found."""
    assert proof_answer(walk(*reasons, end=end)) == ProofAnswer(verdict, PCS)


# The catalogue ----------------------------------------------------------------------------------

EFFECTS = {
    REFUSED_REFUTED: (True, Effect.REFUTES),
    REFUSED_OPEN: (True, Effect.LEAVES_OPEN),
    REFUSED_ENDS: (True, Effect.ENDS),
    REFUSED_WHOLE: (True, Effect.NONE),
    ADVISORY_REFUTED: (False, Effect.REFUTES),
    ADVISORY_OPEN: (False, Effect.LEAVES_OPEN),
    UNREADABLE: (True, Effect.LEAVES_OPEN),
}


@pytest.mark.parametrize("reason", EFFECTS)
def test_the_reasons_of_these_tables_are_what_their_names_say(reason: str) -> None:
    kind = CATALOGUE[reason]
    assert (kind.kernel, kind.proof) == EFFECTS[reason]
    assert kind.advisory is not kind.kernel


@pytest.mark.parametrize(
    "reason",
    ["running", "too-deep", "exception-frame-pointer", "rethook-task-runnable"],
)
def test_refusals_that_say_nothing_against_the_trace(reason: str) -> None:
    """The kernel refuses by a rule of its own; the dump may show the whole trace nevertheless."""
    assert CATALOGUE[reason].kernel
    assert CATALOGUE[reason].proof is Effect.NONE


@pytest.mark.parametrize(
    "reason",
    ["stack-end-overwritten", "no-call-before", "init-text-freed", "vsyscall-page",
     "end-unexpected", "user-regs-misplaced", "stack-order"],
)  # fmt: skip
def test_what_no_kernel_notices_is_advisory(reason: str) -> None:
    """The checks that arch_stack_walk_reliable() lacks must not change its answer."""
    assert CATALOGUE[reason].advisory
    assert CATALOGUE[reason].proof in (Effect.LEAVES_OPEN, Effect.REFUTES)


@pytest.mark.parametrize("reason", CATALOGUE)
def test_rows_are_complete(reason: str) -> None:
    row = CATALOGUE[reason]
    assert row.id == reason
    assert reason == reason.lower().replace(" ", "-").replace("_", "-")
    assert row.section in SECTIONS
    assert row.title and not row.title.endswith(".")
    assert row.decided_by
    assert row.remedy.endswith(".")


def test_rows_are_in_the_order_of_the_documents_sections() -> None:
    sections = [row.section for row in CATALOGUE.values()]
    assert sections == sorted(sections)
