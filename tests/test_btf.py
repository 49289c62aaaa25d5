# SPDX-License-Identifier: LGPL-2.1-or-later
"""BTF blobs written record by record (include/uapi/linux/btf.h), as this package and then drgn
read them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import pytest
from drgn import (
    Architecture,
    FindObjectFlags,
    Object,
    Platform,
    PlatformFlags,
    Program,
    TypeKind,
    sizeof,
)

from drgn_reliable.btf import Btf, BtfError, BtfMember
from drgn_reliable.btftypes import GLOBALS, BtfTypes

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)
UNKNOWN = 20
"""The first kind that btf.h of Linux 7.3 does not define."""

MAGIC = 0xEB9F
SIGNED, BOOL = 1 << 24, 4 << 24
"""Encodings in the word after an INT; its low byte is the width in bits."""


class Blob:
    """Writes BTF; each ``add`` gives the identifier of its record.

    :param base: the blob that this one continues.
    """

    def __init__(self, base: Blob | None = None, *, order: str = "<", strings: bytes = b"") -> None:
        self.order = order
        self.next_id: int = base.next_id if base else 1
        self._base_strings = base.string_end if base else 0
        self.types = b""
        self.strings = strings if base else b"\0" + strings

    @property
    def string_end(self) -> int:
        return self._base_strings + len(self.strings)

    def string(self, text: str) -> int:
        """Offset of a string, a new one unless it is empty."""
        if not text:
            return 0
        at = self.string_end
        self.strings += text.encode() + b"\0"
        return at

    def words(self, *words: int | str) -> bytes:
        numbers = [self.string(w) if isinstance(w, str) else w & 0xFFFFFFFF for w in words]
        return struct.pack(f"{self.order}{len(numbers)}I", *numbers)

    def add(
        self, kind: int, name: str | int, word: int, *rows: int | str, n: int = 0, flag: int = 0
    ) -> int:
        """A record: its head (``word`` is the size or the type referred to), then ``rows``."""
        self.types += self.words(name, flag << 31 | kind << 24 | n, word, *rows)
        self.next_id += 1
        return self.next_id - 1

    def data(self, *, layout: bytes | None = None) -> bytes:
        """The whole blob, with the longer header of Linux 7.1 if there is a layout section."""
        layout_size = len(layout or b"")
        sections = [0, len(self.types), len(self.types) + layout_size, len(self.strings)]
        if layout is not None:
            sections += [len(self.types), layout_size]
        header_size = 8 + 4 * len(sections)
        head = struct.pack(f"{self.order}HBBI", MAGIC, 1, 0, header_size)
        head += struct.pack(f"{self.order}{len(sections)}I", *sections)
        return head + self.types + (layout or b"") + self.strings

    def btf(self, base: Btf | None = None) -> Btf:
        return Btf(self.data(), base, little_endian=self.order == "<")


def with_int() -> Blob:
    """A blob whose type 1 is ``int``."""
    blob = Blob()
    blob.add(INT, "int", 4, SIGNED | 32)
    return blob


def header(**changes: int) -> bytes:
    """An empty blob of 25 bytes with some fields of its header changed."""
    fields = {
        "magic": MAGIC,
        "header_size": 24,
        "type_at": 0,
        "type_size": 0,
        "string_at": 0,
        "string_size": 1,
    }
    magic, *rest = (fields | changes).values()
    return struct.pack("<HBB5I", magic, 1, 0, *rest) + b"\0"


# The blob as a whole ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "no BTF magic", id="empty"),
        pytest.param(header()[:23], "no BTF magic", id="cut within the header"),
        pytest.param(bytes(100), "no BTF magic", id="zeroes"),
        pytest.param(header(magic=0x9FEB), "no BTF magic", id="the other byte order"),
        pytest.param(header(type_size=4), "beyond the blob of 25 bytes", id="types too long"),
        pytest.param(header(type_at=8), "beyond the blob", id="types begin behind the end"),
        pytest.param(header(string_size=2), "beyond the blob", id="strings too long"),
        pytest.param(header(string_at=0xFFFFFFFF), "beyond the blob", id="strings far behind"),
        pytest.param(header(header_size=26), "beyond the blob", id="header too long"),
    ],
)
def test_a_header_that_does_not_fit_the_bytes_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BtfError, match=message):
        Btf(data)


def test_a_header_alone_is_a_blob_without_types() -> None:
    btf = Btf(header(string_size=0)[:24])
    assert (btf.first_id, btf.end_id, btf.string_end) == (1, 1, 0)


def test_an_empty_blob_has_no_types() -> None:
    btf = Btf(header())
    assert (btf.first_id, btf.end_id, btf.string_end) == (1, 1, 1)
    assert list(btf.find("int", INT)) == []
    with pytest.raises(BtfError, match=r"type 1 is not in 1\.\.0"):
        btf.name(1)


def test_a_record_that_runs_past_the_end_is_refused() -> None:
    """A struct of two members of which only one follows is the second record of the blob."""
    blob = with_int()
    blob.add(STRUCT, "cut", 8, "a", 1, 0, n=2)
    with pytest.raises(BtfError, match="record 2 runs past the end of the types"):
        blob.btf()


@pytest.mark.parametrize("size", [4, 8])
def test_a_record_cut_within_its_head_is_refused(size: int) -> None:
    blob = with_int()
    blob.types += bytes(size)
    with pytest.raises(BtfError, match="runs past the end of the types"):
        blob.btf()


def test_an_unknown_kind_is_refused_for_its_size_is_not_known() -> None:
    blob = Blob()
    blob.add(UNKNOWN, "new", 0, 0, 0, 0)
    blob.add(INT, "int", 4, SIGNED | 32)
    with pytest.raises(BtfError, match=f"kind {UNKNOWN}"):
        blob.btf()


def test_an_unknown_kind_is_skipped_where_a_layout_section_tells_its_size() -> None:
    """From Linux 7.1 on: (bytes after the head, bytes of each element) for each kind by number.

    Here the unknown kind has 4 + 2 * 8 bytes after its head.
    """
    blob = with_int()
    blob.add(UNKNOWN, "new", 0, 1, 2, 3, 4, 5, n=2)
    pointer = blob.add(PTR, "", 1)
    layout = struct.pack("<BBH", 0, 0, 0) * UNKNOWN + struct.pack("<BBH", 4, 8, 0)
    btf = Btf(blob.data(layout=layout))
    assert [btf.kind(i) for i in range(btf.first_id, btf.end_id)] == [INT, UNKNOWN, PTR]
    assert btf.name(2) == "new"
    assert btf.referenced(pointer) == 1


def test_the_layout_section_does_not_change_kinds_that_are_known() -> None:
    blob = every_kind()
    btf = Btf(blob.data(layout=struct.pack("<BBH", 40, 40, 0) * UNKNOWN))
    assert [btf.kind(i) for i in range(1, btf.end_id)] == list(range(1, 20))


def test_the_sections_may_lie_in_any_order() -> None:
    """Strings first, then types, and the layout section up to the very end."""
    blob = with_int()
    blob.add(UNKNOWN, "new", 0, 7)
    strings, types = blob.strings + bytes(-len(blob.strings) % 4), blob.types
    layout = struct.pack("<BBH", 4, 0, 0) * (UNKNOWN + 1)
    sections = [len(strings), len(types), 0, len(blob.strings)]
    sections += [len(strings) + len(types), len(layout)]
    head = struct.pack("<HBBI6I", MAGIC, 1, 0, 32, *sections)
    btf = Btf(head + strings + types + layout)
    assert [btf.name(1), btf.name(2)] == ["int", "new"]


def test_a_longer_header_without_a_layout_section_is_read() -> None:
    assert Btf(with_int().data(layout=b"")).name(1) == "int"


@pytest.mark.parametrize(
    ("layout_at", "layout_size"),
    [
        pytest.param(0, 0x1000, id="too long"),
        pytest.param(22, 8, id="cut within an entry"),
        pytest.param(0x1000, 4, id="far behind"),
    ],
)
def test_a_layout_section_beyond_the_blob_is_refused(layout_at: int, layout_size: int) -> None:
    data = bytearray(with_int().data(layout=b""))
    struct.pack_into("<II", data, 24, layout_at, layout_size)
    with pytest.raises(BtfError, match="beyond the blob"):
        Btf(bytes(data))


# Records ----------------------------------------------------------------------------------------


def every_kind(order: str = "<") -> Blob:
    """One record of each kind, in the order of their numbers."""
    blob = Blob(order=order)
    blob.add(INT, "int", 4, SIGNED | 32)
    blob.add(PTR, "", 1)
    blob.add(ARRAY, "", 0, 1, 1, 5)
    blob.add(STRUCT, "s", 4, "a", 1, 0, n=1)
    blob.add(UNION, "u", 4, "a", 1, 0, "b", 1, 0, n=2)
    blob.add(ENUM, "e", 4, "E0", 0, "E1", 1, n=2)
    blob.add(FWD, "f", 0)
    blob.add(TYPEDEF, "t", 1)
    blob.add(VOLATILE, "", 1)
    blob.add(CONST, "", 1)
    blob.add(RESTRICT, "", 2)
    blob.add(FUNC, "fn", 13, n=1)
    blob.add(FUNC_PROTO, "", 1, "x", 1, "y", 2, n=2)
    blob.add(VAR, "v", 1, 1)
    blob.add(DATASEC, ".data..percpu", 4, 14, 0, 4, n=1)
    blob.add(FLOAT, "double", 8)
    blob.add(DECL_TAG, "tag", 4, -1)
    blob.add(TYPE_TAG, "percpu", 1)
    blob.add(ENUM64, "e64", 8, "E2", 0, 1, "E3", 5, 0, n=2)
    return blob


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_records_of_every_kind_are_found_one_behind_the_other(order: str) -> None:
    btf = every_kind(order).btf()
    assert [btf.kind(i) for i in range(1, btf.end_id)] == list(range(1, 20))
    assert [btf.name(i) for i in (1, 4, 5, 12, 14, 19)] == ["int", "s", "u", "fn", "v", "e64"]
    assert btf.size(16) == 8
    assert btf.referenced(12) == 13
    assert btf.array(3) == (1, 5)
    assert btf.int_encoding(1) == 1
    assert list(btf.parameters(13)) == [BtfMember("x", 1, 0, 0), BtfMember("y", 2, 0, 0)]
    assert list(btf.members(5)) == [BtfMember("a", 1, 0, 0), BtfMember("b", 1, 0, 0)]
    assert list(btf.enumerators(6)) == [("E0", 0), ("E1", 1)]
    assert list(btf.enumerators(19)) == [("E2", 1 << 32), ("E3", 5)]
    assert list(btf.find("s", STRUCT)) == [4]
    assert list(btf.ids(ENUM, ENUM64)) == [6, 19]
    assert btf.little_endian is (order == "<")


def test_type_0_is_void_and_owned_by_nobody() -> None:
    assert with_int().btf().kind(0) == 0


def test_members_with_bit_fields_hold_width_and_offset_in_one_word() -> None:
    """With the kind flag a member's offset word is the width in 8 bits and the offset in 24."""
    blob = with_int()
    plain = blob.add(STRUCT, "plain", 0x300000, "far", 1, 0x1000008, n=1)
    packed = blob.add(
        STRUCT, "packed", 8, "whole", 1, 0, "three", 1, 3 << 24 | 32, "one", 1, 1 << 24 | 35,
        n=3, flag=1,
    )  # fmt: skip
    btf = blob.btf()
    assert list(btf.members(plain)) == [BtfMember("far", 1, 0x1000008, 0)]
    assert list(btf.members(packed)) == [
        BtfMember("whole", 1, 0, 0),
        BtfMember("three", 1, 32, 3),
        BtfMember("one", 1, 35, 1),
    ]


