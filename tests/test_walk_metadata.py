# SPDX-License-Identifier: LGPL-2.1-or-later
"""Across an exception by call frame information, on hand-written stacks of each architecture that
otherwise follows a chain of frames.

A function that was interrupted before it linked itself into the chain hides its caller: there
the kernel refuses, and the chain alone proves nothing. Each row says what a provider's rule says
of the interrupted instruction, and what is proven by it.
"""

from __future__ import annotations

from typing import Any

import pytest

from drgn_reliable.model import FoundBy
from drgn_reliable.tables.framerule import CFA, FrameRule, Place
from drgn_reliable.walk import walk_task
from tests import test_walk_arm64 as arm64
from tests import test_walk_ppc64 as ppc64
from tests import test_walk_s390x as s390x
from tests import test_walk_x86 as orc
from tests import test_walk_x86_fp as x86_fp
from tests.stacks import UNDEFINED, call, kernel_regs
from tests.walkers import TOP, Case, Up, check

PROVEN: dict[str, Any] = {"kernel": "unreliable", "reasons": ["exception-boundary"]}
UNDECIDED: dict[str, Any] = {**PROVEN, "proof": "undecided"}
DISAGREE: dict[str, Any] = {
    "kernel": "unreliable",
    "proof": "undecided",
    "reasons": ["exception-boundary", "providers-disagree"],
}


def at(place: str, *rules: FrameRule) -> dict[str, Any]:
    """What each provider says of one address."""
    return {"frame_rules": [{place: rule} for rule in rules]}


# arm64: the link register is 30, the stack pointer 31 ----------------------------------------

SP, FP, LR = 31, 29, 30
LEAF = FrameRule(Place(SP), LR, {})
"""``(sp, fp, pc) = (sp, fp, lr)``: the link register was not saved."""
FRAMED = FrameRule(Place(SP, 16), LR, {FP: Place(CFA, -16, True), LR: Place(CFA, -8, True)})
"""``(sp, fp, pc) = (sp + 16, *sp, *(sp + 8))``"""
LOW = FrameRule(Place(SP, -64), LR, {})
LOST = FrameRule(Place(SP), LR, {LR: None})
FROM_X9 = FrameRule(Place(9, 16), LR, {LR: Place(CFA, -8, True)})
OUTERMOST = FrameRule(Place(SP), LR, {}, outermost=True)
INTERRUPTED = ["__schedule", "asm_interrupt", "leaf"]


def arm64_leaf(lr: Any = "foo+8", fp: Any = 3) -> list[Any]:
    """Interrupted in ``leaf``, which has no record of its own."""
    words = arm64.exception("leaf+8", lr=lr, fp=fp)
    words[31] = Up(9)
    return [*arm64.TO_EXCEPTION, *words, *arm64.TO_USER]


def arm64_framed(saved: Any = "bar+8") -> list[Any]:
    """Interrupted in ``foo``, whose record is at its stack pointer."""
    words = arm64.exception("foo+8", lr="leaf+4")
    words[31] = Up(9)
    return [*arm64.TO_EXCEPTION, *words, *arm64.record(saved), *arm64.TO_USER]


