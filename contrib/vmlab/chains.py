# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hold proven traces against what is known to be on the stack: ``chains.yaml``.

A kernel's own verdict says nothing of a trace that it refuses. Of some tasks it is known, from the
guest's sources, who called whom; a trace that is said to be proven has to have all of them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from drgn_reliable import ProofVerdict, TaskReport

TABLE = Path(__file__).with_name("chains.yaml")
SECTIONS = ("parts", "acts", "tasks", "callers", "below")
GAP = "..."
REPEATED = re.compile(r"x(\d+)")
SUFFIX = r"(\.(isra|constprop|part|cold|llvm)(\.\d+)*)*"
"""What compilers add to the name of a function that they changed."""
LABEL = re.compile(r"(\.L|L0|\$[adtx]).*", re.DOTALL)
"""The names of modules' code can be those of labels, which the kernel passes over itself."""


class ChainsError(Exception):
    """A table that cannot be."""


@dataclass(frozen=True)
class Item:
    """One element of a chain: some frames of one function, or any number of any."""

    text: str
    pattern: re.Pattern[str]
    least: int = 1
    most: int = 1

    @property
    def is_gap(self) -> bool:
        """Whether it stands for any frames."""
        return self.text == GAP

    def matches(self, name: str) -> bool:
        """Whether a frame can be this one."""
        return bool(LABEL.fullmatch(name) or self.pattern.fullmatch(name))


Chain = tuple[Item, ...]
Rule = tuple[re.Pattern[str], Item]


@dataclass(frozen=True)
class Table:
    """What is known."""

    chains: dict[str, Chain]  # by patterns of task names
    callers: tuple[Rule, ...]
    below: tuple[Rule, ...]

    def chain(self, comm: str) -> Chain | None:
        """What is known of a task of that name."""
        found = (c for name, c in self.chains.items() if fnmatch.fnmatchcase(comm, name))
        return next(found, None)


def missing_functions(reports: Iterable[TaskReport], table: Table | None = None) -> list[str]:
    """Every task that is said to be proven, but lacks a function, a line each."""
    table = table or load()
    lines = []
    for report in reports:
        if report.proof.verdict is not ProofVerdict.PROVEN:
            continue
        if problem := what_is_missing(report.comm, names_of(report), table):
            lines.append(f"{report.pid} {report.comm}: proven, but {problem}")
    return lines


def coverage(reports: Iterable[TaskReport], table: Table | None = None) -> tuple[int, int]:
    """How many tasks have a known chain, and how many of those are proven."""
    table = table or load()
    known = [report for report in reports if table.chain(report.comm)]
    return len(known), sum(report.proof.verdict is ProofVerdict.PROVEN for report in known)


def names_of(report: TaskReport) -> list[str]:
    """A trace's functions, the innermost first."""
    return [frame.code.symbol or f"{frame.pc:#x}" for frame in report.frames]


def what_is_missing(comm: str, names: Sequence[str], table: Table) -> str | None:
    """What a task's trace has not, but must have; None if nothing is missing."""
    chain = table.chain(comm)
    problem = _chain_problem(chain, names) if chain else None
    return problem or _callers_problem(table.callers, names) or _below_problem(table.below, names)


def _chain_problem(chain: Chain, names: Sequence[str]) -> str | None:
    reached = {0}  # how many frames the items up to here can be
    for item in chain:
        after = _after(item, reached, names)
        if not after:
            place = max(reached)
            above = f"below {names[place - 1]}" if place else "at the top"
            return f"no {item.text} {above}"
        reached = after
    if len(names) not in reached:
        return f"{names[max(reached)]} is below the end of the chain"
    return _count_problem(chain, names)


def _after(item: Item, reached: set[int], names: Sequence[str]) -> set[int]:
    """How many frames are used, when those of the item are, too."""
    if item.is_gap:
        return set(range(min(reached), len(names) + 1))
    result = set()
    for start in reached:
        for count in range(item.most + 1):
            if count >= item.least:
                result.add(start + count)
            if start + count >= len(names) or not item.matches(names[start + count]):
                break
    return result


def _count_problem(chain: Chain, names: Sequence[str]) -> str | None:
    """No function that a chain calls by its name is there more often than the chain says."""
    for text in dict.fromkeys(item.text for item in chain if item.text.isidentifier()):
        items = [item for item in chain if item.text == text]
        found = sum(bool(items[0].pattern.fullmatch(name)) for name in names)
        most = sum(item.most for item in items)
        if found > most:
            return f"{text} is there {found} times, not {most}"
    return None


def _callers_problem(rules: Sequence[Rule], names: Sequence[str]) -> str | None:
    for place, name in enumerate(names):
        for function, caller in rules:
            if not function.fullmatch(name):
                continue
            if place + 1 == len(names) or not caller.matches(names[place + 1]):
                return f"no {caller.text} below {name}"
    return None


def _below_problem(rules: Sequence[Rule], names: Sequence[str]) -> str | None:
    for place, name in enumerate(names):
        for function, other in rules:
            if function.fullmatch(name) and not any(map(other.matches, names[place + 1 :])):
                return f"no {other.text} anywhere below {name}"
    return None


# Reading the table ------------------------------------------------------------------------------


@cache
def load(path: Path = TABLE) -> Table:
    """The table of a file."""
    values = yaml.safe_load(path.read_text())
    if unknown := set(values) - set(SECTIONS):
        raise ChainsError(f"{path.name}: no section is called {', '.join(sorted(unknown))}")
    sections = {name: values.get(name, {}) for name in SECTIONS}
    parts = sections["parts"]
    chains = {name: _chain(text, parts) for name, text in sections["tasks"].items()}
    for name, text in sections["acts"].items():
        chains[f"k_{name}"] = _chain(f"{text} $thread", parts)
        chains[f"u_{name}"] = _chain(f"{text} $process", parts)
    callers, below = (_rules(sections[name]) for name in ("callers", "below"))
    return Table(chains, callers, below)


def _chain(text: str, parts: dict[str, str]) -> Chain:
    chain: list[Item] = []
    for word in text.split():
        if word == "?":
            chain[-1] = replace(chain[-1], least=0)
        elif repeated := REPEATED.fullmatch(word):
            count = int(repeated[1])
            chain[-1] = replace(chain[-1], least=count, most=count)
        elif word.startswith("$"):
            if word[1:] not in parts:
                raise ChainsError(f"there is no part {word}")
            chain += _chain(parts[word[1:]], parts)
        else:
            chain.append(Item(word, _pattern(word)))
    return tuple(chain)


def _rules(section: dict[str, str]) -> tuple[Rule, ...]:
    return tuple((_pattern(name), Item(other, _pattern(other))) for name, other in section.items())


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(f"({text}){SUFFIX}")
    except re.error as error:
        raise ChainsError(f"{text}: {error}") from None
