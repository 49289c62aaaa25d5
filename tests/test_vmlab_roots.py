# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmlab's roots and what is built in them, with fake programs for apt, dpkg and unshare."""

from __future__ import annotations

import gzip
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from contrib.vmlab import build, lab, packages, roots
from contrib.vmlab.build import GUEST, Kernel
from contrib.vmlab.machines import MACHINES
from contrib.vmlab.packages import PackageError
from contrib.vmlab.scenario import Dump, Scenario, Workload

from .guests import Fakes, fetchable, put_program, read_newc


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """The fake programs, first on PATH."""
    return Fakes(tmp_path / "programs", monkeypatch)


# Roots ------------------------------------------------------------------------------------------


def test_a_package_that_does_not_unpack_is_named(
    tmp_path: Path, fakes: Fakes, capfd: pytest.CaptureFixture[str]
) -> None:
    """dpkg's own words are in the one line, and nowhere else."""
    (tmp_path / "x_1_amd64.deb").write_text("broken")
    with pytest.raises(PackageError) as caught:
        packages.unpack([tmp_path / "x_1_amd64.deb"], tmp_path / "root")
    path = tmp_path / "x_1_amd64.deb"
    problem = f"dpkg-deb: error: '{path}' is not a Debian archive"
    assert str(caught.value) == f"unpacking x_1_amd64.deb failed: {problem}"
    assert capfd.readouterr() == ("", "")


def test_a_package_that_breaks_at_its_end_is_not_taken_for_whole(
    tmp_path: Path, fakes: Fakes
) -> None:
    """tar may be content with what dpkg gave it before it failed."""
    fakes.package("late", {"file": b"late"})
    with pytest.raises(
        PackageError, match=r"^unpacking late failed: dpkg-deb: error: .* too late$"
    ):
        packages.unpack([fakes.home / "tar/late"], tmp_path / "root")


def test_an_archive_that_tar_cannot_read_is_one_line(tmp_path: Path, fakes: Fakes) -> None:
    """tar's complaint counts when dpkg has none."""
    (tmp_path / "x_1_amd64.deb").write_bytes(b"no tar archive" * 100)
    with pytest.raises(
        PackageError, match=r"^unpacking x_1_amd64.deb failed: tar: .* tar archive$"
    ):
        packages.unpack([tmp_path / "x_1_amd64.deb"], tmp_path / "root")


KERNEL = """\
Inst linux-base (4.9 Debian:12 [all])
Inst linux-image-6.1.0-9-amd64 (6.1.27-1 Debian:12 [amd64])
Inst linux-modules-6.1.0-9-amd64 (6.1.27-1 Debian:12 [amd64])
Inst initramfs-tools (0.142 Debian:12 [all])
Inst drivers-6.1.0-9-amd64 (1 Debian:12 [amd64])
"""


def kernel_packages(fakes: Fakes) -> None:
    """A kernel of two packages, which depend on others."""
    fakes.answer("installs", KERNEL)
    fakes.package("linux-image-6.1.0-9-amd64", {"boot/vmlinuz-6.1.0-9-amd64": b"image"})
    modules = {"lib/modules/x.ko.xz": lzma.compress(b"module")}
    fakes.package("linux-modules-6.1.0-9-amd64", modules)


def test_a_kernel_s_root_has_its_own_packages_only(tmp_path: Path, fakes: Fakes) -> None:
    """What else its installation would take is not fetched; the second time nothing is."""
    kernel_packages(fakes)
    apt = fetchable(tmp_path, fakes)
    root = roots.kernel_root(apt, tmp_path / "cache", "6.1.0-9-amd64")
    kernel = Kernel("6.1.0-9-amd64", root)
    assert kernel.image.read_bytes() == b"image"
    assert kernel.module("x") == b"module"
    fetched = [call for call in fakes.calls() if "download" in call]
    assert len(fetched) == 1 and "linux-base" not in fetched[0] and "initramfs" not in fetched[0]
    assert "drivers" not in fetched[0]
    for path in apt.archives.iterdir():
        path.unlink()
    assert roots.kernel_root(apt, tmp_path / "cache", "6.1.0-9-amd64") == root
    assert len([call for call in fakes.calls() if "download" in call]) == 1


