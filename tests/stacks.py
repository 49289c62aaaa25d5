# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hand-written x86_64 stacks: a kernel of a few functions whose unwind rules a test spells out.

See :mod:`tests.walkers`; :func:`user_regs` and :func:`kernel_regs` are the words of a
``struct pt_regs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from drgn import FaultError

from drgn_reliable.arch.kernelfacts import Range
from drgn_reliable.arch.x86_64 import STARTUP, Facts, vsyscall_page
from drgn_reliable.arch.x86_orc import OrcUnwinder
from drgn_reliable.tables.orc import Base, Rule, Shape
from drgn_reliable.text import CodeRules
from tests.walkers import FUNCTIONS, INIT_TASK, PLACES, SIZE, FakeKernel, Word, address

IRQ = Range("irq", 0xFFFFC90000100000, 0xFFFFC90000104000)
NMI = Range("NMI", 0xFFFFFE0000010000, 0xFFFFFE0000012000)


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


class FakeFacts(Facts):
    """The facts of a kernel without FRED and KASAN."""

    def __init__(self, fork_return_taken: str) -> None:
        self.regs_size = 168
        self.frame_size, self.frame_bp, self.frame_ip = 56, 40, 48
        self.register_offsets = REG_OFFSETS
        self.thread_size = SIZE
        self.init_task = INIT_TASK
        self.user_regs_below_top = 168
        self._fork_returns = (FUNCTIONS[fork_return_taken], None)
        self.fork_return = FUNCTIONS[fork_return_taken]

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        yield IRQ
        yield NMI


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


class X86Kernel(FakeKernel):
    """What the kernels with either unwinder share."""

    code = CodeRules(lambda code: code[-5] == 0xE8, 8, STARTUP, gate=vsyscall_page)
    call = b"\xe8"


class Kernel(X86Kernel):
    """A kernel with one task, whose stack a test writes: see :class:`tests.walkers.FakeKernel`.

    :param rules: unwind rules that differ from :data:`RULES`.
    :param direct_calls: return addresses with the functions that the calls before them call.
    """

    def __init__(
        self,
        words: Iterable[Word],
        rules: Mapping[str, Rule | None] | None = None,
        *,
        orc_readable: bool = True,
        initialised: bool | None = True,
        frame_pointers: bool | None = False,
        fork_return_taken: str = "ret_from_fork_asm",
        direct_calls: Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        self._direct_calls = direct_calls or {}
        super().__init__(words, FakeFacts(fork_return_taken), **others)
        self.unwinder = OrcUnwinder(
            self.parts,
            FakeOrc({**RULES, **(rules or {})}, orc_readable),  # type: ignore[arg-type]
            initialised=initialised,
            frame_pointers=frame_pointers,
        )

    def put_text(self) -> None:
        super().put_text()
        for place, target in self._direct_calls.items():
            call = address(target) - address(place) & 0xFFFFFFFF
            self.memory.put(address(place) - 5, b"\xe8" + call.to_bytes(4, "little"))
