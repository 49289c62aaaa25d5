# SPDX-License-Identifier: LGPL-2.1-or-later
"""ELF core files whose headers tell of more, or of the same memory twice, or in any order."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from drgn import FaultError

from drgn_reliable.errors import DumpError
from drgn_reliable.files.elfcore import ElfCore
from drgn_reliable.files.source import DumpFormatError, FileSource
from drgn_reliable.opening import open_dump

PT_LOAD, PT_NOTE = 1, 4
DATA = bytes(range(256)) * 16
"""What follows the headers, at :func:`data_at`."""
MACHINE_X86_64 = 62


def data_at(headers: int) -> int:
    return 64 + 56 * headers


def core(*headers: tuple[int, int, int, int]) -> bytes:
    """A core file.

    :param headers: type, offset in :data:`DATA`, physical address and size in the file.
    """
    start = data_at(len(headers))
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    fields = (4, MACHINE_X86_64, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0)
    rows = [
        struct.pack("<IIQQQQQQ", type_, 7, start + offset, 0, address, size, size, 0)
        for type_, offset, address, size in headers
    ]
    return ident + struct.pack("<HHIQQQIHHHHHH", *fields) + b"".join(rows) + DATA


def opened(tmp_path: Path, *headers: tuple[int, int, int, int]) -> ElfCore:
    path = tmp_path / "core"
    path.write_bytes(core(*headers))
    return ElfCore(FileSource(path.open("rb"), str(path)))


LOADED = {
    "in order": ([(0, 0x1000, 0x100), (0x100, 0x2000, 0x80)], [(0x1000, 0x1100), (0x2000, 0x2080)]),
    "in another order": (
        [(0x100, 0x2000, 0x80), (0, 0x1000, 0x100)],
        [(0x1000, 0x1100), (0x2000, 0x2080)],
    ),
    "the kernel's image twice": (
        [(0x100, 0x1100, 0x80), (0, 0x1000, 0x400)],
        [(0x1000, 0x1400)],
    ),
    "overlapping": (
        [(0, 0x1000, 0x100), (0x80, 0x1080, 0x100)],
        [(0x1000, 0x1100), (0x1100, 0x1180)],
    ),
    "cut off": ([(0xF00, 0x1000, 0x400)], [(0x1000, 0x1100)]),
    "cut off, and whole elsewhere": (
        [(0, 0x1000, 0x400), (0xF80, 0x1000, 0x400)],
        [(0x1000, 0x1400)],
    ),
    "beyond the file": ([(0x10000, 0x1000, 0x100)], []),
    "beyond all files": ([(1 << 63, 0x1000, 0x100)], []),
    "empty": ([(0, 0x1000, 0)], []),
    "more than there is": ([(0, 0, 1 << 52)], [(0, 0x1000)]),
    "none": ([], []),
}  # fmt: skip


@pytest.mark.parametrize(("headers", "ranges"), LOADED.values(), ids=LOADED)
def test_memory_is_what_the_file_has(
    tmp_path: Path, headers: list[tuple[int, int, int]], ranges: list[tuple[int, int]]
) -> None:
    """Each byte of each range is read as the header has it that covers it, and nothing else is."""
    file = opened(tmp_path, *((PT_LOAD, *header) for header in headers))
    assert list(file.ranges()) == ranges
    assert file.memory_size == sum(end - start for start, end in ranges)
    for start, end in ranges:
        for address in (start, (start + end) // 2, end - 1):
            expected = {
                DATA[offset + address - base]
                for offset, base, size in headers
                if base <= address < base + size and offset + address - base < len(DATA)
            }
            assert set(file.read_physical(address, 1)) <= expected
        for outside in (start - 1, end):
            if outside >= 0 and not any(a <= outside < b for a, b in ranges):
                with pytest.raises(FaultError):
                    file.read_physical(outside, 1)
    if ranges:
        first, last = ranges[0]
        assert len(file.read_physical(first, last - first)) == last - first


def test_a_file_that_is_too_short_says_so(tmp_path: Path) -> None:
    """With where it would end by its headers."""
    file = opened(tmp_path, (PT_LOAD, 0xF00, 0x1000, 0x400))
    assert file.flaws() == [
        f"cut off at {data_at(1) + len(DATA)} bytes of {data_at(1) + 0xF00 + 0x400}"
    ]
    assert opened(tmp_path, (PT_LOAD, 0, 0x1000, 0x400)).flaws() == []


def test_gigabytes_of_notes_are_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    file = opened(tmp_path, (PT_NOTE, 0, 0, 1 << 30))
    with pytest.raises(DumpFormatError, match="1073741824 bytes of notes; no dump has so many"):
        _ = file.notes


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(PT_LOAD, 0, 0, 1 << 52)], id="four pebibytes"),
        pytest.param([(PT_LOAD, 0, i << 12, 4096) for i in range(60_000)], id="60,000 segments"),
    ],
)
def test_headers_that_lie_cost_nothing(
    tmp_path: Path, headers: list[tuple[int, int, int, int]]
) -> None:
    """VMCOREINFO is looked for in what is there; found by fuzzing as minutes and more."""
    path = tmp_path / "core"
    path.write_bytes(core(*headers))
    with pytest.raises(DumpError, match="without VMCOREINFO in its notes or memory"):
        open_dump(str(path))
