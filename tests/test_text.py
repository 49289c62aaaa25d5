# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a program counter is: ``__kernel_text_address()`` (kernel/extable.c) over memory, modules
and generated text that are laid out by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping

import pytest

from drgn_reliable.arch.x86_64 import LONGEST_CALL, ends_call, vsyscall_page
from drgn_reliable.generated import GeneratedText
from drgn_reliable.model import Code, CodeKind
from drgn_reliable.modules import ModuleList, Region
from drgn_reliable.text import CodeRules, Text, lookup_address
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes, kernel_types

TEXT = 0xFFFFFFFF81000000
INIT = 0xFFFFFFFF83000000
VSYSCALL = 0xFFFFFFFFFF600000
VSYSCALL_MODE = 0xFFFFFFFF82000000
MOD_TREE = 0xFFFFFFFF82000F00
MODULES, BPF_LIST, OPS_LIST, OPS_END = (0xFFFFFFFF82000100 + 0x100 * i for i in range(4))
KPROBES, OPTPROBES = 0xFFFFFFFF82000600, 0xFFFFFFFF82000700
MODULE = 0xFFFFFFFFC0000000
TRAMPOLINE = 0xFFFFFFFFA0000000
KPROBE_PAGE, OPTPROBE_PAGE = 0xFFFFFFFFA0002000, 0xFFFFFFFFA0003000
BPF = 0xFFFFFFFFA0008000
HEAP = 0xFFFF888000010000
"""Where the tests put the structs that describe these."""

EMULATE, XONLY, NONE = range(3)
"""``vsyscall_mode`` (arch/x86/entry/vsyscall/vsyscall_64.c)."""

LIST_IN_MODULE = 8
LNODE_IN_KSYM = 8 + 8 + 512

FUNCTIONS = {
    "first": TEXT,
    "noreturn_caller": TEXT + 0x100,
    "next": TEXT + 0x120,
    "return_to_handler": TEXT + 0x200,
    "secondary_startup_64": TEXT + 0x300,
    "my_callback": TEXT + 0x400,
    "start_kernel": INIT,
}


def symbols(**changed: int | None) -> FakeSymbols:
    """The kernel's symbols; one that is None is absent."""
    names: dict[str, int | None] = {
        "_stext": TEXT,
        "_etext": TEXT + 0x1000,
        "_sinittext": INIT,
        "_einittext": INIT + 0x1000,
        "vsyscall_mode": VSYSCALL_MODE,
        "mod_tree": MOD_TREE,
        "modules": MODULES,
        "bpf_kallsyms": BPF_LIST,
        "ftrace_ops_list": OPS_LIST,
        "ftrace_list_end": OPS_END,
        "kprobe_insn_slots": KPROBES,
        "kprobe_optinsn_slots": OPTPROBES,
        **changed,
    }
    return FakeSymbols({k: v for k, v in names.items() if v is not None}, FUNCTIONS)


class Kernel:
    """A kernel's text; everything but the core and init text has to be put there."""

    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.types = kernel_types(self.memory.prog)
        self.memory.put_u32(VSYSCALL_MODE, XONLY)
        self._heap = HEAP
        self._modules: list[int] = []
        self._ksyms: list[int] = []
        self._ops: list[dict[str, int]] = []
        self._pages: dict[int, list[int]] = {KPROBES: [], OPTPROBES: []}
        self._link()

    def _link(self) -> None:
        """Put the lists as they now are."""
        put = self.memory.put_list
        put(MODULES, *[address + LIST_IN_MODULE for address in self._modules])
        put(BPF_LIST, *[address + LNODE_IN_KSYM for address in self._ksyms])
        for cache, pages in self._pages.items():
            put(cache + 8, *pages)
        following = OPS_END
        for members in reversed(self._ops):
            ops = self._allocate()
            self.memory.put_struct(ops, "struct ftrace_ops", next=following, **members)
            following = ops
        self.memory.put_words(OPS_LIST, following)

    def _allocate(self) -> int:
        self._heap += 0x1000
        return self._heap

    def module(self, name: str = "mod", **members: object) -> int:
        """A module, by default with a page of text, one of data and one of init text."""
        if "core_layout" not in members:
            text, data, init = ({"base": MODULE + 0x1000 * i, "size": 0x1000} for i in range(3))
            members = {"mem": [text, data, {}, {}, init], **members}
        address = self._allocate()
        self.memory.put_struct(address, "struct module", name=name.encode(), **members)
        self._modules.append(address)
        self._link()
        return address

    def bpf(self, start: int = BPF, size: int = 0x100, name: str = "bpf_prog_1_main") -> int:
        address = self._allocate()
        self.memory.put_struct(
            address, "struct bpf_ksym", start=start, end=start + size, name=name.encode()
        )
        self._ksyms.append(address)
        self._link()
        return address

    def ftrace(self, start: int = TRAMPOLINE, size: int = 0x100, **members: int) -> None:
        self._ops.append(
            {"func": TEXT + 0x400, "trampoline": start, "trampoline_size": size, **members}
        )
        self._link()

    def probe_page(self, cache: int, insns: int) -> int:
        address = self._allocate()
        self.memory.put_struct(address, "struct kprobe_insn_page", insns=insns)
        self._pages[cache].append(address)
        self._link()
        return address

    def generated(self, page_size: int = 4096) -> GeneratedText:
        return GeneratedText(self.memory.prog, symbols(), page_size)

    def modules(self) -> ModuleList:
        return ModuleList(self.memory.prog, MODULES, MOD_TREE)

    def text(
        self,
        changed: Mapping[str, int | None] | None = None,
        *,
        pushed_returns: Collection[str] = (),
        trampolines: Collection[int | None] = (),
    ) -> Text:
        names = symbols(**(changed or {}))
        return Text(
            self.memory.prog,
            names,
            ModuleList(self.memory.prog, names.address("modules"), names.address("mod_tree")),
            GeneratedText(self.memory.prog, names, 4096),
            CodeRules(ends_call, LONGEST_CALL, pushed_returns, gate=vsyscall_page),
            trampolines,
        )


