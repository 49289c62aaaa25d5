# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which tasks there are, from the kernel's lists as they may lie in a dump: sound and broken."""

from __future__ import annotations

import pytest
from drgn import FaultError, offsetof

from drgn_reliable.errors import MissingInformation, TaskNotFound
from drgn_reliable.model import TaskKind
from drgn_reliable.tasks import SavedContext, Task, TaskList, state_letter
from tests.fakes import FakeMemory, FakeSymbols, kernel_types

# States -----------------------------------------------------------------------------------------

STATES = [
    ("running, or preempted", 0x0, 0, "R"),
    ("TASK_INTERRUPTIBLE", 0x1, 0, "S"),
    ("TASK_UNINTERRUPTIBLE", 0x2, 0, "D"),
    ("__TASK_STOPPED", 0x4, 0, "T"),
    ("__TASK_TRACED", 0x8, 0, "t"),
    ("TASK_PARKED", 0x40, 0, "P"),
    ("TASK_KILLABLE", 0x102, 0, "D"),
    ("TASK_STOPPED", 0x104, 0, "T"),
    ("TASK_IDLE", 0x402, 0, "I"),
    ("TASK_IDLE | TASK_FREEZABLE", 0x2402, 0, "I"),
    ("TASK_IDLE | TASK_WAKEKILL", 0x502, 0, "I"),
    ("TASK_NOLOAD alone is not TASK_IDLE", 0x401, 0, "S"),
    ("TASK_WAKING", 0x200, 0, "R"),
    ("TASK_NEW", 0x800, 0, "R"),
    ("TASK_RTLOCK_WAIT", 0x1000, 0, "D"),
    ("TASK_INTERRUPTIBLE | TASK_FREEZABLE", 0x2001, 0, "S"),
    ("TASK_FROZEN", 0x8000, 0, "D"),
    ("TASK_FROZEN goes before TASK_IDLE", 0x8402, 0, "D"),
    ("TASK_DEAD", 0x80, 0, "R"),
    ("TASK_DEAD and EXIT_ZOMBIE", 0x80, 0x20, "Z"),
    ("TASK_DEAD and EXIT_DEAD", 0x80, 0x10, "X"),
    ("TASK_DEAD and EXIT_TRACE, which is both", 0x80, 0x30, "Z"),
    ("exiting but still asleep", 0x1, 0x20, "Z"),
]
"""``__task_state_index()`` and ``task_index_to_char()`` (include/linux/sched.h)."""


@pytest.mark.parametrize(
    ("state", "exit_state", "letter"), [row[1:] for row in STATES], ids=[row[0] for row in STATES]
)
def test_state_letters(state: int, exit_state: int, letter: str) -> None:
    assert state_letter(state, exit_state) == letter


# A kernel's tasks -------------------------------------------------------------------------------

INIT_TASK = 0xFFFFFFFF82A00000
HEAP = 0xFFFF888000000000
RUNQUEUES, PER_CPU_OFFSET, POSSIBLE = 0x2F000, 0xFFFFFFFF82300000, 0xFFFFFFFF82400000
PER_CPU = 0xFFFF888100000000
COUNTS = 0xFFFFFFFF82500000
"""Where the kernel counts."""
NOWHERE = 0xFFFF888000F00000
"""Nothing is there."""

USER, KTHREAD, IDLE = TaskKind.USER, TaskKind.KTHREAD, TaskKind.IDLE
PF_KTHREAD = 0x00200000


