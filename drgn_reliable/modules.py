# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loaded modules: their memory, their text and their unwind tables.

Linux 6.4 (commit ac3b43283923) replaced ``core_layout`` and ``init_layout`` by the array
``mem[]``; which one a kernel has is probed from its types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import (
    MASK,
    BrokenList,
    Layout,
    container_nodes,
    member_offset,
    member_type,
    missing,
    pointed_type,
    size_of,
)
from drgn_reliable.symbols import ModuleSymbols, Named, Symbols, module_symbols

__all__ = ("Module", "ModuleList", "Region")


class Region(NamedTuple):
    """A part of a module's memory."""

    start: int
    end: int
    """One past the last byte."""
    text: bool
    init: bool
    """Freed when the module's initialisation is over."""

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and (address - self.start & MASK) < self.end - self.start


@dataclass(slots=True)
class Module:
    """One ``struct module``."""

    address: int
    name: str
    regions: tuple[Region, ...]
    orc_ip: int
    """Address of its sorted ORC addresses, 0 if it was built without."""
    orc: int
    orc_count: int
    kallsyms: int
    _symbols: ModuleSymbols | None = field(default=None, repr=False)

    def region(self, address: int) -> Region | None:
        """The part of the module that an address lies in; of several, as damage makes them, one
        that is text, as ``__module_text_address()`` has it."""
        found = [region for region in self.regions if address in region]
        return next((region for region in found if region.text), found[0] if found else None)

    def symbol(self, prog: Program, address: int, region: Region) -> Named | None:
        """The module's symbol that an address belongs to, if the dump has its table."""
        if self._symbols is None:
            try:
                self._symbols = module_symbols(prog, self.kallsyms)
            except (FaultError, MissingInformation):
                self._symbols = ModuleSymbols([])
        return self._symbols.at(address, region.start)


class ModuleList:
    """The modules that the kernel would search for an address: all but the unformed.

    :param head: address of ``modules``, their list.
    :param tree: address of ``mod_tree``, which has the bounds of all modules that ever were.

    :attr:`problem` is a line for the reader if the list could not be followed to its end.
    """

    def __init__(self, prog: Program, head: int | None, tree: int | None = None) -> None:
        self._prog = prog
        self._modules: list[Module] = []
        self._bounds = _bounds(prog, tree)
        self.problem: str | None = None
        if head is None:
            return
        address = head
        try:
            for address in container_nodes(prog, head, self._layout.offsets["list"], 1 << 16):
                self._add(address)
        except FaultError as e:
            self.problem = f"modules: structure at {address:#x} {missing(e)}"
        except BrokenList as e:
            self.problem = f"modules: {e}"

    @classmethod
    def of_kernel(cls, prog: Program, symbols: Symbols) -> ModuleList:
        """Those that a kernel has now."""
        return cls(prog, symbols.address("modules"), symbols.address("mod_tree"))

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def containing(self, address: int) -> Module | None:
        """The module whose memory, text or data, holds an address (``__module_address()``)."""
        if not any(low <= address <= high for low, high in self._bounds):
            return None
        return next((m for m in self._modules if m.region(address)), None)

    @cached_property
    def _layout(self) -> Layout:
        return Layout(
            self._prog.type("struct module"),
            {
                "state": "state",
                "list": "list.next",
                "name": "name",
                "kallsyms": "kallsyms",
                "orc_ip": "arch.orc_unwind_ip",
                "orc": "arch.orc_unwind",
                "orc_count": "arch.num_orcs",
            },
            optional={"kallsyms", "orc_ip", "orc", "orc_count"},
            text=("name",),
        )

    @cached_property
    def _unformed(self) -> int:
        return _enumerators(self._prog, "enum module_state")["MODULE_STATE_UNFORMED"]

    def _add(self, address: int) -> None:
        fields = self._layout.read(self._prog, address)
        if fields["state"] == self._unformed:
            return
        self._modules.append(
            Module(
                address,
                fields["name"].split(b"\0")[0].decode("utf-8", "backslashreplace"),
                tuple(self._regions(address)),
                fields["orc_ip"] or 0,
                fields["orc"] or 0,
                fields["orc_count"] or 0,
                fields["kallsyms"] or 0,
            )
        )

    def _regions(self, address: int) -> list[Region]:
        if self._memory_types:
            found = self._regions_by_type(address)
        else:
            found = self._regions_by_layout(address)
        return [region for region in found if region.start < region.end]

    # Linux 6.4 and later: mem[type] ------------------------------------------------------

    @cached_property
    def _memory_types(self) -> dict[int, str]:
        if member_offset(self._prog.type("struct module"), "mem") is None:
            return {}
        names = _enumerators(self._prog, "enum mod_mem_type")
        return {number: name for name, number in names.items() if name.startswith("MOD_")}

    def _regions_by_type(self, address: int) -> list[Region]:
        module = self._prog.type("struct module")
        mem, element = member_type(module, "mem"), pointed_type(module, "mem")
        layout, step = Layout(element, {"base": "base", "size": "size"}), size_of(element)
        first = address + (member_offset(module, "mem") or 0)
        found = []
        for number, name in self._memory_types.items():
            if not 0 <= number < (mem.length or 0):
                continue
            part = layout.read(self._prog, first + number * step)
            found.append(
                Region(
                    part["base"],
                    part["base"] + part["size"],
                    "TEXT" in name,
                    name.startswith("MOD_INIT"),
                )
            )
        return found

    # Linux before 6.4: core_layout and init_layout ----------------------------------------

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        module = self._prog.type("struct module")
        return {
            name: Layout(
                module,
                {
                    "base": f"{name}.base",
                    "size": f"{name}.size",
                    "text_size": f"{name}.text_size",
                },
            )
            for name in ("core_layout", "init_layout")
        }

    def _regions_by_layout(self, address: int) -> list[Region]:
        found = []
        for name, layout in self._layouts.items():
            part = layout.read(self._prog, address)
            base, init = part["base"], name == "init_layout"
            text_end = base + part["text_size"]
            found.append(Region(base, text_end, True, init))
            found.append(Region(text_end, base + part["size"], False, init))
        return found


_ANYWHERE = ((1, MASK),)
"""No module is at 0, wherever the others are."""


def _bounds(prog: Program, tree: int | None) -> tuple[tuple[int, int], ...]:
    """First and last address at which the kernel looks for a module: a module's structure that
    is damaged can claim others. Where the dump does not tell, any but 0."""
    if tree is None:
        return _ANYWHERE
    names = {"low": "addr_min", "high": "addr_max"}
    names |= {f"data_{name}": f"data_{path}" for name, path in names.items()}
    try:
        layout = Layout(prog.type("struct mod_tree_root"), names, {"data_low", "data_high"})
        found = layout.read(prog, tree)
    except (FaultError, LookupError, MissingInformation):
        return _ANYWHERE
    bounds = [(found["low"], found["high"])]
    if found["data_low"] is not None and found["data_high"] is not None:
        bounds.append((found["data_low"], found["data_high"]))
    return tuple((max(low, 1), high) for low, high in bounds)


def _enumerators(prog: Program, name: str) -> dict[str, int]:
    found = prog.type(name).enumerators
    if found is None:
        raise MissingInformation(f"{name} is only declared, not defined, in this kernel's types")
    return {e.name: e.value for e in found}
