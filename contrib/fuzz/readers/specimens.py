# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sound input for the readers, cut from the dumps in ``vmcores/`` when it is asked for."""

from __future__ import annotations

import lzma
import struct
from functools import cache
from pathlib import Path

from drgn_reliable import Kernel, open_dump
from drgn_reliable.btf import Btf, Kind
from drgn_reliable.files.kdump import KdumpFile
from drgn_reliable.files.source import FileSource

__all__ = ("VMCORES", "btf_of", "kdump_of", "kernel_of", "small_btf", "unpacked")

VMCORES = Path(__file__).parents[3] / "vmcores"
_REFERENCES = (
    Kind.PTR, Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.FUNC, Kind.FUNC_PROTO,
    Kind.VAR, Kind.DECL_TAG, Kind.TYPE_TAG,
)  # fmt: skip
"""Kinds whose third word is a type."""


@cache
def kernel_of(name: str) -> Kernel:
    """The kernel in a dump."""
    return Kernel(open_dump(str(VMCORES / f"{name}.kdump")))


@cache
def kdump_of(name: str) -> KdumpFile:
    """The file of a dump."""
    path = VMCORES / f"{name}.kdump"
    return KdumpFile(FileSource(path.open("rb"), path.name))


@cache
def unpacked(name: str) -> bytes:
    """An xz-compressed file beside the dumps."""
    return lzma.decompress((VMCORES / name).read_bytes())


@cache
def btf_of(name: str) -> Btf:
    """The BTF of the kernel in a dump."""
    kernel = kernel_of(name)
    start, stop = map(kernel.symbols.required, ("__start_BTF", "__stop_BTF"))
    little = name[:5] != "s390x"
    return Btf(kernel.prog.read(start, stop - start), little_endian=little)


def small_btf(blob: Btf, *names: str, most: int = 80) -> bytes:
    """A blob with some structs and the types that they need; of too many the rest is void."""
    wanted = [type_id for name in names for type_id in blob.find(name, Kind.STRUCT, Kind.ENUM)]
    numbers: dict[int, int] = {0: 0}
    records: list[list[int]] = []
    strings = bytearray(b"\0")
    for type_id in wanted:  # grows
        if type_id in numbers or len(numbers) > most:
            continue
        numbers[type_id] = len(numbers)
        record = _record(blob, type_id)
        records.append(record)
        wanted += [record[at] for at in _references(blob, type_id)]
    for type_id, record in zip(list(numbers)[1:], records, strict=True):
        for at in _references(blob, type_id):
            record[at] = numbers.get(record[at], 0)
        for at in (0, *_names(blob, type_id)):
            text = blob.string(record[at]).encode()
            record[at] = len(strings) if text else 0
            strings += text + b"\0" if text else b""
    order = "<" if blob.little_endian else ">"
    words = [word for record in records for word in record]
    types = struct.pack(f"{order}{len(words)}I", *words)
    sizes = (24, 0, len(types), len(types), len(strings))
    return struct.pack(f"{order}HBB5I", 0xEB9F, 1, 0, *sizes) + types + strings


def _record(blob: Btf, type_id: int) -> list[int]:
    after = type_id + 1
    end = blob._at(after) if after < blob.end_id else len(blob._words)
    return list(blob._words[blob._at(type_id) : end])


def _references(blob: Btf, type_id: int) -> list[int]:
    """Where a record has the numbers of other types, in words."""
    kind, count = blob.kind(type_id), blob.count(type_id)
    found = [2] if kind in _REFERENCES else []
    if kind == Kind.ARRAY:
        found += [3, 4]
    if kind in (Kind.STRUCT, Kind.UNION):
        found += range(4, 4 + 3 * count, 3)
    if kind == Kind.FUNC_PROTO:
        found += range(4, 4 + 2 * count, 2)
    return found


def _names(blob: Btf, type_id: int) -> range:
    """Where it has other names than its own."""
    kind, count = blob.kind(type_id), blob.count(type_id)
    if kind in (Kind.STRUCT, Kind.UNION, Kind.ENUM64):
        return range(3, 3 + 3 * count, 3)
    if kind in (Kind.ENUM, Kind.FUNC_PROTO):
        return range(3, 3 + 2 * count, 2)
    return range(0)
