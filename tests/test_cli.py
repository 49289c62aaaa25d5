# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line as its user meets it: a real process, its output, its exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from drgn_reliable import Kernel, open_dump
from drgn_reliable.reasons import CATALOGUE
from tests.conftest import Scanned
from tests.dumps import DUMP_6_1, DUMPS, VMCORES
from tests.framebytes import ALLOC, EXEC, REL, Frames, Part, elf, ins

DUMP = str(DUMP_6_1.path)
SPINNER = DUMP_6_1.find("k_krp_spin")
SCHEMA = json.loads(
    resources.files("drgn_reliable").joinpath("schema/drgn-reliable-1.json").read_text()
)


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(VMCORES.parent)}
    return subprocess.run(
        [sys.executable, "-m", "drgn_reliable", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
    )


# What a scan prints --------------------------------------------------------------------------


def test_table_lists_what_matters_first() -> None:
    """The unreliable tasks come first, and a line at the end counts the verdicts."""
    done = run("scan", DUMP)
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "PID", "CPU", "S", "KIND", "COMMAND", "KERNEL", "PROOF", "#", "IN", "REASON",
    ]  # fmt: skip
    unreliable = DUMP_6_1.count("unreliable")
    verdicts = [line[41:].split()[0] for line in lines[1 : DUMP_6_1.count() + 1]]
    assert verdicts[:unreliable] == ["unreliable"] * unreliable
    assert "unreliable" not in verdicts[unreliable:]
    assert lines[-1].startswith(
        f"{DUMP_6_1.count()} tasks of 6.1.0-50-cloud-amd64 (x86_64): kernel: "
        f"{DUMP_6_1.count('reliable')} reliable, {unreliable} unreliable, 2 running; proof: "
    )


def test_verbose_shows_frames_and_how_they_were_found() -> None:
    """-v prints every frame with its address, name, module and source, and every reason."""
    done = run("scan", DUMP, "--task", str(SPINNER.pid), "-v")
    pid = SPINNER.pid
    shown = f"PID {pid} (k_krp_spin), TGID {pid}, kthread, state R, CPU 1, task {SPINNER.task:#x}"
    assert shown in done.stdout
    assert "act_krp_spin+0xa [vmlab_states]" in done.stdout and "(kretprobe)" in done.stdout
    assert "4.4 rethook-task-runnable (refused) before frame #5" in done.stdout


def test_grouped_stacks_name_their_tasks() -> None:
    """--group shows a stack once, with how many tasks share it."""
    done = run("scan", DUMP, "--group", "--only", "kthread")
    assert re.search(r"^\d+ tasks: reliable, proven: rcu_gp \(3\)", done.stdout, re.MULTILINE)
    assert done.stdout.count("rescuer_thread+") == 1


def test_json_is_what_the_schema_says() -> None:
    """The JSON form validates against the schema in the package and has every task."""
    done = run("scan", DUMP, "--format", "json")
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    assert report["schema"] == "drgn-reliable/1"
    assert len(report["tasks"]) == DUMP_6_1.count()
    assert report["summary"]["kernel"]["unreliable"] == DUMP_6_1.count("unreliable")


def test_json_entries_are_the_kernels(scanned_6_1: Scanned) -> None:
    """kernel.entries can be compared word for word with the kernel's own."""
    tasks = json.loads(run("scan", DUMP, "--format", "json").stdout)["tasks"]
    found = {task["task"]: task["kernel"]["entries"] for task in tasks}
    for row in scanned_6_1.dump.recorded:
        assert found[f"{row.task:#x}"] == [f"{entry:#x}" for entry in row.entries]


def test_every_line_of_jsonl_is_a_document() -> None:
    """The first line is the dump, the last what came out, each between a task; all have the
    schema's name."""
    lines = [
        json.loads(line) for line in run("scan", DUMP, "--format", "jsonl").stdout.split("\n")[:-1]
    ]
    first, *tasks, last = lines
    assert len(tasks) == DUMP_6_1.count()
    assert first["release"] == "6.1.0-50-cloud-amd64" and "summary" in last
    jsonschema.validate({**first, "tasks": tasks, **last}, SCHEMA)
    assert {line["schema"] for line in lines} == {"drgn-reliable/1"}


