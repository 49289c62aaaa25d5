# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump made by hand: a real drgn program over memory, types and symbols that a test spells out.

>>> memory = FakeMemory()
>>> types = FakeTypes(memory.prog)
>>> point = types.struct("point", x="int", tag="char [3]", y="unsigned long")
>>> memory.put_struct(0xFFFF888000001000, "struct point", x=-1, tag=b"ab", y=7)
>>> memory.prog.read_u64(0xFFFF888000001000 + 8)
7
>>> memory.prog.read(0xFFFF888000001000, 6)
b'\\xff\\xff\\xff\\xffab'
>>> symbols = FakeSymbols({"_etext": 0x2000}, functions={"foo": 0x1000, "bar": 0x1100})
>>> symbols.at(0x10FF), symbols.address("_etext"), symbols.first("gone", "bar")
(Named(name='foo', start=4096), 8192, 4352)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from drgn import (
    Architecture,
    Object,
    Platform,
    PlatformFlags,
    Program,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeKindSet,
    TypeMember,
    alignof,
    sizeof,
)

from drgn_reliable.symbols import Named, Symbols

MASK = (1 << 64) - 1


class FakeMemory:
    """Memory for :attr:`prog`, a drgn program of x86_64.

    Whatever no ``put`` covers raises FaultError. Of two puts on the same bytes the later counts.
    """

    def __init__(self, *, little_endian: bool = True) -> None:
        flags = PlatformFlags.IS_64_BIT
        if little_endian:
            flags |= PlatformFlags.IS_LITTLE_ENDIAN
        self.prog = Program(Platform(Architecture.X86_64, flags))
        self._order = "<" if little_endian else ">"

    def put(self, address: int, data: bytes) -> None:
        """Bytes at an address."""

        def read(address: int, count: int, offset: int, physical: bool) -> bytes:
            return data[offset : offset + count]

        self.prog.add_memory_segment(address, len(data), read)

    def put_words(self, address: int, *words: int) -> None:
        """64-bit words, negative ones too, from an address on."""
        data = struct.pack(f"{self._order}{len(words)}Q", *[word & MASK for word in words])
        self.put(address, data)

    def put_u32(self, address: int, *values: int) -> None:
        """32-bit words, negative ones too, from an address on."""
        data = struct.pack(f"{self._order}{len(values)}I", *[v & 0xFFFFFFFF for v in values])
        self.put(address, data)

    def put_struct(self, address: int, type_name: str, /, **members: object) -> None:
        """A struct by its members, nested ones as dicts; what is not named is 0."""
        self.put(address, Object(self.prog, type_name, members).to_bytes_())

    def put_list(self, head: int, *nodes: int) -> None:
        """The links of a ``struct list_head`` list, put after the structs that hold the nodes."""
        ring = (head, *nodes)
        for i, node in enumerate(ring):
            self.put_words(node, ring[(i + 1) % len(ring)], ring[i - 1])


