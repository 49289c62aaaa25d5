# SPDX-License-Identifier: LGPL-2.1-or-later
"""The livepatches of the dumped kernel: what each replaces, and by what.

``klp_patches`` lists the patches in the order in which they were applied. A patch lists its
objects (the kernel itself, and modules), an object its functions (include/linux/livepatch.h).
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
    list_nodes,
    member_offset,
    number_at,
)
from drgn_reliable.symbols import Symbols

__all__ = ("Patch", "PatchedFunction", "PatchedObject", "Patches")

_LIST_LIMIT = 1 << 16


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


@dataclass(frozen=True, slots=True)
class PatchedFunction:
    """One ``struct klp_func``."""

    address: int
    """Of the structure."""
    name: str
    """The replaced function's; empty if the dump lacks it."""
    old_func: int
    """0 while the module that it is in is not loaded."""
    old_size: int
    """Bytes up to the next symbol."""
    new_func: int
    new_size: int
    nop: bool
    """It goes back to the original, because a later patch replaces all earlier ones (atomic
    replace): ``new_func`` is ``old_func``."""
    patched: bool
    """Callers are diverted to it."""
    transition: bool
    """Which of two functions a task runs is still decided for each task."""

    def __contains__(self, address: object) -> bool:
        """Whether an address lies in the new function."""
        if not isinstance(address, int) or self.nop:
            return False
        return self.new_func <= address < self.new_func + self.new_size


