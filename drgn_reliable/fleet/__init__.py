# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many dumps: find them, scan each in a process of its own, keep what was found, and ask.

:func:`drgn_reliable.fleet.scan.scan_fleet` scans with any :class:`concurrent.futures.Executor`
into a :class:`drgn_reliable.fleet.store.Store`, an SQLite file, of which
:func:`drgn_reliable.fleet.report.fleet_report` makes a report.
"""
