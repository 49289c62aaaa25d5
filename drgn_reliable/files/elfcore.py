# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read ELF core files: ``/proc/vmcore``, ``makedumpfile -E``, QEMU's ``dump-guest-memory``.

drgn reads their memory by itself. This reader is for the notes as they are, for how much memory
there is, and for files that drgn cannot be given as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
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


class _Segment(NamedTuple):
    """A ``PT_LOAD`` program header, in bytes."""

    address: int
    """Physical."""
    end: int
    """Of what is in the file; excluded memory after it is not."""
    offset: int


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
        self._segments = [
            _Segment(h["p_paddr"], h["p_paddr"] + h["p_filesz"], h["p_offset"])
            for h in headers
            if h["p_type"] == "PT_LOAD"
        ]

    @property
    def is_core(self) -> bool:
        """Whether this is a core file, rather than an executable or an object."""
        return bool(self._type == "ET_CORE")

    @cached_property
    def notes(self) -> bytes:
        """The ELF notes as the file has them, one after the other.

        :raises DumpFormatError: if they are cut off.
        """
        return b"".join(
            padded(read_exactly(self.source, h["p_offset"], h["p_filesz"], "note segment"))
            for h in self._note_headers
        )

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Physical addresses from and to which there is memory in the file, ascending;
        ``/proc/vmcore`` has the kernel's image twice."""
        reached = 0
        for segment in sorted(self._segments):
            start = max(segment.address, reached)
            if start < segment.end:
                yield start, segment.end
                reached = segment.end

    @property
    def memory_size(self) -> int:
        """Bytes of physical memory in the file."""
        return sum(end - start for start, end in self.ranges())

    def flaws(self) -> list[str]:
        """What is missing from the file as a whole, one clause each."""
        found = []
        if self.is_core and self._flags & _INCOMPLETE:
            found.append("makedumpfile ran out of space and marked the dump as incomplete")
        end = max((s.offset + s.end - s.address for s in self._segments), default=0)
        if end > self.source.size:
            found.append(f"cut off at {self.source.size} bytes of {end}")
        return found

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
        for segment in self._segments:
            if segment.address <= address < segment.end:
                size = min(count, segment.end - address)
                data = self.source.read(segment.offset + address - segment.address, size)
                if data:
                    return data
        raise FaultError("memory is not in the dump", address)
