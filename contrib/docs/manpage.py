# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write the man pages in ``docs/man``, one for each command.

    python -m contrib.docs.manpage

Arguments, examples and exit statuses are the parser's own; what the program reads of its
environment is said here. A page keeps its date while nothing else in it changes. The tests say
whether the pages are current.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import date
from importlib import resources
from pathlib import Path
from textwrap import wrap

from drgn_reliable import commands
from drgn_reliable.cli import make_parser
from drgn_reliable.command import Command
from drgn_reliable.exits import GENERAL, Exits, rows_of
from drgn_reliable.fleet.commands import FLEET
from drgn_reliable.version import VERSION

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "man"
_MORE = "\\ .\\|.\\|."
WIDTH = 72
"""Columns of an example: 80 without man's indentation."""

COMMANDS = {
    f"drgn-reliable {command.name}": command
    for command in vars(commands).values()
    if isinstance(command, Command)
} | {f"drgn-reliable fleet {command.name}": command for command in FLEET}

_VARYING = {"--print-completion": "SHELL"}
"""Options whose choices are those of a library, which may have more in its next version."""

ENVIRONMENT = {
    "TMPDIR": "where a packed dump is unpacked, to a file without a name; if it is not set, in "
    "/var/tmp",
}

FILES = {
    "/usr/lib/debug, /boot, /lib/modules": "debug information of kernels, as distributions install "
    "it; searched where `--symbols` names none for the kernel. The network never is.",
    "~/.local/share/bash-completion/completions/drgn-reliable": "where bash looks for the script "
    "of `--print-completion bash`; zsh looks for _drgn-reliable in a directory of its fpath, fish "
    "for ~/.config/fish/completions/drgn-reliable.fish",
    **{
        f"drgn_reliable/schema/{file.name}": "in Python's site-packages: the JSON schema of "
        + {
            "drgn-reliable-1": "`scan`",
            "drgn-reliable-explanation-1": "`explain`",
            "drgn-reliable-fleet-1": "`fleet report`",
            "drgn-reliable-livepatch-1": "`klp`",
        }.get(file.name.removesuffix(".json"), "a report")
        for file in sorted(
            resources.files("drgn_reliable.schema").iterdir(), key=lambda file: file.name
        )
        if file.name.endswith(".json")
    },
}

DOCUMENTS = {
    "Reliable Stacktrace, in the kernel's documentation": (
        "https://docs.kernel.org/livepatch/reliable-stacktrace.html"
    ),
    "drgn": "https://drgn.readthedocs.io/",
}


def pages() -> dict[str, str]:
    """Every page by its file's name.

    :raises LookupError: if a command has no words in :data:`COMMANDS`.
    """
    parsers = list(_parsers(make_parser(), ""))
    names = [_page_name(parser) for parser, _ in parsers]
    found = {}
    for parser, summary in parsers:
        page = "".join(_page(parser, summary, names))
        found[f"{_page_name(parser)}.1"] = page
    return found


def dated(page: str, before: str, today: date) -> str:
    """The page with the date that it had before if it has not changed, or else today's.

    >>> dated(".TH A 1 @DATE@ B", ".TH A 1 2026-01-31 B", date(2026, 12, 24))
    '.TH A 1 2026-01-31 B'
    >>> dated(".TH A 1 @DATE@ B", ".TH A 1 2026-01-31 C", date(2026, 12, 24))
    '.TH A 1 2026-12-24 B'
    """
    old = re.search(r"^\.TH \S+ 1 (\d{4}-\d\d-\d\d) ", before, re.MULTILINE)
    if old and before == page.replace("@DATE@", old[1], 1):
        return before
    return page.replace("@DATE@", today.isoformat(), 1)


def _parsers(
    parser: argparse.ArgumentParser, summary: str
) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """A parser and those of its commands, each with the line that its parent has of it."""
    yield parser, summary
    for choice, child in _children(parser):
        yield from _parsers(child, choice)


