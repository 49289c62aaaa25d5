# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that only some tests need: without them those are skipped, and fail with
``VMLAB_REQUIRED=1``, as in ``.ci/run``."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of an installed program."""
    path = shutil.which(name)
    if path is None and os.environ.get("VMLAB_REQUIRED"):
        pytest.fail(f"VMLAB_REQUIRED is set, but {name} is not installed")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path
