# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which dumps to scan: files, directories, patterns and manifests.

In a directory or behind a pattern, what is a dump is told by content. What is none is passed over,
and why; a file that may not be read, that holds memory in a form that is not read here, or that
begins with nothing but zeroes, was meant to be a dump and counts as one that cannot be scanned. A
file that is named itself always counts.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import yaml

from drgn_reliable.errors import UsageError
from drgn_reliable.files import foreign
from drgn_reliable.files.buildid import build_id_of
from drgn_reliable.files.elfcore import ELF_SIGNATURE
from drgn_reliable.files.flattened import FLATTENED_SIGNATURE
from drgn_reliable.files.kdump import KDUMP_SIGNATURE
from drgn_reliable.files.packed import first_bytes, packing_of

__all__ = ("Found", "Place", "Source", "find", "read_sources")

_MANIFESTS = (".yaml", ".yml")
_START = 4096
"""Bytes that decide what a file is."""
_ET_CORE = (b"\4\0", b"\0\4")


@dataclass(frozen=True)
class Source:
    """Where to look for dumps, and what is known of them."""

    path: str
    """A file, a directory or a pattern; absolute."""
    host: str | None = None
    """The machine that was dumped, where the manifest says it."""
    labels: dict[str, str] = field(default_factory=dict)
    symbols: tuple[str, ...] = ()
    vmcoreinfo: str | None = None
    worker: str | None = None
    """The machine on which a Dask worker finds and scans them; None for anywhere."""


@dataclass(frozen=True)
class Place:
    """A file to scan."""

    path: str
    source: Source

    @property
    def name(self) -> str:
        """The path, after the machine that has to read it, if it is one of several."""
        return f"{self.source.worker}:{self.path}" if self.source.worker else self.path


class Found(NamedTuple):
    """What one source holds."""

    dumps: list[str]
    passed_over: list[tuple[str, str]]
    """Other files, and what each is."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    host: str | None = None
    labels: dict[str, str] = {}
    symbols: list[str] = []
    vmcoreinfo: str | None = None
    worker: str | None = None


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    dumps: Annotated[list[_Entry], msgspec.Meta(min_length=1)]
    labels: dict[str, str] = {}
    symbols: list[str] = []


def read_sources(named: Iterable[str], symbols: Iterable[str] = ()) -> list[Source]:
    """The sources that a command line names.

    :param named: files, directories, patterns, and manifests (``.yaml``, ``.yml``).
    :param symbols: debug files of kernels, for all of them.
    :raises UsageError: for a manifest or a debug file that cannot be read.
    """
    files = tuple(_absolute(file) for file in symbols)
    for file in files:
        build_id_of(file)
    sources: list[Source] = []
    for name in named:
        if name.endswith(_MANIFESTS) and os.path.isfile(name):
            sources += _of_manifest(name, files)
        else:
            sources.append(Source(_absolute(name), symbols=files))
    return sources


def _absolute(path: str) -> str:
    """The path from the root, links as they are."""
    return os.path.normpath(Path(path).absolute())


def _of_manifest(path: str, symbols: tuple[str, ...]) -> Iterator[Source]:
    try:
        with open(path, "rb") as file:
            # Scalars as they are written: 6.10 is no number, and yes is a word.
            plain = yaml.load(file.read(), yaml.BaseLoader)
        manifest = msgspec.convert(plain, _Manifest)
    except OSError as e:
        raise UsageError(f"{path}: the manifest cannot be read ({e.strerror})") from e
    except (msgspec.ValidationError, yaml.YAMLError, UnicodeError, RecursionError) as e:
        line = " ".join(str(e).split())
        raise UsageError(f"{path}: not a manifest ({line})") from e
    folder = os.path.dirname(_absolute(path))

    def absolute(name: str) -> str:
        return os.path.normpath(os.path.join(folder, name))

    for entry in manifest.dumps:
        own = tuple(absolute(name) for name in [*manifest.symbols, *entry.symbols])
        for name in own if entry.worker is None else ():
            _check(path, "symbols", name)
            build_id_of(name)
        info = entry.vmcoreinfo and absolute(entry.vmcoreinfo)
        if info and entry.worker is None:
            _check(path, "vmcoreinfo", info)
        yield Source(
            absolute(entry.path),
            entry.host or None,
            {**manifest.labels, **entry.labels},
            symbols + own,
            info,
            entry.worker,
        )


def _check(manifest: str, member: str, file: str) -> None:
    if not os.path.isfile(file):
        raise UsageError(f"{manifest}: {member} {file}: no such file")


def find(path: str, avoid: Container[str] = ()) -> Found:
    """The dumps at a path, each once, in the order of their names.

    :param avoid: real paths of files that must not even be opened.
    :raises UsageError: if there is nothing at all.
    """
    if os.path.isdir(path):
        return _of_files(_walk(path), avoid)
    if os.path.lexists(path):
        if not os.path.isfile(path):
            raise UsageError(f"{path}: is not a file; name a vmcore, a directory or a pattern")
        if os.path.realpath(path) in avoid:
            raise UsageError(f"{path}: the store itself; name a vmcore, a directory or a pattern")
        return Found([path], [])
    if not glob.has_magic(path):
        raise UsageError(f"{path}: does not exist; name a vmcore, a directory, a pattern or a "
                         "manifest")  # fmt: skip
    matches = sorted(_matches(path))
    if not matches:
        raise UsageError(f"{path}: no file fits this pattern")
    return _of_files((found for match in matches for found in _each(match)), avoid)


def _matches(pattern: str) -> Iterator[str]:
    """What fits a pattern; ``**`` does not follow links to directories, as glob's own does."""
    before, recursive, after = pattern.partition(f"{os.sep}**")
    if not recursive or after[:1] not in ("", os.sep):
        yield from glob.iglob(pattern)
        return
    for top in glob.iglob(before or os.sep):
        if not after:
            yield top
            continue
        for here, folders, _ in os.walk(top):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from _matches(glob.escape(here) + after)