def _children(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.help or "", action.choices[choice.dest]


def _page_name(parser: argparse.ArgumentParser) -> str:
    return parser.prog.replace(" ", "-")


def _page(parser: argparse.ArgumentParser, summary: str, names: list[str]) -> Iterator[str]:
    name = _page_name(parser)
    children = list(_children(parser))
    if not children and parser.prog not in COMMANDS:
        raise LookupError(f"{parser.prog}: no drgn_reliable.commands.Command describes it")
    command = None if children else COMMANDS[parser.prog]
    whole = parser.prog == "drgn-reliable"
    yield '.\\" SPDX-License-Identifier: LGPL-2.1-or-later\n'
    yield '.\\" Written by python -m contrib.docs.manpage; do not edit.\n'
    yield ".nr HY 0\n"  # names of commands and functions are not to be hyphenated
    yield f'.TH {name.upper()} 1 @DATE@ "drgn-reliable {VERSION}" "User Commands"\n'
    yield ".ad l\n.SH NAME\n"
    summary = summary or "say of every task in a Linux kernel dump whether its stack is reliable"
    yield _filled(f"{name} - {summary}")
    yield f".SH SYNOPSIS\n{_synopsis(parser)}"
    yield f".SH DESCRIPTION\n{_filled(parser.description or '')}"
    if whole:
        yield f".PP\n{_filled(_last_paragraph(parser.epilog or ''))}"
    yield from _arguments(parser, children)
    yield from _exits(GENERAL if whole else command.exits if command else {}, whole)
    if whole:
        yield from _section("ENVIRONMENT", ENVIRONMENT.items())
        yield from _section("FILES", FILES.items())
    examples = command.examples if command else _examples_of(parser.epilog or "")
    yield from _examples(examples)
    if command and command.notes:
        yield f".SH NOTES\n{_filled(command.notes)}"
    yield from _see_also(name, names, whole)


def _arguments(
    parser: argparse.ArgumentParser, children: list[tuple[str, argparse.ArgumentParser]]
) -> Iterator[str]:
    actions = [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)]
    positional = [_item(parser, a) for a in actions if not a.option_strings]
    options = [_item(parser, a) for a in actions if a.option_strings]
    yield from _section("ARGUMENTS", positional, marked=True)
    yield from _section(
        "COMMANDS",
        (
            (_bold(child.prog.split()[-1]), f"{line}; see `{_page_name(child)}`(1)")
            for line, child in children
        ),
        marked=True,
    )
    yield from _section("OPTIONS", options, marked=True)


