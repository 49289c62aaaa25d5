# SPDX-License-Identifier: LGPL-2.1-or-later
"""``scan --format html`` and ``speedscope``: the fleet's report of one dump."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from drgn_reliable import Kernel, open_dump
from drgn_reliable.fleet.onedump import one_dump_report
from drgn_reliable.report import Scanner
from tests.dumps import DUMP_6_1, VMCORES
from tests.fleetdirs import SMALL

SCHEMA = json.loads(
    resources.files("drgn_reliable").joinpath("schema/drgn-reliable-fleet-1.json").read_text()
)


def scan(*arguments: str) -> str:
    """What a scan prints."""
    done = subprocess.run(
        [sys.executable, "-m", "drgn_reliable", "scan", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    return done.stdout


def data_of(page: str) -> Any:
    """The data that a page draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found.group(1))


@pytest.mark.parametrize("dump", [SMALL, DUMP_6_1.path], ids=["stalled", "6.1"])
def test_the_page_says_what_the_other_formats_say(dump: Path) -> None:
    """As many tasks of each verdict and reason as JSON has, every one of them named."""
    data = data_of(scan(str(dump), "--format", "html"))
    expected = json.loads(scan(str(dump), "--format", "json"))
    jsonschema.validate(data, SCHEMA)
    assert data["one_dump"] is True
    assert data["title"] == str(dump)
    assert data["totals"]["kernel"] == expected["summary"]["kernel"]
    assert data["totals"]["proof"] == expected["summary"]["proof"]
    reasons = {line["reason"]: line["tasks"] for line in data["by_reason"]}
    assert reasons == expected["summary"]["reasons"]
    named = {task["task"] for group in data["groups"] for task in group["examples"]}
    assert named == {task["task"] for task in expected["tasks"]}
    assert [group["more"] for group in data["groups"]] == [0] * len(data["groups"])


def test_a_stalled_transition_is_on_the_page() -> None:
    """With the functions in the way, as ``klp`` has them."""
    data = data_of(scan(str(SMALL), "--format", "html"))
    (transition,) = data["transitions"]
    assert (transition["patch"], transition["pending"], transition["stalled"]) == (
        "vmlab_klp_user",
        8,
        True,
    )
    assert "eventfd_read" in {line["function"] for line in data["blocking"]}


def test_a_choice_of_tasks_is_a_page_of_those() -> None:
    """Nothing is said of others, or of a transition that others hold up."""
    data = data_of(scan(str(SMALL), "--task", "65", "--format", "html"))
    assert data["totals"]["tasks"] == 1
    assert [line["function"] for line in data["blocking"]] == ["eventfd_read"]
    data = data_of(scan(str(SMALL), "--only", "idle", "--format", "html"))
    assert data["blocking"] == []


def test_speedscope_has_every_task_and_a_profile_for_each_verdict() -> None:
    """The outermost frame first, under the task's name."""
    document = json.loads(scan(str(DUMP_6_1.path), "--format", "speedscope"))
    tasks = {profile["name"]: sum(profile["weights"]) for profile in document["profiles"]}
    assert tasks.pop("all") == DUMP_6_1.count()
    assert tasks == {
        verdict: DUMP_6_1.count(verdict) for verdict in ("reliable", "unreliable", "running")
    }
    names = [frame["name"] for frame in document["shared"]["frames"]]
    stacks = [[names[at] for at in each] for each in document["profiles"][0]["samples"]]
    assert ["kthreadd", "ret_from_fork", "kthreadd", "schedule", "__schedule"] in stacks


def test_a_program_without_a_file_has_a_page() -> None:
    """As drgn's shell may have one: of a live kernel, or of memory from elsewhere."""
    kernel = Kernel(open_dump(str(VMCORES / "s390x-6.12.kdump")))
    scanner = Scanner(kernel)
    report = scanner.dump_report("", [scanner.report(task) for task in kernel.tasks.find("1")])
    kernel.prog.cache["drgn_reliable.dump"] = None
    data = one_dump_report(kernel, report)
    assert data["totals"]["tasks"] == 1
    assert data["dumps"][0]["size"] is None
