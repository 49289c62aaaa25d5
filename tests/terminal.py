# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a real terminal would show: a pseudo-terminal, and behind it an emulator (pyte)."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Sequence
from typing import Any

import pyte

COLUMNS = 200


class Screen(pyte.Screen):
    """A screen that notes what more than text was done to it."""

    def __init__(self, columns: int, lines: int) -> None:
        self.done: list[str] = []
        super().__init__(columns, lines)
        self.done.clear()

    def set_title(self, param: str) -> None:
        self.done.append(f"title {param!r}")

    def set_icon_name(self, param: str) -> None:
        self.done.append(f"icon {param!r}")

    def write_process_input(self, data: str) -> None:
        self.done.append(f"answered {data!r}")

    def bell(self, *args: Any) -> None:
        self.done.append("bell")

    def select_graphic_rendition(self, *attrs: int, **kwargs: Any) -> None:
        if attrs not in ((), (0,)):
            self.done.append(f"colours {attrs}")

    def cursor_position(self, line: int | None = None, column: int | None = None) -> None:
        self.done.append("cursor moved")
        super().cursor_position(line, column)

    def erase_in_display(self, how: int = 0, *args: Any, **kwargs: Any) -> None:
        self.done.append("screen erased")

    def debug(self, *args: Any, **kwargs: Any) -> None:
        self.done.append(f"unknown {args}")


def emulated(data: bytes, columns: int = COLUMNS) -> Screen:
    """A screen that is large enough for all that a program has printed."""
    text = data.decode("utf-8", "replace")
    lines = sum(2 + 2 * len(line) // columns for line in text.split("\n"))
    screen = Screen(columns, lines)
    pyte.ByteStream(screen).feed(data)
    return screen


def shown(screen: Screen) -> str:
    """The characters on a screen, without its blanks and its ends of lines."""
    return "".join("".join(screen.display).split())


def run_in_terminal(arguments: Sequence[str], environment: dict[str, str]) -> tuple[bytes, int]:
    """All that a command of ``drgn-reliable`` prints to a terminal, and its exit status."""
    command = [sys.executable, "-m", "drgn_reliable", *arguments]
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("4H", 50, COLUMNS, 0, 0))
        os.execve(sys.executable, command, {**os.environ, "TERM": "xterm-256color", **environment})
    printed = b""
    try:
        while part := os.read(terminal, 1 << 16):
            printed += part
    except OSError:
        pass  # so ends a terminal that nobody has open any more
    finally:
        os.close(terminal)
    return printed, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
