# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names that are to do harm: what they are made of, and how one looks whether they did.

``tests.dumps.HOSTILE`` is a real dump full of such names; those here are put in place of
every name of a report.
"""

from __future__ import annotations

import csv
import re
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from drgn_reliable.render.visible import visible

NAMES = {
    "clears the screen": "\x1b[2J\x1b[31mred\x07",
    "renames the window": "\x1b]0;title\x07",
    "asks the terminal": "\x1b[6n\x1bP+q544e\x1b\\",
    "C1 controls": "\x9b31m\x85\x90x\x9c",
    "forges a line": "a\nPID 1 (init), reliable\r\n",
    "overwrites": "\rreliable\x08\x08\x7f",
    "tab and form feed": "\ta\x0b\x0cb",
    "NUL": "a\x00b",
    "reversed": "\u202egpj.exe\u2066",
    "of no width": "a\u200b\u200d\ufeffb\u3164\u2800",
    "other ends of lines": "a\u2028b\u2029c\x1cd",
    "no UTF-8": "a\udcff\udc9b31m\ud83d",
    "no character": "\ufffe\U000e0041\ue000",
    "markup": "</script><img src=x onerror=alert(1)>&amp;{{data}}",
    "formula": '=HYPERLINK("http://x/"&A1)',
    "formulas of other kinds": "+1+1;=2+2;-3@SUM(4)",
    "formula behind spaces": "  @SUM(1+1)",
    "formula in full width": "\uff1d1+1",
    "command of a spreadsheet": "-2+3+cmd|' /C calc'!A0",
    "SQL": "'; DROP TABLE task; --\"",
    "folded": "x;y 99",
    "formats": "%s%n{0}{a.b}%(x)s\\x1b[31m\\n",
    "a path": "../../../../etc/passwd",
    "a shell's": "$(reboot)`id`|sh",
    "long": "\x1b[1m" + "A" * 500,
    "nothing": "",
    "blank": "   ",
}
"""What they do, to whoever prints them carelessly."""

INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]"
)
FORMULA = re.compile("[-=+@\t\r\uff0d\uff1d\uff0b\uff20]")
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def controls(text: str) -> set[str]:
    """The characters of a text that do not show themselves, but for the end of a line."""
    return {c for c in text if c != "\n" and (not c.isprintable() or INVISIBLE.match(c))}


def cells(text: str, delimiter: str = ",") -> list[str]:
    """The cells of CSV as a spreadsheet reads them; each row has as many as the first."""
    rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True))
    if delimiter == ",":
        assert {len(row) for row in rows} == {len(rows[0])}
    return [cell for row in rows for cell in row]


def formulas(text: str) -> list[str]:
    """The cells of CSV that a spreadsheet might take for a formula, whichever separator it knows,
    and whether or not it drops leading spaces."""
    every = [cell for delimiter in ",;" for cell in cells(text, delimiter)]
    return [c for c in every if FORMULA.match(c.strip(" ")) and not NUMBER.fullmatch(c)]


FIXED = {"id", "state", "architecture", "target"}
"""Members whose strings are words of this package: of a reason, a task, a dump, a transition."""


def poisoned(value: Any, name: str, member: str = "") -> Any:
    """The same data with one name in the place of each that a dump or a command line gives."""
    if isinstance(value, Enum) or member in FIXED:
        return value
    if isinstance(value, str):
        return name
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{f.name: poisoned(getattr(value, f.name), name, f.name) for f in fields(value)}
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = zip(value._fields, value, strict=True)
        return type(value)(*(poisoned(each, name, member) for member, each in pairs))
    if isinstance(value, tuple | list):
        return type(value)(poisoned(each, name) for each in value)
    if isinstance(value, dict):
        return {key: poisoned(each, name, str(key)) for key, each in value.items()}
    return value


def as_shown(name: str) -> str:
    """The name in its visible form, which is what everything is to look like."""
    return visible(name)
