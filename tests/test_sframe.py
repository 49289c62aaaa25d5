# SPDX-License-Identifier: LGPL-2.1-or-later
"""SFrame sections: those that GNU as and ld wrote, held against the call frame information they
were made from, and others encoded by hand for what as does not write."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from drgn import FaultError
from elftools.elf.elffile import ELFFile

from drgn_reliable.tables.cfi import CfiSection
from drgn_reliable.tables.framerule import (
    CFA,
    Abi,
    BadRule,
    FrameRule,
    Place,
    Provider,
    caller_registers,
)
from drgn_reliable.tables.loadedsframe import kernel_sframe, module_sframe
from drgn_reliable.tables.sframe import HEADER_SIZE, SFrameSection, section_size
from tests.callframes import CallFrames
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes
from tests.sframes import (
    AARCH64,
    AARCH64_BIG,
    AMD64,
    FLEXIBLE,
    KEY_B,
    MASKED,
    S390X,
    SIGNAL,
    SORTED,
    Function,
    function,
    section,
)

AT = 0xFFFF800081000000
"""Where sections of the tests lie."""
TEXT = 0x1000
"""From there to a function of the tests."""

ABIS = {
    "aarch64": Abi({29: "fp", 30: "lr", 31: "sp"}, 31, 29, 30, (29,)),
    "s390x": Abi({11: "r11", 14: "r14", 15: "sp"}, 15, 11, 14, (11,), sp_below_cfa=160),
    "x86_64": Abi({6: "bp", 7: "sp", 16: "ip"}, 7, 6, 16, (6,), links=False),
}
NAMES = {
    AARCH64: ABIS["aarch64"].names,
    AARCH64_BIG: ABIS["aarch64"].names,
    AMD64: ABIS["x86_64"].names,
    S390X: ABIS["s390x"].names,
}


def read(data: bytes, little_endian: bool = True) -> SFrameSection:
    return SFrameSection(data, address=AT, little_endian=little_endian)


def rule(data: bytes, offset: int, little_endian: bool = True) -> FrameRule:
    found = read(data, little_endian).find(AT + TEXT + offset)
    assert found
    return found


# What a row means -------------------------------------------------------------------------------
#
# A row is its start, an information byte and data words. The information byte has in bit 0 the
# CFA's base (0 FP, 1 SP), then in 4 bits the number of words, in 2 bits their size (0, 1, 2: 1, 2,
# 4 bytes), in the last bit whether the return address is signed: 03 is SP and one word of a byte.

DEFAULT_ROWS = [
    (AARCH64, "00 03 00", "cfa = sp, fp = fp, lr = lr"),
    (AARCH64, "00 03 40", "cfa = sp + 64, fp = fp, lr = lr"),
    (AARCH64, "00 07 20 e8 e0", "cfa = sp + 32, fp = *(cfa - 32), lr = *(cfa - 24)"),
    (AARCH64, "00 06 20 e8 e0", "cfa = fp + 32, fp = *(cfa - 32), lr = *(cfa - 24)"),
    (AARCH64, "00 87 20 e8 e0", "cfa = sp + 32, fp = *(cfa - 32), lr = *(cfa - 24)"),
    (AARCH64, "00 23 1010", "cfa = sp + 4112, fp = fp, lr = lr"),
    (
        AARCH64,
        "00 47 10001000 f8ffffff f0ffffff",
        "cfa = sp + 1048592, fp = *(cfa - 16), lr = *(cfa - 8)",
    ),
    (AARCH64, "00 05 10 f0", "cfa = sp + 16, fp = fp, lr = *(cfa - 16)"),
    (AARCH64, "00 01", "no caller"),
    (
        AARCH64_BIG,
        "00 27 0120 fff8 fff0",
        "cfa = sp + 288, fp = *(cfa - 16), lr = *(cfa - 8)",
    ),
    (AMD64, "00 03 08", "cfa = sp + 8, bp = bp, ip = *(cfa - 8)"),
    (AMD64, "00 05 10 f0", "cfa = sp + 16, bp = *(cfa - 16), ip = *(cfa - 8)"),
    (AMD64, "00 04 10 f0", "cfa = bp + 16, bp = *(cfa - 16), ip = *(cfa - 8)"),
    (AMD64, "00 01", "no caller"),
    (S390X, "00 03 00", "cfa = sp + 160, r11 = r11, r14 = r14"),
    (S390X, "00 03 08", "cfa = sp + 224, r11 = r11, r14 = r14"),
    (S390X, "00 07 16 d0 b8", "cfa = sp + 336, r11 = *(cfa - 72), r14 = *(cfa - 48)"),
    (S390X, "00 06 14 d0 b8", "cfa = r11 + 320, r11 = *(cfa - 72), r14 = *(cfa - 48)"),
    (S390X, "00 05 14 d0", "cfa = sp + 320, r11 = r11, r14 = *(cfa - 48)"),
    (S390X, "00 07 00 00 b8", "cfa = sp + 160, r11 = *(cfa - 72), r14 = r14"),
    (S390X, "00 23 2000", "cfa = sp + 65696, r11 = r11, r14 = r14"),
]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("abi", "row", "formula"), DEFAULT_ROWS)
def test_a_row_of_offsets(abi: int, row: str, formula: str, version: int) -> None:
    data = section([function(TEXT, 16, [row])], version=version, abi=abi)
    found = rule(data, 0, abi in (AARCH64, AMD64))
    assert found.formula(NAMES[abi]) == formula
    assert not found.complete
    assert found.outermost == (formula == "no caller")


def test_version_2_of_s390x_names_registers_by_odd_offsets() -> None:
    """1 + 2 * 16 and 1 + 2 * 17: f0 and f2 in DWARF's numbers."""
    data = section([function(TEXT, 16, ["00 07 00 23 21"])], version=2, abi=S390X)
    assert rule(data, 0, False).registers == {11: Place(16), 14: Place(17)}
    data = section([function(TEXT, 16, ["00 07 00 23 21"])], version=3, abi=S390X)
    assert rule(data, 0, False).registers == {11: Place(CFA, 33, True), 14: Place(CFA, 35, True)}


