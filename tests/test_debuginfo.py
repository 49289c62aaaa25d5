# SPDX-License-Identifier: LGPL-2.1-or-later
"""With debug information and from the dump alone: the two side by side."""

from __future__ import annotations

import dataclasses
import lzma
from pathlib import Path

import drgn
import pytest

from drgn_reliable import Kernel, open_dump
from drgn_reliable.report import Scanner
from tests.conftest import Scanned

STRUCTS = [
    "task_struct",
    "thread_struct",
    "thread_info",
    "inactive_task_frame",
    "pt_regs",
    "orc_entry",
    "signal_struct",
    "rq",
    "module",
    "mod_kallsyms",
    "mod_arch_specific",
    "ftrace_ops",
    "ftrace_ret_stack",
    "rethook_node",
    "kprobe_insn_cache",
    "kprobe_insn_page",
    "bpf_ksym",
    "cea_exception_stacks",
    "cpu_entry_area",
    "cpumask",
    "list_head",
    "klp_patch",
    "klp_object",
    "klp_func",
]
"""Everything whose layout the analysis depends on."""


@pytest.fixture(scope="module")
def debug_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug information of the 6.1 kernel, unpacked."""
    from tests.conftest import DUMPS

    (packed,) = [dump.debug_info for dump in DUMPS if dump.debug_info]
    path = tmp_path_factory.mktemp("debug") / "vmlinux"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


@pytest.fixture(scope="module")
def with_dwarf(debug_file: Path) -> Kernel:
    """The 6.1 dump with the kernel's debug information."""
    from tests.conftest import DUMPS

    (dump,) = [dump for dump in DUMPS if dump.debug_info]
    return Kernel(open_dump(str(dump.path), str(debug_file)))


def test_the_types_come_from_the_debug_information(with_dwarf: Kernel, debug_file: Path) -> None:
    """The side that is compared with really has its types from DWARF."""
    assert with_dwarf.types == f"debug information ({debug_file})"
    assert with_dwarf.prog.type("struct task_struct").member("pid").type.type_name() == "pid_t"
    assert "drgn_reliable" not in with_dwarf.prog.registered_type_finders()


def test_every_report_is_the_same(with_dwarf: Kernel, scanned_6_1: Scanned) -> None:
    """Verdicts, entries, frames, names and reasons of every task are those from the dump alone."""
    reports = tuple(Scanner(with_dwarf).reports(with_dwarf.tasks))
    assert [dataclasses.asdict(r) for r in reports] == [
        dataclasses.asdict(r) for r in scanned_6_1.reports
    ]


def members(type_: drgn.Type) -> list[tuple[object, ...]]:
    """Name, place, width and type of each member."""
    return [(m.name, m.bit_offset, m.bit_field_size, spelled(m.type)) for m in type_.members or ()]


def spelled(type_: drgn.Type) -> str:
    """A type's name, by kind only where DWARF and BTF name a thing without a name differently."""
    name: str = type_.type_name()
    return name.partition(" {")[0].partition("<anonymous>")[0]


@pytest.mark.parametrize("name", STRUCTS)
def test_btf_and_dwarf_agree(with_dwarf: Kernel, scanned_6_1: Scanned, name: str) -> None:
    """A struct has the same size and the same members at the same places on both sides."""
    dwarf = with_dwarf.prog.type(f"struct {name}")
    btf = scanned_6_1.kernel.prog.type(f"struct {name}")
    assert btf.size == dwarf.size
    assert members(btf) == members(dwarf)


DESCRIBED = [
    "__cpu_active_mask", "__cpu_dying_mask", "__cpu_online_mask", "__cpu_possible_mask",
    "__cpu_present_mask", "__num_online_cpus", "__per_cpu_offset", "bpf_kallsyms", "crash_notes",
    "ftrace_list_end", "ftrace_ops_list", "init_pid_ns", "init_task", "klp_ops", "klp_patches",
    "klp_signals_cnt", "klp_target_state", "klp_transition_patch", "kprobe_insn_slots",
    "kprobe_optinsn_slots", "lookup_num_blocks", "modules", "nr_cpu_ids", "orc_init", "pid_max",
    "runqueues", "saved_command_line", "system_state",
]  # fmt: skip
"""Globals that the reduced debug information describes; all but runqueues are missing in BTF."""


@pytest.mark.parametrize("name", DESCRIBED)
def test_globals_that_btf_leaves_out_have_their_c_types(
    with_dwarf: Kernel, scanned_6_1: Scanned, name: str
) -> None:
    """A variable found without debug information has the address and type that DWARF gives."""
    dwarf, ours = with_dwarf.prog[name], scanned_6_1.kernel.prog[name]
    assert ours.address_ == dwarf.address_
    expected = dwarf.type_.type_name()
    if dwarf.type_.kind is drgn.TypeKind.ARRAY:
        expected = f"{dwarf.type_.type.type_name()} []"  # its length is not in the dump
    assert ours.type_.type_name() == expected
