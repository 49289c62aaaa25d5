# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which files of a fleet are dumps, what a manifest says of them, and when two are the same."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import socket
import sqlite3
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet import identity as identities
from drgn_reliable.fleet import sources
from drgn_reliable.fleet.identity import Identity, identify
from drgn_reliable.fleet.sources import Found, Place, Source, find, read_sources
from tests.containers import elf_core, flattened
from tests.dumps import VMCORES

# What is a dump ----------------------------------------------------------------------------------

KDUMP = (VMCORES / "livepatch" / "x86_64-6.12-user.kdump").read_bytes()[: 1 << 16]
CORE = elf_core(b"", {1: bytes(4096)})
BIG_ENDIAN_CORE = elf_core(b"", {1: bytes(4096)}, machine=22, order=">")
EXECUTABLE = CORE[:16] + struct.pack("<H", 2) + CORE[18:]
TEXT = b"This is a vmcore.\n" * 300
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bzip2": bz2.compress,
}


def tar(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


def zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, KDUMP)
    return out.getvalue()


def database(path: Path) -> bytes:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    return path.read_bytes()


DUMP = ""
"""Why a dump is passed over: it is not."""

CONTENTS = [
    ("notes.txt", KDUMP, DUMP),
    ("program", CORE, DUMP),
    ("archive.tar", BIG_ENDIAN_CORE, DUMP),
    ("fleet.yaml", flattened(KDUMP), DUMP),
    ("zeroes", bytes(5000), DUMP),
    ("short zeroes", b"\0", DUMP),
    ("lime", b"EMiL\1\0\0\0" + bytes(100), DUMP),
    ("migration", b"QEVM\0\0\0\3", DUMP),
    ("s390", b"\xa8\x19\x01\x73\x61\x8f\x23\xfd" + bytes(100), DUMP),
    ("cut.gz", gzip.compress(os.urandom(9000))[:500], DUMP),
    ("vmcore", TEXT, "a text file"),
    ("vmcore.elf", EXECUTABLE, "an ELF executable or object"),
    ("vmcore.empty", b"", "an empty file"),
    ("vmcore.tar", tar("vmcore"), "a tar archive"),
    ("vmcore.zip", zipped("vmcore"), "a zip archive"),
    ("vmcore.qcow2", b"QFI\xfb\0\0\0\3", "a qcow2 disk image"),
    ("vmcore.noise", b"\x81\x93" * 99, "in no format that is known (it begins with "
                                      "81 93 81 93 81 93 81 93)"),
    ("vmcore.elf.xz", lzma.compress(EXECUTABLE), "an ELF executable or object"),
    ("vmcore.empty.gz", gzip.compress(b""), "an empty file in gzip"),
]  # fmt: skip
CONTENTS += [
    (f"{what}.{packing}", pack(data), why and f"{why} in {packing}")
    for packing, pack in PACK.items()
    for what, data, why in (
        ("kdump", KDUMP, DUMP),
        ("core", CORE, DUMP),
        ("flattened", flattened(KDUMP), DUMP),
        ("zeroes", bytes(5000), DUMP),
        ("text", TEXT, "a text file"),
    )
]


@pytest.mark.parametrize(("name", "data", "why"), CONTENTS, ids=[row[0] for row in CONTENTS])
def test_content_decides_and_not_the_name(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    expected = Found([], [(str(path), why)]) if why else Found([str(path)], [])
    assert find(str(tmp_path)) == find(f"{tmp_path}/*") == expected
    assert find(str(path)) == Found([str(path)], []), "a file that is named itself always counts"


def test_a_database_is_no_dump(tmp_path: Path) -> None:
    database(tmp_path / "vmcore.db")
    found = find(str(tmp_path))
    assert found == Found([], [(str(tmp_path / "vmcore.db"), "an SQLite database")])


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its path would be too long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(os.mkfifo, "not a regular file", id="FIFO"),
        pytest.param(listening, "not a regular file", id="socket"),
        pytest.param(lambda p: p.symlink_to("/dev/zero"), "not a regular file", id="device"),
        pytest.param(dangling, "a link that leads nowhere", id="dangling link"),
        pytest.param(loop, "a link that leads nowhere", id="link loop"),
    ],
)
def test_what_is_no_file_is_passed_over(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    """Without waiting for anybody; named itself, it is refused."""
    path = tmp_path / "vmcore"
    make(path)
    assert find(str(tmp_path)) == Found([], [(str(path), why)])
    with pytest.raises(UsageError, match="is not a file"):
        find(str(path))


def test_a_file_that_may_not_be_read_is_a_dump_that_cannot_be_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, mode: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "vmcore").write_bytes(TEXT)
    monkeypatch.setattr(sources, "open", refuse, raising=False)
    assert find(str(tmp_path)) == Found([str(tmp_path / "vmcore")], [])