@pytest.mark.parametrize(
    ("kind", "signed", "words", "value"),
    [
        pytest.param(ENUM, 0, [7], 7, id="small"),
        pytest.param(ENUM, 0, [0xFFFFFFFF], 0xFFFFFFFF, id="unsigned int"),
        pytest.param(ENUM, 1, [0xFFFFFFFF], -1, id="int"),
        pytest.param(ENUM, 1, [0x7FFFFFFF], 0x7FFFFFFF, id="greatest int"),
        pytest.param(ENUM64, 0, [1, 2], 0x200000001, id="low word first"),
        pytest.param(ENUM64, 0, [-2, -1], 0xFFFFFFFFFFFFFFFE, id="unsigned long"),
        pytest.param(ENUM64, 1, [-2, -1], -2, id="long"),
    ],
)
def test_enumerators_have_the_sign_and_width_of_their_record(
    kind: int, signed: int, words: list[int], value: int
) -> None:
    blob = Blob()
    blob.add(kind, "e", 8 if kind == ENUM64 else 4, "E", *words, n=1, flag=signed)
    assert list(blob.btf().enumerators(1)) == [("E", value)]


# Searching by name ------------------------------------------------------------------------------


def test_find_takes_only_the_kinds_that_are_asked_for() -> None:
    blob = with_int()
    blob.add(STRUCT, "page", 4, n=0)
    blob.add(TYPEDEF, "page", 1)
    btf = blob.btf()
    assert list(btf.find("page", STRUCT)) == [2]
    assert sorted(btf.find("page", TYPEDEF, STRUCT)) == [2, 3]
    assert list(btf.find("page", UNION)) == []