ARM64 = [
    arm64.case(
        "4.6: a leaf's caller is in the link register, and nowhere in the chain",
        arm64_leaf(),
        [*INTERRUPTED, "foo", *arm64.FRAMES[1:]],
        setup=at("leaf+8", LEAF),
        **PROVEN,
    ),
    arm64.case(
        "without metadata that caller is missing: never proven",
        arm64_leaf(),
        [*INTERRUPTED, *arm64.FRAMES[1:]],
        **UNDECIDED,
    ),
    arm64.case(
        "a rule of another instruction is of no use",
        arm64_leaf(),
        [*INTERRUPTED, *arm64.FRAMES[1:]],
        setup=at("leaf+4", LEAF),
        **UNDECIDED,
    ),
    arm64.case(
        "4.3: past its prologue the caller is in the record, and the link register is stale",
        arm64_framed(),
        ["__schedule", "asm_interrupt", "foo", "bar", *arm64.FRAMES[1:]],
        setup=at("foo+8", FRAMED),
        **PROVEN,
    ),
    arm64.case(
        "4.6: a link register with an authentication code",
        arm64_leaf(arm64.signed("foo+8")),
        [*INTERRUPTED, "foo", *arm64.FRAMES[1:]],
        setup=at("leaf+8", LEAF),
        **PROVEN,
    ),
    arm64.case(
        "4.4: a link register that the function graph tracer has replaced",
        arm64_leaf("return_to_handler"),
        [*INTERRUPTED, "foo", *arm64.FRAMES[1:]],
        setup={**at("leaf+8", LEAF), "graph": {42: "foo+8"}},
        task=arm64.WITH_LIST,
        **PROVEN,
    ),
    arm64.case(
        "4.4: one that a kretprobe has replaced",
        arm64_leaf("arch_rethook_trampoline"),
        [*INTERRUPTED, "foo", *arm64.FRAMES[1:]],
        setup={**at("leaf+8", LEAF), "probes": {42: "foo+8"}, "refuses_runnable": False},
        **PROVEN,
    ),
    arm64.case(
        "4.3: the rule finds another caller than the function's own record has",
        arm64_framed(),
        ["__schedule", "asm_interrupt", "foo", "leaf", *arm64.FRAMES[1:]],
        setup=at("foo+8", FrameRule(Place(SP), LR, {FP: Place(CFA, 0, True)})),
        **DISAGREE,
    ),
    arm64.case(
        "3: two providers find different callers",
        arm64_leaf(),
        [*INTERRUPTED, "foo", *arm64.FRAMES[1:]],
        setup=at("leaf+8", LEAF, FRAMED),
        **DISAGREE,
    ),
    arm64.case(
        "3: two providers that say the same are one",
        arm64_framed(),
        ["__schedule", "asm_interrupt", "foo", "bar", *arm64.FRAMES[1:]],
        setup=at("foo+8", FRAMED, FRAMED._replace(complete=False)),
        **PROVEN,
    ),
    arm64.case(
        "3: the next frame's rule, which needs what the first has found, leads elsewhere",
        [*arm64_leaf()[: -len(arm64.TO_USER)], *arm64.record("bar+8"), *arm64.TO_USER],
        [*INTERRUPTED, "foo", "bar", *arm64.FRAMES[1:]],
        setup={
            "frame_rules": [
                {"leaf+8": LEAF, "foo+7": FRAMED._replace(cfa=Place(SP, 32))},
            ]
        },
        **DISAGREE,
    ),
    arm64.case(
        "3: the next frame's rule agrees with its record",
        [*arm64_leaf()[: -len(arm64.TO_USER)], *arm64.record("bar+8"), *arm64.TO_USER],
        [*INTERRUPTED, "foo", "bar", *arm64.FRAMES[1:]],
        setup={"frame_rules": [{"leaf+8": LEAF, "foo+7": FRAMED}]},
        **PROVEN,
    ),
    arm64.case(
        "2: a rule that leads down the stack",
        arm64_leaf(),
        INTERRUPTED,
        kernel="unreliable",
        proof="refuted",
        reasons=["exception-boundary", "wrong-direction"],
        setup=at("leaf+8", LOW),
    ),
    *(
        arm64.case(
            f"4.3: {claim}: the chain is followed, and proves nothing",
            arm64_leaf(),
            [*INTERRUPTED, *arm64.FRAMES[1:]],
            setup=at("leaf+8", rule),
            **UNDECIDED,
        )
        for claim, rule in (
            ("a rule by which the return address is lost", LOST),
            ("a rule by a register that points off the stack", FROM_X9),
            ("a rule that there is no caller", OUTERMOST),
        )
    ),
    arm64.case(
        "a second provider decides where the first cannot",
        arm64_leaf(),
        [*INTERRUPTED, "foo", *arm64.FRAMES[1:]],
        setup=at("leaf+8", LOST, LEAF),
        **PROVEN,
    ),
]

# s390x: r14 has the return address, the CFA is 160 bytes above the stack pointer -------------

S_LEAF = FrameRule(Place(15, 160), 14, {})
S_FRAMED = FrameRule(Place(15, 352), 14, {14: Place(CFA, -24, True), 15: Place(CFA, -16, True)})
"""Of a frame of 192 bytes, whose registers were saved in its caller's."""
CALLER = s390x.frame("bar+6")
CALLER[18] = Up(-18)


def s390x_interrupted(pc: str, r14: Any) -> list[Any]:
    """Registers of an interrupt, and behind them the frame at the stack pointer."""
    words = s390x.interrupt(pc)
    words[17] = r14
    return words


