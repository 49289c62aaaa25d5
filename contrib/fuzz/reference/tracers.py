# SPDX-License-Identifier: LGPL-2.1-or-later
"""Return addresses that tracers replaced: ``ftrace_graph_ret_addr()`` (kernel/trace/fgraph.c, in
its form before 6.11 and since), ``rethook_find_ret_addr()`` (kernel/trace/rethook.c) and
``kretprobe_find_ret_addr()`` (kernel/kprobes.c).
"""

from __future__ import annotations

import drgn

from contrib.fuzz.reference.answers import Fault
from contrib.fuzz.reference.machine import LOOPS, Machine

OFFSET_BITS = 0x3FF


class Tracers:
    """The cursors of one walk."""

    def __init__(self, machine: Machine, task: int) -> None:
        self.m = machine
        self.task = task
        self.graph = 0
        self.hook = 0
        self.handler = machine.symbol("return_to_handler")
        self.rethook = machine.symbol("rethook_find_ret_addr") is not None
        """Which of the two kinds of return probes the kernel has."""
        self.probe_trampoline: int | None = None
        if self.rethook:
            self.probe_trampoline = machine.symbol("arch_rethook_trampoline")
        elif machine.symbol("kretprobe_find_ret_addr") is not None:
            self.probe_trampoline = machine.symbol("__kretprobe_trampoline")

    # The function graph tracer -------------------------------------------------------------

    def graph_return(self, ret: int, retp: int) -> int:
        """``ftrace_graph_ret_addr()``; what it was given, if it does not know better."""
        if self.handler is None or ret != self.handler or not self.has_graph:
            return ret
        m, task = self.m, self.task
        used = m.get("task_struct", task, "curr_ret_stack")
        stack = m.get("task_struct", task, "ret_stack")
        size = m.size("ftrace_ret_stack")
        if not self._of_words:
            for index in range(used + 1):
                entry = stack + index * size
                if m.get("ftrace_ret_stack", entry, "retp") == retp:
                    return m.get("ftrace_ret_stack", entry, "ret")
            return ret
        at = self.graph or used
        while at > 0:
            distance = m.number(stack + 8 * (at - 1)) & OFFSET_BITS
            if not 0 < distance <= at - 1:
                break
            at -= 1 + distance
            entry = stack + 8 * at
            real = m.get("ftrace_ret_stack", entry, "ret")
            if m.get("ftrace_ret_stack", entry, "retp") == retp and real != self.handler:
                self.graph = at
                return real
        return ret

    @property
    def has_graph(self) -> bool:
        return self.m.has("task_struct", "ret_stack")

    @property
    def _of_words(self) -> bool:
        pointer = self.m.types.type("struct task_struct").member("ret_stack").type
        return bool(pointer.type.kind != drgn.TypeKind.STRUCT)

    # Return probes -------------------------------------------------------------------------

    def probe_return(self, frame: int) -> int:
        """``rethook_find_ret_addr()`` or ``kretprobe_find_ret_addr()``: 0 if there is none."""
        m = self.m
        node_type, key, first = "kretprobe_instance", "fp", "kretprobe_instances.first"
        if self.rethook:
            node_type, key, first = "rethook_node", "frame", "rethooks.first"
            if not m.get("task_struct", self.task, "__state"):
                return 0
        at = m.offset(node_type, "llist")
        node = m.number(self.hook) if self.hook else m.get("task_struct", self.task, first)
        for _ in range(LOOPS):
            if not node:
                return 0
            real = m.get(node_type, node - at, "ret_addr")
            if real != self.probe_trampoline:
                if not real:
                    return 0
                self.hook = node
                if m.get(node_type, node - at, key) == frame:
                    return real
            node = m.number(node)
        raise Fault("the list of probed returns has no end")
