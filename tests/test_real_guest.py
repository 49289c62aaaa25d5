# SPDX-License-Identifier: LGPL-2.1-or-later
"""From packages to a verdict: boot a real guest, dump it, scan it, make a capsule of it.

It needs QEMU and a Debian mirror and takes a minute. Where QEMU is missing it is skipped; with
``VMLAB_REQUIRED=1``, as in ``.ci/run``, that is a failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drgn import FaultError
from drgn.helpers.linux.printk import get_printk_records

from contrib.vmlab import lab, scenario
from contrib.vmlab.__main__ import default_cache
from contrib.vmlab.conform import differences
from contrib.vmlab.packages import PackageError
from contrib.vmlab.verdicts import parse
from drgn_reliable import Kernel, KernelVerdict, TaskReport, open_dump
from drgn_reliable.capsule import write_capsule
from drgn_reliable.opening import opened_dump
from tests.reports import reported, reports_of

pytestmark = pytest.mark.guest

NEEDED = ("qemu-system-x86_64", "apt-get", "dpkg-deb", "unshare")
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Made:
    """A dump that vmlab has made just now."""

    dump: str
    rows: str
    manifest: dict[str, Any]


def missing(what: str) -> None:
    if os.environ.get("VMLAB_REQUIRED"):
        pytest.fail(f"VMLAB_REQUIRED is set, but {what}")
    pytest.skip(f"no guest was booted: {what}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A 256 MB guest of Debian 12, dumped by QEMU in its flattened kdump format."""
    if absent := [name for name in NEEDED if shutil.which(name) is None]:
        missing(f"{', '.join(absent)} is not installed")
    output = tmp_path_factory.mktemp("guest") / "made"
    wanted = scenario.load("x86_64-6.1-kdump")
    assert wanted.machine.memory == "256M"
    try:
        lab.make(wanted, output, lab.Options(default_cache()), print)
    except PackageError as e:
        missing(f"its packages cannot be had ({e})")
    rows = (output / "oracle.txt").read_text(errors="surrogateescape")
    manifest = json.loads((output / "manifest.json").read_text())
    return Made(str(output / "vmcore"), rows, manifest)


def test_the_manifest_describes_the_dump(made: Made) -> None:
    """Release, architecture, how it was made, verdicts and checksums are the dump's own."""
    kernel = Kernel(open_dump(made.dump))
    assert made.manifest["release"] == kernel.release
    assert made.manifest["architecture"] == kernel.architecture
    assert made.manifest["scenario"]["dump"]["format"] == "kdump-zlib"
    assert sum(made.manifest["verdicts"].values()) == len(parse(made.rows)) > 200
    digest = hashlib.sha256(Path(made.dump).read_bytes()).hexdigest()
    assert made.manifest["sha256"]["vmcore"] == digest


def reason_ids(reports: list[TaskReport], comm: str) -> set[str]:
    return {reason.id for report in reports if report.comm == comm for reason in report.reasons}


def test_every_verdict_is_the_kernels_own(made: Made) -> None:
    """QEMU's own flattened dump is read in place, and all its tasks are as their kernel says."""
    dump = opened_dump(open_dump(made.dump))
    assert dump is not None and dump.stored == "kdump-compressed, flattened"
    reports = reports_of(made.dump)
    assert differences(reports, made.rows) == []
    assert {report.kernel.verdict for report in reports} >= {
        KernelVerdict.RELIABLE, KernelVerdict.UNRELIABLE, KernelVerdict.RUNNING,
    }  # fmt: skip
    assert "rethook-task-runnable" in reason_ids(reports, "k_krp_spin")


def test_its_capsule_tells_the_same_in_less_than_8_mb(made: Made, tmp_path: Path) -> None:
    """The capsule of the 256 MB guest is small, gives the same JSON and the kernel's verdicts."""
    output = str(tmp_path / "capsule")
    summary = write_capsule(made.dump, output)
    assert (
        summary.size
        < 8 * MEGABYTE
        < 250 * MEGABYTE
        < summary.page_size * (summary.pages + summary.left_out_pages)
    )
    assert reported(output) == reported(made.dump)
    assert differences(summary.report.tasks, made.rows) == []


def test_what_crash_reads_is_kept_on_demand(made: Made, tmp_path: Path) -> None:
    """With crash=True whole stacks, the log and the interrupt table are there; the report is the
    same."""
    output = str(tmp_path / "capsule")
    summary = write_capsule(made.dump, output, crash=True)
    assert summary.size < 8 * MEGABYTE
    assert reported(output) == reported(made.dump)
    kept, original = Kernel(open_dump(output)), Kernel(open_dump(made.dump))
    for task in original.tasks:
        if task.stack:
            assert kept.prog.read(task.stack, 16384) == original.prog.read(task.stack, 16384)
    assert kept.prog.read(original.symbols.required("idt_table"), 4096)
    assert b"Linux version" in get_printk_records(kept.prog)[0].text


def test_code_is_kept_on_demand(made: Made, tmp_path: Path) -> None:
    """With text=True every page of the kernel's code is in the capsule, else hardly one."""
    original = Kernel(open_dump(made.dump))
    start, end = (original.symbols.required(name) for name in ("_stext", "_etext"))
    pages = range(start, end, 4096)
    found = {}
    for text in (False, True):
        output = str(tmp_path / f"capsule-{text}")
        write_capsule(made.dump, output, text=text)
        prog, there = open_dump(output), 0
        for page in pages:
            try:
                data = prog.read(page, 4096)
            except FaultError:
                continue
            assert data == original.prog.read(page, 4096)
            there += 1
        found[text] = there
    assert found[True] == len(pages) > 10 * found[False]
