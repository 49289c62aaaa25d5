# SPDX-License-Identifier: LGPL-2.1-or-later
"""One task's walk, step by step, with the memory that it read: evidence that a person can check.

The walks are those of a scan, made once more under the eyes of a watcher; the one difference is
that the proof is always walked, so that every provider's rule is shown for every frame.
"""

from __future__ import annotations

from typing import Any

from drgn_reliable.arch.base import StackUnwinder
from drgn_reliable.drawing import Drawing
from drgn_reliable.explanation import ExplainedStep, Explanation
from drgn_reliable.judge import refusal
from drgn_reliable.kernel import Kernel
from drgn_reliable.model import End, Frame, Reason, TaskReport, Walk
from drgn_reliable.report import report_of
from drgn_reliable.tasks import Task
from drgn_reliable.walk import walk_task
from drgn_reliable.watching import SeenStep, Watcher

__all__ = ("explain_task", "explain_walk")


def explain_task(kernel: Kernel, task: Task) -> Explanation:
    """Walk a task's stack and keep everything that a person needs to check the verdicts.

    :raises DumpError: in a living kernel, if the task ran meanwhile, at every attempt, or ended.
    """

    def explained(task: Task) -> Explanation:
        return explain_walk(kernel.unwinder, task, supported=kernel.supports_reliable)

    return kernel.live.still(task, explained) if kernel.live else explained(task)


def explain_walk(unwinder: StackUnwinder[Any], task: Task, *, supported: bool) -> Explanation:
    """The same with an unwinder.

    :param supported: whether the kernel has a reliable stack trace.
    """
    walk = walk_task(unwinder, task)
    watcher = Watcher(unwinder)
    with watcher.watching():
        proof = walk_task(unwinder, task, proving=True, watcher=watcher)
    report = report_of(task, walk, proof, supported=supported)
    drawing = Drawing(unwinder, watcher.stacks, task)
    drawing.note_frames(report.frames, watcher.steps)
    drawing.note_registers(watcher.registers)
    seen = {_place(frame) for frame in walk.frames}
    # In the order of the walk: it passes from a CPU's stacks to the task's.
    stacks = dict.fromkeys([*(step.stack for step in watcher.steps), *watcher.stacks])
    return Explanation(
        report,
        tuple(watcher.steps[0].known.items()) if watcher.steps else (),
        tuple(_explained(step, report, seen) for step in watcher.steps),
        _ended(proof),
        _kernel_end(walk, running=task.on_cpu, supported=supported),
        tuple(walk.frames),
        tuple(drawing.stack(watcher.stacks[name]) for name in stacks),
    )


def _place(frame: Frame) -> tuple[int, int]:
    """What tells a frame from others: its function and where it is. The program counter may
    differ: the kernel looks some of them up at another instruction."""
    return frame.sp, frame.code.pc - frame.code.offset


_ENDS = {
    End.USER_REGS: "ended at registers of user mode",
    End.END_OF_STACK: "ended at the end of the stack",
    End.NO_STACK: "not begun: the task has exited and has no stack any more",
}


def _ended(walk: Walk) -> str:
    if walk.end is not End.STOPPED:
        return _ENDS[walk.end]
    last = [r.id for r in walk.reasons if r.frame == len(walk.frames) and r.id != "running"]
    return f"stopped for {last[0]}" if last else "stopped"


def _kernel_end(walk: Walk, *, running: bool, supported: bool) -> str:
    if running:
        return "not made: the task is running on a CPU"
    refused = refusal(walk.reasons)
    ended = _ended(walk)
    if refused is not None:
        ended = f"refused after {_count(len(walk.frames))} for {refused.id}"
    return ended if supported else f"not made: this kernel has no reliable walk; else {ended}"


def _count(frames: int) -> str:
    return f"{frames} frame" if frames == 1 else f"{frames} frames"


def _explained(step: SeenStep, report: TaskReport, seen: set[tuple[int, int]]) -> ExplainedStep:
    frame = report.frames[step.frame]
    return ExplainedStep(
        step.frame,
        frame.code,
        frame.sp,
        step.stack,
        frame.found_by,
        tuple(step.rules),
        step.registers_at,
        tuple(step.reads),
        step.replaced,
        _place(frame) in seen,
        tuple(_noted(step.frame, report)),
    )


def _noted(frame: int, report: TaskReport) -> list[Reason]:
    """What was noted on the way from a frame to the next; at the last, all that came after."""
    last = frame == len(report.frames) - 1
    return [r for r in report.reasons if r.frame == frame + 1 or (last and r.frame > frame)]
