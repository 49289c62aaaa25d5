# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64 as the rest of the package sees it."""

from __future__ import annotations

from typing import Any

from drgn_reliable.arch.base import Architecture, Parts, StackUnwinder
from drgn_reliable.arch.x86_64 import (
    LONGEST_CALL,
    NAMES,
    STARTUP,
    Facts,
    ends_call,
    vsyscall_page,
)
from drgn_reliable.arch.x86_fp import FramePointerUnwinder
from drgn_reliable.arch.x86_orc import OrcUnwinder
from drgn_reliable.symbols import Symbols
from drgn_reliable.tasks import SavedContext
from drgn_reliable.text import CodeRules

__all__ = ("ARCHITECTURE",)


def _unwinder(parts: Parts, symbols: Symbols) -> StackUnwinder[Any]:
    if symbols.address("__start_orc_unwind_ip") is None:
        return FramePointerUnwinder(parts)
    return OrcUnwinder.of_kernel(parts, symbols)


ARCHITECTURE = Architecture(
    name="x86_64",
    saved=SavedContext(sp="thread.sp"),  # written by __switch_to_asm
    facts=Facts,
    code=CodeRules(ends_call, LONGEST_CALL, STARTUP, gate=vsyscall_page, names=NAMES),
    unwinder=_unwinder,
)
