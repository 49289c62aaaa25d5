# SPDX-License-Identifier: LGPL-2.1-or-later
"""What explain says of a walk is what the walk did: of every hand-written stack, and of tasks of
every kind in the real dumps.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource

from drgn_reliable.arch.base import StackUnwinder
from drgn_reliable.explain import explain_task, explain_walk
from drgn_reliable.explanation import ExplainedStep, Explanation
from drgn_reliable.model import FoundBy, TaskKind, TaskReport
from drgn_reliable.render.explanation import write_explanations, write_explanations_json
from drgn_reliable.render.machine import hex_or_null
from drgn_reliable.report import report_of
from drgn_reliable.walk import walk_task
from tests import (
    test_walk_arm64,
    test_walk_loongarch64,
    test_walk_metadata,
    test_walk_ppc64,
    test_walk_s390x,
    test_walk_x86,
    test_walk_x86_fp,
)
from tests.conftest import Scanned
from tests.walkers import MAGIC, Case, FakeKernel

Made = Callable[..., FakeKernel]
TABLES: list[tuple[Made, list[Case]]] = [
    (test_walk_x86.Kernel, test_walk_x86.CASES),
    (test_walk_x86_fp.Kernel, test_walk_x86_fp.CASES),
    (test_walk_arm64.Kernel, test_walk_arm64.CASES),
    (partial(test_walk_arm64.Kernel, has_meta=False), test_walk_arm64.OLD_CASES),
    (test_walk_s390x.Kernel, test_walk_s390x.CASES),
    (test_walk_ppc64.Kernel, test_walk_ppc64.CASES),
    (partial(test_walk_ppc64.Kernel, old=True), test_walk_ppc64.OLD_CASES),
    (test_walk_loongarch64.Kernel, test_walk_loongarch64.CASES),
    *test_walk_metadata.TABLES,
]
ROWS = [
    pytest.param(make, case, id=f"{number} {case.claim}")
    for number, (make, table) in enumerate(TABLES)
    for case in table
]


def explained(make: Made, case: Case) -> tuple[StackUnwinder[Any], Explanation]:
    """A hand-written stack, explained."""
    kernel = make(case.words, **case.setup)
    found = explain_walk(kernel.unwinder, kernel.task(**case.task), supported=True)
    return kernel.unwinder, found


# What has to hold of any explanation ----------------------------------------------------------


def check(found: Explanation, unwinder: StackUnwinder[Any]) -> None:
    """Steps, numbers, words and drawing fit the frames of the report."""
    frames = found.report.frames
    steps = found.steps
    assert [step.frame for step in steps] == list(range(len(steps)))
    assert len(frames) - len(steps) in (0, 1)  # a walk that is given up ends with a frame
    assert [(step.code, step.sp) for step in steps] == [(f.code, f.sp) for f in frames][
        : len(steps)
    ]
    for step in steps[: len(frames) - 1]:
        check_step(step, frames[step.frame + 1].pc, unwinder)
    check_drawing(found)
    noted = [reason for step in steps for reason in step.reasons]
    assert set(noted) <= set(found.report.reasons)
    # The rest is of where the walk began or ended.
    rest = {reason.frame for reason in found.report.reasons if reason not in noted}
    assert rest <= {0, len(frames)} or not steps


def check_step(step: ExplainedStep, following: int, unwinder: StackUnwinder[Any]) -> None:
    """The formula's and the words' program counters are the next frame's."""
    read = {read.value for read in step.reads if read.role == "pc" and read.value is not None}
    computed = {each.value for rule in step.rules[:1] for each in rule.values if each.name == "pc"}
    words = [read.value for read in step.reads if read.value is not None]
    if any(following in unwinder.may_stand_for(word) for word in words):
        # A register may hold a tracer's address, too; it was not that which was taken.
        assert all(following in unwinder.may_stand_for(word) for word in read)
    for word in read | computed:
        if step.registers_at is not None and word in computed:
            continue  # the rule's caller is not where it went on
        if following in unwinder.may_stand_for(word):
            continue
        assert any(each in unwinder.trampolines for each in unwinder.may_stand_for(word))
        assert following in unwinder.trampolines or step.replaced
    if step.replaced:
        assert step.replaced.taken == following
        assert step.replaced.read in read | computed


