# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real dump whose types are damaged: one line that names the type and the member, or the verdicts
of all tasks that do not need it; never a traceback, and never a search without end."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import pairwise

import drgn
import pytest

from drgn_reliable import Kernel, KernelVerdict, MissingInformation, Scanner, TaskReport
from drgn_reliable.btf import Btf, Kind
from drgn_reliable.model import TaskKind
from tests.conftest import Scanned
from tests.test_damage import Damage, damaged, overwrite, scan

Edit = Callable[["Types"], Iterator[Damage]]


class Types:
    """Where the BTF of the dump has its records."""

    def __init__(self, prog: drgn.Program, start: int, stop: int) -> None:
        self.btf = Btf(prog.read(start, stop - start))
        self._first = start + prog.read_u32(start + 4)

    def id(self, name: str, *kinds: Kind) -> int:
        """The first type of a name; of any name if it is empty."""
        kinds = kinds or (Kind.STRUCT,)
        return next(self.btf.find(name, *kinds) if name else self.btf.ids(*kinds))

    def at(self, type_id: int) -> int:
        """The address of a record: name, kind and count, size or type."""
        return self._first + 4 * self.btf._at(type_id)

    def member_at(self, struct_name: str, member: str) -> int:
        """The address of a member's record: name, type, bit offset."""
        type_id = self.id(struct_name)
        names = [found.name for found in self.btf.members(type_id)]
        return self.at(type_id) + 12 + 12 * names.index(member)


@pytest.fixture
def types(scanned_6_1: Scanned) -> Types:
    kernel = scanned_6_1.kernel
    start, stop = map(kernel.symbols.required, ("__start_BTF", "__stop_BTF"))
    return Types(kernel.prog, start, stop)


def word(address: int, *values: int) -> Damage:
    return overwrite(address, struct.pack(f"<{len(values)}I", *values))


def retyped(struct_name: str, member: str, name: str, *kinds: Kind) -> Edit:
    """A member has another type: the first of a name, or of a kind; void for no kind at all."""

    def edit(types: Types) -> Iterator[Damage]:
        to = types.id(name, *kinds) if name or kinds else 0
        yield word(types.member_at(struct_name, member) + 4, to)

    return edit


def placed(struct_name: str, member: str, byte: int) -> Edit:
    """A member is at another place."""
    return lambda types: iter([word(types.member_at(struct_name, member) + 8, 8 * byte)])


def stacked(struct_name: str, member: str, other: str) -> Edit:
    """A member is where another one is."""

    def edit(types: Types) -> Iterator[Damage]:
        (there,) = [m for m in types.btf.members(types.id(struct_name)) if m.name == other]
        yield word(types.member_at(struct_name, member) + 8, there.bit_offset)

    return edit


def nameless(struct_name: str) -> Edit:
    """A struct has lost its name."""
    return lambda types: iter([word(types.at(types.id(struct_name)), 0)])


def within_itself(types: Types) -> Iterator[Damage]:
    """The first member of ``struct task_struct`` is an anonymous ``struct task_struct``."""
    task = types.id("task_struct")
    yield word(types.at(task) + 12, 0, task)


def laughs(types: Types) -> Iterator[Damage]:
    """Each of 14 structs has nothing but 10 to 20 anonymous members of the next one."""
    btf = types.btf
    nest = [i for i in btf.ids(Kind.STRUCT) if 10 <= btf.count(i) <= 20 and not btf.kind_flag(i)]
    yield word(types.at(types.id("task_struct")) + 12, 0, nest[0])
    for one, inner in pairwise(nest[:15]):
        for number in range(btf.count(one)):
            yield word(types.at(one) + 12 + 12 * number, 0, inner)


def endless_name(types: Types) -> Iterator[Damage]:
    """The first 4 KiB of all names are one name."""
    btf = types.btf
    start = types._first + 4 * len(btf._words)
    yield overwrite(start + 1, b"a" * 4096)


