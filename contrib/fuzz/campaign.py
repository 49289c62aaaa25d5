# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many mutations of many dumps, by several processes; the sum of what they did."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
"""Bytes of anonymous memory of one process: the package, its judge and a sound copy."""
PATIENCE = 600.0
"""Seconds for one mutation, or one batch of them; none takes more than two of a processor."""
CHUNK = 1500
"""Mutations of one process."""
COUNTERS = (
    *("tried", "changed", "noticed", "reliable", "refused", "misled", "unsaid", "proven", "spent"),
)


@dataclass
class Summary:
    """What a campaign did and found."""

    seed: int
    mutations: int = 0
    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in COUNTERS}
    )
    """See :class:`contrib.fuzz.trial.Figures`; by kind."""
    architectures: Counter[str] = field(default_factory=Counter)
    """Mutations of each."""
    violations: list[str] = field(default_factory=list)
    """A line each, with the command that repeats it."""
    slowest: tuple[float, str] = (0.0, "")
    """Seconds, and the command that repeats it."""
    reads: float = 0.0
    memory: int = 0
    """Bytes, the most that a process had in memory."""
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Part:
    """What one process tries."""

    dump: Path
    start: int
    end: int


def parts(dumps: Iterable[Path], count: int) -> list[Part]:
    """The mutations of each dump, as equally many as can be; every dump's begin at 0."""
    files = list(dumps)
    found = []
    for i, dump in enumerate(files):
        mine = count // len(files) + (i < count % len(files))
        found += [Part(dump, at, min(at + CHUNK, mine)) for at in range(0, mine, CHUNK)]
    return found


def repeat_command(seed: int, number: int, dump: Path | str, only: Iterable[str] = ()) -> str:
    """The line that tries one mutation again."""
    kinds = "".join(f" --kind {name}" for name in sorted(only))
    near = os.path.relpath(dump)
    return f"python -m contrib.fuzz repeat {seed}:{number} {near}{kinds}"


def run(
    dumps: Iterable[Path],
    seed: int,
    count: int,
    jobs: int,
    only: frozenset[str] = frozenset(),
    progress: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Carry out a campaign.

    :param only: names of kinds; all if empty.
    :param progress: is told how many more mutations are done.
    """
    summary = Summary(seed)
    started = time.monotonic()
    todo: queue.SimpleQueue[Part] = queue.SimpleQueue()
    for part in parts(dumps, count):
        todo.put(part)
    lock = threading.Lock()

    def work() -> None:
        while True:
            try:
                part = todo.get_nowait()
            except queue.Empty:
                return
            for told in _each(part, seed, only):
                with lock:
                    _add(summary, part, only, told)
            with lock:
                progress(part.end - part.start)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary.mutations = sum(summary.counts["tried"].values())
    summary.seconds = round(time.monotonic() - started, 1)
    return summary


def _add(summary: Summary, part: Part, only: frozenset[str], told: dict[str, Any]) -> None:
    if "violation" in told:
        number, kind, what = told["violation"]
        command = repeat_command(summary.seed, number, part.dump, only)
        summary.violations.append(f"{command}  # {kind}: {what}")
        return
    figures = told["figures"]
    for name in COUNTERS:
        summary.counts[name].update(figures[name])
    summary.architectures[told["architecture"]] += sum(figures["tried"].values())
    seconds, number, kind = figures["slowest"]
    command = f"{repeat_command(summary.seed, number, part.dump, only)}  # {kind}"
    summary.slowest = max(summary.slowest, (round(seconds, 2), command))
    summary.reads = max(summary.reads, round(figures["reads"], 2))
    summary.memory = max(summary.memory, figures["memory"])


def _each(part: Part, seed: int, only: frozenset[str]) -> Iterator[dict[str, Any]]:
    """What the process of a part says; that it hangs or dies is a violation, and the rest of the
    part is not tried."""
    child = _Child(part, seed, only)
    yield from child.said()
    if not child.done:
        yield {"violation": [child.at, "process", child.end]}


class _Child:
    """One process."""

    def __init__(self, part: Part, seed: int, only: frozenset[str]) -> None:
        self.at, self.done, self.end = part.start, False, ""
        self._last: dict[str, Any] | None = None
        command = [sys.executable, "-m", "contrib.fuzz", "worker", str(part.dump)]
        command += [str(seed), str(part.start), str(part.end), "--memory", str(MEMORY)]
        for name in sorted(only):
            command += ["--kind", name]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
        )
        self._alarm = threading.Timer(PATIENCE, self._kill)
        self._alarm.start()

    def _kill(self) -> None:
        self.end = f"no answer in {PATIENCE:.0f} seconds"
        self._process.kill()

    def said(self) -> Iterator[dict[str, Any]]:
        """Violations, and figures at the end."""
        assert self._process.stdout is not None and self._process.stderr is not None
        for line in self._process.stdout:
            self._alarm.cancel()
            self._alarm = threading.Timer(PATIENCE, self._kill)
            self._alarm.start()
            told = json.loads(line)
            if "at" in told:
                self.at = told["at"]
            elif "violation" in told:
                yield told
            else:
                self._last = {"architecture": "unknown", **told}
                self.done = bool(told.get("done"))
        self._alarm.cancel()
        status = self._process.wait()
        self.end = self.end or f"ended with {status}: {self._process.stderr.read()[-500:]!r}"
        self._process.stdout.close()
        self._process.stderr.close()
        if self._last:
            yield self._last


def _environment() -> dict[str, str]:
    """A new interpreter finds what this one has."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
