# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kinds of damage, each a row of :data:`KINDS`.

What a kind does is decided by a random generator alone, so that a seed and a number repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from contrib.fuzz.overlay import PAGE, M
from contrib.fuzz.specimen import Patient, Specimen

NONSENSE = (
    *(0, 1, 7, M, 1 << 63, (1 << 63) - 1, (1 << 47) - 1, 1 << 47),
    *(0x4141414141414141, 0x5A5A5A5A5A5A5A5A, 0x6B6B6B6B6B6B6B6B, 0xDEAD000000000100),
    *(0x57AC6E9D, 0xCCCCCCCCCCCCCCCC, 0xFFFFFFFF, 0x53474552),
)


class Scope(Enum):
    """What has to be done anew for damage to be seen."""

    TASK = "one task's own memory: its report"
    LISTS = "lists of tasks: a scan"
    KERNEL = "lists of code and unwind tables: Kernel()"
    OPENING = "types, symbols: open_dump() too"
    PAGES = "page tables: a program of physical memory"
    FILE = "the file"


@dataclass
class Damage:
    """Other bytes, and whom they concern."""

    what: str
    words: dict[int, bytes] = field(default_factory=dict)
    holes: list[int] = field(default_factory=list)
    """Pages to take away."""
    victims: frozenset[int] = frozenset()
    """The tasks whose reports may change; all, if there are none."""


Maker = Callable[[Specimen, Random], "Damage | None"]


@dataclass(frozen=True)
class Kind:
    """A row of the table."""

    name: str
    scope: Scope
    weight: int
    make: Maker
    """None if the dump has nothing to damage so."""


# Values ----------------------------------------------------------------------------------


def nonsense(s: Specimen, rng: Random, patient: Patient, old: int) -> int:
    return rng.choice([*NONSENSE, rng.getrandbits(64), rng.getrandbits(48)])


def bit(s: Specimen, rng: Random, patient: Patient, old: int) -> int:
    return old ^ 1 << rng.randrange(64)


def near(s: Specimen, rng: Random, patient: Patient, old: int) -> int:
    return old + rng.choice([-256, -64, -32, -16, -8, -4, -1, 1, 2, 4, 8, 16, 32, 64, 256, 4096])


def code(s: Specimen, rng: Random, patient: Patient, old: int) -> int:
    """An address of kernel text: anywhere, or one that was on a stack."""
    low, high = s.machine.need("_stext"), s.machine.need("_etext")
    return rng.choice([rng.randrange(low, high), rng.choice(s.returns), rng.choice(s.returns)])


def edge(s: Specimen, rng: Random, patient: Patient, old: int) -> int:
    """Where a kind of code begins or ends, or beside that."""
    return rng.choice(s.special) + rng.choice([0, 0, 0, -1, 1, 4, 8])


