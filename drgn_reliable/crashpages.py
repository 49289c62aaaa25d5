# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read what the crash utility reads: before its prompt, for its list of tasks, and for stacks.

From a program that records its reads (:mod:`drgn_reliable.capsule`) crash can then open what was
recorded. The tables say what is read and why; what needs more than a place and a size follows
them. Whatever the kernel or the dump lacks is passed over. Two things are for the caller to have
read already: the tree of the processes' identifiers, and the banner.
"""

from __future__ import annotations

import struct
from contextlib import suppress

from drgn import FaultError, Object, TypeKind, sizeof

from drgn_reliable.errors import MissingInformation
from drgn_reliable.files.vmcoreinfo import number_in
from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import MASK, member_offset
from drgn_reliable.tasks import cpus_in_mask

__all__ = ("read_for_crash",)

_Row = tuple[str, int | str, str]
"""A symbol, how much is read of it (bytes or a type), and what it tells crash."""

_GLOBALS: tuple[_Row, ...] = (
    ("page_offset_base", 8, "start of the direct map, which KASLR moves"),
    ("vmalloc_base", 8, "start of the vmalloc area, which KASLR moves"),
    ("vmemmap_base", 8, "start of the page structures, which KASLR moves"),
    ("high_memory", 8, "end of the direct map"),
    ("_totalram_pages", 8, "size of memory"),
    ("nr_swapfiles", 4, "whether there is swap"),
    ("node_states", 1024, "which NUMA nodes there are"),
    ("pv_ops", 8, "whether it is a Xen guest"),
    ("xen_start_info", 8, "the same"),
    ("__cpu_possible_mask", "struct cpumask", "which CPUs there can be"),
    ("__cpu_present_mask", "struct cpumask", "which CPUs there are"),
    ("__cpu_online_mask", "struct cpumask", "which CPUs are up"),
    ("__cpu_active_mask", "struct cpumask", "which CPUs take tasks"),
    ("cpu_khz", 4, "clock rate"),
    ("nr_irqs", 4, "number of interrupts"),
    ("idt_table", 4096, "exception stack of each vector"),
    ("lookup_num_blocks", 4, "size of the ORC index"),
    ("jiffies_64", 8, "time since boot"),
    ("shadow_timekeeper", "struct timekeeper", "time of day, in older kernels"),
    ("tk_core", "struct timekeeper", "time of day"),
    ("timekeeper_data", "struct timekeeper", "time of day, in newer ones"),
    ("avenrun", 24, "load average"),
    ("tainted_mask", 8, "taints"),
    ("taint_flags", 512, "letters of the taints"),
    ("crashing_cpu", 4, "CPU that crashed"),
    ("klp_transition_patch", 8, "whether a livepatch is in transition"),
    ("nr_threads", 4, "room for the tasks"),
    ("arch_task_struct_size", 4, "size of a task structure"),
    ("task_state_array", 72, "letters of the task states"),
    ("mt_slots", 8, "shape of a maple tree"),
    ("mt_pivots", 8, "shape of a maple tree"),
    ("prb", 8, "where the log is"),
)
_PER_CPU: tuple[_Row, ...] = (
    ("runqueues", "struct rq", "running task and idle task"),
    ("cpu_number", 4, "whether the CPU was set up"),
    ("pcpu_hot", 64, "that, current task and IRQ stack, 6.2 to 6.14"),
    ("current_task", 8, "current task"),
    ("hardirq_stack_ptr", 8, "IRQ stack"),
    ("cpu_tss_rw", "struct x86_hw_tss", "exception stacks"),
)

_STRING = 1500
"""Bytes that crash asks for to read a string, which it takes from whole pages only."""
_TASK_STATES = 9
_MODULE_BYTES = 8 << 20
"""Of modules' memory, which crash reads whole or not at all. Without it a module has no symbols."""
_CODE_PER_BYTE = 6
_CODE_LIMIT = 1 << 16
"""To learn a frame's size crash disassembles, from the function's start, as many instructions as
there are bytes up to the return address; if it cannot, it falls back to listing every return
address that it sees on the stack."""
_ORC_BLOCK = 256
"""Bytes of text for each word of ``orc_lookup``."""
_TASK_BYTES = 1 << 16
_LOG_BITS = 25
_POINTERS = 1 << 20
"""Limits for sizes that a damaged dump says."""

