# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory, types and symbols of a dumped kernel, as the reference reads them: a word at a time.

Types and symbols are those of a program that nothing was done to; memory is that of the damaged
one. All numbers are unsigned 64-bit and wrap, as the kernel's do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import drgn

from contrib.fuzz.reference.answers import Fault

M = (1 << 64) - 1
LOOPS = 1 << 17
"""No list of the kernel's is followed further: it would never have come out of it."""


class Machine:
    """One kernel.

    :param types: a program with the kernel's types and symbols.
    :param read: gives memory, :class:`drgn.FaultError` for what is not there.
    :param trace: is told each address and size that is read, if given.
    """

    def __init__(
        self,
        types: drgn.Program,
        read: Callable[[int, int], bytes],
        trace: Callable[[int, int], None] | None = None,
    ) -> None:
        self.types = types
        self.read = read
        self.trace = trace
        platform = types.platform
        assert platform is not None
        little = platform.flags & drgn.PlatformFlags.IS_LITTLE_ENDIAN
        self.order: Any = "little" if little else "big"
        self._symbols: dict[str, int | None] = {}
        self._offsets: dict[tuple[str, str], tuple[int, int, bool]] = {}

    # Memory ------------------------------------------------------------------------------

    def number(self, address: int, size: int = 8, signed: bool = False) -> int:
        address &= M
        if self.trace:
            self.trace(address, size)
        try:
            data = self.read(address, size)
        except (drgn.FaultError, OverflowError) as e:
            raise Fault(hex(address)) from e
        return int.from_bytes(data, self.order, signed=signed)

    # Symbols -----------------------------------------------------------------------------

    def symbol(self, name: str) -> int | None:
        if name not in self._symbols:
            found = self.types.symbols(name)
            best = [s for s in found if s.binding == drgn.SymbolBinding.GLOBAL] or found
            self._symbols[name] = best[0].address if best else None
        return self._symbols[name]

    def need(self, name: str) -> int:
        address = self.symbol(name)
        assert address is not None, name
        return address

    # Types -------------------------------------------------------------------------------

    def size(self, struct: str) -> int:
        return drgn.sizeof(self.types.type(f"struct {struct}"))

    def has(self, struct: str, path: str) -> bool:
        try:
            self._member(struct, path)
        except LookupError:
            return False
        return True

    def _member(self, struct: str, path: str) -> tuple[int, int, bool]:
        key = struct, path
        if key not in self._offsets:
            type_ = self.types.type(f"struct {struct}")
            at = drgn.offsetof(type_, path)
            for name in path.split("."):
                while type_.kind == drgn.TypeKind.TYPEDEF:
                    type_ = type_.type
                member, index, _ = name.partition("[")
                type_ = type_.member(member).type
                type_ = type_.type if index else type_
            while type_.kind == drgn.TypeKind.TYPEDEF:
                type_ = type_.type
            signed = type_.kind == drgn.TypeKind.INT and type_.is_signed
            scalar = type_.kind not in (drgn.TypeKind.STRUCT, drgn.TypeKind.ARRAY)
            self._offsets[key] = at, drgn.sizeof(type_) if scalar else 8, signed
        return self._offsets[key]

    def offset(self, struct: str, path: str) -> int:
        return self._member(struct, path)[0]

    def get(self, struct: str, address: int, path: str) -> int:
        at, size, signed = self._member(struct, path)
        return self.number(address + at, size, signed)

    def each(self, struct: str, head: int, member: str) -> Iterator[int]:
        """``list_for_each_entry()``."""
        at = self.offset(struct, member)
        node = self.number(head)
        for _ in range(LOOPS):
            if node == head:
                return
            yield node - at & M
            node = self.number(node)
        raise Fault(f"list at {head:#x}")

    # What all architectures have in common -------------------------------------------------

    @cached_property
    def thread_size(self) -> int:
        for what in ("stack", "task"):
            start, end = (self.symbol(f"__{edge}_init_{what}") for edge in ("start", "end"))
            if start and end:
                return end - start
        raise AssertionError("no size of stacks")

    @cached_property
    def page_size(self) -> int:
        text: bytes = self.types["VMCOREINFO"].string_()
        return int(text.split(b"PAGESIZE=")[1].split()[0])

    @cached_property
    def pac_bits(self) -> int:
        """arm64: the bits of ``NUMBER(KERNELPACMASK)``."""
        text: bytes = self.types["VMCOREINFO"].string_()
        _, found, rest = text.partition(b"NUMBER(KERNELPACMASK)=")
        return int(rest.split()[0], 16) if found else 0
