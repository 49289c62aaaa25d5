# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dask as the engine: a real scheduler and real workers, each a process, over TCP on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet import engines
from drgn_reliable.fleet.engines import DaskEngine, EngineLost, LocalEngine
from drgn_reliable.fleet.events import Event, Finished, Working
from drgn_reliable.fleet.isolation import Limits
from drgn_reliable.fleet.scan import Tally, scan_fleet
from drgn_reliable.fleet.sources import read_sources
from drgn_reliable.fleet.store import Store
from tests.faults import fault, faults, is_gone
from tests.fleetdirs import BAD, SMALL, SOUND, content, make_fleet, run_fleet

__all__ = ("faults",)

LIMITS = Limits(seconds=10, memory=1 << 30)


class Cluster:
    """A scheduler and workers that this test has started."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self._log = log.open("ab")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port
        )

    def _start(
        self, module: str, *arguments: str, path: Path | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, "--no-dashboard", *arguments]
        added = {"PYTHONPATH": str(path)} if path else {}
        return subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env={**os.environ, **added}
        )

    def add_worker(self, name: str, path: Path | None = None) -> None:
        """Start a worker that scans a dump at a time, without anybody who would restart it.

        :param path: where it finds modules before others.
        """
        self.workers[name] = self._start(
            "distributed.cli.dask_worker",
            self.address,
            *("--name", name, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"),
            path=path,
        )

    def close(self) -> None:
        """End everything."""
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()
        self._log.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three workers."""
    made = Cluster(tmp_path / "dask.log")
    for number in range(3):
        made.add_worker(f"w{number}")
    yield made
    made.close()


def engine_of(cluster: Cluster, workers: int = 3) -> DaskEngine:
    """An engine, once so many workers are there."""
    engine = DaskEngine(cluster.address, 1)
    end = time.monotonic() + 60
    while engine.slots < workers:
        assert time.monotonic() < end
        time.sleep(0.05)
    return engine


def scanned(
    store: Path, engine: DaskEngine | LocalEngine, *paths: Path, listen: Callable[[Event], None]
) -> Tally:
    """Scan with an engine, and let go of it."""
    with Store(str(store), write=True) as opened:
        try:
            return scan_fleet(read_sources(map(str, paths)), opened, engine, LIMITS, listen=listen)
        finally:
            engine.close()


def ignore(event: Event) -> None:
    """Do nothing."""


def test_dask_gives_what_local_processes_give(cluster: Cluster, tmp_path: Path) -> None:
    """Broken dumps included, and it is heard what each worker does."""
    fleet = make_fleet(tmp_path / "fleet")
    told: list[Event] = []
    tally = scanned(tmp_path / "dask.db", engine_of(cluster), fleet, listen=told.append)
    assert (tally.dumps, tally.failed) == (len(SOUND) + len(BAD), len(BAD))
    working = [event for event in told if isinstance(event, Working)]
    assert {"opening", "walking", "unpacking"} <= {event.stage for event in working}
    assert len({event.worker for event in working}) == 3
    scanned(tmp_path / "local.db", LocalEngine(2), fleet, listen=ignore)
    assert content(tmp_path / "dask.db") == content(tmp_path / "local.db")


def test_a_worker_that_is_killed_costs_no_dump(cluster: Cluster, tmp_path: Path) -> None:
    """Killed (SIGKILL) while it scans: others take over, nothing is lost, nothing is there twice,
    and the process of its dump is gone too."""
    paths = []
    for number in range(9):
        path = tmp_path / f"{number}.vmcore"
        shutil.copy(SMALL, path)
        with path.open("ab") as file:
            file.write(bytes([number]))  # another content
        paths.append(path)
    pids: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Working) and event.stage == "walking" and not pids:
            pids.append(int(event.worker.rpartition(":")[2]))
            os.kill(pids[0], signal.SIGKILL)

    told: list[Event] = []
    tally = scanned(
        tmp_path / "fleet.db",
        engine_of(cluster),
        *paths,
        listen=lambda event: (told.append(event), listen(event))[0],
    )
    assert (tally.dumps, tally.failed, len(pids)) == (9, 0, 1)
    assert sum(worker.poll() is not None for worker in cluster.workers.values()) == 1
    finished = Counter(event.path for event in told if isinstance(event, Finished))
    assert finished == Counter(map(str, paths))
    with Store(str(tmp_path / "fleet.db")) as store:
        rows = store.db.execute("SELECT tasks, count(*) FROM current GROUP BY 1").fetchall()
        assert rows == [(71, 9)]
        assert store.db.execute("SELECT count(*) FROM task").fetchone() == (9 * 71,)


