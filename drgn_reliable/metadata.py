# SPDX-License-Identifier: LGPL-2.1-or-later
"""What unwind data a kernel has, and whether its ORC table is as the kernel needs it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import add, le
from pathlib import Path
from typing import NamedTuple

from drgn import FaultError, Program
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import byte_order, number_at
from drgn_reliable.symbols import Symbols

__all__ = ("OrcTable", "modules_without_orc", "orc_table", "unwind_metadata")

_TABLE_LIMIT = 1 << 28
"""Bytes: no kernel comes near it."""


class OrcTable(NamedTuple):
    """The kernel's own ORC table; a member is None where the dump does not tell."""

    entries: int
    enabled: bool | None
    """``orc_init``, where the architecture has it."""
    ordered: bool | None
    """The addresses ascend, as the search needs it."""
    first: int | None
    """The lowest address that it says something of."""
    last: int | None
    """Where its last entry begins."""

    def covers(self, start: int, end: int) -> bool | None:
        """Whether the entries go from the beginning of the text to its end."""
        if self.first is None or self.last is None:
            return None
        return self.first <= start and self.last >= end


def orc_table(prog: Program, symbols: Symbols, whole: bool) -> OrcTable | None:
    """The table between ``__start_orc_unwind_ip`` and ``__stop_orc_unwind_ip``, each of whose
    elements is the distance from itself to the address; None if the kernel has none.

    :param whole: read all of it, some megabytes.
    """
    start, stop = (symbols.address(f"__{end}_orc_unwind_ip") for end in ("start", "stop"))
    if start is None or stop is None:
        return None
    size = stop - start
    if not 0 < size < _TABLE_LIMIT:
        return OrcTable(0, _enabled(prog, symbols), None, None, None)
    first, last = (_target(prog, place) for place in (start, stop - 4))
    ordered = _ordered(prog, start, size // 4) if whole else None
    return OrcTable(size // 4, _enabled(prog, symbols), ordered, first, last)


def _enabled(prog: Program, symbols: Symbols) -> bool | None:
    found = number_at(prog, symbols.address("orc_init"), 1)
    return None if found is None else bool(found)


def _target(prog: Program, place: int) -> int | None:
    try:
        distance: int = struct.unpack(f"{byte_order(prog)}i", prog.read(place, 4))[0]
    except FaultError:
        return None
    return place + distance


def _ordered(prog: Program, start: int, count: int) -> bool | None:
    try:
        distances = struct.unpack(f"{byte_order(prog)}{count}i", prog.read(start, 4 * count))
    except FaultError:
        return None
    targets = list(map(add, distances, range(0, 4 * count, 4)))
    return all(map(le, targets, islice(targets, 1, None)))


def modules_without_orc(kernel: Kernel) -> list[str] | None:
    """Modules whose code the unwinder knows nothing of; None where it does not use ORC."""
    if kernel.symbols.address("__start_orc_unwind_ip") is None:
        return None
    return [module.name for module in kernel.modules if not module.orc_count]


_TABLES: Mapping[str, Sequence[str]] = {
    "ORC": ("__start_orc_unwind_ip",),
    "SFrame": ("__start_sframe", "__start_sframe_header"),
    "BTF": ("__start_BTF",),
}
"""What is in the kernel's memory, by symbols that show it."""

_FRAME_SECTIONS = (".debug_frame", ".eh_frame")


def unwind_metadata(kernel: Kernel) -> list[str]:
    """What there is in the dump and in the debug information to unwind by."""
    found = [what for what, names in _TABLES.items() if kernel.symbols.first(*names) is not None]
    try:
        module = kernel.prog.main_module()
    except LookupError:
        return found
    for path in dict.fromkeys((module.debug_file_path, module.loaded_file_path)):
        found += [f"DWARF ({name} of {path})" for name in _sections(path)] if path else []
    return found


def _sections(path: str) -> list[str]:
    try:
        with Path(path).open("rb") as file:
            elf = ELFFile(file)
            found = (elf.get_section_by_name(name) for name in _FRAME_SECTIONS)
            return [each.name for each in found if each and each["sh_type"] != "SHT_NOBITS"]
    except (OSError, ELFError):
        return []
