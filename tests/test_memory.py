# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bulk reads: struct layouts probed from types, stacks with holes, kernel lists that are broken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import (
    BrokenList,
    Layout,
    StackMemory,
    byte_order,
    container_nodes,
    list_nodes,
    member_offset,
)
from tests.fakes import FakeMemory, FakeTypes

AT = 0xFFFF888000001000


# Layout -----------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> FakeMemory:
    """Memory with a ``struct sample`` of 64 bytes at :data:`AT`."""
    memory = FakeMemory()
    types = FakeTypes(memory.prog)
    types.struct("inner", pad="int", deep="unsigned short")
    types.typedef("alias", "struct inner")
    types.enum("color", RED=0, BLUE=9)
    types.struct(
        "sample",
        s8="signed char",
        u8="unsigned char",
        s16="short",
        u32="unsigned int",
        s64="long",
        u64="unsigned long",
        pointer="void *",
        flag="_Bool",
        color="enum color",
        text="char [6]",
        inner="alias",
    )
    memory.put(
        AT,
        bytes.fromhex(
            "ff ff feff fdffffff"  # s8 u8 s16 u32
            "fcffffffffffffff"  # s64
            "fbffffffffffffff"  # u64
            "00ffffff8188ffff"  # pointer
            "01 000000 09000000"  # flag, padding, color
            "616200646566 0000"  # text, padding
            "07000000 0800 0000"  # inner
        ),
    )
    return memory


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("s8", -1),
        ("u8", 0xFF),
        ("s16", -2),
        ("u32", 0xFFFFFFFD),
        ("s64", -4),
        ("u64", 0xFFFFFFFFFFFFFFFB),
        ("pointer", 0xFFFF8881FFFFFF00),
        ("flag", True),
        ("color", 9),
        ("text", b"ab\0def"),
        ("inner.deep", 8),
    ],
)
def test_a_member_is_read_with_its_own_width_and_sign(
    memory: FakeMemory, member: str, value: object
) -> None:
    text = ("it",) if isinstance(value, bytes) else ()
    layout = Layout(memory.prog.type("struct sample"), {"it": member}, text=text)
    assert layout.read(memory.prog, AT) == {"it": value}


def test_a_big_endian_dump_is_read_in_its_own_order() -> None:
    memory = FakeMemory(little_endian=False)
    FakeTypes(memory.prog).struct("pair", a="unsigned short", b="int")
    memory.put(AT, bytes.fromhex("0102 0000 fffffffe"))
    layout = Layout(memory.prog.type("struct pair"), {"a": "a", "b": "b"})
    assert byte_order(memory.prog) == ">"
    assert layout.read(memory.prog, AT) == {"a": 0x102, "b": -2}


def test_members_are_read_together_whatever_their_order(memory: FakeMemory) -> None:
    layout = Layout(
        memory.prog.type("struct sample"), {"late": "inner.pad", "early": "u8", "mid": "s64"}
    )
    assert layout.read(memory.prog, AT) == {"late": 7, "early": 0xFF, "mid": -4}


def test_only_the_bytes_from_the_first_to_the_last_member_are_needed() -> None:
    """u32 and s64 are the bytes 4 to 16 of the struct; nothing around them is in the dump."""
    memory = FakeMemory()
    FakeTypes(memory.prog).struct("sample", a="int", u32="unsigned int", s64="long", b="long")
    memory.put(AT + 4, bytes.fromhex("01000000 0200000000000000"))
    layout = Layout(memory.prog.type("struct sample"), {"one": "u32", "two": "s64"})
    assert (layout.start, layout.size) == (4, 12)
    assert layout.offsets == {"one": 4, "two": 8}
    assert layout.read(memory.prog, AT) == {"one": 1, "two": 2}


def test_of_several_paths_the_first_that_the_struct_has_is_taken(memory: FakeMemory) -> None:
    """Kernels rename members: ``state`` became ``__state`` in 5.14."""
    type_ = memory.prog.type("struct sample")
    layout = Layout(type_, {"it": ("gone", "inner.gone", "u8", "s8"), "other": ("s16", "u32")})
    assert layout.read(memory.prog, AT) == {"it": 0xFF, "other": -2}


