# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scenarios: what to boot, what to run in it, and how to take the dump.

One YAML file describes one scenario; see ``README.md`` for its keys. A key or a value
that cannot be is an error, so a spelling mistake cannot silently change a dump.
"""

from __future__ import annotations

import copy
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from . import kernelbuild
from .machines import MACHINES

SCENARIOS = Path(__file__).with_name("scenarios")
CHOICES = {
    "architecture": tuple(MACHINES),
    "build": tuple(kernelbuild.names()),
    "how": ("qmp", "kdump", "live", "glance"),
    "format": ("elf", "kdump-zlib", "kdump-lzo", "kdump-snappy"),
    "hold": ("stop", "interrupt"),
}
STEP = re.compile(
    r"start( [ku]_\w+)+|load \w+|settle \d+|(disable|force|finished) \w+",
    re.ASCII,
)
"""What can be done to a guest whose tasks are in their states."""


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

    states: tuple[str, ...] = ("*",)  # patterns: only tasks of such names are started
    assembler: tuple[str, ...] = ()  # options with which the guest's modules are assembled
    assembled: tuple[str, ...] = ()  # only these objects of theirs, such as "chain.o"
    settle: int = 8  # seconds for the tasks to reach their states
    crowd: int = 0  # further processes, asleep in a few ways
    threads: int = 0  # further threads, in processes of one to a thousand, asleep in many ways
    graph: tuple[str, ...] = ()  # functions for the function graph tracer
    fprobes: tuple[str, ...] = ()  # functions for function (return) probes
    livepatch: bool = False  # load a livepatch whose transition stalls
    steps: tuple[str, ...] = ()  # what happens after that, in this order; see STEP
    move: bool = False  # start tasks that never stay where they are, or at all
    hurt: bool = False  # damage some stacks, after the verdicts


@dataclass(frozen=True)
class Dump:
    """How the dump is taken.

    With "qmp", QEMU writes it in this format. With "kdump", a crash kernel does, by
    makedumpfile with these arguments, after a panic. With "glance" there is none: the guest
    goes on, and has its verdicts taken again and again. With "live" it scans itself before that.
    """

    how: str = "qmp"
    format: str = "elf"
    hold: str = "stop"  # the CPUs: by the kernel's stopper threads, or in interrupts
    flattened: bool = True  # of kdump formats: as QEMU writes it, or reassembled
    makedumpfile: str = "-c -d 31"


@dataclass(frozen=True)
class Scenario:
    """One dump to make."""

    name: str
    about: str
    architecture: str
    suites: tuple[str, ...]
    kernel: str  # a release, or a pattern of releases: the newest is taken
    build: str = ""  # configs/NAME: then "kernel" is the version of a source package
    machine: Machine = field(default_factory=Machine)
    workload: Workload = field(default_factory=Workload)
    dump: Dump = field(default_factory=Dump)


SECTIONS = {"machine": Machine, "workload": Workload, "dump": Dump}


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
    values = _read(path, ())
    wanted = [i for i in fields(Scenario) if i.default is i.default_factory is MISSING]
    if missing := [item.name for item in wanted if item.name not in {"name", *values}]:
        raise ScenarioError(f"{path.name}: there is no {' and no '.join(missing)}")
    for key, kind in SECTIONS.items():
        values[key] = kind(**values.get(key, {}))
    return Scenario(name=path.stem, **values)


def _read(path: Path, likes: tuple[str, ...]) -> dict[str, Any]:
    """The file's keys, over those of the scenario that it is "like"."""
    try:
        values = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path.name}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ScenarioError(f"{path.name}: not a mapping")
    like = values.pop("like", None)
    values = _checked(Scenario, values, f"{path.name}: ")
    if like is None:
        return values
    base = path.with_name(f"{like}.yaml")
    problem = f"{path.name}: like is {like!r}"
    if like in likes:
        raise ScenarioError(f"{problem}, a circle of {', '.join(likes)}")
    if not base.exists():
        raise ScenarioError(f"{problem}, but there is no {base.name}")
    return _merged(_read(base, (*likes, like)), values)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            value = _merged(result[key], value)
        result[key] = value
    return result


def _checked(kind: type, values: dict[Any, Any], where: str) -> dict[str, Any]:
    """The values, lists made tuples, if each has a key of that kind and its type."""
    hints = get_type_hints(kind)
    hints.pop("name", None)  # that is the file's
    result = {}
    for key, value in values.items():
        problem = f"{where}{key} is {value!r}"
        if key not in hints:
            raise ScenarioError(f"{problem}, but the keys are {', '.join(hints)}")
        if key in SECTIONS and isinstance(value, dict):
            value = _checked(SECTIONS[key], value, f"{where}{key}.")
        elif not _fits(value, hints[key]):
            raise ScenarioError(f"{problem}, not {_called(hints[key])}")
        elif value not in CHOICES.get(key, (value,)):
            raise ScenarioError(f"{problem}, not one of {', '.join(CHOICES[key])}")
        elif key == "steps" and (bad := [step for step in value if not STEP.fullmatch(step)]):
            raise ScenarioError(f"{where}{key} has {bad[0]!r}, which is no step")
        result[key] = tuple(value) if isinstance(value, list) else value
    return result


def _fits(value: object, hint: Any) -> bool:
    if hint == tuple[str, ...]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _called(hint: Any) -> str:
    """A type as the author of a file calls it."""
    names = {str: "text", int: "a whole number", bool: "true or false"}
    if hint in SECTIONS.values():
        return "a mapping"
    return "a list of texts" if hint == tuple[str, ...] else names.get(hint, "text")