def test_find_gives_every_record_of_a_name() -> None:
    blob = Blob()
    blob.strings += b"twice\0"
    for _ in range(2):
        blob.add(STRUCT, 1, 0)
    assert list(blob.btf().find("twice", STRUCT)) == [1, 2]


def test_find_knows_that_a_name_may_be_the_tail_of_a_longer_string() -> None:
    """BTF writers may keep ``foo`` only within ``prefix_foo``; another ``foo`` may stand alone."""
    blob = Blob(strings=b"prefix_foo\0foo\0")
    tail = blob.add(STRUCT, 1 + len("prefix_"), 0)
    alone = blob.add(UNION, 1 + len("prefix_foo\0"), 0)
    btf = blob.btf()
    assert btf.name(tail) == btf.name(alone) == "foo"
    assert list(btf.find("foo", STRUCT)) == [tail]
    assert list(btf.find("foo", UNION)) == [alone]
    assert list(btf.find("prefix_foo", STRUCT, UNION)) == []
    assert list(btf.find("fo", STRUCT, UNION)) == []


def test_find_is_not_misled_by_bytes_that_straddle_two_records() -> None:
    """Name offsets 0x100 and 0 are the bytes 00 01 00 00 00 00 00 00, which hold an offset 1."""
    blob = Blob(strings=b"x" * 254 + b"\0")
    blob.add(STRUCT, "at_256", 0)
    blob.add(STRUCT, "", 0)
    btf = blob.btf()
    assert btf.name(1) == "at_256"
    assert list(btf.find("x" * 254, STRUCT)) == []


