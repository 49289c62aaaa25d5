# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kernel's ``stack_trace_save_tsk_reliable()`` would answer, written a second time.

Written from the kernel's sources, the functions that each file names, and from nothing of the
package: it shares no code, table or type with ``drgn_reliable``, whose walks it judges. It is slow
and plain on purpose: no caches of what it read, no bulk reads, one function for one of the
kernel's. It is itself held against the recorded answers of the kernels of all dumps, entry for
entry (tests/test_fuzz_reference.py).
"""

from __future__ import annotations

from contrib.fuzz.reference.answers import Answer, Verdict
from contrib.fuzz.reference.machine import Machine
from contrib.fuzz.reference.walks import Reference

__all__ = ("Answer", "Machine", "Reference", "Verdict")
