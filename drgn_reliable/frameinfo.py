# SPDX-License-Identifier: LGPL-2.1-or-later
"""The chain of providers of call frame information: who has a rule for a program counter.

The kernel of most architectures walks without any, and so refuses what only metadata for every
instruction can tell. A dump may have some in its memory (SFrame), debug files have it (DWARF).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from drgn import FaultError

from drgn_reliable.memory import missing
from drgn_reliable.model import FoundBy
from drgn_reliable.tables.framerule import BadRule, FrameRule, Provider
from drgn_reliable.text import lookup_address

__all__ = ("Found", "FrameInformation", "Lookup", "Source")


@dataclass(frozen=True)
class Source:
    """A provider, and what is said of a frame that its rule found.

    :ivar by_link: of one whose return address was in the link register.
    """

    provider: Provider
    found_by: FoundBy
    by_link: FoundBy


@dataclass(frozen=True)
class Found:
    """A rule, and where it comes from."""

    source: Source
    rule: FrameRule

    @property
    def name(self) -> str:
        """Of the provider, for people."""
        return self.source.provider.name


@dataclass(frozen=True)
class Lookup:
    """All that the providers say of a program counter."""

    rules: tuple[Found, ...] = ()
    """The most trusted first."""
    failures: tuple[str, ...] = ()
    """What they have and cannot be used, a line each."""


class FrameInformation:
    """The providers for each address, and what they said, asked once.

    :param sources: gives those that may know an address, the most trusted first.
    """

    def __init__(self, sources: Callable[[int], Iterable[Source]] = lambda address: ()) -> None:
        self._sources = sources
        self._known: dict[int, Lookup] = {}

    def at(self, pc: int, exact: bool) -> Lookup:
        """What there is for a program counter.

        :param exact: ``pc`` is an interrupted instruction, not a return address.
        """
        address = lookup_address(pc, exact)
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._ask(address)
        return found

    def _ask(self, address: int) -> Lookup:
        rules: list[Found] = []
        failures: list[str] = []
        for source in self._sources(address):
            try:
                rule = source.provider.find(address)
            except (BadRule, FaultError) as e:
                failures.append(f"{source.provider.name}: {missing(e)}")
                continue
            if rule is not None:
                rules.append(Found(source, rule))
        return Lookup(tuple(rules), tuple(failures))
