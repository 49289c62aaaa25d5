# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that kill, hang or fill the process of a reader that believes them.

Each row was found by fuzzing: a signal in libkdumpfile, a traceback, or minutes and gigabytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import zstandard

from drgn_reliable import cli
from drgn_reliable.errors import DumpError, MissingInformation
from drgn_reliable.files import packed, vmcoreinfo
from drgn_reliable.files.elfcore import ElfCore
from drgn_reliable.files.flattened import FlattenedSource
from drgn_reliable.files.kdump import KdumpFile
from drgn_reliable.files.notes import pack_note
from drgn_reliable.files.packed import unwatched
from drgn_reliable.files.source import FileSource
from drgn_reliable.kernel import Kernel
from drgn_reliable.opening import inspect_dump, open_dump
from drgn_reliable.report import Scanner
from tests.conftest import Scanned
from tests.containers import elf_core
from tests.dumps import DUMP_6_1
from tests.test_damage import Damage, damaged, overwrite

PAGE = 4096
MIB = 1 << 20


@cache
def original() -> bytes:
    return DUMP_6_1.path.read_bytes()


@cache
def kdump() -> KdumpFile:
    return KdumpFile(FileSource(DUMP_6_1.path.open("rb"), "original"))


def edited(at: int, form: str, *values: int) -> bytes:
    """The dump with other numbers at a place."""
    data = bytearray(original())
    struct.pack_into(form, data, at, *values)
    return bytes(data)


def renamed(old: bytes, new: bytes) -> bytes:
    """The dump with other words of the same length in its VMCOREINFO."""
    assert len(old) == len(new) and original().count(old) >= 1
    return original().replace(old, new)


# What libkdumpfile dies of, or may --------------------------------------------------------------

DESCRIPTORS = kdump()._descriptors_at
LAST_PAGE = DESCRIPTORS + 24 * (kdump()._rank[-1] - 1)
"""Its descriptor: offset, size, flags."""
ERASED = PAGE + 64
"""Offset and size of the erase information in the sub header."""
BEYOND = "incomplete dump: damaged: 1 of its pages would lie beyond its end"

ODD: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "a name begins with a dot": (lambda: renamed(b"\nBUILD-ID=", b"\n.UILD-ID="), ()),
    "a name is nothing": (lambda: renamed(b"SIZE(nodemask_t)=", b"SIZE()=\nnodemask="), ()),
    "a name is within another": (
        lambda: renamed(b"OFFSET(list_head.prev)", b"OFFSET(list_head)=0\nA="),
        (),
    ),
    "a line has no value": (lambda: renamed(b"\nBUILD-ID=", b"\nBUILD-ID:"), ()),
    "two page sizes": (lambda: renamed(b"PAGESIZE=4096", b"PAGESIZE=8192"), ()),
    "erase information beyond the file": (lambda: edited(ERASED, "<QQ", 0, 1 << 30), ()),
    "erase information beyond all files": (lambda: edited(ERASED, "<QQ", MAX, MAX), ()),
    "a page beyond the file": (lambda: edited(LAST_PAGE, "<Q", 1 << 40), (BEYOND,)),
    "a page beyond all files": (lambda: edited(LAST_PAGE, "<Q", MAX), (BEYOND,)),
    "a page larger than the file": (lambda: edited(LAST_PAGE + 8, "<I", 1 << 31), (BEYOND,)),
}
MAX = (1 << 64) - 1


@pytest.mark.parametrize("way", ODD)
def test_what_is_odd_about_a_kdump_file_goes_to_our_own_reader(
    tmp_path: Path, scanned_6_1: Scanned, way: str
) -> None:
    """And its tasks have the verdicts of the file as it was."""
    make, problems = ODD[way]
    path = tmp_path / "vmcore"
    path.write_bytes(make())
    dump = inspect_dump(str(path))
    assert isinstance(dump.file, KdumpFile) and (dump.file.kills_library or dump.problems)
    scanner = Scanner(Kernel(open_dump(str(path))))
    reports = set(scanner.reports(scanner.kernel.tasks))
    assert len(set(scanned_6_1.reports) - reports) <= len(problems)  # a page has one task's stack
    assert scanner.kernel.problems == list(problems)


def test_a_file_that_is_as_makedumpfile_writes_it_goes_to_drgn() -> None:
    assert not kdump().kills_library
    assert kdump().flaws() == []


# ELF --------------------------------------------------------------------------------------------


def test_a_segment_beyond_all_files_is_a_hole(tmp_path: Path, scanned_6_1: Scanned) -> None:
    """Reading it was an OSError in the middle of a scan (a file offset of 2^63 and more)."""
    file = kdump()
    pages = {n: file.page(n) for n in range(file.header.max_pfn) if file._has(n)}
    data = bytearray(elf_core(file.notes, pages))
    last = 64 + 56 * (struct.unpack_from("<H", data, 56)[0] - 1)
    offset = struct.unpack_from("<Q", data, last + 8)[0]
    struct.pack_into("<Q", data, last + 8, offset | 1 << 63)
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    scanner = Scanner(Kernel(open_dump(str(path))))
    reports = set(scanner.reports(scanner.kernel.tasks))
    assert len(set(scanned_6_1.reports) - reports) == 1
    assert scanner.kernel.problems[0] == (
        "incomplete dump: damaged: its headers tell of memory beyond the end of any file"
    )


