# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mutations carried out on one dump, and what must hold after each.

* Nothing is raised but what the package documents: the errors of ``ReliableError`` on opening.
* A scan reads at most :data:`READS` times as often as that of the sound dump.
* A task's kernel verdict is the reference's: reliable with the same entries, or not reliable.
* What was not damaged keeps its report, to the last reason.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from drgn import Program

from contrib.fuzz import child, files
from contrib.fuzz.damage import KINDS, Damage, Kind, Scope, by_name
from contrib.fuzz.overlay import TooMuch
from contrib.fuzz.reference import Answer, Machine, Reference, Verdict
from contrib.fuzz.specimen import Specimen
from drgn_reliable import (
    Kernel,
    KernelVerdict,
    ProofVerdict,
    ReliableError,
    Scanner,
    TaskReport,
)

ALL_KINDS = (*KINDS, *files.KINDS)
READS, MORE_READS = 8, 20000
"""A scan of a damaged dump reads at most so many times as often as one of the sound dump, and so
many more."""
SAMPLE = 40
"""Where all tasks may be affected, so many that changed and so many that did not are judged."""
BATCH = 16
"""So many tasks are damaged at a time, each by its own mutation."""


@dataclass
class Figures:
    """What mutations did."""

    tried: Counter[str] = field(default_factory=Counter)
    """Mutations of each kind."""
    changed: Counter[str] = field(default_factory=Counter)
    """Of those, which changed the kernel's verdict or entries of a task, or kept a dump from being
    opened."""
    noticed: Counter[str] = field(default_factory=Counter)
    """Of those, which changed anything in what the package says."""
    reliable: Counter[str] = field(default_factory=Counter)
    """Damaged tasks that are reliable still, as the reference says too."""
    refused: Counter[str] = field(default_factory=Counter)
    """Openings that ended with a line."""
    misled: Counter[str] = field(default_factory=Counter)
    """Where types or symbols are others: tasks called reliable with entries that the sound
    dump's kernel did not give."""
    unsaid: Counter[str] = field(default_factory=Counter)
    """Where lists of tasks are others: those that lack tasks and look whole."""
    proven: Counter[str] = field(default_factory=Counter)
    """Tasks whose trace is proven, with other entries than before the damage."""
    spent: Counter[str] = field(default_factory=Counter)
    """Milliseconds; a batch counts for the kind of its first mutation."""
    slowest: tuple[float, int, str] = (0.0, 0, "")
    reads: float = 0.0
    """The most reads of a scan, in times of the sound dump's."""


@dataclass(frozen=True)
class Violation:
    """Something that must not be."""

    number: int
    kind: str
    what: str
    """Damage and finding."""


Mutation = tuple[int, Kind, Damage]


