# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a report goes: a file that appears whole or not at all, or standard output."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from drgn_reliable.errors import UsageError
from drgn_reliable.newfile import new_file

__all__ = ("drop_standard_output", "output")


@contextmanager
def output(path: str | None, read: Sequence[str] = ()) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is complete.

    A report has names and addresses, no contents of memory: who may read it is up to the umask.

    :param read: files that the report is made of, and that it must not replace.
    :raises UsageError: if it cannot be written.
    """
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    for name in read:
        if os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
            raise UsageError(f"--output {path}: what the report is of; name another file")
    try:
        with new_file(path) as file:
            out = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace")
            yield out
            out.flush()
            out.detach()
    except OSError as e:
        raise UsageError(f"--output {path}: cannot be written ({e.strerror})") from e


def drop_standard_output() -> None:
    """Let what is still to be written to a pipe without a reader go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
