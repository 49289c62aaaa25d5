# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is learnt of an x86_64 kernel before its stacks are walked: places, sizes, registers."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from drgn import FaultError, offsetof

from drgn_reliable.arch.kernelfacts import Range
from drgn_reliable.arch.x86_64 import REGISTERS, Facts
from drgn_reliable.errors import MissingInformation
from drgn_reliable.files.notes import iter_notes, pack_note
from drgn_reliable.opening import opened_dump
from drgn_reliable.registers import CrashRegisters
from drgn_reliable.tasks import Task
from tests.conftest import Scanned
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes
from tests.stacks import Kernel as StackKernel

PTR = "unsigned long"
PT_REGS = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss",
)  # fmt: skip
"""``struct pt_regs``, in order."""

INIT_STACK = 0xFFFFFFFF82400000
UNWIND_START = 0xFFFFFFFF81070000
ASSEMBLY = 0xFFFFFFFF81003210
FUNCTION = 0xFFFFFFFF81045670
PERCPU = 0xFFFF88803EC00000
OFFSETS = 0xFFFFFFFF82310000
SYMBOLS = {
    "__start_init_task": INIT_STACK,
    "__end_init_task": INIT_STACK + 0x4000,
    "init_task": 0xFFFFFFFF82A00000,
    "__per_cpu_offset": OFFSETS,
    "ret_from_fork": FUNCTION,
}


class Dump:
    """Memory, types and symbols of a small kernel."""

    def __init__(self, **symbols: int) -> None:
        self.memory = FakeMemory()
        self.types = FakeTypes(self.memory.prog)
        self.types.struct("pt_regs", **dict.fromkeys(PT_REGS, PTR))
        self.types.struct(
            "inactive_task_frame",
            **dict.fromkeys(("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"), PTR),
        )
        self.symbols = FakeSymbols({**SYMBOLS, **symbols})
        self.memory.put_words(OFFSETS, 0, PERCPU)

    def facts(self) -> Facts:
        return Facts(self.memory.prog, self.symbols)  # type: ignore[arg-type]


def lea(place: int, target: int) -> bytes:
    """``lea target(%rip), %rax`` at a place."""
    return b"\x48\x8d\x05" + struct.pack("<i", target - (place + 7))


def compare(target: int) -> bytes:
    """``cmp $target, %rax``."""
    return b"\x48\x3d" + struct.pack("<I", target & 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        pytest.param(compare(ASSEMBLY), ASSEMBLY, id="an immediate: the stub"),
        pytest.param(lea(UNWIND_START + 4, ASSEMBLY), ASSEMBLY, id="relative: the stub"),
        pytest.param(compare(FUNCTION), FUNCTION, id="an immediate: the C function (6.6)"),
        pytest.param(lea(UNWIND_START + 4, FUNCTION), FUNCTION, id="relative: the C function"),
        pytest.param(compare(FUNCTION) + compare(ASSEMBLY), ASSEMBLY, id="both: the stub"),
        pytest.param(b"\x90" * 8, ASSEMBLY, id="neither: the stub"),
    ],
)
def test_which_fork_return_the_unwinder_compares_with(code: bytes, taken: int) -> None:
    """The address by which __unwind_start() knows a task that never ran is read off its code."""
    dump = Dump(ret_from_fork_asm=ASSEMBLY, __unwind_start=UNWIND_START)
    dump.memory.put(UNWIND_START, (b"\x90" * 4 + code).ljust(0x300, b"\x90"))
    facts = dump.facts()
    assert [pc for pc in (ASSEMBLY, FUNCTION, FUNCTION + 1) if facts.is_fork_return(pc)] == [taken]


def test_without_its_code_it_is_not_known_what_the_unwinder_compares_with() -> None:
    """It matters only where a task begins at one of the two."""
    facts = Dump(ret_from_fork_asm=ASSEMBLY, __unwind_start=UNWIND_START).facts()
    assert not facts.is_fork_return(FUNCTION + 1)
    for pc in (ASSEMBLY, FUNCTION):
        with pytest.raises(FaultError):
            facts.is_fork_return(pc)


def test_before_6_6_there_is_only_the_stub() -> None:
    """Without ret_from_fork_asm the stub has the other name."""
    facts = Dump().facts()
    assert facts.is_fork_return(FUNCTION) and not facts.is_fork_return(ASSEMBLY)


def test_the_stack_size_is_that_of_the_first_tasks_stack() -> None:
    """6.12 and later call the symbols otherwise."""
    assert Dump().facts().thread_size == 0x4000
    later = Dump(__start_init_stack=INIT_STACK, __end_init_stack=INIT_STACK + 0x8000)
    assert later.facts().thread_size == 0x8000


def test_user_registers_lie_at_the_top_and_with_fred_two_words_lower() -> None:
    """task_pt_regs() of a kernel without and with FRED."""
    stack = 0xFFFFC90000000000
    assert Dump().facts().user_regs(stack) == stack + 0x4000 - 168
    assert Dump(asm_fred_entrypoint_user=1).facts().user_regs(stack) == stack + 0x4000 - 184


def test_what_is_missing_is_named() -> None:
    """Without the symbols around the first stack nothing is guessed."""
    dump = Dump()
    dump.symbols = FakeSymbols({"init_task": 1})
    with pytest.raises(MissingInformation, match="initial stack"):
        dump.facts()


TOP = 0xFFFFC90000103FF8
AREA = 0xFFFFFE0000005000