def test_an_optional_member_that_is_absent_reads_as_none(memory: FakeMemory) -> None:
    type_ = memory.prog.type("struct sample")
    layout = Layout(type_, {"it": "gone", "u8": "u8", "s8": "s8"}, optional={"it", "s8"})
    assert layout.read(memory.prog, AT) == {"it": None, "u8": 0xFF, "s8": -1}
    assert "it" not in layout.offsets


def test_a_missing_member_is_named_with_its_struct(memory: FakeMemory) -> None:
    type_ = memory.prog.type("struct sample")
    with pytest.raises(MissingInformation, match=r"struct sample has no member .*inner\.gone"):
        Layout(type_, {"u8": "u8", "it": "inner.gone"}, optional={"u8"})


def test_every_path_of_a_missing_member_is_named(memory: FakeMemory) -> None:
    with pytest.raises(MissingInformation, match=r"\('__state', 'state'\)"):
        Layout(memory.prog.type("struct sample"), {"state": ("__state", "state")})


def test_members_that_overlap_are_refused(memory: FakeMemory) -> None:
    """No struct that is read has any: a caller's mistake, or types that are damaged."""
    type_ = memory.prog.type("struct sample")
    with pytest.raises(MissingInformation, match=r"struct sample .*'same'.* overlaps .* byte 0"):
        Layout(type_, {"one": "s8", "same": "s8"})


def test_a_reader_gives_the_members_in_the_order_of_their_names(memory: FakeMemory) -> None:
    type_ = memory.prog.type("struct sample")
    layout = Layout(type_, {"a": "u8", "b": "s16", "c": "gone"}, optional={"c"})
    assert (layout.start, layout.size) == (1, 3)
    read = layout.reader("b", "c", "a")
    assert read(bytes.fromhex("05 0600")) == (6, None, 5)


def test_a_struct_that_is_not_in_the_dump_raises_a_fault(memory: FakeMemory) -> None:
    layout = Layout(memory.prog.type("struct sample"), {"u8": "u8"})
    with pytest.raises(FaultError):
        layout.read(memory.prog, AT + 0x1000)


@pytest.mark.parametrize("address", [-16, (1 << 64) + 16], ids=["below 0", "above 2**64"])
def test_an_address_that_overflowed_raises_a_fault(memory: FakeMemory, address: int) -> None:
    """What a corrupt pointer plus or minus an offset gives is not in the dump."""
    layout = Layout(memory.prog.type("struct sample"), {"u8": "u8"})
    with pytest.raises(FaultError):
        layout.read(memory.prog, address)


@pytest.mark.parametrize(
    ("path", "offset"),
    [("s8", 0), ("s16", 2), ("inner", 48), ("inner.deep", 52), ("gone", None), ("inner.x", None)],
)
def test_member_offset_follows_a_path(memory: FakeMemory, path: str, offset: int | None) -> None:
    assert member_offset(memory.prog.type("struct sample"), path) == offset


# StackMemory ------------------------------------------------------------------------------------

LOW = 0xFFFFC90000010000
PAGE = 4096


def page(number: int) -> bytes:
    """A page each of whose words holds the page's number and below it its own offset."""
    return b"".join((number << 16 | at).to_bytes(8, "little") for at in range(0, PAGE, 8))


def stack(*pages: int, used: int = 0) -> StackMemory:
    """A stack of 4 pages of which the dump holds some, with the stack pointer at an offset."""
    memory = FakeMemory()
    for number in pages:
        memory.put(LOW + number * PAGE, page(0x10 + number))
    return StackMemory(memory.prog, LOW, LOW + 4 * PAGE, LOW + used, "task")


