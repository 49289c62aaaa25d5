# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which tasks there are, and what their task structures say.

The tasks are those that the livepatch code goes through (``klp_try_complete_transition()``):
every thread of every process, in the order of ``for_each_process_thread()``, then the idle task
of every possible CPU.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation, TaskNotFound
from drgn_reliable.memory import (
    MASK,
    BrokenList,
    Layout,
    byte_order,
    container_nodes,
    missing,
    named_type,
    number_at,
    size_of,
)
from drgn_reliable.model import (
    Frame,
    KernelAnswer,
    ProofAnswer,
    Reason,
    TaskKind,
    TaskReport,
)
from drgn_reliable.symbols import Symbols

__all__ = ("SavedContext", "Task", "TaskList", "cpus_in_mask", "state_letter")

_PF_KTHREAD = 0x00200000
_TASK_REPORT = 0x7F
_TASK_IDLE = 0x402
_TASK_RTLOCK_WAIT = 0x1000
_TASK_FROZEN = 0x8000
_STATE_LETTERS = "RSDTtXZPI"
_LIMIT = 1 << 22
"""More tasks than ``PID_MAX_LIMIT`` allows cannot exist."""


def state_letter(state: int, exit_state: int) -> str:
    """The letter that ``/proc/PID/stat`` shows (``task_state_to_char()``, include/linux/sched.h).

    >>> state_letter(0, 0), state_letter(0x402, 0), state_letter(0x80, 0x20)
    ('R', 'I', 'Z')
    """
    if state & (_TASK_RTLOCK_WAIT | _TASK_FROZEN):
        return "D"
    if state & _TASK_IDLE == _TASK_IDLE:
        return "I"
    return _STATE_LETTERS[((state | exit_state) & _TASK_REPORT).bit_length()]


class SavedContext(NamedTuple):
    """Where in ``struct task_struct`` the scheduler saves what a walk starts from."""

    sp: str
    """The stack pointer."""
    pc: str | None = None
    """The program counter, None where it is on the stack."""
    fp: str | None = None
    """The frame pointer, likewise."""


@dataclass(slots=True)
class Task:
    """The members of one ``struct task_struct`` that matter to a stack walk."""

    address: int
    pid: int
    tgid: int
    cpu: int
    comm: str
    run_state: int
    """``__state``: 0 is TASK_RUNNING, which a preempted task has too."""
    exit_state: int
    on_cpu: bool
    stack: int
    """Lowest address of its stack, 0 once the stack is freed."""
    stack_references: int | None
    """``stack_refcount``; at 0 the stack is gone. None if the kernel does not count."""
    saved_sp: int
    """The stack pointer that the scheduler saved when the task was switched out."""
    saved_pc: int
    saved_fp: int
    """Program counter and frame pointer, 0 where the architecture saves them on the stack."""
    ret_stack: int
    """Address of the function graph tracer's shadow stack, or 0."""
    ret_stack_used: int
    """``curr_ret_stack``, signed: what it counts depends on the kernel."""
    return_hooks: int
    """First node of the task's list of probed returns, or 0."""
    kind: TaskKind

    @property
    def has_stack(self) -> bool:
        """What ``try_get_task_stack()`` would answer."""
        return self.stack_references != 0 and self.stack != 0

    @property
    def state(self) -> str:
        """The letter of :func:`state_letter`."""
        return state_letter(self.run_state, self.exit_state)

    def report(
        self,
        kernel: KernelAnswer,
        proof: ProofAnswer,
        frames: Sequence[Frame],
        reasons: tuple[Reason, ...],
    ) -> TaskReport:
        """What is said of the task: who it is, and what came of its walk."""
        return TaskReport(
            self.address,
            self.pid,
            self.tgid,
            self.cpu,
            self.comm,
            self.state,
            self.kind,
            kernel,
            proof,
            frames,
            reasons,
        )


def cpus_in_mask(prog: Program, mask: int) -> list[int]:
    """The CPUs of the ``struct cpumask`` at an address.

    :raises drgn.FaultError: if the dump lacks it.
    :raises MissingInformation: if the types do.
    """
    data = prog.read(mask, size_of(named_type(prog, "struct cpumask")))
    words = [word for (word,) in struct.iter_unpack(byte_order(prog) + "Q", data)]
    return [64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1]


