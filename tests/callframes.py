# SPDX-License-Identifier: LGPL-2.1-or-later
"""Call frame information as pyelftools decodes it: what other readers are held against."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from elftools.dwarf.callframe import FDE, CFARule, RegisterRule
from elftools.elf.elffile import ELFFile

from drgn_reliable.tables.framerule import CFA, Place

BREG0, BREG31, DEREF = 0x70, 0x8F, 0x06  # operations of DWARF expressions


class Row(NamedTuple):
    """CFA, return address and frame pointer of the caller."""

    cfa: Place
    ra: Place | None
    fp: Place | None
    exact: bool

    @property
    def outermost(self) -> bool:
        return self.ra is None


class CallFrames:
    """The rows of an ELF file's .eh_frame by address; ``fp`` is the register's number."""

    def __init__(self, file: BinaryIO, fp: int) -> None:
        self.fp = fp
        self.functions: list[tuple[int, int]] = []
        self._rows: list[tuple[int, Row | None]] = []
        entries = ELFFile(file).get_dwarf_info().EH_CFI_entries()
        for fde in (entry for entry in entries if isinstance(entry, FDE)):
            start, size = fde["initial_location"], fde["address_range"]
            self.functions.append((start, size))
            self._rows += self._rows_of(fde)
            self._rows.append((start + size, None))
        self._rows.sort(key=lambda item: (item[0], item[1] is not None))
        self._starts = [start for start, _ in self._rows]

    def find(self, address: int) -> Row | None:
        """The row for an instruction; None too where it is beyond :func:`expression`."""
        i = bisect.bisect_right(self._starts, address) - 1
        return self._rows[i][1] if i >= 0 else None

    def _rows_of(self, fde: Any) -> Iterator[tuple[int, Row | None]]:
        ra = fde.cie["return_address_register"]
        exact = b"S" in fde.cie["augmentation"]
        for line in fde.get_decoded().table:
            cfa = computed(line["cfa"])
            places = [saved(line.get(number), number) for number in (ra, self.fp)]
            yield line["pc"], Row(cfa, places[0], places[1], exact) if cfa else None


def computed(rule: CFARule) -> Place | None:
    """The CFA; None for an expression of more than a step, as PLTs have it."""
    return Place(rule.reg, rule.offset) if rule.expr is None else expression(rule.expr)


def saved(rule: RegisterRule | None, number: int) -> Place | None:
    if rule is None or rule.type == RegisterRule.SAME_VALUE:
        return Place(number)
    if rule.type == RegisterRule.UNDEFINED:
        return None
    if rule.type == RegisterRule.OFFSET:
        return Place(CFA, rule.arg, True)
    if rule.type == RegisterRule.REGISTER:
        return Place(rule.arg)
    assert rule.type == RegisterRule.EXPRESSION, rule.type
    found = expression(rule.arg)
    assert found
    assert not found.deref
    return found._replace(deref=True)


def expression(code: list[int]) -> Place | None:
    """A register plus a one-byte offset, read or not: all that GCC's realigned stacks need."""
    register, offset, *rest = code
    if rest not in ([], [DEREF]) or not BREG0 <= register <= BREG31 or offset >= 0x80:
        return None
    return Place(register - BREG0, (offset ^ 0x40) - 0x40, bool(rest))
