# SPDX-License-Identifier: LGPL-2.1-or-later
"""The s390x walk by the back chain on hand-written stacks: each rule and each reason, a row each.

A stack is written from the saved stack pointer up to its top, see :mod:`tests.walkers`. Expected
verdicts and frames are read off arch/s390/kernel/unwind_bc.c and stacktrace.c, not computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from drgn_reliable.arch.kernelfacts import Range
from drgn_reliable.arch.s390x import ARCHITECTURE, USER_MODE, Facts, S390xUnwinder
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

ASYNC = Range("async", 0x37FE0010000, 0x37FE0014000)
NODAT = Range("nodat", 0xFD80000, 0xFD84000)
REGS_WORDS = 25


class FakeFacts(Facts):
    """The facts of a kernel with the registers of Linux 6.12."""

    def __init__(self) -> None:
        self.regs_size = 8 * REGS_WORDS
        self.register_offsets = {"psw.mask": 8, "psw.addr": 16}
        self.register_offsets |= {f"r{i}": 24 + 8 * i for i in range(16)}
        self.thread_size = SIZE
        self.init_task = INIT_TASK
        self.fork_return = FUNCTIONS["ret_from_fork"]

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        yield ASYNC
        yield NODAT


class Kernel(FakeKernel):
    """An s390x kernel: its words are big-endian."""

    little_endian = False
    code = ARCHITECTURE.code
    call = bytes.fromhex("0de1")

    def __init__(self, words: Iterable[Word], **others: Any) -> None:
        super().__init__(words, FakeFacts(), **others)
        self.unwinder = S390xUnwinder(self.parts)


NEXT = Up(1)
"""From the back chain, a frame's last word, to the word behind it."""


def frame(pc: Word, chain: Word = NEXT, extra: int = 0) -> list[Word]:
    """The 160 bytes at a stack pointer, and more words of a larger frame behind them.

    :param pc: where the frame's owner goes on.
    :param chain: the next frame's place: where this one ends.
    """
    chain = Up(1 + extra) if chain is NEXT else chain
    return [*[0] * 17, pc, 0, chain, *[0] * extra]


def last(pc: Word) -> list[Word]:
    """The outermost frame: no back chain, and the last registers behind it."""
    return frame(pc, 0)


def regs(pc: Word = 0, sp: Word = 0, mask: int = 0) -> list[Word]:
    """The words of a ``struct pt_regs``."""
    words: list[Word] = [0] * REGS_WORDS
    words[1], words[2], words[18] = mask, pc, sp
    return words


def interrupt(pc: Word, sp: Word = None) -> list[Word]:
    """Registers of an interrupt in the kernel; the interrupted function's frame is behind them."""
    return regs(pc, Up(7) if sp is None else sp)


USER_REGS = regs(0x1000000, 0x3FFFFFFF000, USER_MODE)
ASLEEP = frame("__schedule+6")
TO_USER = [*frame("sys_read+6", extra=4), *last("entry+6"), *USER_REGS]
FRAMES = ["__schedule", "sys_read", "entry"]
NO_REGS = regs()

