# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump with many more tasks than it had."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from random import Random

from drgn import FaultError, sizeof
from drgn.helpers.linux.idr import idr_for_each

from contrib.scale.clones import Clones, Places, Sizes
from contrib.scale.idr import PidTree
from contrib.scale.machines import Machine, machine_of
from contrib.scale.memory import Memory, PageTables, align_up
from contrib.scale.plan import Plan, make_plan
from contrib.scale.templates import Template, find_templates, offset_of, pid_size
from drgn_reliable import Kernel, open_dump
from drgn_reliable.errors import UsageError
from drgn_reliable.files.kdump import KdumpFile
from drgn_reliable.files.kdumpwriter import KdumpSummary, write_kdump
from drgn_reliable.opening import opened_dump

__all__ = ("Crowd", "write_crowd")

_PID_MAX = 1 << 22
"""``PID_MAX_LIMIT`` of 64-bit machines."""
_SLAB_PAGES = 8
"""Pages of a slab of task structures."""
_CACHE_LINE = 64
_LOWEST = 1 << 32
"""Where added memory begins, at least: what machines have below 4 GiB is their own affair."""


@dataclass(frozen=True)
class Crowd:
    """What was written."""

    file: KdumpSummary
    templates: list[Template]
    plan: Plan
    first_pid: int
    """The PID of the first clone; the others follow in their order."""


class _Layout:
    """The new memory: regions of pages, one after the other.

    :param base: physical address.
    """

    def __init__(self, base: int, page_size: int) -> None:
        self.end = base
        self._page_size = page_size

    def take(self, size: int) -> int:
        """The physical address of a new region."""
        start = self.end
        self.end += align_up(size, self._page_size)
        return start

    def page(self) -> int:
        """The page frame number of a new page."""
        return self.take(self._page_size) // self._page_size


