# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a file is that is not a dump we can read: a name for it, and what to do."""

from __future__ import annotations

from typing import NamedTuple

from drgn_reliable.files.source import Source

__all__ = ("describe", "may_be_memory")

_LOOKED_AT = 4096
"""Bytes from the start of a file that decide what it is."""

_VIRSH = "take one with virsh dump --memory-only"
_UNPACK = "unpack it"


class _Format(NamedTuple):
    offset: int
    signature: bytes
    name: str
    advice: str
    memory: bool = False
    """Whether it holds a machine's memory, in a way that is not read here."""


_FORMATS = (
    _Format(0, b"LibvirtQemudSave", "a saved guest of libvirt (virsh save)", _VIRSH, True),
    _Format(0, b"LibvirtQemudPart", "an unfinished saved guest of libvirt", _VIRSH, True),
    _Format(0, b"QEVM", "a QEMU migration stream (virsh dump without --memory-only)", _VIRSH, True),
    _Format(0, b"QFI\xfb", "a qcow2 disk image", "take the dump in QEMU with dump-guest-memory"),
    _Format(0, b"KDMV", "a VMware disk image", "take a snapshot with memory instead"),
    _Format(
        0,
        b"\xd2\xbe\xd2\xbe",
        "a VMware memory snapshot",
        "convert it with vmss2core -N6 first",
        True,
    ),
    _Format(0, b"LinuxGuestRecord", "a saved guest of Xen", "take one with xl dump-core", True),
    _Format(
        0, b"EMiL", "a LiME memory image, which has neither notes nor VMCOREINFO", "use kdump", True
    ),
    _Format(0, b"PAGEDU", "a crash dump of Windows", "name a Linux vmcore", True),
    _Format(
        0,
        b"\xa8\x19\x01\x73\x61\x8f\x23\xfd",
        "an s390 dump",
        "convert it with zgetdump -f elf",
        True,
    ),
    _Format(0, b"DISKDUMP", "a diskdump of Linux 2.4 or 2.6", "open it with crash", True),
    _Format(0, b"ANDROID!", "an Android boot image", "name a vmcore"),
    _Format(0, b"PK\x03\x04", "a zip archive", _UNPACK),
    _Format(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Format(0, b"\x04\x22\x4d\x18", "an lz4 file", _UNPACK),
    _Format(0, b"\x89LZO\0", "an lzop file", _UNPACK),
    _Format(0, b"!<arch>\n", "a Debian package or static library", "name a vmcore"),
    _Format(0, b"\xed\xab\xee\xdb", "an RPM package", "name a vmcore"),
    _Format(0, b"SQLite format 3\0", "an SQLite database", "name a vmcore"),
    _Format(257, b"ustar", "a tar archive", _UNPACK),
    _Format(0x202, b"HdrS", "a bootable kernel image", "name a vmcore"),
)


def describe(source: Source) -> str:
    """What a file is, as far as its first bytes tell, and what to do instead.

    >>> from types import SimpleNamespace
    >>> class Zip(SimpleNamespace):
    ...     read = lambda self, offset, size: b"PK\\x03\\x04..."[offset : offset + size]
    >>> describe(Zip(size=7))
    'a zip archive: unpack it'
    """
    start = source.read(0, _LOOKED_AT)
    if not source.size:
        return "an empty file: the dump was never written; take or copy it again"
    if found := _format_of(start):
        return f"{found.name}: {found.advice}"
    if start.count(0) == len(start):
        return "it begins with zeroes: a dump that was never finished, or a raw memory image"
    if all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 for byte in start):
        return "a text file: name a vmcore"
    return (
        f"in no format that is known (it begins with {start[:8].hex(' ')}); "
        "an ELF or kdump-compressed vmcore is needed"
    )


def may_be_memory(start: bytes) -> bool:
    """Whether a file that starts with these bytes, and is no dump that can be read, was meant to
    be one: a machine's memory in another form, or a dump that was never finished.

    >>> may_be_memory(b"EMiL..."), may_be_memory(bytes(4096)), may_be_memory(b"PK\\x03\\x04")
    (True, True, False)
    """
    found = _format_of(start)
    return found.memory if found else start.count(0) == len(start) > 0


def _format_of(start: bytes) -> _Format | None:
    return next((f for f in _FORMATS if start.startswith(f.signature, f.offset)), None)
