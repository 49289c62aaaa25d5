# SPDX-License-Identifier: LGPL-2.1-or-later
"""What campaigns of mutations found, each kept: the damage, and what is to be said of it."""

from __future__ import annotations

from typing import NamedTuple

import drgn
import pytest

from contrib.fuzz.overlay import Overlay
from contrib.fuzz.reference import Machine, Reference, Verdict
from contrib.fuzz.trial import difference
from drgn_reliable import Kernel, KernelVerdict, ProofVerdict, Scanner, TaskReport, open_dump
from tests.dumps import VMCORES

RELIABLE, UNRELIABLE = KernelVerdict.RELIABLE, KernelVerdict.UNRELIABLE


class Case(NamedTuple):
    """Other words in a dump, the task that they were found by, and its verdict with them."""

    claim: str
    dump: str
    task: int
    verdict: KernelVerdict
    words: dict[int, int]
    hole: int | None = None
    """A page that is taken away."""


CASES = [
    Case(
        "A stack pointer of user mode that points into the kernel stack goes down: the kernel's "
        "check of the direction refuses, also where the rest of the walk is another task's",
        *("x86_64-6.12.kdump", 0xFF38411C832E0000, UNRELIABLE),
        {0xFF65061E00807FF0: 0xFF65061E00807C60, 0xFF65061E00807FF8: 0x4B},
    ),
    Case(
        "The same of a task that sleeps in a system call",
        *("x86_64-6.12-crash.kdump", 0xFF3035FA41F50000, UNRELIABLE),
        {0xFF7FE79B80673FF0: 0xFF7FE79B80673920},
    ),
    Case(
        "arm64 does not check that a return address is text, but takes the bits of its code away "
        "as XPACLRI does: from an address of user mode those from 54 down, never the top byte",
        *("aarch64-7.2-16k.kdump", 0xFFF0000005291280, RELIABLE),
        {0xFFFFC00080573E88: 0x4141414141414141},
    ),
    Case(
        "The mark of the last record is a number: with one bit more it is none, and has no code "
        "that could be taken away",
        *("aarch64-7.2-small-chains-sframe.kdump", 0xFFF000000246C600, UNRELIABLE),
        {0xFFFF8000804DBFF8: 0x10000000000001},
    ),
    Case(
        "Nor have the zeroes of the last record",
        *("livepatch/aarch64-7.2-kthread.kdump", 0xFFF00000016C9C00, UNRELIABLE),
        {0xFFFF800080123FF0: 0x10000000000000},
    ),
    Case(
        "Where a module's data seem to reach over its text, and around the end of memory, text is "
        "still text",
        *("livepatch/x86_64-6.12-forced.kdump", 0xFFFFA413418C2D00, RELIABLE),
        {0xFFFFFFFFC02EF1D0: 0xFFFFFFFFC02D3160},
    ),
    Case(
        "A module's ORC addresses out of order: the entry that the kernel's search comes to",
        *("livepatch/x86_64-6.1-kthread.kdump", 0xFF11B930427D8000, RELIABLE),
        {0xFFFFFFFFC049F780: 0xFFFFFFFFC04B81E8},
    ),
    Case(
        "The same, to an entry that does not lead on",
        *("loongarch64-7.2.kdump", 0x9000000005DC3F00, UNRELIABLE),
        {0xFFFF800012061BD8: 0x900000000197E150},
    ),
    Case(
        "The same on 6.12",
        *("x86_64-6.12-crash.kdump", 0xFF3035FA440F0000, RELIABLE),
        {0xFFFFFFFFC0613702: 0xFFFFFFFFC03F3A40},
    ),
    Case(
        "A probed return whose real address is 0 ends the list of them, as for the kernel",
        *("aarch64-7.2-hurt.kdump", 0xFFFF0000038D5400, UNRELIABLE),
        {0xFFFF80008000D0E0: 0},
    ),
    Case(
        "The same on the 16 KiB pages of a distribution's kernel",
        *("aarch64-7.2-16k.kdump", 0xFFF0000011391280, UNRELIABLE),
        {0xFFFFC000803980B0: 0},
    ),
    Case(
        "A list of modules that leads to what is none: the boot CPU's idle task keeps its trace",
        *("x86_64-6.12.kdump", 0xFFFFFFFF83810940, RELIABLE),
        {0xFFFFFFFFC030A048: 0xFF65061E00BDBD90},
    ),
    Case(
        "An idle task whose flags are no kernel thread's: powerpc looks for a user task's end",
        *("ppc64le-6.12-64k.kdump", 0xC00000000276B100, UNRELIABLE),
        {0xC00000000276B214: 0x04000002},
    ),
    Case(
        "Whether ORC was ever enabled is in no dump without orc_init: the kernel verdict is open",
        *("livepatch/x86_64-6.12-unpatch.kdump", 0xFFFF9D67C1D0BC00, UNRELIABLE, {}),
        0xFFFFFFFF993E1000,
    ),
    Case(
        "Of a block of unwind data only what the kernel's search comes by has to be there",
        *("x86_64-6.12-crash.kdump", 0xFF3035FA41F7C200, RELIABLE, {}),
        0xFFFFFFFFA7FCE000,
    ),
    Case(
        "A module whose text seems to be at 0 makes no text of it: none was ever loaded there",
        *("s390x-6.12.kdump", 0x4A03C00, UNRELIABLE),
        {0x3FF7E835108: 0x3FF7E844E00},
    ),
    Case(
        "How deep the tracer's stack is, is what its task says: the kernel reads there",
        *("s390x-6.12.kdump", 0x2A45000, UNRELIABLE),
        {0x2A45C20: 0x7E84214A_00000000},
    ),
    Case(
        "Of a task that has no tracer's stack arm64 takes the trampoline for the caller: it asks",
        *("aarch64-7.2-16k.kdump", 0xFFF00000044A1280, RELIABLE),
        {0xFFF00000044A1F88: 0},
    ),
    Case(
        "A register ra that is left over: loongarch64 takes it at a kretprobe's trampoline",
        *("loongarch64-7.2.kdump", 0x900000000CAB3F00, RELIABLE),
        {0xFFFF800012061C04: 0xEBFB704C},
    ),
]
"""Found by seeds 1 to 11, 21, 22 and 100 of the campaigns."""


