# SPDX-License-Identifier: LGPL-2.1-or-later
"""Code of the firmware that the kernel calls: the runtime services of EFI.

The kernel keeps the firmware's memory map (``efi.memmap``), with the virtual address at which
each part that is needed at run time is mapped.
"""

from __future__ import annotations

from functools import cached_property

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import Layout
from drgn_reliable.symbols import Symbols

__all__ = ("Firmware",)

_RUNTIME = 1 << 63
"""``EFI_MEMORY_RUNTIME``."""
_RUNTIME_CODE = 5
"""``EFI_RUNTIME_SERVICES_CODE``."""
_PAGE_SIZE = 4096
"""Of EFI, whatever the kernel's is."""
_ROW_LIMIT = 1 << 14


class Firmware:
    """Where the dump says that the firmware's code is."""

    def __init__(self, prog: Program, symbols: Symbols) -> None:
        self._prog = prog
        self._symbols = symbols

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and any(
            start <= address < end for start, end in self._ranges
        )

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        place = self._symbols.address("efi")
        if place is None:
            return []
        try:
            layout = Layout(
                self._prog.type("struct efi"),
                {"map": "memmap.map", "count": "memmap.nr_map", "size": "memmap.desc_size"},
            )
            return self._rows(layout.read(self._prog, place))
        except (FaultError, LookupError, MissingInformation):
            return []

    def _rows(self, memmap: dict[str, int]) -> list[tuple[int, int]]:
        # Named by a typedef only; desc_size may be larger than it.
        row = Layout(
            self._prog.type("efi_memory_desc_t").type,
            {"type": "type", "start": "virt_addr", "pages": "num_pages", "what": "attribute"},
        )
        found = []
        for i in range(min(memmap["count"], _ROW_LIMIT) if memmap["map"] else 0):
            part = row.read(self._prog, memmap["map"] + i * memmap["size"])
            if part["type"] == _RUNTIME_CODE and part["what"] & _RUNTIME and part["start"]:
                found.append((part["start"], part["start"] + part["pages"] * _PAGE_SIZE))
        return found
