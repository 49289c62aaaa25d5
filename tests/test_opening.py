# SPDX-License-Identifier: LGPL-2.1-or-later
"""One dump, stored in every way that there is, gives one and the same report."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import BinaryIO

import cramjam
import pytest
import zstandard
from drgn import FaultError
from lzallright import LZOCompressor

from drgn_reliable import DumpError, Kernel, Scanner, UsageError, open_dump, scan
from drgn_reliable.capsule import write_capsule
from drgn_reliable.files import foreign, packed
from drgn_reliable.files.flattened import FlattenedSource
from drgn_reliable.files.notes import drop_notes, find_vmcoreinfo, pack_note
from drgn_reliable.files.source import FileSource
from drgn_reliable.opening import opened_dump
from tests.containers import (
    PAGE_SIZE,
    elf_core,
    flattened,
    pages_of,
    recompressed,
    without_release,
)
from tests.dumps import DUMP_6_1
from tests.reports import reported

ORIGINAL = DUMP_6_1.path
STATUS_AT, SPLIT_AT, END_AT = 424, PAGE_SIZE + 12, PAGE_SIZE + 88
INCOMPLETE = 0x8


@cache
def original() -> bytes:
    return ORIGINAL.read_bytes()


@cache
def as_elf() -> bytes:
    dump = opened_dump(open_dump(str(ORIGINAL)))
    assert dump is not None
    pages = {
        number: dump.file.read_physical(number * PAGE_SIZE, PAGE_SIZE)
        for number in pages_of(original())
    }
    return elf_core(dump.notes, pages)


def lzo(page: bytes) -> bytes:
    return LZOCompressor().compress(page)


def snappy(page: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(page))


def zstd(page: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(page)


def streamed_zstd(data: bytes) -> bytes:
    """Without its size in the header, as from a pipe, and in two frames."""
    half = len(data) // 2
    frames = []
    for part in (data[:half], data[half:]):
        packer = zstandard.ZstdCompressor().compressobj()
        frames.append(packer.compress(part) + packer.flush())
    return b"".join(frames)


STORED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zlib": (original, "kdump-compressed"),
    "lzo": (lambda: recompressed(original(), 0x2, lzo, zlib.decompress), "kdump-compressed"),
    "snappy": (lambda: recompressed(original(), 0x4, snappy, zlib.decompress), "kdump-compressed"),
    "zstd": (lambda: recompressed(original(), 0x20, zstd, zlib.decompress), "kdump-compressed"),
    "ELF": (as_elf, "ELF"),
    "flattened": (lambda: flattened(original()), "kdump-compressed, flattened"),
    "flattened ELF": (lambda: flattened(as_elf()), "ELF, flattened"),
    "QEMU": (lambda: without_release(original()), "kdump-compressed"),
    "QEMU, flattened": (
        lambda: flattened(without_release(original())),
        "kdump-compressed, flattened",
    ),
    "QEMU, lzo": (
        lambda: without_release(recompressed(original(), 0x2, lzo, zlib.decompress)),
        "kdump-compressed",
    ),
    "QEMU, snappy": (
        lambda: without_release(recompressed(original(), 0x4, snappy, zlib.decompress)),
        "kdump-compressed",
    ),
    "flattened zstd": (
        lambda: flattened(recompressed(original(), 0x20, zstd, zlib.decompress)),
        "kdump-compressed, flattened",
    ),
    "gz": (lambda: gzip.compress(original(), 1), "kdump-compressed in gzip"),
    "xz": (lambda: lzma.compress(original(), preset=0), "kdump-compressed in xz"),
    "zst": (lambda: zstd(original()), "kdump-compressed in zstd"),
    "streamed zst": (lambda: streamed_zstd(original()), "kdump-compressed in zstd"),
    "bz2": (lambda: bz2.compress(original(), 1), "kdump-compressed in bzip2"),
    "QEMU, flattened, in xz": (
        lambda: lzma.compress(flattened(without_release(original())), preset=0),
        "kdump-compressed, flattened in xz",
    ),
}


@cache
def expected_report() -> str:
    return reported(str(ORIGINAL))


@pytest.mark.parametrize("way", STORED)
def test_a_dump_gives_the_same_report_however_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The report is byte for byte that of the original, and no second copy is left on the disk."""
    make, stored = STORED[way]
    places = {name: tmp_path / name for name in ("dumps", "temporary")}
    for place in places.values():
        place.mkdir()
    monkeypatch.setenv("TMPDIR", str(places["temporary"]))
    path = places["dumps"] / "vmcore"
    path.write_bytes(make())
    prog = open_dump(str(path))
    dump = opened_dump(prog)
    assert dump is not None
    assert (dump.stored, dump.path, dump.size) == (stored, str(path), path.stat().st_size)
    assert os.listdir(places["temporary"]) == []
    assert reported(str(path)) == expected_report()


