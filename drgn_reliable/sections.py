# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sections of loaded modules, as the kernel keeps them for ``/sys/module/*/sections``.

A ``struct module`` points to its attributes, an array of files: since Linux 6.14 their data
pointer is the section's address, before a member beside each was.
"""

from __future__ import annotations

import bisect
from functools import cached_property
from typing import NamedTuple

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import MASK, Layout, member_offset
from drgn_reliable.modules import Module

__all__ = ("ModuleSections",)

_SECTION_LIMIT = 4096


class _Files(NamedTuple):
    """Where to find things from a section's file on."""

    list: int
    """Offset in ``struct module_sect_attrs`` of the pointer to the list of files."""
    name: int
    address: int


class ModuleSections:
    """The names of modules' sections by address; none where the dump lacks them."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._known: dict[int, list[tuple[int, str]]] = {}

    def at(self, module: Module, address: int) -> str | None:
        """The section that an address in a module belongs to."""
        region = module.region(address)
        if region is None:
            return None
        found = self._known.get(module.address)
        if found is None:
            found = self._known[module.address] = self._read(module.address)
        i = bisect.bisect_right(found, (address, "\U0010ffff")) - 1
        return found[i][1] if i >= 0 and found[i][0] in region else None

    def _read(self, module: int) -> list[tuple[int, str]]:
        try:
            if self._pointer is None or self._files is None:
                return []
            attributes = self._pointer.read(self._prog, module)["sections"]
            files = self._prog.read_u64(attributes + self._files.list & MASK)
            return sorted(self._section(file) for file in self._pointers(files))
        except (FaultError, LookupError):
            return []

    def _pointers(self, place: int) -> list[int]:
        found: list[int] = []
        while len(found) < _SECTION_LIMIT and (file := self._prog.read_u64(place & MASK)):
            found.append(file)
            place += 8
        return found

    def _section(self, file: int) -> tuple[int, str]:
        assert self._files is not None
        name = self._prog.read_u64(file + self._files.name & MASK)
        address = self._prog.read_u64(file + self._files.address & MASK)
        return address, self._prog.read_c_string(name, max_size=256).decode("utf-8", "replace")

    @cached_property
    def _pointer(self) -> Layout | None:
        try:
            return Layout(self._prog.type("struct module"), {"sections": "sect_attrs"})
        except MissingInformation:
            return None

    @cached_property
    def _files(self) -> _Files | None:
        type_ = self._prog.type("struct module_sect_attrs")
        listed = member_offset(type_, "grp.bin_attrs")
        row = type_.member("attrs").type.type
        file = member_offset(row, "battr") or 0
        name = member_offset(row, "battr.attr.name")
        address = member_offset(row, "address")
        if name is None:
            name, address = (member_offset(row, path) for path in ("attr.name", "private"))
        if listed is None or name is None or address is None:
            return None
        return _Files(listed, name - file, address - file)
