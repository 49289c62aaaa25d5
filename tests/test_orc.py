# SPDX-License-Identifier: LGPL-2.1-or-later
"""ORC entries encoded by hand (arch/x86/include/asm/orc_types.h) and tables laid out as
objtool and the kernel lay them out (arch/x86/kernel/unwind_orc.c)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation, UnsupportedKernel
from drgn_reliable.generated import GeneratedText
from drgn_reliable.modules import ModuleList
from drgn_reliable.tables.orc import (
    FORMATS,
    FRAME_POINTER_RULE,
    Base,
    OrcTables,
    Rule,
    Shape,
    orc_format,
)
from drgn_reliable.text import CodeRules, Text
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes, kernel_types

# One entry --------------------------------------------------------------------------------------
#
# An entry is s16 sp_offset, s16 bp_offset, u16 flags, little-endian: the hex digits of the fifth
# byte are bp_reg and sp_reg, those of the sixth hold type, signal and end as the format says.

V3_V4_SHAPES = [
    ("0000 0000 0000", Shape.UNDEFINED, False),
    ("0000 0000 0001", Shape.END, False),
    ("0000 0000 0002", Shape.CALL, False),
    ("0000 0000 0003", Shape.REGS, False),
    ("0000 0000 0004", Shape.REGS_PARTIAL, False),
    ("0000 0000 0005", Shape.UNKNOWN, False),
    ("0000 0000 0006", Shape.UNKNOWN, False),
    ("0000 0000 0007", Shape.UNKNOWN, False),
    ("0000 0000 0008", Shape.UNDEFINED, True),
    ("0000 0000 0009", Shape.END, True),
    ("0000 0000 000a", Shape.CALL, True),
    ("0000 0000 000b", Shape.REGS, True),
    ("0000 0000 000c", Shape.REGS_PARTIAL, True),
    ("0000 0000 00f2", Shape.CALL, False),
]
"""Type in bits 8-10, signal in bit 11; a type says by itself that data are missing."""

SHAPES: dict[int, list[tuple[str, Shape, bool]]] = {
    # sp_reg in bits 0-3: 5 is SP. Type in bits 8-9, end in bit 10, no signal bit.
    1: [
        ("0000 0000 0500", Shape.CALL, False),
        ("0000 0000 0501", Shape.REGS, True),
        ("0000 0000 0502", Shape.REGS_PARTIAL, True),
        ("0000 0000 0503", Shape.UNKNOWN, False),
        ("0000 0000 0504", Shape.CALL, False),
        ("0000 0000 0505", Shape.REGS, True),
        ("0000 0000 0000", Shape.UNDEFINED, False),
        ("0000 0000 0001", Shape.UNDEFINED, False),
        ("0000 0000 0004", Shape.END, False),
        ("0000 0000 4004", Shape.END, False),
        ("0000 0000 0005", Shape.END, False),
    ],
    # The same with signal in bit 10 and end in bit 11.
    2: [
        ("0000 0000 0500", Shape.CALL, False),
        ("0000 0000 0501", Shape.REGS, False),
        ("0000 0000 0505", Shape.REGS, True),
        ("0000 0000 0506", Shape.REGS_PARTIAL, True),
        ("0000 0000 0504", Shape.CALL, True),
        ("0000 0000 0507", Shape.UNKNOWN, True),
        ("0000 0000 0000", Shape.UNDEFINED, False),
        ("0000 0000 0004", Shape.UNDEFINED, True),
        ("0000 0000 0008", Shape.END, False),
        ("0000 0000 000c", Shape.END, True),
    ],
    3: V3_V4_SHAPES,
    4: V3_V4_SHAPES,
}

ANY_CODE = CodeRules(lambda code: True, 8)


@pytest.mark.parametrize(
    ("version", "entry", "shape", "exact"),
    [(version, *row) for version, rows in SHAPES.items() for row in rows],
)
def test_type_end_and_signal_bits(version: int, entry: str, shape: Shape, exact: bool) -> None:
    rule = FORMATS[version].decode(bytes.fromhex(entry))
    assert (rule.shape, rule.exact) == (shape, exact)


ORC_REG_BEFORE_7_1 = [
    Base.UNDEFINED, Base.PREV_SP, Base.DX, Base.DI, Base.BP, Base.SP, Base.R10, Base.R13,
    Base.BP_INDIRECT, Base.SP_INDIRECT, None, None, None, None, None, None,
]  # fmt: skip
ORC_REG_SINCE_7_1 = [
    Base.UNDEFINED, Base.AX, Base.DX, Base.SP, Base.BP, Base.DI, Base.R10, Base.R13,
    Base.PREV_SP, Base.SP_INDIRECT, Base.BP_INDIRECT, None, None, None, None, None,
]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "bases"),
    [
        (1, ORC_REG_BEFORE_7_1),
        (2, ORC_REG_BEFORE_7_1),
        (3, ORC_REG_BEFORE_7_1),
        (4, ORC_REG_SINCE_7_1),
    ],
)
def test_register_numbers(version: int, bases: list[Base | None]) -> None:
    """Both fields count the same registers; numbers above the last are of no register."""
    decode = FORMATS[version].decode
    assert [decode(bytes([0, 0, 0, 0, n, 0])).sp_base for n in range(16)] == bases
    assert [decode(bytes([0, 0, 0, 0, n << 4, 0])).bp_base for n in range(16)] == bases


@pytest.mark.parametrize(
    ("version", "entry", "rule"),
    [
        pytest.param(
            1, "0800 0000 0500",
            Rule(Shape.CALL, False, Base.SP, 8, Base.UNDEFINED, 0),
            id="1: a function before its first push",
        ),
        pytest.param(
            1, "1000 f0ff 1400",
            Rule(Shape.CALL, False, Base.BP, 16, Base.PREV_SP, -16),
            id="1: a function with a frame pointer",
        ),
        pytest.param(
            3, "3000 f0ff 1502",
            Rule(Shape.CALL, False, Base.SP, 48, Base.PREV_SP, -16),
            id="3: BP saved below the return address",
        ),
        pytest.param(
            3, "0000 0000 050b",
            Rule(Shape.REGS, True, Base.SP, 0, Base.UNDEFINED, 0),
            id="3: pt_regs of an interrupt",
        ),
        pytest.param(
            3, "f8ff 0000 0902",
            Rule(Shape.CALL, False, Base.SP_INDIRECT, -8, Base.UNDEFINED, 0),
            id="3: call_on_stack",
        ),
        pytest.param(
            3, "0080 ff7f 4802",
            Rule(Shape.CALL, False, Base.BP_INDIRECT, -32768, Base.BP, 32767),
            id="3: the extremes of the offsets",
        ),
        pytest.param(
            4, "3000 f0ff 8302",
            Rule(Shape.CALL, False, Base.SP, 48, Base.PREV_SP, -16),
            id="4: the registers have other numbers",
        ),
        pytest.param(
            4, "7800 0000 030c",
            Rule(Shape.REGS_PARTIAL, True, Base.SP, 120, Base.UNDEFINED, 0),
            id="4: an iret frame",
        ),
    ],
)  # fmt: skip
def test_whole_entries(version: int, entry: str, rule: Rule) -> None:
    assert FORMATS[version].decode(bytes.fromhex(entry)) == rule


def test_the_frame_pointer_rule_is_the_kernels() -> None:
    """orc_fp_entry: CALL, sp = BP + 16, bp = *(PREV_SP - 16)."""
    assert Rule(Shape.CALL, False, Base.BP, 16, Base.PREV_SP, -16) == FRAME_POINTER_RULE


# Which format -----------------------------------------------------------------------------------

HEADER = 0xFFFFFFFF82300000
OFFSETS = {"sp_offset": "short", "bp_offset": "short"}
REGISTERS = {"sp_reg": "unsigned int:4", "bp_reg": "unsigned int:4"}


@pytest.mark.parametrize(
    ("header", "version"),
    [
        ("db84aed4103b31dd51e017f8f79783ca985c2c51", 2),
        ("fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24", 3),
        ("137c36ad7627c4dd55932176bb0ecdbd5041fc82", 4),
    ],
)
def test_the_header_names_the_format(header: str, version: int) -> None:
    """SHA-1 of the text of orc_types.h, as scripts/orc_hash.sh takes it."""
    memory = FakeMemory()
    memory.put(HEADER, bytes.fromhex(header))
    assert orc_format(memory.prog, FakeSymbols({"__start_orc_header": HEADER})) is FORMATS[version]


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        pytest.param({"type": "unsigned int:2", "end": "unsigned int:1"}, 1, id="6.1"),
        pytest.param(
            {"type": "unsigned int:2", "signal": "unsigned int:1", "end": "unsigned int:1"},
            2,
            id="early 6.3",
        ),
        pytest.param(
            {"type": "unsigned int:3", "signal": "unsigned int:1"}, 3, id="RHEL 9 (backport)"
        ),
    ],
)
def test_without_a_header_the_bit_fields_tell_the_format(
    fields: dict[str, str], version: int
) -> None:
    memory = FakeMemory()
    FakeTypes(memory.prog).struct("orc_entry", 6, **OFFSETS, **REGISTERS, **fields)
    assert orc_format(memory.prog, FakeSymbols()) is FORMATS[version]


def test_an_unknown_header_is_refused_by_its_hash() -> None:
    """The bit fields are not asked: a format may keep them and renumber the registers."""
    memory = FakeMemory()
    FakeTypes(memory.prog).struct("orc_entry", 6, **OFFSETS, **REGISTERS, end="unsigned int:1")
    memory.put(HEADER, bytes(range(20)))
    with pytest.raises(UnsupportedKernel, match="000102030405060708090a0b0c0d0e0f10111213"):
        orc_format(memory.prog, FakeSymbols({"__start_orc_header": HEADER}))


def test_an_unreadable_header_is_missing_not_unknown() -> None:
    with pytest.raises(MissingInformation, match=f"{HEADER:#x}"):
        orc_format(FakeMemory().prog, FakeSymbols({"__start_orc_header": HEADER}))


# Tables -----------------------------------------------------------------------------------------

TEXT = 0xFFFFFFFF81000000
INIT = 0xFFFFFFFF83000000
IP, ENTRIES, LOOKUP = 0xFFFFFFFF82100000, 0xFFFFFFFF82200000, 0xFFFFFFFF82280000
MODULE, MODULE_END = 0xFFFFFFFFC0000000, 0xFFFFFFFFC0003000
MODULE_IP, MODULE_ENTRIES = 0xFFFFFFFFC0002000, 0xFFFFFFFFC0002800
TRAMPOLINE = 0xFFFFFFFFA0000000
BPF = 0xFFFFFFFFA0100000
OPS_LIST, OPS, OPS_END = 0xFFFFFFFF82500000, 0xFFFF888000010000, 0xFFFFFFFF82500100
KSYMS, KSYM = 0xFFFFFFFF82500200, 0xFFFF888000011000
MODULES, MODULE_STRUCT = 0xFFFFFFFF82500300, 0xFFFF888000012000

ROWS = [
    (TEXT + 0x00, 1),
    (TEXT + 0x10, 2),
    (TEXT + 0x80, 3),  # a terminator, hidden by the entry after it
    (TEXT + 0x80, 4),
    (TEXT + 0x180, 5),
    (TEXT + 0x240, 6),
    (TEXT + 0x2C0, 7),
    (TEXT + 0x300, 8),  # terminator of .text
    (INIT + 0x20, 9),
    (INIT + 0x100, 10),
]
"""Address of each entry and its sp_offset, by which the tests tell the entries apart."""

LOOKUPS = [0, 3, 4, 7]
"""For each block of 256 bytes of text the last entry at or before its start, and one more."""

SYMBOLS = {
    "_stext": TEXT,
    "_etext": TEXT + 0x400,
    "_sinittext": INIT,
    "_einittext": INIT + 0x1000,
    "__start_orc_header": HEADER,
    "__start_orc_unwind_ip": IP,
    "__stop_orc_unwind_ip": IP + 4 * len(ROWS),
    "__start_orc_unwind": ENTRIES,
    "orc_lookup": LOOKUP,
    "orc_lookup_end": LOOKUP + 4 * len(LOOKUPS),
    "ftrace_caller": TEXT + 0x180,
    "ftrace_regs_caller": TEXT + 0x240,
    "ftrace_ops_list": OPS_LIST,
    "ftrace_list_end": OPS_END,
    "bpf_kallsyms": KSYMS,
    "modules": MODULES,
}


def put_table(memory: FakeMemory, ip: int, entries: int, rows: Sequence[tuple[int, int]]) -> None:
    """A pair of tables: addresses relative to their own place; CALL entries from SP (format 3)."""
    memory.put_u32(ip, *[address - (ip + 4 * i) for i, (address, _) in enumerate(rows)])
    for i, (_, offset) in enumerate(rows):
        memory.put(entries + 6 * i, bytes([offset, 0, 0, 0, 0x05, 0x02]))


def put_kernel(memory: FakeMemory) -> FakeTypes:
    """Tables of the core kernel, without modules, tracers and BPF."""
    types = kernel_types(memory.prog)
    memory.put(HEADER, bytes.fromhex("fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24"))
    put_table(memory, IP, ENTRIES, ROWS)
    memory.put_u32(LOOKUP, *LOOKUPS)
    memory.put_words(OPS_LIST, OPS_END)
    memory.put_list(KSYMS)
    memory.put_list(MODULES)
    return types


def put_bpf(memory: FakeMemory, **members: int) -> None:
    """One BPF program of 0x100 bytes."""
    memory.put_struct(
        KSYM, "struct bpf_ksym", start=BPF, end=BPF + 0x100, name=b"bpf_prog", **members
    )
    memory.put_list(KSYMS, KSYM + 528)


def tables(prog: Program, **symbols: int) -> OrcTables[Rule]:
    """The tables that a program's memory holds, with some symbols changed."""
    names = FakeSymbols({**SYMBOLS, **symbols})
    generated = GeneratedText(prog, names, 4096)
    modules = ModuleList(prog, names.address("modules"))
    text = Text(prog, names, modules, generated, ANY_CODE)
    return OrcTables(prog, names, text, orc_format(prog, names))


