# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the small dumps of a directory such as ``vmcores/`` again, from packages.

``manifest.yaml`` there says of which scenario each is. The dump is made, held against its kernel's
verdicts and against the chains of callers that are known (``chains.yaml``), turned into a capsule,
and held against them again; only then are the file, the verdicts and the manifest's entry replaced.

An entry's ``tasks`` are patterns of task names: only those tasks' stacks and verdicts are kept. One
whose name ends with ``.xz`` is packed as a whole.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from drgn_reliable.capsule import write_capsule
from drgn_reliable.livepatch import analyse

from . import chains, conform, klp, lab, scenario, solid, verdicts

Say = Callable[[str], None]
MANIFEST = "manifest.yaml"
LARGEST = 8 << 20
"""Bytes: what git has to keep for ever is kept small."""


class VmcoresError(Exception):
    """A dump cannot take its place in the directory."""


def rebuild(
    directory: Path, files: Sequence[str], options: lab.Options, announce: Callable[[str], Say]
) -> None:
    """Rebuild some of a directory's dumps, or all.

    :param announce: gives a function that says how far the dump of a name is.
    """
    path = directory / MANIFEST
    text = path.read_text()
    header, found, _ = text.partition("dumps:")
    if not found:
        raise VmcoresError(f"{path}: lists no dumps")
    entries: list[dict[str, Any]] = yaml.safe_load(text)["dumps"]
    known = [entry["file"] for entry in entries]
    if unknown := set(files) - set(known):
        raise VmcoresError(f"{path}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for entry in entries:
        if not files or entry["file"] in files:
            _rebuild_one(directory, entry, options, announce(entry["file"]))
            _replace(path, header + yaml.safe_dump({"dumps": entries}, sort_keys=False, width=100))


def _rebuild_one(directory: Path, entry: dict[str, Any], options: lab.Options, say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix=".vmlab-", dir=directory) as workplace:
        made = Path(workplace) / "made"
        lab.make(scenario.load(entry["scenario"]), made, options, say)
        rows = (made / "oracle.txt").read_text("utf-8", "surrogateescape")
        _hold(made / "vmcore", rows, say)
        kept = _kept(entry, rows)
        tasks = [row.task for row in verdicts.parse(kept)] if "tasks" in entry else []
        capsule = Path(workplace) / "capsule"
        summary = write_capsule(str(made / "vmcore"), str(capsule), wanted=[*map(hex, tasks)])
        if entry["file"].endswith(".xz"):
            solid.pack_solid(capsule, capsule)
        size = capsule.stat().st_size
        release, unwinder = _hold(capsule, kept, say, tasks)
        say(f"{size / 1e6:.1f} MB, {summary.left_out_pages} pages left out")
        if size >= LARGEST:
            raise VmcoresError(f"{entry['file']}: {size} bytes, over {LARGEST}")
        capsule.chmod(0o644)
        entry["sha256"] = hashlib.sha256(capsule.read_bytes()).hexdigest()
        entry["unwinder"] = unwinder
        if entry["release"] != release and "debug_info" in entry:
            say(f"{entry['debug_info']} is of {entry['release']}: make it again for {release}")
        entry["release"] = release
        (directory / entry["verdicts"]).write_text(kept, "utf-8", "surrogateescape")
        os.replace(capsule, directory / entry["file"])


def _kept(entry: dict[str, Any], rows: str) -> str:
    """The rows of the tasks whose stacks the capsule is to have."""
    if "tasks" not in entry:
        return rows
    kept = verdicts.of_names(rows, entry["tasks"])
    if not verdicts.parse(kept):
        raise VmcoresError(f"{entry['file']}: no task is called {', '.join(entry['tasks'])}")
    return kept


def _hold(dump: Path, rows: str, say: Say, only: Collection[int] = ()) -> tuple[str, str]:
    kernel, reports = conform.scan(dump, only)
    wrong = [*conform.differences(reports, rows), *chains.missing_functions(reports)]
    if not only:
        wrong += klp.livepatch_differences(analyse(kernel), rows)
    for line in wrong:
        say(line)
    if wrong:
        raise VmcoresError(f"{dump.name}: {len(wrong)} differences from its kernel's verdicts")
    say(f"{dump.name}: {len(reports)} tasks, all as their kernel says")
    return kernel.release, kernel.unwinder.name


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    os.replace(draft, path)
