# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a *capsule*: a small dump of the same kernel that holds only what the analysis reads.

The dump is opened a second time behind a recorder of physical pages, and analysed there; every
page that drgn or this package touched, page tables and all, goes into a kdump-compressed file
with the notes of the original. The capsule is then analysed itself: one that does not give the
very same report is not kept.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from drgn import FaultError, Object, Program, sizeof
from drgn.helpers.linux.pid import for_each_task

from drgn_reliable.errors import DumpError
from drgn_reliable.facts import kernel_facts
from drgn_reliable.files.kdump import Uts
from drgn_reliable.files.kdumpwriter import write_kdump
from drgn_reliable.files.notes import NT_PRSTATUS, drop_notes, iter_notes
from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import member_offset
from drgn_reliable.model import DumpReport
from drgn_reliable.opening import open_dump, opened_dump, physical_program
from drgn_reliable.render.machine import write_json
from drgn_reliable.report import Scanner
from drgn_reliable.tasks import Task

__all__ = ("CapsuleSummary", "write_capsule")

_UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")

Progress = Callable[[Iterable[Task]], Iterable[Task]]


@dataclass(frozen=True)
class CapsuleSummary:
    """What went into a capsule."""

    pages: int
    size: int
    """Of the file, in bytes."""
    original_size: int
    report: DumpReport


class _Recorder:
    """A program that reads another's physical memory and remembers the pages."""

    def __init__(self, original: Program, vmcoreinfo: str, page_size: int) -> None:
        self._original = original
        self._page_size = page_size
        self.pages: set[int] = set()
        self.program = physical_program(original.platform, self._read, vmcoreinfo)

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
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
    path: str, output: str, symbols: str | None = None, progress: Progress = iter
) -> CapsuleSummary:
    """Write the capsule of a dump.

    :param symbols: as for :func:`drgn_reliable.opening.open_dump`, for the analysis.
    :param progress: wraps the tasks as they are walked.
    :raises DumpError: if the dump cannot be analysed, or if the capsule would not give the same
        report.
    :raises OSError: if the file cannot be written; nothing is left of it then.
    """
    kernel = Kernel(open_dump(path, symbols))
    original = opened_dump(kernel.prog)
    assert original is not None
    notes = drop_notes(original.notes, "QEMU")
    vmcoreinfo = kernel.prog["VMCOREINFO"].string_().decode()
    page_size = int(kernel.vmcoreinfo["PAGESIZE"])
    recorder = _Recorder(kernel.prog, vmcoreinfo, page_size)
    recorded = Kernel(recorder.program, cpu_registers=kernel.cpu_registers)
    scanner = Scanner(recorded)
    report = scanner.dump_report("", scanner.reports(progress(recorded.tasks)))
    _touch_more(recorded, report)
    folder, name = os.path.split(output)
    with tempfile.TemporaryDirectory(prefix=".drgn-reliable-", dir=folder or ".") as workplace:
        draft = os.path.join(workplace, name)
        write_kdump(
            draft,
            pages=recorder.contents(),
            page_size=page_size,
            uts=_uts(recorded),
            nr_cpus=sum(note.type == NT_PRSTATUS for note in iter_notes(notes)) or 1,
            vmcoreinfo=vmcoreinfo.encode(),
            notes=notes,
            phys_base=int(kernel.vmcoreinfo.get("NUMBER(phys_base)", "0")),
            max_pfn=_max_pfn(recorded, recorder.pages),
        )
        _verify(draft, report)
        os.replace(draft, output)
    return CapsuleSummary(
        len(recorder.pages), os.path.getsize(output), os.path.getsize(path), report
    )


def _touch_more(kernel: Kernel, report: DumpReport) -> None:
    """Read what the report did not need but a reader of the capsule will."""
    kernel_facts(kernel)
    with contextlib.suppress(FaultError):
        for _ in for_each_task(kernel.prog):
            pass
    for module in kernel.modules:
        region = module.regions[0]
        module.symbol(kernel.prog, region.start, region)
    # A name that no type has makes the finder go through the modules' own types.
    with contextlib.suppress(LookupError):
        kernel.prog.type("struct drgn_reliable_no_such_type")
    for task in report.tasks:
        if task.kernel.errno:
            # drgn looks at more than we do before it takes a CPU's registers.
            pointer = Object(kernel.prog, "struct task_struct *", task.task)
            with contextlib.suppress(LookupError, ValueError, FaultError):
                kernel.prog.stack_trace(pointer)


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


def _verify(path: str, expected: DumpReport) -> None:
    scanner = Scanner(Kernel(open_dump(path)))
    found = scanner.dump_report("", scanner.reports(scanner.kernel.tasks))
    if _json(found) != _json(replace(expected, types=found.types)):
        raise DumpError(
            "the capsule does not give the same report as the dump and was not kept; please "
            "report this with the kernel's release"
        )


def _json(report: DumpReport) -> str:
    out = io.StringIO()
    write_json(report, out)
    return out.getvalue()
