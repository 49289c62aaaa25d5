# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other bytes over a program's memory, laid and taken away again without opening it anew."""

from __future__ import annotations

from collections.abc import Callable

import drgn

PAGE = 4096
M = (1 << 64) - 1


class TooMuch(Exception):
    """More was read than any scan needs."""


class Overlay:
    """Memory of which some bytes are others and some pages are missing.

    :param read: gives the memory beneath.

    :attr:`reads` and :attr:`bytes` count what a program has read through :meth:`segment`,
    :attr:`trace` is told address and size of each read, and :exc:`TooMuch` is raised when there are
    more than :attr:`limit` reads.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._beneath = read
        self._kept: dict[int, bytes] = {}
        self._changed: dict[int, bytearray | None] = {}
        self.reads = self.bytes = 0
        self.trace: Callable[[int, int], None] | None = None
        self.limit = 1 << 62

    def lay_over(self, prog: drgn.Program) -> None:
        """Let a program read its virtual memory here."""
        prog.add_memory_segment(0, M, self.segment)

    def segment(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        """What drgn calls."""
        self.reads += 1
        self.bytes += count
        if self.trace:
            self.trace(address, count)
        if self.reads > self.limit:
            raise TooMuch(f"{self.reads} reads, the last at {address:#x}")
        return self.read(address, count)

    def read(self, address: int, count: int) -> bytes:
        """Memory with the damage.

        :raises drgn.FaultError: if it is not there.
        """
        page, start = address & ~(PAGE - 1), address & (PAGE - 1)
        if start + count <= PAGE:
            return bytes(self._page(page)[start : start + count])
        if address + count > M:
            raise drgn.FaultError("beyond the end of memory", address)
        parts = []
        while count:
            part = bytes(self._page(page)[start : start + count])
            parts.append(part)
            count -= len(part)
            page, start = page + PAGE, 0
        return b"".join(parts)

    def _page(self, page: int) -> bytes | bytearray:
        if page in self._changed:
            changed = self._changed[page]
            if changed is None:
                raise drgn.FaultError("taken away", page)
            return changed
        return self._whole(page)

    def _whole(self, page: int) -> bytes:
        if page not in self._kept:
            self._kept[page] = self._beneath(page, PAGE)
        return self._kept[page]

    def sound(self, address: int, count: int = 8) -> bytes:
        """Memory without the damage; zeroes where there is none."""
        parts = []
        for page in range(address & ~(PAGE - 1), address + count, PAGE):
            try:
                whole = self._whole(page)
            except (drgn.FaultError, OverflowError):
                whole = bytes(PAGE)
            parts.append(whole[max(address - page, 0) : address + count - page])
        return b"".join(parts)

    def put(self, address: int, data: bytes) -> None:
        """Lay other bytes; where there is no memory, none is made."""
        for at, byte in enumerate(data, address):
            page = at & ~(PAGE - 1) & M
            if page not in self._changed:
                try:
                    self._changed[page] = bytearray(self._whole(page))
                except drgn.FaultError:
                    continue
            changed = self._changed[page]
            if changed is not None:
                changed[at & (PAGE - 1)] = byte

    def take(self, address: int) -> None:
        """Take the page away that an address is in."""
        self._changed[address & ~(PAGE - 1)] = None

    def heal(self) -> None:
        """Take all damage away."""
        self._changed.clear()
