# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real kernel that runs: scanned from inside, by /proc/kcore, and from outside, over QMP.

One guest, booted once, with tasks in every state, some that never stay where they are and some
that come and go. Its own kernel is asked before and after each look: of what stood still it has to
say the same.
It needs what ``test_real_guest.py`` needs, and takes a minute.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from contrib.vmlab import lab, living, scenario, verdicts
from contrib.vmlab.__main__ import default_cache
from contrib.vmlab.living import Living, Scan
from contrib.vmlab.packages import PackageError
from drgn_reliable.qemu import take_snapshot
from tests.test_real_guest import NEEDED, missing, shutil

pytestmark = pytest.mark.guest

ASLEEP = ("do_nanosleep", "do_sys_poll")
"""What a task named "mover" sleeps in: one or the other."""
SCENARIO = os.environ.get("VMLAB_LIVE", "x86_64-6.1-live")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    """The guest, when it has scanned itself, and goes on."""
    if absent := [name for name in NEEDED if shutil.which(name) is None]:
        missing(f"{', '.join(absent)} is not installed")
    directory = tmp_path_factory.mktemp("living")
    options = lab.Options(default_cache())
    try:
        with living.running(scenario.load(SCENARIO), directory, options, print) as found:
            yield found
    except PackageError as e:
        missing(f"its packages cannot be had ({e})")


@pytest.fixture
def inside(guest: Living) -> Scan:
    """The guest's scan of itself."""
    found = guest.found["scan"]
    assert found["status"] == 1, found["err"]
    return Scan(found["before"], found["out"], found["after"])


def test_who_stood_still_is_as_the_kernel_says(inside: Scan) -> None:
    """scan --live inside: of all tasks that did not move, verdict and entries are the kernel's."""
    assert inside.differences() == []
    assert len(inside.still()) > 200
    assert {row.verdict for row in inside.still().values()} == {"reliable", "unreliable"}


def test_a_scan_that_nothing_is_held_for_is_whole(inside: Scan) -> None:
    """Tasks that come and go while they are listed are no problem; who is there all the time is
    found."""
    assert inside.summary()["problems"] == []
    before, after = (
        {(row.task, row.pid): row.comm for row in verdicts.parse(rows)}
        for rows in (inside.before, inside.after)
    )
    seen = {(int(report["task"], 16), report["pid"]) for report in inside.reports()}
    assert set(before) & set(after) <= seen
    assert {"mover", "storm"} <= set(before.values())
    assert set(before) - set(after) and set(after) - set(before)


def test_few_reads_for_a_task(guest: Living, inside: Scan) -> None:
    """Reads are system calls. Nine are for a task, and lists and names are read besides."""
    assert guest.found["scan"]["reads"] < 50 * len(inside.reports())


def test_a_mover_is_in_one_place_or_nowhere(guest: Living) -> None:
    """Of tasks that go back and forth between two system calls, a trace is of one of them, or of
    one that was preempted elsewhere. None is torn, as some are of walks that are not checked."""
    rounds = guest.found["movers"]
    seen: Counter[str] = Counter()
    asleep = set()
    for verdict, proof, functions, reasons, count in rounds["checked"]:
        seen["moved" if "task-moved" in reasons else verdict] += count
        if verdict == "reliable":
            assert proof == "proven" and reasons == []
            found = sum(name in functions for name in ASLEEP)
            if any("interrupt" in name or "preempt" in name for name in functions):
                assert found <= 1, functions
                continue
            assert found == 1, functions
            asleep.add(tuple(functions))
        elif verdict != "running":
            # A mover is preempted, or woken and not yet running, but never unreliable with ORC.
            raise AssertionError((verdict, proof, functions, reasons))
    assert len(asleep) == len(ASLEEP)
    assert seen["reliable"] > 50


def test_explain_of_the_living(guest: Living) -> None:
    """explain --live PID shows what the kernel says of that task."""
    found = guest.found["explain"]
    assert found["status"] == 0, found["err"]
    (explained,) = json.loads(found["out"])["explanations"]
    (row,) = [row for row in verdicts.parse(found["before"]) if row.pid == 1]
    assert explained["task"]["kernel"]["entries"] == [f"{entry:#x}" for entry in row.entries]


