# SPDX-License-Identifier: LGPL-2.1-or-later
"""One harness under atheris, in a process of its own: ``guided NAME CORPUS -LIBFUZZER=OPTION ...``.

It ends with the first finding, which libFuzzer writes to its artifacts; :mod:`__main__` starts it.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["drgn_reliable"]):
    from contrib.fuzz.readers.catalogue import HARNESSES


def main(name: str, corpus: str, *options: str) -> None:
    """Fuzz until libFuzzer's options say that it is enough; does not return."""
    harness = HARNESSES[name]
    for number, data in enumerate(harness.seeds()):
        Path(corpus, f"seed-{number}").write_bytes(data)

    def run(data: bytes) -> None:
        harness.run(data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if harness.mutate is not None and chance.random() < 0.5:
            return harness.mutate(data, chance)[:most]
        return bytes(atheris.Mutate(data, most))

    arguments = [sys.argv[0], corpus, f"-max_len={harness.largest}", *options]
    atheris.Setup(arguments, run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
