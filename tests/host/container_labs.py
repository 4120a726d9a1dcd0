"""The labs that containers can be tested on, by name, and what each needs of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from container_lab import ContainerLab
from containerd_lab import ContainerdLab
from kata_lab import KataLab
from microvm_lab import MicrovmLab
from tests.long import mark_long

NEEDED = {
    "crun": ("crun", "conmon"),
    "runc": ("runc", "conmon"),
    "containerd": ("containerd", "ctr", "runc"),
    "kata": ("containerd", "ctr", "runc"),  # by runc's shim, in place of Kata's
    "microvm": ("qemu-system-x86_64", "mkfs.ext4", "gcc"),
}
# The node's kernel; containerd, and runc by it, are shown each day by the walls and by containerd's own tests.
SHARING = mark_long(("crun", "runc", "containerd"), "runc", "containerd")


@contextmanager
def open_lab(kind: str, *more: str) -> Iterator[ContainerLab]:
    """A lab of this kind until the block ends. Skips what can't be tested here, for want of these programs and ``more``."""
    needed = (*NEEDED[kind], *more)
    if os.geteuid() != 0 or not all(map(shutil.which, needed)):
        pytest.skip(f"needs root, {' and '.join(needed)}")
    labs = {"microvm": MicrovmLab, "containerd": ContainerdLab, "kata": KataLab}
    lab = labs[kind]() if kind in labs else ContainerLab(kind)
    try:
        yield lab
    finally:
        lab.close()
