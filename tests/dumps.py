# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dumps in ``vmcores/`` and what their own kernels said of every task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from contrib.vmlab import verdicts
from contrib.vmlab.verdicts import Recorded

VMCORES = Path(__file__).parent.parent / "vmcores"


@dataclass(frozen=True)
class Dump:
    """One entry of ``vmcores/manifest.yaml``."""

    name: str
    path: Path
    sha256: str
    release: str
    architecture: str
    unwinder: str
    rows: str
    """The verdicts file."""
    debug_info: Path | None
    """A part of the kernel's own debug information, xz-compressed."""
    call_frames: tuple[Path, ...]
    """Parts of the kernel's and of modules' call frame information, xz-compressed."""

    @property
    def recorded(self) -> list[Recorded]:
        return verdicts.parse(self.rows)

    @property
    def damaged(self) -> set[int]:
        """Tasks whose stacks were damaged on purpose after their kernel had answered."""
        return verdicts.damaged_pids(self.rows)

    @property
    def asked_again(self) -> set[int]:
        """Those of them for which their kernel was asked once more."""
        again = verdicts.after_damage(self.rows)
        return {row.pid for row in self.recorded if row.task in again} & self.damaged

    def count(self, verdict: str | None = None) -> int:
        """How many tasks the kernel gave a verdict, or how many there are."""
        counts = verdicts.counts(self.recorded)
        return counts[verdict] if verdict else sum(counts.values())

    def find(self, comm: str) -> Recorded:
        """The first task of a name."""
        return next(row for row in self.recorded if row.comm == comm)


def load_manifest(directory: Path = VMCORES) -> list[Dump]:
    """Every dump that a directory's manifest lists."""
    entries = yaml.safe_load((directory / "manifest.yaml").read_text())["dumps"]
    return [
        Dump(
            entry["file"],
            directory / entry["file"],
            entry["sha256"],
            entry["release"],
            entry["architecture"],
            entry["unwinder"],
            (directory / entry["verdicts"]).read_text(),
            directory / entry["debug_info"] if "debug_info" in entry else None,
            tuple(directory / name for name in entry.get("call_frames", ())),
        )
        for entry in entries
    ]


DUMPS = load_manifest()
DUMP_6_1 = next(dump for dump in DUMPS if dump.name == "x86_64-6.1.kdump")
"""The one that most tests look at: a task in every state, and debug information."""
TRANSITIONS = load_manifest(VMCORES / "livepatch")
"""Dumps of livepatch transitions, each with its kernel's own state of livepatching."""
(HOSTILE,) = load_manifest(VMCORES / "hostile")
"""One in which everything has a name that is to do harm."""