class FakeTypes:
    """Types that a program finds by name beside C's own.

    ``struct list_head`` is there from the start.
    """

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        self._types: dict[tuple[TypeKind, str], Type] = {}
        prog.register_type_finder("fakes", self._find, enable_index=0)
        self.struct("list_head", next="struct list_head *", prev="struct list_head *")

    def _find(
        self, prog: Program, kinds: TypeKindSet, name: str, filename: str | None
    ) -> Type | None:
        found = (self._types.get((kind, name)) for kind in kinds)
        return next((type_ for type_ in found if type_ is not None), None)

    def struct(self, tag: str, size: int | None = None, /, **members: str) -> Type:
        """A struct whose members are laid out as a C compiler does.

        :param members: types as C spells them; a bit field as ``"unsigned int:3"``.
        """
        # Known by name before its members are, which may point to it.
        self._types[TypeKind.STRUCT, tag] = self.prog.struct_type(tag)
        rows, bit, align = [], 0, 1
        for name, spelling in members.items():
            spelling, _, width = spelling.partition(":")
            type_ = self.prog.type(spelling)
            align = max(align, alignof(type_))
            unit = 8 * alignof(type_)
            if not width or bit % unit + int(width) > 8 * sizeof(type_):
                bit = -(-bit // unit) * unit
            value = Object(self.prog, type_, bit_field_size=int(width) if width else None)
            rows.append(TypeMember(value, name, bit))
            bit += int(width) if width else 8 * sizeof(type_)
        natural = -(-bit // (8 * align)) * align
        made = self.prog.struct_type(tag, natural if size is None else size, rows)
        self._types[TypeKind.STRUCT, tag] = made
        return made

    def union(self, tag: str, /, **members: str) -> Type:
        """A union."""
        rows = [TypeMember(self.prog.type(type_), name) for name, type_ in members.items()]
        size = max(sizeof(row.type) for row in rows)
        made = self._types[TypeKind.UNION, tag] = self.prog.union_type(tag, size, rows)
        return made

    def enum(self, tag: str, /, **values: int) -> Type:
        """An enumeration, of int if a value is negative and else of unsigned int."""
        rows = [TypeEnumerator(*pair) for pair in values.items()]
        integer = "int" if min(values.values()) < 0 else "unsigned int"
        made = self.prog.enum_type(tag, self.prog.type(integer), rows)
        self._types[TypeKind.ENUM, tag] = made
        return made

    def typedef(self, name: str, spelling: str) -> Type:
        """A typedef."""
        made = self.prog.typedef_type(name, self.prog.type(spelling))
        self._types[TypeKind.TYPEDEF, name] = made
        return made


class FakeSymbols(Symbols):
    """Symbols that a test spells out.

    :param addresses: symbols that are found by name alone (section ends, data).
    :param functions: symbols that are found by name and, up to the next of them, by address.
    """

    def __init__(
        self, addresses: Mapping[str, int] | None = None, functions: Mapping[str, int] | None = None
    ) -> None:
        self.source = "test's symbols"
        self.kallsyms = True
        self._functions = dict(functions or {})
        self._known = {**(addresses or {}), **self._functions}

    def address(self, name: str) -> int | None:
        """A symbol's address."""
        return self._known.get(name)

    def at(self, address: int) -> Named | None:
        """The last function that begins at or before an address; of several there, the first."""
        before = [row for row in self._functions.items() if row[1] <= address]
        if not before:
            return None
        name, start = max(before, key=lambda row: row[1])
        return Named(name, start)


def kernel_types(prog: Program) -> FakeTypes:
    """The kernel's structs in the shape of Linux 6.12, cut down to what the package reads."""
    types = FakeTypes(prog)
    types.struct("llist_node", next="struct llist_node *")
    types.struct("llist_head", first="struct llist_node *")
    _task_types(types)
    _module_types(types)
    _tracer_types(types)
    return types


def _task_types(types: FakeTypes) -> None:
    types.struct("thread_info", flags="unsigned long", cpu="unsigned int")
    types.struct("thread_struct", sp="unsigned long")
    types.struct("signal_struct", nr_threads="int", thread_head="struct list_head")
    types.struct("atomic", counter="int")
    types.struct("refcount_struct", refs="struct atomic")
    types.struct(
        "task_struct",
        thread_info="struct thread_info",
        __state="unsigned int",
        stack="void *",
        flags="unsigned int",
        on_cpu="int",
        tasks="struct list_head",
        exit_state="int",
        pid="int",
        tgid="int",
        thread_node="struct list_head",
        comm="char [16]",
        signal="struct signal_struct *",
        curr_ret_stack="int",
        ret_stack="unsigned long *",
        rethooks="struct llist_head",
        stack_refcount="struct refcount_struct",
        thread="struct thread_struct",
    )
    types.struct("rq", nr_running="unsigned int", idle="struct task_struct *")
    types.struct("cpumask", bits="unsigned long [2]")


def _module_types(types: FakeTypes) -> None:
    types.enum(
        "module_state",
        MODULE_STATE_LIVE=0,
        MODULE_STATE_COMING=1,
        MODULE_STATE_GOING=2,
        MODULE_STATE_UNFORMED=3,
    )
    types.enum(
        "mod_mem_type",
        MOD_TEXT=0,
        MOD_DATA=1,
        MOD_RODATA=2,
        MOD_RO_AFTER_INIT=3,
        MOD_INIT_TEXT=4,
        MOD_INIT_DATA=5,
        MOD_INIT_RODATA=6,
        MOD_MEM_NUM_TYPES=7,
        MOD_INVALID=-1,
    )
    types.struct("mod_tree_root", addr_min="unsigned long", addr_max="unsigned long")
    types.struct("module_memory", base="void *", size="unsigned int")
    types.struct("mod_kallsyms", symtab="void *", num_symtab="unsigned int", strtab="char *")
    types.struct(
        "mod_arch_specific", num_orcs="unsigned int", orc_unwind_ip="int *", orc_unwind="void *"
    )
    types.struct(
        "module",
        state="enum module_state",
        list="struct list_head",
        name="char [56]",
        mem="struct module_memory [7]",
        arch="struct mod_arch_specific",
        kallsyms="struct mod_kallsyms *",
    )


def _tracer_types(types: FakeTypes) -> None:
    types.struct(
        "ftrace_ops",
        func="void *",
        next="struct ftrace_ops *",
        flags="unsigned long",
        trampoline="unsigned long",
        trampoline_size="unsigned long",
    )
    types.struct("kprobe_insn_cache", sym="char *", pages="struct list_head")
    types.struct("kprobe_insn_page", list="struct list_head", insns="unsigned char *")
    types.struct(
        "bpf_ksym",
        start="unsigned long",
        end="unsigned long",
        name="char [512]",
        lnode="struct list_head",
    )
    types.struct("ftrace_ret_stack", ret="unsigned long", func="unsigned long", retp="void *")
    types.struct(
        "rethook_node",
        rcu="void *[2]",
        llist="struct llist_node",
        rethook="void *",
        ret_addr="unsigned long",
        frame="unsigned long",
    )
