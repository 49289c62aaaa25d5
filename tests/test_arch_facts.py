# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is learnt of an arm64, s390x or powerpc64 kernel before its stacks are walked: places,
sizes, stacks, registers, and which instructions are calls. x86_64 is in test_x86_facts.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from drgn import FaultError, Object

from drgn_reliable.arch import arm64, ppc64, s390x, x86_64
from drgn_reliable.arch.kernelfacts import KernelFacts, Range
from drgn_reliable.errors import MissingInformation
from drgn_reliable.model import TaskKind
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes
from tests.walkers import sleeping_task

LONG = "unsigned long"
INIT_STACK = 0xFFFF800081000000
STACK = 0xFFFF800080050000
PERCPU = 0xFFFF00007EC00000
OFFSETS = 0xFFFF800082310000
SIZE = 0x4000
SYMBOLS = {
    "__start_init_stack": INIT_STACK,
    "__end_init_stack": INIT_STACK + SIZE,
    "init_task": 0xFFFF800082A00000,
    "__per_cpu_offset": OFFSETS,
    "ret_from_fork": 0xFFFF800080015678,
}


class Dump:
    """Memory, types and symbols of a small kernel."""

    def __init__(self, symbols: dict[str, int], *, little_endian: bool = True) -> None:
        self.memory = FakeMemory(little_endian=little_endian)
        self.types = FakeTypes(self.memory.prog)
        self.symbols = FakeSymbols({**SYMBOLS, **symbols})
        self.memory.put_words(OFFSETS, 0, PERCPU)

    def facts(self, make: Callable[..., Any]) -> Any:
        return make(self.memory.prog, self.symbols)


def sizes_of_stacks(facts: KernelFacts, cpu: int) -> list[tuple[str, int]]:
    return [(stack.name, stack.high - stack.low) for stack in facts.cpu_stacks(cpu)]


# arm64 ---------------------------------------------------------------------------------------

VMCOREINFO = "OSRELEASE=7.2.0\nNUMBER(VA_BITS)=48\nNUMBER(KERNELPACMASK)=0xff7f000000000000\n"
IRQ, NORMAL, CRITICAL = 0xFFFF800080010000, 0xFFFF800080020000, 0xFFFF800080030000
EFI_TOP = 0xFFFF800080044000
ARM64_SYMBOLS = {
    "irq_stack_ptr": 0x1000,
    "overflow_stack": 0x2000,
    "sdei_stack_normal_ptr": 0x3000,
    "sdei_stack_critical_ptr": 0x3008,
    "efi_rt_stack_top": 0xFFFF800082320000,
}


def arm64_dump(
    symbols: dict[str, int] = ARM64_SYMBOLS, *, meta: bool = True, vmcoreinfo: str = VMCOREINFO
) -> Dump:
    """An arm64 kernel with a record in its registers that has a type, or with one that has none."""
    dump = Dump(symbols)
    dump.types.struct("frame_record", fp=LONG, lr=LONG)
    dump.types.struct("frame_record_meta", record="struct frame_record", type=LONG)
    members = {"regs": "unsigned long [31]", "sp": LONG, "pc": LONG, "pstate": LONG}
    members |= {"orig_x0": LONG, "syscallno": "int", "pmr": "unsigned int", "sdei_ttbr1": LONG}
    members["stackframe"] = "struct frame_record_meta" if meta else "unsigned long [2]"
    dump.types.struct("pt_regs", **members)
    prog = dump.memory.prog

    def find(prog: Any, name: str, flags: Any, filename: str | None) -> Any:
        text = vmcoreinfo.encode()
        return Object(prog, prog.array_type(prog.type("char"), len(text) + 1), value=text)

    prog.register_object_finder("test", find, enable_index=0)
    dump.memory.put_words(PERCPU + 0x1000, IRQ)
    dump.memory.put_words(PERCPU + 0x3000, NORMAL, CRITICAL)
    dump.memory.put_words(ARM64_SYMBOLS["efi_rt_stack_top"], EFI_TOP)
    return dump


