# SPDX-License-Identifier: LGPL-2.1-or-later
"""loongarch64 with the ORC unwinder: steps as arch/loongarch/kernel/unwind_orc.c does, from 6.12 to
7.3, which crosses exceptions and checks neither direction nor repetition.

The kernel starts from the caller of ``__schedule()``, whose stack pointer and return address are
saved apart, but takes for its frame pointer the one of ``__schedule()`` itself (``thread.reg22``).
The first frame that is found by the frame pointer, ``do_syscall()``'s, leads it back to the start:
its traces of many tasks in system calls go through the same functions twice (seen in 7.2: the dump
loongarch64-7.2). To prove, a walk starts in ``__schedule()``, where all registers are those that
were saved. Entries are the addresses of the calls, four bytes before the return addresses, but for
the first and those that registers give.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from drgn import FaultError, Program

from drgn_reliable.arch.base import Architecture, Parts, StackRegisters, StackState, StackUnwinder
from drgn_reliable.arch.kernelfacts import KernelFacts, Range
from drgn_reliable.errors import MissingInformation, UnsupportedKernel
from drgn_reliable.memory import MASK, Layout, StackMemory
from drgn_reliable.model import CodeKind, CodeRole, End, FoundBy, Walk
from drgn_reliable.roles import CodeNames, Pages
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.framerule import Abi
from drgn_reliable.tables.orc import OrcTables
from drgn_reliable.tasks import SavedContext, Task
from drgn_reliable.text import CodeRules

__all__ = ("ARCHITECTURE", "FORMAT", "Facts", "LoongArchRule", "LoongArchUnwinder", "ends_call")

INSTRUCTION = 4
"""``LOONGARCH_INSN_SIZE``, in bytes."""
USER_MODE = 3
"""Privilege level bits of ``csr_prmd``."""
IRQ_STACK_START = 16
"""Bytes below the end of an interrupt stack, where it begins; the task's stack pointer is there."""
VECTOR_SIZE = 0x200
FIRST_INTERRUPT = 64
"""``EXCCODE_INT_START``: the number of the first interrupt's vector."""
VECTORS = 128
"""As many as ``exception_handlers`` has room for."""
USED_VECTORS = 78
"""``EXCCODE_INT_END``: of those behind it the kernel does not know the handler."""
CPU_LIMIT = 1 << 13
"""More than any kernel is built for."""

HEADER = "d9f45aafc6d2a2889d601ec9e3fe1092dac249dc"
"""What is at ``__start_orc_header``, in hex (scripts/orc_hash.sh): the one layout there is."""

REGISTERS: Mapping[str, str] = {"csr_era": "csr_era", "csr_prmd": "csr_prmd"}
"""Members of ``struct pt_regs``. drgn knows no registers of this architecture."""
ABI = Abi(
    names={
        **{i: f"r{i}" for i in range(32)},
        1: "ra",
        3: "sp",
        22: "fp",
    },
    sp=3,
    fp=22,
    ra=1,
    preserved=range(22, 32),
)
"""Its numbers are those of the elements of the array ``regs``."""

SETTLED_DOUBTS = ("fgraph-returning", "rethook-returning")
"""Advisory reasons about code that unwind data decide."""

NAMES = CodeNames(
    patterns={
        # genex.S and tlbex.S: the handlers, of which the vectors are copies.
        r"handle_(vint|ade|ale|bce|bp|fpe|fpu|lsx|lasx|lbt|ri|watch|reserved|sys|tlb_.*)"
        r"|except_vec_cex|tlb_do_page_fault_[01]|tlb_huge_update_.*": CodeRole.VECTORS,
        r"handle_syscall|ret_from_(fork|kernel_thread)_asm": CodeRole.ENTRY,
    },
    vectors=(
        Pages("eentry", VECTORS * VECTOR_SIZE),
        Pages("pcpu_handlers", VECTORS * VECTOR_SIZE, "nr_cpu_ids"),
    ),
    sections={".plt": CodeRole.PLT, ".ftrace_trampoline": CodeRole.PLT},
)

UNDEFINED, PREV_SP, SP, FP = range(4)
"""``ORC_REG_*``."""
TYPE_UNDEFINED, TYPE_END, TYPE_CALL, TYPE_REGS = range(4)
"""``ORC_TYPE_*``."""