# Split BTF --------------------------------------------------------------------------------------


def split() -> tuple[Blob, Blob]:
    """A base with ``int`` and ``struct shared``, and a module with a struct that uses both."""
    base = with_int()
    shared = base.add(STRUCT, "shared", 4, "count", 1, 0, n=1)
    module = Blob(base)
    module.add(STRUCT, "own", 8, "inner", shared, 0, "count", 1, 32, n=2)
    return base, module


def test_split_btf_continues_the_identifiers_and_strings_of_its_base() -> None:
    base_blob, module_blob = split()
    base = base_blob.btf()
    module = module_blob.btf(base)
    assert (base.first_id, base.end_id) == (1, 3)
    assert (module.first_id, module.end_id) == (3, 4)
    assert module.name(3) == "own"
    assert [m.type_id for m in module.members(3)] == [2, 1]
    assert module.owner(2) is base
    assert module.owner(3) is module
    assert module.string(1) == base.string(1) == "int"


def test_split_btf_finds_its_own_types_by_strings_of_either() -> None:
    """A module's ``struct int`` may take its name from the base's strings."""
    base_blob, module_blob = split()
    reused = module_blob.add(STRUCT, 1, 0)
    base = base_blob.btf()
    module = module_blob.btf(base)
    assert module.name(reused) == "int"
    assert list(module.find("int", STRUCT)) == [reused]
    assert list(module.find("int", INT)) == []
    assert list(module.find("own", STRUCT)) == [3]
    assert list(base.find("own", STRUCT)) == []


# As drgn types ----------------------------------------------------------------------------------

LITTLE = PlatformFlags.IS_64_BIT | PlatformFlags.IS_LITTLE_ENDIAN