def everything() -> Kernel:
    """A kernel with one of each kind of text."""
    kernel = Kernel()
    kernel.module()
    kernel.ftrace()
    kernel.probe_page(KPROBES, KPROBE_PAGE)
    kernel.probe_page(OPTPROBES, OPTPROBE_PAGE)
    kernel.bpf()
    return kernel


# Kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pc", "kind"),
    [
        pytest.param(TEXT, CodeKind.CORE, id="_stext"),
        pytest.param(TEXT + 0xFFF, CodeKind.CORE, id="before _etext"),
        pytest.param(TEXT + 0x1000, CodeKind.UNKNOWN, id="_etext"),
        pytest.param(TEXT - 1, CodeKind.UNKNOWN, id="before _stext"),
        pytest.param(VSYSCALL, CodeKind.VSYSCALL, id="vsyscall page"),
        pytest.param(VSYSCALL + 0xFFF, CodeKind.VSYSCALL, id="end of the vsyscall page"),
        pytest.param(VSYSCALL + 0x1000, CodeKind.UNKNOWN, id="behind the vsyscall page"),
        pytest.param(MODULE, CodeKind.MODULE, id="module text"),
        pytest.param(MODULE + 0xFFF, CodeKind.MODULE, id="end of module text"),
        pytest.param(MODULE + 0x1000, CodeKind.UNKNOWN, id="module data"),
        pytest.param(MODULE + 0x2000, CodeKind.MODULE_INIT, id="module init text"),
        pytest.param(MODULE + 0x3000, CodeKind.UNKNOWN, id="behind the module"),
        pytest.param(TRAMPOLINE, CodeKind.FTRACE, id="ftrace trampoline"),
        pytest.param(TRAMPOLINE + 0xFF, CodeKind.FTRACE, id="end of the trampoline"),
        pytest.param(TRAMPOLINE + 0x100, CodeKind.UNKNOWN, id="behind the trampoline"),
        pytest.param(KPROBE_PAGE + 0xFFF, CodeKind.KPROBE, id="a page of slots, used or not"),
        pytest.param(OPTPROBE_PAGE, CodeKind.OPTPROBE, id="a page of detours"),
        pytest.param(OPTPROBE_PAGE + 0x1000, CodeKind.UNKNOWN, id="behind the page"),
        pytest.param(BPF, CodeKind.BPF, id="BPF program"),
        pytest.param(BPF + 0x100, CodeKind.BPF, id="the end of a BPF program is included"),
        pytest.param(BPF + 0x101, CodeKind.UNKNOWN, id="behind the BPF program"),
        pytest.param(INIT, CodeKind.INIT, id="_sinittext"),
        pytest.param(INIT + 0xFFF, CodeKind.INIT, id="before _einittext"),
        pytest.param(INIT + 0x1000, CodeKind.UNKNOWN, id="_einittext"),
        pytest.param(0, CodeKind.UNKNOWN, id="0"),
        pytest.param(0x7F0000001000, CodeKind.UNKNOWN, id="user space"),
        pytest.param(0xFFFFFFFFFFFFFFFF, CodeKind.UNKNOWN, id="the last address"),
    ],
)
@pytest.mark.parametrize("exact", [True, False])
def test_kinds(pc: int, kind: CodeKind, exact: bool) -> None:
    """The kernel asks for the return address itself; only the lookup of data goes a byte back."""
    assert everything().text().at(pc, exact).kind is kind


