# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a report goes: a file that appears whole or not at all, or standard output."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from drgn_reliable.errors import UsageError

__all__ = ("drop_standard_output", "output")


@contextmanager
def output(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is complete.

    :raises UsageError: if it cannot be written.
    """
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    folder = os.path.dirname(path) or "."
    try:
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".drgn-reliable-")
    except OSError as e:
        raise UsageError(f"--output {path}: cannot be written ({e.strerror})") from e
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fchmod(descriptor, 0o666 & ~_umask())
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError as e:
        os.unlink(temporary)
        raise UsageError(f"--output {path}: cannot be written ({e.strerror})") from e
    except BaseException:
        os.unlink(temporary)
        raise


def drop_standard_output() -> None:
    """Let what is still to be written to a pipe without a reader go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