def test_a_root_is_complete_or_not_there(tmp_path: Path, fakes: Fakes) -> None:
    """When one of its packages does not unpack, no part is left for the next time."""
    kernel_packages(fakes)
    (fakes.home / "tar/linux-modules-6.1.0-9-amd64").write_text("broken")
    apt = fetchable(tmp_path, fakes)
    with pytest.raises(PackageError, match=r"^unpacking linux-modules"):
        roots.kernel_root(apt, tmp_path / "cache", "6.1.0-9-amd64")
    assert list((tmp_path / "cache/roots").iterdir()) == []


def test_a_build_root_is_a_merged_system(tmp_path: Path, fakes: Fakes) -> None:
    """A package's /bin is in /usr/bin, and sh and awk are there though no script was run."""
    fakes.answer("installs", "Inst dash (1 Debian:12 [amd64])\nInst mawk (1 Debian:12 [amd64])\n")
    fakes.package("dash", {"bin/dash": b"shell"})
    fakes.package("mawk", {"usr/bin/mawk": b"awk", "sbin/init": b"init"})
    root = roots.build_root(fetchable(tmp_path, fakes), tmp_path / "cache", "headers", ["more"])
    assert (root / "usr/bin/sh").read_bytes() == (root / "bin/dash").read_bytes() == b"shell"
    assert (root / "usr/bin/awk").read_bytes() == b"awk"
    assert (root / "usr/sbin/init").read_bytes() == b"init"
    for name in ("bin", "lib", "lib64", "sbin"):
        assert (root / name).readlink() == Path("usr") / name
    for name in ("proc", "dev", "tmp"):
        assert (root / name).is_dir()
    wanted = fakes.calls()[0].split(" ")[5:]
    assert wanted[0] == "headers" and wanted[-1] == "more" and {"gcc", "make"} <= set(wanted)


# Working in a root ------------------------------------------------------------------------------

UNSHARE = """#!/bin/sh
dir=$(dirname "$0")
echo "$@" >"$dir/command"
while [ "$1" != -c ]; do shift; done
shift 2
root=$1
shift
{body}
"""


def fake_unshare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """What runs instead of a command in name spaces; $root is the root, "$@" the command."""
    directory = tmp_path / "programs"
    put_program(monkeypatch, directory, "unshare", UNSHARE.format(body=body))
    monkeypatch.setitem(roots.ENVIRONMENT, "PATH", f"{directory}:{roots.ENVIRONMENT['PATH']}")
    return directory / "command"


@pytest.mark.parametrize(("user", "maps"), [(0, False), (1000, True)])
def test_a_command_runs_in_name_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, maps: bool
) -> None:
    """Who is not root maps a root; the command and its root are passed as they are."""
    log = fake_unshare(tmp_path, monkeypatch, 'echo "$root" "$#" "$2"')
    monkeypatch.setattr("os.geteuid", lambda: user)
    root = tmp_path / "a root"
    assert roots.run_in(root, ["cc", "-o a b"]) == f"{root} 2 -o a b\n"
    words = log.read_text().split()
    assert ("--map-root-user" in words) == maps
    assert {"--mount", "--pid", "--kill-child"} <= set(words)


COMPILER = (
    "echo building; echo 'x.c: In function f:'; echo 'x.c:1:2: error: boom' >&2; "
    "echo 'cc1: all warnings being treated as errors'; echo 'make: *** [x.o] Error 1'; exit 2"
)


def test_a_failed_compilation_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's first error, not make's last; the rest can be told besides."""
    fake_unshare(tmp_path, monkeypatch, COMPILER)
    with pytest.raises(PackageError) as caught:
        roots.run_in(tmp_path, ["make"])
    assert str(caught.value) == "make failed: x.c:1:2: error: boom"
    assert caught.value.words[0] == "building"
    assert caught.value.words[-1] == "make: *** [x.o] Error 1"


def test_the_libraries_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that ldd prints, the loader too, but not what the kernel provides."""
    ldd = (
        "linux-vdso.so.1 (0x00007ffd)",
        "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f01)",
        "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f02)",
        "/lib64/ld-linux-x86-64.so.2 (0x00007f03)",
    )
    fake_unshare(tmp_path, monkeypatch, f"printf '\\t%s\\n' {' '.join(map(repr, ldd))}")
    assert roots.libraries_of(tmp_path, "/usr/bin/makedumpfile") == [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/libz.so.1",
        "/lib64/ld-linux-x86-64.so.2",
    ]


