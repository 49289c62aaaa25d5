# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: the facts that every unwinder of the architecture shares, and a CPU's stacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from drgn import Program

from drgn_reliable.arch.kernelfacts import KernelFacts, Range
from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import (
    MASK,
    member_offset,
    member_type,
    named_type,
    number_at,
    size_of,
)
from drgn_reliable.model import CodeRole
from drgn_reliable.roles import CodeNames
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.framerule import Abi

__all__ = ("ABI", "Facts", "direct_call_target", "ends_call", "vsyscall_page")

LONGEST_CALL = 8
"""Bytes before a return address that are looked at for a call instruction."""

VSYSCALL_PAGE = 0xFFFFFFFFFF600000
"""The gate area of ``in_gate_area_no_mm()``, one page, unless ``vsyscall=none``."""
_VSYSCALL_NONE = 2

FORK_RETURN = ("ret_from_fork_asm", "ret_from_fork")
"""Where a task that never ran begins; only the latter, then assembly, before 6.6 (commit
3aec4ecb3d1f)."""

STARTUP = (
    "startup_64",
    "secondary_startup_64",
    "secondary_startup_64_no_verify",
    "common_startup_64",
    "soft_restart_cpu",
)
"""Assembly in which the stacks of the idle tasks begin (arch/x86/kernel/head_64.S)."""

IDLE_TOP_SLACK = 256
"""Idle stacks begin within this many bytes of the stack's end: below ``struct pt_regs``, and on
secondary CPUs below the fork frame too."""

THREAD_SIZE = 16384
IRQ_STACK_SIZE = 16384
"""Bytes without KASAN, which doubles both."""

EXCEPTION_STACKS = ("DF", "NMI", "DB", "MCE", "VC", "VC2")
"""Each is the member ``NAME_stack`` of ``struct cea_exception_stacks``."""

STACK_ORDER = ("entry", "DF", "MCE", "NMI", "DB", "VC2", "VC", "irq", "task")
"""From the inside out: a walk may pass from a stack only to one named after it."""

FRED_ENTRY = "asm_fred_entrypoint_user"
FRED_PADDING = 16
"""Bytes that a kernel built with FRED (6.9) leaves above the user registers."""

ABI = Abi(
    names={
        **dict(enumerate(("ax", "dx", "cx", "bx", "si", "di", "bp", "sp"))),
        **{i: f"r{i}" for i in range(8, 16)},
    },
    sp=7,
    fp=6,
    ra=16,
    preserved=(3, 6, 12, 13, 14, 15),
    links=False,
)

REGISTERS: Mapping[str, str] = {
    **{name: name if name[1:].isdigit() else f"r{name}" for name in ABI.names.values()},
    "ip": "rip",
    "cs": "cs",
}
"""The members of ``struct pt_regs`` that are used, and what drgn calls these registers. The
registers in an ``NT_PRSTATUS`` note begin in the same order (``struct user_regs_struct``)."""

USER_MODE = 3
"""Privilege level bits of CS."""

NAMES = CodeNames(
    exact={"ret_from_fork_asm": CodeRole.ENTRY},
    patterns={
        # arch/x86/lib/retpoline.S: what replaces indirect branches and returns.
        r"__x86_(indirect|return)_.*": CodeRole.THUNK,
        r"(retbleed|srso|srso_alias|zen|entry)_untrain_ret": CodeRole.THUNK,
        r"(retbleed|srso|srso_alias|its|call_depth)_return_thunk": CodeRole.THUNK,
        r"srso_(alias_)?safe_ret": CodeRole.THUNK,
    },
)
"""The rest of the entry code is between ``__entry_text_start`` and ``__entry_text_end``."""


def ends_call(code: bytes) -> bool:
    """Whether 8 bytes of code end with a near call: direct, or through a register or memory.

    >>> ends_call(bytes.fromhex("909090 e8 00000000"))
    True
    >>> ends_call(bytes.fromhex("9090909090 41ffd4"))
    True
    >>> ends_call(bytes.fromhex("9090 ff1425 00000010"))
    True
    >>> ends_call(bytes.fromhex("9090909090909090"))
    False
    """
    if code[-5] == 0xE8:
        return True
    return any(
        code[-length] == 0xFF and _indirect_call_size(code[-length + 1 :]) == length
        for length in (2, 3, 4, 6, 7)
    )


def direct_call_target(code: bytes, pc: int) -> int | None:
    """Where the five bytes of code before ``pc`` call to, None if they are no direct call.

    >>> hex(direct_call_target(bytes.fromhex("e8 fb0f0000"), 0x1005))
    '0x2000'
    """
    if code[0] != 0xE8:
        return None
    return pc + int.from_bytes(code[1:], "little", signed=True) & MASK


def _indirect_call_size(operand: bytes) -> int:
    """Bytes of a ``ff /2`` instruction with this ModRM (and SIB) byte, 0 if it is another."""
    mode, opcode, memory = operand[0] >> 6, operand[0] >> 3 & 7, operand[0] & 7
    if opcode != 2:
        return 0
    if mode == 3:
        return 2
    has_sib = memory == 4
    base = operand[1] & 7 if has_sib and len(operand) > 1 else memory
    displacement = (4 if base == 5 else 0, 1, 4)[mode]
    return 2 + has_sib + displacement