def found(orc: OrcTables, address: int) -> int | None:
    """The number by which a test knows the entry of an address."""
    rule = orc.find(address)
    return None if rule is None else rule.sp_offset


@pytest.mark.parametrize(
    ("address", "entry"),
    [
        pytest.param(TEXT, 1, id="the first address of all"),
        pytest.param(TEXT + 0x0F, 1, id="the last byte before the second entry"),
        pytest.param(TEXT + 0x10, 2, id="the address of an entry"),
        pytest.param(TEXT + 0x7F, 2, id="before the two of the same address"),
        pytest.param(TEXT + 0x80, 4, id="the rightmost of two of the same address"),
        pytest.param(TEXT + 0xFF, 4, id="the last byte of a block"),
        pytest.param(TEXT + 0x100, 4, id="a block begins within an entry's range"),
        pytest.param(TEXT + 0x180, 5, id="an entry within the second block"),
        pytest.param(TEXT + 0x23F, 5, id="the third block before its first entry"),
        pytest.param(TEXT + 0x240, 6, id="the third block at its first entry"),
        pytest.param(TEXT + 0x2FF, 7, id="the last block that the index covers"),
        pytest.param(TEXT + 0x300, None, id="text behind the last block of the index"),
        pytest.param(TEXT + 0x3FF, None, id="the last byte of text, behind the index"),
        pytest.param(TEXT + 0x400, None, id="behind the text"),
        pytest.param(TEXT - 1, None, id="before the text"),
        pytest.param(INIT, 8, id="init text before its first entry"),
        pytest.param(INIT + 0x20, 9, id="init text"),
        pytest.param(INIT + 0xFFF, 10, id="the last byte of init text"),
        pytest.param(INIT + 0x1000, None, id="behind init text"),
        pytest.param(0xFFFF888000000000, None, id="data"),
    ],
)
def test_core_and_init_text(address: int, entry: int | None) -> None:
    memory = FakeMemory()
    put_kernel(memory)
    assert found(tables(memory.prog), address) == entry


