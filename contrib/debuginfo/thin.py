# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a small debug file out of a kernel's: a few compile units, the symbols, the build ID.

    python contrib/debuginfo/thin.py VMLINUX -o OUT --unit kernel/sched/core.c --unit init/main.c
    python contrib/debuginfo/thin.py MODULE -o OUT --frames '^xfs_inode_'

``README.md`` beside this file says what the result is good for.
"""

from __future__ import annotations

import argparse
import lzma
import mmap
import os
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import elf64
from dwarfunits import choose_units, copy_units, find_units
from elf64 import Contents, ElfFile, Section
from frames import Relocation, choose_frames

__all__ = ("UNITS", "ThinError", "main", "thin")

UNITS = (
    "init/init_task.c",
    "init/main.c",
    "kernel/bpf/core.c",
    "kernel/cpu.c",
    "kernel/kexec_core.c",
    "kernel/kprobes.c",
    "kernel/livepatch/core.c",
    "kernel/livepatch/patch.c",
    "kernel/livepatch/transition.c",
    "kernel/module/main.c",
    "kernel/module/sysfs.c",
    "kernel/pid.c",
    "kernel/sched/core.c",
    "kernel/smp.c",
    "kernel/trace/ftrace.c",
    "mm/percpu.c",
    # x86_64
    "arch/x86/kernel/irq_64.c",
    "arch/x86/kernel/setup_percpu.c",
    "arch/x86/kernel/unwind_orc.c",
    "arch/x86/mm/cpu_entry_area.c",
    # arm64
    "arch/arm64/kernel/irq.c",
    "arch/arm64/kernel/process.c",
    "arch/arm64/kernel/stacktrace.c",
    # s390x
    "arch/s390/kernel/process.c",
    "arch/s390/kernel/setup.c",
    "arch/s390/kernel/stacktrace.c",
    # powerpc
    "arch/powerpc/kernel/irq.c",
    "arch/powerpc/kernel/paca.c",
    "arch/powerpc/kernel/process.c",
    "arch/powerpc/kernel/stacktrace.c",
    # loongarch
    "arch/loongarch/kernel/process.c",
    "arch/loongarch/kernel/stacktrace.c",
    "arch/loongarch/kernel/unwind_orc.c",
)
"""Units with the types and variables that a reliable stack walk and drgn's own read.