def test_arm64_registers_and_the_last_record() -> None:
    """x29 and x30 are elements of an array; the record is a member since 4.10."""
    facts = arm64_dump().facts(arm64.Facts)
    others = {f"x{i}": 8 * i for i in range(29)}
    named = {"sp": 248, "pc": 256, "pstate": 264, "fp": 232, "lr": 240}
    assert facts.register_offsets == others | named
    assert facts.status_offsets == facts.register_offsets
    assert facts.regs_size == 320
    assert facts.user_regs(STACK) == STACK + SIZE - 320
    assert facts.final_record(STACK) == STACK + SIZE - 24


@pytest.mark.parametrize("meta", [True, False])
def test_arm64_knows_by_the_members_type_whether_records_have_one(meta: bool) -> None:
    """A struct since 6.13, an array of two words before."""
    assert arm64_dump(meta=meta).facts(arm64.Facts).has_meta is meta


@pytest.mark.parametrize(
    ("vmcoreinfo", "mask"),
    [
        pytest.param(VMCOREINFO, 0xFF7F000000000000, id="a kernel with authentication codes"),
        pytest.param("NUMBER(KERNELPACMASK)=0x0\n", 0, id="a machine that makes none"),
        pytest.param("OSRELEASE=6.1.0\n", 0, id="a kernel that makes none"),
    ],
)
def test_arm64_mask_of_authentication_codes(vmcoreinfo: str, mask: int) -> None:
    """VMCOREINFO has the bits of an address that hold one."""
    assert arm64_dump(vmcoreinfo=vmcoreinfo).facts(arm64.Facts).pac_mask == mask


def test_arm64_stacks_of_a_cpu() -> None:
    """Interrupts and SDEI have stacks by a pointer to their start, the EFI runtime one by a pointer
    to its end, and the overflow stack is a per-CPU variable itself, of 4 KiB."""
    assert list(arm64_dump().facts(arm64.Facts).cpu_stacks(1)) == [
        Range("irq", IRQ, IRQ + SIZE),
        Range("overflow", PERCPU + 0x2000, PERCPU + 0x3000),
        Range("sdei_stack_normal", NORMAL, NORMAL + SIZE),
        Range("sdei_stack_critical", CRITICAL, CRITICAL + SIZE),
        Range("efi", EFI_TOP - SIZE, EFI_TOP),
    ]


def test_arm64_stacks_that_are_not_there() -> None:
    """A kernel without SDEI and EFI, and one that has not set them up."""
    symbols = {name: ARM64_SYMBOLS[name] for name in ("irq_stack_ptr", "overflow_stack")}
    assert sizes_of_stacks(arm64_dump(symbols).facts(arm64.Facts), 1) == [
        ("irq", SIZE),
        ("overflow", 4096),
    ]
    dump = arm64_dump()
    dump.memory.put_words(PERCPU + 0x3000, 0, 0)
    dump.memory.put_words(ARM64_SYMBOLS["efi_rt_stack_top"], 0)
    assert [stack.name for stack in dump.facts(arm64.Facts).cpu_stacks(1)] == ["irq", "overflow"]


def test_arm64_stacks_that_the_dump_lacks() -> None:
    """What lacks a pointer says so; the caller goes on with the stacks before it."""
    with pytest.raises(FaultError):
        list(arm64_dump().facts(arm64.Facts).cpu_stacks(0))


# s390x ---------------------------------------------------------------------------------------

LOWCORES, LOWCORE = 0x3FFE0C3A10, 0xFC8A000
ASYNC, NODAT, MCCK, RESTART = 0x37FE0010000, 0xFD80000, 0xFD84000, 0xFD88000


def s390x_dump(**lowcore: str) -> Dump:
    """An s390x kernel; its words are big-endian."""
    dump = Dump({"lowcore_ptr": LOWCORES}, little_endian=False)
    dump.types.struct("psw_t", mask=LONG, addr=LONG)
    dump.types.struct(
        "pt_regs", args="unsigned long [1]", psw="struct psw_t", gprs="unsigned long [16]",
        orig_gpr2=LONG, int_code="unsigned int", int_parm="unsigned int", int_parm_long=LONG,
        flags=LONG, cr1=LONG, last_break=LONG,
    )  # fmt: skip
    if not lowcore:
        lowcore = dict.fromkeys(s390x.LOWCORE_STACKS, LONG)
    dump.types.struct("lowcore", pad="char [840]", **lowcore)
    dump.memory.put_words(LOWCORES, LOWCORE - 0x2000, LOWCORE)
    return dump


