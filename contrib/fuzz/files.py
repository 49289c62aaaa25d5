# SPDX-License-Identifier: LGPL-2.1-or-later
"""Damage to a dump's file and to its page tables: what needs the dump opened anew."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path
from random import Random

import drgn

from contrib.fuzz.damage import Damage, Kind, Maker, Scope
from contrib.fuzz.specimen import Specimen
from drgn_reliable import open_dump
from drgn_reliable.files.kdump import MAIN_HEADER, PAGE_DESCRIPTOR, SUB_HEADER, KdumpFile
from drgn_reliable.opening import inspect_dump, physical_program
from drgn_reliable.platforms import machine_of

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1, 1 << 63)
MAIN, SUB = struct.calcsize("<" + MAIN_HEADER), struct.calcsize("<" + SUB_HEADER)
DESCRIPTOR = struct.calcsize("<" + PAGE_DESCRIPTOR)
TRUNCATE = "cut"


class Parts:
    """Where the parts of a kdump-compressed file are."""

    def __init__(self, path: str) -> None:
        file = inspect_dump(path).file
        assert isinstance(file, KdumpFile)
        header = file.header
        page = header.page_size
        self.file = file
        self.order = "<" if header.little_endian else ">"
        self.size = Path(path).stat().st_size
        self.page = page
        self.notes = header.notes_offset, header.notes_offset + header.notes_size
        self.vmcoreinfo = (
            header.vmcoreinfo_offset,
            header.vmcoreinfo_offset + header.vmcoreinfo_size,
        )
        bitmaps = (1 + header.sub_header_blocks) * page
        self.bitmaps = bitmaps, bitmaps + header.bitmap_blocks * page
        self.pages = file.memory_size // page
        self.descriptors = self.bitmaps[1], self.bitmaps[1] + self.pages * DESCRIPTOR


_parts: dict[str, Parts] = {}


def parts(s: Specimen) -> Parts:
    if s.path not in _parts:
        _parts[s.path] = Parts(s.path)
    return _parts[s.path]


def _bytes(what: str, span: tuple[int, int], rng: Random) -> Damage:
    """Bytes or whole fields within a part."""
    low, high = span
    words = {}
    for _ in range(rng.choice([1, 1, 2, 8])):
        size = rng.choice([1, 4, 8])
        at = rng.randrange(low, max(low + 1, high - size)) // size * size
        value = rng.choice([*EXTREMES, rng.getrandbits(8 * size)]) & (1 << 8 * size) - 1
        words[max(at, low)] = value.to_bytes(size, rng.choice(["little", "big"]))
    told = ", ".join(f"{at:#x} = {data.hex()}" for at, data in words.items())
    return Damage(f"{what} {told}", words)


def _header(s: Specimen, rng: Random) -> Damage:
    return _bytes("header", (0, MAIN), rng)


def _sub_header(s: Specimen, rng: Random) -> Damage:
    page = parts(s).page
    return _bytes("sub header", (page, page + SUB), rng)


def _notes(s: Specimen, rng: Random) -> Damage:
    return _bytes("notes", parts(s).notes, rng)


def _vmcoreinfo(s: Specimen, rng: Random) -> Damage | None:
    """A line of VMCOREINFO: a character, its value, the line itself."""
    low, high = parts(s).vmcoreinfo
    if high <= low:
        return None
    text = parts(s).file.source.read(low, high - low)
    lines = [at for at in range(len(text)) if text[at - 1 : at] in (b"\n", b"")]
    start = rng.choice(lines)
    line = text[start:].split(b"\n")[0]
    value = start + line.find(b"=") + 1
    end = start + len(line)
    how = rng.choice(["byte", "digits", "blank", "zero"])
    if how == "byte":
        words = {low + rng.randrange(start, max(end, start + 1)): bytes([rng.randrange(256)])}
    elif how == "digits" and end > value:
        words = {low + value: bytes(rng.choice(b"0123456789abcdefx- ") for _ in range(end - value))}
    elif how == "zero" and end > value:
        words = {low + value: b"0" * (end - value)}
    else:
        words = {low + start: b" " * len(line)}
    return Damage(f"VMCOREINFO {line[:40]!r} {how} {next(iter(words.values()))!r}", words)


def _bitmap(s: Specimen, rng: Random) -> Damage:
    return _bytes("bitmap", parts(s).bitmaps, rng)


def _descriptor(s: Specimen, rng: Random) -> Damage:
    """A page's place in the file, its size or how it is packed."""
    p = parts(s)
    words = {}
    for _ in range(rng.choice([1, 4, 32])):
        index = rng.randrange(p.pages)
        field, size = rng.choice([(0, 8), (8, 4), (12, 4), (16, 8)])
        value = rng.choice([*EXTREMES, rng.randrange(p.size), rng.getrandbits(12)])
        order = "little" if p.order == "<" else "big"
        data = (value & (1 << 8 * size) - 1).to_bytes(size, order)  # type: ignore[arg-type]
        words[p.descriptors[0] + index * DESCRIPTOR + field] = data
    return Damage(f"descriptors {len(words)}, first at {min(words):#x}", words)


def _page_data(s: Specimen, rng: Random) -> Damage:
    """Bytes of packed pages."""
    p = parts(s)
    words = {
        rng.randrange(p.descriptors[1], p.size): bytes([rng.randrange(256)])
        for _ in range(rng.choice([1, 8, 64, 512]))
    }
    return Damage(f"page data {len(words)}, first at {min(words):#x}", words)