def program(
    blob: Blob,
    symbols: dict[str, int] | None = None,
    modules: Callable[[], Iterable[bytes]] | None = None,
) -> Program:
    """A program whose only types and objects beside C's own are those of a blob."""
    flags = LITTLE if blob.order == "<" else PlatformFlags.IS_64_BIT
    prog = Program(Platform(Architecture.X86_64, flags))
    types = BtfTypes(prog, blob.btf(), (symbols or {}).get)
    types.module_loader = modules
    prog.register_type_finder("btf", types.find_type, enable_index=0)
    prog.register_object_finder("btf", types.find_object, enable_index=0)
    return prog


def test_a_loader_of_modules_may_look_for_types_itself() -> None:
    """While the modules are being loaded, only the kernel's own types are searched: a loader that
    lacks a type gets LookupError, not an endless search."""
    asked: list[str] = []

    def modules() -> list[bytes]:
        with pytest.raises(LookupError):
            prog.type("struct btf_module")
        asked.append("modules")
        return []

    prog = program(with_int(), modules=modules)
    with pytest.raises(LookupError):
        prog.type("struct nowhere")
    assert asked == ["modules"]


def c_types() -> Blob:
    """``struct all`` with a member of each kind of type."""
    blob = Blob()
    int_ = blob.add(INT, "int", 4, SIGNED | 32)
    ulong = blob.add(INT, "long unsigned int", 8, 64)
    char = blob.add(INT, "char", 1, SIGNED | 8)
    bool_ = blob.add(INT, "_Bool", 1, BOOL | 8)
    double = blob.add(FLOAT, "double", 8)
    void_pointer = blob.add(PTR, "", 0)
    later = blob.next_id + 1
    pointer = blob.add(PTR, "", later)
    point = blob.add(STRUCT, "point", 8, "x", int_, 0, "y", int_, 32, n=2)
    array = blob.add(ARRAY, "", 0, int_, int_, 3)
    u64 = blob.add(TYPEDEF, "u64", ulong)
    union = blob.add(UNION, "either", 4, "i", int_, 0, "c", char, 0, n=2)
    anonymous = blob.add(STRUCT, "", 8, "in_a", int_, 0, "in_b", int_, 32, n=2)
    color = blob.add(ENUM, "color", 4, "RED", 0, "GREEN", 5, n=2)
    wide = blob.add(ENUM64, "wide", 8, "WIDE", -1, -1, n=1, flag=1)
    cv_char = blob.add(CONST, "", blob.add(VOLATILE, "", char))
    name = blob.add(PTR, "", cv_char)
    restrict = blob.add(RESTRICT, "", name)
    tagged = blob.add(TYPE_TAG, "rcu", point)
    rcu = blob.add(PTR, "", tagged)
    proto = blob.add(FUNC_PROTO, "", int_, "self", pointer, "", 0, n=2)
    call = blob.add(PTR, "", proto)
    nothing = blob.add(PTR, "", blob.add(FUNC_PROTO, "", 0, n=0))
    opaque = blob.add(PTR, "", blob.add(FWD, "opaque", 0))
    flexible = blob.add(ARRAY, "", 0, char, int_, 0)
    empty = blob.add(ARRAY, "", 0, int_, int_, 0)
    rows = [
        ("i", int_, 0),
        ("three", int_, 3 << 24 | 32),
        ("one", int_, 1 << 24 | 35),
        ("flag", bool_, 64),
        ("d", double, 128),
        ("any", void_pointer, 192),
        ("p", pointer, 256),
        ("a", array, 320),
        ("e", union, 416),
        ("n", u64, 448),
        ("", anonymous, 512),
        ("color", color, 576),
        ("wide", wide, 640),
        ("name", restrict, 704),
        ("rcu", rcu, 768),
        ("call", call, 832),
        ("nothing", nothing, 896),
        ("opaque", opaque, 960),
        ("none", empty, 1024),
        ("tail", flexible, 1024),
    ]
    words = [word for row in rows for word in row]
    blob.add(STRUCT, "all", 128, *words, n=len(rows), flag=1)
    return blob


ALL = """\
struct all {
	int i;
	int three : 3;
	int one : 1;
	_Bool flag;
	double d;
	void *any;
	struct point *p;
	int a[3];
	union either e;
	u64 n;
	struct {
		int in_a;
		int in_b;
	};
	enum color color;
	enum wide wide;
	const volatile char * restrict name;
	struct point *rcu;
	int (*call)(struct point *self, ...);
	void (*nothing)(void);
	struct opaque *opaque;
	int none[0];
	char tail[];
}"""


