# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmlab's scenarios, the archives it boots, QEMU's command lines, and verdicts read back."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from contrib.vmlab import lab, oracle, scenario, verdicts
from contrib.vmlab.build import Kernel
from contrib.vmlab.guest import HEADER, MAGIC, READY
from contrib.vmlab.initramfs import Initramfs
from contrib.vmlab.machines import MACHINES
from contrib.vmlab.scenario import ScenarioError

from .guests import (
    HEADER_AT,
    ROWS,
    Pages,
    elf_core,
    oracle_pages,
    read_newc,
)

# Scenarios --------------------------------------------------------------------------------------

BASE = """
about: the base
architecture: x86_64
suites: [old, new]
kernel: 6.1.0-*-amd64
machine: {memory: 1G, cmdline: quiet}
workload: {graph: [one, two], crowd: 5}
"""


def load(directory: Path, **files: str) -> scenario.Scenario:
    """Write scenario files and load the first of them."""
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return scenario.load(str(directory / f"{next(iter(files))}.yaml"))


@pytest.mark.parametrize("name", scenario.names())
def test_every_scenario_there_is_loads(name: str) -> None:
    """Each file of the directory is a scenario of that name, about something, from somewhere."""
    found = scenario.load(name)
    assert found.name == name
    assert found.about and "\n" not in found.about
    assert found.suites and found.kernel
    assert re.fullmatch(r"\d+[MG]", found.machine.memory)


def test_there_are_scenarios_of_all_ways_and_of_hurt_stacks() -> None:
    """The directory is found, and the names in it say what is in the files."""
    found = {name: scenario.load(name) for name in scenario.names()}
    assert {s.dump.how for s in found.values()} == {"qmp", "kdump", "live", "glance"}
    for name, value in found.items():
        assert (value.dump.how == "kdump") == name.endswith("-crash"), name
        assert (value.dump.how in ("live", "glance")) == name.endswith(f"-{value.dump.how}"), name
        assert value.workload.hurt == name.endswith("-hurt"), name
        assert value.workload.livepatch == name.endswith("-livepatch"), name


def test_like_merges_section_by_section_over_any_number_of_levels(tmp_path: Path) -> None:
    """The nearest file that has a key says its value; a list replaces a list."""
    found = load(
        tmp_path,
        top="like: middle\nworkload: {graph: []}\ndump: {how: kdump}",
        middle="like: base\nabout: the middle\nmachine: {memory: 2G, cpus: 4}",
        base=BASE,
    )
    assert (found.name, found.about, found.suites) == ("top", "the middle", ("old", "new"))
    assert found.machine == scenario.Machine(memory="2G", cpus=4, cmdline="quiet")
    assert found.workload == scenario.Workload(graph=(), crowd=5)
    assert found.dump == scenario.Dump(how="kdump")