def test_s390x_registers() -> None:
    """A note has the PSW and the general registers first, pt_regs has arguments before them."""
    facts = s390x_dump().facts(s390x.Facts)
    general = {f"r{i}": 8 * i for i in range(16)}
    assert facts.register_offsets == {
        "psw.mask": 8,
        "psw.addr": 16,
        **{name: 24 + at for name, at in general.items()},
    }
    assert facts.status_offsets == {
        "psw.mask": 0,
        "psw.addr": 8,
        **{name: 16 + at for name, at in general.items()},
    }
    assert facts.user_regs(STACK) == STACK + SIZE - facts.regs_size
    assert facts.task_stack(STACK) == Range("task", STACK, STACK + SIZE)


def test_s390x_stacks_of_a_cpu() -> None:
    """The lowcore has where each stack begins: below a frame and registers at its end."""
    dump = s390x_dump()
    facts = dump.facts(s390x.Facts)
    begins = SIZE - 160 - facts.regs_size
    starts = [place + begins for place in (ASYNC, NODAT, MCCK, RESTART)]
    dump.memory.put_words(LOWCORE + 840, *starts)
    assert list(facts.cpu_stacks(1)) == [
        Range("async", ASYNC, ASYNC + SIZE),
        Range("nodat", NODAT, NODAT + SIZE),
        Range("mcck", MCCK, MCCK + SIZE),
        Range("restart", RESTART, RESTART + SIZE),
    ]


def test_s390x_stacks_that_are_not_there() -> None:
    """A pointer that is not set, a lowcore without a member, a kernel without lowcores."""
    dump = s390x_dump(async_stack=LONG, restart_stack=LONG)
    dump.memory.put_words(LOWCORE + 840, 0, RESTART + 0x3000)
    facts = dump.facts(s390x.Facts)
    assert sizes_of_stacks(facts, 1) == [("restart", SIZE)]
    dump.symbols = FakeSymbols(SYMBOLS)
    assert list(dump.facts(s390x.Facts).cpu_stacks(1)) == []


def test_s390x_stacks_that_the_dump_lacks() -> None:
    """A lowcore that is not in the dump is no stack."""
    with pytest.raises(FaultError):
        list(s390x_dump().facts(s390x.Facts).cpu_stacks(0))


# powerpc64 -----------------------------------------------------------------------------------

PACAS, PACA, CONTEXTS = 0xC000000002400000, 0xC00000003FFFC000, 0xC000000002410000
WALK = 0xC00000000002C610
HARDIRQ, SOFTIRQ = 0xC000000002040000, 0xC000000002044000
PPC64_SYMBOLS = {
    "arch_stack_walk_reliable": WALK,
    "paca_ptrs": PACAS,
    "hardirq_ctx": CONTEXTS,
    "softirq_ctx": CONTEXTS + 16,
}
SINCE_6_4 = {"start_kernel_thread": 0xC00000000000D000}
REGS = 384


def load(register: int, offset: int, base: int) -> int:
    """``ld register, offset(base)``."""
    return 58 << 26 | register << 21 | base << 16 | offset


NEW_CODE = [
    load(0, 16, 1), load(31, 32, 3), load(30, 0, 31), load(9, 32, 31), load(29, 16, 31),
]  # fmt: skip
"""What the walk of 6.12 loads: of its own frame, the task, and of a frame on the stack."""
OLD_CODE = [
    load(0, 16, 1), load(31, 32, 3), load(30, 0, 31), load(9, 96, 31), load(29, 16, 31),
]  # fmt: skip


def ppc64_dump(code: list[int] | None = NEW_CODE, **symbols: int) -> Dump:
    dump = Dump({**PPC64_SYMBOLS, **symbols})
    members = {"nip": LONG, "msr": LONG, "orig_gpr3": LONG, "ctr": LONG, "link": LONG}
    rest = dict.fromkeys(("xer", "ccr", "softe", "trap", "dar", "dsisr", "result"), LONG)
    dump.types.struct("pt_regs", gpr="unsigned long [32]", **members, **rest, pad="long [4]")
    dump.types.struct("thread_struct", ksp=LONG, more="char [1336]")
    dump.types.struct(
        "paca_struct", lppaca_ptr=LONG, emergency_sp="void *", nmi_emergency_sp="void *",
        mc_emergency_sp="void *",
    )  # fmt: skip
    if code is not None:
        nops = [0x60000000] * (128 - len(code))
        dump.memory.put_u32(WALK, *code, *nops)
    return dump


