"""A digest of all that a template depends on: the function, the kernel, QEMU, the CPU and this program's own ways."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from weft.contracts.driver.function import Recipe, Roots
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed

WAYS = 1  # of making templates: another number, and all are made again
_CPU_WORDS = ("vendor_id", "model name", "stepping", "microcode", "flags")


def find_boot(recipe: Recipe, roots: Roots) -> tuple[str, str]:
    """Kernel and initial RAM file system. Raises DriverFailed."""
    kernel, initrd = Path(roots.bundle, "kernel"), Path(roots.bundle, "initrd")
    if not roots.bundle or not kernel.is_file() or not initrd.is_file():
        raise DriverFailed(
            f"{recipe.what}: isolation vm needs a kernel, but its runtime's image has none",
            hint="build the runtime's image again: weft image build python3-11",
            details={"step": "boot"},
        )
    return str(kernel), str(initrd)


def identify(recipe: Recipe, roots: Roots, facts: QemuHostFacts) -> str:
    """Equal ones may be copied. Raises DriverFailed."""
    kernel, initrd = find_boot(recipe, roots)
    return _join(recipe.digest, _digest_file(kernel), _digest_file(initrd), identify_node(facts))


def identify_node(facts: QemuHostFacts) -> str:
    """The part of it that doesn't depend on what the function is."""
    return _join(str(WAYS), facts.accelerator, str(facts.version), _stamp(facts.program), _read_cpu())


def _join(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _stamp(program: str) -> str:
    found = os.stat(program)
    return f"{found.st_size} {found.st_mtime_ns}"


def _digest_file(path: str) -> str:
    found = os.stat(path)
    return _digest(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: str, inode: int, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def _read_cpu() -> str:
    """Read the first CPU's facts; its clock rate is left out, because that changes on its own."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    return "\n".join(line for line in first.splitlines() if line.split(":")[0].strip() in _CPU_WORDS)
