# SPDX-License-Identifier: LGPL-2.1-or-later
"""Return addresses that tracers replaced, found as ``ftrace_graph_ret_addr()``,
``rethook_find_ret_addr()`` and ``kretprobe_find_ret_addr()`` find them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from drgn import FaultError

from drgn_reliable.memory import BrokenList
from drgn_reliable.model import TaskKind
from drgn_reliable.returns import Cursor, FunctionGraph, ReturnProbes
from drgn_reliable.tasks import Task
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes, kernel_types

RETURN_TO_HANDLER = 0xFFFFFFFF81100000
TRAMPOLINE = 0xFFFFFFFF81200000
SHADOW = 0xFFFF888000001000
SLOT_A, SLOT_B, SLOT_C = (0xFFFFC90000003F00 + 8 * i for i in range(3))
REAL_A, REAL_B, REAL_C = (0xFFFFFFFF81000005 + 0x100 * i for i in range(3))


def task(*, ret_stack: int = 0, used: int = 0, hooks: int = 0, run_state: int = 1) -> Task:
    """A sleeping task."""
    return Task(
        address=0xFFFF888000000000, pid=1, tgid=1, cpu=0, comm="init", run_state=run_state,
        exit_state=0, on_cpu=False, stack=0xFFFFC90000000000, stack_references=1,
        saved_sp=0xFFFFC90000003E00, saved_pc=0, saved_fp=0,
        ret_stack=ret_stack, ret_stack_used=used, return_hooks=hooks, kind=TaskKind.USER,
    )  # fmt: skip


def find_all(
    find: Callable[[Task, Cursor, int], int | None], task: Task, *slots: int
) -> list[int | None]:
    """What one walk finds that meets the slots in this order."""
    cursor = Cursor()
    return [find(task, cursor, slot) for slot in slots]


# Function graph, an array of entries (before Linux 6.11) ----------------------------------------


def array_types(types: FakeTypes) -> None:
    """The entries of Linux 6.1: ret, func, calltime, retp."""
    types.struct(
        "ftrace_ret_stack", ret="unsigned long", func="unsigned long",
        calltime="unsigned long long", retp="unsigned long *",
    )  # fmt: skip
    types.struct("task_struct", curr_ret_stack="int", ret_stack="struct ftrace_ret_stack *")


def array_graph(
    entries: list[tuple[int, int]], symbols: FakeSymbols | None = None
) -> FunctionGraph:
    """A tracer over an array of (real address, slot), oldest first."""
    memory = FakeMemory()
    array_types(kernel_types(memory.prog))
    words = [word for ret, slot in entries for word in (ret, 0x1111, 0x2222, slot)]
    if words:
        memory.put_words(SHADOW, *words)
    if symbols is None:
        symbols = FakeSymbols({"return_to_handler": RETURN_TO_HANDLER})
    return FunctionGraph(memory.prog, symbols)


ABC = [(REAL_A, SLOT_A), (REAL_B, SLOT_B), (REAL_C, SLOT_C)]


@pytest.mark.parametrize(
    ("entries", "youngest", "slot", "found"),
    [
        pytest.param(ABC, 2, SLOT_A, REAL_A, id="the oldest"),
        pytest.param(ABC, 2, SLOT_C, REAL_C, id="the youngest"),
        pytest.param(ABC, 1, SLOT_C, None, id="an entry that has been popped"),
        pytest.param(ABC, 0, SLOT_A, REAL_A, id="index 0 is one entry"),
        pytest.param(ABC, -1, SLOT_A, None, id="index -1 is none"),
        pytest.param(ABC, 2, SLOT_C + 8, None, id="a slot that no entry has"),
        pytest.param(
            [(REAL_A, SLOT_A), (REAL_B, SLOT_A)], 1, SLOT_A, REAL_A, id="the oldest of a slot"
        ),
        pytest.param(
            [(RETURN_TO_HANDLER, SLOT_A), (REAL_B, SLOT_A)],
            1,
            SLOT_A,
            RETURN_TO_HANDLER,
            id="even if it is the trampoline: this form does not look further",
        ),
    ],
)
def test_array_entries_are_compared_oldest_first(
    entries: list[tuple[int, int]], youngest: int, slot: int, found: int | None
) -> None:
    graph = array_graph(entries)
    assert graph.find(task(ret_stack=SHADOW, used=youngest), Cursor(), slot) == found


def test_array_lookups_do_not_depend_on_each_other() -> None:
    graph = array_graph(ABC)
    slots = (SLOT_C, SLOT_A, SLOT_C)
    found = find_all(graph.find, task(ret_stack=SHADOW, used=2), *slots)
    assert found == [REAL_C, REAL_A, REAL_C]


def test_an_array_is_followed_as_far_as_the_index_says() -> None:
    """The kernel does not hold it against FTRACE_RETFUNC_DEPTH: what is behind the array is
    compared, too, until memory ends."""
    graph = array_graph([(REAL_A + i, SLOT_A + 8 * i) for i in range(60)])
    corrupt = task(ret_stack=SHADOW, used=0x7FFFFFFF)
    assert graph.find(corrupt, Cursor(), SLOT_A + 8 * 59) == REAL_A + 59
    with pytest.raises(FaultError):
        graph.find(corrupt, Cursor(), SLOT_A + 8 * 60)


def array_of(count: int) -> tuple[FunctionGraph, Task]:
    """A tracer, and a task with an array of so many equal entries."""
    return array_graph([(REAL_A, SLOT_A)] * count), task(ret_stack=SHADOW, used=count - 1)


def words_of(count: int) -> tuple[FunctionGraph, Task]:
    """The same with a stack of words."""
    words = entry(REAL_A, SLOT_A) * count
    return word_graph(*words), task(ret_stack=SHADOW, used=len(words))


@pytest.mark.parametrize("many", [array_of, words_of])
def test_more_entries_than_there_can_be_are_no_list(
    many: Callable[[int], tuple[FunctionGraph, Task]],
) -> None:
    """A page of 64 KiB has 2048. Of more nobody can tell which are there."""
    graph, traced = many(2048)
    assert graph.recorded(traced) == 2048
    assert graph.find(traced, Cursor(), SLOT_B) is None
    graph, traced = many(2049)
    with pytest.raises(BrokenList, match="more than 2048 entries"):
        graph.recorded(traced)
    with pytest.raises(BrokenList, match="more than 2048 entries"):
        graph.find(traced, Cursor(), SLOT_B)


def test_an_array_that_the_dump_lacks_raises_a_fault() -> None:
    graph = array_graph([])
    with pytest.raises(FaultError):
        graph.find(task(ret_stack=SHADOW, used=0), Cursor(), SLOT_A)


# Function graph, a stack of words (since Linux 6.11) --------------------------------------------
#
# An entry is a struct ftrace_ret_stack, here of 3 words (ret, func, retp), and above it a word
# with, in bits 0-9, how many words lie between that word and the entry's first; bits 10-11 are
# a type and bits 12-27 a mask of the tracers that want to see the return (kernel/trace/fgraph.c).

BITMAP = 1 << 10


def entry(ret: int, slot: int, *, distance: int = 3, more: int = BITMAP | 1 << 12) -> list[int]:
    """The words of one traced call."""
    return [ret, 0x1111, slot, distance | more]


def word_graph(*words: int) -> FunctionGraph:
    memory = FakeMemory()
    kernel_types(memory.prog)
    if words:
        memory.put_words(SHADOW, *words)
    return FunctionGraph(memory.prog, FakeSymbols({"return_to_handler": RETURN_TO_HANDLER}))


THREE_CALLS = [*entry(REAL_A, SLOT_C), *entry(REAL_B, SLOT_B), *entry(REAL_C, SLOT_A)]
"""A called first, and so with its slot highest on the stack."""

TAIL_CALL = [
    *entry(REAL_A, SLOT_C),
    *entry(REAL_B, SLOT_A),
    *entry(RETURN_TO_HANDLER, SLOT_A),
    *entry(RETURN_TO_HANDLER, SLOT_A),
]
"""B's callee jumped to a function that jumped to a third; all were traced on B's slot."""


@pytest.mark.parametrize(
    ("words", "slots", "found"),
    [
        pytest.param(THREE_CALLS, [SLOT_A], [REAL_C], id="the youngest"),
        pytest.param(THREE_CALLS, [SLOT_C], [REAL_A], id="the oldest"),
        pytest.param(
            THREE_CALLS, [SLOT_A, SLOT_B, SLOT_C], [REAL_C, REAL_B, REAL_A], id="a whole walk"
        ),
        pytest.param(
            THREE_CALLS, [SLOT_A, SLOT_C], [REAL_C, REAL_A], id="entries in between are skipped"
        ),
        pytest.param(
            THREE_CALLS, [SLOT_B, SLOT_A], [REAL_B, None], id="a lookup goes on below the last"
        ),
        pytest.param(
            THREE_CALLS, [SLOT_C, SLOT_A], [REAL_A, REAL_C],
            id="below the entry at word 0 it begins anew, for 0 also means not yet begun",
        ),
        pytest.param(
            THREE_CALLS, [SLOT_A, SLOT_A], [REAL_C, None], id="an entry serves one lookup"
        ),
        pytest.param(
            THREE_CALLS, [SLOT_B, 0x1234, SLOT_C], [REAL_B, None, REAL_A],
            id="a miss leaves the place as it was",
        ),
        pytest.param(
            TAIL_CALL, [SLOT_A, SLOT_C], [REAL_B, REAL_A], id="the last of a chain of tail calls"
        ),
        pytest.param(
            entry(RETURN_TO_HANDLER, SLOT_A), [SLOT_A], [None], id="the trampoline alone"
        ),
        pytest.param([], [SLOT_A], [None], id="nothing is being traced"),
        pytest.param(
            [*entry(REAL_A, SLOT_B), *entry(REAL_B, SLOT_A, distance=0)], [SLOT_A, SLOT_B],
            [None, None], id="a distance of 0 leads nowhere",
        ),
        pytest.param(
            [*entry(REAL_A, SLOT_B), *entry(REAL_B, SLOT_A, distance=8)], [SLOT_A], [None],
            id="a distance to before the first word",
        ),
        pytest.param(
            [*entry(REAL_A, SLOT_B), *entry(REAL_B, SLOT_A, distance=0x3FF)], [SLOT_A], [None],
            id="the greatest distance",
        ),
        pytest.param(
            [*entry(REAL_A, SLOT_B), *entry(REAL_B, SLOT_A, distance=7)], [SLOT_B], [REAL_A],
            id="a distance to the very first word",
        ),
        pytest.param(
            [0, 0, *entry(REAL_A, SLOT_A)], [SLOT_A, SLOT_B], [REAL_A, None],
            id="words of no entry below",
        ),
        pytest.param(
            [REAL_A, 0x1111, SLOT_A, 0x5555, 0x2 << 10 | 1 << 12, BITMAP | 0xFFFF << 12 | 5],
            [SLOT_A], [REAL_A], id="words kept for tracers lie between",
        ),
    ],
)  # fmt: skip
def test_words_are_followed_from_the_youngest_entry_down(
    words: list[int], slots: list[int], found: list[int | None]
) -> None:
    graph = word_graph(*words)
    traced = task(ret_stack=SHADOW, used=len(words))
    assert find_all(graph.find, traced, *slots) == found


def test_each_walk_begins_at_the_youngest_entry() -> None:
    graph = word_graph(*THREE_CALLS)
    traced = task(ret_stack=SHADOW, used=len(THREE_CALLS))
    for _ in range(2):
        assert find_all(graph.find, traced, SLOT_C) == [REAL_A]


@pytest.mark.parametrize(
    ("used", "found"),
    [
        pytest.param(len(THREE_CALLS) - 4, None, id="an entry that has been popped"),
        pytest.param(-4, None, id="negative"),
    ],
)
def test_a_shadow_stack_of_words_ends_where_the_task_says(used: int, found: int | None) -> None:
    graph = word_graph(*THREE_CALLS)
    assert graph.find(task(ret_stack=SHADOW, used=used), Cursor(), SLOT_A) is found


@pytest.mark.parametrize("used", [4, 8193, 0x7FFFFFFF])
def test_words_that_the_dump_lacks_raise_a_fault(used: int) -> None:
    """As far above the shadow stack as a corrupt task says: there the kernel reads, too."""
    with pytest.raises(FaultError):
        word_graph().find(task(ret_stack=SHADOW, used=used), Cursor(), SLOT_A)


def test_words_beyond_the_end_of_memory_raise_a_fault() -> None:
    """The task's pointer is corrupt."""
    with pytest.raises(FaultError):
        word_graph().find(task(ret_stack=0xFFFFFFFFFFFFFFF8, used=4), Cursor(), SLOT_A)


