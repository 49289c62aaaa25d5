# SPDX-License-Identifier: LGPL-2.1-or-later
"""Call frame information in ELF files made by hand, and modules that were loaded somewhere."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from zstandard import ZstdCompressor

from drgn_reliable.tables.cfifile import cfi_sections
from drgn_reliable.tables.framerule import BadRule, Place
from drgn_reliable.tables.relocations import Target, relocate
from tests.framebytes import (
    ALLOC,
    COMPRESSED,
    EXEC,
    EXECUTABLE,
    NOBITS,
    REL,
    RELA,
    SYMTAB,
    Frames,
    Order,
    Part,
    elf,
    ins,
    rela,
    symbol,
)

ENTRY = (ins("def_cfa", 7, 8), ins("offset", 16, 1))
START = 0xFFFFFFFF81000000
FRAMES = Frames().cie(*ENTRY).fde(START, 16).data
X86_64, PPC64, S390, AARCH64, LOONGARCH, RISCV = 62, 21, 22, 183, 258, 243


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vmlinux"


# Linked files -----------------------------------------------------------------------------------


def test_a_kernel(path: Path) -> None:
    """Both sections of it, moved by the bias; relocations that the linker kept are not applied."""
    eh = Frames(eh=True).cie(*ENTRY, augmentation="zR", extra=b"\x1b")
    eh.fde(0x40, 16, extra=b"", pointer="i")
    parts = (
        Part(".debug_frame", FRAMES),
        Part(".rela.debug_frame", rela(32, 0, 1, 0x1234), RELA, link=4, info=1),
        Part(".eh_frame", eh.data, flags=ALLOC, address=START + 0x1000),
        Part(".symtab", symbol(0), SYMTAB),
    )
    path.write_bytes(elf(EXEC, X86_64, *parts))
    debug, loaded = cfi_sections(path, bias=0x2000)
    assert (debug.name, loaded.name) == (f".debug_frame of {path}", f".eh_frame of {path}")
    rule = debug.find(START + 0x2000)
    assert rule and rule.cfa == Place(7, 8)
    assert debug.find(START) is None
    assert [fde.start for fde in loaded.fdes] == [START + 0x1000 + 0x20 + 0x40]
    assert loaded.find(START + 0x1060 + 0x2000) == rule


def test_sections_without_contents(path: Path) -> None:
    """A debugging file that was split off has the headers of what stayed behind."""
    path.write_bytes(elf(EXEC, X86_64, Part(".eh_frame", FRAMES, NOBITS), Part(".text", b"")))
    assert cfi_sections(path) == []


def test_byte_order(path: Path) -> None:
    frames = Frames(order=">").cie(ins("def_cfa", 15, 160), ra=14).fde(START, 16)
    path.write_bytes(elf(EXEC, S390, Part(".debug_frame", frames.data), order=">"))
    (table,) = cfi_sections(path)
    rule = table.find(START)
    assert rule and rule.cfa == Place(15, 160)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("method", "pack"), [(1, zlib.compress), (2, ZstdCompressor().compress)])
def test_compressed(path: Path, method: int, pack: Callable[[bytes], bytes], order: Order) -> None:
    """By zlib and by zstd, which pyelftools does not know."""
    frames = Frames(order=order).cie(*ENTRY).fde(START, 16).data
    data = struct.pack(order + "IIQQ", method, 0, len(frames), 8) + pack(frames)
    part = Part(".debug_frame", data, flags=COMPRESSED)
    path.write_bytes(elf(EXEC, X86_64, part, order=order))
    (table,) = cfi_sections(path)
    assert table.find(START)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"#!/bin/sh\n", "not a sound ELF file", id="no ELF file"),
        pytest.param(b"", "not a sound ELF file", id="nothing"),
        pytest.param(elf(EXEC, X86_64)[:100], "not a sound ELF file", id="cut off"),
        pytest.param(b"\x7fELF\1\1\1" + bytes(45), "not a", id="32-bit"),
        pytest.param(
            elf(EXEC, X86_64, Part(".debug_frame", b"\3\0\0\0" + bytes(20), flags=COMPRESSED)),
            "not a sound ELF file", id="an unknown compression",
        ),
        pytest.param(
            elf(
                EXEC, X86_64,
                Part(".debug_frame", struct.pack("<IIQQQ", 2, 0, 8, 8, 0), flags=COMPRESSED),
            ),
            "zstd|cut off after", id="no zstd data",
        ),
        pytest.param(
            elf(
                EXEC, X86_64,
                Part(".debug_frame", struct.pack("<IIQQ", 1, 0, 1 << 40, 8), flags=COMPRESSED),
            ),
            "1099511627776 bytes", id="more than there is memory",
        ),
    ],
)  # fmt: skip
def test_files_that_are_refused(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(BadRule, match=message):
        for table in cfi_sections(path):
            table.find(START)
            assert table.fdes


# Modules ----------------------------------------------------------------------------------------

TEXT, INIT = 0xFFFFFFFFC0100000, 0xFFFFFFFFC0200000


def module(
    frames: Frames, table: bytes, *, machine: int = X86_64, eh: bool = False, order: Order = "<"
) -> bytes:
    """A module: symbols 1 to 3 are .text, .init.text and .debug_frame itself, 4 is undefined,
    5 absolute."""
    name = ".eh_frame" if eh else ".debug_frame"
    return elf(
        REL, machine,
        Part(".text", bytes(64), flags=ALLOC | EXECUTABLE),
        Part(".init.text", bytes(64), flags=ALLOC | EXECUTABLE),
        Part(name, frames.data, flags=ALLOC if eh else 0),
        Part(".rela" + name, table, RELA, link=5, info=3),
        Part(
            ".symtab",
            b"".join(symbol(*at, order) for at in
                     ((0, 0), (1, 4), (2, 0), (3, 0), (0, 0), (0xFFF1, 0x5000), (0xFFFF, 0),
                      (77, 0))),
            SYMTAB,
        ),
        order=order,
    )  # fmt: skip


MODULES = [
    pytest.param(X86_64, 1, 10, "<", id="x86_64"),
    pytest.param(AARCH64, 257, 258, "<", id="arm64"),
    pytest.param(S390, 22, 4, ">", id="s390x"),
    pytest.param(PPC64, 38, 1, "<", id="ppc64le"),
    pytest.param(LOONGARCH, 2, 1, "<", id="loongarch64"),
]


@pytest.mark.parametrize(("machine", "absolute", "half", "order"), MODULES)
def test_modules(path: Path, machine: int, absolute: int, half: int, order: Order) -> None:
    """Two functions share a CIE that is not the first; one of them is in .init.text."""
    frames = Frames(order=order).cie(version=9)
    shared = len(frames.data)
    frames.cie(ins("def_cfa", 31, 0), ra=30)
    first = len(frames.data)
    second = len(frames.fde(0, 16, cie=0).data)
    frames.fde(0, 16, cie=0)
    table = b"".join(
        rela(fde + 4, 3, half, shared, order) + rela(fde + 8, number, absolute, at, order)
        for fde, number, at in ((first, 1, 0x10), (second, 2, 0x20))
    )
    path.write_bytes(module(frames, table, machine=machine, order=order))
    (found,) = cfi_sections(path, loaded={".text": TEXT, ".init.text": INIT})
    assert [fde.start for fde in found.fdes] == [TEXT + 0x14, INIT + 0x20]
    rule = found.find(TEXT + 0x14)
    assert rule and rule.cfa == Place(31, 0)
    # After it started, a module's .init.text is freed: its functions are nowhere, not at 0x20.
    (found,) = cfi_sections(path, loaded={".text": TEXT})
    assert [fde.start for fde in found.fdes] == [TEXT + 0x14]
    (found,) = cfi_sections(path)
    assert found.fdes == []


@pytest.mark.parametrize("loaded", [None, TEXT + 0x5000])
def test_relative_addresses_of_a_module(path: Path, loaded: int | None) -> None:
    """Those of .eh_frame, whether it was loaded or not."""
    frames = Frames(eh=True).cie(*ENTRY, augmentation="zR", extra=b"\x1b")
    first = len(frames.data)
    second = len(frames.fde(0, 16, extra=b"", pointer="i").data)
    frames.fde(0, 16, extra=b"", pointer="i")
    table = rela(first + 8, 1, 2, 0x10) + rela(second + 8, 2, 2, 0x20)
    path.write_bytes(module(frames, table, eh=True))
    addresses = {".text": TEXT} | ({".eh_frame": loaded} if loaded else {})
    (found,) = cfi_sections(path, loaded=addresses)
    assert [fde.start for fde in found.fdes] == [TEXT + 0x14]


# One relocation ---------------------------------------------------------------------------------

AT = 0x8000
"""Where the section is; what is relocated is 4 bytes into it, before it are 0xEE and after 0xDD."""
TARGETS = {1: Target(0x1000, True), 2: Target(0x20, False), 3: Target(START, True)}

RELOCATIONS = [
    ("EM_X86_64", 0, 1, "11 22", "11 22", "NONE writes nothing"),
    ("EM_X86_64", 1, 3, "ff" * 8, "05 00 00 81 ff ff ff ff", "64"),
    ("EM_X86_64", 2, 1, "ff" * 4, "01 90 ff ff", "PC32"),
    ("EM_X86_64", 4, 1, "ff" * 4, "01 90 ff ff", "PLT32"),
    ("EM_X86_64", 10, 1, "ff" * 4, "05 10 00 00", "32"),
    ("EM_X86_64", 11, 3, "ff" * 4, "05 00 00 81", "32S of a kernel's address"),
    ("EM_X86_64", 24, 1, "ff" * 8, "01 90 ff ff ff ff ff ff", "PC64"),
    ("EM_X86_64", 1, 2, "ff" * 8, "00" * 8, "64 of what is not loaded"),
    ("EM_X86_64", 2, 2, "ff" * 4, "00" * 4, "PC32 of what is not loaded"),
    ("EM_AARCH64", 256, 1, "11", "11", "NONE has two numbers"),
    ("EM_AARCH64", 257, 3, "ff" * 8, "05 00 00 81 ff ff ff ff", "ABS64"),
    ("EM_AARCH64", 258, 1, "ff" * 4, "05 10 00 00", "ABS32"),
    ("EM_AARCH64", 260, 1, "ff" * 8, "01 90 ff ff ff ff ff ff", "PREL64"),
    ("EM_AARCH64", 261, 1, "ff" * 4, "01 90 ff ff", "PREL32"),
    ("EM_S390", 4, 1, "ff" * 4, "00 00 10 05", "32, big-endian"),
    ("EM_S390", 5, 1, "ff" * 4, "ff ff 90 01", "PC32"),
    ("EM_S390", 22, 3, "ff" * 8, "ff ff ff ff 81 00 00 05", "64"),
    ("EM_S390", 23, 1, "ff" * 8, "ff ff ff ff ff ff 90 01", "PC64"),
    ("EM_PPC64", 1, 1, "ff" * 4, "05 10 00 00", "ADDR32"),
    ("EM_PPC64", 26, 1, "ff" * 4, "01 90 ff ff", "REL32"),
    ("EM_PPC64", 38, 3, "ff" * 8, "05 00 00 81 ff ff ff ff", "ADDR64"),
    ("EM_PPC64", 44, 1, "ff" * 8, "01 90 ff ff ff ff ff ff", "REL64"),
    ("EM_LOONGARCH", 1, 1, "ff" * 4, "05 10 00 00", "32"),
    ("EM_LOONGARCH", 2, 3, "ff" * 8, "05 00 00 81 ff ff ff ff", "64"),
    ("EM_LOONGARCH", 47, 1, "fe", "03", "ADD8"),
    ("EM_LOONGARCH", 48, 1, "fe ff", "03 10", "ADD16"),
    ("EM_LOONGARCH", 50, 1, "fe ff ff ff", "03 10 00 00", "ADD32"),
    ("EM_LOONGARCH", 51, 1, "02" + "00" * 7, "07 10" + "00" * 6, "ADD64"),
    ("EM_LOONGARCH", 52, 1, "06", "01", "SUB8"),
    ("EM_LOONGARCH", 53, 1, "06 10", "01 00", "SUB16"),
    ("EM_LOONGARCH", 55, 1, "06 10 00 00", "01 00 00 00", "SUB32"),
    ("EM_LOONGARCH", 56, 1, "04" + "00" * 7, "ff ef" + "ff" * 6, "SUB64"),
    ("EM_LOONGARCH", 55, 2, "26 00 00 00", "01 00 00 00", "SUB32 counts within an unloaded part"),
    ("EM_LOONGARCH", 99, 1, "ff" * 4, "01 90 ff ff", "32_PCREL"),
    ("EM_LOONGARCH", 100, 1, "11", "11", "RELAX writes nothing"),
    ("EM_LOONGARCH", 105, 1, "7e", "43", "ADD6 keeps the instruction in the upper bits"),
    ("EM_LOONGARCH", 106, 1, "43", "7e", "SUB6"),
    ("EM_LOONGARCH", 107, 1, "80 80 01", "85 a0 01", "ADD_ULEB128 keeps the size"),
    ("EM_LOONGARCH", 108, 1, "87 a0 00", "82 80 00", "SUB_ULEB128"),
    ("EM_LOONGARCH", 109, 1, "ff" * 8, "01 90 ff ff ff ff ff ff", "64_PCREL"),
]
"""Of ``target + 5``; the target is 0x1000 if it is number 1."""


@pytest.mark.parametrize(
    ("machine", "kind", "number", "before", "after"),
    [pytest.param(*row[:5], id=f"{row[0]} {row[5]}") for row in RELOCATIONS],
)
def test_relocations(machine: str, kind: int, number: int, before: str, after: str) -> None:
    little = machine != "EM_S390"
    relocated = relocate(
        b"\xee" * 4 + bytes.fromhex(before) + b"\xdd" * 4,
        rela(4, number, kind, 5, "<" if little else ">"),
        machine=machine,
        target=TARGETS.__getitem__,
        address=AT,
        little_endian=little,
        name="test",
    )
    assert relocated == b"\xee" * 4 + bytes.fromhex(after) + b"\xdd" * 4


@pytest.mark.parametrize(
    ("data", "table", "message"),
    [
        (bytes(8), rela(0, 1, 99), r"test\+0x0: relocations of type 99"),
        (bytes(8), rela(1, 1, 1), r"test\+0x1: .*beyond"),
        (bytes(8), rela(1 << 63, 1, 1), "beyond"),
        (bytes(8), rela(0, 1, 1)[:23], "cut off"),
        (bytes(8), rela(0, 1, 10, 1 << 32), "does not fit 4 bytes"),
        (bytes(8), rela(0, 1, 2, 1 << 32), "does not fit 4 bytes"),
    ],
)
def test_relocations_that_are_refused(data: bytes, table: bytes, message: str) -> None:
    with pytest.raises(BadRule, match=message):
        relocate(
            data, table, machine="EM_X86_64", target=TARGETS.__getitem__, address=AT,
            little_endian=True, name="test",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "fdes"), [(5, [0x5000]), (4, []), (7, [])],
    ids=["absolute", "undefined", "of a section that there is not"],
)  # fmt: skip
def test_symbols(path: Path, number: int, fdes: list[int]) -> None:
    table = rela(0x20, number, 1)
    path.write_bytes(module(Frames().cie(*ENTRY).fde(0, 16), table))
    (found,) = cfi_sections(path, loaded={".text": TEXT})
    assert [fde.start for fde in found.fdes] == fdes


@pytest.mark.parametrize(
    ("machine", "number", "message"),
    [
        (X86_64, 6, "no room to number"),
        (X86_64, 100, "symbol 100, beyond"),
        (RISCV, 1, "relocations of EM_RISCV are not supported"),
    ],
)
def test_modules_that_are_refused(path: Path, machine: int, number: int, message: str) -> None:
    frames = Frames().cie(*ENTRY).fde(0, 16)
    path.write_bytes(module(frames, rela(0x20, number, 1), machine=machine))
    with pytest.raises(BadRule, match=message):
        cfi_sections(path, loaded={".text": TEXT})


def test_damaged_files_are_refused(path: Path) -> None:
    """Whatever is in a file, it gives sections or BadRule."""
    rng = random.Random(1)
    frames = Frames().cie(*ENTRY).fde(0, 16)
    sound = module(frames, rela(0x20, 1, 1))
    seen: set[object] = set()
    for _ in range(500):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 5))):
            # Half of the damage is to the headers at the end.
            at = (
                rng.randrange(len(data) - 512, len(data))
                if rng.random() < 0.5
                else rng.randrange(64)
            )
            data[at] = rng.choice((0, 1, 8, 0x7F, 0xFF))
        path.write_bytes(data)
        try:
            for table in cfi_sections(path, loaded={".text": TEXT}):
                seen.add(bool(table.fdes))
        except BadRule as error:
            seen.add(str(error)[:1])
    assert seen >= {True, "/"}