def test_without_workers_a_scan_ends_and_can_go_on(
    cluster: Cluster, tmp_path: Path, faults: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are killed: after a while the scan gives up, keeps what it has, and says what to do."""
    monkeypatch.setattr(engines, "_NO_WORKERS_SECONDS", 2)

    def listen(event: Event) -> None:
        if isinstance(event, Finished):
            for worker in cluster.workers.values():
                worker.kill()

    paths = [SOUND[0], *(_changed(SMALL, tmp_path / f"{n}", n) for n in range(8))]
    with pytest.raises(EngineLost, match="no Dask worker for 2 s; start some"):
        scanned(tmp_path / "fleet.db", engine_of(cluster), *paths, listen=listen)
    tally = scanned(tmp_path / "fleet.db", LocalEngine(2), *paths, listen=ignore)
    assert (tally.scan, tally.dumps) == (2, 9)
    assert tally.kept >= 1


def _changed(dump: Path, path: Path, number: int) -> Path:
    path.write_bytes(dump.read_bytes() + bytes([number]))
    return path


def test_a_killed_worker_takes_the_process_of_its_dump_with_it(
    cluster: Cluster, tmp_path: Path, faults: None
) -> None:
    """Nothing goes on scanning for nobody."""
    # These workers were started before the files that name faults could be obeyed.
    cluster.add_worker("obedient")
    engine = engine_of(cluster, 4)
    path = fault(tmp_path / "hang", "hang")
    manifest = tmp_path / "fleet.yaml"
    manifest.write_text(json.dumps({"dumps": [{"path": str(path), "worker": "obedient"}]}))

    def listen(event: Event) -> None:
        if Path(f"{path}.pid").exists() and cluster.workers["obedient"].poll() is None:
            cluster.workers["obedient"].kill()
            cluster.workers["obedient"].wait()
            for _ in range(100):
                if is_gone(path):
                    raise Gone
                time.sleep(0.05)

    class Gone(Exception):
        pass

    with pytest.raises(Gone):
        scanned(tmp_path / "fleet.db", engine, manifest, listen=listen)


def test_a_manifest_says_which_worker_has_a_dump(cluster: Cluster, tmp_path: Path) -> None:
    """The same path on two machines is two dumps, each scanned where it lies."""
    manifest = tmp_path / "fleet.yaml"
    entries = [
        {"path": str(SMALL), "worker": "w0", "host": "web1"},
        {"path": str(SMALL), "worker": "w1", "host": "web2"},
    ]
    manifest.write_text(json.dumps({"dumps": entries}))
    told: list[Event] = []
    scanned(tmp_path / "fleet.db", engine_of(cluster), manifest, listen=told.append)
    with Store(str(tmp_path / "fleet.db")) as store:
        places = store.db.execute("SELECT path, host FROM place ORDER BY path").fetchall()
    assert places == [(f"w0:{SMALL}", "web1"), (f"w1:{SMALL}", "web2")]
    workers = {event.worker for event in told if isinstance(event, Working)}
    assert workers <= {f"{socket.gethostname()}:{cluster.workers[n].pid}" for n in ("w0", "w1")}


def test_a_worker_that_goes_takes_only_its_own_dumps(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only it can read has failed, with its name; the others are scanned, later its own."""
    monkeypatch.setattr(engines, "_NO_WORKERS_SECONDS", 2)
    own = [_changed(SMALL, tmp_path / f"{n}", n) for n in range(3)]
    manifest = tmp_path / "fleet.yaml"
    entries = [{"path": str(path), "worker": "w0"} for path in own]
    manifest.write_text(json.dumps({"dumps": [*entries, *({"path": str(p)} for p in SOUND[1:])]}))

    def listen(event: Event) -> None:
        if isinstance(event, Working):
            cluster.workers["w0"].kill()

    store = tmp_path / "fleet.db"
    tally = scanned(store, engine_of(cluster), manifest, listen=listen)
    assert (tally.dumps, tally.failed) == (6, 3)
    with Store(str(store)) as opened:
        rows = opened.db.execute("SELECT DISTINCT cause, detail FROM current WHERE cause != ''")
        assert rows.fetchall() == [("lost", "no worker w0 for 2 s")]
    cluster.add_worker("w0")
    tally = scanned(store, engine_of(cluster), manifest, listen=ignore)
    assert (tally.dumps, tally.failed, tally.kept) == (6, 0, 3)


def test_a_worker_that_nobody_knows_is_a_mistake(cluster: Cluster, tmp_path: Path) -> None:
    """The line names it, and those that there are."""
    manifest = tmp_path / "fleet.yaml"
    manifest.write_text(json.dumps({"dumps": [{"path": str(SMALL), "worker": "w9"}]}))
    with pytest.raises(UsageError, match=r"worker w9: the scheduler knows no .* w0, w1, w2"):
        scanned(tmp_path / "fleet.db", engine_of(cluster), manifest, listen=ignore)
    with pytest.raises(UsageError, match="worker w9: only --engine dask"):
        scanned(tmp_path / "fleet.db", LocalEngine(1), manifest, listen=ignore)


def test_a_worker_of_another_version_is_told_apart(cluster: Cluster, tmp_path: Path) -> None:
    """What it would find is not taken for what this version finds."""
    (tmp_path / "sitecustomize.py").write_text(
        "import drgn_reliable.version as version\nversion.VERSION = '0.0.1'\n"
    )
    cluster.add_worker("old", tmp_path)
    manifest = tmp_path / "fleet.yaml"
    manifest.write_text(json.dumps({"dumps": [{"path": str(SMALL), "worker": "old"}]}))
    with pytest.raises(EngineLost, match=r"has drgn-reliable 0\.0\.1, not .*; install the same"):
        scanned(tmp_path / "fleet.db", engine_of(cluster, 4), manifest, listen=ignore)


def test_no_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And status 2."""
    done = run_fleet(
        "scan", SMALL, "--store", tmp_path / "fleet.db",
        "--engine", "dask", "--scheduler", "tcp://127.0.0.1:1",
    )  # fmt: skip
    assert done.returncode == 2
    assert "--scheduler tcp://127.0.0.1:1: no Dask scheduler answers there" in done.stderr
    assert "Traceback" not in done.stderr


def test_dask_starts_workers_of_its_own(tmp_path: Path) -> None:
    """Without a scheduler's address it takes this machine, and leaves nothing running."""
    store = tmp_path / "fleet.db"
    done = run_fleet("scan", SMALL, "--store", store, "--engine", "dask", "--jobs", 2)
    assert (done.returncode, "1 dump: 1 scanned" in done.stdout) == (1, True), done.stderr
    assert done.stderr == ""
