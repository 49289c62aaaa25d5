# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps stored as .gz, .xz, .zst or .bz2, unpacked to a file that has no name.

Nothing can be left behind: the system frees the file when the last descriptor is closed, whatever
happens to the process. What unpacks to more than any dump does, or needs more memory for it, is
refused.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from drgn_reliable.errors import DumpError
from drgn_reliable.files.source import DumpFormatError

__all__ = ("Packing", "Watch", "first_bytes", "packing_of", "unpack", "unwatched")

Watch = Callable[[BinaryIO, int, str], AbstractContextManager[BinaryIO]]
"""Takes a file that is read from start to end, its size in bytes and what is being done, and gives
a file in its place, to show how far it is."""

_CHUNK = 1 << 18
_SPARE = 64 << 20
"""Bytes of the file system that are left to others."""


def unwatched(file: BinaryIO, size: int, what: str) -> AbstractContextManager[BinaryIO]:
    """Show nothing."""
    return nullcontext(file)


_SURE_SIZE, _RATIO = 1 << 30, 4096
"""Bytes that a file may unpack to in any case, and the multiple of its own size up to which it may.
An idle machine's whole memory, most of it zeroes, comes to hundreds."""
_MEMORY_LIMIT = 1 << 28
"""Bytes for an xz decoder; ``xz -9`` needs 65 MiB."""


def _pieces(unpacked: IO[bytes]) -> Iterator[bytes]:
    with unpacked:
        while chunk := unpacked.read(_CHUNK):
            yield chunk


def _gz(file: BinaryIO) -> Iterator[bytes]:
    return _pieces(cast(IO[bytes], gzip.GzipFile(fileobj=file)))


def _bz2(file: BinaryIO) -> Iterator[bytes]:
    return _pieces(cast(IO[bytes], bz2.BZ2File(file)))


def _zst(file: BinaryIO) -> Iterator[bytes]:
    from zstandard import ZstdDecompressor

    return _pieces(ZstdDecompressor().stream_reader(file, read_across_frames=True))


def _xz(file: BinaryIO) -> Iterator[bytes]:
    """Streams one after the other, padded with zeroes; :class:`lzma.LZMAFile` takes no limit."""
    data = file.read(_CHUNK)
    while data:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY_LIMIT)
        while not stream.eof:
            if stream.needs_input and not (data := data or file.read(_CHUNK)):
                raise EOFError("the end of the stream is missing")
            if chunk := stream.decompress(data, _CHUNK):
                yield chunk
            data = b""
        data = stream.unused_data.lstrip(b"\0")
        while not data and (more := file.read(_CHUNK)):
            data = more.lstrip(b"\0")


def _zst_size(file: BinaryIO) -> int:
    """The size that the first frame declares, or 0."""
    from zstandard import CONTENTSIZE_UNKNOWN, ZstdError, frame_content_size

    try:
        size = frame_content_size(file.read(18))
    except ZstdError:  # which unpacking meets again
        return 0
    return 0 if size in (-1, CONTENTSIZE_UNKNOWN) else size


def _unknown_size(file: BinaryIO) -> int:
    return 0


@dataclass(frozen=True)
class Packing:
    """A way to store any file smaller."""

    name: str
    signature: bytes
    chunks: Callable[[BinaryIO], Iterator[bytes]]
    declared_size: Callable[[BinaryIO], int]
    """Bytes when unpacked, or 0 where the format does not say."""


_PACKINGS = (
    Packing("gzip", b"\x1f\x8b\x08", _gz, _unknown_size),
    Packing("xz", b"\xfd7zXZ\0", _xz, _unknown_size),
    Packing("zstd", b"\x28\xb5\x2f\xfd", _zst, _zst_size),
    Packing("bzip2", b"BZh", _bz2, _unknown_size),
)


def packing_of(start: bytes) -> Packing | None:
    """How a file that starts with these bytes is packed, if it is."""
    return next((packing for packing in _PACKINGS if start.startswith(packing.signature)), None)