def test_an_address_before_all_entries_gets_the_first() -> None:
    """__orc_find() begins with the first entry and only ever goes right."""
    memory = FakeMemory()
    put_kernel(memory)
    put_table(memory, IP, ENTRIES, [(TEXT + 0x40, 11), (TEXT + 0x50, 12)])
    memory.put_u32(LOOKUP, 0, 1)
    orc = tables(memory.prog, __stop_orc_unwind_ip=IP + 8, orc_lookup_end=LOOKUP + 8)
    assert [found(orc, TEXT + at) for at in (0, 0x3F, 0x40, 0x50)] == [11, 11, 11, 12]


def test_a_jump_to_0_has_a_rule_of_its_own() -> None:
    """null_orc_entry: only the return address has been pushed."""
    memory = FakeMemory()
    put_kernel(memory)
    rule = Rule(Shape.CALL, False, Base.SP, 8, Base.UNDEFINED, 0)
    assert tables(memory.prog).find(0) == rule


@pytest.mark.parametrize(
    ("lookups", "entry"),
    [
        pytest.param([0, 3, 4, 7], 4, id="sound"),
        pytest.param([0, 9, 4, 7], 4, id="as far as the last entry of all"),
        pytest.param([0, 1, 4, 7], 2, id="the index is believed, though it ends too early"),
        pytest.param([2, 2, 4, 7], 3, id="a single entry"),
        pytest.param([0, 10, 4, 7], None, id="ends behind the table"),
        pytest.param([10, 10, 4, 7], None, id="begins behind the table"),
        pytest.param([4, 3, 4, 7], None, id="no entries between"),
    ],
)
def test_a_block_index_that_leaves_the_table_finds_nothing(
    lookups: list[int], entry: int | None
) -> None:
    memory = FakeMemory()
    put_kernel(memory)
    memory.put_u32(LOOKUP, *lookups)
    assert found(tables(memory.prog), TEXT + 0x90) == entry


