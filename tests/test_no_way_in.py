# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing is opened, run, asked for or written because a dump says so: what the kernel (strace) and
Python (audit events) see of the commands.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from drgn_reliable.files.kdump import KdumpFile
from drgn_reliable.files.kdumpwriter import write_kdump
from drgn_reliable.opening import inspect_dump
from tests.dumps import DUMPS, HOSTILE, TRANSITIONS

ROOT = Path(__file__).parent.parent
SMALL = next(dump for dump in TRANSITIONS if dump.name == "x86_64-6.12-user.kdump")
COMMANDS = [
    ["scan", str(HOSTILE.path), "-v"],
    ["scan", str(HOSTILE.path), "--format", "html"],
    ["klp", str(HOSTILE.path), "-v"],
    ["info", str(HOSTILE.path)],
    ["explain", str(HOSTILE.path), "1"],
    *(["scan", str(dump.path), "--format", "csv"] for dump in [*DUMPS, *TRANSITIONS]),
]

# What the kernel sees ----------------------------------------------------------------------------

CALL = re.compile(
    r'\d+ +(?P<name>\w+)\((?:AT_FDCWD, )?(?:"(?P<path>(?:[^"\\]|\\.)*)")?(?P<rest>.*)'
)
READS = {"open", "openat", "openat2", "stat", "lstat", "newfstatat", "statx", "access", "faccessat",
         "faccessat2", "readlink", "readlinkat", "getcwd", "statfs", "chdir", "utime", "execve",
         "getxattr", "lgetxattr"}  # fmt: skip
"""System calls that take a path and change nothing, if not asked to create or write."""
WRITES = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)")


class Call(NamedTuple):
    """A system call that has to do with files or networks."""

    name: str
    path: str
    rest: str

    @property
    def writes(self) -> bool:
        return self.name not in READS or WRITES.search(self.rest) is not None


def traced(
    tmp_path: Path, commands: list[list[str]], prelude: str = "", **environment: str
) -> list[Call]:
    """The system calls of some commands of ``drgn-reliable``, in one process, after a first one
    that has loaded all that they need."""
    strace = shutil.which("strace")
    if strace is None:
        if os.environ.get("VMLAB_REQUIRED"):
            pytest.fail("VMLAB_REQUIRED is set, but strace is not installed")
        pytest.skip("strace is not installed")
    script = tmp_path / "commands.py"
    script.write_text(
        f"import contextlib, io, os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from drgn_reliable.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    main(['info', {str(SMALL.path)!r}])\n"
        f"{prelude}\n"
        "os.path.exists('/vmlab-begin')\n"
        f"for command in {commands!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n        assert main(command) < 4\n"
        "os.path.exists('/vmlab-end')\n"
    )
    log = tmp_path / "calls"
    options = ["-f", "-qq", "-s", "4096", "-e", "trace=%file,%net,fork,vfork", "-e", "signal=none"]
    subprocess.run(
        [strace, "--seccomp-bpf", *options, "-o", str(log), sys.executable, "-B", str(script)],
        env={**os.environ, **environment}, check=True, timeout=300, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = log.read_text(errors="replace").splitlines()
    begin, end = (
        next(i for i, line in enumerate(lines) if mark in line)
        for mark in ("/vmlab-begin", "/vmlab-end")
    )
    found = [CALL.match(line) for line in lines[begin + 1 : end]]
    return [Call(each["name"], each["path"] or "", each["rest"]) for each in found if each]


def expected(call: Call, dumps: set[str], releases: set[str]) -> bool:
    """Whether a path has to do with Python, the system, a dump that was named, or with the standard
    places of debug information."""
    own = (*(sys.prefix, sys.base_prefix, str(ROOT / "drgn_reliable"), "/usr/lib", "/usr/share"),
           "/etc", "/lib", "/proc", "/sys", "/dev", "/usr/local/lib", "/boot")  # fmt: skip
    if call.path in dumps or call.path in ("", "/", "/var/tmp", str(ROOT)):
        return True
    if call.path.startswith(("/boot/", "/lib/modules/", "/usr/lib/debug/")):
        build_id = re.fullmatch(
            r"/usr/lib/debug/\.build-id/[0-9a-f]{2}/[0-9a-f]+\.debug", call.path
        )
        return bool(build_id) or any(release in call.path for release in releases)
    return call.path.startswith(own) and "/../" not in call.path


def test_a_dump_opens_nothing_but_itself(tmp_path: Path) -> None:
    """Of all dumps: no file is opened but the dump, and what is looked for by build ID or release
    in the standard places; none is written but the one without a name that a packed dump is
    unpacked to; nothing is run, and no socket made."""
    calls = traced(tmp_path, COMMANDS)
    dumps = {command[1] for command in COMMANDS} | {str(tmp_path)}  # where Python looks first
    releases = {dump.release for dump in [*DUMPS, *TRANSITIONS, HOSTILE]}
    opened = {call.path for call in calls if call.name.startswith("open")}
    assert dumps - {str(tmp_path)} <= opened
    assert [call for call in calls if not expected(call, dumps, releases)] == []
    written = [call for call in calls if call.writes]
    assert {(c.name, c.path) for c in written} == {("openat", "/var/tmp")}
    assert all("O_TMPFILE" in call.rest for call in written)
    assert len(written) == sum(command[1].endswith(".xz") for command in COMMANDS)


def test_a_release_is_no_path(tmp_path: Path) -> None:
    """VMCOREINFO says what the kernel's release is, and the debug files of a release lie below it:
    one that leads elsewhere is not followed. drgn by itself follows it."""
    place = "../../../../tmp/elsewhere"
    dump = str(renamed(SMALL.path, place, tmp_path / "dump"))
    calls = traced(tmp_path, [["scan", dump]])
    assert dump in {call.path for call in calls}
    assert [call for call in calls if "elsewhere" in call.path or "/../" in call.path] == []
    control = (
        f"import drgn\nprog = drgn.Program()\nprog.set_core_dump({dump!r})\n"
        "main, _ = next(prog.loaded_modules())\nos.path.exists('/vmlab-begin')\n"
        "prog.find_standard_debug_info([main])\n"
        "os.path.exists('/vmlab-end')"
    )
    followed = {call.path for call in traced(tmp_path, [], control)}
    assert any(path.endswith(f"/{place}/vmlinux") for path in followed)


def renamed(dump: Path, release: str, path: Path) -> Path:
    """A copy of a capsule with another release."""
    file = inspect_dump(str(dump)).file
    assert isinstance(file, KdumpFile)
    size = file.header.page_size
    text = re.search(rb"OSRELEASE=[^\0]*?\nCRASHTIME=\d+\n|OSRELEASE=[^\0]*", file.notes)
    assert text
    write_kdump(
        path,
        pages=((number, file.page(number)) for number in file.page_numbers()),
        page_size=size,
        uts=file.header.uts._replace(release=release),
        nr_cpus=1,
        vmcoreinfo=re.sub(rb"OSRELEASE=.*", b"OSRELEASE=" + release.encode(), text[0]),
        phys_base=file.header.phys_base,
        max_pfn=file.header.max_pfn,
    )
    return path


# What the network sees ---------------------------------------------------------------------------


@pytest.fixture
def debuginfod() -> Iterator[tuple[str, list[str]]]:
    """A server of debug information that has none, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


FIRST_OF_DRGN = """
import sys, drgn
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.set_enabled_debug_info_finders(["standard", "debuginfod"])
try:
    prog.load_debug_info(None, default=True)
except Exception:
    pass
"""


def test_no_server_is_asked_for_debug_information(
    debuginfod: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Though the environment names one, which drgn does ask where it is told to use servers."""
    address, asked = debuginfod
    environment = {
        **os.environ,
        "DEBUGINFOD_URLS": address,
        "DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache"),
    }
    store = str(tmp_path / "fleet.db")
    for arguments in (
        ["-m", "drgn_reliable", "scan", str(SMALL.path)],
        ["-m", "drgn_reliable", "klp", str(SMALL.path)],
        ["-m", "drgn_reliable", "explain", str(SMALL.path), "1"],
        ["-m", "drgn_reliable", "capsule", str(SMALL.path), "-o", str(tmp_path / "capsule")],
        ["-m", "drgn_reliable", "fleet", "scan", str(SMALL.path), "--store", store],
    ):
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, timeout=100
        )
        assert done.returncode in (0, 1), done.stderr
    assert asked == []
    assert not (tmp_path / "cache").exists()
    subprocess.run([sys.executable, "-c", FIRST_OF_DRGN, str(SMALL.path)], env=environment)
    assert any(path.startswith("/buildid/") for path in asked)