class Opened:
    """A dump, what its reports are undamaged, and the overlay to damage it."""

    def __init__(self, name: str) -> None:
        path = str(VMCORES / name)
        sound = open_dump(path, search=False)
        self.architecture = Kernel(sound).architecture
        self.overlay = Overlay(sound.read)
        self.prog = open_dump(path, search=False)
        self.overlay.lay_over(self.prog)
        self.reference = Reference(Machine(sound, self.overlay.read), self.architecture)
        self.sound = sound

    def scan(self) -> dict[int, TaskReport]:
        scanner = Scanner(Kernel(self.prog))
        return {report.task: report for report in scanner.reports(scanner.kernel.tasks)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.claim.split(":")[0][:60])
def test_found_by_a_campaign(case: Case) -> None:
    """The verdict, which is the reference's, of the task and of every other."""
    opened = Opened(case.dump)
    order = opened.reference.m.order
    for address, value in case.words.items():
        size = 4 if address & 7 == 4 else 8
        opened.overlay.put(address, value.to_bytes(size, order))
    if case.hole is not None:
        opened.overlay.take(case.hole)
    reports = opened.scan()
    assert reports[case.task].kernel.verdict is case.verdict
    for task, report in reports.items():
        assert difference(report, opened.reference.answer(task)) == ""


@pytest.mark.parametrize(
    ("name", "address", "data"),
    [
        ("x86_64-7.2.kdump", 0xFFFFFFFFC060E648, (0xFFFFFFFFC060EF20).to_bytes(8, "little")),
        ("aarch64-7.2-16k.kdump", 0xFFFFD4CF91EB3D00, b"\x8c\xff\xfe\xc8"),
    ],
    ids=["a trampoline that is its own original", "names of symbols"],
)
def test_what_was_a_traceback_is_a_scan(name: str, address: int, data: bytes) -> None:
    """Recursion without end; names of symbols that are no text. No task is lost by either."""
    opened = Opened(name)
    sound = opened.scan()
    opened.overlay.put(address, data)
    opened.prog = open_dump(str(VMCORES / name), search=False)
    opened.overlay.lay_over(opened.prog)
    found = opened.scan()
    assert found.keys() == sound.keys()
    for task, report in found.items():
        assert report.kernel == sound[task].kernel or report.kernel.verdict is UNRELIABLE


@pytest.mark.parametrize(
    ("name", "task", "member", "value", "blind"),
    [
        ("livepatch/x86_64-6.12-done.kdump", 0xFFFF912E411F6900, "stack", 0xFFFF94608010FE28, ()),
        ("loongarch64-7.2.kdump", 0x900000000C366E40, 0x900000000C5E7B78, 0x7FFFFFFFFFFF, (1, 2)),
    ],
    ids=["a frame that begins below the stack", "registers that lead off the stack"],
)
def test_where_the_package_is_stricter_than_the_kernel(
    name: str, task: int, member: str | int, value: int, blind: tuple[int, ...]
) -> None:
    """Some kernels take leaving the stack for its end. The package refuses: docs/limits.md."""
    opened = Opened(name)
    at = member if isinstance(member, int) else task + drgn.offsetof(
        opened.sound.type("struct task_struct"), member
    )  # fmt: skip
    opened.overlay.put(at, value.to_bytes(8, "little"))
    answer = opened.reference.answer(task)
    assert answer.verdict is Verdict.RELIABLE and answer.blind
    assert bool(answer.entries) == bool(blind)
    report = opened.scan()[task]
    assert report.kernel.verdict is UNRELIABLE
    assert report.proof.verdict is not ProofVerdict.PROVEN
    assert difference(report, answer) == ""


def test_a_second_scan_is_the_first() -> None:
    """What a scan remembers changes no report: a frame in BPF code says so each time."""
    scanner = Scanner(Kernel(open_dump(str(VMCORES / "x86_64-7.2.kdump"), search=False)))
    first, second = (tuple(scanner.reports(scanner.kernel.tasks)) for _ in range(2))
    assert first == second
