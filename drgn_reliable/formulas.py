# SPDX-License-Identifier: LGPL-2.1-or-later
"""Put numbers into the formulas by which rules are shown.

A formula is a list of assignments that happen at once, but for ``cfa``, which the others may use:
``cfa = sp + 48, fp = *(cfa - 48), lr = *(cfa - 40)``. ``*`` reads the word at an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from drgn_reliable.memory import MASK

__all__ = ("Assigned", "evaluate")

_TOKEN = re.compile(r"\s*(\w+|[-+*()])")


class Assigned(NamedTuple):
    """What a formula gives one register."""

    name: str
    address: int | None
    """Where it was read, None if it was not read."""
    value: int


class _NoValue(Exception):
    """The formula has no value here."""


def evaluate(
    formula: str, registers: Mapping[str, int], read: Callable[[int], int | None]
) -> list[Assigned] | None:
    """The values that a formula assigns; None if it is none of that kind, or needs what is not
    known.

    :param registers: the known registers by name.
    :param read: gives the word at an address, None if it is not to be had.

    >>> memory = {0x1030: 7, 0x1040: 0x1100}
    >>> evaluate("cfa = sp + 48, pc = *(cfa), fp = *fp + 16", {"sp": 0x1000, "fp": 0x1040},
    ...     memory.get)  # doctest: +NORMALIZE_WHITESPACE
    [Assigned(name='cfa', address=None, value=4144),
     Assigned(name='pc', address=4144, value=7),
     Assigned(name='fp', address=4160, value=4368)]
    >>> evaluate("the end of the stack", {}, memory.get)
    """
    known = dict(registers)
    found = []
    for part in formula.split(", "):
        name, sign, expression = part.partition(" = ")
        if not sign:
            return None
        try:
            value, address = _Expression(expression, known, read).value()
        except _NoValue:
            return None
        found.append(Assigned(name, address, value))
        if name == "cfa":
            known["cfa"] = value
    return found


class _Expression:
    """Sums and differences of registers, numbers and words that are read."""

    def __init__(
        self, text: str, known: Mapping[str, int], read: Callable[[int], int | None]
    ) -> None:
        self._tokens = _TOKEN.findall(text)
        if "".join(self._tokens) != text.replace(" ", ""):
            raise _NoValue
        self._known = known
        self._read = read
        self._last_read: int | None = None

    def value(self) -> tuple[int, int | None]:
        """The value, and where the last word was read."""
        found = self._sum()
        if self._tokens:
            raise _NoValue
        return found, self._last_read

    def _sum(self) -> int:
        total = self._term()
        while self._tokens and self._tokens[0] in "+-":
            sign = 1 if self._tokens.pop(0) == "+" else -1
            total = total + sign * self._term() & MASK
        return total

    def _term(self) -> int:
        if not self._tokens:
            raise _NoValue
        token = self._tokens.pop(0)
        if token == "*":
            address = self._term()
            word = self._read(address)
            if word is None:
                raise _NoValue
            self._last_read = address
            return word
        if token == "(":
            total = self._sum()
            if not self._tokens or self._tokens.pop(0) != ")":
                raise _NoValue
            return total
        if token.isdigit():
            return int(token)
        if token not in self._known:
            raise _NoValue
        return self._known[token]