def claim_core(kernel: Kernel) -> dict[str, int | None]:
    return {"_stext": VSYSCALL, "_etext": VSYSCALL + 0x1000}


def claim_init(kernel: Kernel) -> dict[str, int | None]:
    return {"_sinittext": VSYSCALL, "_einittext": VSYSCALL + 0x1000}


def claim_vsyscall(kernel: Kernel) -> dict[str, int | None]:
    kernel.memory.put_u32(VSYSCALL_MODE, EMULATE)
    return {}


CLAIMS: list[tuple[CodeKind, Callable[[Kernel], object]]] = [
    (CodeKind.CORE, claim_core),
    (CodeKind.VSYSCALL, claim_vsyscall),
    (CodeKind.MODULE, lambda k: k.module(mem=[{"base": VSYSCALL, "size": 0x1000}])),
    (CodeKind.FTRACE, lambda k: k.ftrace(VSYSCALL)),
    (CodeKind.OPTPROBE, lambda k: k.probe_page(OPTPROBES, VSYSCALL)),
    (CodeKind.KPROBE, lambda k: k.probe_page(KPROBES, VSYSCALL)),
    (CodeKind.BPF, lambda k: k.bpf(VSYSCALL)),
    (CodeKind.INIT, claim_init),
]
"""Ways of being text in the order in which ``__kernel_text_address()`` asks for them."""


@pytest.mark.parametrize("first", range(len(CLAIMS)), ids=[kind.name for kind, _ in CLAIMS])
def test_of_several_ways_of_being_text_the_first_counts(first: int) -> None:
    """An address is claimed by one way and by all that the kernel asks for after it."""
    kernel = Kernel()
    kernel.memory.put_u32(VSYSCALL_MODE, NONE)
    changed: dict[str, int | None] = {}
    for _, claim in CLAIMS[first:]:
        found = claim(kernel)
        changed |= found if isinstance(found, dict) else {}
    assert kernel.text(changed).at(VSYSCALL, exact=True).kind is CLAIMS[first][0]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (EMULATE, CodeKind.VSYSCALL),
        (XONLY, CodeKind.VSYSCALL),
        (NONE, CodeKind.UNKNOWN),
    ],
)
def test_the_vsyscall_page_is_text_unless_it_is_switched_off(mode: int, kind: CodeKind) -> None:
    kernel = Kernel()
    kernel.memory.put_u32(VSYSCALL_MODE, mode)
    assert kernel.text().at(VSYSCALL + 0x400, exact=False).kind is kind


def test_without_vsyscall_support_its_page_is_no_text() -> None:
    """CONFIG_X86_VSYSCALL_EMULATION=n: the kernel has no ``vsyscall_mode``."""
    assert Kernel().text({"vsyscall_mode": None}).at(VSYSCALL, exact=False).kind is CodeKind.UNKNOWN


def test_a_vsyscall_mode_that_the_dump_lacks_makes_no_text() -> None:
    """What is not known to be text is none: a kernel may have switched the page off."""
    text = Kernel().text({"vsyscall_mode": 0xFFFF888000F00000})
    assert text.at(VSYSCALL, exact=False).kind is CodeKind.UNKNOWN


@pytest.mark.parametrize(
    ("bounds", "kind"),
    [
        pytest.param((MODULE, MODULE + 0xFFF), CodeKind.MODULE, id="just around it"),
        pytest.param((MODULE + 0x11, MODULE + 0xFFF), CodeKind.UNKNOWN, id="begin behind it"),
        pytest.param((MODULE, MODULE + 0x0F), CodeKind.UNKNOWN, id="end before it"),
        pytest.param((2**64 - 1, 0), CodeKind.UNKNOWN, id="no module ever"),
        pytest.param(None, CodeKind.MODULE, id="not in the dump"),
    ],
)
def test_no_module_is_looked_for_outside_the_bounds_of_all(
    bounds: tuple[int, int] | None, kind: CodeKind
) -> None:
    """``__module_address()`` asks ``mod_tree`` first; a damaged structure can claim any address."""
    kernel = Kernel()
    kernel.module()
    if bounds:
        low, high = bounds
        kernel.memory.put_struct(MOD_TREE, "struct mod_tree_root", addr_min=low, addr_max=high)
    assert kernel.text().at(MODULE + 0x10, exact=True).kind is kind


def test_no_module_is_at_0() -> None:
    """Not even where the dump lacks the bounds: 0 is what the kernel's lookups fail with."""
    kernel = Kernel()
    kernel.module(mem=[{"base": 0, "size": 0x1000}])
    assert kernel.text().at(0, exact=True).kind is CodeKind.UNKNOWN
    assert kernel.text().at(1, exact=True).kind is CodeKind.MODULE


