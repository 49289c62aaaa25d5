# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel whose special code a test puts there by hand: kprobe tables, livepatches, BPF images,
users of ftrace, modules' sections, the firmware's memory map."""

from __future__ import annotations

from drgn_reliable.generated import GeneratedText
from drgn_reliable.model import CodeRole
from drgn_reliable.modules import ModuleList
from drgn_reliable.owners import Owners
from drgn_reliable.roles import CodeNames, Pages
from drgn_reliable.text import CodeRules, Text
from tests.fakes import FakeMemory, FakeSymbols, FakeTypes, kernel_types

TEXT, ETEXT, END = 0xFFFFFFFF81000000, 0xFFFFFFFF81010000, 0xFFFFFFFF82100000
DATA = 0xFFFFFFFF82000000
INIT = 0xFFFFFFFF83000000
MODULE, NEW_CODE = 0xFFFFFFFFC0000000, 0xFFFFFFFFC0000100
TRAMPOLINE, SLOTS, DETOURS = 0xFFFFFFFFA0000000, 0xFFFFFFFFA0002000, 0xFFFFFFFFA0003000
BPF = 0xFFFFFFFFA0008000
VECTORS = 0xFFFF888000300000
HEAP = 0xFFFF888000010000
LOST = 0xFFFF888000F00000
"""No memory is there."""
CALLBACK, PROBED, OLD = TEXT + 0x400, TEXT + 0x500, TEXT + 0x600
LIVEPATCH, AGGREGATE = TEXT + 0x700, TEXT + 0x800

VARIABLES = {
    name: DATA + 0x1000 * i
    for i, name in enumerate(
        (
            "modules", "bpf_kallsyms", "ftrace_ops_list", "ftrace_list_end", "kprobe_insn_slots",
            "kprobe_optinsn_slots", "kprobe_table", "klp_patches", "ftrace_trace_function",
            "trampoline_table", "efi", "eentry",
        )
    )
}  # fmt: skip

NAMES = CodeNames(
    exact={"stub": CodeRole.LIVEPATCH_STUB},
    patterns={r"thunk_.*": CodeRole.THUNK, r".*_veneer": CodeRole.PLT},
    between=(("_stext", "end_of_vectors", CodeRole.VECTORS),),
    vectors=(Pages("eentry", 0x1000),),
    sections={".plt": CodeRole.PLT},
)


def declare(types: FakeTypes) -> None:
    """What the kernel's lists are made of, cut down."""
    types.struct("hlist_node", next="struct hlist_node *", pprev="void *")
    types.struct("arch_specific_insn", insn="unsigned char *")
    types.struct("arch_optimized_insn", copied_insn="unsigned char [4]", insn="unsigned char *")
    types.struct(
        "kprobe",
        hlist="struct hlist_node",
        list="struct list_head",
        addr="unsigned char *",
        pre_handler="void *",
        ainsn="struct arch_specific_insn",
        flags="unsigned int",
    )
    types.struct(
        "optimized_kprobe",
        kp="struct kprobe",
        list="struct list_head",
        optinsn="struct arch_optimized_insn",
    )
    types.struct(
        "kprobe_insn_cache", sym="char *", pages="struct list_head", insn_size="unsigned long"
    )
    types.struct(
        "klp_patch",
        mod="struct module *",
        replace="_Bool",
        list="struct list_head",
        obj_list="struct list_head",
        enabled="_Bool",
        forced="_Bool",
    )
    types.struct(
        "klp_object",
        name="char *",
        func_list="struct list_head",
        node="struct list_head",
        mod="struct module *",
        patched="_Bool",
    )
    types.struct(
        "klp_func",
        old_name="char *",
        new_func="void *",
        old_func="void *",
        node="struct list_head",
        stack_node="struct list_head",
        old_size="unsigned long",
        new_size="unsigned long",
        nop="_Bool",
        patched="_Bool",
        transition="_Bool",
    )
    types.struct(
        "klp_ops",
        node="struct list_head",
        func_stack="struct list_head",
        fops="struct ftrace_ops",
    )
    types.struct("bpf_prog_aux", refcnt="long", attach_func_name="char *", ksym="struct bpf_ksym")
    types.struct("attribute_group", name="char *", bin_attrs="void **")
    types.struct("attribute", name="char *", mode="unsigned short")
    types.struct("bin_attribute", attr="struct attribute", size="unsigned long", private="void *")
    types.struct(
        "module_sect_attrs", grp="struct attribute_group", attrs="struct bin_attribute [1]"
    )
    types.struct(
        "efi_memory_map",
        map="void *",
        nr_map="int",
        desc_size="unsigned long",
    )
    types.struct("efi", runtime="void *", memmap="struct efi_memory_map")
    types.struct(
        "memory_desc",
        type="unsigned int",
        phys_addr="unsigned long",
        virt_addr="unsigned long",
        num_pages="unsigned long",
        attribute="unsigned long",
    )
    types.typedef("efi_memory_desc_t", "struct memory_desc")