def first_bytes(file: BinaryIO, packing: Packing, size: int) -> bytes:
    """What a packed file starts with when it is unpacked: so many bytes, fewer if it has no more.

    :raises Exception: if the file is damaged; each library has one of its own.
    """
    found = b""
    for chunk in packing.chunks(file):
        found += chunk
        if len(found) >= size:
            break
    return found[:size]


def unpack(file: BinaryIO, path: str, packing: Packing, watch: Watch = unwatched) -> BinaryIO:
    """Unpack a file into one without a name, in ``TMPDIR`` or else ``/var/tmp``.

    Blocks of zeroes become holes. It may come to 1 GiB, or to 4,096 times the packed file.

    :raises DumpError: if there is not enough room.
    :raises DumpFormatError: if the packed file is damaged or cut off, or comes to more.
    """
    folder = os.environ.get("TMPDIR") or ("/var/tmp" if Path("/var/tmp").is_dir() else None)
    with _unpacking(path, folder):
        target = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    packed_size = os.fstat(file.fileno()).st_size
    room = _Room(target, path, folder or tempfile.gettempdir())
    declared_size = packing.declared_size(file)
    limit = max(_SURE_SIZE, _RATIO * packed_size)
    _check_size(path, packing, declared_size, limit)
    room.check(max(packed_size, declared_size))
    file.seek(0)
    size = 0
    with watch(file, packed_size, "unpacking") as watched:
        for chunk in _chunks(packing, watched, path):
            size += len(chunk)
            _check_size(path, packing, size, limit)
            if chunk.count(0) == len(chunk):
                target.seek(len(chunk), os.SEEK_CUR)
            else:
                room.check(len(chunk))
                with _unpacking(path, folder):
                    target.write(chunk)
    with _unpacking(path, folder):
        target.truncate()
        target.flush()
    if target.tell() < declared_size:  # zstandard ends quietly where its input does
        raise DumpFormatError(f"{path}: {packing.name}, incomplete; copy it again")
    return target


@contextmanager
def _unpacking(path: str, folder: str | None) -> Iterator[None]:
    """What goes wrong in here is the unpacked file's."""
    try:
        yield
    except OSError as e:
        why = e.strerror or e
        raise DumpError(f"{path}: cannot be unpacked in {folder} ({why}); set TMPDIR") from e


def _chunks(packing: Packing, file: BinaryIO, path: str) -> Iterator[bytes]:
    from zstandard import ZstdError

    try:
        yield from packing.chunks(file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError) as e:
        if "limit" in str(e):  # _lzma has one exception for everything
            raise DumpFormatError(
                f"{path}: {packing.name}, more than {_MEMORY_LIMIT >> 20} MiB of memory are needed "
                "to unpack it; unpack it by hand and name what comes of it"
            ) from e
        raise DumpFormatError(
            f"{path}: {packing.name}, damaged or incomplete ({e}); copy it again"
        ) from e


def _check_size(path: str, packing: Packing, size: int, limit: int) -> None:
    if size > limit:
        raise DumpFormatError(
            f"{path}: {packing.name}, of more than {limit >> 20} MiB when unpacked, which no dump "
            "of its size has; if it is one, unpack it by hand and name what comes of it"
        )


class _Room:
    """Watches that a file system does not get full."""

    def __init__(self, target: IO[bytes], path: str, folder: str) -> None:
        self._target = target
        self._path = path
        self._folder = folder

    def check(self, size: int) -> None:
        """See that so many bytes more have room."""
        system = os.fstatvfs(self._target.fileno())
        free = system.f_bavail * system.f_frsize
        if free < size + _SPARE:
            raise DumpError(
                f"{self._path}: no room to unpack it in {self._folder} ({free >> 20} MiB free, "
                f"at least {size + _SPARE >> 20} MiB needed now); set TMPDIR to a larger place"
            )