def test_a_kernel_without_modules_tracers_and_bpf() -> None:
    lists = "modules bpf_kallsyms ftrace_ops_list kprobe_insn_slots kprobe_optinsn_slots"
    text = Kernel().text(dict.fromkeys(lists.split()))
    assert text.at(TEXT, exact=True).kind is CodeKind.CORE
    assert text.at(MODULE, exact=True).kind is CodeKind.UNKNOWN
    assert text.generated.problems == []


# Names and the pc - 1 rule ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pc", "exact", "address"),
    [
        (TEXT + 5, True, TEXT + 5),
        (TEXT + 5, False, TEXT + 4),
        (0, False, 0xFFFFFFFFFFFFFFFF),
        (0, True, 0),
    ],
)
def test_a_return_address_is_looked_up_by_the_byte_before_it(
    pc: int, exact: bool, address: int
) -> None:
    assert lookup_address(pc, exact) == address


@pytest.mark.parametrize(
    ("pc", "exact", "shown"),
    [
        pytest.param(TEXT + 0x110, False, "noreturn_caller+0x10", id="within a function"),
        pytest.param(
            TEXT + 0x120, False, "noreturn_caller+0x20", id="the last instruction was the call"
        ),
        pytest.param(TEXT + 0x120, True, "next+0x0", id="interrupted at a first instruction"),
        pytest.param(TEXT + 0x121, False, "next+0x1", id="a call of one byte cannot be"),
        pytest.param(INIT + 0x10, False, "start_kernel+0x10", id="init text"),
        pytest.param(BPF + 0x100, False, "bpf_prog_1_main+0x100", id="BPF"),
        pytest.param(
            TRAMPOLINE + 0x10, False, "ftrace_trampoline(my_callback)+0x10", id="trampoline"
        ),
        pytest.param(KPROBE_PAGE + 0x20, True, "kprobe_insn_page+0x20", id="kprobe"),
        pytest.param(OPTPROBE_PAGE + 0x30, True, "kprobe_optinsn_page+0x30", id="optprobe"),
        pytest.param(0xFFFF888000000000, False, "0xffff888000000000", id="no code at all"),
    ],
)
def test_names(pc: int, exact: bool, shown: str) -> None:
    assert str(everything().text().at(pc, exact)) == shown


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        pytest.param(TEXT + 0x400, "ftrace_trampoline(my_callback)", id="core"),
        pytest.param(0x1234, "ftrace_trampoline(0x1234)", id="nowhere"),
        pytest.param(BPF, "ftrace_trampoline(bpf_prog_1_main)", id="BPF"),
        pytest.param(TRAMPOLINE, f"ftrace_trampoline({TRAMPOLINE:#x})", id="itself"),
    ],
)
def test_an_ftrace_trampoline_is_named_by_its_callback(callback: int, name: str) -> None:
    kernel = Kernel()
    kernel.bpf()
    kernel.ftrace(func=callback)
    assert kernel.text().at(TRAMPOLINE, exact=True).symbol == name


SYMTAB, STRTAB, KALLSYMS = 0xFFFF888000001000, 0xFFFF888000002000, 0xFFFF888000003000


def put_symbols(kernel: Kernel, table: dict[str, tuple[int, int]]) -> int:
    """A ``struct mod_kallsyms`` of names with section index and address; gives its address."""
    strings, rows = b"\0", b""
    for name, (section, value) in table.items():
        rows += struct.pack("<IBBHQQ", len(strings), 0, 0, section, value, 0)
        strings += name.encode() + b"\0"
    kernel.memory.put(SYMTAB, bytes(24) + rows)
    kernel.memory.put(STRTAB, strings)
    kernel.memory.put_struct(
        KALLSYMS,
        "struct mod_kallsyms",
        symtab=SYMTAB,
        num_symtab=1 + len(table),
        strtab=STRTAB,
    )
    return KALLSYMS


MODULE_SYMBOLS = {
    "late": (1, MODULE + 0x200),
    "printk": (0, MODULE + 0x150),  # undefined: the core kernel's
    "early": (1, MODULE + 0x100),
    "alias": (1, MODULE + 0x200),
    "variable": (3, MODULE + 0x1100),
    "init_module": (2, MODULE + 0x2000),
}


