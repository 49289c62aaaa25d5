# SPDX-License-Identifier: LGPL-2.1-or-later
"""The data that flows from the walk to the reader: pure data, no drgn, no printing.

Addresses are unsigned 64-bit integers, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, overload

__all__ = (
    "CapsuleSummary",
    "Code",
    "CodeKind",
    "CodeRole",
    "DumpReport",
    "End",
    "FoundBy",
    "Frame",
    "Frames",
    "KernelAnswer",
    "KernelVerdict",
    "ProofAnswer",
    "ProofVerdict",
    "Reason",
    "TaskKind",
    "TaskReport",
    "Trace",
    "Walk",
)


class CodeKind(str, Enum):
    """What a program counter is, in the order in which ``__kernel_text_address()`` asks."""

    CORE = "core"
    VSYSCALL = "vsyscall page"
    MODULE = "module"
    MODULE_INIT = "module init"
    FTRACE = "ftrace trampoline"
    KPROBE = "kprobe slot"
    OPTPROBE = "optprobe slot"
    BPF = "bpf"
    INIT = "init"
    UNKNOWN = "unknown"
    """Nothing known as kernel text: foreign, freed or generated code, or no code at all."""


class CodeRole(str, Enum):
    """What code is there for, beyond the rule by which the kernel takes it for text."""

    FUNCTION = "function"
    ENTRY = "entry"
    """Assembly that takes system calls and exceptions, and returns from them."""
    VECTORS = "exception vectors"
    """Where the CPU itself jumps to for an exception."""
    EXIT = "exit text"
    INIT = "init text"
    MODULE_INIT = "module init"
    LIVEPATCH = "livepatch function"
    LIVEPATCH_STUB = "livepatch stub"
    FTRACE = "ftrace trampoline"
    GRAPH_RETURN = "function graph return"
    """Put in place of a return address by the function graph tracer."""
    RETURN_PROBE = "return probe trampoline"
    """Put in place of a return address by a kretprobe or rethook."""
    KPROBE = "kprobe slot"
    OPTPROBE = "optprobe slot"
    BPF_PROGRAM = "bpf program"
    BPF_TRAMPOLINE = "bpf trampoline"
    BPF_DISPATCHER = "bpf dispatcher"
    BPF_STRUCT_OPS = "bpf struct_ops trampoline"
    STATIC_CALL = "static call trampoline"
    THUNK = "retpoline or return thunk"
    PLT = "PLT or veneer"
    """Put in by a linker or a module loader to jump further than an instruction can."""
    VSYSCALL = "vsyscall page"
    FOREIGN = "foreign (EFI runtime)"
    UNKNOWN = "nothing known"


@dataclass(frozen=True, slots=True)
class Code:
    """One program counter, classified and named once for the whole dump."""

    pc: int
    kind: CodeKind
    symbol: str | None
    offset: int
    """From the symbol's start to ``pc``, in bytes."""
    module: str | None
    """None for the kernel's own text and for generated code."""
    doubt: str | None = None
    """An advisory reason that this program counter gives wherever it is met."""
    role: CodeRole = CodeRole.FUNCTION
    of: str | None = None
    """Which one: the callback, the probed or traced function, the function that a livepatch
    replaces; None if the dump does not tell or there is nothing to tell."""

    @property
    def function(self) -> str:
        """The function's name, or the address where it has none."""
        return self.symbol or f"{self.pc:#x}"

    @property
    def purpose(self) -> str:
        """What the code is there for, in words; empty for an ordinary function."""
        if self.role is CodeRole.FUNCTION:
            return ""
        return f"{self.role.value} of {self.of}" if self.of else str(self.role.value)

    def __str__(self) -> str:
        if self.symbol is None:
            return f"{self.pc:#x}"
        place = f"{self.symbol}+{self.offset:#x}"
        return f"{place} [{self.module}]" if self.module else place


class FoundBy(str, Enum):
    """How a frame was found: the reader's measure of trust in it."""

    SWITCH_FRAME = "switch frame"
    """The context that the scheduler saved."""
    CRASH_REGISTERS = "crash registers"
    """The CPU's registers in the dump."""
    ORC = "orc"
    FRAME_POINTER = "frame pointer"
    """A frame record, in a kernel that is built to keep them."""
    BACK_CHAIN = "back chain"
    PT_REGS = "pt_regs"
    PARTIAL_PT_REGS = "partial pt_regs"
    """Only the words that the CPU itself pushes for an exception."""
    FUNCTION_GRAPH = "function graph"
    """The traced function's real return address, from the task's shadow stack."""
    KRETPROBE = "kretprobe"
    """The probed function's real return address, from the task's list of probes."""
    DWARF = "dwarf cfi"
    """Call frame information of debug files; the return address was on the stack."""
    DWARF_LINK = "dwarf cfi, link register"
    """The same; the function had not saved its return address, or had restored it already."""
    SFRAME = "sframe"
    SFRAME_LINK = "sframe, link register"
    ENTRY = "word at a function's entry"
    """The function made its call from its very entry, where the return address is at SP."""
    BPF_FRAME_POINTER = "bpf frame pointer"
    SEARCH = "search for the call"
    """No metadata: the first word on the stack that follows a call to the function below. Never
    reliable."""
    GUESS = "frame pointer guess"
    """No metadata: the frame pointer was taken for granted. Never reliable."""


