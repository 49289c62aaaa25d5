# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump that passes for a running kernel: its memory can change between two reads."""

from __future__ import annotations

import struct
from collections.abc import Callable

from drgn import FaultError, Program

from drgn_reliable import Kernel, open_dump
from drgn_reliable.memory import member_offset
from drgn_reliable.opening import physical_program
from tests.dumps import Dump

KERNEL_HALF = 1 << 63
WORD = 8


class Living:
    """A program that says that it is live, of a dump's memory and of words over it.

    :attr:`before` is called with the address and size of each read, before it is made.
    """

    def __init__(self, dump: Dump) -> None:
        self.original = open_dump(str(dump.path))
        self.words: dict[int, int] = {}
        self.reads: list[tuple[int, int]] = []
        self.before: Callable[[int, int], None] = lambda address, size: None
        text = self.original["VMCOREINFO"].string_().decode()
        self.prog: Program = physical_program(dump.architecture, self._physical, text, live=True)
        self.prog.add_memory_segment(KERNEL_HALF, KERNEL_HALF, self._read)
        self._task = Kernel(self.original).prog.type("struct task_struct")
        self._link_all()

    def kernel(self) -> Kernel:
        """The kernel, as it is opened now."""
        return Kernel(self.prog)

    def place(self, task: int, member: str) -> int:
        """The address of a member of a task structure."""
        offset = member_offset(self._task, member)
        assert offset is not None
        return task + offset

    def word(self, address: int) -> int:
        """A word as it is now."""
        return int.from_bytes(self._peek(address, WORD), "little")

    def set(self, address: int, value: int, size: int = WORD) -> None:
        """Change some bytes of a word, or all."""
        start = address % WORD
        old = bytearray(self._peek(address - start, WORD))
        old[start : start + size] = value.to_bytes(size, "little")
        self.words[address - start] = int.from_bytes(old, "little")

    def add(self, address: int, number: int = 1) -> None:
        """Count up a word."""
        self.set(address, self.word(address) + number)

    def _link_all(self) -> None:
        """Give each task the link that leads to it, which a capsule need not have."""
        for task in Kernel(self.original).tasks:
            before = self.word(self.place(task.address, "thread_node.prev"))
            try:
                self.original.read_u64(before)
            except FaultError:
                self.words[before] = self.place(task.address, "thread_node")

    def _physical(self, address: int, size: int) -> bytes:
        data: bytes = self.original.read(address, size, physical=True)
        return data

    def _read(self, address: int, size: int, offset: int, physical: bool) -> bytes:
        self.reads.append((address, size))
        self.before(address, size)
        return self._peek(address, size)

    def _peek(self, address: int, size: int) -> bytes:
        over = range(address & -WORD, address + size, WORD)
        try:
            data = bytearray(self.original.read(address, size))
        except FaultError:
            if not all(at in self.words for at in over):
                raise
            data = bytearray(size)
        changed = over if size < 1 << 16 else ()
        for at in changed:
            if at in self.words:
                for i, byte in enumerate(struct.pack("<Q", self.words[at])):
                    if 0 <= at + i - address < size:
                        data[at + i - address] = byte
        return bytes(data)
