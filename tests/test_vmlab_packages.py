# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which packages vmlab takes, and from where, with fake programs for apt."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from contrib.vmlab import packages
from contrib.vmlab.packages import Apt, PackageError

from .guests import Fakes, fetchable, make_apt


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """The fake programs, first on PATH."""
    return Fakes(tmp_path / "programs", monkeypatch)


# The mirror -------------------------------------------------------------------------------------

TARGETS = """\
http://security.invalid/debian-security stable-security Debian
http://other.invalid/things stable Other
http://mirror.invalid/debian stable Debian
http://backports.invalid/debian stable-backports Debian Backports
http://second.invalid/debian stable Debian
http://nameless.invalid/debian  Debian
"""


def sources(apt: Apt) -> list[tuple[str, ...]]:
    """Mirror, suite and component of each source."""
    lines = (apt.state / "etc/sources.list").read_text().splitlines()
    assert all(line.startswith("deb ") for line in lines)
    return [tuple(line.split()[-3:]) for line in lines]


MIRRORS = {
    "a suite's own": (("stable",), None, ["http://mirror.invalid/debian"]),
    "two suites, two mirrors": (
        ("stable-backports", "stable"),
        None,
        ["http://backports.invalid/debian", "http://mirror.invalid/debian"],
    ),
    "a suite that this machine has not": (("sid",), None, ["http://mirror.invalid/debian"]),
    "security's own": (
        ("stable-security",),
        None,
        ["http://security.invalid/debian-security"],
    ),
    "the option": (("stable", "sid"), "http://mine.invalid/d", ["http://mine.invalid/d"] * 2),
}


@pytest.mark.parametrize(("suites", "mirror", "expected"), MIRRORS.values(), ids=MIRRORS.keys())
def test_the_mirror_is_that_of_apt_or_of_the_option(
    tmp_path: Path, fakes: Fakes, suites: tuple[str, ...], mirror: str | None, expected: list[str]
) -> None:
    """A suite's own mirror, or else the first that is Debian's and not only for security."""
    fakes.answer("targets", TARGETS)
    apt = make_apt(tmp_path, *suites, mirror=mirror)
    apt.update()
    assert sources(apt) == [(m, s, "main") for m, s in zip(expected, suites, strict=True)]
    asked = [call for call in fakes.calls() if "indextargets" in call]
    assert bool(asked) == (mirror is None), "with the option, the machine's apt is not asked"


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param("", id="no apt sources"),
        pytest.param("http://other.invalid/things stable Other\n", id="another distribution's"),
        pytest.param("http://s.invalid/d stable-security Debian\n", id="security only"),
        pytest.param("http://mirror.invalid/debian  Debian\n", id="lists never fetched"),
    ],
)
def test_there_is_no_default_mirror(tmp_path: Path, fakes: Fakes, targets: str) -> None:
    """Without a mirror of its own apt is not even started."""
    fakes.answer("targets", targets)
    apt = make_apt(tmp_path)
    with pytest.raises(PackageError, match=r"^the machine's apt has no Debian mirror; give --m"):
        apt.update()
    assert not any("update" in call for call in fakes.calls())
    assert not (apt.state / "etc/sources.list").exists()


# apt --------------------------------------------------------------------------------------------


def test_lists_are_fetched_once_and_when_they_are_asked_for_again(
    tmp_path: Path, fakes: Fakes
) -> None:
    """A second program with the same suites uses the first one's; other suites do not."""
    mirror = "http://mirror.invalid/debian"
    for again in (False, False, True):
        make_apt(tmp_path, "sid", mirror=mirror).update(again)
    assert fakes.calls() == ["apt-get update -qq"] * 2
    make_apt(tmp_path, "sid", "experimental", mirror=mirror).update()
    make_apt(tmp_path, "sid", mirror="http://other.invalid/debian").update()
    assert fakes.calls() == ["apt-get update -qq"] * 4


