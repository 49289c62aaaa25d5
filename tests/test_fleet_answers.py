# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions that have a name, questions in SQL, and how answers and reports are written."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from drgn_reliable.errors import UsageError
from drgn_reliable.fleet.changes import changes_since
from drgn_reliable.fleet.questions import QUESTIONS, Answer, answer, ask
from drgn_reliable.fleet.scan import Tally
from drgn_reliable.fleet.store import Store
from drgn_reliable.render.flames import FLAMES
from drgn_reliable.render.fleet import REPORT_FORMATS, write_questions, write_tally
from tests.dumps import TRANSITIONS
from tests.fleets import (
    Fleet,
    answered,
    drawn,
    failed,
    fleet_of,
    fleet_of_dumps,
    record,
    reported,
    shown,
)

# Questions ---------------------------------------------------------------------------------------

COUNTED = "key dumps hosts failed tasks unreliable stalled"
COLUMNS = {
    "totals": "dumps failed incomplete hosts releases tasks unreliable stalled",
    "blocking": "patch decision function module reason dumps hosts tasks",
    "transitions": "dump patch target pending switched attempts seconds stalled sleeping "
    "unreliable running would_switch",
    "reason": "reason dumps hosts tasks",
    "function": "function dumps hosts tasks",
    "release": COUNTED,
    "architecture": COUNTED,
    "host": COUNTED,
    "label": COUNTED,
    "stack": "normalised kernel proof function dumps hosts tasks releases",
    "dump": "dump path host status cause release architecture tasks unreliable stalled detail",
    "failed": "path cause attempt rung outcome seconds mib detail",
    "incomplete": "path kind text",
    "passed-over": "path why",
    "scan": "scan started finished state version scanned failed",
}


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """A store in which every question has an answer."""
    made = fleet_of_dumps(TRANSITIONS)
    made.put("/crash/bad", failed("timeout", "no answer", "BTF"), labels={"role": "web"})
    made.put("/crash/part", record(problems=("a page",)))
    made.store.pass_over(made.scan, [("/crash/text", "a text file")])
    return made


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_has_the_same_columns_for_ever(fleet: Fleet, name: str) -> None:
    found = ask(fleet.store, name)
    assert found == answer(fleet.store, name)
    assert " ".join(found.columns) == COLUMNS[name]
    assert found.rows
    assert len(answered(found, "csv").splitlines()) == 1 + len(found.rows)
    assert len(json.loads(answered(found, "json"))) == len(found.rows)
    assert answered(found, "table").splitlines()[-1].startswith(f"{len(found.rows)} row")


def test_a_copy_counts_once_and_is_listed_twice() -> None:
    one = fleet_of(("a", record("1 t unreliable refuted f ! loop")))
    for path, host in (("/copy/1", "b"), ("/copy/2", None)):
        one.put(path, record("1 t unreliable refuted f ! loop"), host=host, content="/crash/01")
    assert answer(one.store, "reason").rows == [("loop", 1, 2, 1)]
    assert answer(one.store, "function").rows == [("f", 1, 2, 1)]
    rows = [row[:3] for row in answer(one.store, "dump").rows]
    assert rows == [(1, "/copy/1", "b"), (1, "/copy/2", None), (1, "/crash/01", "a")]
    assert answer(one.store, "release").rows == [("6.12.107", 1, 2, 0, 1, 1, 0)]


def test_the_questions_are_listed() -> None:
    out = io.StringIO()
    write_questions(out)
    assert re.findall(r"^(\S+) ", out.getvalue(), re.MULTILINE) == ["NAME", *QUESTIONS]