STACK_WORDS = [
    ("the first word of all", (0, 1, 2, 3), 0, 0, 0x100000),
    ("the last word of all", (0, 1, 2, 3), 0, 0x3FF8, 0x130FF8),
    ("a word above the stack pointer", (0, 1, 2, 3), 0x2010, 0x2018, 0x120018),
    ("a word at the stack pointer", (0, 1, 2, 3), 0x2010, 0x2010, 0x120010),
    ("a word below the used part", (0, 1, 2, 3), 0x2010, 0x1008, 0x110008),
    ("the last word if all before it is missing", (3,), 0x3FF8, 0x3FF8, 0x130FF8),
    ("an unaligned word", (0, 1, 2, 3), 0, 4, 0x0010_0008_0000_0000),
    ("an unaligned word across pages", (0, 1, 2, 3), 0, 0xFFC, 0x0011_0000_0000_0000),
    ("a word of a page that is missing", (0, 2, 3), 0, 0x1008, None),
    ("the last word before a hole", (0, 2, 3), 0, 0xFF8, 0x100FF8),
    ("the first word after a hole", (0, 2, 3), 0, 0x2000, 0x120000),
    ("a word that reaches into a hole", (0, 2, 3), 0, 0xFFC, None),
    ("a word that reaches out of a hole", (0, 2, 3), 0, 0x1FFC, None),
    ("between two holes", (0, 2), 0, 0x2008, 0x120008),
    ("in the second hole", (0, 2), 0, 0x3008, None),
    ("a word of an unused page that is missing", (2, 3), 0x2010, 0x1008, None),
    ("above the stack pointer, after asking below it", (0, 2, 3), 0x2010, 0x3000, 0x130000),
    ("a stack pointer outside its stack", (0, 1, 2, 3), 0x9999, 8, 0x100008),
    ("a stack of which nothing is in the dump", (), 0x2010, 0x2010, None),
]
"""Claim, pages in the dump, offset of the stack pointer, offset of the word, the word."""


@pytest.mark.parametrize(
    ("pages", "used", "at", "word"),
    [row[1:] for row in STACK_WORDS],
    ids=[row[0] for row in STACK_WORDS],
)
def test_stack_words(pages: tuple[int, ...], used: int, at: int, word: int | None) -> None:
    memory = stack(*pages, used=used)
    assert memory.word(LOW + at) == word
    # What was read below the used part must not move what is above it.
    assert memory.word(LOW + 8) == (0x100008 if 0 in pages else None)
    assert memory.word(LOW + at) == word


def test_a_page_of_zeroes_is_not_a_missing_page() -> None:
    memory = FakeMemory()
    memory.put(LOW, bytes(PAGE))
    words = StackMemory(memory.prog, LOW, LOW + 2 * PAGE, LOW, "task")
    assert words.word(LOW + 16) == 0
    assert words.word(LOW + PAGE) is None


def test_the_used_part_alone_is_read_at_first() -> None:
    """The unused part of a stack is often not in the dump; asking above it must not read it."""
    memory = FakeMemory()
    reads: list[int] = []

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        reads.append(address)
        return bytes(count)

    memory.prog.add_memory_segment(LOW, 4 * PAGE, read)
    words = StackMemory(memory.prog, LOW, LOW + 4 * PAGE, LOW + 0x3F00, "task")
    assert words.word(LOW + 0x3F08) == 0
    assert reads == [LOW + 0x3F00]


@pytest.mark.parametrize(
    ("at", "size", "within"),
    [
        (0, 8, True),
        (-1, 8, False),
        (4 * PAGE - 8, 8, True),
        (4 * PAGE - 7, 8, False),
        (4 * PAGE, 0, True),
        (0, 4 * PAGE, True),
        (0, 4 * PAGE + 1, False),
        (-LOW, 8, False),
        ((1 << 64) - LOW - 1, 8, False),
    ],
)
def test_an_object_must_lie_wholly_within_the_bounds(at: int, size: int, within: bool) -> None:
    assert stack().contains(LOW + at, size) is within


