# SPDX-License-Identifier: LGPL-2.1-or-later
"""The TAB key in real shells, with the scripts that ``--print-completion`` gives."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
import shtab

from tests.parsers import PARSERS, make_parser, options
from tests.programs import program
from tests.prompt import read_until

CASES = [
    # what is typed, what the key makes of it
    ("drgn-reliable sc", "drgn-reliable scan"),
    ("drgn-reliable fleet rep", "drgn-reliable fleet report"),
    ("drgn-reliable scan --verb", "drgn-reliable scan --verbose"),
    ("drgn-reliable scan --format speed", "drgn-reliable scan --format speedscope"),
    ("drgn-reliable klp --only slee", "drgn-reliable klp --only sleeping"),
    ("drgn-reliable reasons --section 4.4", "drgn-reliable reasons --section 4.4"),
    ("drgn-reliable fleet report --by blo", "drgn-reliable fleet report --by blocking"),
    ("drgn-reliable scan a-vm", "drgn-reliable scan a-vmcore"),
    ("drgn-reliable scan --symbols deb", "drgn-reliable scan --symbols debug.xz"),
    ("drgn-reliable explain a-vm", "drgn-reliable explain a-vmcore"),
    (
        "drgn-reliable fleet scan a-vmcore --store fl",
        "drgn-reliable fleet scan a-vmcore --store fleet.db",
    ),
]

SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "source .scripts/drgn-reliable; PS1=; "
        "bind -x '\"\\C-g\": echo \"<<$READLINE_LINE>>\"'; echo be''gin",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "fpath=($PWD/.scripts $fpath); autoload -U compinit; compinit -u -D; PS1=; "
        "show() { print \"<<$BUFFER>>\" }; zle -N show; bindkey '^G' show; echo be''gin",
    ),
}
"""How a shell is started, and what it is told first: print what was typed when Ctrl-G comes."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a few files."""
    for name in ("a-vmcore", "debug.xz", "fleet.db"):
        (tmp_path / name).touch()
    return tmp_path


def install(shell: str, place: Path) -> None:
    """Put a shell's script, under the name that it wants, where no completion sees it."""
    name = {"bash": "drgn-reliable", "zsh": "_drgn-reliable", "fish": "drgn-reliable.fish"}[shell]
    (place / ".scripts").mkdir()
    (place / ".scripts" / name).write_text(shtab.complete(make_parser(), shell))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_tab_key(shell: str, place: Path) -> None:
    """Commands, options, choices and files are completed at a real terminal."""
    path = program(shell)
    command, prepare = SHELLS[shell]
    install(shell, place)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execve(path, command, {"PATH": os.environ["PATH"], "TERM": "dumb", "LC_ALL": "C.UTF-8"})
    try:
        os.write(terminal, f"{prepare}\n".encode())
        read_until(terminal, "begin")
        completed = []
        for typed, _ in CASES:
            os.write(terminal, f"{typed}\t\x07".encode())
            completed.append(read_until(terminal, ">>").rpartition("<<")[2].partition(">>")[0])
            os.write(terminal, b"\x15")  # clear the line
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    assert [line.rstrip() for line in completed] == [expected for _, expected in CASES]


def test_fish_offers_the_same(place: Path) -> None:
    """fish says what it would offer."""
    program("fish")
    install("fish", place)
    for typed, expected in CASES:
        done = subprocess.run(
            [
                "fish",
                "--no-config",
                "-c",
                "source .scripts/drgn-reliable.fish; complete -C $argv[1]",
                typed,
            ],
            capture_output=True,
            text=True,
            cwd=place,
            env={**os.environ, "HOME": str(place)},
            timeout=60,
        )
        offered = [line.split("\t")[0] for line in done.stdout.splitlines()]
        assert expected.split()[-1] in offered, (typed, done.stderr)


def test_every_option_is_offered(place: Path) -> None:
    """bash offers each option of each command, by all its names."""
    install("bash", place)
    ask = """source .scripts/drgn-reliable
    function=$(complete -p drgn-reliable | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    while read -r line; do
        COMP_LINE="$line -"; COMP_POINT=${#COMP_LINE}; read -ra COMP_WORDS <<< "$COMP_LINE"
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
        $function drgn-reliable - "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[@]}"
    done"""
    done = subprocess.run(
        ["bash", "--norc", "-c", ask],
        input="".join(f"{name}\n" for name in PARSERS),
        capture_output=True,
        text=True,
        cwd=place,
        timeout=60,
        check=True,
    )
    offered = dict(zip(PARSERS, done.stdout.splitlines(), strict=True))
    assert {name: set(line.split()) for name, line in offered.items()} == {
        name: options(name) for name in PARSERS
    }
