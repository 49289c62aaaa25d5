# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of a kernel before any stack is walked: of the real dumps, and of variables and
tables that are laid out by hand."""

from __future__ import annotations

import io
import json
import struct
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from drgn_reliable import Kernel as RealKernel
from drgn_reliable import config, metadata, open_dump
from drgn_reliable.config import ABSENT
from drgn_reliable.facts import kernel_facts
from drgn_reliable.instruments import instruments
from drgn_reliable.metadata import orc_table
from drgn_reliable.render.table import write_facts
from drgn_reliable.taints import letters, taints
from tests.codes import CALLBACK, LIVEPATCH, LOST, TEXT
from tests.codes import Kernel as Codes
from tests.dumps import DUMPS, Dump
from tests.fakes import FakeMemory, FakeSymbols

# Real dumps -------------------------------------------------------------------------------------

VMLAB = ["vmlab_initwait: OE", "vmlab_states: OE", "vmlab_oracle: OE"]
DEBIAN_X86: dict[str, Any] = {
    "reliable_stack_traces": True,
    "livepatch": True,
    "frame_pointers": False,
    "stack_size": 16384,
    "stacks_mapped": True,
    "shadow_call_stack": "none",
    "pointer_authentication": None,
    "vsyscall": "none",
    "unwind_metadata": ["ORC", "BTF"],
    "modules_without_unwind_data": [],
    "module_taints": VMLAB,
    "orc_enabled": True,
    "orc_covers_text": True,
    "preemption": ABSENT,
    "orc_sorted": ABSENT,
    "taints": ABSENT,
    "kprobes": ABSENT,
    "livepatches": ABSENT,
    "return_probes": "rethook_node",
}
"""Capsules hold neither whole tables nor what no scan reads."""
NO_ORC = {
    "modules_without_unwind_data": None,
    "orc_entries": None,
    "orc_enabled": None,
    "orc_sorted": None,
    "orc_covers_text": None,
    "unwind_metadata": ["BTF"],
}
NO_LIVEPATCH: dict[str, Any] = {"livepatch": False, "livepatches": [], "livepatch_transition": ""}
INTERRUPTED = "tasks that were interrupted in kernel code are refused, each of them"
FOREIGN = "tainted: O: module from out of tree; its code and its unwind data come from elsewhere"
NO_BPF = "BPF code without unwind data, tasks in which are refused: "
SMALL = {
    **NO_ORC,
    "reliable_stack_traces": True,
    "livepatch": True,
    "pointer_authentication": "mask 0xfff0000000000000",
    "preemption": "full (can be changed)",
    "kprobes": 8,
    "preflight": [
        INTERRUPTED,
        "return addresses are being replaced by the function graph tracer",
        "return addresses are being replaced by kretprobes: 7",
        FOREIGN,
    ],
}
ARM64 = {
    **NO_ORC,
    **NO_LIVEPATCH,
    "return_probes": "kretprobe_instance",
    "pointer_authentication": "mask 0xfff0000000000000",
    "vsyscall": None,
    "bpf_programs": 5,
}

EXPECTED: dict[str, dict[str, Any]] = {
    "x86_64-6.1": {
        **DEBIAN_X86,
        "orc_entries": 367614,
        "bpf_programs": 4,
        "bpf_trampolines": 3,
        "preflight": [NO_BPF + "4 programs, 3 trampolines"],
    },
    "x86_64-6.12": {
        **DEBIAN_X86,
        "orc_entries": 433529,
        "vsyscall": "xonly",
        "preemption": "full (can be changed)",
        "modules_without_unwind_data": ["vmlab_noorc"],
        "module_taints": ["vmlab_noorc: OE", *VMLAB],
        "kprobes": 9,
        "livepatches": [],
        "taints": [
            "W: a warning",
            "O: module from out of tree",
            "E: module without a valid signature",
            "X: auxiliary, by the distribution",
        ],
        "preflight": [
            "modules without unwind data, tasks in which are refused: vmlab_noorc",
            "return addresses are being replaced by the function graph tracer",
            "return addresses are being replaced by kretprobes: 7",
            "optimised kprobes, tasks in whose detours are refused: 1",
            NO_BPF + "5 programs, 4 trampolines",
            "tainted: W: a warning; it may be the unwinder's: look for it in the log",
            FOREIGN,
        ],
    },
    "x86_64-6.12-crash": {
        **DEBIAN_X86,
        "orc_entries": 433529,
        "preflight": [NO_BPF + "5 programs, 4 trampolines"],
    },
    "x86_64-7.2": {**DEBIAN_X86, "orc_entries": 503821, "preflight": []},
    "x86_64-7.2-fp": {
        **NO_ORC,
        "reliable_stack_traces": True,
        "frame_pointers": True,
        "stacks_mapped": False,
        "vsyscall": "xonly",
        "livepatch": True,
        "preflight": [INTERRUPTED],
    },
    "aarch64-6.12": {
        **ARM64,
        "reliable_stack_traces": False,
        "preemption": "none or voluntary",
        "preflight": [
            "no reliable stack traces: this kernel has no arch_stack_walk_reliable()",
        ],
    },
    "aarch64-7.2-16k": {
        **ARM64,
        "reliable_stack_traces": True,
        "preemption": "full or lazy",
        "preflight": [INTERRUPTED],
    },
    "aarch64-7.2-small-chains": SMALL,
    "aarch64-7.2-small-chains-sframe": SMALL,
    "aarch64-7.2-hurt": {
        **NO_ORC,
        "reliable_stack_traces": True,
        "livepatch": True,
        "pointer_authentication": "off",
        "preemption": "full (can be changed)",
        "kprobes": 8,
        "preflight": [
            INTERRUPTED,
            "return addresses are being replaced by the function graph tracer",
            "return addresses are being replaced by kretprobes: 7",
            FOREIGN,
        ],
    },
    "ppc64le-6.12-64k": {
        **NO_ORC,
        **NO_LIVEPATCH,
        "stack_size": 32768,
        "function_graph_active": True,
        "kretprobes": ABSENT,
        "preflight": [
            INTERRUPTED,
            "return addresses are being replaced by the function graph tracer",
        ],
    },
    "s390x-6.12": {
        **NO_ORC,
        **NO_LIVEPATCH,
        "stack_size": 16384,
        "bpf_programs": 0,
        "function_graph_active": ABSENT,
        "preflight": [INTERRUPTED],
    },
    "loongarch64-7.2": {
        "unwind_metadata": ["ORC", "BTF"],
        "orc_entries": 263905,
        "orc_enabled": None,
        "orc_covers_text": ABSENT,
        "modules_without_unwind_data": [],
        "livepatch": True,
        "preflight": [],
    },
}


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.name)
def test_what_is_said_of_a_real_kernel(dump: Dump) -> None:
    kernel = RealKernel(open_dump(str(dump.path)))
    facts = kernel_facts(kernel)
    assert (facts["unwinder"], facts["release"]) == (dump.unwinder, dump.release)
    assert facts["architecture"] == dump.architecture
    expected = EXPECTED[dump.name.removesuffix(".kdump")]
    assert {name: facts[name] for name in expected} == expected
    assert json.loads(json.dumps(facts)) == facts
    assert kernel.generated.problems == []


def test_the_table_leaves_out_what_there_is_not_and_gives_each_warning_a_line() -> None:
    out = io.StringIO()
    facts = {
        "vsyscall": None,
        "orc_sorted": True,
        "livepatch_transition": "",
        "livepatches": [],
        "taints": ["W: a warning", "K: livepatched"],
        "preflight": ["one", "two"],
    }
    write_facts(facts, out)
    assert out.getvalue().splitlines() == [
        "orc sorted            yes",
        "livepatch transition  none",
        "livepatches           none",
        "taints                W: a warning, K: livepatched",
        "preflight: one",
        "preflight: two",
    ]


# Variables --------------------------------------------------------------------------------------


def fake(*, version: bytes = b"", u32: dict[str, int] | None = None, **more: Any) -> Any:
    """As much of a kernel as :mod:`drgn_reliable.config` looks at.

    :param u32: variables by value; those with a value below 0 are not in the dump.
    """
    codes = Codes()
    types = codes.types
    types.struct("new_utsname", sysname="char [65]", version="char [65]")
    types.struct("uts_namespace", name="struct new_utsname")
    uts = codes.put("struct uts_namespace", name={"version": version})
    addresses = {"init_uts_ns": uts}
    for name, value in (u32 or {}).items():
        addresses[name] = codes.allocate() if value >= 0 else LOST
        if value >= 0:
            codes.memory.put_u32(addresses[name], value, 0)
    symbols = FakeSymbols(addresses)
    members: dict[str, Any] = {"modules": [], "vmcoreinfo": {}, **more}
    return SimpleNamespace(
        codes=codes, prog=codes.memory.prog, symbols=symbols, types=types, **members
    )


@pytest.mark.parametrize(
    ("variables", "version", "expected"),
    [
        ({"preempt_dynamic_mode": 0}, b"", "none (can be changed)"),
        ({"preempt_dynamic_mode": 2}, b"#1 SMP PREEMPT_DYNAMIC", "full (can be changed)"),
        ({"preempt_dynamic_mode": 3}, b"", "lazy (can be changed)"),
        ({"preempt_dynamic_mode": 9}, b"", "unknown (0x9) (can be changed)"),
        ({"preempt_dynamic_mode": -1}, b"", ABSENT),
        ({}, b"#1 SMP PREEMPT_RT Debian", "real-time"),
        ({}, b"#1 SMP PREEMPT Debian", "full or lazy"),
        ({}, b"#1 SMP Debian", "none or voluntary"),
        ({"preempt_schedule": 0}, b"#1 SMP Debian", "unknown"),
    ],
)
def test_preemption(variables: dict[str, int], version: bytes, expected: str) -> None:
    assert config.preemption(fake(version=version, u32=variables)) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"vsyscall_mode": 0}, "emulate"),
        ({"vsyscall_mode": 1}, "xonly"),
        ({"vsyscall_mode": 2}, "none"),
        ({"vsyscall_mode": -1}, ABSENT),
        ({}, None),
    ],
)
def test_vsyscall(variables: dict[str, int], expected: str | None) -> None:
    assert config.vsyscall(fake(u32=variables)) == expected


@pytest.mark.parametrize(
    ("built", "variables", "expected"),
    [
        (False, {"dynamic_scs_enabled": 1}, "none"),
        (True, {}, "on"),
        (True, {"dynamic_scs_enabled": 1}, "on (dynamic)"),
        (True, {"dynamic_scs_enabled": 0}, "off (dynamic)"),
        (True, {"dynamic_scs_enabled": -1}, ABSENT),
    ],
)
def test_shadow_call_stack(built: bool, variables: dict[str, int], expected: str) -> None:
    kernel = fake(u32=variables)
    if built:
        kernel.types.struct("thread_info", flags="unsigned long", scs_base="void *")
    assert config.shadow_call_stack(kernel) == expected


@pytest.mark.parametrize(
    ("vmcoreinfo", "expected"),
    [
        ({}, None),
        ({"NUMBER(KERNELPACMASK)": "0x0"}, "off"),
        ({"NUMBER(KERNELPACMASK)": "0xff7f000000000000"}, "mask 0xff7f000000000000"),
        ({"NUMBER(KERNELPACMASK)": "?"}, "unknown"),
    ],
)
def test_pointer_authentication(vmcoreinfo: dict[str, str], expected: str | None) -> None:
    assert config.pointer_authentication(fake(vmcoreinfo=vmcoreinfo)) == expected


# Taints -----------------------------------------------------------------------------------------


def test_every_taint_has_its_letter() -> None:
    """Documentation/admin-guide/tainted-kernels.rst."""
    assert letters((1 << 20) - 1) == "PFSRMBUDAWCIOELKXTNJ"
    assert letters(0) == ""


def test_the_taints_that_matter() -> None:
    assert {taint.letter for taint in taints((1 << 20) - 1) if taint.matters} == set("PFRMBDWOLKN")


def test_a_taint_that_is_not_known_is_shown_as_such() -> None:
    assert [str(taint) for taint in taints(1 << 15 | 1 << 40)] == [
        "K: livepatched",
        "?: unknown bits 0x10000000000",
    ]


def test_masks_of_kernel_and_modules() -> None:
    kernel = fake(u32={"tainted_mask": 1 << 9})
    kernel.types.struct("module", state="int", taints="unsigned long")
    put = kernel.codes.put
    foreign, clean = (put("struct module", taints=taints) for taints in (1 << 12, 0))
    kernel.modules = [
        SimpleNamespace(name=name, address=address)
        for name, address in (("foreign", foreign), ("clean", clean), ("lost", LOST))
    ]
    assert config.taint_masks(kernel) == (1 << 9, {"foreign": 1 << 12})


def test_masks_that_the_dump_lacks() -> None:
    assert config.taint_masks(fake(u32={"tainted_mask": -1})) == (None, {})


# ORC --------------------------------------------------------------------------------------------

ORC = 0xFFFFFFFF84000000


def orc(*targets: int, enabled: int | None = 1, count: int | None = None) -> Any:
    """The table of these addresses."""
    memory = FakeMemory()
    distances = [target - ORC - 4 * i for i, target in enumerate(targets)]
    memory.put(ORC, struct.pack(f"<{len(targets)}i", *distances))
    stop = ORC + 4 * (len(targets) if count is None else count)
    addresses = {"_stext": TEXT, "__start_orc_unwind_ip": ORC, "__stop_orc_unwind_ip": stop}
    if enabled is not None:
        addresses["orc_init"] = ORC - 0x1000
        memory.put(ORC - 0x1000, bytes([enabled]))
    return orc_table(memory.prog, FakeSymbols(addresses), True)


def test_an_orc_table() -> None:
    table = orc(TEXT, TEXT + 0x10, TEXT + 0x10, TEXT + 0x1000)
    assert table == (4, True, True, TEXT, TEXT + 0x1000)
    assert table.covers(TEXT, TEXT + 0x1000) is True
    assert table.covers(TEXT - 1, TEXT + 0x1000) is False
    assert table.covers(TEXT, TEXT + 0x1001) is False


def test_an_orc_table_out_of_order() -> None:
    assert orc(TEXT + 0x10, TEXT, TEXT + 0x1000).ordered is False


@pytest.mark.parametrize(("enabled", "expected"), [(0, False), (1, True), (None, None)])
def test_whether_orc_was_enabled(enabled: int | None, expected: bool | None) -> None:
    """LoongArch has no such variable."""
    assert orc(TEXT, enabled=enabled).enabled is expected


def test_an_orc_table_of_which_the_dump_lacks_a_part() -> None:
    table = orc(TEXT, TEXT + 0x10, count=100)
    assert table == (100, True, None, TEXT, None)
    assert table.covers(TEXT, TEXT + 0x1000) is None


@pytest.mark.parametrize("count", [0, -5, 1 << 40])
def test_an_orc_table_of_a_size_that_cannot_be(count: int) -> None:
    assert orc(TEXT, count=count) == (0, True, None, None, None)


def test_a_kernel_without_orc() -> None:
    memory = FakeMemory()
    assert orc_table(memory.prog, FakeSymbols({"_stext": TEXT}), True) is None


def test_frame_sections_of_a_debug_file(tmp_path: Any) -> None:
    assert ".eh_frame" in metadata._sections(sys.executable)
    other = tmp_path / "other"
    other.write_text("no ELF file")
    assert metadata._sections(str(other)) == []
    assert metadata._sections(str(tmp_path / "none")) == []


# Tracers, probes, livepatches -------------------------------------------------------------------


def running(codes: Codes, graph_active: int = 0) -> Any:
    codes.variables["ftrace_graph_active"] = codes.allocate()
    codes.memory.put_u32(codes.variables["ftrace_graph_active"], graph_active)
    text = codes.text()
    return instruments(
        SimpleNamespace(  # type: ignore[arg-type]
            prog=codes.memory.prog,
            symbols=text._symbols,
            text=text,
            generated=text.generated,
            owners=codes.owners,
            supports_livepatch=True,
        )
    )


def test_what_changes_the_code_is_counted() -> None:
    codes = Codes()
    codes.ftrace(LIVEPATCH)
    codes.optimised()
    codes.bpf("bpf_prog_00112233_main")
    codes.livepatch()
    found = running(codes, graph_active=2)
    assert found.graph_active is True
    assert found.ftrace == ["klp_ftrace_handler"]
    assert (found.kprobes, found.optimised, found.disabled, found.kretprobes) == (1, 1, 0, 0)
    assert (found.bpf_programs, found.bpf_trampolines) == (1, 0)
    assert found.livepatches == ["lp_fix (replaces all)"]
    assert codes.problems == []


def test_probes_of_returns_and_disabled_probes() -> None:
    codes = Codes()
    codes.kprobe(pre_handler=CALLBACK, flags=2)
    codes.variables["pre_handler_kretprobe"] = CALLBACK
    found = running(codes)
    assert (found.kprobes, found.optimised, found.disabled, found.kretprobes) == (1, 0, 1, 1)
    assert found.graph_active is False


@pytest.mark.parametrize(
    ("lost", "member"),
    [
        ("kprobe_table", "kprobes"),
        ("klp_patches", "livepatches"),
        ("ftrace_ops_list", "ftrace"),
        ("bpf_kallsyms", "bpf_programs"),
    ],
)
def test_what_the_dump_lacks_is_not_counted(lost: str, member: str) -> None:
    codes = Codes(lost=lost)
    assert getattr(running(codes), member) is None
    assert codes.problems == []


def test_a_transition_in_progress() -> None:
    codes = Codes()
    codes.livepatch()
    codes.text()
    (patch,) = codes.owners.patches.all
    place = codes.allocate()
    codes.memory.put_words(place, patch.address)
    codes.variables["klp_transition_patch"] = place
    assert running(codes).transition == "lp_fix"
    codes.memory.put_words(place, 0)
    assert running(codes).transition == ""
    codes.variables["klp_transition_patch"] = LOST
    assert running(codes).transition is None
