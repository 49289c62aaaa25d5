# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files in which dumps are stored: ELF and kdump-compressed, flattened, packed."""