def check_drawing(found: Explanation) -> None:
    """Each frame's stack pointer is drawn, the words are in order, and the end is marked."""
    words = {word.address: word for stack in found.stacks for word in stack.words}
    for stack in found.stacks:
        places = [word.address for word in stack.words]
        assert places == sorted(set(places))
        assert all(stack.low <= place < stack.high for place in places)
    for number, frame in enumerate(found.report.frames):
        on = [stack for stack in found.stacks if stack.low <= frame.sp <= stack.high - 8]
        if on and not frame.sp % 8:
            assert any(note.startswith(f"SP of #{number} ") for note in words[frame.sp].notes)
    for stack in found.stacks:
        if stack.name == "task" and stack.words:
            assert stack.words[0].notes[0] == "end of the stack: STACK_END_MAGIC"


@pytest.mark.parametrize(("make", "case"), ROWS)
def test_every_step_of_hand_written_stacks(make: Made, case: Case) -> None:
    """Of stacks that are sound, odd or broken, on each architecture."""
    unwinder, found = explained(make, case)
    check(found, unwinder)
    assert [frame.code.symbol for frame in found.report.frames] == case.frames
    assert found.report.proof.verdict.value == case.proof


def kinds(scanned: Scanned) -> Iterator[TaskReport]:
    """One task of each kind that there is in a dump: by both verdicts and the first reason."""
    met = set()
    for report in scanned.reports:
        why = report.reasons[0].id if report.reasons else ""
        kind = (report.kernel.verdict, report.proof.verdict, why, report.kind is TaskKind.IDLE)
        if kind not in met:
            met.add(kind)
            yield report


def of_kinds(scanned: Scanned) -> Iterator[tuple[TaskReport, Explanation]]:
    """Explanations of them."""
    for report in kinds(scanned):
        yield report, explain_task(scanned.kernel, scanned.kernel.tasks.read(report.task))


def test_every_step_of_real_stacks(scanned: Scanned) -> None:
    """Sleeping, preempted, probed, traced, running and broken ones."""
    for _, found in of_kinds(scanned):
        check(found, scanned.kernel.unwinder)


def test_verdicts_are_the_scans(scanned: Scanned) -> None:
    """The same verdicts, and the same reasons; explain may find more than the scan looked for."""
    for report, found in of_kinds(scanned):
        assert found.report.kernel == report.kernel
        assert found.report.proof.verdict == report.proof.verdict
        assert set(found.report.reasons) >= set(report.reasons)


def test_the_kernels_frames_are_its_entries(scanned: Scanned) -> None:
    """Of a reliable task, its walk's frames are what the kernel returned."""
    for report, found in of_kinds(scanned):
        if report.kernel.entries:
            assert tuple(frame.pc for frame in found.kernel_frames) == report.kernel.entries


def test_reliable_tasks_were_seen_by_the_kernel(scanned: Scanned) -> None:
    """All frames of those without a reason, but one below that where the kernel's walk begins."""
    for report, found in of_kinds(scanned):
        if report.kernel.entries and not report.reasons:
            seen = [step.kernel for step in found.steps]
            assert seen == sorted(seen) and seen.count(False) <= 1


def test_the_end_magic_and_user_registers_are_drawn(scanned: Scanned) -> None:
    """Of a user task that sleeps: where its stack ends, and what user mode left on it."""
    report = next(r for r in scanned.reports if r.kind is TaskKind.USER and not r.reasons)
    found = explain_task(scanned.kernel, scanned.kernel.tasks.read(report.task))
    (stack,) = found.stacks
    assert stack.words[0].value == MAGIC
    notes = [note for word in stack.words for note in word.notes]
    for name in scanned.kernel.facts.register_offsets:
        assert f"user pt_regs.{name}" in notes


# Documents --------------------------------------------------------------------------------------

FOLDER = resources.files("drgn_reliable").joinpath("schema")
SCHEMAS = {
    name: json.loads(FOLDER.joinpath(f"{name}-1.json").read_text())
    for name in ("drgn-reliable", "drgn-reliable-explanation")
}
VALIDATOR = jsonschema.Draft202012Validator(
    SCHEMAS["drgn-reliable-explanation"],
    registry=Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values()
    ),
)


