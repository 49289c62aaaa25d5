# SPDX-License-Identifier: LGPL-2.1-or-later
"""Find VMCOREINFO in the memory of a dump whose file does not have it.

The kernel keeps the note ready in memory for a crash (``vmcoreinfo_note``, at the start of a page).
QEMU's ``dump-guest-memory`` copies it into the file only for machines with its vmcoreinfo device;
those of s390x and powerpc have none.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import BinaryIO, NamedTuple, cast

from drgn import FaultError

from drgn_reliable.errors import DumpError
from drgn_reliable.files.elfcore import ElfCore
from drgn_reliable.files.notes import find_vmcoreinfo
from drgn_reliable.files.packed import Watch
from drgn_reliable.files.source import DumpFormatError

__all__ = ("Vmcoreinfo", "find_in_memory", "number_in", "values_of")

_NAME = b"VMCOREINFO\0"
_NAME_AT = 12
_NAME_SIZE = len(_NAME)
_MAX_SIZE = 1 << 16
"""``VMCOREINFO_BYTES`` is a page, of up to 64 KiB."""
_PAGE = 4096
_CHUNK = 1 << 22
_DIFFERENT = 8
"""Notes that differ, after which no more are looked for."""
S390X_POINTER = 0xE0C
"""s390x: where absolute page 0 has the address of the note (``vmcore_info`` in
``struct lowcore``)."""


class Vmcoreinfo(NamedTuple):
    """What a kernel says of itself to dump tools."""

    text: str
    little_endian: bool


def values_of(text: str) -> dict[str, str]:
    """What VMCOREINFO says, by name.

    >>> values_of("OSRELEASE=6.1.0\\nSYMBOL(_stext)=ffffffff81000000\\n")["OSRELEASE"]
    '6.1.0'
    """
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def number_in(
    values: Mapping[str, str], name: str, default: int | None = None, base: int = 10
) -> int:
    """A number that VMCOREINFO has, or the default if it has none of that name.

    :raises DumpError: if what it has is no number, or if it lacks one without a default.
    """
    if name not in values:
        if default is None:
            raise DumpError(f"VMCOREINFO has no {name}")
        return default
    try:
        return int(values[name], base)
    except ValueError as e:
        raise DumpError(f"VMCOREINFO is damaged: {name}={values[name]!r} is no number") from e


def find_in_memory(file: ElfCore, watch: Watch) -> Vmcoreinfo | None:
    """The one VMCOREINFO note in memory, at the start of a page; None if there is none.

    What is stored of the memory is looked at, once; not the holes of a sparse or flattened file.

    :raises DumpFormatError: if there are several that differ.
    """
    if file.machine == "s390x" and (found := _at_pointer(file)):
        return found
    notes: dict[Vmcoreinfo, int] = {}
    ranges = list(file.stored())
    size = sum(end - start for start, end in ranges)
    stream = cast(BinaryIO, io.BufferedReader(_Memory(file, ranges), _CHUNK))
    with watch(stream, size, "looking for VMCOREINFO") as watched:
        for address in _candidates(ranges, watched):
            if note := _note_at(file, address):
                notes.setdefault(note, address)
            if len(notes) == _DIFFERENT:
                break
    if len(notes) > 1:
        places = ", ".join(f"{address:#x}" for address in notes.values())
        raise DumpFormatError(
            f"{file.source.path}: no VMCOREINFO in the file, and different ones in memory, at "
            f"{places}; name a file with the right one with --vmcoreinfo"
        )
    return next(iter(notes), None)


def _at_pointer(file: ElfCore) -> Vmcoreinfo | None:
    with suppress(FaultError):
        return _note_at(file, int.from_bytes(file.read_physical(S390X_POINTER, 8), "big"))
    return None


def _candidates(ranges: Iterable[tuple[int, int]], stream: BinaryIO) -> Iterator[int]:
    """Addresses of pages that begin as the note does."""
    for start, end in ranges:
        at = start
        while at < end and (data := stream.read(min(_CHUNK, end - at))):
            place = data.find(_NAME)
            while place >= 0:
                if (at + place) % _PAGE == _NAME_AT:
                    yield at + place - _NAME_AT
                place = data.find(_NAME, place + 1)
            at += len(data)


def _note_at(file: ElfCore, address: int) -> Vmcoreinfo | None:
    """The note at an address; the size of its name tells the byte order."""
    with suppress(FaultError, DumpFormatError, UnicodeDecodeError):
        head = file.read_physical(address, _NAME_AT)
        little = int.from_bytes(head[:4], "little") == _NAME_SIZE
        if not little and int.from_bytes(head[:4], "big") != _NAME_SIZE:
            return None
        size = int.from_bytes(head[4:8], "little" if little else "big")
        if size > _MAX_SIZE:
            return None
        raw = file.read_physical(address, _NAME_AT + _NAME_SIZE + 1 + size)
        note = find_vmcoreinfo(raw + b"\0\0\0", little_endian=little)
        text = note.description.rstrip(b"\0").decode("ascii") if note else ""
        if text.startswith("OSRELEASE=") and "\nPAGESIZE=" in text:
            return Vmcoreinfo(text, little)
    return None


class _Memory(io.RawIOBase):
    """The memory of a dump as a stream, one range after the other."""

    def __init__(self, file: ElfCore, ranges: Iterable[tuple[int, int]]) -> None:
        super().__init__()
        self._file = file
        self._ranges = deque(ranges)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._ranges:
            return 0
        start, end = self._ranges[0]
        size = min(len(view), end - start)
        try:
            view[:size] = self._file.read_physical(start, size)
        except FaultError:  # the file is cut off here
            view[:size] = bytes(size)
        if start + size == end:
            self._ranges.popleft()
        else:
            self._ranges[0] = (start + size, end)
        return size
