"""Builds what machines made of container images boot: a folder with ``kernel``, ``initrd`` for the machine around a container and
``initrd-vm`` for VMs that stand on such an image, the same for all images.

Reads Debian's package archive (one kernel package, kept in the cache), compiles ``init.c``, ``vm.c`` and weft's guest agent, and
writes the folder in one rename. There is no disk: the container's image is one.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.images.parts import (
    AGENT,
    compile_program,
    copy_modules,
    digest_recipe,
    fetch_kernel,
    pack_cpio,
    require,
    write_kernel,
)
from weft.images.turn import take_turn
from weft.objects.errors import InvalidInput

MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio"),
    *("virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net", "virtio-rng", "virtio_balloon"),
)
SOURCES = Path(__file__).parent

_NEEDED = {"gcc": "gcc libc6-dev", "strip": "binutils", "dpkg-deb": "dpkg", "apt-get": "apt"}


def find_microvm(cache_dir: Path) -> Path:
    """Find the folder of this recipe in ``cache_dir``, built or not."""
    return cache_dir / f"microvm-{digest_recipe(SOURCES)[:12]}"


def ensure_microvm(cache_dir: Path, report: Callable[[str], None] = lambda what: None, *, fresh: bool = False) -> Path:
    """The folder of this recipe, built unless it is there (``fresh``: built anyhow). Raises DriverFailed."""
    folder = find_microvm(cache_dir)
    if fresh or not folder.exists():
        with take_turn(folder, report):
            if fresh or not folder.exists():
                build_microvm(folder, cache_dir, report)
    return folder


def build_microvm(out_path: Path, cache_dir: Path, report: Callable[[str], None] = lambda what: None) -> None:
    """Write the folder ``out_path``; keeps the kernel package in ``cache_dir``. Raises DriverFailed."""
    require("microvm", _NEEDED)
    cache_dir.mkdir(parents=True, exist_ok=True)
    report("kernel")
    tree = fetch_kernel(cache_dir.resolve())
    report("programs")
    with tempfile.TemporaryDirectory(prefix="microvm-", dir=out_path.parent) as work_name:
        work = Path(work_name)
        made = work / "made"
        made.mkdir()
        write_kernel(tree, made / "kernel")
        write_initrd(tree, made / "initrd", work)
        write_vm_initrd(tree, made / "initrd-vm", work)
        made.chmod(0o755)
        if out_path.exists():
            out_path.rename(work / "old")
        try:
            os.replace(made, out_path)
        except OSError:  # another build was faster; its folder is as good
            if not out_path.exists():
                raise
        shutil.rmtree(made, ignore_errors=True)


def write_initrd(tree: Path, target: Path, work: Path) -> None:
    """All of the machine but the container. Not compressed: unpacking costs more."""
    entries = _list_entries(tree, "init.c", work)
    entries += [(f"bin/{name}", stat.S_IFLNK | 0o777, b"/init") for name in ("enter", "kill-command", "poweroff")]
    target.write_bytes(pack_cpio(entries))


def write_vm_initrd(tree: Path, target: Path, work: Path) -> None:
    """All of a VM but its image and what that says; ``pack_image`` makes the latter, to be put behind it."""
    target.write_bytes(pack_cpio(_list_entries(tree, "vm.c", work)))


def pack_image(records: Sequence[tuple[str, str]]) -> bytes:
    """Pack what an image says about how it is run, as ``vm.c`` reads it. Raises InvalidInput for a word that no record can hold."""
    for word, value in records:
        if "\0" in value:
            raise InvalidInput(f"the image's {word} has a NUL in it", field="spec.url", reason="badImage")
    data = b"".join(f"{word} {value}".encode() + b"\0" for word, value in records)
    return pack_cpio([("image", stat.S_IFREG | 0o644, data)])


def _list_entries(tree: Path, source: str, work: Path) -> list[tuple[str, int, bytes]]:
    init = compile_program(SOURCES / source, work / "init").read_bytes()
    agent = compile_program(AGENT, work / "agent").read_bytes()
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in ("dev", "bin", "modules", "c")]
    entries += [("init", stat.S_IFREG | 0o755, init), ("weft-agent", stat.S_IFREG | 0o755, agent)]
    for path in copy_modules(tree, MODULES, work / "modules"):
        entries.append((f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()))
    return entries