def _each(path: str) -> Iterator[str]:
    return _walk(path) if os.path.isdir(path) else iter([path])


def _walk(folder: str) -> Iterator[str]:
    """The files in a directory and below, and the directories that may not be read: nobody knows
    what is in them. Links to directories are not followed."""
    unread: list[OSError] = []
    for here, folders, files in os.walk(folder, onerror=unread.append):
        folders.sort()
        for name in sorted(files):
            yield os.path.join(here, name)
    for error in unread:
        yield str(error.filename)


def _of_files(files: Iterable[str], avoid: Container[str]) -> Found:
    found = Found([], [])
    seen: set[str] = set()
    for path in files:
        real = os.path.realpath(path)
        if real in seen or real in avoid:
            continue
        seen.add(real)
        if why := _no_dump(path):
            found.passed_over.append((path, why))
        else:
            found.dumps.append(path)
    return found


def _no_dump(path: str) -> str:
    """What a file is that is not to be scanned; empty for one that is."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            # A directory comes as far as this only if it cannot be read: so says its scan.
            return "" if stat.S_ISDIR(mode) else "not a regular file"
        with open(path, "rb") as file:
            start = file.read(_START)
            packing = packing_of(start)
            if packing:
                file.seek(0)
                start = first_bytes(file, packing, _START)
    except FileNotFoundError:
        return "a link that leads nowhere"
    except OSError as e:
        return "a link that leads nowhere" if e.errno == errno.ELOOP else ""
    except Exception:  # unreadable or damaged: the scan says how, in a process of its own
        return ""
    if start.startswith((KDUMP_SIGNATURE, FLATTENED_SIGNATURE)) or foreign.may_be_memory(start):
        return ""
    if start.startswith(ELF_SIGNATURE):
        return "" if start[16:18] in _ET_CORE else "an ELF executable or object"
    what = re.split("[:;]", foreign.describe(_Start(path, start)))[0]
    return f"{what} in {packing.name}" if packing else what


class _Start:
    """The first bytes of a file, as a :class:`drgn_reliable.files.source.Source`."""

    def __init__(self, path: str, start: bytes) -> None:
        self.path, self._start, self.size = path, start, len(start)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from an offset on, as far as they are known."""
        return self._start[offset : offset + size]

    def spans(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """All that is known."""
        yield offset, max(0, min(size, self.size - offset))
