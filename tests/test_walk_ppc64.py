# SPDX-License-Identifier: LGPL-2.1-or-later
"""The powerpc64 walk by the back chain on hand-written stacks: each rule and each reason, a row
each.

A stack is written from the saved stack pointer up to its top, see :mod:`tests.walkers`. Expected
verdicts and frames are read off arch/powerpc/kernel/stacktrace.c, not computed. Two kernels are
walked: one with the frames since 6.2 and the ends since 6.4, and one of 6.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from drgn_reliable.arch.kernelfacts import Range
from drgn_reliable.arch.ppc64 import (
    ARCHITECTURE,
    MARKER_AT,
    OLD_MARKER_AT,
    OLD_OVERHEAD,
    RED_ZONE,
    REGS_MARKERS,
    REGS_OVERHEAD,
    USER_MODE,
    Facts,
    Ppc64Unwinder,
)
from drgn_reliable.model import FoundBy, TaskKind
from drgn_reliable.walk import walk_task
from tests.walkers import (
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

HARDIRQ = Range("hardirq", 0xC000000002040000, 0xC000000002044000)
EMERGENCY = Range("emergency", 0xC000000002000000, 0xC000000002004000)
REGS_WORDS = 48
THREAD_SIZE = 1344
"""Bytes of ``struct thread_struct``: no frame is taken so low on a stack."""


class FakeFacts(Facts):
    """The facts of a kernel with the registers of Linux 6.12."""

    def __init__(self, old: bool) -> None:
        self.regs_size = 8 * REGS_WORDS
        self.register_offsets = {f"r{i}": 8 * i for i in range(32)}
        self.register_offsets |= {"nip": 256, "msr": 264, "link": 288}
        self.thread_size = SIZE
        self.thread_struct_size = THREAD_SIZE
        self.init_task = INIT_TASK
        self.fork_return = None
        self.old_layout = self.old_ends = old
        self.regs_at = OLD_OVERHEAD if old else REGS_OVERHEAD
        self.marker_at = OLD_MARKER_AT if old else MARKER_AT
        self.user_frame_size = self.regs_size + self.regs_at
        self.exception_frame_size = self.user_frame_size + RED_ZONE

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        yield HARDIRQ
        yield EMERGENCY


class Kernel(FakeKernel):
    """A powerpc64 kernel, little-endian."""

    code = ARCHITECTURE.code
    call = bytes.fromhex("01000048")

    def __init__(self, words: Iterable[Word], *, old: bool = False, **others: Any) -> None:
        super().__init__(words, FakeFacts(old), **others)
        self.unwinder = Ppc64Unwinder(self.parts)


def frame(pc: Word, chain: Word = None, size: int = 6) -> list[Word]:
    """A frame of so many words; the next one is just above it.

    :param pc: the return address into the frame's owner.
    """
    return [Up(size) if chain is None else chain, 0, pc, *[0] * (size - 3)]


def regs(pc: Word = 0, sp: Word = 0, msr: int = 0) -> list[Word]:
    """The words of a ``struct pt_regs``."""
    words: list[Word] = [0] * REGS_WORDS
    words[1], words[32], words[33] = sp, pc, msr
    return words


def exception(
    pc: Word,
    lr: Word = "asm_interrupt+8",
    *,
    up: Word = None,
    old: bool = False,
    marker: int = REGS_MARKERS[0],
) -> list[Word]:
    """An exception's frame with its registers and the red zone; the interrupted function's frame
    is just above it.

    :param lr: what the handler's return address is.
    """
    overhead = (OLD_OVERHEAD if old else REGS_OVERHEAD) // 8
    head = frame(lr, Up(overhead + REGS_WORDS + RED_ZONE // 8) if up is None else up, overhead)
    head[(OLD_MARKER_AT if old else MARKER_AT) // 8] = marker
    to_next = REGS_WORDS - 1 + RED_ZONE // 8
    sp = Up(to_next) if up is None else up
    return [*head, *regs(pc, sp), *[0] * (RED_ZONE // 8)]


SWITCHED_OUT = frame(0x1234, size=6)
"""Of the frame that _switch makes only the back chain is looked at."""
ASLEEP = [*SWITCHED_OUT, *frame("__schedule+8")]
USER_FRAME = [0x7FFFF000, 0, 0, 0, REGS_MARKERS[0], 0, *regs(msr=USER_MODE)]
"""What a user task's stack begins with; its back chain is the user's and not looked at."""
TO_USER = [*frame("sys_read+8"), *frame("entry+8"), *USER_FRAME]
KTHREAD_FRAME = [0, 0, "ret_from_fork+8", 0]
FRAMES = ["__schedule", "sys_read", "entry"]
KTHREAD = {"kind": TaskKind.KTHREAD}
IDLE = {"kind": TaskKind.IDLE}

ENDS = [
    Case(
        "a user task's trace ends at the frame that the entry from user mode made",
        [*ASLEEP, *TO_USER],
        FRAMES,
    ),
    Case(
        "a kernel thread's ends at the smallest frame at the very top",
        [*ASLEEP, *frame("kthread+8"), *KTHREAD_FRAME],
        ["__schedule", "kthread"],
        task=KTHREAD,
    ),
    Case(
        "an idle task's ends there too",
        [*ASLEEP, *frame("foo+8"), *KTHREAD_FRAME],
        ["__schedule", "foo"],
        task=IDLE,
    ),
    Case(
        "the switch frame of a task that never ran leads to its end: reliable with no entries",
        [*SWITCHED_OUT, *USER_FRAME],
        [],
    ),
    Case(
        "and that of a kernel thread",
        [*SWITCHED_OUT, *KTHREAD_FRAME],
        [],
        task=KTHREAD,
    ),
    Case(
        "a task whose stack is gone is reliable with no entries",
        [*ASLEEP, *TO_USER],
        [],
        task={"stack_references": 0},
    ),
    Case(
        "4.1: a user task's chain that goes on to a kernel thread's end",
        [*ASLEEP, *frame("foo+8", TOP - 32), *USER_FRAME],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["end-misplaced"],
    ),
    Case(
        "4.1: a kernel thread's chain that ends where a user task's does",
        [*ASLEEP, *frame("foo+8"), *USER_FRAME],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
        task=KTHREAD,
    ),
    Case(
        "4.1: a chain that ends with a zero before the end",
        [*ASLEEP, *frame("foo+8", 0), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    Case(
        "4.1: a chain that misses the end by sixteen bytes",
        [*ASLEEP, *frame("foo+8", Up(4)), *USER_FRAME],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["end-misplaced"],
    ),
]

FAR = [*frame("foo+8", Up(502)), *[0] * 496]
"""A frame, and the next one so far above it that it is on another page."""
CORRUPT = [
    Case(
        f"2: a back chain that leads {what}",
        [*ASLEEP, *frame("foo+8", chain), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=[reason],
    )
    for what, chain, reason in (
        ("beyond the stack", TOP + 0x1000, "frame-outside-stack"),
        ("below the stack", STACK - 0x100, "frame-outside-stack"),
        ("to the end of memory", (1 << 64) - 16, "frame-outside-stack"),
        ("to the last words of the stack", TOP - 16, "frame-outside-stack"),
        ("to no multiple of sixteen", Up(7), "frame-misaligned"),
        ("to its own frame", HERE, "wrong-direction"),
        ("back down", Up(-6), "wrong-direction"),
    )
]
CORRUPT += [
    Case(
        f"2: a saved stack pointer {what}",
        [*ASLEEP, *TO_USER],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["sp-outside-stack"],
        task={"saved_sp": sp},
    )
    for what, sp in (
        ("outside the stack", STACK - 0x1000),
        ("where the livepatch stack is", STACK + 16),
        ("just below where frames begin", STACK + THREAD_SIZE - 16),
        ("too near the end", TOP - 8 * len(USER_FRAME) - 16),
        ("at the end itself", TOP - 8 * len(USER_FRAME)),
    )
]
CORRUPT += [
    Case(
        "2: a saved stack pointer that is not aligned, though a chain begins there",
        [0, Up(11), *[0] * 4, *ASLEEP[6:], *TO_USER],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-misaligned"],
        task={"saved_sp": Up(1)},
    ),
    Case(
        "2: a page of the stack that the dump lacks: never taken for zeroes",
        [*ASLEEP, *FAR, *frame("bar+8", Up(600)), *[0] * 594, *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(514, 515)},
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
        "2: a frame of which the dump has the back chain and not the return address",
        [*ASLEEP, *FAR, *frame("bar+8"), *[0] * (508 - len(TO_USER)), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(516, 517)},
    ),
    Case(
        "2: a frame of which the dump has the return address and not the marker's place",
        [*ASLEEP, *FAR, *frame("bar+8"), *[0] * (510 - len(TO_USER)), *TO_USER],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(518, 519)},
    ),
    Case(
        "2: an exception's registers that the dump lacks",
        [
            *ASLEEP,
            *FAR[:-6],
            *exception("bar+8"),
            *[0] * (512 - REGS_WORDS - RED_ZONE // 8 - len(TO_USER)),
            *TO_USER,
        ],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"hole": range(514, 515)},
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
        [*ASLEEP, *frame("foo+8"), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        proof="undecided",
        reasons=["no-call-before"],
        setup={"no_call": "foo+8"},
    ),
    Case(
        "2: what ftrace patched in at a function's entry branches to a stub that calls",
        [*ASLEEP, *frame("foo+8"), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        setup={"patched": {"foo+4": bytes.fromhex("00010048")}},
    ),
    Case(
        "2: 99 entries fit",
        [*ASLEEP, *frame("foo+8", size=4) * 96, *TO_USER],
        ["__schedule", *["foo"] * 96, *FRAMES[1:]],
    ),
    Case(
        "2: the hundredth entry fills the livepatch code's buffer",
        [*ASLEEP, *frame("foo+8", size=4) * 97, *TO_USER],
        ["__schedule", *["foo"] * 97, *FRAMES[1:]],
        kernel="unreliable",
        proof="proven",
        reasons=["too-deep"],
    ),
]

TEXT = [
    Case(
        "4.2: a return address that is no kernel text",
        [*ASLEEP, *frame("nowhere+8"), *TO_USER],
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
        [*ASLEEP, *frame("module+8"), *frame("bpf+8"), *TO_USER],
        ["__schedule", None, "bpf_prog", *FRAMES[1:]],
    ),
    Case(
        "4.2: a frame in freed init text: the kernel takes it for text",
        [*ASLEEP, *frame("start_kernel+8"), *TO_USER],
        ["__schedule", "start_kernel", *FRAMES[1:]],
        proof="undecided",
        reasons=["init-text-freed"],
    ),
    Case(
        "4.2: the boot CPU's idle task keeps frames in init text rightly",
        [*ASLEEP, *frame("start_kernel+8"), *KTHREAD_FRAME],
        ["__schedule", "start_kernel"],
        task={"address": INIT_TASK, **IDLE},
    ),
    Case(
        "4.2: a return address after a call that does not return belongs to the call's function",
        [*ASLEEP, *frame("noreturn_call"), *TO_USER],
        ["__schedule", "bar", *FRAMES[1:]],
    ),
]

EXCEPTIONS = [
    Case(
        "4.3: an exception in the kernel: the kernel refuses, the proof goes on and stays open",
        [*ASLEEP, *frame("asm_interrupt+8"), *exception("foo+8"), *frame(0), *TO_USER],
        ["__schedule", "asm_interrupt", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    Case(
        "4.3: an exception at the very first instruction of a function is looked up as it is",
        [*ASLEEP, *exception("leaf"), *frame(0), *TO_USER],
        ["__schedule", "leaf", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    Case(
        "4.3: an exception within an exception",
        [*ASLEEP, *exception("bar+8"), *frame(0), *exception("foo+8"), *frame(0), *TO_USER],
        ["__schedule", "bar", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary", "exception-boundary"],
    ),
    Case(
        "4.3: an exception's return address is not looked at",
        [*ASLEEP, *exception("foo+8", 0x1234), *frame(0), *TO_USER],
        ["__schedule", "foo", *FRAMES[1:]],
        kernel="unreliable",
        proof="undecided",
        reasons=["exception-boundary"],
    ),
    Case(
        "4.3: interrupted in what is no kernel text",
        [*ASLEEP, *exception(0x1234), *frame(0), *TO_USER],
        ["__schedule", None, *FRAMES[1:]],
        kernel="unreliable",
        proof="refuted",
        reasons=["exception-boundary", "text-not-checked"],
    ),
    Case(
        "4.3: a marker so near the end that no registers would fit is none",
        [*ASLEEP, *exception("foo+8")[:6], *USER_FRAME],
        ["__schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    *(
        Case(
            f"4.3: an exception's stack pointer that leads {what}",
            [*ASLEEP, *exception("foo+8", up=sp), *frame(0), *TO_USER],
            ["__schedule"],
            kernel="unreliable",
            proof="refuted",
            reasons=[reason],
        )
        for what, sp, reason in (
            ("off the stack", TOP + 0x1000, "frame-outside-stack"),
            ("back down", STACK + 0x800, "wrong-direction"),
            ("to no multiple of sixteen", TOP - 0x408, "frame-misaligned"),
        )
    ),
]

TRACED = [*ASLEEP, *frame("foo+8"), *frame("return_to_handler"), *TO_USER[6:]]
"""The return address into sys_read() was replaced; the key is the frame's place, word 18."""
PROBED = [*ASLEEP, *frame("foo+8"), *frame("arch_rethook_trampoline"), *TO_USER[6:]]
RECOVERED = ["__schedule", "foo", "sys_read", "entry"]