Those that a kernel does not have, being of another architecture or built without livepatch, say,
are passed over.
"""

_DEBUG_SECTIONS = (
    ".debug_aranges",
    ".debug_info",
    ".debug_abbrev",
    ".debug_line",
    ".debug_str",
    ".debug_line_str",
    ".debug_loclists",
    ".debug_rnglists",
)


class ThinError(ValueError):
    """The file is not a vmlinux, or a module, with the debugging information that is asked for."""


def thin(
    vmlinux: ElfFile,
    *,
    units: Sequence[str] | None = None,
    frames: str | None = None,
    keep_symbols: str | None = None,
    drop_symbols: str | None = None,
    keep_sections: Iterable[str] = (),
    compress: bool = True,
    compress_symbols: bool = False,
) -> bytes:
    """Return a thin debug file.

    :param units: source files whose compile units are copied, as paths or ends of paths; by
        default those of :data:`UNITS` that there are, or none if frames are chosen.
    :param frames: regular expression found in the names of the functions whose call frame
        information is kept. Only with this, and without units, the file may be a module.
    :param keep_symbols: regular expression found in the names of the symbols to keep; by default
        all, or those of the functions whose frames are kept.
    :param drop_symbols: regular expression found in the names of those not to keep after all.
    :param keep_sections: more sections whose contents are kept.
    :param compress: whether to compress ``.debug_*`` by zlib.
    :param compress_symbols: whether to compress the symbols, too. drgn reads such a table
        (``drgn_elf_file_read_section()``), but readelf and gdb do not.
    :raises ValueError: if the file is no vmlinux with debugging information, or has some of a
        kind that cannot be copied.
    """
    kept = set(keep_sections)
    if unknown := kept - {section.name for section in vmlinux.sections}:
        raise ThinError(f"no section {', '.join(sorted(unknown))}")
    sections, contents = _allocated_sections(vmlinux, kept)
    if units is None and frames is not None:
        units = ()
    debug = {} if units is not None and not units else _debug_sections(vmlinux, units)
    relocations: list[Relocation] = []
    if frames is not None:
        debug[".debug_frame"], relocations, _ = choose_frames(vmlinux, frames)
    for name, data in debug.items():
        sections.append(_debug_section(name))
        contents[name] = data
    for section in vmlinux.sections:
        if section.name in kept - contents.keys():
            flags = section.flags & ~elf64.SHF_COMPRESSED
            sections.append(section._replace(flags=flags, link=0, info=0))
            contents[section.name] = vmlinux.contents(section.name)
    keep = (frames or "") if keep_symbols is None else keep_symbols
    added, symbols = _symbol_sections(vmlinux, sections, keep, drop_symbols)
    if relocations:
        section, symbols[section.name] = _relocation_section(vmlinux, sections, relocations)
        added.append(section)
    packed = [section.name for section in sections if compress and section.name in contents]
    packed += [section.name for section in added if compress_symbols]
    return elf64.elf_file(vmlinux, sections + added, contents | symbols, packed)


def _debug_section(name: str) -> Section:
    if name in (".debug_str", ".debug_line_str"):
        return Section(name, elf64.SHT_PROGBITS, elf64.SHF_MERGE | elf64.SHF_STRINGS, entry_size=1)
    return Section(name, elf64.SHT_PROGBITS)


def _allocated_sections(vmlinux: ElfFile, kept: set[str]) -> tuple[list[Section], Contents]:
    """Return the sections that are in memory: all with their place, few with contents.

    The notes are kept, for the build ID. ``.init.text`` stays a section with contents, though of
    none, because drgn takes a file for a vmlinux by one of that name and type
    (``elf_is_vmlinux()``).
    """
    sections = [Section("", 0, align=0)]
    contents: Contents = {}
    for section in vmlinux.sections:
        if not section.flags & elf64.SHF_ALLOC:
            continue
        if section.type == elf64.SHT_NOTE or section.name in kept:
            contents[section.name] = vmlinux.contents(section.name)
        elif section.name == ".init.text":
            contents[section.name] = b""
        kind = section.type if section.name in contents else elf64.SHT_NOBITS
        sections.append(section._replace(type=kind, link=0, info=0))
    if ".init.text" not in contents and not vmlinux.relocatable:
        raise ThinError("no .init.text: not a vmlinux")
    return sections, contents


def _debug_sections(vmlinux: ElfFile, units: Sequence[str] | None) -> Contents:
    if vmlinux.relocatable:
        raise ThinError("a module: only call frame information can be kept")
    sections = {name: vmlinux.contents(name) for name in _DEBUG_SECTIONS}
    if not sections[".debug_info"]:
        raise ThinError("no .debug_info")
    try:
        return _copied_units(sections, units, vmlinux.order)
    except (IndexError, KeyError, struct.error) as error:
        raise ThinError(f"damaged debugging information ({error!r})") from error


def _copied_units(sections: Contents, units: Sequence[str] | None, order: str) -> Contents:
    found = find_units(sections, order)
    if units is None:
        names = {unit.name for unit in found}
        units = [unit for unit in UNITS if any(("/" + name).endswith("/" + unit) for name in names)]
    chosen = choose_units(found, units)
    copied = copy_units(sections, chosen, order)
    return {name: data for name, data in copied.items() if data}


def _symbol_sections(
    vmlinux: ElfFile, sections: list[Section], keep: str, drop: str | None
) -> tuple[list[Section], Contents]:
    """Return the symbol table and its strings as sections to follow others."""
    numbers = {section.name: number for number, section in enumerate(sections)}
    symbols, strings, local_symbols = _symbols(vmlinux, numbers, keep, drop)
    added = [
        Section(
            ".symtab",
            elf64.SHT_SYMTAB,
            link=len(sections) + 1,
            info=local_symbols,
            align=8,
            entry_size=struct.calcsize(vmlinux.order + elf64.SYMBOL),
        ),
        Section(".strtab", elf64.SHT_STRTAB),
    ]
    return added, {".symtab": symbols, ".strtab": strings}


def _symbols(
    vmlinux: ElfFile, numbers: dict[str, int], keep: str, drop: str | None
) -> tuple[bytes, bytes, int]:
    """Return a symbol table, its strings and the number of its local symbols, which come first.

    Symbols of sections that are left out go with them. In a module, the first are those of the
    sections, numbered as they are.
    """
    table = struct.Struct(vmlinux.order + elf64.SYMBOL)
    old_strings = vmlinux.contents(".strtab")
    new_number = [numbers.get(section.name, 0) for section in vmlinux.sections]
    kept = []
    for name_at, info, other, number, *place in table.iter_unpack(vmlinux.contents(".symtab")):
        name = elf64.name_at(old_strings, name_at)
        if not re.search(keep, name) or (drop is not None and re.search(drop, name)):
            continue
        new = number if number >= elf64.SHN_LORESERVE else new_number[number]
        if new:
            kept.append((name, info, other, new, *place))
    strings, places = elf64.string_table({name for name, *_ in kept})
    symbols = [table.pack(0, 0, 0, 0, 0, 0)]
    if vmlinux.relocatable:
        last = max(numbers.values())
        symbols += [table.pack(0, elf64.STT_SECTION, 0, n, 0, 0) for n in range(1, last + 1)]
    local_symbols = len(symbols) + sum(info >> 4 == elf64.STB_LOCAL for _, info, *_ in kept)
    symbols += [table.pack(places[name], *rest) for name, *rest in kept]
    return b"".join(symbols), strings, local_symbols


def _relocation_section(
    module: ElfFile, sections: list[Section], relocations: list[Relocation]
) -> tuple[Section, bytes]:
    """Return the relocations of ``.debug_frame``, against the symbols of sections.

    :param sections: those that the symbol table follows.
    """
    numbers = {section.name: number for number, section in enumerate(sections)}
    entry = struct.Struct(module.order + elf64.RELOCATION)
    rows = [
        entry.pack(place, numbers[module.sections[section].name] << 32 | kind, addend)
        for place, kind, section, addend in relocations
    ]
    section = Section(
        ".rela.debug_frame",
        elf64.SHT_RELA,
        elf64.SHF_INFO_LINK,
        link=len(sections),
        info=numbers[".debug_frame"],
        align=8,
        entry_size=entry.size,
    )
    return section, b"".join(rows)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make a small debug file of a vmlinux with DWARF 5, or of a module."
    )
    parser.add_argument("vmlinux", type=Path)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="compressed as a whole if it ends in .xz"
    )
    parser.add_argument(
        "--unit",
        action="append",
        metavar="SOURCE",
        help="source file of a compile unit to copy (default: what README.md says)",
    )
    parser.add_argument(
        "--frames",
        metavar="REGEX",
        help="keep the call frame information of these functions, and no units but those named",
    )
    parser.add_argument("--symbols", metavar="REGEX", help="keep only these symbols")
    parser.add_argument("--drop-symbols", metavar="REGEX", help="leave these symbols out")
    parser.add_argument(
        "--section", action="append", default=[], metavar="NAME", help="keep this section as well"
    )
    parser.add_argument("--uncompressed", action="store_true", help="do not compress .debug_*")
    parser.add_argument(
        "--compress-symbols", action="store_true", help="compress .symtab as well (for drgn only)"
    )
    return parser


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _arguments().parse_args(arguments)
    as_xz = options.output.suffix == ".xz"
    try:
        with open(options.vmlinux, "rb") as file:
            vmlinux = ElfFile(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        data = thin(
            vmlinux,
            units=options.unit,
            frames=options.frames,
            keep_symbols=options.symbols,
            drop_symbols=options.drop_symbols,
            keep_sections=options.section,
            compress=not (as_xz or options.uncompressed),
            compress_symbols=options.compress_symbols,
        )
        size = len(data)
        if as_xz:
            data = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
        _write(options.output, data)
    except (OSError, ValueError, re.error) as error:
        print(f"thin.py: {options.vmlinux}: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {len(data)} bytes" + (f" ({size} unpacked)" if as_xz else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
