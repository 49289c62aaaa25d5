# SPDX-License-Identifier: LGPL-2.1-or-later
"""In the guest: look at the running kernel, have the kernel asked before and after, tell the host.

What it finds goes to the console, as compressed JSON in base64 with its checksum.
"""

import base64
import contextlib
import ctypes
import hashlib
import io
import json
import os
import sys
import time
import traceback
import zlib
from pathlib import Path

sys.path.insert(0, "/usr/site")

from drgn_reliable import Kernel, Scanner, cli, target
from drgn_reliable.kcore import open_kcore

ORACLE = Path("/proc/vmlab_oracle")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
LINE = 900
ROUNDS = 25
CAP_SYS_RAWIO = 17
PR_CAPBSET_DROP = 24


def say(text):
    Path("/dev/console").write_text(f"vmlab: {text}\n")


def glance():
    """The kernel's own verdicts, at one instant."""
    ORACLE.write_text("glance")
    return ORACLE.read_text(errors="surrogateescape")


def reads():
    """How many system calls this process has read with; 0 if it may not know."""
    if not os.access("/proc/self/io", os.R_OK):
        return 0
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["syscr"])


def command(*words):
    """What the command line says: its exit status, output, errors, and how long it took."""
    out, err, started, read = io.StringIO(), io.StringIO(), time.monotonic(), reads()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = int(cli.main(words))
        except SystemExit as e:
            status = e.code
        except BaseException:
            status = -1
            traceback.print_exc()
    return {
        "words": words,
        "status": status,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "seconds": time.monotonic() - started,
        "reads": reads() - read,
    }


def judged(*words):
    """The same, and what the kernel says before and after."""
    before = glance()
    found = command(*words)
    return {**found, "before": before, "after": glance()}


def apart(prepare, *words):
    """The same of a process that is prepared first."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            prepare()
            os.write(writer, json.dumps(command(*words)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    return found


def become_nobody():
    os.setgroups([])
    os.setuid(65534)


def drop_capability():
    """Root without the right to read memory: of the bounding set nothing survives exec()."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for number in range(3):
        sets[number] &= ~(1 << CAP_SYS_RAWIO)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def movers(kernel):
    """What is said of the tasks that never stay where they are, again and again."""
    found = {}
    scanner = Scanner(kernel)
    tasks = [task for task in kernel.tasks if task.comm == "mover"]
    for _ in range(ROUNDS):
        # Without the check, what was read of a task must not be older than its stack.
        for report in scanner.reports(kernel.tasks.read(task.address) for task in tasks):
            functions = [frame.function for frame in report.frames]
            reasons = [reason.id for reason in report.reasons]
            verdicts = report.kernel.verdict.value, report.proof.verdict.value
            key = json.dumps([*verdicts, functions, reasons])
            found[key] = found.get(key, 0) + 1
    return [[*json.loads(key), count] for key, count in sorted(found.items())]


def moving(kernel):
    """The same with each walk checked, and with none."""
    checked = movers(kernel)
    kernel.live = None
    return {"checked": checked, "unchecked": movers(kernel)}


@contextlib.contextmanager
def opened_once(prog, kernel):
    """Have all commands use that, for opening it takes the longest of all without KVM."""
    target.open_kcore, cli.Kernel = lambda symbols: prog, lambda prog: kernel
    yield
    target.open_kcore, cli.Kernel = open_kcore, Kernel


def send(found):
    packed = zlib.compress(json.dumps(found).encode(errors="surrogateescape"))
    text = base64.b64encode(packed).decode()
    lines = [text[at : at + LINE] for at in range(0, len(text), LINE)]
    say(f"sending {len(lines)} lines, sha256 {hashlib.sha256(packed).hexdigest()}")
    with Path("/dev/console").open("w") as console:
        for line in lines:
            console.write(f"vmlab-data: {line}\n")
    say("sent")


def look(found, kernel):
    """At the running kernel."""
    found["scan"] = judged("scan", "--live", "--format", "jsonl")
    found["explain"] = judged("explain", "--live", "1", "--format", "json", "--words", "none")
    os.system("insmod /lib/vmlab/vmlab_livepatch.ko")
    time.sleep(2)
    found["klp"] = judged("klp", "--live", "--format", "json")
    say("looking at those who move")
    found["movers"] = moving(kernel)


def forbid(found):
    """What is said where looking is not permitted, or no use."""
    found["nobody"] = apart(become_nobody, "scan", "--live")
    found["incapable"] = apart(drop_capability, "scan", "--live")
    if LOCKDOWN.exists():
        LOCKDOWN.write_text("confidentiality")
        found["locked"] = command("scan", "--live")
    os.system("mount --bind /dev/null /proc/kcore")
    found["hidden"] = command("scan", "--live")


def main():
    found = {"python": sys.version}
    say(f"observing with Python {sys.version.split()[0]}")
    started = time.monotonic()
    prog = open_kcore()
    kernel = Kernel(prog)
    found["opened"] = time.monotonic() - started
    say("scanning")
    with opened_once(prog, kernel):
        look(found, kernel)
    say("looking at what is forbidden")
    forbid(found)
    send(found)


try:
    main()
except BaseException as error:
    traceback.print_exc()
    say(f"failed: {error!r}")
