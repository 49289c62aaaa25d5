# SPDX-License-Identifier: LGPL-2.1-or-later
"""The arm64 walk by frame records on hand-written stacks: each rule and each reason, a row each.

A stack is written from the saved stack pointer up to its top, see :mod:`tests.walkers`. Expected
verdicts and frames are read off arch/arm64/kernel/stacktrace.c, not computed. Two kernels are
walked: one whose registers hold a record with a type (since 6.13), and one before that, which has
no reliable walk: its verdict is always "unsupported", the proof's is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from drgn_reliable.arch.arm64 import ARCHITECTURE, META_FINAL, META_PT_REGS, Arm64Unwinder, Facts
from drgn_reliable.arch.kernelfacts import Range
from drgn_reliable.model import FoundBy, TaskKind
from drgn_reliable.walk import walk_task
from tests.walkers import (
    FUNCTIONS,
    HERE,
    INIT_TASK,
    PLACES,
    SIZE,
    STACK,
    TOP,
    Case,
    FakeKernel,
    Up,
    Word,
    check,
)

IRQ = Range("irq", 0xFFFF800080100000, 0xFFFF800080104000)
OVERFLOW = Range("overflow", 0xFFFF00007FB01000, 0xFFFF00007FB02000)
PAC_MASK = 0xFFF0000000000000
REGS_WORDS = 40
"""Words of a ``struct pt_regs``; the record is the last three of them."""
RECORD_AT = 37
KERNEL_MODE = 0x60000005


class FakeFacts(Facts):
    """The facts of a kernel with 4 KiB pages and authentication codes."""

    def __init__(self, has_meta: bool) -> None:
        self.regs_size = 8 * REGS_WORDS
        self.record_offset = 8 * RECORD_AT
        self.register_offsets = {f"x{i}": 8 * i for i in range(29)}
        self.register_offsets |= {"fp": 232, "lr": 240, "sp": 248, "pc": 256, "pstate": 264}
        self.thread_size = SIZE
        self.init_task = INIT_TASK
        self.fork_return = FUNCTIONS["ret_from_fork"]
        self.pac_mask = PAC_MASK
        self.has_meta = has_meta

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        yield IRQ
        yield OVERFLOW


class Kernel(FakeKernel):
    """An arm64 kernel."""

    code = ARCHITECTURE.code
    call = bytes.fromhex("00000094")

    def __init__(self, words: Iterable[Word], *, has_meta: bool = True, **others: Any) -> None:
        super().__init__(words, FakeFacts(has_meta), **others)
        self.unwinder = Arm64Unwinder(self.parts)


ABOVE = Up(2)
"""From a record's first word to the word behind it."""


def record(pc: Word, up: Word = ABOVE) -> list[Word]:
    """A frame record; the next one is just above it."""
    return [up, pc]


def regs(
    *,
    fp: Word = 0,
    lr: Word = 0,
    sp: Word = 0,
    pc: Word = 0,
    pstate: int = KERNEL_MODE,
    tail: Iterable[Word] = (0, 0, 0),
) -> list[Word]:
    """The words of a ``struct pt_regs`` that ends with these three."""
    words: list[Word] = [0] * RECORD_AT
    words[29:34] = [fp, lr, sp, pc, pstate]
    return [*words, *tail]


FINAL = (0, 0, META_FINAL)
EXCEPTION = (0, 0, META_PT_REGS)


def last_regs(tail: Iterable[Word] = FINAL) -> list[Word]:
    """What every stack ends with: user registers, or zeroes for a kernel thread, and a record."""
    return regs(pstate=0, tail=tail)


def exception(pc: Word, fp: Word = 3, lr: Word = 0) -> list[Word]:
    """Registers of an exception in the kernel."""
    return regs(pc=pc, lr=lr, fp=Up(11) if fp == 3 else fp, tail=EXCEPTION)


