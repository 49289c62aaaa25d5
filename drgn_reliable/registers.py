# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registers of each CPU at the instant of the dump.

Three places have them: the per-CPU ``crash_notes``, which a crashing kernel fills itself; the
``NT_PRSTATUS`` notes of the file, one for each CPU in their order, as QEMU and kdump write them;
and drgn, which knows further kinds of target but unwinds the whole stack before it tells.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from drgn import FaultError, Object, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.files.notes import NT_PRSTATUS, iter_notes
from drgn_reliable.files.source import DumpFormatError
from drgn_reliable.memory import MASK, byte_order, member_offset, size_of
from drgn_reliable.opening import opened_dump
from drgn_reliable.symbols import Symbols
from drgn_reliable.tasks import Task, cpus_in_mask

__all__ = ("CrashRegisters",)


class CrashRegisters:
    """Gives the registers of the CPU that a task runs on.

    :param offsets: place of each register that is wanted within the general registers, in bytes.
    :param drgn_names: what drgn calls them.
    :param use_file: whether the file's notes are to be trusted.
    """

    def __init__(
        self,
        prog: Program,
        symbols: Symbols,
        offsets: Mapping[str, int],
        drgn_names: Mapping[str, str],
        *,
        use_file: bool = True,
    ) -> None:
        self._use_file = use_file
        self._prog = prog
        self._symbols = symbols
        self._offsets = offsets
        self._drgn_names = drgn_names
        self._order = byte_order(prog)

    def __call__(self, task: Task) -> Mapping[str, int] | None:
        """The registers by name, or None if there are none."""
        if status := self._crash_note(task.cpu):
            return self._decode(status, self._order)
        if status := self._file_notes.get(task.cpu):
            return self._decode(status, self._file_order)
        return self._from_drgn(task)

    def _decode(self, status: bytes, order: str) -> Mapping[str, int] | None:
        unpack = struct.Struct(order + "Q").unpack_from
        start = self._registers_at
        if start is None or len(status) < start + max(self._offsets.values()) + 8:
            return None
        return {name: unpack(status, start + at)[0] for name, at in self._offsets.items()}

    @cached_property
    def _registers_at(self) -> int | None:
        """Offset of the general registers in ``struct elf_prstatus``; None if the types lack it."""
        try:
            return member_offset(self._prog.type("struct elf_prstatus"), "pr_reg")
        except (LookupError, MissingInformation):
            return None

    def _crash_note(self, cpu: int) -> bytes | None:
        """What ``crash_save_cpu()`` wrote for a CPU, if the kernel crashed."""
        notes = self._symbols.address("crash_notes")
        offsets = self._symbols.address("__per_cpu_offset")
        if notes is None or offsets is None:
            return None
        try:
            size = size_of(self._prog.type("note_buf_t"))
            base = self._prog.read_u64(offsets + 8 * cpu & MASK)
            buffer = self._prog.read(self._prog.read_u64(notes) + base & MASK, size)
            return next(self._statuses(buffer, self._order), None)
        except (FaultError, DumpFormatError, LookupError, MissingInformation):
            return None

    @cached_property
    def _file_notes(self) -> dict[int, bytes]:
        """The file's notes by CPU: there is one for each online CPU, or for each possible one."""
        dump = opened_dump(self._prog)
        if dump is None or not self._use_file:
            return {}
        try:
            notes = list(self._statuses(dump.notes, self._file_order))
        except DumpFormatError:
            return {}
        for name in ("__cpu_online_mask", "__cpu_possible_mask"):
            cpus = self._cpus(name)
            if len(cpus) == len(notes):
                return dict(zip(cpus, notes, strict=True))
        return {}

    @cached_property
    def _file_order(self) -> str:
        """Of the file, which QEMU can write in another byte order than the kernel's."""
        dump = opened_dump(self._prog)
        return "<" if dump is None or dump.file.little_endian else ">"

    def _statuses(self, notes: bytes, order: str) -> Iterator[bytes]:
        for note in iter_notes(notes, little_endian=order == "<"):
            if note.type == NT_PRSTATUS and note.name == "CORE":
                yield note.description

    def _cpus(self, mask: str) -> Sequence[int]:
        address = self._symbols.address(mask)
        try:
            return cpus_in_mask(self._prog, address) if address is not None else ()
        except (FaultError, MissingInformation):
            return ()

    def _from_drgn(self, task: Task) -> Mapping[str, int] | None:
        pointer = Object(self._prog, "struct task_struct *", task.address)
        try:
            found = self._prog.stack_trace(pointer)[0].registers()
        except (LookupError, ValueError, FaultError, IndexError):
            return None
        return {ours: found[theirs] for ours, theirs in self._drgn_names.items() if theirs in found}
