# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has to be known of an architecture to give its kernel more memory and more stacks."""

from __future__ import annotations

from typing import NamedTuple

from contrib.scale.memory import Paging
from drgn_reliable import Kernel
from drgn_reliable.errors import UsageError

__all__ = ("Machine", "machine_of")


class Machine(NamedTuple):
    """How a kernel has its memory."""

    paging: Paging
    root: int
    """Physical address of the kernel's table of the highest level."""
    stack_size: int
    """Bytes (``THREAD_SIZE``)."""
    stack_stride: int
    """Bytes from a stack to the next: its alignment, and a page that is not mapped."""


_KERNEL_MAP = 0xFFFFFFFF80000000
"""``__START_KERNEL_map`` of x86_64."""


def machine_of(kernel: Kernel) -> Machine:
    """How the kernel of a dump has its memory.

    :raises UsageError: for an architecture that is not known here.
    """
    if kernel.architecture != "x86_64":
        raise UsageError(f"clones of tasks can be made for x86_64, not for {kernel.architecture}")
    root = kernel.symbols.required("init_top_pgt") - _KERNEL_MAP
    five_levels = kernel.vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1"
    paging = Paging(
        page_shift=12,
        index_bits=9,
        levels=5 if five_levels else 4,
        block_shift=30,
        address_mask=0x000FFFFFFFFFF000,
        table_flags=0x067,
        page_flags=0x8000000000000163,
        block_flags=0x80000000000001E3,
        is_block=lambda entry: bool(entry & 0x80),
    )
    stack_size = 4 << paging.page_shift
    return Machine(
        paging, root + int(kernel.vmcoreinfo["NUMBER(phys_base)"]), stack_size, 2 * stack_size
    )
