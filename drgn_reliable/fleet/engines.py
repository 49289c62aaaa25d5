# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where dumps are scanned: by any :class:`concurrent.futures.Executor`.

An engine is an executor, how many dumps it takes at a time, and how to hear what its workers do.
The store is not its matter: results come back to the one process that writes.
"""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from drgn_reliable.errors import ReliableError, UsageError
from drgn_reliable.fleet.child import Said
from drgn_reliable.fleet.isolation import Job, Limits
from drgn_reliable.fleet.ladder import scan_job
from drgn_reliable.fleet.record import Record
from drgn_reliable.version import VERSION

__all__ = ("DaskEngine", "Engine", "EngineLost", "Heard", "LocalEngine")

P = ParamSpec("P")
T = TypeVar("T")

_TOPIC = "drgn-reliable"
_CONNECT_SECONDS = 10
_NO_WORKERS_SECONDS = 60
"""How long to wait for a worker to come (back) before giving up."""


class EngineLost(ReliableError):
    """What should scan is not there any more; the store is whole, and a scan can go on."""


Heard = tuple[str, str, Said]
"""The path of a dump, the worker that scans it, and what its process says."""


class Engine:
    """Any executor; nothing is heard of what its workers do until they are done.

    :param executor: takes functions and arguments that can be pickled, if it needs that.
    :param slots: how many dumps it scans at a time.
    """

    name = "executor"

    def __init__(self, executor: Executor, slots: int) -> None:
        self._executor = executor
        self._slots = slots
        self.heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()

    @property
    def slots(self) -> int:
        """How many dumps are scanned at a time, as of now."""
        return self._slots

    def submit(
        self, worker: str | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Have a function called.

        :param worker: the machine that has to do it; None for any.
        :raises UsageError: if there is no such machine.
        """
        _no_worker(worker)
        return self._executor.submit(function, *args, **kwargs)

    def scan(self, worker: str | None, job: Job, limits: Limits) -> Future[Record]:
        """Have a dump scanned."""
        return self.submit(worker, scan_job, job, limits)

    def check(self) -> None:
        """See that somebody works.

        :raises EngineLost: if nobody has for a while.
        """

    def abandoned(self) -> dict[Future[Any], str]:
        """What nobody is going to do, and why."""
        return {}

    def stop(self) -> None:
        """Give up what is in work, where that is possible."""

    def close(self) -> None:
        """Let go of everything."""
        self._executor.shutdown()


def _no_worker(worker: str | None) -> None:
    if worker is not None:
        raise UsageError(
            f"worker {worker}: only --engine dask sends work to certain machines; leave it out of "
            "the manifest"
        )


