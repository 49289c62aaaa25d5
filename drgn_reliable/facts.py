# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be said of a dumped kernel before any stack is walked."""

from __future__ import annotations

from typing import Any

from drgn_reliable.kernel import Kernel
from drgn_reliable.opening import opened_dump
from drgn_reliable.walk import ENTRY_LIMIT

__all__ = ("kernel_facts",)


def kernel_facts(kernel: Kernel) -> dict[str, Any]:
    """The facts by name, in the order in which a person wants them; values are strings, numbers,
    booleans or lists of strings."""
    dump = opened_dump(kernel.prog)
    modules = list(kernel.modules)
    symbols = kernel.symbols
    return {
        "dump": kernel.path,
        "stored": dump.stored if dump else "",
        "release": kernel.release,
        "build_id": kernel.vmcoreinfo.get("BUILD-ID", ""),
        "architecture": kernel.architecture,
        "unwinder": kernel.unwinder.name,
        "types": kernel.types,
        "symbols": symbols.source,
        "reliable_stack_traces": kernel.supports_reliable,
        "livepatch": kernel.supports_livepatch,
        "entries_for_livepatch": ENTRY_LIMIT,
        "frame_pointers": kernel.unwinder.frame_pointers,
        "function_graph_tracer": symbols.address("return_to_handler") is not None,
        "return_probes": kernel.probes.name,
        "stack_size": kernel.facts.thread_size,
        "modules": len(modules),
        "modules_without_unwind_data": [m.name for m in modules if not m.orc],
    }
