# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open a dump: from a file, in whatever way it is stored, to a drgn program.

drgn opens what it can by itself. Some files it is not given: a flattened dump; a kdump-compressed
one whose header lacks the kernel's release (QEMU and libvirt leave it empty, and libkdumpfile then
finds no architecture) or of powerpc or s390x (whose page tables it does not know); an ELF file
without VMCOREINFO. Their physical memory is read by :mod:`drgn_reliable.files`, and drgn's own
page table walk does the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from drgn import Program, ProgramFlags

from drgn_reliable.errors import DumpError, UnsupportedKernel, UsageError
from drgn_reliable.files import foreign
from drgn_reliable.files.buildid import build_id_of
from drgn_reliable.files.elfcore import ELF_SIGNATURE, ElfCore
from drgn_reliable.files.flattened import FLATTENED_SIGNATURE, FlattenedSource
from drgn_reliable.files.kdump import KDUMP_SIGNATURE, KdumpFile
from drgn_reliable.files.notes import find_vmcoreinfo
from drgn_reliable.files.packed import Watch, packing_of, unpack, unwatched
from drgn_reliable.files.source import DumpFormatError, FileSource, Source
from drgn_reliable.files.vmcoreinfo import Vmcoreinfo, find_in_memory, number_in, values_of
from drgn_reliable.loongarch_memory import add_kernel_memory
from drgn_reliable.platforms import PLATFORMS, platform_of

__all__ = (
    "ChooseSymbols",
    "DumpFile",
    "OpenedDump",
    "find_debug_info",
    "frame_files",
    "inspect_dump",
    "inspect_file",
    "module_files",
    "named_symbols",
    "open_dump",
    "open_file",
    "opened_dump",
    "physical_program",
)

DumpFile = ElfCore | KdumpFile
ChooseSymbols = Callable[["bytes | None"], Sequence[str]]
"""Takes a kernel's build ID, None if the dump does not tell it."""

_CACHE_KEY = "drgn_reliable.dump"
_FILES_KEY, _FRAMES_KEY = "drgn_reliable.module_files", "drgn_reliable.frame_files"
_ET_REL = (b"\1\0", b"\0\1")
"""An ELF file's type, of one that is still to be linked, such as a module, in either order."""
_RELEASE = re.compile(r"\w[\w.+~-]*", re.ASCII)
"""A kernel's release that is a part of a file's name and no path."""
_PHYSICAL_LIMIT = 1 << 52
"""One past the highest physical address of any architecture here."""
_OWN_READER = ("loongarch64", "ppc64", "ppc64le", "s390x")
_VMCOREINFO_LIMIT = 1 << 20
_NO_VMCOREINFO = (
    "without VMCOREINFO in its notes or memory: not a Linux kernel dump, or one taken without it "
    "(QEMU: add -device vmcoreinfo and load qemu_fw_cfg in the guest; or name a file that has it "
    "with --vmcoreinfo)"
)


@dataclass(frozen=True)
class OpenedDump:
    """What is known of the file behind a program."""

    path: str
    """As the user named it."""
    size: int
    """Of that file, in bytes."""
    stored: str
    """How: ``ELF``, ``kdump-compressed, flattened``, ``ELF in gzip``, …"""
    nameless: bool
    """Whether what is read is a temporary file without a name: unpacked, or written by QEMU."""
    file: DumpFile
    problems: tuple[str, ...]
    """What is missing from the file as a whole, a line each."""

    @property
    def notes(self) -> bytes:
        """The ELF notes, one after the other."""
        return self.file.notes


