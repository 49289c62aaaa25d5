# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a kernel was built and started, as far as it matters to stacks and can be told from its
types, symbols and variables."""

from __future__ import annotations

from drgn import FaultError

from drgn_reliable.errors import MissingInformation
from drgn_reliable.kernel import Kernel
from drgn_reliable.memory import Layout, member_offset, number_at

__all__ = (
    "ABSENT",
    "has_member",
    "pointer_authentication",
    "preemption",
    "shadow_call_stack",
    "taint_masks",
    "variable",
    "vsyscall",
)

ABSENT = "not in this dump"
"""Stands for what the dump would tell if it had the memory."""

_PREEMPT_MODES = ("none", "voluntary", "full", "lazy")
"""``preempt_dynamic_mode`` (kernel/sched/core.c); the last since 6.13."""
_VSYSCALL_MODES = ("emulate", "xonly", "none")
"""``vsyscall_mode`` (arch/x86/entry/vsyscall/vsyscall_64.c)."""


def variable(kernel: Kernel, name: str) -> int | None:
    """The value of an ``int`` variable; None if the dump lacks it.

    :raises LookupError: if the kernel has no such variable.
    """
    place = kernel.symbols.address(name)
    if place is None:
        raise LookupError(name)
    return number_at(kernel.prog, place, 4)


def _mode(kernel: Kernel, name: str, modes: tuple[str, ...]) -> str | None:
    """A variable in words; None if the kernel does not have it."""
    try:
        value = variable(kernel, name)
    except LookupError:
        return None
    if value is None:
        return ABSENT
    return modes[value] if value < len(modes) else f"unknown ({value:#x})"


def vsyscall(kernel: Kernel) -> str | None:
    """The vsyscall page's mode; None if the kernel has no such page."""
    return _mode(kernel, "vsyscall_mode", _VSYSCALL_MODES)


def preemption(kernel: Kernel) -> str:
    """The preemption model. Where it was chosen at build time, the kernel's version says only
    whether kernel code is preempted (init/Makefile)."""
    dynamic = _mode(kernel, "preempt_dynamic_mode", _PREEMPT_MODES)
    if dynamic is not None:
        return dynamic if dynamic == ABSENT else f"{dynamic} (can be changed)"
    version = _version(kernel)
    if version is None:
        return ABSENT
    words = version.split()
    if "PREEMPT_RT" in words:
        return "real-time"
    if "PREEMPT" in words:
        return "full or lazy"
    preempts = kernel.symbols.address("preempt_schedule") is not None
    return "unknown" if preempts else "none or voluntary"


def _version(kernel: Kernel) -> str | None:
    place = kernel.symbols.address("init_uts_ns")
    try:
        layout = Layout(
            kernel.prog.type("struct uts_namespace"), {"version": "name.version"}, text=("version",)
        )
        text = layout.read(kernel.prog, place or 0)["version"]
    except (FaultError, LookupError, MissingInformation):
        return None
    return str(text.split(b"\0")[0].decode("ascii", "replace"))


def has_member(kernel: Kernel, type_name: str, member: str) -> bool:
    """Whether a type of the kernel has a member."""
    try:
        return member_offset(kernel.prog.type(type_name), member) is not None
    except (LookupError, MissingInformation):
        return False


def shadow_call_stack(kernel: Kernel) -> str:
    """Whether return addresses are kept on a second stack too, where no unwinder looks. Since 6.2
    that can be decided at boot (``dynamic_scs_enabled``, a static key)."""
    if not has_member(kernel, "struct thread_info", "scs_base"):
        return "none"
    try:
        enabled = variable(kernel, "dynamic_scs_enabled")
    except LookupError:
        return "on"
    return ABSENT if enabled is None else "on (dynamic)" if enabled else "off (dynamic)"


def pointer_authentication(kernel: Kernel) -> str | None:
    """The bits of a return address that sign it; None if the architecture has no such thing."""
    mask = kernel.vmcoreinfo.get("NUMBER(KERNELPACMASK)")
    if mask is None:
        return None
    try:
        return f"mask {int(mask, 0):#x}" if int(mask, 0) else "off"
    except ValueError:
        return "unknown"


def taint_masks(kernel: Kernel) -> tuple[int | None, dict[str, int]]:
    """``tainted_mask``, None if the dump lacks it; and the ``taints`` of the modules that have any
    and that can be read."""
    mask = number_at(kernel.prog, kernel.symbols.address("tainted_mask"), 8)
    try:
        layout = Layout(kernel.prog.type("struct module"), {"taints": "taints"})
    except (LookupError, MissingInformation):
        return mask, {}
    found = {}
    for module in kernel.modules:
        try:
            found[module.name] = int(layout.read(kernel.prog, module.address)["taints"])
        except FaultError:
            continue
    return mask, {name: taints for name, taints in found.items() if taints}
