# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a file whole or not at all, in a directory that others may write to as well.

While it is written the file has no name (``O_TMPFILE``): nobody can be there before it, and nothing
is left of it when the process is killed. Only then it gets a name that cannot be guessed, and at
once its own in the place of what had that: a symbolic link is replaced, never followed. Where the
file system knows no files without names, it has the first of these names from the start.

What goes wrong with the file is :class:`NotWritten`; what else goes wrong while it is written, such
as an error of the disk that is read meanwhile, stays what it is.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("NotWritten", "draft_name", "is_same_file", "new_file", "scratch_file", "writing")

_PREFIX = ".drgn-reliable-"
_UNNAMED = "/proc/self/fd/{}"
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""What file systems and kernels say that know no files without names; ENOENT without ``/proc``."""


class NotWritten(OSError):
    """A new file cannot be written."""


@contextmanager
def writing() -> Iterator[None]:
    """What goes wrong in here is the new file's.

    :raises NotWritten: in the place of any other error of the system.
    """
    try:
        yield
    except NotWritten:
        raise
    except OSError as e:
        raise NotWritten(e.errno, e.strerror or str(e)) from e


class _Raw(io.FileIO):
    """A file that tells its own errors from those of others."""

    def write(self, data: Buffer, /) -> int:
        with writing():
            return super().write(data)

    def truncate(self, size: int | None = None, /) -> int:
        with writing():
            return super().truncate(size)


def _opened(descriptor: int) -> BinaryIO:
    return cast(BinaryIO, io.BufferedRandom(_Raw(descriptor, "r+")))


@contextmanager
def new_file(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that has a name, and replaces what had it, when the block has ended well.

    :param mode: permissions, of which the process's umask takes away, and those of a file that is
        replaced as well: nobody can read what they could not before.
    :raises NotWritten: if it cannot be written, or if what has the name is a directory, a device
        or a pipe, or leads to one: those are not replaced.
    """
    folder, name = os.path.split(os.fspath(path))
    with writing():
        directory = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with writing():
            before = _replaced(directory, name)
            draft = _PREFIX + secrets.token_hex(12)
            descriptor, named = _create(directory, draft, mode)
        file = _opened(descriptor)
        try:
            yield file
            with writing():
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
        finally:
            with suppress(OSError):  # of a file that is given up: why is told already
                file.close()
        with writing():
            os.fsync(directory)  # the rename is to last through a power cut
    finally:
        os.close(directory)


@contextmanager
def scratch_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file for what is on its way into a new one, in the same directory; it never has a name.

    :raises NotWritten: if it cannot be written.
    """
    folder = os.path.dirname(os.fspath(path)) or "."
    with writing(), tempfile.TemporaryFile(dir=folder, buffering=0) as made:
        file = _opened(os.dup(made.fileno()))
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def draft_name(file: BinaryIO) -> str:
    """A name by which this process can open a file that has none yet."""
    return _UNNAMED.format(file.fileno())


def is_same_file(path: str, other: str) -> bool:
    """Whether both are there, and are one file."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


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
