# SPDX-License-Identifier: LGPL-2.1-or-later
"""``contrib/debuginfo/thin.py --frames`` on files made by hand."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from drgn_reliable.tables.cfifile import cfi_sections
from drgn_reliable.tables.framerule import Place
from tests.framebytes import (
    ALLOC,
    EXEC,
    EXECUTABLE,
    REL,
    RELA,
    SYMTAB,
    Frames,
    Part,
    elf,
    ins,
    rela,
    symbol,
)

THIN = Path(__file__).parent.parent / "contrib/debuginfo/thin.py"
TEXT = 0xFFFFFFFF81000000
NAMES = b"\0schedule\0vfs_read\0vfs_write\0"
SCHEDULE, READ, WRITE = 1, 10, 19
NOTE = b"\4\0\0\0\4\0\0\0\3\0\0\0GNU\0\xab\xcd\xef\x01"
CODE = ALLOC | EXECUTABLE


def thin(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(THIN), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def entries() -> tuple[Frames, list[int]]:
    """Three functions of 16 bytes, of which the second and the third have a CIE of their own, and
    the offsets of their entries; addresses to be relocated count from 0."""
    frames = Frames().cie(ins("def_cfa", 7, 8))
    places = [len(frames.data)]
    frames.fde(TEXT, 16, ins("def_cfa_offset", 1))
    frames.cie(ins("def_cfa", 6, 0))
    for i in (1, 2):
        places.append(len(frames.data))
        frames.fde(TEXT + 0x100 * i, 16, ins("def_cfa_offset", i + 1))
    return frames, places


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The symbol of vfs_read is 4 bytes before its entry, that of vfs_write 4 bytes after."""
    symbols = (
        symbol(0),
        symbol(1, TEXT, name=SCHEDULE, size=16),
        symbol(1, TEXT + 0xFC, name=READ, size=20),
        symbol(1, TEXT + 0x204, name=WRITE, size=12),
    )
    path = tmp_path / "vmlinux"
    parts = (
        Part(".text", bytes(0x210), flags=CODE, address=TEXT),
        Part(".init.text", bytes(16), flags=CODE, address=TEXT + 0x1000),
        Part(".note.gnu.build-id", NOTE, 7, ALLOC, TEXT + 0x2000),
        Part(".debug_frame", entries()[0].data),
        Part(".symtab", b"".join(symbols), SYMTAB, link=6),
        Part(".strtab", NAMES, 3),
    )
    path.write_bytes(elf(EXEC, 62, *parts))
    return path


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """Both vfs functions are in another section than the first, at the same offsets in it."""
    frames, places = entries()
    symbols = (
        symbol(0),
        symbol(1, 0, name=SCHEDULE, size=16),
        symbol(2, 0x100, name=READ, size=16),
        symbol(2, 0x200, name=WRITE, size=16),
        symbol(4),
    )
    table = b"".join(
        rela(place + 4, 4, 10, cie) + rela(place + 8, number, 1)
        for place, number, cie in zip(places, (1, 2, 3), (0, 48, 48), strict=True)
    )
    path = tmp_path / "module.ko"
    parts = (
        Part(".text", bytes(0x210), flags=CODE),
        Part(".text.unlikely", bytes(0x210), flags=CODE),
        Part(".note.gnu.build-id", NOTE, 7, ALLOC),
        Part(".debug_frame", frames.data),
        Part(".rela.debug_frame", table, RELA, link=6, info=4),
        Part(".symtab", b"".join(symbols), SYMTAB, link=7),
        Part(".strtab", NAMES, 3),
    )
    path.write_bytes(elf(REL, 62, *parts))
    return path


def names(path: Path) -> list[str]:
    """The symbols that have names."""
    with open(path, "rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return [row.name for row in table.iter_symbols() if row.name]


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("^schedule$", [(0, Place(7, 1))]),
        ("^vfs_read$", [(0x100, Place(6, 2))]),
        ("^vfs_write$", [(0x200, Place(6, 3))]),
        ("^vfs_", [(0x100, Place(6, 2)), (0x200, Place(6, 3))]),
        ("", [(0, Place(7, 1)), (0x100, Place(6, 2)), (0x200, Place(6, 3))]),
    ],
)
def test_frames_of_a_kernel(
    kernel: Path, tmp_path: Path, pattern: str, kept: list[tuple[int, Place]]
) -> None:
    """Entries are kept with the CIE that they name, whether symbols begin with them or near."""
    out = tmp_path / "out"
    done = thin(kernel, "-o", out, "--frames", pattern)
    assert done.returncode == 0, done.stderr
    (table,) = cfi_sections(out)
    rules = [table.find(fde.start) for fde in table.fdes]
    starts = [fde.start - TEXT for fde in table.fdes]
    assert list(zip(starts, [rule and rule.cfa for rule in rules], strict=True)) == kept
    assert NOTE in out.read_bytes()
    assert len(names(out)) == len(kept)


def test_frames_of_a_module(module: Path, tmp_path: Path) -> None:
    """Relocations come along, against the sections as they are numbered now."""
    out = tmp_path / "out.xz"
    done = thin(module, "-o", out, "--frames", "^(schedule|vfs_write)$")
    assert done.returncode == 0, done.stderr
    thinned = tmp_path / "module.debug"
    thinned.write_bytes(lzma.decompress(out.read_bytes()))
    (table,) = cfi_sections(thinned, loaded={".text": TEXT, ".text.unlikely": TEXT + 0x5000})
    rules = [table.find(fde.start) for fde in table.fdes]
    assert [fde.start for fde in table.fdes] == [TEXT, TEXT + 0x5200]
    assert [rule and rule.cfa for rule in rules] == [Place(7, 1), Place(6, 3)]
    assert names(thinned) == ["schedule", "vfs_write"]
    assert NOTE in thinned.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frames", "^nothing$"), "no function with an entry"),
        (("--frames", "("), "missing )"),
        (("--unit", "init/main.c"), "no .debug_info"),
    ],
)
def test_what_is_refused(
    kernel: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = thin(kernel, "-o", tmp_path / "out", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_units_of_a_module_are_refused(module: Path, tmp_path: Path) -> None:
    done = thin(module, "-o", tmp_path / "out", "--frames", "", "--unit", "fs/read_write.c")
    assert done.returncode == 1
    assert "only call frame information" in done.stderr
