# SPDX-License-Identifier: LGPL-2.1-or-later
"""Give back return addresses that a tracer replaced (section 4.4).

The function graph tracer and return probes put the address of a trampoline in place of a
return address and keep the real one in a list of the task's own. Each finder here answers as
the kernel's does, and keeps the same cursor from one lookup of a walk to the next.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from drgn import Program, Type, TypeKind

from drgn_reliable.memory import MASK, Layout, byte_order, member_offset
from drgn_reliable.symbols import Symbols
from drgn_reliable.tasks import Task

__all__ = ("Cursor", "FunctionGraph", "ReturnProbes")

_ARRAY_LIMIT = 50
"""``FTRACE_RETFUNC_DEPTH``: entries of the array form (before 6.11)."""
_WORD_LIMIT = 8192
"""The shadow stack of words never exceeds one page of 64 KiB."""
_DISTANCE_MASK = 0x3FF
"""Bits of a shadow word that tell how many words below it its entry begins."""
_NODE_LIMIT = 4096


class Cursor:
    """Where the lookups of one walk have got to."""

    __slots__ = ("graph_index", "probe_node")

    def __init__(self) -> None:
        self.graph_index = 0
        self.probe_node = 0


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
        pointed: Type = task.member("ret_stack").type.type
        self._words = pointed.kind != TypeKind.STRUCT
        entry = prog.type("struct ftrace_ret_stack")
        self._entry_size = entry.size or 0
        self._entry = Layout(entry, {"ret": "ret", "slot": "retp"})

    def find(self, task: Task, cursor: Cursor, slot: int) -> int | None:
        """The real return address for the stack slot, or None.

        :param slot: the key that was stored at the function's entry: on x86 the address of the
            stack slot that holds the return address.
        :raises drgn.FaultError: if the dump lacks the shadow stack.
        """
        if not task.ret_stack:
            return None
        return (self._find_word if self._words else self._find_entry)(task, cursor, slot)

    def _find_entry(self, task: Task, cursor: Cursor, slot: int) -> int | None:
        for index in range(min(task.ret_stack_used + 1, _ARRAY_LIMIT)):
            entry = self._entry.read(self._prog, task.ret_stack + index * self._entry_size)
            if entry["slot"] == slot:
                return int(entry["ret"])
        return None

    def _find_word(self, task: Task, cursor: Cursor, slot: int) -> int | None:
        offset = cursor.graph_index or task.ret_stack_used
        if offset > _WORD_LIMIT:
            return None
        while offset > 0:
            offset -= 1
            distance = self._prog.read_u64(task.ret_stack + 8 * offset & MASK) & _DISTANCE_MASK
            if not 0 < distance <= offset:
                return None
            offset -= distance
            entry = self._entry.read(self._prog, task.ret_stack + 8 * offset)
            # Calls in tail position leave several entries for one slot; only the last of them
            # has the real address.
            if entry["slot"] == slot and entry["ret"] != self.trampoline:
                cursor.graph_index = offset
                return int(entry["ret"])
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
        node = cursor.probe_node
        following = self._next(node) if node else task.return_hooks
        for _ in range(_NODE_LIMIT):
            if not following:
                return None
            node = following
            fields = self._node.read(self._prog, node - self._node.offsets["next"])
            following = fields["next"]
            # Probes on one function chain trampolines; the oldest has the real address.
            if fields["ret"] == self.trampoline:
                continue
            cursor.probe_node = node
            if fields["key"] == key:
                return int(fields["ret"])
        return None

    def _next(self, node: int) -> int:
        found: int = struct.unpack(self._order + "Q", self._prog.read(node, 8))[0]
        return found