class Tasks:
    """Processes and idle tasks in a dump.

    A task of PID n is at :data:`HEAP` + n pages, its process's signal_struct 0x800 bytes higher.
    """

    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.types = kernel_types(self.memory.prog)
        self._leaders: list[int] = []
        self._cpus: dict[int, int] = {}
        self.put_task(INIT_TASK, pid=0, comm=b"swapper/0", flags=PF_KTHREAD)
        self.processes()
        self.idle({})

    @staticmethod
    def at(pid: int) -> int:
        return HEAP + 0x1000 * pid

    def node(self, name: str, pid: int) -> int:
        """Where a task's list node is."""
        return self.at(pid) + int(offsetof(self.memory.prog.type("struct task_struct"), name))

    def put_task(self, address: int, **members: object) -> None:
        members = {"stack_refcount": {"refs": {"counter": 1}}, **members}
        self.memory.put_struct(address, "struct task_struct", **members)

    def process(self, *pids: int, **members: object) -> None:
        """A process by its threads, the leader first."""
        signal = self.at(pids[0]) + 0x800
        for pid in pids:
            self.put_task(self.at(pid), pid=pid, tgid=pids[0], signal=signal, **members)
        self.memory.put_struct(signal, "struct signal_struct", nr_threads=len(pids))
        self.memory.put_list(signal + 8, *[self.node("thread_node", pid) for pid in pids])
        self._leaders.append(pids[0])

    def processes(self) -> None:
        """Link the leaders."""
        head = INIT_TASK + offsetof(self.memory.prog.type("struct task_struct"), "tasks")
        self.memory.put_list(head, *[self.node("tasks", pid) for pid in self._leaders])

    def idle(self, tasks: dict[int, int], *, possible: int | None = None) -> None:
        """Idle tasks by CPU; each CPU's per-CPU memory is a page of its own."""
        mask = sum(1 << cpu for cpu in tasks) if possible is None else possible
        self.memory.put_words(POSSIBLE, mask & (1 << 64) - 1, mask >> 64)
        for cpu, task in tasks.items():
            # The sum with the symbol wraps around at 2**64, as the kernel's does.
            self.memory.put_words(PER_CPU_OFFSET + 8 * cpu, PER_CPU + 0x1000 * cpu - RUNQUEUES)
            self.memory.put_struct(PER_CPU + 0x1000 * cpu, "struct rq", idle=task)

    def list(self, **symbols: int) -> TaskList:
        names = FakeSymbols(
            {
                "init_task": INIT_TASK,
                "runqueues": RUNQUEUES,
                "__per_cpu_offset": PER_CPU_OFFSET,
                "__cpu_possible_mask": POSSIBLE,
                **symbols,
            }
        )
        return TaskList(self.memory.prog, names, SavedContext("thread.sp"), "rethooks.first")


def three_processes() -> Tasks:
    """Processes 1 (one thread), 10 (three) and 20 (one), and the idle task of CPU 0."""
    tasks = Tasks()
    tasks.process(1)
    tasks.process(10, 11, 12)
    tasks.process(20)
    tasks.processes()
    tasks.idle({0: INIT_TASK})
    return tasks


ALL = [1, 10, 11, 12, 20, 0]


def pids(tasks: TaskList) -> list[int]:
    return [task.pid for task in tasks]


def test_every_thread_of_every_process_then_the_idle_tasks() -> None:
    tasks = three_processes().list()
    assert pids(tasks) == ALL
    assert [task.tgid for task in tasks] == [1, 10, 10, 10, 20, 0]
    assert [task.kind for task in tasks] == [USER] * 5 + [IDLE]
    assert tasks.problems == []


def test_a_kernel_with_nothing_but_idle_tasks() -> None:
    tasks = Tasks()
    tasks.idle({0: INIT_TASK})
    assert pids(tasks.list()) == [0]


def test_the_members_of_a_task() -> None:
    tasks = Tasks()
    tasks.put_task(
        tasks.at(7),
        pid=7,
        tgid=6,
        thread_info={"cpu": 3},
        comm=b"kworker/3:1",
        __state=0x402,
        exit_state=0x20,
        on_cpu=1,
        stack=0xFFFFC90000010000,
        stack_refcount={"refs": {"counter": 2}},
        thread={"sp": 0xFFFFC90000013E00},
        ret_stack=0xFFFF888000002000,
        curr_ret_stack=-1,
        rethooks={"first": 0xFFFF888000003010},
        flags=PF_KTHREAD | 0x4000,
    )
    assert tasks.list().read(tasks.at(7)) == Task(
        address=tasks.at(7),
        pid=7,
        tgid=6,
        cpu=3,
        comm="kworker/3:1",
        run_state=0x402,
        exit_state=0x20,
        on_cpu=True,
        stack=0xFFFFC90000010000,
        stack_references=2,
        saved_sp=0xFFFFC90000013E00,
        saved_pc=0,
        saved_fp=0,
        ret_stack=0xFFFF888000002000,
        ret_stack_used=-1,
        return_hooks=0xFFFF888000003010,
        kind=KTHREAD,
    )


@pytest.mark.parametrize(
    ("flags", "pid", "kind"),
    [
        (0, 7, USER),
        (PF_KTHREAD, 7, KTHREAD),
        (0xFFDFFFFF, 7, USER),
        (PF_KTHREAD | 0x00400000, 7, KTHREAD),
        (PF_KTHREAD, 0, IDLE),
        (0, 0, USER),
    ],
)
def test_a_flag_tells_kernel_threads(flags: int, pid: int, kind: TaskKind) -> None:
    tasks = Tasks()
    tasks.put_task(tasks.at(1), flags=flags, pid=pid)
    assert tasks.list().read(tasks.at(1)).kind is kind


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        (b"", ""),
        (b"bash\0stale", "bash"),
        (b"0123456789abcdef", "0123456789abcdef"),
        ("grüß".encode(), "grüß"),
        (b"bad\xff", "bad\\xff"),
    ],
    ids=["empty", "what lies behind the end", "not terminated", "UTF-8", "not UTF-8"],
)
def test_command_names(comm: bytes, shown: str) -> None:
    tasks = Tasks()
    tasks.put_task(tasks.at(1), comm=comm)
    assert tasks.list().read(tasks.at(1)).comm == shown


