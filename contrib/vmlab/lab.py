# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a scenario to a dump: packages, guest, verdicts, manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import dumping, oracle
from .build import Kernel, build
from .machines import MACHINES, MachineType
from .pack import pack
from .packages import Apt
from .roots import build_root, kernel_root
from .scenario import Scenario, ScenarioError

Say = Callable[[str], None]


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
    machine = machine_of(scenario)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        kernel = prepare(scenario, machine, unfinished / "initramfs", options, say)
        command = qemu_command(scenario, machine, kernel, unfinished / "initramfs", options)
        rows = dumping.take(scenario.dump, command, unfinished, say)
        (unfinished / "oracle.txt").write_text(rows, errors="surrogateescape")
        (unfinished / "initramfs").unlink()
        manifest = describe(scenario, kernel, command, unfinished, rows)
        (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.chmod(0o755)
        unfinished.rename(output)
    except BaseException:
        _keep_console(unfinished, output, say)
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return manifest


def machine_of(scenario: Scenario) -> MachineType:
    if scenario.architecture not in MACHINES:
        raise ScenarioError(
            f"{scenario.name}: architecture {scenario.architecture!r}; "
            f"there are {', '.join(MACHINES)}"
        )
    return MACHINES[scenario.architecture]


def prepare(
    scenario: Scenario, machine: MachineType, initramfs: Path, options: Options, say: Say
) -> Kernel:
    """Fetch packages, compile, pack: everything that may need the network."""
    cache, own = options.cache, machine.debian == options.host
    target = Apt(cache, machine.debian, scenario.suites, say, options.mirror)
    target.update(options.refresh)
    release = target.newest("linux-image-", scenario.kernel)
    say(f"kernel {release}")
    kernel = Kernel(release, kernel_root(target, cache, release))
    host, headers = target, f"linux-headers-{release}"
    if not own:
        foreign = [machine.debian]
        host = Apt(cache, options.host, scenario.suites, say, options.mirror, foreign)
        host.update(options.refresh)
        headers += f":{machine.debian}"
    more = ("makedumpfile",) if scenario.dump.how == "kdump" else ()
    root = build_root(host, cache, headers, (*machine.cross_packages, *more))
    built = build(root, machine, release, say)
    initramfs.write_bytes(pack(scenario, machine, kernel, built, root))
    return kernel


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
    scenario: Scenario, kernel: Kernel, command: list[str], directory: Path, rows: str
) -> dict[str, Any]:
    """The manifest's entry: what this dump is and how it was made."""
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True)
    dump = directory / "vmcore"
    return {
        "name": scenario.name,
        "about": scenario.about,
        "architecture": scenario.architecture,
        "release": kernel.release,
        "scenario": asdict(scenario),
        "qemu": version.stdout.splitlines()[0],
        "verdicts": oracle.count_verdicts(rows),
        "size": dump.stat().st_size,
        "sha256": {name: _sha256(directory / name) for name in ("vmcore", "oracle.txt")},
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _keep_console(unfinished: Path, output: Path, say: Say) -> None:
    """The console of a failed guest is all there is to learn from: keep its end."""
    console = unfinished / "console.log"
    if console.exists():
        lines = console.read_text(errors="replace").splitlines()[-15:]
        say("the guest's last words:\n    " + "\n    ".join(lines))
