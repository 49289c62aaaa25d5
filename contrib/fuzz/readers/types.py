# SPDX-License-Identifier: LGPL-2.1-or-later
"""Harnesses for types and symbols: BTF, the drgn types made of it, kallsyms, a module's symbols."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from drgn import (
    Architecture,
    FaultError,
    FindObjectFlags,
    Platform,
    PlatformFlags,
    Program,
    Type,
    TypeKind,
)

from contrib.fuzz.readers.harness import Contradiction, Harness
from contrib.fuzz.readers.mutations import mutated, set_field
from contrib.fuzz.readers.specimens import btf_of, kernel_of, small_btf
from drgn_reliable.btf import Btf, BtfError, Kind
from drgn_reliable.btftypes import BtfTypes
from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import Layout, member_offset, member_type, pointed_type, size_of
from drgn_reliable.symbols import Symbols, module_symbols

__all__ = ("HARNESSES",)

_TYPES = 300
"""Of one blob, that are looked at."""
_X86_64 = Platform(Architecture.X86_64, PlatformFlags.IS_64_BIT | PlatformFlags.IS_LITTLE_ENDIAN)


def _blob(data: bytes) -> Btf | None:
    with suppress(BtfError):
        return Btf(data, little_endian=data[:2] != b"\xeb\x9f")
    return None


def _read_btf(data: bytes) -> bool:
    """Every record of a blob can be read or is refused; what has a name is found by it."""
    blob = _blob(data)
    if blob is None:
        return False
    list_of = {
        Kind.STRUCT: blob.members,
        Kind.UNION: blob.members,
        Kind.FUNC_PROTO: blob.parameters,
        Kind.ENUM: blob.enumerators,
        Kind.ENUM64: blob.enumerators,
    }
    for type_id in range(blob.first_id, min(blob.end_id, blob.first_id + _TYPES)):
        kind = blob.kind(type_id)
        with suppress(BtfError):
            if blob.size(type_id) < 0 or blob.count(type_id) < 0:
                raise Contradiction(f"type {type_id} has a negative size or count")
            if kind in list_of:
                list(list_of[Kind(kind)](type_id))
            name = blob.name(type_id)
            if type_id < 20 and name and "\ufffd" not in name:
                _expect_found(blob, name, kind, type_id)
    return True


def _expect_found(blob: Btf, name: str, kind: int, type_id: int) -> None:
    end = blob._words[blob._at(type_id)] + len(name.encode())
    if blob._strings[end : end + 1] == b"\0" and type_id not in list(blob.find(name, kind)):
        raise Contradiction(f"type {type_id} is not found by its name {name!r}")


def _make_types(data: bytes) -> bool:
    """Every struct becomes a drgn type whose members can be searched and read, or is refused."""
    blob = _blob(data)
    if blob is None:
        return False
    prog = Program(_X86_64)
    types = BtfTypes(prog, blob, lambda name: 0x1000)
    prog.register_type_finder("fuzz", types.find_type, enable_index=0)
    prog.register_object_finder("fuzz", types.find_object, enable_index=0)
    read = 0
    for type_id in islice(blob.ids(Kind.STRUCT, Kind.UNION), 40):
        with suppress(MissingInformation):
            type_ = types.type(blob, type_id)
            size_of(type_)
            every = (member.name for member in blob.members(type_id))
            names = list(islice(filter(str.isidentifier, every), 12))
            for name in names:
                read += _use_member(type_, name)
            with suppress(MissingInformation, SyntaxError):
                Layout(type_, {name: name for name in names})
    for name in ("task_struct", "list_head", "module"):
        with suppress(LookupError, MissingInformation):
            prog.type(f"struct {name}")
    with suppress(MissingInformation):
        types.find_type(prog, {TypeKind.ENUM, TypeKind.TYPEDEF}, "pid_t", None)
    with suppress(LookupError, MissingInformation):
        types.find_object(prog, "modules", FindObjectFlags.ANY, None)
    return read > 0


def _use_member(type_: Type, name: str) -> bool:
    """Ask for all of a member; gives whether it can be read."""
    read = False
    for ask in (member_offset, member_type, pointed_type):
        with suppress(MissingInformation, SyntaxError):  # a keyword of C is no name
            ask(type_, name)
    for text in ((), (name,)):
        with suppress(MissingInformation, SyntaxError):
            if Layout(type_, {name: name}, text=text).size > 1 << 20:
                raise Contradiction(f"more than 1 MiB are read for {name}")
            read = True
    return read


def _btf_seeds() -> Sequence[bytes]:
    names = (
        ("list_head", "module_sect_attrs"),
        ("klp_func", "klp_patch"),
        ("cpu_entry_area", "mod_mem_type", "module_state"),
        ("thread_info", "mod_kallsyms", "bpf_ksym"),
    )
    dumps = ("x86_64-6.1", "s390x-6.12")
    made = [small_btf(btf_of(dump), *each) for dump in dumps for each in names]
    return [data for data in made if len(data) > 1000]  # not every kernel has all of them


def _change_btf(data: bytes, chance: random.Random) -> bytes:
    """Another number in a record, or another kind or count, under a header that fits."""
    if len(data) < 28 or chance.random() < 0.1:
        return mutated(data, chance)
    order = ">" if data[:2] == b"\xeb\x9f" else "<"
    _, _, size, _, strings = struct.unpack_from(f"{order}5I", data, 4)
    types, names = data[24 : 24 + size & ~3], data[24 + size :][:strings]
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(max(1, len(types) // 4)) * 4
        way = chance.random()
        if way < 0.5:  # a type's number
            word = struct.pack(order + "I", chance.randrange(100))
            types = types[:at] + word + types[at + 4 :]
        elif way < 0.8:
            types = set_field(types, at, 4, chance, order)
        elif way < 0.9:
            names = mutated(names, chance)
        else:
            there = types[at : at + 12 * chance.randrange(1, 5)]
            types = types[:at] + there + types[at:]
    sizes = struct.pack(f"{order}5I", 24, 0, len(types), len(types), len(names))
    return data[:4] + sizes + types + names


# kallsyms ---------------------------------------------------------------------------------------

_BASE = 0xFFFFFFFF81000000
_PLACES = {"num_syms": 0, "relative_base": 8, "token_index": 16, "token_table": 528}
_NAMES_AT, _OFFSETS_AT = 4096, 8192
_RELEASES = (b"6.1.0", b"5.19.0", b"6.12.1")


def _kernel_memory(data: bytes) -> Program:
    """A kernel that has nothing but kallsyms: the first byte says of which release, then come the
    tables as :func:`_kallsyms_seeds` lays them out."""
    prog = Program(_X86_64)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return data[1 + offset : 1 + offset + count].ljust(count, b"\0")

    places = {**_PLACES, "names": _NAMES_AT, "offsets": _OFFSETS_AT}
    lines = [b"OSRELEASE=" + _RELEASES[data[0] % 3], b"PAGESIZE=4096"]
    lines += [b"SYMBOL(kallsyms_%s)=%x" % (n.encode(), _BASE + at) for n, at in places.items()]
    lines.append(b"SYMBOL(_stext)=%x" % _BASE)
    lines.append(b"SYMBOL(swapper_pg_dir)=%x" % _BASE)
    lines.append(b"KERNELOFFSET=0")
    prog.set_linux_kernel_custom(b"\n".join(lines) + b"\n", False)
    # What the input lacks of its last page reads as zeroes, and behind it there is nothing.
    prog.add_memory_segment(_BASE, -(-len(data) // 4096) * 4096, read)
    return prog


def _read_kallsyms(data: bytes) -> bool:
    """What passes the check is unpacked by libdrgn, and then every symbol is found by its address
    and its name."""
    if len(data) < 600:
        return False
    try:
        symbols = Symbols(_kernel_memory(data))
    except MissingInformation:
        return False
    start = symbols.required("_stext")
    for address in (start, start + 1, 0, (1 << 64) - 1):
        named = symbols.at(address)
        if named and named.start > address:
            raise Contradiction(f"{named.name} at {named.start:#x} is given for {address:#x}")
    return True


def _kallsyms_seeds() -> Sequence[bytes]:
    """Real tokens, and real symbols around ``_stext``, which has to be among them."""
    found = []
    for release, dump in enumerate(("x86_64-6.1", "x86_64-7.2-fp")):
        kernel = kernel_of(dump)
        prog, values = kernel.prog, kernel.vmcoreinfo
        at = {
            name: int(values[f"SYMBOL(kallsyms_{name})"], 16)
            for name in ("names", "token_table", "token_index")
        }
        table = prog.read(at["token_table"], at["token_index"] - at["token_table"])
        index = prog.read(at["token_index"], 512)
        places = struct.unpack("<256H", index)
        tokens = {table[place : table.index(b"\0", place)]: n for n, place in enumerate(places)}
        packed = [
            bytes(tokens[bytes((c,))] for c in b"T" + name)
            for name in (b"_stext", b"_text", b"startup_64", b"do_one_initcall", b"_etext")
            if all(bytes((c,)) in tokens for c in b"T" + name)
        ]
        names = b"".join(bytes((len(name),)) + name for name in packed)
        head = struct.pack("<Q", len(packed)) + struct.pack("<Q", _BASE) + index + table
        offsets = struct.pack(f"<{len(packed)}i", *(-1 - 64 * i for i in range(len(packed))))
        body = head.ljust(_NAMES_AT, b"\0") + names
        found.append(bytes((release,)) + body.ljust(_OFFSETS_AT, b"\0") + offsets)
    return found


def _change_kallsyms(data: bytes, chance: random.Random) -> bytes:
    """A change in one of the tables, which stay where they are."""
    low, size = chance.choice(((0, 16), (16, 512), (528, 900), (_NAMES_AT, 80), (_OFFSETS_AT, 20)))
    part = mutated(data[1 + low : 1 + low + size], chance, size).ljust(size, b"\1")
    head = data[:1] if chance.random() < 0.8 else bytes((chance.randrange(3),))
    return head + data[1 : 1 + low] + part + data[1 + low + size :]


# A module's symbols -----------------------------------------------------------------------------


def _read_module_symbols(data: bytes) -> bool:
    """The table and its strings, from their addresses and count."""
    if len(data) < 24:
        return False
    kernel = kernel_of("x86_64-6.1")
    prog = Program(_X86_64)
    types = BtfTypes(prog, btf_of("x86_64-6.1"), kernel.symbols.address)
    prog.register_type_finder("fuzz", types.find_type, enable_index=0)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return data[offset : offset + count].ljust(count, b"\0")

    prog.add_memory_segment(_BASE, -(-len(data) // 4096) * 4096, read)
    with suppress(FaultError, MissingInformation):
        symbols = module_symbols(prog, _BASE)
        named = symbols.at(_BASE + 64, _BASE)
        if named and not _BASE <= named.start <= _BASE + 64:
            raise Contradiction(f"{named} is given for {_BASE + 64:#x}")
        return named is not None
    return False


def _module_seeds() -> Sequence[bytes]:
    strings = b"\0init_module\0cleanup_module\0.LVL5\0"
    rows = [(1, 2, 0, 1, _BASE, 16), (13, 2, 0, 1, _BASE + 32, 16), (28, 0, 0, 1, _BASE + 40, 0)]
    table = b"".join(struct.pack("<IBBHQQ", *row) for row in rows)
    layout = Layout(
        kernel_of("x86_64-6.1").prog.type("struct mod_kallsyms"),
        {"symtab": "symtab", "count": "num_symtab", "strtab": "strtab"},
    )
    head = bytearray(64)
    for name, value in (("symtab", 64), ("strtab", 64 + len(table))):
        struct.pack_into("<Q", head, layout.offsets[name], _BASE + value)
    struct.pack_into("<I", head, layout.offsets["count"], len(rows))
    return [bytes(head) + table + strings]


HARNESSES = (
    Harness("btf", "BTF records", _read_btf, _btf_seeds, _change_btf),
    Harness("btftypes", "drgn types of BTF", _make_types, _btf_seeds, _change_btf),
    Harness("kallsyms", "kallsyms", _read_kallsyms, _kallsyms_seeds, _change_kallsyms, 1 << 14),
    Harness("modulesymbols", "a module's symbols", _read_module_symbols, _module_seeds),
)
