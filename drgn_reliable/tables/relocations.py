# SPDX-License-Identifier: LGPL-2.1-or-later
"""Relocate the call frame information of an object that was never linked: a kernel module.

Types and what they compute are those of each architecture's ELF supplement, as far as assemblers
use them for call frame information.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from drgn_reliable.memory import MASK
from drgn_reliable.tables.framerule import BadRule

__all__ = ("MACHINES", "Target", "relocate")


class _Rule(NamedTuple):
    """What a type of relocation does."""

    size: int
    """Bytes; 0 is a ULEB128 number, which keeps the bytes that it has."""
    relative: bool = False
    """The value is counted from the place."""
    sign: int = 0
    """1 or -1 if the value is added to or subtracted from what is there."""
    mask: int = MASK
    """The bits of what is there that change."""


_ADDITIONS = {47: 1, 48: 2, 50: 4, 51: 8}
"""loongarch's ``R_LARCH_ADD8`` to ``ADD64``, and bytes; ``SUB8`` to ``SUB64`` are 5 above them."""

MACHINES: Mapping[str, Mapping[int, _Rule | None]] = {
    "EM_X86_64": {
        0: None,
        1: _Rule(8),
        2: _Rule(4, True),
        4: _Rule(4, True),  # PLT32: of a module, the symbol itself
        10: _Rule(4),
        11: _Rule(4),
        24: _Rule(8, True),
    },
    "EM_AARCH64": {
        0: None,
        256: None,
        257: _Rule(8),
        258: _Rule(4),
        260: _Rule(8, True),
        261: _Rule(4, True),
    },
    "EM_S390": {0: None, 4: _Rule(4), 5: _Rule(4, True), 22: _Rule(8), 23: _Rule(8, True)},
    "EM_PPC64": {0: None, 1: _Rule(4), 26: _Rule(4, True), 38: _Rule(8), 44: _Rule(8, True)},
    "EM_LOONGARCH": {
        0: None,
        1: _Rule(4),
        2: _Rule(8),
        99: _Rule(4, True),
        100: None,  # RELAX: what the linker may do, not what it shall write
        109: _Rule(8, True),
        **{kind: _Rule(size, sign=1) for kind, size in _ADDITIONS.items()},
        **{kind + 5: _Rule(size, sign=-1) for kind, size in _ADDITIONS.items()},
        105: _Rule(1, sign=1, mask=0x3F),
        106: _Rule(1, sign=-1, mask=0x3F),
        107: _Rule(0, sign=1),
        108: _Rule(0, sign=-1),
    },
}
"""By ``e_machine`` and ``ELF64_R_TYPE``; None where there is nothing to write."""


class Target(NamedTuple):
    """What a relocation refers to."""

    value: int
    """Its address; an offset in its section if that is not in memory."""
    there: bool
    """It is in memory."""


def relocate(
    data: bytes,
    table: bytes,
    *,
    machine: str,
    target: Callable[[int], Target],
    address: int,
    little_endian: bool,
    name: str,
) -> bytes:
    """A section as it would be in memory.

    What refers to something that is not there becomes 0, the address of nothing.

    :param data: the section.
    :param table: its relocations, of ``Elf64_Rela``.
    :param machine: one of :data:`MACHINES`.
    :param target: what a symbol is, by its number.
    :param address: of the section.
    :param name: of the section, for messages.
    :raises BadRule: if a relocation is of a type that is not known, or makes no sense.
    """
    entry = struct.Struct("<QQq" if little_endian else ">QQq")
    if len(table) % entry.size:
        raise BadRule(f"{name}: its relocations are cut off")
    relocated = bytearray(data)
    for place, info, addend in entry.iter_unpack(table):
        where = f"{name}+{place:#x}"
        kind = info & 0xFFFFFFFF
        if kind not in MACHINES[machine]:
            raise BadRule(f"{where}: relocations of type {kind} are not supported")
        rule = MACHINES[machine][kind]
        if rule is None:
            continue
        size = rule.size or _uleb_size(data, place)
        if not 0 < size <= len(data) - place:
            raise BadRule(f"{where}: a relocation beyond the section")
        value, there = target(info >> 32)
        value += addend
        field = memoryview(relocated)[place : place + size]
        if rule.sign:
            _add(field, rule, rule.sign * value, little_endian)
        elif there:
            value = _checked(value - (address + place) * rule.relative, rule, where)
            field[:] = value.to_bytes(size, "little" if little_endian else "big")
        else:
            field[:] = bytes(size)
    return bytes(relocated)


def _checked(value: int, rule: _Rule, where: str) -> int:
    """A value as the unsigned number of its field; an absolute one may be of either sign."""
    value &= MASK
    bits = 8 * rule.size
    signed = value - (1 << 64) if value >> 63 else value
    if rule.size < 8 and not -(1 << bits - 1) <= signed < 1 << bits - rule.relative:
        raise BadRule(f"{where}: {signed:#x} does not fit {rule.size} bytes")
    return value & (1 << bits) - 1


def _add(field: memoryview, rule: _Rule, value: int, little_endian: bool) -> None:
    """Add to what is there, of which the bits that do not take part stay."""
    if not rule.size:
        old = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(field))
        for i, byte in enumerate(field):
            field[i] = byte & 0x80 | old + value >> 7 * i & 0x7F
        return
    order: Literal["little", "big"] = "little" if little_endian else "big"
    old = int.from_bytes(field, order)
    mask = rule.mask & (1 << 8 * rule.size) - 1
    field[:] = (old & ~mask | old + value & mask).to_bytes(rule.size, order)


def _uleb_size(data: bytes, place: int) -> int:
    """Bytes of the ULEB128 number at a place; 0 if it does not end within ten."""
    number = data[place : place + 10]
    return next((i + 1 for i, byte in enumerate(number) if byte < 0x80), 0)
