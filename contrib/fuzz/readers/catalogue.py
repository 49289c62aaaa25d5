# SPDX-License-Identifier: LGPL-2.1-or-later
"""All harnesses by name."""

from __future__ import annotations

from contrib.fuzz.readers import formats, tables, types
from contrib.fuzz.readers.harness import Harness

__all__ = ("HARNESSES",)

HARNESSES: dict[str, Harness] = {
    harness.name: harness for harness in (*types.HARNESSES, *tables.HARNESSES, *formats.HARNESSES)
}
