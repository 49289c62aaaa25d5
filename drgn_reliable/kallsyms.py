# SPDX-License-Identifier: LGPL-2.1-or-later
"""See that the kernel's table of symbols can be unpacked, before libdrgn unpacks it.

``kallsyms_names`` has for each symbol a length (one byte; since Linux 6.1 two if the top bit of the
first is set) and so many bytes, each of which stands for a string of ``kallsyms_token_table``;
``kallsyms_token_index`` says where the 256 strings are (scripts/kallsyms.c). libdrgn believes all
of it: with a damaged table it would unpack gigabytes, or follow the names through all of memory.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Mapping

from drgn import Program

from drgn_reliable.files.vmcoreinfo import number_in, values_of
from drgn_reliable.memory import MASK, byte_order

__all__ = ("check_kallsyms",)

_TOKENS = 256
_SYMBOL_LIMIT = 1 << 22
"""A kernel with everything has about a million."""
_NAMES_LIMIT = 1 << 28
"""Bytes of all names together, unpacked; some 5 MB are usual."""
_TOKEN_LIMIT = 1 << 10
"""Bytes of a token; a symbol has no more than 511 (``KSYM_NAME_LEN``)."""
_PAGE = 4096
_RELEASE = re.compile(r"\s*(?P<major>[+-]?[0-9]+)(\.\s*(?P<minor>[+-]?[0-9]+))?")
"""What libdrgn takes for the numbers of a release (``strtol()``)."""
_TABLES = ("num_syms", "names", "token_table", "token_index")


def check_kallsyms(prog: Program) -> None:
    """Read the tables to their end, without unpacking them.

    Nothing is checked if VMCOREINFO does not say where they are (Linux before 6.0).

    :raises ValueError: if they are damaged; the message says which, in words.
    :raises DumpError: if VMCOREINFO is.
    :raises drgn.FaultError: if the dump lacks a part of them.
    """
    try:
        text = prog["VMCOREINFO"].string_()
    except KeyError:
        return
    values = values_of(text.decode("ascii", "replace"))
    names = {table: f"SYMBOL(kallsyms_{table})" for table in _TABLES}
    if not all(name in values for name in names.values()):
        return
    at = {table: number_in(values, name, base=16) & MASK for table, name in names.items()}
    count = prog.read_u32(at["num_syms"])
    if count > _SYMBOL_LIMIT:
        raise ValueError(f"kallsyms has {count} symbols; no kernel has so many")
    sizes = _token_sizes(prog, at["token_table"], at["token_index"])
    packed = _packed_names(prog, at["names"], count, _long_names(values))
    if len(packed) * max(sizes) <= _NAMES_LIMIT:
        return
    unpacked = sum(sizes[token] * number for token, number in Counter(packed).items())
    if unpacked > _NAMES_LIMIT:
        raise ValueError(f"the names in kallsyms unpack to {unpacked} bytes; no kernel has so many")


def _token_sizes(prog: Program, table: int, index: int) -> list[int]:
    """Bytes that each token stands for."""
    places = struct.unpack(f"{byte_order(prog)}{_TOKENS}H", prog.read(index, 2 * _TOKENS))
    sizes = []
    pages = _Pages(prog, table)
    for place in places:
        end = pages.find_end(place)
        if end is None:
            raise ValueError(f"a token of kallsyms has more than {_TOKEN_LIMIT} bytes")
        sizes.append(end - place)
    return sizes


def _packed_names(prog: Program, start: int, count: int, long_names: bool) -> bytes:
    """All names as they are stored, without what is behind them."""
    pages = _Pages(prog, start)
    data, at = pages.data, 0
    for _ in range(count):
        if at >= len(data):
            pages.reach(at + 1)
        size = data[at]
        at += 1
        if size & 0x80 and long_names:
            pages.reach(at + 1)
            size = size & 0x7F | data[at] << 7
            at += 1
        at += size
        if at > _NAMES_LIMIT:
            raise ValueError(f"the names in kallsyms have more than {_NAMES_LIMIT} bytes")
    pages.reach(at)
    return bytes(data[:at])


def _long_names(values: Mapping[str, str]) -> bool:
    """Whether a length can have two bytes, which libdrgn goes by the release to know."""
    found = _RELEASE.match(values.get("OSRELEASE", ""))
    return found is not None and (int(found["major"]), int(found["minor"] or 0)) >= (6, 1)


class _Pages:
    """Memory from an address on, of which no page is read before it is needed."""

    def __init__(self, prog: Program, start: int) -> None:
        self._prog = prog
        self._start = start
        self.data = bytearray()

    def reach(self, size: int) -> None:
        """Have at least so many bytes."""
        while len(self.data) < size:
            at = self._start + len(self.data)
            self.data += self._prog.read(at & MASK, _PAGE - at % _PAGE)

    def find_end(self, start: int) -> int | None:
        """Where the string ends that starts there; None if it is too long to be a token."""
        self.reach(start + 1)
        while True:
            end = self.data.find(b"\0", start, start + _TOKEN_LIMIT)
            if end >= 0:
                return end
            if len(self.data) >= start + _TOKEN_LIMIT:
                return None
            self.reach(len(self.data) + 1)