def open_dump(
    path: str,
    symbols: str | Sequence[str] | ChooseSymbols | None = None,
    watch: Watch = unwatched,
    vmcoreinfo: str | None = None,
    search: bool = True,
    file: BinaryIO | None = None,
) -> Program:
    """Open a dump with drgn, and the kernel's debug information if it can be found.

    The dump can be ELF or kdump-compressed, either of them flattened (``makedumpfile -F``, QEMU,
    libvirt), and all of it in gzip, xz, zstd or bzip2; a packed one is unpacked to a temporary
    file without a name. Only drgn's standard directories are searched for debug information,
    never the network.

    :param symbols: the dumped kernel's vmlinux or its debug file, and those of modules; or a
        function that chooses them by the kernel's build ID.
    :param watch: is given what takes long to read, to show how far that is.
    :param vmcoreinfo: a file with the text of the kernel's VMCOREINFO. Without it, it is taken
        from the dump's notes, or else looked for in the dump's memory.
    :param search: whether to search the standard directories where no symbols are named.
    :param file: is read instead of the path, which then only says what it is. It has no name, and
        belongs to the program.
    :raises DumpError: if the file is not a Linux kernel dump that can be opened.
    :raises UsageError: if the symbols or the VMCOREINFO cannot be used.
    """
    choose = symbols if callable(symbols) else None
    named = named_symbols([] if callable(symbols) else symbols)
    given = _read_vmcoreinfo(vmcoreinfo) if vmcoreinfo is not None else None
    dump = inspect_dump(path, watch) if file is None else inspect_file(file, path, watch)
    source = dump.file.source
    noted = _noted_vmcoreinfo(dump.file)
    readable = isinstance(source, FileSource) and not _needs_own_reader(dump)
    if noted and not given and readable:
        assert isinstance(source, FileSource)
        prog = _drgn_program(path, source, dump.nameless)
    else:
        prog = _program_of(dump, _completed(dump, given, noted, watch))
    prog.cache[_CACHE_KEY] = dump
    main, _ = next(prog.loaded_modules())
    find_debug_info(prog, choose(main.build_id) if choose else named, search)
    return prog


def named_symbols(symbols: str | Sequence[str] | None) -> Sequence[str]:
    """The files of ``--symbols``.

    :raises UsageError: if one is not there.
    """
    named = [symbols] if isinstance(symbols, str) else symbols or ()
    for file in named:
        if not os.path.isfile(file):
            why = "a directory; name the file in it" if os.path.isdir(file) else "no such file"
            raise UsageError(f"--symbols {file}: {why}")
    return named


def opened_dump(prog: Program) -> OpenedDump | None:
    """The file behind a program, however it was opened; None if there is none to be read, or it
    changes: that of a living kernel."""
    if _CACHE_KEY not in prog.cache:
        path = None if prog.flags & ProgramFlags.IS_LIVE else prog.core_dump_path
        try:
            prog.cache[_CACHE_KEY] = inspect_dump(path) if path else None
        except DumpError:
            prog.cache[_CACHE_KEY] = None
    found: OpenedDump | None = prog.cache[_CACHE_KEY]
    return found


def inspect_dump(path: str, watch: Watch = unwatched) -> OpenedDump:
    """Read the headers of a dump, however it is stored; no drgn program is made of it.

    :raises DumpError: if it is none.
    """
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise DumpError(f"{path}: {what}; name a vmcore")
    try:
        file = open(path, "rb")  # noqa: SIM115 - it lives as long as the program
    except OSError as e:
        raise DumpError(f"{path}: may not be read ({e.strerror})") from e
    return inspect_file(file, path, watch, named=True)


def inspect_file(
    file: BinaryIO, path: str, watch: Watch = unwatched, *, named: bool = False
) -> OpenedDump:
    """The same of a file that is open already.

    :param path: what it is called.
    :param named: whether that is where it is, and it can be opened again.
    :raises DumpError: if it is none.
    """
    source: Source = FileSource(file, path)
    size, stored, flaws = source.size, "", []
    packing = packing_of(source.read(0, 16))
    if packing:
        source = FileSource(unpack(file, path, packing, watch), path)
        stored = f" in {packing.name}"
    if source.read(0, len(FLATTENED_SIGNATURE)) == FLATTENED_SIGNATURE:
        source = FlattenedSource(source)
        stored = f", flattened{stored}"
        if not source.complete:
            flaws.append("flattened, and its end is missing: copy it again")
    try:
        dump = open_file(source)
    except DumpFormatError as e:
        raise DumpFormatError("; ".join([str(e), *flaws])) from e
    flaws += dump.flaws()
    problems = tuple(f"incomplete dump: {flaw}" for flaw in flaws)
    nameless = packing is not None or not named
    return OpenedDump(path, size, dump.format + stored, nameless, dump, problems)


