# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which: what a slot, a trampoline, BPF code and a livepatch's function were made for; and dumps
that lack what tells it."""

from __future__ import annotations

import pytest

from tests.codes import (
    BPF,
    CALLBACK,
    DETOURS,
    LIVEPATCH,
    MODULE,
    NEW_CODE,
    OLD,
    PROBED,
    SLOTS,
    TEXT,
    TRAMPOLINE,
    VARIABLES,
    Kernel,
)

# Which ------------------------------------------------------------------------------------------


def test_an_ftrace_trampoline_is_its_callbacks() -> None:
    kernel = Kernel()
    kernel.ftrace()
    assert kernel.shown(TRAMPOLINE + 8) == ("ftrace trampoline", "callback")


def test_a_livepatchs_trampoline_says_for_which_function() -> None:
    """The ``struct ftrace_ops`` is a part of a ``struct klp_ops``, with the stack of functions."""
    kernel = Kernel()
    func = kernel.livepatch()
    ops = kernel.put(
        "struct klp_ops",
        fops={
            "func": LIVEPATCH,
            "next": VARIABLES["ftrace_list_end"],
            "trampoline": TRAMPOLINE,
            "trampoline_size": 0x100,
        },
    )
    kernel.memory.put_list(
        ops + kernel.offset("struct klp_ops", "func_stack"),
        func + kernel.offset("struct klp_func", "stack_node"),
    )
    fops = ops + kernel.offset("struct klp_ops", "fops")
    kernel.memory.put_words(VARIABLES["ftrace_ops_list"], fops)
    expected = "klp_ftrace_handler (livepatch of old)"
    assert kernel.shown(TRAMPOLINE + 8) == ("ftrace trampoline", expected)


@pytest.mark.parametrize(
    ("callback", "of"),
    [
        pytest.param(CALLBACK, "callback", id="one user"),
        pytest.param(LIVEPATCH, "klp_ftrace_handler (livepatch)", id="one known user"),
        pytest.param(TEXT + 0x900, None, id="nobody"),
        pytest.param(TEXT + 0x920, "callback", id="the list of users, of one"),
        pytest.param(0, None, id="null"),
    ],
)
def test_ftraces_own_entry_code_is_that_of_its_users(callback: int, of: str | None) -> None:
    kernel = Kernel()
    kernel.ftrace()
    kernel.memory.put_words(VARIABLES["ftrace_trace_function"], callback)
    assert kernel.shown(TEXT + 0x910) == ("ftrace trampoline", of)


def test_of_many_users_only_the_number_is_told() -> None:
    kernel = Kernel()
    following = VARIABLES["ftrace_list_end"]
    for i in range(4):
        callback = TEXT + 0x100 * i
        following = kernel.put("struct ftrace_ops", func=callback, next=following)
    kernel.memory.put_words(VARIABLES["ftrace_ops_list"], following)
    kernel.memory.put_words(VARIABLES["ftrace_trace_function"], TEXT + 0x920)
    assert kernel.shown(TEXT + 0x910)[1] == "one of 4 callbacks"


@pytest.mark.parametrize(
    ("at", "of"), [(0, None), (0x30, "probed+0x4"), (0x3F, "probed+0x4"), (0x40, None)]
)
def test_a_slot_belongs_to_a_probe(at: int, of: str | None) -> None:
    """A slot has the 16 bytes that its cache says; the rest of the page is nobody's."""
    kernel = Kernel()
    kernel.page("kprobe_insn_slots", SLOTS)
    kernel.kprobe(ainsn={"insn": SLOTS + 0x30})
    assert kernel.shown(SLOTS + at) == ("kprobe slot", of)


def test_a_detour_belongs_to_the_probe_that_stands_for_all_at_its_place() -> None:
    kernel = Kernel()
    kernel.page("kprobe_optinsn_slots", DETOURS)
    kernel.optimised()
    assert kernel.shown(DETOURS + 0x24) == ("optprobe slot", "probed")
    (probe,) = kernel.owners.kprobes.all
    assert probe.optimised and not probe.disabled
    assert probe.handlers == (CALLBACK,)
    assert kernel.owners.kprobes.whole


@pytest.mark.parametrize("member", ["xol_insn", "api"])
def test_where_arm64_keeps_the_slot(member: str) -> None:
    kernel = Kernel()
    kernel.types.struct("arch_probe_insn", insn="unsigned char *")
    spelling = "struct arch_probe_insn" if member == "api" else "unsigned char *"
    kernel.types.struct("arch_specific_insn", **{member: spelling})
    kernel.types.struct(
        "kprobe",
        hlist="struct hlist_node",
        list="struct list_head",
        addr="unsigned char *",
        pre_handler="void *",
        ainsn="struct arch_specific_insn",
        flags="unsigned int",
    )
    kernel.page("kprobe_insn_slots", SLOTS)
    slot = {"insn": SLOTS} if member == "api" else SLOTS
    kernel.kprobe(ainsn={member: slot})
    assert kernel.shown(SLOTS) == ("kprobe slot", "probed+0x4")


@pytest.mark.parametrize(
    ("function", "role", "of"),
    [
        pytest.param({}, "livepatch function", "old (lp_fix)", id="a replaced function"),
        pytest.param({"new_func": MODULE + 0x800}, "function", None, id="elsewhere"),
        pytest.param({"nop": 1}, "function", None, id="a nop is the original function"),
        pytest.param({"new_size": 0x10}, "function", None, id="behind its end"),
    ],
)
def test_a_livepatchs_function(function: dict[str, int], role: str, of: str | None) -> None:
    kernel = Kernel()
    kernel.livepatch(**function)
    assert kernel.shown(NEW_CODE + 0x18) == (role, of)


