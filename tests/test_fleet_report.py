# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a fleet's store answers: hand-made ones as tables, and real dumps against what is said of
each alone."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet import report as reports
from drgn_reliable.fleet.changes import Earlier, changes_between, changes_since
from drgn_reliable.fleet.questions import answer
from drgn_reliable.fleet.report import by_release
from drgn_reliable.selection import summary_counts
from drgn_reliable.transition import Decision
from tests.dumps import TRANSITIONS
from tests.fleets import (
    STRICT,
    Fleet,
    drawn,
    failed,
    fleet_of,
    fleet_of_dumps,
    real,
    record,
    reported,
    shown,
)

# Hand-made stores --------------------------------------------------------------------------------

SLEEPER = "1 app reliable proven schedule pipe_read @ sleeping pipe_read"
DEEP = "2 deep unreliable undecided schedule walk ! too-deep @ unreliable"
SPINNER = "3 spin running proven spin ! running @ running"
READY = "4 ready reliable proven schedule poll @ would-switch"
IDLE = "5 idle reliable proven schedule poll"


def test_what_blocks_is_sorted_by_hosts() -> None:
    """Then by dumps, then by tasks; who would switch blocks nobody."""
    fleet = fleet_of(
        ("a", record(SLEEPER, SPINNER, READY, IDLE, patch="fix")),
        ("a", record(SPINNER, SPINNER, patch="fix")),
        ("b", record(SLEEPER, "9 x" + DEEP[6:], DEEP, patch="fix")),
        ("c", record(SLEEPER.replace("pipe_read", "pipe_read[pipes]"), DEEP, patch="fix")),
        ("d", record(SLEEPER, patch="other")),
        ("d", record(IDLE, READY, patch="other")),
    )
    found = reported(fleet)
    keys = ("patch", "decision", "function", "module", "reason", "dumps", "hosts", "tasks")
    assert [tuple(line[key] for key in keys) for line in found["blocking"]] == [
        ("fix", "unreliable", None, None, "too-deep", 2, 2, 3),
        ("fix", "sleeping", "pipe_read", None, None, 2, 2, 2),
        ("fix", "running", None, None, None, 2, 1, 3),
        ("fix", "sleeping", "pipe_read", "pipes", None, 1, 1, 1),
        ("other", "sleeping", "pipe_read", None, None, 1, 1, 1),
    ]
    first = found["blocking"][0]
    assert (first["host_names"], first["dump_ids"]) == (["b", "c"], [3, 4])
    for line in found["blocking"]:
        for id in line["groups"]:
            assert line["patch"] in found["groups"][id - 1]["blocks"]
    assert found["totals"]["stalled"] == 5


def test_a_task_in_two_functions_of_the_patch_is_in_two_lines() -> None:
    fleet = fleet_of(("a", record(SLEEPER + " vfs_read pipe_read", patch="fix")))
    lines = reported(fleet)["blocking"]
    assert [(line["function"], line["tasks"]) for line in lines] == [
        ("pipe_read", 1),
        ("vfs_read", 1),
    ]


def test_transitions() -> None:
    """Those that are stalled first; the advice for most tasks first, then in their order."""
    fleet = fleet_of(
        ("a", record(IDLE, READY, patch="fix")),
        ("b", record(SLEEPER, DEEP, SPINNER, READY, IDLE, DEEP, patch="fix")),
        ("c", record(IDLE, patch="fix")),
    )
    keys = ("dump", "pending", "switched", "stalled", "sleeping", "unreliable", "running",
            "would_switch")  # fmt: skip
    found = reported(fleet)["transitions"]
    assert [tuple(line[key] for key in keys) for line in found] == [
        (2, 5, 1, True, 1, 2, 1, 1),
        (1, 1, 1, False, 0, 0, 0, 1),
        (3, 0, 1, False, 0, 0, 0, 0),
    ]
    assert found[0]["advice"] == ["Wake deep.", "Wake app.", "Wake spin.", "Wake ready."]


