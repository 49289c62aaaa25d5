# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a *capsule*: a small dump of the same kernel that holds only what the analysis reads.

The dump's memory is put behind a recorder of physical pages, and analysed there; every page that
drgn or this package touched, page tables and all, goes into a kdump-compressed file with the notes
of the original. The capsule is then analysed itself: one that does not give the very same report
is not kept.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from drgn import FaultError, Object, Program, sizeof
from drgn.helpers.linux.pid import for_each_task

from drgn_reliable.crashpages import read_for_crash
from drgn_reliable.errors import DumpError, UsageError
from drgn_reliable.facts import kernel_facts
from drgn_reliable.files.kdump import Uts
from drgn_reliable.files.kdumpwriter import write_kdump
from drgn_reliable.files.notes import NT_PRSTATUS, drop_notes, iter_notes, swapped_registers
from drgn_reliable.files.packed import Watch, unwatched
from drgn_reliable.files.vmcoreinfo import number_in
from drgn_reliable.kernel import Kernel
from drgn_reliable.livepatch import analyse
from drgn_reliable.memory import byte_order, member_offset
from drgn_reliable.model import CapsuleSummary, DumpReport, KernelVerdict
from drgn_reliable.newfile import is_same_file
from drgn_reliable.opening import OpenedDump, open_dump, opened_dump, physical_program
from drgn_reliable.render.machine import write_json
from drgn_reliable.report import Scanner
from drgn_reliable.tasks import Task

__all__ = ("write_capsule",)

_UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")

Progress = Callable[[Iterable[Task]], Iterable[Task]]


class _Recorder:
    """A program that reads another's physical memory and remembers the pages."""

    def __init__(self, original: Program, machine: str, vmcoreinfo: str, page_size: int) -> None:
        self._original = original
        self._page_size = page_size
        self.pages: set[int] = set()
        self.program = physical_program(machine, self._read, vmcoreinfo)

    def _read(self, address: int, count: int) -> bytes:
        data: bytes = self._original.read(address, count, physical=True)
        first, last = address // self._page_size, (address + count - 1) // self._page_size
        self.pages.update(range(first, last + 1))
        return data

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """The pages in ascending order."""
        size = self._page_size
        for number in sorted(self.pages):
            # A page at the very end of memory may be there only in part: it was not needed whole.
            with contextlib.suppress(FaultError):
                yield number, self._original.read(number * size, size, physical=True)


def write_capsule(
    path: str,
    output: str,
    symbols: str | Sequence[str] | None = None,
    *,
    vmcoreinfo: str | None = None,
    wanted: Sequence[str] = (),
    text: bool = False,
    crash: bool = False,
    progress: Progress = iter,
    watch: Watch = unwatched,
    prog: Program | None = None,
) -> CapsuleSummary:
    """Write the capsule of a dump, complete or not at all.

    :param symbols: as for :func:`drgn_reliable.opening.open_dump`, for the analysis.
    :param vmcoreinfo: as for :func:`drgn_reliable.opening.open_dump`.
    :param wanted: PIDs or task addresses (:meth:`drgn_reliable.tasks.TaskList.find`): only these
        tasks' stacks are kept. All are by default.
    :param text: whether to keep the code of the kernel and its modules too.
    :param crash: whether to keep what the crash utility reads too: whole stacks and task
        structures, memory management, the kernel log.
    :param progress: wraps the tasks as they are walked.
    :param watch: as for :func:`drgn_reliable.opening.open_dump`.
    :param prog: is taken where the dump was opened already; the path then only says what it is.
    :raises DumpError: if the dump cannot be analysed, or if the capsule would not give the same
        report.
    :raises UsageError: for a task that is not there, for one task or another architecture with
        ``crash``, or if the capsule would replace the dump.
    :raises drgn_reliable.newfile.NotWritten: if the file cannot be written.
    """
    if is_same_file(path, output):
        raise UsageError(f"--output {output}: the dump itself; name another file")
    if crash and wanted:
        raise UsageError("--add-crash keeps every task's stack; leave out --task")
    kernel = Kernel(prog or open_dump(path, symbols, watch, vmcoreinfo))
    if crash and kernel.architecture != "x86_64":
        raise UsageError(
            f"--add-crash: what crash reads is not known for {kernel.architecture}, only for x86_64"
        )
    original = opened_dump(kernel.prog)
    assert original is not None
    text_of_vmcoreinfo = kernel.prog["VMCOREINFO"].string_().decode()
    page_size = number_in(kernel.vmcoreinfo, "PAGESIZE")
    recorder = _Recorder(kernel.prog, kernel.architecture, text_of_vmcoreinfo, page_size)
    recorded = Kernel(
        recorder.program, cpu_registers=kernel.cpu_registers, machine=kernel.architecture
    )
    report = _report(recorded, wanted, progress)
    _touch_more(recorded, report)
    if not wanted:
        _touch_all_tasks(recorded)
    if crash:
        read_for_crash(recorded)
    if kernel.architecture == "s390x":
        _touch_lowcore(recorder)
    if text:
        _touch_text(recorded, page_size)
    little_endian = byte_order(kernel.prog) == "<"
    notes = _notes(original, little_endian)
    made = write_kdump(
        output,
        pages=recorder.contents(),
        page_size=page_size,
        uts=_uts(recorded),
        nr_cpus=_count_cpus(notes, little_endian) or 1,
        vmcoreinfo=text_of_vmcoreinfo.encode(),
        notes=notes,
        phys_base=int(kernel.vmcoreinfo.get("NUMBER(phys_base)", "0")),
        max_pfn=_max_pfn(recorded, recorder.pages),
        check=lambda draft: _verify(draft, wanted, report),
    )
    return CapsuleSummary(
        output,
        made.file_size,
        page_size,
        made.pages,
        original.file.memory_size // page_size - made.pages,
        original.size,
        text,
        report,
    )


