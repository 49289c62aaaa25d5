# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every dump that there is, with broken copies among them: killed and gone on with, by Dask, and
held against what the dumps' own kernels said.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from drgn_reliable.fleet.changes import Earlier, changes_between
from drgn_reliable.fleet.report import fleet_report
from drgn_reliable.fleet.store import Store
from tests.dumps import DUMPS, HOSTILE, TRANSITIONS, VMCORES
from tests.fleetdirs import BAD, content, fleet_command, make_fleet, run_fleet

EVERY = [*DUMPS, *TRANSITIONS, HOSTILE]
ARGUMENTS = ("--timeout", 20, "--memory", 1024)


def cut(dump: Path, path: Path, part: float) -> None:
    """A copy that broke off."""
    data = dump.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of ``vmcores/``, a copy that broke off of one dump of each architecture, and what else
    goes wrong."""
    folder = tmp_path_factory.mktemp("fleet") / "fleet"
    shutil.copytree(VMCORES, folder)
    make_fleet(folder, sound=())
    seen = set()
    for dump in DUMPS:
        if dump.architecture not in seen:
            seen.add(dump.architecture)
            cut(dump.path, folder / f"cut-{dump.name}", 0.97)
    return folder


@pytest.fixture(scope="module")
def store(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a scan that was killed about half-way, and gone on with."""
    path = tmp_path_factory.mktemp("local") / "fleet.db"
    command = fleet_command("scan", fleet, "--store", path, *ARGUMENTS, "--events", "-")
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert first.stdout is not None
    done = 0
    for line in first.stdout:
        done += json.loads(line)["event"] == "finished"
        if done == len(EVERY) // 2:
            break
    first.kill()
    first.wait()
    second = run_fleet("scan", fleet, "--store", path, *ARGUMENTS)
    assert second.returncode == 3
    total = len(EVERY) + len({dump.architecture for dump in DUMPS}) + len(BAD)
    assert f"{total} dumps: " in second.stdout
    return path


def test_every_task_has_its_own_kernels_verdict(fleet: Path, store: Path) -> None:
    """As many of each verdict, dump by dump, as the kernels recorded themselves."""
    with sqlite3.connect(store) as db:
        counted = {
            path: Counter(dict(zip(("reliable", "unreliable", "running"), counts, strict=True)))
            for path, *counts in db.execute(
                "SELECT path, sum(kernel = 'reliable'), sum(kernel = 'unreliable'), "
                "sum(kernel = 'running') FROM task JOIN place USING (dump) GROUP BY path"
            )
        }
    held = 0
    for dump in DUMPS:
        if dump.damaged or (dump.release.startswith("6.12") and dump.architecture == "aarch64"):
            continue  # asked before the damage; a kernel that has no answer
        found = counted[str(fleet / dump.path.relative_to(VMCORES))]
        for verdict in ("reliable", "unreliable"):
            assert found[verdict] == dump.count(verdict), (dump.name, verdict)
            held += 1
    assert held >= 20


def test_each_broken_copy_says_what_is_missing(fleet: Path, store: Path) -> None:
    """It is incomplete or has failed, and a line of the store says why."""
    with sqlite3.connect(store) as db:
        rows = db.execute(
            "SELECT path, status, coalesce(detail, group_concat(text, '; ')) FROM dump "
            "JOIN place ON place.dump = dump.id LEFT JOIN problem ON problem.dump = dump.id "
            "WHERE path LIKE ? GROUP BY dump.id",
            (f"{fleet}/cut-%",),
        ).fetchall()
    assert len(rows) == len({dump.architecture for dump in DUMPS})
    for path, status, why in rows:
        assert status in ("incomplete", "failed"), path
        assert "cut off" in why or "reaches beyond" in why or "not in this dump" in why, (path, why)


def test_dask_says_the_same(fleet: Path, store: Path, tmp_path: Path) -> None:
    """Of every dump, task, frame and reason; nothing is new in either store."""
    other = tmp_path / "dask.db"
    done = run_fleet("scan", fleet, "--store", other, *ARGUMENTS, "--engine", "dask", "--jobs", 2)
    assert done.returncode == 3, done.stderr
    assert content(other) == content(store)
    with Store(str(store)) as ours, Store(str(other)) as theirs:
        for data in (
            fleet_report(ours, changes=changes_between(ours, Earlier(theirs)))["new"],
            fleet_report(theirs, changes=changes_between(theirs, Earlier(ours)))["new"],
        ):
            assert not any(data[kind] for kind in ("reasons", "functions", "stacks", "releases"))


def test_the_report_says_at_once_what_blocks_the_patches(store: Path) -> None:
    """The headline counts the stalled transitions; the first table names functions and hosts."""
    shown = run_fleet("report", store).stdout
    stalled = sum(dump.name.rsplit("-", 1)[1] not in ("done.kdump", "forced.kdump")
                  for dump in (*TRANSITIONS, HOSTILE))  # fmt: skip
    first, _, rest = shown.partition("\n\n")
    assert f"{stalled} of " in first and "stalled livepatch transition" in first
    assert rest.startswith("What blocks the patches:\nPATCH ")
    for function in ("vmlab_lp_dstate [vmlab_states]", "eventfd_read", "oom_reaper"):
        assert function in rest
