# SPDX-License-Identifier: LGPL-2.1-or-later
"""The addresses of a module's sections, from attributes laid out as kernel/module/sysfs.c does."""

from __future__ import annotations

import pytest
from drgn import FaultError

from drgn_reliable.errors import MissingInformation
from drgn_reliable.sections import module_sections
from tests.fakes import FakeMemory, FakeTypes

MODULE = 0xFFFFFFFFC0300000
GROUP = 0xFFFF888004000000
NAMES = 0xFFFF888005000000
POINTERS = 0xFFFF888006000000
SECTIONS = {".text": 0xFFFFFFFFC0301000, ".init.text": 0xFFFFFFFFC0311000, ".sframe": 0xC0302000}


class Module:
    """A fake program with one module."""

    def __init__(self, beside: bool) -> None:
        self.memory = FakeMemory()
        self.prog = self.memory.prog
        self.beside = beside
        self.types = types = FakeTypes(self.prog)
        types.struct("attribute", name="const char *", mode="unsigned short")
        types.struct("bin_attribute", attr="struct attribute", size="long", private="void *")
        types.struct("attribute_group", name="const char *", attrs="void **", bin_attrs="void **")
        if beside:  # before 6.14
            types.struct("module_sect_attr", battr="struct bin_attribute", address="unsigned long")
            more = {"nsections": "unsigned int", "attrs": "struct module_sect_attr [3]"}
        else:
            more = {"attrs": "struct bin_attribute [3]"}
        types.struct("module_sect_attrs", grp="struct attribute_group", **more)
        types.struct("module", state="int", sect_attrs="struct module_sect_attrs *")

    def put(self, sections: dict[str, int], ended: bool = True) -> None:
        self.memory.put_struct(MODULE, "struct module", sect_attrs=GROUP)
        self.memory.put_struct(GROUP, "struct module_sect_attrs", grp={"bin_attrs": POINTERS})
        offset = self.prog.type("struct module_sect_attrs").member("attrs").bit_offset // 8
        kind = "struct module_sect_attr" if self.beside else "struct bin_attribute"
        size = self.prog.type(kind).size
        pointers = []
        for number, (name, address) in enumerate(sections.items()):
            at, name_at = GROUP + offset + number * size, NAMES + 64 * number
            self.memory.put(name_at, name.encode() + b"\0")
            if self.beside:
                attribute = {"attr": {"name": name_at}, "private": 0xBAD}
                self.memory.put_struct(at, kind, battr=attribute, address=address)
            else:
                self.memory.put_struct(at, kind, attr={"name": name_at}, private=address)
            pointers.append(at)
        self.memory.put_words(POINTERS, *pointers, *([0] if ended else []))


@pytest.mark.parametrize("beside", [True, False], ids=["before 6.14", "since 6.14"])
def test_addresses_are_found_in_either_layout(beside: bool) -> None:
    module = Module(beside)
    module.put(SECTIONS)
    assert module_sections(module.prog, MODULE) == SECTIONS


def test_of_two_sections_of_a_name_the_first_counts() -> None:
    module = Module(False)
    module.put(SECTIONS)
    module.memory.put(NAMES + 128, b".text\0")
    found = module_sections(module.prog, MODULE)
    assert found == {name: SECTIONS[name] for name in (".text", ".init.text")}


def test_a_module_without_attributes_has_no_known_sections() -> None:
    module = Module(False)
    module.memory.put_struct(MODULE, "struct module")
    assert module_sections(module.prog, MODULE) == {}


def test_a_kernel_without_sysfs_has_no_known_sections() -> None:
    module = Module(False)
    module.types.struct("module", state="int")
    assert module_sections(module.prog, MODULE) == {}


def test_a_list_that_the_dump_lacks_the_end_of_is_a_fault() -> None:
    module = Module(False)
    module.put(SECTIONS, ended=False)
    with pytest.raises(FaultError):
        module_sections(module.prog, MODULE)


def test_a_list_without_an_end_is_given_up() -> None:
    module = Module(False)
    module.put(SECTIONS)
    at = module.prog.read_u64(POINTERS)

    def endless(address: int, count: int, offset: int, physical: bool) -> bytes:
        return at.to_bytes(8, "little") * (count // 8)

    module.memory.prog.add_memory_segment(POINTERS, 1 << 20, endless)
    assert module_sections(module.prog, MODULE) == {".text": SECTIONS[".text"]}


def test_types_that_do_not_say_where_they_are_are_named() -> None:
    module = Module(False)
    module.put(SECTIONS)
    module.types.struct("module_sect_attrs", grp="struct attribute_group")
    with pytest.raises(MissingInformation, match="module_sect_attrs has no member 'attrs'"):
        module_sections(module.prog, MODULE)
