# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every parser of the command line by the words that lead to it."""

from __future__ import annotations

import argparse

from drgn_reliable.cli import make_parser


def _all(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = {parser.prog: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= _all(child)
    return found


PARSERS = _all(make_parser())
"""``drgn-reliable``, ``drgn-reliable scan``, ``drgn-reliable fleet scan`` ..."""

LEAVES = [name for name in PARSERS if not any(other.startswith(f"{name} ") for other in PARSERS)]
"""Those that do something."""


def options(name: str) -> set[str]:
    """The options of a parser, by all their names."""
    return {option for action in PARSERS[name]._actions for option in action.option_strings}
