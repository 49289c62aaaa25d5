# SPDX-License-Identifier: LGPL-2.1-or-later
"""SFrame tables as GNU as and ld write them, for the tests.

    python -m contrib.sframe.make tests/data/sframe

Assembles the sources here with the binutils of Debian releases, which run from unpacked packages.
Of the linked files only ``.sframe`` and ``.eh_frame`` are kept, the same rows in two formats. The
manifest has their makers' versions and where their functions were.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elftools.elf.elffile import ELFFile

from contrib.vmlab.__main__ import default_cache
from contrib.vmlab.packages import Apt, run
from contrib.vmlab.roots import program_of, tools_root

SOURCES = Path(__file__).parent
AT_KERNEL = ("-e", "0", "-Ttext-segment=0xffff800080000000")
LINK = {
    "aarch64": AT_KERNEL,
    "s390x": AT_KERNEL,
    "x86_64": ("-shared",),  # has a PLT, for which ld makes tables of its own
}


class Maker(NamedTuple):
    """A release of Debian and the SFrame that its binutils write."""

    suite: str
    version: int
    option: str
    architectures: Sequence[str]


MAKERS = (
    Maker("trixie", 2, "--gsframe", ("aarch64", "x86_64")),
    Maker("forky", 3, "--gsframe-3", ("aarch64", "s390x", "x86_64")),
)


def make(maker: Maker, architecture: str, root: Path, output: Path) -> dict[str, Any]:
    """Make one file, and describe it."""
    prefix = f"{architecture}-linux-gnu-"
    with tempfile.TemporaryDirectory() as directory:
        source = SOURCES / f"{architecture}.s"
        compiled, linked = Path(directory, "object"), Path(directory, "linked")
        run([*program_of(root, f"{prefix}as"), maker.option, "-o", str(compiled), str(source)])
        pages = ("-z", "separate-code", "-z", "max-page-size=4096")
        files = ["-o", str(linked), str(compiled)]
        run([*program_of(root, f"{prefix}ld"), *LINK[architecture], *pages, *files])
        keep = ["-j", ".sframe", "-j", ".eh_frame", str(linked), str(output)]
        run([*program_of(root, f"{prefix}objcopy"), *keep])
        output.chmod(0o644)
        version = run([*program_of(root, f"{prefix}as"), "--version"]).partition("\n")[0]
        return {"made by": version, "SFrame": maker.version, "functions": functions(linked)}


def functions(linked: Path) -> dict[str, str]:
    """The first and the last byte of every function."""
    with linked.open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab").iter_symbols()
        found = [
            (symbol["st_value"], symbol["st_size"], symbol.name)
            for symbol in symbols
            if symbol["st_info"]["type"] == "STT_FUNC"
        ]
        plt = elf.get_section_by_name(".plt")
        if plt:
            found.append((plt["sh_addr"], plt["sh_size"], ".plt"))
    return {name: f"{start:#x}-{start + size - 1:#x}" for start, size, name in sorted(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="directory for the files")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="%(default)s")
    parser.add_argument("--mirror", help="a Debian mirror (default: that of apt here)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    host = run(["dpkg", "--print-architecture"]).strip()
    manifest = {}
    for maker in MAKERS:
        apt = Apt(arguments.cache, host, (maker.suite,), print, arguments.mirror)
        apt.update()
        packages = {f"binutils-{a.replace('_', '-')}-linux-gnu" for a in maker.architectures}
        root = tools_root(apt, arguments.cache, sorted(packages))
        for architecture in maker.architectures:
            name = f"{architecture}-{maker.version}.elf"
            manifest[name] = make(maker, architecture, root, arguments.output / name)
    text = json.dumps(manifest, indent=1)
    (arguments.output / "manifest.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
