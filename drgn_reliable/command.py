# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a command and its arguments are, whatever offers them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from drgn_reliable.exits import Exits, exits_text
from drgn_reliable.render.visible import visible

__all__ = ("Argument", "Command", "CommandParser", "argument", "at_least")

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Argument:
    """One argument, as :meth:`argparse.ArgumentParser.add_argument` takes it."""

    names: tuple[str, ...]
    options: dict[str, Any]


def argument(*names: str, **options: Any) -> Argument:
    """An argument, written as :meth:`argparse.ArgumentParser.add_argument` is called."""
    return Argument(names, options)


@dataclass(frozen=True)
class Command:
    """What a command is, for whatever front end offers it."""

    name: str
    summary: str
    description: str
    examples: str
    arguments: tuple[Argument, ...]
    exits: Exits
    notes: str = ""
    """Paragraphs that follow the examples."""

    @property
    def epilog(self) -> str:
        """What follows the arguments in the command's help."""
        parts = (f"examples:\n{self.examples}", self.notes, exits_text(self.exits))
        return "\n".join(part for part in parts if part)


class CommandParser(argparse.ArgumentParser):
    """The parser of a command. It shows wrong arguments as text: a shell's pattern makes them of
    files' names.

    Options may stand between a command's positional arguments though the number of these varies:
    all options are taken first, for only all that is left tells which is which. After ``--`` there
    are no options. A parser that only leads to other commands leaves these their own.
    """

    _inside = False

    def error(self, message: str) -> NoReturn:
        """See :class:`argparse.ArgumentParser`."""
        super().error(visible(message))

    def parse_known_args(  # type: ignore[override]
        self,
        args: list[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """See :class:`argparse.ArgumentParser`."""
        if args is None or self._inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        first = args.index("--") if "--" in args else len(args)
        # Options that are none would be lost: intermixed parsing goes over the words twice.
        hidden = {f"\0{number}": word for number, word in enumerate(args[first + 1 :])}
        self._inside = True
        try:
            found, rest = self.parse_known_intermixed_args([*args[:first], *hidden], namespace)
        finally:
            self._inside = False
        for name, value in vars(found).items():
            if isinstance(value, list):
                setattr(found, name, [hidden.get(word, word) for word in value])
            elif isinstance(value, str):
                setattr(found, name, hidden.get(value, value))
        if rest:  # told here, with the usage of this command
            self.error(f"unrecognized arguments: {' '.join(hidden.get(w, w) for w in rest)}")
        return found, []


def at_least(kind: type[N], least: N) -> Callable[[str], N]:
    """The type of an argument that is a number of at least so much."""

    def number(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not value >= least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return value

    return number
