# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of one walk: for people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from drgn_reliable.explain import ExplainedStack, ExplainedStep, Explanation, StackWord
from drgn_reliable.formulas import Assigned
from drgn_reliable.render.machine import SCHEMA, hex_or_null, reason_dict, task_dict
from drgn_reliable.render.table import reason_line, task_title

__all__ = ("explanation_dict", "write_explanation", "write_explanations_json")

_SHORT_RUN = 2
"""Words without a note that are shown between others; longer runs are counted."""


def write_explanation(found: Explanation, out: TextIO, words: str) -> None:
    """The walk step by step, and the stacks that it came by.

    :param words: which words of the stacks: ``marked``, ``all`` or ``none``.
    """
    out.write(task_title(found.report) + "\n\n")
    if found.start:
        registers = ", ".join(f"{name} {value:#x}" for name, value in found.start)
        out.write(f"The walk starts from {registers}.\n\n")
    for step in found.steps:
        _write_step(step, out)
    shown = {reason for step in found.steps for reason in step.reasons}
    rest = [reason for reason in found.report.reasons if reason not in shown]
    for reason in rest:
        out.write(reason_line(reason) + "\n")
    out.write(f"The proof's walk ended: {found.end}. The kernel's: {found.kernel_end}.\n")
    if words != "none":
        for stack in found.stacks:
            _write_stack(stack, out, every=words == "all")


def _write_step(step: ExplainedStep, out: TextIO) -> None:
    seen = "" if step.kernel else ", not seen by the kernel"
    role = f", {step.code.purpose}" if step.code.purpose else ""
    out.write(
        f"#{step.frame} {step.code} ({step.found_by.value}{role}{seen})\n"
        f"    {step.stack} stack, SP {step.sp:#x}, PC {step.code.pc:#x}\n"
    )
    for number, rule in enumerate(step.rules):
        out.write(f"    {'also' if number else 'rule'}: {rule.formula}   [{rule.provider}]\n")
        if rule.values and (number or step.registers_at is None):
            out.write(f"          {', '.join(map(_assigned, rule.values))}\n")
    if step.registers_at is not None:
        out.write(f"          to the struct pt_regs at {step.registers_at:#x}\n")
    if step.registers_at is not None or not any(rule.values for rule in step.rules[:1]):
        for read in step.reads:
            if read.role and read.value is not None:
                out.write(f"          {read.role} = *{read.address:#x} = {read.value:#x}\n")
    for reason in step.reasons:
        out.write(reason_line(reason) + "\n")
    out.write("\n")


def _assigned(found: Assigned) -> str:
    place = "" if found.address is None else f"*{found.address:#x} = "
    return f"{found.name} = {place}{found.value:#x}"


def _write_stack(stack: ExplainedStack, out: TextIO, every: bool) -> None:
    out.write(f"\n{stack.name} stack {stack.low:#x}..{stack.high:#x}\n")
    for line in _lines(stack.words, every):
        out.write(f"  {line}\n")


def _lines(words: Iterable[StackWord], every: bool) -> Iterator[str]:
    run: list[StackWord] = []
    previous = None
    for word in words:
        if previous is not None and word.address != previous + 8:
            yield "..."
        previous = word.address
        if not word.notes and not every:
            run.append(word)
            continue
        yield from _flushed(run)
        run = []
        yield _line(word)
    yield from _flushed(run)


def _flushed(run: list[StackWord]) -> Iterator[str]:
    if len(run) <= _SHORT_RUN:
        yield from map(_line, run)
    else:
        yield f"... {len(run)} words"


def _line(word: StackWord) -> str:
    value = "not in the dump" if word.value is None else f"{word.value:#018x}"
    return f"{word.address:#x}  {value:<18}  {'; '.join(word.notes)}".rstrip()


def explanation_dict(found: Explanation) -> dict[str, Any]:
    """The explanation as plain data; addresses are strings in hex."""
    return {
        "task": task_dict(found.report),
        "start": {name: hex_or_null(value) for name, value in found.start},
        "steps": [_step_dict(step) for step in found.steps],
        "end": found.end,
        "kernel_end": found.kernel_end,
        "stacks": [_stack_dict(stack) for stack in found.stacks],
    }


def _step_dict(step: ExplainedStep) -> dict[str, Any]:
    return {
        "frame": step.frame,
        "stack": step.stack,
        "seen_by_kernel": step.kernel,
        "rules": [
            {
                "provider": rule.provider,
                "formula": rule.formula,
                "values": {each.name: hex_or_null(each.value) for each in rule.values},
            }
            for rule in step.rules
        ],
        "registers_at": hex_or_null(step.registers_at),
        "reads": [
            {
                "address": hex_or_null(read.address),
                "value": hex_or_null(read.value),
                "role": read.role or None,
            }
            for read in step.reads
        ],
        "reasons": [reason_dict(reason) for reason in step.reasons],
    }


def _stack_dict(stack: ExplainedStack) -> dict[str, Any]:
    return {
        "name": stack.name,
        "low": hex_or_null(stack.low),
        "high": hex_or_null(stack.high),
        "words": [
            {
                "address": hex_or_null(word.address),
                "value": hex_or_null(word.value),
                "notes": list(word.notes),
            }
            for word in stack.words
        ],
    }


def write_explanations_json(found: Sequence[Explanation], out: TextIO) -> None:
    """Explanations as one JSON document."""
    document = {"schema": SCHEMA, "explanations": [explanation_dict(each) for each in found]}
    out.write(json.dumps(document, indent=1) + "\n")
