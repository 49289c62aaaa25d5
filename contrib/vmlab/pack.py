# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pack what the guest boots: its initramfs, and that of a crash kernel inside it."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

from .build import GUEST, Built, Kernel
from .initramfs import Initramfs
from .machines import MachineType
from .packages import PackageError
from .roots import libraries_of
from .scenario import Dump, Scenario, Workload

ROWS_KB = 1024
"""Room for the rows of what every guest has; each task that a scenario adds gets a KiB more."""
DIRECTORIES = ("proc", "sys", "dev", "tmp", "etc", "bin", "lib/vmlab")


def pack(
    scenario: Scenario,
    machine: MachineType,
    kernel: Kernel,
    built: Built,
    root: Path,
    interpreter: str = "",
) -> bytes:
    """The guest's initramfs.

    :param interpreter: where its Python is, if it has one.
    """
    image = _image(built, "init")
    own = {f"{name}.ko": kernel.module(name) for name in machine.modules}
    modules = {**built.modules, **own}
    for name, data in sorted(modules.items()):
        image.file(f"lib/vmlab/{name}", data)
    image.file("etc/steps", "".join(f"{step}\n" for step in scenario.workload.steps))
    settings = _settings(scenario.workload)
    settings["INTERRUPT"] = "1" if scenario.dump.hold == "interrupt" else ""
    settings["GLANCE"] = "1" if scenario.dump.how in ("live", "glance") else ""
    settings["PYTHON"] = interpreter
    if scenario.dump.how == "kdump":
        settings["CRASH"] = f"console={machine.console} rdinit=/init reset_devices nr_cpus=1"
        image.file("crash/kernel", kernel.image)
        image.file("crash/initramfs", _pack_crash(scenario.dump, built, root))
    return _finished(image, settings)


def _pack_crash(dump: Dump, built: Built, root: Path) -> bytes:
    """The crash kernel's initramfs: busybox and makedumpfile with its libraries."""
    image = _image(built, "init-crash")
    program = next(root.glob("usr/*bin/makedumpfile"), None)
    if program is None:
        raise PackageError("the package makedumpfile has no such program")
    for library in libraries_of(root, f"/{program.relative_to(root)}"):
        image.file(library, (root / library.lstrip("/")).resolve(), 0o755)
    image.file("bin/makedumpfile", program, 0o755)
    return _finished(image, {"MAKEDUMPFILE": dump.makedumpfile})


def _image(built: Built, init: str) -> Initramfs:
    image = Initramfs()
    for directory in DIRECTORIES:
        image.directory(directory)
    image.character_device("dev/console", 5, 1)
    image.character_device("dev/null", 1, 3)
    for name, data in built.programs.items():
        image.file(f"bin/{name}", data, 0o755)
    image.file("init", GUEST / init, 0o755)
    return image


def _finished(image: Initramfs, settings: dict[str, str]) -> bytes:
    """The archive, with the variables that its init reads."""
    lines = [f"{key}={shlex.quote(value)}\n" for key, value in settings.items()]
    image.file("etc/vmlab", "".join(lines))
    output = io.BytesIO()
    image.write(output)
    return output.getvalue()


def _settings(workload: Workload) -> dict[str, str]:
    return {
        "STATES": " ".join(workload.states),
        "SETTLE": str(workload.settle),
        "CROWD": str(workload.crowd),
        "THREADS": str(workload.threads),
        "ROWS_KB": str(ROWS_KB + workload.crowd + workload.threads),
        "MOVE": "1" if workload.move else "",
        "GRAPH": " ".join(workload.graph),
        "FPROBES": " ".join(workload.fprobes),
        "LIVEPATCH": "1" if workload.livepatch else "",
        "HURT": "1" if workload.hurt else "",
    }
