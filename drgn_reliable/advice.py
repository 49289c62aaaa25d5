# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to do about a task that has not switched: one plain sentence for each case.

The cases are a table, in the order in which they are tried; the first that fits is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from drgn_reliable.judge import refusal
from drgn_reliable.model import TaskKind
from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.transition import Decision, PendingTask, Transition
from drgn_reliable.waiting import Leaves

__all__ = ("ADVICE", "Advice", "advice_for", "ways_out")

Fits = Callable[[PendingTask, Transition], bool]


class Advice(NamedTuple):
    """A row of the table."""

    id: str
    fits: Fits
    text: str
    """``{functions}`` stands for the functions in the way, ``{event}`` for what is waited for,
    ``{cpu}`` for the task's CPU, ``{remedy}`` for what the catalogue of reasons says to do."""


def _is(decision: Decision) -> Fits:
    return lambda task, transition: task.decision is decision


def _sleeps(kind: TaskKind, leaves: Leaves) -> Fits:
    def fits(task: PendingTask, transition: Transition) -> bool:
        return task.report.kind is kind and task.wait.leaves is leaves

    return fits


ADVICE = (
    Advice(
        "next-attempt",
        _is(Decision.WOULD_SWITCH),
        "Nothing to do: it switches at the kernel's next attempt, within a second.",
    ),
    Advice(
        "user-mode",
        lambda task, transition: task.decision is Decision.RUNNING and not task.report.frames,
        "Nothing to do: it runs in user mode, and switches when it next enters the kernel and "
        "leaves it.",
    ),
    Advice(
        "idle",
        lambda task, transition: task.report.kind is TaskKind.IDLE,
        "The kernel wakes it at each attempt, and as its loop comes round it switches, whatever is "
        "on its stack. If it stays so, something else keeps CPU {cpu} from it.",
    ),
    Advice(
        "thread-loop",
        lambda task, transition: task.wait.loop in task.functions,
        "{functions} is what this thread was started with, and does not return: the transition "
        "cannot finish. Reverse it, and patch what the function calls instead.",
    ),
    Advice(
        "spins",
        _is(Decision.RUNNING),
        "It runs in the kernel. It switches when it returns to user mode, or can be checked once "
        "it sleeps; if it never does, find out why it spins. Its trace is from the CPU's "
        "registers.",
    ),
    Advice(
        "preempted",
        lambda task, transition: (
            task.decision is Decision.UNRELIABLE and task.wait.leaves is Leaves.RUNS
        ),
        "It was preempted where its stack cannot be told; that passes as it runs on. If it stays "
        "so, it runs too seldom: look at its priority.",
    ),
    Advice("unreliable", _is(Decision.UNRELIABLE), "{remedy}"),
    Advice(
        "continue",
        lambda task, transition: task.wait.leaves is Leaves.CONTINUED,
        "It is stopped, traced or frozen in {functions}: continue it.",
    ),
    Advice(
        "kthread-woken",
        _sleeps(TaskKind.KTHREAD, Leaves.SIGNAL),
        "The kernel wakes it every 15 seconds; it leaves {functions} only if that returns when it "
        "is woken. Otherwise give it what it waits for{event}, or unload what it belongs to.",
    ),
    Advice(
        "kthread-event",
        lambda task, transition: task.report.kind is TaskKind.KTHREAD,
        "No signal reaches it: what it waits for{event} has to come before it leaves {functions}.",
    ),
    Advice(
        "signal",
        lambda task, transition: task.wait.leaves is Leaves.SIGNAL and not transition.signals,
        "The kernel wakes it 15 seconds after the start: it then leaves {functions}, switches, and "
        "its system call starts again. Sooner: send its process SIGSTOP and SIGCONT.",
    ),
    Advice(
        "signalled",
        lambda task, transition: task.wait.leaves is Leaves.SIGNAL,
        "It has been woken in vain, or sleeps in {functions} again: send its process SIGSTOP and "
        "SIGCONT, end it, or give it what it waits for{event}.",
    ),
    Advice(
        "fatal",
        lambda task, transition: task.wait.leaves is Leaves.FATAL,
        "Only a fatal signal or what it waits for{event} makes it leave {functions}: kill it, or "
        "wait.",
    ),
    Advice(
        "event",
        lambda task, transition: task.wait.leaves is Leaves.EVENT,
        "It sleeps uninterruptibly, no signal reaches it: what it waits for{event} has to come "
        "before it leaves {functions}.",
    ),
    Advice(
        "runnable",
        lambda task, transition: True,
        "It waits for a CPU inside {functions} and leaves it as it runs on.",
    ),
)


def advice_for(task: PendingTask, transition: Transition) -> tuple[str, str]:
    """What to do about a task: the row's identifier and its sentence."""
    row = next(row for row in ADVICE if row.fits(task, transition))
    event = f" ({task.wait.event})" if task.wait.event else ""
    text = row.text.format(
        functions=", ".join(task.functions) or "the function",
        event=event,
        cpu=task.report.cpu,
        remedy=_remedy(task),
    )
    return row.id, text


def _remedy(task: PendingTask) -> str:
    reason = refusal(task.report.reasons)
    text = CATALOGUE[reason.id].remedy if reason else "The kernel has no reliable stack trace."
    if task.proof_clears:
        text += " The dump shows that none of the patch's functions is on its stack."
    elif task.blockers:
        text += f" As far as its stack can be told, it is in {', '.join(task.functions)}."
    if task.report.kind is TaskKind.USER and task.wait.leaves is Leaves.SIGNAL:
        text += " Or let a signal take it out of the kernel: that switches it, too."
    return text


def ways_out(transition: Transition) -> tuple[str, ...]:
    """What a person can do about the transition as a whole, and what it risks."""
    patch = transition.patch or "NAME"
    patching = transition.target == "patched"
    reverse = f"Reverse it: echo {int(not patching)} > /sys/kernel/livepatch/{patch}/enabled"
    if transition.back is not None:
        reverse += f"; of the tasks that have switched, {transition.back or 'none'} would be in the"
        reverse += " way." if transition.back == 0 else " way as these are now."
    one = transition.pending == 1
    force = (
        f"Force it: echo 1 > /sys/kernel/livepatch/{patch}/force; the "
        + ("task" if one else f"{transition.pending} tasks")
        + f" above would go on in the {'old' if patching else 'new'} version of what is on "
        + ("its stack" if one else "their stacks")
        + f" and call the {'new' if patching else 'old'} one, for which nothing was prepared"
    )
    if not patching:
        force += f"; {patch} can never be unloaded afterwards"
    elif transition.replaces:
        force += "; the livepatches that it replaces can never be unloaded afterwards"
    return (reverse + ("" if reverse.endswith(".") else "."), force + ".")
