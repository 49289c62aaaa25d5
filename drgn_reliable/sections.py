# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the sections of a loaded module lie.

The kernel keeps the addresses for /sys/module/NAME/sections (``kernel/module/sysfs.c``): a group
of binary attributes, one for each section that takes memory. Linux before 6.14 has the address
beside the attribute, in ``struct module_sect_attr``; since then it is the attribute's
``private``. Which, is probed from the types.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import MASK, Layout, member_offset, pointed_type
from drgn_reliable.modules import Module

__all__ = ("ModuleSections", "module_sections")

_SECTION_LIMIT = 1 << 16
"""Sections: an ELF file's header counts no more."""

_NAME_LIMIT = 4096
"""Bytes of a section's name that are read at most."""


def module_sections(prog: Program, module_address: int) -> dict[str, int]:
    """The addresses of a module's loaded sections, by their names.

    Those of its initialisation (``.init.text``) are still named when their memory has been
    freed. A kernel without ``CONFIG_SYSFS`` or ``CONFIG_KALLSYMS`` keeps none.

    :param module_address: of its ``struct module``.
    :raises MissingInformation: if the kernel's types do not say where they are kept.
    :raises drgn.FaultError: if the dump lacks the memory.
    """
    module = prog.type("struct module")
    offset = member_offset(module, "sect_attrs")
    if offset is None:
        return {}
    attributes = prog.read_word(module_address + offset & MASK)
    if not attributes:
        return {}
    read = _reader(prog)
    found: dict[str, int] = {}
    for attribute in _attributes(prog, attributes):
        name, address = read(attribute)
        found.setdefault(name, address)
    return found


class ModuleSections:
    """The names of modules' sections by address; none where the dump does not tell."""

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
            sections = module_sections(self._prog, module)
        except (FaultError, LookupError, MissingInformation):
            return []
        return sorted((address, name) for name, address in sections.items())


def _attributes(prog: Program, attributes: int) -> Iterator[int]:
    """The addresses of a group's binary attributes."""
    group = Layout(
        prog.type("struct module_sect_attrs"),
        {"first": ("grp.bin_attrs", "grp.bin_attrs_new")},
    )
    entry = group.read(prog, attributes)["first"]
    for _ in range(_SECTION_LIMIT if entry else 0):
        attribute = prog.read_word(entry & MASK)
        if not attribute:
            return
        yield attribute
        entry += 8


def _reader(prog: Program) -> Callable[[int], tuple[str, int]]:
    """What gives the name and the address of a section by its attribute."""
    binary = prog.type("struct bin_attribute")
    within = 0
    type_ = pointed_type(prog.type("struct module_sect_attrs"), "attrs")
    if member_offset(type_, "battr") is not None:
        within = member_offset(type_, "battr") or 0
        members = {"name": "battr.attr.name", "address": "address"}
    else:
        type_ = binary
        members = {"name": "attr.name", "address": "private"}
    layout = Layout(type_, members)

    def read(attribute: int) -> tuple[str, int]:
        fields = layout.read(prog, attribute - within)
        name = prog.read_c_string(fields["name"], max_size=_NAME_LIMIT)
        return name.decode("utf-8", "backslashreplace"), fields["address"]

    return read
