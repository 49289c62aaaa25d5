# SPDX-License-Identifier: LGPL-2.1-or-later
"""drgn's interactive shell at a real terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def prompt(dump: str, home: Path) -> Iterator[int]:
    """The terminal of a shell that has opened a dump and waits for input."""
    command = str(Path(sys.executable).with_name("drgn"))
    environment = {**os.environ, "TERM": "xterm", "HOME": str(home), "DRGN_DISABLE_PLUGINS": ""}
    arguments = [command, "-q", "--no-default-symbols", "-c", dump]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command, arguments, environment)
    try:
        read_until(terminal, "drgn.helpers.linux import *")
        yield terminal
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, text: str, seconds: float = 60) -> str:
    """What a terminal prints up to a text."""
    found = ""
    deadline = time.monotonic() + seconds
    while text not in found:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {text!r} within {seconds} s, only {found!r}"
        found += os.read(terminal, 65536).decode(errors="replace")
    return found
