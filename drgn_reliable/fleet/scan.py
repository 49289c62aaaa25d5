# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scan a fleet: find the dumps, leave out what is known, have the rest scanned, keep the results.

One thread does all of this and alone writes to the store; the scanning itself is an engine's.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from drgn_reliable.fleet.engines import Engine, EngineLost
from drgn_reliable.fleet.events import (
    Begun,
    Ended,
    Event,
    Finished,
    Kept,
    Listener,
    Located,
    Working,
)
from drgn_reliable.fleet.identity import Identity, identify
from drgn_reliable.fleet.isolation import Job, Limits
from drgn_reliable.fleet.record import Record
from drgn_reliable.fleet.sources import Place, Source, find
from drgn_reliable.fleet.store import Brief, Store, options_hash, text_of_path

__all__ = ("Tally", "scan_fleet")

T = TypeVar("T")

_LOOK_EVERY = 0.2
"""Seconds between looks at the engine."""


@dataclass
class Tally:
    """What a scan has come to."""

    scan: int
    dumps: int = 0
    """Files that are dumps, those that were known among them."""
    kept: int = 0
    """Of them, those that were not scanned again."""
    incomplete: int = 0
    failed: int = 0
    passed_over: int = 0
    unreliable: int = 0
    """Dumps with tasks whose traces the kernel calls unreliable."""
    stalled: int = 0
    """Dumps with a livepatch transition that is stalled."""

    def count(self, brief: Brief, *, kept: bool = False) -> None:
        """Take in a file.

        :param kept: whether its content was known.
        """
        self.dumps += 1
        self.kept += kept
        self.incomplete += brief.status == "incomplete"
        self.failed += brief.status == "failed"
        self.unreliable += brief.unreliable > 0
        self.stalled += brief.stalled


def _ignore(event: Event) -> None:
    pass


def scan_fleet(
    sources: Sequence[Source],
    store: Store,
    engine: Engine,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    *,
    retry: bool = False,
    listen: Listener = _ignore,
) -> Tally:
    """Scan the dumps of all sources into a store.

    :param store: opened for writing.
    :param retry: whether to scan again what failed before.
    :param listen: is told what happens.
    :raises UsageError: for a source that holds nothing.
    :raises EngineLost: if nobody is left to scan; what was scanned is in the store.
    :raises sqlite3.Error: if the store cannot be written any more; what was scanned is in it.
    """
    return _Scan(store, engine, limits, retry, listen).run(sources)


@dataclass
class _Work:
    """A content that is being identified or scanned, and where it lies."""

    places: list[Place]
    known: Identity | None = None
    since: float = field(default_factory=time.monotonic)
    """When it was begun to identify it."""
    identity: Identity | None = None
    options: str = ""