def test_lists_that_could_not_be_fetched_are_not_taken_for_fetched(
    tmp_path: Path, fakes: Fakes
) -> None:
    """The next time apt is asked again."""
    apt = make_apt(tmp_path, mirror="http://mirror.invalid/debian")
    fakes.answer("fails", "E: Failed to fetch http://mirror.invalid/debian")
    with pytest.raises(PackageError, match=r"^apt-get failed: E: Failed to fetch http"):
        apt.update()
    (fakes.home / "fails").unlink()
    apt.update()
    assert fakes.calls() == ["apt-get update -qq"] * 2


def test_the_machine_s_own_apt_is_left_alone(tmp_path: Path, fakes: Fakes) -> None:
    """State, lists, caches and configuration are in the cache; there is one architecture."""
    apt = Apt(tmp_path / "cache", "arm64", ["sid"], print, "http://m.invalid/")
    apt.update()
    words = (fakes.home / "log").read_text().split()
    settings = [word.partition("=") for before, word in itertools.pairwise(words) if before == "-o"]
    found = {key: value for key, _, value in settings if key.startswith("Dir::")}
    wanted = (
        "State",
        "State::lists",
        "State::status",
        "Cache",
        "Etc::sourcelist",
        "Etc::sourceparts",
    )
    assert {f"Dir::{name}" for name in wanted} <= set(found)
    assert all(Path(value).is_relative_to(apt.state) for value in found.values())
    names = {"APT::Architecture", "APT::Architectures::"}
    assert {key: value for key, _, value in settings if key in names} == dict.fromkeys(
        names, "arm64"
    )
    assert (apt.state / "status").read_text() == "", "no package is installed"


NEWEST = {
    "numbers are numbers": ("6.1.0-9-amd64 6.1.0-50-amd64 6.1.0-10-amd64", "6.1.0-50-amd64"),
    "of all parts": ("6.9.12-amd64 6.12.9-amd64 6.12.10-amd64 6.2.99-amd64", "6.12.10-amd64"),
    "the first part first": ("5.99.0-amd64 6.0-amd64 10.0-amd64", "10.0-amd64"),
    "+deb13": ("6.12.9+deb13-amd64 6.12.107+deb13-amd64", "6.12.107+deb13-amd64"),
    "+deb13 over none": ("7.2.12-amd64 7.2.12+deb13-amd64", "7.2.12+deb13-amd64"),
    "+deb13 under the next": ("7.2.12+deb13-amd64 7.2.13-amd64", "7.2.13-amd64"),
    "+deb14 over +deb13": ("7.2.12+deb14-amd64 7.2.12+deb13-amd64", "7.2.12+deb14-amd64"),
    "+deb13 under a point release": ("7.2+deb13-amd64 7.2.1-amd64", "7.2.1-amd64"),
    "backports": ("6.1.0-0.deb11.5-amd64 6.1.0-0.deb11.21-amd64", "6.1.0-0.deb11.21-amd64"),
    "a candidate is older": ("7.3-rc2-amd64 7.3-amd64 7.3-rc10-amd64", "7.3-amd64"),
    "of candidates": ("7.3-rc2-amd64 7.3-rc10-amd64 7.2.9-amd64", "7.3-rc10-amd64"),
    "a tilde is older": ("7.3~rc2-amd64 7.3-amd64 7.3~rc10-amd64", "7.3-amd64"),
    "a tilde over what is before": ("7.2-amd64 7.3~rc2-amd64", "7.3~rc2-amd64"),
    "letters before other things": ("7.3a-amd64 7.3+b-amd64", "7.3+b-amd64"),
    "the plain flavour": ("7.2.1-rt-amd64 7.2.1-amd64 7.2.1-cloud-amd64", "7.2.1-amd64"),
    "a version over a flavour": ("7.2.1-amd64 7.2.2-cloud-amd64", "7.2.2-cloud-amd64"),
}  # fmt: skip