REWRITTEN = [
    Case(
        "4.4: a graph-traced return address is found by the stack pointer",
        TRACED,
        RECOVERED,
        setup={"graph": {18: "sys_read+8"}},
    ),
    Case(
        "4.4: one that is not found: the kernel takes the trampoline for the caller",
        TRACED,
        ["__schedule", "foo", "return_to_handler", "entry"],
        proof="refuted",
        reasons=["fgraph-unrecovered"],
    ),
    Case(
        "4.2: what the tracer's list has is not looked at",
        TRACED,
        ["__schedule", "foo", None, "entry"],
        proof="refuted",
        reasons=["text-not-checked"],
        setup={"graph": {18: "nowhere+8"}},
    ),
    Case(
        "4.4: the stub by which a livepatched function is entered stands for the caller, which is "
        "missing: the kernel does not notice",
        [*ASLEEP, *frame("foo+8"), *frame("livepatch_handler+0x30"), *TO_USER[6:]],
        ["__schedule", "foo", "livepatch_handler", "entry"],
        proof="refuted",
        reasons=["livepatch-hides-caller"],
    ),
    *(
        Case(
            f"4.4: a kretprobed return address of a task that is {what}: the kernel does not look",
            PROBED,
            RECOVERED,
            kernel="unreliable",
            proof="proven",
            reasons=["rethook-refused"],
            setup={"probes": {18: "sys_read+8"}},
            task={"run_state": state},
        )
        for what, state in (("asleep", 1), ("runnable", 0))
    ),
    Case(
        "4.4: kretprobes before rethook (6.8) have no key",
        PROBED,
        RECOVERED,
        kernel="unreliable",
        proof="proven",
        reasons=["rethook-refused"],
        setup={"probes": {None: "sys_read+8"}, "refuses_runnable": False},
    ),
    Case(
        "4.4: a kretprobed return address that is nowhere",
        PROBED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["rethook-refused", "rethook-unrecovered"],
    ),
    Case(
        "4.4: probed first, traced second: found is what the kernel refuses",
        TRACED,
        RECOVERED,
        kernel="unreliable",
        proof="proven",
        reasons=["rethook-refused"],
        setup={"graph": {18: "arch_rethook_trampoline"}, "probes": {18: "sys_read+8"}},
    ),
    Case(
        "4.4: traced first, probed second: the dump has both",
        PROBED,
        RECOVERED,
        kernel="unreliable",
        proof="proven",
        reasons=["rethook-refused", "fgraph-beneath-kretprobe"],
        setup={"probes": {18: "return_to_handler"}, "graph": {18: "sys_read+8"}},
    ),
    Case(
        "2: the list of traced returns is not in the dump",
        TRACED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable"],
        setup={"shadow_readable": False},
    ),
    Case(
        "2: the list of probed returns is not in the dump: the kernel refuses without it",
        PROBED,
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="undecided",
        reasons=["rethook-refused", "memory-unreadable"],
        setup={"shadow_readable": False},
    ),
]