@pytest.mark.parametrize("way", ["QEMU, flattened", "flattened ELF", "QEMU, snappy"])
def test_our_reader_has_the_memory_that_drgn_has(tmp_path: Path, way: str) -> None:
    """Of every page, and around it, the same bytes or a fault in both."""
    path = tmp_path / "vmcore"
    path.write_bytes(STORED[way][0]())
    ours, drgns = open_dump(str(path)), open_dump(str(ORIGINAL))
    there = pages_of(original())
    dump = opened_dump(ours)
    assert dump is not None and dump.file.memory_size == len(there) * PAGE_SIZE
    for number in sorted({number + near for number in there for near in (-1, 0, 1)}):
        if number in there:
            address = number * PAGE_SIZE + number % 100
            size = PAGE_SIZE - number % 200
            size = min(size, PAGE_SIZE - number % 100)
            assert ours.read(address, size, physical=True) == drgns.read(
                address, size, physical=True
            )
        elif number >= 0:
            for prog in (ours, drgns):
                with pytest.raises(FaultError):
                    prog.read(number * PAGE_SIZE + 8, 8, physical=True)


def test_a_capsule_is_made_of_what_drgn_cannot_open(tmp_path: Path) -> None:
    """A flattened dump of QEMU becomes a capsule that drgn opens by itself."""
    path, output = tmp_path / "vmcore", tmp_path / "capsule"
    path.write_bytes(flattened(without_release(original())))
    write_capsule(str(path), str(output))
    assert reported(str(output)) == expected_report()
    dump = opened_dump(open_dump(str(output)))
    assert dump is not None and dump.stored == "kdump-compressed"


# What is not whole

CUT_IN_A_PAGE = 3334144
"""In the data of a page that a scan of this dump reads."""


def patched(data: bytes, format_: str, offset: int, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(format_, changed, offset, value)
    return bytes(changed)


FLAWED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut off": (lambda: original()[:-5000], "cut off at "),
    "flattened, cut off": (
        lambda: flattened(original(), end=False),
        "flattened, and its end is missing",
    ),
    "ELF, cut off": (lambda: as_elf()[:-5000], "cut off at "),
    "marked by makedumpfile": (
        lambda: patched(original(), "<I", STATUS_AT, 1 | INCOMPLETE),
        "ran out of space",
    ),
    "ELF, marked by makedumpfile": (lambda: patched(as_elf(), "<I", 48, 1), "ran out of space"),
    "a part": (
        lambda: patched(patched(original(), "<i", SPLIT_AT, 1), "<Q", END_AT, 1 << 16),
        "join the parts with makedumpfile",
    ),
}


@pytest.mark.parametrize("way", FLAWED)
def test_an_incomplete_dump_is_opened_and_says_so(tmp_path: Path, way: str) -> None:
    """What can be read is reported, with one line that says what is missing."""
    make, message = FLAWED[way]
    path = tmp_path / "vmcore"
    path.write_bytes(make())
    dump = opened_dump(open_dump(str(path)))
    assert dump is not None
    (problem,) = dump.problems
    assert problem.startswith("incomplete dump: ") and message in problem
    assert problem in Scanner(Kernel(open_dump(str(path)))).problems()


def test_a_dump_that_breaks_off_within_a_page_is_read_up_to_there(tmp_path: Path) -> None:
    """A scan of the rest reads that page; libkdumpfile would kill the process (SIGBUS)."""
    path = tmp_path / "vmcore"
    path.write_bytes(original()[:CUT_IN_A_PAGE])
    report = scan(open_dump(str(path)))
    assert len(report.tasks) > 200
    assert f"incomplete dump: cut off at {CUT_IN_A_PAGE} bytes" in " ".join(report.problems)


def with_digits(name: bytes, digits: bytes) -> bytes:
    """The dump with other last digits of something in its VMCOREINFO."""
    data = original()
    start = data.index(name + b"=") + len(name) + 1
    end = data.index(b"\n", start)
    return data[: end - len(digits)] + digits + data[end:]


@pytest.mark.parametrize(
    ("name", "digits", "message"),
    [
        (b"SYMBOL(_stext)", b"1", "kallsyms cannot be used"),
        (b"SYMBOL(kallsyms_names)", b"00", "kallsyms cannot be used"),
        (b"KERNELOFFSET", b"zz", "VMCOREINFO"),
        (b"PAGESIZE", b"zz", "VMCOREINFO"),
    ],
)
def test_damaged_vmcoreinfo_is_one_line(
    tmp_path: Path, name: bytes, digits: bytes, message: str
) -> None:
    """Numbers that are none, and addresses of other memory; found by fuzzing as tracebacks."""
    path = tmp_path / "vmcore"
    path.write_bytes(with_digits(name, digits))
    with pytest.raises(DumpError, match=message):
        Kernel(open_dump(str(path)))


