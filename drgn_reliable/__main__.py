# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m drgn_reliable``: the same as the command ``drgn-reliable``."""

import sys

from drgn_reliable.cli import main

sys.exit(main())
