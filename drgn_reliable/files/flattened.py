# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flattened format: a dump as a stream of "these bytes belong at that offset".

``makedumpfile -F`` writes it where the target cannot seek (ssh, a pipe), and QEMU's and libvirt's
kdump formats always are flattened (before QEMU 8.2). After a header of 4096 bytes come records of
two big-endian 64-bit numbers, offset and size, and that many bytes; an offset of -1 is the end. A
record can overwrite an earlier one (``IMPLEMENTATION`` in makedumpfile's source).

The records are indexed once, and read in place: there is no second copy on the disk.
"""

from __future__ import annotations

import heapq
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from drgn_reliable.files.source import DumpFormatError, Source

__all__ = ("FLATTENED_SIGNATURE", "FlattenedSource")

FLATTENED_SIGNATURE = b"makedumpfile".ljust(16, b"\0")
_HEADER_SIZE = 4096
_RECORD = struct.Struct(">qq")
_LARGEST_READ = 1 << 30
"""Bytes: more than the largest bitmap that a machine has, far less than a made-up size."""


class _Record(NamedTuple):
    offset: int
    """Where the bytes belong."""
    end: int
    position: int
    """Where they are in the flattened file."""


class FlattenedSource:
    """The dump that a flattened file describes.

    What no record covers reads as zeroes, as in the sparse file that ``makedumpfile -R`` makes.

    :raises DumpFormatError: if the file is not flattened, or damaged before its end.
    """

    def __init__(self, source: Source) -> None:
        if source.read(0, len(FLATTENED_SIGNATURE)) != FLATTENED_SIGNATURE:
            raise DumpFormatError(f"{source.path}: not a flattened dump")
        self.path = source.path
        self._source = source
        self.complete = False
        """Whether the end mark is there: a copy that broke off lacks it."""
        self._starts = array("Q")
        self._ends = array("Q")
        self._positions = array("Q")
        for start, end, position in _overlaid(list(self._records())):
            if self._joins_last(start, position):
                self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)
                self._positions.append(position)
        self.size = self._ends[-1] if self._ends else 0

    def _records(self) -> Iterator[_Record]:
        source, at = self._source, _HEADER_SIZE
        while len(head := source.read(at, _RECORD.size)) == _RECORD.size:
            offset, size = _RECORD.unpack(head)
            if offset == -1:
                self.complete = True
                return
            position = at + _RECORD.size
            if offset < 0 or size < 0:
                raise DumpFormatError(
                    f"{self.path}: flattened dump, damaged at byte {at}: a record of {size} bytes "
                    f"for offset {offset}"
                )
            at = position + size
            there = min(size, source.size - position)
            if there > 0:
                yield _Record(offset, offset + there, position)

    def _joins_last(self, start: int, position: int) -> bool:
        if not self._ends or self._ends[-1] != start:
            return False
        return self._positions[-1] + (start - self._starts[-1]) == position

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from an offset on, fewer at the end."""
        end = min(offset + size, self.size)
        if end - offset > _LARGEST_READ:
            raise DumpFormatError(f"{self.path}: {end - offset} bytes at once, a damaged size")
        parts = []
        index = max(0, bisect_right(self._starts, offset) - 1)
        while offset < end and index < len(self._starts):
            start, stop = self._starts[index], min(end, self._ends[index])
            if offset < min(start, end):
                parts.append(bytes(min(start, end) - offset))
                offset = min(start, end)
            if offset < stop:
                position = self._positions[index] + offset - start
                parts.append(self._source.read(position, stop - offset))
                offset = stop
            index += 1
        return b"".join(parts)

    def spans(self, offset: int = 0, size: int | None = None) -> Iterator[tuple[int, int]]:
        """Offset and size of what the records cover of a part, or of all, and what is stored of the
        records; ascending."""
        last = self.size if size is None else min(offset + size, self.size)
        for index in range(max(0, bisect_right(self._starts, offset) - 1), len(self._starts)):
            start = max(offset, self._starts[index])
            end = min(last, self._ends[index])
            if start >= last:
                return
            if start < end:
                shift = self._positions[index] - self._starts[index]
                for at, count in self._source.spans(start + shift, end - start):
                    yield at - shift, count


def _overlaid(records: list[_Record]) -> Iterator[_Record]:
    """The records cut where later ones cover them, by ascending offset.

    >>> list(_overlaid([_Record(0, 9, 100), _Record(3, 5, 200)])) == [
    ...     _Record(0, 3, 100), _Record(3, 5, 200), _Record(5, 9, 105)]
    True
    """
    numbers = sorted(range(len(records)), key=lambda number: records[number].offset)
    bounds = sorted({bound for record in records for bound in (record.offset, record.end)})
    open_records: list[int] = []
    """A heap of negated record numbers: the latest first."""
    waiting = 0
    for start, end in pairwise(bounds):
        while waiting < len(numbers) and records[numbers[waiting]].offset <= start:
            heapq.heappush(open_records, -numbers[waiting])
            waiting += 1
        while open_records and records[-open_records[0]].end <= start:
            heapq.heappop(open_records)
        if open_records:
            latest = records[-open_records[0]]
            yield _Record(start, end, latest.position + start - latest.offset)
