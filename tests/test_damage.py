# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real dump with damage laid over it: the damaged say so, the others keep their verdicts."""

from __future__ import annotations

import struct
from collections.abc import Callable

import drgn
import pytest

from drgn_reliable import (
    Kernel,
    KernelVerdict,
    MissingInformation,
    ProofVerdict,
    Scanner,
    TaskReport,
    open_dump,
)
from drgn_reliable.btf import Btf, Kind
from tests.conftest import Scanned
from tests.dumps import DUMP_6_1

DUMP = str(DUMP_6_1.path)
PAGE = 4096
Damage = Callable[[drgn.Program], None]


def overwrite(address: int, data: bytes) -> Damage:
    """Other bytes at an address."""

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return data[offset : offset + count]

    return lambda prog: prog.add_memory_segment(address, len(data), read)


def words(address: int, *values: int) -> Damage:
    """Other words at an address."""
    return overwrite(address, struct.pack(f"<{len(values)}Q", *values))


def exclude(address: int, size: int = PAGE) -> Damage:
    """Pages that the dump does not have."""

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError("excluded by the test", address)

    start = address // PAGE * PAGE
    return lambda prog: prog.add_memory_segment(start, size, read)


def damaged(*damage: Damage) -> drgn.Program:
    prog = open_dump(DUMP)
    for lay in damage:
        lay(prog)
    return prog


def scan(*damage: Damage) -> tuple[dict[int, TaskReport], tuple[str, ...]]:
    scanner = Scanner(Kernel(damaged(*damage)))
    reports = {report.task: report for report in scanner.reports(scanner.kernel.tasks)}
    return reports, scanner.problems()


@pytest.fixture
def sleeper(scanned_6_1: Scanned) -> TaskReport:
    """A task that sleeps in a system call."""
    report = scanned_6_1.task("kthreadd")
    assert report.kernel.verdict is KernelVerdict.RELIABLE
    return report


def stack_of(scanned: Scanned, report: TaskReport) -> int:
    return scanned.kernel.tasks.read(report.task).stack


def others(reports: dict[int, TaskReport], but: TaskReport) -> dict[int, TaskReport]:
    return {task: report for task, report in reports.items() if task != but.task}


def undamaged(scanned: Scanned, but: TaskReport) -> dict[int, TaskReport]:
    return {r.task: r for r in scanned.reports if r.task != but.task}


def check_one(
    scanned: Scanned, report: TaskReport, damage: Damage, reason: str, proof: ProofVerdict
) -> TaskReport:
    """One task is refused for a reason, and every other keeps its report."""
    reports, problems = scan(damage)
    assert problems == ()
    assert others(reports, report) == undamaged(scanned, report)
    found = reports[report.task]
    assert found.kernel.verdict is KernelVerdict.UNRELIABLE
    assert found.kernel.entries == ()
    assert found.reasons[0].id == reason
    assert found.proof.verdict is proof
    return found


def test_an_excluded_page_of_a_stack(scanned_6_1: Scanned, sleeper: TaskReport) -> None:
    """2: a stack whose used page is not in the dump is no zeroes: the reason says what lacks."""
    page = exclude(sleeper.frames[0].sp)
    found = check_one(scanned_6_1, sleeper, page, "memory-unreadable", ProofVerdict.UNDECIDED)
    assert found.kernel.errno == -14


def test_a_return_address_overwritten(scanned_6_1: Scanned, sleeper: TaskReport) -> None:
    """4.2: a word of nonsense in place of a return address."""
    slot = words(sleeper.frames[1].sp - 8, 0x4141414141414141)
    check_one(scanned_6_1, sleeper, slot, "not-kernel-text", ProofVerdict.REFUTED)


def test_a_saved_stack_pointer_of_another_task(scanned_6_1: Scanned, sleeper: TaskReport) -> None:
    """2: a stack pointer that leads to another task's stack is not followed there."""
    other = scanned_6_1.kernel.tasks.read(scanned_6_1.task("init").task)
    offset = drgn.offsetof(scanned_6_1.kernel.prog.type("struct task_struct"), "thread.sp")
    lead = words(sleeper.task + offset, other.saved_sp)
    check_one(scanned_6_1, sleeper, lead, "sp-outside-stack", ProofVerdict.REFUTED)


def test_a_stack_that_leads_back_to_itself(scanned_6_1: Scanned, sleeper: TaskReport) -> None:
    """2: a stack full of one return address ends at the livepatch code's limit, not never."""
    stack = stack_of(scanned_6_1, sleeper)
    pc = sleeper.frames[-2].pc
    start = sleeper.frames[1].sp - 8
    count = (stack + 0x4000 - start) // 8
    found = scan(words(start, *[pc] * count))[0][sleeper.task]
    assert found.kernel.verdict is KernelVerdict.UNRELIABLE
    assert found.proof.verdict is not ProofVerdict.PROVEN


