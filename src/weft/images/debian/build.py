"""Builds debian-12: a bundle with a bootable disk, and the same kernel and an initial RAM file system to boot directly.

Reads Debian packages from where this machine's apt has them; runs mmdebstrap, which needs root, and mounts what it needs where
nobody else sees it. Writes the bundle in one rename.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.images import parts
from weft.images.debian.disk import GRUB_CONFIG, write_disk
from weft.images.debian.root import lay_out
from weft.images.parts import (
    compile_program,
    copy_modules,
    fetch_kernel,
    pack_cpio,
    require,
    run,
    run_in_own_mounts,
    write_bundle,
)
from weft.images.turn import work_beside
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import BundleManifest

SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv", "systemd-resolved", "udev", "kmod", "dbus", "cloud-init", "qemu-guest-agent", "openssh-server",
    "sudo", "iproute2", "iputils-ping", "netbase", "ca-certificates", "e2fsprogs", "less", "procps", "wget",
)  # fmt: skip
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
    "virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net", "virtio-rng", "virtio_balloon", "cdrom",
    "isofs",
)  # fmt: skip
# Nobody reads manuals in a guest, and translations are half of what unpacking costs; licences stay.
_LEFT_OUT = (
    "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
)  # fmt: skip
# The same of packages that are unpacked already.
_TAKE_OUT = (
    'cd "$1/usr/share" && rm -rf man/* info/* locale/* && find doc -mindepth 1 ! -type d ! -name copyright -delete'
    " && find doc -mindepth 1 -type d -empty -delete"
)
_NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "gcc": "gcc libc6-dev",
    "strip": "binutils",
    "lz4": "lz4",
    "sfdisk": "fdisk",
    "mkfs.ext4": "e2fsprogs",
    "mformat": "mtools",
    "grub-mkimage": "grub-common grub-pc-bin grub-efi-amd64-bin",
    "qemu-img": "qemu-utils",
    "dpkg-deb": "dpkg",
}
_NEEDED_BYTES = 3 << 30

Report = Callable[[str], None]  # gets the name of the next step


def build_debian(out_path: Path, cache_dir: Path, report: Report, more: Sequence[str] = ()) -> None:
    """Write the debian-12 bundle, with ``more`` packages, to ``out_path``; keeps the kernel package in ``cache_dir``. Takes one to
    three minutes. Raises DriverFailed."""
    require("debian-12", _NEEDED)
    if os.geteuid() != 0:
        raise DriverFailed(
            "image debian-12 can't be built: only root can create a system's files", hint="run it with sudo"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out_path.parent).free
    if free < _NEEDED_BYTES:
        raise DriverFailed(
            f"image debian-12 can't be built: {free >> 20} MiB free in {out_path.parent}, {_NEEDED_BYTES >> 20} needed"
        )
    report("kernel")
    kernel_tree = fetch_kernel(cache_dir.resolve())
    with work_beside(out_path, "debian") as work:
        root = work / "root"
        report(f"packages of Debian 12 ({len(PACKAGES) + len(more)} and what they need)")
        _install(root, more)
        report("files")
        members = {"kernel": work / "kernel", "initrd": work / "initrd", "disk.qcow2": work / "disk.qcow2"}
        parts.write_kernel(kernel_tree, members["kernel"])
        write_initrd(kernel_tree, members["initrd"], work)
        lay_out(root)
        compile_program(parts.AGENT, root / "usr/local/sbin/weft-agent")
        _add_kernel(root, kernel_tree, members["initrd"])
        report("disk")
        write_disk(root, members["disk.qcow2"], work)
        manifest = BundleManifest(
            disk="disk.qcow2",
            disk_format="qcow2",
            kernel="kernel",
            initrd="initrd",
            cmdline="quiet random.trust_cpu=on",
            agent=True,
            qemu_agent=True,
            seed="nocloud",
            min_memory_bytes=256 << 20,
        )
        report("bundle")
        pending = work / "bundle.tar"
        write_bundle(pending, manifest, members)
        os.replace(pending, out_path)


def _install(root: Path, more: Sequence[str]) -> None:
    """Install packages. What is half made counts for nothing, so dpkg needn't wait for the disk; the image's own dpkg does. It
    knows what is left out once the first packages are unpacked: named earlier, mmdebstrap starts a filter for each that costs more
    than unpacking."""
    config = "etc/dpkg/dpkg.cfg.d/99mmdebstrap"
    left_out = "".join(f"{option}\n" for option in _LEFT_OUT)
    run_in_own_mounts(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory",
         "--aptopt=Apt::Install-Recommends false", "--dpkgopt=force-unsafe-io",
         f"--extract-hook={_TAKE_OUT} && printf %s {shlex.quote(left_out)} >>\"$1/{config}\"",
         f"--include={','.join((*PACKAGES, *more))}", SUITE, str(root)],
        "install Debian's packages",
    )  # fmt: skip
    (root / config).write_text(left_out)
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)


def write_initrd(tree: Path, target: Path, work: Path) -> None:
    """``/init`` and virtio's modules, not compressed: unpacking costs more."""
    init = compile_program(Path(__file__).with_name("init.c"), work / "init")
    modules = copy_modules(tree, MODULES, work / "early")
    folders = ("dev", "proc", "sys", "root", "modules")
    entries: list[tuple[str, int, bytes]] = [(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    entries += [("init", stat.S_IFREG | 0o755, init.read_bytes())]
    entries += [(f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in modules]
    target.write_bytes(pack_cpio(entries))


def _add_kernel(root: Path, tree: Path, initrd: Path) -> None:
    """The kernel's modules, and what firmware boots; the package itself would bring an initrd maker along."""
    shutil.copytree(tree / "lib/modules", root / "lib/modules", symlinks=True, dirs_exist_ok=True)
    (version,) = (path.name for path in (tree / "lib/modules").iterdir())
    run(["chroot", str(root), "depmod", version], "list the kernel's modules")
    boot = root / "boot"
    (boot / "grub").mkdir(parents=True, exist_ok=True)
    (compressed,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copy(compressed, boot / "vmlinuz")
    shutil.copy(initrd, boot / "initrd")
    (boot / "grub/grub.cfg").write_text(GRUB_CONFIG)
