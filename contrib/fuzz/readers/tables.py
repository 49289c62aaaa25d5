# SPDX-License-Identifier: LGPL-2.1-or-later
"""Harnesses for unwind metadata: ORC, SFrame, call frame information, DWARF expressions."""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, cast

from drgn import Architecture, FaultError, Platform, PlatformFlags, Program
from elftools.elf.elffile import ELFFile

from contrib.fuzz.readers.harness import Contradiction, Harness
from contrib.fuzz.readers.mutations import mutated, with_head
from contrib.fuzz.readers.specimens import kernel_of, unpacked
from drgn_reliable.tables.cfi import CfiSection
from drgn_reliable.tables.cfifile import cfi_sections
from drgn_reliable.tables.dwarfdata import Cursor
from drgn_reliable.tables.dwarfexpr import decode
from drgn_reliable.tables.framerule import (
    Abi,
    BadRule,
    Expression,
    FrameRule,
    Provider,
    Unknown,
    caller_registers,
)
from drgn_reliable.tables.loadedsframe import module_sframe
from drgn_reliable.tables.orc import FORMATS, OrcTables
from drgn_reliable.tables.sframe import SFrameSection

__all__ = ("HARNESSES",)

_X86_64 = Platform(Architecture.X86_64, PlatformFlags.IS_64_BIT | PlatformFlags.IS_LITTLE_ENDIAN)
_ABI = Abi({6: "bp", 7: "sp", 16: "ip"}, sp=7, fp=6, ra=16, preserved=(3, 6, 12, 13, 14, 15))
_WORDS = {number: 0x1000 * number for number in range(33)}
_FUNCTIONS = 24
"""Of one section, whose rules are asked for."""


