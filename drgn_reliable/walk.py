# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one loop that walks a stack, for every architecture.

It does what ``arch_stack_walk_reliable()`` does around an architecture's unwinder, and notes
what it meets as reasons. A task is walked as the kernel walks it, up to the first reason for
which the kernel would refuse. If anything at all was noted, it is walked once more to prove:
with everything the dump holds, and as far as the next step can still be computed.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from drgn_reliable.judge import refusal
from drgn_reliable.model import CodeKind, End, FoundBy, Frame, Walk
from drgn_reliable.tasks import Task
from drgn_reliable.text import Text

__all__ = ("ENTRY_LIMIT", "State", "Unwinder", "Watcher", "walk_task")

ENTRY_LIMIT = 100
"""Room for entries that the livepatch code offers (``MAX_STACK_ENTRIES``)."""
_STEP_LIMIT = 4096
"""No stack of any architecture holds more frames; a walk that is longer repeats itself."""


class State:
    """Where a walk stands. Architectures add their registers to it."""

    __slots__ = ("pc", "sp", "exact", "done", "end", "found_by", "proving")

    pc: int
    sp: int
    exact: bool
    """``pc`` is an interrupted instruction, not a return address."""
    done: bool
    end: End
    found_by: FoundBy
    proving: bool
    """The walk may use what the kernel does not: the second walk of a task."""


S = TypeVar("S", bound=State)


class Unwinder(Protocol[S]):
    """What an architecture provides: the checklist for the next one.

    Every method takes the walk to note reasons in; none of them raises for what a dump contains.
    """

    text: Text
    name: str
    """What it goes by, for people."""
    frame_pointers: bool
    """Whether the kernel was built with frame pointers that matter to its walk."""
    checks_text: bool
    """Whether the kernel refuses a program counter that is not kernel text."""

    def start(self, task: Task, walk: Walk, *, proving: bool) -> S:
        """The state at the task's saved context or, for a running task, its CPU's registers."""

    def at_user_registers(self, state: S, walk: Walk) -> bool:
        """Whether the frame is an entry from user mode, the end of a user task's stack; notes
        what is wrong with exception boundaries (4.3)."""

    def step(self, state: S, walk: Walk) -> None:
        """Go to the caller, recovering a rewritten return address; sets ``done`` at an end and
        where no further step can be computed."""

    def excuses(self, doubt: str, state: S) -> bool:
        """Whether an advisory reason that a program counter gives does not hold for this task."""

    def formulas(self, state: S) -> list[tuple[str, str]]:
        """The rules for the next step as formulas, each with who gives it: first the one that is
        followed, then those that it can be held against."""

    def finish(self, state: S, walk: Walk) -> None:
        """Compare the end that was reached with where a kernel stack begins (4.1)."""


class Watcher(Protocol):
    """Sees every step of a walk, to explain it."""

    def before(self, state: Any, walk: Walk) -> None:
        """The last of the walk's frames has been found; a step to its caller follows."""

    def after(self, state: Any, walk: Walk) -> None:
        """The step was made."""


_UNKNOWN = CodeKind.UNKNOWN


def walk_task(
    unwinder: Unwinder[S],
    task: Task,
    limit: int = ENTRY_LIMIT,
    *,
    proving: bool = False,
    watcher: Watcher | None = None,
) -> Walk:
    """Walk a task's stack.

    :param limit: entries that the caller of ``stack_trace_save_tsk_reliable()`` has room for.
    :param proving: walk with everything the dump holds; otherwise as the kernel walks, up to
        the first reason for which it would refuse.
    :param watcher: is shown each step.
    """
    walk = Walk()
    if not task.has_stack:
        walk.end = End.NO_STACK
        return walk
    state = unwinder.start(task, walk, proving=proving)
    if proving or refusal(walk.reasons) is None:
        _follow(unwinder, state, walk, limit, watcher)
    walk.end = state.end
    unwinder.finish(state, walk)
    return walk


def _follow(
    unwinder: Unwinder[S], state: S, walk: Walk, limit: int, watcher: Watcher | None
) -> None:
    frames = walk.frames
    at = unwinder.text.at
    while not state.done:
        if unwinder.at_user_registers(state, walk):
            state.end = End.USER_REGS
            return
        code = at(state.pc, state.exact)
        if code.kind is _UNKNOWN:
            reason = "not-kernel-text" if unwinder.checks_text else "text-not-checked"
            detail = f"{code.pc:#x} is not kernel text"
            walk.note(reason, detail, pc=code.pc, sp=state.sp, value=code.pc)
            if unwinder.checks_text:
                return
        if code.doubt is not None and not unwinder.excuses(code.doubt, state):
            walk.note(code.doubt, str(code), pc=code.pc, sp=state.sp)
        frames.append(Frame(code, state.sp, state.found_by))
        if len(frames) >= limit and _too_long(walk, state, limit):
            return
        if watcher is not None:
            watcher.before(state, walk)
        unwinder.step(state, walk)
        if watcher is not None:
            watcher.after(state, walk)
        if walk.reasons and not state.proving and refusal(walk.reasons) is not None:
            return


def _too_long(walk: Walk, state: S, limit: int) -> bool:
    count = len(walk.frames)
    if count == limit:
        walk.note("too-deep", f"{count} entries, room for {limit}", pc=state.pc, sp=state.sp)
    elif count >= _STEP_LIMIT:
        walk.note("loop", f"no end after {count} frames", pc=state.pc, sp=state.sp)
        return True
    return not state.proving