def ends_call(code: bytes) -> bool:
    """Whether 4 bytes of code are BL, or JIRL with ra for the return address.

    >>> ends_call(bytes.fromhex("00100054")), ends_call(bytes.fromhex("8101004c"))
    (True, True)
    >>> ends_call(bytes.fromhex("2000004c"))
    False
    """
    word = int.from_bytes(code, "little")
    return word >> 26 == 0x15 or (word >> 26 == 0x13 and word & 0x1F == 1)


class LoongArchRule(NamedTuple):
    """``struct orc_entry``, 8 bytes."""

    sp_offset: int
    fp_offset: int
    ra_offset: int
    sp_register: int
    fp_register: int
    ra_register: int
    type: int

    def formula(self) -> str:
        """As a person writes it.

        >>> LoongArchRule(32, -16, -8, SP, PREV_SP, PREV_SP, TYPE_CALL).formula()
        'cfa = sp + 32, pc = *(cfa - 8), fp = *(cfa - 16)'
        """
        if self.type in _NO_CALLER:
            return _NO_CALLER[self.type]
        base = {SP: _sum("sp", self.sp_offset), FP: "fp"}.get(self.sp_register, "unknown")
        pc = f"pc = *(cfa - {-self.ra_offset})" if self.ra_register == PREV_SP else "pc = ra"
        text = f"cfa = {base}, {'struct pt_regs at cfa' if self.type == TYPE_REGS else pc}"
        return text + (f", fp = *(cfa - {-self.fp_offset})" if self.fp_register == PREV_SP else "")


def _sum(name: str, offset: int) -> str:
    return f"{name} {'-' if offset < 0 else '+'} {abs(offset)}" if offset else name


_NO_CALLER = {TYPE_UNDEFINED: "not unwindable", TYPE_END: "the end of the stack"}

GUESS = LoongArchRule(16, -16, -8, FP, PREV_SP, PREV_SP, TYPE_CALL)
"""For code without an entry (``orc_fp_entry``)."""
NULL_CALL = LoongArchRule(8, 0, 0, SP, UNDEFINED, UNDEFINED, TYPE_CALL)
"""For a program counter of 0 (``orc_null_entry``)."""


class _Format:
    """See :class:`drgn_reliable.tables.orc.EntryFormat`."""

    name = "ORC (LoongArch)"
    size = 8
    null_call = NULL_CALL
    frame_pointer = GUESS

    def decode(self, entry: bytes) -> LoongArchRule:
        sp_offset, fp_offset, ra_offset, flags = struct.unpack("<3hH", entry)
        registers = (flags & 0xF, flags >> 4 & 0xF, flags >> 8 & 0xF)
        return LoongArchRule(sp_offset, fp_offset, ra_offset, *registers, flags >> 12 & 7)


FORMAT = _Format()


class Facts(KernelFacts):
    """Sizes and places of the dumped kernel."""

    registers = REGISTERS
    file_has_pc = False
    fork_returns = ("ret_from_fork_asm", "ret_from_fork")

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        super().__init__(prog, symbols)
        array = self._offset(prog.type("struct pt_regs"), "regs")
        self.register_offsets |= {name: array + 8 * i for i, name in ABI.names.items()}
        self.fake_offset = self.regs_size - self.register_offsets["ra"]
        """``GRAPH_FAKE_OFFSET``: what the tracer's key is below the frame address."""

    def switched_from(self, task: int) -> tuple[int, int]:
        """Return address and stack pointer in ``__schedule()``; zeroes if the dump lacks them."""
        try:
            found = self._switched.read(self._prog, task)
        except FaultError:
            return 0, 0
        return found["pc"], found["sp"]

    @cached_property
    def _switched(self) -> Layout:
        members = {"pc": "thread.reg01", "sp": "thread.reg03"}
        return Layout(self._prog.type("struct task_struct"), members)

    def cpu_stacks(self, cpu: int) -> Iterator[Range]:
        """See :class:`drgn_reliable.arch.kernelfacts.KernelFacts`: the interrupt stack."""
        place = self._symbols.address("irq_stack")
        low = self._prog.read_u64(place + self.per_cpu_base(cpu) & MASK) if place else 0
        if low:
            yield Range("irq", low, low + self.thread_size - IRQ_STACK_START)

    def called_at(self, pc: int) -> int:
        """The handler's address for one in the copy that the exception vectors have of it
        (``bt_address()``); any other as it is."""
        for start in self._vector_pages:
            if start <= pc < start + VECTORS * VECTOR_SIZE:
                number, offset = divmod(pc - start, VECTOR_SIZE)
                if number >= USED_VECTORS:
                    return pc
                handler = self._handlers.get(min(number, FIRST_INTERRUPT))
                return pc if handler is None else handler + offset
        return pc

    @cached_property
    def _vector_pages(self) -> list[int]:
        """Where the vectors are: for all CPUs, and a copy for each since 7.0."""
        found = []
        place, copies = self._symbols.address("eentry"), self._symbols.address("pcpu_handlers")
        try:
            if place is not None:
                found.append(self._prog.read_u64(place))
            count = self._prog.read_u32(self._symbols.required("nr_cpu_ids"))
            for cpu in range(min(count, CPU_LIMIT)):
                if copies is not None:
                    found.append(self._prog.read_u64(copies + 8 * cpu))
        except (FaultError, MissingInformation):
            pass
        return [address for address in found if address]

    @cached_property
    def _handlers(self) -> dict[int, int]:
        """The handlers of exceptions by number; one for all interrupts."""
        table = self._symbols.address("exception_table")
        found = {}
        try:
            if table is not None:
                data = self._prog.read(table, 8 * FIRST_INTERRUPT)
                found = dict(enumerate(struct.unpack(f"<{FIRST_INTERRUPT}Q", data)))
        except FaultError:
            pass
        interrupt = self._symbols.address("handle_vint")
        return found if interrupt is None else {**found, FIRST_INTERRUPT: interrupt}


