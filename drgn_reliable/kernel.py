# SPDX-License-Identifier: LGPL-2.1-or-later
"""One opened kernel: where its types and symbols come from, and what it can do.

:class:`Kernel` takes any drgn program of a Linux kernel (a dump, ``/proc/kcore``, the one of
drgn's shell) and adds what the program lacks: types from BTF if there is no debug information,
symbols from kallsyms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from drgn import (
    FaultError,
    Program,
    ProgramFlags,
)

from drgn_reliable.arch.base import Parts
from drgn_reliable.arch.known import ARCHITECTURES, REFUSED
from drgn_reliable.btf import Btf, BtfError
from drgn_reliable.btftypes import BtfTypes
from drgn_reliable.errors import DumpError, MissingInformation, UnsupportedKernel
from drgn_reliable.files.vmcoreinfo import number_in, values_of
from drgn_reliable.frameinfo import FrameInformation
from drgn_reliable.generated import GeneratedText
from drgn_reliable.live import LiveKernel, LiveTaskList, no_registers
from drgn_reliable.memory import (
    BrokenList,
    Layout,
    byte_order,
    container_nodes,
    missing,
)
from drgn_reliable.modules import ModuleList
from drgn_reliable.opening import frame_files, module_files, opened_dump
from drgn_reliable.owners import Owners
from drgn_reliable.platforms import machine_of
from drgn_reliable.registers import CrashRegisters
from drgn_reliable.returns import FunctionGraph, ReturnProbes
from drgn_reliable.symbols import Symbols
from drgn_reliable.tasks import Task, TaskList
from drgn_reliable.text import Text
from drgn_reliable.unwinddata import UnwindData

__all__ = ("Kernel",)

_BTF_LIMIT = 1 << 28
"""Bytes; a kernel with everything has about 30 MB."""
_FINDER = "drgn_reliable"
"""Name under which the finders are registered with drgn."""


def _debug_file(prog: Program) -> str | None:
    try:
        path: str | None = prog.main_module().debug_file_path
        return path
    except LookupError:
        return None


class Kernel:
    """A Linux kernel in a drgn program.

    :param cpu_registers: gives the registers of the CPU that a task runs on, where the program
        itself does not have them.
    :param machine: ``uname -m`` of the dumped machine, where neither the program nor its file
        tells.
    :raises UnsupportedKernel: for an architecture or unwinder that is not known.
    :raises MissingInformation: if neither the dump nor debug information has what is needed.
    """

    def __init__(
        self,
        prog: Program,
        cpu_registers: Callable[[Task], Mapping[str, int] | None] | None = None,
        machine: str | None = None,
    ) -> None:
        self.prog = prog
        self.architecture = self._known_architecture(machine)
        self.vmcoreinfo = _vmcoreinfo(prog)
        self.release = self.vmcoreinfo.get("OSRELEASE", "unknown")
        self.symbols = Symbols(prog)
        self._register_symbols()
        dump = opened_dump(prog)
        self.problems: list[str] = list(dump.problems) if dump else []
        """What keeps a scan from seeing everything, one line each."""
        self.types = self._provide_types()
        living = bool(prog.flags & ProgramFlags.IS_LIVE)
        self._given_registers = no_registers if living else cpu_registers
        self.live: LiveKernel | None = None
        """What sees that nothing moves while it is read; None of a dump, in which nothing does."""
        try:
            self.assemble()
            self.live = LiveKernel(self) if living else None
        except BtfError as e:
            raise MissingInformation(
                f"no types: the kernel's BTF is damaged ({e}); name the kernel's vmlinux with "
                "--symbols"
            ) from e
        except LookupError as e:
            raise MissingInformation(
                f"the types ({self.types}) lack something that is needed: {e}; name the kernel's "
                "vmlinux with --symbols"
            ) from e

    def assemble(self) -> None:
        """Read what the kernel has lists of (modules, generated code), and make all that depends on
        them; again, if they have changed."""
        prog, symbols, arch = self.prog, self.symbols, ARCHITECTURES[self.architecture]
        self.facts = arch.facts(prog, symbols)
        self.cpu_registers = self._given_registers or CrashRegisters(
            prog,
            symbols,
            self.facts.status_offsets,
            self.facts.registers,
            use_file=self.facts.file_has_pc,
        )
        self.modules = ModuleList.of_kernel(prog, symbols)
        page_size = number_in(self.vmcoreinfo, "PAGESIZE", 4096)
        self.generated = GeneratedText(prog, symbols, page_size)
        self.graph = FunctionGraph(prog, symbols)
        self.probes = ReturnProbes(prog, symbols)
        trampolines = (self.graph.trampoline, self.probes.trampoline)
        self.owners = Owners(prog, symbols, self.generated)
        self.text = Text(
            prog, symbols, self.modules, self.generated, arch.code, trampolines, self.owners
        )
        task_list = LiveTaskList if prog.flags & ProgramFlags.IS_LIVE else TaskList
        self.tasks = task_list(prog, symbols, arch.saved, self.probes.task_list)
        offset = number_in(self.vmcoreinfo, "KERNELOFFSET", 0, 16)
        self.unwind_data = UnwindData(
            prog, symbols, self.modules, module_files(prog), frame_files(prog), offset
        )
        parts = Parts(
            prog,
            self.facts,
            self.text,
            self.graph,
            self.probes,
            self.cpu_registers,
            FrameInformation(self.unwind_data.sources),
        )
        self.unwinder = arch.unwinder(parts, symbols)

    @property
    def path(self) -> str:
        """The dump's file as the user named it; empty where there is none."""
        dump = opened_dump(self.prog)
        return dump.path if dump else self.prog.core_dump_path or ""

    @property
    def has_debug_information(self) -> bool:
        """Whether types come from debug information rather than from BTF."""
        return _FINDER not in self.prog.registered_type_finders()

    @property
    def supports_reliable(self) -> bool:
        """Whether the kernel has ``arch_stack_walk_reliable()``."""
        return self.symbols.address("arch_stack_walk_reliable") is not None

    @property
    def supports_livepatch(self) -> bool:
        """Whether livepatching is built in."""
        return self.symbols.first("klp_enable_patch", "klp_transition_patch") is not None

    def expected_tasks(self) -> int:
        """About how many tasks there are, to show progress by; 0 if unknown."""
        return self.tasks.expected()

    def _known_architecture(self, machine: str | None) -> str:
        name = machine or machine_of(self.prog.platform)
        if name == "unknown" and (dump := opened_dump(self.prog)):
            name = dump.file.machine
        if name not in ARCHITECTURES:
            why = REFUSED.get(name, f"drgn_reliable walks {', '.join(ARCHITECTURES)}")
            raise UnsupportedKernel(f"architecture {name} is not supported: {why}")
        return name

    # Symbols and types -------------------------------------------------------------------

    def _register_symbols(self) -> None:
        """Offer kallsyms to drgn too, after what it has."""
        if self.symbols.kallsyms and _FINDER not in self.prog.registered_symbol_finders():
            self.prog.register_symbol_finder(_FINDER, self.symbols.finder, enable_index=-1)

    def _provide_types(self) -> str:
        """Use the program's types if it has the kernel's, or else BTF; says which."""
        try:
            self.prog.type("struct task_struct")
        except LookupError:
            self._register_btf()
        if _FINDER in self.prog.registered_type_finders():
            return f"BTF in {'memory' if self.prog.flags & ProgramFlags.IS_LIVE else 'the dump'}"
        return f"debug information ({_debug_file(self.prog) or 'of the program'})"

    def _register_btf(self) -> None:
        start, stop = self.symbols.address("__start_BTF"), self.symbols.address("__stop_BTF")
        if start is None or stop is None:
            raise MissingInformation(
                "no types: the kernel was built without BTF (no symbol __start_BTF) and there "
                "is no debug information; name the kernel's vmlinux with --symbols"
            )
        if not 0 < stop - start <= _BTF_LIMIT:
            raise MissingInformation(
                f"no types: the kernel's BTF would be {stop - start} bytes, from {start:#x} to "
                f"{stop:#x}; name the kernel's vmlinux with --symbols"
            )
        little = byte_order(self.prog) == "<"
        try:
            base = Btf(self.prog.read(start, stop - start), little_endian=little)
        except FaultError as e:
            raise MissingInformation(
                f"no types: the dump lacks the kernel's BTF at {start:#x}; name the "
                "kernel's vmlinux with --symbols"
            ) from e
        except BtfError as e:
            raise MissingInformation(
                f"no types: the kernel's BTF at {start:#x} is damaged ({e}); name the kernel's "
                "vmlinux with --symbols"
            ) from e
        types = BtfTypes(self.prog, base, self.symbols.address)
        types.module_loader = self._module_btfs
        self.prog.register_type_finder(_FINDER, types.find_type, enable_index=-1)
        self.prog.register_object_finder(_FINDER, types.find_object, enable_index=-1)

    def _module_btfs(self) -> list[bytes]:
        """The raw split BTF of each module. The module's own copy is freed once it is loaded;
        ``btf_modules`` keeps the one that was parsed."""
        head = self.symbols.address("btf_modules")
        if head is None:
            return []
        found = []
        try:
            entry = Layout(self.prog.type("struct btf_module"), {"list": "list.next", "btf": "btf"})
            blob = Layout(self.prog.type("struct btf"), {"data": "data", "size": "data_size"})
            for node in container_nodes(self.prog, head, entry.offsets["list"], 1 << 16):
                btf = entry.read(self.prog, node)["btf"]
                where = blob.read(self.prog, btf)
                found.append(self.prog.read(where["data"], where["size"]))
        except (BrokenList, FaultError, LookupError) as e:
            self.problems.append(f"BTF of modules: {missing(e)}")
        return found


def _vmcoreinfo(prog: Program) -> dict[str, str]:
    try:
        text = prog["VMCOREINFO"].string_().decode("ascii", "replace")
    except LookupError as e:
        raise DumpError("the program has no VMCOREINFO: not a Linux kernel") from e
    return values_of(text)
