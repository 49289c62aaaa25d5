# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64 with the ORC unwinder: steps as ``unwind_next_frame()`` of
arch/x86/kernel/unwind_orc.c does, from 5.14 to 7.3. Where releases differ, a probe decides.
"""

from __future__ import annotations

from drgn import FaultError, Program

from drgn_reliable.arch.base import Parts, StackRegisters
from drgn_reliable.arch.callers import CallerFinder, Outcome
from drgn_reliable.arch.x86_64 import ABI, USER_MODE, direct_call_target
from drgn_reliable.arch.x86_state import OrcState
from drgn_reliable.arch.x86_unwinder import X86Unwinder, in_user_mode
from drgn_reliable.memory import MASK, number_at
from drgn_reliable.model import CodeKind, End, FoundBy, Walk
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.orc import FRAME_POINTER_RULE, Base, OrcTables, Rule, Shape, orc_format
from drgn_reliable.tasks import Task
from drgn_reliable.text import lookup_address

__all__ = ("OrcUnwinder",)

REGISTER_OF_BASE = {
    Base.AX: "ax",
    Base.DX: "dx",
    Base.DI: "di",
    Base.R10: "r10",
    Base.R13: "r13",
}

# Looking an enumeration's member up costs as much as a step does; the hot path has them at hand.
_CALL, _REGS, _PARTIAL = Shape.CALL, Shape.REGS, Shape.REGS_PARTIAL
_END, _UNDEFINED = Shape.END, Shape.UNDEFINED
_SP, _BP, _NO_BASE, _PREV_SP = Base.SP, Base.BP, Base.UNDEFINED, Base.PREV_SP
_ORC, _GUESS, _BY_BPF = FoundBy.ORC, FoundBy.GUESS, FoundBy.BPF_FRAME_POINTER

MISSING_RULE = {
    CodeKind.BPF: "bpf-no-unwind-data",
    CodeKind.KPROBE: "kprobe-slot",
    CodeKind.OPTPROBE: "optprobe-slot",
    CodeKind.MODULE: "module-without-orc",
    CodeKind.MODULE_INIT: "module-without-orc",
}
"""The reason that code without a rule gives, by its kind; ``no-unwind-data`` for the rest."""

SETTLED_DOUBTS = ("fgraph-returning", "rethook-returning", "optprobe-hides-function")
"""Advisory reasons about code that unwind data decide."""

FRAME_POINTER_SAMPLE = ("do_exit", "do_nanosleep", "kthread", "vfs_read", "worker_thread")
"""C functions whose unwind data show whether the kernel was built with frame pointers."""
SAMPLE_OFFSET = 0x60
"""Bytes into each: past its prologue."""


class OrcUnwinder(X86Unwinder[OrcState]):
    """See :class:`drgn_reliable.walk.Unwinder`.

    :param initialised: the kernel's ``orc_init``; None if the dump lacks it.
    :param frame_pointers: the kernel was built with CONFIG_FRAME_POINTER, and so refuses
        exceptions, ORC or not; None if the dump lacks what tells.
    """

    def __init__(
        self,
        parts: Parts,
        orc: OrcTables[Rule],
        *,
        initialised: bool | None = True,
        frame_pointers: bool | None = False,
    ) -> None:
        super().__init__(parts)
        self.orc = orc
        self._initialised = initialised
        self._refuses_exceptions = frame_pointers
        self.frame_pointers = bool(frame_pointers)
        self.name = orc.format.name
        self._rules: dict[tuple[int, bool], Rule | None] = {}
        self._callers = CallerFinder(ABI, parts.information, parts.facts.register_offsets)

    @classmethod
    def of_kernel(cls, parts: Parts, symbols: Symbols) -> OrcUnwinder:
        """The unwinder of the dumped kernel.

        :raises MissingInformation: if a symbol or type is missing.
        """
        orc = OrcTables(parts.prog, symbols, parts.text, orc_format(parts.prog, symbols))
        return cls(
            parts,
            orc,
            initialised=_flag(parts.prog, symbols.address("orc_init")),
            frame_pointers=_built_with_frame_pointers(orc, symbols),
        )

    # Start -------------------------------------------------------------------------------

    def start(self, task: Task, walk: Walk, *, proving: bool) -> OrcState:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        state = OrcState(task, self.task_stack_memory(task, task.saved_sp), proving)
        if self._initialised is None:
            walk.note("memory-unreadable", "orc_init is not in the dump", pc=None, sp=None)
        elif not self._initialised:
            walk.note("orc-not-initialised", "orc_init is false", pc=None, sp=None)
        if task.on_cpu:
            self._start_running(state, walk)
        else:
            self._start_switched_out(state, walk)
        return state

    def _start_switched_out(self, state: OrcState, walk: Walk) -> None:
        """The saved context is a ``struct inactive_task_frame`` at the saved stack pointer."""
        facts, stack = self.facts, state.stack
        frame = state.task.saved_sp
        state.sp = frame + facts.frame_size & MASK
        if not stack.contains(frame, facts.frame_size + 1):
            self.note_outside(state, walk, frame, "saved stack pointer")
            return
        pc, bp = stack.word(frame + facts.frame_ip), stack.glance(frame + facts.frame_bp)
        if pc is None or bp is None:
            self.stop_unreadable(state, walk, frame)
            return
        state.pc = pc
        state.bp_saved_at(frame + facts.frame_bp)
        try:
            state.exact = facts.is_fork_return(pc)
        except FaultError as e:
            self.stop_unreadable(state, walk, e.address)

    def _start_running(self, state: OrcState, walk: Walk) -> None:
        registers = self.running_registers(state, walk, "ip", "sp")
        if registers is None:
            return
        state.regs = registers
        state.pc, state.sp, state.bp = (registers.get(name) or 0 for name in ("ip", "sp", "bp"))
        state.full_regs = True
        if not in_user_mode(state):
            self.enter_first(state, walk, state.sp)

    # One step ----------------------------------------------------------------------------

    def at_user_registers(self, state: OrcState, walk: Walk) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        if state.regs is None:
            return False
        if in_user_mode(state):
            return True
        if self._refuses_exceptions is not False and state.regs.address is not None:
            detail = f"an exception's registers at {state.regs.address:#x}"
            if self._refuses_exceptions:
                walk.note("exception-frame-pointer", detail, pc=state.pc, sp=state.sp)
            else:
                detail += ": the unwind data that tell whether they are refused are not in the dump"
                walk.note("memory-unreadable", detail, pc=state.pc, sp=state.sp)
        return False

    def excuses(self, doubt: str, state: OrcState) -> bool:
        """See :class:`drgn_reliable.walk.Unwinder`. Unwind data say what can be unwound inside a
        tracer's trampoline, and none what is in an optprobe's slot."""
        return doubt in SETTLED_DOUBTS or super().excuses(doubt, state)

    def step(self, state: OrcState, walk: Walk) -> None:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        outcomes = self._outcomes(state) if state.proving else []
        pc, sp = state.pc, state.sp
        self._step(state, walk, outcomes)
        if outcomes and not state.done and state.regs is None:
            found, caller = outcomes[0]
            if caller.sp != state.sp:
                detail = (
                    f"{found.name}: from {self.text.at(pc, exact=True)} to SP {caller.sp:#x}; "
                    f"{self.name}: to {state.sp:#x}"
                )
                walk.note("providers-disagree", detail, pc=pc, sp=sp, value=caller.sp)

    def _outcomes(self, state: OrcState) -> list[Outcome]:
        """Where other call frame information than the kernel's own leads."""
        if state.regs and state.full_regs:
            registers = self._callers.interrupted(state)
        else:
            registers = {ABI.sp: state.sp, ABI.fp: state.bp}
        return self._callers.find(state, registers)[0]

    def _step(self, state: OrcState, walk: Walk, outcomes: list[Outcome]) -> None:
        key = (state.pc, state.exact)
        try:
            rule = self._rules[key]
        except KeyError:
            try:
                rule = self._rule(*key)
            except FaultError:
                detail = f"the unwind tables for {state.pc:#x} are not in the dump"
                walk.note("memory-unreadable", detail, pc=state.pc, sp=state.sp)
                state.done = True
                return
        found_by = _ORC
        if outcomes and (rule is None or rule.shape is _UNDEFINED):
            self._step_by_metadata(state, walk, outcomes)
            return
        if rule is None:
            self._note_missing(state, walk)
            rule, found_by = FRAME_POINTER_RULE, _GUESS
        elif rule is FRAME_POINTER_RULE:
            found_by = _BY_BPF
        if rule.shape is _END:
            state.end = End.END_OF_STACK
            state.done = True
        elif rule.shape is _UNDEFINED:
            self._note_undefined(state, walk)
            state.done = not self._find_caller(state, walk)
        else:
            self._step_by(rule, found_by, state, walk)

    def formulas(self, state: OrcState) -> list[tuple[str, str]]:
        """See :class:`drgn_reliable.walk.Unwinder`."""
        others = self._callers.formulas(state)
        try:
            rule = self._rule(state.pc, state.exact)
        except FaultError:
            return [(self.name, "not in the dump"), *others]
        if rule is None:
            return [*others, ("a guess", FRAME_POINTER_RULE.formula())]
        own = (self.name, rule.formula())
        return [*others, own] if others and rule.shape is _UNDEFINED else [own, *others]

    def _step_by_metadata(self, state: OrcState, walk: Walk, outcomes: list[Outcome]) -> None:
        """Go to the caller where the kernel's own unwind data do not lead."""
        self._callers.compare(state, walk, outcomes)
        found, caller = outcomes[0]
        if caller.pc_at is None or not self._callers.is_above(state, walk, caller):
            state.done = True
            return
        pc = self.recovered(state, walk, caller.pc, caller.pc_at)
        state.done = pc is None
        state.pc, state.sp = pc or 0, caller.sp
        state.bp = caller.registers.get(ABI.fp, 0)
        state.regs = state.previous_regs = None
        state.exact, state.found_by = found.rule.exact, found.source.found_by

    def _rule(self, pc: int, exact: bool) -> Rule | None:
        """The rule for a program counter, decided once.

        :raises drgn.FaultError: if the dump lacks that part of the tables.
        """
        rule = self._rules[pc, exact] = self.orc.find(lookup_address(pc, exact))
        return rule

    def _step_by(self, rule: Rule, found_by: FoundBy, state: OrcState, walk: Walk) -> None:
        left, old_sp, old_pc = state.stack, state.sp, state.pc
        if rule.sp_base is _SP:
            sp: int | None = old_sp + rule.sp_offset & MASK
        else:
            sp = self._caller_sp(state, walk, rule)
        if sp is None:
            state.done = True
            return
        if rule.shape is _CALL:
            moved = self._to_caller(state, walk, sp, found_by)
        else:
            moved = self._to_interrupted(state, walk, sp, rule.shape)
        state.exact = rule.exact
        if not moved or not self._restore_bp(state, walk, rule, sp):
            state.done = True
        elif state.stack is left and left.contains(state.sp, 8) and state.sp <= old_sp:
            detail = f"SP went from {old_sp:#x} to {state.sp:#x}"
            walk.note("wrong-direction", detail, pc=old_pc, sp=old_sp, value=state.sp)
            state.done = True

    def _caller_sp(self, state: OrcState, walk: Walk, rule: Rule) -> int | None:
        """The caller's stack pointer by any base but SP itself."""
        base = rule.sp_base
        if base is _BP:
            return state.bp + rule.sp_offset & MASK
        if base is Base.SP_INDIRECT:
            word = self.read(state, walk, state.sp)
            return None if word is None else word + rule.sp_offset & MASK
        if base is Base.BP_INDIRECT:
            return self.read(state, walk, state.bp + rule.sp_offset & MASK)
        name = REGISTER_OF_BASE.get(base) if base is not None else None
        if name is None:
            walk.note("bad-unwind-data", f"stack base {base!r}", pc=state.pc, sp=state.sp)
            return None
        value = state.register(name)
        if value is None:
            detail = f"the stack pointer is in {name}, which was not saved"
            walk.note("register-unknown", detail, pc=state.pc, sp=state.sp)
        return value

    def _to_caller(self, state: OrcState, walk: Walk, sp: int, found_by: FoundBy) -> bool:
        slot = sp - 8 & MASK
        pc = self.read(state, walk, slot)
        if pc is None:
            return False
        state.found_by = found_by
        if pc in self.trampolines:
            pc = self.recovered(state, walk, pc, slot)
            if pc is None:
                return False
        state.pc, state.sp = pc, sp
        state.regs = state.previous_regs = None
        return True

    def _to_interrupted(self, state: OrcState, walk: Walk, at: int, shape: Shape) -> bool:
        """The frame was interrupted: the CPU, and the entry code if ``shape`` is full, saved its
        registers at an address."""
        if shape not in (_REGS, _PARTIAL):
            walk.note("bad-unwind-data", "unknown frame type", pc=state.pc, sp=state.sp)
            return False
        full = shape is _REGS
        missing = 0 if full else self.facts.register_offsets["ip"]
        size = self.facts.regs_size - missing
        if not state.stack.contains(at, size) and not self.enter(state, walk, at, size):
            detail = f"{size} bytes at {at:#x} are not within an accessible stack"
            walk.note("regs-outside-stack", detail, pc=state.pc, sp=state.sp, value=at)
            return False
        regs = StackRegisters(state.stack, at - missing & MASK, self.facts.register_offsets)
        user = (regs.flags("cs") or 0) & USER_MODE
        # A stack pointer of user mode matters to the check of the direction alone.
        pc = regs.glance("ip") if user else regs.get("ip")
        sp = regs.elsewhere("sp") if user else regs.get("sp")
        if pc is None or sp is None:
            self.stop_unreadable(state, walk, at)
            return False
        state.found_by = FoundBy.PT_REGS if full else FoundBy.PARTIAL_PT_REGS
        if pc == self._probes.trampoline and not user:
            # Just returned to: the slot that held the address is the word below SP.
            pc = self.probed_return(state, walk, sp - 8 & MASK)
            if pc is None:
                return False
        if full:
            state.previous_regs = None
        elif state.full_regs:
            state.previous_regs = state.regs
        state.pc, state.sp = pc, sp
        state.regs, state.full_regs = regs, full
        return True

    def _restore_bp(self, state: OrcState, walk: Walk, rule: Rule, sp: int) -> bool:
        base = rule.bp_base
        if base is _NO_BASE:
            if state.regs is not None:
                state.take_saved_bp()
            return True
        if base is _PREV_SP:
            slot = sp + rule.bp_offset & MASK
        elif base is _BP:
            slot = state.bp + rule.bp_offset & MASK
        else:
            walk.note("bad-unwind-data", f"frame base {base!r}", pc=state.pc, sp=state.sp)
            return False
        if self.read(state, walk, slot, decides=False) is None:
            return False
        state.bp_saved_at(slot)
        return True

    def _find_caller(self, state: OrcState, walk: Walk) -> bool:
        """Where a CPU's registers are those of a function without unwind data, look for the
        return address that a direct call to this function left on the stack.

        A kernel that panics saves its own registers in ``__crash_kexec()``, which is marked
        STACK_FRAME_NON_STANDARD: without this a genuine kdump shows nothing of the panic.
        """
        if not state.proving or state.found_by is not FoundBy.CRASH_REGISTERS:
            return False
        code = self.text.at(state.pc, state.exact)
        function = code.pc - code.offset
        for slot in range(state.sp & ~7, state.stack.high - 7, 8):
            pc = state.stack.word(slot)
            if pc and self.text.in_core(pc) and self._called(pc) == function:
                detail = f"the caller of {code} was found by its call, at {slot:#x}"
                walk.note("caller-searched", detail, pc=pc, sp=slot)
                state.pc, state.sp, state.exact = pc, slot + 8, False
                state.regs = state.previous_regs = None
                state.found_by = FoundBy.SEARCH
                return True
        return False

    def _called(self, pc: int) -> int | None:
        """The function that the direct call before a return address calls."""
        try:
            return direct_call_target(self._prog.read(pc - 5, 5), pc)
        except FaultError:
            return None

    # What missing and undefined rules mean (4.2, 4.5) -------------------------------------

    def _note_missing(self, state: OrcState, walk: Walk) -> None:
        code = self.text.at(state.pc, state.exact)
        reason = MISSING_RULE.get(code.kind, "no-unwind-data")
        walk.note(reason, str(code), pc=state.pc, sp=state.sp)

    def _note_undefined(self, state: OrcState, walk: Walk) -> None:
        code = self.text.at(state.pc, exact=True)
        start = code.pc - code.offset
        reason = "undefined-unwind-data"
        if start in self.trampolines:
            reason = "fgraph-window" if start == self._graph.trampoline else "rethook-window"
        walk.note(reason, str(code), pc=state.pc, sp=state.sp)


def _flag(prog: Program, address: int | None) -> bool | None:
    """True where the kernel has no such variable; None if the dump lacks it."""
    found = 1 if address is None else number_at(prog, address, 1)
    return None if found is None else bool(found)


def _built_with_frame_pointers(orc: OrcTables[Rule], symbols: Symbols) -> bool | None:
    """The configuration is rarely in a dump, but with CONFIG_FRAME_POINTER every C function's
    frame is found from BP. None if the dump lacks too many of the rules."""
    votes, lacking = [], False
    for name in FRAME_POINTER_SAMPLE:
        address = symbols.address(name)
        try:
            rule = orc.find(address + SAMPLE_OFFSET) if address else None
        except FaultError:
            lacking = True
            continue
        if rule:
            votes.append(rule.sp_base is Base.BP)
    if not all(votes):
        return False
    return True if len(votes) >= 2 else None if lacking else False