class LoongArchState(StackState):
    """The registers that the unwinder follows."""

    __slots__ = ("fp", "ra")

    def __init__(self, task: Task, stack: StackMemory, proving: bool) -> None:
        super().__init__(task, stack, proving)
        self.fp = self.ra = 0


class LoongArchUnwinder(StackUnwinder[LoongArchState]):
    """See :class:`drgn_reliable.walk.Unwinder`."""

    ABI = ABI
    name = FORMAT.name

    def __init__(self, parts: Parts, orc: OrcTables[LoongArchRule]) -> None:
        super().__init__(parts)
        self.orc = orc

    # Start -------------------------------------------------------------------------------

    def start(self, task: Task, walk: Walk, *, proving: bool) -> LoongArchState:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        state = LoongArchState(task, self.task_stack_memory(task, task.saved_sp), proving)
        state.pc, state.sp, state.fp = task.saved_pc, task.saved_sp, task.saved_fp
        if task.on_cpu:
            self._start_running(state, walk)
        elif not task.saved_sp:  # copy_thread(): it never ran
            state.end, state.done = End.END_OF_STACK, True
        elif state.sp & 7 or not state.stack.contains(state.sp, 1):
            detail = f"the saved frame at {state.sp:#x} is not within the task's stack"
            walk.note("start-outside-stack", detail, pc=None, sp=state.sp, value=state.sp)
            state.end, state.done = End.END_OF_STACK, True
        elif not (proving and self._start_in_scheduler(state)):
            state.done = not self._returned(state, walk, state.pc, state.sp, adjust=0)
        return state

    def _start_in_scheduler(self, state: LoongArchState) -> bool:
        """Stand where ``__switch_to()`` was called; False if that is not on the task's stack."""
        pc, sp = self.facts.switched_from(state.task.address)
        if sp & 7 or not state.stack.contains(sp, 8):
            return False
        state.pc, state.sp, state.exact = pc - INSTRUCTION & MASK, sp, True
        return True

    def _start_running(self, state: LoongArchState, walk: Walk) -> None:
        registers = self.running_registers(state, walk, "csr_era", "sp")
        if registers is None:
            return
        state.regs = registers
        state.pc, state.sp, state.fp, state.ra = (
            registers.get(name) or 0 for name in ("csr_era", "sp", "fp", "ra")
        )
        if not self._in_user_mode(state):
            self.enter_first(state, walk, state.sp)

    def _in_user_mode(self, state: LoongArchState) -> bool:
        return (
            state.regs is not None and (state.regs.flags("csr_prmd") or 0) & USER_MODE == USER_MODE
        )

    def at_user_registers(self, state: LoongArchState, walk: Walk) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        return self._in_user_mode(state)

    def may_stand_for(self, word: int) -> tuple[int, ...]:
        """See :class:`drgn_reliable.arch.base.StackUnwinder`. A return address is looked up at the
        call before it, one in the vectors at the handler that they are copies of."""
        call = word - INSTRUCTION & MASK
        return (word, call, self.facts.called_at(word), self.facts.called_at(call))

    # One step ----------------------------------------------------------------------------

    def excuses(self, doubt: str, state: LoongArchState) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`. Unwind data say what can be unwound inside a
        tracer's trampoline."""
        return doubt in SETTLED_DOUBTS or super().excuses(doubt, state)

    def step(self, state: LoongArchState, walk: Walk) -> None:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        try:
            rule = self.orc.find(state.pc)
        except FaultError:
            detail = f"the unwind tables for {state.pc:#x} are not in the dump"
            walk.note("memory-unreadable", detail, pc=state.pc, sp=state.sp)
            state.done = True
            return
        found_by = FoundBy.ORC
        if rule is None:
            walk.note("no-unwind-data", str(self._code(state)), pc=state.pc, sp=state.sp)
            rule, found_by = GUESS, FoundBy.GUESS
        if rule.type == TYPE_END:
            state.end, state.done = End.END_OF_STACK, True
        elif rule.type == TYPE_UNDEFINED:
            self._note_undefined(state, walk)
            state.done = True
        else:
            state.done = not self._step_by(rule, found_by, state, walk)

    def formulas(self, state: LoongArchState) -> list[tuple[str, str]]:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        try:
            rule = self.orc.find(state.pc)
        except FaultError:
            return [(self.name, "not in the dump")]
        return [("a guess", GUESS.formula())] if rule is None else [(self.name, rule.formula())]

    def _code(self, state: LoongArchState) -> Any:
        return self.text.at(state.pc, exact=True)

    def _step_by(
        self, rule: LoongArchRule, found_by: FoundBy, state: LoongArchState, walk: Walk
    ) -> bool:
        at_entry = state.stack.name == "irq" and state.sp == state.stack.high
        sp = state.sp
        if rule.sp_register == FP:
            sp = state.fp
        elif rule.sp_register != SP:
            return self._bad(state, walk, f"stack base {rule.sp_register}")
        elif not at_entry:
            sp = sp + rule.sp_offset & MASK
        if rule.fp_register == PREV_SP:
            word = self.read(state, walk, sp + rule.fp_offset & MASK)
            if word is None:
                return False
            state.fp = word
        elif rule.fp_register != UNDEFINED:
            return self._bad(state, walk, f"frame base {rule.fp_register}")
        state.found_by = found_by
        if rule.type == TYPE_REGS or at_entry:
            return self._to_registers(state, walk, sp, at_entry)
        if rule.type != TYPE_CALL:
            return self._bad(state, walk, f"frame type {rule.type}")
        return self._to_caller(rule, state, walk, sp)

    def _bad(self, state: LoongArchState, walk: Walk, what: str) -> bool:
        walk.note("bad-unwind-data", what, pc=state.pc, sp=state.sp)
        return False

    def _to_caller(self, rule: LoongArchRule, state: LoongArchState, walk: Walk, sp: int) -> bool:
        pc: int | None
        if rule.ra_register == PREV_SP:
            pc = self.read(state, walk, sp + rule.ra_offset & MASK)
        elif rule.ra_register == UNDEFINED:
            pc = state.ra
            if not pc or pc == state.pc:
                detail = "the return address is in ra, which was not saved"
                walk.note("link-register-unknown", detail, pc=state.pc, sp=state.sp)
                return False
            state.ra = 0
        else:
            return self._bad(state, walk, f"return address base {rule.ra_register}")
        if pc is None:
            return False
        # Of frames only that of an interrupted leaf function has no size.
        smallest = state.sp + (0 if state.regs else 16)
        if sp < smallest and state.stack.contains(sp, 1) and state.stack.contains(state.sp, 1):
            detail = f"SP went from {state.sp:#x} to {sp:#x}"
            walk.note("direction-not-checked", detail, pc=state.pc, sp=state.sp, value=sp)
            if state.proving:
                return False
        state.sp, state.regs = sp, None
        return self._returned(state, walk, pc, sp, adjust=INSTRUCTION)

    def _returned(self, state: LoongArchState, walk: Walk, pc: int, sp: int, adjust: int) -> bool:
        found: int | None = pc
        if found == self._graph.trampoline:
            found = self.traced_return(state, walk, sp - self.facts.fake_offset & MASK)
        if found is not None and found == self._probes.trampoline:
            refused = self._refused_at(state, found - adjust & MASK)
            reason = "rethook-refused" if refused else "rethook-overlooked"
            detail = f"the frame at {sp:#x} returns to a kretprobe"
            walk.note(reason, detail, pc=state.pc, sp=sp, value=sp)
            if refused or state.proving:
                # Every node's key is 0 here; the list has the youngest first.
                found = self.probed_return(state, walk, 0, looked_up=False)
        if found is None:
            return False
        if adjust and self.text.at(found, exact=False).doubt == "no-call-before":
            # The kernel steps back to where the call is, which is taken as it is.
            detail = f"{found:#x} does not follow a call"
            walk.note("no-call-before", detail, pc=found, sp=sp, value=found)
        state.pc = self.facts.called_at(found - adjust & MASK)
        state.exact = bool(adjust) or found == self.facts.fork_return
        return True

    def _refused_at(self, state: LoongArchState, pc: int) -> bool:
        """Whether the kernel refuses to go on before a kretprobe's trampoline, of which it knows
        nothing. In the kernels seen that code has its caller in ra: of a task that sleeps it is
        unknown, but of one that was interrupted it may be there, left over."""
        try:
            rule = self.orc.find(pc)
        except FaultError:
            return True
        if rule is None or rule.type == TYPE_UNDEFINED:
            return True
        return rule.type == TYPE_CALL and rule.ra_register == UNDEFINED and state.ra in (0, pc)

    def _to_registers(self, state: LoongArchState, walk: Walk, at: int, at_entry: bool) -> bool:
        if at_entry:
            following = self._prog.read_u64(state.stack.high)
            at = following
        size = self.facts.regs_size
        if not state.stack.contains(at, size) and not self.enter(state, walk, at, size):
            detail = f"{size} bytes at {at:#x} are not within an accessible stack"
            walk.note("regs-outside-stack", detail, pc=state.pc, sp=state.sp, value=at)
            return False
        regs = StackRegisters(state.stack, at, self.facts.register_offsets)
        state.regs = regs
        if at + size == state.stack.high and regs.holds("sp", 0) and regs.holds("ra", 0):
            state.end = End.END_OF_STACK
            return False
        if self._in_user_mode(state):
            state.end = End.USER_REGS
            return False
        pc, sp, ra, fp = (regs.get(name) for name in ("csr_era", "sp", "ra", "fp"))
        if pc is None or sp is None or ra is None or fp is None:
            self.stop_unreadable(state, walk, at)
            return False
        state.sp, state.ra, state.fp = sp, ra, fp
        state.pc, state.exact, state.found_by = self.facts.called_at(pc), True, FoundBy.PT_REGS
        return True

    def _note_undefined(self, state: LoongArchState, walk: Walk) -> None:
        code = self._code(state)
        start = code.pc - code.offset
        reason = "undefined-unwind-data"
        if start == self._graph.trampoline:
            reason = "fgraph-window"
        elif start == self._probes.trampoline:
            reason = "rethook-window"
        elif code.kind is CodeKind.BPF:
            reason = "bpf-no-unwind-data"
        walk.note(reason, str(code), pc=state.pc, sp=state.sp)


def _unwinder(parts: Parts, symbols: Symbols) -> StackUnwinder[Any]:
    header = symbols.address("__start_orc_header")
    if header is None or symbols.address("__start_orc_unwind_ip") is None:
        raise UnsupportedKernel(
            "this loongarch64 kernel was built without the ORC unwinder (CONFIG_UNWINDER_ORC): it "
            "has no reliable stack trace, and nothing in it tells how to follow its stacks"
        )
    found = parts.prog.read(header, 20).hex()
    if found != HEADER:
        raise UnsupportedKernel(
            f"ORC format {found} of loongarch64 is not known to this version of drgn_reliable; "
            "please report it with the kernel's release"
        )
    return LoongArchUnwinder(parts, OrcTables(parts.prog, symbols, parts.text, FORMAT))


ARCHITECTURE = Architecture(
    name="loongarch64",
    saved=SavedContext(  # written by __switch_to
        sp="thread.sched_cfa", pc="thread.sched_ra", fp="thread.reg22"
    ),
    facts=Facts,
    code=CodeRules(ends_call, longest_call=INSTRUCTION, names=NAMES),
    unwinder=_unwinder,
)