class TaskList:
    """The tasks of a dump.

    :param saved: what the architecture saves in ``struct task_struct``.
    :param return_hooks: path of the list of probed returns, or None.

    :attr:`problems` gets one line for each list that could not be followed to its end.
    """

    WHERE = "in this dump"

    def __init__(
        self, prog: Program, symbols: Symbols, saved: SavedContext, return_hooks: str | None
    ) -> None:
        self._prog = prog
        self._init_task = symbols.required("init_task")
        self._symbols = symbols
        self.problems: list[str] = []
        members: dict[str, str | tuple[str, ...]] = {
            "state": ("__state", "state"),
            "flags": "flags",
            "on_cpu": "on_cpu",
            "cpu": ("thread_info.cpu", "cpu"),
            "stack": "stack",
            "references": "stack_refcount.refs.counter",
            "tasks": "tasks.next",
            "tasks_before": "tasks.prev",
            "exit_state": "exit_state",
            "pid": "pid",
            "tgid": "tgid",
            "thread_node": "thread_node.next",
            "thread_before": "thread_node.prev",
            "comm": "comm",
            "signal": "signal",
            "ret_stack": "ret_stack",
            "ret_stack_used": "curr_ret_stack",
            "saved_sp": saved.sp,
        }
        optional = {"on_cpu", "references", "ret_stack", "ret_stack_used"}
        for name, path in (("saved_pc", saved.pc), ("saved_fp", saved.fp)):
            if path:
                members[name] = path
        if return_hooks:
            members["return_hooks"] = return_hooks
        self._layout = Layout(prog.type("struct task_struct"), members, optional, text=("comm",))
        self._fields = self._layout.reader(
            "pid", "tgid", "cpu", "comm", "state", "exit_state", "on_cpu", "stack", "references",
            "saved_sp", "saved_pc", "saved_fp", "ret_stack", "ret_stack_used", "return_hooks",
            "flags", "signal", "tasks", "thread_node", "thread_before", "tasks_before",
        )  # fmt: skip
        self._tasks_before = self._thread_before = 0
        """Where the lists lead back to from the task that was read last."""
        self._following: dict[int, int] = {}
        """Successors of the list nodes in the task structures that were read."""
        self._thread_head = Layout(prog.type("struct signal_struct"), {"head": "thread_head.next"})

    def __iter__(self) -> Iterator[Task]:
        self.problems.clear()
        self._following.clear()
        found = 0
        for task in self._threads():
            found += 1
            yield task
        self._check_count(found)
        yield from self._idle_tasks()

    def expected(self) -> int:
        """How many threads the kernel counts, idle tasks aside; 0 if the dump does not tell."""
        return self._number("nr_threads", 4)

    def read(self, address: int) -> Task:
        """The task whose structure is at an address.

        :raises drgn.FaultError: if the dump lacks the structure.
        """
        return self._load(address)[0]

    def _load(self, address: int) -> tuple[Task, int]:
        """The task at an address, and the address of its ``struct signal_struct``."""
        layout = self._layout
        data = self._prog.read(address + layout.start & MASK, layout.size)
        (
            pid, tgid, cpu, comm, state, exit_state, on_cpu, stack, references,
            saved_sp, saved_pc, saved_fp, ret_stack, ret_stack_used, hooks, flags, signal,
            tasks, thread_node, before, self._tasks_before,
        ) = self._fields(data)  # fmt: skip
        if pid == tgid:  # of a process only its leader is in that list
            self._following[address + layout.offsets["tasks"]] = tasks
        node = address + layout.offsets["thread_node"]
        self._following[node] = thread_node
        self._thread_before = before
        if before and before == thread_node:
            # Alone in its list, so the head leads to it.
            self._following[before] = node
        kind = TaskKind.KTHREAD if flags & _PF_KTHREAD else TaskKind.USER
        if kind is TaskKind.KTHREAD and not pid:
            kind = TaskKind.IDLE
        task = Task(
            address,
            pid,
            tgid,
            cpu,
            comm.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"),
            state & 0xFFFFFFFF,
            exit_state & 0xFFFFFFFF,
            bool(on_cpu),
            stack,
            references,
            saved_sp,
            saved_pc or 0,
            saved_fp or 0,
            ret_stack or 0,
            ret_stack_used or 0,
            hooks or 0,
            kind,
        )
        return task, signal

    def find(self, wanted: str) -> list[Task]:
        """The tasks of one process or thread identifier or of one task address.

        :param wanted: ``"1"`` (the thread with this identifier), ``"0"`` (all idle tasks) or
            ``"0xffff..."`` (the task structure's address).
        :raises TaskNotFound: if there is none.
        """
        if not re.fullmatch(r"0x[0-9a-f]+|[0-9]+", wanted, re.ASCII | re.IGNORECASE):
            raise TaskNotFound(
                f"task {wanted!r} is neither a PID nor the address of a task_struct (0x...)"
            )
        by_address = wanted.lower().startswith("0x")
        number = int(wanted, 16 if by_address else 10)
        found = [task for task in self if number == (task.address if by_address else task.pid)]
        if not found:
            what = "address" if by_address else "PID"
            raise TaskNotFound(f"no task has the {what} {wanted} {self.WHERE}")
        return found

    def select(self, wanted: Iterable[str]) -> list[Task]:
        """The tasks that :meth:`find` finds by any of some names, each once."""
        return list({task.address: task for name in wanted for task in self.find(name)}.values())

    # The kernel's lists -------------------------------------------------------------------

    def _follow(self, what: str, head: int, offset: int) -> Iterator[int]:
        try:
            yield from container_nodes(self._prog, head, offset, _LIMIT, self._successor)
        except BrokenList as e:
            self.problems.append(f"{what}: {e}; tasks behind it are missing from this report")

    def _successor(self, node: int) -> int:
        known = self._following.pop(node, None)
        if known is not None:
            return known
        following: int = self._prog.read_u64(node)
        return following

    def _read(self, address: int) -> tuple[Task, int] | None:
        try:
            return self._load(address)
        except FaultError as e:
            self.problems.append(f"task {address:#x}: structure {missing(e)}")
            return None

    def _threads(self) -> Iterator[Task]:
        tasks, node = self._layout.offsets["tasks"], self._layout.offsets["thread_node"]
        head = self._thread_head.offsets["head"]
        reached_from = self._init_task + tasks
        for leader in self._follow("process list", self._init_task + tasks, tasks):
            first = self._read(leader)
            if first is not None:
                self._check("process list", leader, self._tasks_before, reached_from)
                before_leader, thread_from = self._thread_before, first[1] + head & MASK
                what = f"threads of process {leader:#x}"
                for thread in self._follow(what, thread_from, node):
                    found = first if thread == leader else self._read(thread)
                    if found:
                        before = before_leader if thread == leader else self._thread_before
                        self._check(what, thread, before, thread_from)
                        yield found[0]
                    thread_from = thread + node & MASK
            reached_from = leader + tasks & MASK

    def _check(self, what: str, task: int, before: int, reached_from: int) -> None:
        """See that a list leads back from a task the way it led there: a pointer that was
        overwritten by that of a later task leaves those between out."""
        if before != reached_from:
            self.problems.append(
                f"{what}: task {task:#x} was reached from {reached_from:#x}, but leads back to "
                f"{before:#x}; tasks between may be missing from this report"
            )

    def _check_idle(self, task: Task, cpu: int, seen: set[int]) -> None:
        """See that a CPU's idle task is one, and no other CPU's."""
        if task.pid or task.address in seen:
            why = f"is PID {task.pid}" if task.pid else "is that of another CPU"
            self.problems.append(
                f"idle task of CPU {cpu}: {task.address:#x} {why}; its own is missing from this "
                "report"
            )
        seen.add(task.address)

    def _check_count(self, found: int) -> None:
        """See that as many threads were found as the kernel counts: a list that was made to look
        whole leaves some out. More can be: a thread is listed before it is counted, and no longer
        counted before it is taken off (``copy_process()``, ``__unhash_process()``)."""
        count = self.expected()
        if found < count:
            self.problems.append(
                f"task list: {found} threads were found, and the kernel counts {count}; the others "
                "are missing from this report"
            )

    def _number(self, symbol: str, size: int) -> int:
        """A counter of the kernel's, 0 where there is none or the dump lacks it."""
        return number_at(self._prog, self._symbols.address(symbol), size) or 0

    def _possible_cpus(self) -> list[int] | None:
        try:
            return cpus_in_mask(self._prog, self._symbols.required("__cpu_possible_mask"))
        except (FaultError, MissingInformation) as e:
            self.problems.append(f"mask of possible CPUs: {missing(e)}; the idle tasks are missing")
            return None

    def _idle_tasks(self) -> Iterator[Task]:
        try:
            runqueues = self._symbols.required("runqueues")
            offsets = self._symbols.required("__per_cpu_offset")
            rq = Layout(named_type(self._prog, "struct rq"), {"idle": "idle"})
        except MissingInformation as e:
            self.problems.append(f"idle tasks: {e}")
            return
        cpus = self._possible_cpus()
        if cpus is None:
            return
        seen: set[int] = set()
        online = self._number("__num_online_cpus", 4)
        if len(cpus) < online:
            self.problems.append(
                f"mask of possible CPUs: {len(cpus)} are in it, and {online} are online; the other "
                "idle tasks are missing from this report"
            )
        for cpu in cpus:
            try:
                base = self._prog.read_u64(offsets + 8 * cpu)
                idle = rq.read(self._prog, runqueues + base & MASK)["idle"]
            except FaultError as e:
                self.problems.append(f"idle task of CPU {cpu}: {missing(e)}")
                continue
            found = self._read(idle)
            if found:
                self._check_idle(found[0], cpu, seen)
                if found[0].kind is TaskKind.KTHREAD:  # else its flags are not an idle task's
                    found[0].kind = TaskKind.IDLE
                yield found[0]