# Is there a function graph tracer? --------------------------------------------------------------


@pytest.mark.parametrize("make", [array_graph, lambda _: word_graph()], ids=["array", "words"])
def test_a_task_that_was_never_traced_has_no_shadow_stack(
    make: Callable[[list[tuple[int, int]]], FunctionGraph],
) -> None:
    """The kernel looks at the index alone; one that counts entries of no stack is damaged."""
    graph = make([])
    assert graph.trampoline == RETURN_TO_HANDLER
    assert graph.find(task(ret_stack=0, used=-1), Cursor(), SLOT_A) is None
    assert graph.recorded(task(ret_stack=0, used=4)) == 0
    with pytest.raises(FaultError):
        graph.find(task(ret_stack=0, used=4), Cursor(), SLOT_A)


def test_a_kernel_without_the_tracer_has_no_trampoline() -> None:
    memory = FakeMemory()
    kernel_types(memory.prog)
    assert FunctionGraph(memory.prog, FakeSymbols()).trampoline is None


def test_a_kernel_whose_tasks_have_no_shadow_stack_has_no_trampoline() -> None:
    memory = FakeMemory()
    FakeTypes(memory.prog).struct("task_struct", pid="int")
    symbols = FakeSymbols({"return_to_handler": RETURN_TO_HANDLER})
    assert FunctionGraph(memory.prog, symbols).trampoline is None


