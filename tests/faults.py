# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps that do something to the process that opens them, whatever the readers can take.

A module that every new interpreter imports makes ``open_dump`` obey the first line of a file that
begins with ``FAULT``; what dies, hangs or runs out of memory is a real process, for real.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

_OBEY = '''
import builtins, mmap, os, re, signal, sys, time

import drgn_reliable.fleet.child as child

real = child.open_dump
PIPE = int(os.environ.get("FAULT_PIPE", "-1"))


def pipe():
    """The descriptor to which the answer goes: the only pipe beside the standard ones."""
    return max(int(fd) for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}")
               and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"))


def obey(path, choose, watch, vmcoreinfo, search):
    with open(path, "rb") as file:
        line = file.readline(200).decode("utf-8", "replace").split()
    if line[:1] != ["FAULT"]:
        return real(path, choose, watch, vmcoreinfo, search)
    with open(path + ".pid", "w") as file:
        file.write(str(os.getpid()))
    act, *what = line[1:]
    if act == "rungs":  # only with debug information
        choose(b"")
        if search:
            os.abort()
        return real(what[0], choose, watch, vmcoreinfo, search)
    if act == "signal":
        os.kill(os.getpid(), getattr(signal, what[0]))
    if act == "exit":
        os._exit(int(what[0]))
    if act == "say":
        os.write(pipe(), " ".join(what).encode() + b"\\n")
        os._exit(0)
    if act == "flood":
        try:
            while True:
                os.write(pipe(), b"x" * 65536)
        except BrokenPipeError:
            os._exit(0)
    if act == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        while True:
            time.sleep(1)
    if act == "busy":  # in C code that lets nobody else run
        re.match("(a*)*b", "a" * 100)
    if act == "deaf":
        os.close(pipe())
        time.sleep(1000)
    if act == "memory":
        kept = []
        while True:
            kept.append(bytearray(1 << 24))
    if act == "map":  # what is mapped is the dump's, not the process's
        with open(path, "r+b") as file:
            file.truncate(4 << 30)
            held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        raise child.ReliableError(f"mapped {len(held) >> 30} GiB")
    if act == "raise":
        raise getattr(builtins, what[0])(" ".join(what[1:]))
    if act == "print":
        print("noise" * 10000, file=sys.stderr)
        os._exit(3)
    if act == "chatter":
        while True:
            os.write(2, b"noise" * 1000)
    if act == "limits":
        import resource
        raise child.ReliableError(str([
            os.environ["OMP_NUM_THREADS"], resource.getrlimit(resource.RLIMIT_CORE)[0],
            resource.getrlimit(resource.RLIMIT_DATA)[0], os.getsid(0) == os.getpid()]))
    raise AssertionError(act)


child.open_dump = obey
'''


@pytest.fixture
def faults(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every process that is started obey such files."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "sitecustomize.py").write_text(_OBEY)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def fault(path: Path, act: str) -> Path:
    """A file that has this done to whoever opens it."""
    path.write_bytes(f"FAULT {act}\n".encode())
    return path


def is_gone(path: Path) -> bool:
    """Whether the process that has opened such a file last is gone."""
    number = int(Path(f"{path}.pid").read_text())
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].startswith("Z")


def wait_for(happens: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)
