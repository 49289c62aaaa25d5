# SPDX-License-Identifier: LGPL-2.1-or-later
"""One attempt in a fork: what libraries die of, of a hostile file, ends only that."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SECONDS, CPU_SECONDS = 600.0, 30
"""For one attempt, by the clock and of the processor; none needs more than two."""


class Died(Exception):
    """The process ended without an answer."""


def attempt(work: Callable[[], Any]) -> Any:
    """What a function returns in a fork, as JSON carries it. The parent's programs are not used
    there.

    :raises Died: if it died or hung.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        with suppress(BaseException):
            os.close(ours)
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            limit = int(used) + CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            answer = json.dumps(work()).encode()
            while answer:
                answer = answer[os.write(theirs, answer) :]
            status = 0
        os._exit(status)
    os.close(theirs)
    parts, end = [], time.monotonic() + SECONDS
    late = False
    while not late:
        late = not select.select([ours], [], [], max(0, end - time.monotonic()))[0]
        part = b"" if late else os.read(ours, 1 << 16)
        if not part:
            break
        parts.append(part)
    os.close(ours)
    if late:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if late:
        raise Died(f"no answer in {SECONDS:.0f} seconds")
    if status:
        raise Died(f"ended with status {os.waitstatus_to_exitcode(status)}")
    return json.loads(b"".join(parts))
