# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fuzz the readers: ``python -m contrib.fuzz.readers all --seconds 60``."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from contrib.fuzz.readers.catalogue import HARNESSES
from contrib.fuzz.readers.harness import SECONDS, Finding, Harness, run_once
from contrib.fuzz.readers.plain import minimised

_MEMORY = 2048
"""MiB that a process may have."""
_COVERAGE = re.compile(r"#(\d+)\s.* cov: (\d+) ft: (\d+) corp: (\d+)")


class Outcome(NamedTuple):
    """What a run of libFuzzer printed."""

    runs: int
    coverage: int
    features: int
    corpus: int
    log: str


def main() -> int:
    """Fuzz or repeat; 0 if nothing was found, 1 if something was, 2 for a mistake."""
    args = _parser().parse_args()
    names = list(HARNESSES) if args.name == "all" else [args.name]
    if args.file:
        return max(_repeat(HARNESSES[name], args.file) for name in names)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    return max(_fuzz(HARNESSES[name], args.seconds, args.seed, args.findings) for name in names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m contrib.fuzz.readers",
        description="Fuzz what reads a dump's bytes, guided by coverage.",
        epilog="readers: " + "; ".join(f"{h.name}, {h.reads}" for h in HARNESSES.values()),
    )
    parser.add_argument(
        "name", metavar="NAME", choices=[*HARNESSES, "all"], help="a reader, or all"
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each reader (60)")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer (1)")
    parser.add_argument("--file", type=Path, help="run the reader on this file, once")
    parser.add_argument(
        "--findings", type=Path, default=Path("findings"), help="where to write them (findings)"
    )
    return parser


def _repeat(harness: Harness, path: Path) -> int:
    finding = run_once(harness, path.read_bytes())
    print(finding.trace if finding else f"{harness.name}: nothing wrong with {path}")
    return finding is not None


def _fuzz(harness: Harness, seconds: int, seed: int, folder: Path) -> int:
    with tempfile.TemporaryDirectory() as work:
        corpus, artifacts = Path(work, "corpus"), Path(work, "artifacts")
        corpus.mkdir()
        artifacts.mkdir()
        start = time.monotonic()
        found = _guided(harness, corpus, artifacts, seconds, seed)
        took = time.monotonic() - start
        crashes = sorted(artifacts.iterdir())
        print(
            f"{harness.name}: {found.runs:,} runs in {took:.0f} s, {found.coverage} branches and "
            f"{found.features} features covered, {found.corpus} inputs kept; "
            f"{len(crashes)} found",
            flush=True,
        )
        for crash in crashes:
            _keep(harness, crash.read_bytes(), folder, found.log)
        if not crashes and not found.runs:
            print(found.log[-2000:], file=sys.stderr)
            return 2
    return bool(crashes)


def _guided(harness: Harness, corpus: Path, artifacts: Path, seconds: int, seed: int) -> Outcome:
    command = [sys.executable, "-m", "contrib.fuzz.readers.guided", harness.name, str(corpus)]
    command += [f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={2 * SECONDS:.0f}"]
    command += [f"-rss_limit_mb={_MEMORY}", f"-artifact_prefix={artifacts}/"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    last = (0, 0, 0, 0)
    for line in done.stderr.splitlines():
        if told := _COVERAGE.search(line):
            runs, coverage, features, kept = (int(number) for number in told.groups())
            last = (runs, coverage, features, kept)
    return Outcome(*last, done.stderr)


def _keep(harness: Harness, data: bytes, folder: Path, log: str) -> None:
    """Write a finding, made smaller if it does not end the process, and say how to repeat it."""
    finding = run_once(harness, data) if "deadly signal" not in log else None
    if finding:
        finding = minimised(harness, finding)
    else:  # a signal, or memory
        finding = Finding(harness.name, "the end of the process", data, log[-3000:])
    folder.mkdir(exist_ok=True)
    path = folder / f"{harness.name}-{hashlib.sha256(finding.data).hexdigest()[:8]}"
    path.write_bytes(finding.data)
    print(f"  {finding.what}: {len(finding.data)} bytes; again with")
    print(f"  python -m contrib.fuzz.readers {harness.name} --file {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