def test_every_kind_of_record_becomes_the_c_type_that_it_describes() -> None:
    """drgn spells the struct as C does."""
    assert str(program(c_types()).type("struct all")) == ALL


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        ("i", TypeKind.INT),
        ("flag", TypeKind.BOOL),
        ("d", TypeKind.FLOAT),
        ("any", TypeKind.POINTER),
        ("a", TypeKind.ARRAY),
        ("e", TypeKind.UNION),
        ("n", TypeKind.TYPEDEF),
        ("in_b", TypeKind.INT),
        ("color", TypeKind.ENUM),
        ("wide", TypeKind.ENUM),
    ],
)
def test_member_kinds(member: str, kind: TypeKind) -> None:
    assert program(c_types()).type("struct all").member(member).type.kind == kind


@pytest.mark.parametrize(
    ("member", "bit_offset", "bit_field_size"),
    [
        ("i", 0, None),
        ("three", 32, 3),
        ("one", 35, 1),
        ("in_b", 544, None),
        ("tail", 1024, None),
    ],
)
def test_member_places(member: str, bit_offset: int, bit_field_size: int | None) -> None:
    found = program(c_types()).type("struct all").member(member)
    assert (found.bit_offset, found.bit_field_size) == (bit_offset, bit_field_size)


def test_sizes_and_values_survive() -> None:
    prog = program(c_types())
    assert prog.type("struct all").size == 128
    assert prog.type("struct all").member("a").type.length == 3
    assert prog.type("struct all").member("tail").type.length is None
    assert prog.type("struct all").member("none").type.length == 0
    color, wide = prog.type("enum color"), prog.type("enum wide")
    assert [(e.name, e.value) for e in color.enumerators] == [("RED", 0), ("GREEN", 5)]
    assert [(e.name, e.value) for e in wide.enumerators] == [("WIDE", -1)]
    assert (color.type.size, color.type.is_signed) == (4, False)
    assert (wide.type.size, wide.type.is_signed) == (8, True)


@pytest.mark.parametrize(
    "name",
    ["struct point", "union either", "enum color", "u64", "struct point *", "u64 [4]", "_Bool"],
)
def test_types_are_found_as_c_spells_them(name: str) -> None:
    assert program(c_types()).type(name).type_name() == name


@pytest.mark.parametrize(
    ("in_btf", "encoding", "asked"),
    [
        ("long unsigned int", 0, "unsigned long"),
        ("long unsigned int", 0, "long unsigned int"),
        ("long unsigned int", 0, "unsigned long int"),
        ("long int", SIGNED, "long"),
        ("short unsigned int", 0, "unsigned short"),
        ("long long unsigned int", 0, "unsigned long long"),
        ("unsigned char", 0, "unsigned char"),
        ("int", SIGNED, "signed int"),
        ("_Bool", BOOL, "_Bool"),
    ],
)
def test_an_integer_is_found_by_each_of_its_spellings(
    in_btf: str, encoding: int, asked: str
) -> None:
    """Compilers write "long unsigned int" for what C programmers spell "unsigned long".

    A size that no C type has tells BTF's integer from the one that drgn knows by itself.
    """
    blob = Blob()
    blob.add(INT, in_btf, 16, encoding | 128)
    assert program(blob).type(asked).size == 16


@pytest.mark.parametrize(
    "name", ["struct color", "enum point", "union point", "point", "struct u64", "struct nobody"]
)
def test_a_name_of_another_kind_is_not_found(name: str) -> None:
    with pytest.raises(LookupError):
        program(c_types()).type(name)


def test_a_pointer_leads_to_the_struct_that_is_found_by_name() -> None:
    prog = program(c_types())
    assert str(prog.type("struct all").member("p").type.type) == str(prog.type("struct point"))


def test_btf_knows_no_files() -> None:
    prog = program(every_kind(), {"v": 0x1000, "nr_threads": 0x2000, "fn": 0x3000})
    with pytest.raises(LookupError):
        prog.type("struct s", "s.c")
    for name in ("v", "nr_threads", "fn", "E1"):
        assert prog.object(name).prog_ is prog
        with pytest.raises(LookupError):
            prog.object(name, FindObjectFlags.ANY, "s.c")


