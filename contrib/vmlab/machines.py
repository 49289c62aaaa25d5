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
    modules: tuple[str, ...] = ()  # of the kernel's own, to load first
    patience: int = 1  # how much longer than x86_64 it takes
    qemu_packages: tuple[str, ...] = ()  # its own QEMU, for this machine's does not know it


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
        modules=("qemu_fw_cfg",),
    ),
    "aarch64": MachineType(
        debian="arm64",
        kbuild="arm64",
        cross="aarch64-linux-gnu-",
        cross_packages=("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
        qemu="qemu-system-aarch64",
        type="virt,gic-version=3",
        cpu="max,pauth-impdef=on",
        console="ttyAMA0",
        arguments=("-device", "vmcoreinfo"),
        modules=("qemu_fw_cfg",),
        patience=3,
    ),
    # QEMU's dumps of these two have no VMCOREINFO note.
    "s390x": MachineType(
        debian="s390x",
        kbuild="s390",
        cross="s390x-linux-gnu-",
        cross_packages=("gcc-s390x-linux-gnu", "libc6-dev-s390x-cross"),
        qemu="qemu-system-s390x",
        type="s390-ccw-virtio",
        cpu="max",
        console="ttysclp0",
        patience=3,
    ),
    "ppc64le": MachineType(
        debian="ppc64el",
        kbuild="powerpc",
        cross="powerpc64le-linux-gnu-",
        cross_packages=("gcc-powerpc64le-linux-gnu", "libc6-dev-ppc64el-cross"),
        qemu="qemu-system-ppc64",
        type="pseries",
        cpu="power9",
        console="hvc0",
        patience=3,
    ),
    # Debian's own kernel has neither ORC nor a reliable walk: see configs/loongarch64. Its
    # dumps have no VMCOREINFO note either: without ACPI, qemu_fw_cfg cannot hand it over.
    "loongarch64": MachineType(
        debian="loong64",
        kbuild="loongarch",
        cross="loongarch64-linux-gnu-",
        cross_packages=("gcc-loongarch64-linux-gnu", "libc6-dev-loong64-cross"),
        qemu="qemu-system-loongarch64",
        qemu_packages=("qemu-system-misc",),
        type="virt",
        cpu="max",
        console="ttyS0",
        patience=3,
    ),
}
