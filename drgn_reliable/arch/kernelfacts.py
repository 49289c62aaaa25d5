# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's sizes and places that an unwinder needs, and the stacks that there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from drgn import Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import MASK, member_offset, size_of
from drgn_reliable.symbols import Symbols

__all__ = ("KernelFacts", "Range")


class Range(NamedTuple):
    """One stack: ``high`` is one past its last byte."""

    name: str
    low: int
    high: int

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.low <= address < self.high


class KernelFacts:
    """Sizes and places of the dumped kernel that every architecture needs.

    :raises MissingInformation: if a type or symbol is missing.
    """

    registers: ClassVar[Mapping[str, str]]
    """The members of ``struct pt_regs`` that are used, and what drgn calls these registers."""

    file_has_pc: ClassVar[bool] = True
    """Whether QEMU's notes have the program counter: for LoongArch they have the exception return
    address in its place."""

    fork_returns: ClassVar[tuple[str, ...]] = ("ret_from_fork",)

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        self._prog = prog
        self._symbols = symbols
        self.problems: list[str] = []
        """What the types lack of the stacks outside the tasks, one line each."""
        regs = prog.type("struct pt_regs")
        self.regs_size = size_of(regs)
        self.register_offsets = {name: self._offset(regs, name) for name in self.registers}
        start = symbols.first("__start_init_stack", "__start_init_task")
        end = symbols.first("__end_init_stack", "__end_init_task")
        if start is None or end is None:
            raise MissingInformation("the kernel has no symbols around the initial stack")
        self.thread_size: int = end - start
        self.init_task = symbols.required("init_task")
        self.fork_return = symbols.first(*self.fork_returns)
        """Where a task that never ran begins: no call leads there."""

    def note_problem(self, problem: str) -> None:
        """Add a line to :attr:`problems`, unless it is there."""
        if problem not in self.problems:
            self.problems.append(problem)

    def _offset(self, type_: Any, path: str) -> int:
        offset = member_offset(type_, path)
        if offset is None:
            raise MissingInformation(f"{type_.type_name()} has no member {path}")
        return offset

    @property
    def status_offsets(self) -> Mapping[str, int]:
        """Where the registers are within those of an ``NT_PRSTATUS`` note, in bytes: on most
        machines as in ``struct pt_regs``."""
        return self.register_offsets

    def task_stack(self, stack: int) -> Range:
        """Bounds of the task stack at an address."""
        return Range("task", stack, stack + self.thread_size)

    def user_regs(self, stack: int) -> int:
        """``task_pt_regs()``: where an entry from user mode saves the registers."""
        return stack + self.thread_size - self.regs_size

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        """The stacks of a CPU beside the task's.

        :raises drgn.FaultError: if the dump lacks the per-CPU variables.
        :raises MissingInformation: if the types lack what they are in.
        """
        yield from ()

    def per_cpu_base(self, cpu: int) -> int:
        """What is added to the address of a per-CPU variable for a CPU.

        :raises drgn.FaultError: if the dump lacks it.
        """
        place = self._symbols.required("__per_cpu_offset") + 8 * cpu & MASK
        base: int = self._prog.read_u64(place)
        return base