@dataclass(frozen=True, slots=True)
class PatchedObject:
    """One ``struct klp_object``."""

    address: int
    name: str | None
    """The module's; None for the kernel itself."""
    module: int
    """Address of the ``struct module``; 0 for the kernel itself and for one that is not loaded."""
    patched: bool
    functions: tuple[PatchedFunction, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """One ``struct klp_patch``."""

    address: int
    name: str
    """Of the module that brings it; empty if the dump lacks it."""
    enabled: bool
    replace: bool
    """It replaces every earlier patch."""
    forced: bool
    """A transition was forced over tasks that may still use what it replaced or removed."""
    objects: tuple[PatchedObject, ...]

    def functions(self) -> Iterator[PatchedFunction]:
        """The functions of all its objects."""
        for each in self.objects:
            yield from each.functions


class Patches:
    """The dump's livepatches, read when they are first asked for.

    :param problems: takes a line for each list that is broken. Memory that the dump lacks gives
        none: what is there of the list is all that there is to tell.
    """

    def __init__(self, prog: Program, symbols: Symbols, problems: list[str]) -> None:
        self._prog = prog
        self._symbols = symbols
        self._problems = problems

    @cached_property
    def all(self) -> tuple[Patch, ...]:
        """In the order in which they were applied."""
        return self._all[0]

    @property
    def whole(self) -> bool:
        """Whether :attr:`all` has every patch: the dump has the list, and it is not broken."""
        return self._all[1]

    @cached_property
    def _all(self) -> tuple[tuple[Patch, ...], bool]:
        head = self._symbols.address("klp_patches")
        if head is None:
            return (), True
        return gather(self._problems, "klp_patches", partial(self._each_patch, head))

    @cached_property
    def stacks(self) -> dict[int, tuple[int, ...]]:
        """For each original function that is diverted, by its address, the addresses of its
        ``struct klp_func``, the newest first (``klp_ops``, ``func_stack``)."""
        head = self._symbols.address("klp_ops")
        if head is None:
            return {}
        return dict(gather(self._problems, "klp_ops", partial(self._each_stack, head))[0])

    def _each_stack(self, head: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        ops = Layout(
            self._prog.type("struct klp_ops"), {"node": "node.next", "stack": "func_stack.next"}
        )
        for address in self._nodes(head, ops, "node"):
            functions = tuple(
                node - self._func.offsets["stacked"] & MASK
                for node in list_nodes(
                    self._prog, address + ops.offsets["stack"] & MASK, _LIST_LIMIT
                )
            )
            if functions:
                yield self._func.read(self._prog, functions[0])["old_func"], functions

    @property
    def target(self) -> int | None:
        """``klp_target_state``: 1 while a transition patches, 0 while it unpatches, -1 without
        one; None if the dump does not tell."""
        return self._number("klp_target_state")

    @property
    def attempts(self) -> int | None:
        """``klp_signals_cnt``: how often the kernel has tried in vain to complete the transition,
        about once a second, since it began or was reversed; None if the dump does not tell."""
        return self._number("klp_signals_cnt")

    def _number(self, symbol: str) -> int | None:
        found = number_at(self._prog, self._symbols.address(symbol), 4)
        return None if found is None else _signed(found)

    def replacing(self, address: int) -> tuple[Patch, list[PatchedFunction]] | None:
        """The patch in one of whose new functions an address lies, the newest if there are
        several; and what that function is there for, for it may replace more than one."""
        for patch in reversed(self.all):
            if found := [function for function in patch.functions() if address in function]:
                return patch, found
        return None

    def traced(self, ops: int) -> str | None:
        """The name of the function that the ``struct ftrace_ops`` at an address diverts, one of
        the livepatch core's (``struct klp_ops``)."""
        try:
            type_ = self._prog.type("struct klp_ops")
            fops, stack = (member_offset(type_, name) for name in ("fops", "func_stack"))
            if fops is None or stack is None:
                return None
            head = ops - fops + stack & MASK
            first = self._prog.read_u64(head)
            if first == head:
                return None
            return self._function(first - self._func.offsets["stacked"]).name or None
        except (FaultError, LookupError, MissingInformation):
            return None

    @property
    def transition(self) -> int | None:
        """Address of the patch that is being applied or removed right now, 0 if none is; None if
        the kernel has no livepatching or the dump does not tell."""
        return number_at(self._prog, self._symbols.address("klp_transition_patch"), 8)

    @property
    def in_transition(self) -> Patch | None:
        """That patch; None if there is none, or it is not among :attr:`all`."""
        address = self.transition
        return next((patch for patch in self.all if patch.address == address), None)

    # Layouts -----------------------------------------------------------------------------

    @cached_property
    def _patch(self) -> Layout:
        return Layout(
            self._prog.type("struct klp_patch"),
            {
                "module": "mod",
                "replace": "replace",
                "list": "list.next",
                "objects": "obj_list.next",
                "enabled": "enabled",
                "forced": "forced",
            },
        )

    @cached_property
    def _object(self) -> Layout:
        return Layout(
            self._prog.type("struct klp_object"),
            {
                "name": "name",
                "functions": "func_list.next",
                "node": "node.next",
                "module": "mod",
                "patched": "patched",
            },
        )

    @cached_property
    def _func(self) -> Layout:
        return Layout(
            self._prog.type("struct klp_func"),
            {
                "name": "old_name",
                "new_func": "new_func",
                "old_func": "old_func",
                "node": "node.next",
                "stacked": "stack_node.next",
                "old_size": "old_size",
                "new_size": "new_size",
                "nop": "nop",
                "patched": "patched",
                "transition": "transition",
            },
        )

    @cached_property
    def _module_name(self) -> Layout:
        return Layout(self._prog.type("struct module"), {"name": "name"}, text=("name",))

    # Lists -------------------------------------------------------------------------------

    def _nodes(self, head: int, layout: Layout, member: str) -> Iterator[int]:
        return container_nodes(self._prog, head, layout.offsets[member], _LIST_LIMIT)

    def _each_patch(self, head: int) -> Iterator[Patch]:
        _ = self._object, self._func  # Without these types the list is not whole.
        for address in self._nodes(head, self._patch, "list"):
            fields = self._patch.read(self._prog, address)
            name = self._name_of_module(fields["module"])
            objects = partial(self._objects, address + self._patch.offsets["objects"])
            yield Patch(
                address,
                name,
                bool(fields["enabled"]),
                bool(fields["replace"]),
                bool(fields["forced"]),
                gather(self._problems, f"objects of livepatch {name}", objects)[0],
            )

    def _objects(self, head: int) -> Iterator[PatchedObject]:
        for address in self._nodes(head, self._object, "node"):
            fields = self._object.read(self._prog, address)
            name = self._string(fields["name"]) if fields["name"] else None
            what = f"livepatched functions of {name or 'the kernel'}"
            functions = partial(self._functions, address + self._object.offsets["functions"])
            yield PatchedObject(
                address,
                name,
                fields["module"],
                bool(fields["patched"]),
                gather(self._problems, what, functions)[0],
            )

    def _functions(self, head: int) -> Iterator[PatchedFunction]:
        for address in self._nodes(head, self._func, "node"):
            yield self._function(address)

    def _function(self, address: int) -> PatchedFunction:
        fields = self._func.read(self._prog, address)
        return PatchedFunction(
            address,
            self._string(fields["name"]),
            fields["old_func"],
            fields["old_size"],
            fields["new_func"],
            fields["new_size"],
            bool(fields["nop"]),
            bool(fields["patched"]),
            bool(fields["transition"]),
        )

    def _name_of_module(self, module: int) -> str:
        try:
            name = self._module_name.read(self._prog, module)["name"]
        except FaultError:
            return ""
        return str(name.split(b"\0")[0].decode("utf-8", "backslashreplace"))

    def _string(self, address: int) -> str:
        try:
            text: bytes = self._prog.read_c_string(address, max_size=512)
            return text.decode("utf-8", "backslashreplace")
        except FaultError:
            return ""