@pytest.mark.parametrize(("releases", "newest"), NEWEST.values(), ids=NEWEST.keys())
@pytest.mark.parametrize("order", [1, -1], ids=["forward", "backward"])
def test_the_newest_release_is_taken(
    tmp_path: Path, fakes: Fakes, releases: str, newest: str, order: int
) -> None:
    """Versions compare as dpkg's do, in whatever order apt prints them."""
    names = [f"linux-image-{release}" for release in releases.split()]
    fakes.answer("names", "\n".join(names[::order]))
    assert make_apt(tmp_path).newest("linux-image-", "*-amd64") == newest


NAMES = """
linux-image-amd64
linux-image-6.1.0-9-amd64
linux-image-6.1.0-50-amd64-unsigned
linux-image-6.1.0-49-cloud-amd64
linux-image-6.1.0-50-cloud-amd64
linux-image-6.12.1-amd64-dbg
linux-headers-6.1.0-99-amd64
"""
PATTERNS = {
    "a release": ("6.1.0-9-amd64", "6.1.0-9-amd64"),
    "a pattern": ("6.1.0-*-cloud-amd64", "6.1.0-50-cloud-amd64"),
    "no unsigned or debug package": ("6.*-amd64", "6.1.0-50-cloud-amd64"),
    "a question mark": ("6.1.0-?-amd64", "6.1.0-9-amd64"),
}


@pytest.mark.parametrize(("pattern", "newest"), PATTERNS.values(), ids=PATTERNS.keys())
def test_a_pattern_is_for_the_whole_release(
    tmp_path: Path, fakes: Fakes, pattern: str, newest: str
) -> None:
    """What only begins or ends like it does not match."""
    fakes.answer("names", NAMES)
    assert make_apt(tmp_path).newest("linux-image-", pattern) == newest


@pytest.mark.parametrize(
    ("names", "there_are"),
    [
        pytest.param(
            NAMES,
            "6.1.0-9-amd64, 6.1.0-49-cloud-amd64, "
            "6.1.0-50-amd64-unsigned, 6.1.0-50-cloud-amd64, 6.12.1-amd64-dbg",
            id="the numbered ones, oldest first",
        ),
        pytest.param("linux-headers-1\n", "none", id="none"),
        pytest.param(
            "".join(f"linux-image-6.{minor}-amd64\n" for minor in range(99)),
            ", ".join(f"6.{minor}-amd64" for minor in range(87, 99)),
            id="not more than twelve",
        ),
    ],
)
def test_a_pattern_for_nothing_is_told_with_what_there_is(
    tmp_path: Path, fakes: Fakes, names: str, there_are: str
) -> None:
    """One line: the pattern, the suites, and the releases that could be meant."""
    fakes.answer("names", names)
    with pytest.raises(PackageError) as caught:
        make_apt(tmp_path, "sid", "experimental").newest("linux-image-", "9.*")
    start = "no package linux-image-9.* in sid, experimental; there are "
    assert str(caught.value) == start + there_are


INSTALLS = """\
NOTE: This is only a simulation!
Inst libc6 (2.36-9 Debian:12.5/stable [amd64]) [gcc:amd64 on libc6:amd64]
Inst gcc (4:12.2.0-3 Debian:12.5/stable, Debian:12/updates [amd64])
Inst linux-image-6.1.0-9-amd64 (6.1.27-1~deb11+u1 Debian-Security:12/stable-security [amd64]) []
Inst tzdata (2024a-0 Debian:12/stable [all])
Conf gcc (4:12.2.0-3 Debian:12.5/stable [amd64])
Remv nothing [1.0]
"""
CLOSURE = [
    ("gcc", "4:12.2.0-3"),
    ("libc6", "2.36-9"),
    ("linux-image-6.1.0-9-amd64", "6.1.27-1~deb11+u1"),
    ("tzdata", "2024a-0"),
]


