# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's tree from PIDs to ``struct pid`` (``struct idr``), built anew."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from drgn import sizeof

from contrib.scale.templates import offset_of
from drgn_reliable import Kernel

__all__ = ("PidTree",)

_BITS = 6
_SLOTS = 1 << _BITS
"""``XA_CHUNK_SIZE`` of every kernel that is not configured for small memory."""
_INTERNAL = 2
"""Added to the address of a node where it stands in place of an entry."""


class PidTree:
    """The nodes of a tree that holds some pointers by PID.

    :param pointer: gives the pointer of a PID, or 0.
    :param end: one more than the highest PID.
    :param head: the address of the ``struct xarray``.
    """

    def __init__(self, kernel: Kernel, pointer: Callable[[int], int], end: int, head: int) -> None:
        self._pointer = pointer
        self._end = end
        self._head = head
        names = ("parent", "array", "private_list", "slots", "tags")
        self._offsets = {name: offset_of(kernel, "struct xa_node", name) for name in names}
        self.node_size = sizeof(kernel.prog.type("struct xa_node"))
        self._counts = [-(-end // _SLOTS)]
        """Nodes of each level, the lowest first."""
        while self._counts[-1] > 1:
            self._counts.append(-(-self._counts[-1] // _SLOTS))

    @property
    def nodes(self) -> int:
        """How many nodes."""
        return sum(self._counts)

    def root(self, place: Callable[[int], int]) -> int:
        """What ``xa_head`` has to be. ``place`` gives the address of a node by its number."""
        return place(self.nodes - 1) + _INTERNAL

    def contents(self, place: Callable[[int], int]) -> Iterator[bytes]:
        """The nodes, by their numbers."""
        below, number = 0, 0
        free = bytearray(self._counts[0])
        for level, count in enumerate(self._counts):
            start = number
            parents = start + count
            free_here = bytearray(count)
            for index in range(count):
                children = range(index * _SLOTS, index * _SLOTS + _SLOTS)
                if level == 0:
                    slots = [self._pointer(pid) if pid < self._end else 0 for pid in children]
                    tags = [slot == 0 for slot in slots]
                else:
                    have = self._counts[level - 1]
                    slots = [place(below + i) + _INTERNAL if i < have else 0 for i in children]
                    tags = [i >= have or bool(free[i]) for i in children]
                free_here[index] = any(tags)
                top = level + 1 == len(self._counts)
                parent = 0 if top else place(parents + index // _SLOTS)
                yield self._node(place(number), level, index, slots, tags, parent)
                number += 1
            below, free = start, free_here

    def _node(
        self, address: int, level: int, index: int, slots: list[int], tags: list[bool], parent: int
    ) -> bytes:
        """One node; its first tag tells of slots that are free, or have one below them."""
        node = bytearray(self.node_size)
        used = sum(slot != 0 for slot in slots)
        node[0:3] = bytes((level * _BITS, index % _SLOTS if parent else 0, used))
        offsets = self._offsets
        struct.pack_into("<Q", node, offsets["parent"], parent)
        struct.pack_into("<Q", node, offsets["array"], self._head)
        itself = address + offsets["private_list"]
        struct.pack_into("<QQ", node, offsets["private_list"], itself, itself)
        struct.pack_into(f"<{_SLOTS}Q", node, offsets["slots"], *slots)
        marks = sum(tag << bit for bit, tag in enumerate(tags))
        struct.pack_into("<Q", node, offsets["tags"], marks)
        return bytes(node)