def to_last(words: int) -> Up:
    """From a record that so many words precede the last registers' to the record in them."""
    return Up(words + RECORD_AT)


TO_USER = [*record("sys_read+8"), *record("entry+8", to_last(2)), *last_regs()]
SLEEPS: dict[str, Any] = {"saved_pc": "__schedule+8", "saved_fp": HERE}
"""What the scheduler saved: the frame pointer is where the stack pointer is."""
FRAMES = ["__schedule", "sys_read", "entry"]
KTHREAD = {**SLEEPS, "kind": TaskKind.KTHREAD}


def signed(name: str) -> int:
    """An address in a function with an authentication code."""
    place, _, offset = name.partition("+")
    return (PLACES[place] + int(offset)) & ~PAC_MASK | 0x1A80000000000000


def case(claim: str, words: list[Any], frames: list[str | None], **others: Any) -> Case:
    """A row for a task that sleeps, unless it says otherwise."""
    return Case(claim, words, frames, **{"task": SLEEPS, **others})


ENDS = [
    case("a user task's trace ends at the final record in its registers", TO_USER, FRAMES),
    case(
        "a kernel thread's ends there too",
        [*record("kthread+8"), *record("ret_from_fork+8", to_last(2)), *last_regs()],
        ["__schedule", "kthread", "ret_from_fork"],
        task=KTHREAD,
    ),
    case(
        "an idle task's ends there too",
        [*record("foo+8", to_last(2)), *last_regs()],
        ["__schedule", "foo"],
        task={**SLEEPS, "kind": TaskKind.IDLE},
    ),
    case(
        "a task that never ran has the fork return as its only frame, which no call left",
        last_regs(),
        ["ret_from_fork"],
        setup={"no_call": "ret_from_fork"},
        task={"saved_pc": "ret_from_fork", "saved_fp": Up(RECORD_AT)},
    ),
    case("a task whose stack is gone has no entries", TO_USER, [], task={"stack_references": 0}),
    case(
        "4.1: a final record away from the last registers",
        [*record("foo+8"), 0, 0, META_FINAL, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["end-misplaced"],
    ),
    case(
        "4.1: a record of two zeroes without a type",
        [*record("foo+8"), 0, 0, 0, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["end-misplaced"],
    ),
    case(
        "4.1: a record of an unknown type, even in the last registers",
        [*record("foo+8", to_last(2)), *last_regs((0, 0, 3))],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["end-misplaced"],
    ),
    case(
        "4.1: two zeroes at the very top leave no room for a type",
        [*record("foo+8", TOP - 16), *last_regs((0, 0, 0))],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
]

FAR = [Up(502), "foo+8", *[0] * 500]
"""A record, and the next one so far above it that it is on another page."""
CORRUPT = [
    case(
        f"2: a frame pointer that leads {what}",
        [*record("foo+8", up), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=[reason],
    )
    for what, up, reason in (
        ("beyond the stack", TOP + 0x1000, "frame-outside-stack"),
        ("below the stack", STACK - 0x100, "frame-outside-stack"),
        ("to zero", 0, "frame-outside-stack"),
        ("to the end of memory", (1 << 64) - 8, "frame-outside-stack"),
        ("to the last word of the stack", TOP - 8, "frame-outside-stack"),
        ("to no multiple of eight", Up(2, 4), "frame-misaligned"),
        ("to its own record", HERE, "wrong-direction"),
        ("back down", Up(-2), "wrong-direction"),
        ("into its own record", Up(1), "wrong-direction"),
    )
]
CORRUPT += [
    case(
        "2: a saved frame pointer off the stack: its program counter is an entry already",
        TO_USER,
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
        task={**SLEEPS, "saved_fp": STACK - 0x1000},
    ),
    case(
        "2: a saved frame pointer that is not aligned",
        TO_USER,
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-misaligned"],
        task={**SLEEPS, "saved_fp": Up(0, 1)},
    ),
    case(
        "2: nobody looks at the saved stack pointer",
        TO_USER,
        FRAMES,
        task={**SLEEPS, "saved_sp": 0, "saved_fp": TOP - 8 * len(TO_USER)},
    ),
    case(
        "2: a page of the stack that the dump lacks: never taken for zeroes",
        [*FAR, *record("bar+8", Up(600)), *[0] * 598, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(502, 503)},
    ),
    case(
        "2: the first record on a page that the dump lacks",
        TO_USER,
        ["__schedule"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(1)},
    ),
    case(
        "2: a record of which the dump has the frame pointer and not the return address",
        [*FAR, *record("bar+8"), *[0] * (511 - len(TO_USER)), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(503, 504)},
    ),
    case(
        "2: two zeroes of which the dump lacks the type",
        [*FAR, 0, 0, META_FINAL, *[0] * (511 - len(TO_USER)), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(504, 505)},
    ),
    case(
        "2: an exception's registers of which the dump has no more than the record",
        [Up(512), "foo+8", *[0] * 473, *exception("bar+8"), *[0] * 200, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(480, 481)},
    ),
    case(
        "2: an overwritten end of the stack: the kernel does not look",
        TO_USER,
        FRAMES,
        proof="undecided",
        reasons=["stack-end-overwritten"],
        setup={"magic": 0},
    ),
    case(
        "2: a return address that no call left: the kernel does not look",
        [*record("foo+8"), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        proof="undecided",
        reasons=["no-call-before"],
        setup={"no_call": "foo+8"},
    ),
    case(
        "2: what ftrace patched in at a function's entry leaves its own address",
        [*record("foo+8"), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        setup={"patched": {"foo+4": bytes.fromhex("1f2003d5 00000094")}},
    ),
    case(
        "2: 99 entries fit",
        [*record("foo+8") * 96, *TO_USER],
        ["__schedule", *["foo"] * 96, *FRAMES[1:]],
    ),
    case(
        "2: the hundredth entry fills the livepatch code's buffer",
        [*record("foo+8") * 97, *TO_USER],
        ["__schedule", *["foo"] * 97, *FRAMES[1:]],
        kernel="unreliable",
        proof="proven",
        reasons=["too-deep"],
    ),
]

TEXT = [
    case(
        "4.2: a return address that is no kernel text: the kernel does not look",
        [*record("nowhere+8"), *TO_USER],
        ["__schedule", None, *FRAMES[1:]],
        proof="refuted",
        reasons=["text-not-checked"],
    ),
    case(
        "4.2: a zero for a return address: the kernel does not look",
        [*record(0), *TO_USER],
        ["__schedule", None, *FRAMES[1:]],
        proof="refuted",
        reasons=["text-not-checked"],
    ),
    case(
        "4.2: a return address with its authentication code is a return address",
        [*record(signed("foo+8")), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
    ),
    case(
        "4.2: the saved program counter has no such code, and the kernel removes none",
        TO_USER,
        [None, *FRAMES[1:]],
        proof="refuted",
        reasons=["text-not-checked"],
        task={**SLEEPS, "saved_pc": signed("__schedule+8")},
    ),
    case(
        "4.2: an address of user space is none with an authentication code",
        [*record(0x0070007FFF001000), *TO_USER],
        ["__schedule", None, *FRAMES[1:]],
        proof="refuted",
        reasons=["text-not-checked"],
    ),
    case(
        "4.2: to BPF's code a return address may be pushed without a call",
        [*record("module+8"), *record("bpf+8"), *TO_USER],
        ["__schedule", None, "bpf_prog", *FRAMES[1:]],
        setup={"no_call": "bpf+8"},
    ),
    case(
        "4.2: a frame in freed init text",
        [*record("start_kernel+8"), *TO_USER],
        ["__schedule", "start_kernel", *FRAMES[1:]],
        proof="undecided",
        reasons=["init-text-freed"],
    ),
    case(
        "4.2: the boot CPU's idle task keeps frames in init text rightly",
        [*record("start_kernel+8", to_last(2)), *last_regs()],
        ["__schedule", "start_kernel"],
        task={**SLEEPS, "address": INIT_TASK, "kind": TaskKind.IDLE},
    ),
    case(
        "4.2: a return address after a call that does not return belongs to the call's function",
        [*record("noreturn_call"), *TO_USER],
        ["__schedule", "bar", *FRAMES[1:]],
    ),
]

TO_EXCEPTION = [*record("asm_interrupt+8", Up(2 + RECORD_AT))]
EXCEPTIONS = [
    case(
        "4.3: an exception in the kernel: the kernel refuses, the proof goes on and stays open",
        [*TO_EXCEPTION, *exception("foo+8"), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    case(
        "4.3: an exception at the very first instruction is looked up as it is, with its code",
        [*TO_EXCEPTION, *exception(signed("leaf+0")), *TO_USER],
        ["__schedule", "asm_interrupt", "leaf", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    case(
        "4.3: an exception within an exception",
        [
            *TO_EXCEPTION,
            *exception("asm_interrupt+4", Up(11 + RECORD_AT)),
            *exception("foo+8"),
            *TO_USER,
        ],
        ["__schedule", "asm_interrupt", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary", "exception-boundary"],
    ),
    case(
        "4.3: interrupted in what is no kernel text",
        [*TO_EXCEPTION, *exception(0x1234), *TO_USER],
        ["__schedule", "asm_interrupt", None, *FRAMES[1:]],
        kernel="unreliable",
        proof="refuted",
        reasons=["exception-boundary", "text-not-checked"],
    ),
    case(
        "4.3: an exception's frame pointer that leads back below its registers",
        [*TO_EXCEPTION, *exception("foo+8", Up(-31)), *TO_USER],
        ["__schedule", "asm_interrupt", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary", "wrong-direction"],
    ),
    case(
        "4.3: an exception's record so low that its registers would begin below what was read",
        [*record("foo+8"), *EXCEPTION, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["wrong-direction"],
    ),
]

TRACED = [*record("foo+8"), *record("return_to_handler"), *TO_USER[2:]]
"""The return address into sys_read() was replaced; the key is the frame pointer there, the address
of the word with the index 4."""
PROBED = [*record("foo+8"), *record("arch_rethook_trampoline"), *TO_USER[2:]]
RECOVERED = ["__schedule", "foo", "sys_read", "entry"]
KRETPROBE = {"refuses_runnable": False}
WITH_LIST = {**SLEEPS, "ret_stack": 0xFFFF000001000000}

REWRITTEN = [
    case(
        "4.4: a graph-traced return address is found by the caller's frame pointer",
        TRACED,
        RECOVERED,
        setup={"graph": {4: "sys_read+8"}},
        task=WITH_LIST,
    ),
    case(
        "4.4: one that is not found: the kernel refuses",
        TRACED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["fgraph-entry-missing"],
        task=WITH_LIST,
    ),
    case(
        "4.4: of a task without a list the kernel takes the trampoline for the caller",
        TRACED,
        ["__schedule", "foo", "return_to_handler", "entry"],
        proof="refuted",
        reasons=["fgraph-unrecovered"],
    ),
    case(
        "4.4: the saved program counter itself is looked up too",
        TO_USER,
        ["foo", *FRAMES[1:]],
        setup={"graph": {0: "foo+8"}},
        task={**WITH_LIST, "saved_pc": "return_to_handler"},
    ),
    case(
        "4.4: and is refused where it is not found",
        TO_USER,
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["fgraph-entry-missing"],
        task={**WITH_LIST, "saved_pc": "return_to_handler"},
    ),
    case(
        "4.4: a kretprobed return address is found, of a runnable task too",
        PROBED,
        RECOVERED,
        setup={**KRETPROBE, "probes": {4: "sys_read+8"}},
        task={**SLEEPS, "run_state": 0},
    ),
    case(
        "4.4: a kretprobed return address that is nowhere",
        PROBED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["rethook-unrecovered"],
        setup=KRETPROBE,
    ),
    case(
        "4.4: probed first, traced second: the kernel undoes both",
        TRACED,
        RECOVERED,
        setup={
            **KRETPROBE,
            "graph": {4: "arch_rethook_trampoline"},
            "probes": {4: "sys_read+8"},
        },
        task=WITH_LIST,
    ),
    case(
        "4.4: traced first, probed second: the kernel takes the trampoline for the caller",
        PROBED,
        RECOVERED,
        reasons=["fgraph-beneath-kretprobe", "fgraph-entries-mismatch"],
        setup={**KRETPROBE, "probes": {4: "return_to_handler"}, "graph": {4: "sys_read+8"}},
        task=WITH_LIST,
        entries=["__schedule", "foo", "return_to_handler", "entry"],
    ),
    case(
        "4.4: returning through the tracer's trampoline: the caller may be in a register",
        [*record("return_to_handler+8"), *TO_USER],
        ["__schedule", "return_to_handler", *FRAMES[1:]],
        proof="undecided",
        reasons=["fgraph-returning"],
    ),
    case(
        "4.4: returning through a kretprobe's trampoline",
        [*record("arch_rethook_trampoline+8"), *TO_USER],
        ["__schedule", "arch_rethook_trampoline", *FRAMES[1:]],
        proof="undecided",
        reasons=["rethook-returning"],
    ),
    case(
        "4.4: an entry of the tracer's that belongs to no frame: a function may be missing",
        TO_USER,
        FRAMES,
        proof="undecided",
        reasons=["fgraph-entries-mismatch"],
        setup={"graph": {2: "foo+8"}},
        task=WITH_LIST,
    ),
    case(
        "4.4: a probed return that belongs to no frame: a function may be missing",
        TO_USER,
        FRAMES,
        proof="undecided",
        reasons=["rethook-entries-mismatch"],
        setup={"probes": {2: "foo+8"}},
    ),
    case(
        "4.4: interrupted just after returning to the tracer's trampoline",
        [*TO_EXCEPTION, *exception("return_to_handler"), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
        setup={"graph": {2 + REGS_WORDS: "foo+8"}},
        task=WITH_LIST,
    ),
    case(
        "4.4: the same, and the tracer has no entry",
        [*TO_EXCEPTION, *exception("return_to_handler"), *TO_USER],
        ["__schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["fgraph-entry-missing"],
        task=WITH_LIST,
    ),
    *(
        case(
            f"2: the list of {what} is not in the dump",
            words,
            ["__schedule", "foo"],
            kernel="unreliable",
            proof="undecided",
            reasons=["memory-unreadable"],
            setup={**KRETPROBE, "shadow_readable": False},
            task=WITH_LIST,
        )
        for what, words in (("traced returns", TRACED), ("probed returns", PROBED))
    ),
]

RUNNING_TASK = {"on_cpu": True}
ON_TASK_STACK = {
    "pc": "foo+8", "sp": TOP - 8 * 46, "fp": TOP - 8 * len(TO_USER), "pstate": KERNEL_MODE,
}  # fmt: skip
ON_IRQ_STACK = {**ON_TASK_STACK, "sp": IRQ.high - 64, "fp": IRQ.high - 48}
INTERRUPTED = ["running", "exception-boundary"]


def running(claim: str, frames: list[str | None], reasons: list[str], **others: Any) -> Case:
    """A row for a task that runs, from registers of its CPU."""
    words = others.pop("words", TO_USER)
    setup = {"registers": others.pop("registers", ON_TASK_STACK), "more": others.pop("more", {})}
    return Case(
        claim, words, frames, kernel="running", reasons=reasons, setup=setup, task=RUNNING_TASK,
        **others,
    )  # fmt: skip


RUNNING = [
    running(
        "a running task is shown from its CPU's registers, which may have caught a function before "
        "it had a record",
        ["foo", *FRAMES[1:]],
        INTERRUPTED,
        proof="undecided",
    ),
    running(
        "a task running in user mode has no kernel frames",
        [],
        ["running"],
        registers={"pc": 0x400000, "sp": 0xFFFFC0000000, "fp": 0, "pstate": 0x80000000},
    ),
    running(
        "a dump without the CPU's registers shows nothing of a running task",
        [],
        ["running", "no-crash-registers"],
        registers=None,
        proof="undecided",
    ),
    running(
        "registers without the one that tells user mode are as good as none",
        [],
        ["running", "no-crash-registers"],
        registers={"pc": "foo+8", "sp": TOP - 64, "fp": TOP - 64},
        proof="undecided",
    ),
    running(
        "the walk passes from the interrupt stack to the task's",
        ["foo", "bar", *FRAMES[1:]],
        INTERRUPTED,
        registers=ON_IRQ_STACK,
        more={IRQ.high - 64: [0, 0, TOP - 8 * len(TO_USER), "bar+8", 0, 0, 0, 0]},
        proof="undecided",
    ),
    running(
        "2: a walk that comes back to a stack it has left",
        ["foo", "bar", "schedule"],
        [*INTERRUPTED, "stack-visited-twice", "frame-outside-stack"],
        words=[*record("schedule+8", IRQ.high - 32), *TO_USER[2:]],
        registers=ON_IRQ_STACK,
        more={IRQ.high - 64: [0, 0, TOP - 8 * len(TO_USER), "bar+8", 0, 0, 0, 0]},
        proof="undecided",
    ),
    running(
        "2: a stack pointer and a frame pointer that are on none of the CPU's stacks",
        ["foo"],
        ["running", "sp-outside-stack", "exception-boundary", "frame-outside-stack"],
        registers={**ON_TASK_STACK, "sp": 0xFFFF800080200000, "fp": 0xFFFF800080200000},
        proof="refuted",
    ),
    running(
        "2: the interrupt stack is not in the dump",
        ["foo"],
        [*INTERRUPTED, "memory-unreadable"],
        registers=ON_IRQ_STACK,
        proof="undecided",
    ),
    running(
        "2: an exception's registers that do not fit on the overflow stack",
        ["foo"],
        [*INTERRUPTED, "regs-outside-stack"],
        registers={**ON_TASK_STACK, "sp": OVERFLOW.low, "fp": OVERFLOW.low + 16},
        more={OVERFLOW.low: [0, 0, *EXCEPTION, *[0] * 507]},
        proof="undecided",
    ),
]

CASES = [*ENDS, *CORRUPT, *TEXT, *EXCEPTIONS, *REWRITTEN, *RUNNING]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.claim)
def test_stack(case: Case, again: bool) -> None:
    """Frames, both verdicts and the reasons of one stack."""
    check(case, Kernel(case.words, **case.setup), again=again)


# Before 6.13 ---------------------------------------------------------------------------------


def old_exception(pc: Word, fp: Word = 3) -> list[Word]:
    """Registers of an exception, with the record that repeats two of them."""
    to_next = Up(11) if fp == 3 else fp
    again = Up(3) if fp == 3 else fp
    return regs(pc=pc, fp=to_next, tail=(again, pc, 0))


OLD_END = last_regs((0x1234, 0x5678, 9))
"""What the words of the last record are does not matter: its place is the end."""
OLD_TO_USER = [*record("sys_read+8"), *record("entry+8", to_last(2)), *OLD_END]


def old(claim: str, words: list[Any], frames: list[str | None], **others: Any) -> Case:
    """A row for a kernel that has no reliable walk."""
    return Case(claim, words, frames, kernel="unsupported", **{"task": SLEEPS, **others})


OLD_CASES = [
    old("the place of the last record is the end, whatever it holds", OLD_TO_USER, FRAMES),
    old("the zeroes of an entry from user mode are the end by their place only", TO_USER, FRAMES),
    old(
        "a task that never ran",
        OLD_END,
        ["ret_from_fork"],
        task={"saved_pc": "ret_from_fork", "saved_fp": Up(RECORD_AT)},
    ),
    old(
        "4.3: a record that repeats two of the registers around it is an exception's",
        [*TO_EXCEPTION, *old_exception("foo+8"), *OLD_TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    old(
        "4.3: one that does not is an ordinary record",
        [*TO_EXCEPTION, *regs(tail=(Up(3), "foo+8", 0)), *OLD_TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
    ),
    old(
        "4.1: a record of zeroes elsewhere is no exception's, though zeroes are around it",
        [*record("foo+8", Up(50)), *[0] * 60, *OLD_TO_USER],
        ["__schedule", "foo", None],
        proof="refuted",
        reasons=["frame-outside-stack", "text-not-checked"],
    ),
    old(
        "2: a frame pointer that is not aligned",
        [*record("foo+8", Up(2, 4)), *OLD_TO_USER],
        ["__schedule", "foo"],
        proof="refuted",
        reasons=["frame-misaligned"],
    ),
    old(
        "2: a frame pointer that leads to its own record",
        [*record("foo+8", HERE), *OLD_TO_USER],
        ["__schedule", "foo"],
        proof="refuted",
        reasons=["wrong-direction"],
    ),
    old(
        "2: a frame pointer off the stack",
        [*record("foo+8", 0x1230), *OLD_TO_USER],
        ["__schedule", "foo"],
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    old(
        "2: a record that the dump lacks",
        OLD_TO_USER,
        ["__schedule"],
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(1)},
    ),
    old(
        "4.4: both kinds of rewritten return addresses",
        TRACED,
        RECOVERED,
        setup={
            **KRETPROBE,
            "graph": {4: "arch_rethook_trampoline"},
            "probes": {4: "sys_read+8"},
        },
        task=WITH_LIST,
    ),
]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("case", OLD_CASES, ids=lambda case: case.claim)
def test_stack_before_6_13(case: Case, again: bool) -> None:
    """The same of a kernel whose registers hold an ordinary record."""
    kernel = Kernel(case.words, has_meta=False, **case.setup)
    check(case, kernel, again=again, supported=False)


def test_each_step_says_how_it_was_found() -> None:
    """The first frame is the scheduler's, the interrupted one comes from saved registers."""
    words = [*TO_EXCEPTION, *exception("foo+8"), *record("arch_rethook_trampoline"), *TO_USER]
    kernel = Kernel(words, probes={44: "bar+8"}, refuses_runnable=False)
    walk = walk_task(kernel.unwinder, kernel.task(**SLEEPS), proving=True)
    assert [frame.found_by for frame in walk.frames] == [
        FoundBy.SWITCH_FRAME,
        FoundBy.FRAME_POINTER,
        FoundBy.PT_REGS,
        FoundBy.KRETPROBE,
        FoundBy.FRAME_POINTER,
        FoundBy.FRAME_POINTER,
    ]


def test_evidence_names_the_word_that_is_wrong() -> None:
    """A reason carries the program counter, the stack pointer, the frame and the value read."""
    kernel = Kernel([*record("foo+8", 0xDEAD0000BEE0), *TO_USER])
    (reason,) = walk_task(kernel.unwinder, kernel.task(**SLEEPS)).reasons
    assert (reason.id, reason.value, reason.frame) == ("frame-outside-stack", 0xDEAD0000BEE0, 2)
    assert (reason.pc, reason.sp) == (PLACES["foo"] + 8, kernel.sp + 16)