@pytest.mark.parametrize("problem", [None, PackageError("no"), KeyboardInterrupt()])
def test_a_workspace_is_gone_afterwards(tmp_path: Path, problem: BaseException | None) -> None:
    """It is inside the root, and however the work ends it is removed."""
    try:
        with roots.workspace(tmp_path) as directory:
            assert directory.parent == tmp_path
            (directory / "file").touch()
            if problem:
                raise problem
    except (PackageError, KeyboardInterrupt) as error:
        assert error is problem
    assert list(tmp_path.iterdir()) == []


# Kernels, builds, archives ----------------------------------------------------------------------

IMAGES = (
    "boot/vmlinuz-6.1.0-9-amd64",
    "lib/modules/6.19.1/vmlinuz",
    "usr/lib/modules/6.19.1/vmlinuz",
)


@pytest.mark.parametrize("path", IMAGES)
def test_the_image_is_where_packages_keep_it(tmp_path: Path, path: str) -> None:
    """Old packages have it in /boot, new ones among the modules."""
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert Kernel("6", tmp_path).image == tmp_path / path


MODULES = {
    "as it is": ("ko", b"module", None),
    "by xz": ("ko.xz", lzma.compress(b"module"), None),
    "by gzip": ("ko.gz", gzip.compress(b"module"), None),
    "in a way not known here": ("ko.zst", b"?", r"6 has its modules compressed: x\.ko\.zst"),
    "not at all": ("o", b"", "6 has no module x"),
}


@pytest.mark.parametrize(("suffix", "data", "error"), MODULES.values(), ids=MODULES.keys())
def test_a_module_is_uncompressed(
    tmp_path: Path, suffix: str, data: bytes, error: str | None
) -> None:
    """What the guest would not load is never packed."""
    (tmp_path / "kernel/drivers").mkdir(parents=True)
    (tmp_path / f"kernel/drivers/x.{suffix}").write_bytes(data)
    kernel = Kernel("6", tmp_path)
    if error is None:
        assert kernel.module("x") == b"module"
        return
    with pytest.raises(PackageError, match=f"^{error}$"):
        kernel.module("x")


def test_a_root_without_a_kernel_is_an_error(tmp_path: Path) -> None:
    """The release is in the one line."""
    with pytest.raises(PackageError, match=r"^no kernel image in the packages of 6\.1$"):
        assert Kernel("6.1", tmp_path).image


BUILD = """
case "$1" in
gcc)    for word; do
            [ "$previous" = -o ] && echo "states of $#" >"$root$word"
            previous=$word
        done ;;
make)   for word; do
            case "$word" in
            M=*) module=$root${word#M=}/vmlab_oracle.ko; echo oracle >"$module" ;;
            VMLAB_*=?*) echo "$word" >>"$module" ;;
            esac
        done ;;
ldd)    echo "libz.so.1 => /lib/libz.so.1 (0x00007f01)" ;;
esac
"""
NEEDED = {
    "dash": {"bin/dash": b"shell"},
    "mawk": {"usr/bin/mawk": b"awk"},
    "busybox-static": {"bin/busybox": b"busybox"},
    "makedumpfile": {"usr/bin/makedumpfile": b"saver", "lib/libz.so.1": b"library"},
    "linux-image-6.1.0-9-amd64": {
        "boot/vmlinuz-6.1.0-9-amd64": b"image",
        "lib/modules/qemu_fw_cfg.ko": b"fw_cfg",
    },
}


def prepare(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, dump: Dump, **more: Any
) -> tuple[Kernel, dict[str, tuple[str, bytes]]]:
    """All from packages to the initramfs, with fake programs; returns what is in the archive."""
    fakes.answer("names", "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-8-amd64\n")
    for name, files in NEEDED.items():
        fakes.package(name, files)
    fakes.answer("installs", "".join(f"Inst {n} (1 Debian:12 [amd64])\n" for n in NEEDED))
    fake_unshare(tmp_path, monkeypatch, BUILD)
    workload = Workload(settle=3, graph=("a", "*b"), hurt=True, **more)
    wanted = Scenario("mine", "", "x86_64", ("sid",), "6.1.*", workload=workload, dump=dump)
    options = lab.Options(tmp_path / "cache", "http://mirror.invalid/debian")
    archive = tmp_path / "initramfs"
    kernel = lab.prepare(wanted, MACHINES["x86_64"], archive, options, print)
    return kernel, contents(archive.read_bytes())


