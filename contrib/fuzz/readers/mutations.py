# SPDX-License-Identifier: LGPL-2.1-or-later
"""Seeded changes to bytes, for runs without atheris and for what must stay sound to get far."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

__all__ = ("mutated", "set_field", "with_head")

_NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 64, 127, 128, 255, 256, 4095, 4096, 32767, 32768, 65535,
    1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 52, (1 << 63) - 1,
    1 << 63, (1 << 64) - 1, (1 << 64) - 4096,
)  # fmt: skip
"""What readers compare with, or are surprised by."""


def set_field(data: bytes, at: int, size: int, chance: random.Random, order: str = "<") -> bytes:
    """Another number in a field."""
    if at + size > len(data):
        return data
    old = int.from_bytes(data[at : at + size], "little" if order == "<" else "big")
    value = chance.choice(
        (chance.choice(_NUMBERS), chance.getrandbits(8 * size), old + chance.randint(-9, 9))
    )
    field = struct.pack(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[size], value % (1 << 8 * size))
    return data[:at] + field + data[at + size :]


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :]


def _number(data: bytes, chance: random.Random) -> bytes:
    size = chance.choice((1, 2, 4, 8))
    at = chance.randrange(max(1, len(data) - size)) // size * size
    return set_field(data, at, size, chance, chance.choice("<>"))


def _drop(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.choice((1, 4, 8, chance.randrange(1, 100))) :]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.choice((1, 4, 8, chance.randrange(1, 100)))
    return data[: at + size] + data[at : at + size] * chance.choice((1, 1, 3)) + data[at + size :]


def _move(data: bytes, chance: random.Random) -> bytes:
    size = chance.choice((4, 8, 12, chance.randrange(1, 64)))
    old, new = chance.randrange(len(data)), chance.randrange(len(data))
    return data[:new] + data[old : old + size] + data[new + size :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


_WAYS: Sequence[Callable[[bytes, random.Random], bytes]] = (
    (_flip,) * 4 + (_number,) * 6 + (_drop, _repeat, _move, _cut)
)


def mutated(data: bytes, chance: random.Random, largest: int = 1 << 16) -> bytes:
    """The bytes with one to a few changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 10))):
        if data:
            data = chance.choice(_WAYS)(data, chance)
    return data[:largest]


def with_head(size: int) -> Callable[[bytes, random.Random], bytes]:
    """Changes that mostly leave the first bytes as they are: the header without which nothing is
    read."""

    def change(data: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.2:
            return mutated(data, chance)
        return data[:size] + mutated(data[size:], chance)

    return change
