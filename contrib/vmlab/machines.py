# SPDX-License-Identifier: LGPL-2.1-or-later
"""What differs between architectures: one row each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MachineType:
    """How to build for an architecture, and how QEMU boots it."""

    debian: str  # Debian's name of the architecture
    kbuild: str  # the kernel's, for ARCH=
    cross: str  # prefix of the compiler
    cross_packages: tuple[str, ...]  # what provides it on another architecture
    qemu: str
    type: str
    cpu: str
    console: str
    arguments: tuple[str, ...] = ()


MACHINES = {
    "x86_64": MachineType(
        debian="amd64",
        kbuild="x86",
        cross="x86_64-linux-gnu-",
        cross_packages=(),
        qemu="qemu-system-x86_64",
        type="pc",
        # Without cmpxchg16b: as emulated by QEMU 7.2 it can spoil the flags when an
        # interrupt follows; one boot in six then dies in the slab allocator or hangs.
        cpu="max,-cx16",
        console="ttyS0",
        arguments=("-device", "vmcoreinfo"),
    ),
}
