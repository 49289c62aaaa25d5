# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels that no distribution ships: compiled from its source package, by a small configuration.

``configs/NAME`` lists what is set over "allnoconfig", after ``configs/common``. What results is a
build root like any other, with the kernel's image and module in it and, where the package of the
headers would have them, what modules are compiled against. It is kept in the cache.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import roots
from .machines import MachineType
from .packages import Apt, PackageError
from .roots import compiled_root, run_in

CONFIGS = Path(__file__).with_name("configs")
TOOLS = (
    *("bc", "bison", "flex", "gzip", "libelf-dev", "libssl-dev", "pahole", "perl-base"),
    *("python3-minimal", "tar", "xz-utils", "zlib1g-dev"),
)
TREE = "usr/src/linux"
UNWANTED = ("*/Documentation/*/*", "*/tools/testing/*")
KEPT = (
    *(".config", "Makefile", "Module.symvers", "include", "scripts"),
    *("tools/objtool/objtool", "tools/bpf/resolve_btfids/resolve_btfids"),
)
"""Of a compiled tree, besides its architecture's directory: what compiling modules takes."""
MODULES = ("drivers/firmware/qemu_fw_cfg.ko",)


def names() -> list[str]:
    """The configurations there are."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.name != "common")


def configuration(name: str) -> str:
    """A configuration's text."""
    parts = [(CONFIGS / part).read_text() for part in ("common", name)]
    return "".join(parts) + f'CONFIG_LOCALVERSION="-{name}"\n'


def built_root(
    apt: Apt, cache: Path, machine: MachineType, source: str, name: str
) -> tuple[str, Path]:
    """The root of a kernel built from this source package, and the kernel's release.

    :param name: of its configuration.
    """
    text = configuration(name)
    packages = apt.closure([source, *roots.TOOLS, *TOOLS, *machine.cross_packages])
    version = dict(packages)[source]

    def compile_in(root: Path) -> None:
        apt.say(f"compiling {source} {version} ({name}), which takes minutes")
        compile_kernel(root, machine, source, version, text)

    root = compiled_root(apt, cache, packages, text, compile_in)
    return release_in(root), root


def release_in(root: Path) -> str:
    """The release of the kernel that was compiled in that root."""
    return next((root / "boot").glob("vmlinuz-*")).name.partition("-")[2]


def compile_kernel(
    root: Path, machine: MachineType, source: str, version: str, configuration: str
) -> None:
    """Configure and compile the source package's kernel; of its tree only what is needed stays."""
    tree = root / TREE
    tree.mkdir()
    archive = root / f"usr/src/{source}.tar.xz"
    excluded = [f"--exclude={pattern}" for pattern in UNWANTED]
    unpack = ["tar", "-x", "--strip-components=1", "-C", f"/{TREE}", *excluded]
    run_in(root, [*unpack, "-f", f"/{archive.relative_to(root)}"])
    archive.unlink()
    (tree / "vmlab.config").write_text(configuration)
    make = [
        *("nice", "make", "-C", f"/{TREE}", f"-j{(os.cpu_count() or 1) + 1}"),
        *(f"ARCH={machine.kbuild}", "KBUILD_BUILD_USER=vmlab", "KBUILD_BUILD_HOST=vmlab"),
        f"KBUILD_BUILD_TIMESTAMP=Debian {version}",
    ]
    if machine.cross_packages:
        make.append(f"CROSS_COMPILE={machine.cross}")
    run_in(root, [*make, "KCONFIG_ALLCONFIG=vmlab.config", "allnoconfig"])
    check(configuration, (tree / ".config").read_text())
    run_in(root, [*make, "all"])
    release, image = (
        run_in(root, [*make, "-s", what]).strip() for what in ("kernelrelease", "image_name")
    )
    strip = [f"{machine.cross}strip", "--strip-debug", "--keep-section=.debug_frame"]
    run_in(root, [*strip, f"/{TREE}/vmlinux"])
    _keep(root, machine, release, image)


def check(configuration: str, result: str) -> None:
    """Every option that was wanted is in the result; a dependency may be missing."""
    have = set(result.splitlines())
    wanted = [line for line in configuration.splitlines() if line.startswith("CONFIG_")]
    if missing := [line for line in wanted if line not in have]:
        raise PackageError(f"the configuration did not take {', '.join(missing)}")


def _keep(root: Path, machine: MachineType, release: str, image: str) -> None:
    """Put the kernel where its packages would, and leave out what nobody needs any more."""
    tree, headers = root / TREE, root / f"usr/src/linux-headers-{release}"
    places = {image: root / f"boot/vmlinuz-{release}"}
    for module in MODULES:
        places[module] = root / f"lib/modules/{release}/{Path(module).name}"
    for name in (*KEPT, "vmlinux", f"arch/{machine.kbuild}"):
        places[name] = headers / name
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if (tree / name).exists():
            (tree / name).rename(place)
    for pattern in ("*.o", "*.a", "*.c", ".*.cmd"):
        for path in (headers / "arch").rglob(pattern):
            path.unlink()
    shutil.rmtree(tree)