def test_a_question_in_sql(fleet: Fleet) -> None:
    sql = "SELECT kind, count(*) AS n FROM current_task WHERE comm LIKE 'swapper%' GROUP BY 1"
    found = ask(fleet.store, f"  {sql}; ")
    assert found.columns == ("kind", "n") and len(found.rows) == 1 and found.rows[0][0] == "idle"
    facts = "SELECT DISTINCT json_type(facts) FROM dump WHERE facts IS NOT NULL"
    assert ask(fleet.store, facts).rows == [("object",)]
    assert ask(fleet.store, "SELECT 1 WHERE 0") == Answer(("1",), [])


ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT {} FROM n"
HOSTILE = [
    ("ATTACH '{folder}/new.db' AS new", "not authorized"),
    ("PRAGMA user_version", "not authorized"),
    ("PRAGMA writable_schema = 1", "not authorized"),
    ("SELECT * FROM pragma_database_list", "not authorized"),
    ("DELETE FROM dump", "not authorized"),
    ("DROP TABLE dump", "not authorized"),
    ("UPDATE dump SET status = 'whole'", "not authorized"),
    ("INSERT INTO scan DEFAULT VALUES RETURNING 1", "not authorized"),
    ("CREATE TEMP TABLE t (x)", "not authorized"),
    ("CREATE TRIGGER t AFTER INSERT ON dump BEGIN SELECT 1; END", "not authorized"),
    ("VACUUM INTO '{folder}/new.db'", "denied"),
    ("BEGIN IMMEDIATE", "not authorized"),
    ("SAVEPOINT s", "not authorized"),
    ("REINDEX", "not authorized"),
    ("SELECT load_extension('{folder}/new.so')", "not authorized"),
    ("WITH gone AS (SELECT id FROM dump) DELETE FROM task WHERE dump IN gone", "not authorized"),
    ("SELECT 1; DELETE FROM dump", "one statement"),
    ("-- only a comment", "not a SELECT"),
    (ENDLESS.format("max(x)"), "no answer within 1 s"),
    (ENDLESS.format("x"), "no answer within 1 s|more than"),
    ("SELECT count(*) FROM task a, task b, task c, task d, task e", "no answer within 1 s"),
    ("SELEKT", "syntax error"),
    ("blokcing", "named questions are totals, blocking, transitions,"),
    ("SELECT gone FROM dump", "no such column"),
    ("SELECT CAST(x'ff' AS TEXT)", "UTF-8"),
    ("SELECT '\udcff'", "query .*"),
    ("SELECT 'a\0b'", "null character"),
    ("", "an empty question"),
    (" \n", "an empty question"),
]


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize(("sql", "expected"), HOSTILE, ids=[row[0][:20] for row in HOSTILE])
def test_sql_only_reads(
    hostile_store: Path, sql: str, expected: str, write: bool, tmp_path: Path
) -> None:
    """Whoever opened the store, and however; after that, it answers again."""
    if write and "no answer" in expected:
        pytest.skip("the same, and it takes a second")
    before = hostile_store.read_bytes()
    with Store(str(hostile_store), write) as store:
        started = time.monotonic()
        with pytest.raises(UsageError, match=expected):
            ask(store, sql.format(folder=tmp_path), seconds=1)
        assert time.monotonic() - started < 3
        assert ask(store, "SELECT count(*) FROM task").rows == [(200,)]
        assert ask(store, "scan").rows
    assert not list(tmp_path.iterdir())
    if not write:
        assert hostile_store.read_bytes() == before


@pytest.fixture(scope="module")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "fleet.db"
    made = Fleet(path)
    made.put("/1", record(*(f"{pid} t reliable proven f" for pid in range(200))))
    made.close()
    return path


# Formats -----------------------------------------------------------------------------------------

EVIL = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")']


@pytest.mark.parametrize("text", EVIL)
def test_no_cell_of_csv_is_a_formula(text: str) -> None:
    """Neither a value nor a column's name."""
    found = answered(Answer((text, "number"), [(text, -1), ("plain", None)]), "csv")
    rows = list(csv.reader(io.StringIO(found)))
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows)
    assert [row[1] for row in rows] == ["number", "-1", ""]


