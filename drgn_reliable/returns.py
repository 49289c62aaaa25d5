# SPDX-License-Identifier: LGPL-2.1-or-later
"""Give back return addresses that a tracer replaced (section 4.4).

The function graph tracer and return probes put the address of a trampoline in place of a
return address and keep the real one in a list of the task's own. Each finder here answers as
the kernel's does, and keeps the same cursor from one lookup of a walk to the next.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from drgn import Program, TypeKind

from drgn_reliable.memory import (
    MASK,
    BrokenList,
    Layout,
    byte_order,
    member_offset,
    pointed_type,
    size_of,
)
from drgn_reliable.symbols import Symbols
from drgn_reliable.tasks import Task

__all__ = ("Cursor", "FunctionGraph", "ReturnProbes")

_ENTRY_LIMIT = 2048
"""Entries of a shadow stack: the array has 50 (``FTRACE_RETFUNC_DEPTH``, before 6.11), the stack of
words is a page of at most 64 KiB, of which an entry takes four words."""
_DISTANCE_MASK = 0x3FF
"""Bits of a shadow word that tell how many words below it its entry begins."""
_NODE_LIMIT = 4096


class Cursor:
    """Where the lookups of one walk have got to."""

    __slots__ = ("graph_found", "graph_index", "probe_node", "probes_found")

    def __init__(self) -> None:
        self.graph_index = 0
        self.probe_node = 0
        self.graph_found = self.probes_found = 0
        """How many addresses have been given back."""


class FunctionGraph:
    """``ftrace_graph_ret_addr()``, in the form with an array of entries (before 6.11) and in the
    form with a stack of words (since).

    :attr:`trampoline` is the address of ``return_to_handler``, None if the kernel has no tracer.
    """

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        self._prog = prog
        self.trampoline = symbols.address("return_to_handler")
        task = prog.type("struct task_struct")
        if member_offset(task, "ret_stack") is None:
            self.trampoline = None
        if self.trampoline is None:
            return
        self._words = pointed_type(task, "ret_stack").kind != TypeKind.STRUCT
        entry = prog.type("struct ftrace_ret_stack")
        self._entry_size = size_of(entry)
        self._entry = Layout(entry, {"ret": "ret", "slot": "retp"})

    def find(self, task: Task, cursor: Cursor, slot: int) -> int | None:
        """The real return address for the stack slot, or None.

        :param slot: the key that was stored at the function's entry: on x86 the address of the
            stack slot that holds the return address.
        :raises drgn.FaultError: if the dump lacks the shadow stack.
        :raises BrokenList: if it has more entries than there can be.
        """
        found = (self._find_word if self._words else self._find_entry)(task, cursor, slot)
        cursor.graph_found += found is not None
        return found

    def recorded(self, task: Task) -> int:
        """How many return addresses the task's shadow stack holds: of several entries for one call,
        as calls in tail position leave, only one has an address.

        :raises drgn.FaultError: if the dump lacks the shadow stack.
        :raises BrokenList: if it has more entries than there can be.
        """
        if self.trampoline is None or not task.ret_stack:
            return 0
        each = self._each_word(task, task.ret_stack_used) if self._words else self._each_entry(task)
        return sum(entry["ret"] != self.trampoline for _, entry in each)

    def _each_entry(self, task: Task) -> Iterator[tuple[int, dict[str, int]]]:
        """Index and contents of the array's entries, the oldest first."""
        for index in range(task.ret_stack_used + 1):
            place = task.ret_stack + index * self._entry_size & MASK
            if index == _ENTRY_LIMIT:
                raise BrokenList(place, f"more than {_ENTRY_LIMIT} entries")
            yield index, self._entry.read(self._prog, place)

    def _find_entry(self, task: Task, cursor: Cursor, slot: int) -> int | None:
        found = (entry["ret"] for _, entry in self._each_entry(task) if entry["slot"] == slot)
        return next(found, None)

    def _each_word(self, task: Task, offset: int) -> Iterator[tuple[int, dict[str, int]]]:
        """Offset in words and contents of the entries below an offset, the youngest first."""
        seen = 0
        while offset > 0:
            if seen == _ENTRY_LIMIT:
                at = task.ret_stack + 8 * offset & MASK
                raise BrokenList(at, f"more than {_ENTRY_LIMIT} entries")
            seen += 1
            offset -= 1
            distance = self._prog.read_u64(task.ret_stack + 8 * offset & MASK) & _DISTANCE_MASK
            if not 0 < distance <= offset:
                return
            offset -= distance
            yield offset, self._entry.read(self._prog, task.ret_stack + 8 * offset & MASK)

    def _find_word(self, task: Task, cursor: Cursor, slot: int) -> int | None:
        for offset, entry in self._each_word(task, cursor.graph_index or task.ret_stack_used):
            # Calls in tail position leave several entries for one slot; only the last of them
            # has the real address.
            if entry["slot"] == slot and entry["ret"] != self.trampoline:
                cursor.graph_index = offset
                return entry["ret"]
        return None