def test_hosts_are_as_the_manifest_says_and_else_by_their_own_name() -> None:
    fleet = Fleet()
    fleet.put("/1", record(DEEP[:-13], node="own-1"), host="named")
    fleet.put("/2", record(DEEP[:-13], node="own-2"))
    fleet.put("/3", record(DEEP[:-13]))
    fleet.put("/4", record(DEEP[:-13], node="own-1"))
    found = reported(fleet)
    assert [dump["host"] for dump in found["dumps"]] == ["named", "own-2", None, "own-1"]
    assert {line["key"]: line["dumps"] for line in found["by_host"]} == {
        "named": 1, "own-1": 1, "own-2": 1
    }  # fmt: skip
    assert found["totals"]["hosts"] == 3 and found["totals"]["dumps"] == 4
    (reason,) = found["by_reason"]
    assert (reason["dumps"], reason["hosts"], reason["tasks"]) == (4, 3, 4)


def test_labels_count_dumps_and_what_is_in_them() -> None:
    fleet = Fleet()
    fleet.put("/1", record(SLEEPER, DEEP, patch="p"), host="a", labels={"role": "web", "r": "1"})
    fleet.put("/2", record(IDLE, IDLE), host="b", labels={"role": "web"})
    fleet.put("/3", failed("format"), host="a", labels={"role": "db"})
    fleet.put("/4", record(IDLE), host="c")
    fleet.put("/copy", record(IDLE, IDLE), host="b", labels={"role": "web"}, content="/2")
    keys = ("key", "dumps", "hosts", "failed", "tasks", "unreliable", "stalled")
    found = reported(fleet)
    assert [tuple(line[key] for key in keys) for line in found["by_label"]] == [
        ("role=web", 2, 2, 0, 4, 1, 1),
        ("r=1", 1, 1, 0, 2, 1, 1),
        ("role=db", 1, 1, 1, 0, 0, 0),
    ]
    assert [dump["labels"] for dump in found["dumps"]] == [
        {"role": "web", "r": "1"}, {"role": "web"}, {"role": "db"}, {}, {"role": "web"}
    ]  # fmt: skip


# Groups ------------------------------------------------------------------------------------------


def test_groups_go_across_releases_and_the_important_come_first() -> None:
    """What holds up a livepatch, the worst verdicts, the most dumps, the most tasks."""
    old = [
        "1 a reliable proven schedule+0x10 wait.isra.0+0x1",
        "2 b reliable refuted schedule+0x10 poll ! start-outside-stack",
        "3 c unreliable undecided walk ! too-deep",
        "4 d reliable proven read",
        "5 e reliable proven read",
    ]
    new = ["1 a reliable proven schedule+0x20 wait+0x7[waits]", "6 f reliable undecided read"]
    fleet = fleet_of(
        ("a", record(*old, release="6.1")),
        ("b", record(*new, SLEEPER, release="6.12", patch="fix")),
    )
    found = reported(fleet)
    keys = ("frames", "kernel", "proof", "tasks", "dumps", "hosts", "releases", "blocks")
    assert [tuple(group[key] for key in keys) for group in found["groups"]] == [
        (["schedule", "pipe_read"], "reliable", "proven", 1, 1, 1, ["6.12"], ["fix"]),
        (["walk"], "unreliable", "undecided", 1, 1, 1, ["6.1"], []),
        (["schedule", "poll"], "reliable", "refuted", 1, 1, 1, ["6.1"], []),
        (["read"], "reliable", "undecided", 1, 1, 1, ["6.12"], []),
        (["schedule", "wait"], "reliable", "proven", 2, 2, 2, ["6.1", "6.12"], []),
        (["read"], "reliable", "proven", 2, 1, 1, ["6.1"], []),
    ]
    assert [group["id"] for group in found["groups"]] == [1, 2, 3, 4, 5, 6]
    assert [group["in"] for group in found["groups"]][:2] == ["pipe_read", "walk"]
    assert [(m["dump"], m["pid"]) for m in found["groups"][4]["examples"]] == [(1, 1), (2, 1)]


def test_tasks_with_other_reasons_are_another_group() -> None:
    one, two = "1 a unreliable refuted f ! loop", "2 b unreliable refuted f ! loop too-deep"
    again = "3 c unreliable refuted f ! loop loop"
    found = reported(fleet_of(("a", record(one, two, again))))
    assert [(g["reasons"], g["tasks"]) for g in found["groups"]] == [
        (["loop"], 2),
        (["loop", "too-deep"], 1),
    ]