def test_a_directory_that_may_not_be_read_counts_as_a_dump_that_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "a" / "locked"
    locked.mkdir(parents=True)
    (tmp_path / "vmcore").write_bytes(KDUMP)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path == str(locked):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find(str(tmp_path)) == Found([str(tmp_path / "vmcore"), str(locked)], [])
    with pytest.raises(OSError):
        identify(str(locked))


# Where to look -----------------------------------------------------------------------------------


@pytest.fixture
def crash(tmp_path: Path) -> Path:
    """Directories of dumps, with links among them."""
    for name in ("b/vmcore", "a/vmcore", "a/deep/er/vmcore", "a/.hidden/vmcore", "c.txt"):
        path = tmp_path / "crash" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TEXT if path.suffix else KDUMP + name.encode())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "vmcore").write_bytes(KDUMP)
    (tmp_path / "crash" / "a" / "latest").symlink_to("vmcore")
    (tmp_path / "crash" / "b" / "outside").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "crash" / "b" / "again").symlink_to(tmp_path / "crash")
    return tmp_path / "crash"


def names(found: Found, base: Path) -> list[str]:
    return [os.path.relpath(path, base) for path in found.dumps]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a/latest", "a/.hidden/vmcore", "a/deep/er/vmcore", "b/vmcore"]),
        ("a", ["a/latest", "a/.hidden/vmcore", "a/deep/er/vmcore"]),
        ("*/vmcore", ["a/vmcore", "b/vmcore"]),
        ("[a]/vmcore", ["a/vmcore"]),
        ("?/vmcore", ["a/vmcore", "b/vmcore"]),
        ("a/**", ["a/latest", "a/.hidden/vmcore", "a/deep/er/vmcore"]),
        ("a/**/vmcore", ["a/deep/er/vmcore", "a/vmcore"]),
        ("a/l*", ["a/latest"]),
        ("b/outside", ["b/outside/vmcore"]),
    ],
)
def test_directories_and_patterns(crash: Path, pattern: str, expected: list[str]) -> None:
    """A file that has two names once; links to directories are followed where they are named."""
    assert names(find(str(crash / pattern)), crash) == expected


def test_a_pattern_ends_though_links_lead_in_circles(tmp_path: Path) -> None:
    """With two of them there are 2**40 paths until the system says stop."""
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "there").symlink_to(".")
    (tmp_path / "vmcore").write_bytes(KDUMP)
    seen = 0

    def counted(path: str) -> Iterator[os.DirEntry[str]]:
        nonlocal seen
        seen += 1
        assert seen < 2000, "it would go on for years"
        return scandir(path)

    scandir = os.scandir
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", counted)
        found = find(f"{tmp_path}/**/vmcore")
    assert names(found, tmp_path) == ["vmcore"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing", "missing: does not exist; name a vmcore, a directory, a pattern or a manifest"),
        ("missing*", "missing*: no file fits this pattern"),
        ("missing.yaml", "missing.yaml: does not exist"),
    ],
)
def test_where_there_is_nothing(tmp_path: Path, name: str, expected: str) -> None:
    (source,) = read_sources([str(tmp_path / name)])
    with pytest.raises(UsageError, match=re.escape(expected)):
        find(source.path)