def test_csv_has_a_row_a_task() -> None:
    """CSV opens with its columns' names; a task's reasons and functions are in one cell each."""
    rows = list(csv.DictReader(io.StringIO(run("scan", DUMP, "--format", "csv").stdout)))
    assert len(rows) == DUMP_6_1.count()
    spinning = next(row for row in rows if row["comm"] == "k_krp_spin")
    assert spinning["kernel"] == "unreliable" and spinning["reasons"] == "rethook-task-runnable"
    assert spinning["stack"].split()[0] == "__schedule"


def test_folded_stacks_count_every_task() -> None:
    """Folded stacks begin with the command and the outermost function and end with a count."""
    lines = run("scan", DUMP, "--format", "folded").stdout.splitlines()
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == DUMP_6_1.count()
    assert "kthreadd;ret_from_fork;kthreadd;schedule;__schedule;[reliable] 1" in lines


@pytest.mark.parametrize(
    ("options", "tasks", "status"),
    [
        (["--only", "unreliable"], DUMP_6_1.count("unreliable"), 1),
        (["--only", "running"], 2, 0),
        (["--only", "idle"], 2, 0),
        (["--only", "unreliable", "--only", "running"], DUMP_6_1.count("unreliable") + 2, 1),
        (["--only", "running", "--only", "kthread"], 2, 0),
        (["--reason", "rethook-task-runnable"], 2, 1),
        (["--reason", "running", "--only", "user"], 0, 0),
        (["--task", "1"], 1, 0),
        (["--task", "0"], 2, 0),
        (["--task", "1", "--task", f"{SPINNER.task:#x}"], 2, 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_filters(options: list[str], tasks: int, status: int) -> None:
    """Filters choose the tasks reported, and the exit status speaks of those."""
    done = run("scan", DUMP, "--format", "json", *options)
    assert len(json.loads(done.stdout)["tasks"]) == tasks
    assert done.returncode == status


def test_output_file_is_whole(tmp_path: Path) -> None:
    """--output writes the file and nothing else, and leaves no temporary file."""
    done = run("scan", DUMP, "--format", "json", "-o", "report.json", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), SCHEMA)


def test_a_failed_scan_leaves_an_earlier_report_alone(tmp_path: Path) -> None:
    """When nothing can be reported, the file that is there stays as it is."""
    report = tmp_path / "report.json"
    report.write_text("earlier")
    done = run("scan", DUMP, "--task", "4242", "-o", str(report))
    assert done.returncode == 2
    assert report.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [report]


# The other commands --------------------------------------------------------------------------


def test_info_says_what_kernel_it_is() -> None:
    """info names the release, the unwinder and where types and symbols come from."""
    facts = json.loads(run("info", DUMP, "--format", "json").stdout)
    assert facts["release"] == "6.1.0-50-cloud-amd64"
    assert facts["unwinder"] == "ORC 1 (before 6.3)"
    assert facts["types"] == "BTF in the dump"
    assert facts["symbols"] == "kallsyms in the dump"
    assert facts["livepatch"] is True and facts["reliable_stack_traces"] is True
    assert facts["frame_pointers"] is False and facts["stack_size"] == 16384
    assert "ORC 1 (before 6.3)" in run("info", DUMP).stdout


def test_explain_tells_a_walk() -> None:
    """explain prints the steps of a task with numbers, then its stack."""
    done = run("explain", DUMP, str(SPINNER.pid))
    assert (done.returncode, done.stderr) == (0, "")
    pid = SPINNER.pid
    assert done.stdout.startswith(f"PID {pid} (k_krp_spin), TGID {pid}, kthread, state R, CPU 1")
    assert "rule: cfa = sp, struct pt_regs at cfa   [ORC 1 (before 6.3)]" in done.stdout
    assert "refused after 5 frames for rethook-task-runnable" in done.stdout
    assert "end of the stack: STACK_END_MAGIC" in done.stdout


@pytest.mark.parametrize(
    ("tasks", "titles"),
    [
        (["1", "2"], ["PID 1 (init)", "PID 2 (kthreadd)"]),
        (["0"], ["PID 0 (swapper/0)", "PID 0 (swapper/1)"]),
        ([f"{SPINNER.task:#x}"], [f"PID {SPINNER.pid} (k_krp_spin)"]),
    ],
)
def test_explain_takes_tasks(tasks: list[str], titles: list[str]) -> None:
    """Several, by PID or address; PID 0 is the idle task of each CPU. A line is between them."""
    done = run("explain", DUMP, *tasks, "--words", "none")
    assert done.returncode == 0
    found = done.stdout.split("\nPID ")
    assert [title.partition(",")[0].removeprefix("PID ") for title in found] == [
        title.removeprefix("PID ") for title in titles
    ]


def test_explain_shows_the_words_that_are_asked_for() -> None:
    """All words of the used part of the stack, or none of them."""
    drawn = {
        words: run("explain", DUMP, "1", "--words", words).stdout.count("\n  0x")
        for words in ("none", "marked", "all")
    }
    assert drawn["none"] == 0 < drawn["marked"] < drawn["all"]


def test_explain_as_json() -> None:
    """One document that names its schema, with an element for each task."""
    document = json.loads(run("explain", DUMP, "1", "2", "--format", "json").stdout)
    assert document["schema"] == "drgn-reliable-explanation/1"
    assert [each["task"]["pid"] for each in document["explanations"]] == [1, 2]
    assert document["warnings"] == []


def test_reasons_lists_the_catalogue() -> None:
    """reasons prints a line for each row; in JSON all that is known of it."""
    table = run("reasons").stdout
    assert all(id in table for id in CATALOGUE)
    rows = json.loads(run("reasons", "--format", "json").stdout)
    assert [row["id"] for row in rows] == list(CATALOGUE)
    one = run("reasons", "fgraph-unrecovered").stdout
    assert one.startswith("fgraph-unrecovered (section 4.4)")
    section = json.loads(run("reasons", "--section", "4.5", "--format", "json").stdout)
    assert [row["id"] for row in section] == [
        "optprobe-slot",
        "entry-hides-caller",
        "optprobe-hides-function",
    ]


def test_help_teaches() -> None:
    """Each --help shows examples, and the scan's the exit status."""
    assert "examples:" in run("--help").stdout
    scan = run("scan", "--help").stdout
    assert "drgn-reliable scan vmcore --only unreliable -v" in scan
    assert "exit status:" in scan
    assert "drgn-reliable explain vmcore 4711" in run("explain", "--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_script(shell: str) -> None:
    """A completion script comes out for the shell."""
    done = run("--print-completion", shell)
    assert done.returncode == 0
    assert "drgn-reliable" in done.stdout and "--only" in done.stdout


# Bad input -----------------------------------------------------------------------------------

EM_X86_64, EM_RISCV, EM_PARISC = 62, 243, 15


def elf_core(machine: int, note: bytes = b"") -> bytes:
    """An ELF core with one note segment and no memory."""
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(note), len(note), 4)
    return header + segment + note


def vmcoreinfo(text: str) -> bytes:
    """A VMCOREINFO note."""
    name, data = b"VMCOREINFO\0\0", text.encode()
    return struct.pack("<III", 11, len(data), 0) + name + data + bytes(-len(data) % 4)


KERNEL = (
    "OSRELEASE=6.12.0\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffff81000000\n"
    "SYMBOL(swapper_pg_dir)=ffffffff82a10000\nKERNELOFFSET=0\nNUMBER(phys_base)=0\n"
    "NUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=16\nNUMBER(pgtable_l5_enabled)=0\n"
)

BAD_DUMPS = {
    "not a dump": (b"#!/bin/sh\necho hello\n", "not a dump, but a text file: name a vmcore"),
    "an empty file": (b"", "not a dump, but an empty file"),
    "an ELF core without VMCOREINFO": (elf_core(EM_X86_64), "VMCOREINFO"),
    "another architecture": (
        elf_core(EM_RISCV, vmcoreinfo(KERNEL)),
        "architecture riscv64 is not supported: its kernel has no reliable stack trace",
    ),
    "an architecture that drgn does not know": (
        elf_core(EM_PARISC, vmcoreinfo(KERNEL)),
        "architecture parisc64 is not supported: its kernel's walk",
    ),
    "no kallsyms, no debug information": (
        elf_core(EM_X86_64, vmcoreinfo(KERNEL)),
        "name the kernel's vmlinux with --symbols",
    ),
}


@pytest.mark.parametrize("name", BAD_DUMPS)
@pytest.mark.parametrize("command", ["scan", "info", "explain"])
def test_a_bad_dump_gets_one_line(tmp_path: Path, command: str, name: str) -> None:
    """A dump that cannot be used gets one line that says what is wrong, and exit status 3."""
    content, message = BAD_DUMPS[name]
    path = tmp_path / "dump"
    path.write_bytes(content)
    done = run(command, str(path), *(["1"] if command == "explain" else []))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("drgn-reliable: ")
    assert message in done.stderr


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_dump_gets_one_line_or_an_honest_report(tmp_path: Path, share: float) -> None:
    """A dump that ends early is refused in a line, or reported without a false "reliable"."""
    whole = Path(DUMP).read_bytes()
    path = tmp_path / "cut.kdump"
    path.write_bytes(whole[: int(len(whole) * share)])
    done = run("scan", str(path), "--format", "json")
    assert "Traceback" not in done.stderr
    assert done.returncode == 3
    if done.stdout:
        assert json.loads(done.stdout)["problems"]
    else:
        assert done.stderr.count("\n") == 1


USAGE = {
    "no such dump": (["scan", "absent"], 3, "absent: does not exist; name a vmcore"),
    "a directory": (["scan", "."], 3, ".: is not a file; name a vmcore"),
    "no such task": (["scan", DUMP, "--task", "4242"], 2, "no task has the PID 4242"),
    "no such address": (["scan", DUMP, "--task", "0x10"], 2, "no task has the address 0x10"),
    "explain: no such task": (["explain", DUMP, "4242"], 2, "no task has the PID 4242"),
    "explain: one such task": (["explain", DUMP, "1", "4242"], 2, "no task has the PID 4242"),
    "explain: no task": (["explain", DUMP], 2, "the following arguments are required: PID|ADDR"),
    "explain: no such words": (["explain", DUMP, "1", "--words", "x"], 2, "invalid choice: 'x'"),
    "a task that is no number": (["scan", DUMP, "--task", "init"], 2, "task 'init' is neither"),
    "no such reason": (["scan", DUMP, "--reason", "bad"], 2, "reason 'bad' is not in"),
    "reasons: no such reason": (["reasons", "bad"], 2, "reason 'bad' is not in the catalogue"),
    "verbose JSON": (["scan", DUMP, "--format", "json", "-v"], 2, "are for tables"),
    "no such symbols": (["scan", DUMP, "--symbols", "absent"], 2, "--symbols absent: no such"),
    "symbols of something else": (
        ["scan", DUMP, "--symbols", sys.executable],
        2,
        "not the debug information of the dumped kernel, whose build ID is bb603a9147d3",
    ),
    "symbols that are a text": (
        ["scan", DUMP, "--symbols", __file__],
        2,
        "test_cli.py: not a sound ELF file",
    ),
    "an output that cannot be": (
        ["scan", DUMP, "-o", "absent/report"],
        2,
        "--output absent/report: cannot be written (No such file or directory)",
    ),
    "a capsule that cannot be": (
        ["capsule", DUMP, "-o", "absent/capsule"],
        2,
        "--output absent/capsule: cannot be written",
    ),
    "no command": ([], 2, "the following arguments are required: COMMAND"),
    "no such filter": (["scan", DUMP, "--only", "bad"], 2, "invalid choice: 'bad'"),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_wrong_argument_gets_one_line(tmp_path: Path, name: str) -> None:
    """A wrong argument gets a line that names it, its value and what to do; nothing is written."""
    args, status, message = USAGE[name]
    done = run(*args, cwd=tmp_path)
    assert done.returncode == status
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# Debug files ---------------------------------------------------------------------------------

S390X = next(dump for dump in DUMPS if dump.name == "s390x-6.12.kdump")
FAULTED = S390X.find("uffd_pipe")
"""Faulted in a function without a frame of its own, whose caller is only in the link register."""
EM_S390 = 22


def debug_file(path: Path, kernel: Kernel, *, damaged: bool = False) -> str:
    """A debug file of the kernel of that dump, with the rule of that one function."""
    build_id = bytes.fromhex(kernel.vmcoreinfo["BUILD-ID"])
    start = kernel.symbols.required("raw_copy_from_user_key")
    linked = start - int(kernel.vmcoreinfo["KERNELOFFSET"], 16)
    rows = Frames(order=">").cie(ins("def_cfa", 15, 160), align=(2, -8), ra=14)
    frames = rows.fde(linked, 0x80).data
    note = struct.pack(">III", 4, len(build_id), 3) + b"GNU\0" + build_id
    unit = struct.pack(">IHIBB", 8, 4, 0, 8, 0)
    content = elf(
        EXEC, EM_S390,
        Part(".note.gnu.build-id", note, 7, ALLOC),
        Part(".debug_abbrev", b"\0"),
        Part(".debug_info", unit),
        Part(".debug_frame", b"\x40" + frames if damaged else frames),
        order=">",
    )  # fmt: skip
    path.write_bytes(content)
    return str(path)


def module_file(path: Path) -> str:
    """A module's debug file, which no dump here knows."""
    note = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes(20)
    path.write_bytes(elf(REL, EM_X86_64, Part(".note.gnu.build-id", note, 7, ALLOC)))
    return str(path)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """The kernel of the dump that these files are made for."""
    return Kernel(open_dump(str(S390X.path)))


def test_call_frame_information_proves_what_the_kernel_refuses(
    kernel: Kernel, tmp_path: Path
) -> None:
    """With the function's rule the link register's caller is found; without, nothing is proven."""
    wanted = [str(S390X.path), "--task", str(FAULTED.pid), "--format", "json"]
    (before,) = json.loads(run("scan", *wanted).stdout)["tasks"]
    assert (before["kernel"]["verdict"], before["proof"]["verdict"]) == ("unreliable", "undecided")
    file = debug_file(tmp_path / "vmlinux", kernel)
    done = run("scan", *wanted, "--symbols", file)
    (after,) = json.loads(done.stdout)["tasks"]
    assert (after["kernel"], after["proof"]["verdict"]) == (before["kernel"], "proven")
    names = [frame["symbol"] for frame in after["frames"]]
    assert names[8:11] == ["raw_copy_from_user_key", "_copy_from_iter", "copy_page_from_iter"]
    assert after["frames"][9]["found_by"] == "dwarf cfi, link register"
    assert "_copy_from_iter" not in [frame["symbol"] for frame in before["frames"]]


def test_explain_shows_call_frame_information_with_numbers(kernel: Kernel, tmp_path: Path) -> None:
    """The rule that was followed, its file, and the chain that it is held against."""
    file = debug_file(tmp_path / "vmlinux", kernel)
    done = run("explain", str(S390X.path), str(FAULTED.pid), "--symbols", file)
    text = " ".join(done.stdout.split())
    assert f"rule: cfa = r15 + 160, pc = r14 [.debug_frame of {file}]" in text
    assert "also: sp = *(sp + 152), pc = *(*(sp + 152) + 136) [back chain]" in text


@pytest.mark.parametrize("command", ["scan", "explain", "info"])
@pytest.mark.parametrize("form", ["table", "json"])
def test_a_damaged_debug_file_is_a_warning(
    kernel: Kernel, tmp_path: Path, command: str, form: str
) -> None:
    """It is named; the verdicts stand without it, and so does the exit status."""
    file = debug_file(tmp_path / "vmlinux", kernel, damaged=True)
    task = {"scan": ["--task", str(FAULTED.pid)], "explain": [str(FAULTED.pid)], "info": []}
    done = run(command, str(S390X.path), *task[command], "--symbols", file, "--format", form)
    assert done.returncode == (1 if command == "scan" else 0)
    assert "Traceback" not in done.stderr
    assert file in (done.stdout if form == "table" or command == "info" else done.stderr)
    if form == "json":
        document = json.loads(done.stdout)
        told = document["preflight"] if command == "info" else document["warnings"]
        assert any(".debug_frame" in line and file in line for line in told)
        assert not document.get("problems")


def test_a_module_file_that_belongs_to_nothing_gets_one_line(tmp_path: Path) -> None:
    """Its build ID, and what it is not."""
    file = module_file(tmp_path / "some.ko")
    done = run("scan", DUMP, "--task", "1", "--symbols", file)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"--symbols {file}: its build ID, {bytes(20).hex()}, is neither" in done.stderr


@pytest.mark.parametrize(
    "command", [f'scan "{DUMP}" --format json', "--print-completion bash", "-h"]
)
def test_a_reader_that_goes_away_is_no_error(command: str) -> None:
    """A closed pipe ends the output quietly."""
    line = f'"{sys.executable}" -m drgn_reliable {command} | head -c 10'
    environment = {**os.environ, "PYTHONPATH": str(VMCORES.parent)}
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert (done.stderr, done.returncode) == ("", 0)
