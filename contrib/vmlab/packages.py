# SPDX-License-Identifier: LGPL-2.1-or-later
"""Distribution packages: found and fetched by apt, kept in a cache, unpacked by dpkg-deb.

Nothing is installed on this machine. apt works on a state of its own, in the cache, in
which no package is installed: asking it what an installation *would* take gives the whole
list of packages a root needs. The mirror is the machine's own, or an option.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Say = Callable[[str], None]
BATCH = 10  # packages at a time, so that progress shows
INSTALL = re.compile(r"^Inst (\S+) \((\S+) ")
ERROR = re.compile(r"^(E|tar): |\berror\b", re.IGNORECASE)
FLAVOUR = re.compile(r"(-(?!rc\d)[a-z][a-z0-9]*)+$")
TARGET = re.compile(r"^(?P<uri>\S+) (?P<codename>\S+) (?P<origin>.*)$")


class PackageError(Exception):
    """apt, dpkg or a compiler could not do what was asked; "words" are its last ones."""

    def __init__(self, text: str, words: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.words = words


class Apt:
    """One private apt state: an architecture, some suites, a package cache."""

    def __init__(
        self,
        cache: Path,
        architecture: str,
        suites: Sequence[str],
        say: Say,
        mirror: str | None = None,
    ) -> None:
        self.say, self.architecture = say, architecture
        self.archives = cache / "packages"
        key = hashlib.sha256(repr((architecture, suites, mirror)).encode())
        self.state = cache / "apt" / f"{architecture}-{'-'.join(suites)}-{key.hexdigest()[:8]}"
        self._options = self._make_options(architecture)
        self._suites, self._mirror = suites, mirror

    def update(self, again: bool = False) -> None:
        """Fetch the lists of packages, once."""
        done = self.state / "updated"
        if not done.exists() or again:
            self.state.mkdir(parents=True, exist_ok=True)
            with _locked(self.state):
                self._update(done, again)

    def _update(self, done: Path, again: bool) -> None:
        if done.exists() and not again:  # another process was faster
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
            like = sorted((r for r in rest if r[:1].isdigit()), key=_release_key)
            raise PackageError(
                f"no package {prefix}{pattern} in {', '.join(self._suites)}; "
                f"there are {', '.join(like[-12:]) or 'none'}"
            )
        return max(found, key=_release_key)

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
            self._download(batch)
        files = [self._cached(item) for item in packages]
        if None in files:
            name, version = packages[files.index(None)]
            raise PackageError(f"apt did not leave {name} {version} in the cache")
        return [file for file in files if file]

    def _download(self, batch: Sequence[str]) -> None:
        """Download, and show the files only when they are whole: others look for them, too."""
        with tempfile.TemporaryDirectory(prefix=".apt-", dir=self.archives) as directory:
            self._apt("apt-get", "download", "-qq", *batch, cwd=Path(directory))
            for file in Path(directory).iterdir():
                file.rename(self.archives / file.name)

    def _cached(self, item: tuple[str, str]) -> Path | None:
        start = f"{item[0]}_{item[1].replace(':', '%3a')}"
        files = [self.archives / f"{start}_{kind}.deb" for kind in (self.architecture, "all")]
        return next(filter(Path.exists, files), None)

    def _make_options(self, architecture: str) -> list[str]:
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures::": architecture,
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


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Alone in a directory, among those who ask for that."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def unpack(files: Sequence[Path], root: Path) -> None:
    """Unpack packages into a directory, as dpkg would, but run none of their scripts."""
    root.mkdir(parents=True, exist_ok=True)
    for file in files:
        command = ["dpkg-deb", "--fsys-tarfile", str(file)]
        tar = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(root)]
        with (
            tempfile.TemporaryFile("w+") as words,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words) as archive,
        ):
            result = subprocess.run(tar, stdin=archive.stdout, stdout=words, stderr=words)
            assert archive.stdout is not None
            archive.stdout.close()
            archive.wait()
            if archive.returncode or result.returncode:
                words.seek(0)
                raise failed(f"unpacking {file.name}", words.read())


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a command."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise failed(command[0], result.stderr.strip() or result.stdout)
    return result.stdout


def failed(what: str, output: str) -> PackageError:
    """The exception for a command that failed: the line that tells most, and the last ones."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.search(line)]
    return PackageError(f"{what} failed: {[*errors, *lines[-1:], 'no word'][0]}", lines[-30:])


def _release_key(release: str) -> tuple[list[tuple[list[int], int]], int]:
    """Releases in dpkg's order of versions; of one version's flavours the plainest is last."""
    version = FLAVOUR.sub("", release)
    parts = re.findall(r"(\D*)(\d*)", version.replace("-rc", "~rc"))
    key = [([*map(_weight, text), 0], int(number or 0)) for text, number in parts]
    return key, len(version) - len(release)


def _weight(character: str) -> int:
    """A tilde comes before the end of a version, which is 0; letters before all else."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