def test_ppc64_registers() -> None:
    """r1 is an element of an array, in a note as on a stack."""
    facts = ppc64_dump(**SINCE_6_4).facts(ppc64.Facts)
    general = {f"r{i}": 8 * i for i in range(32)}
    assert facts.register_offsets == {"nip": 256, "msr": 264, "link": 288, **general}
    assert facts.status_offsets == facts.register_offsets
    assert (facts.regs_size, facts.thread_struct_size) == (REGS, 1344)


@pytest.mark.parametrize(
    ("code", "symbols", "old"),
    [
        pytest.param(NEW_CODE, SINCE_6_4, False, id="6.4: the marker at 32"),
        pytest.param(NEW_CODE, {}, False, id="6.2: the marker at 32, kernel threads as before"),
        pytest.param(OLD_CODE, {}, True, id="6.1: the marker at 96"),
        pytest.param(None, SINCE_6_4, False, id="no code: by what else is new"),
        pytest.param([0x60000000], {}, True, id="code that tells nothing"),
        pytest.param([*NEW_CODE, *OLD_CODE], SINCE_6_4, False, id="code that tells both"),
        pytest.param(
            [load(9, 96, 1), load(0, 16, 1), load(3, 0, 1), *NEW_CODE], {}, False,
            id="what is loaded from the walk's own frame tells nothing",
        ),
        pytest.param(
            [load(9, 96, 13), load(9, 16, 13), *NEW_CODE], {}, False,
            id="nor what is loaded from another place than a frame",
        ),
        pytest.param(
            [load(30, 0, 31), load(9, 97, 31), load(29, 16, 31)], SINCE_6_4, False,
            id="ldu is another instruction",
        ),
    ],
)  # fmt: skip
def test_ppc64_knows_the_frames_of_exceptions_by_the_walks_code(
    code: list[int] | None, symbols: dict[str, int], old: bool
) -> None:
    """From a frame the walk loads the back chain, the return address and the marker."""
    facts = ppc64_dump(code, **symbols).facts(ppc64.Facts)
    assert facts.old_layout is old
    assert (facts.marker_at, facts.regs_at) == ((96, 112) if old else (32, 48))
    assert facts.user_frame_size == REGS + facts.regs_at
    assert facts.exception_frame_size == REGS + facts.regs_at + 288


def test_ppc64_without_the_code_that_tells_is_not_walked() -> None:
    """Nothing else tells 6.1 from 6.2, and registers that are not found are passed by."""
    with pytest.raises(MissingInformation, match="code of arch_stack_walk_reliable at 0x"):
        ppc64_dump(None).facts(ppc64.Facts)


def test_ppc64_without_a_walk_is_old_or_not_by_what_else_there_is() -> None:
    """A kernel without livepatching may lack the walk."""
    dump = ppc64_dump(None)
    dump.symbols = FakeSymbols(SYMBOLS)
    assert dump.facts(ppc64.Facts).old_layout


@pytest.mark.parametrize(
    ("code", "symbols", "user", "kthread", "idle"),
    [
        pytest.param(NEW_CODE, SINCE_6_4, REGS + 48, 32, 32, id="since 6.4"),
        pytest.param(NEW_CODE, {}, REGS + 48, REGS + 48, 32, id="6.2 and 6.3"),
        pytest.param(OLD_CODE, {}, REGS + 112, REGS + 112, 112, id="before 6.2"),
    ],
)
def test_ppc64_where_stacks_end(
    code: list[int], symbols: dict[str, int], user: int, kthread: int, idle: int
) -> None:
    """How far below the top of its stack the outermost frame of a task of each kind is."""
    facts = ppc64_dump(code, **symbols).facts(ppc64.Facts)
    ends = {kind: facts.stack_end(sleeping_task(0, stack=STACK, kind=kind)) for kind in TaskKind}
    assert ends == {
        TaskKind.USER: STACK + SIZE - user,
        TaskKind.KTHREAD: STACK + SIZE - kthread,
        TaskKind.IDLE: STACK + SIZE - idle,
    }
    assert facts.user_regs(STACK) == STACK + SIZE - REGS


