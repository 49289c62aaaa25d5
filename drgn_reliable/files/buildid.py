# SPDX-License-Identifier: LGPL-2.1-or-later
"""The build ID of an ELF file, by which it is known whose debug information it is."""

from __future__ import annotations

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from drgn_reliable.errors import UsageError

__all__ = ("BUILD_ID_TYPE", "build_id_of")

BUILD_ID_TYPE = "NT_GNU_BUILD_ID"


def build_id_of(path: str) -> bytes:
    """A file's build ID, empty if it has none. A module's is in a section of its own, a kernel's
    among other notes.

    :raises UsageError: if it is no ELF file.
    """
    try:
        with open(path, "rb") as file:
            for section in ELFFile(file).iter_sections():
                if isinstance(section, NoteSection):
                    for note in section.iter_notes():
                        # Others number their types as they like: Xen's notes are in vmlinux, too.
                        if note["n_name"] == "GNU" and note["n_type"] == BUILD_ID_TYPE:
                            return bytes.fromhex(note["n_desc"])
    except OSError as e:
        raise UsageError(f"--symbols {path}: cannot be read ({e.strerror})") from e
    except Exception as e:  # what pyelftools meets in a damaged file, it passes on
        raise UsageError(f"--symbols {path}: not a sound ELF file ({e!r})") from e
    return b""