def open_file(source: Source) -> DumpFile:
    """Read the headers of an ELF or kdump-compressed file that is neither packed nor flattened.

    :raises DumpFormatError: if it is none.
    """
    start = source.read(0, max(len(ELF_SIGNATURE), len(KDUMP_SIGNATURE)))
    if start.startswith(KDUMP_SIGNATURE):
        return KdumpFile(source)
    if not start.startswith(ELF_SIGNATURE):
        raise DumpFormatError(f"{source.path}: not a dump, but {foreign.describe(source)}")
    core = ElfCore(source)
    if not core.is_core:
        raise DumpFormatError(
            f"{source.path}: an ELF executable or object, not a dump; a kernel's vmlinux goes "
            "after --symbols"
        )
    return core


def physical_program(
    machine: str, read: Callable[[int, int], bytes], vmcoreinfo: str, *, live: bool = False
) -> Program:
    """A program of a Linux kernel whose physical memory a function reads.

    :param machine: one of :data:`drgn_reliable.platforms.PLATFORMS`.
    :param read: takes a physical address and a size in bytes.
    :param vmcoreinfo: the text of the kernel's VMCOREINFO.
    :param live: it runs while it is read.
    """

    def segment(address: int, count: int, offset: int, physical: bool) -> bytes:
        return read(address, count)

    prog = Program(platform_of(machine))
    prog.add_memory_segment(0, _PHYSICAL_LIMIT, segment, physical=True)
    prog.set_linux_kernel_custom(vmcoreinfo, live)
    if machine == "loongarch64":
        values = values_of(vmcoreinfo)
        page_table = number_in(values, "SYMBOL(swapper_pg_dir)", base=16)
        add_kernel_memory(prog, read, page_table, number_in(values, "PAGESIZE"))
    return prog


def _needs_own_reader(dump: OpenedDump) -> bool:
    """Whether drgn cannot read the file, or its memory by address: it knows no page tables of
    LoongArch, and fails on segments beyond all files. Its library for kdump-compressed files finds
    no architecture without a release, translates no addresses of powerpc with radix page tables and
    of s390x since 6.10, whose kernel does not lie in the identity mapping, and may die of what is
    odd about a file: that goes to our own reader, the rule being that only a file that is as
    makedumpfile writes it does not.
    """
    if not isinstance(dump.file, KdumpFile):
        return dump.file.machine == "loongarch64" or dump.file.reaches_beyond_all_files
    if dump.problems or dump.file.kills_library:
        return True
    uts = dump.file.header.uts
    return not (uts.release and uts.version) or uts.machine in _OWN_READER


def _drgn_program(path: str, source: FileSource, nameless: bool) -> Program:
    """What drgn makes of a file; one that was unpacked has a descriptor, but no name."""
    prog = Program()
    try:
        # drgn closes the descriptor that it is given.
        prog.set_core_dump(os.dup(source.fd) if nameless else path)
    except Exception as e:
        raise DumpError(f"{path}: not a kernel dump that drgn can open ({e})") from e
    if prog.flags & ProgramFlags.IS_LIVE:
        raise DumpError(f"{path}: the running kernel, not a dump; --live, without a DUMP, reads it")
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise DumpError(f"{path}: not a dump of a Linux kernel, says drgn")
    return prog


