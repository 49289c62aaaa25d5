# SPDX-License-Identifier: LGPL-2.1-or-later
"""What machines are called: by ``uname -m``, in a dump's header, and by drgn."""

from __future__ import annotations

from drgn import Architecture, Platform, PlatformFlags

__all__ = ("PLATFORMS", "byte_order_of", "machine_of", "platform_of")

PLATFORMS = {
    "aarch64": (Architecture.AARCH64, True),
    "loongarch64": (Architecture.UNKNOWN, True),
    "ppc64": (Architecture.PPC64, False),
    "ppc64le": (Architecture.PPC64, True),
    "riscv64": (Architecture.RISCV64, True),
    "s390x": (Architecture.S390X, False),
    "x86_64": (Architecture.X86_64, True),
}
"""drgn's architecture and whether it is little-endian, by ``uname -m``; all are 64-bit."""

_BY_PLATFORM = {
    row: machine for machine, row in PLATFORMS.items() if row[0] != Architecture.UNKNOWN
}
_OTHERS = {
    Architecture.ARM: "arm",
    Architecture.I386: "i386",
    Architecture.RISCV32: "riscv32",
    Architecture.S390: "s390",
}


def machine_of(platform: Platform | None) -> str:
    """``uname -m`` of a platform, or "unknown".

    >>> machine_of(Platform(Architecture.PPC64, PlatformFlags.IS_64_BIT))
    'ppc64'
    """
    if platform is None:
        return "unknown"
    little_endian = bool(platform.flags & PlatformFlags.IS_LITTLE_ENDIAN)
    known = _BY_PLATFORM.get((platform.arch, little_endian))
    return known or _OTHERS.get(platform.arch, "unknown")


def byte_order_of(machine: str) -> str:
    """The :mod:`struct` prefix of a machine in :data:`PLATFORMS`."""
    return "<" if PLATFORMS[machine][1] else ">"


def platform_of(machine: str) -> Platform:
    """drgn's platform of a machine in :data:`PLATFORMS`."""
    architecture, little_endian = PLATFORMS[machine]
    flags = PlatformFlags.IS_64_BIT
    return Platform(
        architecture, flags | PlatformFlags.IS_LITTLE_ENDIAN if little_endian else flags
    )
