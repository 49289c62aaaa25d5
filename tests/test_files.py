# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notes read from dumps, and kdump-compressed files as drgn and a second reader see them."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import pytest

from drgn_reliable.files.kdump import KdumpFile, KdumpHeader, Uts
from drgn_reliable.files.kdumpwriter import KdumpSummary, write_kdump
from drgn_reliable.files.notes import drop_notes, find_vmcoreinfo, iter_notes, pack_note
from drgn_reliable.files.source import DumpFormatError, FileSource
from drgn_reliable.opening import open_file

PAGE_SIZE = 4096
UTS = Uts("Linux", "host", "6.1.0-test", "#1 SMP", "x86_64", "(none)")
VMCOREINFO = b"""\
OSRELEASE=6.1.0-test
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffff81000000
SYMBOL(init_top_pgt)=ffffffff81000000
NUMBER(pgtable_l5_enabled)=0
NUMBER(phys_base)=0
NUMBER(VA_BITS)=48
NUMBER(kimage_voffset)=0
NUMBER(va_kernel_pa_offset)=0
"""
"""What drgn and libkdumpfile insist on, of one architecture or another."""

PRSTATUS = pack_note("CORE", 1, bytes(336))
QEMU = pack_note("QEMU", 0, b"state of a CPU")

ZEROES = bytes(PAGE_SIZE)
TEXT = b"some text, ".ljust(PAGE_SIZE, b"o")
NOISE = random.Random(1).randbytes(PAGE_SIZE)
PAGES = {1: ZEROES, 2: TEXT, 7: NOISE, 8: ZEROES, 0x1000: TEXT}


def write(path: Path, pages: Any = PAGES, **changes: Any) -> KdumpSummary:
    """Write a dump of x86_64, with some arguments changed."""
    arguments: dict[str, Any] = {
        "page_size": PAGE_SIZE,
        "uts": UTS,
        "nr_cpus": 1,
        "vmcoreinfo": VMCOREINFO,
        "notes": PRSTATUS,
    }
    return write_kdump(path, pages=pages, **(arguments | changes))


def read_notes(path: Path) -> bytes:
    return open_file(FileSource(path.open("rb"), str(path))).notes


def read_kdump_header(path: Path) -> KdumpHeader:
    return KdumpFile(FileSource(path.open("rb"), str(path))).header


def open_in_drgn(path: Path) -> drgn.Program:
    program = drgn.Program()
    program.set_core_dump(path)
    return program


class StoredPage(NamedTuple):
    """A page descriptor and what it points to."""

    offset: int
    size: int
    flags: int
    content: bytes