def test_fixed_places_need_no_words() -> None:
    data = section([function(TEXT, 16, ["00 03 10"])], abi=AMD64, fixed_fp=-16)
    assert rule(data, 0).formula(NAMES[AMD64]) == "cfa = sp + 16, bp = *(cfa - 16), ip = *(cfa - 8)"
    data = section([function(TEXT, 16, ["00 05 10 f0"])], fixed_fp=-24)
    found = rule(data, 0)
    assert found.formula(NAMES[AARCH64]) == "cfa = sp + 16, fp = *(cfa - 24), lr = *(cfa - 16)"


# Words of a flexible row: control and offset of CFA, return address and frame pointer. Control is
# 1 for a register, 2 for reading memory, and the register times 8; 0 stands alone and says nothing.
FLEXIBLE_ROWS = [
    (AMD64, "00 05 51 00", "cfa = r10, bp = bp, ip = *(cfa - 8)"),
    (AMD64, "00 0b 33 f8 00 33 00", "cfa = *(bp - 8), bp = *(bp), ip = *(cfa - 8)"),
    (AMD64, "00 09 39 28 02 d8", "cfa = sp + 40, bp = bp, ip = *(cfa - 40)"),
    (AMD64, "00 0d 39 28 02 d8 02 e0", "cfa = sp + 40, bp = *(cfa - 32), ip = *(cfa - 40)"),
    (AMD64, "00 25 3900 e803", "cfa = sp + 1000, bp = bp, ip = *(cfa - 8)"),
    (AMD64, "00 45 39000000 00000100", "cfa = sp + 65536, bp = bp, ip = *(cfa - 8)"),
    (AMD64, "00 07 39 08 00", "cfa = sp + 8, bp = bp, ip = *(cfa - 8)"),
    (AMD64, "00 01", "no caller"),
    (AARCH64, "00 09 f9 10 49 00", "cfa = sp + 16, fp = fp, lr = r9"),
    (AARCH64, "00 0b f9 10 00 02 f0", "cfa = sp + 16, fp = *(cfa - 16), lr = lr"),
    (AARCH64, "00 09 f9 10 10 f8", "cfa = sp + 16, fp = fp, lr = cfa - 8"),
    (S390X, "00 0d 79 00 89 00 81 00", "cfa = sp + 160, r11 = r16, r14 = r17"),
    (S390X, "00 0b 79 14 00 02 b8", "cfa = sp + 320, r11 = *(cfa - 72), r14 = r14"),
]


