# SPDX-License-Identifier: LGPL-2.1-or-later
"""Coverage-guided fuzzing of what reads a dump's bytes, with atheris.

``pip install -e '.[fuzz]'``, then ``python -m contrib.fuzz.readers --help``. A
:class:`~contrib.fuzz.readers.harness.Harness` calls one reader as its callers do and lets pass what
its docstrings say that it raises; anything else is a finding, and so are a run that takes seconds
and one that takes memory without end. Seeds are cut from ``vmcores/``.
``tests/test_fuzz_readers.py`` runs every harness without atheris.
"""
