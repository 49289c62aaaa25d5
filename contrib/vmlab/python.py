# SPDX-License-Identifier: LGPL-2.1-or-later
"""Python for a guest: the distribution's own, the wheels that this package needs, and the package.

Packages are unpacked by dpkg, wheels by pip; none of their scripts is run. What they need is
compiled here, for a guest without KVM takes minutes to do so.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import drgn_reliable

from .build import GUEST
from .initramfs import Initramfs
from .machines import MachineType
from .packages import Apt, PackageError, failed
from .roots import program_of, tools_root

Say = Callable[[str], None]
PACKAGES = ("libstdc++6", "python3")  # drgn is written in C++, too
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
SITE = "usr/site"
"""Where the wheels and the package are in the guest."""
UNWANTED = shutil.ignore_patterns(
    *("__pycache__", "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "pydoc_data"),
    *("config-3*", "*.a", "*.pyi", "_cffi.*", "gconv", "perl*", "terminfo", "dist-packages"),
)
"""What no program imports here."""
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
DEPENDENCIES = re.compile(r"^dependencies = (\[.*?^\])", re.MULTILINE | re.DOTALL)


def archive(apt: Apt, cache: Path, machine: MachineType, say: Say) -> tuple[bytes, str]:
    """An archive to append to an initramfs, and where the interpreter is in the guest."""
    root = tools_root(apt, cache, PACKAGES)
    interpreter = _interpreter(root)
    tree = _tree(root, interpreter, cache, machine, say)
    image = Initramfs()
    _add(image, tree, "")
    with tempfile.TemporaryDirectory(prefix="vmlab-") as directory:
        package = Path(drgn_reliable.__file__).parent
        shutil.copytree(package, Path(directory) / package.name, ignore=UNWANTED)
        _compile(root, interpreter, Path(directory))
        _add(image, Path(directory), SITE)
    image.file("observe.py", GUEST / "observe.py")
    output = io.BytesIO()
    image.write_plain(output)
    return output.getvalue(), f"/usr/bin/{interpreter}"


def requirements() -> list[str]:
    """What this package needs, as its project says: what is installed here may be older."""
    found = DEPENDENCIES.search(PROJECT.read_text())
    if found is None:
        raise PackageError(f"{PROJECT.name} has no dependencies")
    return list(ast.literal_eval(found[1]))


def _interpreter(root: Path) -> str:
    found = sorted(path.name for path in root.glob("usr/bin/python3.[0-9]*[0-9]"))
    if not found:
        raise PackageError(f"the packages {' '.join(PACKAGES)} have no interpreter")
    return found[0]


def _tree(root: Path, interpreter: str, cache: Path, machine: MachineType, say: Say) -> Path:
    """Interpreter, libraries and wheels as the guest has them: complete, or not there."""
    wanted = requirements()
    key = hashlib.sha256(repr((root.name, machine.kbuild, wanted)).encode()).hexdigest()[:12]
    tree = cache / "python" / key
    if tree.exists():
        return tree
    say(f"making {interpreter} for the guest, with {', '.join(wanted)}")
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=tree.parent) as directory:
        unfinished = Path(directory) / "tree"
        (unfinished / "usr/bin").mkdir(parents=True)
        shutil.copy2(root / "usr/bin" / interpreter, unfinished / "usr/bin")
        for part in (f"usr/lib/{interpreter}", *_libraries(root)):
            shutil.copytree(root / part, unfinished / part, symlinks=True, ignore=UNWANTED)
        _install(wanted, interpreter.removeprefix("python"), machine, unfinished / SITE)
        _compile(root, interpreter, unfinished)
        if not tree.exists():  # else another process was faster
            unfinished.rename(tree)
    return tree


def _libraries(root: Path) -> list[str]:
    """Where the libraries and their loader are."""
    found = [*root.glob("usr/lib/*-linux-gnu*"), *root.glob("usr/lib64")]
    return sorted(str(path.relative_to(root)) for path in found)


def _install(wanted: Sequence[str], version: str, machine: MachineType, target: Path) -> None:
    """Unpack the wheels of another machine's Python."""
    # The name of an architecture in a wheel is that of its ELF machine.
    name = {"x86": "x86_64", "arm64": "aarch64", "s390": "s390x"}.get(machine.kbuild, "ppc64le")
    platforms = [word for p in PLATFORMS for word in ("--platform", f"{p}_{name}")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    only = ["--no-compile", "--only-binary=:all:", "--python-version", version, *platforms]
    done = subprocess.run([*pip, *only, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise failed("pip", done.stderr)
    for path in [*target.glob("zstandard/_cffi.*"), *target.glob("*.pyi"), target / "bin"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _compile(root: Path, interpreter: str, tree: Path) -> None:
    """Compile what is imported, if this machine can run that Python."""
    try:
        command = program_of(root, interpreter)
    except PackageError:
        return
    how = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(tree)]
    environment = {**os.environ, "PYTHONHOME": str(root / "usr")}
    environment.pop("PYTHONPATH", None)
    subprocess.run([*command, *how], env=environment, capture_output=True)


def _add(image: Initramfs, tree: Path, where: str) -> None:
    """Add all that is in a directory."""
    for path in sorted(tree.rglob("*")):
        name = str(Path(where) / path.relative_to(tree))
        if path.is_symlink():
            target = str(path.readlink())
            # In the guest /lib is not /usr/lib.
            image.link(name, f"/usr{target}" if target.startswith("/lib") else target)
        elif path.is_file():
            image.file(name, path, stat.S_IMODE(path.stat().st_mode))
    for loader in sorted(tree.glob("usr/lib*/ld-linux*.so.*")):
        image.link(str(loader.relative_to(tree / "usr")), f"/{loader.relative_to(tree)}")
