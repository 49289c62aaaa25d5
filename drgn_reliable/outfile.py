# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a report goes: a file that appears whole or not at all, or standard output.

Only what cannot be written is said of it. What cannot be read meanwhile is the reader's to tell.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, cast

from drgn_reliable.errors import UsageError
from drgn_reliable.newfile import NotWritten, is_same_file, new_file

__all__ = ("drop_standard_output", "not_written", "output", "output_file")


@contextmanager
def output(path: str | None, read: Sequence[str] = ()) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is complete.

    A report has names and addresses, no contents of memory: who may read it is up to the umask.

    :param read: files that the report is made of, and that it must not replace.
    :raises UsageError: if it cannot be written.
    :raises BrokenPipeError: if nobody reads standard output any more.
    """
    if path is None:
        standard = _StandardOutput()
        yield cast(TextIO, standard)
        standard.flush()
        return
    with output_file(path, read), new_file(path) as file:
        out = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace")
        yield out
        out.flush()
        out.detach()


@contextmanager
def output_file(path: str, read: Sequence[str] = ()) -> Iterator[None]:
    """What becomes a file of that name by :func:`drgn_reliable.newfile.new_file`.

    :param read: files that it is made of, and that it must not replace.
    :raises UsageError: if it cannot be written.
    """
    for name in read:
        if is_same_file(path, name):
            raise UsageError(f"--output {path}: what the report is of; name another file")
    try:
        yield
    except NotWritten as e:
        raise UsageError(f"--output {path}: cannot be written ({e.strerror})") from e


class _StandardOutput(io.TextIOBase):
    """What ``sys.stdout`` is at the moment, with errors that say so."""

    def write(self, text: str, /) -> int:
        try:
            return sys.stdout.write(text)
        except OSError as e:
            raise not_written(e) from e

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except OSError as e:
            raise not_written(e) from e


def not_written(error: OSError) -> OSError | UsageError:
    """What to raise where standard output could not be written."""
    if isinstance(error, BrokenPipeError):
        return error
    drop_standard_output()
    return UsageError(f"standard output: cannot be written ({error.strerror})")


def drop_standard_output() -> None:
    """Let what is still to be written to standard output, and cannot be, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