def test_a_struct_that_contains_a_pointer_to_itself() -> None:
    blob = Blob()
    blob.add(PTR, "", 2)
    blob.add(STRUCT, "list_head", 16, "next", 1, 0, "prev", 1, 64, n=2)
    node = program(blob).type("struct list_head")
    assert str(node.member("next").type.type.member("prev").type.type) == str(node)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_enums_are_as_large_as_their_record_says(size: int) -> None:
    """``enum { A } __packed`` has one byte."""
    blob = Blob()
    blob.add(ENUM, "e", size, "A", 1, n=1)
    assert sizeof(program(blob).type("enum e")) == size


def test_a_bit_field_of_a_big_endian_blob() -> None:
    """There bit offsets count from the highest bit: 0x50 is the bits 0101 0000."""
    blob = Blob(order=">")
    blob.add(INT, "unsigned int", 4, 32)
    blob.add(STRUCT, "flags", 4, "high", 1, 1 << 24, "next3", 1, 3 << 24 | 1, n=2, flag=1)
    prog = program(blob)
    flags = Object.from_bytes_(prog, "struct flags", bytes.fromhex("50000000"))
    assert (flags.high.value_(), flags.next3.value_()) == (0, 0b101)


def damaged(kind: int, name: str, word: int, *rows: int | str, n: int = 0) -> Program:
    """A program with one type, whose record is damaged."""
    blob = Blob()
    blob.add(kind, name, word, *rows, n=n)
    return program(blob)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(
            lambda: damaged(TYPEDEF, "t", 9), "t", id="refers to a record that is not there"
        ),
        pytest.param(
            lambda: damaged(TYPEDEF, "t", 1),
            "t",
            id="refers to itself",
        ),
        pytest.param(
            lambda: damaged(ENUM, "e", 16, "E", 0, n=1),
            "enum e",
            id="is of a size that no enum has",
        ),
    ],
)
def test_a_damaged_record_is_named_when_its_type_is_asked_for(
    make: Callable[[], Program], name: str
) -> None:
    with pytest.raises(BtfError):
        make().type(name)


# Forward declarations and modules ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "name"), [(0, "struct thing"), (1, "union thing")], ids=["struct", "union"]
)
def test_a_forward_declaration_is_found_where_nothing_defines_it(flag: int, name: str) -> None:
    blob = Blob()
    blob.add(FWD, "thing", 0, flag=flag)
    found = program(blob).type(name)
    assert found.type_name() == name
    assert not found.is_complete()


def test_an_enum_without_enumerators_is_a_forward_declaration() -> None:
    blob = Blob()
    blob.add(ENUM, "thing", 4, n=0)
    assert not program(blob).type("enum thing").is_complete()


@pytest.mark.parametrize("forward_first", [True, False])
def test_a_definition_goes_before_a_forward_declaration(forward_first: bool) -> None:
    blob = with_int()
    if forward_first:
        blob.add(FWD, "thing", 0)
    blob.add(STRUCT, "thing", 4, "x", 1, 0, n=1)
    blob.add(FWD, "thing", 0)
    assert program(blob).type("struct thing").size == 4


def test_a_forward_declared_union_is_no_struct() -> None:
    blob = Blob()
    blob.add(FWD, "thing", 0, flag=1)
    with pytest.raises(LookupError):
        program(blob).type("struct thing")


def test_a_module_may_define_what_the_kernel_only_declares() -> None:
    base = with_int()
    base.add(FWD, "thing", 0)
    module = Blob(base)
    module.add(STRUCT, "thing", 4, "x", 1, 0, n=1)
    assert program(base, modules=lambda: [module.data()]).type("struct thing").size == 4


def test_a_module_may_define_an_enum_that_the_kernel_only_declares() -> None:
    """A forward-declared enum is an ENUM record without enumerators."""
    base = with_int()
    base.add(ENUM, "thing", 4, n=0)
    module = Blob(base)
    module.add(ENUM, "thing", 4, "THING", 1, n=1)
    assert program(base, modules=lambda: [module.data()]).type("enum thing").is_complete()


def test_modules_are_read_when_a_search_goes_beyond_the_kernel() -> None:
    base, module = split()
    reads = []

    def load() -> list[bytes]:
        reads.append("read")
        return [module.data()]

    prog = program(base, modules=load)
    assert prog.type("struct shared").size == 4
    assert reads == []
    own = prog.type("struct own")
    assert str(own.member("inner").type) == str(prog.type("struct shared"))
    assert own.member("count").type.type_name() == "int"
    with pytest.raises(LookupError):
        prog.type("struct nobody")
    assert reads == ["read"]