def test_a_big_endian_stack() -> None:
    memory = FakeMemory(little_endian=False)
    memory.put(LOW, bytes.fromhex("0102030405060708"))
    words = StackMemory(memory.prog, LOW, LOW + 8, LOW, "task", byte_order(memory.prog))
    assert words.word(LOW) == 0x0102030405060708


def test_a_stack_that_would_reach_beyond_the_end_of_memory_has_no_words() -> None:
    """``task->stack`` is overwritten with -4096: the other three pages lie above 2**64."""
    low = (1 << 64) - PAGE
    assert StackMemory(FakeMemory().prog, low, low + 4 * PAGE, low, "task").word(low) is None


# Lists ------------------------------------------------------------------------------------------

HEAD = 0xFFFFFFFF82000000
A, B, C = (0xFFFF888000001000 + 0x100 * i for i in range(3))


def take(prog: Program, head: int = HEAD, limit: int = 100) -> tuple[list[int], BrokenList | None]:
    """The nodes of a list, and how it broke if it did."""
    nodes: list[int] = []
    try:
        for node in list_nodes(prog, head, limit):
            nodes.append(node)
            assert len(nodes) < 1000, "does not end"
    except BrokenList as e:
        return nodes, e
    return nodes, None


@pytest.mark.parametrize("nodes", [[], [A], [A, B, C]], ids=["empty", "one node", "three nodes"])
def test_a_list_that_leads_back_to_its_head(nodes: list[int]) -> None:
    memory = FakeMemory()
    memory.put_list(HEAD, *nodes)
    assert take(memory.prog) == (nodes, None)


@pytest.mark.parametrize(
    ("links", "nodes", "broken_at", "why"),
    [
        pytest.param(
            {HEAD: A, A: B, B: C, C: A}, [A, B, C], C, f"leads back to {A:#x}", id="misses its head"
        ),
        pytest.param({HEAD: A, A: A}, [A], A, f"leads back to {A:#x}", id="points to itself"),
        pytest.param({HEAD: A, A: B}, [A, B], B, "not readable", id="unreadable node"),
        pytest.param({}, [], HEAD, "not readable", id="unreadable head"),
    ],
)
def test_a_broken_list_gives_what_precedes_and_says_where(
    links: dict[int, int], nodes: list[int], broken_at: int, why: str
) -> None:
    memory = FakeMemory()
    for node, following in links.items():
        memory.put_words(node, following)
    found, broken = take(memory.prog)
    assert found == nodes
    assert broken is not None
    assert broken.address == broken_at
    assert why in broken.why
    assert f"{broken_at:#x}" in str(broken)


def test_a_null_pointer_is_no_node() -> None:
    """A page of zeroes among the nodes: A's successor is 0, where nothing can be."""
    memory = FakeMemory()
    memory.put_words(HEAD, A)
    memory.put_words(A, 0)
    found, broken = take(memory.prog)
    assert found == [A]
    assert broken is not None
    assert broken.address == A


@pytest.mark.parametrize(("limit", "breaks"), [(3, False), (2, True)])
def test_a_list_may_be_as_long_as_the_limit(limit: int, breaks: bool) -> None:
    memory = FakeMemory()
    memory.put_list(HEAD, A, B, C)
    found, broken = take(memory.prog, limit=limit)
    assert found == [A, B, C][:limit]
    assert (broken is not None) is breaks
    assert not broken or f"more than {limit} nodes" in broken.why


def test_containers_begin_before_their_nodes() -> None:
    memory = FakeMemory()
    memory.put_list(HEAD, A + 0x28, B + 0x28)
    assert list(container_nodes(memory.prog, HEAD, 0x28)) == [A, B]


@pytest.mark.parametrize(
    "walk",
    [list_nodes, lambda prog, head: container_nodes(prog, head, 0x28)],
    ids=["nodes", "containers"],
)
def test_a_list_is_followed_only_as_far_as_it_is_asked_for(
    walk: Callable[[Program, int], Iterator[int]],
) -> None:
    memory = FakeMemory()
    memory.put_words(HEAD, A)
    assert len(list(itertools.islice(walk(memory.prog, HEAD), 1))) == 1
