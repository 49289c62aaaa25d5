# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``contrib/fuzz/readers`` does under atheris, with seeded random changes instead; that it can
find something; and what it has found."""

from __future__ import annotations

import importlib
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from contrib.fuzz.readers.catalogue import HARNESSES
from contrib.fuzz.readers.harness import Harness, run_once
from contrib.fuzz.readers.plain import inputs, minimised, search
from tests.test_btf import FUNC_PROTO, INT, PTR, SIGNED, STRUCT, with_int

RUNS = 300
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", HARNESSES)
def test_a_reader_keeps_its_contract(name: str) -> None:
    """It reads what was cut from real dumps, and returns or refuses what was made of that."""
    harness = HARNESSES[name]
    assert all(harness.run(data) for data in harness.seeds())
    assert search(harness, RUNS) == []


def test_the_inputs_are_the_same_each_time() -> None:
    harness = HARNESSES["notes"]
    assert list(inputs(harness, 50)) == list(inputs(harness, 50))
    assert list(inputs(harness, 50)) != list(inputs(harness, 50, seed=1))


# That it can find something ---------------------------------------------------------------------

READERS = [
    ("btf", "drgn_reliable.btf:Btf.members"),
    ("btftypes", "drgn_reliable.btftypes:BtfTypes._compound"),
    ("kallsyms", "drgn_reliable.kallsyms:_Pages.reach"),
    ("modulesymbols", "drgn_reliable.symbols:ModuleSymbols.at"),
    ("orc", "drgn_reliable.tables.orc:_Table.find"),
    ("sframe", "drgn_reliable.tables.sframe:SFrameSection._default"),
    ("cfi", "drgn_reliable.tables.cfaprogram:Run._new_cfa"),
    ("dwarfexpr", "drgn_reliable.tables.dwarfdata:Cursor.uleb"),
    ("cfifile", "drgn_reliable.tables.cfi:CfiSection._scan"),
    ("kdump", "drgn_reliable.files.kdump:KdumpFile._index"),
    ("elfcore", "drgn_reliable.files.elfcore:ElfCore._read_some"),
    ("flattened", "drgn_reliable.files.flattened:FlattenedSource.spans"),
    ("notes", "contrib.fuzz.readers.formats:drop_notes"),
    ("vmcoreinfo", "drgn_reliable.files.vmcoreinfo:_note_at"),
    ("pages", "contrib.fuzz.readers.formats:unpack_page"),
    ("packed", "drgn_reliable.files.packed:_Room.check"),
]


@pytest.mark.parametrize(("name", "broken"), READERS, ids=[row[0] for row in READERS])
def test_a_reader_that_breaks_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: str
) -> None:
    """Some function deep in each, replaced by one that raises what nobody has documented."""
    seeds = HARNESSES[name].seeds()
    module, _, path = broken.partition(":")

    def fail(*arguments: object, **more: object) -> None:
        raise IndexError("broken by the test")

    *owners, last = path.split(".")
    place = importlib.import_module(module)
    for owner in owners:
        place = getattr(place, owner)
    monkeypatch.setattr(place, last, fail)
    found = [run_once(HARNESSES[name], data) for data in seeds]
    assert any(each and each.what.startswith("IndexError") for each in found)


def test_every_reader_is_broken_once() -> None:
    assert [row[0] for row in READERS] == list(HARNESSES)


def _loops(data: bytes) -> bool:
    while data == b"loop":
        try:
            data = bytes(data)
        except Exception:
            continue
    return True


def _eats(data: bytes) -> bool:
    return bool(bytearray(8 << 30)) if data == b"eat" else True


def _refuses_x(data: bytes) -> bool:
    if b"X" in data:
        raise IndexError(data)
    return True


ENDS: dict[str, tuple[Callable[[bytes], bool], bytes, str]] = {
    "a loop": (_loops, b"loop", "TooLong"),
    "8 GiB": (_eats, b"eat", "MemoryError"),
    "an exception": (_refuses_x, b"..X..", "IndexError"),
}


@pytest.mark.parametrize("way", ENDS)
def test_each_kind_of_finding(way: str) -> None:
    """What ends otherwise than by returning is one, and has the bytes."""
    run, data, what = ENDS[way]
    harness = Harness("fake", "nothing", run, list)
    assert run_once(harness, b"sound") is None
    found = run_once(harness, data, seconds=0.2)
    assert found is not None and found.what == what and found.data == data


def test_a_finding_is_made_smaller() -> None:
    harness = Harness("fake", "nothing", _refuses_x, list)
    found = run_once(harness, b"." * 1000 + b"X" + b"-" * 777)
    assert found is not None
    assert minimised(harness, found).data == b"X"


def test_the_command_repeats_a_finding(tmp_path: Path) -> None:
    """With the status that says whether there is anything."""
    path = tmp_path / "finding"
    path.write_bytes(HARNESSES["notes"].seeds()[0])
    done = subprocess.run(
        [sys.executable, "-m", "contrib.fuzz.readers", "notes", "--file", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (0, f"notes: nothing wrong with {path}\n")


# What was found ---------------------------------------------------------------------------------


def an_impossible_parameter() -> bytes:
    """A member is a function, whose parameter is an integer of 4 GiB."""
    blob = with_int()
    wide = blob.add(INT, "wide", 0xFFFFFFFC, SIGNED | 32)
    function = blob.add(FUNC_PROTO, 0, 1, "parameter", wide, n=1)
    blob.add(STRUCT, "holder", 8, "member", function, 0, n=1)
    return blob.data()


def a_nameless_function() -> bytes:
    """A member is a function, whose parameter is a function without a name: drgn has no words."""
    blob = with_int()
    inner = blob.add(FUNC_PROTO, 0, 1)
    outer = blob.add(FUNC_PROTO, 0, 1, "", inner, n=1)
    blob.add(STRUCT, "holder", 8, "member", outer, 0, n=1)
    return blob.data()


def a_function_that_takes_itself() -> bytes:
    """A member is a function, whose parameter is a pointer to that function."""
    blob = with_int()
    function = blob.next_id
    blob.add(FUNC_PROTO, 0, 1, "itself", function + 1, n=1)
    blob.add(PTR, 0, function)
    blob.add(STRUCT, "holder", 8, "member", function, 0, n=1)
    return blob.data()


def headers_of_no_size() -> bytes:
    """An ELF file of 2^32 program headers (``PN_XNUM``) in 128 bytes: each is the file's start."""
    fields = (4, 62, 1, 0, 0, 64, 0, 64, 0, 0xFFFF, 64, 1, 0)
    head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", *fields)
    return head + struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, (1 << 32) - 1, 0, 0)


FOUND: list[tuple[str, str, Callable[[], bytes]]] = [
    ("packed", "zstd's signature, and no frame", lambda: b"\x28\xb5\x2f\xfd\0"),
    ("elfcore", "program headers of no size", headers_of_no_size),
    ("btftypes", "a parameter that cannot be", an_impossible_parameter),
    ("btftypes", "a function without a name", a_nameless_function),
    ("btftypes", "a function that takes itself", a_function_that_takes_itself),
]


@pytest.mark.parametrize(
    ("name", "make"), [(row[0], row[2]) for row in FOUND], ids=[row[1] for row in FOUND]
)
def test_what_was_found_stays_mended(name: str, make: Callable[[], bytes]) -> None:
    """Each was a traceback, or took seconds."""
    finding = run_once(HARNESSES[name], make(), seconds=1)
    assert finding is None, finding.trace
