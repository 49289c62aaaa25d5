# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a piece of BPF code is and what it is attached to.

The kernel tells its kinds apart by their names only (``bpf_get_prog_name()``,
``bpf_image_ksym_init()`` and ``bpf_struct_ops_ksym_init()``). What one is attached to is in the
structure that its ``struct bpf_ksym`` is a part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial

from drgn import FaultError, Program, Type

from drgn_reliable.errors import MissingInformation
from drgn_reliable.generated import BpfText
from drgn_reliable.memory import MASK, Layout, gather, hashed_nodes, member_offset
from drgn_reliable.model import CodeRole
from drgn_reliable.symbols import Symbols

__all__ = ("BpfOwners", "bpf_role")

_TRAMPOLINE = "bpf_trampoline_"
_DISPATCHER = "bpf_dispatcher_"
_STRUCT_OPS = "bpf__"
_HEADS = 1024
"""``TRAMPOLINE_TABLE_SIZE``, a macro."""


def bpf_role(name: str) -> CodeRole:
    """What BPF code of a name is.

    >>> bpf_role("bpf_prog_5a7f_sched_exec").value, bpf_role("bpf_trampoline_6442466").value
    ('bpf program', 'bpf trampoline')
    """
    if name.startswith(_TRAMPOLINE):
        return CodeRole.BPF_TRAMPOLINE
    if name.startswith(_DISPATCHER):
        return CodeRole.BPF_DISPATCHER
    if name.startswith(_STRUCT_OPS):
        return CodeRole.BPF_STRUCT_OPS
    return CodeRole.BPF_PROGRAM


class BpfOwners:
    """What the dump's BPF code is attached to; None where the dump does not tell.

    :param problems: takes a line for a list that is broken.
    """

    def __init__(self, prog: Program, symbols: Symbols, problems: list[str]) -> None:
        self._prog = prog
        self._symbols = symbols
        self._problems = problems

    def of(self, code: BpfText, name: Callable[[int], str]) -> str | None:
        """The function that a trampoline or program is attached to, the user of a dispatcher,
        the operation that a struct_ops trampoline implements.

        :param name: names an address.
        """
        role = bpf_role(code.name)
        if role is CodeRole.BPF_DISPATCHER:
            return code.name.removeprefix(_DISPATCHER)
        if role is CodeRole.BPF_STRUCT_OPS:
            return code.name.removeprefix(_STRUCT_OPS)
        try:
            if role is CodeRole.BPF_PROGRAM:
                return self._attached_to(code.ksym)
            function = self._traced_by(code)
        except (FaultError, LookupError, MissingInformation):
            return None
        return name(function) if function else None

    def _attached_to(self, ksym: int) -> str | None:
        type_ = self._prog.type("struct bpf_prog_aux")
        layout = Layout(type_, {"name": "attach_func_name"})
        pointer = layout.read(self._prog, _container(type_, ksym))["name"]
        if not pointer:
            return None
        text: bytes = self._prog.read_c_string(pointer, max_size=512)
        return text.decode("utf-8", "backslashreplace")

    def _traced_by(self, code: BpfText) -> int | None:
        type_ = self._prog.type("struct bpf_tramp_image")
        function = Layout(self._prog.type("struct bpf_trampoline"), {"function": "func.addr"})
        if member_offset(type_, "tr") is None:
            return self._by_key.get(code.name.removeprefix(_TRAMPOLINE))
        trampoline = Layout(type_, {"trampoline": "tr"})
        found = trampoline.read(self._prog, _container(type_, code.ksym))["trampoline"]
        return int(function.read(self._prog, found)["function"])

    @cached_property
    def _by_key(self) -> dict[str, int]:
        """Traced functions by the key in a trampoline's name (before 7.1)."""
        table = self._symbols.address("trampoline_table")
        if table is None:
            return {}
        return dict(gather(self._problems, "trampoline_table", partial(self._each, table))[0])

    def _each(self, table: int) -> Iterator[tuple[str, int]]:
        layout = Layout(
            self._prog.type("struct bpf_trampoline"),
            {"node": "hlist.next", "key": "key", "function": "func.addr"},
        )
        for node in hashed_nodes(self._prog, table, _HEADS):
            fields = layout.read(self._prog, node - layout.offsets["node"] & MASK)
            yield str(fields["key"]), fields["function"]


def _container(type_: Type, ksym: int) -> int:
    return ksym - (member_offset(type_, "ksym") or 0) & MASK
