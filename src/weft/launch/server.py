"""``weft server``: keeps the server's processes alive: doors (API and store), deciders (controllers and scheduler) and
the gateway. It holds no state; when it dies its children end with it, and starting it again goes on where they were."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.contracts.clock import Clock, SystemClock
from weft.kinds.strategy import DEFAULT_STRATEGY, read_strategy
from weft.launch.lock import hold_server
from weft.launch.stores import SQLITE, check_store, find_endpoints, recall_store, remember_store
from weft.objects.errors import WeftError

PR_SET_PDEATHSIG = 1
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
HEALTHY_AFTER_SECONDS = 10.0


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of ``weft server``; its three processes get the same ones."""
    parser = argparse.ArgumentParser(
        prog="weft server",
        description="Run the weft server in the foreground.",
        epilog="weft server backup FILE and weft server restore FILE save what it keeps, and put it back.",
    )
    parser.add_argument(
        "process", nargs="?", choices=["doors", "deciders", "gateway"], help="run only this one of its processes"
    )
    parser.add_argument("--state", type=Path, required=True, help="folder that holds everything the server must keep")
    parser.add_argument(
        "--store",
        metavar="URL",
        help="where objects are kept: sqlite (in the state folder) or etcd://HOST:PORT[,HOST:PORT…]"
        " (default: as the last time, sqlite at first)",
    )
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS:PORT",
        help="where the API listens (default 127.0.0.1:8443; may be given several times)",
    )
    parser.add_argument(
        "--gateway",
        action="append",
        metavar="ADDRESS:PORT",
        help="where exec, console and log streams connect (default 127.0.0.1:8444)",
    )
    parser.add_argument(
        "--publish-on", metavar="ADDRESS", help="also offer published ports on this address of this machine"
    )
    parser.add_argument("--context", type=Path, help="write the administrator's context to this file")
    options = parser.parse_args(argv)
    options.store = recall_store(options.state) if options.store is None else options.store
    if options.store != SQLITE:
        try:
            find_endpoints(options.store)
        except WeftError as problem:
            parser.error(f"--store: {problem.message}; {problem.hint}")
    options.listen = options.listen or ["127.0.0.1:8443"]
    options.gateway = options.gateway or ["127.0.0.1:8444"]
    return options


def _die_with_parent() -> None:
    """In the child: be told to end when the keeper goes, however it goes (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Keeper:
    """Starts one command again whenever it ends, waiting longer after each quick death."""

    def __init__(self, argv: list[str], clock: Clock) -> None:
        self._argv = argv
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            began = self._clock.elapsed()
            self._process = await asyncio.create_subprocess_exec(*self._argv, preexec_fn=_die_with_parent)
            code = await self._process.wait()
            if self._clock.elapsed() - began > HEALTHY_AFTER_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            print(
                f"weft server: {' '.join(self._argv[2:4])} ended with {code}; again in {backoff:g} s",
                file=sys.stderr,
                flush=True,
            )
            await self._clock.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), timeout=10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def keep_server(argv: Sequence[str], clock: Clock) -> None:
    """Keep the three processes until SIGTERM or SIGINT; the deciders end first, the doors last."""
    program = str(Path(sys.argv[0]).resolve())
    keepers = [
        Keeper([sys.executable, program, "server", name, *argv], clock) for name in ("doors", "gateway", "deciders")
    ]
    tasks = [asyncio.create_task(keeper.keep()) for keeper in keepers]
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()
    for task in tasks:
        task.cancel()
    for keeper in reversed(keepers):
        await keeper.end()


def main(argv: Sequence[str]) -> int:
    """Run the keeper, or the one process that is named, until told to end; the exit status."""
    if argv and argv[0] in ("backup", "restore"):
        done: int = importlib.import_module("weft.launch.backup").main(argv[0], argv[1:])
        return done
    options = parse_options(argv)
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if options.process:
        run: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(f"weft.launch.{options.process}"), f"run_{options.process}"
        )
        return run(options)
    try:
        read_strategy(os.environ.get("SCHEDULING_STRATEGY") or DEFAULT_STRATEGY, "SCHEDULING_STRATEGY")
    except WeftError as problem:  # here, not again and again in the process that needs it
        print(f"weft server: {problem.message}; {problem.hint}", file=sys.stderr)
        return 2
    try:
        with hold_server(options.state):
            check_store(options.state, options.store)
            remember_store(options.state, options.store)
            asyncio.run(keep_server(argv, SystemClock()))
    except WeftError as problem:
        print(f"weft server: {problem.message}\n{problem.hint}", file=sys.stderr)
        return 1
    return 0
