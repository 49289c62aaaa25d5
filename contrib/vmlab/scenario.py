# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scenarios: what to boot, what to run in it, and how to take the dump.

One YAML file describes one scenario; see ``README.md`` for its keys. A key that
is not known is an error, so a spelling mistake cannot silently change a dump.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

SCENARIOS = Path(__file__).with_name("scenarios")
T = TypeVar("T")


class ScenarioError(Exception):
    """A scenario file says something that cannot be."""


@dataclass(frozen=True)
class Machine:
    """The virtual machine; None leaves the choice to the architecture's table."""

    memory: str = "160M"
    cpus: int = 2
    type: str | None = None
    cpu: str | None = None
    cmdline: str = ""


@dataclass(frozen=True)
class Workload:
    """What happens in the guest before the verdicts are taken."""

    settle: int = 8  # seconds for the tasks to reach their states
    crowd: int = 0  # further processes, asleep in a few ways
    graph: tuple[str, ...] = ()  # functions for the function graph tracer
    fprobes: tuple[str, ...] = ()  # functions for function (return) probes
    livepatch: bool = False  # load a livepatch whose transition stalls
    hurt: bool = False  # damage some stacks, after the verdicts


@dataclass(frozen=True)
class Dump:
    """How the dump is taken.

    With "qmp", QEMU writes it in this format. With "kdump", a crash kernel does, by
    makedumpfile with these arguments, after a panic.
    """

    how: str = "qmp"
    format: str = "elf"
    makedumpfile: str = "-c -d 31"


@dataclass(frozen=True)
class Scenario:
    """One dump to make."""

    name: str
    about: str
    architecture: str
    suites: tuple[str, ...]
    kernel: str  # a release, or a pattern of releases: the newest is taken
    machine: Machine = field(default_factory=Machine)
    workload: Workload = field(default_factory=Workload)
    dump: Dump = field(default_factory=Dump)


def names() -> list[str]:
    """The scenarios there are."""
    return sorted(path.stem for path in SCENARIOS.glob("*.yaml"))


def load(name: str) -> Scenario:
    """A scenario by its name, or by the path of a file of your own."""
    path = Path(name)
    if path.suffix != ".yaml":
        path = SCENARIOS / f"{name}.yaml"
    if not path.exists():
        raise ScenarioError(f"no scenario {name!r}; there are: {', '.join(names())}")
    values = _read(path)
    for key, kind in (("machine", Machine), ("workload", Workload), ("dump", Dump)):
        values[key] = _make(kind, values.get(key) or {}, f"{path.name}: {key}")
    values["name"] = path.stem
    return _make(Scenario, values, path.name)


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """The file's keys, over those of the scenario that it is "like"."""
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ScenarioError(f"{path.name}: not a mapping")
    like = values.pop("like", None)
    if like is None:
        return values
    if depth > 5:
        raise ScenarioError(f"{path.name}: too many levels of 'like'")
    return _merged(_read(path.with_name(f"{like}.yaml"), depth + 1), values)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            value = _merged(result[key], value)
        result[key] = value
    return result


def _make(kind: type[T], values: dict[str, Any], where: str) -> T:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(values) - known:
        raise ScenarioError(f"{where}: unknown {', '.join(sorted(unknown))}")
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**frozen)
    except TypeError as error:
        raise ScenarioError(f"{where}: {error}") from None
