# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge of the campaigns is judged first: the reference equals every kernel's own answers."""

from __future__ import annotations

import pytest

from contrib.fuzz.reference import Machine, Reference, Verdict
from contrib.vmlab import verdicts
from drgn_reliable import Kernel, open_dump
from tests.dumps import DUMPS, TRANSITIONS, Dump


@pytest.mark.parametrize("dump", [*DUMPS, *TRANSITIONS], ids=lambda dump: dump.name)
def test_the_reference_equals_the_kernel(dump: Dump) -> None:
    """Every task of every dump, entry for entry; of the damaged, what the kernel said after."""
    prog = open_dump(str(dump.path), search=False)
    Kernel(prog)  # gives the program its types and symbols
    reference = Reference(Machine(prog, prog.read), dump.architecture)
    again = verdicts.after_damage(dump.rows)
    expected = {row.task: (row.verdict, row.entries) for row in dump.recorded}
    unasked = {row.task for row in dump.recorded if row.pid in dump.damaged} - set(again)
    expected = {task: row for task, row in {**expected, **again}.items() if task not in unasked}
    assert len(expected) >= dump.count() - 2
    for task, (verdict, entries) in expected.items():
        answer = reference.answer(task)
        assert answer.verdict.value == verdict
        assert answer.entries == (entries if verdict == Verdict.RELIABLE.value else ())


def test_the_reference_shares_nothing_with_what_it_judges() -> None:
    """No module of the package is imported by the reference."""
    import contrib.fuzz.reference as package

    assert package.__file__ is not None
    from pathlib import Path

    for file in Path(package.__file__).parent.glob("*.py"):
        assert "drgn_reliable" not in file.read_text().split('"""', 2)[2], file.name
