# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report of a fleet and the answers of its store: for people, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from tabulate import tabulate

from drgn_reliable.fleet.questions import QUESTIONS, Answer
from drgn_reliable.fleet.scan import Tally
from drgn_reliable.render.page import write_page
from drgn_reliable.render.table import counted_words
from drgn_reliable.render.visible import inert, visible

__all__ = (
    "ANSWER_FORMATS",
    "REPORT_FORMATS",
    "write_answer",
    "write_questions",
    "write_report",
    "write_tally",
)

_LINES = 12
"""Lines of a table in the report; all are in the other formats."""
_WIDTH = 100


def _cell(value: object) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return visible(str(value))


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]], out: TextIO) -> None:
    table = [[_cell(value) for value in row] for row in rows]
    headers = [visible(column).upper().replace("_", " ") for column in columns]
    out.write(tabulate(table, headers, tablefmt="plain", disable_numparse=True) + "\n")


# Answers -------------------------------------------------------------------------------------


def _as_table(found: Answer, out: TextIO) -> None:
    if found.rows:
        _table(found.columns, found.rows, out)
    out.write(f"{len(found.rows)} {'row' if len(found.rows) == 1 else 'rows'}\n")


def _as_csv(found: Answer, out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([inert(column) for column in found.columns])
    writer.writerows([_harmless(value) for value in row] for row in found.rows)


def _harmless(value: object) -> object:
    return inert(value) if isinstance(value, str) else value


def _as_json(found: Answer, out: TextIO) -> None:
    rows = [{name: _as_json_has_it(each) for name, each in row.items()} for row in found.dicts()]
    json.dump(rows, out, indent=1)
    out.write("\n")


def _as_json_has_it(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.hex() if isinstance(value, bytes) else value


ANSWER_FORMATS: dict[str, Callable[[Answer, TextIO], None]] = {
    "table": _as_table,
    "csv": _as_csv,
    "json": _as_json,
}


def write_answer(found: Answer, format: str, out: TextIO) -> None:
    """Write rows in one of :data:`ANSWER_FORMATS`."""
    ANSWER_FORMATS[format](found, out)


def write_questions(out: TextIO) -> None:
    """The questions that have a name."""
    _table(("name", "asks"), [(name, each.asks) for name, each in QUESTIONS.items()], out)


# The report ----------------------------------------------------------------------------------


def _report_as_json(data: Mapping[str, Any], out: TextIO) -> None:
    json.dump(data, out, indent=1)
    out.write("\n")


def _report_as_text(data: Mapping[str, Any], out: TextIO) -> None:
    out.write(_headline(data) + "\n")
    _write_blocking(data, out)
    _write_failed(data, out)
    _write_part(data, "by_reason", ("reason", "dumps", "hosts", "tasks", "releases"), out)
    _write_part(data, "by_function", ("function", "dumps", "hosts", "tasks"), out)
    for name in ("release", "architecture", "host", "label"):
        columns = ("key", "dumps", "hosts", "failed", "tasks", "unreliable", "stalled")
        _write_part(data, f"by_{name}", columns, out)
    _write_new(data, out)
    out.write("\n" + _totals(data["totals"]) + "\n")


def _headline(data: Mapping[str, Any]) -> str:
    totals = data["totals"]
    if not totals["dumps"]:
        return "No dumps."
    unreliable = totals["kernel"]["unreliable"]
    if not totals["stalled"]:
        return (
            f"No livepatch transition is stalled in {_counted(totals['dumps'], 'dump')}; "
            f"{unreliable} of {_counted(totals['tasks'], 'task')} have unreliable stacks."
        )
    return (
        f"{totals['stalled']} of {_counted(totals['dumps'], 'dump')} have a stalled livepatch "
        f"transition; {unreliable} of {_counted(totals['tasks'], 'task')} have unreliable stacks."
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _write_blocking(data: Mapping[str, Any], out: TextIO) -> None:
    if not data["blocking"]:
        return
    out.write("\nWhat blocks the patches:\n")
    rows = [
        (
            line["patch"],
            _what_blocks(line),
            line["dumps"],
            line["hosts"],
            line["tasks"],
            _shortened(line["host_names"], line["hosts"])
            if line["hosts"]
            else _shortened([f"dump {each}" for each in line["dump_ids"]], line["dumps"]),
        )
        for line in data["blocking"][:_LINES]
    ]
    _table(("patch", "blocked by", "dumps", "hosts", "tasks", "where"), rows, out)
    _write_more(len(data["blocking"]), out)


def _what_blocks(line: Mapping[str, Any]) -> str:
    if line["decision"] == "unreliable":
        return f"(unreliable stack: {line['reason']})"
    if line["function"] is None:
        return f"({line['decision']})"
    module = f" [{line['module']}]" if line["module"] else ""
    return f"{line['function']}{module}"


def _shortened(names: list[str], count: int | None = None) -> str:
    """The first of some names.

    :param count: how many there are, if these are not all.
    """
    more = (len(names) if count is None else count) - 4
    return ", ".join(names[:4]) + (f" and {more} more" if more > 0 else "") or "-"


def _write_more(count: int, out: TextIO) -> None:
    if count > _LINES:
        out.write(f"... and {count - _LINES} more\n")


def _write_failed(data: Mapping[str, Any], out: TextIO) -> None:
    failed = [dump for dump in data["dumps"] if dump["status"] == "failed"]
    if failed:
        out.write("\nDumps that could not be scanned:\n")
        for dump in failed[:_LINES]:
            out.write(failed_line(dump["path"], dump["cause"], dump["detail"]))
        _write_more(len(failed), out)


def failed_line(path: str, cause: str, detail: str) -> str:
    """A dump that could not be scanned, in a line or more."""
    text = f"{visible(path)}: {visible(cause)}: {visible(detail)}"
    lines = textwrap.wrap(
        text, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines) + "\n"


def _write_part(data: Mapping[str, Any], name: str, columns: tuple[str, ...], out: TextIO) -> None:
    lines = data[name]
    if not lines:
        return
    out.write(f"\n{name.replace('_', ' ').capitalize()}:\n")
    rows = [
        [_shortened(v) if isinstance(v := line[column], list) else v for column in columns]
        for line in lines[:_LINES]
    ]
    _table(columns, rows, out)
    _write_more(len(lines), out)


def _write_new(data: Mapping[str, Any], out: TextIO) -> None:
    new = data["new"]
    if new is None:
        return
    out.write(f"\nNew since {visible(new['since'])}:\n")
    rows = [
        (kind, seen["key"], seen["dumps"], seen["hosts"])
        for kind in ("reasons", "functions", "releases", "stacks")
        for seen in new[kind]
    ]
    if rows:
        _table(("what", "which", "dumps", "hosts"), rows[:_LINES], out)
        _write_more(len(rows), out)
    else:
        out.write("nothing\n")


def _totals(totals: Mapping[str, Any]) -> str:
    statuses = [f"{totals[word]} {word}" for word in ("incomplete", "failed") if totals[word]]
    return (
        f"{_counted(totals['dumps'], 'dump')}{' (' + ', '.join(statuses) + ')' if statuses else ''}"
        f" of {_counted(totals['hosts'], 'host')} and {_counted(totals['releases'], 'kernel')}, "
        f"{_counted(totals['tasks'], 'task')}: "
        f"kernel: {counted_words(totals['kernel'])}; proof: {counted_words(totals['proof'])}"
    )


REPORT_FORMATS: dict[str, Callable[[Mapping[str, Any], TextIO], None]] = {
    "table": _report_as_text,
    "json": _report_as_json,
    "html": write_page,
}
"""Formats of a whole report; CSV is of one question's answer."""


def write_report(data: Mapping[str, Any], format: str, out: TextIO) -> None:
    """Write a report in one of :data:`REPORT_FORMATS`."""
    REPORT_FORMATS[format](data, out)


# The end of a scan ---------------------------------------------------------------------------


def write_tally(
    tally: Tally, failed: Iterable[tuple[str, str, str]], seconds: float, out: TextIO
) -> None:
    """What a scan has come to.

    :param failed: paths, causes and details of the dumps that could not be scanned.
    """
    for path, cause, detail in failed:
        out.write(failed_line(path, cause, detail))
    scanned = tally.dumps - tally.kept
    rate = f", {60 * scanned / seconds:.0f} a minute" if scanned and seconds else ""
    out.write(
        f"{_counted(tally.dumps, 'dump')}: {scanned} scanned in {seconds:.1f} s{rate}, "
        f"{tally.kept} known; {tally.failed} failed, {tally.incomplete} incomplete; "
        f"{_counted(tally.passed_over, 'file')} passed over\n"
        f"{tally.stalled} with a stalled livepatch transition, {tally.unreliable} with unreliable "
        "tasks\n"
    )
