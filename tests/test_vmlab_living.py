# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds a scan of a guest that goes on to its kernel's verdicts, and what such a guest is made
of: here without a guest, which ``test_live_guest.py`` boots."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from contrib.vmlab import build, living, python
from contrib.vmlab.guest import GuestError
from contrib.vmlab.initramfs import Initramfs
from contrib.vmlab.living import SENDING, Scan
from contrib.vmlab.machines import MACHINES
from contrib.vmlab.oracle import OracleError

from .guests import read_newc

ROWS = (
    "N 3\n"
    "T task a0 1 1 93 0 1 2 f100,f200, B  init\n"
    "T task b0 7 7 12 0 0 -22  B f100, hq\n"
    "T task c0 9 9 12 1 0 -16  B  migration/0\n"
    "END\n"
)
MOVED = ROWS.replace("1 1 93", "1 1 94").replace("N 3", "N 4")


def line(task: int, pid: int, comm: str, verdict: str, *entries: str) -> str:
    kernel = {"verdict": verdict, "entries": list(entries)}
    return json.dumps({"task": f"{task:#x}", "pid": pid, "comm": comm, "kernel": kernel})


INIT = line(0xA0, 1, "init", "reliable", "0xf100", "0xf200")
HQ = line(0xB0, 7, "hq", "unreliable")
OTHER = line(0xA0, 1, "init", "reliable", "0xf100")

SCANS: dict[str, tuple[str, tuple[str, ...], list[str]]] = {
    "all as it was": (ROWS, (INIT, HQ), []),
    "who ran may be anywhere": (MOVED, (OTHER, HQ), []),
    "another trace": (ROWS, (OTHER, HQ), ["1 init: "]),
    "another verdict": (ROWS, (INIT, line(0xB0, 7, "hq", "reliable")), ["7 hq: "]),
    "another task there": (ROWS, (INIT, line(0xB0, 8, "hq", "unreliable")), ["7 hq: "]),
    "one is missing": (ROWS, (INIT,), ["7 hq: missing"]),
}


@pytest.mark.parametrize("name", SCANS)
def test_what_stood_still_has_to_be_the_same(name: str) -> None:
    """Verdict and entries are compared for tasks with the same row before and after, and no other;
    running tasks are not asked."""
    after, lines, wrong = SCANS[name]
    scan = Scan(ROWS, "\n".join(("{}", *lines, "{}")), after)
    found = scan.differences()
    assert len(found) == len(wrong)
    assert all(line.startswith(start) for line, start in zip(found, wrong, strict=True))
    assert len(scan.still()) == (1 if after == MOVED else 2)


def test_rows_of_a_glance_are_numbered() -> None:
    """So that of two it is known which is later."""
    assert (living.number_of(ROWS), living.number_of(MOVED)) == (3, 4)
    with pytest.raises(OracleError, match="not of a glance"):
        living.number_of("END\n")


def sent(found: Any) -> tuple[str, re.Match[str]]:
    """A console with what a guest sends."""
    packed = zlib.compress(json.dumps(found).encode())
    text = base64.b64encode(packed).decode()
    lines = [f"vmlab-data: {text[at : at + 8]}" for at in range(0, len(text), 8)]
    said = SENDING.search(
        f"vmlab: sending {len(lines)} lines, sha256 {hashlib.sha256(packed).hexdigest()}"
    )
    assert said
    return "\n".join(["[ 1.0] a word of the kernel's", *lines]), said


def test_what_a_guest_sends_comes_whole_or_not_at_all() -> None:
    """A lost line and a changed one are noticed."""
    console, said = sent({"scan": "x" * 100})
    assert living._received(console, said) == {"scan": "x" * 100}
    lost = console.rpartition("\n")[0]
    for wrong in (lost, f"{lost}\nvmlab-data: AAAA"):
        with pytest.raises(GuestError, match="lines came, or not as they were sent"):
            living._received(wrong, said)


def test_a_guest_has_what_the_project_needs() -> None:
    """The wheels are those of the project's own list, which tests and extras are not in."""
    wanted = python.requirements()
    assert {re.split("[<>=]", line)[0] for line in wanted} >= {"drgn", "msgspec", "pyelftools"}
    assert not any("pytest" in line or "distributed" in line for line in wanted)


def test_archives_follow_each_other() -> None:
    """Plain or compressed, links too: the kernel takes one after the other."""
    image = Initramfs()
    image.link("usr/lib64/ld.so", "/usr/lib/ld.so.2")
    plain, packed = io.BytesIO(), io.BytesIO()
    image.write_plain(plain)
    image.write(packed)
    assert gzip.decompress(packed.getvalue()) == plain.getvalue()
    link = next(entry for entry in read_newc(packed.getvalue()) if entry.kind[0] == "l")
    assert (link.name, link.content) == ("usr/lib64/ld.so", b"/usr/lib/ld.so.2")


def test_the_same_guest_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same sources for the same kernel; another kernel's is another."""
    made = []

    def compiled(*arguments: Any) -> build.Built:
        made.append(arguments[3])
        return build.Built({"states": b"program"}, {"a.ko": arguments[3].encode()})

    monkeypatch.setattr(build, "build", compiled)
    arguments = (tmp_path / "cache", tmp_path / "root", tmp_path / "guest", MACHINES["x86_64"])
    for release in ("6.1", "6.1", "6.12"):
        built = build.built_once(*arguments, release, print)
        assert built.programs == {"states": b"program"}
        assert built.modules == {"a.ko": release.encode()}
    assert made == ["6.1", "6.12"]
