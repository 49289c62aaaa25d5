# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read ELF core files: ``/proc/vmcore``, ``makedumpfile -E``, QEMU's ``dump-guest-memory``.

drgn reads their memory by itself. This reader is for the notes as they are, for how much memory
there is, and for files that drgn cannot be given as they are.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from drgn import FaultError
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from drgn_reliable.files.notes import padded
from drgn_reliable.files.source import DumpFormatError, Source, SourceStream, read_exactly

__all__ = ("ELF_SIGNATURE", "ElfCore")

ELF_SIGNATURE = b"\x7fELF"

_MACHINES = {
    "EM_386": "i686",
    "EM_AARCH64": "aarch64",
    "EM_ARM": "armv7l",
    "EM_LOONGARCH": "loongarch64",
    "EM_PARISC": "parisc64",
    "EM_PPC64": "ppc64",
    "EM_RISCV": "riscv64",
    "EM_S390": "s390x",
    "EM_X86_64": "x86_64",
}
"""``uname -m`` by ``e_machine``; a little-endian ppc64 is ppc64le."""

_INCOMPLETE = 0x1
"""``DUMP_ELF_INCOMPLETE`` in ``e_flags``: makedumpfile ran out of space."""


_NOTES_LIMIT = 1 << 26
"""Bytes; the registers of 8,192 CPUs are 3 MB."""


_PAGE = 4096
_HEADER_SIZE = {32: 32, 64: 56}
"""Bytes of a program header."""
_LAST_OFFSET = (1 << 63) - 1
"""Of ``off_t``."""


class _Segment(NamedTuple):
    """Memory of a ``PT_LOAD`` program header that is in the file, in bytes."""

    address: int
    """Physical."""
    end: int
    offset: int
    """In the file."""


class ElfCore:
    """An ELF core file.

    :raises DumpFormatError: if it is not one, or cut off in its headers.
    """

    format = "ELF"

    def __init__(self, source: Source) -> None:
        self.source = source
        try:
            # OSError is a seek beyond all files, and pyelftools asserts.
            elf = ELFFile(io.BufferedReader(SourceStream(source)))
            _check_table(elf, source.size)
            headers = [segment.header for segment in elf.iter_segments()]
        except (ELFError, OSError, ValueError, AssertionError) as error:
            raise DumpFormatError(f"{source.path}: unreadable ELF headers: {error}") from error
        self._type = elf["e_type"]
        self._flags = elf["e_flags"]
        self.little_endian: bool = elf.little_endian
        machine = _MACHINES.get(elf["e_machine"], str(elf["e_machine"]))
        self.machine = "ppc64le" if machine == "ppc64" and self.little_endian else machine
        """What ``uname -m`` says on the dumped machine."""
        self._note_headers = [h for h in headers if h["p_type"] == "PT_NOTE"]
        loaded = [h for h in headers if h["p_type"] == "PT_LOAD"]
        self._claimed = max((h["p_offset"] + h["p_filesz"] for h in loaded), default=0)
        """Where the file would end that has all that its headers tell of."""
        self._segments = list(_in_the_file(loaded, source.size))
        self._starts = [segment.address for segment in self._segments]

    @property
    def is_core(self) -> bool:
        """Whether this is a core file, rather than an executable or an object."""
        return bool(self._type == "ET_CORE")

    @cached_property
    def notes(self) -> bytes:
        """The ELF notes as the file has them, one after the other.

        :raises DumpFormatError: if they are cut off, or no dump has so many.
        """
        size = sum(h["p_filesz"] for h in self._note_headers)
        if size > _NOTES_LIMIT:
            raise DumpFormatError(f"{self.source.path}: {size} bytes of notes; no dump has so many")
        return b"".join(
            padded(read_exactly(self.source, h["p_offset"], h["p_filesz"], "note segment"))
            for h in self._note_headers
        )

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Physical addresses from and to which there is memory in the file, ascending."""
        return ((segment.address, segment.end) for segment in self._segments)

    def stored(self) -> Iterator[tuple[int, int]]:
        """Those of :meth:`ranges` without the file's holes, by whole pages, in the order of the
        file, of which no byte comes twice."""
        reached = 0
        for segment in sorted(self._segments, key=lambda each: each.offset):
            shift = segment.address - segment.offset
            start, end = max(segment.offset, reached), segment.end - shift
            reached = max(reached, end)
            yield from _joined(
                (
                    max(start + shift, (at + shift) // _PAGE * _PAGE),
                    min(end + shift, -(-(at + size + shift) // _PAGE) * _PAGE),
                )
                for at, size in self.source.spans(start, end - start)
            )

    @property
    def memory_size(self) -> int:
        """Bytes of physical memory in the file."""
        return sum(end - start for start, end in self.ranges())

    def flaws(self) -> list[str]:
        """What is missing from the file as a whole, one clause each."""
        found = []
        if self.is_core and self._flags & _INCOMPLETE:
            found.append("makedumpfile ran out of space and marked the dump as incomplete")
        if self.reaches_beyond_all_files:
            found.append("damaged: its headers tell of memory beyond the end of any file")
        elif self._claimed > self.source.size:
            found.append(f"cut off at {self.source.size} bytes of {self._claimed}")
        return found

    @property
    def reaches_beyond_all_files(self) -> bool:
        """Whether a segment would end where the system has no offsets."""
        return self._claimed > _LAST_OFFSET

    def read_physical(self, address: int, count: int) -> bytes:
        """Return physical memory.

        :raises FaultError: if it is not in the file.
        """
        parts = []
        while count > 0:
            part = self._read_some(address, count)
            parts.append(part)
            address += len(part)
            count -= len(part)
        return b"".join(parts)

    def _read_some(self, address: int, count: int) -> bytes:
        number = bisect_right(self._starts, address) - 1
        if number >= 0 and address < self._segments[number].end:
            segment = self._segments[number]
            size = min(count, segment.end - address)
            data = self.source.read(segment.offset + address - segment.address, size)
            if data:
                return data
        raise FaultError("memory is not in the dump", address)


def _check_table(elf: ELFFile, size: int) -> None:
    """See that a file of some size has its program headers, of which it may claim 2^32.

    :raises ValueError: if it does not.
    """
    count, each, at = elf.num_segments(), elf["e_phentsize"], elf["e_phoff"]
    if count and (each < _HEADER_SIZE[elf.elfclass] or at + count * each > size):
        raise ValueError(f"{count} program headers of {each} bytes at {at}, in {size} bytes")


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ascending ranges of which none touches the next.

    >>> list(_joined([(0, 2), (2, 5), (4, 6), (8, 9)]))
    [(0, 6), (8, 9)]
    """
    start = end = -1
    for low, high in ranges:
        if low > end:
            if start < end:
                yield start, end
            start = low
        end = max(end, high)
    if start < end:
        yield start, end


def _in_the_file(headers: Iterable[Mapping[str, int]], size: int) -> Iterator[_Segment]:
    """Ascending and apart, what ``PT_LOAD`` headers tell of and a file of some size can have;
    ``/proc/vmcore`` has the kernel's image twice."""
    reached = 0
    for header in sorted(headers, key=lambda each: each["p_paddr"]):
        offset, start = header["p_offset"], header["p_paddr"]
        end = start + max(0, min(header["p_filesz"], size - offset))
        if max(start, reached) < end:
            skipped = max(0, reached - start)
            yield _Segment(start + skipped, end, offset + skipped)
            reached = end
