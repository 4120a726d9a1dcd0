"""Build what a machine that is copied boots: the kernel, and an initial RAM file system that is all of weft in it.

Compiles ``init.c`` and takes the modules from an unpacked kernel package; there is no disk here: the function's root is one.
"""

from __future__ import annotations

import stat
from pathlib import Path

from weft.images.parts import compile_program, copy_modules, pack_cpio, write_kernel

SOURCES = Path(__file__).parent
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio"),
    *("failover", "net_failover", "virtio_net", "virtio_blk"),
)
NEEDED = {"gcc": "gcc libc6-dev", "strip": "binutils", "dpkg-deb": "dpkg", "apt-get": "apt"}
_FOLDERS = ("dev", "modules", "root", "groups")


def write_boot(tree: Path, work: Path) -> dict[str, Path]:
    """``kernel`` and ``initrd`` in ``work``, from the kernel package unpacked at ``tree``. Raises DriverFailed."""
    kernel, initrd = work / "kernel", work / "initrd"
    write_kernel(tree, kernel)
    program = compile_program(SOURCES / "init.c", work / "clone-init").read_bytes()
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in _FOLDERS]
    entries += [("init", stat.S_IFREG | 0o755, program)]
    entries += [("sitecustomize.py", stat.S_IFREG | 0o644, (SOURCES / "sitecustomize.py").read_bytes())]
    for path in copy_modules(tree, MODULES, work / "clone-modules"):
        entries.append((f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()))
    initrd.write_bytes(pack_cpio(entries))
    return {"kernel": kernel, "initrd": initrd}
