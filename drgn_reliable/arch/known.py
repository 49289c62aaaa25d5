# SPDX-License-Identifier: LGPL-2.1-or-later
"""The architectures that can be walked, by name."""

from __future__ import annotations

from drgn_reliable.arch import arm64, ppc64, s390x, x86
from drgn_reliable.arch.base import Architecture

__all__ = ("ARCHITECTURES",)

ARCHITECTURES: dict[str, Architecture] = {
    module.ARCHITECTURE.name: module.ARCHITECTURE for module in (x86, arm64, s390x, ppc64)
}