def _cut(s: Specimen, rng: Random) -> Damage:
    """The file ends at a boundary of its parts, beside one, or anywhere."""
    p = parts(s)
    edges = [0, 8, MAIN, p.page, p.page + SUB, *p.notes, *p.vmcoreinfo, *p.bitmaps]
    edges += [*p.descriptors, p.size, sum(p.bitmaps) // 2, sum(p.descriptors) // 2]
    edge = rng.choice(edges) + rng.choice([0, 0, -1, 1, -8, 8, 100])
    anywhere = rng.randrange(p.size)
    in_data = rng.randrange(p.descriptors[1], p.size)
    size = max(0, min(p.size - 1, rng.choice([edge, edge, anywhere, in_data, in_data])))
    return Damage(f"{TRUNCATE} at {size} of {p.size}", holes=[size])


# Page tables -----------------------------------------------------------------------------

_entries: dict[str, list[int]] = {}


def _physical(s: Specimen, words: dict[int, bytes], seen: set[int] | None = None) -> drgn.Program:
    """The dump's memory by the package's own reader, with other bytes at physical addresses."""
    file = parts(s).file
    changed = sorted(words.items())

    def read(address: int, count: int) -> bytes:
        data = file.read_physical(address, count)
        if seen is not None and count == 8:
            seen.add(address)
        for at, new in changed:
            if at < address + count and address < at + len(new):
                spread = bytearray(data)
                for i, byte in enumerate(new, at - address):
                    if 0 <= i < count:
                        spread[i] = byte
                data = bytes(spread)
        return data

    vmcoreinfo: bytes = s.machine.types["VMCOREINFO"].string_()
    platform = s.machine.types.platform
    assert platform is not None
    machine = "loongarch64" if s.architecture == "loongarch64" else machine_of(platform)
    return physical_program(machine, read, vmcoreinfo.decode())


def _page_tables(s: Specimen) -> list[int]:
    """Physical addresses of the entries by which the kernel's memory is found: words that are read
    alone when other memory is asked for."""
    if s.path not in _entries:
        seen: set[int] = set()
        prog = _physical(s, {}, seen)
        for patient in list(s.patients.values())[::4]:
            for address in (patient.address, patient.stack + s.machine.thread_size - 16):
                with suppress(drgn.FaultError):
                    prog.read(address, 3)
        for name in ("_stext", "__start_BTF", "init_task", "modules", "__start_orc_unwind"):
            with suppress(drgn.FaultError):
                prog.read(s.machine.symbol(name) or 0, 3)
        _entries[s.path] = sorted(seen)
    return _entries[s.path]


def _page_table(s: Specimen, rng: Random) -> Damage | None:
    """Entries of page tables: nothing, elsewhere, another table's, themselves."""
    entries = _page_tables(s)
    if not entries:
        return None
    words = {}
    for _ in range(rng.choice([1, 1, 1, 3])):
        at = rng.choice(entries)
        old, another = (
            struct.unpack(parts(s).order + "Q", parts(s).file.read_physical(place, 8))[0]
            for place in (at, rng.choice(entries))
        )
        value = rng.choice([0, old ^ 1 << rng.randrange(64), another, rng.getrandbits(64)])
        value = rng.choice([value, old + (rng.choice([-1, 1, 16]) << 12), at | old & 0xFFF])
        words[at] = struct.pack(parts(s).order + "Q", value & (1 << 64) - 1)
    told = ", ".join(f"{at:#x} = {data.hex()}" for at, data in words.items())
    return Damage(f"page table {told}", words)


def program(s: Specimen, kind: Kind, damage: Damage) -> drgn.Program:
    """A program of the damaged file, which is kept in memory alone, or page tables.

    :raises drgn_reliable.ReliableError: as ``open_dump()`` does.
    """
    if kind.scope is Scope.PAGES:
        return _physical(s, damage.words)
    data = bytearray(Path(s.path).read_bytes())
    for at, new in damage.words.items():
        data[at : at + len(new)] = new
    if damage.what.startswith(TRUNCATE):
        del data[damage.holes[0] :]
    with os.fdopen(os.memfd_create("damaged"), "wb") as file:
        file.write(data)
        file.flush()
        return open_dump(f"/proc/self/fd/{file.fileno()}", search=False)


def same_metadata(s: Specimen, prog: drgn.Program) -> bool:
    """Whether a program has the types, the symbols and VMCOREINFO that the sound dump has."""
    m = s.machine
    spans = [("__start_BTF", "__stop_BTF"), ("kallsyms_names", "kallsyms_token_index")]
    try:
        if prog["VMCOREINFO"].string_() != m.types["VMCOREINFO"].string_():
            return False
        for start, end in spans:
            low, high = m.symbol(start), m.symbol(end)
            if low is None or high is None or high < low:
                return False
            if prog.read(low, high - low) != s.overlay.sound(low, high - low):
                return False
    except (drgn.FaultError, LookupError):
        return False
    return True


def _kind(name: str, weight: int, make: Maker, scope: Scope = Scope.FILE) -> Kind:
    return Kind(name, scope, weight, make)


KINDS = (
    _kind("page-table", 3, _page_table, Scope.PAGES),
    _kind("file-header", 2, _header),
    _kind("file-sub-header", 2, _sub_header),
    _kind("file-notes", 2, _notes),
    _kind("file-vmcoreinfo", 2, _vmcoreinfo),
    _kind("file-bitmap", 2, _bitmap),
    _kind("file-descriptor", 2, _descriptor),
    _kind("file-page", 2, _page_data),
    _kind("file-cut", 2, _cut),
)
"""Damage to the file, and to page tables."""