def test_a_transition_of_the_living(guest: Living) -> None:
    """klp --live names the patch of the transition and whom it waits for: all for whom it waits
    before and after, and no others than those of before or after."""
    found = guest.found["klp"]
    assert found["status"] == 1, found["err"]
    report = json.loads(found["out"])
    assert report["transition"]["patch"] == "vmlab_livepatch"
    assert report["problems"] == []
    waiting = [pending_of(found[when]) for when in ("before", "after")]
    pending = {int(task["task"], 16) for task in report["tasks"]}
    rows = (*verdicts.parse(found["before"]), *verdicts.parse(found["after"]))
    names = {row.task: (row.pid, row.comm) for row in rows}
    assert [names[task] for task in (waiting[0] & waiting[1]) - pending] == []
    assert waiting[0] & waiting[1] and pending & set(names) <= waiting[0] | waiting[1]


def pending_of(rows: str) -> set[int]:
    """The tasks that have not switched, as the kernel says in its "S" rows."""
    (target,) = re.findall(r"^L \S+ (-?\d+) ", rows, re.MULTILINE)
    states = re.findall(r"^S (\S+) (-?\d+) ", rows, re.MULTILINE)
    return {int(task, 16) for task, state in states if state != target}


REFUSED = {
    "nobody": "/proc/kcore: may not be read: only root may (Permission denied)",
    "incapable": "/proc/kcore: may not be read: it takes the capability CAP_SYS_RAWIO",
    "locked": "/proc/kcore: may not be read: this kernel is locked down (kernel_lockdown",
    "hidden": "/proc/kcore: not the kernel's memory: a container hides it",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_kernel_that_may_not_be_read_says_why(guest: Living, name: str) -> None:
    """Not root, root without the capability, a locked down kernel, /proc/kcore covered up."""
    found = guest.found[name]
    assert found["status"] == 3 and found["out"] == ""
    (line,) = found["err"].splitlines()
    assert line.startswith(f"drgn-reliable: {REFUSED[name]}")


# From outside --------------------------------------------------------------------------------


def assert_goes_on(guest: Living) -> None:
    """The guest runs, and gets somewhere."""
    assert guest.guest.qmp.execute("query-status")["status"] == "running"
    number = living.number_of(guest.rows())
    assert living.number_of(guest.rows_after(number + 1)) > number


def test_a_guest_over_qmp_is_as_its_kernel_says(guest: Living) -> None:
    """scan --qemu: of all tasks that did not move from the glance before to the glance after,
    verdict and entries are the kernel's; and the guest goes on."""
    outside = living.scan_over_qmp(guest)
    assert outside.differences() == []
    assert len(outside.still()) > 150
    assert outside.summary()["problems"] == []
    assert_goes_on(guest)


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
def test_a_guest_goes_on_at_once_whatever_ends_its_reader(
    guest: Living, number: signal.Signals
) -> None:
    """Ended while QEMU writes, it leaves a guest that runs before QEMU could have written all, a
    dump that has failed, and a QEMU that makes the next one."""
    ask = guest.guest.qmp.execute
    command = [sys.executable, "-m", "drgn_reliable", "scan", "--qemu", str(guest.socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while ask("query-status")["running"]:
            assert process.poll() is None, "it was over before it could be ended"
        process.send_signal(signal.SIGSTOP)  # as long as it does not read, QEMU cannot go on
        time.sleep(1)
        assert ask("query-dump")["status"] == "active"
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        ended = time.monotonic()
        while not ask("query-status")["running"]:
            assert time.monotonic() < ended + 5
            time.sleep(0.01)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    found = ask("query-dump")
    assert found["status"] == "failed" and found["completed"] < found["total"]
    assert_goes_on(guest)
    with take_snapshot(str(guest.socket)).file as file:
        assert os.fstat(file.fileno()).st_size >= found["total"]
    assert ask("query-status")["running"]


def test_a_paused_guest_is_left_paused(guest: Living) -> None:
    """Whoever paused it finds it paused."""
    guest.guest.qmp.execute("stop")
    try:
        command = [sys.executable, "-m", "drgn_reliable", "scan", "--qemu", str(guest.socket)]
        done = subprocess.run([*command, "--task", "1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "the guest stood still for 0.00 seconds, and is paused" in done.stderr
        assert guest.guest.qmp.execute("query-status")["status"] == "paused"
    finally:
        guest.guest.qmp.execute("cont")
    assert_goes_on(guest)