@pytest.mark.parametrize("format", ["table", "csv"])
def test_no_column_moves_a_terminal(format: str) -> None:
    """SQL may come from others, too."""
    text = answered(Answer((HOSTILE_TEXT,), [(HOSTILE_TEXT,)]), format)
    assert all(each.isprintable() or each == "\n" for each in text)


HOSTILE_TEXT = "\x1b[2J\x07\x85\u202e;\n\u2028"


def hostile() -> Fleet:
    """Whatever can be chosen by others is: of a dump, of a path, of a manifest."""
    made = Fleet()
    bad = HOSTILE_TEXT
    found = record(
        "1 c unreliable refuted pipe_read ! too-deep @ unreliable",
        "2 c reliable proven pipe_read @ sleeping pipe_read",
        patch=f"patch{bad}", release=f"6.12{bad}", architecture=f"x86{bad}", node=f"node{bad}",
        problems=(f"problem{bad}",),
    )  # fmt: skip
    (pipe,) = found.stacks
    frame = pipe.frames[0]._replace(symbol=f"symbol{bad}", module=f"module{bad}")
    found.stacks = (pipe._replace(frames=(frame,)),)
    found.tasks = tuple(t._replace(comm=f"comm{bad}", waits_in=f"in{bad}") for t in found.tasks)
    found.pending = tuple(
        p._replace(
            advice_text=f"advice{bad}",
            blockers=tuple(b._replace(function=f"f{bad}", module=f"m{bad}") for b in p.blockers),
        )
        for p in found.pending
    )
    made.put(f"/crash/1{bad}", found, labels={f"name{bad}": f"value{bad}"})
    made.put(f"/crash/2{bad}", failed(f"cause{bad}", f"detail{bad}", f"rung{bad}"), host=f"h{bad}")
    made.store.pass_over(made.scan, [(f"/crash/3{bad}", f"why{bad}")])
    return made


@pytest.mark.parametrize("format", [name for name in REPORT_FORMATS if name != "html"])
def test_no_text_of_others_moves_a_terminal_or_makes_a_line(format: str) -> None:
    made = hostile()
    data = reported(made, changes=changes_since(made.store, "1"), title=f"title{HOSTILE_TEXT}")
    text = shown(data, format)
    assert all(each.isprintable() or each == "\n" for each in text)


@pytest.mark.parametrize("format", FLAMES)
def test_no_stack_moves_a_terminal_or_makes_a_line(format: str) -> None:
    text = drawn(hostile(), format, f"name{HOSTILE_TEXT}")
    assert all(each.isprintable() or each == "\n" for each in text)
    if format == "folded":
        assert re.fullmatch(r"(\S+ \d+\n){2}", text) and text.count(";") == 2


@pytest.mark.parametrize("format", ["table", "csv"])
@pytest.mark.parametrize("name", QUESTIONS)
def test_no_answer_moves_a_terminal(name: str, format: str) -> None:
    found = answer(hostile().store, name)
    text = answered(found, format)
    assert all(each.isprintable() or each == "\n" for each in text)
    assert text.count("\n") == len(found.rows) + (2 if format == "table" and found.rows else 1)


def test_the_end_of_a_scan_moves_no_terminal() -> None:
    out = io.StringIO()
    made = hostile()
    write_tally(Tally(1, dumps=2, failed=1), made.store.failed(1), 1.0, out)
    assert all(each.isprintable() or each == "\n" for each in out.getvalue())


def test_a_line_says_how_many_hosts_there_are_more() -> None:
    """The report names some, and counts all."""
    task = "1 t unreliable refuted f ! loop @ unreliable"
    made = fleet_of(*((f"h{number:02}", record(task, patch="fix")) for number in range(30)))
    found = reported(made)
    assert len(found["blocking"][0]["host_names"]) == 20
    assert "h00, h01, h02, h03 and 26 more\n" in shown(found)


