# SPDX-License-Identifier: LGPL-2.1-or-later
"""Exit statuses: what each number means, once for all commands.

What it means for one command stands beside the command's arguments
(:class:`drgn_reliable.command.Command`); help, man pages and documentation are made of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from textwrap import wrap

__all__ = ("GENERAL", "Exit", "Exits", "exits_text", "rows_of")


class Exit(IntEnum):
    """The exit status of a command."""

    DONE = 0
    FOUND = 1
    USAGE = 2
    DUMP = 3
    LOST = 4
    INTERRUPTED = 130
    TERMINATED = 143


Exits = Mapping[Exit, str]
"""What the exit statuses of a command mean."""

GENERAL: Exits = {
    Exit.DONE: "it was done, and nothing is wrong with what was looked at",
    Exit.FOUND: "it was done, and what was looked for is there: unreliable tasks, a transition "
    "that cannot finish",
    Exit.USAGE: "usage: an argument is wrong, or the output cannot be written",
    Exit.DUMP: "a dump cannot be opened, lacks what is needed, or could not be read whole",
    Exit.LOST: "what should scan a fleet, or the place for its store, was lost",
    Exit.INTERRUPTED: "interrupted by Ctrl-C or SIGTERM; no output file is half-written",
    Exit.TERMINATED: "interrupted by Ctrl-C or SIGTERM; no output file is half-written",
}
"""What they mean whatever the command."""


def rows_of(exits: Exits) -> list[tuple[str, str]]:
    """Numbers and their meaning; those of the same meaning in one row.

    >>> rows_of({Exit.DONE: "done", Exit.INTERRUPTED: "stopped", Exit.TERMINATED: "stopped"})
    [('0', 'done'), ('130 or 143', 'stopped')]
    """
    rows: dict[str, list[str]] = {}
    for status, meaning in exits.items():
        rows.setdefault(meaning, []).append(str(status.value))
    return [(" or ".join(numbers), meaning) for meaning, numbers in rows.items()]


def exits_text(exits: Exits) -> str:
    """A table of exit statuses for a terminal of 80 columns; nothing if there are none.

    >>> print(exits_text({Exit.DONE: "the tasks were explained"}), end="")
    exit status:
      0  the tasks were explained
    """
    lines = ["exit status:"] if exits else []
    for numbers, meaning in rows_of(exits):
        first = f"  {numbers}  "
        lines += wrap(meaning, 80, initial_indent=first, subsequent_indent=" " * 5)
    return "".join(f"{line}\n" for line in lines)
