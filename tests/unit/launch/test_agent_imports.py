"""What an agent has no use for at its start isn't loaded: a box at the edge has little memory."""

from __future__ import annotations

import subprocess
import sys

LATE = (
    "statistics",
    "fractions",
    "tarfile",
    "zipfile",
    "tempfile",
    "csv",
    "_strptime",
    "zstandard",
    "logging.handlers",
    "pickle",
    "difflib",
    "urllib.request",
    "weft.agent.allocation.worker",
    "weft.agent.function.instance",
    "weft.agent.function.unpack",
    "weft.agent.logs.syslog",
    "weft.agent.migration.source",
    "weft.agent.replication.peer",
    "weft.drivers.network.bridge.capture.program",
    "weft.drivers.runtime.oci.conmon.holder",
    "weft.drivers.runtime.qemu.function.clone",
    "weft.drivers.runtime.qemu.function.snapshots",
    "weft.drivers.runtime.qemu.guest_agent.connections",
    "weft.agent.stream.collected_log",
    "weft.telemetry.logs.export",
    "weft.telemetry.logs.query",
    "weft.transfer.plan",
)
NEVER = (
    "numpy",
    "cryptography",
    "grpc",
    "onnxruntime",
    "apsw",
    "uvloop",
    "weft.scheduler",
    "weft.controllers",
    "weft.api",
)
# What launch.agent.drivers loads on a node that runs VMs, containers and functions, and what each agent listens with.
LOADED = (
    "weft.launch.agent.main",
    "weft.launch.agent.functions",
    "weft.agent.metrics.listener",
    "weft.serving.server",
    "weft.drivers.runtime.qemu.driver",
    "weft.drivers.runtime.qemu.microvm.driver",
    "weft.drivers.runtime.qemu.function.driver",
    "weft.drivers.runtime.oci.driver",
    "weft.drivers.runtime.oci.kata.driver",
    "weft.drivers.image.oci.store",
    "weft.drivers.network.bridge.driver",
    "weft.drivers.proxy.haproxy.driver",
    "weft.drivers.volume.directory.driver",
    "weft.drivers.guard.driver",
)


def test_an_agent_loads_what_it_needs_later_when_it_needs_it() -> None:
    code = f"import sys, {', '.join(LOADED)}; print([m for m in {LATE + NEVER!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]"
