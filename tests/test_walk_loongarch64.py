# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loongarch64 walk by ORC on hand-written stacks: each rule and each reason, a row each.

A stack is written from the frame of ``__schedule()`` up to its top, see :mod:`tests.walkers`.
Expected verdicts and frames are read off arch/loongarch/kernel/unwind_orc.c, not computed. The
kernel's walk starts in the caller of ``__schedule()``, the proof's in ``__schedule()``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from drgn import FaultError

from drgn_reliable.arch.kernelfacts import Range
from drgn_reliable.arch.loongarch64 import (
    ARCHITECTURE,
    FORMAT,
    FP,
    PREV_SP,
    SP,
    TYPE_CALL,
    TYPE_END,
    TYPE_REGS,
    TYPE_UNDEFINED,
    UNDEFINED,
    Facts,
    LoongArchRule,
    LoongArchUnwinder,
)
from drgn_reliable.model import TaskKind
from tests.walkers import (
    FUNCTIONS,
    INIT_TASK,
    PLACES,
    SIZE,
    STACK,
    TOP,
    Case,
    FakeKernel,
    Up,
    Word,
    address,
    check,
)

IRQ = Range("irq", 0x9000000000100000, 0x9000000000103FF0)
REGS_WORDS = 41
OFFSETS = {"ra": 8, "sp": 24, "fp": 176, "csr_era": 264, "csr_prmd": 288}
USER_MODE, KERNEL_MODE = 3, 0


def rule(
    type_: int = TYPE_CALL, sp: int = 16, base: int = SP, fp: int = PREV_SP, ra: int = PREV_SP
) -> LoongArchRule:
    """By default the frame of a function: two words, its caller's frame pointer and address."""
    return LoongArchRule(sp, -16, -8, base, fp, ra, type_)


RULES: dict[str, LoongArchRule | None] = {
    **dict.fromkeys(FUNCTIONS, rule()),
    "entry": rule(TYPE_REGS, sp=0, fp=UNDEFINED, ra=UNDEFINED),
    "asm_interrupt": rule(TYPE_REGS, sp=0, fp=UNDEFINED, ra=UNDEFINED),
    "leaf": rule(sp=0, fp=UNDEFINED, ra=UNDEFINED),
    "bar": rule(sp=0, base=FP),
    "common_startup_64": rule(TYPE_END),
    "undefined": rule(TYPE_UNDEFINED),
    "return_to_handler": rule(TYPE_UNDEFINED),
    "arch_rethook_trampoline": rule(TYPE_UNDEFINED),
    "module": rule(),
    "bpf": None,
    "nowhere": None,
}


class FakeOrc:
    """Rules by function."""

    def __init__(self, rules: Mapping[str, LoongArchRule | None], readable: bool) -> None:
        self._rules = rules
        self._readable = readable

    def find(self, pc: int) -> LoongArchRule | None:
        if not self._readable:
            raise FaultError("tables", pc)
        names = [name for name in self._rules if PLACES[name] <= pc < PLACES[name] + 0x100]
        return self._rules[names[0]] if names else None


class FakeFacts(Facts):
    """The facts of a kernel with 16 KiB stacks."""

    def __init__(self, switched: tuple[int, int], vectors: Mapping[int, int]) -> None:
        self.regs_size = 8 * REGS_WORDS
        self.register_offsets = OFFSETS
        self.fake_offset = self.regs_size - OFFSETS["ra"]
        self.thread_size = SIZE
        self.init_task = INIT_TASK
        self.fork_return = FUNCTIONS["ret_from_fork_asm"]
        self._at_switch = switched
        self._at_vector = vectors

    def switched_from(self, task: int) -> tuple[int, int]:
        return self._at_switch

    def called_at(self, pc: int) -> int:
        return self._at_vector.get(pc, pc)

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        yield IRQ