def test_a_damaged_module_hides_no_other() -> None:
    base, module = split()
    cut = module.data()[:-1]
    prog = program(base, modules=lambda: [b"", cut, module.data(), bytes(100)])
    assert prog.type("struct own").size == 8


def test_types_of_several_modules_do_not_mix() -> None:
    """Both modules number their first type alike."""
    base = with_int()
    one, two = Blob(base), Blob(base)
    assert one.add(STRUCT, "one", 4, "x", 1, 0, n=1) == two.add(UNION, "two", 8, "y", 1, 0, n=1)
    prog = program(base, modules=lambda: [one.data(), two.data()])
    assert prog.type("struct one").size == 4
    assert prog.type("union two").size == 8


# Objects ----------------------------------------------------------------------------------------


def objects() -> Program:
    blob = with_int()
    blob.add(VAR, "cpu_number", 1, 1)
    blob.add(FUNC_PROTO, "", 1, "x", 1, n=1)
    blob.add(FUNC, "do_it", 3)
    blob.add(ENUM, "color", 4, "RED", 3, n=1)
    blob.add(STRUCT, "cpumask", 4, "bits", 1, 0, n=1)
    blob.add(VAR, "nowhere", 1, 1)
    addresses = {
        "cpu_number": 0x1F000,
        "do_it": 0xFFFFFFFF81000000,
        "nr_threads": 0xFFFFFFFF82000000,
        "__cpu_possible_mask": 0xFFFFFFFF82000100,
        "__per_cpu_offset": 0xFFFFFFFF82000200,
        "untyped": 0xFFFFFFFF82000300,
    }
    return program(blob, addresses)


@pytest.mark.parametrize(
    ("name", "type_name", "address"),
    [
        pytest.param("cpu_number", "int", 0x1F000, id="per-CPU variable of BTF"),
        pytest.param("nr_threads", "int", 0xFFFFFFFF82000000, id="global that BTF leaves out"),
        pytest.param(
            "__cpu_possible_mask", "struct cpumask", 0xFFFFFFFF82000100, id="global of a struct"
        ),
        pytest.param("__per_cpu_offset", "unsigned long []", 0xFFFFFFFF82000200, id="global array"),
    ],
)
def test_variables(name: str, type_name: str, address: int) -> None:
    found = objects().variable(name)
    assert (found.type_.type_name(), found.address_) == (type_name, address)


def test_a_function_has_its_prototype() -> None:
    found = objects().function("do_it")
    assert (str(found.type_), found.address_) == ("int (int x)", 0xFFFFFFFF81000000)


def test_an_enumerator_is_a_constant_of_its_enum() -> None:
    found = objects().constant("RED")
    assert (found.type_.type_name(), found.value_()) == ("enum color", 3)


@pytest.mark.parametrize(
    ("find", "name"),
    [
        pytest.param(Program.variable, "do_it", id="a function is no variable"),
        pytest.param(Program.variable, "RED", id="an enumerator is no variable"),
        pytest.param(Program.function, "cpu_number", id="a variable is no function"),
        pytest.param(Program.function, "nr_threads", id="nor is a global"),
        pytest.param(Program.constant, "nr_threads", id="a variable is no constant"),
        pytest.param(Program.variable, "nowhere", id="a variable without symbol"),
        pytest.param(Program.variable, "jiffies", id="a global that the kernel lacks"),
        pytest.param(Program.variable, "untyped", id="a symbol without type"),
    ],
)
def test_what_is_not_there_is_not_found(find: Callable[[Program, str], object], name: str) -> None:
    assert "jiffies" in GLOBALS
    with pytest.raises(LookupError):
        find(objects(), name)


def test_a_module_has_variables_and_enumerators_too() -> None:
    base = with_int()
    module = Blob(base)
    module.add(VAR, "module_counter", 1, 1)
    module.add(ENUM, "module_state", 4, "LOADED", 2, n=1)
    prog = program(base, {"module_counter": 0x2000}, lambda: [module.data()])
    assert prog.variable("module_counter").address_ == 0x2000
    assert prog.constant("LOADED").value_() == 2
