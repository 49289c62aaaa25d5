# SPDX-License-Identifier: LGPL-2.1-or-later
"""The catalogue of reasons: one row for each thing that can be wrong with a stack trace.

A row says in which section of the kernel's ``Documentation/livepatch/reliable-stacktrace.rst``
the matter belongs, which kernel function decides it, what it does to the two verdicts and what
a person can do. Rows are data: nothing else in the package knows what a reason means.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ("CATALOGUE", "SECTIONS", "Effect", "ReasonKind")

SECTIONS: dict[str, str] = {
    "2": "Requirements: robust against corruption, loops and unreadable memory",
    "3": "Compile-time analysis: metadata for the unwinder",
    "4.1": "Identifying successful termination",
    "4.2": "Identifying unwindable code",
    "4.3": "Unwinding across interrupts and exceptions",
    "4.4": "Rewriting of return addresses",
    "4.5": "Obscuring of return addresses",
    "4.6": "Link register unreliability",
}
"""Sections of the reliable-stacktrace document by number."""


class Effect(str, Enum):
    """What a reason does to the proof verdict."""

    REFUTES = "refutes"
    """The trace is shown to be wrong or incomplete."""
    LEAVES_OPEN = "leaves open"
    """Nothing in the dump shows the trace right or wrong from here on."""
    ENDS = "ends"
    """Like LEAVES_OPEN, and what follows is a guess: nothing after it can refute anything."""
    NONE = "none"
    """The kernel must refuse, but the dump still shows the whole trace."""


class ReasonKind(NamedTuple):
    """A row of the catalogue."""

    id: str
    section: str
    title: str
    decided_by: str
    """The kernel function that refuses because of this, or which overlooks it."""
    kernel: bool
    """True if the kernel refuses the trace; False for an *advisory* reason, which the kernel
    does not notice."""
    proof: Effect
    remedy: str

    @property
    def advisory(self) -> bool:
        """Whether the kernel accepts the trace nevertheless."""
        return not self.kernel


_ROWS = (
    ReasonKind(
        "running",
        "2",
        "The task is running on a CPU",
        "klp_try_switch_task / __unwind_start",
        True,
        Effect.NONE,
        "Its saved context is stale; the trace shown starts from the CPU's registers in the "
        "dump. A livepatch tries it again, or switches it at its next return to user space.",
    ),
    ReasonKind(
        "no-crash-registers",
        "2",
        "Running on a CPU whose registers the dump lacks",
        "the dump",
        False,
        Effect.LEAVES_OPEN,
        "Take the dump with kdump or with QEMU's dump-guest-memory, which save the registers "
        "of every CPU.",
    ),
    ReasonKind(
        "task-moved",
        "2",
        "The task ran while its stack was read, at every attempt",
        "drgn-reliable, of a living kernel (the kernel would find the task running: errno is -16)",
        True,
        Effect.LEAVES_OPEN,
        "Nothing is said of its stack. Look again, or look at an instant: a dump, or a guest with "
        "--qemu.",
    ),
    ReasonKind(
        "memory-unreadable",
        "2",
        "The dump lacks memory that the walk needs",
        "the dump (the kernel could read it: errno is -14)",
        True,
        Effect.LEAVES_OPEN,
        "The page was excluded, lost or never mapped. Take the dump with a lower makedumpfile "
        "dump level; for a truncated file, copy it again.",
    ),
    ReasonKind(
        "sp-outside-stack",
        "2",
        "The saved stack pointer is not on the task's stack",
        "__unwind_start (get_stack_info)",
        True,
        Effect.REFUTES,
        "The task structure or its stack is corrupt: look for a stack overflow or a stray "
        "write near task->thread.sp.",
    ),
    ReasonKind(
        "slot-outside-stack",
        "2",
        "A frame's return address or saved frame pointer would lie outside the stack",
        "deref_stack_reg",
        True,
        Effect.REFUTES,
        "A saved register or return address on the stack is corrupt; compare the words around "
        "SP with the disassembly of the last good frame.",
    ),
    ReasonKind(
        "frame-outside-stack",
        "2",
        "A frame would lie outside the stack",
        "update_stack_state (x86), unwind_find_stack (arm64), update_stack_info (s390), "
        "arch_stack_walk_reliable (powerpc)",
        True,
        Effect.REFUTES,
        "The frame pointer or back chain is corrupt, or was not kept by the code below it.",
    ),
    ReasonKind(
        "frame-misaligned",
        "2",
        "A frame pointer or stack pointer is not aligned",
        "the unwinders of arm64, s390 and powerpc",
        True,
        Effect.REFUTES,
        "Corruption, or code that does not keep the chain of frames.",
    ),
    ReasonKind(
        "direction-not-checked",
        "2",
        "The walk went down the stack, and the kernel does not notice",
        "nobody: unwind_next_frame of loongarch has no such check",
        False,
        Effect.REFUTES,
        "The kernel's trace goes through some functions twice, or never ends. The proof starts "
        "from better registers; if it has this reason too, the stack is corrupt.",
    ),
    ReasonKind(
        "regs-outside-stack",
        "2",
        "An exception's saved registers would lie outside the stack",
        "deref_stack_regs / deref_stack_iret_regs",
        True,
        Effect.REFUTES,
        "As for slot-outside-stack; the exception entry's frame is damaged.",
    ),
    ReasonKind(
        "stack-visited-twice",
        "2",
        "The walk came back to a stack that it had left",
        "get_stack_info (visit_mask)",
        True,
        Effect.REFUTES,
        "A link between stacks is corrupt; look at the words at the top of the interrupt or "
        "exception stack.",
    ),
    ReasonKind(
        "stack-order",
        "2",
        "The walk left a stack for one that cannot have been interrupted by it",
        "nobody in the kernel, which enforces no order",
        False,
        Effect.REFUTES,
        "A link between stacks is corrupt.",
    ),
    ReasonKind(
        "wrong-direction",
        "2",
        "The stack pointer did not grow from one frame to the next",
        "unwind_next_frame",
        True,
        Effect.REFUTES,
        "Unwind data and stack disagree: corruption, or code changed after its unwind data "
        "were made. The kernel stops here to avoid a loop.",
    ),
    ReasonKind(
        "too-deep",
        "2",
        "The trace has as many entries as the caller's buffer",
        "stack_trace_consume_entry",
        True,
        Effect.NONE,
        "The livepatch code offers room for 100 entries and takes a full buffer for an "
        "unreliable trace. Only the task's progress helps.",
    ),
    ReasonKind(
        "loop",
        "2",
        "The walk repeats itself",
        "stack_trace_consume_entry (the buffer fills)",
        True,
        Effect.REFUTES,
        "The stack is corrupt, or the unwind data do not fit the code.",
    ),
    ReasonKind(
        "bad-unwind-data",
        "2",
        "The unwind data name a register or frame type that does not exist",
        "unwind_next_frame",
        True,
        Effect.LEAVES_OPEN,
        "The ORC table in memory is corrupt, or of a format that the hash in the kernel image "
        "does not describe.",
    ),
    ReasonKind(
        "record-passed-over",
        "2",
        "A frame record lies unused between two frames of the chain",
        "nobody: the chain of frame records is taken at its word",
        False,
        Effect.LEAVES_OPEN,
        "A frame may have been passed over, by code that does not keep the frame pointer or by a "
        "forged one; or the record is left from an earlier call. Call frame information shows it.",
    ),
    ReasonKind(
        "stack-end-overwritten",
        "2",
        "The magic word at the end of the stack is gone",
        "nobody (schedule() with CONFIG_SCHED_STACK_END_CHECK)",
        False,
        Effect.LEAVES_OPEN,
        "The stack has overflowed at some time; what lies next to it in memory may be damaged.",
    ),
    ReasonKind(
        "no-call-before",
        "2",
        "A return address does not follow a call instruction",
        "nobody: no unwinder looks",
        False,
        Effect.LEAVES_OPEN,
        "A stale word taken for a return address, or the calling instruction was patched while "
        "the task slept (ftrace, static call). Disassemble before the address.",
    ),
    ReasonKind(
        "orc-not-initialised",
        "3",
        "The kernel never enabled its ORC unwinder",
        "__unwind_start (orc_init)",
        True,
        Effect.LEAVES_OPEN,
        "Early boot, or a bad ORC table in the image: look for an ORC warning in the log.",
    ),
    ReasonKind(
        "module-without-orc",
        "3",
        "A module on the stack was built without unwind data",
        "orc_module_find",
        True,
        Effect.ENDS,
        "Build the module with the kernel's own build system, so that objtool adds its ORC tables.",
    ),
    ReasonKind(
        "providers-disagree",
        "3",
        "Two sources of unwind information lead to different callers",
        "nobody: the kernel has one source at most",
        False,
        Effect.LEAVES_OPEN,
        "One of them is wrong for this instruction: metadata of another build, code patched at run "
        "time, or a register spoilt. `explain` shows both.",
    ),
    ReasonKind(
        "start-outside-stack",
        "4.1",
        "The saved frame is not on the stack: the kernel takes the walk for finished before it "
        "began",
        "__unwind_start (x86, frame pointers)",
        False,
        Effect.REFUTES,
        "The kernel answers with a reliable trace of no entries. Look for corruption of the task "
        "structure.",
    ),
    ReasonKind(
        "end-misplaced",
        "4.1",
        "The chain of frames ends where no kernel stack begins",
        "the unwinders of arm64, s390 and powerpc",
        True,
        Effect.REFUTES,
        "The trace is cut short, or the chain is corrupt: look for return addresses further up "
        "the stack.",
    ),
    ReasonKind(
        "end-unexpected",
        "4.1",
        "The unwind data ended the trace where no kernel stack begins",
        "unwind_next_frame",
        False,
        Effect.LEAVES_OPEN,
        "The kernel takes this trace for whole. It may be cut short: look for return addresses "
        "further up the stack.",
    ),
    ReasonKind(
        "user-regs-misplaced",
        "4.1",
        "User registers were met away from the place where system calls and exceptions from "
        "user mode save them",
        "unwind_next_frame (user_mode)",
        False,
        Effect.LEAVES_OPEN,
        "The kernel takes any user-mode registers for the end. Compare with task_pt_regs().",
    ),
    ReasonKind(
        "not-kernel-text",
        "4.2",
        "A return address is not known kernel text",
        "unwind_get_return_address (__kernel_text_address)",
        True,
        Effect.REFUTES,
        "Corruption, an unloaded module, firmware, or generated code that the kernel does not "
        "list.",
    ),
    ReasonKind(
        "text-not-checked",
        "4.2",
        "A return address is not known kernel text, and the kernel does not look",
        "nobody: arm64 and, after a traced return, powerpc do not check",
        False,
        Effect.REFUTES,
        "Corruption, an unloaded module, or generated code that the kernel does not list. The "
        "kernel takes the trace for reliable.",
    ),
    ReasonKind(
        "no-unwind-data",
        "4.2",
        "No unwind data for this code",
        "orc_find",
        True,
        Effect.ENDS,
        "Generated or foreign code. The frames after it follow the frame pointer by guess.",
    ),
    ReasonKind(
        "bpf-no-unwind-data",
        "4.2",
        "A BPF program or trampoline without unwind data is on the stack",
        "orc_find (orc_bpf_find since 7.0)",
        True,
        Effect.ENDS,
        "Before Linux 7.0 no BPF code can be unwound reliably. Detach the program, or wait "
        "until the task leaves it.",
    ),
    ReasonKind(
        "kprobe-slot",
        "4.2",
        "The task was interrupted in a kprobe's copy of an instruction",
        "orc_find",
        True,
        Effect.ENDS,
        "It leaves the slot within an instruction; the next attempt succeeds.",
    ),
    ReasonKind(
        "undefined-unwind-data",
        "4.2",
        "The unwind data mark this code as not unwindable",
        "unwind_next_frame (ORC_TYPE_UNDEFINED)",
        True,
        Effect.LEAVES_OPEN,
        "Assembly without annotations, or a gap between functions. The task must leave it.",
    ),
    ReasonKind(
        "caller-searched",
        "4.2",
        "A running CPU's caller was searched for on the stack",
        "nobody: the kernel does not ask for running tasks",
        False,
        Effect.ENDS,
        "The function has no unwind data (a panicking kernel saves its registers in one). The "
        "frames that follow are shown for the reader and prove nothing.",
    ),
    ReasonKind(
        "register-unknown",
        "4.2",
        "The frame is found through a register that was not saved",
        "unwind_next_frame (get_reg)",
        True,
        Effect.LEAVES_OPEN,
        "Code that realigns or swaps its stack calls on with the old stack pointer in a "
        "register; only an exception frame preserves it.",
    ),
    ReasonKind(
        "init-text-freed",
        "4.2",
        "A return address lies in the kernel's freed init text",
        "__kernel_text_address (is_kernel_inittext)",
        False,
        Effect.LEAVES_OPEN,
        "The kernel still accepts the address, but the memory holds something else by now. "
        "Only the boot CPU's idle task keeps such frames.",
    ),
    ReasonKind(
        "vsyscall-page",
        "4.2",
        "A return address lies in the vsyscall page",
        "core_kernel_text (in_gate_area_no_mm)",
        False,
        Effect.LEAVES_OPEN,
        "The kernel accepts this page as text, but no kernel function is there: corruption.",
    ),
    ReasonKind(
        "exception-boundary",
        "4.3",
        "Interrupted in kernel mode: the frame that was interrupted may be incomplete",
        "arch_stack_walk_reliable",
        True,
        Effect.ENDS,
        "The caller of a function that is interrupted before it has linked itself in is missing "
        "from the chain of frames, and what follows may be no frame. Call frame information for "
        "the instruction decides it (--symbols). Let the task run on.",
    ),
    ReasonKind(
        "exception-frame-pointer",
        "4.3",
        "Interrupted in kernel mode, in a kernel built with frame pointers",
        "arch_stack_walk_reliable (CONFIG_FRAME_POINTER)",
        True,
        Effect.NONE,
        "The kernel refuses every exception boundary in this configuration, though ORC data "
        "cross it. Let the task run on.",
    ),
    ReasonKind(
        "fgraph-unrecovered",
        "4.4",
        "The return address that the function graph tracer replaced was not found",
        "unwind_recover_ret_addr (ftrace_graph_ret_addr)",
        False,
        Effect.REFUTES,
        "The real caller is missing from the trace. Switch the function graph tracer off and "
        "let the task return.",
    ),
    ReasonKind(
        "fgraph-entry-missing",
        "4.4",
        "The return address that the function graph tracer replaced was not found, and the kernel "
        "refuses",
        "kunwind_recover_return_address (arm64)",
        True,
        Effect.REFUTES,
        "The task's list of traced returns does not fit its stack: corruption, or a return in "
        "progress.",
    ),
    ReasonKind(
        "fgraph-beneath-kretprobe",
        "4.4",
        "A function is both graph-traced and kretprobed: the kernel undoes only one of the two",
        "unwind_recover_ret_addr",
        False,
        Effect.NONE,
        "The kernel takes the tracer's trampoline for the caller: it then refuses the trace, or "
        "(before 6.4) ends it there. The dump has the real address. Switch off one of the two.",
    ),
    ReasonKind(
        "fgraph-window",
        "4.4",
        "The task is inside the function graph tracer's return trampoline",
        "unwind_next_frame (return_to_handler is not unwindable)",
        True,
        Effect.LEAVES_OPEN,
        "The real return address lives only in a register for a moment; the next attempt succeeds.",
    ),
    ReasonKind(
        "fgraph-returning",
        "4.4",
        "The task is returning through the function graph tracer",
        "nobody, where there is no unwind data for return_to_handler",
        False,
        Effect.LEAVES_OPEN,
        "The real return address is taken off the tracer's stack and kept in a register: the "
        "caller may be missing from the trace. The next attempt succeeds.",
    ),
    ReasonKind(
        "fgraph-entries-mismatch",
        "4.4",
        "The tracer keeps more or fewer return addresses than the walk met",
        "nobody: no unwinder counts",
        False,
        Effect.LEAVES_OPEN,
        "More: a function that was entered is not in the trace; it is being entered or left at "
        "this moment, or the trace is not whole. Fewer: the walk met one twice.",
    ),
    ReasonKind(
        "rethook-unrecovered",
        "4.4",
        "The return address that a kretprobe replaced was not found",
        "rethook_find_ret_addr / kretprobe_find_ret_addr",
        True,
        Effect.REFUTES,
        "The task's list of probed returns does not fit its stack: corruption, or a return in "
        "progress. Disable the probe and let the task return.",
    ),
    ReasonKind(
        "rethook-task-runnable",
        "4.4",
        "Preempted inside a kretprobed function: the kernel does not look up the real return "
        "address of a runnable task",
        "rethook_find_ret_addr (task_is_running)",
        True,
        Effect.NONE,
        "Harmless and passing: the dump has the address. Disable the kretprobe if the "
        "transition must finish now.",
    ),
    ReasonKind(
        "rethook-refused",
        "4.4",
        "A kretprobed function is on the stack: the kernel does not look up its return address",
        "arch_stack_walk_reliable (powerpc, loongarch)",
        True,
        Effect.NONE,
        "The dump has the address. Disable the kretprobe and let the task return.",
    ),
    ReasonKind(
        "rethook-overlooked",
        "4.4",
        "The kernel takes a kretprobe's trampoline for the caller, and goes on from there",
        "unwind_next_frame (loongarch)",
        False,
        Effect.NONE,
        "An interrupted task's register ra was left over and is taken for the caller of the code "
        "before the trampoline: the kernel's trace is not the task's. The dump has the address.",
    ),
    ReasonKind(
        "livepatch-hides-caller",
        "4.4",
        "A livepatched function was entered by a stub that keeps its caller's address elsewhere",
        "nobody: arch_stack_walk_reliable (powerpc) takes livepatch_handler for the caller",
        False,
        Effect.REFUTES,
        "The caller is missing from the trace; its address is on the task's livepatch stack "
        "(thread_info.livepatch_sp), at the low end of the kernel stack.",
    ),
    ReasonKind(
        "rethook-window",
        "4.4",
        "The task is inside a kretprobe's return trampoline",
        "unwind_next_frame",
        True,
        Effect.LEAVES_OPEN,
        "The next attempt succeeds.",
    ),
    ReasonKind(
        "rethook-returning",
        "4.4",
        "The task is returning through a kretprobe's trampoline",
        "nobody, where there is no unwind data for the trampoline",
        False,
        Effect.LEAVES_OPEN,
        "The probe's handler runs in place of the return: the caller may be missing from the "
        "trace. The next attempt succeeds.",
    ),
    ReasonKind(
        "rethook-entries-mismatch",
        "4.4",
        "The task's list of probed returns has more or fewer entries than the walk met",
        "nobody: no unwinder counts",
        False,
        Effect.LEAVES_OPEN,
        "As for fgraph-entries-mismatch, of kretprobed functions.",
    ),
    ReasonKind(
        "optprobe-slot",
        "4.5",
        "The task is in an optimised kprobe's detour",
        "orc_find",
        True,
        Effect.ENDS,
        "The probed function's own address is nowhere on the stack. Disable the probe "
        "(debug.kprobes-optimization=0) or let the task run on.",
    ),
    ReasonKind(
        "entry-hides-caller",
        "4.5",
        "A function made a call from its very entry, before it linked itself into the chain: the "
        "kernel passes over its caller",
        "nobody: unwind_next_frame (x86, frame pointers)",
        False,
        Effect.NONE,
        "BPF trampolines are called so. The dump has the caller's address: it is where the stack "
        "pointer was at the entry.",
    ),
    ReasonKind(
        "optprobe-hides-function",
        "4.5",
        "An optimised kprobe's detour is on the stack, in place of the probed function",
        "nobody: powerpc and x86 with frame pointers take it for text",
        False,
        Effect.LEAVES_OPEN,
        "The probed function's own address is nowhere on the stack; which it is, the frame says if "
        "the dump has the probe.",
    ),
    ReasonKind(
        "link-register-unknown",
        "4.6",
        "The return address is in the link register, which nothing has saved",
        "unwind_next_frame (loongarch)",
        True,
        Effect.LEAVES_OPEN,
        "A function that has not stored its return address is not the innermost one: corruption, "
        "or unwind data that do not fit the code.",
    ),
)

CATALOGUE: dict[str, ReasonKind] = {row.id: row for row in _ROWS}
"""Every reason by its identifier, in the order of the document's sections."""
