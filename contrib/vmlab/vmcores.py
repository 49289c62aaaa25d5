# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the small dumps of a directory such as ``vmcores/`` again, from packages.

``manifest.yaml`` there says of which scenario each is. The dump is made, held against its kernel's
verdicts, turned into a capsule, and held against them again; only then are the file, the verdicts
and the manifest's entry replaced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from drgn_reliable.capsule import write_capsule

from . import conform, lab, scenario

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
        capsule = Path(workplace) / "capsule"
        summary = write_capsule(str(made / "vmcore"), str(capsule))
        release, unwinder = _hold(capsule, rows, say)
        say(f"{summary.size / 1e6:.1f} MB, {summary.left_out_pages} pages left out")
        if summary.size >= LARGEST:
            raise VmcoresError(f"{entry['file']}: {summary.size} bytes, over {LARGEST}")
        capsule.chmod(0o644)
        entry["sha256"] = hashlib.sha256(capsule.read_bytes()).hexdigest()
        entry["unwinder"] = unwinder
        if entry["release"] != release and "debug_info" in entry:
            say(f"{entry['debug_info']} is of {entry['release']}: make it again for {release}")
        entry["release"] = release
        shutil.copyfile(made / "oracle.txt", directory / entry["verdicts"])
        os.replace(capsule, directory / entry["file"])


def _hold(dump: Path, rows: str, say: Say) -> tuple[str, str]:
    kernel, reports = conform.scan(dump)
    if wrong := conform.differences(reports, rows):
        for line in wrong:
            say(line)
        raise VmcoresError(f"{dump.name}: {len(wrong)} differences from its kernel's verdicts")
    say(f"{dump.name}: {len(reports)} tasks, all as their kernel says")
    return kernel.release, kernel.unwinder.name


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    os.replace(draft, path)
