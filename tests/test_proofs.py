# SPDX-License-Identifier: LGPL-2.1-or-later
"""What call frame information proves on real dumps, held against chains that are known.

The guests' threads ``k_chain_*`` and processes ``u_chain_*`` were preempted in the kernel: arm64
refuses their traces. Their callers are known from the guest's own sources.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from contrib.vmlab import chains, conform
from drgn_reliable import KernelVerdict, ProofVerdict, TaskReport, open_dump
from drgn_reliable.errors import UsageError
from drgn_reliable.kernel import Kernel
from drgn_reliable.model import FoundBy
from drgn_reliable.report import Scanner
from tests.dumps import DUMPS, Dump

WITH_FILES = next(dump for dump in DUMPS if dump.call_frames)
WITH_SFRAME = next(dump for dump in DUMPS if dump.name.endswith("-sframe.kdump"))
CHAIN = ["vmlab_chain_c", "vmlab_chain_b", "vmlab_chain_a"]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The call frame information that belongs to the first dump, unpacked."""
    folder = tmp_path_factory.mktemp("frames")
    found = []
    for packed in WITH_FILES.call_frames:
        path = folder / packed.with_suffix("").name
        path.write_bytes(lzma.decompress(packed.read_bytes()))
        found.append(str(path))
    return tuple(found)


@cache
def scan(path: Path, symbols: tuple[str, ...] = ()) -> tuple[TaskReport, ...]:
    kernel = Kernel(open_dump(str(path), symbols))
    return tuple(Scanner(kernel).reports(kernel.tasks))


def task(reports: Sequence[TaskReport], comm: str) -> TaskReport:
    return next(report for report in reports if report.comm == comm)


def names(report: TaskReport) -> list[str]:
    return [frame.code.symbol or "" for frame in report.frames]


@pytest.mark.parametrize("who", ["u", "k"])
@pytest.mark.parametrize(
    ("act", "innermost", "found_by"),
    [
        pytest.param("leaf", ["vmlab_chain_leaf"], "link register", id="a leaf without a record"),
        pytest.param("alloca", ["vmlab_chain_alloca"], "", id="a frame of variable size"),
        pytest.param("body", ["vmlab_chain_body"], "", id="past the prologue"),
        pytest.param("krp", ["vmlab_chain_krp"], "", id="a leaf that a kretprobe probes"),
        pytest.param("fg", ["vmlab_fg_leaf"], "", id="a leaf that is graph-traced"),
        pytest.param("wrap", ["vmlab_chain_wrap"], "link register", id="a shrink-wrapped function"),
    ],
)
def test_preempted_tasks_are_proven_with_call_frame_information(
    files: tuple[str, ...], who: str, act: str, innermost: list[str], found_by: str
) -> None:
    """The kernel refuses; without metadata the trace is open and may lack a function; with them it
    is proven, and has every function that must be there."""
    comm = f"{who}_chain_{act}"
    alone, proven = task(scan(WITH_FILES.path), comm), task(scan(WITH_FILES.path, files), comm)
    assert alone.kernel.verdict is proven.kernel.verdict is KernelVerdict.UNRELIABLE
    assert alone.proof.verdict is ProofVerdict.UNDECIDED
    assert proven.proof.verdict is ProofVerdict.PROVEN
    found = names(proven)
    at = found.index(innermost[0])
    assert found[at : at + 5] == [*innermost, *CHAIN, f"act_chain_{act}"]
    assert found_by in proven.frames[at + 1].found_by.value


def test_a_leafs_caller_is_missing_without_metadata() -> None:
    """What the chain of frame records alone would have shown: never called proven."""
    found = names(task(scan(WITH_FILES.path), "u_chain_leaf"))
    at = found.index("vmlab_chain_leaf")
    assert found[at + 1] == "vmlab_chain_b"


def test_what_decides_is_named() -> None:
    """An open boundary says for which code there is no call frame information."""
    (reason,) = task(scan(WITH_FILES.path), "u_chain_leaf").reasons
    assert "no call frame information for vmlab_chain_leaf+0x" in reason.detail


def test_sframe_in_the_dumps_memory_proves_without_any_file() -> None:
    """A module that was assembled with SFrame carries it into the dump."""
    reports = scan(WITH_SFRAME.path)
    found = task(reports, "u_chain_leaf")
    assert found.kernel.verdict is KernelVerdict.UNRELIABLE
    assert found.proof.verdict is ProofVerdict.PROVEN
    kinds = {frame.found_by for report in reports for frame in report.frames}
    assert {FoundBy.SFRAME, FoundBy.SFRAME_LINK} <= kinds
    assert not kinds & {FoundBy.DWARF, FoundBy.DWARF_LINK}


@pytest.mark.parametrize("dump", [WITH_FILES, WITH_SFRAME], ids=lambda dump: dump.name)
def test_no_proof_lacks_a_function(dump: Dump, files: tuple[str, ...]) -> None:
    """Every chain that is known is whole wherever a trace is proven."""
    reports = scan(dump.path, files if dump.call_frames else ())
    assert chains.missing_functions(reports) == []
    known, proven = chains.coverage(reports)
    assert proven > 2 * chains.coverage(scan(WITH_FILES.path))[1]
    assert proven <= known


def test_metadata_change_no_verdict_of_the_kernel(files: tuple[str, ...]) -> None:
    """They are for the proof: every entry still equals the kernel's own."""
    assert conform.differences(scan(WITH_FILES.path, files), WITH_FILES.rows) == []


def test_files_of_another_build_are_refused(files: tuple[str, ...]) -> None:
    """A module's file is matched by its build ID, never by its name."""
    of_module = files[-1]
    with pytest.raises(UsageError, match="is neither the dumped kernel's nor that of a loaded"):
        Kernel(open_dump(str(WITH_SFRAME.path), of_module))
