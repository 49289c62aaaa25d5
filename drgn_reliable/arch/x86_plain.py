# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: the frames that need no decision, which nearly all are.

A *plain* frame is a call's, in kernel text without doubts, whose caller lies further up the same
stack at a distance from SP or BP. Once its rule has been decided, many such frames are taken in
one go; all else is left to the unwinder's single steps, which would give the same frames.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

from drgn_reliable.arch.x86_state import OrcState
from drgn_reliable.model import Code, FoundBy, Frame, Walk
from drgn_reliable.tables.orc import Base, Rule, Shape
from drgn_reliable.text import Text

__all__ = ("PlainFrames",)

_UNPACK = struct.Struct("<Q").unpack_from
_ORC = FoundBy.ORC


class _Plain(NamedTuple):
    code: Code
    by_bp: bool
    """The caller's stack pointer is counted from BP, not from SP."""
    size: int
    """How many bytes."""
    bp_offset: int
    """Where BP is saved, in bytes from the caller's stack pointer; 0 if it is unchanged."""


class PlainFrames:
    """The plain frames known so far, by return address.

    :param trampolines: addresses that a tracer puts in place of return addresses.
    """

    def __init__(self, text: Text, trampolines: Collection[int | None]) -> None:
        self._text = text
        self._trampolines = trampolines
        self._known: dict[int, _Plain] = {}

    def learn(self, rule: Rule, state: OrcState) -> None:
        """Remember the frame at which a walk stands if it is plain."""
        if state.exact or rule.exact or rule.shape is not Shape.CALL:
            return
        code = self._text.at(state.pc, exact=False)
        by_bp, saved = rule.sp_base is Base.BP, rule.bp_base is Base.PREV_SP
        based = by_bp or rule.sp_base is Base.SP
        bp_known = rule.bp_offset < 0 if saved else rule.bp_base is Base.UNDEFINED
        if based and bp_known and code.doubt is None:
            bp_offset = rule.bp_offset if saved else 0
            self._known[state.pc] = _Plain(code, by_bp, rule.sp_offset, bp_offset)

    def skip(self, state: OrcState, walk: Walk, limit: int) -> None:
        """Take the plain frames from where a walk stands, but not the ``limit``-th frame."""
        known, frames = self._known, walk.frames
        plain = None if state.exact or state.regs else known.get(state.pc)
        if plain is None:
            return
        start, data = state.stack.readable()
        pc, sp, bp, found_by, last = state.pc, state.sp, state.bp, state.found_by, len(data) - 8
        room = limit - 1 - len(frames)
        while plain is not None and room > 0:
            code, by_bp, size, bp_offset = plain
            caller_sp = (bp if by_bp else sp) + size
            slot = caller_sp - 8 - start
            bp_slot = slot + 8 + bp_offset
            if caller_sp <= sp or slot < 0 or slot > last or bp_slot < 0:
                break
            (following,) = _UNPACK(data, slot)
            if following in self._trampolines:
                break
            frames.append(Frame(code, sp, found_by))
            if bp_offset:
                (bp,) = _UNPACK(data, bp_slot)
            pc, sp, found_by = following, caller_sp, _ORC
            room -= 1
            plain = known.get(pc)
        state.pc, state.sp, state.bp, state.found_by = pc, sp, bp, found_by