def stored_pages(data: bytes) -> dict[int, StoredPage]:
    """Read a little-endian file by makedumpfile's description alone, with offsets as numbers."""
    block_size, sub_blocks, bitmap_blocks = struct.unpack_from("<iii", data, 428)
    bitmap_size = bitmap_blocks * block_size // 2
    first = (1 + sub_blocks) * block_size
    assert data[first : first + bitmap_size] == data[first + bitmap_size :][:bitmap_size]
    descriptor_at = first + 2 * bitmap_size
    pages = {}
    for pfn in range(bitmap_size * 8):
        if data[first + bitmap_size + pfn // 8] >> pfn % 8 & 1:
            offset, size, flags, _ = struct.unpack_from("<QIIQ", data, descriptor_at)
            descriptor_at += 24
            raw = data[offset : offset + size]
            pages[pfn] = StoredPage(offset, size, flags, zlib.decompress(raw) if flags else raw)
    return pages


def elf_core(*segments: bytes, order: str = "<") -> bytes:
    """Return a 64-bit ELF core file with some note segments and one of memory."""
    types = (1,) + (4,) * len(segments)
    contents = (ZEROES, *segments)
    ident = b"\x7fELF" + bytes((2, 1 if order == "<" else 2, 1)) + bytes(9)
    offset = 64 + 56 * len(types)
    machine = 62 if order == "<" else 22
    header = struct.pack(
        order + "HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, len(types), 0, 0, 0
    )
    table = b""
    for type_, content in zip(types, contents, strict=True):
        size = len(content)
        table += struct.pack(order + "IIQQQQQQ", type_, 0, offset, 0, 0, size, size, 0)
        offset += size
    return ident + header + table + b"".join(contents)


# Notes


def test_notes_of_an_elf_file_come_as_they_are(tmp_path: Path) -> None:
    """The note segments of an ELF file are returned one after the other, byte for byte."""
    (tmp_path / "core").write_bytes(elf_core(PRSTATUS + QEMU, pack_note("VMCOREINFO", 0, b"A=1")))
    notes = read_notes(tmp_path / "core")
    assert notes == PRSTATUS + QEMU + pack_note("VMCOREINFO", 0, b"A=1")
    assert [note.name for note in iter_notes(notes)] == ["CORE", "QEMU", "VMCOREINFO"]


def test_notes_of_a_big_endian_elf_file(tmp_path: Path) -> None:
    """The byte order of the file does not matter to the copy, only to who reads the notes."""
    notes = pack_note("VMCOREINFO", 0, b"A=1\n", little_endian=False)
    (tmp_path / "core").write_bytes(elf_core(notes, order=">"))
    assert read_notes(tmp_path / "core") == notes
    found = find_vmcoreinfo(notes, little_endian=False)
    assert found is not None
    assert found.description == b"A=1\n"
    assert notes[found.offset :] == b"A=1\n"


def test_notes_survive_a_kdump_file(tmp_path: Path) -> None:
    """What was given to the writer is read back; VMCOREINFO was added because it was missing."""
    write(tmp_path / "dump", notes=PRSTATUS + QEMU)
    expected = PRSTATUS + QEMU + pack_note("VMCOREINFO", 0, VMCOREINFO)
    assert read_notes(tmp_path / "dump") == expected


@pytest.mark.parametrize("version", [3, 4, 5])
def test_vmcoreinfo_beside_the_notes_becomes_one(tmp_path: Path, version: int) -> None:
    """Header version 3 has VMCOREINFO but no notes; later ones can have it outside the notes."""
    write(tmp_path / "dump", notes=PRSTATUS)
    data = bytearray((tmp_path / "dump").read_bytes())
    struct.pack_into("<i", data, 8, version)
    struct.pack_into("<Q", data, PAGE_SIZE + 64, len(PRSTATUS))
    (tmp_path / "dump").write_bytes(data)
    expected = b"" if version == 3 else PRSTATUS
    expected += pack_note("VMCOREINFO", 0, VMCOREINFO)
    assert read_notes(tmp_path / "dump") == expected


def test_a_file_older_than_vmcoreinfo_has_no_notes(tmp_path: Path) -> None:
    """Fields that a header version does not have yet are not read, whatever is in their place."""
    write(tmp_path / "dump")
    data = bytearray((tmp_path / "dump").read_bytes())
    struct.pack_into("<i", data, 8, 2)
    (tmp_path / "dump").write_bytes(data)
    assert read_notes(tmp_path / "dump") == b""


def test_notes_are_dropped_by_owner() -> None:
    """Only the notes of the named owners go."""
    vmcoreinfo = pack_note("VMCOREINFO", 0, b"A=12345")
    assert drop_notes(PRSTATUS + QEMU + vmcoreinfo, "QEMU") == PRSTATUS + vmcoreinfo
    assert drop_notes(PRSTATUS + QEMU + vmcoreinfo, "CORE", "VMCOREINFO") == QEMU


KDUMP_START = b"KDUMP   " + struct.pack("<i", 6) + bytes(416)

BAD_FILES = {
    "ELF cut off in its header": (elf_core(PRSTATUS)[:40], "unreadable ELF headers"),
    "ELF cut off in its notes": (elf_core(PRSTATUS)[:-1], "note segment .* reaches beyond"),
    "kdump cut off in its header": (KDUMP_START[:100], "kdump header .* reaches beyond"),
    "kdump without a page size": (KDUMP_START + bytes(5000), "no page size"),
    "kdump cut off before its sub header": (
        KDUMP_START + struct.pack("<i", 4096) + bytes(100),
        "sub header .* reaches beyond",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    """A file that is no dump, or only part of one, is named in a DumpFormatError."""
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(DumpFormatError, match=message) as caught:
        read_notes(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(caught.value)


def test_a_huge_note_size_is_not_allocated(tmp_path: Path) -> None:
    """A size is compared with the file's before anything is read."""
    data = bytearray(elf_core(PRSTATUS))
    struct.pack_into("<Q", data, 64 + 56 + 32, 1 << 60)
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(DumpFormatError, match="1152921504606846976 bytes"):
        read_notes(tmp_path / "bad")


def test_a_note_that_reaches_beyond_the_end_is_refused() -> None:
    """The position of the broken note is in the message."""
    with pytest.raises(DumpFormatError, match=f"note at byte {len(QEMU)} "):
        list(iter_notes(QEMU + PRSTATUS[:-1]))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers_raise_nothing_else(tmp_path: Path, seed: int) -> None:
    """Whatever bytes are changed, there is an answer or a DumpFormatError."""
    chance = random.Random(seed)
    write(tmp_path / "good")
    for good in (elf_core(PRSTATUS, QEMU), (tmp_path / "good").read_bytes()):
        data = bytearray(good)
        for _ in range(20):
            data[chance.randrange(min(len(data), 4400))] = chance.randrange(256)
        data[:8] = good[:8]
        (tmp_path / "bad").write_bytes(data)
        with contextlib.suppress(DumpFormatError):
            list(iter_notes(read_notes(tmp_path / "bad")))


# The writer


def test_header_as_makedumpfile_describes_it(tmp_path: Path) -> None:
    """Each field of both headers is where ``diskdump_mod.h`` puts it on a 64-bit machine."""
    write(tmp_path / "dump", max_pfn=0x2000, phys_base=-0x1000)
    data = (tmp_path / "dump").read_bytes()
    notes_size = len(PRSTATUS + pack_note("VMCOREINFO", 0, VMCOREINFO))
    notes_at = PAGE_SIZE + 104
    table = (
        # field, format, offset, value
        ("signature", "8s", 0, b"KDUMP   "),
        ("header_version", "<i", 8, 6),
        ("utsname.sysname", "65s", 12, b"Linux".ljust(65, b"\0")),
        ("utsname.release", "65s", 142, b"6.1.0-test".ljust(65, b"\0")),
        ("utsname.machine", "65s", 272, b"x86_64".ljust(65, b"\0")),
        ("timestamp", "<2Q", 408, 0),
        ("status", "<I", 424, 1),
        ("block_size", "<i", 428, PAGE_SIZE),
        ("sub_hdr_size", "<i", 432, 1),
        ("bitmap_blocks", "<I", 436, 2),
        ("max_mapnr", "<I", 440, 0x2000),
        ("nr_cpus", "<i", 460, 1),
        ("phys_base", "<Q", PAGE_SIZE, (1 << 64) - 0x1000),
        ("split", "<i", PAGE_SIZE + 12, 0),
        ("offset_vmcoreinfo", "<Q", PAGE_SIZE + 32, data.index(VMCOREINFO)),
        ("size_vmcoreinfo", "<Q", PAGE_SIZE + 40, len(VMCOREINFO)),
        ("offset_note", "<Q", PAGE_SIZE + 48, notes_at),
        ("size_note", "<Q", PAGE_SIZE + 56, notes_size),
        ("max_mapnr_64", "<Q", PAGE_SIZE + 96, 0x2000),
    )
    for field, format_, offset, value in table:
        assert struct.unpack_from(format_, data, offset)[0] == value, field


def test_header_is_read_back(tmp_path: Path) -> None:
    """The package's own reader agrees with its writer."""
    write(tmp_path / "dump", max_pfn=1 << 33, pages={}, nr_cpus=3, phys_base=0x1000000)
    header = read_kdump_header(tmp_path / "dump")
    assert (header.version, header.page_size, header.little_endian) == (6, PAGE_SIZE, True)
    assert (header.uts, header.nr_cpus, header.phys_base) == (UTS, 3, 0x1000000)
    assert header.max_pfn == 1 << 33
    assert (tmp_path / "dump").stat().st_blocks * 512 < 1 << 20, "bitmaps of zeroes are holes"


def test_a_second_reader_finds_the_pages(tmp_path: Path) -> None:
    """Bitmaps, descriptors and data say what was put in, and nothing else."""
    summary = write(tmp_path / "dump")
    data = (tmp_path / "dump").read_bytes()
    found = stored_pages(data)
    assert {pfn: page.content for pfn, page in found.items()} == PAGES
    assert summary == KdumpSummary(pages=5, stored_pages=3, file_size=len(data))


def test_pages_are_compressed_where_that_helps_and_stored_once(tmp_path: Path) -> None:
    """Text shrinks, noise does not, and equal pages share their bytes."""
    write(tmp_path / "dump")
    found = stored_pages((tmp_path / "dump").read_bytes())
    assert (found[2].flags, found[2].size < 100) == (1, True)
    assert (found[7].flags, found[7].size) == (0, PAGE_SIZE)
    assert found[1][:3] == found[8][:3]
    assert found[2][:3] == found[0x1000][:3]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    """A mapping in any order and ascending pairs make the same file."""
    write(tmp_path / "mapping", dict(reversed(PAGES.items())))
    write(tmp_path / "pairs", ((pfn, memoryview(page)) for pfn, page in sorted(PAGES.items())))
    assert (tmp_path / "mapping").read_bytes() == (tmp_path / "pairs").read_bytes()


def test_a_file_of_no_pages_is_a_file(tmp_path: Path) -> None:
    """Nothing to store is not an error."""
    write(tmp_path / "dump", {})
    assert open_in_drgn(tmp_path / "dump")["VMCOREINFO"].string_() == VMCOREINFO
    with pytest.raises(drgn.FaultError):
        open_in_drgn(tmp_path / "dump").read(0, 1, physical=True)


MACHINES = (
    # machine, page size, architecture, little-endian
    ("x86_64", 4096, drgn.Architecture.X86_64, True),
    ("aarch64", 4096, drgn.Architecture.AARCH64, True),
    ("aarch64", 65536, drgn.Architecture.AARCH64, True),
    ("ppc64le", 65536, drgn.Architecture.PPC64, True),
    ("ppc64", 65536, drgn.Architecture.PPC64, False),
    ("riscv64", 4096, drgn.Architecture.RISCV64, True),
)


@pytest.mark.parametrize(("machine", "page_size", "architecture", "little_endian"), MACHINES)
def test_drgn_opens_the_dump_of_each_machine(
    tmp_path: Path,
    machine: str,
    page_size: int,
    architecture: drgn.Architecture,
    little_endian: bool,
) -> None:
    """Architecture, byte order, page size, VMCOREINFO and memory are what was written."""
    vmcoreinfo = VMCOREINFO.replace(b"4096", str(page_size).encode())
    page = random.Random(2).randbytes(page_size)
    write(
        tmp_path / "dump",
        {5: page},
        page_size=page_size,
        uts=UTS._replace(machine=machine),
        vmcoreinfo=vmcoreinfo,
        notes=b"",
    )
    program = open_in_drgn(tmp_path / "dump")
    assert program.platform is not None
    assert program.platform.arch == architecture
    flags = program.platform.flags
    assert bool(flags & drgn.PlatformFlags.IS_LITTLE_ENDIAN) == little_endian
    assert program["VMCOREINFO"].string_() == vmcoreinfo
    assert program.read(5 * page_size, page_size, physical=True) == page
    assert read_kdump_header(tmp_path / "dump").little_endian == little_endian


def test_s390x_needs_the_pages_that_lead_to_vmcoreinfo(tmp_path: Path) -> None:
    """libkdumpfile opens a dump of s390x by the pointers in absolute page 0, notes or not."""
    note = pack_note("VMCOREINFO", 0, VMCOREINFO, little_endian=False)
    lowcore = bytearray(PAGE_SIZE)
    struct.pack_into(">Q", lowcore, 0xE0C, PAGE_SIZE)
    pages = {0: bytes(lowcore), 1: note.ljust(PAGE_SIZE, b"\0"), 5: NOISE}
    arguments: dict[str, Any] = {"uts": UTS._replace(machine="s390x"), "notes": b""}
    write(tmp_path / "dump", pages, **arguments)
    program = open_in_drgn(tmp_path / "dump")
    assert program.platform is not None
    assert program.platform.arch == drgn.Architecture.S390X
    assert program.read(5 * PAGE_SIZE, PAGE_SIZE, physical=True) == NOISE
    del pages[0]
    write(tmp_path / "dump", pages, **arguments)
    with pytest.raises(Exception, match="Excluded page"):
        open_in_drgn(tmp_path / "dump")


def test_an_absent_page_is_an_error_and_never_zeroes(tmp_path: Path) -> None:
    """drgn raises FaultError for every page frame that was not written, below max_pfn or not."""
    write(tmp_path / "dump", max_pfn=0x2000)
    program = open_in_drgn(tmp_path / "dump")
    for pfn in (0, 1, 2, 3, 6, 7, 8, 9, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 1 << 30):
        if pfn in PAGES:
            assert program.read(pfn * PAGE_SIZE, PAGE_SIZE, physical=True) == PAGES[pfn]
            continue
        for offset, size in ((0, 8), (PAGE_SIZE - 1, 1)):
            with pytest.raises(drgn.FaultError):
                program.read(pfn * PAGE_SIZE + offset, size, physical=True)
    with pytest.raises(drgn.FaultError):
        program.read(2 * PAGE_SIZE + 100, PAGE_SIZE, physical=True)


# Kernel text mapped at 16 MiB by a page table entry of 2 MiB; the tables lie in it.
KERNEL = 0xFFFFFFFF81000000
KERNEL_PFN = 0x1000
PRESENT = 0x63
HUGE = 0xE3


def page_table(index: int, entry: int) -> bytes:
    table = bytearray(PAGE_SIZE)
    struct.pack_into("<Q", table, 8 * index, entry)
    return bytes(table)


def test_virtual_memory_is_found_through_page_tables_in_the_file(tmp_path: Path) -> None:
    """The tables of the few pages that are in the file are enough; a page that is not faults."""
    pages = {
        KERNEL_PFN: page_table(511, (KERNEL_PFN + 1) * PAGE_SIZE | PRESENT),
        KERNEL_PFN + 1: page_table(510, (KERNEL_PFN + 2) * PAGE_SIZE | PRESENT),
        KERNEL_PFN + 2: page_table(8, KERNEL_PFN * PAGE_SIZE | HUGE),
        KERNEL_PFN + 4: TEXT,
    }
    write(tmp_path / "dump", pages)
    program = open_in_drgn(tmp_path / "dump")
    assert program.read(KERNEL + 4 * PAGE_SIZE, PAGE_SIZE) == TEXT
    for address in (KERNEL + 3 * PAGE_SIZE, KERNEL + 5 * PAGE_SIZE, KERNEL + (2 << 20)):
        with pytest.raises(drgn.FaultError):
            program.read(address, 8)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    """When the pages cannot be had to the end, the old file stays and no other is left behind."""

    def pages() -> Iterator[tuple[int, bytes]]:
        yield 1, TEXT
        raise drgn.FaultError("cannot read", 0x2000)

    (tmp_path / "dump").write_bytes(b"old")
    with pytest.raises(drgn.FaultError):
        write(tmp_path / "dump", pages())
    assert os.listdir(tmp_path) == ["dump"]
    assert (tmp_path / "dump").read_bytes() == b"old"


def test_a_new_file_replaces_the_old_one_and_is_private(tmp_path: Path) -> None:
    """The name then belongs to the new file, which nobody else may read."""
    (tmp_path / "dump").write_bytes(b"old")
    write(tmp_path / "dump")
    assert os.listdir(tmp_path) == ["dump"]
    assert stat.S_IMODE((tmp_path / "dump").stat().st_mode) == 0o600
    assert (tmp_path / "dump").read_bytes().startswith(b"KDUMP   ")


OTHER_VMCOREINFO = pack_note("VMCOREINFO", 0, b"OSRELEASE=5.0\n")

BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "short page": ({"pages": {3: b"short"}}, "0x3 has 5 bytes, not 4096"),
    "descending": ({"pages": [(3, TEXT), (2, TEXT)]}, "0x2 comes after 0x3"),
    "twice": ({"pages": [(3, TEXT), (3, TEXT)]}, "0x3 comes after 0x3"),
    "negative": ({"pages": {-1: TEXT}}, "-0x1 is not below"),
    "too high": ({"pages": {9: TEXT}, "max_pfn": 9}, "0x9 is not below max_pfn 9"),
    "page size": ({"page_size": 5000}, "5000 is not a power of two"),
    "small page size": ({"page_size": 1024}, "1024 is not a power of two"),
    "no CPU": ({"nr_cpus": 0}, "0 CPUs"),
    "no release": ({"uts": UTS._replace(release="")}, "with release and version"),
    "long name": ({"uts": UTS._replace(nodename="n" * 65)}, "nodename is longer than 64"),
    "32 bits": ({"uts": UTS._replace(machine="i686")}, "'i686' is none of aarch64, "),
    "unreadable": ({"uts": UTS._replace(machine="sparc64")}, "'sparc64' is none of"),
    "VMCOREINFO twice": ({"notes": OTHER_VMCOREINFO}, "not the one given"),
    "broken notes": ({"notes": PRSTATUS[:-1]}, "note at byte 0 reaches beyond"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_wrong_arguments_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A ValueError says which value is wrong, and there is no file."""
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "dump", **changes)
    assert os.listdir(tmp_path) == []