UNUSABLE: list[tuple[str, Edit, str]] = [
    ("the process identifier is a function", retyped("task_struct", "pid", "", Kind.FUNC_PROTO),
     r"struct task_struct and its member 'pid': it is void \(void\), not a number"),
    ("the process identifier is nothing", retyped("task_struct", "pid", ""),
     r"struct task_struct and its member 'pid': it is void, not a number"),
    ("the process identifier is text", retyped("task_struct", "pid", "", Kind.ARRAY),
     r"struct task_struct and its member 'pid': it is .*\[.*, not a number"),
    ("a pointer is a struct", retyped("task_struct", "signal", "list_head"),
     r"struct task_struct and its member 'signal': it is struct list_head, not a number"),
    ("text is a number", retyped("task_struct", "comm", "int", Kind.INT),
     r"struct task_struct and its member 'comm': it is int, not an array of characters"),
    ("a module's state is a function", retyped("module", "state", "", Kind.FUNC_PROTO),
     r"struct module and its member 'state': it is void \(void\), not a number"),
    ("what should hold members is a number", retyped("task_struct", "thread", "int", Kind.INT),
     r"struct task_struct and its member 'thread\.sp': 'int' is not a structure"),
    ("traced returns are a number", retyped("task_struct", "ret_stack", "int", Kind.INT),
     r"struct task_struct and its member 'ret_stack': it is int, not a pointer or an array"),
    ("members in one place", stacked("task_struct", "pid", "tgid"),
     r"struct task_struct and its member .* overlaps another at byte"),
    ("members 2 MB apart", placed("task_struct", "comm", 2_000_000),
     r"struct task_struct and its member 'comm': it is 2000000 bytes from the start"),
    ("a struct within itself", within_itself, r"'task_struct'\) is an anonymous member of itself"),
    ("14 nested structs of many members", laughs, r"anonymous members nested more than 32 deep or"),
    ("a name that does not end", endless_name, r"a name in BTF has more than 1024 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "message"), [row[1:] for row in UNUSABLE], ids=[r[0] for r in UNUSABLE]
)
def test_types_without_which_nothing_can_be_read(types: Types, edit: Edit, message: str) -> None:
    """The one line names the type, the member, what it is, and what to do."""
    with pytest.raises(MissingInformation, match=message) as raised:
        scanner = Scanner(Kernel(damaged(*edit(types))))
        list(scanner.reports(scanner.kernel.tasks))
    assert "name the kernel's vmlinux with --symbols" in str(raised.value)


LACKS = "the types lack {!r}; name the kernel's vmlinux with --symbols"


def verdicts(report: TaskReport) -> tuple[object, ...]:
    return report.kernel, report.proof, [reason.id for reason in report.reasons]


SPARED: list[tuple[str, Edit, str]] = [
    ("the CPU's entry area has no type", nameless("cpu_entry_area"),
     "exception and entry stacks of the CPUs: could not find 'struct cpu_entry_area'"),
    ("the CPU's registers have no type", nameless("elf_prstatus"), ""),
    ("sections are a number", retyped("module_sect_attrs", "attrs", "int", Kind.INT), ""),
    ("modules' symbols have no type", nameless("mod_kallsyms"), ""),
    ("masks of CPUs have no type", nameless("cpumask"),
     f"mask of possible CPUs: {LACKS.format('struct cpumask')}; the idle tasks are missing"),
    ("run queues have no type", nameless("rq"), f"idle tasks: {LACKS.format('struct rq')}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "problem"), [row[1:] for row in SPARED], ids=[r[0] for r in SPARED]
)
def test_types_that_most_tasks_do_not_need(
    scanned_6_1: Scanned, types: Types, edit: Edit, problem: str
) -> None:
    """Tasks that are off the CPU keep their verdicts; what is missing is a line, but for names."""
    reports, problems = scan(*edit(types))
    assert problems == ((problem,) if problem else ())
    kept = [r for r in scanned_6_1.reports if r.kernel.verdict is not KernelVerdict.RUNNING]
    assert len(kept) > 100
    for report in kept:
        if report.kind is not TaskKind.IDLE:
            assert verdicts(reports[report.task]) == verdicts(report)
