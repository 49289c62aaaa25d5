# SPDX-License-Identifier: LGPL-2.1-or-later
"""The x86_64 ORC walk on hand-written stacks: each rule and each reason, a row each.

A stack is written from the saved stack pointer up to its top, see :mod:`tests.walkers`. Expected
verdicts and frames are read off arch/x86/kernel/unwind_orc.c and stacktrace.c, not computed.
"""

from __future__ import annotations

import pytest

from drgn_reliable.judge import proof_answer
from drgn_reliable.model import FoundBy, TaskKind
from drgn_reliable.tables.orc import FRAME_POINTER_RULE, Base, Rule, Shape
from drgn_reliable.walk import walk_task
from tests.stacks import (
    CALL,
    END,
    IRQ,
    NMI,
    PARTIAL,
    REGS,
    UNDEFINED,
    Kernel,
    call,
    iret_frame,
    kernel_regs,
    switch_frame,
    user_regs,
)
from tests.walkers import INIT_TASK, STACK, TOP, Case, check

ASLEEP = switch_frame("__schedule+5")
"""What every task that sleeps has at its saved stack pointer."""
TO_USER = ["schedule+5", "sys_read+5", "entry+5", *user_regs()]
FRAMES = ["__schedule", "schedule", "sys_read", "entry"]
FRED_PAD = [0, 0]


ENDS = [
    Case(
        "a user task's trace ends at the registers of its entry from user mode",
        [*ASLEEP, *TO_USER],
        FRAMES,
    ),
    Case(
        "a kernel thread's trace ends in the fork return, just below the registers' place",
        [*ASLEEP, "kthread+5", "ret_from_fork_asm+5", *[0] * 21],
        ["__schedule", "kthread", "ret_from_fork_asm"],
        task={"kind": TaskKind.KTHREAD},
    ),
    Case(
        "a task that never ran has the fork return as its only frame",
        [*switch_frame("ret_from_fork_asm"), *[0] * 21],
        ["ret_from_fork_asm"],
    ),
    Case(
        "where the kernel compares with the C function, it looks up the byte before the stub",
        [*switch_frame("ret_from_fork_asm"), *[0] * 21],
        ["ret_from_fork"],
        kernel="unreliable",
        proof="undecided",
        reasons=["undefined-unwind-data"],
        setup={"fork_return_taken": "ret_from_fork", "rules": {"ret_from_fork": UNDEFINED}},
    ),
    Case(
        "an idle task's trace ends in the startup code near the top of its stack",
        [*ASLEEP, "foo+5", "common_startup_64+9", *[0] * 21],
        ["__schedule", "foo", "common_startup_64"],
        task={"kind": TaskKind.IDLE},
    ),
    Case(
        "a task whose stack is gone is reliable with no entries",
        [*ASLEEP, *TO_USER],
        [],
        task={"stack_references": 0},
    ),
    Case(
        "a return address after a call that does not return belongs to the call's function",
        [*ASLEEP, "noreturn_call", *TO_USER],
        ["__schedule", "bar", *FRAMES[1:]],
    ),
    Case(
        "4.1: the end of a stack in a function where no stack begins: the kernel is content",
        [*ASLEEP, "foo+5", *[0] * 21],
        ["__schedule", "foo"],
        proof="undecided",
        reasons=["end-unexpected"],
        setup={"rules": {"foo": END}},
    ),
    Case(
        "4.1: the fork return away from the top of the stack: the kernel is content",
        [*ASLEEP, "ret_from_fork_asm+5", *[0] * 40],
        ["__schedule", "ret_from_fork_asm"],
        proof="undecided",
        reasons=["end-unexpected"],
    ),
    Case(
        "4.1: user registers away from the top of the stack: the kernel is content",
        [*ASLEEP, *TO_USER, 0, 0],
        FRAMES,
        proof="undecided",
        reasons=["user-regs-misplaced"],
    ),
]