class Kernel(FakeKernel):
    """A loongarch64 kernel."""

    code = ARCHITECTURE.code
    call = bytes.fromhex("00000054")

    def __init__(
        self,
        words: Iterable[Word],
        *,
        rules: Mapping[str, LoongArchRule | None] | None = None,
        readable: bool = True,
        switched: tuple[Word, Word] = ("__schedule+8", Up(0)),
        vectors: Mapping[int, Word] | None = None,
        **others: Any,
    ) -> None:
        words = list(words)
        sp = TOP - 8 * len(words)
        at_switch = (address(switched[0]), address(switched[1], sp))
        at_vector = {pc: address(word) for pc, word in (vectors or {}).items()}
        super().__init__(words, FakeFacts(at_switch, at_vector), **others)
        orc: Any = FakeOrc({**RULES, **(rules or {})}, readable)
        self.unwinder = LoongArchUnwinder(self.parts, orc)


def frame(pc: Word, fp: Word = 0) -> list[Word]:
    """The two words of a function that was called from there."""
    return [fp, pc]


def regs(*, pc: Word = 0, sp: Word = 0, ra: Word = 0, fp: Word = 0, mode: int) -> list[Word]:
    """The words of a ``struct pt_regs``."""
    words: list[Word] = [0] * REGS_WORDS
    for name, value in {"csr_era": pc, "sp": sp, "ra": ra, "fp": fp, "csr_prmd": mode}.items():
        words[OFFSETS[name] // 8] = value
    return words


USER = regs(pc=0x120000000, sp=0x7FFF0000, ra=0x120000100, mode=USER_MODE)
NONE = [0] * REGS_WORDS
"""Registers of a kernel thread, at the end of its stack."""
SCHEDULE = frame("schedule+8")
"""The frame of ``__schedule()``."""
SLEEPS: dict[str, Any] = {"saved_sp": Up(2), "saved_pc": "schedule+8", "saved_fp": Up(2)}
"""What the scheduler saved: the frame pointer is that of ``__schedule()``."""
KTHREAD = {**SLEEPS, "kind": TaskKind.KTHREAD}
TO_USER = [*SCHEDULE, *frame("sys_read+8"), *frame("entry+8"), *USER]
CALLERS = ["schedule", "sys_read", "entry"]


def case(claim: str, words: list[Any], frames: list[str | None], **others: Any) -> Case:
    """A row for a task that sleeps; the kernel does not see the frame of ``__schedule()``."""
    merged: dict[str, Any] = {"task": SLEEPS, "entries": frames, **others}
    return Case(claim, words, ["__schedule", *frames], **merged)


def bare(claim: str, words: list[Any], frames: list[str | None], **others: Any) -> Case:
    """A row in whose proof there is no frame of ``__schedule()``."""
    return Case(claim, words, frames, **{"task": SLEEPS, **others})


ENDS = [
    case("a user task's trace ends at the registers of its entry", TO_USER, CALLERS),
    case(
        "a kernel thread's ends at registers of zeroes at the stack's end",
        [*SCHEDULE, *frame("kthread+8"), *frame("entry+8"), *NONE],
        ["schedule", "kthread", "entry"],
        task=KTHREAD,
    ),
    case(
        "an idle task's ends where its unwind data say so",
        [*SCHEDULE, *frame("common_startup_64+8"), 0],
        ["schedule", "common_startup_64"],
    ),
    bare("a task that never ran has no frames", [0], [], task={**SLEEPS, "saved_sp": 0}),
    bare(
        "4.1: a saved frame on no stack is a trace of no entries to the kernel",
        TO_USER,
        [],
        proof="refuted",
        reasons=["start-outside-stack"],
        task={**SLEEPS, "saved_sp": STACK - 64},
    ),
    bare(
        "4.1: so is one that is not aligned",
        TO_USER,
        [],
        proof="refuted",
        reasons=["start-outside-stack"],
        task={**SLEEPS, "saved_sp": Up(2, 4)},
        setup={"switched": ("__schedule+8", Up(0, 4))},
    ),
    case(
        "2: a return address that no call left: the kernel does not look",
        [*SCHEDULE, *frame("foo+8"), *frame("sys_read+8"), *frame("entry+8"), *USER],
        ["schedule", "foo", "sys_read", "entry"],
        proof="undecided",
        reasons=["no-call-before"],
        setup={"no_call": "foo+8"},
    ),
    case(
        "2: an overwritten end of the stack is seen",
        TO_USER,
        CALLERS,
        proof="undecided",
        reasons=["stack-end-overwritten"],
        setup={"magic": 7},
    ),
]

INTERRUPTED = [*SCHEDULE, *frame("asm_interrupt+8")]
EXCEPTIONS = [
    case(
        "4.3: the kernel crosses an exception, by the data for every instruction",
        [*INTERRUPTED, *regs(pc="foo+4", sp=Up(38), mode=KERNEL_MODE), *frame("entry+8"), *USER],
        ["schedule", "asm_interrupt", "foo", "entry"],
    ),
    case(
        "4.6: of an interrupted leaf function the return address is in its registers",
        [
            *INTERRUPTED,
            *regs(pc="leaf+4", sp=Up(38), ra="foo+8", mode=KERNEL_MODE),
            *frame("entry+8"),
            *USER,
        ],
        ["schedule", "asm_interrupt", "leaf", "foo", "entry"],
    ),
    case(
        "4.6: a function in the middle of a stack cannot have it there",
        [*SCHEDULE, *frame("leaf+8"), *USER],
        ["schedule", "leaf"],
        kernel="unreliable",
        proof="undecided",
        reasons=["link-register-unknown"],
    ),
    case(
        "a frame in the copy that exception vectors have of a handler is the handler's",
        [*SCHEDULE, *frame(0x9000000005550008), *frame("entry+8"), *USER],
        ["schedule", "foo", "entry"],
        setup={"vectors": {0x9000000005550004: "foo+16"}},
    ),
    case(
        "2: registers that would reach beyond the stack are refused",
        [*SCHEDULE, *frame("asm_interrupt+8"), *[0] * 8],
        ["schedule", "asm_interrupt"],
        kernel="unreliable",
        proof="refuted",
        reasons=["regs-outside-stack"],
    ),
]

TRACERS = [
    case(
        "4.4: a traced return is found by the frame's address",
        [*SCHEDULE, *frame("return_to_handler"), *frame("entry+8"), *USER],
        ["schedule", "foo", "entry"],
        setup={"graph": {4 - REGS_WORDS + 1: "foo+8"}},
    ),
    case(
        "4.4: where it is not, the kernel goes on at the tracer's code, which has no data",
        [*SCHEDULE, *frame("return_to_handler+4"), *frame("entry+8"), *USER],
        ["schedule", "return_to_handler"],
        kernel="unreliable",
        proof="undecided",
        reasons=["fgraph-window"],
    ),
    case(
        "4.4: a kretprobed function is refused, and the dump has the address",
        [*SCHEDULE, *frame("arch_rethook_trampoline"), *frame("entry+8"), *USER],
        ["schedule", "foo", "entry"],
        kernel="unreliable",
        reasons=["rethook-refused", "rethook-refused"],
        setup={"probes": {None: "foo+8"}},
    ),
    case(
        "4.4: unless ra is left over from an interrupted function that had saved it: the code "
        "before the trampoline has its caller there, and the kernel goes on",
        [
            *INTERRUPTED,
            *regs(pc="foo+4", sp=Up(38), ra="foo+8", mode=KERNEL_MODE),
            *frame("arch_rethook_trampoline"),
            *frame("entry+8"),
            *USER,
        ],
        ["schedule", "asm_interrupt", "foo", "sys_read", "entry"],
        reasons=["rethook-overlooked", "direction-not-checked", "rethook-entries-mismatch"],
        entries=["schedule", "asm_interrupt", "foo", "return_to_handler", "foo", "entry"],
        setup={"probes": {None: "sys_read+8"}, "rules": {"return_to_handler": RULES["leaf"]}},
    ),
]

DATA = [
    case(
        "4.2: code without data is followed by a guess that proves nothing",
        [*SCHEDULE, *frame("bpf+8"), *USER],
        ["schedule", "bpf_prog"],
        kernel="unreliable",
        proof="undecided",
        reasons=["no-unwind-data", "slot-outside-stack"],
    ),
    case(
        "4.2: code that is marked as not unwindable ends the walk",
        [*SCHEDULE, *frame("undefined+8"), *USER],
        ["schedule", "undefined"],
        kernel="unreliable",
        proof="undecided",
        reasons=["undefined-unwind-data"],
    ),
    case(
        "4.2: what is no kernel text is refused",
        [*SCHEDULE, *frame("nowhere+8"), *USER],
        ["schedule"],
        kernel="unreliable",
        proof="refuted",
        reasons=["not-kernel-text"],
    ),
    *(
        case(
            f"2: data with an unknown {what} are refused",
            TO_USER,
            ["schedule", "sys_read"],
            kernel="unreliable",
            proof="undecided",
            reasons=["bad-unwind-data"],
            setup={"rules": {"sys_read": bad}},
        )
        for what, bad in {
            "stack base": rule(base=PREV_SP),
            "frame base": rule(fp=SP),
            "return address base": rule(ra=FP),
            "frame type": rule(4),
        }.items()
    ),
    bare(
        "2: tables that the dump lacks leave it open, and the errno says so",
        TO_USER,
        ["__schedule"],
        kernel="unreliable",
        proof="undecided",
        reasons=["memory-unreadable", "memory-unreadable"],
        setup={"readable": False},
    ),
]

BY_FRAME_POINTER = {
    "schedule": rule(fp=UNDEFINED),
    "bar": rule(sp=0, base=FP),
}
"""As do_syscall() finds its caller; functions below it do not save the frame pointer."""

CIRCLES = [
    case(
        "2: the kernel goes in a circle by a wrong frame pointer; the proof has a better one",
        [*frame("schedule+8", Up(6)), *frame("bar+8"), *frame("entry+8"), *USER],
        ["schedule", "bar", "entry"],
        entries=["schedule", "bar", "schedule", "bar", "entry"],
        reasons=["direction-not-checked"],
        setup={"rules": BY_FRAME_POINTER},
    ),
    case(
        "2: where both frame pointers lead down, the stack is corrupt",
        [*frame("schedule+8", Up(2)), *frame("bar+8"), *frame("entry+8"), *USER],
        ["schedule", "bar"],
        entries=["schedule", "bar"] * 50,
        kernel="unreliable",
        proof="refuted",
        reasons=["too-deep", "direction-not-checked"],
        setup={"rules": BY_FRAME_POINTER},
    ),
]


CASES = [*ENDS, *EXCEPTIONS, *TRACERS, *DATA, *CIRCLES]


@pytest.mark.parametrize("again", [False, True], ids=["", "once more, by what was learnt"])
@pytest.mark.parametrize("row", CASES, ids=lambda row: row.claim)
def test_stack(row: Case, again: bool) -> None:
    """Frames, both verdicts and the reasons of one stack."""
    check(row, Kernel(row.words, **row.setup), again=again)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ((16, -16, -8, 0x2112), LoongArchRule(16, -16, -8, SP, PREV_SP, PREV_SP, TYPE_CALL)),
        ((0, 0, 0, 0x3002), LoongArchRule(0, 0, 0, SP, UNDEFINED, UNDEFINED, TYPE_REGS)),
        ((0, 0, 0, 0x9000), LoongArchRule(0, 0, 0, UNDEFINED, UNDEFINED, UNDEFINED, TYPE_END)),
        ((0, -32, 0, 0x2113), LoongArchRule(0, -32, 0, FP, PREV_SP, PREV_SP, TYPE_CALL)),
    ],
)
def test_entries_are_decoded(entry: tuple[int, int, int, int], expected: LoongArchRule) -> None:
    """Eight bytes: three offsets, and a word of three registers, a type and a signal bit."""
    assert FORMAT.decode(struct.pack("<3hH", *entry)) == expected
    assert FORMAT.size == 8