INTERRUPTED = ["running", "exception-boundary"]
ON_TASK = TOP - 8 * (len(TO_USER) + 6)
"""The interrupted function's frame, just below that of its caller."""
ON_TASK_STACK = {"nip": "foo+8", "r1": ON_TASK, "msr": 0}
ON_IRQ_STACK = {**ON_TASK_STACK, "r1": HARDIRQ.high - 96}


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
        registers={"nip": 0x10000000, "r1": 0x7FFFF000, "msr": USER_MODE},
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
        registers={"nip": "foo+8", "r1": ON_TASK},
        proof="undecided",
    ),
    running(
        "the walk passes from the interrupt stack to the task's",
        ["foo", "bar", *FRAMES[1:]],
        INTERRUPTED,
        registers=ON_IRQ_STACK,
        more={HARDIRQ.high - 96: [*frame(0), *frame("bar+8", TOP - 8 * len(TO_USER))]},
        proof="undecided",
    ),
    running(
        "an interrupt of user mode leads from its stack to the task's end at once",
        ["foo", "bar"],
        INTERRUPTED,
        registers=ON_IRQ_STACK,
        more={HARDIRQ.high - 96: [*frame(0), *frame("bar+8", TOP - 8 * len(USER_FRAME))]},
        proof="undecided",
    ),
    running(
        "4.3: an exception on the interrupt stack, which lies above the task's in memory or below",
        ["foo", "bar", *FRAMES[1:]],
        [*INTERRUPTED, "exception-boundary"],
        registers={**ON_TASK_STACK, "r1": HARDIRQ.high - 1024},
        more={
            HARDIRQ.high - 1024: [
                *frame(0),
                *exception("bar+8", up=ON_TASK),
                *[0] * (128 - 6 - 6 - REGS_WORDS - RED_ZONE // 8),
            ]
        },
        proof="undecided",
    ),
    running(
        "4.3: a marker where the interrupt stack has no room for registers is none",
        ["foo", "asm_interrupt", *FRAMES[1:]],
        INTERRUPTED,
        registers=ON_IRQ_STACK,
        more={
            HARDIRQ.high - 96: [
                *frame(0),
                *exception("bar+8", up=TOP - 8 * len(TO_USER))[:6],
            ]
        },
        proof="undecided",
    ),
    running(
        "2: a walk that comes back to a stack it has left",
        ["foo", "bar", "sys_read"],
        [*INTERRUPTED, "stack-visited-twice", "frame-outside-stack"],
        words=[*frame(0), *frame("sys_read+8", HARDIRQ.high - 32), *TO_USER[6:]],
        registers=ON_IRQ_STACK,
        more={HARDIRQ.high - 96: [*frame(0), *frame("bar+8", TOP - 8 * len(TO_USER))]},
        proof="undecided",
    ),
    running(
        "2: a stack pointer that is on none of the CPU's stacks",
        ["foo"],
        ["running", "sp-outside-stack", "exception-boundary", "slot-outside-stack"],
        registers={**ON_TASK_STACK, "r1": 0xC000000003000000},
        proof="refuted",
    ),
    running(
        "2: the interrupt stack is not in the dump",
        ["foo"],
        [*INTERRUPTED, "memory-unreadable"],
        registers=ON_IRQ_STACK,
        proof="undecided",
    ),
]

