# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a file whole or not at all, in a directory that others may write to as well.

While it is written the file has no name (``O_TMPFILE``): nobody can be there before it, and nothing
is left of it when the process is killed. Only then it gets a name that cannot be guessed, and at
once its own in the place of what had that: a symbolic link is replaced, never followed. Where the
file system knows no files without names, it has the first of these names from the start.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

__all__ = ("draft_name", "new_file")

_PREFIX = ".drgn-reliable-"
_UNNAMED = "/proc/self/fd/{}"
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""What file systems and kernels say that know no files without names; ENOENT without ``/proc``."""


@contextmanager
def new_file(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that has a name, and replaces what had it, when the block has ended well.

    :param mode: permissions, of which the process's umask takes away, and those of a file that is
        replaced as well: nobody can read what they could not before.
    :raises OSError: if it cannot be written, or if what has the name is a directory, a device or
        a pipe, or leads to one: those are not replaced.
    """
    folder, name = os.path.split(os.fspath(path))
    directory = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = _replaced(directory, name)
        draft = _PREFIX + secrets.token_hex(12)
        descriptor, named = _create(directory, draft, mode)
        try:
            with open(descriptor, "w+b") as file:
                yield file
                file.flush()
                if before is not None:
                    allowed = stat.S_IMODE(os.fstat(descriptor).st_mode) & stat.S_IMODE(before)
                    os.fchmod(descriptor, allowed)
                os.fsync(descriptor)
                if not named:
                    _give_name(descriptor, draft, directory)
            os.replace(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)
            raise
        os.fsync(directory)  # the rename is to last through a power cut
    finally:
        os.close(directory)


def draft_name(file: BinaryIO) -> str:
    """A name by which this process can open a file that has none yet."""
    return _UNNAMED.format(file.fileno())


def _create(directory: int, draft: str, mode: int) -> tuple[int, bool]:
    """A new file, and whether it has a name."""
    try:
        os.stat(_UNNAMED.format(""))
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        return os.open(".", flags, mode, dir_fd=directory), False
    except OSError as e:
        if e.errno not in _NO_UNNAMED:
            raise
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(draft, flags, mode, dir_fd=directory), True


def _give_name(descriptor: int, name: str, directory: int) -> None:
    # Python follows the symbolic link, which is the file, only where directories are given.
    unnamed = _UNNAMED.format(descriptor)
    os.link(unnamed, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=True)


def _replaced(directory: int, name: str) -> int | None:
    """The mode of the regular file that has that name; None if there is none."""
    try:
        kind = os.stat(name, dir_fd=directory).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(kind):
        raise FileExistsError(errno.EEXIST, "it is there, and no regular file")
    found = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    return found if stat.S_ISREG(found) else None