# Return probes ----------------------------------------------------------------------------------

NODES = 0xFFFF888000002000
RETHOOK = {"rethook_find_ret_addr": 0x1000, "arch_rethook_trampoline": TRAMPOLINE}
KRETPROBE = {"kretprobe_find_ret_addr": 0x1000, "__kretprobe_trampoline": TRAMPOLINE}


def probe_types(types: FakeTypes) -> None:
    """``struct kretprobe_instance`` as it is without rethooks."""
    types.struct(
        "kretprobe_instance", freelist="void *[2]", llist="struct llist_node", rph="void *",
        ret_addr="void *", fp="void *",
    )  # fmt: skip


class Probes:
    """A task's list of probed returns, youngest first, as (real address, key)."""

    def __init__(self, symbols: dict[str, int], rows: list[tuple[int, int]]) -> None:
        self.memory = FakeMemory()
        probe_types(kernel_types(self.memory.prog))
        rethook = "arch_rethook_trampoline" in symbols
        self.nodes = [NODES + 0x100 * i for i in range(len(rows))]
        for i, (ret, key) in enumerate(rows):
            following = self.nodes[i + 1] + 16 if i + 1 < len(rows) else 0
            self.memory.put_struct(
                self.nodes[i],
                "struct rethook_node" if rethook else "struct kretprobe_instance",
                llist={"next": following},
                ret_addr=ret,
                **{"frame" if rethook else "fp": key},
            )
        self.found = ReturnProbes(self.memory.prog, FakeSymbols(symbols))
        self.task = task(hooks=self.nodes[0] + 16 if rows else 0)

    def link(self, node: int, following: int) -> None:
        """Let a node's list pointer lead to another list pointer."""
        self.memory.put_words(self.nodes[node] + 16, following)

    def walk(self, *slots: int) -> list[int | None]:
        """What one walk finds that meets the slots in this order."""
        return find_all(self.found.find, self.task, *slots)


