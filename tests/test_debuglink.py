# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debug files are those that are named, or that lie in the standard places by build ID or release:
a file's debug link (``.gnu_debuglink``: a name and a checksum) leads nowhere.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from drgn import ModuleFileStatus, Program

from drgn_reliable import Kernel, UsageError, open_dump
from drgn_reliable.opening import find_debug_info
from drgn_reliable.report import Scanner
from tests.framebytes import ALLOC, EXEC, EXECUTABLE, Part, elf
from tests.test_cli import EM_S390, FAULTED, S390X, debug_file

DEBUG = "vmlinux.debug"


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel of that dump without debug information, linked to a debug file that has what proves
    a task's trace: name, checksum and build ID are right, and it lies beside it."""
    kernel = Kernel(open_dump(str(S390X.path), search=False))
    folder = tmp_path_factory.mktemp("linked")
    debug = Path(debug_file(folder / DEBUG, kernel))
    build_id = bytes.fromhex(kernel.vmcoreinfo["BUILD-ID"])
    name = DEBUG.encode() + b"\0"
    checksum = struct.pack(">I", zlib.crc32(debug.read_bytes()))
    content = elf(
        EXEC, EM_S390,
        Part(".note.gnu.build-id",
             struct.pack(">III", 4, len(build_id), 3) + b"GNU\0" + build_id, 7, ALLOC),
        Part(".text", bytes(64), flags=ALLOC | EXECUTABLE),
        Part(".gnu_debuglink", name + bytes(-len(name) % 4) + checksum),
        order=">",
    )  # fmt: skip
    path = folder / "vmlinux"
    path.write_bytes(loadable(content))
    return path


def loadable(content: bytes) -> bytes:
    """The ELF file with a segment: drgn asks no other for its link."""
    found = bytearray(content)
    struct.pack_into(">Q", found, 32, len(content))
    struct.pack_into(">HH", found, 54, 56, 1)
    size = len(content)
    return bytes(found) + struct.pack(">IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096)


def in_standard_places(folder: Path) -> Program:
    """The dump, with a directory in the place of all standard ones."""
    prog = open_dump(str(S390X.path), search=False)
    options = prog.debug_info_options
    options.directories = options.kernel_directories = (str(folder),)
    main, _ = next(prog.loaded_modules())
    main.loaded_file_status = ModuleFileStatus.WANT  # the file with the link
    return prog


def test_a_link_of_a_file_in_the_standard_places_is_not_followed(linked: Path) -> None:
    """drgn by itself follows it; what is right of the file does not make it one that was named."""
    prog = in_standard_places(linked.parent)
    main, _ = next(prog.loaded_modules())
    prog.find_standard_debug_info([main])
    assert main.debug_file_path == str(linked.with_name(DEBUG))
    prog = in_standard_places(linked.parent)
    main, _ = next(prog.loaded_modules())
    find_debug_info(prog, (), search=True)
    assert (main.loaded_file_path, main.debug_file_path) == (str(linked), None)


@pytest.mark.parametrize(
    ("name", "proof"), [("vmlinux", "undecided"), (DEBUG, "proven")], ids=["link", "debug file"]
)
def test_a_link_of_a_file_that_is_named_is_not_followed(
    name: str, proof: str, linked: Path
) -> None:
    """The debug file that it leads to proves a trace, where that is named."""
    kernel = Kernel(open_dump(str(S390X.path), str(linked.with_name(name))))
    (task,) = kernel.tasks.find(str(FAULTED.pid))
    assert Scanner(kernel).report(task).proof.verdict.value == proof


def test_a_directory_is_no_debug_file(linked: Path) -> None:
    """Nothing is searched in it: the line says to name the file."""
    with pytest.raises(UsageError, match=f"--symbols {linked.parent}: a directory; name the file"):
        open_dump(str(S390X.path), str(linked.parent))
