# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs without atheris: seeded random changes, and making what was found smaller."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from contrib.fuzz.readers.harness import SECONDS, Finding, Harness, run_once
from contrib.fuzz.readers.mutations import mutated

__all__ = ("inputs", "minimised", "search")


def inputs(harness: Harness, count: int, seed: int = 0) -> Iterator[bytes]:
    """The seeds, then so many changed ones, the same for the same number."""
    seeds = list(harness.seeds())
    yield from seeds
    chance = random.Random(f"{harness.name} {seed}")
    for _ in range(count):
        data = chance.choice(seeds)
        own = harness.mutate is not None and chance.random() < 0.8
        change = harness.mutate if own and harness.mutate else mutated
        yield change(data, chance)


def search(harness: Harness, count: int, seed: int = 0) -> list[Finding]:
    """What so many inputs show, each defect once."""
    found: dict[str, Finding] = {}
    for data in inputs(harness, count, seed):
        finding = run_once(harness, data)
        if finding:
            found.setdefault(finding.what, finding)
    return list(found.values())


def minimised(harness: Harness, finding: Finding, seconds: float = 20) -> Finding:
    """The same defect by fewer bytes, as far as the time goes."""
    end = time.monotonic() + seconds
    best, size = finding, len(finding.data) // 2
    while size and time.monotonic() < end:
        at = 0
        while at < len(best.data) and time.monotonic() < end:
            data = best.data[:at] + best.data[at + size :]
            smaller = run_once(harness, data, min(SECONDS, max(0.01, end - time.monotonic())))
            if smaller and smaller.what == finding.what:
                best = smaller
            else:
                at += size
        size //= 2
    return best
