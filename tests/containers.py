# SPDX-License-Identifier: LGPL-2.1-or-later
"""Store a dump in other ways: what tools write that cannot be run here."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

PAGE_SIZE = 4096
_DESCRIPTOR = struct.Struct("<QIIQ")
_RECORD = struct.Struct(">qq")


def flattened(data: bytes, *, seed: int = 1, end: bool = True) -> bytes:
    """As ``makedumpfile -F``: pieces in any order, the header written twice."""
    chance = random.Random(seed)
    cuts = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(400))})
    pieces = list(pairwise(cuts))
    chance.shuffle(pieces)
    stream = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    parts = [stream.ljust(4096, b"\0"), _RECORD.pack(0, 464), bytes(464)]
    for start, stop in pieces:
        parts += (_RECORD.pack(start, stop - start), data[start:stop])
    parts += (_RECORD.pack(0, 464), data[:464])
    if end:
        parts.append(_RECORD.pack(-1, -1))
    return b"".join(parts)


def without_release(data: bytes) -> bytes:
    """A kdump-compressed file as QEMU writes it: of utsname it fills in only the machine."""
    machine = data[12 + 4 * 65 : 12 + 5 * 65]
    return data[:12] + bytes(4 * 65) + machine + bytes(65) + data[12 + 6 * 65 :]


def pages_of(data: bytes) -> dict[int, bytes]:
    """The page descriptors' raw data by page frame number."""
    _, sub_blocks, bitmap_blocks = struct.unpack_from("<iii", data, 428)
    at = (1 + sub_blocks) * PAGE_SIZE
    size = bitmap_blocks * PAGE_SIZE // 2
    bitmap = data[at + size : at + 2 * size]
    at += 2 * size
    found = {}
    for number in range(8 * size):
        if bitmap[number >> 3] >> (number & 7) & 1:
            found[number] = data[at : at + _DESCRIPTOR.size]
            at += _DESCRIPTOR.size
    return found


def recompressed(data: bytes, flag: int, pack: Callable[[bytes], bytes], unpack: Callable) -> bytes:
    """The same kdump-compressed file with its zlib pages packed in another way."""
    descriptors = pages_of(data)
    _, sub_blocks, bitmap_blocks = struct.unpack_from("<iii", data, 428)
    table_at = (1 + sub_blocks + bitmap_blocks) * PAGE_SIZE
    table, blobs = [], []
    at = table_at + _DESCRIPTOR.size * len(descriptors)
    for raw in descriptors.values():
        offset, size, flags, _ = _DESCRIPTOR.unpack(raw)
        blob = data[offset : offset + size]
        if flags:
            blob, flags = pack(unpack(blob)), flag
        table.append(_DESCRIPTOR.pack(at, len(blob), flags, 0))
        blobs.append(blob)
        at += len(blob)
    head = bytearray(data[:table_at])
    struct.pack_into("<I", head, 424, flag)
    return b"".join((bytes(head), *table, *blobs))


def elf_core(
    notes: bytes, pages: dict[int, bytes], machine: int = 62, order: Literal["<", ">"] = "<"
) -> bytes:
    """An ELF core file, of x86_64 if nothing is said, with a segment for each run of pages."""
    runs: list[tuple[int, list[bytes]]] = []
    for number, page in sorted(pages.items()):
        if runs and number == runs[-1][0] + len(runs[-1][1]):
            runs[-1][1].append(page)
        else:
            runs.append((number, [page]))
    count = 1 + len(runs)
    offset = 64 + 56 * count
    ident = b"\x7fELF" + bytes((2, "<>".index(order) + 1, 1)) + bytes(9)
    header = struct.pack(
        order + "HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
    )
    size = len(notes)
    table = [struct.pack(order + "IIQQQQQQ", 4, 0, offset, 0, 0, size, size, 4)]
    contents = [notes]
    for number, run in runs:
        offset += size
        size = len(run) * PAGE_SIZE
        address = number * PAGE_SIZE
        table.append(struct.pack(order + "IIQQQQQQ", 1, 7, offset, 0, address, size, size, 0))
        contents += run
    return b"".join((ident, header, *table, *contents))