@pytest.mark.parametrize(("abi", "row", "formula"), FLEXIBLE_ROWS)
def test_a_flexible_row(abi: int, row: str, formula: str) -> None:
    data = section([function(TEXT, 16, [row], kind=FLEXIBLE)], abi=abi)
    found = rule(data, 0, abi in (AARCH64, AMD64))
    assert found.formula(NAMES[abi]) == formula
    assert not found.complete


def test_a_control_word_is_unsigned() -> None:
    """Register 31 of one byte: f8 and the register's bit."""
    data = section([function(TEXT, 16, ["00 05 fb f0"], kind=FLEXIBLE)])
    assert rule(data, 0).cfa == Place(31, -16, True)


# Which row it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("info", "rows", "size", "second_from"),
    [
        (0, ["00 03 00", "08 03 10"], 0x10, 8),
        (0, ["00 03 00", "ff 03 10"], 0x200, 0xFF),
        (1, ["0000 03 00", "2c01 03 10"], 0x200, 300),
        (2, ["00000000 03 00", "a0860100 03 10"], 0x20000, 100_000),
        (KEY_B, ["00 03 00", "08 83 10"], 0x10, 8),
    ],
    ids=["1 byte", "1 byte, the last", "2 bytes", "4 bytes", "signed with key B"],
)
def test_a_row_counts_from_its_start_to_the_next(
    info: int, rows: list[str], size: int, second_from: int, version: int
) -> None:
    data = section([function(TEXT, size, rows, info=info)], version=version)
    offsets = [0, 1, second_from - 1, second_from, second_from + 1, size - 1]
    found = [rule(data, offset).cfa for offset in offsets]
    assert found == [Place(31)] * 3 + [Place(31, 16)] * 3


@pytest.mark.parametrize("version", [2, 3])
def test_masked_rows_count_within_the_repeated_block(version: int) -> None:
    """A PLT's entries of 16 bytes push something at their 11th."""
    rows = ["00 03 08", "0b 03 10"]
    data = section([function(TEXT, 64, rows, info=MASKED, repeat=16)], version=version, abi=AMD64)
    found = [rule(data, offset).cfa for offset in range(64)]
    assert found == ([Place(7, 8)] * 11 + [Place(7, 16)] * 5) * 4


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("flags", [0, SORTED, 4, SORTED | 4, 2 | SORTED | 4])
@pytest.mark.parametrize("extension", [b"", b"more"])
def test_functions_are_found_wherever_they_stand(
    version: int, flags: int, extension: bytes
) -> None:
    functions = [
        function(TEXT + 0x100, 16, ["00 03 10"]),
        function(-0x2000, 16, ["00 03 20"]),
        function(TEXT, 16, ["00 03 30"]),
        function(TEXT + 16, 0, ["00 03 50"]),
        function(TEXT + 16, 16, ["00 03 40"]),
    ]
    if flags & SORTED:
        functions.sort()
    found = read(section(functions, version=version, flags=flags, extension=extension))
    expected = {-0x2000: 32, TEXT: 48, TEXT + 16: 64, TEXT + 0x100: 16}
    for start, offset in expected.items():
        for at in (start, start + 15):
            covering = found.find(AT + at)
            assert covering
            assert covering.cfa == Place(31, offset)
    outside = (-0x2001, -0x2000 + 16, 0, TEXT - 1, TEXT + 32, TEXT + 0xFF, TEXT + 0x110)
    assert [found.find(AT + at) for at in outside] == [None] * len(outside)
    assert [found.find(address) for address in (0, (1 << 64) - 1)] == [None, None]
    assert sorted(found.functions()) == sorted((AT + f.start, f.size) for f in functions)


def test_version_3_reaches_functions_far_away() -> None:
    data = section([function(0x1000 - AT & (1 << 64) - 1, 16, ["00 03 10"])])
    assert read(data).find(0x1008)


