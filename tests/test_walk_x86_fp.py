# SPDX-License-Identifier: LGPL-2.1-or-later
"""The x86_64 walk by frame pointers on hand-written stacks: each rule and each reason, a row each.

A stack is written from the saved stack pointer up to its top, see :mod:`tests.walkers`. Expected
verdicts and frames are read off arch/x86/kernel/unwind_frame.c and stacktrace.c, not computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from drgn_reliable.arch.x86_fp import FramePointerUnwinder
from drgn_reliable.model import FoundBy, TaskKind
from drgn_reliable.walk import walk_task
from tests.stacks import IRQ, NMI, FakeFacts, X86Kernel, kernel_regs, regs, user_regs
from tests.walkers import HERE, INIT_TASK, STACK, TOP, Case, Up, Word, check

ABOVE = Up(2)
"""From the first word of a frame record to the word behind it."""


class Kernel(X86Kernel):
    """A kernel built with frame pointers."""

    def __init__(self, words: Iterable[Word], **others: Any) -> None:
        super().__init__(words, FakeFacts("ret_from_fork_asm"), **others)
        self.unwinder = FramePointerUnwinder(self.parts)


def record(pc: Word, up: Word = ABOVE) -> list[Word]:
    """A frame record; the next one is just above it."""
    return [up, pc]


def switched_out(up: Word = ABOVE, pc: Word = "__schedule+5") -> list[Word]:
    """A ``struct inactive_task_frame``, which ends with a frame record."""
    return [0, 0, 0, 0, 0, *record(pc, up)]


def encoded(words: int) -> Up:
    """A frame pointer that names registers so many words further up."""
    return Up(words, 1)


ASLEEP = switched_out()
LAST_RECORD = [0, "entry+5"]
TO_USER = [*record("schedule+5"), *record("sys_read+5"), *LAST_RECORD, *user_regs()]
FRAMES = ["__schedule", "schedule", "sys_read", "entry"]
NO_REGS = [0] * 21
KTHREAD = {"kind": TaskKind.KTHREAD}
HANDLER = [*ASLEEP, *record("foo+5"), 0x1234, "entry+5"]
"""With the last record three words lower than usual."""

ENDS = [
    Case(
        "a user task's trace ends at the record below the registers of its entry from user mode",
        [*ASLEEP, *TO_USER],
        FRAMES,
    ),
    Case(
        "a kernel thread's trace ends at the same place, where its registers are not of user mode",
        [*ASLEEP, *record("kthread+5"), encoded(2), "ret_from_fork_asm+5", *NO_REGS],
        ["__schedule", "kthread", "ret_from_fork_asm"],
        task=KTHREAD,
    ),
    Case(
        "an idle task's trace ends there too",
        [*ASLEEP, *record("foo+5"), 0, "common_startup_64+9", *NO_REGS],
        ["__schedule", "foo", "common_startup_64"],
        task={"kind": TaskKind.IDLE},
    ),
    Case(
        "a user task that never ran has the fork return as its only frame",
        [*switched_out(encoded(2), "ret_from_fork_asm"), *user_regs()],
        ["ret_from_fork_asm"],
    ),
    Case(
        "a kernel thread that never ran has it too",
        [*switched_out(encoded(2), "ret_from_fork_asm"), *NO_REGS],
        ["ret_from_fork_asm"],
        task=KTHREAD,
    ),
    Case(
        "an exception from user mode leaves the place of its registers as the frame pointer",
        [*ASLEEP, *record("foo+5"), encoded(2), "asm_interrupt+5", *user_regs()],
        ["__schedule", "foo", "asm_interrupt"],
    ),
    Case(
        "the last record may lie a word lower, with a copy of the return address: stack realigned",
        [*ASLEEP, *record("foo+5"), 0, "entry+5", "entry+5", *user_regs()],
        ["__schedule", "foo", "entry"],
    ),
    Case(
        "a word lower without the copy it is not the last, and what follows is not there",
        [*ASLEEP, *record("foo+5"), 0, "entry+7", "bar+5", *user_regs()],
        ["__schedule", "foo", "entry"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "the last record may lie three words lower, with a copy above it: an ftrace handler",
        [*HANDLER, 0x1234, "sys_read+5", "entry+5", *user_regs()],
        ["__schedule", "foo", "entry"],
    ),
    Case(
        "three words lower with another frame pointer above it is not the last",
        [*HANDLER, 0x1238, "sys_read+5", "entry+5", *user_regs()],
        ["__schedule", "foo", "entry"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "three words lower with another return address above it is not the last",
        [*HANDLER, 0x1234, "sys_read+5", "bar+5", *user_regs()],
        ["__schedule", "foo", "entry"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "a task whose stack is gone is reliable with no entries",
        [*ASLEEP, *TO_USER],
        [],
        task={"stack_references": 0},
    ),
    Case(
        "4.1: a saved frame below the stack is taken for the end of the walk before it began",
        [*ASLEEP, *TO_USER],
        [],
        proof="refuted",
        reasons=["start-outside-stack"],
        task={"saved_sp": STACK - 0x1000},
    ),
    Case(
        "4.1: a saved frame that would reach beyond the stack, too",
        [*ASLEEP, *TO_USER],
        [],
        proof="refuted",
        reasons=["start-outside-stack"],
        task={"saved_sp": TOP - 48},
    ),
    Case(
        "4.1: at an odd saved stack pointer there would be registers, which do not fit any more",
        [*ASLEEP, *TO_USER],
        [],
        proof="refuted",
        reasons=["start-outside-stack"],
        task={"saved_sp": TOP - 0x80 + 1},
    ),
    Case(
        "4.1: user registers at an odd saved stack pointer: no entries, and the kernel is content",
        [*[0] * 5, *user_regs(), *TO_USER],
        [],
        proof="undecided",
        reasons=["user-regs-misplaced"],
        task={"saved_sp": Up(0, 1)},
    ),
    Case(
        "4.1: user registers in the chain away from their place: the kernel is content",
        [*ASLEEP, *record("foo+5", encoded(2)), *user_regs(), *TO_USER],
        ["__schedule", "foo"],
        proof="undecided",
        reasons=["user-regs-misplaced"],
    ),
]

FAR = [*record("foo+5", Up(502)), *[0] * 500]
"""A record, and the next one so far above it that it is on another page."""
CORRUPT = [
    Case(
        "2: a frame pointer beyond the stack",
        [*ASLEEP, *record("foo+5", TOP + 0x1000), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "2: a frame pointer below the stack",
        [*ASLEEP, *record("foo+5", STACK - 0x100), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "2: a record of which only the first word is on the stack",
        [*ASLEEP, *record("foo+5", TOP - 8), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "2: a frame pointer of zero away from the end",
        [*ASLEEP, *record("foo+5", 0), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "2: a frame pointer beyond the end of memory",
        [*ASLEEP, *record("foo+5", (1 << 64) - 8), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "2: an exception's registers that do not fit on the stack",
        [*ASLEEP, *record("foo+5", TOP - 160 + 1), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["regs-outside-stack"],
    ),
    Case(
        "2: a frame pointer that leads to its own record",
        [*ASLEEP, *record("foo+5", HERE), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["wrong-direction"],
    ),
    Case(
        "2: a frame pointer that leads back down",
        [*ASLEEP, *record("foo+5", Up(-4)), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["wrong-direction"],
    ),
    Case(
        "2: a record that overlaps the one before it",
        [*ASLEEP, *record("foo+5", Up(1)), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["wrong-direction"],
    ),
    Case(
        "2: a frame pointer that is not aligned is followed: nobody looks",
        [*ASLEEP, *record("foo+5", Up(2, 4)), 0, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "2: a page of the stack that the dump lacks: never taken for zeroes",
        [*ASLEEP, *FAR, *record("bar+5", Up(600)), *[0] * 598, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(509, 510)},
    ),
    Case(
        "2: the saved frame itself on a page that the dump lacks",
        [*ASLEEP, *TO_USER],
        [],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(1)},
    ),
    Case(
        "2: a record of which the dump has the frame pointer and not the return address",
        [*ASLEEP, *FAR, *record("bar+5"), *[0] * 484, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(510, 511)},
    ),
    Case(
        "2: an exception's registers that the dump lacks",
        [*ASLEEP, encoded(502), *FAR[1:], *kernel_regs("bar+5"), *[0] * 579, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(509, 510)},
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
        [*ASLEEP, *record("foo+5"), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        proof="undecided",
        reasons=["no-call-before"],
        setup={"no_call": "foo+5"},
    ),
    Case(
        "2: 99 entries fit",
        [*ASLEEP, *record("foo+5") * 95, *TO_USER],
        ["__schedule", *["foo"] * 95, *FRAMES[1:]],
    ),
    Case(
        "2: the hundredth entry fills the livepatch code's buffer",
        [*ASLEEP, *record("foo+5") * 96, *TO_USER],
        ["__schedule", *["foo"] * 96, *FRAMES[1:]],
        kernel="unreliable",
        proof="proven",
        reasons=["too-deep"],
    ),
]

TEXT = [
    Case(
        "4.2: a return address that is no kernel text",
        [*ASLEEP, *record("nowhere+5"), *TO_USER],
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "4.2: a zero for a return address",
        [*ASLEEP, *record(0), *TO_USER],
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "4.2: modules and BPF keep frame pointers like all other code",
        [*ASLEEP, *record("module+5"), *record("bpf+5"), *TO_USER],
        ["__schedule", None, "bpf_prog", *FRAMES[1:]],
    ),
    Case(
        "4.2: a frame in freed init text: the kernel takes it for text",
        [*ASLEEP, *record("start_kernel+5"), *TO_USER],
        ["__schedule", "start_kernel", *FRAMES[1:]],
        proof="undecided",
        reasons=["init-text-freed"],
    ),
    Case(
        "4.2: the boot CPU's idle task keeps frames in init text rightly",
        [*ASLEEP, *record("start_kernel+5"), 0, "common_startup_64+9", *NO_REGS],
        ["__schedule", "start_kernel", "common_startup_64"],
        task={"address": INIT_TASK, "kind": TaskKind.IDLE},
    ),
    Case(
        "4.2: the vsyscall page: the kernel takes it for text",
        [*ASLEEP, *record("vsyscall+5"), *TO_USER],
        ["__schedule", None, *FRAMES[1:]],
        proof="undecided",
        reasons=["vsyscall-page"],
    ),
    Case(
        "4.2: a return address after a call that does not return belongs to the call's function",
        [*ASLEEP, *record("noreturn_call"), *TO_USER],
        ["__schedule", "bar", *FRAMES[1:]],
    ),
]

TO_IRQ = [*ASLEEP, *record("asm_interrupt+5", encoded(2))]
EXCEPTIONS = [
    Case(
        "4.3: an exception in the kernel: the kernel refuses, the proof goes on and stays open",
        [*TO_IRQ, *kernel_regs("foo+7", TOP - 8 * 27, bp=Up(17)), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    Case(
        "4.3: an exception at the very first instruction of a function is looked up as it is",
        [*TO_IRQ, *kernel_regs("leaf", TOP - 8 * 27, bp=Up(17)), *TO_USER],
        ["__schedule", "asm_interrupt", "leaf", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    Case(
        "4.3: an exception within an exception",
        [
            *TO_IRQ,
            *kernel_regs("asm_interrupt+9", bp=encoded(17)),
            *kernel_regs("foo+7", bp=Up(17)),
            *TO_USER,
        ],
        ["__schedule", "asm_interrupt", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary", "exception-boundary"],
    ),
    Case(
        "4.3: interrupted in what is no kernel text",
        [*TO_IRQ, *kernel_regs(0x1234, TOP - 8 * 27, bp=Up(17)), *TO_USER],
        ["__schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["exception-boundary", "not-kernel-text"],
    ),
    Case(
        "4.3: an exception's frame pointer that leads off the stack",
        [*TO_IRQ, *kernel_regs("foo+7", TOP - 8 * 27, bp=0x1234), *TO_USER],
        ["__schedule", "asm_interrupt", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary", "frame-outside-stack"],
    ),
    Case(
        "4.3: an exception's frame pointer that leads below its registers",
        [*TO_IRQ, *kernel_regs("foo+7", TOP - 8 * 27, bp=Up(-6)), *TO_USER],
        ["__schedule", "asm_interrupt", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary", "wrong-direction"],
    ),
    Case(
        "4.3: registers of kernel mode at an odd saved stack pointer are an exception's",
        [*[0] * 5, *kernel_regs("foo+7", bp=Up(17)), *TO_USER],
        ["foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
        task={"saved_sp": Up(0, 1)},
    ),
]

TRACED = [*ASLEEP, *record("foo+5"), *record("return_to_handler"), *TO_USER[2:]]
"""The return address into schedule() was replaced, in the word with the index 10."""
PROBED = [*ASLEEP, *record("foo+5"), *record("arch_rethook_trampoline"), *TO_USER[2:]]
RECOVERED = ["__schedule", "foo", "schedule", *FRAMES[2:]]

REWRITTEN = [
    Case(
        "4.4: a graph-traced return address is found by the place of the word",
        TRACED,
        RECOVERED,
        setup={"graph": {10: "schedule+5"}},
    ),
    Case(
        "4.4: one that is not found: the kernel takes the trampoline for the caller",
        TRACED,
        ["__schedule", "foo", "return_to_handler", *FRAMES[2:]],
        proof="refuted",
        reasons=["fgraph-unrecovered"],
    ),
    Case(
        "4.4: a kretprobed return address is found in the task's list",
        PROBED,
        RECOVERED,
        setup={"probes": {10: "schedule+5"}},
    ),
    Case(
        "4.4: the kernel does not look for a runnable task's; the dump has it",
        PROBED,
        RECOVERED,
        kernel="unreliable",
        proof="proven",
        reasons=["rethook-task-runnable"],
        setup={"probes": {10: "schedule+5"}},
        task={"run_state": 0},
    ),
    Case(
        "4.4: kretprobes before rethook are looked up for runnable tasks too",
        PROBED,
        RECOVERED,
        setup={"probes": {10: "schedule+5"}, "refuses_runnable": False},
        task={"run_state": 0},
    ),
    Case(
        "4.4: a kretprobed return address that is nowhere",
        PROBED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["rethook-unrecovered"],
    ),
    Case(
        "4.4: probed first, traced second: the kernel undoes both",
        TRACED,
        RECOVERED,
        setup={"graph": {10: "arch_rethook_trampoline"}, "probes": {10: "schedule+5"}},
    ),
    Case(
        "4.4: traced first, probed second: the kernel takes the trampoline for the caller",
        PROBED,
        RECOVERED,
        proof="proven",
        reasons=["fgraph-beneath-kretprobe", "fgraph-entries-mismatch"],
        setup={"probes": {10: "return_to_handler"}, "graph": {10: "schedule+5"}},
        entries=["__schedule", "foo", "return_to_handler", *FRAMES[2:]],
    ),
    Case(
        "4.4: the same, and the tracer has no entry either",
        PROBED,
        ["__schedule", "foo", "return_to_handler", *FRAMES[2:]],
        proof="refuted",
        reasons=["fgraph-beneath-kretprobe", "fgraph-unrecovered"],
        setup={"probes": {10: "return_to_handler"}},
    ),
    Case(
        "4.5: a call from a function's very entry: the kernel passes over its caller",
        [*ASLEEP, *record("bar+5", Up(4)), "sys_read+5", 0, *record("sys_read+7"), *TO_USER[4:]],
        ["__schedule", "bar", "sys_read", "sys_read", "entry"],
        reasons=["entry-hides-caller"],
        entries=["__schedule", "bar", "sys_read", "entry"],
    ),
    Case(
        "2: a record that leads to the same place lies unused: a frame may have been passed over",
        [*ASLEEP, *record("bar+7", Up(6)), 0, 0, Up(2), "foo+7", *TO_USER[2:]],
        ["__schedule", "bar", "sys_read", "entry"],
        proof="undecided",
        reasons=["record-passed-over"],
    ),
    Case(
        "4.5: an optimised kprobe's detour: the probed function is not on the stack",
        [*ASLEEP, *record("foo+5"), *record("optprobe+5"), *TO_USER],
        ["__schedule", "foo", "kprobe_optinsn_page", *FRAMES[1:]],
        proof="undecided",
        reasons=["optprobe-hides-function"],
    ),
    Case(
        "4.4: interrupted just after returning to the trampoline",
        [
            *TO_IRQ,
            *kernel_regs("arch_rethook_trampoline", bp=Up(17)),
            *TO_USER,
        ],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
        setup={"probes": {9 + 16: "foo+5"}},
    ),
    Case(
        "4.4: the saved return address itself replaced, and nowhere to be found",
        [*switched_out(pc="arch_rethook_trampoline"), *TO_USER],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["rethook-unrecovered"],
    ),
    Case(
        "2: the tracer's stack is not in the dump",
        TRACED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"shadow_readable": False},
    ),
    Case(
        "2: the list of probed returns is not in the dump",
        PROBED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"shadow_readable": False},
    ),
]

RUNNING_TASK = {"on_cpu": True}
ON_TASK_STACK = {"ip": "foo+7", "sp": TOP - 8 * 29, "bp": TOP - 8 * 27, "cs": 0x10}
"""Just below the record of what the interrupted function's caller is."""
ON_IRQ_STACK = {"ip": "foo+7", "sp": IRQ.high - 48, "bp": IRQ.high - 32, "cs": 0x10}
INTERRUPTED = ["running", "exception-boundary"]
RUNNING = [
    Case(
        "a running task is shown from its CPU's registers, which may have caught a function before "
        "it had a record",
        TO_USER,
        ["foo", *FRAMES[1:]],
        kernel="running",
        proof="undecided",
        reasons=INTERRUPTED,
        setup={"registers": ON_TASK_STACK},
        task=RUNNING_TASK,
    ),
    Case(
        "a task running in user mode has no kernel frames",
        TO_USER,
        [],
        kernel="running",
        reasons=["running"],
        setup={"registers": {"ip": 0x7F0000001000, "sp": 0x7FFF00000000, "bp": 0, "cs": 0x33}},
        task=RUNNING_TASK,
    ),
    Case(
        "a dump without the CPU's registers shows nothing of a running task",
        TO_USER,
        [],
        kernel="running",
        proof="undecided",
        reasons=["running", "no-crash-registers"],
        task=RUNNING_TASK,
    ),
    Case(
        "registers without the one that tells user mode are as good as none",
        TO_USER,
        [],
        kernel="running",
        proof="undecided",
        reasons=["running", "no-crash-registers"],
        setup={"registers": {"ip": "foo+7", "sp": TOP - 8 * 29, "bp": TOP - 8 * 27}},
        task=RUNNING_TASK,
    ),
    Case(
        "the walk passes from the interrupt stack to the task's",
        TO_USER,
        ["foo", "bar", *FRAMES[1:]],
        kernel="running",
        proof="undecided",
        reasons=INTERRUPTED,
        setup={
            "registers": ON_IRQ_STACK,
            "more": {IRQ.high - 48: [0, 0, TOP - 8 * 27, "bar+5", 0, 0]},
        },
        task=RUNNING_TASK,
    ),
    Case(
        "from registers on an interrupt stack it passes to the task's too",
        TO_USER,
        ["foo", "asm_interrupt", "bar", *FRAMES[1:]],
        kernel="running",
        proof="undecided",
        reasons=[*INTERRUPTED, "exception-boundary"],
        setup={
            "registers": {**ON_IRQ_STACK, "sp": NMI.high - 200, "bp": NMI.high - 200},
            "more": {
                NMI.high - 200: [
                    *record("asm_interrupt+5", encoded(2)),
                    *kernel_regs("bar+5", bp=TOP - 8 * 27),
                    0,
                    0,
                ],
            },
        },
        task=RUNNING_TASK,
    ),
    Case(
        "2: a walk that comes back to a stack it has left",
        [*record("schedule+5", IRQ.high - 32), *TO_USER[2:]],
        ["foo", "bar", "schedule"],
        kernel="running",
        proof="undecided",
        reasons=[*INTERRUPTED, "stack-visited-twice", "frame-outside-stack"],
        setup={
            "registers": ON_IRQ_STACK,
            "more": {IRQ.high - 48: [0, 0, TOP - 8 * 27, "bar+5", 0, 0]},
        },
        task=RUNNING_TASK,
    ),
    Case(
        "2: from the task's stack to the NMI stack: an NMI is never interrupted by its task",
        [*record("schedule+5", NMI.high - 32), *TO_USER[2:]],
        ["foo", "schedule", "bar"],
        kernel="running",
        proof="undecided",
        reasons=[*INTERRUPTED, "stack-order", "frame-outside-stack"],
        setup={
            "registers": ON_TASK_STACK,
            "more": {NMI.high - 32: [0, "bar+5", 0, 0]},
        },
        task=RUNNING_TASK,
    ),
    Case(
        "2: a stack pointer that is on none of the CPU's stacks",
        TO_USER,
        ["foo"],
        kernel="running",
        proof="refuted",
        reasons=["running", "sp-outside-stack", "exception-boundary", "frame-outside-stack"],
        setup={"registers": {**ON_TASK_STACK, "sp": 0xFFFFC90000200000, "bp": 0}},
        task=RUNNING_TASK,
    ),
    Case(
        "2: the interrupt stack is not in the dump",
        TO_USER,
        ["foo"],
        kernel="running",
        proof="undecided",
        reasons=[*INTERRUPTED, "memory-unreadable"],
        setup={"registers": ON_IRQ_STACK},
        task=RUNNING_TASK,
    ),
]