YOUNGEST_FIRST = [(REAL_A, SLOT_A), (REAL_B, SLOT_B), (REAL_C, SLOT_C)]
CHAINED = [
    (TRAMPOLINE, SLOT_A),
    (TRAMPOLINE, SLOT_A),
    (REAL_A, SLOT_A),
    (TRAMPOLINE, SLOT_B),
    (REAL_B, SLOT_B),
]
"""Three probes on one function, two on its caller: all but the oldest saw the trampoline."""


@pytest.mark.parametrize("symbols", [RETHOOK, KRETPROBE], ids=["rethook", "kretprobe"])
@pytest.mark.parametrize(
    ("rows", "slots", "found"),
    [
        pytest.param(YOUNGEST_FIRST, [SLOT_A], [REAL_A], id="the youngest"),
        pytest.param(
            YOUNGEST_FIRST, [SLOT_A, SLOT_B, SLOT_C], [REAL_A, REAL_B, REAL_C], id="a whole walk"
        ),
        pytest.param(YOUNGEST_FIRST, [SLOT_C], [REAL_C], id="other keys are passed over"),
        pytest.param(
            YOUNGEST_FIRST, [SLOT_C, SLOT_A], [REAL_C, None], id="a lookup goes on behind the last"
        ),
        pytest.param(
            YOUNGEST_FIRST, [SLOT_A, SLOT_A], [REAL_A, None], id="a node serves one lookup"
        ),
        pytest.param(
            YOUNGEST_FIRST, [0x1234, SLOT_A], [None, None], id="a miss uses up the whole list"
        ),
        pytest.param(CHAINED, [SLOT_A, SLOT_B], [REAL_A, REAL_B], id="several probes chained"),
        pytest.param(
            [(TRAMPOLINE, SLOT_A)], [SLOT_A, SLOT_A], [None, None], id="the trampoline alone"
        ),
        pytest.param([], [SLOT_A], [None], id="no probed return"),
    ],
)
def test_probed_returns_are_found_youngest_first(
    symbols: dict[str, int],
    rows: list[tuple[int, int]],
    slots: list[int],
    found: list[int | None],
) -> None:
    assert Probes(symbols, rows).walk(*slots) == found