@pytest.mark.parametrize("version", [2, 3])
def test_there_is_no_rule_before_the_first_row(version: int) -> None:
    found = read(section([function(TEXT, 16, ["04 03 10"])], version=version))
    assert found.find(AT + TEXT + 3) is None
    assert found.find(AT + TEXT + 4)


def test_a_function_without_rows_is_outermost_in_version_3() -> None:
    data = section([function(TEXT, 16, [])])
    assert rule(data, 8).outermost
    assert read(section([function(TEXT, 16, [])], version=2)).find(AT + TEXT) is None
    flexible = section([function(TEXT, 16, [], kind=FLEXIBLE)])
    assert read(flexible).find(AT + TEXT) is None


def test_a_signal_frame_is_exact() -> None:
    data = section([function(TEXT, 16, ["00 07 20 e8 e0"], info=SIGNAL)])
    assert rule(data, 0).exact
    assert not rule(section([function(TEXT, 16, ["00 07 20 e8 e0"])]), 0).exact


def test_a_section_has_a_name_for_people() -> None:
    provider: Provider = read(section([]))
    assert provider.name == "SFrame 3"
    assert read(section([], version=2)).name == "SFrame 2"
    named = SFrameSection(section([]), address=AT, little_endian=True, name="SFrame of ext4")
    assert named.name == "SFrame of ext4"


# What makes no sense ----------------------------------------------------------------------------

ONE = function(TEXT, 16, ["00 03 10"])
BAD_SECTIONS = [
    (b"", "byte 0x0: it ends within the header"),
    (section([ONE])[:27], "byte 0x1b: it ends within the header"),
    (b"\xe2\xdf" + section([ONE])[2:], "byte 0x0: magic number 0xdfe2, not 0xdee2"),
    (section([ONE], abi=S390X), "byte 0x0: magic number 0xe2de"),
    (section([ONE], version=1), "byte 0x2: version 1 is not supported"),
    (section([ONE], version=4), "byte 0x2: version 4 is not supported"),
    (section([ONE], flags=0x0D), "byte 0x3: unknown flags 0xd"),
    (section([ONE], abi=5, little_endian=True), "byte 0x4: unknown ABI 5"),
    (section([ONE], abi=S390X, little_endian=True), "byte 0x4: s390x in a dump of the other"),
    (section([ONE])[:-1], "byte 0x10: rows end at byte 0x34, beyond the section's 0x33"),
    (section([ONE])[:40], "byte 0x8: 1 functions end at byte 0x2c, beyond the section's 0x28"),
]


@pytest.mark.parametrize(("data", "why"), BAD_SECTIONS, ids=[why for _, why in BAD_SECTIONS])
def test_a_section_that_makes_no_sense_says_what_and_where(data: bytes, why: str) -> None:
    with pytest.raises(BadRule, match=f"^SFrame.* at 0xffff800081000000, {why}"):
        read(data)