def contents(archive: bytes) -> dict[str, tuple[str, bytes]]:
    """Files and devices of an archive: mode and contents by name."""
    return {e.name: (e.kind, e.content) for e in read_newc(archive) if e.kind[0] != "d"}


def settings(found: dict[str, tuple[str, bytes]]) -> list[str]:
    """The lines that init reads."""
    return found["etc/vmlab"][1].decode().splitlines()


def test_from_packages_to_what_the_guest_boots(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest kernel's module, the compiled programs and modules, and the settings."""
    kernel, found = prepare(tmp_path, fakes, monkeypatch, Dump())
    assert kernel.release == "6.1.0-9-amd64"
    sources = len(list(GUEST.glob("programs/*.c")))
    words = len(["gcc", *build.FLAGS, "-static", "-pthread", "-o", "states"]) + sources
    assert found == {
        "init": ("-rwxr-xr-x", (GUEST / "init").read_bytes()),
        "bin/busybox": ("-rwxr-xr-x", b"busybox"),
        "bin/states": ("-rwxr-xr-x", f"states of {words}\n".encode()),
        "dev/console": ("crw-------", b""),
        "dev/null": ("crw-------", b""),
        "lib/vmlab/qemu_fw_cfg.ko": ("-rw-r--r--", b"fw_cfg"),
        "lib/vmlab/vmlab_oracle.ko": ("-rw-r--r--", b"oracle\n"),
        "etc/vmlab": found["etc/vmlab"],
        "etc/steps": ("-rw-r--r--", b""),
    }
    wanted = ["STATES='*'", "SETTLE=3", "CROWD=0", "THREADS=0", "ROWS_KB=1024", "MOVE=''"]
    wanted += ["GRAPH='a *b'", "FPROBES=''", "LIVEPATCH=''"]
    assert settings(found) == [*wanted, "HURT=1", "INTERRUPT=''", "GLANCE=''", "PYTHON=''"]
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("modules/*")}
    assert kept == {"vmlab_oracle.ko": b"oracle\n"}, "the modules, with their debug information"
    assert not any("makedumpfile" in call for call in fakes.calls() if "install" in call)
    assert not list(tmp_path.glob("cache/roots/*/vmlab-*")), "the workspace is gone"


