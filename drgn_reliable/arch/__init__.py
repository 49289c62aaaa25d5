# SPDX-License-Identifier: LGPL-2.1-or-later
"""Architectures: facts first, code only where memory must be read."""