class _Flavour(NamedTuple):
    """One implementation of return probes in the kernel."""

    trampoline: str
    finder: str
    """The function whose presence shows that the kernel's unwinder looks addresses up."""
    task_list: str
    """Path of the list's first node in ``struct task_struct``."""
    node_type: str
    key: str
    """The node's member that holds the key of the lookup."""
    refuses_runnable: bool
    """The finder answers 0 for a task whose state is TASK_RUNNING."""


_FLAVOURS = (
    _Flavour(
        "arch_rethook_trampoline",
        "rethook_find_ret_addr",
        "rethooks.first",
        "struct rethook_node",
        "frame",
        True,
    ),
    _Flavour(
        "__kretprobe_trampoline",
        "kretprobe_find_ret_addr",
        "kretprobe_instances.first",
        "struct kretprobe_instance",
        "fp",
        False,
    ),
)


class ReturnProbes:
    """``rethook_find_ret_addr()`` (since 5.18) or ``kretprobe_find_ret_addr()`` (since 5.15),
    whichever the kernel has.

    :attr:`trampoline` is the address that they put on the stack, None if the kernel has neither.
    :attr:`task_list` is the path of the list in ``struct task_struct``, or None.
    :attr:`name` is what the kernel calls an entry of the list.
    """

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        self._prog = prog
        flavour = next((f for f in _FLAVOURS if symbols.address(f.finder) is not None), None)
        self.trampoline = symbols.address(flavour.trampoline) if flavour else None
        self.task_list = flavour.task_list if flavour and self.trampoline else None
        self.name = flavour.node_type.removeprefix("struct ") if flavour else "none"
        self.refuses_runnable = bool(flavour and flavour.refuses_runnable)
        if flavour and self.trampoline:
            self._node = Layout(
                prog.type(flavour.node_type),
                {"next": "llist.next", "ret": "ret_addr", "key": flavour.key},
            )
            self._order = byte_order(prog)

    def find(self, task: Task, cursor: Cursor, key: int) -> int | None:
        """The real return address, or None.

        The kernel's refusal of runnable tasks is for the caller to apply, see
        :attr:`refuses_runnable`: the dump's list holds the address all the same.

        :raises drgn.FaultError: if the dump lacks a node.
        """
        for node, fields in self._each(task, cursor.probe_node):
            # Probes on one function chain trampolines; the oldest has the real address.
            if fields["ret"] == self.trampoline:
                continue
            if not fields["ret"]:  # as the kernel, which takes it for the list's end
                return None
            cursor.probe_node = node
            if fields["key"] == key:
                cursor.probes_found += 1
                return fields["ret"]
        return None

    def recorded(self, task: Task) -> int:
        """How many return addresses the task's list holds.

        :raises drgn.FaultError: if the dump lacks a node.
        """
        return sum(fields["ret"] != self.trampoline for _, fields in self._each(task, 0))

    def _each(self, task: Task, after: int) -> Iterator[tuple[int, dict[str, int]]]:
        """The nodes after one, or from the first if that is 0, the youngest first."""
        if self.trampoline is None:
            return
        node = self._next(after) if after else task.return_hooks
        for _ in range(_NODE_LIMIT):
            if not node:
                return
            fields = self._node.read(self._prog, node - self._node.offsets["next"] & MASK)
            yield node, fields
            node = fields["next"]

    def _next(self, node: int) -> int:
        found: int = struct.unpack(self._order + "Q", self._prog.read(node, 8))[0]
        return found
