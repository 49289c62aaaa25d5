# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of vmlab share: fake programs, a guest's memory, archives read back."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import struct
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from contrib.vmlab.packages import Apt

from . import containers

MAGIC = b"VMLAB-ORACLE-01\0"
READY = 2
PAGE_SIZE = 4096
HEADER_AT = 0x1000
ROWS = (
    "T task ffff888003a50000 1 1 93 0 1 2 ffffffff81000100,ffffffff81000200, B  init\n"
    "T task ffff888003a51000 7 7 12 0 0 -22  B ffffffff81000100, hq\n"
    "T task ffff888003a52000 9 9 12 1 0 -16  B  migration/0\n"
    "T idle ffff888003a53000 0 0 0 0 0 0  B  swapper/1\n"
    "END\n"
)


class Pages:
    """A guest's physical memory: pages by their address."""

    def __init__(self, pages: dict[int, bytes]) -> None:
        self.pages = pages

    def read(self, address: int, size: int) -> bytes:
        """One read within one page, as the oracle does them."""
        start = address % PAGE_SIZE
        data = self.pages[address - start][start : start + size]
        assert len(data) == size, "a read beyond the page"
        return data


def oracle_pages(
    rows: bytes,
    *,
    addresses: Sequence[int] = (0x5000, 0x3000),
    magic: bytes = MAGIC,
    state: int = READY,
    length: int | None = None,
    page_size: int = PAGE_SIZE,
    page_count: int | None = None,
) -> dict[int, bytes]:
    """The oracle's header at HEADER_AT, and its rows in the pages at those addresses."""
    length = len(rows) if length is None else length
    count = len(addresses) if page_count is None else page_count
    header = struct.pack("<16sQQQQ", magic, state, length, page_size, count)
    header += struct.pack(f"<{len(addresses)}Q", *addresses)
    pages = {HEADER_AT: header.ljust(PAGE_SIZE, b"\0")}
    for number, address in enumerate(addresses):
        part = rows[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
        pages[address] = part.ljust(PAGE_SIZE, b"\0")
    return pages


def elf_core(
    pages: dict[int, bytes], notes: bytes = b"", machine: int = 62, order: Literal["<", ">"] = "<"
) -> bytes:
    """A dump of a machine, of x86_64 if nothing is said, with these pages of memory."""
    numbered = {address // PAGE_SIZE: page for address, page in pages.items()}
    return containers.elf_core(notes, numbered, machine, order)


class Entry(NamedTuple):
    """A member of a cpio archive."""

    name: str
    mode: int
    device: tuple[int, int]
    content: bytes

    @property
    def kind(self) -> str:
        """Type and permissions as ls prints them."""
        return stat.filemode(self.mode)


def read_newc(archive: bytes) -> list[Entry]:
    """Read a gzipped "newc" archive by cpio's description of the format."""
    data = gzip.decompress(archive)
    entries: list[Entry] = []
    inodes: set[int] = set()
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        digits = data[at + 6 : at + 110]
        assert re.fullmatch(b"[0-9A-Fa-f]{104}", digits)
        fields = [int(digits[8 * i : 8 * i + 8], 16) for i in range(13)]
        inode, mode, _, _, links, _, size, _, _, major, minor, name_size, _ = fields
        name = data[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0"
        start = at + (110 + name_size + 3) // 4 * 4
        at = start + (size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return entries
        assert links == 1
        assert inode not in inodes, "the kernel takes equal inodes for hard links"
        inodes.add(inode)
        content = data[start : start + size]
        entries.append(Entry(name[:-1].decode(), mode, (major, minor), content))


def put_program(monkeypatch: pytest.MonkeyPatch, directory: Path, name: str, script: str) -> None:
    """Put an executable script first on PATH."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(script)
    (directory / name).chmod(0o755)
    path = os.environ["PATH"]
    if path.partition(os.pathsep)[0] != str(directory):
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{path}")


def is_alive(pid: int) -> bool:
    """Whether there is such a process, a zombie too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Programs of a distribution

APT = f"""#!{sys.executable} -IS
import pathlib, sys
home = pathlib.Path(__file__).parent
words = sys.argv[1:]
with (home / "log").open("a") as log:
    print(pathlib.Path(sys.argv[0]).name, *words, file=log)
own = [word.partition("=")[2] for word in words if word.startswith("APT::Architecture=")]
while words[:1] == ["-o"]:
    del words[:2]
if (home / "fails").exists():
    print("Reading package lists...")
    sys.exit((home / "fails").read_text())
if words[0] == "indextargets":
    print((home / "targets").read_text(), end="")
elif words[0] == "pkgnames":
    names = (home / "names").read_text().split()
    print(*(name for name in names if name.startswith(words[1])), sep="\\n")
elif words[0] == "install":
    answer = home / f"installs-{{own[0]}}"
    print((answer if answer.exists() else home / "installs").read_text(), end="")
elif words[0] == "download":
    for word in words[2:]:
        name, version = word.split("=")
        source = home / "tar" / name
        if source.exists():
            version = version.replace(":", "%3a")
            file = pathlib.Path(f"{{name}}_{{version}}_{{own[0]}}.deb")
            file.write_bytes(source.read_bytes())
"""
DPKG = """#!/bin/sh
[ "$1" = --fsys-tarfile ] || exit 3
grep -q broken "$2" && { echo "dpkg-deb: error: '$2' is not a Debian archive" >&2; exit 2; }
cat "$2"
grep -q late "$2" && { echo "dpkg-deb: error: '$2' ends too late" >&2; exit 2; }
exit 0
"""


class Fakes:
    """Fake apt-get, apt-cache and dpkg-deb, and what they answer."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        for name, script in (("apt-get", APT), ("apt-cache", APT), ("dpkg-deb", DPKG)):
            put_program(monkeypatch, home, name, script)
        (home / "tar").mkdir()

    def answer(self, what: str, text: str) -> None:
        """What apt prints when it is asked for "targets", "names" or "installs".

        "installs-ARCHITECTURE" is for one architecture's apt alone.
        """
        (self.home / what).write_text(text)

    def package(self, name: str, files: dict[str, bytes]) -> None:
        """What is in a package: contents by path."""
        with tarfile.open(self.home / "tar" / name, "w") as archive:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                info.mode = 0o755
                archive.addfile(info, io.BytesIO(content))

    def calls(self) -> list[str]:
        """The commands that were given, without options."""
        log = self.home / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        found = []
        for line in lines:
            words = line.split(" ")
            while words[1:2] == ["-o"]:
                del words[1:3]
            found.append(" ".join(words))
        return found


def make_apt(
    tmp_path: Path,
    *suites: str,
    mirror: str | None = None,
    say: Callable[[str], None] = print,
    architecture: str = "amd64",
) -> Apt:
    """A private apt."""
    return Apt(tmp_path / "cache", architecture, suites or ("sid",), say, mirror)


def fetchable(tmp_path: Path, fakes: Fakes, *names: str) -> Apt:
    """An apt that can download these packages."""
    for name in names:
        fakes.package(name, {"etc/file": name.encode()})
    apt = make_apt(tmp_path, mirror="http://mirror.invalid/debian")
    apt.archives.mkdir(parents=True)
    return apt