def _notes(dump: OpenedDump, little_endian: bool) -> bytes:
    """The dump's notes in the byte order of its kernel, but those that mislead readers."""
    order = dump.file.little_endian
    if order != little_endian:
        return swapped_registers(dump.notes, little_endian=order)
    return drop_notes(dump.notes, "QEMU", little_endian=order)


def _count_cpus(notes: bytes, little_endian: bool) -> int:
    found = iter_notes(notes, little_endian=little_endian)
    return sum((note.name, note.type) == ("CORE", NT_PRSTATUS) for note in found)


def _report(kernel: Kernel, wanted: Sequence[str], progress: Progress = iter) -> DumpReport:
    scanner = Scanner(kernel)
    tasks = kernel.tasks.select(wanted) if wanted else progress(kernel.tasks)
    return scanner.dump_report("", list(scanner.reports(tasks)))


def _touch_more(kernel: Kernel, report: DumpReport) -> None:
    """Read what the report did not need but a reader of the capsule will."""
    kernel_facts(kernel, whole_tables=False)
    if kernel.owners.patches.all:
        analyse(kernel, only={task.task for task in report.tasks})
    for module in kernel.modules:
        region = module.regions[0]
        module.symbol(kernel.prog, region.start, region)
    # A name that no type has makes the finder go through the modules' own types.
    with contextlib.suppress(LookupError):
        kernel.prog.type("struct drgn_reliable_no_such_type")
    for task in report.tasks:
        if task.kernel.verdict is KernelVerdict.RUNNING:
            # drgn looks at more than we do before it takes a CPU's registers.
            pointer = Object(kernel.prog, "struct task_struct *", task.task)
            with contextlib.suppress(LookupError, ValueError, FaultError):
                kernel.prog.stack_trace(pointer)


def _touch_all_tasks(kernel: Kernel) -> None:
    """Read what drgn's own helper reads to find the tasks."""
    with contextlib.suppress(FaultError):
        for _ in for_each_task(kernel.prog):
            pass


def _touch_lowcore(recorder: _Recorder) -> None:
    """s390x: read what libkdumpfile reads to open a dump: absolute page 0, and what its pointers to
    ``os_info`` and to VMCOREINFO lead to."""
    prog = recorder.program
    for pointer, size in ((0xE18, 4096), (0xE0C, 8192)):
        with contextlib.suppress(FaultError):
            target = int.from_bytes(prog.read(pointer, 8, physical=True), "big")
            for address in range(target, target + size, 4096):
                prog.read(address, 8, physical=True)


def _touch_text(kernel: Kernel, page_size: int) -> None:
    """Read the code of the kernel and of its modules, as far as the dump has it."""
    start, end = kernel.symbols.address("_stext"), kernel.symbols.address("_etext")
    regions = [] if start is None or end is None else [(start, end)]
    regions += [(r.start, r.end) for m in kernel.modules for r in m.regions if r.text]
    for start, end in regions:
        for page in range(start & -page_size, end, page_size):
            with contextlib.suppress(FaultError):
                kernel.prog.read(page, 1)


def _uts(kernel: Kernel) -> Uts:
    type_ = kernel.prog.type("struct new_utsname")
    offset = member_offset(kernel.prog.type("struct uts_namespace"), "name") or 0
    address = kernel.symbols.required("init_uts_ns") + offset
    data: bytes = kernel.prog.read(address, sizeof(type_))

    def text(name: str) -> str:
        start = member_offset(type_, name) or 0
        return data[start : data.index(b"\0", start)].decode("utf-8", "replace")

    return Uts(*(text(name) for name in _UTS_FIELDS))


def _max_pfn(kernel: Kernel, pages: set[int]) -> int:
    highest = max(pages) + 1
    address = kernel.symbols.address("max_pfn")
    return highest if address is None else max(highest, kernel.prog.read_u64(address))


def _verify(path: str, wanted: Sequence[str], expected: DumpReport) -> None:
    found = _report(Kernel(open_dump(path)), wanted)
    if _json(found) != _json(replace(expected, types=found.types)):
        raise DumpError(
            "the capsule does not give the same report as the dump and was not kept; please "
            "report this with the kernel's release"
        )


def _json(report: DumpReport) -> str:
    out = io.StringIO()
    write_json(report, out)
    return out.getvalue()
