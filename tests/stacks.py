# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hand-written x86_64 stacks: a kernel of a few functions whose unwind rules a test spells out.

A stack is written as the words from the saved stack pointer up to the top. ``"schedule+5"`` is
an address in a function, :func:`user_regs` and :func:`kernel_regs` are the words of a
``struct pt_regs``, and :data:`HERE` is the address of the word itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from drgn import FaultError

from drgn_reliable.arch.base import Parts, Range
from drgn_reliable.arch.x86_64 import STARTUP, Facts, vsyscall_page
from drgn_reliable.arch.x86_orc import OrcUnwinder
from drgn_reliable.generated import BpfText, KprobePage
from drgn_reliable.model import TaskKind
from drgn_reliable.modules import Module, ModuleList, Region
from drgn_reliable.tables.orc import Base, Rule, Shape
from drgn_reliable.tasks import Task
from drgn_reliable.text import CodeRules, Text
from tests.fakes import FakeMemory, FakeSymbols

STACK = 0xFFFFC90000010000
SIZE = 0x4000
TOP = STACK + SIZE
TASK = 0xFFFF888000001000
INIT_TASK = 0xFFFFFFFF82A00000
TEXT = 0xFFFFFFFF81000000
MAGIC = 0x57AC6E9D
IRQ = Range("irq", 0xFFFFC90000100000, 0xFFFFC90000104000)
NMI = Range("NMI", 0xFFFFFE0000010000, 0xFFFFFE0000012000)

FUNCTIONS = {
    name: TEXT + 0x100 * i
    for i, name in enumerate(
        (
            "__schedule", "schedule", "foo", "bar", "noreturn_call", "sys_read", "entry",
            "asm_interrupt", "kthread", "ret_from_fork", "ret_from_fork_asm", "return_to_handler",
            "arch_rethook_trampoline", "common_startup_64", "undefined", "leaf",
        )
    )
}  # fmt: skip
INIT_TEXT = 0xFFFFFFFF83000000
MODULE = 0xFFFFFFFFC0000000
KPROBE_PAGE = 0xFFFFFFFFC0100000
OPTPROBE_PAGE = 0xFFFFFFFFC0200000
BPF = 0xFFFFFFFFC0300000
PLACES = {
    **FUNCTIONS,
    "start_kernel": INIT_TEXT,
    "module": MODULE,
    "kprobe": KPROBE_PAGE,
    "optprobe": OPTPROBE_PAGE,
    "bpf": BPF,
    "vsyscall": 0xFFFFFFFFFF600000,
    "nowhere": 0xFFFFFFFFA0000000,
}

HERE = object()
Word = Any


def call(sp: int, *, bp: int | None = None, exact: bool = False) -> Rule:
    """A C function's frame: the return address below ``SP + sp``, BP saved at ``CFA + bp``."""
    saved = (Base.UNDEFINED, 0) if bp is None else (Base.PREV_SP, bp)
    return Rule(Shape.CALL, exact, Base.SP, sp, *saved)


CALL = call(8)
"""A frame that holds nothing but its return address."""
END = Rule(Shape.END, False, Base.UNDEFINED, 0, Base.UNDEFINED, 0)
UNDEFINED = Rule(Shape.UNDEFINED, False, Base.UNDEFINED, 0, Base.UNDEFINED, 0)
REGS = Rule(Shape.REGS, True, Base.SP, 0, Base.UNDEFINED, 0)
PARTIAL = Rule(Shape.REGS_PARTIAL, True, Base.SP, 0, Base.UNDEFINED, 0)

RULES: dict[str, Rule | None] = {
    **dict.fromkeys(FUNCTIONS, CALL),
    "entry": REGS,
    "asm_interrupt": REGS,
    "ret_from_fork_asm": END,
    "common_startup_64": END,
    "return_to_handler": UNDEFINED,
    "arch_rethook_trampoline": UNDEFINED,
    "undefined": UNDEFINED,
    "start_kernel": CALL,
    "module": CALL,
    "kprobe": None,
    "optprobe": None,
    "bpf": None,
    "vsyscall": CALL,
    "nowhere": None,
}

REG_OFFSETS = {name: 8 * i for name, i in (
    ("r13", 2), ("bp", 4), ("r10", 7), ("ax", 10), ("dx", 12), ("di", 14), ("ip", 16), ("cs", 17),
    ("sp", 19),
)}  # fmt: skip