@pytest.mark.parametrize(
    ("pc", "exact", "shown"),
    [
        pytest.param(MODULE + 0x180, False, "early+0x80 [mod]", id="undefined symbols are not"),
        pytest.param(MODULE + 0x200, False, "early+0x100 [mod]", id="after a call at the end"),
        pytest.param(MODULE + 0x200, True, "late+0x0 [mod]", id="the first of two names"),
        pytest.param(MODULE + 0x1000, False, "late+0xe00 [mod]", id="after a call at text's end"),
        pytest.param(MODULE + 0x2010, False, "init_module+0x10 [mod]", id="init text"),
        pytest.param(MODULE + 0x80, False, f"{MODULE + 0x80:#x}", id="before the first symbol"),
        pytest.param(MODULE + 0x1110, False, "variable+0x10 [mod]", id="data"),
        pytest.param(MODULE + 0x1010, False, f"{MODULE + 0x1010:#x}", id="not of another part"),
    ],
)
def test_module_code_is_named_from_the_modules_own_symbols(
    pc: int, exact: bool, shown: str
) -> None:
    kernel = Kernel()
    kernel.module(kallsyms=put_symbols(kernel, MODULE_SYMBOLS))
    code = kernel.text().at(pc, exact)
    assert str(code) == shown
    assert code.module == "mod"


@pytest.mark.parametrize(
    ("members", "shown"),
    [
        pytest.param({}, "early+0x80 [mod]", id="sound"),
        pytest.param({"symtab": 0xFFFF888000F00000}, None, id="table not in the dump"),
        pytest.param({"strtab": 0xFFFF888000F00000}, None, id="names not in the dump"),
        pytest.param({"num_symtab": 0}, None, id="no symbols"),
        pytest.param({"num_symtab": 1000}, None, id="table longer than what the dump has of it"),
        pytest.param(
            {"num_symtab": 0xFFFFFFFF},
            None,
            id="a table of 96 GiB",
        ),
        pytest.param(
            {"strtab": 0xFFFFFFFFFFFFFFF8},
            None,
            id="names beyond the end of memory",
        ),
    ],
)
def test_a_corrupt_symbol_table_of_a_module_gives_no_names(
    members: dict[str, int], shown: str | None
) -> None:
    """The walk needs no names: it must go on without them."""
    kernel = Kernel()
    table = put_symbols(kernel, MODULE_SYMBOLS)
    sound = {"symtab": SYMTAB, "num_symtab": 1 + len(MODULE_SYMBOLS), "strtab": STRTAB}
    kernel.memory.put_struct(table, "struct mod_kallsyms", **{**sound, **members})
    kernel.module(kallsyms=table)
    code = kernel.text().at(MODULE + 0x180, exact=False)
    assert code.kind is CodeKind.MODULE
    assert str(code) == (shown or f"{MODULE + 0x180:#x}")


@pytest.mark.parametrize("kallsyms", [0, 0xFFFF888000F00000], ids=["none", "unreadable"])
def test_module_code_without_symbols_still_names_its_module(kallsyms: int) -> None:
    kernel = Kernel()
    kernel.module(kallsyms=kallsyms)
    code = kernel.text().at(MODULE + 0x10, exact=False)
    assert (code.kind, code.symbol, code.module) == (CodeKind.MODULE, None, "mod")


def test_a_program_counter_is_decided_once_for_returns_and_once_for_interrupts() -> None:
    text = Kernel().text()
    returned, interrupted = (text.at(TEXT + 0x120, exact) for exact in (False, True))
    assert text.at(TEXT + 0x120, exact=False) is returned
    assert text.at(TEXT + 0x120, exact=True) is interrupted
    assert (returned.symbol, interrupted.symbol) == ("noreturn_caller", "next")


# Doubts -----------------------------------------------------------------------------------------

CALL = bytes.fromhex("909090 e811223344")
NOPS = bytes.fromhex("9090909090909090")


def doubt(pc: int, before: bytes | None, *, exact: bool = False) -> str | None:
    """What is held against a program counter with these bytes before it."""
    kernel = everything()
    if before is not None:
        kernel.memory.put(pc - len(before), before)
    text = kernel.text(pushed_returns={"secondary_startup_64"}, trampolines={TEXT + 0x200, None})
    return text.at(pc, exact).doubt


