# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's kprobes: which instruction each is at, and which slots of code it uses.

``kprobe_table`` is a hash table of :data:`_HEADS` lists. Where several probes are at one
instruction, or where it is optimised, the table has a probe that stands for all of them
(``aggr_pre_handler()``); their own list begins in it (kernel/kprobes.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

from drgn import FaultError, Program

from drgn_reliable.errors import MissingInformation
from drgn_reliable.memory import (
    MASK,
    Layout,
    container_nodes,
    gather,
    hashed_nodes,
    pointed_type,
    size_of,
)
from drgn_reliable.symbols import Symbols

__all__ = ("Kprobe", "Kprobes")

_HEADS = 64
"""``KPROBE_TABLE_SIZE``, a macro."""
_LIST_LIMIT = 1 << 20
_DISABLED, _OPTIMISED = 2, 4
"""``KPROBE_FLAG_DISABLED`` and ``_OPTIMIZED``, macros."""


@dataclass(frozen=True, slots=True)
class Kprobe:
    """The probes at one instruction."""

    address: int
    """Of the ``struct kprobe`` in the table."""
    probed: int
    """The instruction."""
    slot: int
    """Where the copy of the instruction is executed, 0 if there is none."""
    detour: int
    """Where an optimised probe jumps to, 0 if it never was optimised."""
    disabled: bool
    optimised: bool
    handlers: tuple[int, ...]
    """``pre_handler`` of each probe there."""


class Kprobes:
    """The dump's kprobes, read when they are first asked for.

    :param problems: takes a line for each list that is broken. Memory that the dump lacks gives
        none.
    """

    def __init__(self, prog: Program, symbols: Symbols, problems: list[str]) -> None:
        self._prog = prog
        self._symbols = symbols
        self._problems = problems
        self._aggregate = symbols.address("aggr_pre_handler")

    @cached_property
    def all(self) -> tuple[Kprobe, ...]:
        """The probed instructions."""
        return self._all[0]

    @property
    def whole(self) -> bool:
        """Whether :attr:`all` has every one: the dump has the table, and no list is broken."""
        return self._all[1]

    def of_slot(self, pc: int, optimised: bool) -> Kprobe | None:
        """The probe whose slot an address is in: the one that begins last at or before it.

        :param optimised: the address is in a detour, not in the copy of an instruction.
        """
        size = self._slot_size("kprobe_optinsn_slots" if optimised else "kprobe_insn_slots")
        if size is None:
            return None
        for probe in self.all:
            start = probe.detour if optimised else probe.slot
            if start and start <= pc < start + size:
                return probe
        return None

    def _slot_size(self, cache: str) -> int | None:
        """Bytes of a slot of a cache; None if the dump does not tell."""
        place = self._symbols.address(cache)
        if place is None:
            return None
        try:
            layout = Layout(self._prog.type("struct kprobe_insn_cache"), {"size": "insn_size"})
            page = self._prog.type("struct kprobe_insn_page")
            count: int = layout.read(self._prog, place)["size"]
            return count * size_of(pointed_type(page, "insns"))
        except (FaultError, LookupError, MissingInformation):
            return None

    @cached_property
    def _all(self) -> tuple[tuple[Kprobe, ...], bool]:
        table = self._symbols.address("kprobe_table")
        if table is None:
            return (), True
        return gather(self._problems, "kprobe_table", partial(self._each, table))

    @cached_property
    def _layout(self) -> Layout:
        return Layout(
            self._prog.type("struct kprobe"),
            {
                "hash": "hlist.next",
                "list": "list.next",
                "probed": "addr",
                "handler": "pre_handler",
                "slot": ("ainsn.insn", "ainsn.xol_insn", "ainsn.api.insn"),
                "flags": "flags",
            },
            optional={"slot"},
        )

    @cached_property
    def _detour(self) -> Layout | None:
        try:
            return Layout(self._prog.type("struct optimized_kprobe"), {"code": "optinsn.insn"})
        except (LookupError, MissingInformation):
            return None

    def _each(self, table: int) -> Iterator[Kprobe]:
        for node in hashed_nodes(self._prog, table, _HEADS):
            yield self._read(node - self._layout.offsets["hash"] & MASK)

    def _read(self, address: int) -> Kprobe:
        fields = self._layout.read(self._prog, address)
        handlers: tuple[int, ...] = (fields["handler"],)
        detour = 0
        if fields["handler"] == self._aggregate:
            handlers = tuple(self._handlers(address))
            if self._detour is not None:
                detour = self._detour.read(self._prog, address)["code"]
        return Kprobe(
            address,
            fields["probed"],
            fields["slot"] or 0,
            detour,
            bool(fields["flags"] & _DISABLED),
            bool(fields["flags"] & _OPTIMISED),
            handlers,
        )

    def _handlers(self, address: int) -> Iterator[int]:
        offset = self._layout.offsets["list"]
        for each in container_nodes(self._prog, address + offset & MASK, offset, _LIST_LIMIT):
            yield self._layout.read(self._prog, each)["handler"]