def test_a_name_with_the_characters_of_a_pattern_is_a_name_first(tmp_path: Path) -> None:
    (tmp_path / "[1]").write_bytes(KDUMP)
    assert names(find(str(tmp_path / "[1]")), tmp_path) == ["[1]"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n"
    Path(os.fsdecode(path)).write_bytes(KDUMP)
    assert find(str(tmp_path)).dumps == [os.fsdecode(path)]


# Manifests ---------------------------------------------------------------------------------------

MANIFEST = """\
labels: {environment: production, rack: 7}
symbols: [debug/common]
dumps:
  - path: web
    host: web-1.example
    labels: {role: web, environment: staging}
    symbols: [debug/web, /srv/../debug/absolute]
    vmcoreinfo: info.txt
    worker: storage-3
  - path: ../db/*/vmcore
"""


def manifest(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "fleet.yaml"
    path.write_text(text)
    return str(path)


def test_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to it; what it says of all holds where an entry says nothing else."""
    given = manifest(tmp_path / "sets", MANIFEST)
    (tmp_path / "sets" / "debug").mkdir()
    for name in ("sets/debug/common", "sets/info.txt", "vmlinux"):
        (tmp_path / name).write_bytes(EXECUTABLE)
    monkeypatch.chdir(tmp_path)
    for path in (given, "sets/fleet.yaml", "sets/../sets/fleet.yaml"):
        assert read_sources([path, "plain"], ["vmlinux"]) == [
            Source(
                f"{tmp_path}/sets/web",
                "web-1.example",
                {"environment": "staging", "rack": "7", "role": "web"},
                (f"{tmp_path}/vmlinux", f"{tmp_path}/sets/debug/common",
                 f"{tmp_path}/sets/debug/web", "/debug/absolute"),
                f"{tmp_path}/sets/info.txt",
                "storage-3",
            ),
            Source(
                f"{tmp_path}/db/*/vmcore",
                None,
                {"environment": "production", "rack": "7"},
                (f"{tmp_path}/vmlinux", f"{tmp_path}/sets/debug/common"),
            ),
            Source(f"{tmp_path}/plain", symbols=(f"{tmp_path}/vmlinux",)),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", "web"),
        ("'7'", "7"),
        ("7", "7"),
        ("6.10", "6.10"),
        ("007", "007"),
        ("yes", "yes"),
        ("true", "true"),
        ("2026-11-21", "2026-11-21"),
    ],
)
def test_a_label_is_the_text_that_the_manifest_has(
    tmp_path: Path, text: str, expected: str
) -> None:
    given = manifest(tmp_path, f"dumps: [{{path: web, labels: {{release: {text}}}}}]")
    (source,) = read_sources([given])
    assert source.labels == {"release": expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("dump: []", "unknown field `dump`", id="unknown member"),
        pytest.param(
            "dumps: [{path: a}, {path: b, hosts: c}]", r"field `hosts` - at `\$.dumps\[1\]`",
            id="unknown member of an entry",
        ),
        pytest.param("labels: {a: b}", "missing required field `dumps`", id="no dumps"),
        pytest.param("dumps: []", "dumps", id="empty list of dumps"),
        pytest.param("", "object", id="empty"),
        pytest.param("dumps: [{host: a}]", r"missing required field `path` - at", id="no path"),
        pytest.param("dumps: a", r"Expected `array`, got `str` - at `\$.dumps`", id="text"),
        pytest.param("dumps: [a]", r"Expected `object`, got `str` - at `\$.dumps", id="entry"),
        pytest.param("dumps: [{path: [a]}]", r"`\$.dumps\[0\].path`", id="list of paths"),
        pytest.param(
            "dumps: [{path: a, labels: {a: [b]}}]", r"`\$.dumps\[0\].labels\[...\]`", id="label"
        ),
        pytest.param("dumps: [{path: a", "expected", id="no YAML"),
        pytest.param("dumps: [{path: 'a\t\x07'}]", "character", id="control characters"),
        pytest.param("dumps: !!python/object:os.system []", "not a manifest", id="Python"),
        pytest.param("[" * 5000, "not a manifest", id="deep nesting"),
        pytest.param(
            "dumps: [{path: a}]\nsymbols: [gone]", "symbols .*/gone: ", id="symbols"
        ),
        pytest.param(
            "dumps: [{path: a, symbols: [gone]}]", "symbols .*/gone: ", id="own symbols"
        ),
        pytest.param(
            "dumps: [{path: a, vmcoreinfo: gone}]", "vmcoreinfo .*/gone: ", id="vmcoreinfo"
        ),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused_in_a_line_that_names_it(
    tmp_path: Path, text: str, expected: str
) -> None:
    given = manifest(tmp_path, text)
    with pytest.raises(UsageError, match=expected) as error:
        read_sources([given])
    assert str(error.value).startswith(f"{given}: ") and "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "fleet.yml").write_bytes(b"dumps: [{path: \xff}]")
    with pytest.raises(UsageError, match=r"fleet\.yml: not a manifest"):
        read_sources([str(tmp_path / "fleet.yml")])


def test_debug_files_have_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--symbols .*/vmlinux: .*[Nn]o such file"):
        read_sources(["a"], [str(tmp_path / "vmlinux")])


def test_a_place_is_named_after_the_worker_that_reads_it() -> None:
    assert Place("/crash/1", Source("/crash")).name == "/crash/1"
    assert Place("/crash/1", Source("/crash", worker="one")).name == "one:/crash/1"


# Identity ----------------------------------------------------------------------------------------

WHOLE = 64 << 20


def test_a_dump_is_its_content_wherever_it_lies(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).write_bytes(KDUMP)
        os.utime(tmp_path / name, (number, number))
    (tmp_path / "link").symlink_to("one")
    digests = {identify(str(tmp_path / name)).digest for name in ("one", "two", "link")}
    assert len(digests) == 1


@pytest.mark.parametrize("at", [0, 1, len(KDUMP) // 2, len(KDUMP) - 1, None])
def test_any_byte_of_a_small_file_matters(tmp_path: Path, at: int | None) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(KDUMP)
    before = identify(str(path))
    data = bytearray(KDUMP if at is not None else KDUMP + b"\0")
    if at is not None:
        data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.stamp.modified,) * 2)
    assert identify(str(path), before).digest != before.digest


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "vmcore"
    with open(path, "wb") as file:
        file.truncate(WHOLE + 1)
    os.utime(path, (1, 1))
    return path


def changed(path: Path, at: int) -> str:
    """The digest with a byte changed, which is put back; its time is as it was."""
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"\1", at)
        os.utime(path, (1, 1))
        digest = identify(str(path)).digest
        os.pwrite(file.fileno(), b"\0", at)
    os.utime(path, (1, 1))
    return digest


def test_of_a_large_file_256_blocks_matter_and_its_size(large: Path) -> None:
    """From the first byte to the last; between them nothing is read."""
    before = identify(str(large)).digest
    step = (WHOLE + 1 - (64 << 10)) / 255
    places = [0, WHOLE, *(int(step * number) + 99 for number in (1, 2, 100, 127, 254))]
    digests = {changed(large, at) for at in places}
    assert len(digests) == len(places) and before not in digests
    assert changed(large, (64 << 10) + 1000) == before == identify(str(large)).digest
    os.truncate(large, WHOLE + 2)
    os.utime(large, (1, 1))
    assert identify(str(large)).digest != before


def test_a_large_file_that_was_touched_is_another_dump(large: Path) -> None:
    before = identify(str(large))
    os.utime(large, (2, 2))
    assert identify(str(large), before).digest != before.digest
    os.truncate(large, WHOLE)
    small = identify(str(large)).digest
    os.utime(large, (3, 3))
    assert identify(str(large)).digest == small, "up to 64 MiB only the content counts"


def test_a_file_is_not_read_again_while_its_times_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(KDUMP)
    known = identify(str(path))
    hashes = []
    blake2b = identities.hashlib.blake2b
    monkeypatch.setattr(
        identities.hashlib, "blake2b", lambda **size: hashes.append(1) or blake2b(**size)
    )
    assert identify(str(path), known) is known and not hashes
    os.utime(path, ns=(known.stamp.modified,) * 2)  # which changes the time that nobody can set
    assert identify(str(path), known).digest == known.digest and hashes
    for name in known.stamp._fields:
        stamp = known.stamp._replace(**{name: 0})
        assert identify(str(path), Identity("old", stamp)).digest == known.digest


def test_what_cannot_be_read_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        identify(str(tmp_path / "gone"))
    with pytest.raises(OSError):
        identify(str(tmp_path))