BAD_SCENARIOS = {
    "a key": ("memory: 1G", "memory is '1G', but the keys are about, architecture"),
    "a section's key": ("machine: {memry: 1G}", "machine.memry is '1G', but the keys are memory"),
    "a key that is a number": ("1: 2", "1 is 2, but the keys are"),
    "the name": ("name: other", "name is 'other', but the keys are"),
    "an architecture": ("architecture: vax", "architecture is 'vax', not one of x86_64"),
    "a way": ("dump: {how: magic}", "dump.how is 'magic', not one of qmp, kdump"),
    "a format": ("dump: {format: raw}", "dump.format is 'raw', not one of elf, kdump-zlib"),
    "a hold": ("dump: {hold: tight}", "dump.hold is 'tight', not one of stop, interrupt"),
    "a number of CPUs": ("machine: {cpus: two}", "machine.cpus is 'two', not a whole number"),
    "truth for a number": ("machine: {cpus: yes}", "machine.cpus is True, not a whole number"),
    "a number for truth": ("workload: {hurt: 1}", "workload.hurt is 1, not true or false"),
    "a number for text": ("kernel: 6.1", "kernel is 6.1, not text"),
    "memory without a unit": ("machine: {memory: 160}", "machine.memory is 160, not text"),
    "text for a list": ("suites: sid", "suites is 'sid', not a list of texts"),
    "numbers in a list": ("suites: [1]", "suites is [1], not a list of texts"),
    "a section that is none": ("machine: 3", "machine is 3, not a mapping"),
    "an empty section": ("dump:", "dump is None, not a mapping"),
    "nobody to be like": ("like: nobody", "like is 'nobody', but there is no nobody.yaml"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_SCENARIOS.values(), ids=BAD_SCENARIOS.keys())
@pytest.mark.parametrize("inherited", [False, True], ids=["itself", "inherited"])
def test_what_cannot_be_is_one_line_with_file_key_and_value(
    tmp_path: Path, text: str, message: str, inherited: bool
) -> None:
    """Whichever file of a chain says it is the one that is named."""
    text = text if "like" in text else f"like: base\n{text}"
    files = {"mine": "like: bad", "bad": text, "base": BASE}
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, **(files if inherited else {"bad": text, "base": BASE}))
    assert str(caught.value).startswith(f"bad.yaml: {message}")
    assert "\n" not in str(caught.value)


BAD_FILES = {
    "no mapping": ("- a list", "mine.yaml: not a mapping"),
    "nothing": ("", "mine.yaml: not a mapping"),
    "no YAML": ("about: [1,\nkernel: 2", "mine.yaml: .* line 2"),
    "control characters": ("about: \x07", "mine.yaml: .*special characters"),
    "without a kernel": (BASE.replace("kernel:", "#"), "mine.yaml: there is no kernel"),
    "with little": (
        "architecture: x86_64\nsuites: []",
        "mine.yaml: there is no about and no kernel",
    ),
    "like itself": ("like: mine", "mine.yaml: like is 'mine', a circle of mine"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_scenario_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """Whatever YAML makes of the file, the error is short and names it."""
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, mine=text)
    assert re.fullmatch(f"{message}.*", str(caught.value))


def test_a_circle_of_likes_is_refused(tmp_path: Path) -> None:
    """Three files that lead to each other are named, and loading ends."""
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, a="like: b", b="like: c", c="like: b")
    assert str(caught.value) == "c.yaml: like is 'b', a circle of b, c"


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    """A spelling mistake on the command line shows what could have been meant."""
    with pytest.raises(ScenarioError, match=r"^no scenario 'x86_64-9.9'; .*x86_64-6\.12, .*$"):
        scenario.load("x86_64-9.9")


# Initramfs --------------------------------------------------------------------------------------


def small_archive(*names: str) -> bytes:
    """An archive with these files and two devices."""
    image = Initramfs()
    for name in names:
        image.file(name, f"this is {name}\n")
    image.character_device("/dev/console", 5, 1)
    image.character_device("dev/null", 1, 3)
    output = io.BytesIO()
    image.write(output)
    return output.getvalue()


def test_an_archive_read_back(tmp_path: Path) -> None:
    """Names, types, permissions, devices and contents are what was put in, in that order."""
    (tmp_path / "host").write_bytes(b"\x7fELF" + bytes(9))
    image = Initramfs()
    image.directory("proc/")
    image.file("/bin/program", tmp_path / "host", 0o755)
    image.file("etc/text", "é\n")
    image.file("bin/empty", b"", 0o600)
    image.character_device("dev/null", 1, 3)
    image.directory("bin")
    output = io.BytesIO()
    image.write(output)
    table = (
        ("proc", "drwxr-xr-x", (0, 0), b""),
        ("bin", "drwxr-xr-x", (0, 0), b""),
        ("bin/program", "-rwxr-xr-x", (0, 0), b"\x7fELF" + bytes(9)),
        ("etc", "drwxr-xr-x", (0, 0), b""),
        ("etc/text", "-rw-r--r--", (0, 0), "é\n".encode()),
        ("bin/empty", "-rw-------", (0, 0), b""),
        ("dev", "drwxr-xr-x", (0, 0), b""),
        ("dev/null", "crw-------", (1, 3), b""),
    )
    found = read_newc(output.getvalue())
    assert tuple((e.name, e.kind, e.device, e.content) for e in found) == table