def cut_in_headers() -> bytes:
    return flattened(original(), seed=3)[:6000]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "flattened, cut off in its headers": (cut_in_headers, "its end is missing"),
    "flattened, damaged": (
        lambda: patched(flattened(original()), ">q", 4096, -7),
        "damaged at byte 4096",
    ),
    "gzip, cut off": (lambda: gzip.compress(original(), 1)[:-9], "gzip, damaged or incomplete"),
    "gzip, damaged": (
        lambda: patched(gzip.compress(original(), 1), "<Q", 5000, 0),
        "gzip, damaged or incomplete",
    ),
    "xz, cut off": (lambda: lzma.compress(original(), preset=0)[:-90], "xz, damaged or incomplete"),
    "zstd, cut off": (lambda: zstd(original())[:-90], "zstd, "),
    "bzip2, cut off": (lambda: bz2.compress(original(), 1)[:-90], "bzip2, damaged or incomplete"),
    "packed text": (lambda: gzip.compress(b"hello\n" * 99), "not a dump, but a text file"),
    "an executable": (lambda: patched(as_elf(), "<H", 16, 2), "goes after --symbols"),
    "zeroes": (lambda: bytes(10000), "begins with zeroes"),
    "raw memory": (lambda: os.urandom(4096) + b"\0", "in no format that is known (it begins with "),
    "QEMU without VMCOREINFO": (
        lambda: without_release(patched(original(), "<Q", PAGE_SIZE + 40, 0)).replace(
            b"VMCOREINFO\0", b"VMCOREINF0\0"
        ),
        "without VMCOREINFO",
    ),
    "QEMU, of another machine": (
        lambda: without_release(original()).replace(b"x86_64\0", b"sparc9\0", 1),
        "'sparc9', which cannot be read",
    ),
    **{
        row.name: (
            lambda row=row: bytes(row.offset) + row.signature + bytes(600),  # type: ignore[misc]
            f"not a dump, but {row.name}: {row.advice}",
        )
        for row in foreign._FORMATS
    },
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_is_no_dump_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The line has the file's name and what it is; nothing is left behind."""
    make, message = REFUSED[way]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = tmp_path / "vmcore"
    path.write_bytes(make())
    with pytest.raises(DumpError) as caught:
        open_dump(str(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["vmcore"]


# Unpacking


def test_unpacking_looks_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system would get full, one line says where and what to do."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = tmp_path / "vmcore.gz"
    path.write_bytes(gzip.compress(original(), 1))
    free = packed._SPARE + path.stat().st_size + PAGE_SIZE
    blocks = iter(range(free // PAGE_SIZE, 0, -64))

    def shrinking(_fd: int) -> os.statvfs_result:
        return os.statvfs_result((PAGE_SIZE, PAGE_SIZE, 0, 0, next(blocks), 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "fstatvfs", shrinking)
    with pytest.raises(DumpError, match=f"no room to unpack it in {tmp_path} .* set TMPDIR"):
        open_dump(str(path))
    assert os.listdir(tmp_path) == ["vmcore.gz"]


def test_zeroes_take_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of zeroes become holes in the unpacked file."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = tmp_path / "zeroes.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20) + b"end", 1))
    with path.open("rb") as file:
        packing = packed.packing_of(file.read(16))
        assert packing is not None
        unpacked = packed.unpack(file, str(path), packing)
    status = os.fstat(unpacked.fileno())
    assert status.st_size == (64 << 20) + 3 and status.st_blocks * 512 < 1 << 20


def test_unpacking_can_be_watched(tmp_path: Path) -> None:
    """What shows progress is given the packed file and its size."""
    path = tmp_path / "vmcore.xz"
    path.write_bytes(lzma.compress(original(), preset=0))
    seen = []

    def watch(file: BinaryIO, size: int, what: str) -> AbstractContextManager[BinaryIO]:
        seen.append((size, what))
        return nullcontext(file)

    open_dump(str(path), watch=watch)
    assert seen == [(path.stat().st_size, "unpacking")]


def test_a_flattened_file_reads_as_the_file_it_describes(tmp_path: Path) -> None:
    """At every kind of place: in a piece, across pieces, at the end and beyond it."""
    data = os.urandom(50_000)
    path = tmp_path / "flat"
    path.write_bytes(flattened(data))
    source = FlattenedSource(FileSource(path.open("rb"), str(path)))
    assert (source.size, source.complete) == (len(data), True)
    for offset in range(0, 60_000, 137):
        for size in (1, 300, 9000, 70_000):
            assert source.read(offset, size) == data[offset : offset + size]
    assert sum(size for _, size in source.spans()) == len(data)


def test_holes_of_a_flattened_file_are_zeroes(tmp_path: Path) -> None:
    """Between records there is what a sparse file would have, and no size is believed."""
    record = struct.Struct(">qq")
    stream = b"makedumpfile".ljust(4096, b"\0")
    stream += record.pack(10, 3) + b"abc" + record.pack(1 << 50, 1) + b"z" + record.pack(-1, -1)
    path = tmp_path / "flat"
    path.write_bytes(stream)
    source = FlattenedSource(FileSource(path.open("rb"), str(path)))
    assert source.read(0, 20) == bytes(10) + b"abc" + bytes(7)
    assert source.read((1 << 50) - 1, 5) == b"\0z"
    with pytest.raises(DumpError, match="a damaged size"):
        source.read(0, 1 << 49)


# VMCOREINFO that the file lacks


def without_vmcoreinfo(pages: dict[int, bytes]) -> bytes:
    """An ELF core whose notes have no VMCOREINFO, with these pages more."""
    dump = opened_dump(open_dump(str(ORIGINAL)))
    assert dump is not None
    there = {
        number: dump.file.read_physical(number * PAGE_SIZE, PAGE_SIZE)
        for number in pages_of(original())
    }
    return elf_core(drop_notes(dump.notes, "VMCOREINFO"), {**there, **pages})


def vmcoreinfo_text() -> bytes:
    dump = opened_dump(open_dump(str(ORIGINAL)))
    assert dump is not None
    note = find_vmcoreinfo(dump.notes)
    assert note is not None
    return note.description


def vmcoreinfo_page(text: bytes, at: int = 0) -> bytes:
    """A page with the kernel's note at some place."""
    return (bytes(at) + pack_note("VMCOREINFO", 0, text)).ljust(PAGE_SIZE, b"\0")[:PAGE_SIZE]


FREE = 9
"""A page frame that the dump does not have."""


def test_vmcoreinfo_is_found_in_memory(tmp_path: Path) -> None:
    """The kernel's own note, at the start of a page, serves as well as one in the file."""
    assert FREE not in pages_of(original())
    page = vmcoreinfo_page(vmcoreinfo_text())
    (tmp_path / "vmcore").write_bytes(without_vmcoreinfo({FREE: page, FREE + 2: page}))
    assert reported(str(tmp_path / "vmcore")) == expected_report()


MISLEADING = {
    "none": {},
    "not at the start of a page": {FREE: vmcoreinfo_page(b"OSRELEASE=6\nPAGESIZE=4096\n", 64)},
    "of another text": {FREE: vmcoreinfo_page(b"something else\n")},
    "of a made-up size": {
        FREE: b"\x0b\0\0\0\xff\xff\xff\x7f\0\0\0\0VMCOREINFO\0".ljust(4096, b"\0")
    },
}


@pytest.mark.parametrize("pages", MISLEADING.values(), ids=MISLEADING.keys())
def test_vmcoreinfo_is_not_made_up(tmp_path: Path, pages: dict[int, bytes]) -> None:
    """What only looks like the note is passed over, and the line says what to do."""
    (tmp_path / "vmcore").write_bytes(without_vmcoreinfo(pages))
    with pytest.raises(DumpError, match="without VMCOREINFO in its notes or memory"):
        open_dump(str(tmp_path / "vmcore"))


def test_different_notes_in_memory_are_not_guessed_between(tmp_path: Path) -> None:
    """Where two kernels left a note each, both places are named; --vmcoreinfo decides."""
    text = vmcoreinfo_text()
    other = text.replace(b"OSRELEASE=6.1", b"OSRELEASE=5.1")
    pages = {FREE: vmcoreinfo_page(text), FREE + 2: vmcoreinfo_page(other)}
    path, chosen = tmp_path / "vmcore", tmp_path / "vmcoreinfo"
    path.write_bytes(without_vmcoreinfo(pages))
    with pytest.raises(DumpError, match=r"different ones in memory, at 0x9000, 0xb000; name"):
        open_dump(str(path))
    chosen.write_bytes(text)
    assert Kernel(open_dump(str(path), vmcoreinfo=str(chosen))).release == DUMP_6_1.release


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"PAGESIZE=4096\n", "it has no OSRELEASE="),
    ],
    ids=["absent", "binary", "of something else"],
)
def test_a_bad_vmcoreinfo_file_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    """The option, the file and what is wrong are in one line."""
    path = tmp_path / "vmcoreinfo"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^--vmcoreinfo {path}: .*{message}"):
        open_dump(str(ORIGINAL), vmcoreinfo=str(path))
