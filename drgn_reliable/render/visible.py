# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text of unknown origin, made safe to look at.

Process names, symbols, paths and labels are chosen by whoever ran the machine. Some characters do
not show themselves but change how others are shown: they move a terminal's cursor, reverse the
direction of writing, or cannot be seen at all.
"""

from __future__ import annotations

import re

__all__ = ("brief", "inert", "visible")

_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Fillers, joiners and variation selectors: Unicode counts them among letters, marks and symbols,
but nothing of them can be seen."""

_FORMULA = re.compile("(^ *|; *)(?=[-=+@\uff0d\uff1d\uff0b\uff20])")
"""Before what a spreadsheet takes for a formula, in some languages also in full width: at the
start of a cell, of which leading spaces may be dropped, and after a semicolon, which separates
cells where the comma is in numbers."""
_BRIEF = 64


def visible(text: str) -> str:
    r"""The text with each character that does not show itself as its escape.

    These are controls, marks of direction and of width zero, separators other than the space, lone
    surrogates (bytes that were no UTF-8), private and unassigned characters. Everything else stays,
    the backslash too: the result is for reading, not for parsing.

    >>> visible("kworker/0:1H-kblockd")
    'kworker/0:1H-kblockd'
    >>> print(visible("\x1b[31mred\x07\n"))
    \x1b[31mred\x07\n
    >>> print(visible("gpj.\u202eexe.sh\u200b\ufeff"))
    gpj.\u202eexe.sh\u200b\ufeff
    >>> print(visible("\u061c\u200e\u200f\u2066\u2069\u2028\u2029\x85"))
    \u061c\u200e\u200f\u2066\u2069\u2028\u2029\x85
    >>> print(visible("caf\u00e9 \udcff \u3164 C:\\dump"))
    café \udcff \u3164 C:\dump
    """
    if text.isprintable() and (text.isascii() or not _BLANK.search(text)):
        return text
    return "".join(
        each if each.isprintable() and not _BLANK.match(each) else _escape(each) for each in text
    )


def brief(text: str) -> str:
    """The text as a cell of a table has it: visible, and cut where it is far too long.

    >>> brief("do_wait"), brief(500 * "x")[-3:], len(brief(500 * "x"))
    ('do_wait', 'xx…', 64)
    """
    text = visible(text)
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 1]}…"


def inert(text: str) -> str:
    """The text as a cell of CSV has it: visible, and no formula to any spreadsheet.

    >>> inert("=HYPERLINK(1)"), inert("do_wait"), inert(" @SUM(1)"), inert("a;=1+1")
    ("'=HYPERLINK(1)", 'do_wait', " '@SUM(1)", "a;'=1+1")
    """
    return _FORMULA.sub(r"\1'", visible(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
