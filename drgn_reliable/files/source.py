# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sequence of bytes that a dump's reader reads from: a file, or what stands in for one."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol

from drgn_reliable.errors import DumpError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("DumpFormatError", "FileSource", "Source", "SourceStream", "read_exactly")


class DumpFormatError(DumpError, ValueError):
    """The file is not a dump of a known format, or it contradicts itself."""


class Source(Protocol):
    """Bytes at offsets."""

    path: str
    """The file that the user named, for messages."""
    size: int
    """In bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from an offset on, fewer at the end."""
        ...

    def spans(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Offset and size of what is stored of a part, ascending; the rest of it are holes, which
        read as zeroes."""
        ...


class FileSource:
    """An open file, closed when nobody refers to this any more.

    :param path: what the user calls it.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.path = path
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    @property
    def fd(self) -> int:
        """The file descriptor, which stays this object's."""
        return self._file.fileno()

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from an offset on, fewer at the end."""
        try:
            return os.pread(self._file.fileno(), size, offset)
        except OverflowError:  # no file is as long as that
            return b""

    def spans(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """See :class:`Source`. A file system that knows no holes says that there are none."""
        at, end = offset, min(offset + size, self.size)
        while at < end:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
                at = min(end, os.lseek(self.fd, start, os.SEEK_HOLE))
            except OSError as e:
                if e.errno != errno.ENXIO:  # there is no more data
                    yield at, end - at
                return
            if start < at:
                yield start, at - start


class SourceStream(io.RawIOBase):
    """A source as a seekable stream, for libraries that want one."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere, beyond the end too."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer as far as the source goes, and say how far."""
        view = memoryview(buffer)
        data = self._source.read(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_exactly(source: Source, offset: int, size: int, what: str) -> bytes:
    """Read, after a look at the source's size: a size from a hostile file is not allocated.

    :raises DumpFormatError: if the source ends before.
    """
    data = source.read(offset, size) if offset + size <= source.size else b""
    if len(data) != size:
        raise DumpFormatError(
            f"{source.path}: {what} ({size} bytes at {offset}) reaches beyond the file's "
            f"{source.size} bytes"
        )
    return data