def test_json_is_what_the_schema_says(scanned: Scanned) -> None:
    """Of every dump, and it names every frame and the words that were read."""
    found = [explanation for _, explanation in of_kinds(scanned)]
    out = io.StringIO()
    write_explanations_json(found, ["a damaged file"], out)
    document = json.loads(out.getvalue())
    VALIDATOR.validate(document)
    assert document["warnings"] == ["a damaged file"]
    for made, each in zip(document["explanations"], found, strict=True):
        assert made["task"]["task"] == hex_or_null(each.report.task)
        assert len(made["steps"]) == len(each.steps)


def test_the_schema_knows_every_way_to_find_a_frame() -> None:
    """An enumeration that was added to the code and not to the contract would be noticed late."""
    frame = SCHEMAS["drgn-reliable"]["$defs"]["frame"]["properties"]
    assert set(frame["found_by"]["enum"]) == {each.value for each in FoundBy}


def text_of(found: Explanation, words: str = "marked") -> str:
    out = io.StringIO()
    write_explanations([found], (), out, words)
    return out.getvalue()


def test_lines_fit_a_page(scanned: Scanned) -> None:
    """Only what cannot be broken, the name of a file or of a function, is longer."""
    for _, found in of_kinds(scanned):
        assert max(map(len, text_of(found, "none").splitlines())) <= 100


# Texts ------------------------------------------------------------------------------------------


def row(table: list[Case], claim: str) -> Case:
    """The one row of a table whose claim begins with some words."""
    (found,) = [case for case in table if case.claim.startswith(claim)]
    return found


def shown(make: Made, table: list[Case], claim: str) -> str:
    return text_of(explained(make, row(table, claim))[1], "none")


def test_a_provider_that_leads_elsewhere_is_shown_with_its_numbers() -> None:
    """Both rules with both results, and the reason."""
    text = shown(test_walk_arm64.Kernel, test_walk_metadata.ARM64, "3: two providers find")
    step = text[text.index("leaf+") :]
    assert "rule: cfa = sp, pc = lr   [provider 0]" in step
    assert "also: cfa = sp + 16, fp = *(cfa - 16), pc = *(cfa - 8)   [provider 1]" in step
    assert "also: pc = *(fp + 8), sp = fp + 16, fp = *fp   [frame records]" in step
    assert "3 providers-disagree (advisory)" in " ".join(step.split())


def test_a_rule_that_needs_more_than_is_known_says_so() -> None:
    """As that of a frame whose registers nothing tells any more."""
    case = row(test_walk_metadata.ARM64, "without metadata")
    rules = test_walk_metadata.at("entry+7", test_walk_metadata.FRAMED)
    kernel = test_walk_arm64.Kernel(case.words, **rules)
    found = explain_walk(kernel.unwinder, kernel.task(**case.task), supported=True)
    assert "has no numbers here: it needs more than is known" in text_of(found, "none")


@pytest.mark.parametrize(
    ("make", "table", "claim", "words"),
    [
        (
            test_walk_arm64.Kernel,
            test_walk_metadata.ARM64,
            "4.4: a link register that the function graph tracer",
            "return_to_handler is the function graph tracer's; the real one is on the tracer's "
            "own stack of the task",
        ),
        (
            test_walk_arm64.Kernel,
            test_walk_metadata.ARM64,
            "4.4: one that a kretprobe has replaced",
            "arch_rethook_trampoline is a return probe's; the real one is in the task's list",
        ),
        (
            test_walk_arm64.Kernel,
            test_walk_metadata.ARM64,
            "4.6: a link register with an authentication code",
            "without its authentication code: pc = 0x",
        ),
    ],
)
def test_a_replaced_address_says_where_the_real_one_was(
    make: Made, table: list[Case], claim: str, words: str
) -> None:
    """Which tracer's it was, which list had the real one, and what it is."""
    assert words in " ".join(shown(make, table, claim).split())


def test_a_trampolines_address_may_be_signed() -> None:
    """As on arm64, where the tracer's address is in a register that the function then signs."""
    words = test_walk_metadata.arm64_leaf(test_walk_arm64.signed("return_to_handler+0"))
    case = row(test_walk_metadata.ARM64, "4.4: a link register that the function graph tracer")
    kernel = test_walk_arm64.Kernel(words, **case.setup)
    found = explain_walk(kernel.unwinder, kernel.task(**case.task), supported=True)
    check(found, kernel.unwinder)
    replaced = found.steps[2].replaced
    assert replaced and replaced.why.startswith("return_to_handler is the function graph tracer's")


