"""The ``weft`` program. Its own processes (``server``, ``agent``, ``init``, ``gateway``) start here, each in a module of
its own; everything else is the command line. Loads nothing that the wanted one doesn't need."""

from __future__ import annotations

import importlib
import sys

from weft.cli.app import run
from weft.cli.session import Clock

# The words that start a process, and the module whose ``main(argv) -> int`` is that process.
PROCESSES = {
    "server": "weft.launch.server",
    "agent": "weft.launch.agent",
    "init": "weft.launch.local.init",
    "gateway": "weft.launch.gateway",
}


def main() -> None:
    """Run what the command line says and end with its exit code."""
    argv = sys.argv[1:]
    if argv and argv[0] in PROCESSES:
        sys.exit(importlib.import_module(PROCESSES[argv[0]]).main(argv[1:]))
    sys.exit(run(argv, _make_clock))


def _make_clock() -> Clock:
    clock: Clock = importlib.import_module("weft.contracts.clock").SystemClock()
    return clock
