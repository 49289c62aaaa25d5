# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which call frame information belongs to the kernel and to each module, and who is asked first.

Two modules, ``one`` and ``two``, lie side by side in memory; each test says what the dump and the
user have of them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from drgn_reliable.errors import UsageError
from drgn_reliable.frameinfo import FrameInformation
from drgn_reliable.model import FoundBy
from drgn_reliable.modules import Module, ModuleList, Region
from drgn_reliable.symbols import ModuleSymbols, Named
from drgn_reliable.tables.framerule import FrameRule, Place
from drgn_reliable.unwinddata import UnwindData
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes
from tests.framebytes import (
    ALLOC,
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
from tests.sframes import AMD64, function, section

X86_64, R_X86_64_64 = 62, 1
NOTE = 7
STRUCTS = 0xFFFFFFFFC0500000
TEXTS = {"one": 0xFFFFFFFFC0100000, "two": 0xFFFFFFFFC0200000}
IDS = {"one": bytes(range(20)), "two": bytes(range(20, 40))}
SFRAME_AT = 0x8000
"""Of a module's section from its text."""
CALL = FrameRule(Place(7, 16), 16, {16: Place(-1, -8, True)})
"""What the debug files made here say of a function."""


def note(build_id: bytes, name: bytes = b"GNU\0", kind: int = 3) -> bytes:
    """An ELF note."""
    return struct.pack("<III", len(name), len(build_id), kind) + name + build_id


def debug_file(build_id: bytes | None, frames: bytes | None = None) -> bytes:
    """A module's, with the rule of a function at 0x10 of its text.

    :param build_id: None if it has none.
    :param frames: its ``.debug_frame``, if it is not to be sound.
    """
    rows = Frames().cie(ins("def_cfa", 7, 16), ins("offset", 16, 1))
    at = len(rows.data)
    rows.fde(0, 16)
    return elf(
        REL, X86_64,
        Part(".text", bytes(64), flags=ALLOC | EXECUTABLE),
        Part(".debug_frame", rows.data if frames is None else frames),
        Part(".rela.debug_frame", rela(at + 8, 1, R_X86_64_64, 0x10), RELA, link=4, info=2),
        Part(".symtab", symbol(0) + symbol(1), SYMTAB),
        *([Part(".note.gnu.build-id", note(build_id), NOTE, ALLOC)] if build_id else []),
    )  # fmt: skip


class Dump:
    """A program with the two modules."""

    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.modules = ModuleList(self.memory.prog, None)
        self._declare()
        for number, (name, text) in enumerate(TEXTS.items()):
            place = STRUCTS + 0x10000 * number
            region = Region(text, text + 0x4000, text=True, init=False)
            named = ModuleSymbols([Named(f"{name}_function", text + 0x10)])
            module = Module(place, name, (region,), 0, 0, 0, 0, named)
            self.modules._modules.append(module)
            self.put_sections(name, {".text": text, ".note.gnu.build-id": place + 0x8000})
            self.memory.put(place + 0x8000, note(IDS[name]) + bytes(64))

    def _declare(self) -> None:
        types = FakeTypes(self.memory.prog)
        types.struct("attribute", name="const char *")
        types.struct("bin_attribute", attr="struct attribute", private="void *")
        types.struct("attribute_group", bin_attrs="void **")
        rows = {"grp": "struct attribute_group", "attrs": "struct bin_attribute [2]"}
        types.struct("module_sect_attrs", **rows)
        types.struct("module", sect_attrs="struct module_sect_attrs *")

    def place(self, name: str) -> int:
        """Of a module's structures."""
        return STRUCTS + 0x10000 * list(TEXTS).index(name)

    def put_sections(self, name: str, sections: dict[str, int]) -> None:
        """What the kernel says of where a module's sections are, two of them."""
        put, place = self.memory, self.place(name)
        put.put_struct(place, "struct module", sect_attrs=place + 0x1000)
        rows: list[dict[str, Any]] = []
        for i, (section_name, address) in enumerate(sections.items()):
            put.put(place + 0x3000 + 64 * i, section_name.encode() + b"\0")
            rows.append({"attr": {"name": place + 0x3000 + 64 * i}, "private": address})
        group = {"bin_attrs": place + 0x2000}
        put.put_struct(place + 0x1000, "struct module_sect_attrs", grp=group, attrs=rows)
        put.put_words(place + 0x2000, *(place + 0x1008 + 16 * i for i in range(len(rows))), 0)

    def put_sframe(self, name: str, offset: int = 16) -> None:
        """A module's SFrame, of its function, with another offset than DWARF's."""
        at = TEXTS[name] + SFRAME_AT
        rows = [f"00 03 {offset:02x}"]
        self.memory.put(at, section([function(0x10 - SFRAME_AT, 16, rows)], abi=AMD64) + bytes(64))
        self.put_sections(name, {".text": TEXTS[name], ".sframe": at})

    def data(self, *files: Path) -> UnwindData:
        """What there is with these files."""
        return UnwindData(
            self.memory.prog, FakeSymbols({}), self.modules, [str(file) for file in files]
        )


@pytest.fixture
def dump() -> Dump:
    return Dump()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A sound debug file of each module."""
    found = {name: tmp_path / f"{name}.ko.debug" for name in TEXTS}
    for name, path in found.items():
        path.write_bytes(debug_file(IDS[name]))
    return found


def providers(data: UnwindData, name: str) -> list[FoundBy]:
    """Who may know a module's code, in the order in which they are asked."""
    return [source.found_by for source in data.sources(TEXTS[name] + 0x10)]


def test_a_file_is_its_modules_by_build_id(dump: Dump, files: dict[str, Path]) -> None:
    """Whatever it is called, and whatever comes first; its rules are where that module is."""
    data = dump.data(files["two"], files["one"])
    for name, text in TEXTS.items():
        (found,) = FrameInformation(data.sources).at(text + 0x10, exact=True).rules
        assert found.rule == CALL
        assert found.name == f".debug_frame of {files[name]}"
        assert not FrameInformation(data.sources).at(text + 0x30, exact=True).rules
    assert data.problems == []


def test_other_modules_have_nothing(dump: Dump, files: dict[str, Path]) -> None:
    """One module's file tells nothing of another, nor of the kernel."""
    data = dump.data(files["two"])
    assert providers(data, "one") == []
    assert list(data.sources(0xFFFFFFFF81000000)) == []


def test_dwarf_comes_before_sframe(dump: Dump, files: dict[str, Path]) -> None:
    """DWARF says more than SFrame can; both are asked."""
    data = dump.data(files["one"])
    dump.put_sframe("one")
    assert providers(data, "one") == [FoundBy.DWARF, FoundBy.SFRAME]
    found = FrameInformation(data.sources).at(TEXTS["one"] + 0x18, exact=True)
    assert [rule.rule.cfa for rule in found.rules] == [Place(7, 16), Place(7, 16)]


def test_sframe_of_a_module_is_found_without_any_file(dump: Dump) -> None:
    """It is among the module's sections in the dump."""
    dump.put_sframe("two", offset=32)
    data = dump.data()
    assert providers(data, "two") == [FoundBy.SFRAME]
    (found,) = FrameInformation(data.sources).at(TEXTS["two"] + 0x10, exact=True).rules
    assert found.rule.cfa == Place(7, 32)
    assert providers(data, "one") == []


@pytest.mark.parametrize(
    ("claim", "content", "message"),
    [
        ("of no loaded module", debug_file(bytes(20)), f"its build ID, {bytes(20).hex()}, is"),
        ("without a build ID", debug_file(None), "its build ID, none, is neither"),
        ("no ELF file", b"#!/bin/sh\n" * 9, "not a sound ELF file"),
        ("empty", b"", "not a sound ELF file"),
        ("cut off", debug_file(IDS["one"])[:200], "not a sound ELF file"),
        ("missing", None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_a_file_that_belongs_to_nothing_is_refused(
    dump: Dump, tmp_path: Path, claim: str, content: bytes | None, message: str
) -> None:
    """A line names the file and says what is wrong with it."""
    path = tmp_path / "some.ko"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^--symbols {path}: .*{message}"):
        dump.data(path)


@pytest.mark.parametrize(
    ("claim", "content"),
    [
        ("a note of another name", note(IDS["one"], b"Xen\0")),
        ("a note of another type", note(IDS["one"], kind=1)),
        ("zeroes", bytes(64)),
    ],
)
def test_a_module_without_a_build_id_has_no_file(
    dump: Dump, files: dict[str, Path], claim: str, content: bytes
) -> None:
    """What the dump does not tell is not guessed."""
    dump.memory.put(dump.place("one") + 0x8000, content + bytes(64))
    with pytest.raises(UsageError, match="nor that of a loaded module"):
        dump.data(files["one"])


def test_a_damaged_debug_file_is_told_and_left_out(dump: Dump, tmp_path: Path) -> None:
    """It is a problem once, however often it is asked for; SFrame is still of use."""
    path = tmp_path / "one.ko"
    rows = Frames().cie(ins("def_cfa", 7, 16))
    path.write_bytes(debug_file(IDS["one"], rows.data + b"\x40\0\0\0\0\0\0\0"))
    data = dump.data(path)
    dump.put_sframe("one")
    assert providers(data, "one") == providers(data, "one") == [FoundBy.SFRAME]
    (problem,) = data.problems
    assert str(path) in problem


def test_damaged_sframe_is_told_and_left_out(dump: Dump, files: dict[str, Path]) -> None:
    """A section that is none says so; DWARF is still of use."""
    dump.put_sframe("one")
    dump.memory.put(TEXTS["one"] + SFRAME_AT, b"\xff" * 64)
    data = dump.data()
    assert providers(data, "one") == []
    (problem,) = data.problems
    assert problem.startswith("SFrame of module one: ")


def test_what_the_dump_does_not_tell_is_no_problem(dump: Dump) -> None:
    """A dump that lacks where a module's sections are, as a filtered one may."""
    dump.memory.put_struct(dump.place("one"), "struct module", sect_attrs=0xFFFF888012345000)
    data = dump.data()
    data.open_all()
    assert providers(data, "one") == []
    assert data.problems == []


def test_nothing_is_opened_before_it_is_asked_for(dump: Dump, tmp_path: Path) -> None:
    """Its problems show when a walk comes by, or when all is opened."""
    path = tmp_path / "one.ko"
    path.write_bytes(debug_file(IDS["one"], b"\x40\0\0\0\0\0\0\0"))
    data = dump.data(path)
    providers(data, "two")
    assert data.problems == []
    data.open_all()
    assert len(data.problems) == 1
