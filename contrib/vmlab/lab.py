# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a scenario to a dump: packages, guest, verdicts, manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drgn_reliable import DumpError
from drgn_reliable.files.notes import find_vmcoreinfo
from drgn_reliable.opening import inspect_dump

from . import dumping, guest, livepatch, verdicts
from .build import Kernel, built_once
from .kernelbuild import built_root
from .machines import MACHINES, MachineType
from .oracle import OracleError
from .pack import pack
from .packages import Apt, PackageError, run
from .python import archive
from .roots import build_root, cross_root, guest_root, kernel_root, program_of, qemu_root
from .scenario import Scenario, ScenarioError

Say = Callable[[str], None]
VMCOREINFO = re.compile(r"vmlab: VMCOREINFO at physical (0x[0-9a-f]+), (0x[0-9a-f]+) bytes")


@dataclass(frozen=True)
class Options:
    """What does not belong to a scenario but to this machine."""

    cache: Path
    mirror: str | None = None
    refresh: bool = False
    kvm: bool = False
    host: str = "amd64"  # the architecture that compiles


def make(scenario: Scenario, output: Path, options: Options, say: Say) -> dict[str, Any]:
    """Make a scenario's dump in a directory that is complete or does not exist."""
    if output.exists():
        raise ScenarioError(f"{output} exists already")
    if scenario.dump.how not in dumping.WAYS:
        raise ScenarioError(f"{scenario.name} leaves no dump: its guest goes on running")
    machine = MACHINES[scenario.architecture]
    qemu = emulator(scenario, machine, options, say)
    version = version_of(qemu)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        kernel = prepare(scenario, machine, unfinished / "initramfs", options, say)
        command = qemu_command(scenario, machine, kernel, unfinished / "initramfs", options)
        rows = dumping.take(scenario.dump, [*qemu, *command[1:]], unfinished, say, machine.patience)
        wrong = livepatch.differences(rows) if scenario.workload.steps else []
        if wrong:
            raise OracleError("; ".join(wrong))
        (unfinished / "oracle.txt").write_bytes(rows.encode(errors="surrogateescape"))
        (unfinished / "initramfs").unlink()
        how = {"qemu": version, "accelerator": "kvm" if options.kvm else "tcg"}
        manifest = describe(scenario, kernel, how, unfinished, rows)
        (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.chmod(0o755)
        unfinished.rename(output)
    except BaseException as error:
        words = _last_words(error, unfinished / "console.log")
        shutil.rmtree(unfinished, ignore_errors=True)
        if words:
            say("the last words were:\n    " + "\n    ".join(words))
        raise
    return manifest


@contextlib.contextmanager
def booted(
    scenario: Scenario, directory: Path, options: Options, say: Say, more: Sequence[str] = ()
) -> Iterator[guest.Guest]:
    """A scenario's guest, running, as a context; its console is in the directory.

    :param more: further arguments of QEMU.
    """
    machine = MACHINES[scenario.architecture]
    qemu = emulator(scenario, machine, options, say)
    version_of(qemu)
    initramfs = directory / "initramfs"
    kernel = prepare(scenario, machine, initramfs, options, say)
    command = [*qemu, *qemu_command(scenario, machine, kernel, initramfs, options)[1:], *more]
    say("booting")
    with guest.running(command, directory / "console.log", say) as running:
        yield running


def emulator(scenario: Scenario, machine: MachineType, options: Options, say: Say) -> list[str]:
    """What runs QEMU: this machine's, or that of packages."""
    if not machine.qemu_packages:
        return [machine.qemu]
    apt = Apt(options.cache, options.host, scenario.suites, say, options.mirror)
    apt.update(options.refresh)
    root = qemu_root(apt, options.cache, machine.qemu_packages)
    return [*program_of(root, machine.qemu), "-L", str(root / "usr/share/qemu")]


def version_of(qemu: Sequence[str]) -> str:
    """What QEMU calls itself; asked before anything else, for it may not be there."""
    return run([*qemu, "--version"]).partition("\n")[0]


def prepare(
    scenario: Scenario, machine: MachineType, initramfs: Path, options: Options, say: Say
) -> Kernel:
    """Fetch packages, compile, pack: everything that may need the network.

    The modules are left beside the initramfs, with their debug information, and so is the vmlinux
    of a kernel that was compiled here.
    """
    get = compiled_kernel if scenario.build else packaged_kernel
    kernel, root, guests = get(scenario, machine, options, say)
    say(f"kernel {kernel.release}")
    variables = {
        "VMLAB_ASSEMBLER": " ".join(f"-Wa,{option}" for option in scenario.workload.assembler),
        "VMLAB_ASSEMBLED": " ".join(scenario.workload.assembled),
    }
    built = built_once(options.cache, root, guests, machine, kernel.release, say, variables)
    modules = initramfs.with_name("modules")
    modules.mkdir()
    for name, data in built.modules.items():
        (modules / name).write_bytes(data)
    if (vmlinux := kernel.root / f"usr/src/linux-headers-{kernel.release}/vmlinux").exists():
        shutil.copyfile(vmlinux, initramfs.with_name("vmlinux"))
    python, interpreter = b"", ""
    if scenario.dump.how == "live":
        apt = Apt(options.cache, machine.debian, scenario.suites, say, options.mirror)
        python, interpreter = archive(apt, options.cache, machine, say)
    image = pack(scenario, machine, kernel, built, root, interpreter)
    initramfs.write_bytes(image + bytes(-len(image) % 4) + python)
    return kernel


def packaged_kernel(
    scenario: Scenario, machine: MachineType, options: Options, say: Say
) -> tuple[Kernel, Path, Path]:
    """A distribution's kernel, the root in which to compile for it, and that of the guest."""
    cache = options.cache
    target = Apt(cache, machine.debian, scenario.suites, say, options.mirror)
    target.update(options.refresh)
    release = target.newest("linux-image-", scenario.kernel)
    kernel = Kernel(release, kernel_root(target, cache, release))
    headers = f"linux-headers-{release}"
    if machine.debian == options.host:
        more = ("makedumpfile",) if scenario.dump.how == "kdump" else ()
        root = build_root(target, cache, headers, (*machine.cross_packages, *more))
        return kernel, root, root
    host = Apt(cache, options.host, scenario.suites, say, options.mirror)
    host.update(options.refresh)
    root = cross_root(host, target, cache, headers, machine.cross_packages)
    return kernel, root, guest_root(target, cache)


def compiled_kernel(
    scenario: Scenario, machine: MachineType, options: Options, say: Say
) -> tuple[Kernel, Path, Path]:
    """The same of a kernel of a configuration of ours, which is in the root it was compiled in."""
    cache = options.cache
    host = Apt(cache, options.host, scenario.suites, say, options.mirror)
    host.update(options.refresh)
    source = "linux-source-" + host.newest("linux-source-", scenario.kernel)
    release, root = built_root(host, cache, machine, source, scenario.build)
    if machine.debian == options.host:
        return Kernel(release, root), root, root
    target = Apt(cache, machine.debian, scenario.suites, say, options.mirror)
    target.update(options.refresh)
    return Kernel(release, root), root, guest_root(target, cache)


def qemu_command(
    scenario: Scenario, machine: MachineType, kernel: Kernel, initramfs: Path, options: Options
) -> list[str]:
    """The whole command line of QEMU, but for the QMP socket."""
    want = scenario.machine
    cmdline = f"console={machine.console} rdinit=/init panic=-1 {want.cmdline}".strip()
    # One thread for all CPUs: with one each, code that the kernel patches while another
    # CPU runs it is now and then seen half patched. It takes no longer.
    accelerator = "kvm" if options.kvm else "tcg,thread=single"
    return [
        *(machine.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", want.type or machine.type, "-accel", accelerator),
        *("-cpu", want.cpu or machine.cpu, "-smp", str(want.cpus), "-m", want.memory),
        *machine.arguments,
        *("-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(initramfs)),
        *("-append", cmdline),
    ]


def describe(
    scenario: Scenario, kernel: Kernel, how: dict[str, str], directory: Path, rows: str
) -> dict[str, Any]:
    """The manifest's entry: what this dump is and how it was made."""
    dump = directory / "vmcore"
    return {
        "name": scenario.name,
        "about": scenario.about,
        "architecture": scenario.architecture,
        "release": kernel.release,
        "scenario": asdict(scenario),
        **how,
        "verdicts": verdicts.counts(verdicts.parse(rows)),
        "vmcoreinfo": vmcoreinfo_of(directory),
        "size": dump.stat().st_size,
        "sha256": {name: _sha256(directory / name) for name in ("vmcore", "oracle.txt")},
    }


def vmcoreinfo_of(directory: Path) -> dict[str, Any]:
    """Whether the dump has a VMCOREINFO note, and where in memory the kernel keeps that note.

    A reader that needs it finds it there when the file has none: QEMU writes none for some
    architectures, and none for the others unless the guest gave it one.
    """
    note = False
    with contextlib.suppress(DumpError):
        file = inspect_dump(str(directory / "vmcore")).file
        note = find_vmcoreinfo(file.notes, little_endian=file.little_endian) is not None
    console = directory / "console.log"
    said = VMCOREINFO.search(console.read_text(errors="replace"))
    place = {"physical": said[1], "bytes": int(said[2], 16)} if said else {}
    return {"note": note, **place}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _last_words(error: BaseException, console: Path) -> Sequence[str]:
    """What failed may have said more than one line: a compiler, or the guest."""
    if isinstance(error, PackageError):
        return error.words
    return console.read_text(errors="replace").splitlines()[-15:] if console.exists() else ()
