# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has to be known of an architecture to give its kernel more memory and more stacks."""

from __future__ import annotations

from typing import NamedTuple

from contrib.scale.memory import Memory, PageTables, Paging
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
_ENTRY = 8
"""Bytes of an entry of a page table."""
_THREAD_SIZE = 16 << 10
"""Bytes of a stack of both architectures, but no less than a page."""


def machine_of(kernel: Kernel, memory: Memory) -> Machine:
    """How the kernel of a dump has its memory.

    :raises UsageError: for an architecture that is not known here.
    """
    known = {"x86_64": _x86_64, "aarch64": _arm64}
    if kernel.architecture not in known:
        raise UsageError(
            f"clones of tasks can be made for {' and '.join(known)}, not for {kernel.architecture}"
        )
    paging, root = known[kernel.architecture](kernel, memory)
    stack_size = max(_THREAD_SIZE, paging.page_size)
    return Machine(paging, root, stack_size, 2 * stack_size)


def _x86_64(kernel: Kernel, _memory: Memory) -> tuple[Paging, int]:
    five_levels = kernel.vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1"
    paging = Paging(
        page_shift=12,
        address_bits=57 if five_levels else 48,
        index_bits=9,
        levels=5 if five_levels else 4,
        block_shift=30,
        address_mask=0x000FFFFFFFFFF000,
        table_flags=0x067,
        page_flags=0x8000000000000163,
        block_flags=0x80000000000001E3,
        is_block=lambda entry: bool(entry & 0x80),
    )
    physical_base = int(kernel.vmcoreinfo["NUMBER(phys_base)"])
    return paging, kernel.symbols.required("init_top_pgt") - _KERNEL_MAP + physical_base


def _arm64(kernel: Kernel, memory: Memory) -> tuple[Paging, int]:
    """The flags are those that the kernel itself uses: they depend on the CPU (LPA2)."""
    page_size = int(kernel.vmcoreinfo["PAGESIZE"])
    page_shift = page_size.bit_length() - 1
    index_bits = (page_size // _ENTRY).bit_length() - 1
    address_bits = 64 - int(kernel.vmcoreinfo["NUMBER(TCR_EL1_T1SZ)"], 0)
    block_level = 2 if page_shift == 12 else 1
    paging = Paging(
        page_shift=page_shift,
        address_bits=address_bits,
        index_bits=index_bits,
        levels=-(-(address_bits - page_shift) // index_bits),
        block_shift=page_shift + block_level * index_bits,
        address_mask=0x0000FFFFFFFFF000 & -page_size,
        table_flags=0,
        page_flags=0,
        block_flags=0,
        is_block=lambda entry: not entry & 2,
    )
    image = int(kernel.vmcoreinfo["NUMBER(kimage_voffset)"], 0)
    root = kernel.symbols.required("swapper_pg_dir") - image
    tables = PageTables(memory, paging, root)
    task = next(task for task in kernel.tasks if task.has_stack and task.pid > 1)

    def flags(address: int, level: int) -> int:
        return tables.entry(address, level)[0] & ~paging.address_mask

    paging = paging._replace(
        table_flags=flags(task.stack, 1),
        page_flags=flags(task.stack, 0),
        block_flags=flags(task.address, 0) & ~2,
    )
    return paging, root
