# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is kept of a dump: the record of real ones, when two stacks are the same, and what is
refused of a process that a dump has led astray."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from drgn_reliable.fleet.child import Said, said_of
from drgn_reliable.fleet.record import BadRecord, Record, StackRecord, record_of
from drgn_reliable.model import Code, CodeKind, CodeRole, DumpReport, FoundBy, Frame, TaskReport
from drgn_reliable.transition import Decision
from tests.dumps import DUMPS, TRANSITIONS, Dump
from tests.fleets import Real, real, record, row, stack

# Real dumps --------------------------------------------------------------------------------------


@pytest.fixture(params=TRANSITIONS, ids=lambda dump: dump.name)
def scanned(request: pytest.FixtureRequest) -> Real:
    return real(request.param)


def test_a_record_has_every_task_and_what_is_said_of_it(scanned: Real) -> None:
    found = scanned.record
    assert (found.release, found.architecture) == (scanned.report.release,
                                                   scanned.report.architecture)  # fmt: skip
    assert len(found.tasks) == len(scanned.report.tasks)
    for kept, task in zip(found.tasks, scanned.report.tasks, strict=True):
        assert kept[:10] == (
            f"{task.task:#x}", task.pid, task.tgid, task.cpu, task.comm, task.state,
            task.kind.value, task.kernel.verdict.value, task.kernel.errno,
            task.proof.verdict.value,
        )  # fmt: skip
        assert [(r.id, r.frame, r.detail) for r in kept.reasons] == [
            (r.id, r.frame, r.detail) for r in task.reasons
        ]


def test_a_record_has_every_frame_by_name_or_address(scanned: Real) -> None:
    for kept, task in zip(scanned.record.tasks, scanned.report.tasks, strict=True):
        frames = scanned.record.stacks[kept.stack].frames
        assert [f.symbol or f.address for f in frames] == [f.function for f in task.frames]
        assert [(f.code, f.role, f.module, f.of) for f in frames] == [
            (f.code.kind.value, f.code.role.value, f.code.module, f.code.of) for f in task.frames
        ]
        assert all((f.symbol is None) is (f.address is not None) for f in frames)


def test_the_reason_of_a_refusal_is_marked_where_the_kernel_refused(scanned: Real) -> None:
    for task in scanned.record.tasks:
        marked = [reason.refused for reason in task.reasons].count(True)
        assert marked == (task.kernel in ("unreliable", "running")), task


def test_a_record_has_each_stack_once(scanned: Real) -> None:
    stacks = scanned.record.stacks
    assert len({stack.hash for stack in stacks}) == len({s.frames for s in stacks}) == len(stacks)
    assert {task.stack for task in scanned.record.tasks} == set(range(len(stacks)))


def test_a_record_has_the_transition_as_klp_tells_it(scanned: Real) -> None:
    found, livepatch = scanned.record, scanned.livepatch
    assert [patch.name for patch in found.patches] == [patch.name for patch in livepatch.patches]
    if livepatch.transition is None:
        assert found.transition is None and found.pending == ()
        return
    assert found.transition is not None
    assert found.transition.patch == livepatch.transition.patch
    assert found.transition.pending == livepatch.transition.pending == len(found.pending)
    assert found.transition.switched == livepatch.transition.switched
    assert found.transition.stalled is any(
        task.decision is not Decision.WOULD_SWITCH for task in livepatch.tasks
    )
    for kept, task in zip(found.pending, livepatch.tasks, strict=True):
        assert found.tasks[kept.task].pid == task.report.pid
        assert found.tasks[kept.task].comm == task.report.comm
        assert kept.decision == task.decision.value
        assert {blocker.function for blocker in kept.blockers} == set(task.functions)