# Holes ------------------------------------------------------------------------------------------

TIB = 1 << 40
TEXT = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
NOTE = pack_note("VMCOREINFO", 0, TEXT)


def elf(*segments: tuple[int, int, int]) -> bytes:
    """Headers of a core file of x86_64; a segment is an offset, a physical address and a size."""
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    fields = (4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    rows = [struct.pack("<IIQQQQQQ", 1, 7, at, 0, to, size, size, 0) for at, to, size in segments]
    return ident + struct.pack("<HHIQQQIHHHHHH", *fields) + b"".join(rows)


def flat(*records: tuple[int, bytes]) -> bytes:
    """A flattened file of records: an offset and what belongs there."""
    head = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    parts = [struct.pack(">qq", at, len(data)) + data for at, data in (*records, (-1, b""))]
    parts[-1] = struct.pack(">qq", -1, -1)
    return head.ljust(PAGE, b"\0") + b"".join(parts)


def sparse(path: Path, size: int, *records: tuple[int, bytes]) -> None:
    """A file of some size with data at some offsets, and holes between them."""
    with path.open("wb") as file:
        for at, data in records:
            file.seek(at)
            file.write(data)
        file.truncate(size)


HEADERS = elf((PAGE, 0, 7 * TIB))
AT = 5 * TIB
"""Where the note is in memory; in the file, a page later."""


def test_vmcoreinfo_is_found_between_holes(tmp_path: Path) -> None:
    """In 7 TiB of which a few bytes are stored: no hole is read."""
    path = tmp_path / "vmcore"
    path.write_bytes(flat((0, HEADERS), (PAGE + AT, NOTE[:15]), (PAGE + AT + 15, NOTE[15:])))
    flattened = ElfCore(FlattenedSource(FileSource(path.open("rb"), "flat")))
    assert flattened.memory_size == AT + len(NOTE)
    sparse(tmp_path / "sparse", PAGE + 7 * TIB, (0, HEADERS), (PAGE + AT, NOTE))
    whole = ElfCore(FileSource((tmp_path / "sparse").open("rb"), "sparse"))
    assert whole.memory_size == 7 * TIB
    for core in (flattened, whole):
        found = vmcoreinfo.find_in_memory(core, unwatched)
        assert found == vmcoreinfo.Vmcoreinfo(TEXT.decode(), True)
        assert sum(end - start for start, end in core.stored()) < 4 * MIB


STORED: dict[str, tuple[list[tuple[int, int, int]], list[tuple[int, int]]]] = {
    "one segment": ([(0x1000, 0x5000, 0x3000)], [(0x5000, 0x8000)]),
    "the same bytes twice": (
        [(0x1000, 0x5000, 0x3000), (0x2000, 0x9000, 0x4000)],
        [(0x5000, 0x8000), (0xB000, 0xD000)],
    ),
    "the same bytes 1,000 times": (
        [(0x1000, n * 0x3000, 0x3000) for n in range(1000)],
        [(0, 0x3000)],
    ),
    "a segment that begins within a page": ([(0x1800, 0x5800, 0x900)], [(0x5800, 0x6100)]),
}  # fmt: skip


@pytest.mark.parametrize(("segments", "ranges"), STORED.values(), ids=STORED)
def test_no_byte_of_a_file_is_searched_twice(
    tmp_path: Path, segments: list[tuple[int, int, int]], ranges: list[tuple[int, int]]
) -> None:
    path = tmp_path / "vmcore"
    headers = elf(*segments)
    shift = -(-len(headers) // PAGE) * PAGE  # behind the headers
    moved = [(offset + shift, *rest) for offset, *rest in segments]
    path.write_bytes(elf(*moved).ljust(shift, b"\1") + b"\1" * 0x8000)
    core = ElfCore(FileSource(path.open("rb"), "core"))
    assert list(core.stored()) == ranges


# Packed -----------------------------------------------------------------------------------------


def greedy_xz() -> bytes:
    """132 bytes that take a decoder of 4 GiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(bytes(1 << 16), check=lzma.CHECK_NONE, filters=filters))
    data[16] = 40
    data[20:24] = struct.pack("<I", zlib.crc32(data[12:20]))
    return bytes(data)


TOO_LARGE = "of more than 16 MiB when unpacked, which no dump of its size has"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "gz": (lambda: gzip.compress(bytes(20 * MIB)), f"gzip, {TOO_LARGE}"),
    "xz": (lambda: lzma.compress(bytes(20 * MIB), preset=0), f"xz, {TOO_LARGE}"),
    "bz2": (lambda: bz2.compress(bytes(5 * MIB)) * 4, f"bzip2, {TOO_LARGE}"),
    "zst": (lambda: zstandard.compress(bytes(20 * MIB)), f"zstd, {TOO_LARGE}"),
    "zst, many frames": (lambda: zstandard.compress(bytes(5 * MIB)) * 4, f"zstd, {TOO_LARGE}"),
    "xz, with a decoder of 4 GiB": (greedy_xz, "xz, more than 256 MiB of memory are needed"),
}


@pytest.mark.parametrize("way", BOMBS)
def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Zeroes cost no room on the disk, but time: 20 MiB stand for what takes hours."""
    make, message = BOMBS[way]
    monkeypatch.setattr(packed, "_SURE_SIZE", 16 * MIB)
    monkeypatch.setattr(packed, "_RATIO", 1)
    path = tmp_path / "vmcore"
    path.write_bytes(make())
    with pytest.raises(DumpError, match=message) as raised:
        open_dump(str(path))
    assert "unpack it by hand" in str(raised.value)


def test_an_xz_file_of_several_streams_is_unpacked_whole(tmp_path: Path) -> None:
    """As ``xz -T`` and ``cat`` make them: padded, and cut anywhere by the size of a read."""
    parts = [bytes(300_000), b"dump" * 100_000, b"x"]
    data = b"".join(lzma.compress(part) + bytes(4 * i) for i, part in enumerate(parts))
    path = tmp_path / "vmcore.xz"
    path.write_bytes(data)
    packing = packed.packing_of(data)
    assert packing is not None
    with path.open("rb") as file:
        unpacked = packed.unpack(file, "vmcore.xz", packing)
    unpacked.seek(0)
    assert unpacked.read() == b"".join(parts)


# kallsyms ---------------------------------------------------------------------------------------

TOKENS = 256
Tables = dict[str, int]


def many_symbols(at: Tables) -> list[Damage]:
    return [overwrite(at["num_syms"], struct.pack("<I", MAX >> 32))]


def endless_token(at: Tables) -> list[Damage]:
    table = overwrite(at["token_table"], b"A" * 1500)
    return [table, overwrite(at["token_index"], b"\1" * 2 * TOKENS)]  # in its midst


def long_tokens(at: Tables) -> list[Damage]:
    table = overwrite(at["token_table"], b"A" * 700 + b"\0")
    return [table, overwrite(at["token_index"], bytes(2 * TOKENS))]


def endless_names(at: Tables) -> list[Damage]:
    return [overwrite(at["names"], b"\xff\x7f" * 2000)]


def length_on_two_pages(at: Tables) -> list[Damage]:
    """The first of its two bytes is the last of a page that no name before it is in."""
    start = at["names"]
    first = (-start & 0xFFF) + 0x1000 - 3  # behind its own length; the page before is skipped
    return [
        overwrite(start, bytes((first & 0x7F | 0x80, first >> 7))),
        overwrite(start + 2 + first, b"\xff\x7f"),
    ]


KALLSYMS: dict[str, tuple[Callable[[Tables], list[Damage]], str]] = {
    "4 G symbols": (many_symbols, "kallsyms has 4294967295 symbols; no kernel has so many"),
    "a token without an end": (endless_token, "a token of kallsyms has more than 1024 bytes"),
    "tokens of 700 bytes": (long_tokens, r"the names in kallsyms unpack to \d{9} bytes"),
    "names of 16,383 tokens": (endless_names, "cannot be used"),
    "a length on two pages": (length_on_two_pages, "cannot be used"),
}


@pytest.mark.parametrize("way", KALLSYMS)
def test_damaged_kallsyms_are_not_unpacked(scanned_6_1: Scanned, way: str) -> None:
    """libdrgn would take gigabytes for them."""
    damage, message = KALLSYMS[way]
    values = scanned_6_1.kernel.vmcoreinfo
    tables = ("num_syms", "names", "token_table", "token_index")
    at = {name: int(values[f"SYMBOL(kallsyms_{name})"], 16) for name in tables}
    with pytest.raises(MissingInformation, match=message) as raised:
        Kernel(damaged(*damage(at)))
    assert "name the kernel's vmlinux with --symbols" in str(raised.value)


# The command line -------------------------------------------------------------------------------

ENDS: dict[str, tuple[Exception, int, str]] = {
    "no more memory": (MemoryError(), 3, "takes more memory than this process may have"),
    "a disk that fails": (OSError(5, "Input/output error"), 3, "(Input/output error)"),
}


@pytest.mark.parametrize("way", ENDS)
def test_what_no_reader_can_help_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """It names the dump, and the status is that of a dump that cannot be read."""
    error, status, message = ENDS[way]

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(cli, "open_target", fail)
    assert cli.main(["scan", "the-dump"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("drgn-reliable: the-dump: ") and message in line