def test_a_path_stays_in_one_piece() -> None:
    """However long the line of a dump that failed, it can be copied from there."""
    path = "/srv" + "/crash-dumps-of-hosts" * 6
    made = Fleet()
    made.put(path, failed("timeout", "no answer within sixty seconds, and nothing else"))
    assert path in shown(reported(made))


def test_json_is_json_whatever_sql_gives(fleet: Fleet) -> None:
    found = answered(ask(fleet.store, "SELECT 9e999, x'00ff', NULL, -5"), "json")
    (row,) = json.loads(found, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row["x'00ff'"] == "00ff" and row["NULL"] is None and row["-5"] == -5


# Flame graphs ------------------------------------------------------------------------------------

STACKS = [
    "1 a reliable proven schedule+0x1 pipe_read vfs_read",
    "2 b reliable proven schedule+0x9 pipe_read vfs_read",
    "3 c reliable undecided schedule pipe_read vfs_read",
    "4 d unreliable refuted 0x1234 walk ! loop",
    "5 e running proven ! running",
]


def test_folded_stacks() -> None:
    """The outermost first, the verdict last, and how many tasks; alike stacks in one line."""
    made = fleet_of(("a", record(*STACKS)), ("b", record(STACKS[0].replace("pipe", "tty"))))
    assert drawn(made, "folded").splitlines() == [
        "[running] 1",
        "vfs_read;pipe_read;schedule;[reliable] 3",
        "vfs_read;tty_read;schedule;[reliable] 1",
        "walk;0x1234;[unreliable] 1",
    ]


def check_speedscope(document: dict[str, Any]) -> dict[str, int]:
    """See that a document is as speedscope's file format says; tasks by profile."""
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = document["shared"]["frames"]
    assert all(set(frame) == {"name"} and isinstance(frame["name"], str) for frame in frames)
    tasks = {}
    for profile in document["profiles"]:
        assert set(profile) == {
            "type", "name", "unit", "startValue", "endValue", "samples", "weights"
        }  # fmt: skip
        assert (profile["type"], profile["unit"], profile["startValue"]) == ("sampled", "none", 0)
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(0 <= at < len(frames) for sample in profile["samples"] for at in sample)
        assert all(isinstance(weight, int) and weight > 0 for weight in profile["weights"])
        assert sum(profile["weights"]) == profile["endValue"]
        tasks[profile["name"]] = sum(profile["weights"])
    assert len(tasks) == len(document["profiles"])
    return tasks


def test_speedscope_of_hand_made_stacks() -> None:
    document = json.loads(drawn(fleet_of(("a", record(*STACKS))), "speedscope"))
    assert check_speedscope(document) == {"all": 5, "reliable": 3, "unreliable": 1, "running": 1}
    names = [frame["name"] for frame in document["shared"]["frames"]]
    unreliable = next(p for p in document["profiles"] if p["name"] == "unreliable")
    assert [[names[at] for at in sample] for sample in unreliable["samples"]] == [
        ["walk", "0x1234"]
    ]
    assert document["name"] == "x"


def test_flame_graphs_of_real_dumps_have_every_task(fleet: Fleet) -> None:
    totals = reported(fleet)["totals"]
    folded = drawn(fleet, "folded").splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in folded) == totals["tasks"]
    assert all(re.fullmatch(r".*\[(un)?reliable\] \d+|.*\[running\] \d+", line) for line in folded)
    tasks = check_speedscope(json.loads(drawn(fleet, "speedscope")))
    assert tasks.pop("all") == totals["tasks"]
    assert tasks == {verdict: count for verdict, count in totals["kernel"].items() if count}


def test_any_sqlite_reads_a_store(hostile_store: Path) -> None:
    """With the questions as they are, and nothing of this package."""
    with sqlite3.connect(hostile_store) as db:
        for name, question in QUESTIONS.items():
            assert db.execute(question.sql).description, name
    db.close()