@pytest.mark.parametrize(
    ("missing", "address"),
    [
        pytest.param("index", TEXT + 0x10, id="block index"),
        pytest.param("ip", TEXT + 0x10, id="addresses"),
        pytest.param("entries", TEXT + 0x10, id="entries"),
        pytest.param("ip", INIT, id="addresses, for init text"),
    ],
)
def test_a_table_that_the_dump_lacks_raises_a_fault(missing: str, address: int) -> None:
    """Not "no entry": the kernel would have found one."""
    memory = FakeMemory()
    put_kernel(memory)
    nowhere = 0xFFFFFFFF8F000000
    symbols = {
        "index": {"orc_lookup": nowhere, "orc_lookup_end": nowhere + 16},
        "ip": {"__start_orc_unwind_ip": nowhere, "__stop_orc_unwind_ip": nowhere + 40},
        "entries": {"__start_orc_unwind": nowhere},
    }[missing]
    orc = tables(memory.prog, **symbols)
    with pytest.raises(FaultError) as error:
        orc.find(address)
    assert error.value.address & ~0xFFF == nowhere


def test_only_what_the_search_comes_by_has_to_be_in_the_dump() -> None:
    """The kernel would not have read the rest either."""
    memory = FakeMemory()
    put_kernel(memory)
    ip = 0xFFFFFFFF8F000000
    for index in (1, 2):
        place = ip + 4 * index
        memory.put_u32(place, ROWS[index][0] - place)
    orc = tables(memory.prog, __start_orc_unwind_ip=ip, __stop_orc_unwind_ip=ip + 40)
    assert found(orc, TEXT + 0x10) == 2
    with pytest.raises(FaultError):
        orc.find(TEXT + 0x80)