ENDS = [
    Case(
        "a user task's trace ends where the back chain does, below its registers",
        [*ASLEEP, *TO_USER],
        FRAMES,
    ),
    Case(
        "a kernel thread's ends there too",
        [*ASLEEP, *frame("kthread+6"), *last("ret_from_fork+6"), *NO_REGS],
        ["__schedule", "kthread", "ret_from_fork"],
        task={"kind": TaskKind.KTHREAD},
    ),
    Case(
        "an idle task's ends there too",
        [*ASLEEP, *last("foo+6"), *NO_REGS],
        ["__schedule", "foo"],
        task={"kind": TaskKind.IDLE},
    ),
    Case(
        "a task that never ran has the fork return as its only frame, which no call left",
        [*last("ret_from_fork"), *NO_REGS],
        ["ret_from_fork"],
        setup={"no_call": "ret_from_fork"},
    ),
    Case(
        "a task whose stack is gone is reliable with no entries",
        [*ASLEEP, *TO_USER],
        [],
        task={"stack_references": 0},
    ),
    Case(
        "4.1: a back chain that ends without room for registers",
        [*ASLEEP, *last("foo+6"), *[0] * 24],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["end-misplaced"],
    ),
    Case(
        "4.1: a back chain that ends too early ends at words that are no registers",
        [*ASLEEP, *last("foo+6"), *[0] * 40, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
]

FAR = [*frame("foo+6", Up(501)), *[0] * 500]
"""A frame, and the next one so far above it that it is on another page."""
CORRUPT = [
    Case(
        f"2: a back chain that leads {what}",
        [*ASLEEP, *frame("foo+6", chain), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=[reason],
    )
    for what, chain, reason in (
        ("beyond the stack", TOP + 0x1000, "frame-outside-stack"),
        ("below the stack", STACK - 0x100, "frame-outside-stack"),
        ("to the end of memory", (1 << 64) - 8, "frame-outside-stack"),
        ("to a frame that reaches beyond the stack", TOP - 152, "frame-outside-stack"),
        ("to no multiple of eight", Up(1, 4), "frame-misaligned"),
        ("to its own frame", Up(-19), "wrong-direction"),
        ("back down", Up(-39), "wrong-direction"),
    )
]
CORRUPT += [
    Case(
        "2: a back chain into its own frame goes up, and is followed",
        [*ASLEEP, *frame("foo+6", HERE), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
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
        "2: a saved stack pointer whose frame would reach beyond the stack",
        [*ASLEEP, *TO_USER],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["sp-outside-stack"],
        task={"saved_sp": TOP - 152},
    ),
    Case(
        "2: a saved stack pointer that is not aligned, though a chain begins there",
        [0, *last("entry+6"), *USER_REGS],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-misaligned"],
        task={"saved_sp": Up(0, 4)},
    ),
    Case(
        "2: a page of the stack that the dump lacks: never taken for zeroes",
        [*ASLEEP, *FAR, *frame("bar+6", Up(500)), *[0] * 499, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(540, 541)},
    ),
    Case(
        "2: the saved frame on a page that the dump lacks",
        [*ASLEEP, *TO_USER],
        [],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(1)},
    ),
    Case(
        "2: a frame of which the dump has the return address and not the back chain",
        [*ASLEEP, *FAR, *frame("bar+6"), *[0] * (511 - len(TO_USER)), *TO_USER],
        ["__schedule", "foo", "bar"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(559, 560)},
    ),
    Case(
        "2: an interrupt's registers that the dump lacks",
        [
            *ASLEEP,
            *frame("foo+6", Up(482)),
            *[0] * 481,
            *last("bar+6"),
            *[0] * (1024 - len(TO_USER)),
            *TO_USER,
        ],
        ["__schedule", "foo", "bar"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(541, 542)},
    ),
    Case(
        "2: an overwritten end of the stack: the kernel does not look",
        [*ASLEEP, *TO_USER],
        FRAMES,
        proof="undecided",
        reasons=["stack-end-overwritten"],
        setup={"magic": 0x57AC6E9D << 32},
    ),
    Case(
        "2: a return address that no call left: the kernel does not look",
        [*ASLEEP, *frame("foo+6"), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        proof="undecided",
        reasons=["no-call-before"],
        setup={"no_call": "foo+6"},
    ),
]

TEXT = [
    Case(
        "4.2: a return address that is no kernel text",
        [*ASLEEP, *frame("nowhere+6"), *TO_USER],
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "4.2: a zero for a return address",
        [*ASLEEP, *frame(0), *TO_USER],
        ["__schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "4.2: modules and BPF keep the back chain like all other code",
        [*ASLEEP, *frame("module+6"), *frame("bpf+6"), *TO_USER],
        ["__schedule", None, "bpf_prog", *FRAMES[1:]],
    ),
    Case(
        "4.2: a frame in freed init text: the kernel takes it for text",
        [*ASLEEP, *frame("start_kernel+6"), *TO_USER],
        ["__schedule", "start_kernel", *FRAMES[1:]],
        proof="undecided",
        reasons=["init-text-freed"],
    ),
    Case(
        "4.2: the boot CPU's idle task keeps frames in init text rightly",
        [*ASLEEP, *frame("start_kernel+6"), *last("foo+6"), *NO_REGS],
        ["__schedule", "start_kernel", "foo"],
        task={"address": INIT_TASK, "kind": TaskKind.IDLE},
    ),
    Case(
        "4.2: a return address after a call that does not return belongs to the call's function",
        [*ASLEEP, *frame("noreturn_call"), *TO_USER],
        ["__schedule", "bar", *FRAMES[1:]],
    ),
]

TO_INTERRUPT = [*ASLEEP, *last("asm_interrupt+6")]
EXCEPTIONS = [
    Case(
        "4.3: an interrupt in the kernel: the kernel refuses, the proof goes on and stays open",
        [*TO_INTERRUPT, *interrupt("foo+6"), *frame(0), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    Case(
        "4.3: an interrupt at the very first instruction of a function is looked up as it is",
        [*TO_INTERRUPT, *interrupt("leaf"), *frame(0), *TO_USER],
        ["__schedule", "asm_interrupt", "leaf", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    Case(
        "4.3: an interrupt within an interrupt",
        [
            *TO_INTERRUPT,
            *interrupt("asm_interrupt+2"),
            *last(0),
            *interrupt("foo+6"),
            *frame(0),
            *TO_USER,
        ],
        ["__schedule", "asm_interrupt", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary", "exception-boundary"],
    ),
    Case(
        "4.3: interrupted in what is no kernel text",
        [*TO_INTERRUPT, *interrupt(0x1234), *frame(0), *TO_USER],
        ["__schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["exception-boundary", "not-kernel-text"],
    ),
    *(
        Case(
            f"4.3: an interrupt's stack pointer that leads {what}",
            [*TO_INTERRUPT, *interrupt("foo+6", sp), *frame(0), *TO_USER],
            ["__schedule", "asm_interrupt"],
            kernel="unreliable",
            proof="refuted",
            reasons=[reason],
        )
        for what, sp, reason in (
            ("off the stack", TOP + 0x1000, "frame-outside-stack"),
            ("back down", Up(-58), "wrong-direction"),
            ("to no multiple of eight", Up(7, 2), "frame-misaligned"),
        )
    ),
    Case(
        "4.1: user registers away from their place are an interrupt's that nothing returns from",
        [*TO_INTERRUPT, *USER_REGS, *frame(0), *TO_USER],
        ["__schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
]

TRACED = [*ASLEEP, *frame("foo+6"), *frame("return_to_handler"), *last("entry+6"), *USER_REGS]
"""The return address into sys_read() was replaced; the key is the frame's place, word 40."""
PROBED = [
    *ASLEEP, *frame("foo+6"), *frame("arch_rethook_trampoline"), *last("entry+6"), *USER_REGS,
]  # fmt: skip
RECOVERED = ["__schedule", "foo", "sys_read", "entry"]
KRETPROBE = {"refuses_runnable": False}

REWRITTEN = [
    Case(
        "4.4: a graph-traced return address is found by the stack pointer",
        TRACED,
        RECOVERED,
        setup={"graph": {40: "sys_read+6"}},
    ),
    Case(
        "4.4: one that is not found: the kernel takes the trampoline for the caller",
        TRACED,
        ["__schedule", "foo", "return_to_handler", "entry"],
        proof="refuted",
        reasons=["fgraph-unrecovered"],
    ),
    Case(
        "4.4: a return address that rethook replaced is found; the refusal after it cannot happen",
        PROBED,
        RECOVERED,
        setup={"probes": {40: "sys_read+6"}},
    ),
    Case(
        "4.4: rethook does not look for a runnable task's; the dump has it",
        PROBED,
        RECOVERED,
        kernel="unreliable",
        proof="proven",
        reasons=["rethook-task-runnable"],
        setup={"probes": {40: "sys_read+6"}},
        task={"run_state": 0},
    ),
    Case(
        "4.4: kretprobes before rethook (6.1) are looked up for runnable tasks too",
        PROBED,
        RECOVERED,
        setup={**KRETPROBE, "probes": {40: "sys_read+6"}},
        task={"run_state": 0},
    ),
    *(
        Case(
            f"4.4: a return address that {flavour} replaced is nowhere",
            PROBED,
            ["__schedule", "foo"],
            kernel="unreliable",
            proof="refuted",
            reasons=["rethook-unrecovered"],
            setup={"refuses_runnable": refuses},
        )
        for flavour, refuses in (("rethook", True), ("a kretprobe", False))
    ),
    Case(
        "4.4: probed first, traced second: the kernel undoes both",
        TRACED,
        RECOVERED,
        setup={"graph": {40: "arch_rethook_trampoline"}, "probes": {40: "sys_read+6"}},
    ),
    Case(
        "4.4: traced first, probed second: the kernel takes the trampoline for the caller",
        PROBED,
        RECOVERED,
        reasons=["fgraph-beneath-kretprobe", "fgraph-entries-mismatch"],
        setup={"probes": {40: "return_to_handler"}, "graph": {40: "sys_read+6"}},
        entries=["__schedule", "foo", "return_to_handler", "entry"],
    ),
    Case(
        "4.4: the saved frame's return address itself replaced, and nowhere to be found",
        [*frame("arch_rethook_trampoline"), *TO_USER],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["rethook-unrecovered"],
    ),
    Case(
        "4.4: interrupted just after returning to the tracer's trampoline",
        [*TO_INTERRUPT, *interrupt("return_to_handler"), *frame(0), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
        setup={"graph": {40 + REGS_WORDS: "foo+6"}},
    ),
    *(
        Case(
            f"2: the list of {what} is not in the dump",
            words,
            ["__schedule", "foo"],
            kernel="unreliable",
            proof="undecided",
            reasons=["memory-unreadable"],
            setup={"shadow_readable": False},
        )
        for what, words in (("traced returns", TRACED), ("probed returns", PROBED))
    ),
]

INTERRUPTED = ["running", "exception-boundary"]
ON_TASK = TOP - 8 * (len(TO_USER) + 20)
"""Just below the frame of what called the interrupted function."""
ON_TASK_STACK = {"psw.mask": 0, "psw.addr": "foo+6", "r15": ON_TASK}
ON_ASYNC_STACK = {**ON_TASK_STACK, "r15": ASYNC.high - 320}


def running(claim: str, frames: list[str | None], reasons: list[str], **others: Any) -> Case:
    """A row for a task that runs, from registers of its CPU."""
    words = others.pop("words", [*frame(0), *TO_USER])
    setup = {"registers": others.pop("registers", ON_TASK_STACK), "more": others.pop("more", {})}
    return Case(
        claim, words, frames, kernel="running", reasons=reasons, setup=setup,
        task={"on_cpu": True}, **others,
    )  # fmt: skip


RUNNING = [
    running(
        "a running task is shown from its CPU's registers, which may have caught a function before "
        "it had a frame",
        ["foo", *FRAMES[1:]],
        INTERRUPTED,
        proof="undecided",
    ),
    running(
        "a task running in user mode has no kernel frames",
        [],
        ["running"],
        registers={"psw.mask": USER_MODE, "psw.addr": 0x1000000, "r15": 0x3FFFFFFF000},
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
        registers={"psw.addr": "foo+6", "r15": ON_TASK},
        proof="undecided",
    ),
    running(
        "the walk passes from the interrupt stack to the task's",
        ["foo", "bar", *FRAMES[1:]],
        INTERRUPTED,
        registers=ON_ASYNC_STACK,
        more={ASYNC.high - 320: [*frame(0), *frame("bar+6", TOP - 8 * len(TO_USER))]},
        proof="undecided",
    ),
    running(
        "user registers at the bottom of the interrupt stack are an end",
        ["foo", "bar"],
        INTERRUPTED,
        registers={**ON_ASYNC_STACK, "r15": ASYNC.high - 520},
        more={ASYNC.high - 520: [*frame(0), *last("bar+6"), *USER_REGS]},
        proof="undecided",
    ),
    running(
        "4.3: registers of the kernel there are an interrupt's",
        ["foo", "bar", "schedule", *FRAMES[1:]],
        [*INTERRUPTED, "exception-boundary"],
        registers={**ON_ASYNC_STACK, "r15": ASYNC.high - 520},
        more={ASYNC.high - 520: [*frame(0), *last("bar+6"), *interrupt("schedule+6", ON_TASK)]},
        proof="undecided",
    ),
    running(
        "4.1: user registers at the bottom of another stack are no end",
        ["foo", "bar"],
        [*INTERRUPTED, "frame-outside-stack"],
        registers={**ON_ASYNC_STACK, "r15": NODAT.high - 520},
        more={NODAT.high - 520: [*frame(0), *last("bar+6"), *USER_REGS]},
        proof="undecided",
    ),
    running(
        "2: a walk that comes back to a stack it has left",
        ["foo", "bar", "sys_read"],
        [*INTERRUPTED, "stack-visited-twice", "frame-outside-stack"],
        words=[*frame(0), *frame("sys_read+6", ASYNC.high - 160, 4), *TO_USER[24:]],
        registers=ON_ASYNC_STACK,
        more={ASYNC.high - 320: [*frame(0), *frame("bar+6", TOP - 8 * len(TO_USER))]},
        proof="undecided",
    ),
    running(
        "2: a stack pointer that is on none of the CPU's stacks",
        ["foo"],
        ["running", "sp-outside-stack", "exception-boundary", "slot-outside-stack"],
        registers={**ON_TASK_STACK, "r15": 0x37FE0200000},
        proof="refuted",
    ),
    running(
        "2: a stack pointer at the end of memory",
        ["foo"],
        ["running", "sp-outside-stack", "exception-boundary", "slot-outside-stack"],
        registers={**ON_TASK_STACK, "r15": (1 << 64) - 8},
        proof="refuted",
    ),
    running(
        "2: the interrupt stack is not in the dump",
        ["foo"],
        [*INTERRUPTED, "memory-unreadable"],
        registers=ON_ASYNC_STACK,
        proof="undecided",
    ),
]

CASES = [*ENDS, *CORRUPT, *TEXT, *EXCEPTIONS, *REWRITTEN, *RUNNING]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.claim)
def test_stack(case: Case, again: bool) -> None:
    """Frames, both verdicts and the reasons of one stack."""
    check(case, Kernel(case.words, **case.setup), again=again)


@pytest.mark.parametrize(("entries", "verdict"), [(99, "reliable"), (100, "unreliable")])
def test_room_for_entries(entries: int, verdict: str) -> None:
    """2: 99 entries fit; the hundredth fills the livepatch code's buffer.

    A stack of 16 KiB holds no more than 98 frames: this kernel's is larger, as KASAN's is.
    """
    words = [*ASLEEP, *frame("foo+6") * (entries - 3), *TO_USER]
    kernel = Kernel([])
    kernel.unwinder.facts.thread_size = 0x10000
    stack = STACK + 0x40000
    sp = stack + 0x10000 - 8 * len(words)
    data = [(sp + 8 * (i + w.words) + w.bytes if isinstance(w, Up) else
             PLACES[w.split("+")[0]] + 6 if isinstance(w, str) else w)
            for i, w in enumerate(words)]  # fmt: skip
    kernel.memory.put_words(stack, 0x57AC6E9D, *[0] * (0x10000 // 8 - len(words) - 1), *data)
    case = Case(
        "", [], ["__schedule", *["foo"] * (entries - 3), *FRAMES[1:]], kernel=verdict,
        reasons=[] if verdict == "reliable" else ["too-deep"],
        task={"stack": stack, "saved_sp": sp},
    )  # fmt: skip
    check(case, kernel, again=False)


def test_each_step_says_how_it_was_found() -> None:
    """The first frame is the scheduler's, the interrupted one comes from saved registers."""
    words = [
        *TO_INTERRUPT, *interrupt("foo+6"), *frame(0), *frame("arch_rethook_trampoline"), *TO_USER,
    ]  # fmt: skip
    kernel = Kernel(words, probes={40 + REGS_WORDS + 20: "bar+6"})
    walk = walk_task(kernel.unwinder, kernel.task(), proving=True)
    assert [frame.found_by for frame in walk.frames] == [
        FoundBy.SWITCH_FRAME,
        FoundBy.BACK_CHAIN,
        FoundBy.PT_REGS,
        FoundBy.KRETPROBE,
        FoundBy.BACK_CHAIN,
        FoundBy.BACK_CHAIN,
    ]


def test_evidence_names_the_word_that_is_wrong() -> None:
    """A reason carries the program counter, the stack pointer, the frame and the value read."""
    kernel = Kernel([*ASLEEP, *frame("foo+6", 0xDEAD0000BEE0), *TO_USER])
    (reason,) = walk_task(kernel.unwinder, kernel.task()).reasons
    assert (reason.id, reason.value, reason.frame) == ("frame-outside-stack", 0xDEAD0000BEE0, 2)
    assert (reason.pc, reason.sp) == (PLACES["foo"] + 6, kernel.sp + 160)
