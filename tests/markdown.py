# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documentation names, shows and links to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("contrib/**/*.md")])
}
"""Every page by its path."""

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}[^\n]*\n)+")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A command of a page, and what the page says that it prints."""

    command: str
    output: str


def shown(page: str) -> list[Shown]:
    """Commands in fenced blocks, each behind ``$``, with their output up to the next."""
    found = []
    for _, block in _FENCED.findall(DOCS[page]):
        if block.startswith("$ drgn-reliable "):
            for part in re.split(r"^\$ (?=drgn-reliable )", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append(Shown(command, output))
    return found


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks in a language."""
    return [text for kind, text in _FENCED.findall(DOCS[page]) if kind == language]


def command_lines(page: str) -> Iterator[str]:
    """The program's commands in blocks of code, without what is said beside them."""
    text = DOCS[page]
    code = [block for _, block in _FENCED.findall(text)]
    code += _INDENTED.findall(_FENCED.sub("\n\n", text))
    for line in "\n".join(code).split("\n"):
        found = re.match(r" *(?:\$ )?(drgn-reliable .*)", line)
        if found:
            yield re.split(r" {2,}| \| | > | # ", found[1])[0]


def spans(page: str) -> list[str]:
    """What is in backquotes in running text."""
    text = _INDENTED.sub("\n\n", _FENCED.sub("\n\n", DOCS[page]))
    return [" ".join(found[1].split()) for found in _SPAN.findall(text)]


def links(page: str) -> list[str]:
    """Where the links of a page lead, by whatever form they are written in."""
    text = _SPAN.sub("", _FENCED.sub("", DOCS[page]))
    direct = re.findall(r"\]\(([^)\s]+)\)", text)
    named = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.MULTILINE))
    used = set(re.findall(r"\]\[([^\]]+)\]", text))
    assert used <= named.keys(), f"{page}: no place is given for {used - named.keys()}"
    return [*direct, *named.values()]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _FENCED.sub("", DOCS[page])
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, cell by cell, without its head."""
    found = re.split(rf"^#+ {re.escape(heading)}$", DOCS[page], flags=re.MULTILINE)
    assert len(found) == 2, f"{page} has no section {heading}"
    section = re.split(r"^#", found[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows, f"{page}: {heading} has no table"
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in rows[0].splitlines()][2:]
