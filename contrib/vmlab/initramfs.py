# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write an initramfs (a gzipped "newc" cpio archive) without privileges or tools."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path
from typing import BinaryIO

Content = bytes | str | Path


class Initramfs:
    """A small file system image, built in memory in the order of the calls."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._directories: set[str] = set()
        self._inode = 0

    def directory(self, path: str) -> None:
        """Add a directory, and those above it, once."""
        path = path.strip("/")
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)
        if path not in self._directories:
            self._directories.add(path)
            self._add(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, content: Content, mode: int = 0o644) -> None:
        """Add a regular file: bytes, text, or the contents of a file of the host."""
        if isinstance(content, Path):
            content = content.read_bytes()
        elif isinstance(content, str):
            content = content.encode()
        self._below(path)
        self._add(path.strip("/"), stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._below(path)
        self._add(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._below(path)
        self._add(path.strip("/"), stat.S_IFCHR | 0o600, device=(major, minor))

    def write(self, output: BinaryIO) -> None:
        """Write the finished archive; the same contents give the same bytes."""
        with gzip.GzipFile("", fileobj=output, mode="wb", mtime=0) as archive:
            self.write_plain(archive)

    def write_plain(self, output: BinaryIO | gzip.GzipFile) -> None:
        """The same, not compressed: the kernel takes several archives, one after the other."""
        for part in self._parts:
            output.write(part)
        output.write(_member("TRAILER!!!", 0, 0))

    def _below(self, path: str) -> None:
        parent = path.strip("/").rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _add(
        self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        self._parts.append(_member(path, self._inode, mode, data, device))


def _member(
    path: str, inode: int, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    """One entry of a "newc" archive: thirteen hexadecimal fields, name, contents."""
    name = path.encode() + b"\0"
    links, owner, group, time, check = 1, 0, 0, 0, 0
    fields = (inode, mode, owner, group, links, time, len(data), 0, 0, *device, len(name), check)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
