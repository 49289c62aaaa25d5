# SPDX-License-Identifier: LGPL-2.1-or-later
"""The SFrame sections of a dump's kernel and of its modules, read from its memory.

No released kernel (7.3) has any. The names are those of the arm64 series in flight: its first
versions bound the kernel's section by ``__start_sframe_header`` and ``__stop_sframe_header``, v5
and v6 by ``__start_sframe`` and ``__end_sframe``; all keep a ``struct sframe_section`` in a
module's ``arch``. Other kernels may still load a module that was built with a section.

From what the addresses of functions are counted, version 2 does not say reliably: binutils 2.44
writes them relative to each entry, without the flag that came later, and only its linker makes
them relative to the section. A module is not linked so; which it is, the kernel's symbols tell.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from drgn import FaultError, Program

from drgn_reliable.memory import MASK, byte_order, member_offset
from drgn_reliable.sections import module_sections
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.framerule import BadRule
from drgn_reliable.tables.sframe import HEADER_SIZE, SFrameSection, section_size

__all__ = ("kernel_sframe", "module_sframe")

_LARGEST = 1 << 28
"""Bytes. A kernel's section takes a few million; more is a corrupt size."""


_SAMPLE = 64
"""Functions that are compared with symbols."""

IsFunction = Callable[[int], bool | None]


def kernel_sframe(prog: Program, symbols: Symbols, is_function: IsFunction) -> SFrameSection | None:
    """The core kernel's section, None if it has none.

    :param is_function: whether a function begins at an address; None where nothing tells, as of
        init text that was freed.
    :raises BadRule: if it makes no sense.
    :raises drgn.FaultError: if the dump lacks it.
    """
    start = symbols.first("__start_sframe", "__start_sframe_header")
    end = symbols.first("__end_sframe", "__stop_sframe_header")
    if start is None or end is None or start == end:
        return None
    return _section(prog, start, end - start, is_function)


def module_sframe(
    prog: Program, module_address: int, is_function: IsFunction
) -> SFrameSection | None:
    """A module's section, None if it has none.

    :param module_address: of its ``struct module``.
    :param is_function: whether a function begins at an address; None where nothing tells, as of
        init text that was freed.
    :raises BadRule: if it makes no sense.
    :raises drgn.FaultError: if the dump lacks it.
    """
    module = prog.type("struct module")
    bounds = [
        member_offset(module, f"arch.sframe_sec.{name}") for name in ("sframe_start", "sframe_end")
    ]
    start, end = [
        prog.read_word(module_address + offset & MASK) if offset is not None else 0
        for offset in bounds
    ]
    if start:
        return _section(prog, start, end - start, is_function)
    try:
        address = module_sections(prog, module_address).get(".sframe")
    except FaultError:  # the dump does not tell whether it has one
        return None
    return None if address is None else _section(prog, address, None, is_function)


def _section(
    prog: Program, address: int, size: int | None, is_function: IsFunction
) -> SFrameSection:
    """The section at an address, as large as its own header says if nothing else does."""
    little_endian = byte_order(prog) == "<"
    if size is None:
        header = prog.read(address, HEADER_SIZE)
        size = section_size(header, little_endian) or HEADER_SIZE
    if not 0 < size <= _LARGEST:
        raise BadRule(f"SFrame at {address:#x}: a size of {size} bytes")
    data = prog.read(address, size)
    for from_entries in (True, False):
        section = SFrameSection(
            data, address=address, little_endian=little_endian, from_entries=from_entries
        )
        answers = {is_function(start) for start, _ in islice(section.functions(), _SAMPLE)}
        if answers - {None} == {True}:
            return section
    raise BadRule(f"SFrame at {address:#x}: its functions do not begin where the symbols do")