def test_formulas_are_broken_between_assignments(scanned: Scanned) -> None:
    """No line of a step begins in the middle of one."""
    for _, found in of_kinds(scanned):
        for line in text_of(found, "none").splitlines():
            assert not re.match(r" {10}([-+=]|\d+\)|\*\()", line)


def test_a_task_without_a_frame_says_why() -> None:
    """Whose saved stack pointer is not on its stack."""
    case = next(
        c for c in test_walk_x86.CASES if c.reasons == ["sp-outside-stack"] and not c.frames
    )
    _, found = explained(test_walk_x86.Kernel, case)
    text = text_of(found)
    assert found.steps == ()
    assert "2 sp-outside-stack (refused) before frame #0" in text
    assert "The kernel's walk: refused after 0 frames for sp-outside-stack." in text


def test_a_task_that_has_exited_says_so() -> None:
    """There is no stack to walk and none to draw."""
    case = test_walk_x86.CASES[0]
    kernel = test_walk_x86.Kernel(case.words, **case.setup)
    task = kernel.task(exit_state=16, stack_references=0)
    text = text_of(explain_walk(kernel.unwinder, task, supported=True))
    assert "not begun: the task has exited and has no stack any more" in text


def test_a_running_task_says_that_the_kernel_does_not_walk(scanned: Scanned) -> None:
    """And shows where its CPU was."""
    for report in scanned.reports:
        if any(reason.id == "running" for reason in report.reasons):
            task = scanned.kernel.tasks.read(report.task)
            text = text_of(explain_task(scanned.kernel, task), "none")
            assert ("(crash registers)" in text) == bool(report.frames)
            assert "The kernel's walk: not made: the task is running on a CPU." in text
            assert "came as far as this" not in text


def test_where_the_kernel_gave_up_is_marked_once(scanned_6_1: Scanned) -> None:
    """Between the steps, with the frames that only the kernel had at the end."""
    pid = scanned_6_1.task("u_fg_krp").pid
    (task,) = scanned_6_1.kernel.tasks.select([str(pid)])
    text = text_of(explain_task(scanned_6_1.kernel, task), "none")
    assert text.count("The kernel's own walk came as far as this: refused after 5 frames") == 1
    assert "Frames that only the kernel's walk had: #4 return_to_handler+0x0." in text
    before, after = text.split("  -- The kernel's own walk")
    assert "#3 vmlab_fg_krp" in before and "#4 act_fg_krp" in after


def test_a_walk_from_stack_to_stack() -> None:
    """The rule's word on the next stack is read, and the stacks are drawn in the walk's order."""
    case = row(test_walk_x86.CASES, "the walk passes from the interrupt stack")
    _, found = explained(test_walk_x86.Kernel, case)
    assert [stack.name for stack in found.stacks] == ["irq", "task"]
    step = next(step for step in found.steps if step.rules[0].formula.startswith("cfa = *sp"))
    assert step.stack == "irq" and found.steps[step.frame + 1].stack == "task"
    assert step.rules[0].values[1].value == found.report.frames[step.frame + 1].pc


def test_words_that_are_asked_for_are_drawn(scanned_6_1: Scanned) -> None:
    """Those with a note, all, or none."""
    (task,) = scanned_6_1.kernel.tasks.select(["1"])
    found = explain_task(scanned_6_1.kernel, task)
    (stack,) = found.stacks
    drawn = {words: text_of(found, words).count("\n  0x") for words in ("marked", "all", "none")}
    assert drawn["none"] == 0 < drawn["marked"] < drawn["all"] == len(stack.words)


def test_a_watched_walk_is_the_walk(scanned_6_1: Scanned) -> None:
    """Watching changes nothing, during it or after."""
    kernel = scanned_6_1.kernel
    for report in kinds(scanned_6_1):
        task = kernel.tasks.read(report.task)
        explain_task(kernel, task)
        walk = walk_task(kernel.unwinder, task)
        proof = walk_task(kernel.unwinder, task, proving=True)
        again = report_of(task, walk, proof, supported=True)
        assert (again.kernel, again.proof) == (report.kernel, report.proof)
