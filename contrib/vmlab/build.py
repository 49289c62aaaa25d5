# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compile the guest's programs and modules."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .machines import MachineType
from .packages import PackageError
from .roots import run_in, workspace

GUEST = Path(__file__).with_name("guest")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-result")
Unpack = Callable[[bytes], bytes]
UNPACK: dict[str, Unpack] = {".ko": bytes, ".gz": gzip.decompress, ".xz": lzma.decompress}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Kernel:
    """The files of an unpacked kernel."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        """What QEMU boots; packages from 6.19 on keep it among the modules."""
        places = ("boot/vmlinu?-*", "*lib/modules/*/vmlinu*", "usr/lib/modules/*/vmlinu*")
        for place in places:
            for path in sorted(self.root.glob(place)):
                return path
        raise PackageError(f"no kernel image in the packages of {self.release}")

    def module(self, name: str) -> bytes:
        """A module of the kernel's own, uncompressed."""
        for path in self.root.rglob(f"{name}.ko*"):
            if path.suffix not in UNPACK:
                raise PackageError(f"{self.release} has its modules compressed: {path.name}")
            return UNPACK[path.suffix](path.read_bytes())
        raise PackageError(f"{self.release} has no module {name}")


@dataclass(frozen=True)
class Built:
    """What was compiled: file name to contents."""

    programs: dict[str, bytes]
    modules: dict[str, bytes]


def built_once(
    cache: Path,
    root: Path,
    guest: Path,
    machine: MachineType,
    release: str,
    say: Say,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Built:
    """What :func:`build` makes, from the cache if it was made of the very same before."""
    sources = sorted(path for path in GUEST.rglob("*") if path.suffix in (".c", ".h", ""))
    contents = [(str(p.relative_to(GUEST)), p.read_bytes()) for p in sources if p.is_file()]
    made_of = (root.name, guest.name, machine.debian, release, sorted(variables.items()), contents)
    place = cache / "built" / hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    parts = ("programs", "modules")
    if not place.exists():
        built = build(root, guest, machine, release, say, variables)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".built-", dir=place.parent) as directory:
            for part, files in zip(parts, (built.programs, built.modules), strict=True):
                (Path(directory) / "all" / part).mkdir(parents=True)
                for name, data in files.items():
                    (Path(directory) / "all" / part / name).write_bytes(data)
            with contextlib.suppress(OSError):  # another process was faster
                (Path(directory) / "all").rename(place)
    read = [{path.name: path.read_bytes() for path in sorted((place / p).iterdir())} for p in parts]
    return Built(*read)


def build(
    root: Path,
    guest: Path,
    machine: MachineType,
    release: str,
    say: Say,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Built:
    """Compile programs and modules inside a build root; busybox is the guest's.

    :param variables: of the modules' ``Kbuild``.
    """
    with workspace(root) as directory:
        shutil.copytree(GUEST, directory, dirs_exist_ok=True)
        inside = Path("/") / directory.name
        say("compiling the guest's programs")
        sources = sorted(str(inside / "programs" / p.name) for p in GUEST.glob("programs/*.c"))
        compiler = f"{machine.cross}gcc" if machine.cross_packages else "gcc"
        output = str(inside / "states")
        run_in(root, [compiler, *FLAGS, "-static", "-pthread", "-o", output, *sources])
        say("compiling the guest's modules")
        headers = f"/usr/src/linux-headers-{release}"
        make = ["make", "-C", headers, f"M={inside}/module", "modules"]
        if machine.cross_packages:
            make += [f"ARCH={machine.kbuild}", f"CROSS_COMPILE={machine.cross}"]
        run_in(root, [*make, *(f"{name}={value}" for name, value in variables.items())])
        return Built(
            programs={
                "states": (directory / "states").read_bytes(),
                "busybox": (guest / "usr/bin/busybox").read_bytes(),
            },
            modules={p.name: p.read_bytes() for p in directory.glob("module/*.ko")},
        )