def test_an_overwritten_end_of_stack(scanned_6_1: Scanned, sleeper: TaskReport) -> None:
    """2: the kernel does not notice an overflow in the past; the proof does not swear."""
    reports, _ = scan(words(stack_of(scanned_6_1, sleeper), 0))
    found = reports[sleeper.task]
    assert found.kernel == sleeper.kernel
    assert found.proof.verdict is ProofVerdict.UNDECIDED
    assert [reason.id for reason in found.reasons] == ["stack-end-overwritten"]


def test_a_task_list_that_breaks_off(scanned_6_1: Scanned) -> None:
    """2: a broken process list is said, and the tasks before the break keep their reports."""
    victim = scanned_6_1.reports[40]
    offset = drgn.offsetof(scanned_6_1.kernel.prog.type("struct task_struct"), "tasks")
    reports, problems = scan(words(victim.task + offset, 0x4141414141414140))
    assert "structure not readable" in problems[0]
    assert problems[1].startswith("process list: list broken at 0x4141414141414140")
    assert "tasks behind it are missing" in problems[1]
    for report in scanned_6_1.reports[:40]:
        assert reports[report.task] == report
    assert victim.task in reports


def test_a_task_list_that_loops(scanned_6_1: Scanned) -> None:
    """2: a process list that leads back into itself ends, and is said."""
    offset = drgn.offsetof(scanned_6_1.kernel.prog.type("struct task_struct"), "tasks")
    first, victim = scanned_6_1.reports[3], scanned_6_1.reports[40]
    reports, problems = scan(words(victim.task + offset, first.task + offset))
    assert "leads back to" in problems[0]
    assert reports[first.task] == first


def test_a_module_list_that_breaks_off(scanned_6_1: Scanned) -> None:
    """Without its modules the dump cannot be read whole, and says so."""
    head = scanned_6_1.kernel.symbols.required("modules")
    _, problems = scan(words(head, 0x4141414141414140))
    assert len(problems) == 1 and problems[0].startswith("modules: ")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("__start_BTF", lambda at: exclude(at), "no types: the dump lacks the kernel's BTF"),
        ("__start_BTF", lambda at: words(at, 0), "no types: the kernel's BTF at .* is damaged"),
        ("init_task", None, "no member|has no symbol"),
    ],
    ids=["BTF excluded", "BTF damaged", "a symbol missing"],
)
def test_missing_information_is_named(
    scanned_6_1: Scanned,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Callable[[int], Damage] | None,
    message: str,
) -> None:
    """What neither the dump nor debug information has is named, with what to do."""
    if damage is None:
        from drgn_reliable.symbols import Symbols

        real = Symbols.address
        monkeypatch.setattr(
            Symbols, "address", lambda self, n: None if n == name else real(self, n)
        )
        prog = damaged()
    else:
        prog = damaged(damage(scanned_6_1.kernel.symbols.required(name)))
    with pytest.raises(MissingInformation, match=message) as raised:
        Kernel(prog)
    assert "--symbols" in str(raised.value)


def test_a_cpu_number_of_nonsense(scanned_6_1: Scanned) -> None:
    """2: a running task whose CPU number is damaged has no registers, and nothing else suffers."""
    victim = scanned_6_1.task("migration/0")
    type_ = scanned_6_1.kernel.prog.type("struct task_struct")
    cpu = overwrite(victim.task + drgn.offsetof(type_, "thread_info.cpu"), b"\xff" * 4)
    reports, _ = scan(cpu)
    assert others(reports, victim) == undamaged(scanned_6_1, victim)
    assert reports[victim.task].kernel.verdict is KernelVerdict.RUNNING
    assert "no-crash-registers" in [reason.id for reason in reports[victim.task].reasons]


def test_a_module_that_claims_all_of_memory(scanned_6_1: Scanned, sleeper: TaskReport) -> None:
    """2: a return address of 3 within a module whose text begins at 0 is no reason to stop."""
    module = next(iter(scanned_6_1.kernel.modules))
    type_ = scanned_6_1.kernel.prog.type("struct module")
    base = words(module.address + drgn.offsetof(type_, "core_layout.base"), 0)
    slot = words(sleeper.frames[1].sp - 8, 3)
    report = scan(base, slot)[0][sleeper.task]
    assert report.kernel.verdict is KernelVerdict.UNRELIABLE


def test_a_type_that_cannot_be() -> None:
    """A BTF record of nonsense that is needed makes the dump unusable, with one line."""
    kernel = Kernel(damaged())
    start, stop = map(kernel.symbols.required, ("__start_BTF", "__stop_BTF"))
    base = Btf(kernel.prog.read(start, stop - start))
    header_size = kernel.prog.read_u32(start + 4)
    (pid_t,) = base.find("int", Kind.INT)
    place = start + header_size + 4 * (base._starts[pid_t - base.first_id] + 2)
    with pytest.raises(MissingInformation, match="cannot be"):
        Kernel(damaged(overwrite(place, struct.pack("<I", 0x77777777))))