@pytest.mark.parametrize(
    ("pc", "before", "expected"),
    [
        pytest.param(TEXT + 0x110, CALL, None, id="a call"),
        pytest.param(TEXT + 0x110, NOPS, "no-call-before", id="no call"),
        pytest.param(TEXT + 0x110, None, None, id="unreadable text"),
        pytest.param(TEXT + 0x110, NOPS[:7], None, id="text of which too little is readable"),
        pytest.param(MODULE + 0x110, CALL, None, id="a call in a module"),
        pytest.param(MODULE + 0x110, NOPS, "no-call-before", id="no call in a module"),
        pytest.param(BPF + 0x20, NOPS, "no-call-before", id="no call in BPF code"),
        pytest.param(TRAMPOLINE + 0x20, CALL, None, id="a call in a trampoline"),
        pytest.param(INIT + 0x20, CALL, "init-text-freed", id="init text, though after a call"),
        pytest.param(INIT + 0x20, NOPS, "init-text-freed", id="init text is gone: one doubt"),
        pytest.param(VSYSCALL + 0x20, CALL, "vsyscall-page", id="vsyscall page"),
        pytest.param(0xFFFF888000000100, NOPS, None, id="no text is worse than a doubt"),
        pytest.param(TEXT + 0x310, NOPS, None, id="where return addresses are pushed"),
        pytest.param(TEXT + 0x200, NOPS, None, id="a tracer's trampoline"),
        pytest.param(TEXT + 0x210, CALL, "fgraph-returning", id="within a tracer's trampoline"),
    ],
)
def test_what_is_held_against_a_return_address(
    pc: int, before: bytes | None, expected: str | None
) -> None:
    assert doubt(pc, before) == expected


@pytest.mark.parametrize(
    ("pc", "expected"),
    [(TEXT + 0x110, None), (INIT + 0x20, "init-text-freed"), (VSYSCALL, "vsyscall-page")],
)
def test_an_interrupted_instruction_follows_anything(pc: int, expected: str | None) -> None:
    assert doubt(pc, NOPS, exact=True) == expected


def test_a_tracers_trampoline_is_named_by_its_own_address() -> None:
    """It lies in the place of a return address, but no call precedes it."""
    text = Kernel().text(trampolines={TEXT + 0x200})
    assert str(text.at(TEXT + 0x200, exact=False)) == "return_to_handler+0x0"
    assert str(Kernel().text().at(TEXT + 0x200, exact=False)) == "next+0xe0"


# Modules ----------------------------------------------------------------------------------------

LIVE, COMING, GOING, UNFORMED = range(4)


@pytest.mark.parametrize(
    ("state", "counts"), [(LIVE, True), (COMING, True), (GOING, True), (UNFORMED, False)]
)
def test_a_module_counts_unless_it_is_unformed(state: int, counts: bool) -> None:
    """``__module_address()``: an unformed module's memory is not yet, or no longer, its own."""
    kernel = Kernel()
    kernel.module(state=state)
    kernel.module("other", mem=[{"base": MODULE + 0x8000, "size": 0x1000}])
    assert [m.name for m in kernel.modules()] == (["mod"] if counts else []) + ["other"]
    assert (kernel.text().at(MODULE, exact=True).kind is CodeKind.MODULE) is counts


def test_the_parts_of_a_module() -> None:
    """One part for each ``enum mod_mem_type``; those of size 0 are left out."""
    kernel = Kernel()
    pages = [{"base": MODULE + 0x1000 * i, "size": 0x1000} for i in range(7)]
    kernel.module(mem=[*pages[:5], {}, pages[6]])
    (module,) = kernel.modules()
    assert [(r.start, r.end, r.text) for r in module.regions] == [
        (MODULE, MODULE + 0x1000, True),
        (MODULE + 0x1000, MODULE + 0x2000, False),
        (MODULE + 0x2000, MODULE + 0x3000, False),
        (MODULE + 0x3000, MODULE + 0x4000, False),
        (MODULE + 0x4000, MODULE + 0x5000, True),
        (MODULE + 0x6000, MODULE + 0x7000, False),
    ]


def test_the_parts_that_are_freed_after_initialisation() -> None:
    """``mod_mem_type_is_init()``: INIT_TEXT, INIT_DATA and INIT_RODATA, not RO_AFTER_INIT."""
    kernel = Kernel()
    kernel.module(mem=[{"base": MODULE + 0x1000 * i, "size": 0x1000} for i in range(7)])
    (module,) = kernel.modules()
    assert [r.init for r in module.regions] == [False, False, False, False, True, True, True]


def declare_old_module(types: FakeTypes) -> None:
    """``struct module`` before Linux 6.4, with core_layout and init_layout."""
    types.struct(
        "module_layout", base="void *", size="unsigned int", text_size="unsigned int",
        ro_size="unsigned int", ro_after_init_size="unsigned int",
    )  # fmt: skip
    types.struct(
        "module",
        state="enum module_state",
        list="struct list_head",
        name="char [56]",
        init="void *",
        core_layout="struct module_layout",
        init_layout="struct module_layout",
        arch="struct mod_arch_specific",
        kallsyms="struct mod_kallsyms *",
    )


def put_old_module(kernel: Kernel, init_layout: dict[str, int] | None = None) -> None:
    declare_old_module(kernel.types)
    if init_layout is None:
        init_layout = {"base": MODULE + 0x8000, "size": 0x2000, "text_size": 0x800}
    core_layout = {"base": MODULE, "size": 0x3000, "text_size": 0x1000}
    kernel.module(core_layout=core_layout, init_layout=init_layout)


