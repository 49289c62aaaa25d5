# SPDX-License-Identifier: LGPL-2.1-or-later
"""The architectures that can be walked, by name."""

from __future__ import annotations

from drgn_reliable.arch import x86
from drgn_reliable.arch.base import Architecture

__all__ = ("ARCHITECTURES",)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (x86.ARCHITECTURE,)
}
