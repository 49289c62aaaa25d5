# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read BTF, the kernel's compact type information, as it lies in a dump's memory.

A blob is a header, a section of type records and a section of NUL-terminated strings
(``include/uapi/linux/btf.h``). Type identifiers count from 1; 0 is ``void``. *Split* BTF of a
module continues the identifiers and the string offsets of its base, the kernel's own BTF.

Nothing here knows drgn: :mod:`drgn_reliable.btftypes` turns records into drgn types.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

from drgn_reliable.errors import MissingInformation

__all__ = ("Btf", "BtfError", "BtfMember", "Kind")

_MAGIC = 0xEB9F
_VLEN_MASK = 0xFFFFFF
_KIND_SHIFT = 24
_KIND_MASK = 0x7F
_LONGEST_NAME = 1 << 10
"""Bytes; the kernel takes up to 511 (``btf_name_valid_identifier()``, kernel/bpf/btf.c)."""


class BtfError(MissingInformation, ValueError):
    """The bytes are not BTF, or BTF of a form that this reader does not know."""


class Kind(IntEnum):
    """Kinds of type record (``BTF_KIND_*``)."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class BtfMember(NamedTuple):
    """A struct or union member, or (with both offsets 0) a function parameter."""

    name: str
    """Empty for an anonymous member."""
    type_id: int
    bit_offset: int
    """From the start of the struct, in bits."""
    bit_size: int
    """Width of a bit field in bits; 0 for an ordinary member."""


# Size of what follows the 12-byte record head, in 32-bit words: (fixed, per element).
_TRAILER: dict[int, tuple[int, int]] = {
    **dict.fromkeys(Kind, (0, 0)),
    Kind.INT: (1, 0),
    Kind.ARRAY: (3, 0),
    Kind.STRUCT: (0, 3),
    Kind.UNION: (0, 3),
    Kind.ENUM: (0, 2),
    Kind.FUNC_PROTO: (0, 2),
    Kind.VAR: (1, 0),
    Kind.DATASEC: (0, 3),
    Kind.DECL_TAG: (1, 0),
    Kind.ENUM64: (0, 3),
}
_HEAD_WORDS = 3


class Btf:
    """The index of one BTF blob.

    :param data: the blob, from its header on.
    :param base: the BTF that this one continues (split BTF of a module).
    :param little_endian: byte order of the dump.
    :raises BtfError: if the bytes are not BTF.
    """

    def __init__(self, data: bytes, base: Btf | None = None, *, little_endian: bool = True) -> None:
        order = "<" if little_endian else ">"
        if len(data) < 24 or struct.unpack_from(order + "H", data)[0] != _MAGIC:
            raise BtfError(f"no BTF magic {_MAGIC:#x} at the start of {len(data)} bytes")
        header_size, type_at, type_size, string_at, string_size = struct.unpack_from(
            order + "5I", data, 4
        )
        if header_size < 24:
            raise BtfError(f"a BTF header of {header_size} bytes is too short")
        if header_size + max(type_at + type_size, string_at + string_size) > len(data):
            raise BtfError(f"BTF sections reach beyond the blob of {len(data)} bytes")
        self.base = base
        self.little_endian = little_endian
        self.first_id = base.end_id if base else 1
        self._first_string = base.string_end if base else 0
        self._strings = data[header_size + string_at :][:string_size]
        self._words = array("I", data[header_size + type_at :][: type_size & ~3])
        if little_endian != (sys.byteorder == "little"):
            self._words.byteswap()
        self._trailers = dict(_TRAILER)
        if header_size >= 32:
            self._learn_layout(data, header_size, order)
        self._starts = array("I")
        self._names = array("I")
        self._index()

    def _learn_layout(self, data: bytes, header_size: int, order: str) -> None:
        """Take record sizes of kinds newer than this code from the layout section (Linux 7.1)."""
        offset, size = struct.unpack_from(order + "2I", data, 24)
        if header_size + offset + size > len(data) or size % 4:
            raise BtfError(f"the BTF layout section of {size} bytes reaches beyond the blob")
        entries = data[header_size + offset :][:size]
        for kind, (fixed, each) in enumerate(struct.iter_unpack(order + "BBxx", entries)):
            if kind > max(Kind):
                self._trailers[kind] = (fixed // 4, each // 4)

    def _index(self) -> None:
        """Note where each record starts and its name's offset: records have no index."""
        words = self._words
        end = len(words)
        starts, names = self._starts, self._names
        sizes: dict[int, int] = {}
        at = 0
        while at < end - 2:
            starts.append(at)
            names.append(words[at])
            info = words[at + 1]
            size = sizes.get(info)
            if size is None:
                kind = info >> _KIND_SHIFT & _KIND_MASK
                if kind not in self._trailers:
                    raise BtfError(f"BTF type record {len(starts)} is of unknown kind {kind}")
                fixed, each = self._trailers[kind]
                size = sizes[info] = _HEAD_WORDS + fixed + each * (info & _VLEN_MASK)
            at += size
        if at != end:
            raise BtfError(f"BTF type record {len(starts)} runs past the end of the types")

    @property
    def end_id(self) -> int:
        """One past the last type identifier."""
        return self.first_id + len(self._starts)

    @property
    def string_end(self) -> int:
        """One past the last string offset."""
        return self._first_string + len(self._strings)

    def _at(self, type_id: int) -> int:
        index = type_id - self.first_id
        if not 0 <= index < len(self._starts):
            raise BtfError(f"BTF type {type_id} is not in {self.first_id}..{self.end_id - 1}")
        return self._starts[index]

    def owner(self, type_id: int) -> Btf:
        """The blob (this one or its base) that holds a type."""
        if type_id < self.first_id and self.base:
            return self.base.owner(type_id)
        return self

    def string(self, offset: int) -> str:
        """The string at an offset of the string section.

        :raises BtfError: if it is longer than any name that the kernel takes.
        """
        if offset < self._first_string and self.base:
            return self.base.string(offset)
        offset -= self._first_string
        limit = offset + _LONGEST_NAME
        end = self._strings.find(b"\0", offset, limit)
        if end < 0:
            end = len(self._strings)
            if end > limit:
                raise BtfError(f"a name in BTF has more than {_LONGEST_NAME} bytes")
        return self._strings[offset:end].decode("utf-8", "replace")

    def kind(self, type_id: int) -> int:
        """The record's kind: a :class:`Kind`, or a number newer than this reader."""
        return 0 if type_id == 0 else self._words[self._at(type_id) + 1] >> 24 & _KIND_MASK

    def kind_flag(self, type_id: int) -> bool:
        """Bit 31 of the record: a signed enum, a forward union, a struct with bit fields."""
        return bool(self._words[self._at(type_id) + 1] >> 31)

    def count(self, type_id: int) -> int:
        """How many members, parameters, enumerators or variables the record has."""
        return self._words[self._at(type_id) + 1] & _VLEN_MASK

    def name(self, type_id: int) -> str:
        """The type's name, without ``struct``; empty where it has none."""
        return self.string(self._words[self._at(type_id)])

    def size(self, type_id: int) -> int:
        """Size in bytes of an INT, FLOAT, STRUCT, UNION, ENUM or ENUM64."""
        return self._words[self._at(type_id) + 2]

    referenced = size
    """Identifier of the type that a PTR, TYPEDEF, qualifier, FUNC, FUNC_PROTO or VAR refers to
    (the same word of the record as :meth:`size`)."""

    def int_encoding(self, type_id: int) -> int:
        """The INT's flags: 1 signed, 2 character, 4 boolean."""
        return self._words[self._at(type_id) + 3] >> 24 & 0xF

    def array(self, type_id: int) -> tuple[int, int]:
        """The ARRAY's element type and its number of elements."""
        at = self._at(type_id)
        return self._words[at + 3], self._words[at + 5]

    def members(self, type_id: int) -> Iterator[BtfMember]:
        """The members of a STRUCT or UNION, in order."""
        at = self._at(type_id)
        words = self._words
        bit_fields = words[at + 1] >> 31
        for i in range(at + 3, at + 3 + 3 * self.count(type_id), 3):
            offset = words[i + 2]
            size = offset >> 24 if bit_fields else 0
            if bit_fields:
                offset &= 0xFFFFFF
            yield BtfMember(self.string(words[i]), words[i + 1], offset, size)

    def parameters(self, type_id: int) -> Iterator[BtfMember]:
        """The parameters of a FUNC_PROTO; a last one of type 0 without name is ``...``."""
        at = self._at(type_id)
        for i in range(at + 3, at + 3 + 2 * self.count(type_id), 2):
            yield BtfMember(self.string(self._words[i]), self._words[i + 1], 0, 0)

    def enumerators(self, type_id: int) -> Iterator[tuple[str, int]]:
        """The names and values of an ENUM or ENUM64."""
        at = self._at(type_id)
        words = self._words
        wide = self.kind(type_id) == Kind.ENUM64
        bits = 64 if wide else 32
        signed = self.kind_flag(type_id)
        step = 3 if wide else 2
        for i in range(at + 3, at + 3 + step * self.count(type_id), step):
            value = words[i + 1] | (words[i + 2] << 32 if wide else 0)
            if signed and value >> (bits - 1):
                value -= 1 << bits
            yield self.string(words[i]), value

    def find(self, name: str, *kinds: int) -> Iterator[int]:
        """Identifiers of this blob's types (not of its base) of a name and one of the kinds.

        The strings may share their tails, so every place where the name ends a string counts.
        """
        for offset in self._string_offsets(name.encode() + b"\0"):
            at = self._first_named.get(offset)
            while at is not None:
                if self.kind(self.first_id + at) in kinds:
                    yield self.first_id + at
                at = self._next_named(offset, at)

    @cached_property
    def _first_named(self) -> dict[int, int]:
        """The first record of each name, by the name's offset."""
        return dict(zip(reversed(self._names), range(len(self._names) - 1, -1, -1), strict=True))

    def _next_named(self, offset: int, after: int) -> int | None:
        try:
            return self._names.index(offset, after + 1)
        except ValueError:
            return None

    def _string_offsets(self, text: bytes) -> Iterator[int]:
        if self.base:
            yield from self.base._string_offsets(text)
        at = self._strings.find(text)
        while at >= 0:
            yield self._first_string + at
            at = self._strings.find(text, at + 1)

    def ids(self, *kinds: int) -> Iterator[int]:
        """Identifiers of this blob's types of the given kinds."""
        return (i for i in range(self.first_id, self.end_id) if self.kind(i) in kinds)
