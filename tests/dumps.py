# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dumps in ``vmcores/`` and what their own kernels said of every task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

VMCORES = Path(__file__).parent.parent / "vmcores"


@dataclass(frozen=True)
class Recorded:
    """One row of a verdicts file: what the running kernel answered for a task."""

    kind: str
    task: int
    pid: int
    tgid: int
    on_cpu: bool
    answer: int
    """Number of entries, or a negative error number: -22 unreliable, -16 running, not asked."""
    entries: tuple[int, ...]
    comm: str


@dataclass(frozen=True)
class Dump:
    """One entry of ``vmcores/manifest.yaml``."""

    name: str
    path: Path
    sha256: str
    release: str
    architecture: str
    unwinder: str
    recorded: tuple[Recorded, ...]
    debug_info: Path | None
    """A part of the kernel's own debug information, xz-compressed."""
    damaged: frozenset[int]
    """Tasks whose stacks were damaged on purpose after their kernel had answered."""


def _addresses(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split(",") if word)


def parse_verdicts(text: str) -> tuple[Recorded, ...]:
    """Rows ``T kind task pid tgid switches on_cpu state answer entries B plain comm``."""
    rows = []
    for line in text.splitlines():
        if not line.startswith("T "):
            continue
        head, _, tail = line.partition(" B ")
        _, kind, task, pid, tgid, _, on_cpu, _, answer, entries = head.split(" ", 9)
        comm = tail.partition(" ")[2].strip()
        rows.append(
            Recorded(
                kind,
                int(task, 16),
                int(pid),
                int(tgid),
                on_cpu != "0",
                int(answer),
                _addresses(entries.strip()),
                comm,
            )
        )
    return tuple(rows)


def load_manifest() -> list[Dump]:
    """Every dump that the manifest lists."""
    entries = yaml.safe_load((VMCORES / "manifest.yaml").read_text())["dumps"]
    return [
        Dump(
            entry["file"],
            VMCORES / entry["file"],
            entry["sha256"],
            entry["release"],
            entry["architecture"],
            entry["unwinder"],
            parse_verdicts((VMCORES / entry["verdicts"]).read_text()),
            VMCORES / entry["debug_info"] if "debug_info" in entry else None,
            frozenset(entry.get("damaged_pids", ())),
        )
        for entry in entries
    ]