class Kernel:
    """A kernel that has a module and nothing else; the rest is put there."""

    def __init__(self, *, lost: str = "") -> None:
        self.memory = FakeMemory()
        self.types = kernel_types(self.memory.prog)
        declare(self.types)
        module = self.types.prog.type("struct module")
        members = {member.name: member.type.type_name() for member in module.members}
        self.types.struct("module", **members, sect_attrs="struct module_sect_attrs *")
        self._heap = HEAP
        self.variables = {**VARIABLES, **({lost: LOST} if lost else {})}
        self.put_lists(bpf_kallsyms=[], klp_patches=[])
        for place in (VARIABLES["kprobe_insn_slots"], VARIABLES["kprobe_optinsn_slots"]):
            self.memory.put_struct(place, "struct kprobe_insn_cache", insn_size=16)
            self.memory.put_list(place + 8)
        self.memory.put_words(VARIABLES["ftrace_ops_list"], VARIABLES["ftrace_list_end"])
        self.memory.put_words(VARIABLES["ftrace_trace_function"], TEXT + 0x900)
        for table, heads in (("kprobe_table", 64), ("trampoline_table", 1024)):
            self.memory.put(VARIABLES[table], bytes(8 * heads))
        self.module = self.put("struct module", name=b"mod", mem=[{"base": MODULE, "size": 0x1000}])
        self.memory.put_list(VARIABLES["modules"], self.module + 8)

    def put_lists(self, **lists: list[int]) -> None:
        for name, nodes in lists.items():
            self.memory.put_list(VARIABLES[name], *nodes)

    def allocate(self) -> int:
        self._heap += 0x1000
        return self._heap

    def put(self, type_name: str, **members: object) -> int:
        address = self.allocate()
        self.memory.put_struct(address, type_name, **members)
        return address

    def string(self, text: str) -> int:
        address = self.allocate()
        self.memory.put(address, text.encode() + b"\0")
        return address

    def offset(self, type_name: str, member: str) -> int:
        found = (m for m in self.types.prog.type(type_name).members if m.name == member)
        return next(found).offset

    def text(self, names: CodeNames = NAMES) -> Text:
        prog = self.memory.prog
        symbols = FakeSymbols(
            {
                "_stext": TEXT,
                "_etext": ETEXT,
                "_end": END,
                "_sinittext": INIT,
                "_einittext": INIT + 0x1000,
                "end_of_vectors": TEXT + 0x100,
                "__entry_text_start": TEXT + 0x200,
                "__entry_text_end": TEXT + 0x300,
                **self.variables,
            },
            {
                "first": TEXT,
                "asm_entry": TEXT + 0x200,
                "ordinary": TEXT + 0x300,
                "callback": CALLBACK,
                "probed": PROBED,
                "old": OLD,
                "klp_ftrace_handler": LIVEPATCH,
                "aggr_pre_handler": AGGREGATE,
                "ftrace_stub": TEXT + 0x900,
                "ftrace_caller": TEXT + 0x910,
                "ftrace_ops_list_func": TEXT + 0x920,
                "return_to_handler": TEXT + 0x930,
                "__kretprobe_trampoline": TEXT + 0x940,
                "__SCT__cond_resched": TEXT + 0x950,
                "thunk_rax": TEXT + 0x960,
                "printk_veneer": TEXT + 0x970,
                "stub": TEXT + 0x980,
                "behind": TEXT + 0x990,
                "start_kernel": INIT,
                "some_data": DATA,
            },
        )
        generated = GeneratedText(prog, symbols, 4096)
        owners = Owners(prog, symbols, generated)
        modules = ModuleList(prog, VARIABLES["modules"])
        rules = CodeRules(lambda code: True, 8, names=names)
        self.owners, self.problems = owners, generated.problems
        return Text(prog, symbols, modules, generated, rules, (), owners)

    # One of each -------------------------------------------------------------------------

    def sections(self, *rows: tuple[str, int]) -> None:
        files = [
            self.put("struct bin_attribute", attr={"name": self.string(name)}, private=address)
            for name, address in rows
        ]
        listed = self.allocate()
        self.memory.put_words(listed, *files, 0)
        attributes = self.put("struct module_sect_attrs", grp={"bin_attrs": listed})
        at = self.offset("struct module", "sect_attrs")
        self.memory.put_words(self.module + at, attributes)

    def ftrace(self, callback: int = CALLBACK, trampoline: int = TRAMPOLINE) -> int:
        ops = self.put(
            "struct ftrace_ops",
            func=callback,
            next=VARIABLES["ftrace_list_end"],
            trampoline=trampoline,
            trampoline_size=0x100,
        )
        self.memory.put_words(VARIABLES["ftrace_ops_list"], ops)
        return ops

    def page(self, cache: str, insns: int) -> None:
        page = self.put("struct kprobe_insn_page", insns=insns)
        self.memory.put_list(VARIABLES[cache] + 8, page)

    def kprobe(self, **members: object) -> int:
        probe = self.put("struct kprobe", addr=PROBED + 4, **members)
        self.memory.put_words(VARIABLES["kprobe_table"] + 8 * 5, probe)
        return probe

    def optimised(self) -> None:
        kprobe = {"addr": PROBED, "pre_handler": AGGREGATE, "flags": 4}
        probe = self.put("struct optimized_kprobe", kp=kprobe, optinsn={"insn": DETOURS + 0x20})
        other = self.put("struct kprobe", addr=PROBED, pre_handler=CALLBACK)
        at = self.offset("struct kprobe", "list")
        self.memory.put_list(probe + at, other + at)
        self.memory.put_words(VARIABLES["kprobe_table"], probe)

    def livepatch(self, **function: object) -> int:
        """A patch of one function; gives the address of its ``struct klp_func``."""
        members = {
            "old_name": self.string("old"),
            "old_func": OLD,
            "old_size": 0x40,
            "new_func": NEW_CODE,
            "new_size": 0x20,
            "patched": 1,
            **function,
        }
        func = self.put("struct klp_func", **members)
        each = self.put("struct klp_object", patched=1)
        module = self.put("struct module", name=b"lp_fix")
        patch = self.put("struct klp_patch", mod=module, enabled=1, replace=1)
        for head, holder, member, node_type, node in (
            (each, "struct klp_object", "func_list", "struct klp_func", func),
            (patch, "struct klp_patch", "obj_list", "struct klp_object", each),
        ):
            at = self.offset(node_type, "node")
            self.memory.put_list(head + self.offset(holder, member), node + at)
        self.put_lists(klp_patches=[patch + self.offset("struct klp_patch", "list")])
        return func

    def bpf(self, name: str, holder: str = "", **members: object) -> None:
        ksym = {"start": BPF, "end": BPF + 0x100, "name": name.encode()}
        if holder:
            whole = self.put(holder, ksym=ksym, **members)
            ksym_at = whole + self.offset(holder, "ksym")
        else:
            ksym_at = self.put("struct bpf_ksym", **ksym)
        node = ksym_at + self.offset("struct bpf_ksym", "lnode")
        self.put_lists(bpf_kallsyms=[node])

    def shown(self, pc: int) -> tuple[str, str | None]:
        code = self.text().at(pc, exact=True)
        return code.role.value, code.of