@pytest.mark.parametrize(
    ("references", "stack", "has_stack"),
    [
        (1, 0xFFFFC90000010000, True),
        (2, 0xFFFFC90000010000, True),
        (0, 0xFFFFC90000010000, False),
        (1, 0, False),
        (0, 0, False),
    ],
)
def test_a_stack_without_references_is_gone(references: int, stack: int, has_stack: bool) -> None:
    """try_get_task_stack(): a zombie's pointer may be left over from a stack that is another's."""
    tasks = Tasks()
    tasks.put_task(tasks.at(1), stack=stack, stack_refcount={"refs": {"counter": references}})
    assert tasks.list().read(tasks.at(1)).has_stack is has_stack


def test_an_old_kernel_without_some_of_the_members() -> None:
    """``state`` was a long before 5.14; without tracers and SMP the rest is configured away."""
    tasks = Tasks()
    tasks.types.struct(
        "task_struct",
        thread_info="struct thread_info",
        state="long",
        stack="void *",
        flags="unsigned int",
        tasks="struct list_head",
        exit_state="int",
        pid="int",
        tgid="int",
        thread_node="struct list_head",
        comm="char [16]",
        signal="struct signal_struct *",
        thread="struct thread_struct",
    )
    tasks.memory.put_struct(
        tasks.at(1), "struct task_struct", pid=1, state=0x402, stack=0xFFFFC90000010000
    )
    symbols = FakeSymbols({"init_task": INIT_TASK})
    task = TaskList(tasks.memory.prog, symbols, SavedContext("thread.sp"), None).read(tasks.at(1))
    assert (task.run_state, task.state) == (0x402, "I")
    assert task.stack_references is None
    assert task.has_stack
    assert not task.on_cpu
    assert (task.ret_stack, task.ret_stack_used, task.return_hooks) == (0, 0, 0)


def test_a_task_that_the_dump_lacks_raises_a_fault() -> None:
    with pytest.raises(FaultError):
        Tasks().list().read(NOWHERE)


# Idle tasks -------------------------------------------------------------------------------------


def test_the_idle_task_of_every_possible_cpu_in_order() -> None:
    """Possible CPUs need not be contiguous, and the mask has more words than one."""
    tasks = Tasks()
    for cpu in (2, 5, 64, 127):
        tasks.put_task(tasks.at(100 + cpu), thread_info={"cpu": cpu}, flags=PF_KTHREAD)
    tasks.idle({cpu: tasks.at(100 + cpu) for cpu in (2, 5, 64, 127)})
    found = list(tasks.list())
    assert [task.cpu for task in found] == [2, 5, 64, 127]
    assert {task.kind for task in found} == {IDLE}


def test_an_idle_task_that_cannot_be_found_is_a_problem_and_the_others_stay() -> None:
    """Of four possible CPUs one's per-CPU memory and one's idle task are missing."""
    tasks = Tasks()
    for cpu in (0, 3):
        tasks.put_task(tasks.at(100 + cpu), thread_info={"cpu": cpu})
    tasks.idle({0: tasks.at(100), 2: NOWHERE, 3: tasks.at(103)}, possible=0b1111)
    listed = tasks.list()
    assert [task.cpu for task in listed] == [0, 3]
    assert len(listed.problems) == 2
    assert listed.problems[0].startswith("idle task of CPU 1: not readable")
    assert f"{NOWHERE:#x}" in listed.problems[1]


@pytest.mark.parametrize(
    ("idle", "why"),
    [(HEAP + 0x1000 * 20, "is PID 20"), (INIT_TASK, "is that of another CPU")],
    ids=["a thread", "another's"],
)
def test_what_is_no_idle_task_of_a_cpu_is_told(idle: int, why: str) -> None:
    """A run queue's pointer to it was overwritten."""
    tasks = three_processes()
    tasks.idle({0: INIT_TASK, 1: idle})
    listed = tasks.list()
    assert len(pids(listed)) == len(ALL) + 1
    (problem,) = listed.problems
    assert problem.startswith(f"idle task of CPU 1: {idle:#x} {why}; ")


