# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stacks with wrong words in them, made by chance: no walk of any unwinder raises or runs on for
ever, and none calls a trace proven that the kernel refuses for what the proof would refuse too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from drgn_reliable.judge import kernel_answer, proof_answer
from drgn_reliable.model import KernelVerdict, ProofVerdict, TaskKind, Walk
from drgn_reliable.reasons import CATALOGUE, Effect
from drgn_reliable.walk import ENTRY_LIMIT, walk_task
from tests import test_walk_arm64 as arm64
from tests import test_walk_ppc64 as ppc64
from tests import test_walk_s390x as s390x
from tests import test_walk_x86_fp as x86_fp
from tests.walkers import PLACES, STACK, TOP, FakeKernel, Up

ROUNDS = 400
MACHINES: dict[str, tuple[Callable[..., FakeKernel], list[Any], dict[str, Any], dict[str, Any]]] = {
    "x86, frame pointers": (
        x86_fp.Kernel,
        [*x86_fp.TO_IRQ, *x86_fp.kernel_regs("foo+7", bp=Up(17)), *x86_fp.TRACED[7:]],
        {},
        x86_fp.ON_TASK_STACK,
    ),
    "arm64": (
        arm64.Kernel,
        [*arm64.TO_EXCEPTION, *arm64.exception("foo+8"), *arm64.TRACED],
        arm64.WITH_LIST,
        arm64.ON_TASK_STACK,
    ),
    "arm64 before 6.13": (
        lambda words, **others: arm64.Kernel(words, has_meta=False, **others),
        [*arm64.TO_EXCEPTION, *arm64.old_exception("foo+8"), *arm64.OLD_TO_USER],
        arm64.WITH_LIST,
        arm64.ON_TASK_STACK,
    ),
    "s390x": (
        s390x.Kernel,
        [*s390x.TO_INTERRUPT, *s390x.interrupt("foo+6"), *s390x.frame(0), *s390x.TRACED[20:]],
        {},
        s390x.ON_TASK_STACK,
    ),
    "powerpc64": (
        ppc64.Kernel,
        [*ppc64.ASLEEP, *ppc64.exception("foo+8"), *ppc64.frame(0), *ppc64.TRACED[12:]],
        {},
        ppc64.ON_TASK_STACK,
    ),
    "powerpc64 of 6.1": (
        lambda words, **others: ppc64.Kernel(words, old=True, **others),
        [*ppc64.ASLEEP, *ppc64.exception("foo+8", old=True), *ppc64.frame(0), *ppc64.OLD_TO_USER],
        {},
        ppc64.ON_TASK_STACK,
    ),
}


def wrong_word(dice: random.Random) -> Any:
    """What corruption, or bad luck, leaves in a word."""
    return dice.choice(
        (
            0,
            1,
            (1 << 64) - dice.randrange(1, 200),
            dice.getrandbits(64),
            STACK + 8 * dice.randrange(-4, 8),
            TOP - 8 * dice.randrange(-4, 40),
            TOP - dice.randrange(600),
            Up(dice.randrange(-8, 60)),
            Up(dice.randrange(-8, 60), dice.randrange(8)),
            dice.choice(list(PLACES.values())) + 8,
            PLACES["return_to_handler"],
            PLACES["arch_rethook_trampoline"],
            ppc64.REGS_MARKERS[0],
        )
    )


def refuted(walk: Walk) -> bool:
    return any(CATALOGUE[reason.id].proof is Effect.REFUTES for reason in walk.reasons)


@pytest.mark.parametrize("running", [False, True], ids=["asleep", "running"])
@pytest.mark.parametrize("machine", MACHINES)
def test_wrong_words(machine: str, running: bool) -> None:
    make, words, context, registers = MACHINES[machine]
    dice = random.Random(machine)
    for _ in range(ROUNDS):
        noisy = list(words)
        for _ in range(dice.randrange(4)):
            noisy[dice.randrange(len(noisy))] = wrong_word(dice)
        found = {dice.randrange(len(noisy)): "bar+8" for _ in range(20)}
        found |= {dice.randrange(len(noisy)): "return_to_handler" for _ in range(5)}
        start = {name: wrong_word(dice) if dice.random() < 0.2 else value
                 for name, value in registers.items()}  # fmt: skip
        start = {name: 0 if isinstance(value, Up) else value for name, value in start.items()}
        kernel = make(
            noisy,
            graph=found,
            probes=found,
            shadow_readable=dice.random() < 0.9,
            hole=range(dice.choice((0, 0, 0, 1))),
            registers=start,
        )
        members = dict(context, kind=dice.choice(list(TaskKind)), run_state=dice.randrange(2))
        if dice.random() < 0.2:
            members["saved_sp"] = wrong_word(dice)
        if dice.random() < 0.2:
            members["saved_fp"] = wrong_word(dice)
        task = kernel.task(on_cpu=running, **members)
        walk = walk_task(kernel.unwinder, task)
        proof = walk_task(kernel.unwinder, task, proving=True)
        answer = kernel_answer(walk, running=running, supported=True)
        assert len(walk.frames) <= ENTRY_LIMIT
        assert len(proof.frames) < 1024, "no stack holds as many"
        if answer.verdict is KernelVerdict.RELIABLE:
            assert not any(CATALOGUE[reason.id].kernel for reason in walk.reasons)
        if refuted(walk):
            assert proof_answer(proof).verdict is not ProofVerdict.PROVEN
