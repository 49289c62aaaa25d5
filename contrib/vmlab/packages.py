# SPDX-License-Identifier: LGPL-2.1-or-later
"""Distribution packages: found and fetched by apt, kept in a cache, unpacked by dpkg-deb.

Nothing is installed on this machine. apt works on a state of its own, in the cache, in
which no package is installed: asking it what an installation *would* take gives the whole
list of packages a root needs. The mirror is the machine's own, or an option.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

Say = Callable[[str], None]
BATCH = 10  # packages at a time, so that progress shows
INSTALL = re.compile(r"^Inst (\S+) \((\S+) ")
TARGET = re.compile(r"^(?P<uri>\S+) (?P<codename>\S+) (?P<origin>.*)$")


class PackageError(Exception):
    """apt or dpkg could not do what was asked."""


class Apt:
    """One private apt state: an architecture, some suites, a package cache."""

    def __init__(
        self,
        cache: Path,
        architecture: str,
        suites: Sequence[str],
        say: Say,
        mirror: str | None = None,
        foreign: Sequence[str] = (),
    ) -> None:
        self.say = say
        self.archives = cache / "packages"
        key = hashlib.sha256(repr((architecture, suites, mirror, foreign)).encode())
        self.state = cache / "apt" / f"{architecture}-{'-'.join(suites)}-{key.hexdigest()[:8]}"
        self._options = self._make_options(architecture, foreign)
        self._suites, self._mirror = suites, mirror

    def update(self, again: bool = False) -> None:
        """Fetch the lists of packages, once."""
        done = self.state / "updated"
        if done.exists() and not again:
            return
        for directory in ("lists/partial", "etc/empty", "cache"):
            (self.state / directory).mkdir(parents=True, exist_ok=True)
        self.archives.mkdir(parents=True, exist_ok=True)
        (self.state / "status").touch()
        (self.state / "etc/sources.list").write_text(self._sources())
        (self.state / "etc/preferences").write_text(self._preferences())
        self.say(f"fetching package lists: {', '.join(self._suites)}")
        self._apt("apt-get", "update", "-qq")
        done.touch()

    def newest(self, prefix: str, pattern: str) -> str:
        """The newest package called prefix + pattern, less the prefix."""
        packages = self._apt("apt-cache", "pkgnames", prefix).split()
        rest = [name[len(prefix) :] for name in packages]
        found = fnmatch.filter(rest, pattern)
        if not found:
            like = sorted((r for r in rest if r[:1].isdigit()), key=_version_key)
            raise PackageError(
                f"no package {prefix}{pattern} in {', '.join(self._suites)}; "
                f"there are {', '.join(like[-12:]) or 'none'}"
            )
        return max(found, key=_version_key)

    def closure(self, packages: Sequence[str]) -> list[tuple[str, str]]:
        """These packages and all they depend on, as (name, version)."""
        output = self._apt(
            "apt-get", "install", "--simulate", "--no-install-recommends", "-qq", *packages
        )
        found = [match.groups() for line in output.splitlines() if (match := INSTALL.match(line))]
        return sorted((name, version) for name, version in found)

    def fetch(self, packages: Sequence[tuple[str, str]]) -> list[Path]:
        """The files of these packages, downloaded if they are not in the cache."""
        missing = [item for item in packages if self._cached(item) is None]
        for start in range(0, len(missing), BATCH):
            batch = [f"{name}={version}" for name, version in missing[start : start + BATCH]]
            self.say(f"fetching packages: {start} of {len(missing)} done")
            self._apt("apt-get", "download", "-qq", *batch, cwd=self.archives)
        files = [self._cached(item) for item in packages]
        if None in files:
            raise PackageError(f"apt did not leave {packages[files.index(None)]} in the cache")
        return [file for file in files if file]

    def _cached(self, item: tuple[str, str]) -> Path | None:
        name, version = item[0].partition(":")[0], item[1].replace(":", "%3a")
        return next(self.archives.glob(f"{name}_{version}_*.deb"), None)

    def _make_options(self, architecture: str, foreign: Sequence[str]) -> list[str]:
        settings = {
            "APT::Architecture": architecture,
            "Dir::State": self.state,
            "Dir::State::lists": self.state / "lists",
            "Dir::State::status": self.state / "status",
            "Dir::Cache": self.state / "cache",
            "Dir::Etc::sourcelist": self.state / "etc/sources.list",
            "Dir::Etc::sourceparts": self.state / "etc/empty",
            "Dir::Etc::preferences": self.state / "etc/preferences",
            "Dir::Etc::preferencesparts": self.state / "etc/empty",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "1",
        }
        options = [f"{key}={value}" for key, value in settings.items()]
        options += [f"APT::Architectures::={name}" for name in (architecture, *foreign)]
        return [part for option in options for part in ("-o", option)]

    def _sources(self) -> str:
        keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        signed = f"[signed-by={keyring}] " if keyring.exists() else ""
        known = configured_mirrors() if self._mirror is None else {}
        lines = []
        for suite in self._suites:
            mirror = self._mirror or known.get(suite) or known.get("")
            if mirror is None:
                raise PackageError("the machine's apt has no Debian mirror; give --mirror")
            lines.append(f"deb {signed}{mirror} {suite} main\n")
        return "".join(lines)

    def _preferences(self) -> str:
        """All suites are equal, backports too: apt then takes what fits the kernel."""
        pin = "Package: *\nPin: release n={}\nPin-Priority: 500\n"
        return "\n".join(pin.format(suite) for suite in self._suites)

    def _apt(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        return run([command, *self._options, *arguments], cwd=cwd)


def configured_mirrors() -> dict[str, str]:
    """Mirrors of the machine's apt by suite; the first of them also under ""."""
    output = run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME) $(ORIGIN)",
            "Created-By: Packages",
            "Component: main",
        ]
    )
    mirrors: dict[str, str] = {}
    for line in output.splitlines():
        if (match := TARGET.match(line)) and match["origin"].startswith("Debian"):
            mirrors.setdefault(match["codename"], match["uri"])
            if not match["codename"].endswith("-security"):
                mirrors.setdefault("", match["uri"])
    return mirrors


def unpack(files: Sequence[Path], root: Path) -> None:
    """Unpack packages into a directory, as dpkg would, but run none of their scripts."""
    root.mkdir(parents=True, exist_ok=True)
    for file in files:
        archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE)
        tar = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(root)]
        with archive:
            result = subprocess.run(tar, stdin=archive.stdout, capture_output=True, text=True)
        if archive.returncode or result.returncode:
            raise PackageError(f"{file.name} does not unpack: {result.stderr.strip()}")


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a command; its last words become the exception when it fails."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    if result.returncode:
        words = (result.stderr.strip() or result.stdout.strip()).splitlines()[-15:]
        raise PackageError(f"{command[0]} failed:\n" + "\n".join(words))
    return result.stdout


def _version_key(text: str) -> list[tuple[int, str]]:
    """Numbers compare as numbers."""
    return [(int(part or 0), rest) for part, rest in re.findall(r"(\d*)(\D*)", text)]