@pytest.mark.parametrize("dump", [*TRANSITIONS[:2], DUMPS[0]], ids=lambda dump: dump.name)
def test_a_record_goes_through_the_pipe_unchanged(dump: Dump) -> None:
    found = real(dump).record
    line = msgspec.json.encode(Said(outcome="scanned", record=found))
    assert b"\n" not in line
    said = said_of(line)
    assert said.record == found
    assert json.loads(json.dumps(found.facts)) == found.facts != {}


def test_what_was_missing_makes_a_record_incomplete() -> None:
    assert record("1 init reliable proven do_wait").status == "whole"
    assert record(warnings=("damaged .eh_frame",)).status == "whole"
    assert record(problems=("the list of modules breaks off",)).status == "incomplete"


def test_kernels_of_two_releases_have_stacks_in_common() -> None:
    """Of 6.1 and 7.2, a third at least of what is normalised; nothing of what is not."""
    old, new = (
        real(next(dump for dump in DUMPS if dump.name == name)).record.stacks
        for name in ("x86_64-6.1.kdump", "x86_64-7.2.kdump")
    )
    normal_old, normal_new = ({each.normalised for each in stacks} for stacks in (old, new))
    common = normal_old & normal_new
    assert 3 * len(common) >= min(len(normal_old), len(normal_new))
    trivial = {each.hash for each in old if len(each.frames) <= 1}
    assert {each.hash for each in old} & {each.hash for each in new} <= trivial


# When two stacks are the same --------------------------------------------------------------------

SLEEPS = "__schedule+0x3a0 schedule+0x5e do_nanosleep+0x6b vfs_wait.isra.0+0x10 ret_from_fork+0x1"


def stack_of(text: str) -> StackRecord:
    (found,) = _recorded(stack(text)).stacks
    return found


def _recorded(*stacks: tuple[Frame, ...]) -> Record:
    tasks = []
    for pid, frames in enumerate(stacks):
        plain = row(f"{pid} task reliable proven").task
        members = {name: getattr(plain, name) for name in TaskReport.__slots__}
        tasks.append(TaskReport(**{**members, "frames": frames}))
    return record_of(DumpReport("vmcore", "6.12", "x86_64", "ORC", "", "", tuple(tasks)))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(SLEEPS.replace("0x6b", "0x70"), id="offset"),
        pytest.param(SLEEPS.replace("vfs_wait.isra.0", "vfs_wait"), id="no suffix"),
        pytest.param(SLEEPS.replace(".isra.0", ".constprop.12.cold"), id="other suffixes"),
        pytest.param(SLEEPS.replace(".isra.0", ".llvm.1234567890"), id="suffix of clang"),
        pytest.param(SLEEPS.replace("+0x10", "+0x10[nanosleep]"), id="module"),
        pytest.param(SLEEPS.replace(" ret_from_fork+0x1", ""), id="no entry code"),
        pytest.param(SLEEPS + " entry_SYSCALL_64+0x76", id="more entry code"),
    ],
)
def test_builds_differ_and_normalised_they_do_not(other: str) -> None:
    one, two = stack_of(SLEEPS), stack_of(other)
    assert one.hash != two.hash
    assert one.normalised == two.normalised


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(SLEEPS.replace("do_nanosleep", "do_nanosleep2"), id="another function"),
        pytest.param(SLEEPS.replace("vfs_wait", "vfs"), id="a shorter name"),
        pytest.param(" ".join(reversed(SLEEPS.split())), id="the other way round"),
        pytest.param(SLEEPS.replace("schedule+0x5e ", ""), id="one function less"),
        pytest.param(SLEEPS.replace("schedule+0x5e", "schedule+0x5e schedule+0x5e"), id="twice"),
        pytest.param("0x1000 " + SLEEPS, id="code without a name"),
        pytest.param("", id="empty"),
        pytest.param(SLEEPS.replace("vfs_wait.isra.0", "vfs_wait.island"), id="no suffix at all"),
    ],
)
def test_other_functions_are_another_stack(other: str) -> None:
    one, two = stack_of(SLEEPS), stack_of(other)
    assert one.hash != two.hash
    assert one.normalised != two.normalised