class _Maker:
    """Makes the dump's new memory, and changes what has to lead to it."""

    def __init__(
        self, kernel: Kernel, file: KdumpFile, tasks: int, seed: int, scattered: bool
    ) -> None:
        self._kernel = kernel
        self._file = file
        self._memory = Memory(file)
        self._machine = machine_of(kernel, self._memory)
        self._page_size = self._machine.paging.page_size
        self._sizes = self._find_sizes(self._machine)
        self._pids = self._known_pids()
        self.first_pid = max(self._pids) + 1
        if self.first_pid + tasks >= _PID_MAX:
            raise UsageError(f"--tasks {tasks}: a machine has at most {_PID_MAX} PIDs")
        self.templates = find_templates(kernel, self._sizes.stack, self._sizes.task)
        if not self.templates:
            raise UsageError(f"{kernel.path}: has no task that can be cloned")
        weights = [template.weight for template in self.templates]
        self.plan = make_plan(tasks, weights, Random(seed), scattered=scattered)
        self._lay_out(seed)

    def _find_sizes(self, machine: Machine) -> Sizes:
        addresses = sorted(task.address for task in self._kernel.tasks)
        # The slab allocator has put some side by side; their type says less, for the end of
        # struct task_struct is as long as the CPU needs it to be.
        task = min(b - a for a, b in pairwise(addresses))
        slab = _SLAB_PAGES * self._page_size
        signal = sizeof(self._kernel.prog.type("struct signal_struct"))
        return Sizes(
            task,
            slab // task,
            slab,
            machine.stack_size,
            machine.stack_stride,
            align_up(pid_size(self._kernel), _CACHE_LINE),
            align_up(signal, _CACHE_LINE),
        )

    def _known_pids(self) -> dict[int, int]:
        idr = self._kernel.prog.object("init_pid_ns").idr.address_of_()
        return {number: pointer.value_() for number, pointer in idr_for_each(idr)}

    def _lay_out(self, seed: int) -> None:
        """Decide where everything is."""
        plan, sizes, paging = self.plan, self._sizes, self._machine.paging
        block = 1 << paging.block_shift
        highest = self._file.header.max_pfn * self._page_size
        base = align_up(max(highest, _LOWEST), block)
        layout = _Layout(base, self._page_size)
        slabs = -(-plan.tasks // sizes.tasks_in_slab)
        self._span = 1 << paging.shift(1)
        self._tables = -(-plan.tasks * sizes.stack_stride // self._span)
        tables = layout.take(self._tables * self._page_size)
        tasks = layout.take(slabs * sizes.slab)
        self._stacks = layout.take(plan.tasks * sizes.stack)
        pids = layout.take(plan.tasks * sizes.pid)
        signals = layout.take(plan.processes * sizes.signal)
        tree = layout.take(0)
        head = self._kernel.symbols.required("init_pid_ns") + offset_of(
            self._kernel, "struct pid_namespace", "idr.idr_rt"
        )
        self._tree = PidTree(self._kernel, self._pid_pointer, self.first_pid + plan.tasks, head)
        self._nodes_in_page = self._page_size // self._tree.node_size
        layout.take(-(-self._tree.nodes // self._nodes_in_page) * self._page_size)
        self._page_tables = PageTables(self._memory, paging, self._machine.root, layout.page)
        linear = self._linear_map()
        stacks = self._free_range(self._tables * self._span)
        self._map(tables, stacks, linear, base, layout)
        self._tree_at = linear + tree
        places = Places(linear + tasks, stacks, linear + pids, linear + signals, self.first_pid)
        init_node = self._kernel.symbols.required("init_task") + offset_of(
            self._kernel, "struct task_struct", "tasks"
        )
        last = self._word(init_node + 8)
        self._clones = Clones(
            self._kernel, self.templates, plan, sizes, places, (last, init_node), seed
        )
        self._base = base
        self._attach(init_node, last, head)

    def _pid_pointer(self, number: int) -> int:
        clone = number - self.first_pid
        return self._pids.get(number, 0) if clone < 0 else self._clones.pid(clone)

    def _word(self, address: int) -> int:
        word: int = self._kernel.prog.read_u64(address)
        return word

    def _linear_map(self) -> int:
        """The virtual address of physical address 0, by that of a task structure."""
        task = self.templates[0].task.address
        return task - self._page_tables.physical(task)

    def _free_range(self, size: int) -> int:
        """The address of virtual memory near the stacks of the dump where nothing is mapped."""
        paging = self._machine.paging
        step = 1 << paging.shift(2)
        start = at = align_up(max(template.task.stack for template in self.templates), step)
        while at < start + size:
            if self._page_tables.entry(at, lowest=2)[0]:
                start = at + step
            at += step
        return start

    def _map(self, tables: int, stacks: int, linear: int, base: int, layout: _Layout) -> None:
        """Map the stacks and the new memory. The tables for that are the last of the new memory."""
        paging = self._machine.paging
        for number in range(self._tables):
            entry = tables + number * self._page_size | paging.table_flags
            self._page_tables.set(stacks + number * self._span, 1, entry)
        at = base
        while at < layout.end:
            self._page_tables.map_block(linear + at, at)
            at += 1 << paging.block_shift

    def _attach(self, init_node: int, last: int, head: int) -> None:
        """Let the kernel's lists lead to the clones."""
        clones, plan = self._clones, self.plan
        self._write(last, struct.pack("<Q", clones.leader_node(0)))
        self._write(init_node + 8, struct.pack("<Q", clones.leader_node(plan.processes - 1)))
        root = offset_of(self._kernel, "struct xarray", "xa_head")
        self._write(head + root, struct.pack("<Q", self._tree.root(self._node)))
        threads = self._kernel.symbols.required("nr_threads")
        with contextlib.suppress(FaultError):  # a small dump may not have it: nobody asks
            (count,) = struct.unpack("<i", self._kernel.prog.read(threads, 4))
            self._write(threads, struct.pack("<i", count + plan.tasks))

    def _node(self, number: int) -> int:
        """The address of a node of the tree of PIDs."""
        page, place = divmod(number, self._nodes_in_page)
        at: int = self._tree_at + page * self._page_size + place * self._tree.node_size
        return at

    def _write(self, address: int, data: bytes) -> None:
        self._memory.write(self._page_tables.physical(address), data)

    # The pages ----------------------------------------------------------------------------

    def pages(self) -> Iterator[tuple[int, bytes | bytearray]]:
        """All pages of the dump, in ascending order."""
        yield from self._memory.pages()
        clones, size = self._clones, self._page_size
        nodes = self._tree.contents(self._node)
        number = self._base // size
        for page in chain(
            self._leaf_tables(),
            self._cut(clones.task_slabs()),
            self._stack_pages(),
            self._cut(clones.pids()),
            self._cut(clones.signals()),
            self._packed(nodes, self._nodes_in_page),
        ):
            if page is not None:
                yield number, page
            number += 1
        new = sorted(each for each in self._memory.changed if each >= number)
        yield from ((each, self._memory.changed[each]) for each in new)

    def _leaf_tables(self) -> Iterator[bytes]:
        """The tables that map the stacks."""
        paging, sizes = self._machine.paging, self._sizes
        entries = self._span // self._page_size
        stride, used = sizes.stack_stride // self._page_size, sizes.stack // self._page_size
        slot = 0
        for _ in range(self._tables):
            table = [0] * entries
            for first in range(0, entries, stride):
                if slot < self.plan.tasks:
                    at = self._stacks + slot * sizes.stack
                    table[first : first + used] = [
                        at + page * self._page_size | paging.page_flags for page in range(used)
                    ]
                slot += 1
            yield struct.pack(f"<{entries}Q", *table)

    def _stack_pages(self) -> Iterator[bytes | None]:
        for stack, present in self._clones.stacks():
            for number, here in enumerate(present):
                at = number * self._page_size
                yield stack[at : at + self._page_size] if here else None

    def _cut(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """Pages of what lies side by side."""
        rest = b""
        for part in parts:
            rest += part
            whole = len(rest) // self._page_size * self._page_size
            for at in range(0, whole, self._page_size):
                yield rest[at : at + self._page_size]
            rest = rest[whole:]
        if rest:
            yield rest.ljust(self._page_size, b"\0")

    def _packed(self, parts: Iterator[bytes], count: int) -> Iterator[bytes]:
        """Pages of so many parts each."""
        page = bytearray()
        for number, part in enumerate(parts, 1):
            page += part
            if number % count == 0:
                yield bytes(page).ljust(self._page_size, b"\0")
                page.clear()
        if page:
            yield bytes(page).ljust(self._page_size, b"\0")


def write_crowd(
    dump: str,
    output: str | os.PathLike[str],
    tasks: int,
    *,
    seed: int = 0,
    scattered: bool = False,
    compression: str = "zlib",
) -> Crowd:
    """Write a dump that has some number of tasks more, clones of its own.

    :param tasks: how many clones.
    :param seed: equal seeds give equal files.
    :param scattered: as for :func:`contrib.scale.plan.make_plan`.
    :param compression: as for :func:`drgn_reliable.files.kdumpwriter.write_kdump`.
    :raises UsageError: if clones of the dump's tasks cannot be made.
    """
    kernel = Kernel(open_dump(dump))
    opened = opened_dump(kernel.prog)
    if opened is None or not isinstance(opened.file, KdumpFile):
        raise UsageError(
            f"{dump}: not a kdump-compressed file; make one of it with drgn-reliable capsule"
        )
    maker = _Maker(kernel, opened.file, tasks, seed, scattered)
    header = opened.file.header
    written = write_kdump(
        output,
        pages=maker.pages(),
        page_size=header.page_size,
        uts=header.uts,
        nr_cpus=header.nr_cpus,
        vmcoreinfo=kernel.prog["VMCOREINFO"].string_(),
        notes=opened.notes,
        phys_base=header.phys_base,
        compression=compression,
        store_once=False,
    )
    return Crowd(written, maker.templates, maker.plan, maker.first_pid)