def test_a_mask_of_possible_cpus_that_lacks_some_that_are_online_is_told() -> None:
    """No CPU is online that is not possible."""
    tasks = three_processes()
    tasks.memory.put_u32(COUNTS, 1, 2)
    sound, listed = (tasks.list(__num_online_cpus=COUNTS + at) for at in (0, 4))
    assert pids(sound) == pids(listed) == ALL
    assert sound.problems == []
    (problem,) = listed.problems
    assert problem.startswith("mask of possible CPUs: 1 are in it, and 2 are online")


def test_without_the_mask_of_possible_cpus_the_idle_tasks_are_missing() -> None:
    tasks = three_processes().list(__cpu_possible_mask=NOWHERE)
    assert pids(tasks) == ALL[:-1]
    (problem,) = tasks.problems
    assert "idle tasks are missing" in problem


def test_a_kernel_without_init_task_cannot_be_listed() -> None:
    with pytest.raises(MissingInformation, match="init_task"):
        TaskList(Tasks().memory.prog, FakeSymbols(), SavedContext("thread.sp"), None)


# Broken lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("following", "why"),
    [
        pytest.param(NOWHERE, "not readable", id="unreadable"),
        pytest.param(0, "null pointer", id="null pointer"),
        pytest.param("tasks", "leads back", id="loop that misses the head"),
    ],
)
def test_a_broken_process_list_keeps_the_tasks_before_it(following: int | str, why: str) -> None:
    """Process 10's list pointer is overwritten: 20 is lost, and the idle task is not."""
    tasks = three_processes()
    if isinstance(following, str):
        following = tasks.node(following, 1)
    tasks.memory.put_words(tasks.node("tasks", 10), following)
    listed = tasks.list()
    found = pids(listed)
    assert found == [1, 10, 11, 12, 0]
    assert listed.problems[-1].startswith("process list: ")
    assert why in listed.problems[-1]
    assert "tasks behind it are missing" in listed.problems[-1]


@pytest.mark.parametrize(
    ("following", "why"),
    [
        pytest.param(NOWHERE, "not readable", id="unreadable"),
        pytest.param(0, "null pointer", id="null pointer"),
        pytest.param("thread_node", "leads back", id="loop that misses the head"),
    ],
)
def test_a_broken_list_of_threads_keeps_the_other_processes(following: int | str, why: str) -> None:
    """Thread 11's list pointer is overwritten: 12 alone is lost."""
    tasks = three_processes()
    if isinstance(following, str):
        following = tasks.node(following, 10)
    tasks.memory.put_words(tasks.node("thread_node", 11), following)
    listed = tasks.list()
    assert pids(listed) == [1, 10, 11, 20, 0]
    problem = listed.problems[-1]
    assert problem.startswith(f"threads of process {tasks.at(10):#x}: ")
    assert why in problem


def test_a_task_structure_of_which_only_the_list_nodes_are_left() -> None:
    """Thread 13's structure is missing but for its node: the threads behind it are found."""
    tasks = Tasks()
    tasks.process(10, 11, 12)
    tasks.processes()
    tasks.idle({0: INIT_TASK})
    left = tasks.node("thread_node", 13)
    tasks.memory.put_words(left, tasks.node("thread_node", 11), tasks.node("thread_node", 10))
    tasks.memory.put_words(tasks.node("thread_node", 10), left)
    tasks.memory.put_words(tasks.node("thread_node", 11) + 8, left)
    listed = tasks.list()
    assert pids(listed) == [10, 11, 12, 0]
    (problem,) = listed.problems
    assert problem.startswith(f"task {tasks.at(13):#x}: structure not readable")


@pytest.mark.parametrize(
    ("name", "at", "to", "listed_pids"),
    [("tasks", 1, 20, [1, 20, 0]), ("thread_node", 10, 12, [1, 10, 12, 20, 0])],
)
def test_a_pointer_that_leads_past_tasks_is_told(
    name: str, at: int, to: int, listed_pids: list[int]
) -> None:
    """A pointer overwritten by that of a later task: the list is whole, but does not lead back."""
    tasks = three_processes()
    tasks.memory.put_words(tasks.node(name, at), tasks.node(name, to))
    listed = tasks.list()
    assert pids(listed) == listed_pids
    (problem,) = listed.problems
    assert f"task {tasks.at(to):#x} was reached from {tasks.node(name, at):#x}" in problem
    assert problem.endswith("tasks between may be missing from this report")


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        pytest.param(5, "", id="as many as were found"),
        pytest.param(4, "", id="one is listed and not yet counted"),
        pytest.param(6, "5 threads were found, and the kernel counts 6", id="one is missing"),
        pytest.param(None, "", id="not in the dump"),
    ],
)
def test_threads_are_held_against_the_kernels_own_count(count: int | None, problem: str) -> None:
    """``nr_threads`` has no idle tasks in it."""
    tasks = three_processes()
    if count is not None:
        tasks.memory.put_u32(COUNTS, count)
    listed = tasks.list(nr_threads=COUNTS)
    assert pids(listed) == ALL
    assert [line.split("; ")[0] for line in listed.problems] == [f"task list: {problem}"] * bool(
        problem
    )