# What Python sees --------------------------------------------------------------------------------

AUDIT = """
import os, sys
_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
_watched = ("pickle.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
            "os.system", "socket.", "urllib.", "pty.", "ctypes.dlopen", "sqlite3.enable")

def _hook(event, arguments):
    if event.startswith(_watched):
        text = " ".join(map(repr, arguments)).replace("\\n", " ")[:200]
        os.write(_log, f"{os.getpid()} {event} {text}\\n".encode("utf-8", "replace"))

sys.addaudithook(_hook)
"""


class Seen(NamedTuple):
    process: str
    event: str
    arguments: str


def audited(folder: Path, code: list[str]) -> list[Seen]:
    """What a Python process and all that it starts do that might let somebody in."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(AUDIT)
    log = folder / "log"
    environment = {
        **os.environ,
        "AUDIT_LOG": str(log),
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }
    subprocess.run([sys.executable, *code], env=environment, capture_output=True, timeout=200)
    return [Seen(*line.split(" ", 2)) for line in log.read_text().splitlines()]


@cache
def events_of_fleet(folder: Path) -> list[Seen]:
    store = folder / "fleet.db"
    paths = [str(HOSTILE.path), str(SMALL.path)]
    return audited(
        folder / "audit",
        ["-m", "drgn_reliable", "fleet", "scan", *paths, "--store", str(store), "--jobs", "2"],
    )


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    return events_of_fleet(tmp_path_factory.mktemp("events"))


def test_no_pickle_is_read(events: list[Seen]) -> None:
    """Between a scan and its processes there is JSON, which is checked against types; the audit
    does see a pickle where there is one."""
    assert len({seen.process for seen in events}) == 3  # the scan and two dumps
    assert [seen for seen in events if seen.event.startswith("pickle.")] == []


def test_the_audit_sees_a_pickle(tmp_path: Path) -> None:
    code = "import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict()))"
    seen = audited(tmp_path / "audit", ["-c", code])
    assert [each.event for each in seen] == ["pickle.find_class"]


def test_only_our_own_interpreter_is_started(events: list[Seen]) -> None:
    """One for each dump; nothing of a dump is among its arguments. No socket, no other library than
    the process's own, to be told when its parent ends."""
    started = [seen.arguments for seen in events if seen.event == "subprocess.Popen"]
    assert len(started) == 2
    for arguments in started:
        assert arguments.startswith(repr(sys.executable))
        assert "kdump" not in arguments
    others = {seen.event for seen in events} - {"subprocess.Popen", "ctypes.dlopen", "os.fork"}
    assert others <= {"os.posix_spawn"}
    loaded = {seen.arguments for seen in events if seen.event == "ctypes.dlopen"}
    assert loaded <= {"None"}
