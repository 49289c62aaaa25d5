# SPDX-License-Identifier: LGPL-2.1-or-later
"""Find a frame's caller by call frame information, and hold what its providers say against each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from drgn_reliable.arch.base import StackState
from drgn_reliable.frameinfo import Found, FrameInformation
from drgn_reliable.model import Walk
from drgn_reliable.tables.framerule import (
    Abi,
    CallerRegisters,
    FrameRule,
    Place,
    Unknown,
    caller_registers,
)

__all__ = ("CallerFinder", "Outcome")


class Outcome(NamedTuple):
    """Where a provider's rule leads."""

    found: Found
    caller: CallerRegisters


class CallerFinder:
    """The callers of frames, by the rules of all providers.

    :param kept: the registers that a ``struct pt_regs`` is known to have.
    """

    def __init__(self, abi: Abi, information: FrameInformation, kept: Mapping[str, int]) -> None:
        self._abi = abi
        self._information = information
        self._registers = [(number, name) for number, name in abi.names.items() if name in kept]

    def interrupted(self, state: StackState) -> dict[int, int]:
        """All registers of an interrupted frame that the dump has."""
        assert state.regs is not None
        values = ((number, state.regs.get(name)) for number, name in self._registers)
        return {number: value for number, value in values if value is not None}

    def find(
        self, state: StackState, registers: Mapping[int, int]
    ) -> tuple[list[Outcome], list[str]]:
        """What each provider finds, the most trusted first, and why others find nothing.

        :param registers: those that are known in the frame.
        """
        lookup = self._information.at(state.pc, state.exact)
        outcomes, failures = [], list(lookup.failures)
        for found in lookup.rules:
            if found.rule.outermost:
                failures.append(f"{found.name}: it has no caller")
                continue
            try:
                caller = caller_registers(found.rule, self._abi, registers, state.stack.word)
            except Unknown as e:
                failures.append(f"{found.name}: {e}")
            else:
                outcomes.append(Outcome(found, caller))
        return outcomes, failures

    def formulas(self, state: StackState) -> list[tuple[str, str]]:
        """The rules as formulas, each with its provider's name."""
        rules = self._information.at(state.pc, state.exact).rules
        return [(found.name, self._formula(found.rule)) for found in rules]

    def _formula(self, rule: FrameRule) -> str:
        """A rule as a person writes it, with the program counter that it gives."""
        if rule.outermost:
            return rule.formula(self._abi.names)
        others = {n: place for n, place in rule.registers.items() if n != rule.ra}
        place = rule.registers.get(rule.ra, Place(rule.ra))
        text = rule._replace(registers=others).formula(self._abi.names)
        return f"{text}, pc = {place.formula(self._abi.names) if place else 'lost'}"

    def compare(self, state: StackState, walk: Walk, outcomes: list[Outcome]) -> None:
        """Note where other providers lead elsewhere than the first."""
        first, expected = outcomes[0]
        fp = self._abi.fp
        for found, caller in outcomes[1:]:
            same_fp = caller.registers.get(fp) == expected.registers.get(fp)
            if (caller.pc, caller.sp) != (expected.pc, expected.sp) or not same_fp:
                detail = (
                    f"{first.name}: to {expected.pc:#x}, SP {expected.sp:#x}; "
                    f"{found.name}: to {caller.pc:#x}, SP {caller.sp:#x}"
                )
                walk.note("providers-disagree", detail, pc=state.pc, sp=state.sp, value=caller.pc)

    def is_above(self, state: StackState, walk: Walk, caller: CallerRegisters) -> bool:
        """Whether the caller is where callers are; ends the walk if it is not."""
        lowest = state.sp if self._abi.links else state.sp + 8
        if lowest <= caller.sp <= state.stack.high:
            return True
        detail = f"SP would go from {state.sp:#x} to {caller.sp:#x}"
        walk.note("wrong-direction", detail, pc=state.pc, sp=state.sp, value=caller.sp)
        state.done = True
        return False
