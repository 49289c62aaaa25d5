# SPDX-License-Identifier: LGPL-2.1-or-later
"""A part of a campaign in a process of its own: what hangs, dies or eats memory ends only it.

It says on standard output, a JSON object a line: ``{"at": NUMBER}`` before each mutation or batch,
``{"violation": [NUMBER, KIND, WHAT]}``, and ``{"figures": ...}`` at the end.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from contrib.fuzz.specimen import Specimen
from contrib.fuzz.trial import Figures, Trials
from drgn_reliable.fleet.child import peak_memory


def run(dump: str, seed: int, start: int, end: int, only: frozenset[str], memory: int) -> None:
    """Try a range of numbers, within bytes of memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    specimen = Specimen(dump)
    trials = Trials(specimen, seed, only, watch=lambda number: _say(at=number))
    for violation in trials.run(start, end):
        _say(violation=[violation.number, violation.kind, violation.what])
    _say(figures=plain(trials.figures), architecture=specimen.architecture, done=True)


def plain(figures: Figures) -> dict[str, Any]:
    """Figures as JSON has them."""
    found = dict(vars(figures))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    found["memory"] = max(peak_memory(os.getpid()), children)
    return found


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