def test_what_an_installation_would_take(tmp_path: Path, fakes: Fakes) -> None:
    """Each line of apt's simulation that installs is a package and a version, sorted."""
    fakes.answer("installs", INSTALLS)
    assert make_apt(tmp_path).closure(["gcc", "tzdata"]) == CLOSURE
    command = "apt-get install --simulate --no-install-recommends -qq gcc tzdata"
    assert fakes.calls() == [command]


def test_packages_are_fetched_once(tmp_path: Path, fakes: Fakes) -> None:
    """Epochs and tildes are found again in the cache under apt's names."""
    apt = fetchable(tmp_path, fakes, *(name for name, _ in CLOSURE))
    names = [
        "gcc_4%3a12.2.0-3_amd64.deb",
        "libc6_2.36-9_amd64.deb",
        "linux-image-6.1.0-9-amd64_6.1.27-1~deb11+u1_amd64.deb",
        "tzdata_2024a-0_amd64.deb",
    ]
    assert [path.name for path in apt.fetch(CLOSURE)] == names
    (apt.archives / names[3]).rename(apt.archives / "tzdata_2024a-0_all.deb")
    again = apt.fetch(CLOSURE)
    assert [path.name for path in again] == [*names[:3], "tzdata_2024a-0_all.deb"]
    words = " ".join(f"{name}={version}" for name, version in CLOSURE)
    assert fakes.calls() == [f"apt-get download -qq {words}"]


def test_another_architecture_s_package_is_not_taken(tmp_path: Path, fakes: Fakes) -> None:
    """The same name and version exist once for each architecture."""
    own = fetchable(tmp_path, fakes, "libc6")
    other = make_apt(tmp_path, mirror="http://mirror.invalid/debian", architecture="arm64")
    for apt in (own, other):
        assert [file.name for file in apt.fetch([("libc6", "2.36")])] == [
            f"libc6_2.36_{apt.architecture}.deb"
        ]
    assert fakes.calls() == 2 * ["apt-get download -qq libc6=2.36"]


def test_many_packages_are_fetched_a_few_at_a_time(tmp_path: Path, fakes: Fakes) -> None:
    """All of them, each once, and the progress is told."""
    names = [f"package{number}" for number in range(2 * packages.BATCH + 1)]
    apt = fetchable(tmp_path, fakes, *names)
    said: list[str] = []
    apt.say = said.append
    assert len(apt.fetch([(name, "1") for name in names])) == len(names)
    batches = [call.split(" ")[3:] for call in fakes.calls()]
    assert [len(batch) for batch in batches] == [packages.BATCH, packages.BATCH, 1]
    assert sorted(itertools.chain(*batches)) == sorted(f"{name}=1" for name in names)
    assert len(said) == 3


def test_a_package_that_apt_does_not_leave_is_an_error(tmp_path: Path, fakes: Fakes) -> None:
    """Its name and version are in the one line."""
    apt = fetchable(tmp_path, fakes, "there")
    with pytest.raises(PackageError, match=r"^apt did not leave gone 4:1 in the cache$"):
        apt.fetch([("there", "1"), ("gone", "4:1")])


FAILURES = {
    "an error of apt": (
        "W: a warning\nE: Unable to locate package x\nE: more",
        "E: Unable to .* x",
    ),
    "no marked error": ("it is\nfull", "full"),
    "nothing": ("", "Reading package lists..."),
}


@pytest.mark.parametrize(("text", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_of_apt_is_one_line(
    tmp_path: Path, fakes: Fakes, text: str, message: str
) -> None:
    """The line that tells most is the error, all of it can be told besides."""
    fakes.answer("fails", text)
    with pytest.raises(PackageError, match=f"^apt-get failed: {message}$") as caught:
        make_apt(tmp_path).closure(["x"])
    assert "\n" not in str(caught.value)
    assert list(caught.value.words) == (text.splitlines() or ["Reading package lists..."])