CASES = [*ENDS, *CORRUPT, *TEXT, *EXCEPTIONS, *REWRITTEN, *RUNNING]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.claim)
def test_stack(case: Case, again: bool) -> None:
    """Frames, both verdicts and the reasons of one stack."""
    check(case, Kernel(case.words, **case.setup), again=again)


# Linux 6.1 -----------------------------------------------------------------------------------

OLD_USER_FRAME = [0x7FFFF000, *[0] * 11, REGS_MARKERS[0], 0, *regs(msr=USER_MODE)]
OLD_KTHREAD_FRAME = [0, *[0] * 13, *regs()]
OLD_IDLE_FRAME = [0] * 14
OLD_TO_USER = [*frame("sys_read+8"), *frame("entry+8"), *OLD_USER_FRAME]
OLD_CASES = [
    Case(
        "a user task's trace ends at the frame below its registers",
        [*ASLEEP, *OLD_TO_USER],
        FRAMES,
    ),
    Case(
        "a kernel thread's ends there too",
        [*ASLEEP, *frame("kthread+8"), *OLD_KTHREAD_FRAME],
        ["__schedule", "kthread"],
        task=KTHREAD,
    ),
    Case(
        "an idle task's ends at the smallest frame of those days",
        [*ASLEEP, *frame("foo+8"), *OLD_IDLE_FRAME],
        ["__schedule", "foo"],
        task=IDLE,
    ),
    Case(
        "a kernel thread's chain that ends where an idle task's does",
        [*ASLEEP, *frame("foo+8", TOP - 112), *OLD_KTHREAD_FRAME],
        ["__schedule", "foo"],
        kernel="unreliable",
        proof="refuted",
        reasons=["end-misplaced"],
        task=KTHREAD,
    ),
    Case(
        "the switch frame of a task that never ran leads nowhere",
        [0, *SWITCHED_OUT[1:], *OLD_USER_FRAME],
        [],
        kernel="unreliable",
        proof="refuted",
        reasons=["frame-outside-stack"],
    ),
    *(
        Case(
            f"4.3: an exception in the kernel, marked as {since}",
            [*ASLEEP, *exception("foo+8", old=True, marker=marker), *frame(0), *OLD_TO_USER],
            ["__schedule", "foo", *FRAMES[1:]],
            kernel="unreliable",
            proof="undecided",
            reasons=["exception-boundary"],
        )
        for since, marker in zip(("since 6.1", "before 6.1"), REGS_MARKERS, strict=True)
    ),
    Case(
        "4.3: a marker where it is since 6.2 is none",
        [*ASLEEP, *exception("foo+8")[:6], *[0] * 150, *OLD_TO_USER],
        ["__schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    Case(
        "4.4: a kretprobed return address, which has no key",
        [*PROBED[: -len(USER_FRAME)], *OLD_USER_FRAME],
        RECOVERED,
        kernel="unreliable",
        proof="proven",
        reasons=["rethook-refused"],
        setup={"probes": {None: "sys_read+8"}, "refuses_runnable": False},
    ),
]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("case", OLD_CASES, ids=lambda case: case.claim)
def test_stack_of_6_1(case: Case, again: bool) -> None:
    """The same of a kernel that has exceptions' frames, and ends, elsewhere."""
    check(case, Kernel(case.words, old=True, **case.setup), again=again)


def test_each_step_says_how_it_was_found() -> None:
    """The first frame is the scheduler's, the interrupted one comes from saved registers."""
    words = [*ASLEEP, *exception("foo+8"), *frame(0), *frame("return_to_handler"), *TO_USER]
    kernel = Kernel(words, graph={12 + 6 + REGS_WORDS + RED_ZONE // 8 + 6: "bar+8"})
    walk = walk_task(kernel.unwinder, kernel.task(), proving=True)
    assert [frame.found_by for frame in walk.frames] == [
        FoundBy.SWITCH_FRAME,
        FoundBy.PT_REGS,
        FoundBy.FUNCTION_GRAPH,
        FoundBy.BACK_CHAIN,
        FoundBy.BACK_CHAIN,
    ]


def test_evidence_names_the_word_that_is_wrong() -> None:
    """A reason carries the program counter, the stack pointer, the frame and the value read."""
    kernel = Kernel([*ASLEEP, *frame("foo+8", 0xDEAD0000BEE0), *TO_USER])
    (reason,) = walk_task(kernel.unwinder, kernel.task()).reasons
    assert (reason.id, reason.value, reason.frame) == ("frame-outside-stack", 0xDEAD0000BEE0, 2)
    assert (reason.pc, reason.sp) == (PLACES["foo"] + 8, kernel.sp + 8 * 12)