class Facts(KernelFacts):
    """Sizes and places of the dumped kernel.

    :raises MissingInformation: if a type or symbol is missing.
    """

    registers = REGISTERS
    fork_returns = FORK_RETURN

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        super().__init__(prog, symbols)
        frame = prog.type("struct inactive_task_frame")
        self.frame_size = size_of(frame)
        self.frame_bp = self._offset(frame, "bp")
        self.frame_ip = self._offset(frame, "ret_addr")
        self.user_regs_below_top = self.regs_size
        if symbols.address(FRED_ENTRY) is not None:
            self.user_regs_below_top += FRED_PADDING
        self._fork_returns = tuple(symbols.address(name) for name in FORK_RETURN)
        self._unwind_start = 0
        if None not in self._fork_returns:
            self._unwind_start = symbols.required("__unwind_start")

    def is_fork_return(self, pc: int) -> bool:
        """Whether ``__unwind_start()`` knows a task that never ran by an address.

        :raises drgn.FaultError: if the dump lacks the code that tells.
        """
        return pc in self._fork_returns and pc == self._compared_fork_return

    @cached_property
    def _compared_fork_return(self) -> int | None:
        """From 6.6 on, until they took over commit 3bf19a0fb690, kernels compare with the C
        function ``ret_from_fork`` and so look up the byte before ``ret_from_fork_asm``. Which
        of the two a kernel compares with is read off the function's code.
        """
        assembly, function = self._fork_returns
        if assembly is None or function is None:
            return self.fork_return
        start = self._unwind_start
        code = self._prog.read(start, 0x300)
        only_function = _refers_to(code, start, function) and not _refers_to(code, start, assembly)
        return function if only_function else assembly

    def user_regs(self, stack: int) -> int:
        """``task_pt_regs()``: where an entry from user mode saves the registers."""
        return stack + self.thread_size - self.user_regs_below_top

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        """The stacks of a CPU beside the task's (arch/x86/kernel/dumpstack_64.c).

        :raises drgn.FaultError: if the dump lacks the per-CPU variables.
        """
        prog, symbols = self._prog, self._symbols
        base = self.per_cpu_base(cpu)
        yield from self._irq_stack(base)
        exceptions = symbols.address("cea_exception_stacks")
        area = prog.read_u64(exceptions + base & MASK) if exceptions is not None else 0
        if area:
            for name, offset, size in self._entry_area:
                yield Range(name, area + offset & MASK, (area + offset & MASK) + size)

    @cached_property
    def _entry_area(self) -> list[tuple[str, int, int]]:
        """Name, place and size of the exception stacks and the entry stack of a CPU, counted from
        its ``struct cea_exception_stacks``, which is a part of ``struct cpu_entry_area``."""
        found = []
        try:
            stacks = self._prog.type("struct cea_exception_stacks")
            for name in EXCEPTION_STACKS:
                offset = member_offset(stacks, f"{name}_stack")
                if offset is not None:
                    found.append((name, offset, size_of(member_type(stacks, f"{name}_stack"))))
            area = self._prog.type("struct cpu_entry_area")
            exceptions, entry = (member_offset(area, n) for n in ("estacks", "entry_stack_page"))
            if exceptions is not None and entry is not None:
                size = size_of(member_type(area, "entry_stack_page"))
                found.append(("entry", entry - exceptions, size))
        except (LookupError, MissingInformation) as e:
            self.problems.append(f"exception and entry stacks of the CPUs: {e}")
        return found

    def _irq_stack(self, base: int) -> Iterator[Range]:
        """The pointer is to the stack's top-most word (6.2 to 6.14: a member of ``pcpu_hot``)."""
        place = self._symbols.address("hardirq_stack_ptr")
        hot = self._symbols.address("pcpu_hot")
        if place is None and hot is not None:
            offset = member_offset(named_type(self._prog, "struct pcpu_hot"), "hardirq_stack_ptr")
            place = None if offset is None else hot + offset
        top = self._prog.read_u64(place + base & MASK) if place is not None else 0
        if top:
            size = IRQ_STACK_SIZE * self.thread_size // THREAD_SIZE
            yield Range("irq", top + 8 - size, top + 8)


def vsyscall_page(prog: Program, symbols: Symbols) -> tuple[int, int] | None:
    """First address of the page that the kernel takes for text though no kernel function is
    there, and the address behind it; None if it is switched off."""
    mode = number_at(prog, symbols.address("vsyscall_mode"), 4)
    if mode is None or mode == _VSYSCALL_NONE:
        return None  # what is not known to be text is none
    return VSYSCALL_PAGE, VSYSCALL_PAGE + 4096


def _refers_to(code: bytes, start: int, target: int) -> bool:
    """Whether code at an address has a 32-bit operand, absolute or relative to the next
    instruction, that names the target."""
    absolute = (target & 0xFFFFFFFF).to_bytes(4, "little")
    if absolute in code:
        return True
    return any(
        start + i + 4 + int.from_bytes(code[i : i + 4], "little", signed=True) == target
        for i in range(len(code) - 4)
    )