@pytest.mark.parametrize(
    "name",
    ["__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "orc_lookup",
     "orc_lookup_end"],
)  # fmt: skip
def test_a_missing_table_symbol_is_named(name: str) -> None:
    memory = FakeMemory()
    put_kernel(memory)
    names = FakeSymbols({k: v for k, v in SYMBOLS.items() if k != name})
    generated, modules = GeneratedText(memory.prog, names, 4096), ModuleList(memory.prog, None)
    text = Text(memory.prog, names, modules, generated, ANY_CODE)
    with pytest.raises(MissingInformation, match=name):
        OrcTables(memory.prog, names, text, orc_format(memory.prog, names))


# Modules ----------------------------------------------------------------------------------------


def put_module(memory: FakeMemory, **arch: int) -> None:
    """A module with two entries, of which some addresses or the number may be changed."""
    put_table(memory, MODULE_IP, MODULE_ENTRIES, [(MODULE + 0x10, 21), (MODULE + 0x100, 22)])
    memory.put_struct(
        MODULE_STRUCT,
        "struct module",
        name=b"mod",
        mem=[{"base": MODULE, "size": 0x1000}, {"base": MODULE + 0x1000, "size": 0x2000}],
        arch={
            "num_orcs": 2,
            "orc_unwind_ip": MODULE_IP,
            "orc_unwind": MODULE_ENTRIES,
            **arch,
        },
    )
    memory.put_list(MODULES, MODULE_STRUCT + 8)


