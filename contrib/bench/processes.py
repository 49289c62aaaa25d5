# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run a command and watch its memory, and that of the processes that it starts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Run", "run")

_POLL_SECONDS = 0.01
_KINDS = ("RssAnon", "RssFile")


@dataclass(frozen=True)
class Run:
    """What a process took."""

    status: int
    """Its exit status; negative: the signal that ended it."""
    seconds: float
    cpu_seconds: float
    """Of all processors, so less of how busy the machine is otherwise."""
    anonymous_kib: int
    """The most memory that was resident, but for files that are mapped. It is looked at every
    hundredth of a second."""
    file_kib: int
    """The most that was resident of files that are mapped, likewise."""


def run(
    command: Sequence[str],
    *,
    output: Path | None = None,
    stdin: str | None = None,
    timeout: float = 3600,
) -> Run:
    """Run a command to its end.

    :param output: a file for its standard output; nobody reads what it says on standard error.
    :param timeout: seconds, after which it is killed.
    """
    target = output or Path(os.devnull)
    most = dict.fromkeys(_KINDS, 0)
    with target.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
        if stdin is not None and process.stdin is not None:
            process.stdin.write(stdin.encode())
            process.stdin.close()
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            _look(process.pid, most)
            if time.perf_counter() - started > timeout:
                process.kill()
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(
        process.returncode,
        seconds,
        usage.ru_utime + usage.ru_stime,
        most["RssAnon"],
        most["RssFile"],
    )


def _look(pid: int, most: dict[str, int]) -> None:
    """Note how much memory a process and its children have, in KiB, if more than before."""
    now = dict.fromkeys(_KINDS, 0)
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                kind, _, size = line.partition(":")
                if kind in now:
                    now[kind] += int(size.split()[0])
    for kind in _KINDS:
        most[kind] = max(most[kind], now[kind])


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _tree(int(child))
