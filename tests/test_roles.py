# SPDX-License-Identifier: LGPL-2.1-or-later
"""What code is there for, by its name and by where it is; in the real dumps too."""

from __future__ import annotations

import pytest

from drgn_reliable import Kernel as RealKernel
from drgn_reliable import Scanner, open_dump
from drgn_reliable.arch.known import ARCHITECTURES
from drgn_reliable.generated import GeneratedText
from drgn_reliable.model import CodeKind, CodeRole
from drgn_reliable.modules import ModuleList
from drgn_reliable.text import Text
from tests.codes import DATA, END, ETEXT, INIT, LOST, MODULE, TEXT, VARIABLES, VECTORS, Kernel
from tests.dumps import DUMPS, Dump
from tests.fakes import FakeSymbols

# By name and place ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pc", "role"),
    [
        pytest.param(TEXT + 0x10, CodeRole.VECTORS, id="between two symbols"),
        pytest.param(TEXT + 0x100, CodeRole.FUNCTION, id="behind the second"),
        pytest.param(TEXT + 0x200, CodeRole.ENTRY, id="entry text"),
        pytest.param(TEXT + 0x2FF, CodeRole.ENTRY, id="the last byte of it"),
        pytest.param(TEXT + 0x300, CodeRole.FUNCTION, id="behind it"),
        pytest.param(TEXT + 0x910, CodeRole.FTRACE, id="ftrace's own entry code"),
        pytest.param(TEXT + 0x930, CodeRole.GRAPH_RETURN, id="function graph"),
        pytest.param(TEXT + 0x940, CodeRole.RETURN_PROBE, id="return probe"),
        pytest.param(TEXT + 0x950, CodeRole.STATIC_CALL, id="static call"),
        pytest.param(TEXT + 0x960, CodeRole.THUNK, id="by how the name begins"),
        pytest.param(TEXT + 0x970, CodeRole.PLT, id="by how the name ends"),
        pytest.param(TEXT + 0x980, CodeRole.LIVEPATCH_STUB, id="by the name"),
        pytest.param(TEXT + 0x990, CodeRole.FUNCTION, id="no special name"),
        pytest.param(INIT + 0x10, CodeRole.INIT, id="init text"),
        pytest.param(MODULE + 0x10, CodeRole.FUNCTION, id="module"),
        pytest.param(0x1000, CodeRole.UNKNOWN, id="nowhere"),
    ],
)
def test_roles_by_name_and_place(pc: int, role: CodeRole) -> None:
    assert Kernel().text().at(pc, exact=True).role is role


def test_a_return_address_is_judged_by_the_byte_before_it() -> None:
    text = Kernel().text()
    assert text.at(TEXT + 0x300, exact=False).role is CodeRole.ENTRY
    assert text.at(TEXT + 0x300, exact=True).role is CodeRole.FUNCTION


KNOWN = [
    ("x86_64", "srso_alias_return_thunk", CodeRole.THUNK),
    ("x86_64", "__x86_indirect_thunk_rax", CodeRole.THUNK),
    ("x86_64", "__x86_return_thunk", CodeRole.THUNK),
    ("x86_64", "srso_show_state", CodeRole.FUNCTION),
    ("x86_64", "ftrace_regs_caller_op_ptr", CodeRole.FTRACE),
    ("x86_64", "ftrace_call_adjust", CodeRole.FUNCTION),
    ("aarch64", "vectors", CodeRole.VECTORS),
    ("aarch64", "__AArch64ADRPThunk_printk", CodeRole.PLT),
    ("aarch64", "__kretprobe_trampoline", CodeRole.RETURN_PROBE),
    ("ppc64le", "livepatch_handler", CodeRole.LIVEPATCH_STUB),
    ("ppc64le", "interrupt_return_srr_kernel", CodeRole.ENTRY),
    ("ppc64le", "data_access_common_virt", CodeRole.ENTRY),
    ("ppc64le", "set_cpus_allowed_common", CodeRole.FUNCTION),
    ("ppc64le", "0000001b.plt_call.printk", CodeRole.PLT),
    ("s390x", "pgm_check_handler", CodeRole.VECTORS),
    ("s390x", "kprobe_fault_handler", CodeRole.FUNCTION),
    ("s390x", "system_call", CodeRole.ENTRY),
    ("loongarch64", "handle_tlb_load", CodeRole.VECTORS),
    ("loongarch64", "handle_irq_event", CodeRole.FUNCTION),
    ("loongarch64", "handle_syscall", CodeRole.ENTRY),
]