def test_ppc64_stacks_of_a_cpu() -> None:
    """Interrupts have stacks by their start, emergencies by their end in the CPU's paca."""
    dump = ppc64_dump()
    dump.memory.put_words(CONTEXTS, 0, HARDIRQ, 0, SOFTIRQ)
    dump.memory.put_words(PACAS, PACAS + 64)
    dump.memory.put_words(PACAS + 64, 0, PACA)
    tops = [0xC000000002100000 + SIZE * i for i in (1, 2, 3)]
    dump.memory.put_words(PACA + 8, *tops)
    assert list(dump.facts(ppc64.Facts).cpu_stacks(1)) == [
        Range("hardirq", HARDIRQ, HARDIRQ + SIZE),
        Range("softirq", SOFTIRQ, SOFTIRQ + SIZE),
        Range("emergency", tops[0] - SIZE, tops[0]),
        Range("nmi_emergency", tops[1] - SIZE, tops[1]),
        Range("mc_emergency", tops[2] - SIZE, tops[2]),
    ]
    with pytest.raises(FaultError):
        list(dump.facts(ppc64.Facts).cpu_stacks(2))


def test_ppc64_stacks_that_are_not_there() -> None:
    """A paca without a member, pointers that are not set, a kernel without pacas."""
    dump = ppc64_dump()
    dump.types.struct("paca_struct", lppaca_ptr=LONG, emergency_sp="void *")
    dump.memory.put_words(CONTEXTS, 0, 0, 0, SOFTIRQ)
    dump.memory.put_words(PACAS, PACAS + 64)
    dump.memory.put_words(PACAS + 64, 0, PACA)
    dump.memory.put_words(PACA + 8, 0)
    assert sizes_of_stacks(dump.facts(ppc64.Facts), 1) == [("softirq", SIZE)]
    dump.symbols = FakeSymbols(SYMBOLS)
    assert list(dump.facts(ppc64.Facts).cpu_stacks(1)) == []


# All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dump", "make"),
    [
        pytest.param(arm64_dump, arm64.Facts, id="arm64"),
        pytest.param(s390x_dump, s390x.Facts, id="s390x"),
        pytest.param(ppc64_dump, ppc64.Facts, id="powerpc64"),
    ],
)
def test_what_is_missing_is_named(dump: Callable[[], Dump], make: Callable[..., Any]) -> None:
    """A symbol or a member that every kernel has and this one lacks."""
    kernel = dump()
    kernel.symbols = FakeSymbols({"init_task": 1})
    with pytest.raises(MissingInformation, match="initial stack"):
        kernel.facts(make)
    kernel = dump()
    kernel.types.struct("pt_regs", nothing=LONG)
    with pytest.raises(MissingInformation, match="struct pt_regs has no member"):
        kernel.facts(make)


@pytest.mark.parametrize(
    ("dump", "make"),
    [
        pytest.param(arm64_dump, arm64.Facts, id="arm64"),
        pytest.param(s390x_dump, s390x.Facts, id="s390x"),
        pytest.param(ppc64_dump, ppc64.Facts, id="powerpc64"),
    ],
)
def test_where_a_task_that_never_ran_begins(
    dump: Callable[[], Dump], make: Callable[..., Any]
) -> None:
    assert dump().facts(make).fork_return == SYMBOLS["ret_from_fork"]


# Calls ---------------------------------------------------------------------------------------


def word(code: int, order: str = "<") -> bytes:
    return struct.pack(order + "I", code)


ARM64_CALLS = {
    "bl forward": 0x94000001,
    "bl back": 0x97FFFFFF,
    "blr x0": 0xD63F0000,
    "blr x19": 0xD63F0260,
    "blr x30": 0xD63F03C0,
    "blraaz x0": 0xD63F081F,
    "blrabz x8": 0xD63F0D1F,
    "blraa x0, x1": 0xD73F0801,
    "blrab x16, sp": 0xD73F0E1F,
}
ARM64_OTHERS = {
    "b": 0x14000001,
    "b back": 0x17FFFFFF,
    "br x16": 0xD61F0200,
    "braaz x0": 0xD61F081F,
    "ret": 0xD65F03C0,
    "retaa": 0xD65F0BFF,
    "eret": 0xD69F03E0,
    "nop": 0xD503201F,
    "svc #0": 0xD4000001,
    "cbz x0": 0xB4000040,
    "tbz x0, #0": 0x36000040,
    "stp x29, x30, [sp, #-16]!": 0xA9BF7BFD,
    "paciasp": 0xD503233F,
    "zero": 0,
}