def _read_vmcoreinfo(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(_VMCOREINFO_LIMIT)
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--vmcoreinfo {path}: cannot be read ({e})") from e
    if "OSRELEASE=" not in text:
        raise UsageError(f"--vmcoreinfo {path}: not VMCOREINFO, it has no OSRELEASE=")
    return text


def _noted_vmcoreinfo(file: DumpFile) -> Vmcoreinfo | None:
    note = find_vmcoreinfo(file.notes, little_endian=file.little_endian)
    if note is None:
        return None
    text = note.description.rstrip(b"\0").decode("ascii", "replace")
    return Vmcoreinfo(text, file.little_endian)


def _completed(
    dump: OpenedDump, given: str | None, noted: Vmcoreinfo | None, watch: Watch
) -> Vmcoreinfo:
    """VMCOREINFO from wherever it is to be had."""
    if given is not None:
        return Vmcoreinfo(given, _is_little_endian(dump.file, noted, watch))
    if noted is None and isinstance(dump.file, ElfCore):
        noted = find_in_memory(dump.file, watch)
    if noted is None:
        raise DumpError(f"{dump.path}: {dump.stored}, {_NO_VMCOREINFO}")
    return noted


def _is_little_endian(file: DumpFile, noted: Vmcoreinfo | None, watch: Watch) -> bool:
    """Byte order of the kernel. QEMU marks dumps of little-endian powerpc as big-endian; there a
    note in memory tells."""
    if noted is None and isinstance(file, ElfCore) and file.machine == "ppc64":
        with suppress(DumpFormatError):
            noted = find_in_memory(file, watch)
    return noted.little_endian if noted else file.little_endian


def _program_of(dump: OpenedDump, vmcoreinfo: Vmcoreinfo) -> Program:
    """A program of a file that drgn cannot read by itself."""
    file, machine = dump.file, dump.file.machine
    if machine.startswith("ppc64"):  # QEMU writes some dumps of the one as the other's
        machine = "ppc64le" if vmcoreinfo.little_endian else "ppc64"
    if machine not in PLATFORMS:
        raise UnsupportedKernel(
            f"{dump.path}: {dump.stored}, of a machine {machine!r}, which cannot be read; "
            f"known are {', '.join(PLATFORMS)}"
        )

    try:
        return physical_program(machine, file.read_physical, vmcoreinfo.text)
    except Exception as e:
        raise DumpError(f"{dump.path}: {dump.stored}, not opened by drgn ({e})") from e


def module_files(prog: Program) -> list[str]:
    """The debug files of modules that the user named."""
    found: list[str] = prog.cache.get(_FILES_KEY, [])
    return found


def frame_files(prog: Program) -> list[str]:
    """The files of the kernel's that the user named and that are not drgn's: they have no types,
    but may have call frame information."""
    found: list[str] = prog.cache.get(_FRAMES_KEY, [])
    return found


def find_debug_info(prog: Program, files: Sequence[str], search: bool) -> None:
    """Give the kernel its debug information, if there is any: the dump's BTF serves as well."""
    main, _ = next(prog.loaded_modules())
    of_modules = [file for file in files if _is_module(file)]
    others: list[str] = []
    prog.cache[_FILES_KEY], prog.cache[_FRAMES_KEY] = of_modules, others
    if search and len(of_modules) == len(files):
        _search_standard_places(prog)
    for file in files:
        if file in of_modules:
            continue
        had_one = main.debug_file_path is not None
        main.try_file(file)
        if had_one or main.debug_file_path is None:
            if not main.build_id or build_id_of(file) != main.build_id:
                raise UsageError(
                    f"--symbols {file}: not the debug information of the dumped kernel, whose "
                    f"build ID is {main.build_id.hex() if main.build_id else 'unknown'}"
                )
            others.append(file)


def _search_standard_places(prog: Program) -> None:
    """Look for the kernel's debug information in drgn's standard directories, and nowhere else: not
    on the network, nor where a file's debug link leads. What lies there by a build ID is looked
    for always, what lies there by a release only if that cannot lead elsewhere: both are the
    dump's own words.
    """
    prog.set_enabled_debug_info_finders(["standard"])
    options = prog.debug_info_options
    options.try_module_name = options.try_debug_link = False
    release = values_of(prog["VMCOREINFO"].string_().decode("ascii", "replace")).get("OSRELEASE")
    if not release or not _RELEASE.fullmatch(release):
        options.kernel_directories = ()
    main, _ = next(prog.loaded_modules())
    prog.find_standard_debug_info([main])


def _is_module(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(18)
    except OSError as e:
        raise UsageError(f"--symbols {path}: cannot be read ({e.strerror})") from e
    return start.startswith(ELF_SIGNATURE) and start[16:18] in _ET_REL
