# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of a command line may come in any order that keeps what has no name in its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import pytest

from tests.parsers import LEAVES, make_parser

# command: what has no name, in its order; options with their values
COMMANDS: dict[str, tuple[list[str], list[list[str]]]] = {
    "scan": (["vmcore"], [["--format", "json"], ["-o", "out"], ["--task", "1"], ["--group"]]),
    "info": (["vmcore"], [["--format", "json"], ["--symbols", "vmlinux"]]),
    "klp": (["vmcore"], [["--format", "json"], ["--only", "sleeping"], ["-v"]]),
    "explain": (["vmcore", "1", "2"], [["--words", "all"], ["--format=json"]]),
    "capsule": (["vmcore"], [["-o", "out"], ["--add-text"], ["--task", "1"]]),
    "reasons": (["kprobe-slot", "running"], [["--format", "json"], ["-v"]]),
    "fleet scan": (["one", "two"], [["--store", "fleet.db"], ["--retry"]]),
    "fleet report": (["fleet.db"], [["--by", "host"], ["--format", "csv"], ["-oout"]]),
    "fleet query": (["fleet.db", "SELECT 1"], [["--format", "csv"], ["-o", "out"]]),
}


def orders(unnamed: Sequence[str], options: Sequence[list[str]]) -> Iterator[list[str]]:
    """Every order of the options among words that stay in theirs."""
    parts = [*([word] for word in unnamed), *options]
    for order in permutations(range(len(parts))):
        mine = [index for index in order if index < len(unnamed)]
        if mine == sorted(mine):
            yield [word for index in order for word in parts[index]]


def understood(command: str, words: Sequence[str]) -> dict[str, object]:
    """What the parser makes of a command line."""
    return vars(make_parser().parse_args([*command.split(), *words]))


def test_every_command_is_here() -> None:
    """A new one gets a row."""
    assert {f"drgn-reliable {name}" for name in COMMANDS} == set(LEAVES)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_may_stand_anywhere(command: str) -> None:
    """Before, between and after the other arguments: it means the same."""
    unnamed, options = COMMANDS[command]
    first, *others = (understood(command, words) for words in orders(unnamed, options))
    assert len(others) >= 2
    assert all(other == first for other in others)


AFTER_THE_DASHES: list[tuple[str, list[str], dict[str, object]]] = [
    ("scan", ["-v", "--", "-odd"], {"dump": "-odd", "verbose": True}),
    ("explain", ["vmcore", "--words", "all", "--", "-1"], {"dump": "vmcore", "task": ["-1"]}),
    ("explain", ["--", "--", "-v"], {"dump": "--", "task": ["-v"]}),
    ("fleet scan", ["a", "--store", "b", "--", "--retry"], {"paths": ["a", "--retry"]}),
    ("fleet query", ["--format", "csv", "--", "-s", "-q"], {"store": "-s", "question": "-q"}),
    ("fleet query", ["s", "--format", "csv", "--", "-q"], {"store": "s", "question": "-q"}),
    ("reasons", ["--", "-v"], {"id": ["-v"], "verbose": False}),
]


@pytest.mark.parametrize(("command", "words", "expected"), AFTER_THE_DASHES)
def test_after_two_dashes_there_are_no_options(
    command: str, words: list[str], expected: dict[str, object]
) -> None:
    """A file may be called anything."""
    found = understood(command, words)
    assert {name: found[name] for name in expected} == expected


REFUSED = {
    "an option that is none": ("fleet query", ["s", "--bad", "q"], "arguments: --bad q"),
    "a word too many": ("fleet query", ["s", "--format", "csv", "q", "r"], "arguments: r"),
    "one too many after the dashes": ("scan", ["vmcore", "--", "-r"], "unrecognized arguments: -r"),
    "none at all": ("fleet query", ["--format", "csv"], "arguments are required: STORE"),
    "an option without its value": ("fleet scan", ["a", "--store"], "expected one argument"),
    "an option that must be there": ("capsule", ["vmcore"], "are required: -o/--output"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_still_told(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the last line, with the words as they were given, below the command's own usage."""
    command, words, message = REFUSED[what]
    with pytest.raises(SystemExit) as ended:
        understood(command, words)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: drgn-reliable {command} ") and told.endswith(f"{message}\n")