def test_the_parts_of_a_module_before_linux_6_4() -> None:
    kernel = Kernel()
    put_old_module(kernel)
    (module,) = kernel.modules()
    assert module.regions == (
        Region(MODULE, MODULE + 0x1000, text=True, init=False),
        Region(MODULE + 0x1000, MODULE + 0x3000, text=False, init=False),
        Region(MODULE + 0x8000, MODULE + 0x8800, text=True, init=True),
        Region(MODULE + 0x8800, MODULE + 0xA000, text=False, init=True),
    )


@pytest.mark.parametrize(
    ("pc", "kind"),
    [
        (MODULE, CodeKind.MODULE),
        (MODULE + 0xFFF, CodeKind.MODULE),
        (MODULE + 0x1000, CodeKind.UNKNOWN),
        (MODULE + 0x8000, CodeKind.MODULE_INIT),
        (MODULE + 0x8800, CodeKind.UNKNOWN),
    ],
)
def test_kinds_before_linux_6_4(pc: int, kind: CodeKind) -> None:
    kernel = Kernel()
    put_old_module(kernel)
    assert kernel.text().at(pc, exact=False).kind is kind


def test_an_initialised_module_before_linux_6_4_has_no_init_text() -> None:
    """do_init_module() zeroes the layout that it frees."""
    kernel = Kernel()
    put_old_module(kernel, init_layout={})
    (module,) = kernel.modules()
    assert not any(region.init for region in module.regions)
    assert kernel.text().at(0, exact=True).kind is CodeKind.UNKNOWN


def test_a_modules_unwind_tables_are_known() -> None:
    kernel = Kernel()
    kernel.module(arch={"num_orcs": 7, "orc_unwind_ip": 0x1000, "orc_unwind": 0x2000})
    (module,) = kernel.modules()
    assert len(module.regions) == 3
    assert (module.orc_ip, module.orc, module.orc_count) == (0x1000, 0x2000, 7)


def test_what_lies_around_a_modules_parts_is_none() -> None:
    """MOD_INVALID is -1 and MOD_MEM_NUM_TYPES 7: neither is an index. Before the array is the
    module's name, here as long as can be, and behind it its architecture's members."""
    kernel = Kernel()
    kernel.module("m" * 55, mem=[{"base": MODULE, "size": 0x1000}], arch={"num_orcs": 7})
    (module,) = kernel.modules()
    assert module.name == "m" * 55
    assert module.regions == (Region(MODULE, MODULE + 0x1000, text=True, init=False),)


@pytest.mark.parametrize(
    ("next_of_first", "problem"),
    [
        pytest.param(
            0xFFFF888000F00000, "at 0xffff888000effff8 not readable", id="unreadable module"
        ),
        pytest.param(HEAP + 0x1000 + LIST_IN_MODULE, "leads back", id="loop"),
        pytest.param(0, "null pointer", id="null pointer"),
    ],
)
def test_a_broken_module_list_is_a_problem_and_keeps_the_modules_before(
    next_of_first: int, problem: str
) -> None:
    kernel = Kernel()
    first = kernel.module("one")
    kernel.module("two", mem=[{"base": MODULE + 0x8000, "size": 0x1000}])
    kernel.memory.put_words(first + LIST_IN_MODULE, next_of_first)
    modules = kernel.modules()
    assert [m.name for m in modules] == ["one"]
    assert modules.problem is not None
    assert problem in modules.problem
    assert modules.problem.startswith("modules: ")


def test_a_sound_module_list_has_no_problem() -> None:
    kernel = Kernel()
    kernel.module()
    assert kernel.modules().problem is None
    assert len(kernel.modules()) == 1


# Generated text ---------------------------------------------------------------------------------


def test_ops_without_a_trampoline_of_their_own_are_passed_over() -> None:
    """Static ops and those that share ftrace_caller have no trampoline, or one of size 0."""
    kernel = Kernel()
    kernel.ftrace(0, 0x100)
    kernel.ftrace(TRAMPOLINE + 0x1000, 0)
    kernel.ftrace(TRAMPOLINE, 0x100, flags=4)
    generated = kernel.generated()
    assert generated.ftrace(TRAMPOLINE + 0x1000) is None
    assert generated.ftrace(0) is None
    found = generated.ftrace(TRAMPOLINE + 0x80)
    assert found is not None
    assert found[:4] == (TRAMPOLINE, TRAMPOLINE + 0x100, True, TEXT + 0x400)
    assert generated.problems == []


