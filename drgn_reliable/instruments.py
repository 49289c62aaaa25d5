# SPDX-License-Identifier: LGPL-2.1-or-later
"""What changes the kernel's code or its return addresses at the moment of the dump, counted:
tracers, probes, BPF and livepatches."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from drgn_reliable.bpfcode import bpf_role
from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import gather, number_at
from drgn_reliable.model import CodeRole
from drgn_reliable.patches import Patch

__all__ = ("Instruments", "instruments")


class Instruments(NamedTuple):
    """Each is None where the dump does not tell."""

    graph_active: bool | None
    """The function graph tracer, or what is built on it, replaces return addresses."""
    ftrace: list[str] | None
    """Callbacks of the registered users of ftrace, with how many share one."""
    kprobes: int | None
    """Probed instructions."""
    optimised: int | None
    """Of these, jumped from by a detour."""
    disabled: int | None
    kretprobes: int | None
    """Probes of returns, by kprobes: those by fprobe are users of ftrace."""
    bpf_programs: int | None
    bpf_trampolines: int | None
    livepatches: list[str] | None
    transition: str | None
    """The livepatch that is being applied or removed; empty if none is."""


def instruments(kernel: Kernel) -> Instruments:
    """Count what is there."""
    name = kernel.text.name
    generated, patches = kernel.generated, kernel.owners.patches
    # What is missing is told by None, and is no problem of the dump.
    users, all_users = gather([], "ftrace ops", generated.each_ops)
    codes, all_codes = gather([], "bpf_kallsyms", generated.each_bpf)
    roles = [bpf_role(code.name) for code in codes]
    return Instruments(
        _graph_active(kernel),
        _counted([name(user.callback) for user in users]) if all_users else None,
        *_kprobes(kernel),
        roles.count(CodeRole.BPF_PROGRAM) if all_codes else None,
        roles.count(CodeRole.BPF_TRAMPOLINE) if all_codes else None,
        [_described(patch) for patch in patches.all] if patches.whole else None,
        _transition(kernel),
    )


def _counted(names: list[str]) -> list[str]:
    """Each name once, with how often it comes if that is more than once."""
    counts = Counter(names)
    return [f"{name} ({count})" if count > 1 else name for name, count in counts.items()]


def _graph_active(kernel: Kernel) -> bool | None:
    place = kernel.symbols.address("ftrace_graph_active")
    if place is None:
        return False if kernel.graph.trampoline is None else None
    active = number_at(kernel.prog, place, 4)
    return None if active is None else bool(active)


def _kprobes(kernel: Kernel) -> tuple[int | None, int | None, int | None, int | None]:
    probes = kernel.owners.kprobes
    if not probes.whole:
        return None, None, None, None
    kretprobe = kernel.symbols.address("pre_handler_kretprobe")
    return (
        len(probes.all),
        sum(probe.optimised for probe in probes.all),
        sum(probe.disabled for probe in probes.all),
        sum(probe.handlers.count(kretprobe or -1) for probe in probes.all),
    )


def _described(patch: Patch) -> str:
    states = {"disabled": not patch.enabled, "replaces all": patch.replace, "forced": patch.forced}
    shown = ", ".join(word for word, holds in states.items() if holds)
    name = patch.name or f"{patch.address:#x}"
    return f"{name} ({shown})" if shown else name


def _transition(kernel: Kernel) -> str | None:
    patches = kernel.owners.patches
    if not kernel.supports_livepatch:
        return ""
    address = patches.transition
    if not address:
        return None if address is None else ""
    patch = patches.in_transition
    return (patch.name if patch else "") or f"{address:#x}"
