# SPDX-License-Identifier: LGPL-2.1-or-later
"""Directories of unpacked packages: a kernel, and a system that can compile for it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .packages import Apt, PackageError, failed, unpack

Packages = Sequence[tuple[str, str]]

# With busybox as the rest of the system, this compiles programs and kernel modules.
TOOLS = (
    *("base-files", "bash", "busybox-static", "coreutils", "dash", "diffutils", "findutils"),
    *("gcc", "grep", "libc-bin", "libc6-dev", "make", "mawk", "sed"),
)
MERGED = ("bin", "lib", "lib64", "sbin")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/tmp"}


def kernel_root(apt: Apt, cache: Path, release: str) -> Path:
    """A kernel's image and modules, unpacked."""
    packages = apt.closure([f"linux-image-{release}"])
    own = [item for item in packages if item[0].startswith("linux-") and release in item[0]]
    return _root(cache, "kernel", (apt, own))


def build_root(apt: Apt, cache: Path, headers: str, more: Sequence[str]) -> Path:
    """A compiler, the kernel's headers and what their use takes, unpacked."""
    return _root(cache, "build", (apt, apt.closure([headers, *TOOLS, *more])))


def cross_root(host: Apt, target: Apt, cache: Path, headers: str, more: Sequence[str]) -> Path:
    """The same for another architecture.

    Of its packages only the headers are taken; the tools that come with a kernel are there
    for the machine that compiles, too. Asking apt for both at once, as packages that could be
    installed together, fails for some kernels: their headers want the kernel itself.
    """
    theirs = target.closure([headers])
    scripts = [name for name, _ in theirs if name.startswith("linux-kbuild-")]
    theirs = [item for item in theirs if item[0].startswith("linux-headers-")]
    ours = host.closure([*scripts, *TOOLS, *more])
    return _root(cache, "build", (host, ours), (target, theirs))


def guest_root(apt: Apt, cache: Path) -> Path:
    """What the guest itself runs: busybox, which needs nothing else."""
    found = [item for item in apt.closure(["busybox-static"]) if item[0] == "busybox-static"]
    return _root(cache, "guest", (apt, found))


def compiled_root(
    apt: Apt, cache: Path, exactly: Packages, recipe: str, work: Callable[[Path], None]
) -> Path:
    """A build root of these packages, in which that work was done, by that recipe."""
    return _root(cache, "build", (apt, exactly), recipe=recipe, work=work)


def qemu_root(apt: Apt, cache: Path, packages: Sequence[str]) -> Path:
    """A QEMU that this machine does not have, and its libraries."""
    return _root(cache, "qemu", (apt, apt.closure(packages)))


def tools_root(apt: Apt, cache: Path, packages: Sequence[str]) -> Path:
    """Other programs, of another release than this machine's, and their libraries."""
    return _root(cache, "tools", (apt, apt.closure(packages)))


def program_of(root: Path, name: str) -> list[str]:
    """What runs a root's program on this machine: it has the root's libraries, not its files."""
    loader = next(root.glob("usr/lib64/ld-linux-*.so.2"), None)
    program = root / "usr/bin" / name
    if loader is None or not program.exists():
        raise PackageError(f"no packages of {root.name} have {name} and a loader for it")
    libraries = ":".join(map(str, sorted(root.glob("usr/lib/*-linux-gnu"))))
    return [str(loader), "--library-path", libraries, str(program)]


def libraries_of(root: Path, program: str) -> list[str]:
    """The shared libraries that a program of the root needs, and its loader."""
    output = run_in(root, ["ldd", program])
    return sorted(set(re.findall(r"(/\S+) \(0x", output)))


def run_in(root: Path, command: Sequence[str]) -> str:
    """Run a command with that root, in name spaces of its own: nothing stays behind."""
    script = 'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid():
        unshare.append("--map-root-user")
    result = subprocess.run(
        [*unshare, "sh", "-c", script, str(root), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
    )
    output = result.stdout.decode(errors="replace")
    if result.returncode:
        raise failed(command[0], output)
    return output


@contextlib.contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """A directory inside a root, removed afterwards; builds in it do not meet."""
    path = Path(tempfile.mkdtemp(prefix="vmlab-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _root(
    cache: Path,
    kind: str,
    *parts: tuple[Apt, Packages],
    recipe: str = "",
    work: Callable[[Path], None] = lambda root: None,
) -> Path:
    """The root for exactly these packages, and that work by that recipe: complete, or not there."""
    exactly = [(apt.architecture, packages) for apt, packages in parts]
    key = hashlib.sha256((repr(exactly) + recipe).encode()).hexdigest()[:12]
    root = cache / "roots" / f"{kind}-{key}"
    if root.exists():
        return root
    files = [file for apt, packages in parts for file in apt.fetch(packages)]
    parts[0][0].say(f"unpacking {len(files)} packages ({kind})")
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=root.parent))
    try:
        if kind != "kernel":
            _merge_usr(unfinished)
        unpack(files, unfinished)
        if kind == "build":
            _finish(unfinished)
        work(unfinished)
        unfinished.chmod(0o755)
        with contextlib.suppress(OSError):
            unfinished.rename(root)
        if not root.exists():  # else another process was faster
            raise PackageError(f"{root} cannot be made")
        return root
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _merge_usr(root: Path) -> None:
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")


def _finish(root: Path) -> None:
    """What packages' scripts would have done, as far as compiling needs it."""
    for name in ("proc", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    shell = root / "usr/bin/sh"
    if not shell.is_symlink():
        shell.symlink_to("dash")
    awk = root / "usr/bin/awk"
    if not awk.is_symlink():
        awk.symlink_to("mawk")
