# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be said of a dumped kernel before any stack is walked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drgn_reliable import config
from drgn_reliable.config import ABSENT
from drgn_reliable.instruments import Instruments, instruments
from drgn_reliable.kernel import Kernel
from drgn_reliable.metadata import OrcTable, modules_without_orc, orc_table, unwind_metadata
from drgn_reliable.opening import opened_dump
from drgn_reliable.taints import Taint, letters, taints
from drgn_reliable.walk import ENTRY_LIMIT

__all__ = ("kernel_facts",)


@dataclass(frozen=True)
class _Found:
    """What the facts and the warnings are made of."""

    kernel: Kernel
    orc: OrcTable | None
    without_orc: list[str] | None
    running: Instruments
    taints: list[Taint] | None
    module_taints: dict[str, int]


def kernel_facts(kernel: Kernel, *, whole_tables: bool = True) -> dict[str, Any]:
    """The facts by name, in the order in which a person wants them; values are strings, numbers,
    booleans or lists of strings. None stands for what this kernel does not have at all, and
    ``"not in this dump"`` for what the dump does not tell.

    :param whole_tables: look through unwind tables of some megabytes.
    """
    mask, of_modules = config.taint_masks(kernel)
    kernel.unwind_data.open_all()
    found = _Found(
        kernel,
        orc_table(kernel.prog, kernel.symbols, whole_tables),
        modules_without_orc(kernel),
        instruments(kernel),
        None if mask is None else taints(mask),
        of_modules,
    )
    return {
        **_sources(kernel),
        **_built(kernel),
        **_unwind_data(found),
        **_taints(found),
        **_running(found),
        "preflight": _preflight(found),
    }


def _sources(kernel: Kernel) -> dict[str, Any]:
    dump = opened_dump(kernel.prog)
    return {
        "dump": kernel.path,
        "stored": dump.stored if dump else "",
        "release": kernel.release,
        "build_id": kernel.vmcoreinfo.get("BUILD-ID", ""),
        "architecture": kernel.architecture,
        "unwinder": kernel.unwinder.name,
        "types": kernel.types,
        "symbols": kernel.symbols.source,
    }


def _built(kernel: Kernel) -> dict[str, Any]:
    return {
        "reliable_stack_traces": kernel.supports_reliable,
        "livepatch": kernel.supports_livepatch,
        "entries_for_livepatch": ENTRY_LIMIT,
        "frame_pointers": kernel.unwinder.frame_pointers,
        "function_graph_tracer": kernel.graph.trampoline is not None,
        "return_probes": kernel.probes.name,
        "stack_size": kernel.facts.thread_size,
        "stacks_mapped": config.has_member(kernel, "struct task_struct", "stack_vm_area"),
        "shadow_call_stack": config.shadow_call_stack(kernel),
        "pointer_authentication": config.pointer_authentication(kernel),
        "preemption": config.preemption(kernel),
        "vsyscall": config.vsyscall(kernel),
    }


def _unwind_data(found: _Found) -> dict[str, Any]:
    kernel, orc = found.kernel, found.orc
    facts: dict[str, Any] = {
        "unwind_metadata": unwind_metadata(kernel),
        "modules": len(kernel.modules),
        "modules_without_unwind_data": found.without_orc,
        "orc_entries": orc.entries if orc else None,
        "orc_enabled": None,
        "orc_sorted": None,
        "orc_first": None,
        "orc_last": None,
        "orc_covers_text": None,
    }
    if orc:
        if kernel.symbols.address("orc_init") is not None:
            facts["orc_enabled"] = _told(orc.enabled)
        facts["orc_sorted"] = _told(orc.ordered)
        facts["orc_first"], facts["orc_last"] = map(_place, (orc.first, orc.last))
        facts["orc_covers_text"] = _told(orc.covers(*kernel.text.core))
    return facts


def _told(value: Any) -> Any:
    return ABSENT if value is None else value


def _place(address: int | None) -> str:
    return ABSENT if address is None else f"{address:#x}"


def _taints(found: _Found) -> dict[str, Any]:
    return {
        "taints": _told(None if found.taints is None else list(map(str, found.taints))),
        "module_taints": [f"{name}: {letters(mask)}" for name, mask in found.module_taints.items()],
    }


def _running(found: _Found) -> dict[str, Any]:
    running = found.running
    return {
        "function_graph_active": _told(running.graph_active),
        "ftrace_users": _told(running.ftrace),
        "kprobes": _told(running.kprobes),
        "kprobes_optimised": _told(running.optimised),
        "kprobes_disabled": _told(running.disabled),
        "kretprobes": _told(running.kretprobes),
        "bpf_programs": _told(running.bpf_programs),
        "bpf_trampolines": _told(running.bpf_trampolines),
        "livepatches": _told(running.livepatches),
        "livepatch_transition": _told(running.transition),
    }


# Preflight -------------------------------------------------------------------------------


def _preflight(found: _Found) -> list[str]:
    """What makes traces of this kernel unreliable as such, one line each."""
    return [*_of_kernel(found), *_of_tables(found), *_of_tracers(found), *_of_history(found)]


def _of_kernel(found: _Found) -> list[str]:
    kernel = found.kernel
    lines = []
    if not kernel.supports_reliable:
        lines.append("no reliable stack traces: this kernel has no arch_stack_walk_reliable()")
    elif not found.orc or kernel.unwinder.frame_pointers:
        lines.append("tasks that were interrupted in kernel code are refused, each of them")
    if kernel.symbols.address("livepatch_handler") is not None:
        lines.append("livepatched functions hide their callers from the kernel's walk")
    return lines


def _of_tables(found: _Found) -> list[str]:
    orc = found.orc
    lines = []
    if orc:
        if orc.enabled is False:
            lines.append("the ORC unwinder was never enabled: every trace is refused")
        if orc.ordered is False:
            lines.append("the ORC table is not sorted: unwind data are found wrong or not at all")
        if orc.covers(*found.kernel.text.core) is False:
            lines.append("the ORC table does not cover the kernel's text")
    if found.without_orc:
        names = ", ".join(found.without_orc)
        lines.append(f"modules without unwind data, tasks in which are refused: {names}")
    damaged = found.kernel.unwind_data.problems
    return lines + [f"damaged, and of no use to proofs: {problem}" for problem in damaged]


def _of_tracers(found: _Found) -> list[str]:
    running, orc = found.running, found.orc is not None
    lines = []
    if running.graph_active:
        lines.append("return addresses are being replaced by the function graph tracer")
    if running.kretprobes:
        lines.append(f"return addresses are being replaced by kretprobes: {running.kretprobes}")
    if running.optimised and orc:
        lines.append(f"optimised kprobes, tasks in whose detours are refused: {running.optimised}")
    unknown = not config.has_member(found.kernel, "struct bpf_ksym", "fp_start")
    if orc and unknown and (running.bpf_programs or running.bpf_trampolines):
        lines.append(
            f"BPF code without unwind data, tasks in which are refused: {running.bpf_programs} "
            f"programs, {running.bpf_trampolines} trampolines"
        )
    if running.transition:
        lines.append(f"a livepatch transition is in progress: {running.transition}")
    return lines


def _of_history(found: _Found) -> list[str]:
    lines = [f"tainted: {taint}; {taint.matters}" for taint in found.taints or () if taint.matters]
    forced = [patch.name for patch in found.kernel.owners.patches.all if patch.forced]
    if forced:
        lines.append(f"a transition was forced over unready tasks: {', '.join(forced)}")
    return lines