BAD_FUNCTIONS = [
    (function(TEXT, 16, ["00 03 10"], info=3), "unknown type 3 of rows"),
    (function(TEXT, 16, ["00 03 10"], info=0x40), "unknown bits in the function's information"),
    (function(TEXT, 16, ["00 03 10"], kind=2), "unknown type 0x2 of function"),
    (function(TEXT, 16, ["00 03 10"], kind=0x21), "unknown type 0x21 of function"),
    (function(TEXT, 16, ["00 03 10"], info=MASKED), "the repeated block has no bytes"),
    (function(TEXT, 16, ["00 03 10"], count=3), "3 rows do not fit"),
    (function(TEXT, 16, ["00 03 10"], count=0xFFFF), "65535 rows do not fit"),
    (function(TEXT, 16, ["00 03"]), "the rows end within a row's data words"),
    (function(TEXT, 16, ["00 03 10", "00 07 10 f0"]), "the rows end within a row's data words"),
    (function(TEXT, 16, ["00 63 10"]), "unknown size 3 of a row's data words"),
    (function(TEXT, 16, ["08 03 10", "04 03 20"]), "row for 0x4 after the one for 0x8"),
    (function(TEXT, 16, ["00 09 10 f0 f8 00"]), "4 data words, at most 3 have use"),
    (function(TEXT, 16, ["00 03 11"], kind=FLEXIBLE), "control word 0x11 .* has no offset"),
    (function(TEXT, 16, ["00 05 fd 00"], kind=FLEXIBLE), "control word 0xfd is unknown"),
    (function(TEXT, 16, ["00 05 00 00"], kind=FLEXIBLE), "CFA is not counted from a register"),
    (function(TEXT, 16, ["00 05 02 00"], kind=FLEXIBLE), "CFA is not counted from a register"),
    (function(TEXT, 16, ["00 09 f9 00 00 00"], kind=FLEXIBLE), None),
    (function(TEXT, 16, ["00 0b f9 00 00 00 01"], kind=FLEXIBLE), "1 data words have no use"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_FUNCTIONS)
def test_a_function_that_makes_no_sense_says_what_and_where(bad: Function, why: str | None) -> None:
    good = function(TEXT - 16, 16, ["00 03 10"])
    found = read(section([good, bad]))
    assert found.find(AT + TEXT - 1), "the others are not concerned"
    if why is None:
        assert found.find(AT + TEXT)
        return
    with pytest.raises(BadRule, match=f"^SFrame 3 at 0xffff800081000000, byte 0x.*{why}"):
        found.find(AT + TEXT)


def test_rows_beyond_the_section_are_refused() -> None:
    for version in (2, 3):
        data = bytearray(section([ONE], version=version))
        offset = 28 + (8 if version == 2 else 12)
        data[offset : offset + 4] = b"\xff\xff\xff\xff"
        with pytest.raises(BadRule, match=r"the section|the rows end"):
            read(bytes(data)).find(AT + TEXT)


def test_functions_do_not_share_rows() -> None:
    """Else a section of some kilobytes would take minutes and gigabytes."""
    first = function(TEXT, 16, ["00 03 10"] * 100)
    others = [function(TEXT + 16 * n, 16, [], count=100) for n in range(1, 50)]
    data = bytearray(section([first, *others], version=2))
    for number in range(50):
        data[28 + 20 * number + 8 : 28 + 20 * number + 12] = bytes(4)
    found = read(bytes(data))
    assert found.find(AT + TEXT)
    for number in range(1, 50):
        with pytest.raises(BadRule, match="functions share rows"):
            found.find(AT + TEXT + 16 * number)


def test_amd64_without_a_place_of_the_return_address_is_refused() -> None:
    data = section([ONE], abi=AMD64, fixed_ra=0)
    with pytest.raises(BadRule, match="nothing says where the return address is"):
        read(data).find(AT + TEXT)


def test_what_follows_a_section_is_not_its_own() -> None:
    data = section([ONE])
    assert section_size(data[:HEADER_SIZE], True) == len(data)
    assert rule(data + bytes(100), 0) == rule(data, 0)
    assert section_size(bytes(HEADER_SIZE), True) is None
    short = section([function(TEXT, 16, ["00 03"])])
    with pytest.raises(BadRule, match="the rows end within"):
        read(short + bytes(100)).find(AT + TEXT)


# Sections that GNU as and ld wrote --------------------------------------------------------------

DATA = Path(__file__).parent / "data" / "sframe"


class Real(NamedTuple):
    """One of the files that contrib/sframe makes."""

    name: str
    abi: Abi
    data: bytes
    address: int
    little_endian: bool
    sframe: SFrameSection
    functions: dict[str, range]

    def addresses(self) -> Iterator[tuple[str, int]]:
        return ((name, at) for name, covered in self.functions.items() for at in covered)


@cache
def real(name: str) -> Real:
    functions = {}
    for key, bounds in json.loads((DATA / "manifest.json").read_text())[name]["functions"].items():
        first, last = bounds.split("-")
        functions[key] = range(int(first, 16), int(last, 16) + 1)
    with (DATA / name).open("rb") as file:
        elf = ELFFile(file)
        found = elf.get_section_by_name(".sframe")
        data, address, little = found.data(), found["sh_addr"], elf.little_endian
    sframe = SFrameSection(data, address=address, little_endian=little)
    abi = ABIS[name.partition("-")[0]]
    return Real(name, abi, data, address, little, sframe, functions)


FILES = sorted(path.name for path in DATA.glob("*.elf"))

LEFT_OUT = {
    "aarch64-2.elf": {"frame_pointer_only", "by_another_register", "link_register_elsewhere"},
    "aarch64-3.elf": {"frame_pointer_only", "by_another_register", "link_register_elsewhere"},
    "x86_64-2.elf": {"realigned", "by_another_register"},
}
"""Functions that as warns it can write nothing for."""

WRONG = {
    "aarch64-2.elf": {"outermost", "interrupted"},
    "x86_64-2.elf": {"outermost", "interrupted"},
}
"""What as 2.44 writes wrong: that there is no caller, and that amd64's return address is not at its
usual place; version 2 has no word for a signal frame."""


def test_there_are_real_sections_of_both_versions() -> None:
    assert FILES == [
        "aarch64-2.elf",
        "aarch64-3.elf",
        "s390x-3.elf",
        "x86_64-2.elf",
        "x86_64-3.elf",
    ]


@pytest.mark.parametrize("name", FILES)
def test_every_function_but_those_left_out_is_described(name: str) -> None:
    found = real(name)
    described = {key for key, at in found.addresses() if found.sframe.find(at)}
    assert described == set(found.functions) - LEFT_OUT.get(name, set())


@pytest.mark.parametrize("name", FILES)
def test_every_address_has_the_row_that_pyelftools_reads_in_the_cfi(name: str) -> None:
    """Of the PLT's row pyelftools gives but the bytes of an expression."""
    found = real(name)
    with (DATA / name).open("rb") as file:
        frames = CallFrames(file, found.abi.fp)
    passed_over = LEFT_OUT.get(name, set()) | WRONG.get(name, set())
    for key, at in found.addresses():
        row = frames.find(at)
        mine = found.sframe.find(at)
        if key in passed_over or row is None:
            assert key in {".plt", *passed_over}
            continue
        assert mine
        assert (mine.outermost, mine.exact) == (row.outermost, row.exact), f"{key}, {at:#x}"
        if not row.outermost:
            places = (mine.cfa, mine.registers[found.abi.ra], mine.registers[found.abi.fp])
            assert places == (row.cfa, row.ra, row.fp), f"{key}, {at:#x}"


def computed(found: FrameRule, abi: Abi, pc: int) -> tuple[int, int, int]:
    """CFA, return address and frame pointer that a rule gives with registers and memory that are
    all different."""
    registers = {number: 0x1000_0000 * (number + 1) for number in range(34)}
    if not abi.links:
        registers[abi.ra] = pc  # which the expressions of PLTs read

    def word(address: int) -> int:
        return address * 0x9E3779B97F4A7C15 & (1 << 64) - 1

    only_cfa = FrameRule(found.cfa, abi.ra, {abi.ra: Place(CFA)})
    cfa = caller_registers(only_cfa, abi, registers, word).pc
    caller = caller_registers(found, abi, registers, word)
    return cfa, caller.pc, caller.registers[abi.fp]


@pytest.mark.parametrize("name", FILES)
def test_every_address_has_the_caller_that_our_cfi_gives(name: str) -> None:
    """PLTs too; of the large function the ends, since it is the same everywhere between."""
    found = real(name)
    with (DATA / name).open("rb") as file:
        frame = ELFFile(file).get_section_by_name(".eh_frame")
        cfi = CfiSection(
            frame.data(),
            address=frame["sh_addr"],
            eh=True,
            little_endian=found.little_endian,
            name=name,
        )
    passed_over = LEFT_OUT.get(name, set()) | WRONG.get(name, set())
    for key, covered in found.functions.items():
        short = covered if len(covered) < 2000 else [*covered[:100], *covered[-200:]]
        for at in short if key not in passed_over else ():
            mine, other = found.sframe.find(at), cfi.find(at)
            assert mine
            assert other
            assert (mine.outermost, mine.exact) == (other.outermost, other.exact)
            if not other.outermost:
                expected = computed(other, found.abi, at)
                assert computed(mine, found.abi, at) == expected, f"{key}, {at:#x}"


@pytest.mark.parametrize("name", FILES)
def test_a_section_lies_anywhere(name: str) -> None:
    """The same bytes elsewhere describe functions that are as far away."""
    found = real(name)
    moved = SFrameSection(
        found.data, address=found.address + 0x1230, little_endian=found.little_endian
    )
    for covered in found.functions.values():
        assert moved.find(covered[0] + 0x1230) == found.sframe.find(covered[0])


# Damage -----------------------------------------------------------------------------------------


def ask(found: Real, data: bytes) -> int:
    """Ask damaged bytes for functions' rules; how many were refused."""
    refused = 0
    try:
        damaged = SFrameSection(data, address=found.address, little_endian=found.little_endian)
    except BadRule:
        return 1
    for covered in found.functions.values():
        for at in (covered[0], covered[-1]):
            try:
                damaged.find(at)
            except BadRule:
                refused += 1
    return refused


@pytest.mark.parametrize("name", FILES)
def test_no_section_cut_short_is_believed(name: str) -> None:
    found = real(name)
    end = section_size(found.data[:HEADER_SIZE], found.little_endian)
    assert end
    for size in range(end):
        with pytest.raises(BadRule):
            SFrameSection(
                found.data[:size], address=found.address, little_endian=found.little_endian
            )


@pytest.mark.parametrize("name", FILES)
def test_damage_is_refused_or_harmless(name: str) -> None:
    found = real(name)
    random_ = random.Random(name)
    refused = 0
    for _ in range(400):
        data = bytearray(found.data)
        for _ in range(random_.choice((1, 1, 2, 8))):
            where = random_.randrange(len(data) if random_.random() < 0.5 else 200)
            data[where] = random_.choice((0, 1, 127, 128, 255, random_.randrange(256)))
        refused += bool(ask(found, bytes(data)))
    assert refused > 20


def test_noise_is_refused() -> None:
    random_ = random.Random("noise")
    for _ in range(300):
        version = random_.choice((2, 3))
        data = bytearray(random_.randbytes(random_.randrange(28, 300)))
        data[:8] = bytes((0xE2, 0xDE, version, random_.randrange(8), 2, 0, 0, 0))
        for offset in range(8, 28, 4):
            data[offset : offset + 4] = random_.randrange(100).to_bytes(4, "little")
        try:
            found = read(bytes(data))
        except BadRule:
            continue
        for start, _ in found.functions():
            try:
                found.find(start)
            except BadRule as error:
                assert "byte 0x" in str(error)


# Sections in a dump -----------------------------------------------------------------------------


def at_text(address: int) -> bool:
    """The one function begins where a section that counts from itself has it."""
    return address == AT + TEXT


@pytest.mark.parametrize("counted_from", ["section", "entry"])
def test_symbols_tell_from_what_version_2_counts(counted_from: str) -> None:
    """What the linker has not seen counts from each entry, and no flag says so."""
    memory = FakeMemory()
    data = section([ONE], version=2, flags=SORTED)
    memory.put(AT, data + bytes(8))
    symbols = FakeSymbols({"__start_sframe": AT, "__end_sframe": AT + len(data)})
    begins = AT + TEXT + (HEADER_SIZE if counted_from == "entry" else 0)
    found = kernel_sframe(memory.prog, symbols, lambda address: address == begins)
    assert found
    assert [start for start, _ in found.functions()] == [begins]


@pytest.mark.parametrize(
    ("begins", "claim"),
    [
        pytest.param(lambda address: False, "do not begin", id="no symbol is where a function is"),
        pytest.param(lambda address: None, "do not begin", id="nothing tells"),
    ],
)
def test_a_section_whose_functions_are_no_symbols_is_refused(begins: Any, claim: str) -> None:
    memory = FakeMemory()
    data = section([ONE])
    memory.put(AT, data)
    symbols = FakeSymbols({"__start_sframe": AT, "__end_sframe": AT + len(data)})
    with pytest.raises(BadRule, match=claim):
        kernel_sframe(memory.prog, symbols, begins)


@pytest.mark.parametrize(
    "names",
    [("__start_sframe", "__end_sframe"), ("__start_sframe_header", "__stop_sframe_header")],
)
def test_the_kernels_section_is_bounded_by_symbols(names: tuple[str, str]) -> None:
    memory = FakeMemory()
    data = section([ONE]) + bytes(8)
    memory.put(AT, data)
    symbols = FakeSymbols(dict(zip(names, (AT, AT + len(data)), strict=True)))
    found = kernel_sframe(memory.prog, symbols, at_text)
    assert found
    assert found.find(AT + TEXT) == rule(data, 0)


def test_a_kernel_without_a_section_has_none() -> None:
    memory = FakeMemory()
    assert kernel_sframe(memory.prog, FakeSymbols({}), at_text) is None
    empty = FakeSymbols({"__start_sframe": AT, "__end_sframe": AT})
    assert kernel_sframe(memory.prog, empty, at_text) is None


def test_a_kernels_section_that_the_dump_lacks_is_a_fault() -> None:
    symbols = FakeSymbols({"__start_sframe": AT, "__end_sframe": AT + 64})
    with pytest.raises(FaultError):
        kernel_sframe(FakeMemory().prog, symbols, at_text)


@pytest.mark.parametrize("end", [AT - 64, AT + (1 << 40)])
def test_a_kernels_section_of_an_impossible_size_is_refused(end: int) -> None:
    symbols = FakeSymbols({"__start_sframe": AT, "__end_sframe": end})
    with pytest.raises(BadRule, match="a size of"):
        kernel_sframe(FakeMemory().prog, symbols, at_text)


MODULE = 0xFFFF80007A000000


def fake_module(in_arch: bool) -> FakeMemory:
    memory = FakeMemory()
    types = FakeTypes(memory.prog)
    types.struct("attribute", name="const char *")
    types.struct("bin_attribute", attr="struct attribute", private="void *")
    types.struct("attribute_group", bin_attrs="void **")
    types.struct(
        "module_sect_attrs", grp="struct attribute_group", attrs="struct bin_attribute [1]"
    )
    types.struct("sframe_section", sframe_start="unsigned long", sframe_end="unsigned long")
    types.struct("mod_arch_specific", sframe_sec="struct sframe_section")
    arch = {"arch": "struct mod_arch_specific"} if in_arch else {}
    types.struct("module", sect_attrs="struct module_sect_attrs *", **arch)
    return memory


def put_section_attribute(memory: FakeMemory, name: bytes) -> None:
    attributes, pointers, name_at = MODULE + 0x1000, MODULE + 0x2000, MODULE + 0x3000
    memory.put_struct(MODULE, "struct module", sect_attrs=attributes)
    memory.put_struct(
        attributes,
        "struct module_sect_attrs",
        grp={"bin_attrs": pointers},
        attrs=[{"attr": {"name": name_at}, "private": AT}],
    )
    memory.put_words(pointers, attributes + 8, 0)
    memory.put(name_at, name + b"\0")


def test_a_modules_section_is_where_the_unwinder_keeps_it() -> None:
    memory = fake_module(in_arch=True)
    data = section([ONE])
    memory.put(AT, data)
    bounds = {"sframe_start": AT, "sframe_end": AT + len(data)}
    memory.put_struct(MODULE, "struct module", arch={"sframe_sec": bounds})
    found = module_sframe(memory.prog, MODULE, at_text)
    assert found
    assert found.find(AT + TEXT) == rule(data, 0)


@pytest.mark.parametrize("in_arch", [True, False])
def test_a_modules_section_is_else_one_of_its_loaded_sections(in_arch: bool) -> None:
    """Its size is what its header says."""
    memory = fake_module(in_arch)
    data = section([ONE])
    memory.put(AT, data)
    put_section_attribute(memory, b".sframe")
    found = module_sframe(memory.prog, MODULE, at_text)
    assert found
    assert found.find(AT + TEXT) == rule(data, 0)


def test_a_module_without_a_section_has_none() -> None:
    memory = fake_module(in_arch=True)
    put_section_attribute(memory, b".text")
    assert module_sframe(memory.prog, MODULE, at_text) is None


def test_a_modules_section_that_is_none_is_refused() -> None:
    memory = fake_module(in_arch=False)
    put_section_attribute(memory, b".sframe")
    memory.put(AT, bytes(64))
    with pytest.raises(BadRule, match="magic number 0x0000"):
        module_sframe(memory.prog, MODULE, at_text)
