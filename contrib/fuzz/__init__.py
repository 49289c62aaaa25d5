# SPDX-License-Identifier: LGPL-2.1-or-later
"""Damages real dumps, seeded and repeatable, and judges what the package then says of them.

``python -m contrib.fuzz --help``. The judge is :mod:`contrib.fuzz.reference`, a second, separate
implementation of each kernel's reliable walk.
"""