def own(s: Specimen, rng: Random, patient: Patient, old: int) -> int:
    """An address on the same stack: of a word that is walked, of any, of its bounds."""
    low, size = patient.stack, s.machine.thread_size
    exact = [low, low + size, *patient.walked, *[w - 8 for w in patient.walked]]
    chosen = rng.choice([*exact, low + 8 * rng.randrange(size // 8), old])
    return chosen + rng.choice([0, 0, 0, 0, 8, -8, 16, -16, 1, -40, -48, -56])


def other(s: Specimen, rng: Random, patient: Patient, old: int) -> int:
    """An address on another task's stack."""
    someone = rng.choice(s.walkable)
    return rng.choice([*someone.walked, someone.stack]) + rng.choice([0, 0, 8, -8])


VALUES = {f.__name__: f for f in (nonsense, bit, near, code, edge, own, other)}


# Words of one task -----------------------------------------------------------------------


def _word(s: Specimen, value: int) -> bytes:
    return (value & M).to_bytes(8, s.order)


def _damage(s: Specimen, patient: Patient, what: str, words: dict[int, int]) -> Damage:
    return Damage(
        f"task {patient.address:#x} ({patient.report.comm}): {what} "
        + ", ".join(f"*{a:#x} = {v & M:#x}" for a, v in list(words.items())[:4]),
        {address: _word(s, value) for address, value in words.items()},
        victims=frozenset([patient.address]),
    )


def _at(place: str, value: str) -> Maker:
    """Another value in one word of a list of the patient's."""

    def make(s: Specimen, rng: Random) -> Damage | None:
        having = [p for p in s.patients.values() if getattr(p, place)]
        if not having:
            return None
        patient = rng.choice(having)
        address = rng.choice(getattr(patient, place))
        old = s.number(address)
        return _damage(s, patient, place, {address: VALUES[value](s, rng, patient, old)})

    return make


def _several(s: Specimen, rng: Random) -> Damage:
    """Some walked words, each of any kind."""
    patient = rng.choice(s.walkable)
    chosen = rng.sample(patient.walked, min(len(patient.walked), rng.randrange(2, 6)))
    makers = list(VALUES.values())
    words = {a: rng.choice(makers)(s, rng, patient, s.number(a)) for a in chosen}
    return _damage(s, patient, "several", words)


def _swap(s: Specimen, rng: Random) -> Damage:
    patient = rng.choice(s.walkable)
    one, two = rng.choice(patient.walked), rng.choice(patient.walked)
    return _damage(s, patient, "swap", {one: s.number(two), two: s.number(one)})


def _fill(s: Specimen, rng: Random) -> Damage:
    """One value from a walked word upwards."""
    patient = rng.choice(s.walkable)
    start = rng.choice(patient.walked)
    top = patient.stack + s.machine.thread_size
    count = min((top - start) // 8, rng.choice([4, 16, 64, 4096]))
    maker = VALUES[rng.choice(list(VALUES))]
    value = maker(s, rng, patient, s.number(start))
    return _damage(s, patient, "fill", {start + 8 * i: value for i in range(count)})


def _move(s: Specimen, rng: Random) -> Damage:
    """Part of the stack copied elsewhere on it, as an overflow or a stray memcpy does."""
    patient = rng.choice(s.walkable)
    start = rng.choice(patient.walked) & ~7
    top = patient.stack + s.machine.thread_size
    count = min((top - start) // 8, rng.choice([2, 8, 32]))
    to = start + 8 * rng.choice([-4, -2, -1, 1, 2, 4, 16])
    words = {to + 8 * i: s.number(start + 8 * i) for i in range(count) if to + 8 * i < top}
    return _damage(s, patient, "move", words)


def _beside(s: Specimen, rng: Random) -> Damage:
    """Words of the used part that the kernel's walk does not come by."""
    patient = rng.choice(s.walkable)
    low, top = min(patient.walked) & ~7, patient.stack + s.machine.thread_size
    free = [a for a in range(low, top, 8) if a not in patient.walked] or [low]
    chosen = rng.sample(free, min(len(free), 4))
    makers = list(VALUES.values())
    words = {a: rng.choice(makers)(s, rng, patient, s.number(a)) for a in chosen}
    return _damage(s, patient, "beside", words)


def _registers(s: Specimen, rng: Random) -> Damage:
    """The registers at the end of the stack, where user mode or a thread began."""
    patient = rng.choice(s.walkable)
    top = patient.stack + s.machine.thread_size
    size = s.machine.size("pt_regs") + 64
    words = {}
    for _ in range(rng.choice([1, 1, 3, 12])):
        at = top - 8 * rng.randrange(1, size // 8)
        words[at] = VALUES[rng.choice(list(VALUES))](s, rng, patient, s.number(at))
    return _damage(s, patient, "registers", words)


def _hole(s: Specimen, rng: Random) -> Damage:
    """A page of the stack that the dump lacks."""
    patient = rng.choice(s.walkable)
    page = rng.choice(patient.walked) & ~(PAGE - 1)
    damage = _damage(s, patient, f"hole {page:#x}", {})
    damage.holes.append(page)
    return damage


def _magic(s: Specimen, rng: Random) -> Damage:
    patient = rng.choice(s.walkable)
    return _damage(s, patient, "magic", {patient.stack: rng.choice(NONSENSE)})


MEMBERS = (
    *("stack", "stack_refcount.refs.counter", "__state", "flags", "on_cpu", "exit_state"),
    *("ret_stack", "curr_ret_stack", "rethooks.first", "kretprobe_instances.first"),
    *("thread_info.cpu", "pid", "tgid", "comm"),
)


def _member(s: Specimen, rng: Random) -> Damage | None:
    """A member of ``struct task_struct`` that a walk depends on."""
    patient = rng.choice(list(s.patients.values()))
    path = rng.choice([m for m in MEMBERS if s.machine.has("task_struct", m)])
    at, size, _ = s.machine._member("task_struct", path)
    old = s.number(patient.address + at, size)
    maker = VALUES[rng.choice(list(VALUES))]
    value = rng.choice([maker(s, rng, patient, old), 0, old ^ 1 << rng.randrange(8 * size)])
    damage = _damage(s, patient, path, {})
    data = (value & (1 << 8 * size) - 1).to_bytes(size, s.order)
    damage.words[patient.address + at] = data
    damage.what += f" = {data.hex()}"
    return damage


def _hooked(s: Specimen, rng: Random) -> Damage | None:
    """A node of probed returns: where it leads, whose it is, what it replaced; loops."""
    having = [p for p in s.patients.values() if p.hooks]
    if not having:
        return None
    patient = rng.choice(having)
    kind, key = ("rethook_node", "frame") if s.reference_rethook else ("kretprobe_instance", "fp")
    node = rng.choice(patient.hooks)
    start = node - s.machine.offset(kind, "llist")
    member = rng.choice(["llist", "ret_addr", key])
    at = start + s.machine.offset(kind, member)
    maker = VALUES[rng.choice(list(VALUES))]
    values = [maker(s, rng, patient, s.number(at)), rng.choice(patient.hooks), 0]
    return _damage(s, patient, f"hook {member}", {at: rng.choice(values)})


def _hidden(s: Specimen, rng: Random) -> Damage | None:
    """A tracer's trampoline for a return address, of a task that may have no record of it."""
    names = ("return_to_handler", "arch_rethook_trampoline", "__kretprobe_trampoline")
    places = [a for name in names if (a := s.machine.symbol(name)) is not None]
    if not places:
        return None
    patient = rng.choice(s.walkable)
    returns = [a for a in patient.walked if s.number(a) in patient.answer.entries]
    at = rng.choice(returns or patient.walked)
    return _damage(s, patient, "hidden", {at: rng.choice(places)})


# Lists of tasks --------------------------------------------------------------------------


def _in_lists(path: str, loop: bool) -> Maker:
    """A pointer of the process or thread lists: nonsense, or back into the list."""

    def make(s: Specimen, rng: Random) -> Damage:
        tasks = list(s.patients)
        task = rng.choice(tasks)
        offset = s.machine.offset("task_struct", path)
        at = task + offset
        target = rng.choice([*tasks[-4:], *rng.sample(tasks, 4), task]) + offset
        old = s.number(at)
        if not loop:
            target = VALUES[rng.choice(["nonsense", "bit", "near", "other"])](
                s, rng, rng.choice(s.walkable), old
            )
        return Damage(f"{path} of {task:#x} = {target & M:#x}", {at: _word(s, target)})

    return make


def _signal(s: Specimen, rng: Random) -> Damage:
    """The head of a process's threads, or where it is."""
    task = rng.choice(list(s.patients))
    signal = s.field(task, "signal")
    head = signal + s.machine.offset("signal_struct", "thread_head")
    at = rng.choice([task + s.machine.offset("task_struct", "signal"), head])
    value = VALUES[rng.choice(["nonsense", "bit", "near", "other"])](
        s, rng, rng.choice(s.walkable), s.number(at)
    )
    return Damage(f"threads of {task:#x}: *{at:#x} = {value & M:#x}", {at: _word(s, value)})


def _task_hole(s: Specimen, rng: Random) -> Damage:
    """A page of a task structure that the dump lacks."""
    task = rng.choice(list(s.patients))
    page = (task + rng.randrange(s.machine.size("task_struct"))) & ~(PAGE - 1)
    return Damage(f"hole {page:#x} in task {task:#x}", holes=[page])


def _cpus(s: Specimen, rng: Random) -> Damage:
    """Where the idle tasks are found."""
    places = [s.machine.need("__per_cpu_offset") + 8 * rng.randrange(2)]
    places.append(s.machine.need("__cpu_possible_mask"))
    base = s.number(places[0])
    idle = s.machine.need("runqueues") + s.machine.offset("rq", "idle")
    places.append(idle + base & M)
    at = rng.choice(places)
    value = VALUES[rng.choice(["nonsense", "bit", "near", "other"])](
        s, rng, rng.choice(s.walkable), s.number(at)
    )
    return Damage(f"CPUs: *{at:#x} = {value & M:#x}", {at: _word(s, value)})


# Tables and lists of code ----------------------------------------------------------------


def _table(kind: str, size: int) -> Maker:
    """A place of an unwind table that a walk of this dump comes by, or one anywhere."""

    def make(s: Specimen, rng: Random) -> Damage | None:
        places = s.words.get(kind)
        if not places:
            return None
        words = {}
        for _ in range(rng.choice([1, 1, 1, 4])):
            at = rng.choice(places)
            old = s.number(at, size)
            flipped = old ^ 1 << rng.randrange(8 * size)
            shifted = old + rng.choice([-8, -1, 1, 8, 64])
            value = rng.choice([flipped, shifted, rng.getrandbits(8 * size), 0])
            words[at] = (value & (1 << 8 * size) - 1).to_bytes(size, s.order)
        told = ", ".join(f"*{a:#x} = {v.hex()}" for a, v in words.items())
        return Damage(f"{kind} {told}", words)

    return make


def _table_hole(s: Specimen, rng: Random) -> Damage | None:
    places = [a for kind, found in s.words.items() if kind.startswith("orc") for a in found]
    if not places:
        return None
    page = rng.choice(places) & ~(PAGE - 1)
    return Damage(f"hole {page:#x} in the unwind tables", holes=[page])


def _code_list(s: Specimen, rng: Random) -> Damage | None:
    """A word of a list of code: modules, ftrace, kprobes, BPF, and what each points to."""
    places = s.words.get("list")
    if not places:
        return None
    at = rng.choice(places)
    value = VALUES[rng.choice(list(VALUES))](s, rng, rng.choice(s.walkable), s.number(at))
    value = rng.choice([value, rng.choice(places), s.number(rng.choice(places))])
    return Damage(f"list *{at:#x} = {value & M:#x}", {at: _word(s, value)})


def _code_list_hole(s: Specimen, rng: Random) -> Damage | None:
    places = s.words.get("list")
    if not places:
        return None
    page = rng.choice(places) & ~(PAGE - 1)
    return Damage(f"hole {page:#x} in lists of code", holes=[page])


def _read_hole(s: Specimen, rng: Random) -> Damage:
    """Any page that the package reads, whatever is in it."""
    page = rng.choice(s.pages)
    return Damage(f"hole {page:#x} in what is read", holes=[page])


def _read_word(s: Specimen, rng: Random) -> Damage:
    """A word of anything small that the package reads, whatever it is for."""
    start, size = rng.choice(s.small)
    wide = min(size, rng.choice([4, 8, 8]))
    at = start + rng.randrange(size) // wide * wide
    value = VALUES[rng.choice(list(VALUES))](s, rng, rng.choice(s.walkable), s.number(at, wide))
    data = (value & (1 << 8 * wide) - 1).to_bytes(wide, s.order)
    return Damage(f"read *{at:#x} = {data.hex()}", {at: data})


def _module(s: Specimen, rng: Random) -> Damage | None:
    """A member of ``struct module``."""
    modules = list(s.reference.code._modules())
    if not modules:
        return None
    m, mod = s.machine, rng.choice(modules)
    paths = [
        *("state", "list", "name", "kallsyms", "arch.orc_unwind_ip", "arch.orc_unwind"),
        *("arch.num_orcs", "core_layout.base", "core_layout.size", "core_layout.text_size"),
        *("init_layout.base", "mem[0].base", "mem[0].size", "mem[4].base", "mem[1].size"),
    ]
    path = rng.choice([p for p in paths if m.has("module", p)])
    at = mod + m.offset("module", path)
    size = 4 if path.endswith(("size", "num_orcs", "state")) else 8
    old = s.number(at, size)
    value = VALUES[rng.choice(list(VALUES))](s, rng, rng.choice(s.walkable), old)
    value = rng.choice([value, value, 0, rng.choice(modules)])
    data = (value & (1 << 8 * size) - 1).to_bytes(size, s.order)
    return Damage(f"module {mod:#x} {path} = {data.hex()}", {at: data})


# Types and symbols -----------------------------------------------------------------------


def _within(start: str, end: str | int, chunk: int = 1) -> Maker:
    """Bytes between two symbols."""

    def make(s: Specimen, rng: Random) -> Damage | None:
        low = s.machine.symbol(start)
        if low is None:
            return None
        high = low + end if isinstance(end, int) else s.machine.symbol(end)
        if high is None or high <= low:
            return None
        words = {}
        for _ in range(rng.choice([1, 1, 4, 64])):
            at = rng.randrange(low, high) // chunk * chunk
            words[at] = rng.getrandbits(8 * chunk).to_bytes(chunk, "little")
        return Damage(f"{start}: {len(words)} times {chunk} bytes, first {min(words):#x}", words)

    return make


def _types_hole(s: Specimen, rng: Random) -> Damage:
    names = ("__start_BTF", "kallsyms_names", "kallsyms_offsets", "kallsyms_token_table")
    start = rng.choice([a for name in names if (a := s.machine.symbol(name)) is not None])
    page = start + PAGE * rng.randrange(0, 8) & ~(PAGE - 1)
    return Damage(f"hole {page:#x} in types or symbols", holes=[page])


def _kallsyms(s: Specimen, rng: Random) -> Damage | None:
    """One of the tables of kallsyms, where VMCOREINFO says they are."""
    names = ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
    name = f"kallsyms_{rng.choice(names)}"
    sizes = {"kallsyms_num_syms": 4, "kallsyms_token_table": 1024, "kallsyms_token_index": 512}
    sizes |= {"kallsyms_relative_base": 8}
    return _within(name, sizes.get(name, 1 << 18), rng.choice([1, 4]))(s, rng)


_T, _L, _K, _O = Scope.TASK, Scope.LISTS, Scope.KERNEL, Scope.OPENING

KINDS = (
    *[Kind(f"stack-{value}", _T, 40, _at("walked", value)) for value in VALUES],
    *[Kind(f"saved-{value}", _T, 12, _at("saved", value)) for value in VALUES],
    *[Kind(f"shadow-{value}", _T, 6, _at("shadow", value)) for value in VALUES],
    Kind("stack-several", _T, 40, _several),
    Kind("stack-swap", _T, 30, _swap),
    Kind("stack-fill", _T, 20, _fill),
    Kind("stack-move", _T, 30, _move),
    Kind("stack-beside", _T, 40, _beside),
    Kind("stack-registers", _T, 40, _registers),
    Kind("stack-hole", _T, 10, _hole),
    Kind("stack-magic", _T, 5, _magic),
    Kind("stack-hidden", _T, 20, _hidden),
    Kind("task-member", _T, 60, _member),
    Kind("hook-node", _T, 30, _hooked),
    Kind("tasks-pointer", _L, 4, _in_lists("tasks", loop=False)),
    Kind("tasks-loop", _L, 4, _in_lists("tasks", loop=True)),
    Kind("threads-pointer", _L, 4, _in_lists("thread_node", loop=False)),
    Kind("threads-loop", _L, 4, _in_lists("thread_node", loop=True)),
    Kind("threads-head", _L, 4, _signal),
    Kind("task-hole", _L, 2, _task_hole),
    Kind("cpus", _L, 3, _cpus),
    Kind("orc-ip", _K, 6, _table("orc-ip", 4)),
    Kind("orc-entry", _K, 6, _table("orc-entry", 2)),
    Kind("orc-lookup", _K, 3, _table("orc-lookup", 4)),
    Kind("orc-hole", _K, 2, _table_hole),
    Kind("code-list", _K, 6, _code_list),
    Kind("code-list-hole", _K, 2, _code_list_hole),
    Kind("module-member", _K, 5, _module),
    Kind("read-hole", _K, 8, _read_hole),
    Kind("read-word", _K, 8, _read_word),
    Kind("btf", _O, 4, _within("__start_BTF", "__stop_BTF")),
    Kind("btf-header", _O, 1, _within("__start_BTF", 32)),
    Kind("kallsyms", _O, 4, _kallsyms),
    Kind("orc-header", _O, 2, _within("__start_orc_header", 20)),
    Kind("types-hole", _O, 1, _types_hole),
)
"""Every kind of damage to memory."""


def by_name(kinds: Iterable[Kind]) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds}