@pytest.mark.parametrize(
    ("address", "arch", "entry"),
    [
        pytest.param(MODULE + 0x10, {}, 21, id="an entry's address"),
        pytest.param(MODULE, {}, 21, id="before the first entry"),
        pytest.param(MODULE + 0xFFF, {}, 22, id="the last byte of text"),
        pytest.param(MODULE + 0x2FFF, {}, 22, id="its data too: the kernel does not look"),
        pytest.param(MODULE_END, {}, None, id="behind the module"),
        pytest.param(MODULE + 0x100, {"num_orcs": 1}, 21, id="the table's end counts"),
        pytest.param(MODULE + 0x10, {"num_orcs": 0}, None, id="an empty table"),
        pytest.param(MODULE + 0x10, {"orc_unwind": 0}, None, id="without entries"),
        pytest.param(MODULE + 0x10, {"orc_unwind_ip": 0}, None, id="without addresses"),
    ],
)
def test_modules(address: int, arch: dict[str, int], entry: int | None) -> None:
    memory = FakeMemory()
    put_kernel(memory)
    put_module(memory, **arch)
    assert found(tables(memory.prog), address) == entry


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(0xFFFFFFFFC0F00000, id="not in the dump"),
        pytest.param(0xFFFFFFFFFFFFFFFE, id="beyond the end of memory"),
    ],
)
@pytest.mark.parametrize("table", ["orc_unwind_ip", "orc_unwind"])
def test_a_modules_table_that_cannot_be_read_raises_a_fault(table: str, place: int) -> None:
    memory = FakeMemory()
    put_kernel(memory)
    put_module(memory, **{table: place})
    with pytest.raises(FaultError):
        tables(memory.prog).find(MODULE + 0x100)


# Generated code ---------------------------------------------------------------------------------

SAVE_REGS = 4