class _Scan:
    def __init__(
        self, store: Store, engine: Engine, limits: Limits, retry: bool, listen: Listener
    ) -> None:
        self._store, self._engine, self._limits = store, engine, limits
        self._retry, self._listen = retry, listen
        self._identifying: dict[Future[Identity], _Work] = {}
        self._scanning: dict[Future[Record], _Work] = {}
        self._in_hand: dict[tuple[str, str], _Work] = {}
        """What is being scanned, by identity and options: a copy waits for it."""

    def run(self, sources: Sequence[Source]) -> Tally:
        started = time.monotonic()
        self._tally = tally = Tally(self._store.begin_scan())
        whole = False
        try:
            self._listen(Begun(scan=tally.scan, store=self._store.path, engine=self._engine.name))
            places = self._locate(sources)
            self._listen(Located(dumps=len(places), passed_over=tally.passed_over))
            self._scan(places)
            whole = True
        finally:
            if not whole:
                self._give_up()
            with nullcontext() if whole else suppress(sqlite3.Error):
                self._store.end_scan(tally.scan, whole=whole)
            self._listen(
                Ended(
                    scan=tally.scan,
                    dumps=tally.dumps,
                    kept=tally.kept,
                    incomplete=tally.incomplete,
                    failed=tally.failed,
                    passed_over=tally.passed_over,
                    interrupted=not whole,
                    seconds=round(time.monotonic() - started, 3),
                )
            )
        return tally

    # Finding --------------------------------------------------------------------------------

    def _locate(self, sources: Sequence[Source]) -> list[Place]:
        """All dumps of all sources; a file that two of them hold is the first one's."""
        # Whoever opens and closes a file of the store gives up the store's locks.
        store = os.path.realpath(self._store.path)
        own = tuple(store + end for end in ("", "-wal", "-shm", "-journal"))
        futures = [self._engine.submit(source.worker, find, source.path, own) for source in sources]
        self._wait(futures)
        places: dict[tuple[str | None, str], Place] = {}
        for source, future in zip(sources, futures, strict=True):
            found = future.result()
            for path in found.dumps:
                places.setdefault((source.worker, path), Place(path, source))
            passed = [(Place(path, source).name, why) for path, why in found.passed_over]
            self._store.pass_over(self._tally.scan, passed)
            self._tally.passed_over += len(found.passed_over)
        return list(places.values())

    def _wait(self, futures: Iterable[Future[Any]]) -> None:
        """Wait until all are done."""
        left = set(futures)
        while left:
            _, left = wait(left, _LOOK_EVERY)
            self._engine.check()

    def _give_up(self) -> None:
        self._engine.stop()
        for identified in self._identifying:
            identified.cancel()
        for scanned in self._scanning:
            scanned.cancel()

    # Scanning -------------------------------------------------------------------------------

    def _scan(self, places: Sequence[Place]) -> None:
        """Identify and scan, never more at a time than the engine can soon take."""
        waiting = deque(places)
        while waiting or self._identifying or self._scanning:
            room = 2 * max(1, self._engine.slots) - len(self._identifying) - len(self._scanning)
            for _ in range(min(room, len(waiting))):
                place = waiting.popleft()
                work = _Work([place], known=self._store.known(place.name))
                future = self._engine.submit(place.source.worker, identify, place.path, work.known)
                self._identifying[future] = work
            self._take_results()

    def _take_results(self) -> None:
        futures: list[Future[Any]] = [*self._identifying, *self._scanning]
        wait(futures, _LOOK_EVERY, FIRST_COMPLETED)
        self._pass_on_heard()
        for identified in [future for future in self._identifying if future.done()]:
            self._identified(self._identifying.pop(identified), identified)
        self._leave_overdue()
        self._leave_abandoned()
        for scanned in [future for future in self._scanning if future.done()]:
            self._scanned(self._scanning.pop(scanned), scanned)
        self._engine.check()

    def _leave_overdue(self) -> None:
        """Give up files that a file system does not give."""
        before = time.monotonic() - self._limits.seconds
        for future in [f for f, work in self._identifying.items() if work.since < before]:
            work = self._identifying.pop(future)
            future.cancel()
            detail = f"reading the file: no answer within {self._limits.seconds:g} s"
            self._keep(work, _failed("timeout", detail))

    def _leave_abandoned(self) -> None:
        """Give up what the engine has nobody for any more."""
        for future, why in self._engine.abandoned().items():
            work = self._identifying.pop(future, None) or self._scanning.pop(future, None)
            future.cancel()
            if work is not None:
                self._forget(work)
                self._keep(work, _failed("lost", why))

    def _forget(self, work: _Work) -> None:
        """Let no copy wait for this any more."""
        if work.identity is not None:
            del self._in_hand[work.identity.digest, work.options]

    def _pass_on_heard(self) -> None:
        while not self._engine.heard.empty():
            path, worker, said = self._engine.heard.get()
            self._listen(
                Working(
                    path=text_of_path(path),
                    worker=worker,
                    stage=said.stage,
                    done=said.done,
                    total=said.total,
                )
            )

    def _identified(self, work: _Work, future: Future[Identity]) -> None:
        """Leave it at what is known of this content, or have it scanned."""
        place = work.places[0]
        source = place.source
        work.options = options_hash(source.symbols, source.vmcoreinfo)
        identity = _result(future)
        if isinstance(identity, Record):
            self._keep(work, identity)
            return
        work.identity = identity
        key = (work.identity.digest, work.options)
        if key in self._in_hand:
            self._in_hand[key].places.append(place)
            return
        dump = self._store.finished(*key, self._limits, retry=self._retry)
        if dump is not None:
            self._put(work, dump, scanned=False)
            return
        self._in_hand[key] = work
        job = Job(place.path, source.symbols, source.vmcoreinfo)
        self._scanning[self._engine.scan(source.worker, job, self._limits)] = work

    def _scanned(self, work: _Work, future: Future[Record]) -> None:
        self._forget(work)
        self._keep(work, _result(future))

    def _keep(self, work: _Work, record: Record) -> None:
        """Add a new record to the store."""
        dump = self._store.add(self._tally.scan, record, self._limits, work.options, work.identity)
        self._put(work, dump, scanned=True)

    def _put(self, work: _Work, dump: int, *, scanned: bool) -> None:
        """Note where a dump lies, count it, and tell."""
        brief = self._store.brief(dump)
        for number, place in enumerate(work.places):
            source = place.source
            self._store.put(
                place.name, dump, self._tally.scan, work.identity, source.host, source.labels
            )
            if scanned and number == 0:
                self._tally.count(brief)
                self._listen(Finished(path=place.name, dump=dump, **brief._asdict()))
            else:
                self._tally.count(brief, kept=True)
                self._listen(Kept(path=place.name, dump=dump, status=brief.status))


def _failed(cause: str, detail: str) -> Record:
    """What there is to keep where there is no result, for a reason that is not the dump's."""
    return Record(status="failed", cause=cause, detail=text_of_path(detail))


def _result(future: Future[T]) -> T | Record:
    """The result of a future that is done, or the record of there being none.

    :raises EngineLost: if there will be no others either.
    """
    try:
        return future.result()
    except OSError as e:
        return _failed("unreadable", e.strerror or str(e))
    except (BrokenExecutor, CancelledError) as e:
        raise EngineLost(f"the engine gave up ({e or type(e).__name__}); scan again") from e
    except ImportError as e:
        raise EngineLost(f"the workers cannot scan: {e}; install the same there as here") from e
    except Exception as e:  # of an engine: its worker died too often, its result did not arrive
        return _failed("lost", f"{type(e).__name__}: {e}")
