# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels that vmlab compiles, and QEMUs of packages, with fake programs for apt and compilers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from contrib.vmlab import kernelbuild, lab, roots, scenario
from contrib.vmlab.build import Kernel
from contrib.vmlab.machines import MACHINES
from contrib.vmlab.packages import PackageError

from .guests import Fakes, make_apt, put_program


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """The fake programs, first on PATH."""
    return Fakes(tmp_path / "programs", monkeypatch)


# Configurations ---------------------------------------------------------------------------------


def options(name: str) -> dict[str, str]:
    """The options that a file of the directory sets."""
    text = (kernelbuild.CONFIGS / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"CONFIG_\w+=(y|m|\d+|\"\w*\")", line) for line in lines)
    found = dict(line.split("=", 1) for line in lines)
    assert len(found) == len(lines), "an option is set twice"
    return found


@pytest.mark.parametrize("name", kernelbuild.names())
def test_a_configuration_sets_what_is_not_common(name: str) -> None:
    """Each line is an option, none is in both files, and the release says which it is."""
    assert not options(name).keys() & options("common").keys()
    text = kernelbuild.configuration(name)
    assert text.startswith((kernelbuild.CONFIGS / "common").read_text())
    assert text.endswith(f'CONFIG_LOCALVERSION="-{name}"\n')


def test_every_configuration_is_used() -> None:
    """A scenario that builds names one that is there, of a source package in its suites."""
    found = [scenario.load(name) for name in scenario.names()]
    assert {one.build for one in found if one.build} == set(kernelbuild.names())


def test_an_unknown_configuration_is_refused(tmp_path: Path) -> None:
    """The message lists those there are."""
    (tmp_path / "mine.yaml").write_text("like: base\nbuild: nothing")
    with pytest.raises(
        scenario.ScenarioError, match=r"^mine.yaml: build is 'nothing', .*x86_64-fp"
    ):
        scenario.load(str(tmp_path / "mine.yaml"))


def test_an_option_that_is_not_taken_is_named() -> None:
    """A dependency that is missing would otherwise silently give another kernel."""
    wanted = '# a comment\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C="c"\nCONFIG_AB=y\n'
    have = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="c"\nCONFIG_ABC=y\n'
    with pytest.raises(PackageError, match=r"^the configuration did not take CONFIG_B=m, CON"):
        kernelbuild.check(wanted, have)
    kernelbuild.check(wanted, have + "CONFIG_B=m\nCONFIG_AB=y\n")


# Compiling --------------------------------------------------------------------------------------

SOURCE = "linux-source-7.2"
INSTALLS = f"Inst {SOURCE} (7.2.9-1 Debian:14 [all])\nInst dash (1 Debian:14 [amd64])\n"
COMPILER = """#!/bin/sh
dir=$(dirname "$0")
while [ "$1" != -c ]; do shift; done
root=$3
shift 3
echo "$@" >>"$dir/commands"
tree=$root/usr/src/linux
{broken}
case "$*" in
*allnoconfig) cp $tree/vmlab.config $tree/.config ;;
*" all")
    mkdir -p $tree/arch/x86/boot $tree/drivers/firmware $tree/include $tree/kernel
    echo image >$tree/arch/x86/boot/bzImage
    touch $tree/arch/x86/setup.c $tree/arch/x86/setup.o $tree/kernel/fork.o $tree/include/x.h
    touch $tree/vmlinux $tree/Makefile
    echo fw_cfg >$tree/drivers/firmware/qemu_fw_cfg.ko ;;
*kernelrelease) echo 7.2.9-x86_64-fp ;;
*image_name) echo arch/x86/boot/bzImage ;;
esac
"""


def compiled(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, broken: str = ""
) -> tuple[str, Path]:
    """A kernel from a source package, by a fake make."""
    put_program(monkeypatch, fakes.home, "unshare", COMPILER.format(broken=broken))
    path = f"{fakes.home}:{roots.ENVIRONMENT['PATH']}"
    monkeypatch.setitem(roots.ENVIRONMENT, "PATH", path)
    fakes.answer("installs", INSTALLS)
    fakes.package("dash", {"bin/dash": b"shell"})
    fakes.package(SOURCE, {f"usr/src/{SOURCE}.tar.xz": b"source"})
    apt = make_apt(tmp_path, mirror="http://mirror.invalid/debian")
    apt.archives.mkdir(parents=True, exist_ok=True)
    cache = tmp_path / "cache"
    return kernelbuild.built_root(apt, cache, MACHINES["x86_64"], SOURCE, "x86_64-fp")


