# SPDX-License-Identifier: LGPL-2.1-or-later
"""Serve BTF to drgn as types and objects.

:class:`BtfTypes` makes drgn types from BTF records, lazily, and offers the two callbacks that
:meth:`drgn.Program.register_type_finder` and :meth:`drgn.Program.register_object_finder` want.
BTF describes every type but of the variables only the per-CPU ones; :data:`GLOBALS` adds the
types of the globals that this package and drgn's helpers look up by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from drgn import (
    FindObjectFlags,
    Object,
    Program,
    Qualifiers,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeKindSet,
    TypeMember,
    TypeParameter,
)

from drgn_reliable.btf import Btf, BtfError, BtfMember, Kind

__all__ = ("GLOBALS", "BtfTypes")

_WANTED: dict[TypeKind, tuple[int, ...]] = {
    TypeKind.INT: (Kind.INT,),
    TypeKind.BOOL: (Kind.INT,),
    TypeKind.FLOAT: (Kind.FLOAT,),
    TypeKind.STRUCT: (Kind.STRUCT, Kind.FWD),
    TypeKind.UNION: (Kind.UNION, Kind.FWD),
    TypeKind.ENUM: (Kind.ENUM, Kind.ENUM64),
    TypeKind.TYPEDEF: (Kind.TYPEDEF,),
}

_QUALIFIERS = {
    Kind.CONST: Qualifiers.CONST,
    Kind.VOLATILE: Qualifiers.VOLATILE,
    Kind.RESTRICT: Qualifiers.RESTRICT,
}

_SIGNED, _BOOL = 1, 4

_IMPOSSIBLE = (OverflowError, RecursionError, TypeError, ValueError)
"""What drgn raises for a type that cannot be."""

_DEEPEST = 100
"""Types made for the sake of one: pointers to functions that take arrays of qualified types, …"""
_DEEPEST_ANONYMOUS = 32
_MOST_ANONYMOUS = 1 << 14
"""How deep anonymous members may be nested, and how many members are within reach by them: libdrgn
looks at each for every name. ``struct page`` and its like nest 4 deep and reach some 100."""

GLOBALS: dict[str, str] = {
    "__cpu_active_mask": "struct cpumask",
    "__cpu_dying_mask": "struct cpumask",
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    "__num_online_cpus": "atomic_t",
    "__per_cpu_offset": "unsigned long []",
    "bpf_kallsyms": "struct list_head",
    "btf_modules": "struct list_head",
    "cgrp_dfl_root": "struct cgroup_root",
    "chrdevs": "struct char_device_struct *[255]",
    "crash_notes": "note_buf_t *",
    "crashing_cpu": "int",
    "ftrace_graph_active": "int",
    "ftrace_list_end": "struct ftrace_ops",
    "ftrace_ops_list": "struct ftrace_ops *",
    "high_memory": "void *",
    "init_fs": "struct fs_struct",
    "init_mm": "struct mm_struct",
    "init_net": "struct net",
    "init_nsproxy": "struct nsproxy",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_user_ns": "struct user_namespace",
    "init_uts_ns": "struct uts_namespace",
    "jiffies": "volatile unsigned long",
    "jiffies_64": "u64",
    "klp_ops": "struct list_head",
    "klp_patches": "struct list_head",
    "klp_signals_cnt": "unsigned int",
    "klp_target_state": "int",
    "klp_transition_patch": "struct klp_patch *",
    "kprobe_insn_slots": "struct kprobe_insn_cache",
    "kprobe_optinsn_slots": "struct kprobe_insn_cache",
    "linux_banner": "const char []",
    "lookup_num_blocks": "unsigned int",
    "max_pfn": "unsigned long",
    "min_low_pfn": "unsigned long",
    "modules": "struct list_head",
    "mount_hashtable": "struct hlist_head *",
    "net_namespace_list": "struct list_head",
    "node_data": "pg_data_t *[]",
    "nr_cpu_ids": "unsigned int",
    "nr_threads": "int",
    "orc_init": "bool",
    "page_offset_base": "unsigned long",
    "panic_cpu": "atomic_t",
    "pid_max": "int",
    "prb": "struct printk_ringbuffer *",
    "root_mem_cgroup": "struct mem_cgroup *",
    "saved_command_line": "char *",
    "slab_caches": "struct list_head",
    "super_blocks": "struct list_head",
    "system_state": "enum system_states",
    "tainted_mask": "unsigned long",
    "vmalloc_base": "unsigned long",
    "vmap_area_list": "struct list_head",
    "vmemmap_base": "unsigned long",
    "vsyscall_mode": "int",
}
"""C types of globals that BTF leaves out, as the kernel source declares them (6.1 to 7.3).
A name that the running kernel lacks is simply not found."""


def _declared_only(blob: Btf, type_id: int) -> bool:
    """Whether a record declares a type that another one defines."""
    kind = blob.kind(type_id)
    return kind == Kind.FWD or (kind in (Kind.ENUM, Kind.ENUM64) and not blob.count(type_id))


class _Reach(NamedTuple):
    """The members that a structure has as its own, those of its anonymous members among them."""

    members: int
    depth: int


class BtfTypes:
    """drgn types of a program, made from the kernel's BTF and its modules' split BTF.

    :param symbol: gives the address of a kernel symbol, or None.
    """

    def __init__(self, prog: Program, btf: Btf, symbol: Callable[[str], int | None]) -> None:
        self._prog = prog
        self._base = btf
        self._symbol = symbol
        self._types: dict[tuple[Btf, int], Type] = {}
        self._being_made: set[tuple[Btf, int]] = set()
        self._reach: dict[tuple[Btf, int], _Reach] = {}
        self.module_loader: Callable[[], Iterable[bytes]] | None = None
        """Gives the raw split BTF of the modules, when the first search goes beyond the
        kernel's own."""
        self._modules: list[Btf] | None = None

    def _blobs(self) -> Iterator[Btf]:
        """The kernel's own BTF first, then the modules'."""
        yield self._base
        if self._modules is None:
            self._modules = []  # The loader itself may look for types: only the kernel's own.
            self._modules = self._load_modules()
        yield from self._modules

    def _load_modules(self) -> list[Btf]:
        little = self._base.little_endian
        found = []
        for data in self.module_loader() if self.module_loader else ():
            try:
                found.append(Btf(data, self._base, little_endian=little))
            except BtfError:
                continue  # A module without usable types hides nobody else's.
        return found

    # The two callbacks -------------------------------------------------------------------

    def find_type(
        self, prog: Program, kinds: TypeKindSet, name: str, filename: str | None
    ) -> Type | None:
        """Type finder. BTF knows no file names, so a search within a file finds nothing."""
        if filename is not None:
            return None
        wanted = {btf_kind for kind in kinds for btf_kind in _WANTED.get(kind, ())}
        incomplete = None
        for blob in self._blobs():
            for type_id in blob.find(name, *wanted):
                found = self.type(blob, type_id)
                if found.kind not in kinds:
                    continue
                if not _declared_only(blob, type_id):
                    return found
                incomplete = incomplete or found
        return incomplete

    def find_object(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        """Object finder: per-CPU variables, :data:`GLOBALS`, functions and enumerators."""
        if filename is not None:
            return None
        found = None
        if flags & FindObjectFlags.VARIABLE:
            found = self._variable(name)
        if found is None and flags & FindObjectFlags.FUNCTION:
            found = self._function(name)
        if found is not None:
            return found
        if flags & FindObjectFlags.CONSTANT and name in self._enumerators:
            blob, type_id, value = self._enumerators[name]
            return Object(self._prog, self.type(blob, type_id), value)
        return None

    def _variable(self, name: str) -> Object | None:
        address = self._symbol(name)
        if address is None:
            return None
        if name in GLOBALS:
            return Object(self._prog, GLOBALS[name], address=address)
        return self._described(name, address, Kind.VAR)

    def _function(self, name: str) -> Object | None:
        address = self._symbol(name)
        return None if address is None else self._described(name, address, Kind.FUNC)

    def _described(self, name: str, address: int, kind: Kind) -> Object | None:
        for blob in self._blobs():
            for type_id in blob.find(name, kind):
                referenced = self.type(blob, blob.referenced(type_id))
                return Object(self._prog, referenced, address=address)
        return None

    @cached_property
    def _enumerators(self) -> dict[str, tuple[Btf, int, int]]:
        found: dict[str, tuple[Btf, int, int]] = {}
        for blob in self._blobs():
            for type_id in blob.ids(Kind.ENUM, Kind.ENUM64):
                for name, value in blob.enumerators(type_id):
                    found.setdefault(name, (blob, type_id, value))
        return found

    # Records to types --------------------------------------------------------------------

    def type(self, blob: Btf, type_id: int) -> Type:
        """The drgn type of a record of a blob or of its base."""
        if type_id == 0:
            return self._prog.void_type()
        blob = blob.owner(type_id)
        key = (blob, type_id)
        found = self._types.get(key)
        if found is None:
            if key in self._being_made:
                raise BtfError(f"BTF type {type_id} refers to itself")
            if len(self._being_made) >= _DEEPEST:
                raise BtfError(f"BTF type {type_id} is more than {_DEEPEST} types deep")
            self._being_made.add(key)
            try:
                found = self._types[key] = self._make(blob, type_id)
            except BtfError:
                raise
            except _IMPOSSIBLE as e:
                raise BtfError(f"BTF type {type_id} cannot be: {e}") from e
            finally:
                self._being_made.discard(key)
        return found

    def _make(self, blob: Btf, type_id: int) -> Type:
        kind = blob.kind(type_id)
        prog = self._prog
        if kind == Kind.PTR:
            return prog.pointer_type(self.type(blob, blob.referenced(type_id)))
        if kind == Kind.TYPEDEF:
            target = self.type(blob, blob.referenced(type_id))
            return prog.typedef_type(blob.name(type_id), target)
        if kind in _QUALIFIERS:
            target = self.type(blob, blob.referenced(type_id))
            return target.qualified(target.qualifiers | _QUALIFIERS[Kind(kind)])
        if kind in (Kind.STRUCT, Kind.UNION):
            return self._compound(blob, type_id, kind)
        if kind == Kind.FWD:
            make = prog.union_type if blob.kind_flag(type_id) else prog.struct_type
            return make(blob.name(type_id))
        if kind == Kind.ARRAY:
            element, length = blob.array(type_id)
            return prog.array_type(self.type(blob, element), length)
        if kind in (Kind.INT, Kind.FLOAT):
            return self._scalar(blob, type_id, kind)
        if kind in (Kind.ENUM, Kind.ENUM64):
            return self._enum(blob, type_id)
        if kind == Kind.FUNC_PROTO:
            return self._function_type(blob, type_id)
        if kind in (Kind.TYPE_TAG, Kind.FUNC, Kind.VAR):
            return self.type(blob, blob.referenced(type_id))
        raise BtfError(f"BTF type {type_id} is of kind {kind}, which is no C type")

    def _scalar(self, blob: Btf, type_id: int, kind: int) -> Type:
        name, size = blob.name(type_id), blob.size(type_id)
        if kind == Kind.FLOAT:
            return self._prog.float_type(name, size)
        encoding = blob.int_encoding(type_id)
        if encoding & _BOOL:
            return self._prog.bool_type(name, size)
        return self._prog.int_type(name, size, bool(encoding & _SIGNED))

    def _compound(self, blob: Btf, type_id: int, kind: int) -> Type:
        records = list(blob.members(type_id))
        self._check_reach(blob, type_id, ())
        members = [
            self._member(blob, record, last=i == len(records) - 1)
            for i, record in enumerate(records)
        ]
        make: Any = self._prog.struct_type if kind == Kind.STRUCT else self._prog.union_type
        return make(blob.name(type_id) or None, blob.size(type_id), members)

    def _check_reach(self, blob: Btf, type_id: int, within: tuple[int, ...]) -> _Reach:
        """See that a search for a member comes to an end, and soon.

        :param within: the structures that this one is an anonymous member of.
        :raises BtfError: if it would not.
        """
        found = self._reach.get((blob, type_id))
        if found is not None:
            return found
        within = (*within, type_id)
        members = depth = 0
        for record in blob.members(type_id):
            members += 1
            if not record.name and (inner := self._aggregate(blob, record.type_id)) is not None:
                if inner in within:
                    raise BtfError(f"{self._named(blob, inner)} is an anonymous member of itself")
                if len(within) <= _DEEPEST_ANONYMOUS:
                    reach = self._check_reach(blob.owner(inner), inner, within)
                    members, depth = members + reach.members, max(depth, 1 + reach.depth)
            if len(within) + depth > _DEEPEST_ANONYMOUS or members > _MOST_ANONYMOUS:
                raise BtfError(
                    f"{self._named(blob, type_id)} has anonymous members nested more than "
                    f"{_DEEPEST_ANONYMOUS} deep or {_MOST_ANONYMOUS} wide"
                )
        found = self._reach[blob, type_id] = _Reach(members, depth)
        return found

    def _aggregate(self, blob: Btf, type_id: int) -> int | None:
        """The STRUCT or UNION that a type is, by any name; None if it is something else."""
        for _ in range(_DEEPEST):
            blob = blob.owner(type_id)
            kind = blob.kind(type_id)
            if kind in (Kind.STRUCT, Kind.UNION):
                return type_id
            if kind not in (Kind.TYPEDEF, Kind.TYPE_TAG, *_QUALIFIERS):
                return None
            type_id = blob.referenced(type_id)
        return None

    def _named(self, blob: Btf, type_id: int) -> str:
        """A structure in words."""
        name = blob.owner(type_id).name(type_id)
        return f"BTF type {type_id}" + (f" ({name!r})" if name else "")

    def _member(self, blob: Btf, record: BtfMember, *, last: bool) -> TypeMember:
        def resolve() -> Object:
            found = self.type(blob, record.type_id)
            if last and found.kind == TypeKind.ARRAY and found.length == 0:
                # A flexible array: BTF writes [] and [0] alike, drgn takes [] at the end.
                found = self._prog.array_type(found.type)
            try:
                if record.bit_size:
                    return Object(self._prog, found, bit_field_size=record.bit_size)
                return Object(self._prog, found)
            except _IMPOSSIBLE as e:
                raise BtfError(f"BTF member {record.name!r} cannot be: {e}") from e

        return TypeMember(resolve, record.name or None, record.bit_offset)

    def _enum(self, blob: Btf, type_id: int) -> Type:
        name = blob.name(type_id) or None
        enumerators = [TypeEnumerator(*pair) for pair in blob.enumerators(type_id)]
        if not enumerators:
            return self._prog.enum_type(name)
        size, signed = blob.size(type_id), blob.kind_flag(type_id)
        spelling = {1: "char", 2: "short", 4: "int", 8: "long"}.get(size)
        if spelling is None:
            raise BtfError(f"BTF type {type_id} is an enum of {size} bytes")
        integer = self._prog.int_type(spelling if signed else f"unsigned {spelling}", size, signed)
        return self._prog.enum_type(name, integer, enumerators)

    def _function_type(self, blob: Btf, type_id: int) -> Type:
        records = list(blob.parameters(type_id))
        variadic = bool(records) and records[-1].type_id == 0
        if variadic:
            records.pop()
        return self._prog.function_type(
            self.type(blob, blob.referenced(type_id)),
            [self._parameter(blob, record) for record in records],
            is_variadic=variadic,
        )

    def _parameter(self, blob: Btf, record: BtfMember) -> TypeParameter:
        def resolve() -> Object:
            found = self.type(blob, record.type_id)
            try:
                return Object(self._prog, found)
            except _IMPOSSIBLE as e:
                raise BtfError(f"BTF parameter {record.name!r} cannot be: {e}") from e

        return TypeParameter(resolve, record.name or None)