def _ask(provider: Provider, functions: Iterable[tuple[int, int]]) -> bool:
    """Ask for the rules at the start, in the middle, at and behind the end of functions, twice, and
    apply them; gives whether there are any."""
    read = False
    for start, end in functions:
        for address in (start, (start + end) // 2, end - 1, end):
            answers = [_rule_at(provider, address) for _ in range(2)]
            if answers[0] != answers[1]:
                raise Contradiction(f"two answers for {address:#x}: {answers}")
            if isinstance(answers[0], FrameRule):
                _apply(answers[0])
                read = True
    return read


def _rule_at(provider: Provider, address: int) -> FrameRule | str | None:
    try:
        return provider.find(address)
    except BadRule as error:
        return str(error)


def _apply(rule: FrameRule) -> None:
    rule.formula(_ABI.names)
    if rule.outermost:
        return
    with suppress(Unknown):
        found = caller_registers(rule, _ABI, _WORDS, lambda at: at >> 3 if at & 7 == 0 else None)
        if not 0 <= found.pc < 1 << 64 or not 0 <= found.sp < 1 << 64:
            raise Contradiction(f"{rule} gives {found.pc:#x} and {found.sp:#x}")


# ORC --------------------------------------------------------------------------------------------

_CORE = 0xFFFFFFFF81000000
_BLOCKS_AT, _IPS_AT, _ENTRIES_AT = 0xFFFFFFFF82000000, 0xFFFFFFFF82100000, 0xFFFFFFFF82200000
_BLOCKS, _ENTRIES = 16, 64


class _OrcKernel:
    """As much of a kernel's symbols and text as the tables ask for."""

    core = (_CORE, _CORE + 256 * _BLOCKS)
    modules = generated = property(lambda self: self)

    def required(self, name: str) -> int:
        places = {
            "__start_orc_unwind_ip": _IPS_AT,
            "__stop_orc_unwind_ip": _IPS_AT + 4 * _ENTRIES,
            "__start_orc_unwind": _ENTRIES_AT,
            "orc_lookup": _BLOCKS_AT,
            "orc_lookup_end": _BLOCKS_AT + 4 * (_BLOCKS + 1),
        }
        return places[name]

    def address(self, name: str) -> None:
        return None

    def in_core(self, address: int) -> bool:
        return self.core[0] <= address < self.core[1]

    def in_init(self, address: int) -> bool:
        return _CORE + 0x100000 <= address < _CORE + 0x110000

    def nothing(self, address: int) -> None:
        return None

    containing = bpf = ftrace = nothing


def _read_orc(data: bytes) -> bool:
    """The rule of every address is that of the entry that the block's index leads to, by a search
    from end to end."""
    if len(data) < 2:
        return False
    read = False
    prog = Program(_X86_64)
    body = data[1:].ljust(4 * (_BLOCKS + 1) + 10 * _ENTRIES, b"\0")
    parts = (
        (_BLOCKS_AT, body[: 4 * (_BLOCKS + 1)]),
        (_IPS_AT, body[4 * (_BLOCKS + 1) :][: 4 * _ENTRIES]),
        (_ENTRIES_AT, body[4 * (_BLOCKS + 1) + 4 * _ENTRIES :][: 6 * _ENTRIES]),
    )
    for at, part in parts:
        prog.add_memory_segment(at, len(part), _reader(part))
    format_ = FORMATS[1 + data[0] % len(FORMATS)]
    kernel = cast(Any, _OrcKernel())
    tables = OrcTables(prog, kernel, kernel, format_)
    places = struct.unpack(f"<{_ENTRIES}i", parts[1][1])
    addresses = [_IPS_AT + 4 * i + place for i, place in enumerate(places)]
    ascending = addresses == sorted(addresses)
    for address in (*range(_CORE, _CORE + 256 * _BLOCKS, 37), _CORE + 0x100010, 0, (1 << 64) - 1):
        with suppress(FaultError):
            rule = tables.find(address)
            if rule is None:
                continue
            rule.formula()
            read = True
            if ascending and kernel.in_init(address):
                before = [i for i, each in enumerate(addresses) if each <= address] or [0]
                entry = parts[2][1][6 * before[-1] :][:6]
                if format_.decode(entry) != rule:
                    raise Contradiction(f"{address:#x} has {rule}, not the last entry before it")
    return read


def _reader(part: bytes) -> Any:
    return lambda address, count, offset, physical: part[offset : offset + count]


def _orc_seeds() -> Sequence[bytes]:
    """Real entries, for addresses that are moved to where the harness has its text."""
    found = []
    for number, dump in ((1, "x86_64-6.1"), (3, "x86_64-6.12"), (4, "x86_64-7.2")):
        kernel = kernel_of(dump)
        at = kernel.symbols.required("orc_lookup")
        entries = kernel.symbols.required("__start_orc_unwind")
        first = 0
        with suppress(FaultError):
            first = kernel.prog.read_u32(at)
        raw = _readable(kernel.prog, entries + 6 * first, 6 * _ENTRIES)
        places = [_CORE + 64 * i - (_IPS_AT + 4 * i) for i in range(_ENTRIES)]
        blocks = [min(4 * i, _ENTRIES - 1) for i in range(_BLOCKS + 1)]
        index = struct.pack(f"<{_BLOCKS + 1}I", *blocks)
        found.append(bytes((number - 1,)) + index + struct.pack(f"<{_ENTRIES}i", *places) + raw)
    return found


def _readable(prog: Program, at: int, size: int) -> bytes:
    with suppress(FaultError):
        return bytes(prog.read(at, size))
    return bytes.fromhex("080000000502") * (size // 6)


# SFrame -----------------------------------------------------------------------------------------


def _read_sframe(data: bytes) -> bool:
    """A section is refused as a whole, or each function's rules are, or they can be applied."""
    little = data[:2] != b"\xde\xe2"
    try:
        section = SFrameSection(data, address=_CORE, little_endian=little)
    except BadRule:
        return False
    functions = [(start, start + size) for start, size in section.functions()]
    return _ask(section, functions[:_FUNCTIONS])


def _sframe_seeds() -> Sequence[bytes]:
    """The section of a real module; and one of each version and two architectures by hand."""
    kernel = kernel_of("aarch64-7.2-small-chains-sframe")
    (module,) = [module for module in kernel.modules if module.name == "vmlab_states"]
    section = module_sframe(kernel.prog, module.address, lambda address: True)
    found = [section._data] if section else []
    row = struct.pack("<BBb", 0, 0x03, 16) + struct.pack("<BBbb", 4, 0x05, 32, -16)
    for version, abi in ((2, 2), (2, 3), (3, 2), (3, 3)):
        ra = -8 if abi == 3 else 0
        attributes = struct.pack("<HBBB", 2, 0, 0, 0) if version == 3 else b""
        entry = (
            struct.pack("<qII", 0x1000, 64, 0)
            if version == 3
            else struct.pack("<iIIIBBxx", 0x1000, 64, 0, 2, 0, 0)
        )
        rows = attributes + row
        head = struct.pack("<HBBBbbB5I", 0xDEE2, version, 1, abi, 0, ra, 0, 1, 2, len(rows), 0,
                           len(entry))  # fmt: skip
        found.append(head + entry + rows)
    return found


# Call frame information -------------------------------------------------------------------------


def _read_cfi(data: bytes) -> bool:
    """A section cannot be indexed, or each function has rules, two answers being the same."""
    if not data:
        return False
    section = CfiSection(
        data[1:],
        address=0x10000,
        eh=bool(data[0] & 1),
        little_endian=not data[0] & 2,
        name="fuzz",
        bias=0x1000 if data[0] & 4 else 0,
    )
    with suppress(BadRule):
        bias = 0x1000 if data[0] & 4 else 0
        return _ask(section, [(f.start + bias, f.end + bias) for f in section.fdes[:_FUNCTIONS]])
    return False


@cache
def _real_cfi() -> list[bytes]:
    """What kernels and modules have of it."""
    found = []
    for name in ("x86_64-6.1.debug.xz", "aarch64-7.2-small-chains.kernel-frames.xz"):
        for section in ELFFile(io.BytesIO(unpacked(name))).iter_sections():
            if section.name in (".debug_frame", ".eh_frame") and section.data_size:
                flag = b"\1" if section.name == ".eh_frame" else b"\0"
                found.append(flag + _entries(section.data()))
    return found


def _entries(section: bytes, most: int = 2000) -> bytes:
    """The first entries of a section that fit."""
    at = 0
    while at + 4 <= min(most, len(section)):
        length = 4 + struct.unpack_from("<I", section, at)[0]
        if at + length > most:
            break
        at += length
    return section[:at]


def _cfi_seeds() -> Sequence[bytes]:
    cie = bytes.fromhex("14000000 00000000 01 7a5200 01 78 10 01 1b 0c0708 9001 0000")
    fde = bytes.fromhex("1c000000 1c000000 00100000 20000000 00 41 0e10 8602 43 0d06 5b c6 0c0708")
    fde += bytes(4 + struct.unpack_from("<I", fde)[0] - len(fde))
    return [*_real_cfi(), b"\1" + cie + fde]


def _read_expression(data: bytes) -> bool:
    """Operations are refused when they are decoded, or come to a word, or say why they do not."""
    if not data:
        return False
    order = "big" if data[0] & 4 else "little"
    with suppress(BadRule):
        place = decode(
            Cursor(data, 1, len(data), order, "fuzz"),
            bias=0x1000,
            initial=bool(data[0] & 1),
            deref=bool(data[0] & 2),
        )
        place.formula({})
        if isinstance(place, Expression):
            with suppress(Unknown):
                value = place.evaluate(_register, _word)
                if not 0 <= value < 1 << 64:
                    raise Contradiction(f"{place.text} comes to {value}")
        return True
    return False


def _register(number: int) -> int:
    if number > 32:
        raise Unknown(f"register {number}")
    return (1 << 63) - 8 + number


def _word(address: int) -> int:
    if address & 7:
        raise Unknown("nothing there", address)
    return ~address & (1 << 64) - 1


def _expression_seeds() -> Sequence[bytes]:
    texts = (
        "7678 06", "77 08 80 00 3f 1a 3b 2a 33 24 22", "92 07 08 06 23 10",
        "30 31 12 13 14 16 17 1e",
        "10 81 80 04 11 7f 22", "0e 0102030405060708 1b 1c 1d", "2f 0100 30 31 28 0000 34",
    )  # fmt: skip
    return [bytes((n & 3,)) + bytes.fromhex(text) for n, text in enumerate(texts)]


def _read_cfi_file(data: bytes) -> bool:
    """A file has sections whose rules can be asked for, or is refused."""
    number, read = os.memfd_create("fuzz"), False
    try:
        os.write(number, data)
        with suppress(BadRule):
            loaded = {".text": _CORE, ".init.text": _CORE + 0x10000}
            for section in cfi_sections(f"/proc/self/fd/{number}", loaded=loaded):
                with suppress(BadRule):
                    read |= _ask(section, [(fde.start, fde.end) for fde in section.fdes[:4]])
    finally:
        os.close(number)
    return read


def _file_seeds() -> Sequence[bytes]:
    return [
        unpacked("aarch64-7.2-small-chains.module-frames.xz"),
        _small_elf(_cfi_seeds()[0][1:], b".debug_frame"),
        _small_elf(_cfi_seeds()[-1][1:], b".eh_frame"),
    ]


def _small_elf(section: bytes, name: bytes) -> bytes:
    """An executable with one section beside that of the names."""
    names = b"\0" + name + b"\0.shstrtab\0"
    start = 64 + len(section)
    table = start + len(names)
    table += -table % 8
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    rows = [
        (0,) * 10,
        (1, 1, 2, 0x10000, 64, len(section), 0, 0, 8, 0),
        (2 + len(name), 3, 0, 0, start, len(names), 0, 0, 1, 0),
    ]
    sections = b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows)
    return (ident + head + section + names).ljust(table, b"\0") + sections


def _change_file(data: bytes, chance: random.Random) -> bytes:
    """Mostly in the section headers, at the end, or the ELF header."""
    where = chance.random()
    if where < 0.4:
        return data[:-400] + mutated(data[-400:], chance)
    if where < 0.6:
        return mutated(data[:64], chance, 64).ljust(64, b"\0") + data[64:]
    return mutated(data, chance)


HARNESSES = (
    Harness("orc", "ORC tables", _read_orc, _orc_seeds, largest=1 << 11),
    Harness("sframe", "SFrame sections", _read_sframe, _sframe_seeds, with_head(28), 1 << 12),
    Harness("cfi", "DWARF call frame information", _read_cfi, _cfi_seeds, with_head(1), 1 << 12),
    Harness("dwarfexpr", "DWARF expressions", _read_expression, _expression_seeds, largest=600),
    Harness("cfifile", "ELF files with call frames", _read_cfi_file, _file_seeds, _change_file),
)
