# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formulas with numbers: what each form comes to, and where there is no number."""

from __future__ import annotations

import pytest

from drgn_reliable.formulas import Assigned, evaluate

REGISTERS = {"sp": 0x1000, "fp": 0x1040, "lr": 0x5008, "x9": 0x30, "zero": 0}
MEMORY = {0x1000: 0x1030, 0x1030: 7, 0x1040: 0x1100, 0x1048: 9, 0xFFFFFFFFFFFFFFF8: 3}


def values(formula: str) -> list[tuple[str, int]] | None:
    found = evaluate(formula, REGISTERS, MEMORY.get)
    return None if found is None else [(each.name, each.value) for each in found]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("cfa = sp", [("cfa", 0x1000)]),
        ("cfa = sp + 48", [("cfa", 0x1030)]),
        ("cfa = fp - 16", [("cfa", 0x1030)]),
        ("cfa = sp + 16 - 8 + 1", [("cfa", 0x1009)]),
        ("cfa = sp - (16 - 8)", [("cfa", 0xFF8)]),
        ("pc = *sp", [("pc", 0x1030)]),
        ("pc = *(sp + 48)", [("pc", 7)]),
        ("pc = *sp + 48", [("pc", 0x1060)]),
        ("pc = **sp", [("pc", 7)]),
        ("pc = *(*sp + 16)", [("pc", 0x1100)]),
        ("pc = *(*(sp) + 24)", [("pc", 9)]),
        ("pc = lr", [("pc", 0x5008)]),
        ("cfa = sp + 48, pc = *(cfa)", [("cfa", 0x1030), ("pc", 7)]),
        ("pc = *(fp + 8), sp = fp + 16, fp = *fp", [("pc", 9), ("sp", 0x1050), ("fp", 0x1100)]),
        ("fp = *fp, pc = *(fp + 8)", [("fp", 0x1100), ("pc", 9)]),
        ("cfa = zero - 8, pc = *cfa", [("cfa", 0xFFFFFFFFFFFFFFF8), ("pc", 3)]),
    ],
)
def test_formulas_with_a_value(formula: str, expected: list[tuple[str, int]]) -> None:
    """Sums go from left to right, ``*`` binds closest, and all but cfa is assigned at once."""
    assert values(formula) == expected


@pytest.mark.parametrize(
    "formula",
    [
        "the end of the stack",
        "",
        "cfa = x28 + 16",
        "cfa = sp + 16, pc = lost",
        "pc = *(sp + 8)",
        "pc = **(sp + 48)",
        "cfa = sp +",
        "cfa = sp + + 8",
        "cfa = (sp + 8",
        "cfa = sp + 8)",
        "cfa = *",
        "cfa = ",
        "cfa = sp 8",
        "cfa = sp % 8",
        "cfa = sp, struct pt_regs at cfa",
        "cfa = sp = fp",
    ],
)
def test_formulas_without_a_value(formula: str) -> None:
    """Texts, unknown registers, words that are not to be had and what is malformed."""
    assert values(formula) is None


def test_where_a_word_was_read() -> None:
    """Each value says from where it was read: of nested reads, the last; of sums, nowhere."""
    found = evaluate("cfa = sp + 48, pc = *(cfa), fp = *(*sp + 16) + 4", REGISTERS, MEMORY.get)
    assert found == [
        Assigned("cfa", None, 0x1030),
        Assigned("pc", 0x1030, 7),
        Assigned("fp", 0x1040, 0x1104),
    ]
