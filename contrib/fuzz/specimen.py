# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump to be damaged: opened once, its answers known, and which of its words matter."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import drgn

from contrib.fuzz.overlay import PAGE, M, Overlay
from contrib.fuzz.reference import Answer, Machine, Reference, Verdict
from drgn_reliable import Kernel, Scanner, TaskReport, open_dump

FEW = 256
"""Bytes: what is read of variables, structures and entries of tables. Of code it is more, and the
names in kallsyms are read byte by byte."""
SCANS = 200
"""After so many scans the package's memory of nonsense is dropped."""
SHADOW = 1 << 16
"""Bytes; no shadow stack is larger."""


@dataclass
class Patient:
    """A task, and the words that its walk comes by, by address."""

    address: int
    stack: int
    answer: Answer
    report: TaskReport
    walked: list[int] = field(default_factory=list)
    """On its stack."""
    saved: list[int] = field(default_factory=list)
    """Saved registers in its ``struct task_struct``."""
    shadow: list[int] = field(default_factory=list)
    """Of what the function graph tracer keeps for it, the words that are looked at."""
    hooks: list[int] = field(default_factory=list)
    """Its nodes of probed returns, by the addresses of their list members."""


class Specimen:
    """The package's view of a dump through an :class:`Overlay`, and the reference's.

    The package is used as anybody would use it: ``open_dump()``, ``Kernel``, ``Scanner``.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stale = False
        sound = open_dump(path, search=False)
        self.architecture = Kernel(sound).architecture
        self.overlay = Overlay(sound.read)
        self.prog = self.opened()
        self.renew()
        self.machine = Machine(sound, self.overlay.read)
        self.reference = Reference(self.machine, self.architecture)
        self.order = self.machine.order
        self.baseline = {r.task: r for r in self.scan()}
        self.problems = self.told()
        self.reads, self.bytes = self.measured_reads()
        self.indexes: dict[str, list[int]] = {}
        self.patients: dict[int, Patient] = {}
        for task, report in self.baseline.items():
            self.patients[task] = self._examine(task, report)

    # The package -------------------------------------------------------------------------

    def opened(self) -> drgn.Program:
        """A program of the dump with the damage that is laid."""
        prog = open_dump(self.path, search=False)
        self.overlay.lay_over(prog)
        return prog

    def renew(self) -> None:
        """Begin anew with the program: nothing of an earlier scan is remembered."""
        self.kernel = Kernel(self.prog)
        self.scanner = Scanner(self.kernel)
        self.scans = 0

    def refresh(self) -> None:
        """Forget what was remembered of damage, now and then, or where it was lasting."""
        self.scans += 1
        if self.stale or self.scans > SCANS:
            self.renew()
            self.stale = False

    def told(self) -> tuple[str, ...]:
        """What kept the scan from seeing everything."""
        return self.scanner.problems()

    def answer_before(self, task: int) -> Answer:
        """What the reference says of the sound dump; of a task that it does not have, nothing
        that could be true."""
        patient = self.patients.get(task)
        return patient.answer if patient else Answer(Verdict.RUNNING, (0,))

    def scan(self) -> list[TaskReport]:
        """The reports of all tasks that the kernel's lists lead to."""
        return list(self.scanner.reports(self.kernel.tasks))

    def measured_reads(self) -> tuple[int, int]:
        """How many reads and bytes one scan takes that remembers nothing; it also finds out what
        all that is that it and ``Kernel()`` read, and in which pages."""
        pages: set[int] = set()
        small: set[tuple[int, int]] = set()

        def met(address: int, size: int) -> None:
            pages.update(range(address & ~(PAGE - 1), address + size, PAGE))
            if 1 < size <= FEW:
                small.add((address, size))

        self.overlay.trace = met
        self.renew()
        self.overlay.reads = self.overlay.bytes = 0
        self.scan()
        self.overlay.trace = None
        self.pages, self.small = sorted(pages), sorted(small)
        return self.overlay.reads, self.overlay.bytes

    # Where to hit ------------------------------------------------------------------------

    def number(self, address: int, size: int = 8) -> int:
        """Undamaged memory."""
        return int.from_bytes(self.overlay.sound(address, size), self.order)

    def field(self, task: int, path: str) -> int:
        """An undamaged member of a task."""
        return self.machine.get("task_struct", task, path)

    def _examine(self, task: int, report: TaskReport) -> Patient:
        met: list[tuple[int, int]] = []
        self.machine.trace = lambda address, size: met.append((address, size))
        answer = self.reference.answer(task)
        self.machine.trace = None
        patient = Patient(task, self.field(task, "stack"), answer, report)
        thread = task + self.machine.offset("task_struct", "thread")
        struct_end = task + self.machine.size("task_struct")
        rest = set()
        for address, _ in met:
            if patient.stack <= address < patient.stack + self.machine.thread_size:
                patient.walked.append(address)
            elif thread <= address < struct_end:
                patient.saved.append(address)
            elif not task <= address < struct_end:
                rest.add(address)
        if not patient.walked:  # a task that runs, or a kernel without a reliable walk
            patient.walked = [frame.sp - at for frame in report.frames for at in (8, 16)]
            patient.saved = [thread + 8 * i for i in range(16)]
        low, high = patient.stack, patient.stack + self.machine.thread_size
        patient.walked = sorted({at for at in patient.walked if low <= at < high})
        patient.saved = sorted(set(patient.saved))
        self._examine_tracers(patient, rest)
        self._sort(rest - set(patient.shadow))
        return patient

    def _examine_tracers(self, patient: Patient, met: set[int]) -> None:
        m, task = self.machine, patient.address
        if m.has("task_struct", "ret_stack"):
            start = self.field(task, "ret_stack")
            patient.shadow = sorted(at for at in met if start and start <= at < start + SHADOW)
        path = "rethooks.first" if self.reference_rethook else "kretprobe_instances.first"
        node = self.field(task, path) if m.has("task_struct", path) else 0
        while node and len(patient.hooks) < 16:
            patient.hooks.append(node)
            node = self.number(node)

    @property
    def reference_rethook(self) -> bool:
        """Whether return probes are rethooks."""
        return self.machine.symbol("rethook_find_ret_addr") is not None

    def _sort(self, addresses: set[int]) -> None:
        """What walks of all tasks have in common: tables and lists."""
        spans = {
            "orc-ip": ("__start_orc_unwind_ip", "__stop_orc_unwind_ip"),
            "orc-entry": ("__start_orc_unwind", "__stop_orc_unwind"),
            "orc-lookup": ("orc_lookup", "orc_lookup_end"),
        }
        for address in addresses:
            kind = "list"
            for name, (start, end) in spans.items():
                low, high = self.machine.symbol(start), self.machine.symbol(end)
                if low is not None and high is not None and low <= address < high:
                    kind = name
            self.indexes.setdefault(kind, []).append(address)

    @cached_property
    def words(self) -> dict[str, list[int]]:
        """The addresses of each kind that is common to all walks."""
        return {kind: sorted(set(found)) for kind, found in self.indexes.items()}

    @cached_property
    def walkable(self) -> list[Patient]:
        """Tasks of which some word of the stack is walked."""
        return [p for p in self.patients.values() if p.walked]

    @cached_property
    def special(self) -> list[int]:
        """Addresses at which kinds of code begin and end."""
        names = (
            *("_stext", "_etext", "_sinittext", "_einittext", "return_to_handler"),
            *("arch_rethook_trampoline", "__kretprobe_trampoline", "ret_from_fork"),
            *("ret_from_fork_asm", "__entry_text_start", "__entry_text_end", "startup_64"),
            *("common_startup_64", "secondary_startup_64", "__schedule", "ftrace_caller"),
            *("ftrace_regs_caller", "livepatch_handler", "rewind_stack_and_make_dead"),
        )
        found = [a for name in names if (a := self.machine.symbol(name)) is not None]
        found += [0xFFFFFFFFFF600000, M, 0, 1]
        text = self.reference.code
        for mod in text._modules():
            for base, size, _ in text._regions(mod):
                found += [base, base + size]
        return sorted(set(found))

    @cached_property
    def returns(self) -> list[int]:
        """Return addresses that stacks of this dump hold."""
        return sorted({entry for p in self.patients.values() for entry in p.answer.entries}) or [0]