def test_the_steps_are_a_script_and_its_words_are_the_guest_s_functions(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line each, which init reads; and how the CPUs are held is a setting."""
    steps = ("start u_sleep k_sleep", "load a", "disable a", "force a", "finished a", "settle 3")
    _, found = prepare(tmp_path, fakes, monkeypatch, Dump(hold="interrupt"), steps=steps)
    assert found["etc/steps"][1].decode().splitlines() == [*steps]
    assert "INTERRUPT=1" in settings(found)
    functions = re.findall(r"^(\w+)\(\) \{$", (GUEST / "init").read_text(), re.MULTILINE)
    assert {step.split()[0] for step in steps} <= set(functions)


def test_the_vmlinux_of_a_compiled_kernel_is_kept(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else has it; a distribution's is in a package of its own."""
    prepare(tmp_path, fakes, monkeypatch, Dump())
    assert not (tmp_path / "vmlinux").exists()
    headers = next(tmp_path.glob("cache/roots/kernel-*")) / "usr/src/linux-headers-6.1.0-9-amd64"
    headers.mkdir(parents=True)
    (headers / "vmlinux").write_bytes(b"elf")
    (tmp_path / "modules/vmlab_oracle.ko").unlink()
    (tmp_path / "modules").rmdir()
    prepare(tmp_path, fakes, monkeypatch, Dump())
    assert (tmp_path / "vmlinux").read_bytes() == b"elf"


ASSEMBLED: dict[str, tuple[dict[str, Any], bytes]] = {
    "every object": ({"assembler": ("--a", "--b")}, b"VMLAB_ASSEMBLER=-Wa,--a -Wa,--b\n"),
    "one object": (
        {"assembler": ("--a",), "assembled": ("chain.o",)},
        b"VMLAB_ASSEMBLER=-Wa,--a\nVMLAB_ASSEMBLED=chain.o\n",
    ),
}


@pytest.mark.parametrize(("more", "told"), ASSEMBLED.values(), ids=ASSEMBLED.keys())
def test_the_modules_are_assembled_as_the_scenario_says(
    tmp_path: Path,
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    told: bytes,
) -> None:
    """The options reach the modules' Kbuild, and so does for which objects they are."""
    prepare(tmp_path, fakes, monkeypatch, Dump(), **more)
    assert (tmp_path / "modules/vmlab_oracle.ko").read_bytes() == b"oracle\n" + told


HOST = ("dash", "mawk", "gcc-aarch64-linux-gnu", "linux-kbuild-7")
TARGET = (
    "busybox-static",
    "gcc-14",
    "linux-image-7-arm64",
    "linux-kbuild-7",
    "linux-headers-7-arm64",
)


def test_for_another_architecture_only_headers_and_busybox_are_its_own(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiler and kernel's scripts are this machine's; what boots and what runs is the guest's."""
    fakes.answer("names", "linux-image-7-arm64\n")
    for architecture, names in (("amd64", HOST), ("arm64", TARGET)):
        lines = (f"Inst {name} (1 Debian:13 [{architecture}])\n" for name in names)
        fakes.answer(f"installs-{architecture}", "".join(lines))
    for name in (*HOST, *TARGET):
        fakes.package(name, {f"usr/share/{name}": b"", **NEEDED.get(name, {})})
    fakes.package("linux-image-7-arm64", {"boot/vmlinuz-7": b"i", "lib/qemu_fw_cfg.ko": b"fw_cfg"})
    fake_unshare(tmp_path, monkeypatch, BUILD.replace("gcc)", "aarch64-linux-gnu-gcc)"))
    wanted = Scenario("mine", "", "aarch64", ("sid",), "7-*")
    options = lab.Options(tmp_path / "cache", "http://mirror.invalid/debian")
    lab.prepare(wanted, MACHINES["aarch64"], tmp_path / "initramfs", options, print)
    found = contents((tmp_path / "initramfs").read_bytes())
    assert found["bin/busybox"][1] == b"busybox"
    assert found["bin/states"][1].startswith(b"states of")
    for kind, names in (
        ("build", [*HOST, "linux-headers-7-arm64"]),
        ("guest", ["busybox-static"]),
    ):
        (root,) = tmp_path.glob(f"cache/roots/{kind}-*")
        assert {path.name for path in root.glob("usr/share/*")} == set(names)
    asked = [call for call in fakes.calls() if " install " in call]
    assert any("linux-kbuild-7" in call and "gcc-aarch64-linux-gnu" in call for call in asked)


def test_another_process_may_make_the_same_root(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes second takes the root of the first, and leaves nothing of its own."""
    kernel_packages(fakes)
    apt = fetchable(tmp_path, fakes)
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        if path.name.startswith(".kernel-"):
            (target / "first").mkdir(parents=True)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    root = roots.kernel_root(apt, tmp_path / "cache", "6.1.0-9-amd64")
    assert [path.name for path in root.iterdir()] == ["first"]
    assert list(root.parent.iterdir()) == [root]


def test_a_crash_kernel_and_its_initramfs_are_in_the_guest_s(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a kdump: the image again, and an archive with makedumpfile and what it needs."""
    arguments = "-d 31 'a b' \"$c\""
    _, found = prepare(tmp_path, fakes, monkeypatch, Dump("kdump", makedumpfile=arguments))
    assert found["crash/kernel"][1] == b"image"
    assert settings(found)[-1].startswith("CRASH='console=ttyS0 rdinit=/init reset_devices")
    inner = contents(found["crash/initramfs"][1])
    assert inner["bin/makedumpfile"] == ("-rwxr-xr-x", b"saver")
    assert inner["lib/libz.so.1"][1] == b"library"
    assert inner["init"][1] == (GUEST / "init-crash").read_bytes()
    assert any("makedumpfile" in call for call in fakes.calls() if "install" in call)
    (tmp_path / "vmlab").write_bytes(inner["etc/vmlab"][1])
    script = f'. {tmp_path}/vmlab; printf %s "$MAKEDUMPFILE"'
    assert packages.run(["sh", "-c", script]) == arguments, "a shell reads back what was given"