@pytest.mark.parametrize(("architecture", "name", "role"), KNOWN)
def test_the_names_of_the_architectures(architecture: str, name: str, role: CodeRole) -> None:
    kernel = Kernel()
    symbols = FakeSymbols(
        {"_stext": TEXT, "_etext": ETEXT, "_sinittext": INIT, "_einittext": INIT}, {name: TEXT}
    )
    generated = GeneratedText(kernel.memory.prog, symbols, 4096)
    modules = ModuleList(kernel.memory.prog, None)
    rules = ARCHITECTURES[architecture].code
    text = Text(kernel.memory.prog, symbols, modules, generated, rules)
    assert text.at(TEXT + 8, exact=True).role is role


def test_sections_of_a_module() -> None:
    kernel = Kernel()
    kernel.sections((".text", MODULE), (".exit.text", MODULE + 0x800), (".plt", MODULE + 0xC00))
    roles = [kernel.shown(MODULE + at)[0] for at in (0x7FF, 0x800, 0xC00)]
    assert roles == ["function", "exit text", "PLT or veneer"]


def test_sections_before_linux_6_14() -> None:
    """The address had a member of its own beside the file."""
    kernel = Kernel()
    kernel.types.struct("module_sect_attr", battr="struct bin_attribute", address="unsigned long")
    kernel.types.struct(
        "module_sect_attrs",
        grp="struct attribute_group",
        nsections="unsigned int",
        attrs="struct module_sect_attr [1]",
    )
    file = kernel.put(
        "struct module_sect_attr",
        battr={"attr": {"name": kernel.string(".plt")}, "private": 1},
        address=MODULE,
    )
    listed = kernel.allocate()
    kernel.memory.put_words(listed, file, 0)
    attributes = kernel.put("struct module_sect_attrs", grp={"bin_attrs": listed})
    at = kernel.offset("struct module", "sect_attrs")
    kernel.memory.put_words(kernel.module + at, attributes)
    assert kernel.shown(MODULE + 8) == ("PLT or veneer", None)


def test_sections_that_the_dump_lacks_are_not_missed() -> None:
    kernel = Kernel()
    kernel.memory.put_words(kernel.module + kernel.offset("struct module", "sect_attrs"), LOST)
    assert kernel.shown(MODULE + 8) == ("function", None)
    assert kernel.problems == []


# No text ----------------------------------------------------------------------------------------

RUNTIME, RUNTIME_CODE, RUNTIME_DATA = 1 << 63, 5, 6


@pytest.mark.parametrize(
    ("kind", "attribute", "role"),
    [
        (RUNTIME_CODE, RUNTIME, "foreign (EFI runtime)"),
        (RUNTIME_DATA, RUNTIME, "nothing known"),
        (RUNTIME_CODE, 0, "nothing known"),
    ],
)
def test_the_firmwares_code(kind: int, attribute: int, role: str) -> None:
    kernel = Kernel()
    place = 0xFFFFFFFEF0000000
    row = kernel.put(
        "struct memory_desc", type=kind, virt_addr=place, num_pages=2, attribute=attribute
    )
    memmap = {"map": row - 0x30, "nr_map": 2, "desc_size": 0x30}
    kernel.memory.put(row - 0x30, bytes(0x30))
    kernel.memory.put_struct(VARIABLES["efi"], "struct efi", memmap=memmap)
    assert kernel.shown(place + 0x1FFF) == (role, None)
    assert kernel.shown(place + 0x2000) == ("nothing known", None)


def test_exception_vectors_that_a_variable_points_to() -> None:
    kernel = Kernel()
    kernel.memory.put_words(VARIABLES["eentry"], VECTORS)
    assert kernel.shown(VECTORS + 0xFFF) == ("exception vectors", None)
    assert kernel.shown(VECTORS + 0x1000) == ("nothing known", None)


@pytest.mark.parametrize(
    ("address", "nature"),
    [
        (MODULE + 0x1000, None),
        (MODULE + 0x2000, "data of module mod"),
        (VECTORS, "exception vectors"),
        (DATA + 0x18, "kernel data some_data+0x18"),
        (ETEXT, "kernel data"),
        (END, None),
        (0xDEAD00BEEF0000, None),
    ],
)
def test_what_is_known_of_an_address_that_is_no_text(address: int, nature: str | None) -> None:
    kernel = Kernel()
    kernel.memory.put_words(VARIABLES["eentry"], VECTORS)
    regions = [{"base": MODULE, "size": 0x1000}, {"base": MODULE + 0x2000, "size": 0x1000}]
    at = kernel.offset("struct module", "mem")
    layout = kernel.types.prog.type("struct module_memory")
    for i, region in enumerate(regions):
        kernel.memory.put_struct(
            kernel.module + at + i * (layout.size or 0), "struct module_memory", **region
        )
    assert kernel.text().nature(address) == nature