_ABSENT = (FaultError, LookupError, MissingInformation, OverflowError, TypeError, ValueError)
"""What reading raises where the kernel or the dump lacks something."""


def read_for_crash(kernel: Kernel) -> None:
    """Read what crash reads of an x86_64 kernel; the whole stacks and the log may hold secrets."""
    reader = _Reader(kernel)
    for name, size, _ in _GLOBALS:
        reader.variable(name, size)
    parts = [reader.cpus, reader.sections, reader.nodes, reader.slab, reader.names]
    parts += [reader.modules, reader.tasks, reader.unwinding, reader.log]
    for part in parts:
        with suppress(*_ABSENT):
            part()


class _Reader:
    """Reads the parts; one is left where something that it goes by is absent."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._prog = kernel.prog
        self._symbol = kernel.symbols.required
        self._page = number_in(kernel.vmcoreinfo, "PAGESIZE", 4096)
        self._seen: set[int] = set()
        self._per_cpu: list[int] = []
        """Offset of each CPU's variables."""
        self._return_addresses: set[int] = set()
        """Words on stacks that may be such."""

    def touch(self, address: int, size: int) -> None:
        """Read memory, or what there is of it."""
        first, last = (address & MASK) // self._page, (address + size - 1 & MASK) // self._page
        pages = [page for page in range(first, last + 1) if page not in self._seen]
        self._seen.update(pages)
        with suppress(*_ABSENT):
            if pages:
                self._prog.read(pages[0] * self._page, (pages[-1] - pages[0] + 1) * self._page)
                return
        for page in pages:
            with suppress(*_ABSENT):
                self._prog.read(page * self._page, 1)

    def size(self, what: int | str) -> int:
        return what if isinstance(what, int) else sizeof(self._prog.type(what))

    def pointer(self, name: str) -> int:
        """The value of a variable."""
        value: int = self._prog.read_u64(self._symbol(name))
        return value

    def variable(self, name: str, size: int | str, offset: int = 0) -> None:
        with suppress(*_ABSENT):
            self.touch(self._symbol(name) + offset, self.size(size))

    def cpus(self) -> None:
        """The per-CPU variables, and the stacks outside the tasks with their guard pages."""
        offsets, possible = self._symbol("__per_cpu_offset"), self._symbol("__cpu_possible_mask")
        self.touch(offsets, 64 * self.size("struct cpumask"))
        for cpu in cpus_in_mask(self._prog, possible):
            offset = self._prog.read_u64(offsets + 8 * cpu)
            self._per_cpu.append(offset)
            for name, size, _ in _PER_CPU:
                self.variable(name, size, offset)
            with suppress(*_ABSENT):
                for _, low, high in self._kernel.facts.cpu_stacks(cpu):
                    self.touch(low - self._page, high - low + 2 * self._page)
                    self._scan(low, high)

    def sections(self) -> None:
        """Which memory there is: pages of section structures, and the table of those."""
        for section in self._pointers("mem_section", self.pointer("mem_section")):
            self.touch(section, self._page)

    def nodes(self) -> None:
        """The sizes, free pages and names of each node's zones."""
        for address in self._pointers("node_data", self._symbol("node_data")):
            node = Object(self._prog, "struct pglist_data", address=address)
            self.touch(address, sizeof(node.node_zones))
            self.touch(node.node_start_pfn.address_, 64)
            for zone in node.node_zones:
                with suppress(*_ABSENT):
                    self.touch(zone.member_("name").value_(), _STRING)

    def slab(self) -> None:
        """The cache of caches: how large its objects are."""
        self.touch(self.pointer("kmem_cache"), self.size("struct kmem_cache"))

    def _pointers(self, name: str, table: int) -> list[int]:
        """Those in a table, whose length VMCOREINFO has, that are not null."""
        count = min(int(self._kernel.vmcoreinfo[f"LENGTH({name})"]), _POINTERS)
        data = self._prog.read(table, 8 * count)
        return [pointer for (pointer,) in struct.iter_unpack("<Q", data) if pointer]

    def names(self) -> None:
        """The names of task states and of page flags."""
        for i in range(_TASK_STATES):
            self.touch(self._prog.read_u64(self._symbol("task_state_array") + 8 * i), _STRING)
        flags = self._symbol("pageflag_names")
        for flag in Object(self._prog, "struct trace_print_flags [64]", address=flags):
            self.touch(flag.address_, sizeof(flag))
            if not flag.member_("name"):
                break
            self.touch(flag.member_("name").value_(), _STRING)

    def modules(self) -> None:
        """Their structures, and symbols with the memory around them (from 6.4 without text)."""
        by_type = member_offset(self._prog.type("struct module"), "mem") is not None
        left = _MODULE_BYTES
        found = []
        for module in self._kernel.modules:
            self.touch(module.address, self.size("struct module"))
            regions = [region for region in module.regions if not (by_type and region.text)]
            found.append((sum(r.end - r.start for r in regions), module.address, regions))
        for size, _, regions in sorted(found):
            left -= size
            if left < 0:
                break
            for region in regions:
                self.touch(region.start, region.end - region.start)

    def tasks(self) -> None:
        """Task structures, whole stacks, and the sizes of address spaces."""
        size = self._prog.read_u32(self._symbol("arch_task_struct_size"))
        for task in self._kernel.tasks:
            self.touch(task.address, min(size, _TASK_BYTES))
            if not task.stack:
                continue
            _, low, high = self._kernel.facts.task_stack(task.stack)
            self.touch(low, high - low)
            self.touch(task.saved_sp, 64)  # Crash looks there even if it is on no stack.
            used = low <= task.saved_sp < high and not task.on_cpu
            self._scan(task.saved_sp if used else low, high)
            with suppress(*_ABSENT):
                self._address_space(Object(self._prog, "struct task_struct", address=task.address))

    def _address_space(self, task: Object) -> None:
        mm = task.member_("mm")
        if not mm:
            return
        self.touch(mm.value_(), sizeof(mm[0]))
        counters = mm.member_("rss_stat")
        if counters.type_.kind != TypeKind.ARRAY:  # Before 6.2 they are not per CPU.
            return
        for counter in counters:
            for offset in self._per_cpu:
                self.touch(counter.member_("counters").value_() + offset, 4)

    def _scan(self, low: int, high: int) -> None:
        start, end = self._kernel.text.core
        with suppress(*_ABSENT):
            words = struct.iter_unpack("<Q", self._prog.read(low & -8, (high - low) & -8))
            self._return_addresses.update(word for (word,) in words if start <= word < end)

    def unwinding(self) -> None:
        """For each return address the ORC entries of its block and the code of its function."""
        start = self._kernel.text.core[0]
        index, ips, entries = map(
            self._symbol, ("orc_lookup", "__start_orc_unwind_ip", "__start_orc_unwind")
        )
        for address in sorted(self._return_addresses):
            named = self._kernel.symbols.at(address)
            if named:
                size = _CODE_PER_BYTE * (address - named.start) + 16
                self.touch(named.start, min(size, _CODE_LIMIT))
            with suppress(*_ABSENT):
                block = index + 4 * ((address - start) // _ORC_BLOCK)
                self.touch(block, 8)
                first, end = self._prog.read_u32(block), self._prog.read_u32(block + 4) + 1
                if 0 < end - first <= _ORC_BLOCK + 1:
                    self.touch(ips + 4 * first, 4 * (end - first))
                    self.touch(entries + 6 * first, 6 * (end - first))

    def log(self) -> None:
        """The log: where its three arrays are, and these."""
        self.touch(self.pointer("prb"), self.size("struct printk_ringbuffer"))
        log = Object(self._prog, "struct printk_ringbuffer", address=self.pointer("prb"))
        count = 1 << min(log.desc_ring.count_bits.value_(), _LOG_BITS)
        for array in (log.desc_ring.descs, log.desc_ring.infos):
            self.touch(array.value_(), count * sizeof(array[0]))
        text = log.text_data_ring
        self.touch(text.data.value_(), 1 << min(text.size_bits.value_(), _LOG_BITS))
