# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an architecture provides, and what the unwinders of all of them share: the stacks on which
a walk may read, and return addresses that are given back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from drgn import FaultError, Program

from drgn_reliable.arch.kernelfacts import KernelFacts, Range
from drgn_reliable.errors import MissingInformation
from drgn_reliable.frameinfo import FrameInformation
from drgn_reliable.memory import BrokenList, StackMemory, byte_order
from drgn_reliable.model import End, FoundBy, Walk
from drgn_reliable.returns import Cursor, FunctionGraph, ReturnProbes
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.framerule import Abi
from drgn_reliable.tasks import SavedContext, Task
from drgn_reliable.text import CodeRules, Text
from drgn_reliable.walk import State, Unwinder

__all__ = (
    "Architecture",
    "CpuRegisters",
    "Parts",
    "StackRegisters",
    "StackState",
    "StackUnwinder",
)

STACK_END_MAGIC = 0x57AC6E9D
"""The lowest word of a task's stack (include/uapi/linux/magic.h)."""


class StackRegisters:
    """A ``struct pt_regs`` on a stack.

    :param address: where it begins; for a partial one, where the whole would begin.
    """

    __slots__ = ("address", "_stack", "_offsets")

    def __init__(self, stack: StackMemory, address: int, offsets: Mapping[str, int]) -> None:
        self.address = address
        self._stack = stack
        self._offsets = offsets

    def get(self, name: str) -> int | None:
        """A saved register, None if the dump lacks the word."""
        return self._stack.word(self.address + self._offsets[name])

    def flags(self, name: str) -> int | None:
        """A saved register that is no address."""
        return self._stack.number(self.address + self._offsets[name])

    def glance(self, name: str) -> int | None:
        """A saved register that decides nothing."""
        return self._stack.glance(self.address + self._offsets[name])

    def elsewhere(self, name: str) -> int | None:
        """A saved register that decides nothing unless it points into the stack."""
        return self._stack.elsewhere(self.address + self._offsets[name])

    def saved(self, name: str) -> tuple[StackMemory, int]:
        """The stack on which a register is saved, and the address there."""
        return self._stack, self.address + self._offsets[name]

    def holds(self, name: str, value: int) -> bool | None:
        """Whether a saved register has a certain value, where any other tells nothing."""
        return self._stack.holds(self.address + self._offsets[name], value)


class CpuRegisters:
    """The registers of a CPU at the instant of the dump.

    :param values: by the architecture's names.
    """

    __slots__ = ("_values",)

    address = None

    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = values

    def get(self, name: str) -> int | None:
        """A register, None if the dump does not have it."""
        return self._values.get(name)

    flags = glance = elsewhere = get

    def saved(self, name: str) -> None:
        """Where on a stack a register is saved: nowhere."""


@dataclass(frozen=True)
class Parts:
    """What an unwinder is made of.

    :ivar cpu_registers: gives the registers of the CPU that a task runs on, by the names of
        :attr:`KernelFacts.registers`, or None if the dump lacks them.
    """

    prog: Program
    facts: Any
    """The architecture's :class:`KernelFacts`."""
    text: Text
    graph: FunctionGraph
    probes: ReturnProbes
    cpu_registers: Callable[[Task], Mapping[str, int] | None]
    information: FrameInformation = field(default_factory=FrameInformation)


@dataclass(frozen=True)
class Architecture:
    """All that the rest of the package asks of an architecture."""

    name: str
    """``uname -m``."""
    saved: SavedContext
    """What the scheduler saves of a task that it switches out, and where."""
    facts: Callable[[Program, Symbols], KernelFacts]
    code: CodeRules
    unwinder: Callable[[Parts, Symbols], StackUnwinder[Any]]
    """Makes the unwinder of a kernel; raises
    :class:`~drgn_reliable.errors.UnsupportedKernel` if there is none."""