def test_each_walk_begins_at_the_youngest_node() -> None:
    probes = Probes(RETHOOK, YOUNGEST_FIRST)
    assert probes.walk(SLOT_C) == probes.walk(SLOT_C) == [REAL_C]


@pytest.mark.parametrize(
    ("rows", "loop_to"),
    [
        pytest.param(YOUNGEST_FIRST, 0, id="back to the first"),
        pytest.param(YOUNGEST_FIRST, 2, id="to itself"),
        pytest.param([(TRAMPOLINE, SLOT_A)] * 3, 0, id="of chained probes alone"),
    ],
)
def test_a_looped_list_of_probes_ends(rows: list[tuple[int, int]], loop_to: int) -> None:
    probes = Probes(RETHOOK, rows)
    probes.link(2, probes.nodes[loop_to] + 16)
    assert probes.walk(0x1234) == [None]


@pytest.mark.parametrize("symbols", [RETHOOK, KRETPROBE], ids=["rethook", "kretprobe"])
def test_a_node_that_the_dump_lacks_raises_a_fault(symbols: dict[str, int]) -> None:
    probes = Probes(symbols, YOUNGEST_FIRST)
    probes.link(1, 0xFFFF888000F00000)
    assert probes.walk(SLOT_A, SLOT_B) == [REAL_A, REAL_B]
    with pytest.raises(FaultError):
        probes.walk(SLOT_C)


@pytest.mark.parametrize("first", [8, 0xFFFFFFFFFFFFFFFF], ids=["near 0", "at the end of memory"])
def test_a_corrupt_list_pointer_raises_a_fault(first: int) -> None:
    """The node begins 16 bytes before the pointer to it."""
    probes = Probes(RETHOOK, [])
    with pytest.raises(FaultError):
        probes.found.find(task(hooks=first), Cursor(), SLOT_A)


@pytest.mark.parametrize(
    ("symbols", "name", "task_list", "refuses_runnable"),
    [
        pytest.param(RETHOOK, "rethook_node", "rethooks.first", True, id="x86 since 5.18"),
        pytest.param(
            KRETPROBE, "kretprobe_instance", "kretprobe_instances.first", False, id="arm64"
        ),
    ],
)
def test_the_flavour_is_told_by_its_finder(
    symbols: dict[str, int], name: str, task_list: str, refuses_runnable: bool
) -> None:
    """Only rethook_find_ret_addr() asks task_is_running()."""
    probes = Probes(symbols, []).found
    assert (probes.name, probes.task_list) == (name, task_list)
    assert probes.trampoline == TRAMPOLINE
    assert probes.refuses_runnable is refuses_runnable


def test_kernels_with_rethooks_have_the_kretprobe_symbols_too() -> None:
    """kretprobe_find_ret_addr() and the member kretprobe_instances stay; the rethook counts."""
    both = Probes({**KRETPROBE, **RETHOOK, "__kretprobe_trampoline": 0x2000}, []).found
    assert (both.name, both.trampoline) == ("rethook_node", TRAMPOLINE)


@pytest.mark.parametrize(
    "symbols",
    [{}, {"rethook_find_ret_addr": 0x1000}, {"kretprobe_find_ret_addr": 0x1000}],
    ids=["neither", "a rethook finder without trampoline", "a kretprobe finder without"],
)
def test_a_kernel_without_return_probes_has_no_trampoline(symbols: dict[str, int]) -> None:
    probes = Probes(symbols, []).found
    assert probes.trampoline is None
    assert probes.task_list is None


def test_the_address_of_a_runnable_task_is_found_all_the_same() -> None:
    """The walk notes the kernel's refusal; the dump holds the address."""
    probes = Probes(RETHOOK, YOUNGEST_FIRST)
    runnable = task(hooks=probes.nodes[0] + 16, run_state=0)
    assert probes.found.find(runnable, Cursor(), SLOT_A) == REAL_A