class LocalEngine(Engine):
    """Processes of this machine, each watched by a thread.

    What else reads files has a thread of its own each time: a file system that does not answer
    must neither keep one of those from its work nor this process from its end.

    :param jobs: how many at a time.
    """

    name = "local"

    def __init__(self, jobs: int) -> None:
        super().__init__(ThreadPoolExecutor(jobs, thread_name_prefix="worker"), jobs)
        self._stopped = threading.Event()

    def submit(
        self, worker: str | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Have a function called in a thread that nobody waits for at the end."""
        _no_worker(worker)
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as e:
                    future.set_exception(e)

        threading.Thread(target=call, daemon=True).start()
        return future

    def scan(self, worker: str | None, job: Job, limits: Limits) -> Future[Record]:
        """Have a dump scanned."""
        _no_worker(worker)
        return self._executor.submit(self._scan, job, limits)

    def _scan(self, job: Job, limits: Limits) -> Record:
        name = threading.current_thread().name

        def say(said: Said) -> None:
            self.heard.put((job.path, name, said))

        return scan_job(job, limits, say, self._stopped.is_set)

    def stop(self) -> None:
        """End the processes; what waits for them ends with :class:`~.isolation.Stopped`."""
        self._stopped.set()


class _Absence:
    """How long somebody has not been there."""

    def __init__(self) -> None:
        self._since: float | None = None

    def too_long(self, there: bool) -> bool:
        """Whether it has been for too long.

        :param there: whether somebody is there now.
        """
        now = time.monotonic()
        self._since = None if there else self._since or now
        return self._since is not None and now - self._since > _NO_WORKERS_SECONDS


class _Bound:
    """What only one worker can do."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.absence = _Absence()
        self.futures: set[Future[Any]] = set()

    def waiting(self) -> bool:
        """Whether anything is still to be done."""
        self.futures = {future for future in self.futures if not future.done()}
        return bool(self.futures)


class DaskEngine(Engine):
    """The workers of a Dask scheduler. Each scans as many dumps at a time as it has threads.

    A dump whose worker is lost is scanned by another. The workers need this package, and have to
    see the dumps under the paths that the scan knows them by.

    :param scheduler: its address; without one, workers of this machine are started.
    :param jobs: how many of those.
    :raises UsageError: if Dask is not installed, or no scheduler answers at the address.
    """

    name = "dask"

    def __init__(self, scheduler: str | None, jobs: int) -> None:
        self._client = _client(scheduler, jobs)
        self._client.subscribe_topic(_TOPIC, self._hear)
        self._bound: dict[str, _Bound] = {}
        """By the name or host of the worker that some work is for."""
        self._absence = _Absence()
        """Of all workers."""
        super().__init__(self._client.get_executor(pure=False), jobs)

    @property
    def slots(self) -> int:
        """The threads of all workers, as of now."""
        return sum(self._client.nthreads().values())

    def submit(
        self, worker: str | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Have a function called by any worker, or by one of a machine."""
        if worker is None:
            return self._executor.submit(function, *args, **kwargs)
        if worker not in self._bound:
            known = self._known()
            if worker not in known:
                raise UsageError(
                    f"worker {worker}: the scheduler knows no worker of this name or host; it "
                    f"knows {', '.join(sorted(known)) or 'none'}"
                )
            only = {"workers": [worker], "allow_other_workers": False}
            self._bound[worker] = _Bound(self._client.get_executor(pure=False, **only))
        future = self._bound[worker].executor.submit(function, *args, **kwargs)
        self._bound[worker].futures.add(future)
        return future

    def scan(self, worker: str | None, job: Job, limits: Limits) -> Future[Record]:
        """Have a dump scanned."""
        return self.submit(worker, _scan_in_dask, job, limits, VERSION)

    def _known(self) -> set[str]:
        """The names and hosts of all workers."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return {str(info[what]) for info in workers for what in ("name", "host")}

    def abandoned(self) -> dict[Future[Any], str]:
        """What is for a worker that has not been there for a minute."""
        waiting = {name: bound for name, bound in self._bound.items() if bound.waiting()}
        known = self._known() if waiting else set()
        found: dict[Future[Any], str] = {}
        for name, bound in waiting.items():
            if bound.absence.too_long(name in known):
                why = f"no worker {name} for {_NO_WORKERS_SECONDS} s"
                found |= dict.fromkeys(bound.futures, why)
        return found

    def _hear(self, event: tuple[float, Any]) -> None:
        with suppress(TypeError, ValueError):
            path, worker, stage, done, total = event[1]
            self.heard.put((path, worker, Said(stage=stage, done=done, total=total)))

    def check(self) -> None:
        """See that there are workers.

        :raises EngineLost: if there have been none for a minute, or the scheduler is gone.
        """
        if self._client.status in ("closed", "closing"):
            raise EngineLost("the connection to the Dask scheduler was lost; scan again to go on")
        if self._absence.too_long(self._client.status == "running" and self.slots > 0):
            raise EngineLost(
                f"no Dask worker for {_NO_WORKERS_SECONDS} s; start some, and scan again to go on"
            )

    def stop(self) -> None:
        """Take back what no worker has begun; what one has begun, it ends for nobody."""
        self._executor.shutdown(wait=False)

    def close(self) -> None:
        """Let go of the scheduler; one that was started here ends."""
        super().close()
        self._client.close()


def _client(scheduler: str | None, jobs: int) -> Any:  # a distributed.Client, which has no types
    try:
        import distributed
    except ImportError as e:
        raise UsageError("--engine dask needs Dask: pip install 'drgn-reliable[dask]'") from e
    dask: Any = distributed
    if scheduler is None:
        return dask.Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
    try:
        return dask.Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as e:
        raise UsageError(f"--scheduler {scheduler}: no Dask scheduler answers there ({e})") from e


def _scan_in_dask(job: Job, limits: Limits, version: str) -> Record:
    """Scan a dump in a thread of a Dask worker, telling whoever listens.

    :param version: of this package, where the store is.
    :raises ImportError: if the worker has another.
    """
    import distributed

    worker: Any = distributed.get_worker()
    name = f"{platform.node()}:{os.getpid()}"
    if version != VERSION:
        raise ImportError(f"worker {name} has drgn-reliable {VERSION}, not {version}")

    def say(said: Said) -> None:
        worker.log_event(_TOPIC, (job.path, name, said.stage, said.done, said.total))

    return scan_job(job, limits, say)
