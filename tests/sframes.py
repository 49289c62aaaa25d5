# SPDX-License-Identifier: LGPL-2.1-or-later
"""SFrame sections encoded by hand, after the specification of binutils 2.47.

>>> one = section([function(0x1000, 16, ["00 03 10"])], version=2, abi=2)
>>> len(one), one[:4].hex()
(51, 'e2de0205')
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

AARCH64_BIG, AARCH64, AMD64, S390X = 1, 2, 3, 4
SORTED, PC_RELATIVE = 1, 4
MASKED, KEY_B, SIGNAL = 0x10, 0x20, 0x80
FLEXIBLE = 1
MASK = (1 << 64) - 1


class Function(NamedTuple):
    start: int  # from the section
    size: int
    rows: bytes
    count: int
    info: int
    kind: int
    repeat: int


def function(
    start: int,
    size: int,
    rows: Sequence[str],
    *,
    info: int = 0,
    kind: int = 0,
    repeat: int = 0,
    count: int | None = None,
) -> Function:
    """A function, its rows in hexadecimal digits.

    :param count: of rows, if it is not true.
    :param kind: of function (version 3): default or flexible.
    """
    data = bytes.fromhex(" ".join(rows))
    return Function(start, size, data, len(rows) if count is None else count, info, kind, repeat)


def section(
    functions: Sequence[Function],
    *,
    version: int = 3,
    abi: int = AARCH64,
    flags: int = SORTED | PC_RELATIVE,
    fixed_fp: int = 0,
    fixed_ra: int | None = None,
    extension: bytes = b"",
    little_endian: bool | None = None,
) -> bytes:
    """A section of these functions.

    :param little_endian: if it is not what the ABI says.
    """
    if little_endian is None:
        little_endian = abi in (AARCH64, AMD64)
    if fixed_ra is None:
        fixed_ra = -8 if abi == AMD64 else 0
    order = "<" if little_endian else ">"
    entry_size = 20 if version == 2 else 16
    entries, rows = b"", b""
    for number, item in enumerate(functions):
        at = 28 + len(extension) + number * entry_size if flags & PC_RELATIVE else 0
        start = item.start - at
        if version == 2:
            entries += struct.pack(
                f"{order}iIIIBBH",
                *(start, item.size, len(rows), item.count, item.info, item.repeat, 0),
            )
        else:
            entries += struct.pack(f"{order}qII", start, item.size, len(rows))
            rows += struct.pack(f"{order}HBBB", item.count, item.info, item.kind, item.repeat)
        rows += item.rows
    count = sum(item.count for item in functions)
    header = struct.pack(
        f"{order}HBBBbbB5I",
        *(0xDEE2, version, flags, abi, fixed_fp, fixed_ra, len(extension)),
        *(len(functions), count, len(rows), 0, len(entries)),
    )
    return header + extension + entries + rows
