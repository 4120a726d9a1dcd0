"""How long a guest takes from create to its agent's answer: tiny and debian-12, one at a time, with the CPU time it took."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.client import Client
from weft.client.context import read_context
from weft.images.recipes import ensure_bundle
from weft.objects.errors import AlreadyExists, NotFound

RUNS = 5
PATIENCE_SECONDS = 300.0
IMAGES = {"tiny": "128M", "debian-12": "512M"}


def boot(client: Client, image: str, name: str, more: dict[str, Any]) -> tuple[float, float]:
    """Seconds until it answers, and CPU seconds of its QEMU by then."""
    began = time.monotonic()
    client.create({"kind": "vm", "name": name, "spec": {"image": image, "cpu": 1, "memory": IMAGES[image], **more}})
    try:
        client.wait("vm", name, _answers, timeout_seconds=PATIENCE_SECONDS)
        return time.monotonic() - began, _cpu_seconds(name)
    finally:
        with contextlib.suppress(NotFound):
            client.delete("vm", name)
        client.wait("vm", name, lambda vm: vm is None, timeout_seconds=PATIENCE_SECONDS)


def _answers(vm: dict[str, Any] | None) -> bool:
    status = {} if vm is None else vm["status"]
    if status.get("phase") == "Failed":
        raise SystemExit(f"a guest failed: {status.get('message')}")
    return status.get("phase") == "Running" and bool(status.get("ready"))


def _cpu_seconds(name: str) -> float:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and f"guest={name}".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    raise SystemExit(f"no QEMU of {name} was found")


def measure() -> Measurement:
    client = Client(read_context(ROOT / ".weft" / "context.json"))
    bundle = ensure_bundle("debian-12", ROOT / ".weft" / "cache", lambda _: None)
    with contextlib.suppress(AlreadyExists):
        client.create({"kind": "image", "name": "debian-12", "spec": {"url": bundle.as_uri()}})
    client.wait(
        "image",
        "debian-12",
        lambda image: bool(image and image["status"].get("phase") == "Available"),
        timeout_seconds=PATIENCE_SECONDS,
    )
    figures = []
    for what, image, more in (
        ("tiny", "tiny", {}),
        ("debian-12", "debian-12", {}),
        ("debian-12, told a user (cloud-init)", "debian-12", {"users": ["ann"]}),
        ("debian-12 through UEFI and GRUB", "debian-12", {"firmware": "uefi"}),
    ):
        boot(client, image, "boot-first", more)  # its node has the image from then on, more or less
        runs = [boot(client, image, f"boot-{run}", more) for run in range(RUNS)]
        seconds = spread([wall for wall, _ in runs], "s", 1.0, 1)
        figures.append(Figure(what, f"{seconds}, {spread([cpu for _, cpu in runs], 's of CPU', 1.0, 1)}"))
    client.close()
    return Measurement(
        "boot", "From `create` to the agent's answer, one emulated CPU, one guest at a time, image cached.", figures
    )