def test_the_number_of_a_bpf_trampoline_does_not_matter() -> None:
    """It is that of a type in the kernel's BTF, another in each build."""
    one, two = stack_of("bpf_trampoline_6442517602 f"), stack_of("bpf_trampoline_6442499999 f")
    assert one.hash != two.hash
    assert one.normalised == two.normalised != stack_of("bpf_prog_10cb755b70ef1f14 f").normalised


def test_where_code_without_a_name_lies_does_not_matter() -> None:
    one, two = stack_of("0x1000 schedule"), stack_of("0x2000 schedule")
    assert one.hash != two.hash
    assert one.normalised == two.normalised


def test_names_do_not_run_into_each_other() -> None:
    """Nor does a function that has the name of what code without a name is there for."""
    assert stack_of("ab c").normalised != stack_of("a bc").normalised
    named = Frame(Code(0x1000, CodeKind.CORE, "f", 0, None, None, CodeRole.KPROBE), 0, FoundBy.ORC)
    bare = Frame(Code(0x1000, CodeKind.CORE, None, 0, None, None, CodeRole.KPROBE), 0, FoundBy.ORC)
    assert _recorded((named,)).stacks[0].normalised != _recorded((bare,)).stacks[0].normalised


def test_tasks_share_the_stacks_that_are_the_same() -> None:
    found = _recorded(stack("a b"), stack("c"), stack("a b"), stack("a+0x9 b"), ())
    assert [task.stack for task in found.tasks] == [0, 1, 0, 2, 3]
    assert Counter(len(each.frames) for each in found.stacks) == {2: 2, 1: 1, 0: 1}


def test_a_channel_is_where_a_task_waits() -> None:
    """By the function's own name: another build has another suffix, and is to meet this one."""
    found = record(
        "1 a reliable proven __schedule schedule do_wait vfs_read",
        "2 b reliable proven schedule do_wait.isra.0.cold",
        "3 c reliable proven",
    )
    assert [task.waits_in for task in found.tasks] == ["do_wait", "do_wait", None]


# Text that is hostile ----------------------------------------------------------------------------


def test_names_from_a_dump_are_text_that_any_program_takes() -> None:
    """No lone surrogates, as bytes that are no UTF-8 become, and no NUL."""
    plain = row("1 task unreliable refuted ! loop").task
    members: dict[str, Any] = {name: getattr(plain, name) for name in TaskReport.__slots__}
    code = Code(1, CodeKind.MODULE, "f\udcff", 0, "m\0", None, CodeRole.FUNCTION, "o\ud800")
    members |= {"comm": "a\udce9\0b", "frames": (Frame(code, 0, FoundBy.ORC),)}
    members["reasons"] = tuple(r._replace(detail="\0\udcff") for r in plain.reasons)
    report = DumpReport("vmcore", "6\0", "x", "u", "t", "s", (TaskReport(**members),), ("p\0",))
    facts = {"uts": {"node": "a\udcff", "list": ["\0"]}, "n": 1}
    found = record_of(report, facts=facts)
    text = msgspec.json.encode(found).decode()
    assert "\\u0000" not in text
    assert found.tasks[0].comm == "a\\udce9\\x00b"
    assert found.stacks[0].frames[0][:3] == ("f\\udcff", 0, "m\\x00")
    assert found.facts == {"uts": {"node": "a\\udcff", "list": ["\\x00"]}, "n": 1}
    assert found.problems == ("p\\x00",)


TASK = '["0x1",1,1,0,"c","S","user","reliable",0,"proven",0,null,[]]'
TASK_BEFORE = TASK.replace('"proven",0', '"proven",-1')
STACK = msgspec.json.encode(stack_of("")).decode()
PENDING = '[0,"sleeping",null,null,"runs","","",[]]'


def said(members: str) -> bytes:
    return f'{{"outcome":"scanned","record":{{"status":"whole",{members}}}}}'.encode()


