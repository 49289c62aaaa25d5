# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes a dump the same dump: its content, wherever it lies and whatever it is called.

Up to 64 MiB the identity is a hash of the whole content. Larger files are not read through only to
know them again: the hash is of their size, the time of their last change and 256 blocks, the first
and the last among them; copying one without its times makes it another dump.

As long as size and times of a file at a path are what they were, it is not read again.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

__all__ = ("Identity", "Stamp", "identify")

_WHOLE = 64 << 20
"""The largest file that is hashed from start to end, in bytes."""
_BLOCK, _BLOCKS = 64 << 10, 256


class Stamp(NamedTuple):
    """What the file system says of a file; times are in nanoseconds since 1970."""

    size: int
    modified: int
    changed: int
    """When anything about the file changed: nobody can set that."""


class Identity(NamedTuple):
    """A file's content, and by what to see that it has not changed."""

    digest: str
    stamp: Stamp


def identify(path: str, known: Identity | None = None) -> Identity:
    """The identity of a file.

    :param known: what it was when this path was last looked at.
    :raises OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        stamp = Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if known and known.stamp == stamp:
            return known
        digest = hashlib.blake2b(digest_size=16)
        if stamp.size <= _WHOLE:
            while data := file.read(1 << 20):
                digest.update(data)
        else:
            digest.update(f"{stamp.size} {stamp.modified}".encode())
            last = stamp.size - _BLOCK
            for number in range(_BLOCKS):
                digest.update(os.pread(file.fileno(), _BLOCK, last * number // (_BLOCKS - 1)))
    return Identity(digest.hexdigest(), stamp)