S390X = [
    Case(
        "4.6: a leaf's caller is in r14, and nowhere in the chain",
        [
            *s390x.ASLEEP,
            *s390x.last("asm_interrupt+6"),
            *s390x_interrupted("leaf+6", "foo+6"),
            *s390x.frame(0),
            *s390x.TO_USER,
        ],
        ["__schedule", "asm_interrupt", "leaf", "foo", *s390x.FRAMES[1:]],
        setup=at("leaf+6", S_LEAF),
        **PROVEN,
    ),
    Case(
        "4.3: past its prologue the caller is where the back chain leads",
        [
            *s390x.ASLEEP,
            *s390x.last("asm_interrupt+6"),
            *s390x_interrupted("foo+6", "leaf+6"),
            *s390x.frame(0, extra=4),
            *CALLER,
            *s390x.TO_USER,
        ],
        ["__schedule", "asm_interrupt", "foo", "bar", *s390x.FRAMES[1:]],
        setup=at("foo+6", S_FRAMED),
        **PROVEN,
    ),
    Case(
        "4.3: the rule finds another frame than the back chain",
        [
            *s390x.ASLEEP,
            *s390x.last("asm_interrupt+6"),
            *s390x_interrupted("leaf+6", "foo+6"),
            *s390x.frame(0),
            *s390x.frame("bar+6"),
            *s390x.TO_USER,
        ],
        ["__schedule", "asm_interrupt", "leaf", "foo", "entry"],
        setup=at("leaf+6", FrameRule(Place(15, 480), 14, {})),
        **DISAGREE,
    ),
]

# ppc64: the link register is 65, r1 the stack pointer ----------------------------------------

P_LEAF = FrameRule(Place(1), 65, {})
P_FRAMED = FrameRule(Place(1, 48), 65, {65: Place(CFA, 16, True)})


