# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a task waits for, and what would make it go on: from its state and its stack alone.

A task that sleeps in a function that is to be patched has to leave it. Whether a signal is enough
or the event has to come, its state says; what the event is, the functions on its stack do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from drgn_reliable.kernel import Kernel
from drgn_reliable.model import Code, TaskKind, TaskReport
from drgn_reliable.openfiles import file_of_call
from drgn_reliable.tasks import Task

__all__ = ("Leaves", "Wait", "channel_of", "wait_of")

TASK_RUNNING, TASK_INTERRUPTIBLE, TASK_UNINTERRUPTIBLE = 0, 1, 2
TASK_STOPPED, TASK_TRACED = 4, 8
TASK_WAKEKILL, TASK_FROZEN = 0x100, 0x8000


class Leaves(str, Enum):
    """What makes a task go on."""

    RUNS = "runs"
    """It does not sleep: it is on a CPU, or waits for one."""
    SIGNAL = "any signal"
    """The livepatch code's own wake-up is enough."""
    FATAL = "a fatal signal"
    EVENT = "only the event"
    CONTINUED = "being continued"
    """It is stopped, traced or frozen."""


SCHEDULER = ("__schedule", "schedule", "preempt_schedule", "io_schedule", "__cond_resched",
             "__switch_to", "_switch", "raw_irqentry_exit", "irqentry_exit")  # fmt: skip

EVENTS: tuple[tuple[str, str], ...] = (
    (r"handle_userfault", "a page from a userfaultfd"),
    (r"(anon_)?pipe_read", "data in a pipe"),
    (r"(anon_)?pipe_write", "room in a pipe"),
    (r"(__)?futex_wait.*|futex_lock_pi", "a futex"),
    (r"do_nanosleep|hrtimer_nanosleep|msleep|usleep_range.*", "a timer"),
    (r"eventfd_read", "an eventfd"),
    (r"inotify_read|fanotify_read", "a file system event"),
    (r"do_epoll_wait|ep_poll", "a file, by epoll"),
    (r"do_(sys_)?poll|do_select", "a file, by poll or select"),
    (r"do_wait|kernel_wait4", "a child process"),
    (r"do_task_dead", "its parent, to reap it"),
    (r"do_sigtimedwait|sigsuspend|__.*_sys_pause|__do_sys_pause", "a signal"),
    (r"inet_csk_accept|unix_accept", "a connection"),
    (r"unix_stream_read_generic|tcp_recvmsg.*|__skb_wait_for_more_packets|sk_wait_data",
     "data on a socket"),
    (r"unix_wait_for_peer|sk_stream_wait_memory", "room on a socket"),
    (r"n_tty_read", "input on a terminal"),
    (r"do_msgrcv|do_mq_timedreceive", "a message queue"),
    (r"(__)?do_semtimedop", "a semaphore set"),
    (r"flock_lock_inode_wait|posix_lock_inode_wait|locks_lock_inode_wait", "a lock on a file"),
    (r"rpc_wait_bit_killable|nfs.*_wait.*", "a server, by RPC (NFS)"),
    (r"fuse_.*|request_wait_answer", "a FUSE server"),
    (r"jbd2_.*", "the journal of a file system"),
    (r"submit_bio_wait|blk_.*|bio_.*", "a block device"),
    (r"folio_wait_.*|wait_on_page_.*", "a page that is read or written"),
    (r"io_schedule.*", "input or output"),
    (r"down_read.*|down_write.*|rwsem_down.*", "a read-write semaphore"),
    (r"__mutex_lock.*|mutex_lock.*", "a mutex"),
    (r"__down.*|down(_interruptible|_killable)?", "a semaphore"),
    (r"wait_for_completion.*", "a completion"),
    (r"worker_thread|rescuer_thread|kthread_worker_fn|smpboot_thread_fn", "work"),
    (r"rcu_.*", "RCU"),
)  # fmt: skip
"""The innermost function whose whole name matches says what is waited for."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a task waits for."""

    channel: str
    """The innermost function that is not the scheduler's; empty if there is none."""
    leaves: Leaves
    event: str
    """What it waits for, in words; empty if that is not known."""
    file: str
    """The file that its system call names, where the dump tells; else empty."""
    loop: str
    """Of a kernel thread, the function that it was started with: it returns only when the thread
    ends; empty for others."""


def channel_of(codes: Iterable[Code]) -> str:
    """The innermost function that is not the scheduler's, an address where the code has no name;
    empty if there is none.

    :param codes: of a trace, the innermost first.
    """
    names = (code.function for code in codes)
    return next((name for name in names if not name.startswith(SCHEDULER)), "")


def wait_of(kernel: Kernel, task: Task, report: TaskReport) -> Wait:
    """What a task waits for."""
    names = [(frame.code.symbol or "").partition(".")[0] for frame in report.frames]
    event = _event(names) if task.run_state != TASK_RUNNING else ""
    user = report.kind is TaskKind.USER
    return Wait(
        channel_of(frame.code for frame in report.frames).partition(".")[0],
        leaves(task.run_state, running=report.kernel.verdict.value == "running"),
        event,
        file_of_call(kernel, task) if user and event else "",
        _loop(names) if report.kind is TaskKind.KTHREAD else "",
    )


def _event(names: list[str]) -> str:
    for name in names:
        for pattern, what in EVENTS:
            if re.fullmatch(pattern, name):
                return what
    return ""


def leaves(state: int, *, running: bool) -> Leaves:
    """What a task of this ``__state`` needs to go on.

    >>> [leaves(state, running=False).value for state in (1, 0x102, 2)]
    ['any signal', 'a fatal signal', 'only the event']
    """
    if running or state == TASK_RUNNING:
        return Leaves.RUNS
    if state & (TASK_STOPPED | TASK_TRACED | TASK_FROZEN):
        return Leaves.CONTINUED
    if state & TASK_INTERRUPTIBLE:
        return Leaves.SIGNAL
    return Leaves.FATAL if state & TASK_WAKEKILL else Leaves.EVENT


def _loop(names: list[str]) -> str:
    """The function below ``kthread()``, which called it."""
    for inner, outer in pairwise(names):
        if outer == "kthread":
            return inner
    return ""
