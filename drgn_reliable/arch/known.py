# SPDX-License-Identifier: LGPL-2.1-or-later
"""The architectures that can be walked, by name."""

from __future__ import annotations

from drgn_reliable.arch import arm64, loongarch64, ppc64, s390x, x86
from drgn_reliable.arch.base import Architecture

__all__ = ("ARCHITECTURES", "REFUSED")

ARCHITECTURES: dict[str, Architecture] = {
    module.ARCHITECTURE.name: module.ARCHITECTURE
    for module in (x86, arm64, s390x, ppc64, loongarch64)
}

_32_BIT = "no 32-bit kernel has a reliable stack trace"

REFUSED = {
    "arm": _32_BIT,
    "armv7l": _32_BIT,
    "i386": _32_BIT,
    "i686": _32_BIT,
    "parisc64": "its kernel's walk (arch_stack_walk_reliable) calls every stack unreliable, and "
    "drgn cannot translate its addresses",
    "ppc64": "big-endian kernels use another ABI (ELFv1), whose frames are not known here",
    "riscv32": _32_BIT,
    "riscv64": "its kernel has no reliable stack trace (no arch_stack_walk_reliable)",
    "s390": _32_BIT,
}
"""Why other architectures are refused, by ``uname -m`` or drgn's name."""
