# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts, the catalogue and summaries for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from tabulate import tabulate

from drgn_reliable.model import CapsuleSummary
from drgn_reliable.reasons import Effect, ReasonKind
from drgn_reliable.render.visible import visible

__all__ = (
    "counted_words",
    "write_capsule_summary",
    "write_facts",
    "write_reasons",
)


def counted_words(counts: Mapping[str, int]) -> str:
    """How many there are of each, of those that there are."""
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none"


def write_reasons(kinds: Iterable[ReasonKind], out: TextIO, details: bool) -> None:
    """The catalogue: a line each, or everything that is known of each."""
    proof = {
        Effect.REFUTES: "refuted",
        Effect.LEAVES_OPEN: "undecided",
        Effect.ENDS: "undecided",
        Effect.NONE: "-",
    }
    if not details:
        rows = [
            (k.section, k.id, "accepts" if k.advisory else "refuses", proof[k.proof], k.title)
            for k in kinds
        ]
        headers = ("SECTION", "ID", "KERNEL", "PROOF", "TITLE")
        out.write(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) + "\n")
        return
    for k in kinds:
        kernel = "accepts the trace (advisory)" if k.advisory else "refuses the trace"
        out.write(f"{k.id} (section {k.section})\n  {k.title}.\n")
        effect = proof[k.proof] if k.proof is not Effect.NONE else "not touched"
        out.write(f"  Kernel: {kernel}; decided by {k.decided_by}. Proof: {effect}.\n")
        out.write(f"  {k.remedy}\n\n")


_WARNINGS = "preflight"
"""The fact that is a list of lines to be read one by one."""


def write_facts(facts: Mapping[str, Any], out: TextIO) -> None:
    """A line for each fact; what the kernel does not have (None) is left out."""
    rows = [
        (name.replace("_", " "), _fact(value))
        for name, value in facts.items()
        if name != _WARNINGS and value is not None
    ]
    out.write(tabulate(rows, tablefmt="plain", disable_numparse=True) + "\n")
    for line in facts.get(_WARNINGS, ()):
        out.write(f"{_WARNINGS}: {visible(line)}\n")


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "":
        return "none"
    if isinstance(value, list):
        return ", ".join(map(visible, value)) or "none"
    return visible(str(value))


def write_capsule_summary(made: CapsuleSummary, out: TextIO) -> None:
    """What is in a capsule and what is not, and a warning."""
    pages = made.pages + made.left_out_pages
    left_out = f"{made.left_out_pages:,} of the dump's {pages:,} pages are left out"
    tasks = len(made.report.tasks)
    stacks = "the stack of 1 task" if tasks == 1 else f"the stacks of {tasks} tasks"
    out.write(
        f"{visible(made.path)}: {made.size / 1e6:.1f} MB, {stacks}"
        f"{' and the kernel code' if made.text else ''} in {made.pages:,} pages; {left_out}"
        f"{'' if made.text else ', most kernel code among them'}.\n"
        "Kernel stacks and structures can hold secrets (keys, file names, user data): "
        "look at who will read it.\n"
    )