def test_a_list_that_was_made_to_look_whole_is_told() -> None:
    """A thread is taken out both ways, as damage seldom does it, but somebody might."""
    tasks = three_processes()
    tasks.memory.put_list(
        tasks.at(10) + 0x808, *[tasks.node("thread_node", pid) for pid in (10, 12)]
    )
    tasks.memory.put_u32(COUNTS, 5)
    listed = tasks.list(nr_threads=COUNTS)
    assert pids(listed) == [1, 10, 12, 20, 0]
    (problem,) = listed.problems
    assert problem.startswith("task list: 4 threads were found, and the kernel counts 5; ")


def test_a_process_whose_leader_is_not_readable_but_for_its_list_node() -> None:
    """Processes 1, 30 and 20: the leader of 30 cannot be read, and so neither can its threads."""
    tasks = Tasks()
    tasks.process(1)
    tasks.process(20)
    tasks.processes()
    tasks.idle({0: INIT_TASK})
    left = tasks.node("tasks", 30)
    tasks.memory.put_words(left, tasks.node("tasks", 20), tasks.node("tasks", 1))
    tasks.memory.put_words(tasks.node("tasks", 1), left)
    tasks.memory.put_words(tasks.node("tasks", 20) + 8, left)
    listed = tasks.list()
    assert pids(listed) == [1, 20, 0]
    (problem,) = listed.problems
    assert f"{tasks.at(30):#x}" in problem


@pytest.mark.parametrize("signal", [NOWHERE, 0, 0xFFFFFFFFFFFFFFF8])
def test_a_process_whose_signal_structure_is_not_readable(signal: int) -> None:
    tasks = three_processes()
    tasks.put_task(tasks.at(10), pid=10, tgid=10, signal=signal)
    tasks.processes()
    listed = tasks.list()
    assert [pid for pid in pids(listed) if pid not in (10, 11, 12)] == [1, 20, 0]
    (problem,) = listed.problems
    assert f"{tasks.at(10):#x}" in problem


def test_problems_are_those_of_the_last_time() -> None:
    tasks = three_processes()
    tasks.memory.put_words(tasks.node("tasks", 10), NOWHERE)
    listed = tasks.list()
    assert pids(listed) == pids(listed)
    assert len([p for p in listed.problems if p.startswith("process list")]) == 1


# One task ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param("20", [20], id="a PID"),
        pytest.param("11", [11], id="a thread that is no leader"),
        pytest.param("10", [10], id="a leader, without its threads"),
        pytest.param("0xffff88800000b000", [11], id="an address"),
        pytest.param("0XFFFF88800000B000", [11], id="an address in capitals"),
    ],
)
def test_tasks_are_found_by_pid_or_address(wanted: str, found: list[int]) -> None:
    assert [task.pid for task in three_processes().list().find(wanted)] == found


def test_pid_0_is_every_idle_task() -> None:
    tasks = three_processes()
    tasks.put_task(tasks.at(100), thread_info={"cpu": 1})
    tasks.idle({0: INIT_TASK, 1: tasks.at(100)})
    assert [task.address for task in tasks.list().find("0")] == [INIT_TASK, tasks.at(100)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param("99", "no task has the PID 99", id="no such PID"),
        pytest.param("-1", "'-1' is neither", id="a negative PID"),
        pytest.param("0x1", "no task has the address 0x1", id="an address that is a PID"),
        pytest.param(
            "0xffff88800000b008", "no task has the address 0xffff88800000b008", id="within a task"
        ),
        pytest.param("bash", "'bash' is neither a PID nor the address", id="a name"),
        pytest.param("", "'' is neither", id="nothing"),
        pytest.param("0x", "'0x' is neither", id="an address without digits"),
        pytest.param("1.5", "'1.5' is neither", id="a fraction"),
        pytest.param("1_0", "'1_0' is neither", id="Python's own spelling"),
    ],
)
def test_a_task_that_is_not_there_is_named(wanted: str, message: str) -> None:
    with pytest.raises(TaskNotFound, match=message):
        three_processes().list().find(wanted)
