# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write the table of reasons in ``docs/reasons.md``.

    python -m contrib.docs.reasons

What a reason is comes from the catalogue, and which dump shows it from ``vmcores/reasons.yaml``.
Only what is between two markers is written; the tests say whether it is current.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from drgn_reliable.reasons import CATALOGUE, SECTIONS, ReasonKind

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "vmcores" / "reasons.yaml"
PAGE = ROOT / "docs" / "reasons.md"
BEGIN = "<!-- Written by python -m contrib.docs.reasons; do not edit. -->"
END = "<!-- End of what is written. -->"
DOCUMENT = "https://docs.kernel.org/livepatch/reliable-stacktrace.html"
DAMAGED = ("hurt_", "migration/1")
"""How the names of tasks begin whose stacks were damaged after their kernel had answered."""


@dataclass(frozen=True)
class Evidence:
    """What shows a reason."""

    dumps: tuple[tuple[str, str], ...] = ()
    """Files in ``vmcores``, each with the name of a task of which it is said there."""
    why: str = ""
    """Why there is no such dump."""
    by_hand: str = ""
    """The test with a hand-written stack that shows it; only where there is no dump."""


class EvidenceError(Exception):
    """The file says something that cannot be."""


def load(path: Path = EVIDENCE) -> dict[str, Evidence]:
    """The evidence for every reason, in the file's order.

    :raises EvidenceError: if a row has neither dumps nor a reason for their absence, or both.
    """
    found = {}
    for reason, row in yaml.safe_load(path.read_text()).items():
        if set(row) not in ({"dumps"}, {"why", "by_hand"}) or not all(row.values()):
            raise EvidenceError(f"{path.name}: {reason}: either dumps, or why and by_hand")
        dumps = tuple(row.get("dumps", {}).items())
        found[reason] = Evidence(dumps, row.get("why", ""), row.get("by_hand", ""))
    return found


def written(page: str, evidence: dict[str, Evidence]) -> str:
    """The page with what is between its markers made anew.

    :raises EvidenceError: if it lacks them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise EvidenceError("the page lacks the markers between which the table is written")
    parts = (_table(evidence), _details(evidence), _links(evidence))
    return before + BEGIN + "\n\n" + "\n".join(parts) + "\n" + END + after


def _table(evidence: dict[str, Evidence]) -> str:
    head = ("reason", "section", "kernel", "proof", "decided by", "shown by")
    rows = [_row(kind, evidence[kind.id]) for kind in CATALOGUE.values()]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _row(kind: ReasonKind, evidence: Evidence) -> tuple[str, ...]:
    dumps = [_dump(*dump) for dump in evidence.dumps]
    return (
        f"[{kind.id}](#{kind.id})",
        f"[{kind.section}][{kind.section}]",
        "refuses" if kind.kernel else "overlooks",
        kind.proof.value,
        _names(kind.decided_by),
        ", ".join(dumps) or f"[by hand](#{kind.id})",
    )


def _dump(file: str, task: str) -> str:
    return f"[{file.removesuffix('.kdump')}]{' damaged' if task.startswith(DAMAGED) else ''}"


def _details(evidence: dict[str, Evidence]) -> str:
    text, section = "", ""
    for kind in CATALOGUE.values():
        if kind.section != section:
            section = kind.section
            text += f"\n## {section} {SECTIONS[section]}\n"
        text += f"\n### {kind.id}\n\n**{_names(kind.title)}.** {_names(kind.remedy)}\n"
        text += f"\n{_shown_by(evidence[kind.id])}\n"
    return text


def _shown_by(evidence: Evidence) -> str:
    if evidence.why:
        file = f"[{evidence.by_hand}](../{evidence.by_hand})"
        return f"By hand in {file}; no dump shows it: {evidence.why}"
    return f"Shown by {', '.join(f'{_dump(*dump)} (`{dump[1]}`)' for dump in evidence.dumps)}."


def _names(text: str) -> str:
    """The text with the kernel's names marked, whose underscores mean something in Markdown."""
    return re.sub(r"\w*_\w+(\.\w+)*", r"`\g<0>`", text)


def _links(evidence: dict[str, Evidence]) -> str:
    places = {number: _section(number) for number in SECTIONS}
    files = dict.fromkeys(file for row in evidence.values() for file, _ in row.dumps)
    places |= {file.removesuffix(".kdump"): f"../vmcores/{file}" for file in files}
    return "".join(f"[{name}]: {place}\n" for name, place in places.items())


def _section(number: str) -> str:
    """Where the document has a section: its headings' names, without what is added here."""
    words = re.findall(r"[a-z]+", SECTIONS[number].partition(":")[0].lower())
    return f"{DOCUMENT}#{'-'.join(words)}"


def main() -> int:
    """Write the page."""
    try:
        PAGE.write_text(written(PAGE.read_text(), load()))
    except (EvidenceError, KeyError, OSError) as error:
        print(f"reasons: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
