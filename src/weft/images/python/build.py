"""Builds python3-11: a bundle with a Debian root in which functions written in Python 3.11 run, and programs of one's own.

Reads Debian packages from where this machine's apt has them, and the Lambda runtime client from the Python package index, each
file known by its sha256; runs mmdebstrap, which needs root. Writes the bundle in one rename.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from weft.images.clone.build import NEEDED as BOOT_NEEDED
from weft.images.clone.build import write_boot
from weft.images.parts import EPOCH, fetch_kernel, require, run, run_in_own_mounts, write_bundle
from weft.images.turn import work_beside
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import BundleManifest

SUITE = "bookworm"
PACKAGES = (
    "python3.11-minimal", "libpython3.11-stdlib", "libexpat1", "zlib1g", "libstdc++6", "libgcc-s1", "libc6", "libssl3",
    "libcrypt1", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "busybox-static",
)  # fmt: skip
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CLIENT = "opt/ric"  # where the runtime's client lies in the root
_REMOVED = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/binfmts", "var/cache", "var/lib/apt",
    "var/lib/dpkg", "usr/lib/python3.11/test", "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/pydoc_data",
    "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/aarch64-linux-gnu/gconv", f"{CLIENT}/simplejson/tests", "etc/apt", "etc/dpkg",
)  # fmt: skip
_MOUNTED = ("proc", "sys", "dev", "tmp", "run", "var/task", "var/runtime", "var/tmp", "opt", "mnt")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nfunction:x:1000:1000:function:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "function\n",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_NEEDED = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", **BOOT_NEEDED}
_NEEDED_BYTES = 512 << 20

Report = Callable[[str], None]


def build_python(out_path: Path, cache_dir: Path, report: Report) -> None:
    """Write the python3-11 bundle to ``out_path``. Takes half a minute. Raises DriverFailed."""
    require("python3-11", _NEEDED)
    if os.geteuid() != 0:
        raise DriverFailed(
            "image python3-11 can't be built: only root can create a system's files", hint="run it with sudo"
        )
    out_path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out_path.parent).free
    if free < _NEEDED_BYTES:
        raise DriverFailed(
            f"image python3-11 can't be built: {free >> 20} MiB free in {out_path.parent}, {_NEEDED_BYTES >> 20} needed"
        )
    with work_beside(out_path, "python") as work:
        root = work / "root"
        report(f"packages of Debian 12 ({len(PACKAGES)})")
        _install(root)
        report("runtime client")
        _install_client(root / CLIENT)
        lay_out(root)
        report("compiled modules")
        compile_modules(root)
        report("bundle")
        members = {"root.tar": work / "root.tar"}
        pack_root(root, members["root.tar"])
        report("kernel")
        members |= write_boot(fetch_kernel(cache_dir.resolve()), work)
        manifest = BundleManifest(
            disk="root.tar", disk_format="tar", kernel="kernel", initrd="initrd", min_memory_bytes=64 << 20
        )
        pending = work / "bundle.tar"
        write_bundle(pending, manifest, members)
        os.replace(pending, out_path)


def _install(root: Path) -> None:
    run_in_own_mounts(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--format=directory",
         f"--include={','.join(PACKAGES)}", SUITE, str(root)],
        "unpack Debian's packages",
    )  # fmt: skip


def _install_client(target: Path) -> None:
    machine = platform.machine()
    kinds = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
    run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--require-hashes",
         "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none",
         *(f"--platform={kind}_{machine}" for kind in kinds), "--no-compile", "--root-user-action=ignore",
         f"--target={target}", f"--requirement={REQUIREMENTS}"],
        "install the runtime client",
    )  # fmt: skip


def lay_out(root: Path) -> None:
    """Turn the fresh tree into the image's: what nobody reads goes, what is mounted over is there."""
    for name in _REMOVED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in _MOUNTED:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("python3", "python"):
        if not (root / "usr/bin" / name).is_symlink():
            (root / "usr/bin" / name).symlink_to("python3.11")
    (root / "usr/sbin").mkdir(exist_ok=True)
    for applet in _list_applets(root):
        if not any(
            (root / folder / applet).is_symlink() or (root / folder / applet).exists() for folder in ("bin", "usr/bin")
        ):
            (root / "bin" / applet).symlink_to("busybox")


def _list_applets(root: Path) -> list[str]:
    done = subprocess.run([str(root / "bin/busybox"), "--list"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DriverFailed(f"image python3-11 can't be built: its busybox failed: {done.stderr.strip()[-200:]}")
    return done.stdout.split()


def compile_modules(root: Path) -> None:
    """A root that nobody may write in can't keep what is compiled at each start; and no time stamp is looked at later. Forced, and
    with nothing of the builder's environment: what the compiler itself imports is kept by its time stamp else, and the image's is
    another."""
    run(
        ["chroot", str(root), "/usr/bin/python3.11", "-I", "-m", "compileall", "-f", "-q", "-j1",
         "--invalidation-mode", "unchecked-hash", "/usr/lib/python3.11", f"/{CLIENT}"],
        "compile Python's modules",
    )  # fmt: skip


def pack_root(root: Path, target: Path) -> None:
    """One tar of the root, in order, everything root's and of one time."""

    def fix(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = EPOCH
        return info

    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(root, arcname=".", recursive=False, filter=fix)
        for path in sorted(root.rglob("*")):
            if path.is_symlink() or path.is_dir() or path.is_file():
                archive.add(path, arcname=f"./{path.relative_to(root)}", recursive=False, filter=fix)
