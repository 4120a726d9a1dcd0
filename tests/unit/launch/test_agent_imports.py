"""What an agent has no use for at its start isn't loaded: a box at the edge has little memory."""

from __future__ import annotations

import subprocess
import sys

LATE = ("statistics", "fractions", "tarfile", "zipfile", "logging.handlers", "pickle", "difflib", "urllib.request")
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


def test_an_agent_loads_what_it_needs_later_when_it_needs_it() -> None:
    drivers = ", ".join(
        f"weft.drivers.{name}.driver" for name in ("runtime.qemu", "network.bridge", "volume.directory")
    )
    code = f"import sys, weft.launch.agent.main, {drivers}; print([m for m in {LATE + NEVER!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]"
