# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package's version, where the build finds it without importing drgn."""

VERSION = "0.1.0"
