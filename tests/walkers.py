# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hand-written stacks of every architecture share: a kernel of a few functions with one
task, and a table row that says what is expected of its stack.

A stack is written as the words from the saved stack pointer up to the top. ``"schedule+8"`` is an
address in a function, :class:`Up` is an address counted from the word itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from drgn import FaultError

from drgn_reliable.arch.base import Parts
from drgn_reliable.frameinfo import FrameInformation, Source
from drgn_reliable.generated import BpfText, KprobePage
from drgn_reliable.judge import kernel_answer, proof_answer
from drgn_reliable.model import FoundBy, TaskKind
from drgn_reliable.modules import Module, ModuleList, Region
from drgn_reliable.report import merged_reasons
from drgn_reliable.returns import Cursor
from drgn_reliable.tables.framerule import FrameRule
from drgn_reliable.tasks import Task
from drgn_reliable.text import CodeRules, Text
from drgn_reliable.walk import walk_task
from tests.fakes import FakeMemory, FakeSymbols

STACK = 0xFFFFC90000010000
SIZE = 0x4000
TOP = STACK + SIZE
TASK = 0xFFFF888000001000
INIT_TASK = 0xFFFFFFFF82A00000
TEXT = 0xFFFFFFFF81000000
MAGIC = 0x57AC6E9D

FUNCTIONS = {
    name: TEXT + 0x100 * i
    for i, name in enumerate(
        (
            "__schedule", "schedule", "foo", "bar", "noreturn_call", "sys_read", "entry",
            "asm_interrupt", "kthread", "ret_from_fork", "ret_from_fork_asm", "return_to_handler",
            "arch_rethook_trampoline", "common_startup_64", "undefined", "leaf",
            "livepatch_handler",
        )
    )
}  # fmt: skip
INIT_TEXT = 0xFFFFFFFF83000000
MODULE = 0xFFFFFFFFC0000000
KPROBE_PAGE = 0xFFFFFFFFC0100000
OPTPROBE_PAGE = 0xFFFFFFFFC0200000
BPF = 0xFFFFFFFFC0300000
VSYSCALL = 0xFFFFFFFFFF600000
PLACES = {
    **FUNCTIONS,
    "start_kernel": INIT_TEXT,
    "module": MODULE,
    "kprobe": KPROBE_PAGE,
    "optprobe": OPTPROBE_PAGE,
    "bpf": BPF,
    "vsyscall": VSYSCALL,
    "nowhere": 0xFFFFFFFFA0000000,
}
TEXTS = (TEXT, MODULE, KPROBE_PAGE, OPTPROBE_PAGE, BPF, VSYSCALL)

Word = Any


class Up(NamedTuple):
    """The address of the word that stands so many words further up the stack, and some bytes."""

    words: int
    bytes: int = 0


HERE = Up(0)
"""The address of the word itself."""


def address(word: Word, place: int = 0) -> int:
    """The number that a word stands for, which is written at a place."""
    if isinstance(word, Up):
        return place + 8 * word.words + word.bytes
    if isinstance(word, str):
        name, _, offset = word.partition("+")
        return PLACES[name] + int(offset or "0", 0)
    return int(word)


@dataclass
class Tracer:
    """Stands for FunctionGraph and ReturnProbes: real addresses by the slot's place."""

    trampoline: int | None
    counter: str
    """The member of the cursor that counts what was found."""
    returns: Mapping[int, int] = field(default_factory=dict)
    refuses_runnable: bool = True
    readable: bool = True

    def find(self, task: Task, cursor: Cursor, slot: int) -> int | None:
        if not self.readable:
            raise FaultError("shadow stack", 0xFFFF888000002000)
        found = self.returns.get(slot)
        setattr(cursor, self.counter, getattr(cursor, self.counter) + (found is not None))
        return found

    def recorded(self, task: Task) -> int:
        return len(self.returns)


@dataclass
class FakeProvider:
    """Call frame information for a few addresses."""

    name: str
    rules: Mapping[str, FrameRule]

    def find(self, at: int) -> FrameRule | None:
        return next((rule for word, rule in self.rules.items() if address(word) == at), None)


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