class StackState(State):
    """Where a walk stands and where it may read."""

    __slots__ = ("task", "regs", "registers", "stack", "stacks", "visited", "cursor")

    def __init__(self, task: Task, stack: StackMemory, proving: bool) -> None:
        self.task = task
        self.proving = proving
        self.pc = self.sp = 0
        self.exact = self.done = False
        self.end = End.STOPPED
        self.found_by = FoundBy.SWITCH_FRAME
        self.regs: StackRegisters | CpuRegisters | None = None
        """The exception's registers that gave this frame; None if a call gave it."""
        self.registers: Mapping[int, int] | None = None
        """All registers that call frame information computed for this frame, by DWARF's numbers;
        None where it did not."""
        self.stack = stack
        self.stacks: Sequence[Range] = ()
        """Stacks that the walk may pass to: none for a task that is not running."""
        self.visited = {stack.name}
        self.cursor = Cursor()


S = TypeVar("S", bound=StackState)


class StackUnwinder(Unwinder[S]):
    """The base of every unwinder: it starts, reads, passes from stack to stack, and gives back
    rewritten return addresses, noting what is wrong. How to step is the architecture's.
    """

    ABI: ClassVar[Abi]

    STACK_ORDER: ClassVar[tuple[str, ...]] = ()
    """From the inside out: a walk may pass from a stack only to one named after it. Empty where
    any order is right."""

    sp_is_exact = True
    """Whether the stack pointer of each frame is known, or only a place near it."""

    checks_text = True
    """Whether the kernel refuses a program counter that is not kernel text."""

    frame_pointers = False
    """Whether the kernel was built so that it follows, or with ORC refuses at exceptions for the
    sake of, frame pointers."""

    def __init__(self, parts: Parts) -> None:
        self.stack_memory: Callable[..., StackMemory] = StackMemory
        """Makes the stacks that are read; who explains a walk has others made, which take notes."""
        self._prog = parts.prog
        self._order = byte_order(parts.prog)
        self.facts = parts.facts
        self.text = parts.text
        self._graph = parts.graph
        self._probes = parts.probes
        self._cpu_registers = parts.cpu_registers

    # Start -------------------------------------------------------------------------------

    def task_stack_memory(self, task: Task, used_from: int) -> StackMemory:
        """The task's own stack, of which the part from an address on is used."""
        _, low, high = self.facts.task_stack(task.stack)
        return self._memory(low, high, used_from, "task")

    def note_outside(self, state: S, walk: Walk, sp: int, what: str) -> None:
        """The saved context points away from the task's stack."""
        bounds = f"{state.stack.low:#x}..{state.stack.high:#x}"
        detail = f"{what} {sp:#x} is not within {bounds}"
        walk.note("sp-outside-stack", detail, pc=None, sp=sp, value=sp)
        state.done = True

    def running_registers(self, state: S, walk: Walk, *needed: str) -> CpuRegisters | None:
        """The registers of the CPU on which a task runs; its saved context is stale."""
        task = state.task
        walk.note("running", f"on CPU {task.cpu}", pc=None, sp=None)
        values = self._cpu_registers(task)
        if values is None or any(values.get(name) is None for name in needed):
            walk.note("no-crash-registers", f"CPU {task.cpu}", pc=None, sp=None)
            state.done = True
            return None
        state.found_by = FoundBy.CRASH_REGISTERS
        state.exact = True
        return CpuRegisters(values)

    def enter_first(self, state: S, walk: Walk, sp: int) -> None:
        """Pass to the stack that a running CPU is on."""
        state.visited = set()
        state.stacks = self._stacks_of(state.task)
        if not self.enter(state, walk, sp):
            detail = f"SP {sp:#x} is on no known stack of CPU {state.task.cpu}"
            walk.note("sp-outside-stack", detail, pc=state.pc, sp=sp, value=sp)

    def _stacks_of(self, task: Task) -> list[Range]:
        found = [self.facts.task_stack(task.stack)]
        # If the dump lacks them, a walk that leaves the task's stack says slot-outside-stack.
        try:
            found += self.facts.cpu_stacks(task.cpu)
        except FaultError:
            pass
        except MissingInformation as e:
            self.facts.note_problem(f"stacks outside the tasks: {e}")
        return found

    @cached_property
    def trampolines(self) -> Mapping[int, str]:
        """What tracers put in place of return addresses, and whose each is."""
        found = {self._graph.trampoline: "the function graph tracer's"}
        found[self._probes.trampoline] = "a return probe's"
        return {address: whose for address, whose in found.items() if address is not None}

    @property
    def signs_returns(self) -> bool:
        """Whether return addresses are stored with something that differs from task to task."""
        return False

    def plain_address(self, pc: int) -> int:
        """A return address without what the CPU adds to it."""
        return pc

    def may_stand_for(self, word: int) -> tuple[int, ...]:
        """The program counters that a frame may have for a word that was read, as it is first."""
        return (word, self.plain_address(word))

    def known_registers(self, state: S) -> dict[str, int]:
        """The registers of the frame that the walk keeps, by the names that formulas use."""
        names = ("pc", "fp", "bp", "sp")
        return {name: getattr(state, name) for name in names if hasattr(state, name)}

    def _memory(self, low: int, high: int, used_from: int, name: str) -> StackMemory:
        return self.stack_memory(self._prog, low, high, used_from, name, self._order)

    # Reading stacks ----------------------------------------------------------------------

    def read(self, state: S, walk: Walk, address: int, *, decides: bool = True) -> int | None:
        """A word of an accessible stack; None, with the reason noted, if there is none.

        :param decides: the walk depends on what the word is, not only on its being there.
        """
        word = state.stack.word(address) if decides else state.stack.glance(address)
        return self._read_elsewhere(state, walk, address) if word is None else word

    def peek(self, state: S, address: int) -> int | None:
        """A word of the present stack or of one that the walk may pass to; nothing is noted."""
        word = state.stack.word(address)
        if word is None and any(address in stack for stack in state.stacks):
            with contextlib.suppress(FaultError):
                word = self._prog.read_u64(address)
        return word

    def _read_elsewhere(self, state: S, walk: Walk, address: int) -> int | None:
        if not state.stack.contains(address, 8) and not self.enter(state, walk, address):
            detail = f"{address:#x} is not within an accessible stack"
            walk.note("slot-outside-stack", detail, pc=state.pc, sp=state.sp, value=address)
            return None
        word = state.stack.word(address)
        if word is None:
            self.stop_unreadable(state, walk, address)
        return word

    def stop_unreadable(self, state: S, walk: Walk, address: int, detail: str = "") -> None:
        """The dump lacks memory that the next step needs, or gives it without an end."""
        detail = detail or f"{address:#x} is not in the dump"
        walk.note("memory-unreadable", detail, pc=state.pc or None, sp=state.sp, value=address)
        state.done = True

    def enter(self, state: S, walk: Walk, address: int, size: int = 8) -> bool:
        """Pass to the stack that holds an address, if that is allowed (``get_stack_info()``)."""
        target = next((r for r in state.stacks if address in r), None)
        if target is None or address + size > target.high:
            return False
        if target.name in state.visited:
            detail = f"{address:#x} is on the {target.name} stack again"
            walk.note("stack-visited-twice", detail, pc=state.pc, sp=state.sp, value=address)
            return False
        self._note_order(state, walk, target, address)
        state.visited.add(target.name)
        state.stack = self._memory(target.low, target.high, address, target.name)
        return True

    def _note_order(self, state: S, walk: Walk, target: Range, address: int) -> None:
        order = self.STACK_ORDER
        if not order:
            return
        left = state.stack.name if state.visited else order[0]
        if order.index(target.name) < order.index(left):
            detail = f"from the {left} stack to the {target.name} stack"
            walk.note("stack-order", detail, pc=state.pc, sp=state.sp, value=address)

    # Exceptions (4.3) --------------------------------------------------------------------

    def note_boundary(self, state: S, walk: Walk, why: str = "") -> None:
        """The frame was interrupted. It may not have saved its return address yet, which only
        metadata for every instruction would tell: then its caller is missing from the chain.

        :param why: there is none that decides it.
        """
        at = state.regs.address if state.regs else None
        what = "an exception's registers" if at is not None else "the CPU's registers"
        detail = what if at is None else f"{what} at {at:#x}"
        detail += f"; {why}" if why else ""
        walk.note("exception-boundary", detail, pc=state.pc, sp=state.sp)

    # Rewritten return addresses (4.4) ----------------------------------------------------

    def traced_return(
        self,
        state: S,
        walk: Walk,
        key: int,
        missing: str = "fgraph-unrecovered",
        *,
        looked_up: bool = True,
    ) -> int | None:
        """The return address that the function graph tracer replaced, by the key that it stored;
        the trampoline's own, with a reason noted, if there is no such entry, and None if the
        dump lacks the list.

        :param looked_up: the task has a list, as far as the kernel asks.
        """
        try:
            pc = self._graph.find(state.task, state.cursor, key) if looked_up else None
        except FaultError as e:
            self.stop_unreadable(state, walk, e.address)
            return None
        except BrokenList as e:
            self.stop_unreadable(state, walk, e.address, f"the tracer's {e}")
            return None
        if pc is None:
            detail = f"no entry for {key:#x} on the tracer's stack"
            walk.note(missing, detail, pc=state.pc, sp=state.sp, value=key)
            return self._graph.trampoline
        state.found_by = FoundBy.FUNCTION_GRAPH
        return pc

    def probed_return(
        self, state: S, walk: Walk, key: int, *, looked_up: bool = True
    ) -> int | None:
        """The return address that a return probe replaced, by the key that it stored; None, with
        the reason noted, if there is no such entry.

        :param looked_up: the kernel looks for it too.
        """
        if looked_up and self._probes.refuses_runnable and state.task.run_state == 0:
            detail = f"the return address at {key:#x} belongs to a kretprobe"
            walk.note("rethook-task-runnable", detail, pc=state.pc, sp=state.sp, value=key)
        try:
            pc = self._probes.find(state.task, state.cursor, key)
        except FaultError as e:
            self.stop_unreadable(state, walk, e.address)
            return None
        if pc is None:
            detail = f"no probed return is recorded for {key:#x}"
            walk.note("rethook-unrecovered", detail, pc=state.pc, sp=state.sp, value=key)
        state.found_by = FoundBy.KRETPROBE
        if pc is not None and pc == self._graph.trampoline:
            return self._traced_beneath(state, walk, key)
        return pc

    def _traced_beneath(self, state: S, walk: Walk, key: int) -> int | None:
        """The tracer came first, the probe second: the kernel undoes them in the other order
        only, and goes on at the tracer's trampoline."""
        detail = f"the probed return address at {key:#x} was the tracer's already"
        walk.note("fgraph-beneath-kretprobe", detail, pc=state.pc, sp=state.sp, value=key)
        return self.traced_return(state, walk, key) if state.proving else self._graph.trampoline

    def check_records(self, state: S, walk: Walk) -> None:
        """See that every return address that a tracer keeps for the task has been given back, once:
        one that is left over belongs to a function that the walk did not come by."""
        if state.end is End.STOPPED:
            return
        counts = (
            ("fgraph-entries-mismatch", self._graph.recorded, state.cursor.graph_found),
            ("rethook-entries-mismatch", self._probes.recorded, state.cursor.probes_found),
        )
        for reason, recorded, found in counts:
            with contextlib.suppress(FaultError, BrokenList):
                count = recorded(state.task)
                if count != found:
                    detail = f"{count} return addresses are recorded, {found} were met"
                    walk.note(reason, detail, pc=None, sp=None, value=count)

    # Ends --------------------------------------------------------------------------------

    def excuses(self, doubt: str, state: S) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`. The boot CPU's idle task started the kernel
        and keeps frames in init text."""
        return doubt == "init-text-freed" and bool(state.task.address == self.facts.init_task)

    def finish(self, state: S, walk: Walk) -> None:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        self.check_records(state, walk)
        self._check_magic(state.task, walk)

    def is_undisturbed(self, task: Task) -> bool:
        """Whether :meth:`finish` would find nothing that belongs to the task rather than to its
        walk: a return address that a tracer keeps, or an overwritten end of the stack."""
        try:
            recorded = self._graph.recorded(task) or self._probes.recorded(task)
        except (FaultError, BrokenList):
            return False
        return not recorded and self._magic(task) in (STACK_END_MAGIC, None)

    def _magic(self, task: Task) -> int | None:
        """The lowest word of the task's stack, None if the dump lacks it."""
        try:
            found: int = self._prog.read_u64(task.stack)
        except FaultError:
            return None
        return found

    def _check_magic(self, task: Task, walk: Walk) -> None:
        """See whether the lowest word of the task's stack is still what it was."""
        magic = self._magic(task)
        if magic not in (STACK_END_MAGIC, None):
            detail = f"{magic:#x} at {task.stack:#x}, expected {STACK_END_MAGIC:#x}"
            walk.note("stack-end-overwritten", detail, pc=None, sp=task.stack, value=magic)