@pytest.mark.parametrize(("flags", "saves"), [(0, False), (4, True), (0xFFFB, False), (6, True)])
def test_the_flag_that_tells_from_which_code_a_trampoline_was_copied(
    flags: int, saves: bool
) -> None:
    """FTRACE_OPS_FL_SAVE_REGS is bit 2."""
    kernel = Kernel()
    kernel.ftrace(flags=flags)
    found = kernel.generated().ftrace(TRAMPOLINE)
    assert found is not None
    assert found.saves_registers is saves


@pytest.mark.parametrize(("page_size", "inside"), [(4096, False), (65536, True)])
def test_a_page_of_slots_is_as_long_as_the_kernels_pages(page_size: int, inside: bool) -> None:
    kernel = Kernel()
    kernel.probe_page(KPROBES, KPROBE_PAGE)
    generated = kernel.generated(page_size)
    assert (generated.kprobe(KPROBE_PAGE + 4096) is not None) is inside


def test_every_page_of_every_cache_is_found() -> None:
    kernel = Kernel()
    for page in (KPROBE_PAGE, KPROBE_PAGE + 0x10000):
        kernel.probe_page(KPROBES, page)
    kernel.probe_page(OPTPROBES, OPTPROBE_PAGE)
    generated = kernel.generated()
    pages = [KPROBE_PAGE, KPROBE_PAGE + 0x10000, OPTPROBE_PAGE]
    found = [generated.kprobe(page) for page in pages]
    assert [(p.start, p.optimised) for p in found if p] == list(
        zip(pages, [False, False, True], strict=True)
    )


def break_ftrace(kernel: Kernel, following: int) -> None:
    """One trampoline is found, then the list leads elsewhere."""
    ops = HEAP - 0x1000
    kernel.memory.put_struct(
        ops, "struct ftrace_ops", next=following or ops, trampoline=TRAMPOLINE, trampoline_size=1
    )
    kernel.memory.put_words(OPS_LIST, ops)


def break_bpf(kernel: Kernel, following: int) -> None:
    node = kernel.bpf() + LNODE_IN_KSYM
    kernel.memory.put_words(node, following or node)


def break_kprobes(kernel: Kernel, following: int) -> None:
    node = kernel.probe_page(KPROBES, KPROBE_PAGE)
    kernel.memory.put_words(node, following or node)


def break_optprobes(kernel: Kernel, following: int) -> None:
    node = kernel.probe_page(OPTPROBES, OPTPROBE_PAGE)
    kernel.memory.put_words(node, following or node)


BROKEN = [
    pytest.param(break_ftrace, TRAMPOLINE, "ftrace ops", id="ftrace"),
    pytest.param(break_bpf, BPF, "bpf_kallsyms", id="BPF"),
    pytest.param(break_kprobes, KPROBE_PAGE, "kprobe_insn_slots", id="kprobes"),
    pytest.param(break_optprobes, OPTPROBE_PAGE, "kprobe_optinsn_slots", id="optprobes"),
]
LOOP, UNREADABLE = 0, 0xFFFF888000F00000


@pytest.mark.parametrize("following", [LOOP, UNREADABLE], ids=["loop", "unreadable"])
@pytest.mark.parametrize(("break_list", "found", "named"), BROKEN)
def test_a_broken_list_of_generated_text_is_one_problem_and_keeps_what_was_found(
    break_list: Callable[[Kernel, int], None], found: int, named: str, following: int
) -> None:
    kernel = Kernel()
    break_list(kernel, following)
    text = kernel.text()
    assert text.at(found, exact=True).kind not in (CodeKind.UNKNOWN, CodeKind.CORE)
    assert text.at(0xFFFFFFFFA00F0000, exact=True).kind is CodeKind.UNKNOWN
    (problem,) = text.generated.problems
    assert problem.startswith(f"{named}: ")


def test_a_null_pointer_in_a_list_of_generated_text_is_a_problem_too() -> None:
    kernel = Kernel()
    kernel.memory.put_words(kernel.bpf() + LNODE_IN_KSYM, 0)
    generated = kernel.generated()
    assert generated.bpf(BPF) is not None
    assert len(generated.problems) == 1


def test_a_list_of_ftrace_ops_may_end_with_a_null_pointer() -> None:
    """The kernel never lets it; it is read as an end all the same."""
    kernel = Kernel()
    kernel.memory.put_words(OPS_LIST, 0)
    generated = kernel.generated()
    assert generated.ftrace(TRAMPOLINE) is None
    assert generated.problems == []


def test_lists_are_not_read_before_an_address_asks_for_them() -> None:
    kernel = Kernel()
    kernel.memory.put_words(BPF_LIST, UNREADABLE)
    text = kernel.text()
    assert text.at(TEXT, exact=True) == Code(TEXT, CodeKind.CORE, "first", 0, None, None)
    assert text.generated.problems == []