CASES = [*ENDS, *CORRUPT, *TEXT, *EXCEPTIONS, *REWRITTEN, *RUNNING]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.claim)
def test_stack(case: Case, again: bool) -> None:
    """Frames, both verdicts and the reasons of one stack."""
    check(case, Kernel(case.words, **case.setup), again=again)


def test_each_step_says_how_it_was_found() -> None:
    """The first frame is the scheduler's, the interrupted one comes from saved registers."""
    kernel = Kernel(
        [*TO_IRQ, *kernel_regs("foo+7", bp=Up(17)), *record("return_to_handler"), *TO_USER],
        graph={9 + 21 + 1: "bar+5"},
    )
    walk = walk_task(kernel.unwinder, kernel.task(), proving=True)
    assert [frame.found_by for frame in walk.frames] == [
        FoundBy.SWITCH_FRAME,
        FoundBy.FRAME_POINTER,
        FoundBy.PT_REGS,
        FoundBy.FUNCTION_GRAPH,
        FoundBy.FRAME_POINTER,
        FoundBy.FRAME_POINTER,
        FoundBy.FRAME_POINTER,
    ]


def test_evidence_names_the_word_that_is_wrong() -> None:
    """A reason carries the program counter, the stack pointer, the frame and the value read."""
    kernel = Kernel([*ASLEEP, *record("foo+5", 0xDEAD0000BEE0), *TO_USER])
    (reason,) = walk_task(kernel.unwinder, kernel.task()).reasons
    assert (reason.id, reason.value, reason.frame) == ("frame-outside-stack", 0xDEAD0000BEE0, 2)
    assert reason.sp == kernel.sp + 8 * 9