class Trials:
    """Mutations of one dump by a seed.

    :param only: names of kinds; all if empty.
    :param watch: is told each number before it is tried.
    """

    def __init__(
        self,
        specimen: Specimen,
        seed: int,
        only: frozenset[str] = frozenset(),
        watch: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.s = specimen
        self.watch = watch
        self.seed = seed
        self.kinds = [k for k in ALL_KINDS if not only or k.name in only]
        self.figures = Figures()
        self.at = 0
        """The number that is being tried."""

    # Which -------------------------------------------------------------------------------

    def mutation(self, number: int) -> tuple[Kind, Damage]:
        """What a number means."""
        rng = Random(f"{self.seed}:{number}:{Path(self.s.path).name}")
        weights = [kind.weight for kind in self.kinds]
        for _ in range(1000):
            (kind,) = rng.choices(self.kinds, weights)
            damage = kind.make(self.s, rng)
            if damage is not None:
                return kind, damage
        raise ValueError("the dump has nothing to damage so")

    def run(self, start: int, end: int) -> Iterator[Violation]:
        """Try the mutations of a range of numbers; those first that need nothing opened anew."""
        later: dict[Scope, list[int]] = {scope: [] for scope in Scope}
        batch: list[Mutation] = []
        taken: set[int] = set()
        for number in range(start, end):
            kind, damage = self.mutation(number)
            if kind.scope is not Scope.TASK:
                later[kind.scope].append(number)
                continue
            if len(batch) == BATCH or damage.victims & taken:
                yield from self._batch(batch)
                batch, taken = [], set()
            batch.append((number, kind, damage))
            taken |= damage.victims
        yield from self._batch(batch)
        for numbers in later.values():
            for number in numbers:
                yield from self.one(number)

    def one(self, number: int) -> list[Violation]:
        """Try one mutation by itself."""
        self._begin(number)
        kind, damage = self.mutation(number)
        if kind.scope is Scope.TASK:
            return self._together([(number, kind, damage)])
        started = time.perf_counter()
        try:
            found = self._alone(number, kind, damage)
        finally:
            self.s.overlay.heal()
        self._took(time.perf_counter() - started, number, kind)
        self.figures.tried[kind.name] += 1
        return [Violation(number, kind.name, f"{damage.what}: {what}") for what in found]

    def _begin(self, number: int) -> None:
        self.at = number
        self.watch(number)

    def _batch(self, batch: list[Mutation]) -> Iterator[Violation]:
        if not batch:
            return
        self._begin(batch[0][0])
        found = self._together(batch)
        if not found:
            return
        kept, self.figures = self.figures, Figures()
        alone = [v for number, _, _ in batch for v in self.one(number)]
        self.figures = kept
        numbers = f"only together, {batch[0][0]} to {batch[-1][0]}: "
        yield from alone or [Violation(v.number, v.kind, numbers + v.what) for v in found]

    def _took(self, seconds: float, number: int, kind: Kind) -> None:
        self.figures.spent[kind.name] += round(1000 * seconds)
        self.figures.slowest = max(self.figures.slowest, (seconds, number, kind.name))

    # Damage to tasks ---------------------------------------------------------------------

    def _together(self, batch: list[Mutation]) -> list[Violation]:
        """Damage several tasks, and scan once."""
        started = time.perf_counter()
        self.s.refresh()
        for _, _, damage in batch:
            self._lay(damage)
        first, kind, _ = batch[0]
        reports, wrong = self._scan()
        violations = [Violation(first, kind.name, what) for what in wrong]
        told = {report.task: report for report in reports}
        hurt = {task: row for row in batch for task in row[2].victims}
        for task, sound in self.s.baseline.items():
            number, name, what = first, kind.name, ""
            if task in hurt:
                number, name, what = hurt[task][0], hurt[task][1].name, hurt[task][2].what
            report = told.get(task)
            if report is None:
                violations += [Violation(number, name, f"{what}: {task:#x} is missing")] * (
                    not wrong
                )
            elif task in hurt:
                finding = self._hold(name, task, report)
                violations += [Violation(number, name, f"{what}: {finding}")] * bool(finding)
            elif report != sound:
                finding = f"the undamaged {task:#x} {_difference(sound, report)}"
                violations.append(Violation(number, name, finding))
        self.s.overlay.heal()
        for _, kind, _ in batch:
            self.figures.tried[kind.name] += 1
        self._took(time.perf_counter() - started, first, batch[0][1])
        return violations

    def _lay(self, damage: Damage) -> None:
        for address, data in damage.words.items():
            self.s.overlay.put(address, data)
        for page in damage.holes:
            self.s.overlay.take(page)

    def _scan(self) -> tuple[list[TaskReport], list[str]]:
        """A scan within bounds, as far as it comes; and what is wrong with it."""
        s, overlay, reports, wrong = self.s, self.s.overlay, [], []
        overlay.reads, overlay.limit = 0, READS * s.reads + MORE_READS
        try:
            for report in s.scanner.reports(s.kernel.tasks):
                reports.append(report)
        except TooMuch as e:
            wrong.append(f"no bounded scan: {e}")
        except Exception:
            wrong.append(_raised())
        self.figures.reads = max(self.figures.reads, overlay.reads / s.reads)
        overlay.limit = 1 << 62
        return reports, wrong

    def _hold(self, kind: str, task: int, report: TaskReport) -> str:
        """What is wrong with the report of a damaged task; empty if nothing is."""
        expected, figures = self.s.reference.answer(task), self.figures
        before = self.s.patients[task]
        changed = expected != before.answer
        figures.changed[kind] += changed
        figures.noticed[kind] += report != before.report
        found = difference(report, expected)
        if not found and expected.verdict is Verdict.RELIABLE:
            figures.reliable[kind] += 1
        other = report.proof.entries != before.report.proof.entries
        if other and report.proof.verdict is ProofVerdict.PROVEN:
            figures.proven[kind] += 1
        return found

    # Damage to what tasks have in common ---------------------------------------------------

    def _alone(self, number: int, kind: Kind, damage: Damage) -> list[str]:
        if kind.scope in (Scope.PAGES, Scope.FILE):
            return self._apart(number, kind, lambda: files.program(self.s, kind, damage))
        if kind.scope is Scope.OPENING:
            self._lay(damage)
            return self._apart(number, kind, self.s.opened)
        if kind.scope is Scope.LISTS:
            self.s.refresh()
            self._lay(damage)
            return self._lists(kind.name)
        self._lay(damage)
        self.s.stale = True
        try:
            self.s.renew()
        except ReliableError:
            return self._refused(kind)
        except Exception:
            return [_raised()]
        return self._common(kind, Random(number))

    def _refused(self, kind: Kind) -> list[str]:
        for count in (self.figures.refused, self.figures.changed, self.figures.noticed):
            count[kind.name] += 1
        return []

    def _lists(self, kind: str) -> list[str]:
        """Every task that is still found keeps its report."""
        s, figures = self.s, self.figures
        reports, wrong = self._scan()
        told = {report.task: report for report in reports}
        lost = len(s.baseline.keys() - told.keys())
        same = told.keys() == s.baseline.keys() and len(told) == len(reports)
        figures.changed[kind] += not same
        figures.noticed[kind] += not same or s.scanner.problems() != s.problems
        figures.unsaid[kind] += bool(lost and s.scanner.problems() == s.problems)
        for task, report in told.items():
            sound = s.baseline.get(task)
            if found := difference(report, s.reference.answer(task)):
                wrong.append(f"{task:#x} {found}")
            elif kind == "cpus" and report.kernel.verdict is KernelVerdict.RUNNING:
                continue  # its registers and stacks are those of a CPU
            elif sound and report.kind is sound.kind and report != sound:
                wrong.append(f"the undamaged {task:#x} {_difference(sound, report)}")
        return wrong

    def _common(self, kind: Kind, rng: Random) -> list[str]:
        """Each task's verdict is the reference's with the same damage: of all that are others than
        before, and of some that are not."""
        s = self.s
        reports, wrong = self._scan()
        changed = [r for r in reports if difference(r, s.answer_before(r.task))]
        same = [r for r in reports if r not in changed]
        self.figures.changed[kind.name] += bool(changed)
        sound = tuple(s.baseline.values())
        self.figures.noticed[kind.name] += tuple(reports) != sound or s.told() != s.problems
        for report in [*changed[:SAMPLE], *rng.sample(same, min(SAMPLE, len(same)))]:
            expected = s.reference.answer(report.task)
            if found := difference(report, expected):
                wrong.append(f"{report.task:#x} {found}")
            elif expected.verdict is Verdict.RELIABLE:
                self.figures.reliable[kind.name] += 1
        return wrong

    # Damage to what is read on opening -----------------------------------------------------

    def _apart(self, number: int, kind: Kind, opened: Callable[[], Program]) -> list[str]:
        """:meth:`_fresh` in a process that may die."""

        def work() -> dict[str, Any]:
            self.figures = Figures()
            wrong = self._fresh(number, kind, opened)
            return {"wrong": wrong, "figures": vars(self.figures)}

        try:
            told = child.attempt(work)
        except child.Died as e:
            return [str(e)]
        for name, count in vars(self.figures).items():
            if isinstance(count, Counter):
                count.update(told["figures"][name])
        wrong: list[str] = told["wrong"]
        return wrong

    def _fresh(self, number: int, kind: Kind, opened: Callable[[], Program]) -> list[str]:
        """Open anew and scan. Where types and symbols are what they were, the reference judges by
        the memory that the new program has; where they are not, nobody can: it is counted how many
        tasks are called reliable with other entries than before."""
        s = self.s
        wrong = []
        try:
            prog = opened()
            scanner = Scanner(Kernel(prog))
            reports = []
            try:
                reports.extend(scanner.reports(scanner.kernel.tasks))
            except Exception:
                wrong.append(_raised())
            told = scanner.problems()
        except ReliableError:
            return self._refused(kind)
        except Exception:
            return [_raised()]
        strong = kind.scope is not Scope.OPENING and files.same_metadata(s, prog)
        reference = Reference(Machine(s.machine.types, prog.read), s.architecture)
        changed = [r for r in reports if difference(r, s.answer_before(r.task))]
        self.figures.changed[kind.name] += bool(changed)
        sound = tuple(s.baseline.values())
        self.figures.noticed[kind.name] += tuple(reports) != sound or told != s.problems
        same = [r for r in reports if r not in changed] if strong else []
        rng = Random(number)
        for report in [*changed[:SAMPLE], *rng.sample(same, min(SAMPLE // 2, len(same)))]:
            found = difference(report, reference.answer(report.task))
            if strong and found:
                wrong.append(f"{report.task:#x} {found}")
            elif found and report.kernel.verdict is KernelVerdict.RELIABLE:
                self.figures.misled[kind.name] += 1
        return wrong


def difference(report: TaskReport, expected: Answer) -> str:
    """Where a report's kernel verdict is not what is expected; empty if it is. Whether the dump
    lacks memory or the kernel refuses is one: neither is reliable."""
    verdict = report.kernel.verdict
    ours = verdict.value, tuple(report.kernel.entries)
    theirs = expected.verdict.value, expected.entries
    refused = (Verdict.UNRELIABLE, Verdict.FAULT)
    if verdict is KernelVerdict.UNRELIABLE and expected.verdict in refused:
        return ""
    if ours == theirs:
        return ""
    if verdict is KernelVerdict.UNRELIABLE and expected.blind:
        return ""
    return f"{_told(*ours)}, the reference {_told(*theirs)}"


def _told(verdict: str, entries: tuple[int, ...]) -> str:
    return f"is {verdict} [{', '.join(f'{e:x}' for e in entries)}]" if entries else f"is {verdict}"


def _difference(sound: TaskReport, report: TaskReport) -> str:
    before = [r.id for r in sound.reasons]
    after = [r.id for r in report.reasons]
    return (
        f"was {sound.kernel.verdict.value}, {sound.proof.verdict.value} {before}, "
        f"is {report.kernel.verdict.value}, {report.proof.verdict.value} {after}"
    )


def _raised() -> str:
    """One line of the exception that is being handled."""
    lines = traceback.format_exc().strip().split("\n")
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    last = places[-1].replace('"', "") if places else ""
    return f"raised {lines[-1]} ({last})"


__all__ = ("ALL_KINDS", "Figures", "Trials", "Violation", "by_name", "difference")