class Frame(NamedTuple):
    """One function that the task may return to."""

    code: Code
    sp: int
    """The stack pointer while this function's callee had not yet been called."""
    found_by: FoundBy

    @property
    def pc(self) -> int:
        """The return address, or the interrupted instruction's address."""
        return self.code.pc

    @property
    def function(self) -> str:
        """The function's name, or the address where it has none."""
        return self.code.function


class Trace(NamedTuple):
    """The frames of a walk as far as other tasks' walks can have them too: all but the place of
    the stack."""

    codes: tuple[Code, ...]
    found_by: tuple[FoundBy, ...]
    offsets: tuple[int, ...]
    """Each frame's stack pointer, counted from the task's stack, in bytes."""


class Frames(Sequence[Frame]):
    """The frames of a task: a trace, which many tasks share, on the task's own stack.

    :param base: the lowest address of the stack.
    """

    __slots__ = ("trace", "base")

    def __init__(self, trace: Trace, base: int) -> None:
        self.trace = trace
        self.base = base

    @classmethod
    def of(cls, frames: Iterable[Frame], base: int = 0) -> Frames:
        """Any frames as such."""
        if isinstance(frames, cls):
            return frames
        found = [(f.code, f.found_by, f.sp - base) for f in frames]
        return cls(Trace(*zip(*found, strict=True)) if found else Trace((), (), ()), base)

    def __len__(self) -> int:
        return len(self.trace.codes)

    def __iter__(self) -> Iterator[Frame]:
        base = self.base
        for code, found_by, offset in zip(*self.trace, strict=True):
            yield Frame(code, base + offset, found_by)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Frame, ...]: ...
    def __getitem__(self, index: int | slice) -> Frame | tuple[Frame, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        codes, found_by, offsets = self.trace
        return Frame(codes[index], self.base + offsets[index], found_by[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class Reason(NamedTuple):
    """One thing that is wrong with a trace, with its evidence.

    ``id`` names a row of :data:`drgn_reliable.reasons.CATALOGUE`.
    """

    id: str
    pc: int | None
    sp: int | None
    frame: int
    """How many frames had been found when this was seen."""
    detail: str
    value: int | None = None
    """What was read where something else was expected."""


class End(str, Enum):
    """How a walk ended."""

    USER_REGS = "user registers"
    END_OF_STACK = "end of stack"
    NO_STACK = "stack released"
    STOPPED = "stopped"


@dataclass(slots=True)
class Walk:
    """What one walk of one stack found, before anyone judges it."""

    frames: list[Frame] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    """In the order in which they were met; see :mod:`drgn_reliable.judge`."""
    end: End = End.STOPPED
    _entries: tuple[int, ...] | None = None

    def entries(self) -> tuple[int, ...]:
        """The program counters of the frames, of a walk that is finished."""
        if self._entries is None:
            self._entries = tuple([frame.code.pc for frame in self.frames])
        return self._entries

    def note(
        self, id: str, detail: str, *, pc: int | None, sp: int | None, value: int | None = None
    ) -> None:
        """Add a reason at the present frame."""
        self.reasons.append(Reason(id, pc, sp, len(self.frames), detail, value))


class KernelVerdict(str, Enum):
    """What the dumped kernel's ``stack_trace_save_tsk_reliable()`` would have answered."""

    RELIABLE = "reliable"
    UNRELIABLE = "unreliable"
    RUNNING = "running"
    UNSUPPORTED = "unsupported"


class ProofVerdict(str, Enum):
    """What the dump can show."""

    PROVEN = "proven"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


class KernelAnswer(NamedTuple):
    """The kernel verdict with what the kernel would have returned."""

    verdict: KernelVerdict
    errno: int
    """0, or the negative error number (see :mod:`drgn_reliable.judge`)."""
    entries: tuple[int, ...]
    """Return addresses in the kernel's own order; empty unless reliable."""


class ProofAnswer(NamedTuple):
    """The proof verdict with the trace that it speaks of."""

    verdict: ProofVerdict
    entries: tuple[int, ...]
    """Everything that was found; where not proven, not to be relied upon."""


class TaskKind(str, Enum):
    """How the livepatch code meets the task."""

    USER = "user"
    KTHREAD = "kthread"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task and all that is said of it."""

    task: int
    """Address of its ``struct task_struct``."""
    pid: int
    tgid: int
    cpu: int
    comm: str
    state: str
    """One letter, as ``/proc/PID/stat`` shows it."""
    kind: TaskKind
    kernel: KernelAnswer
    proof: ProofAnswer
    frames: Sequence[Frame]
    """Innermost first; usually :class:`Frames`."""
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class DumpReport:
    """Every task of one dump."""

    dump: str
    release: str
    architecture: str
    unwinder: str
    types: str
    symbols: str
    tasks: tuple[TaskReport, ...]
    problems: tuple[str, ...] = ()
    """What kept the scan from seeing every task, one line each; empty when nothing did."""
    warnings: tuple[str, ...] = ()
    """What is damaged and might have decided more proofs, and what changed in a living kernel
    while it was looked at, one line each: verdicts are right without it."""


@dataclass(frozen=True)
class CapsuleSummary:
    """What went into a capsule (:mod:`drgn_reliable.capsule`), and what did not."""

    path: str
    size: int
    """Of the file, in bytes."""
    page_size: int
    """Bytes."""
    pages: int
    """Pages of memory in the capsule."""
    left_out_pages: int
    """Pages that the dump has and the capsule does not."""
    original_size: int
    """Of the dump's file, in bytes."""
    text: bool
    """Whether the kernel's code is in it."""
    report: DumpReport
    """What a scan of the capsule says of the tasks that were kept."""
