# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read a dump's memory in bulk.

* :class:`Layout` reads chosen members of a C struct in one go, at offsets probed from its type.
* :class:`StackMemory` holds the used part of one stack, read once; what the dump lacks of it is
  a hole, and reading a hole gives None, never zero.
* :func:`list_nodes` follows a kernel list, bounded, and says when the list is broken.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from drgn import FaultError, PlatformFlags, Program, Type, TypeKind, offsetof, sizeof

from drgn_reliable.errors import MissingInformation

__all__ = (
    "BrokenList",
    "Layout",
    "StackMemory",
    "byte_order",
    "container_nodes",
    "gather",
    "hashed_nodes",
    "list_nodes",
    "member_offset",
    "member_type",
    "missing",
    "named_type",
    "number_at",
    "pointed_type",
    "size_of",
    "word_places",
)

MASK = (1 << 64) - 1
"""Addresses are unsigned 64-bit numbers, also those that a corrupt pointer gives."""

PAGE_SIZE = 4096
"""Granularity, in bytes, at which a partly unreadable stack is tried piece by piece. No Linux
page is smaller."""

_FORMATS = {(1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q"}
_FORMATS |= {(size, True): code.lower() for (size, _), code in _FORMATS.items()}

_LARGEST = 1 << 20
"""Bytes: more than any structure of the kernel that is read, far less than a made-up size."""


def byte_order(prog: Program) -> str:
    """The :mod:`struct` prefix of the dump's byte order."""
    little = prog.platform and prog.platform.flags & PlatformFlags.IS_LITTLE_ENDIAN
    return "<" if little else ">"


def missing(error: Exception) -> str:
    """What went wrong with reading. drgn's words for memory that a dump lacks, and whether its
    address is physical, depend on how the dump is stored; a report does not."""
    return "not readable in this dump" if isinstance(error, FaultError) else str(error)


_IMPOSSIBLE = (AttributeError, OverflowError, RecursionError, TypeError, ValueError)
"""What drgn raises for a type that is not what it must be, such as a member of a function."""


def _underlying(type_: Type) -> Type:
    while type_.kind == TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def named_type(prog: Program, name: str) -> Type:
    """A type by its name, such as ``"struct rq"``.

    :raises MissingInformation: if the types lack it.
    """
    try:
        return prog.type(name)
    except LookupError as e:
        raise MissingInformation(
            f"the types lack {name!r}; name the kernel's vmlinux with --symbols"
        ) from e


def member_offset(type_: Type, path: str) -> int | None:
    """Offset in bytes of a member such as ``"thread.sp"``, or None where the type lacks it.

    :raises MissingInformation: if the types are damaged, so that there cannot be such a member.
    """
    try:
        offset: int = offsetof(type_, path)
        return offset
    except LookupError:
        return None
    except MissingInformation:
        raise
    except _IMPOSSIBLE as e:
        raise _damaged(type_, path, str(e)) from e


def member_type(type_: Type, path: str) -> Type:
    """Type of a member, without its typedefs.

    :raises MissingInformation: if the type lacks it, or the types are damaged.
    """
    found = type_
    try:
        for name in path.split("."):
            found = _underlying(_underlying(found).member(name).type)
    except MissingInformation:
        raise
    except LookupError as e:
        raise MissingInformation(f"{type_.type_name()} has no member {path!r}") from e
    except _IMPOSSIBLE as e:
        raise _damaged(type_, path, str(e)) from e
    return found


def pointed_type(type_: Type, path: str) -> Type:
    """Type, without its typedefs, of what a member points to or is an array of.

    :raises MissingInformation: if the type lacks the member, or it is neither.
    """
    found = member_type(type_, path)
    if found.kind not in (TypeKind.ARRAY, TypeKind.POINTER):
        raise _damaged(type_, path, f"it is {_in_words(found)}, not a pointer or an array")
    return _underlying(found.type)


def size_of(type_: Type) -> int:
    """Size of a type in bytes.

    :raises MissingInformation: if it has none, or one that nothing in a kernel has.
    """
    try:
        size: int = sizeof(type_)
    except MissingInformation:
        raise
    except _IMPOSSIBLE as e:
        raise MissingInformation(f"damaged types: {_in_words(type_)}: {e}") from e
    if size > _LARGEST:
        raise MissingInformation(f"damaged types: {_in_words(type_)} has {size} bytes")
    return size


def _in_words(type_: Type) -> str:
    try:
        return str(type_.type_name())
    except (MissingInformation, *_IMPOSSIBLE):
        return f"a type of kind {type_.kind.name}"


def _damaged(type_: Type, path: str, why: str) -> MissingInformation:
    return MissingInformation(
        f"damaged types: {_in_words(type_)} and its member {path!r}: {why}; "
        "name the kernel's vmlinux with --symbols"
    )


def _code(type_: Type, path: str, *, text: bool) -> str:
    """The :mod:`struct` code of a member that is a number, a pointer or an array of characters."""
    found = member_type(type_, path)
    if text:
        if found.kind == TypeKind.ARRAY and size_of(found) == found.length:
            return f"{found.length}s"
        raise _damaged(type_, path, f"it is {_in_words(found)}, not an array of characters")
    if found.kind == TypeKind.POINTER:
        return "Q"
    if found.kind == TypeKind.ENUM:
        if found.type is None:
            return "I"
        found = _underlying(found.type)
    if found.kind not in (TypeKind.INT, TypeKind.BOOL) or found.size not in (1, 2, 4, 8):
        raise _damaged(type_, path, f"it is {_in_words(found)}, not a number or a pointer")
    return _FORMATS[found.size, found.kind == TypeKind.INT and found.is_signed]


class Layout:
    """Some members of one C struct, read together.

    :param type_: the struct.
    :param members: for each name that the caller will use, the member's path, or several paths
        of which the first that the struct has is taken (kernels rename members).
    :param optional: names that may be absent; they read as None.
    :param text: names that are arrays of characters, read as bytes; all others are read as numbers.
    :raises MissingInformation: if the struct has none of a required name's paths, or the types are
        damaged: a member is of another kind, members overlap, or are too far apart.
    """

    def __init__(
        self,
        type_: Type,
        members: Mapping[str, str | Sequence[str]],
        optional: frozenset[str] | set[str] = frozenset(),
        text: Sequence[str] = (),
    ) -> None:
        self.offsets: dict[str, int] = {}
        fields: list[tuple[int, str, str]] = []
        for name, paths in members.items():
            for path in (paths,) if isinstance(paths, str) else paths:
                offset = member_offset(type_, path)
                if offset is not None:
                    self.offsets[name] = offset
                    fields.append((offset, name, _code(type_, path, text=name in text)))
                    break
            else:
                if name not in optional:
                    raise MissingInformation(f"{type_.type_name()} has no member {paths!r}")
        if not fields:
            raise MissingInformation(f"{type_.type_name()} has none of {', '.join(members)}")
        fields.sort()
        last, name, code = fields[-1]
        if last + struct.calcsize(code) - fields[0][0] > _LARGEST:
            raise _damaged(type_, name, f"it is {last} bytes from the start")
        self._plan(type_, fields, byte_order(type_.prog))
        self._absent = {name: None for name in members if name not in self.offsets}

    def _plan(self, type_: Type, fields: list[tuple[int, str, str]], order: str) -> None:
        self.start = at = fields[0][0]
        spelling = order
        names = []
        for offset, name, code in fields:
            if offset < at:
                raise _damaged(type_, name, f"it overlaps another at byte {offset}")
            spelling += f"{offset - at}x{code}"
            at = offset + struct.calcsize(order + code)
            names.append(name)
        self.names = tuple(names)
        self._struct = struct.Struct(spelling)
        self.size = self._struct.size

    def read(self, prog: Program, address: int) -> dict[str, Any]:
        """The members of the struct at an address.

        :raises drgn.FaultError: if the dump lacks the memory.
        """
        data = prog.read(address + self.start & MASK, self.size)
        found = dict(zip(self.names, self._struct.unpack(data), strict=True))
        if self._absent:
            found.update(self._absent)
        return found

    def reader(self, *names: str) -> Callable[[bytes], tuple[Any, ...]]:
        """A function that takes :attr:`size` bytes and gives the named members (at least two), in
        that order."""
        unpack = self._struct.unpack
        count = len(self.names)
        pick = itemgetter(*[self.names.index(n) if n in self.names else count for n in names])

        def read(data: bytes) -> tuple[Any, ...]:
            found: tuple[Any, ...] = pick((*unpack(data), None))
            return found

        return read


_READERS = {1: Program.read_u8, 4: Program.read_u32, 8: Program.read_u64}


def number_at(prog: Program, place: int | None, size: int) -> int | None:
    """The unsigned number of 1, 4 or 8 bytes at an address; None for no address, as of a variable
    that a kernel does not have, and where the dump lacks it."""
    if place is None:
        return None
    try:
        return int(_READERS[size](prog, place))
    except FaultError:
        return None


class BrokenList(Exception):
    """A kernel list does not lead back to its head.

    :param address: the node, as an unsigned 64-bit address, at which following it failed.
    :param why: what was found there.
    """

    def __init__(self, address: int, why: str) -> None:
        super().__init__(f"list broken at {address:#x}: {why}")
        self.address = address
        self.why = why


def list_nodes(
    prog: Program,
    head: int,
    limit: int = 1 << 22,
    following: Callable[[int], int] | None = None,
) -> Iterator[int]:
    """The node addresses of a ``struct list_head`` list, without its head.

    :param following: gives a node's successor where the caller has it already.
    :raises BrokenList: when a node is null, cannot be read, comes twice or after ``limit`` nodes.
    """
    following = following or prog.read_u64
    seen = {head}
    node = head
    while True:
        try:
            after = following(node)
        except FaultError as e:
            raise BrokenList(node, "not readable in this dump") from e
        if after == head:
            return
        if not after:
            raise BrokenList(node, "leads to a null pointer")
        if after in seen:
            raise BrokenList(node, f"leads back to {after:#x}")
        if len(seen) > limit:
            raise BrokenList(node, f"more than {limit} nodes")
        seen.add(after)
        node = after
        yield node


def container_nodes(
    prog: Program,
    head: int,
    offset: int,
    limit: int = 1 << 22,
    following: Callable[[int], int] | None = None,
) -> Iterator[int]:
    """Like :func:`list_nodes`, giving the structs that hold the nodes at a byte offset."""
    return (node - offset & MASK for node in list_nodes(prog, head, limit, following))


def hashed_nodes(prog: Program, table: int, heads: int, limit: int = 1 << 20) -> Iterator[int]:
    """The node addresses of a hash table, an array of ``struct hlist_head``.

    :raises BrokenList: when a node comes twice or after ``limit`` nodes of one list.
    :raises drgn.FaultError: if the dump lacks the table or a node.
    """
    for place in range(table, table + 8 * heads, 8):
        node = prog.read_u64(place & MASK)
        seen: set[int] = set()
        while node:
            if node in seen or len(seen) > limit:
                raise BrokenList(node, "comes twice, or the list has no end")
            seen.add(node)
            yield node
            node = prog.read_u64(node)


_T = TypeVar("_T")


def gather(
    problems: list[str], what: str, found: Callable[[], Iterator[_T]]
) -> tuple[tuple[_T, ...], bool]:
    """All that a walk of a kernel list yields until it fails, and whether it came to the end.

    For lists that only tell more of what is known anyway: memory that the dump lacks, or types
    that the kernel lacks, are no problem. A list that loops or ends in a null pointer is.

    :param problems: takes a line for a broken list.
    :param what: what the line begins with.
    """
    rows = []
    try:
        for row in found():
            rows.append(row)
    except BrokenList as e:
        if not isinstance(e.__cause__, FaultError):
            problems.append(f"{what}: {e}")
        return tuple(rows), False
    except (FaultError, LookupError, MissingInformation):
        return tuple(rows), False
    return tuple(rows), True


def word_places(data: bytes, word: bytes, start: int, end: int) -> Iterator[int]:
    """The places among ``start``, ``start + 8``, ... at which a word lies in data, before the place
    ``end``."""
    at = data.find(word, start, end)
    while at >= 0:
        if not (at - start) & 7:
            yield at
        at = data.find(word, at + 1, end)


class StackMemory:
    """One stack and what the dump holds of its used part.

    :param low, high: the stack's bounds; ``high`` is one past its last byte. What would lie
        beyond the end of memory is not there.
    :param used: where the used part begins. What lies below is read only if it is asked for.
    :param name: what the stack is called in messages ("task", "irq", "NMI", ...).
    :param order: byte order of the dump, as :func:`byte_order` gives it.
    """

    __slots__ = (
        "low", "high", "name", "_prog", "_start", "_last", "_data", "_unpack", "_pack", "_holes",
    )  # fmt: skip

    def __init__(
        self, prog: Program, low: int, high: int, used: int, name: str, order: str = "<"
    ) -> None:
        self.low = low
        self.high = high
        self.name = name
        self._prog = prog
        self._unpack = _WORD[order].unpack_from
        self._pack = _WORD[order].pack
        self._holes: tuple[tuple[int, int], ...] = ()
        self._load(used if low <= used < high else low)

    def _load(self, start: int) -> None:
        self._start = start
        self._last = self.high - start - 8
        try:
            self._data = self._prog.read(start, self.high - start)
        except (FaultError, OverflowError):
            self._load_pieces()

    def _load_pieces(self) -> None:
        data = bytearray(self.high - self._start)
        holes = []
        at = self._start
        while at < self.high:
            end = min(self.high, (at // PAGE_SIZE + 1) * PAGE_SIZE)
            try:
                data[at - self._start : end - self._start] = self._prog.read(at, end - at)
            except (FaultError, OverflowError):
                holes.append((at, end))
            at = end
        self._data = bytes(data)
        self._holes = tuple(holes)

    def contains(self, address: int, size: int) -> bool:
        """Whether an object of ``size`` bytes lies wholly within the stack's bounds."""
        return self.low <= address and address + size <= self.high

    def word(self, address: int) -> int | None:
        """The 64-bit word at an address; None outside the bounds and where the dump lacks it."""
        offset = address - self._start
        if offset < 0 or offset > self._last or self._holes:
            return self._word_with_care(address)
        found: int = self._unpack(self._data, offset)[0]
        return found

    def number(self, address: int) -> int | None:
        """Like :meth:`word`, for a word that is no address: flags, or a mark."""
        return self.word(address)

    def glance(self, address: int) -> int | None:
        """Like :meth:`word`, for a word that decides nothing: it is only told."""
        return self.word(address)

    def elsewhere(self, address: int) -> int | None:
        """Like :meth:`glance`, for a word that decides nothing unless it points into the stack."""
        return self.word(address)

    def holds(self, address: int, value: int) -> bool | None:
        """Whether the word at an address is a certain one, where any other tells nothing."""
        found = self.word(address)
        return None if found is None else found == value

    def places_of(self, value: int, low: int, high: int) -> list[int]:
        """Where in a part of the stack a word is, of the words that can be read.

        :param low: address of the first word.
        :param high: where the last one ends.
        """
        low, high = max(low, self.low), min(high, self.high)
        if high - low < 8:
            return []
        if low < self._start:
            self._load(self.low)
        if self._holes:
            word = StackMemory.word
            return [place for place in range(low, high - 7, 8) if word(self, place) == value]
        start = self._start
        places = word_places(self._data, self._pack(value), low - start, high - start)
        return [start + place for place in places]

    def _word_with_care(self, address: int) -> int | None:
        if not self.contains(address, 8):
            return None
        if address < self._start:
            self._load(self.low)
        if any(a < address + 8 and address < b for a, b in self._holes):
            return None
        found: int = self._unpack(self._data, address - self._start)[0]
        return found


_WORD = {order: struct.Struct(f"{order}Q") for order in "<>"}