def test_a_compiled_kernel_is_where_its_packages_would_put_it(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image, module and headers, and nothing else of the tree; the second time it is there."""
    release, root = compiled(tmp_path, fakes, monkeypatch)
    kernel = Kernel(release, root)
    assert release == "7.2.9-x86_64-fp"
    assert kernel.image.read_text() == "image\n"
    assert kernel.module("qemu_fw_cfg") == b"fw_cfg\n"
    assert [path.name for path in (root / "usr/src").iterdir()] == [f"linux-headers-{release}"]
    headers = root / f"usr/src/linux-headers-{release}"
    found = {str(path.relative_to(headers)) for path in headers.rglob("*") if path.is_file()}
    assert found == {".config", "Makefile", "include/x.h", "vmlinux"}
    commands = (fakes.home / "commands").read_text()
    assert "ARCH=x86 " in commands and "CROSS_COMPILE" not in commands
    assert "KBUILD_BUILD_TIMESTAMP=Debian 7.2.9-1 " in commands, "the dump says which source"
    assert compiled(tmp_path, fakes, monkeypatch) == (release, root)
    assert (fakes.home / "commands").read_text() == commands


FAILURES = {
    "the compiler": ('case "$*" in *" all") echo "x.c:1: error: boom"; exit 2 ;; esac', "nice fai"),
    "an option": ('case "$*" in *all*) echo >$tree/.config; exit ;; esac', "the configuration did"),
}


@pytest.mark.parametrize(("broken", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_a_kernel_that_does_not_compile_leaves_nothing(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, broken: str, message: str
) -> None:
    """Neither a root nor a part of it, and the next time all is tried again."""
    with pytest.raises(PackageError, match=f"^{message}"):
        compiled(tmp_path, fakes, monkeypatch, broken)
    assert list((tmp_path / "cache/roots").iterdir()) == []
    assert compiled(tmp_path, fakes, monkeypatch)[0] == "7.2.9-x86_64-fp"


def test_another_configuration_is_another_root(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same packages with an option more are compiled again."""
    first = compiled(tmp_path, fakes, monkeypatch)
    text = kernelbuild.configuration("x86_64-fp")
    monkeypatch.setattr(kernelbuild, "configuration", lambda name: text + "CONFIG_MORE=y\n")
    assert compiled(tmp_path, fakes, monkeypatch)[1] != first[1]


# A QEMU of packages -----------------------------------------------------------------------------

LOADER = '#!/bin/sh\n[ $1 = --library-path ] || exit 3\nshift 2\nexec sh "$@"\n'
QEMU = '[ $1 = -L ] && [ $3 = --version ] && echo "QEMU emulator version 99"\n'


def test_a_qemu_of_packages_runs_by_its_own_loader(tmp_path: Path, fakes: Fakes) -> None:
    """This machine's QEMU is not asked, nor are its libraries taken."""
    fakes.answer("installs", "Inst libc6 (1 Debian:14 [amd64])\nInst qemu (1 Debian:14 [amd64])\n")
    fakes.package("libc6", {"usr/lib64/ld-linux-x86-64.so.2": LOADER.encode()})
    fakes.package("qemu", {"usr/bin/qemu-system-x86_64": QEMU.encode()})
    machine = replace(MACHINES["x86_64"], qemu_packages=("qemu",))
    wanted = scenario.Scenario("mine", "", "x86_64", ("sid",), "7")
    given = lab.Options(tmp_path / "cache", "http://mirror.invalid/debian")
    command = lab.emulator(wanted, machine, given, print)
    assert lab.version_of(command) == "QEMU emulator version 99"
    with pytest.raises(PackageError, match="have qemu-system-vax"):
        lab.emulator(wanted, replace(machine, qemu="qemu-system-vax"), given, print)
    assert lab.emulator(wanted, MACHINES["x86_64"], given, print) == ["qemu-system-x86_64"]
