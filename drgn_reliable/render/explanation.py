# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of one walk: for people, and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap
from typing import Any, TextIO

from drgn_reliable.explanation import (
    ExplainedStack,
    ExplainedStep,
    Explanation,
    ShownRule,
    StackWord,
)
from drgn_reliable.formulas import Assigned
from drgn_reliable.model import KernelVerdict, Reason
from drgn_reliable.render.machine import frame_dict, hex_or_null, reason_dict, task_dict
from drgn_reliable.render.tasks import reason_line, task_title
from drgn_reliable.render.visible import visible

__all__ = ("explanation_dict", "write_explanations", "write_explanations_json")

EXPLANATION_SCHEMA = "drgn-reliable-explanation/1"
_WIDTH = 100
"""Columns; only what cannot be broken is longer."""
_INDENT = 10 * " "
_GLUE = "\N{NO-BREAK SPACE}"
"""A space at which no line is broken."""
_EQUATION = re.compile(r"\w+ = .+").fullmatch
_SHORT_RUN = 2
"""Words without a note that are shown between others; longer runs are counted."""


def write_explanations(
    found: Sequence[Explanation], warnings: Sequence[str], out: TextIO, words: str
) -> None:
    """Each walk step by step, and the stacks that it came by.

    :param warnings: of the dump, a line each.
    :param words: which words of the stacks: ``marked``, ``all`` or ``none``.
    """
    for number, each in enumerate(found):
        out.write("\n" if number else "")
        _write_explanation(each, out, words)
    for warning in warnings:
        out.write(f"warning: {visible(warning)}\n")


def _write_explanation(found: Explanation, out: TextIO, words: str) -> None:
    out.write(task_title(found.report) + "\n\n")
    if found.start:
        registers = ", ".join(f"{visible(name)} {value:#x}" for name, value in found.start)
        out.write(_wrapped(f"The walk starts from {registers}."))
    shown = {reason for step in found.steps for reason in step.reasons}
    for reason in found.report.reasons:
        if reason not in shown:
            _write_reason(reason, out)
    out.write("\n" if found.start or found.report.reasons else "")
    left = _last_of_kernel(found)
    for step in found.steps:
        _write_step(step, out, last=step is found.steps[-1])
        if step is left:
            line = f"The kernel's own walk came as far as this: {visible(found.kernel_end)}."
            out.write(_wrapped(line, "  -- ", "     ") + "\n")
    _write_ends(found, out)
    if words != "none":
        for stack in found.stacks:
            _write_stack(stack, out, every=words == "all")


def _last_of_kernel(found: Explanation) -> ExplainedStep | None:
    """The last step that a kernel's walk made which was refused, if the proof's went on."""
    if found.report.kernel.verdict is not KernelVerdict.UNRELIABLE:
        return None
    came = [step for step in found.steps if step.kernel]
    return came[-1] if came and came[-1] is not found.steps[-1] else None


def _write_ends(found: Explanation, out: TextIO) -> None:
    out.write(_wrapped(f"The proof's walk: {visible(found.end)}."))
    out.write(_wrapped(f"The kernel's walk: {visible(found.kernel_end)}."))
    mine = {(step.sp, step.code.symbol) for step in found.steps}
    others = [
        f"#{number} {visible(str(frame.code))}"
        for number, frame in enumerate(found.kernel_frames)
        if (frame.sp, frame.code.symbol) not in mine
    ]
    if others:
        out.write(_wrapped(f"Frames that only the kernel's walk had: {', '.join(others)}.", ""))


def _wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    """Text in lines that fit a page.

    :param first, rest: what the first line and all others begin with.
    """
    rest = " " * len(first) if rest is None else rest
    lines = wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "".join(f"{line}\n" for line in lines).replace(_GLUE, " ")


def _write_reason(reason: Reason, out: TextIO) -> None:
    out.write(_wrapped(reason_line(reason).strip(), "  ", "      "))