@pytest.mark.parametrize("name", ARM64_CALLS)
def test_arm64_calls(name: str) -> None:
    assert arm64.ends_call(word(ARM64_CALLS[name]))


@pytest.mark.parametrize("name", ARM64_OTHERS)
def test_arm64_what_is_no_call(name: str) -> None:
    assert not arm64.ends_call(word(ARM64_OTHERS[name]))


S390X_CALLS = {
    "brasl %r14": "c0e500001234",
    "brasl %r14, back": "c0e5fffff000",
    "bras %r14": "0707a7e50010",
    "basr %r14,%r1": "070707070de1",
    "basr %r14,%r14": "070707070dee",
    "jg, to which ftrace patches": "c0f400000100",
}
S390X_OTHERS = {
    "br %r14": "0707070707fe",
    "brasl %r0, ftrace's": "c00500001234",
    "brcl 0, a nop": "c00400000000",
    "larl %r14": "c0e000001234",
    "basr %r13,%r0": "070707070dd0",
    "bras %r1": "0707a7150010",
    "brc 15": "0707a7f40010",
    "nops": "070707070707",
    "stmg %r6,%r15,72(%r15)": "eb6ff0480024",
    "zeroes": "000000000000",
}


@pytest.mark.parametrize("name", S390X_CALLS)
def test_s390x_calls(name: str) -> None:
    assert s390x.ends_call(bytes.fromhex(S390X_CALLS[name]))


@pytest.mark.parametrize("name", S390X_OTHERS)
def test_s390x_what_is_no_call(name: str) -> None:
    assert not s390x.ends_call(bytes.fromhex(S390X_OTHERS[name]))


PPC64_CALLS = {
    "bl forward": 0x48000101,
    "bl back": 0x4BFFFF01,
    "bctrl": 0x4E800421,
    "blrl": 0x4E800021,
    "bctrl, hinted": 0x4C800421 | 20 << 21,
    "beqlrl": 0x4D820021,
}
PPC64_OTHERS = {
    "b": 0x48000100,
    "ba": 0x48000102,
    "blr": 0x4E800020,
    "bctr": 0x4E800420,
    "beq": 0x41820010,
    "bc, not linking": 0x42000010,
    "nop": 0x60000000,
    "ld r2,24(r1)": 0xE8410018,
    "mflr r0": 0x7C0802A6,
    "sc": 0x44000002,
    "rfid": 0x4C000024,
    "isync": 0x4C00012C,
    "zero": 0,
}


@pytest.mark.parametrize("name", PPC64_CALLS)
def test_ppc64_calls(name: str) -> None:
    assert ppc64.ends_call(word(PPC64_CALLS[name]))


@pytest.mark.parametrize("name", PPC64_OTHERS)
def test_ppc64_what_is_no_call(name: str) -> None:
    assert not ppc64.ends_call(word(PPC64_OTHERS[name]))


X86_CALLS = {
    "call rel32": "909090 e8 00000000",
    "call *%rax": "909090909090 ffd0",
    "call *%r12": "9090909090 41ffd4",
    "call *8(%rax)": "9090909090 ff5008",
    "call *0x100(%rbx)": "9090 ff9300010000",
    "call *0x10(%r12)": "909090 41ff542410",
    "call *table(,%rax,8)": "90 ff14c500000081",
    "call *(%rip)": "9090 ff1510000000",
}
X86_OTHERS = {
    "jmp rel32": "909090 e9 00000000",
    "jmp *%rax": "909090909090 ffe0",
    "push %rax by ff /6": "909090909090 fff0",
    "ret": "90909090909090 c3",
    "int3": "cccccccccccccccc",
    "zeroes": "0000000000000000",
}


@pytest.mark.parametrize("name", X86_CALLS)
def test_x86_calls(name: str) -> None:
    assert x86_64.ends_call(bytes.fromhex(X86_CALLS[name]))


@pytest.mark.parametrize("name", X86_OTHERS)
def test_x86_what_is_no_call(name: str) -> None:
    assert not x86_64.ends_call(bytes.fromhex(X86_OTHERS[name]))
