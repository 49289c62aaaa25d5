# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where call frame information is for the dumped kernel and each of its modules.

Debug files have DWARF's, if there are any: the kernel's, and those of modules, which are matched
by their build IDs. The dump itself has SFrame's where kernel or module were assembled with it.
Each is opened when a walk first asks for an address of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from drgn import FaultError, Program, RelocatableModule
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from drgn_reliable.errors import MissingInformation, UsageError
from drgn_reliable.files.notes import iter_notes
from drgn_reliable.files.source import DumpFormatError
from drgn_reliable.frameinfo import Source
from drgn_reliable.memory import byte_order, missing
from drgn_reliable.model import FoundBy
from drgn_reliable.modules import Module, ModuleList
from drgn_reliable.sections import module_sections
from drgn_reliable.symbols import Symbols
from drgn_reliable.tables.cfi import CfiSection
from drgn_reliable.tables.cfifile import cfi_sections
from drgn_reliable.tables.framerule import BadRule
from drgn_reliable.tables.loadedsframe import kernel_sframe, module_sframe
from drgn_reliable.tables.sframe import SFrameSection

__all__ = ("UnwindData",)

_NT_GNU_BUILD_ID = 3
_BUILD_ID_SECTION = ".note.gnu.build-id"
_NOTE_LIMIT = 64
"""Bytes of that section: a header, a name and 20 bytes of hash are 36."""

T = TypeVar("T")


class UnwindData:
    """The providers for each address, opened when they are first asked for.

    :param files: debug files of modules that the user named.
    :raises UsageError: if one of them belongs to no loaded module.

    :attr:`problems` gets a line for each that is there and cannot be read.
    """

    def __init__(
        self, prog: Program, symbols: Symbols, modules: ModuleList, files: Sequence[str]
    ) -> None:
        self._prog = prog
        self._symbols = symbols
        self._modules = modules
        self.problems: list[str] = []
        self._kernel: list[Source] | None = None
        self._of_module: dict[int, list[Source]] = {}
        self._files = self._match(files) if files else {}

    def sources(self, address: int) -> Iterable[Source]:
        """Those that may know an address, the most trusted first."""
        module = self._modules.containing(address)
        if module is not None:
            if module.address not in self._of_module:
                self._of_module[module.address] = self._open_module(module)
            return self._of_module[module.address]
        if self._kernel is None:
            self._kernel = self._open_kernel()
        return self._kernel

    def open_all(self) -> None:
        """Open what there is for the kernel and for every module, to know of its problems, and
        read what tells a module's file."""
        self.sources(0)
        for module in self._modules:
            self._build_id(module)
            if module.regions:
                self.sources(module.regions[0].start)

    # Opening -----------------------------------------------------------------------------

    def _open_kernel(self) -> list[Source]:
        found = []
        with contextlib.suppress(LookupError):  # a program without a main module has no file
            main = self._prog.main_module()
            if path := main.debug_file_path:
                bias = main.debug_file_bias or 0
                found += self._dwarf(path, lambda: cfi_sections(path, bias=bias))
        sframe = self._tried(
            "SFrame", lambda: kernel_sframe(self._prog, self._symbols, self._begins)
        )
        return found + _sframe(sframe)

    def _open_module(self, module: Module) -> list[Source]:
        found = []
        loaded = self._sections(module)
        path = self._files.get(module.address) or self._found_by_drgn(module)
        if path is not None:
            found += self._dwarf(path, lambda: cfi_sections(path, loaded=loaded))
        begins = partial(self._begins_in, module)
        sframe = self._tried(
            f"SFrame of module {module.name}",
            lambda: module_sframe(self._prog, module.address, begins),
        )
        return found + _sframe(sframe)

    def _begins(self, address: int) -> bool | None:
        """Whether a function of the kernel's begins at an address; None if it has no name."""
        named = self._symbols.at(address)
        return None if named is None else named.start == address

    def _begins_in(self, module: Module, address: int) -> bool | None:
        region = module.region(address)
        if region is None or not region.text:
            return None
        named = module.symbol(self._prog, address, region)
        return None if named is None else named.start == address

    def _dwarf(self, path: str, read: Callable[[], list[CfiSection]]) -> list[Source]:
        found = []
        for section in self._tried(path, read) or []:
            try:
                known = section.fdes
            except BadRule as e:  # it names the section and the file
                self.problems.append(str(e))
                continue
            if known:
                found.append(Source(section, FoundBy.DWARF, FoundBy.DWARF_LINK))
        return found

    def _tried(self, what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (BadRule, FaultError, LookupError, MissingInformation, OSError) as e:
            self.problems.append(f"{what}: {missing(e)}")
            return None

    def _sections(self, module: Module) -> dict[str, int]:
        """Where the module's sections are; nothing if the dump does not tell."""
        try:
            return module_sections(self._prog, module.address)
        except (FaultError, LookupError, MissingInformation):
            return {}

    def _found_by_drgn(self, module: Module) -> str | None:
        """The module's debug file, if drgn has loaded it, as in its shell."""
        for known in self._prog.modules():
            if isinstance(known, RelocatableModule) and known.name == module.name:
                path: str | None = known.debug_file_path
                return path
        return None

    # Which file is whose -----------------------------------------------------------------

    def _match(self, files: Sequence[str]) -> dict[int, str]:
        """The files by the address of the module that they belong to."""
        owners = {}
        for module in self._modules:
            build_id = self._build_id(module)
            if build_id:
                owners[build_id] = module.address
        found = {}
        for path in files:
            build_id = _build_id_of(path)
            if build_id not in owners:
                raise UsageError(
                    f"--symbols {path}: its build ID, {build_id.hex() or 'none'}, is neither the "
                    "dumped kernel's nor that of a loaded module"
                )
            found[owners[build_id]] = path
        return found

    def _build_id(self, module: Module) -> bytes:
        """From the note that the kernel keeps with the module; empty if it is not to be had."""
        address = self._sections(module).get(_BUILD_ID_SECTION)
        if address is None:
            return b""
        little = byte_order(self._prog) == "<"
        try:
            data = self._prog.read(address, _NOTE_LIMIT)
            for note in iter_notes(data, little_endian=little):
                if note.type == _NT_GNU_BUILD_ID and note.name == "GNU":
                    return note.description
        except (FaultError, DumpFormatError):
            pass
        return b""


def _sframe(section: SFrameSection | None) -> list[Source]:
    return [Source(section, FoundBy.SFRAME, FoundBy.SFRAME_LINK)] if section else []


def _build_id_of(path: str) -> bytes:
    """A file's build ID, empty if it has none.

    :raises UsageError: if it is no ELF file.
    """
    try:
        with open(path, "rb") as file:
            section = ELFFile(file).get_section_by_name(_BUILD_ID_SECTION)
            notes = section.iter_notes() if isinstance(section, NoteSection) else ()
            return next((bytes.fromhex(n["n_desc"]) for n in notes), b"")
    except OSError as e:
        raise UsageError(f"--symbols {path}: cannot be read ({e.strerror})") from e
    except Exception as e:  # what pyelftools meets in a damaged file, it passes on
        raise UsageError(f"--symbols {path}: not a sound ELF file ({e!r})") from e