@pytest.mark.parametrize(
    ("flags", "at", "entry"),
    [
        pytest.param(0, 0, 5, id="a copy of ftrace_caller"),
        pytest.param(0, 0xBF, 5, id="the last byte under that entry"),
        pytest.param(0, 0xC0, 6, id="as far into it as the original's next entry"),
        pytest.param(SAVE_REGS, 0, 6, id="a copy of ftrace_regs_caller"),
        pytest.param(SAVE_REGS, 0x80, 7, id="as far into that"),
        pytest.param(SAVE_REGS | 0x1003, 0, 6, id="other flags do not matter"),
        pytest.param(0x1003, 0, 5, id="nor without the one"),
        pytest.param(0, 0xFF, 6, id="the trampoline's last byte"),
        pytest.param(0, 0x100, None, id="behind the trampoline"),
        pytest.param(0, -1, None, id="before the trampoline"),
    ],
)
def test_an_ftrace_trampoline_has_the_entries_of_the_code_it_is_a_copy_of(
    flags: int, at: int, entry: int | None
) -> None:
    memory = FakeMemory()
    put_kernel(memory)
    memory.put_struct(
        OPS, "struct ftrace_ops", next=OPS_END, flags=flags, trampoline=TRAMPOLINE,
        trampoline_size=0x100,
    )  # fmt: skip
    memory.put_words(OPS_LIST, OPS)
    assert found(tables(memory.prog), TRAMPOLINE + at) == entry


def test_an_ftrace_trampoline_without_its_original_has_no_rule() -> None:
    memory = FakeMemory()
    put_kernel(memory)
    memory.put_struct(
        OPS, "struct ftrace_ops", next=OPS_END, trampoline=TRAMPOLINE, trampoline_size=0x100
    )
    memory.put_words(OPS_LIST, OPS)
    names = FakeSymbols({k: v for k, v in SYMBOLS.items() if k != "ftrace_caller"})
    modules = ModuleList(memory.prog, None)
    generated = GeneratedText(memory.prog, names, 4096)
    text = Text(memory.prog, names, modules, generated, ANY_CODE)
    assert (
        OrcTables(memory.prog, names, text, orc_format(memory.prog, names)).find(TRAMPOLINE) is None
    )


def test_an_ftrace_trampoline_that_is_its_own_original_does_not_recurse() -> None:
    memory = FakeMemory()
    put_kernel(memory)
    memory.put_struct(
        OPS, "struct ftrace_ops", next=OPS_END, trampoline=TRAMPOLINE, trampoline_size=0x100
    )
    memory.put_words(OPS_LIST, OPS)
    assert tables(memory.prog, ftrace_caller=TRAMPOLINE).find(TRAMPOLINE + 8) is None


@pytest.mark.parametrize(
    ("fp_start", "fp_end", "at", "has"),
    [
        pytest.param(4, 0x80, 4, True, id="where the frame pointer is set up"),
        pytest.param(4, 0x80, 3, False, id="before it is set up"),
        pytest.param(4, 0x80, 0x7F, True, id="before it is torn down"),
        pytest.param(4, 0x80, 0x80, False, id="once it is torn down"),
        pytest.param(0, 0x80, 4, False, id="no start: none at all"),
        pytest.param(4, 0, 4, False, id="no end: none at all"),
        pytest.param(4, 0x200, 0x100, True, id="the program's end is included"),
        pytest.param(4, 0x200, 0x101, False, id="behind the program"),
    ],
)
def test_bpf_code_has_a_rule_only_while_it_keeps_a_frame_pointer(
    fp_start: int, fp_end: int, at: int, has: bool
) -> None:
    """bpf_has_frame_pointer() of Linux 7.0; the program is 0x100 bytes long."""
    memory = FakeMemory()
    put_kernel(memory).struct(
        "bpf_ksym",
        start="unsigned long",
        end="unsigned long",
        name="char [512]",
        lnode="struct list_head",
        fp_start="unsigned int",
        fp_end="unsigned int",
    )
    put_bpf(memory, fp_start=fp_start, fp_end=fp_end)
    assert tables(memory.prog).find(BPF + at) == (FRAME_POINTER_RULE if has else None)


def test_before_linux_7_0_bpf_code_has_no_rule() -> None:
    memory = FakeMemory()
    put_kernel(memory)
    put_bpf(memory)
    assert tables(memory.prog).find(BPF + 4) is None
