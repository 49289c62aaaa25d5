# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two verdicts, each from a finished walk alone.

Error numbers of the kernel's answer, negative as the kernel returns them:

* ``-EINVAL`` (-22): ``stack_trace_save_tsk_reliable()`` found the trace unreliable;
* ``-EBUSY`` (-16): the task was running; the livepatch code does not ask for its stack. Of a
  living kernel also: it ran while its stack was read (:mod:`drgn_reliable.live`);
* ``-ENOSYS`` (-38): that kernel has no reliable stack trace;
* ``-EFAULT`` (-14): the dump lacks memory that the kernel itself could read. What the kernel
  would have answered cannot be known, and is never taken to be "reliable".
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from drgn_reliable.model import (
    End,
    KernelAnswer,
    KernelVerdict,
    ProofAnswer,
    ProofVerdict,
    Reason,
    Walk,
)
from drgn_reliable.reasons import CATALOGUE, Effect

__all__ = ("kernel_answer", "proof_answer", "refusal")


def refusal(reasons: Iterable[Reason]) -> Reason | None:
    """The first reason for which the kernel itself refuses; None if there is none."""
    return next((reason for reason in reasons if CATALOGUE[reason.id].kernel), None)


def kernel_answer(walk: Walk, *, running: bool, supported: bool) -> KernelAnswer:
    """What the dumped kernel would have answered.

    :param supported: whether that kernel has a reliable stack trace.
    """
    if not supported:
        return KernelAnswer(KernelVerdict.UNSUPPORTED, -errno.ENOSYS, ())
    if running:
        return KernelAnswer(KernelVerdict.RUNNING, -errno.EBUSY, ())
    refused = refusal(walk.reasons)
    if refused is None and walk.end is not End.STOPPED:
        return KernelAnswer(KernelVerdict.RELIABLE, 0, walk.entries())
    unreadable = refused is not None and refused.id == "memory-unreadable"
    number = errno.EFAULT if unreadable else errno.EINVAL
    return KernelAnswer(KernelVerdict.UNRELIABLE, -number, ())


def proof_answer(walk: Walk) -> ProofAnswer:
    """What the dump can show of the trace."""
    verdict = ProofVerdict.UNDECIDED if walk.end is End.STOPPED else ProofVerdict.PROVEN
    for reason in walk.reasons:
        effect = CATALOGUE[reason.id].proof
        if effect is Effect.REFUTES:
            verdict = ProofVerdict.REFUTED
            break
        if effect is not Effect.NONE:
            verdict = ProofVerdict.UNDECIDED
        if effect is Effect.ENDS:
            break
    return ProofAnswer(verdict, walk.entries())
