# SPDX-License-Identifier: LGPL-2.1-or-later
"""How far a scan of a fleet is: a bar and a line for each worker, and nothing in a pipe."""

from __future__ import annotations

from pathlib import PurePath
from threading import RLock
from typing import Any

from tqdm import tqdm

from drgn_reliable.fleet.events import Event, Finished, Kept, Located, Working
from drgn_reliable.render.visible import visible

__all__ = ("FleetProgress",)

# Bars are drawn by this process alone: the lock that tqdm has for others, too, is a file.
tqdm.set_lock(RLock())

_WORKERS = 16
"""Lines for workers."""


class FleetProgress:
    """Listens to a scan."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._failed = 0
        self._lines: dict[str, Any] = {}
        self._doing: dict[str, str] = {}
        """Which worker has a path."""

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Located):
            self._bar = tqdm(total=event.dumps, unit=" dumps", leave=False, disable=None)
        elif isinstance(event, Working):
            self._show(event)
        elif isinstance(event, (Finished, Kept)) and self._bar is not None:
            self._failed += event.status == "failed"
            if self._failed:
                self._bar.set_postfix_str(f"{self._failed} failed", refresh=False)
            self._bar.update()
            if worker := self._doing.pop(event.path, ""):
                self._lines[worker].set_description_str(f"{visible(worker)}: -")

    def _show(self, event: Working) -> None:
        if event.worker not in self._lines:
            if len(self._lines) >= _WORKERS or self._bar is None or self._bar.disable:
                return
            self._lines[event.worker] = tqdm(
                position=len(self._lines) + 1, bar_format="{desc}", leave=False
            )
        count = f" {event.done}/{event.total} tasks" if event.done else ""
        self._doing[event.path] = event.worker
        name = visible("/".join(PurePath(event.path).parts[-2:]))
        self._lines[event.worker].set_description_str(
            f"{visible(event.worker)}: {name}: {visible(event.stage)}{count}"
        )

    def close(self) -> None:
        """Take everything off the terminal."""
        for bar in (*self._lines.values(), self._bar):
            if bar is not None:
                bar.close()