def regs(ip: Word, sp: Word, cs: int, **others: Word) -> list[Word]:
    """The 21 words of a ``struct pt_regs``."""
    words: list[Word] = [0] * 21
    for name, value in {"ip": ip, "sp": sp, "cs": cs, **others}.items():
        words[REG_OFFSETS[name] // 8] = value
    return words


def user_regs() -> list[Word]:
    """Registers of user mode, as a system call saves them."""
    return regs(0x7F0000001000, 0x7FFF00000000, 0x33)


def kernel_regs(ip: Word, sp: Word = 0, **others: Word) -> list[Word]:
    """Registers of an interrupt taken in kernel mode."""
    return regs(ip, sp, 0x10, **others)


def iret_frame(ip: Word, sp: Word, cs: int = 0x10) -> list[Word]:
    """The five words that the CPU pushes."""
    return [ip, cs, 0x246, sp, 0x18]


def switch_frame(ip: Word, bp: Word = 0) -> list[Word]:
    """A ``struct inactive_task_frame``."""
    return [0, 0, 0, 0, 0, bp, ip]


def address(word: Word) -> int:
    """The number that a word stands for."""
    if isinstance(word, str):
        name, _, offset = word.partition("+")
        return PLACES[name] + int(offset or "0", 0)
    return int(word)


@dataclass
class Tracer:
    """Stands for FunctionGraph and ReturnProbes: real addresses by the slot's place."""

    trampoline: int | None
    returns: Mapping[int, int] = field(default_factory=dict)
    refuses_runnable: bool = True
    readable: bool = True

    def find(self, task: Task, cursor: object, slot: int) -> int | None:
        if not self.readable:
            raise FaultError("shadow stack", 0xFFFF888000002000)
        return self.returns.get(slot)


class FakeFacts(Facts):
    """The facts of a kernel without FRED and KASAN."""

    def __init__(self, fork_return_taken: str) -> None:
        self.regs_size = 168
        self.frame_size, self.frame_bp, self.frame_ip = 56, 40, 48
        self.register_offsets = REG_OFFSETS
        self.thread_size = SIZE
        self.init_task = INIT_TASK
        self.user_regs_below_top = 168
        self.fork_return_taken = FUNCTIONS[fork_return_taken]

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        yield IRQ
        yield NMI


class FakeGenerated:
    """One page of kprobe slots, one of optprobe slots and one BPF program."""

    def ftrace(self, address: int) -> None:
        return None

    def kprobe(self, address: int) -> KprobePage | None:
        pages = (
            KprobePage(OPTPROBE_PAGE, OPTPROBE_PAGE + 4096, True),
            KprobePage(KPROBE_PAGE, KPROBE_PAGE + 4096, False),
        )
        return next((p for p in pages if p.start <= address < p.end), None)

    def bpf(self, address: int) -> BpfText | None:
        program = BpfText(BPF, BPF + 0x100, "bpf_prog", 0, 0)
        return program if program.start <= address <= program.last else None


class FakeOrc:
    """Rules by function."""

    format = SimpleNamespace(name="rules of a test")

    def __init__(self, rules: Mapping[str, Rule | None], readable: bool) -> None:
        self._rules = sorted(
            ((PLACES[name], rule) for name, rule in rules.items()), key=lambda row: row[0]
        )
        self._readable = readable

    def find(self, address: int) -> Rule | None:
        if not self._readable:
            raise FaultError("unwind table", 0xFFFFFFFF82000000)
        found = [rule for start, rule in self._rules if start <= address]
        return found[-1] if found else None


class Kernel:
    """A kernel with one task, whose stack a test writes.

    :param words: the stack from the saved stack pointer to the top.
    :param rules: unwind rules that differ from :data:`RULES`.
    :param graph, probes: real return addresses by the index of the word that holds them.
    :param holes: indices of words whose page the dump lacks.
    :param more: other memory: address to words.
    :param direct_calls: return addresses with the functions that the calls before them call.
    :param no_call: a return address before which there is no call instruction.
    :param registers: of the CPU, for a running task; None if the dump has none.
    """

    def __init__(
        self,
        words: Iterable[Word],
        rules: Mapping[str, Rule | None] | None = None,
        *,
        graph: Mapping[int, Word] | None = None,
        probes: Mapping[int, Word] | None = None,
        refuses_runnable: bool = True,
        shadow_readable: bool = True,
        orc_readable: bool = True,
        initialised: bool = True,
        frame_pointers: bool = False,
        fork_return_taken: str = "ret_from_fork_asm",
        registers: Mapping[str, Word] | None = None,
        no_call: str = "",
        direct_calls: Mapping[str, str] | None = None,
        magic: int = MAGIC,
        hole: range = range(0),
        more: Mapping[int, list[Word]] | None = None,
    ) -> None:
        words = list(words)
        self.sp = TOP - 8 * len(words)
        memory = FakeMemory()
        self._put_stack(memory, words, magic, hole)
        for place, row in (more or {}).items():
            memory.put_words(place, *map(address, row))
        for start in (TEXT, MODULE, KPROBE_PAGE, OPTPROBE_PAGE, BPF, PLACES["vsyscall"]):
            memory.put(start - 8, b"\xe8" * 0x1800)  # a call ends at every address
        for place, target in (direct_calls or {}).items():
            call = address(target) - address(place) & 0xFFFFFFFF
            memory.put(address(place) - 5, b"\xe8" + call.to_bytes(4, "little"))
        if no_call:
            memory.put(address(no_call) - 8, b"\x90" * 8)
        symbols = FakeSymbols(
            {
                "_stext": TEXT,
                "_etext": TEXT + 0x10000,
                "_sinittext": INIT_TEXT,
                "_einittext": INIT_TEXT + 0x1000,
                "vsyscall_mode": 0xFFFFFFFF82000000,
            },
            {**FUNCTIONS, "start_kernel": INIT_TEXT},
        )
        memory.put_u32(0xFFFFFFFF82000000, 0)
        modules = ModuleList(memory.prog, None)
        region = Region(MODULE, MODULE + 0x1000, text=True, init=False)
        modules._modules.append(Module(0xFFFFFFFFC0008000, "mod", (region,), 0, 0, 0, 0))
        trampolines = [FUNCTIONS["return_to_handler"], FUNCTIONS["arch_rethook_trampoline"]]
        text = Text(
            memory.prog,
            symbols,  # type: ignore[arg-type]
            modules,
            FakeGenerated(),  # type: ignore[arg-type]
            CodeRules(lambda code: code[-5] == 0xE8, 8, STARTUP, gate=vsyscall_page),
            trampolines,
        )
        tracers = [
            Tracer(
                trampoline,
                {self.sp + 8 * i: address(word) for i, word in (found or {}).items()},
                refuses_runnable,
                shadow_readable,
            )
            for trampoline, found in zip(trampolines, (graph, probes), strict=True)
        ]
        saved = None
        if registers is not None:
            saved = {name: address(word) for name, word in registers.items()}
        self.unwinder = OrcUnwinder(
            Parts(
                memory.prog,
                FakeFacts(fork_return_taken),
                text,
                *tracers,  # type: ignore[arg-type]
                lambda task: saved,
            ),
            FakeOrc({**RULES, **(rules or {})}, orc_readable),  # type: ignore[arg-type]
            initialised=initialised,
            frame_pointers=frame_pointers,
        )

    def _put_stack(self, memory: FakeMemory, words: list[Word], magic: int, hole: range) -> None:
        data = [0] * (SIZE // 8 - len(words)) + [
            TOP - 8 * (len(words) - i) if word is HERE else address(word)
            for i, word in enumerate(words)
        ]
        data[0] = magic
        skipped = {(self.sp + 8 * i - STACK) // 4096 for i in hole}
        for page in range(SIZE // 4096):
            if page not in skipped:
                memory.put_words(STACK + 4096 * page, *data[512 * page : 512 * (page + 1)])

    def task(self, **members: Any) -> Task:
        """The task, asleep unless a test says otherwise."""
        defaults: dict[str, Any] = {
            "address": TASK,
            "pid": 42,
            "tgid": 42,
            "cpu": 0,
            "comm": "task",
            "run_state": 1,
            "exit_state": 0,
            "on_cpu": False,
            "stack": STACK,
            "stack_references": 1,
            "saved_sp": self.sp,
            "saved_pc": 0,
            "saved_fp": 0,
            "ret_stack": 0,
            "ret_stack_used": 0,
            "return_hooks": 0,
            "kind": TaskKind.USER,
        }
        return Task(**{**defaults, **members})