def test_registers_that_the_dump_lacks_are_named_by_their_place() -> None:
    """The saved frame pointer of an exception is missing: the reason says where it would be."""
    words = [*TO_IRQ, *kernel_regs("foo+7"), *TO_USER]
    kernel = Kernel(words)
    walk = walk_task(kernel.unwinder, kernel.task(), proving=True)
    assert [reason.id for reason in walk.reasons] == ["exception-boundary", "frame-outside-stack"]


@pytest.mark.parametrize("padding", [0, 16])
def test_a_fred_kernel_has_its_user_registers_two_words_lower(padding: int) -> None:
    """The last record is below them, wherever they are."""
    kernel = Kernel([*ASLEEP, *TO_USER, *[0] * (padding // 8)])
    kernel.unwinder.facts.user_regs_below_top += padding
    assert walk_task(kernel.unwinder, kernel.task()).reasons == []


def test_registers_of_user_mode_need_only_the_privilege_level() -> None:
    """Of user registers the code segment is looked at, as user_mode() does."""
    kernel = Kernel([*ASLEEP, *record("foo+5", encoded(2)), *regs(0, 0, 3), 0])
    walk = walk_task(kernel.unwinder, kernel.task())
    assert [reason.id for reason in walk.reasons] == ["user-regs-misplaced"]