def test_a_group_names_some_of_its_tasks_and_of_one_dump_all() -> None:
    tasks = [f"{pid} t reliable proven f" for pid in range(70)]
    fleet = fleet_of(("a", record(*tasks)))
    for one_dump, named in ((False, 50), (True, 70)):
        (group,) = reported(fleet, one_dump=one_dump)["groups"]
        assert len(group["examples"]) == named
        assert [each["pid"] for each in group["examples"]] == list(range(named))
        assert group["more"] == 70 - named and group["tasks"] == 70


def test_groups_beyond_the_most_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And referred to by nobody."""
    monkeypatch.setattr(reports, "_GROUPS", 2)
    tasks = [f"{n} t unreliable refuted f{n} ! loop @ unreliable" for n in range(5)]
    fleet = fleet_of(("a", record(*tasks, patch="fix")))
    found = reported(fleet, changes=changes_since(fleet.store, "1"))
    assert (len(found["groups"]), found["groups_left_out"]) == (2, 3)
    assert found["blocking"][0]["groups"] == [1, 2]
    assert sorted(str(new["group"]) for new in found["new"]["stacks"]) == [
        "1", "2", "None", "None", "None"
    ]  # fmt: skip


def test_releases_are_sorted_as_versions() -> None:
    releases = ["6.12.10", "7.0-rc1", "6.2", "6.12.9-cloud", "6.12.9", "5.14.0-503.el9"]
    fleet = fleet_of(*((release, record(DEEP[:-13], release=release)) for release in releases))
    (line,) = reported(fleet)["by_reason"]
    assert line["releases"] == ["5.14.0-503.el9", "6.2", "6.12.9", "6.12.9-cloud", "6.12.10",
                                "7.0-rc1"]  # fmt: skip
    assert line["releases"] == sorted(releases, key=by_release)


@pytest.mark.parametrize("release", ["", "6.1²", "6.١", "6." + "9" * 5000, "x", "-", "6..1"])
def test_any_text_may_be_a_release(release: str) -> None:
    """Of a damaged dump, which must not take the report from all others."""
    assert sorted(["6.1", release, "6.2"], key=by_release)


def test_dumps_that_failed_say_what_was_tried() -> None:
    fleet = Fleet()
    fleet.put("/crash/b", failed("timeout", "no answer", "debug information", "BTF"), host="b")
    fleet.put("/crash/a", record(IDLE, problems=("no modules",), warnings=("bad .orc",)))
    fleet.put("/crash/c", failed("unreadable", "Permission denied"), content="")
    found = reported(fleet)
    assert [dump["status"] for dump in found["dumps"]] == ["incomplete", "failed", "failed"]
    assert found["dumps"][0]["problems"] == ["no modules", "bad .orc"]
    assert [each["rung"] for each in found["dumps"][1]["attempts"]] == ["debug information", "BTF"]
    assert found["dumps"][1]["seconds"] == 3.0
    assert (found["totals"]["failed"], found["totals"]["incomplete"]) == (2, 1)
    assert answer(fleet.store, "failed").rows == [
        ("/crash/b", "timeout", 1, "debug information", "timeout", 1.5, 1, "no answer"),
        ("/crash/b", "timeout", 2, "BTF", "timeout", 1.5, 1, "no answer"),
        ("/crash/c", "unreadable", None, None, None, None, None, None),
    ]
    assert "/crash/b: timeout: no answer\n" in shown(found)


def test_a_store_without_dumps_has_a_report() -> None:
    found = reported(Fleet())
    assert found["totals"]["dumps"] == 0 and found["groups"] == []
    assert shown(found).startswith("No dumps.")
    assert json.loads(shown(found, "json")) == found
    assert drawn(Fleet(), "folded") == ""
    assert json.loads(drawn(Fleet(), "speedscope"))["profiles"] == []


# What is new -------------------------------------------------------------------------------------

BEFORE = [SLEEPER, "2 a unreliable refuted old_place ! loop"]
AFTER = [*BEFORE, "3 b unreliable undecided new_place ! too-deep", IDLE]


def new_of(found: dict[str, Any]) -> dict[str, list[tuple[str, int, int]]]:
    return {
        kind: [(each["key"], each["dumps"], each["hosts"]) for each in found["new"][kind]]
        for kind in ("reasons", "functions", "releases")
    }


@pytest.mark.parametrize("since", ["2", "2026-02-01", "2026-02-01 10:00", "2026-01-15T23:59:59"])
def test_what_is_new_since_a_scan(since: str) -> None:
    fleet = Fleet()
    fleet.put("/1", record(*BEFORE, patch="fix", release="6.1"), host="a")
    fleet.next_scan()
    fleet.put("/1", record(*AFTER, patch="fix", release="6.1"), host="a", content="new")
    fleet.put("/2", record(*AFTER, release="6.12"), host="b")
    for scan, started in ((1, "2026-01-01T10:00:00+00:00"), (2, "2026-02-01T10:00:00+00:00")):
        fleet.rows("UPDATE scan SET started = ? WHERE id = ?", started, scan)
    found = reported(fleet, changes=changes_since(fleet.store, since))
    assert found["new"]["since"] == "scan 2"
    assert new_of(found) == {
        "reasons": [("too-deep", 2, 2)],
        "functions": [("new_place", 2, 2)],
        "releases": [("6.12", 1, 1)],
    }
    (stack,) = found["new"]["stacks"]
    assert found["groups"][stack["group"] - 1]["frames"] == ["new_place"]
    assert new_of(reported(fleet, changes=changes_since(fleet.store, "1")))["releases"] == [
        ("6.1", 1, 1),
        ("6.12", 1, 1),
    ]
    assert "\nNew since scan 2:\n" in shown(found)


def test_a_new_stack_leads_to_the_group_that_is_unreliable() -> None:
    """And not to that of tasks with the same functions that are not."""
    fleet = fleet_of(("a", record("1 a unreliable refuted f ! loop", "2 b reliable proven f")))
    found = reported(fleet, changes=changes_since(fleet.store, "1"))
    (stack,) = found["new"]["stacks"]
    assert found["groups"][stack["group"] - 1]["kernel"] == "unreliable"


def test_what_is_new_beside_an_older_store(tmp_path: Path) -> None:
    older = fleet_of(("a", record(*BEFORE, release="6.1")), path=tmp_path / "old.db")
    newer = fleet_of(("b", record(*AFTER, release="6.12")))
    changes = changes_between(newer.store, Earlier(older.store))
    found = reported(newer, changes=changes)
    assert found["new"]["since"] == str(tmp_path / "old.db")
    assert new_of(found) == {
        "reasons": [("too-deep", 1, 1)],
        "functions": [("new_place", 1, 1)],
        "releases": [("6.12", 1, 1)],
    }
    same = reported(newer, changes=changes_between(newer.store, Earlier(newer.store)))
    assert not any(same["new"][kind] for kind in ("reasons", "functions", "releases", "stacks"))
    assert shown(same).count("\nnothing\n") == 1


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("yesterday", "neither the number of a scan nor a date"),
        ("-1", "neither"),
        ("2026-1-1", "neither"),
        ("1; DROP TABLE dump", "neither"),
        ("١", "neither"),
        ("٢٠٢٦-٠١-٠١", "neither"),
        ("2026-13-45", "neither"),
        ("2026-02-01T9:00", "neither"),
        ("9" * 16, "neither"),
        ("3", "no scan was made then or since"),
        ("2999-01-01", "no scan was made then or since"),
    ],
)
def test_a_wrong_moment_is_refused(since: str, expected: str) -> None:
    with pytest.raises(UsageError, match=f"--since {re.escape(since)}: {expected}"):
        changes_since(Fleet().store, since)


# Real dumps --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_transitions() -> dict[str, Any]:
    return reported(fleet_of_dumps(TRANSITIONS))


def test_a_report_counts_what_a_scan_of_each_dump_counts(all_transitions: dict[str, Any]) -> None:
    counts = summary_counts(task for dump in TRANSITIONS for task in real(dump).report.tasks)
    totals = all_transitions["totals"]
    assert totals["dumps"] == totals["hosts"] == len(TRANSITIONS)
    assert {"kernel": totals["kernel"], "proof": totals["proof"]} == {
        "kernel": counts["kernel"],
        "proof": counts["proof"],
    }
    assert {line["reason"]: line["tasks"] for line in all_transitions["by_reason"]} == counts[
        "reasons"
    ]
    assert set(all_transitions["reasons"]) == set(counts["reasons"])
    for found, dump in zip(
        all_transitions["dumps"], sorted(TRANSITIONS, key=lambda dump: dump.name), strict=True
    ):
        kernel = summary_counts(real(dump).report.tasks)["kernel"]
        assert (found["host"], found["release"]) == (dump.name, real(dump).report.release)
        assert (found["tasks"], found["unreliable"]) == (sum(kernel.values()), kernel["unreliable"])


def test_a_report_has_what_blocks_each_dump(all_transitions: dict[str, Any]) -> None:
    """Tasks, dumps and hosts for each patch and function, reason, or neither."""
    tasks: Counter[tuple[str | None, ...]] = Counter()
    dumps = defaultdict(set)
    for dump in TRANSITIONS:
        livepatch = real(dump).livepatch
        for task in livepatch.tasks if livepatch.transition else ():
            what: set[tuple[str | None, str | None, str | None]] = set()
            if task.decision is Decision.SLEEPING:
                checked = [blocker.function for blocker in task.blockers]
                what = {(each.name, each.module, None) for each in checked}
            elif task.decision is Decision.UNRELIABLE:
                what = {(None, None, task.report.reasons[0].id)}
            elif task.decision is Decision.RUNNING:
                what = {(None, None, None)}
            for each in what:
                assert livepatch.transition is not None
                key = (livepatch.transition.patch, task.decision.value, *each)
                tasks[key] += 1
                dumps[key].add(dump.name)
    names = ("patch", "decision", "function", "module", "reason")
    lines = {tuple(line[n] for n in names): line for line in all_transitions["blocking"]}
    assert len(lines) == len(all_transitions["blocking"]) > 10
    assert {key: line["tasks"] for key, line in lines.items()} == tasks
    assert {key: set(line["host_names"]) for key, line in lines.items()} == dumps
    hosts = [line["hosts"] for line in all_transitions["blocking"]]
    assert hosts == sorted(hosts, reverse=True)
    assert all(line["hosts"] == line["dumps"] for line in lines.values())


def test_a_report_has_every_transition(all_transitions: dict[str, Any]) -> None:
    expected = {}
    for number, dump in enumerate(TRANSITIONS, 1):
        livepatch = real(dump).livepatch
        if livepatch.transition:
            decisions = Counter(task.decision.value for task in livepatch.tasks)
            expected[number] = (livepatch.transition.patch, livepatch.stalled, decisions)
    found = {
        line["dump"]: (
            line["patch"],
            line["stalled"],
            +Counter({d.value: line[d.value.replace("-", "_")] for d in Decision}),
        )
        for line in all_transitions["transitions"]
    }
    assert found == expected
    assert all_transitions["totals"]["stalled"] == sum(each[1] for each in expected.values())


def test_the_groups_of_a_report_are_all_tasks(all_transitions: dict[str, Any]) -> None:
    groups = all_transitions["groups"]
    assert sum(group["tasks"] for group in groups) == all_transitions["totals"]["tasks"]
    assert any(len(group["releases"]) > 2 for group in groups)
    for dump in TRANSITIONS:
        one = fleet_of_dumps([dump])
        for group in reported(one, one_dump=True)["groups"]:
            for example in group["examples"]:
                (task,) = (
                    task for task in real(dump).report.tasks if f"{task.task:#x}" == example["task"]
                )
                assert (task.pid, task.comm) == (example["pid"], example["comm"])
                assert [frame.function.partition(".")[0] for frame in task.frames] == [
                    name.partition(".")[0] for name in group["frames"]
                ]
                assert task.kernel.verdict.value == group["kernel"]


def test_the_schema_describes_all_that_a_report_has(all_transitions: dict[str, Any]) -> None:
    """And is strict enough to see what is wrong."""
    STRICT.check_schema(STRICT.schema)
    for wrong in ({"more": 1}, {"schema": "drgn-reliable/1"}, {"dumps": [{}]}, {"totals": {}}):
        assert not STRICT.is_valid({**all_transitions, **wrong}), wrong
    assert not STRICT.is_valid({k: v for k, v in all_transitions.items() if k != "new"})