def stacks_dump(**symbols: int) -> Dump:
    dump = Dump(cea_exception_stacks=0x1000, **symbols)
    dump.types.struct(
        "cea_exception_stacks",
        DF_stack_guard="char [4096]",
        DF_stack="char [8192]",
        NMI_stack_guard="char [4096]",
        NMI_stack="char [8192]",
    )
    dump.types.struct(
        "cpu_entry_area", gdt="char [4096]", entry_stack_page="char [4096]",
        estacks="struct cea_exception_stacks",
    )  # fmt: skip
    dump.memory.put_words(PERCPU + 0x1000, AREA)
    return dump


def test_the_stacks_of_a_cpu() -> None:
    """The pointer to the interrupt stack is to its top-most word; each exception stack lies behind
    a guard page; the entry stack lies before them in the same area."""
    dump = stacks_dump(hardirq_stack_ptr=0x2000)
    dump.memory.put_words(PERCPU + 0x2000, TOP)
    assert list(dump.facts().cpu_stacks(1)) == [
        Range("irq", TOP + 8 - 0x4000, TOP + 8),
        Range("DF", AREA + 0x1000, AREA + 0x3000),
        Range("NMI", AREA + 0x4000, AREA + 0x6000),
        Range("entry", AREA - 0x1000, AREA),
    ]


def test_the_interrupt_stack_in_pcpu_hot() -> None:
    """From 6.2 to 6.14 the pointer is a member of a per-CPU struct."""
    dump = stacks_dump(pcpu_hot=0x3000)
    dump.types.struct("pcpu_hot", current_task=PTR, hardirq_stack_ptr=PTR)
    dump.memory.put_words(PERCPU + 0x3000, 7, TOP)
    assert next(iter(dump.facts().cpu_stacks(1))) == Range("irq", TOP + 8 - 0x4000, TOP + 8)


# Registers -----------------------------------------------------------------------------------

OFFSET = {name: 8 * PT_REGS.index(name) for name in REGISTERS}


def prstatus(ip: int) -> bytes:
    """A ``struct elf_prstatus`` whose registers are numbered, but for the program counter."""
    words = list(range(100, 127))
    words[16] = ip
    return b"\0" * 112 + struct.pack("<27Q", *words) + b"\0" * 8


def crash_registers(dump: Dump) -> CrashRegisters:
    dump.types.typedef("note_buf_t", "unsigned int [100]")
    dump.types.struct("elf_prstatus", common="char [112]", pr_reg="unsigned long [27]")
    return CrashRegisters(dump.memory.prog, dump.symbols, OFFSET, REGISTERS)  # type: ignore[arg-type]


@pytest.fixture
def running() -> Task:
    """A task on CPU 1."""
    return replace(StackKernel([0] * 8).task(), cpu=1, on_cpu=True)


def test_a_crashing_kernel_saved_its_registers_itself(running: Task) -> None:
    """crash_notes points to a per-CPU note."""
    dump = Dump(crash_notes=0xFFFFFFFF82320000)
    dump.memory.put_words(0xFFFFFFFF82320000, 0x4000)
    dump.memory.put(PERCPU + 0x4000, pack_note("CORE", 1, prstatus(0xABC)).ljust(400, b"\0"))
    found = crash_registers(dump)(running)
    assert found is not None
    assert (found["ip"], found["sp"], found["bp"], found["cs"]) == (0xABC, 119, 104, 117)


@pytest.mark.parametrize(
    "note",
    [
        pytest.param(bytes(400), id="nothing was saved"),
        pytest.param(pack_note("LINUX", 1, prstatus(1)).ljust(400, b"\0"), id="another owner"),
        pytest.param(pack_note("CORE", 3, prstatus(1)).ljust(400, b"\0"), id="another kind"),
    ],
)
def test_a_note_that_is_none(note: bytes) -> None:
    """What is no PRSTATUS is not taken for one."""
    dump = Dump(crash_notes=0xFFFFFFFF82320000)
    dump.memory.put_words(0xFFFFFFFF82320000, 0x4000)
    dump.memory.put(PERCPU + 0x4000, note)
    assert crash_registers(dump)._crash_note(1) is None


def test_a_note_that_is_cut_short_has_no_registers(running: Task) -> None:
    """A PRSTATUS that ends before its registers gives none."""
    dump = Dump(crash_notes=0xFFFFFFFF82320000)
    dump.memory.put_words(0xFFFFFFFF82320000, 0x4000)
    dump.memory.put(PERCPU + 0x4000, pack_note("CORE", 1, b"\0" * 16).ljust(400, b"\0"))
    assert crash_registers(dump)(running) is None


def test_registers_are_those_of_the_files_notes(scanned_x86: Scanned) -> None:
    """For every CPU of a real dump: the registers are the note's at the CPU's place."""
    kernel = scanned_x86.kernel
    start = offsetof(kernel.prog.type("struct elf_prstatus"), "pr_reg")
    dump = opened_dump(kernel.prog)
    assert dump is not None
    notes = [
        note.description for note in iter_notes(dump.notes) if (note.name, note.type) == ("CORE", 1)
    ]
    tasks = [task for task in kernel.tasks if task.on_cpu]
    assert sorted(task.cpu for task in tasks) == list(range(len(notes)))
    for task in tasks:
        found = kernel.cpu_registers(task)
        assert found is not None
        saved = struct.unpack_from("<21Q", notes[task.cpu], start)
        assert found == {name: saved[PT_REGS.index(name)] for name in REGISTERS}


def test_drgn_gives_the_same_registers(scanned_x86: Scanned) -> None:
    """drgn, which is asked where there are no notes, agrees with them."""
    kernel = scanned_x86.kernel
    for task in kernel.tasks:
        if task.on_cpu and isinstance(kernel.cpu_registers, CrashRegisters):
            assert kernel.cpu_registers._from_drgn(task) in (None, kernel.cpu_registers(task))