def _item(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    """An argument as it is given, and what its help says."""
    values = vars(action) | {"prog": parser.prog}
    text = (action.help or "") % values
    if not action.option_strings:
        return _italic(_value(action)), text
    value = "" if action.nargs == 0 else f" {_marked_value(action)}"
    return ", ".join(f"{_bold(name)}{value}" for name in action.option_strings), text


def _value(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper())


def _marked_value(action: argparse.Action) -> str:
    if action.option_strings[-1] in _VARYING:
        return _italic(_VARYING[action.option_strings[-1]])
    if action.choices and not action.metavar:
        # The list may be broken behind each comma.
        return "{" + ",\\:".join(_bold(str(c)) for c in action.choices) + "}"
    return _italic(_value(action))


def _synopsis(parser: argparse.ArgumentParser) -> str:
    parts = [_bold(parser.prog), f"[{_italic('OPTION')}{_MORE}]\\&"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts.append(f"{_italic(_value(action))}\n[{_italic('ARGUMENT')}{_MORE}]\\&")
        elif action.option_strings and action.required:
            parts.append(f"{_bold(action.option_strings[-1])}\n{_marked_value(action)}")
    for action in parser._actions:
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            value = _italic(_value(action))
            more = _MORE if action.nargs in ("+", "*") else ""
            least = "" if action.nargs in ("?", "*") else value + more
            parts.append(least or f"[{value}{more}]")
    return "".join(f"{part}\n" for part in parts)


def _exits(exits: Exits, whole: bool) -> Iterator[str]:
    yield from _section("EXIT STATUS", rows_of(exits))
    if exits and not whole:
        yield ".PP\n" + _filled("`drgn-reliable`(1) has those that all commands share.")


def _examples_of(epilog: str) -> str:
    """What a help has under ``examples:``."""
    found = re.search(r"^examples:\n((?:  .*\n)+)", epilog, re.MULTILINE)
    return found[1] if found else ""


def _last_paragraph(epilog: str) -> str:
    return epilog.strip().rpartition("\n\n")[2]


def _examples(text: str) -> Iterator[str]:
    if not text:
        return
    yield ".SH EXAMPLES\n.EX\n"
    blank = ""
    for line in text.strip("\n").split("\n"):
        command, comment = (*re.split(r" {2,}", line.strip(), maxsplit=1), "")[:2]
        indented = line.startswith("    ")
        if comment:
            yield f"{blank}# {_text(comment)}\n"
        blank = "\n"
        for part in _broken(command):
            yield f"{'    ' if indented else ''}{_text(part)}\n"
    yield ".EE\n"


def _broken(command: str) -> list[str]:
    """A command over several lines where it is too long for one.

    >>> print("\\n".join(_broken(f"scan {'x' * 40} --store fleet.db --engine dask --retry")))
    scan xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx --store fleet.db \\
        --engine dask --retry
    """
    at = command.rfind(" --", 0, WIDTH - 2)
    if len(command) <= WIDTH or at < 0:
        return [command]
    return [f"{command[:at]} \\", *(f"    {part}" for part in _broken(command[at + 1 :]))]


def _see_also(name: str, names: list[str], whole: bool) -> Iterator[str]:
    family = [n for n in names if n != name and (whole or n == "drgn-reliable" or _near(n, name))]
    others = [*family, *(("crash", "makedumpfile") if whole else ())]
    yield ".SH SEE ALSO\n"
    for i, other in enumerate(others):
        section = 8 if other in ("crash", "makedumpfile") else 1
        comma = "," if i < len(others) - 1 else ""
        yield f".BR {_text(other)} ({section}){comma}\n"
    for title, place in DOCUMENTS.items() if whole else ():
        yield f".PP\n.UR {place}\n{_text(title)}\n.UE\n"


def _near(one: str, other: str) -> bool:
    """Whether two commands are of the same parent, or one the other's."""
    parents = one.rpartition("-")[0], other.rpartition("-")[0]
    return parents[0] == parents[1] or one == parents[1] or other == parents[0]


def _section(title: str, rows: Iterable[tuple[str, str]], *, marked: bool = False) -> Iterator[str]:
    for i, (term, text) in enumerate(rows):
        if i == 0:
            yield f".SH {title}\n"
        yield f".TP\n{term if marked else _bold(term)}\n{_filled(text)}"


def _filled(text: str) -> str:
    """Text as roff, in short lines; what is in backquotes is bold."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        lines = wrap(
            " ".join(paragraph.split()), 70, break_long_words=False, break_on_hyphens=False
        )
        roff = "\n".join(_text(line) for line in lines)
        paragraphs.append(re.sub(r"`([^`]*)`", r"\\fB\1\\fR", roff) + "\n")
    return ".PP\n".join(paragraphs)


def _bold(text: str) -> str:
    return f"\\fB{_text(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_text(text)}\\fR"


def _text(text: str) -> str:
    """Text in which nothing means anything to roff.

    >>> _text(r"-v \\ .it's")
    '\\\\-v \\\\e .it\\\\(aqs'
    """
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    return f"\\&{text}" if text.startswith((".", "\\(aq")) else text


def main() -> int:
    """Write the pages, and remove those of commands that are gone."""
    today = date.today()
    PAGES.mkdir(exist_ok=True)
    made = pages()
    for file in PAGES.glob("*.1"):
        if file.name not in made:
            file.unlink()
    for name, page in made.items():
        file = PAGES / name
        file.write_text(dated(page, file.read_text() if file.exists() else "", today))
    return 0


if __name__ == "__main__":
    sys.exit(main())
