"""The words of QEMU's command line that all machines have: those of VMs and containers, and of functions. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TRANSLATION_CACHE_MIB = 128  # QEMU's default grows to 1 GiB of a long-running emulated guest
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def start_words(program: str, name: str, accelerator: str, cpu: str) -> list[str]:
    """Nothing but what is named after them, walls of system calls, and CPUs of that model."""
    accel = "kvm" if accelerator == "kvm" else f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"
    words = [program, "-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", _SANDBOX]
    return [*words, "-accel", accel, "-cpu", cpu]


def kernel_words(kernel: int, initrd: int, cmdline: str) -> list[str]:
    return ["-kernel", f"/proc/self/fd/{kernel}", "-initrd", f"/proc/self/fd/{initrd}", "-append", cmdline]


def file_words(descriptor: int) -> list[str]:
    """A file that it is given open; ``ids.fdset`` is its name."""
    return ["-add-fd", f"fd={descriptor},set={descriptor}"]


def node_words(node: dict[str, Any]) -> list[str]:
    return ["-blockdev", json.dumps(node, separators=(",", ":"))]


def device_words(machine: str, name: str, mmio: int, pci: str, properties: Mapping[str, str | int]) -> list[str]:
    """A virtio device: on microvm at its ``mmio`` bus, of which the kernel finds the highest first, else where ``pci`` says."""
    kind, bus = ("device", f"virtio-mmio-bus.{mmio}") if machine == "microvm" else ("pci", pci)
    return [
        "-device",
        ",".join([f"{name}-{kind}", f"bus={bus}", *(f"{key}={value}" for key, value in properties.items())]),
    ]