RULES = [
    Case(
        "the frame base is SP plus an offset",
        [*ASLEEP, "foo+5", 1, 2, 3, *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        setup={"rules": {"foo": call(32)}},
    ),
    Case(
        "the frame base is the saved BP plus an offset",
        [*switch_frame("__schedule+5", bp=TOP - 8 * 24), "foo+5", 1, 2, 0, *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        setup={"rules": {"foo": Rule(Shape.CALL, False, Base.BP, 8, Base.UNDEFINED, 0)}},
    ),
    Case(
        "BP is restored from the frame, at an offset from its top",
        [*ASLEEP, "foo+5", TOP - 8 * 24, "bar+5", 7, 0, *TO_USER],
        ["__schedule", "foo", "bar", *FRAMES[1:]],
        setup={
            "rules": {
                "foo": call(16, bp=-16),
                "bar": Rule(Shape.CALL, False, Base.BP, 8, Base.UNDEFINED, 0),
            }
        },
    ),
    Case(
        "the frame base is in memory at SP",
        [*ASLEEP, "foo+5", TOP - 8 * 24, 9, *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        setup={"rules": {"foo": Rule(Shape.CALL, False, Base.SP_INDIRECT, 8, Base.UNDEFINED, 0)}},
    ),
    Case(
        "the frame base is in memory at BP plus an offset",
        [*switch_frame("__schedule+5", bp=TOP - 8 * 27), "foo+5", 0, TOP - 8 * 23, 9, *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        setup={"rules": {"foo": Rule(Shape.CALL, False, Base.BP_INDIRECT, 8, Base.UNDEFINED, 0)}},
    ),
    Case(
        "an exception in the kernel is crossed by its saved registers",
        [
            *ASLEEP,
            "asm_interrupt+5",
            *kernel_regs("foo+7", TOP - 8 * 24),
            *TO_USER,
        ],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
    ),
    Case(
        "an exception at the very first instruction of a function is looked up as it is",
        [*ASLEEP, "asm_interrupt+5", *kernel_regs("leaf", TOP - 8 * 24), *TO_USER],
        ["__schedule", "asm_interrupt", "leaf", *FRAMES[1:]],
    ),
    Case(
        "only the words that the CPU pushed: program counter and stack pointer are there",
        [*ASLEEP, "asm_interrupt+5", *iret_frame("foo+7", TOP - 8 * 24), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        setup={"rules": {"asm_interrupt": PARTIAL}},
    ),
    Case(
        "a stack swapped in a register is found by the exception's saved registers",
        [
            *ASLEEP,
            "asm_interrupt+5",
            *kernel_regs("foo+7", TOP - 8 * 28, r10=TOP - 8 * 23),
            0,
            0,
            "schedule+5",
            *TO_USER[1:],
        ],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        setup={"rules": {"foo": Rule(Shape.CALL, False, Base.R10, 0, Base.UNDEFINED, 0)}},
    ),
    Case(
        "BPF that keeps a frame pointer (7.0) is followed by it and is reliable",
        [*switch_frame("__schedule+5", bp=TOP - 8 * 26), "bpf+5", 0, "foo+5", *TO_USER],
        ["__schedule", "bpf_prog", "foo", *FRAMES[1:]],
        setup={"rules": {"bpf": FRAME_POINTER_RULE}},
    ),
]

CORRUPT = [
    Case(
        "2: a saved stack pointer outside the stack",
        [*ASLEEP, *TO_USER],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["sp-outside-stack"],
        task={"saved_sp": STACK - 0x1000},
    ),
    Case(
        "2: a saved stack pointer whose context would reach beyond the stack",
        [*ASLEEP, *TO_USER],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["sp-outside-stack"],
        task={"saved_sp": TOP - 48},
    ),
    Case(
        "2: a frame base beyond the stack",
        [*ASLEEP, "foo+5", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["slot-outside-stack"],
        setup={"rules": {"foo": call(0x5000)}},
    ),
    Case(
        "2: an exception's registers beyond the top of the stack",
        [*ASLEEP, "asm_interrupt+5", 1, 2],
        ["__schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["regs-outside-stack"],
    ),
    Case(
        "2: a stack pointer that goes down",
        [*switch_frame("__schedule+5", bp=TOP - 8 * 30), "foo+5", "bar+5", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["wrong-direction"],
        setup={"rules": {"foo": Rule(Shape.CALL, False, Base.BP, 0, Base.UNDEFINED, 0)}},
    ),
    Case(
        "2: a page in the middle of the stack that the dump lacks: never taken for zeroes",
        [*ASLEEP, *["foo+5"] * 541, *TO_USER],
        ["__schedule", *["foo"] * 53],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(100, 101)},
    ),
    Case(
        "2: the saved context itself on a page that the dump lacks",
        [*ASLEEP, *TO_USER],
        [],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(1)},
    ),
    Case(
        "2: unwind data that the dump lacks",
        [*ASLEEP, *TO_USER],
        ["__schedule"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"orc_readable": False},
    ),
    Case(
        "2: an overwritten end of the stack: the kernel does not look",
        [*ASLEEP, *TO_USER],
        FRAMES,
        proof="undecided",
        reasons=["stack-end-overwritten"],
        setup={"magic": 0},
    ),
    Case(
        "2: a return address that no call left: the kernel does not look",
        [*ASLEEP, "foo+5", *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        proof="undecided",
        reasons=["no-call-before"],
        setup={"no_call": "foo+5"},
    ),
    Case(
        "2: 99 entries fit",
        [*ASLEEP, *["foo+5"] * 95, *TO_USER],
        ["__schedule", *["foo"] * 95, *FRAMES[1:]],
    ),
    Case(
        "2: the hundredth entry fills the livepatch code's buffer",
        [*ASLEEP, *["foo+5"] * 96, *TO_USER],
        ["__schedule", *["foo"] * 96, *FRAMES[1:]],
        kernel="unreliable",
        proof="proven",
        reasons=["too-deep"],
    ),
    Case(
        "2: an unknown base register in the unwind data",
        [*ASLEEP, "foo+5", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["bad-unwind-data"],
        setup={"rules": {"foo": Rule(Shape.CALL, False, None, 8, Base.UNDEFINED, 0)}},
    ),
    Case(
        "2: an unknown frame type in the unwind data",
        [*ASLEEP, "foo+5", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["bad-unwind-data"],
        setup={"rules": {"foo": Rule(Shape.UNKNOWN, False, Base.SP, 8, Base.UNDEFINED, 0)}},
    ),
    Case(
        "2: an unknown base of BP in the unwind data",
        [*ASLEEP, "foo+5", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["bad-unwind-data"],
        setup={"rules": {"foo": Rule(Shape.CALL, False, Base.SP, 8, Base.SP, 0)}},
    ),
]

METADATA = [
    Case(
        "3: whether the kernel enabled ORC is not in the dump",
        [*ASLEEP, *TO_USER],
        FRAMES,
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"initialised": None},
    ),
    Case(
        "3: the kernel never enabled ORC; the tables in the dump still show the trace",
        [*ASLEEP, *TO_USER],
        FRAMES,
        kernel="unreliable",
        proof="undecided",
        reasons=["orc-not-initialised"],
        setup={"initialised": False},
    ),
    Case(
        "3: a module without unwind data; what follows it is a guess by frame pointer",
        [*switch_frame("__schedule+5", bp=TOP - 8 * 25), "module+5", 0, *TO_USER],
        ["__schedule", None, "schedule", *FRAMES[2:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["module-without-orc"],
        setup={"rules": {"module": None}},
    ),
    Case(
        "4.2: a return address that is no kernel text",
        [*ASLEEP, "nowhere+5", *TO_USER],
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "4.2: a zero for a return address",
        [*ASLEEP, 0, *TO_USER],
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "4.2: core text without unwind data",
        [*switch_frame("__schedule+5", bp=TOP - 8 * 25), "foo+5", 0, *TO_USER],
        ["__schedule", "foo", "schedule", *FRAMES[2:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["no-unwind-data"],
        setup={"rules": {"foo": None}},
    ),
    Case(
        "4.2: BPF without unwind data; a bad guess after it refutes nothing",
        [*switch_frame("__schedule+5", bp=0x1234), "bpf+5", 0, *TO_USER],
        ["__schedule", "bpf_prog"],
        kernel="unreliable",
        proof="undecided",
        reasons=["bpf-no-unwind-data", "slot-outside-stack"],
    ),
    Case(
        "4.2: interrupted in a kprobe's instruction slot",
        [
            *ASLEEP,
            "asm_interrupt+5",
            *kernel_regs("kprobe+3", TOP - 8 * 24, bp=TOP - 8 * 25),
            *TO_USER,
        ],
        ["__schedule", "asm_interrupt", "kprobe_insn_page", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["kprobe-slot"],
    ),
    Case(
        "4.2: unwind data that mark the code as not unwindable",
        [*ASLEEP, "undefined+5", *TO_USER],
        ["__schedule", "undefined"],
        kernel="unreliable",
        proof="undecided",
        reasons=["undefined-unwind-data"],
    ),
    Case(
        "4.2: a frame base in a register that no exception saved",
        [*ASLEEP, "foo+5", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["register-unknown"],
        setup={"rules": {"foo": Rule(Shape.CALL, False, Base.R10, 0, Base.UNDEFINED, 0)}},
    ),
    Case(
        "4.2: a frame in freed init text: the kernel takes it for text",
        [*ASLEEP, "start_kernel+5", *TO_USER],
        ["__schedule", "start_kernel", *FRAMES[1:]],
        proof="undecided",
        reasons=["init-text-freed"],
    ),
    Case(
        "4.2: the boot CPU's idle task keeps frames in init text rightly",
        [*ASLEEP, "start_kernel+5", "common_startup_64+9", *[0] * 21],
        ["__schedule", "start_kernel", "common_startup_64"],
        task={"address": INIT_TASK, "kind": TaskKind.IDLE},
    ),
    Case(
        "4.2: the vsyscall page: the kernel takes it for text",
        [*ASLEEP, "vsyscall+5", *TO_USER],
        ["__schedule", None, *FRAMES[1:]],
        proof="undecided",
        reasons=["vsyscall-page"],
    ),
    Case(
        "4.3: a kernel with frame pointers refuses an exception that ORC data cross",
        [*ASLEEP, "asm_interrupt+5", *kernel_regs("foo+7", TOP - 8 * 24), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="proven",
        reasons=["exception-frame-pointer"],
        setup={"frame_pointers": True},
    ),
    Case(
        "4.3: nor is it known to take one if what tells is not in the dump",
        [*ASLEEP, "asm_interrupt+5", *kernel_regs("foo+7", TOP - 8 * 24), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"frame_pointers": None},
    ),
    Case(
        "4.5: in an optimised kprobe's detour",
        [*switch_frame("__schedule+5", bp=TOP - 8 * 25), "optprobe+5", 0, *TO_USER],
        ["__schedule", "kprobe_optinsn_page", "schedule", *FRAMES[2:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["optprobe-slot"],
    ),
]

REWRITTEN = [
    Case(
        "4.4: a graph-traced return address is found on the tracer's stack",
        [*ASLEEP, "foo+5", "return_to_handler", *TO_USER[1:]],
        ["__schedule", "foo", "schedule", *FRAMES[2:]],
        setup={"graph": {8: "schedule+5"}},
    ),
    Case(
        "4.4: a traced return address that is not found: the tracer's trampoline stops the walk",
        [*ASLEEP, "foo+5", "return_to_handler", *TO_USER],
        ["__schedule", "foo", "return_to_handler"],
        kernel="unreliable",
        proof="refuted",
        reasons=["fgraph-window", "fgraph-unrecovered"],
        setup={"rules": {"ret_from_fork_asm": UNDEFINED}},
    ),
    Case(
        "4.4: before 6.4 the trampoline looks like the end: the kernel takes the stump for whole",
        [*ASLEEP, "foo+5", "return_to_handler", *TO_USER],
        ["__schedule", "foo", "return_to_handler"],
        proof="refuted",
        reasons=["fgraph-unrecovered", "end-unexpected"],
        setup={"rules": {"return_to_handler": END}},
    ),
    Case(
        "4.4: a kretprobed return address is found in the task's list",
        [*ASLEEP, "foo+5", "arch_rethook_trampoline", *TO_USER[1:]],
        ["__schedule", "foo", "schedule", *FRAMES[2:]],
        setup={"probes": {8: "schedule+5"}},
    ),
    Case(
        "4.4: the kernel does not look for a runnable task's; the dump has it",
        [*ASLEEP, "foo+5", "arch_rethook_trampoline", *TO_USER[1:]],
        ["__schedule", "foo", "schedule", *FRAMES[2:]],
        kernel="unreliable",
        proof="proven",
        reasons=["rethook-task-runnable"],
        setup={"probes": {8: "schedule+5"}},
        task={"run_state": 0},
    ),
    Case(
        "4.4: kretprobes before rethook are looked up for runnable tasks too",
        [*ASLEEP, "foo+5", "arch_rethook_trampoline", *TO_USER[1:]],
        ["__schedule", "foo", "schedule", *FRAMES[2:]],
        setup={"probes": {8: "schedule+5"}, "refuses_runnable": False},
        task={"run_state": 0},
    ),
    Case(
        "4.4: a kretprobed return address that is nowhere",
        [*ASLEEP, "foo+5", "arch_rethook_trampoline", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["rethook-unrecovered"],
    ),
    Case(
        "4.4: interrupted just after returning to the trampoline: the slot is the word below SP",
        [
            *ASLEEP,
            "asm_interrupt+5",
            *kernel_regs("arch_rethook_trampoline", TOP - 8 * 24),
            *TO_USER,
        ],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        setup={"probes": {28: "foo+7"}},
    ),
    Case(
        "4.4: inside the kretprobe's trampoline",
        [*ASLEEP, "arch_rethook_trampoline+9", *TO_USER],
        ["__schedule", "arch_rethook_trampoline"],
        kernel="unreliable",
        proof="undecided",
        reasons=["rethook-window"],
    ),
    Case(
        "4.4: traced first, probed second: the kernel undoes the probe only, the dump both",
        [*ASLEEP, "foo+5", "arch_rethook_trampoline", *TO_USER[1:]],
        ["__schedule", "foo", "schedule", *FRAMES[2:]],
        kernel="unreliable",
        proof="proven",
        reasons=["fgraph-window", "fgraph-beneath-kretprobe"],
        setup={
            "probes": {8: "return_to_handler"},
            "graph": {8: "schedule+5"},
            "rules": {"ret_from_fork_asm": UNDEFINED},
        },
    ),
    Case(
        "4.4: probed first, traced second: the kernel undoes both",
        [*ASLEEP, "foo+5", "return_to_handler", *TO_USER[1:]],
        ["__schedule", "foo", "schedule", *FRAMES[2:]],
        setup={"graph": {8: "arch_rethook_trampoline"}, "probes": {8: "schedule+5"}},
    ),
    Case(
        "2: the tracer's stack is not in the dump",
        [*ASLEEP, "foo+5", "return_to_handler", *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"shadow_readable": False},
    ),
]

ON_TASK_STACK = {"ip": "foo+7", "sp": TOP - 8 * 24, "bp": 0, "cs": 0x10}
ON_IRQ_STACK = {"ip": "foo+7", "sp": IRQ.high - 32, "bp": 0, "cs": 0x10}
LEAVE_IRQ = Rule(Shape.CALL, False, Base.SP_INDIRECT, 8, Base.UNDEFINED, 0)
RUNNING = [
    Case(
        "a running task is shown from its CPU's registers",
        TO_USER,
        ["foo", *FRAMES[1:]],
        kernel="running",
        reasons=["running"],
        setup={"registers": ON_TASK_STACK},
        task={"on_cpu": True},
    ),
    Case(
        "a task running in user mode has no kernel frames",
        TO_USER,
        [],
        kernel="running",
        reasons=["running"],
        setup={"registers": {"ip": 0x7F0000001000, "sp": 0x7FFF00000000, "bp": 0, "cs": 0x33}},
        task={"on_cpu": True},
    ),
    Case(
        "a dump without the CPU's registers shows nothing of a running task",
        TO_USER,
        [],
        kernel="running",
        proof="undecided",
        reasons=["running", "no-crash-registers"],
        task={"on_cpu": True},
    ),
    Case(
        "the walk passes from the interrupt stack to the task's",
        TO_USER,
        ["foo", "bar", *FRAMES[1:]],
        kernel="running",
        reasons=["running"],
        setup={
            "registers": ON_IRQ_STACK,
            "rules": {"bar": LEAVE_IRQ},
            "more": {IRQ.high - 32: ["bar+5", TOP - 8 * 24, 0, 0]},
        },
        task={"on_cpu": True},
    ),
    Case(
        "4.2: in a function without unwind data the caller is searched for, and proves nothing",
        [7, "bar+5", 8, "kthread+5", *TO_USER],
        ["undefined", "kthread", *FRAMES[1:]],
        kernel="running",
        proof="undecided",
        reasons=["running", "undefined-unwind-data", "caller-searched"],
        setup={
            "registers": {"ip": "undefined+9", "sp": TOP - 8 * 28, "bp": 0, "cs": 0x10},
            "direct_calls": {"bar+5": "foo", "kthread+5": "undefined"},
        },
        task={"on_cpu": True},
    ),
    Case(
        "2: a walk that comes back to a stack it has left",
        TO_USER,
        ["foo", "bar", "schedule"],
        kernel="running",
        proof="refuted",
        reasons=["running", "stack-visited-twice", "slot-outside-stack"],
        setup={
            "registers": {**ON_IRQ_STACK, "bp": IRQ.high - 32},
            "rules": {
                "bar": LEAVE_IRQ,
                "schedule": Rule(Shape.CALL, False, Base.BP, 8, Base.UNDEFINED, 0),
            },
            "more": {IRQ.high - 32: ["bar+5", TOP - 8 * 24, 0, 0]},
        },
        task={"on_cpu": True},
    ),
    Case(
        "2: a stack pointer that is on none of the CPU's stacks",
        TO_USER,
        ["foo"],
        kernel="running",
        proof="refuted",
        reasons=["running", "sp-outside-stack", "slot-outside-stack"],
        setup={"registers": {**ON_TASK_STACK, "sp": 0xFFFFC90000200000}},
        task={"on_cpu": True},
    ),
    Case(
        "2: from the task's stack to the NMI stack: an NMI is never interrupted by its task",
        [NMI.high - 16, 0, *TO_USER],
        ["foo", "bar"],
        kernel="running",
        proof="refuted",
        reasons=["running", "stack-order", "not-kernel-text"],
        setup={
            "registers": {**ON_TASK_STACK, "sp": TOP - 8 * 26},
            "rules": {"foo": LEAVE_IRQ, "bar": CALL},
            "more": {NMI.low: [0] * 1022 + ["bar+5", 0]},
        },
        task={"on_cpu": True},
    ),
]

CASES = [*ENDS, *RULES, *CORRUPT, *METADATA, *REWRITTEN, *RUNNING]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.claim)
def test_stack(case: Case, again: bool) -> None:
    """Frames, both verdicts and the reasons of one stack."""
    check(case, Kernel(case.words, **case.setup), again=again)


def test_a_trace_without_end_is_a_loop() -> None:
    """2: a walk that repeats itself is stopped, whatever its unwind data say."""
    again = Rule(Shape.CALL, False, Base.BP, 8, Base.UNDEFINED, 0)
    sp = TOP - 8 * 21
    kernel = Kernel(
        [*switch_frame("foo+5", bp=sp - 8), "bar+5", *kernel_regs("foo+7", STACK - 8, bp=sp - 8)],
        rules={"foo": again, "bar": REGS},
    )
    walk = walk_task(kernel.unwinder, kernel.task(), proving=True)
    assert {"too-deep", "loop"} <= {reason.id for reason in walk.reasons}
    assert proof_answer(walk).verdict.value == "refuted"
    refusal = walk_task(kernel.unwinder, kernel.task())
    assert [reason.id for reason in refusal.reasons] == ["too-deep"]


def test_each_step_says_how_it_was_found() -> None:
    """The first frame is the scheduler's, the interrupted one comes from saved registers."""
    kernel = Kernel([*ASLEEP, "asm_interrupt+5", *kernel_regs("foo+7", TOP - 8 * 24), *TO_USER])
    walk = walk_task(kernel.unwinder, kernel.task())
    assert [frame.found_by for frame in walk.frames] == [
        FoundBy.SWITCH_FRAME,
        FoundBy.ORC,
        FoundBy.PT_REGS,
        FoundBy.ORC,
        FoundBy.ORC,
        FoundBy.ORC,
    ]


def test_evidence_names_the_word_that_is_wrong() -> None:
    """A reason carries the program counter, the stack pointer, the frame and the value read."""
    kernel = Kernel([*ASLEEP, "foo+5", 0xDEAD0000BEEF, *TO_USER])
    walk = walk_task(kernel.unwinder, kernel.task())
    (reason,) = walk.reasons
    assert reason.id == "not-kernel-text"
    assert reason.value == reason.pc == 0xDEAD0000BEEF
    assert (reason.frame, reason.sp) == (2, kernel.sp + 8 * 9)


def test_user_registers_of_a_fred_kernel_lie_two_words_lower() -> None:
    """FRED leaves 16 bytes above the user registers."""
    kernel = Kernel([*ASLEEP, *TO_USER, *FRED_PAD])
    kernel.unwinder.facts.user_regs_below_top += 16
    assert walk_task(kernel.unwinder, kernel.task()).reasons == []