# Real dumps -------------------------------------------------------------------------------------

X86 = {
    "u_kp_opt": (CodeRole.OPTPROBE, None),
    "u_kp_entry": (CodeRole.FTRACE, "kprobe_ftrace_handler (kprobes)"),
    "u_ft_regs": (CodeRole.FTRACE, "callback_sleeps"),
    "k_ft_spin": (CodeRole.FTRACE, "callback_spins"),
    "bpf_fexit": (CodeRole.BPF_TRAMPOLINE, None),
    "u_krp_return": (CodeRole.RETURN_PROBE, None),
    "insmod": (CodeRole.MODULE_INIT, None),
    "swapper/0": (CodeRole.INIT, None),
    "uffd_user": (CodeRole.ENTRY, None),
}
"""What tasks of vmlab's guests are in; capsules hold nothing of the probes."""

SEEN = {
    "x86_64-6.1": {**X86, "bpf_lsm": (CodeRole.BPF_PROGRAM, "bpf_lsm_socket_listen")},
    "x86_64-6.12": {
        **X86,
        "u_kp_opt": (CodeRole.OPTPROBE, "vmlab_kp_here"),  # there for the sake of hurt_slot
        "bpf_fexit": (CodeRole.BPF_TRAMPOLINE, "__x64_sys_rt_sigsuspend"),
        "bpf_spin": (CodeRole.BPF_PROGRAM, "__x64_sys_getpgid"),
    },
    "x86_64-6.12-crash": X86,
    "x86_64-7.2": {**X86, "bpf_lsm": (CodeRole.BPF_TRAMPOLINE, "bpf_lsm_socket_listen")},
    "x86_64-7.2-fp": X86,
    "aarch64-6.12": {"bpf_lsm": (CodeRole.BPF_PROGRAM, "bpf_lsm_socket_listen")},
    "aarch64-7.2-16k": {
        "u_ft_list": (CodeRole.FTRACE, "one of 5 callbacks"),
        "bpf_module": (CodeRole.BPF_TRAMPOLINE, "vmlab_bpf_sleep"),
        "init": (CodeRole.ENTRY, None),
    },
    "aarch64-7.2-small-chains": {"init": (CodeRole.ENTRY, None)},
    "aarch64-7.2-small-chains-sframe": {"init": (CodeRole.ENTRY, None)},
    "aarch64-7.2-hurt": {
        "k_ft_list": (CodeRole.FTRACE, "one of 5 callbacks"),
        "init": (CodeRole.ENTRY, None),
    },
    "ppc64le-6.12-64k": {"u_ft_regs": (CodeRole.FTRACE, "one of 6 callbacks")},
    "s390x-6.12": {
        "uffd_user": (CodeRole.VECTORS, None),
        "init": (CodeRole.ENTRY, None),
    },
    "loongarch64-7.2": {
        "spinuser": (CodeRole.VECTORS, None),
        "init": (CodeRole.ENTRY, None),
        "bpf_fexit": (CodeRole.BPF_TRAMPOLINE, "__se_sys_rt_sigsuspend"),
    },
}


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.name)
def test_roles_in_a_real_dump(dump: Dump) -> None:
    """Roles agree with the rule that made the address text; what a capsule lacks to tell which is
    no problem of the dump."""
    kernel = RealKernel(open_dump(str(dump.path)))
    scanner = Scanner(kernel)
    by_comm: dict[str, set[tuple[CodeRole, str | None]]] = {}
    for report in scanner.reports(kernel.tasks):
        roles = by_comm.setdefault(report.comm, set())
        for code in (frame.code for frame in report.frames):
            roles.add((code.role, code.of))
            same = code.role.value == code.kind.value
            assert same or code.kind not in (CodeKind.FTRACE, CodeKind.KPROBE, CodeKind.OPTPROBE)
            assert (code.role is CodeRole.INIT) is (code.kind is CodeKind.INIT)
            assert code.role.value.startswith("bpf") is (code.kind is CodeKind.BPF)
    for comm, seen in SEEN[dump.name.removesuffix(".kdump")].items():
        assert seen in by_comm[comm], comm
    assert scanner.problems() == ()
