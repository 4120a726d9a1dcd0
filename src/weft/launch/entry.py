"""The ``weft`` program. Its own processes (``server``, ``agent``, ``init``, ``gateway``, ``edge``, ``witness``) and tools
that work on files alone (``simulate``) start here, each in its own module; all else is the command line. Loads what the chosen one
needs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import sys
from typing import Any

# The words that start a process, the module whose ``main(argv)`` is that process, and what comes before its arguments.
PROCESSES: dict[str, tuple[str, list[str]]] = {
    "server": ("weft.launch.server.main", []),
    "agent": ("weft.launch.agent.main", []),
    "gateway": ("weft.launch.gateway.main", []),
    "edge": ("weft.launch.edge.main", []),
    "witness": ("weft.launch.witness.main", []),
    "simulate": ("weft.launch.placement.simulate", []),
    "policykit": ("weft.launch.placement.policykit", []),
    "init": ("weft.launch.local.init", ["weft", "init"]),
}
# Those whose packages are another extra of weft's than ``server``; the command line needs none.
EXTRAS = {"agent": "agent", "edge": "edge"}
# Processes that hold hundreds of thousands of objects, none of them in cycles, spend more than half of their start on garbage
# collection: they collect seldom.
HOLD_MUCH = ("server", "simulate")
SELDOM = (100_000, 50, 100)
STAY = ("server", "agent", "gateway", "edge", "witness")
ANSWER = ("server", "gateway")
# Words of processes that are kinds, too, with those that the process knows: others are verbs of the kind (weft server list).
KINDS = {"server": ("api", "controllers", "gateway", "backup", "restore", "config", "init", "join", "move-store")}


def main() -> None:
    """Run the command line and exit with its code."""
    argv = sys.argv[1:]
    _replace_closed_streams()
    if not argv or argv[0] not in PROCESSES or _names_objects(argv):
        signs = importlib.import_module("weft.cli.output.ascii")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                signs.show_plainly(stream)  # a terminal that can't show a sign gets another, not an error
        gc.set_threshold(400_000)  # a command makes many objects (a list of 10,000 VMs 200,000) and ends soon
        try:
            code = importlib.import_module("weft.cli.app").run(argv, _make_clock)
        except KeyboardInterrupt:  # while modules were loaded
            print("interrupted", file=sys.stderr)
            code = importlib.import_module("weft.cli.command.exit_codes").INTERRUPTED
        _flush()
        os._exit(code)  # nothing is left to do: the interpreter's shutdown would keep a person waiting
    if not os.path.exists(os.path.join(os.path.dirname(__file__), "process")):
        sys.exit(_run_package(argv))
    if argv[0] in STAY:
        importlib.import_module("weft.launch.process.limits").bound_free_memory(reads_tls=argv[0] in ANSWER)
    if argv[0] in HOLD_MUCH:
        gc.set_threshold(*SELDOM)
    module, before = PROCESSES[argv[0]]
    try:
        try:
            code = importlib.import_module(module).main([*before, *argv[1:]])
        except SystemExit as end:  # of argparse, which has printed help
            code = end.code
        except ModuleNotFoundError as missing:
            package, _, _ = str(missing.name).partition(".")
            if package in ("", "weft"):
                raise
            print(f"error: weft {argv[0]} needs the Python package {package}, which isn't installed", file=sys.stderr)
            print(f"pip install 'weft[{EXTRAS.get(argv[0], 'server')}]'", file=sys.stderr)
            code = importlib.import_module("weft.cli.command.exit_codes").ERROR
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = importlib.import_module("weft.cli.command.exit_codes").INTERRUPTED
    except BrokenPipeError:  # nobody reads standard output any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = importlib.import_module("weft.cli.command.exit_codes").SIGPIPE
    sys.exit(code)


def _run_package(argv: list[str]) -> int:
    """Become the process: the package weft-client has the command line alone, and weft-server and weft-agent lie beside it."""
    name = "agent" if argv[0] in EXTRAS else "server"
    program = os.path.join(os.path.dirname(sys.prefix), name, "bin", "weft")
    if os.path.exists(program):
        os.execv(program, [program, *argv])
    print(f"error: weft {argv[0]} isn't installed on this machine", file=sys.stderr)
    print(f"install the package weft-{name}", file=sys.stderr)
    return 1


def _names_objects(argv: list[str]) -> bool:
    return argv[0] in KINDS and len(argv) > 1 and argv[1][:1] != "-" and argv[1] not in KINDS[argv[0]]


def _replace_closed_streams() -> None:
    """Opens missing standard streams on /dev/null, so that output goes nowhere and no file or connection gets their numbers."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)  # child processes have none either
            setattr(sys, name, os.fdopen(number, mode))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _make_clock() -> Any:
    return importlib.import_module("weft.contracts.clock").SystemClock()