def ppc64_interrupted(pc: str, link: Any) -> list[Any]:
    """An exception's frame with its registers, the link register among them."""
    words = ppc64.exception(pc)
    words[ppc64.REGS_OVERHEAD // 8 + 36] = link
    return words


PPC64 = [
    Case(
        "4.6: a leaf's caller is in the link register, and nowhere in the chain",
        [*ppc64.ASLEEP, *ppc64_interrupted("leaf+8", "foo+8"), *ppc64.frame(0), *ppc64.TO_USER],
        ["__schedule", "leaf", "foo", *ppc64.FRAMES[1:]],
        setup=at("leaf+8", P_LEAF),
        **PROVEN,
    ),
    Case(
        "4.3: past its prologue the caller is in the frame that the chain leads to",
        [
            *ppc64.ASLEEP,
            *ppc64_interrupted("foo+8", "leaf+8"),
            *ppc64.frame(0),
            *ppc64.frame("bar+8"),
            *ppc64.TO_USER,
        ],
        ["__schedule", "foo", "bar", *ppc64.FRAMES[1:]],
        setup=at("foo+8", P_FRAMED),
        **PROVEN,
    ),
    Case(
        "4.3: the rule finds another frame than the chain",
        [
            *ppc64.ASLEEP,
            *ppc64_interrupted("foo+8", "leaf+8"),
            *ppc64.frame(0),
            *ppc64.frame("bar+8"),
            *ppc64.TO_USER,
        ],
        ["__schedule", "foo", "sys_read", "entry"],
        setup=at("foo+8", P_FRAMED._replace(cfa=Place(1, 96))),
        **DISAGREE,
    ),
]

# x86_64 with frame pointers: 6 is the frame pointer, 7 the stack pointer, 16 the address -----

RETURN = {16: Place(CFA, -8, True)}
X_LEAF = FrameRule(Place(7, 8), 16, RETURN)
X_FRAMED = FrameRule(Place(6, 16), 16, {**RETURN, 6: Place(CFA, -16, True)})


def x86_interrupted(pc: str, stack: list[Any], bp: int) -> list[Any]:
    """Registers of an interrupt and the stack behind them; BP points to one of its words."""
    words = kernel_regs(pc, TOP - 8 * len(stack), bp=Up(17 + bp))
    return [*x86_fp.TO_IRQ, *words, *stack]


X86_FP = [
    Case(
        "4.3: before it has pushed BP, the caller is the word at SP, and nowhere in the chain",
        x86_interrupted("leaf", ["foo+5", *x86_fp.TO_USER], 1),
        ["__schedule", "asm_interrupt", "leaf", "foo", *x86_fp.FRAMES[1:]],
        setup=at("leaf", X_LEAF),
        **PROVEN,
    ),
    Case(
        "4.3: past its prologue the caller is in its record",
        x86_interrupted("foo+7", [*x86_fp.record("bar+5"), *x86_fp.TO_USER], 0),
        ["__schedule", "asm_interrupt", "foo", "bar", *x86_fp.FRAMES[1:]],
        setup=at("foo+7", X_FRAMED),
        **PROVEN,
    ),
    Case(
        "4.3: the rule finds another caller than the function's own record has",
        x86_interrupted("foo+7", ["leaf+5", *x86_fp.record("bar+5"), *x86_fp.TO_USER], 1),
        ["__schedule", "asm_interrupt", "foo", "leaf", *x86_fp.FRAMES[1:]],
        setup=at("foo+7", FrameRule(Place(7, 8), 16, {**RETURN, 6: Place(CFA, 0, True)})),
        **{**DISAGREE, "reasons": [*DISAGREE["reasons"], "record-passed-over"]},
    ),
    Case(
        "2: a rule must go up: a call left the return address",
        x86_interrupted("leaf", ["foo+5", *x86_fp.TO_USER], 1),
        ["__schedule", "asm_interrupt", "leaf"],
        kernel="unreliable",
        proof="refuted",
        reasons=["exception-boundary", "wrong-direction"],
        setup=at("leaf", X_LEAF._replace(cfa=Place(7))),
    ),
]

# x86_64 with ORC ------------------------------------------------------------------------------

TO_FOO = [*orc.ASLEEP, "foo+5", 0, *orc.TO_USER]
X86_ORC = [
    Case(
        "4.2: code without ORC that has a rule of another kind is walked by that, and proven",
        [*orc.switch_frame("__schedule+5", bp=TOP - 8 * 25), *TO_FOO[len(orc.ASLEEP) :]],
        ["__schedule", "foo", *orc.FRAMES[1:]],
        kernel="unreliable",
        reasons=["no-unwind-data"],
        setup={"rules": {"foo": None}, **at("foo+4", X_LEAF._replace(cfa=Place(7, 16)))},
    ),
    Case(
        "4.2: so is code that ORC marks as not unwindable",
        TO_FOO,
        ["__schedule", "foo", *orc.FRAMES[1:]],
        kernel="unreliable",
        reasons=["undefined-unwind-data"],
        setup={"rules": {"foo": UNDEFINED}, **at("foo+4", X_LEAF._replace(cfa=Place(7, 16)))},
    ),
    Case(
        "3: ORC and another rule lead to different frames, seen where anything else is wrong",
        TO_FOO,
        ["__schedule", "foo", *orc.FRAMES[1:]],
        proof="undecided",
        reasons=["stack-end-overwritten", "providers-disagree"],
        setup={
            "rules": {"foo": call(16)},
            "magic": 0,
            **at("foo+4", X_LEAF._replace(cfa=Place(7, 24))),
        },
    ),
]

TABLES = (
    (orc.Kernel, X86_ORC),
    (arm64.Kernel, ARM64),
    (s390x.Kernel, S390X),
    (ppc64.Kernel, PPC64),
    (x86_fp.Kernel, X86_FP),
)
CASES = [case for _, table in TABLES for case in table]
ROWS = [pytest.param(kernel, case, id=case.claim) for kernel, table in TABLES for case in table]


@pytest.mark.parametrize(("kernel", "case"), ROWS)
def test_stack(kernel: Any, case: Case) -> None:
    """Frames, both verdicts and the reasons of one stack."""
    check(case, kernel(case.words, **case.setup), again=False)


def test_each_step_says_how_it_was_found() -> None:
    """By whose rule, and whether the return address was in the link register."""
    leaf, framed = ARM64[0], ARM64[3]
    found = []
    for case in (leaf, framed):
        kernel = arm64.Kernel(case.words, **case.setup)
        walk = walk_task(kernel.unwinder, kernel.task(**case.task), proving=True)
        found.append([frame.found_by for frame in walk.frames][3])
    assert found == [FoundBy.DWARF_LINK, FoundBy.DWARF]


def test_what_would_decide_is_told() -> None:
    """An open boundary names the function for which call frame information is missing."""
    case = ARM64[1]
    kernel = arm64.Kernel(case.words)
    walk = walk_task(kernel.unwinder, kernel.task(**case.task), proving=True)
    assert walk.reasons[0].detail.endswith("no call frame information for leaf+0x8")