def test_what_is_refused_below_is_taken_when_it_is_right() -> None:
    line = said(f'"stacks":[{STACK}],"tasks":[{TASK}],"pending":[{PENDING}]')
    found = said_of(line).record
    assert found is not None and len(found.tasks) == len(found.pending) == 1


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"Segmentation fault", id="no JSON"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"stage":"opening"', id="cut off"),
        pytest.param(b'{"stage":7}', id="stage is a number"),
        pytest.param(b'{"stage":"x","done":"7"}', id="done is text"),
        pytest.param(said('"tasks":{}'), id="tasks are an object"),
        pytest.param(said('"tasks":[[1,2]]'), id="task is short"),
        pytest.param(said(f'"unknown":1,"tasks":[{TASK}]'), id="unknown member"),
        pytest.param(said(f'"crashed":{1 << 63}'), id="integer of 65 bits"),
        pytest.param(said('"crashed":true'), id="truth for a number"),
        pytest.param(said('"crashed":' + "9" * 5000), id="huge integer"),
        pytest.param(said('"facts":{"a":1e999}'), id="infinite"),
        pytest.param(said('"facts":{"a":NaN}'), id="not a number"),
        pytest.param(said('"facts":{"a":' + "[" * 99999 + "]" * 99999 + "}"), id="deep nesting"),
        pytest.param(said('"detail":"\\ud800"'), id="lone surrogate"),
        pytest.param(said('"detail":"@"').replace(b"@", b"\xed\xa0\x80"), id="its bytes"),
        pytest.param(said(f'"tasks":[{TASK}]'), id="task without a stack"),
        pytest.param(said(f'"stacks":[{STACK}],"tasks":[{TASK_BEFORE}]'), id="stack -1"),
        pytest.param(said(f'"pending":[{PENDING}]'), id="pending without a task"),
    ],
)  # fmt: skip
def test_nonsense_from_a_process_is_no_record(line: bytes) -> None:
    with pytest.raises(BadRecord):
        said_of(line)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(said("").replace(b",}", b"}").replace(b"whole", b"fine"), id="status"),
        pytest.param(
            said(f'"stacks":[{STACK}],"tasks":[{TASK.replace("reliable", "perhaps")}]'),
            id="kernel verdict",
        ),
        pytest.param(
            said(f'"stacks":[{STACK}],"tasks":[{TASK.replace("proven", "perhaps")}]'),
            id="proof verdict",
        ),
        pytest.param(
            said(f'"stacks":[{STACK}],"tasks":[{TASK[:-3]}[["bogus",0,"",true]]]]'), id="reason"
        ),
        pytest.param(
            said(f'"stacks":[{STACK}],"tasks":[{TASK}],"pending":[{PENDING},{PENDING}]'),
            id="pending twice",
        ),
        pytest.param(
            said('"stacks":[["' + "0" * 32 + '","",[[null,0,null,"core","function",null,null]]]]'),
            id="frame with neither name nor address",
        ),
        pytest.param(
            said(f'"stacks":[{msgspec.json.encode(stack_of("f")._replace(frames=())).decode()}]'),
            id="hash of another stack",
        ),
        pytest.param(b'{"outcome":"scanned"}', id="scanned without a record"),
    ],
)
def test_what_no_store_and_no_report_would_take_is_no_record(line: bytes) -> None:
    """It would not end one dump, but the scan of all, or every report of the store."""
    with pytest.raises(BadRecord):
        said_of(line)


def test_a_nul_from_a_process_is_cleaned_or_refused() -> None:
    """SQLite ends a text there. What looks like one in JSON is none."""
    with suppress(BadRecord):
        found = said_of(said('"detail":"a\\u0000b"')).record
        assert found is not None and "\0" not in (found.detail or "")
    plain = said_of(said(r'"detail":"\\u0000"')).record
    assert plain is not None and plain.detail == r"\u0000"
