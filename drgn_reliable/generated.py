# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text that the running kernel made: ftrace trampolines, kprobe slots, BPF.

Each list is the one that the kernel itself consults in ``kernel_text_address()``, read from the
dump when an address first asks for it. A list that cannot be followed to its end gives what was
found and a line in :attr:`GeneratedText.problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple, TypeVar

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import BrokenList, Layout, container_nodes, missing
from drgn_reliable.symbols import Symbols

__all__ = ("BpfText", "FtraceOps", "FtraceTrampoline", "GeneratedText", "KprobePage")

_LIST_LIMIT = 1 << 20
_SAVE_REGS = 1 << 2
"""``FTRACE_OPS_FL_SAVE_REGS``, a macro since 4.11 and so in no type information."""


class FtraceOps(NamedTuple):
    """A registered user of ftrace (``struct ftrace_ops``)."""

    address: int
    callback: int
    flags: int
    trampoline: int
    """Where its own copy of the entry code begins, 0 if it has none."""
    size: int
    """Bytes of that."""


class FtraceTrampoline(NamedTuple):
    """A copy of ftrace's entry code, made for one ``struct ftrace_ops``."""

    start: int
    end: int
    saves_registers: bool
    """Copied from ``ftrace_regs_caller`` rather than from ``ftrace_caller``."""
    callback: int
    """Address of the function that it calls."""
    ops: int = 0
    """Address of the ``struct ftrace_ops``."""


class KprobePage(NamedTuple):
    """A page of instruction slots; the whole page counts as text, used or not."""

    start: int
    end: int
    optimised: bool


class BpfText(NamedTuple):
    """A BPF program, trampoline or dispatcher (``struct bpf_ksym``)."""

    start: int
    last: int
    """The last address that belongs to it: the kernel's comparison includes the end."""
    name: str
    frame_pointer_start: int
    """Offset in bytes from which the code keeps a frame pointer; 0 if never (before 7.0)."""
    frame_pointer_end: int
    ksym: int = 0
    """Address of the ``struct bpf_ksym``."""

    def keeps_frame_pointer(self, address: int) -> bool:
        """``bpf_has_frame_pointer()`` of Linux 7.0."""
        if not self.frame_pointer_start or not self.frame_pointer_end:
            return False
        return self.frame_pointer_start <= address - self.start < self.frame_pointer_end


_T = TypeVar("_T")


class GeneratedText:
    """The dump's lists of generated text."""

    def __init__(self, prog: Program, symbols: Symbols, page_size: int) -> None:
        self._prog = prog
        self._symbols = symbols
        self.page_size = page_size
        self.problems: list[str] = []

    def ftrace(self, address: int) -> FtraceTrampoline | None:
        """``ftrace_ops_trampoline()``."""
        return next((t for t in self._ftrace if t.start <= address < t.end), None)

    def kprobe(self, address: int) -> KprobePage | None:
        """``is_kprobe_optinsn_slot()`` and ``is_kprobe_insn_slot()``."""
        return next((p for p in self._kprobe_pages if p.start <= address < p.end), None)

    def bpf(self, address: int) -> BpfText | None:
        """``bpf_ksym_find()``."""
        return next((b for b in self._bpf if b.start <= address <= b.last), None)

    def everything(self) -> tuple[NamedTuple, ...]:
        """All the generated text that there is."""
        return (*self._ftrace, *self._kprobe_pages, *self._bpf)

    def _collect(self, what: str, found: Callable[[], Iterator[_T]]) -> list[_T]:
        """All that a walk of a kernel list yields before the list turns out to be broken."""
        rows = []
        try:
            for row in found():
                rows.append(row)
        except (BrokenList, FaultError, LookupError, MissingInformation) as e:
            self.problems.append(f"{what}: {missing(e)}")
        return rows

    @cached_property
    def _ftrace(self) -> list[FtraceTrampoline]:
        return [
            FtraceTrampoline(
                ops.trampoline,
                ops.trampoline + ops.size,
                bool(ops.flags & _SAVE_REGS),
                ops.callback,
                ops.address,
            )
            for ops in self._collect("ftrace ops", self.each_ops)
            if ops.trampoline and ops.size
        ]

    def each_ops(self) -> Iterator[FtraceOps]:
        """The registered users of ftrace, as far as their list can be followed.

        :raises BrokenList: if it loops.
        :raises drgn.FaultError: if the dump lacks a part.
        """
        head = self._symbols.address("ftrace_ops_list")
        if head is None:
            return
        layout = Layout(
            self._prog.type("struct ftrace_ops"),
            {
                "func": "func",
                "next": "next",
                "flags": "flags",
                "trampoline": "trampoline",
                "size": "trampoline_size",
            },
            optional={"trampoline", "size"},
        )
        last = self._symbols.address("ftrace_list_end")
        ops: int = self._prog.read_u64(head)
        seen: set[int] = set()
        while ops and ops != last:
            if ops in seen or len(seen) > _LIST_LIMIT:
                raise BrokenList(ops, "the list of ftrace ops loops")
            seen.add(ops)
            fields = layout.read(self._prog, ops)
            yield FtraceOps(
                ops,
                fields["func"],
                fields["flags"],
                fields["trampoline"] or 0,
                fields["size"] or 0,
            )
            ops = fields["next"]

    @cached_property
    def _kprobe_pages(self) -> list[KprobePage]:
        return [
            *self._pages_of("kprobe_optinsn_slots", True),
            *self._pages_of("kprobe_insn_slots", False),
        ]

    def _pages_of(self, name: str, optimised: bool) -> list[KprobePage]:
        cache = self._symbols.address(name)
        if cache is None:
            return []
        return self._collect(name, lambda: self._each_page(cache, optimised))

    def _each_page(self, cache: int, optimised: bool) -> Iterator[KprobePage]:
        caches = Layout(self._prog.type("struct kprobe_insn_cache"), {"pages": "pages.next"})
        layout = Layout(
            self._prog.type("struct kprobe_insn_page"), {"list": "list.next", "insns": "insns"}
        )
        head = cache + caches.offsets["pages"]
        for page in container_nodes(self._prog, head, layout.offsets["list"], _LIST_LIMIT):
            start = layout.read(self._prog, page)["insns"]
            yield KprobePage(start, start + self.page_size, optimised)

    @cached_property
    def _bpf(self) -> list[BpfText]:
        return self._collect("bpf_kallsyms", self.each_bpf)

    def each_bpf(self) -> Iterator[BpfText]:
        """The BPF code, as far as its list can be followed.

        :raises BrokenList: if the list is broken.
        :raises drgn.FaultError: if the dump lacks a part.
        """
        head = self._symbols.address("bpf_kallsyms")
        if head is None:
            return
        layout = Layout(
            self._prog.type("struct bpf_ksym"),
            {
                "start": "start",
                "end": "end",
                "name": "name",
                "node": "lnode.next",
                "fp_start": "fp_start",
                "fp_end": "fp_end",
            },
            optional={"fp_start", "fp_end"},
            text=("name",),
        )
        for ksym in container_nodes(self._prog, head, layout.offsets["node"], _LIST_LIMIT):
            fields = layout.read(self._prog, ksym)
            name = fields["name"].split(b"\0")[0].decode("utf-8", "backslashreplace")
            yield BpfText(
                fields["start"],
                fields["end"],
                name,
                fields["fp_start"] or 0,
                fields["fp_end"] or 0,
                ksym,
            )