def test_livepatches_are_told_whole() -> None:
    kernel = Kernel()
    kernel.livepatch(transition=1)
    kernel.text()
    (patch,) = kernel.owners.patches.all
    assert (patch.name, patch.enabled, patch.replace, patch.forced) == ("lp_fix", True, True, False)
    (each,) = patch.objects
    assert (each.name, each.module, each.patched) == (None, 0, True)
    (function,) = patch.functions()
    assert (function.name, function.old_func, function.old_size) == ("old", OLD, 0x40)
    assert (function.new_func, function.new_size) == (NEW_CODE, 0x20)
    assert (function.nop, function.patched, function.transition) == (False, True, True)
    assert kernel.owners.patches.whole


@pytest.mark.parametrize(
    ("name", "role", "of"),
    [
        ("bpf_prog_00112233_main", "bpf program", None),
        ("bpf_dispatcher_xdp", "bpf dispatcher", "xdp"),
        ("bpf__tcp_congestion_ops_init", "bpf struct_ops trampoline", "tcp_congestion_ops_init"),
        ("bpf_trampoline_42", "bpf trampoline", None),
    ],
)
def test_kinds_of_bpf_code(name: str, role: str, of: str | None) -> None:
    kernel = Kernel()
    kernel.types.struct("bpf_tramp_image", image="void *", ksym="struct bpf_ksym")
    kernel.types.struct("function", addr="void *")
    kernel.types.struct(
        "bpf_trampoline", hlist="struct hlist_node", key="unsigned long", func="struct function"
    )
    kernel.bpf(name)
    assert kernel.shown(BPF) == (role, of)
    assert kernel.problems == []


def test_what_a_bpf_program_is_attached_to() -> None:
    kernel = Kernel()
    name = kernel.string("do_nanosleep")
    kernel.bpf("bpf_prog_00112233_main", "struct bpf_prog_aux", attach_func_name=name)
    assert kernel.shown(BPF) == ("bpf program", "do_nanosleep")


@pytest.mark.parametrize("linked", [True, False], ids=["since 7.1", "by its key"])
def test_what_a_bpf_trampoline_is_attached_to(linked: bool) -> None:
    kernel = Kernel()
    kernel.types.struct("function", model="long", addr="void *")
    kernel.types.struct(
        "bpf_trampoline", hlist="struct hlist_node", key="unsigned long", func="struct function"
    )
    trampoline = kernel.put("struct bpf_trampoline", key=42, func={"addr": PROBED})
    pointer = {"tr": "struct bpf_trampoline *"} if linked else {}
    kernel.types.struct("bpf_tramp_image", image="void *", ksym="struct bpf_ksym", **pointer)
    if linked:
        kernel.bpf("bpf_trampoline_42", "struct bpf_tramp_image", tr=trampoline)
    else:
        kernel.bpf("bpf_trampoline_42", "struct bpf_tramp_image")
        kernel.memory.put_words(VARIABLES["trampoline_table"] + 8 * 77, trampoline)
    assert kernel.shown(BPF) == ("bpf trampoline", "probed")


# Dumps that lack it, and broken lists -----------------------------------------------------------


def everything(kernel: Kernel) -> dict[int, str]:
    """One of each that has a list of its own; what is told of it if the list is there."""
    kernel.ftrace()
    kernel.page("kprobe_insn_slots", SLOTS)
    kernel.kprobe(ainsn={"insn": SLOTS})
    kernel.livepatch()
    return {TRAMPOLINE: "callback", SLOTS: "probed+0x4", NEW_CODE: "old (lp_fix)"}


@pytest.mark.parametrize("lost", ["", "kprobe_table", "klp_patches", "ftrace_trace_function"])
def test_what_the_dump_lacks_is_not_told_and_is_no_problem(lost: str) -> None:
    kernel = Kernel(lost=lost)
    expected: dict[int, str | None] = {**everything(kernel)}
    expected[{"kprobe_table": SLOTS, "klp_patches": NEW_CODE}.get(lost, 0)] = None
    text = kernel.text()
    assert {pc: text.at(pc, exact=True).of for pc in expected} == expected
    assert text.at(TEXT + 0x910, exact=True).of is None
    assert kernel.problems == []
    assert kernel.owners.kprobes.whole is (lost != "kprobe_table")
    assert kernel.owners.patches.whole is (lost != "klp_patches")


def test_types_that_the_kernel_lacks_are_no_problem() -> None:
    kernel = Kernel()
    kernel.page("kprobe_insn_slots", SLOTS)
    kernel.kprobe(ainsn={"insn": SLOTS})
    kernel.types.struct("kprobe", hlist="struct hlist_node")
    assert kernel.shown(SLOTS) == ("kprobe slot", None)
    assert kernel.problems == []


def test_a_broken_table_of_probes_is_a_problem_and_keeps_what_was_found() -> None:
    kernel = Kernel()
    kernel.page("kprobe_insn_slots", SLOTS)
    probe = kernel.kprobe(ainsn={"insn": SLOTS})
    kernel.memory.put_words(probe, probe)
    assert kernel.shown(SLOTS) == ("kprobe slot", "probed+0x4")
    (problem,) = kernel.problems
    assert problem.startswith("kprobe_table: list broken at ")


def test_a_broken_list_of_patched_functions_is_a_problem() -> None:
    kernel = Kernel()
    func = kernel.livepatch()
    kernel.memory.put_words(func + kernel.offset("struct klp_func", "node"), 0)
    assert kernel.shown(NEW_CODE) == ("livepatch function", "old (lp_fix)")
    (problem,) = kernel.problems
    assert problem.startswith("livepatched functions of the kernel: list broken at ")
