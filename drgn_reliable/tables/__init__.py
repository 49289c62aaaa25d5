# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unwind tables: many formats, one kind of rule."""
