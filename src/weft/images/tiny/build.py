"""Builds the tiny image: a bundle tar with a root disk, a kernel and an initial RAM file system.

Reads Debian's package archive (one kernel package, kept in the cache and only unpacked, never installed) and the local
busybox, compiles ``init.c``, ``devices.c`` and ``agent.c`` with the local compiler, and writes the bundle in one rename. The same
inputs give the same bytes: every time stamp, UUID and hash seed is fixed.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from weft.images.parts import (
    AGENT,
    EPOCH,
    compile_program,
    copy_modules,
    fetch_kernel,
    pack_cpio,
    require,
    run,
    write_bundle,
    write_kernel,
)
from weft.objects.image.bundle import BundleManifest

DISK_BYTES = 1 << 30
ROOT_LABEL = "tiny-root"
EARLY_MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
    "virtio_blk", "virtio_console",
)  # fmt: skip
LATE_MODULES = ("failover", "net_failover", "virtio_net", "virtio-rng", "virtio_balloon", "virtio_mem")
OPTIONAL_MODULES = ("overlay", "fuse", "virtiofs", "cdrom", "isofs", "vsock", "vmw_vsock_virtio_transport_common",
                    "vmw_vsock_virtio_transport")  # fmt: skip
SOURCES = Path(__file__).parent

_NEEDED = {
    "gcc": "gcc libc6-dev",
    "strip": "binutils",
    "busybox": "busybox-static",
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}


def build_tiny(out_path: Path, cache_dir: Path, report: Callable[[str], None] = lambda what: None) -> None:
    """Write the tiny bundle to ``out_path``; keeps the kernel package in ``cache_dir``. Raises DriverFailed."""
    require("tiny", _NEEDED)
    cache_dir.mkdir(parents=True, exist_ok=True)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    report("kernel")
    kernel_tree = fetch_kernel(cache_dir.resolve())
    report("programs and disk")
    with tempfile.TemporaryDirectory(prefix="tiny-", dir=out_path.parent) as work_name:
        work = Path(work_name)
        members = {
            "kernel": work / "kernel",
            "initrd": work / "initrd",
            "disk.qcow2": work / "disk.qcow2",
        }
        programs = compile_programs(work)
        write_kernel(kernel_tree, members["kernel"])
        write_initrd(kernel_tree, programs["init"], members["initrd"], work)
        write_disk(kernel_tree, programs["agent"], programs["devices"], members["disk.qcow2"], work)
        manifest = BundleManifest(
            disk="disk.qcow2",
            disk_format="qcow2",
            kernel="kernel",
            initrd="initrd",
            cmdline="quiet reboot=t panic=-1 random.trust_cpu=on",
            agent=True,
            min_memory_bytes=128 << 20,
        )
        pending = work / "bundle.tar"
        write_bundle(pending, manifest, members)
        os.replace(pending, out_path)


def compile_programs(work: Path) -> dict[str, Path]:
    """Static ``init``, ``devices`` and ``agent``; they have no loader to wait for and no library to miss."""
    programs = {}
    for source in (SOURCES / "init.c", SOURCES / "devices.c", AGENT):
        programs[source.stem] = compile_program(source, work / source.stem)
    return programs


def write_initrd(tree: Path, init: Path, target: Path, work: Path) -> None:
    """``/init`` and the modules it loads before the root disk can be seen. Not compressed: unpacking costs more."""
    modules = copy_modules(tree, EARLY_MODULES, work / "early")
    entries: list[tuple[str, int, bytes]] = [("dev", stat.S_IFDIR | 0o755, b""), ("modules", stat.S_IFDIR | 0o755, b"")]
    entries += [("init", stat.S_IFREG | 0o755, init.read_bytes())]
    entries += [(f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in modules]
    target.write_bytes(pack_cpio(entries))


def write_disk(tree: Path, agent: Path, devices: Path, target: Path, work: Path) -> None:
    """The root file system as qcow2, made without mounting anything."""
    root = work / "root"
    lay_out_root(root, agent, devices)
    copy_modules(tree, LATE_MODULES, root / "lib/modules")
    copy_modules(tree, OPTIONAL_MODULES, root / "lib/modules", required=False)
    raw = work / "disk.raw"
    with open(raw, "wb") as file:
        file.truncate(DISK_BYTES)
    fixed = dict(os.environ, E2FSPROGS_FAKE_TIME=str(EPOCH), SOURCE_DATE_EPOCH=str(EPOCH))
    seed = "77656674-7469-6e79-8000-000000000001"
    extended = f"hash_seed={seed},lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1,root_owner=0:0"
    run(
        ["mkfs.ext4", "-q", "-F", "-b", "4096", "-L", ROOT_LABEL, "-U", seed, "-m", "0", "-J", "size=8",
         "-E", extended, "-d", str(root), str(raw)],
        "make the root file system", env=fixed,
    )  # fmt: skip
    _fix_times(raw, root, fixed)
    run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(target)], "write the disk")
    raw.unlink()


def lay_out_root(root: Path, agent: Path, devices: Path) -> None:
    """The files of the root, except kernel modules."""
    for folder in ("bin", "dev", "etc", "lib/modules", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr",
                   "usr/local/bin", "usr/local/lib/weft", "var/lib/weft", "var/log", "var/tmp", "www"):  # fmt: skip
        (root / folder).mkdir(parents=True, exist_ok=True)
    for link, aim in (("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/run", "../run")):
        (root / link).symlink_to(aim)
    (root / "tmp").chmod(0o1777)
    (root / "var/tmp").chmod(0o1777)
    busybox = Path(shutil.which("busybox") or "/bin/busybox").resolve()
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(agent, root / "bin/weft-agent")
    shutil.copy(devices, root / "bin/weft-devices")
    applets = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    files = {
        "etc/passwd": "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        "etc/group": "root:x:0:\ntty:x:5:\nnobody:x:65534:\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "etc/resolv.conf": "",
        "etc/profile": "export PS1='\\h:\\w\\$ '\n",
        "etc/os-release": 'NAME="weft tiny"\nID=weft-tiny\nPRETTY_NAME="weft tiny"\n',
        "www/index.html": "<!doctype html><title>tiny</title><p>It works.</p>\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    shutil.copy(SOURCES / "rc", root / "etc/rc")
    (root / "usr/local/lib/weft/renewed").symlink_to("/bin/weft-devices")
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            program = path.parent.name == "bin" or path.name == "rc"
            path.chmod(0o755 if program else 0o644)


def _fix_times(raw: Path, root: Path, env: dict[str, str]) -> None:
    """mkfs copies each file's time stamps; set them all alike, so that one source gives one image."""
    paths = ["/", "/lost+found", *(f"/{path.relative_to(root)}" for path in sorted(root.rglob("*")))]
    stamps = ("atime", "ctime", "mtime", "crtime")
    commands = [f"set_inode_field {path} {stamp} @{EPOCH}" for path in paths for stamp in stamps]
    commands += [f"set_inode_field {path} {stamp}_extra 0" for path in paths for stamp in stamps]
    run(["debugfs", "-w", "-f", "-", str(raw)], "fix time stamps", env=env, text="\n".join(commands))