def test_directories_come_before_what_is_in_them_and_once() -> None:
    """The kernel makes no directory by itself: each is in the archive, above its files."""
    seen: set[str] = set()
    for entry in read_newc(small_archive("a/b/c/file", "a/b/other", "top", "a/z/file")):
        parent = entry.name.rpartition("/")[0]
        assert not parent or parent in seen, entry.name
        assert entry.name not in seen
        seen.add(entry.name)
    assert {"a", "a/b", "a/b/c", "a/z", "dev"} <= seen


def test_equal_input_gives_equal_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the time nor the name of the file it is written to is in it."""
    archives = []
    for now, name in enumerate(("one", "another"), 1_000_000_000):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        image = Initramfs()
        image.file("init", "#!/bin/sh\n", 0o755)
        with (tmp_path / name).open("wb") as output:
            image.write(output)
        archives.append((tmp_path / name).read_bytes())
    assert archives[0] == archives[1]


@pytest.mark.skipif(not shutil.which("cpio"), reason="needs cpio")
def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    """The program that everybody uses agrees with the reader of this test."""
    archive = small_archive("etc/one", "etc/deep/two")
    (tmp_path / "archive.gz").write_bytes(archive)
    plain = subprocess.run(["gzip", "-dc", tmp_path / "archive.gz"], capture_output=True)
    listing = subprocess.run(["cpio", "-t"], input=plain.stdout, capture_output=True)
    assert listing.returncode == 0
    assert listing.stdout.decode().splitlines() == [entry.name for entry in read_newc(archive)]
    one = subprocess.run(
        ["cpio", "-i", "--to-stdout", "etc/one"], input=plain.stdout, capture_output=True
    )
    assert one.stdout == b"this is etc/one\n"


# Machines and command lines ---------------------------------------------------------------------

SCENARIO = scenario.Scenario("mine", "a test", "x86_64", ("sid",), "6.1.0-*")


def command_line(root: Path, wanted: scenario.Scenario, kvm: bool = False) -> dict[str, str]:
    """The options of QEMU by name, of a kernel that is in the root."""
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-6.1.0-1").touch()
    options = lab.Options(root / "cache", kvm=kvm)
    kernel = Kernel("6.1.0-1", root)
    command = lab.qemu_command(wanted, MACHINES["x86_64"], kernel, root / "initrd", options)
    assert command[0] == "qemu-system-x86_64"
    assert all(isinstance(word, str) for word in command)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(command)
    pairs = itertools.pairwise(command)
    return {option[1:]: value for option, value in pairs if option.startswith("-")}


@pytest.mark.parametrize(("kvm", "accelerator"), [(False, "tcg,thread=single"), (True, "kvm")])
def test_emulation_unless_kvm_is_asked_for(tmp_path: Path, kvm: bool, accelerator: str) -> None:
    """Without the option no hardware is used; the rest of the command line is the same."""
    options = command_line(tmp_path, SCENARIO, kvm)
    assert options["accel"] == accelerator
    assert (options["machine"], options["cpu"]) == ("pc", "max,-cx16")


@pytest.mark.parametrize("name", MACHINES)
def test_every_architecture_can_be_compiled_for_and_booted(tmp_path: Path, name: str) -> None:
    """Its row is whole, its names agree, and there is a scenario of it."""
    machine = MACHINES[name]
    assert machine.qemu.startswith("qemu-system-") and machine.patience >= 1
    assert machine.cross.endswith("-linux-gnu-")
    compiler = f"gcc-{machine.cross.rstrip('-')}"
    assert machine.cross_packages in ((), (compiler, f"libc6-dev-{machine.debian}-cross"))
    assert bool(machine.cross_packages) == (machine.debian != lab.Options.host)
    note = "vmcoreinfo" in machine.arguments
    assert note == ("qemu_fw_cfg" in machine.modules), "the guest fills the note in"
    assert name in {scenario.load(each).architecture for each in scenario.names()}


def test_a_scenario_says_what_the_machine_is(tmp_path: Path) -> None:
    """Memory, CPUs, type and kernel arguments of the scenario are QEMU's."""
    machine = scenario.Machine("1G", 7, "q35", "Nehalem", "quiet preempt=full")
    options = command_line(tmp_path, replace(SCENARIO, machine=machine))
    table = {
        "m": "1G",
        "smp": "7",
        "machine": "q35",
        "cpu": "Nehalem",
        "append": "console=ttyS0 rdinit=/init panic=-1 quiet preempt=full",
        "kernel": str(tmp_path / "boot/vmlinuz-6.1.0-1"),
        "initrd": str(tmp_path / "initrd"),
        "serial": "stdio",
        "device": "vmcoreinfo",
    }
    assert {key: options[key] for key in table} == table


# Verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192])
def test_rows_are_read_page_by_page_in_the_header_s_order(size: int) -> None:
    """The pages lie anywhere, and the text ends where the header says, page boundary or not."""
    rows = ("row %d\n" * 2000 % tuple(range(2000)))[:size]
    assert oracle.read_rows(Pages(oracle_pages(rows.encode())).read, HEADER_AT) == rows


def test_a_large_header_goes_on_in_the_pages_behind_it() -> None:
    """Rows of more pages than one page has room to list; pages side by side are read at once."""
    rows = "row\n" * (600 * 1024)
    count = len(rows) // 4096
    addresses = [0x100000 + 4096 * (number + number // 200) for number in range(count)]
    header = HEADER.pack(MAGIC, READY, len(rows), 4096, count)
    memory = {0x1000: header + struct.pack(f"<{count}Q", *addresses)}
    memory |= {each: rows[4096 * i : 4096 * i + 4096].encode() for i, each in enumerate(addresses)}
    reads = []

    def read(address: int, size: int) -> bytes:
        reads.append(size)
        if address < 0x100000:
            return memory[0x1000][address - 0x1000 :][:size]
        return b"".join(memory[page] for page in range(address, address + size, 4096))

    assert oracle.read_rows(read, 0x1000) == rows
    assert sorted(reads[2:]) == [200 * 4096] * 3


def test_the_header_is_little_endian_on_every_machine() -> None:
    """The bytes as a guest writes them, whatever its byte order is."""
    numbers = (2, 3, 4096, 1, 0x5000)
    header = b"VMLAB-ORACLE-01\0" + b"".join(n.to_bytes(8, "little") for n in numbers)
    pages = {0x1000: header.ljust(4096, b"\0"), 0x5000: b"END".ljust(4096, b"\0")}
    assert oracle.read_rows(Pages(pages).read, 0x1000) == "END"
    module = (Path(lab.__file__).parent / "guest/module/vmlab_oracle.c").read_text()
    fields = re.search(r"struct vmlab_header \{(.*?)\};", module, re.DOTALL)
    assert fields and fields[1].count("__le64") == len(numbers)


def test_names_of_tasks_may_be_any_bytes() -> None:
    """What is not UTF-8 comes back as it was."""
    found = oracle.read_rows(Pages(oracle_pages(b"T \xff\xfe\n")).read, HEADER_AT)
    assert found.encode(errors="surrogateescape") == b"T \xff\xfe\n"


BAD_HEADERS = {
    "no magic": ({"magic": b"something else.."}, "magic b'something else..'"),
    "not ready": ({"state": 1}, "state 1"),
    "overflown": ({"state": 3}, "state 3"),
    "too long": ({"length": 8193}, "8193 bytes do not fit 2 pages"),
    "no pages": ({"page_count": 0}, "0 pages of 4096 bytes"),
    "no page size": ({"page_size": 0}, "2 pages of 0 bytes"),
    "more pages than any guest's": ({"page_count": 65537}, "65537 pages of 4096 bytes"),
    "any number of pages": ({"page_count": 1 << 60}, "1152921504606846976 pages"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_header_that_is_none_is_refused(changes: dict[str, int], message: str) -> None:
    """Nothing is read by the numbers of a header that cannot be right."""
    pages = oracle_pages(ROWS.encode(), **changes)  # type: ignore[arg-type]
    with pytest.raises(oracle.OracleError, match=re.escape(message)):
        oracle.read_rows(Pages(pages).read, HEADER_AT)


def test_rows_of_a_dump(tmp_path: Path) -> None:
    """They are read from a core file by physical address."""
    (tmp_path / "vmcore").write_bytes(elf_core(oracle_pages(ROWS.encode())))
    assert oracle.read_dump(tmp_path / "vmcore", HEADER_AT) == ROWS


ELVES: dict[str, tuple[int, Literal["<", ">"]]] = {
    "aarch64": (183, "<"),
    "s390x": (22, ">"),
    "ppc64le, as QEMU 7.2 marks it": (21, ">"),
    "ppc64le": (21, "<"),
}


@pytest.mark.parametrize(("machine", "order"), ELVES.values(), ids=ELVES.keys())
def test_rows_of_another_architecture_s_dump(
    tmp_path: Path, machine: int, order: Literal["<", ">"]
) -> None:
    """Of the file's byte order nothing is needed but its own headers."""
    core = elf_core(oracle_pages(ROWS.encode()), machine=machine, order=order)
    (tmp_path / "vmcore").write_bytes(core)
    assert oracle.read_dump(tmp_path / "vmcore", HEADER_AT) == ROWS


CUTS = {
    "in its rows": -4097,
    "in its header page": -3 * 4096,
    "in its segments": 150,
    "empty": 0,
}


@pytest.mark.parametrize("size", CUTS.values(), ids=CUTS.keys())
def test_a_truncated_dump_is_refused_in_one_line(tmp_path: Path, size: int) -> None:
    """What is wrong with a broken dump becomes an OracleError that names the file."""
    rows = ROWS.encode().ljust(4097, b"\n")
    (tmp_path / "vmcore").write_bytes(elf_core(oracle_pages(rows))[:size])
    with pytest.raises(oracle.OracleError, match=r"^vmcore: ") as caught:
        oracle.read_dump(tmp_path / "vmcore", HEADER_AT)
    assert "\n" not in str(caught.value)


COUNTS = {
    "one of each": (ROWS, {"reliable": 2, "unreliable": 1, "running": 1}),
    "other rows": ("D 1 2 3 4 5 T -22\nEND\n", {}),
    "an error that nobody knows": ("T task 1 1 1 1 0 1 -5  B  a\n", {"error -5": 1}),
    "a kernel without a reliable walk": ("T task 1 1 1 1 0 1 -38  B  a\n", {"unsupported": 1}),
    "a name like a row": ("T task 1 1 1 1 0 1 -22  B  a\rT b\n", {"unreliable": 1}),
    "a name of spaces and numbers": ("T task 1 1 1 1 0 1 -16  B  -22 4\n", {"running": 1}),
    "nothing": ("", {}),
}


@pytest.mark.parametrize(("rows", "counts"), COUNTS.values(), ids=COUNTS.keys())
def test_verdicts_are_counted(rows: str, counts: dict[str, int]) -> None:
    """An unknown errno is never taken for a reliable stack, nor a task's name for a verdict."""
    assert verdicts.counts(verdicts.parse(rows)) == counts