def _write_step(step: ExplainedStep, out: TextIO, last: bool) -> None:
    role = f", {visible(step.code.purpose)}" if step.code.purpose else ""
    out.write(f"#{step.frame} {visible(str(step.code))} ({step.found_by.value}{role})\n")
    out.write(f"    {visible(step.stack)} stack, SP {step.sp:#x}, PC {step.code.pc:#x}\n")
    for rule in step.rules[:1]:
        out.write(_wrapped(_named(rule), "    rule: "))
        if rule.values and not _by_reads(step):
            out.write(_numbers(rule))
    _write_outcome(step, out, last)
    for rule in step.rules[1:]:
        _write_alternative(rule, out)
    for reason in step.reasons:
        _write_reason(reason, out)
    out.write("\n")


def _write_outcome(step: ExplainedStep, out: TextIO, last: bool) -> None:
    """Where the step leads, as far as the rule's numbers do not say it."""
    if step.registers_at is not None:
        whose = ", of user mode: the end" if last else ""
        out.write(f"{_INDENT}to the struct pt_regs at {step.registers_at:#x}{whose}\n")
    found = [read for read in step.reads if read.role and read.value is not None]
    if found and _by_reads(step) and not last:
        text = ", ".join(f"{visible(r.role)} = *{r.address:#x} = {r.value:#x}" for r in found)
        out.write(_equations(text))
    if step.replaced:
        out.write(_equations(f"{visible(step.replaced.why)}: pc = {step.replaced.taken:#x}"))


def _by_reads(step: ExplainedStep) -> bool:
    """Whether the words that were read say more than the first rule's numbers: where it has none,
    and where it leads to registers."""
    return step.registers_at is not None or not any(rule.values for rule in step.rules[:1])


def _write_alternative(rule: ShownRule, out: TextIO) -> None:
    """A rule that the one that was followed can be held against."""
    out.write(_wrapped(_named(rule), "    also: "))
    if rule.values:
        out.write(_numbers(rule))
    elif " = " in rule.formula:
        out.write(f"{_INDENT}has no numbers here: it needs more than is known of this frame\n")


def _named(rule: ShownRule) -> str:
    return f"{_glued(visible(rule.formula))}   [{visible(rule.provider).replace(' ', _GLUE)}]"


def _numbers(rule: ShownRule) -> str:
    return _equations(", ".join(map(_assigned, rule.values)))


def _equations(text: str) -> str:
    """Assignments in lines that fit a page; none is torn apart."""
    return _wrapped(_glued(text), _INDENT)


def _glued(text: str) -> str:
    """Assignments that no line is to break: those that are the whole between two commas, or, at the
    end of a sentence, the last three words."""
    parts = [part.replace(" ", _GLUE) if _EQUATION(part) else part for part in text.split(", ")]
    return ", ".join(parts).replace(" = ", f"{_GLUE}={_GLUE}")


def _assigned(found: Assigned) -> str:
    place = "" if found.address is None else f"*{found.address:#x} = "
    return f"{visible(found.name)} = {place}{found.value:#x}"


def _write_stack(stack: ExplainedStack, out: TextIO, every: bool) -> None:
    out.write(f"\n{visible(stack.name)} stack {stack.low:#x}..{stack.high:#x}\n")
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
    return f"{word.address:#x}  {value:<18}  {'; '.join(map(visible, word.notes))}".rstrip()


def explanation_dict(found: Explanation) -> dict[str, Any]:
    """The explanation as plain data; addresses are strings in hex."""
    return {
        "task": task_dict(found.report),
        "start": {name: hex_or_null(value) for name, value in found.start},
        "steps": [_step_dict(step) for step in found.steps],
        "end": found.end,
        "kernel_end": found.kernel_end,
        "kernel_frames": [frame_dict(frame) for frame in found.kernel_frames],
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
        "replaced": step.replaced
        and {
            "read": hex_or_null(step.replaced.read),
            "taken": hex_or_null(step.replaced.taken),
            "why": step.replaced.why,
        },
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


def write_explanations_json(
    found: Sequence[Explanation], warnings: Sequence[str], out: TextIO
) -> None:
    """Explanations as one JSON document (``drgn_reliable/schema``)."""
    document = {
        "schema": EXPLANATION_SCHEMA,
        "warnings": list(warnings),
        "explanations": [explanation_dict(each) for each in found],
    }
    out.write(json.dumps(document, indent=1) + "\n")