class FakeKernel:
    """A kernel with one task, whose stack a test writes. An architecture's adds :attr:`unwinder`.

    :param words: the stack from the saved stack pointer to the top.
    :param facts: the architecture's facts of it.
    :param graph, probes: real return addresses by the index of the word at whose address they are
        looked up; by None for those whose key is 0.
    :param refuses_runnable: the flavour of return probes: rethook, not kretprobe.
    :param shadow_readable: whether the dump has the lists of real return addresses.
    :param hole: indices of words whose page the dump lacks.
    :param more: other memory: address to words.
    :param no_call: a return address before and at which there is no call instruction.
    :param patched: other code, by the address where it begins.
    :param registers: of the CPU, for a running task; None if the dump has none.
    :param frame_rules: of each provider of call frame information, by the address looked up.
    """

    little_endian: ClassVar[bool] = True
    code: ClassVar[CodeRules]
    call: ClassVar[bytes]
    """Instructions that are calls wherever they are cut; the text consists of them."""

    unwinder: Any

    def __init__(
        self,
        words: Iterable[Word],
        facts: Any,
        *,
        graph: Mapping[int | None, Word] | None = None,
        probes: Mapping[int | None, Word] | None = None,
        refuses_runnable: bool = True,
        shadow_readable: bool = True,
        registers: Mapping[str, Word] | None = None,
        no_call: str = "",
        patched: Mapping[str, bytes] | None = None,
        magic: int = MAGIC,
        hole: range = range(0),
        more: Mapping[int, list[Word]] | None = None,
        frame_rules: Sequence[Mapping[str, FrameRule]] = (),
    ) -> None:
        words = list(words)
        self.sp = TOP - 8 * len(words)
        self.memory = memory = FakeMemory(little_endian=self.little_endian)
        self._put_stack(words, magic, hole)
        for place, row in (more or {}).items():
            memory.put_words(place, *[address(word, place + 8 * i) for i, word in enumerate(row)])
        self.put_text()
        if no_call:
            memory.put(address(no_call) - 8, bytes(12))
        for name, code in (patched or {}).items():
            memory.put(address(name), code)
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
            symbols,
            modules,
            FakeGenerated(),  # type: ignore[arg-type]
            self.code,
            trampolines,
        )
        tracers = [
            Tracer(
                trampoline,
                counter,
                {
                    0 if i is None else self.sp + 8 * i: address(word)
                    for i, word in (found or {}).items()
                },
                refuses_runnable,
                shadow_readable,
            )
            for trampoline, counter, found in zip(
                trampolines, ("graph_found", "probes_found"), (graph, probes), strict=True
            )
        ]
        sources = [
            Source(FakeProvider(f"provider {i}", rows), FoundBy.DWARF, FoundBy.DWARF_LINK)
            for i, rows in enumerate(frame_rules)
        ]
        saved = None
        if registers is not None:
            saved = {name: address(word) for name, word in registers.items()}
        self.parts = Parts(
            memory.prog,
            facts,
            text,
            *tracers,  # type: ignore[arg-type]
            lambda task: saved,
            FrameInformation(lambda address: sources),
        )

    def put_text(self) -> None:
        """Code, all of it calls."""
        for start in TEXTS:
            self.memory.put(start - 8, self.call * (0x1800 // len(self.call)))

    def _put_stack(self, words: Sequence[Word], magic: int, hole: range) -> None:
        data = [0] * (SIZE // 8 - len(words)) + [
            address(word, self.sp + 8 * i) for i, word in enumerate(words)
        ]
        data[0] = magic
        skipped = {(self.sp + 8 * i - STACK) // 4096 for i in hole}
        for page in range(SIZE // 4096):
            if page not in skipped:
                self.memory.put_words(STACK + 4096 * page, *data[512 * page : 512 * (page + 1)])

    def task(self, **members: Any) -> Task:
        """The task, asleep unless a test says otherwise."""
        return sleeping_task(self.sp, **members)


def sleeping_task(sp: int, **members: Any) -> Task:
    """A task that was switched out at a stack pointer, but for these members."""
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
        "saved_sp": sp,
        "saved_pc": 0,
        "saved_fp": 0,
        "ret_stack": 0,
        "ret_stack_used": 0,
        "return_hooks": 0,
        "kind": TaskKind.USER,
    }
    named = {name: address(value, sp) for name, value in members.items() if name in SAVED}
    return Task(**{**defaults, **members, **named})


SAVED = ("saved_sp", "saved_pc", "saved_fp")
"""Members of a task that may be written as a word, counted from the stack pointer."""


@dataclass
class Case:
    """One stack and what is said of it."""

    claim: str
    words: list[Any]
    frames: list[str | None]
    """Of the proof."""
    kernel: str = "reliable"
    proof: str = "proven"
    reasons: list[str] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    entries: list[str | None] | None = None
    """Where the kernel, though content, saw other frames than the proof."""


def functions(walk: Any) -> list[str | None]:
    """The names of a walk's frames."""
    return [frame.code.symbol for frame in walk.frames]


def check(case: Case, kernel: FakeKernel, *, again: bool, supported: bool = True) -> None:
    """Frames, both verdicts and the reasons of one stack.

    :param again: walk as a walk does that has seen the same frames before.
    :param supported: whether the kernel has a reliable stack trace.
    """
    task = kernel.task(**case.task)
    if again:
        walk_task(kernel.unwinder, task, proving=True)
    walk = walk_task(kernel.unwinder, task)
    proof = walk_task(kernel.unwinder, task, proving=True)
    answer = kernel_answer(walk, running=task.on_cpu, supported=supported)
    assert functions(proof) == case.frames
    assert [reason.id for reason in merged_reasons(walk, proof)] == case.reasons
    assert answer.verdict.value == case.kernel
    assert proof_answer(proof).verdict.value == case.proof
    if case.kernel == "reliable":
        assert functions(walk) == (case.frames if case.entries is None else case.entries)
        assert answer.entries == tuple(frame.pc for frame in walk.frames)
    else:
        assert answer.entries == ()
