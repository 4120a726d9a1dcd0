"""``weft server``: keeps the server's processes alive: api (API server and store), controllers (with the scheduler) and
gateway. It holds no state; when it dies its children end with it, and starting it again goes on where they were."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from weft.cli.command.exit_codes import OK, USAGE, exit_code
from weft.contracts.clock import Clock, SystemClock
from weft.kinds.fields.strategy import DEFAULT_STRATEGY, read_strategy
from weft.launch.process.listener import check_listeners
from weft.launch.process.supervisor import Command, Supervisor, supervising
from weft.launch.server.alerts import find_unfit, supervise_evaluator
from weft.launch.server.configuration import parse_options, show_configuration
from weft.launch.server.lock import hold_server
from weft.launch.server.logs import keep_log
from weft.launch.server.membership.identity import keep_identity
from weft.launch.server.membership.removal import is_removed, refuse_removed
from weft.launch.server.metrics import plan_database
from weft.launch.server.unfinished import refuse_unfinished
from weft.launch.store.engine import (
    MEMBERS,
    SQLITE,
    check_store,
    is_remembered,
    plan_own,
    recall_store,
    remember_store,
    try_store,
)
from weft.launch.store.etcd_log import EtcdLog
from weft.launch.store.exchange import find_own_etcd
from weft.launch.store.member import read_member
from weft.objects.errors import WeftError
from weft.telemetry.metrics.database import OWN

# What runs each of the server's processes: imported by the one that needs it.
PROCESSES = {
    "api": ("weft.launch.server.api", "run_api"),
    "controllers": ("weft.launch.server.controllers", "run_controllers"),
    "gateway": ("weft.launch.gateway.main", "run_gateway"),
}


async def run_supervisor(options: argparse.Namespace, argv: Sequence[str], clock: Clock) -> int:
    """Keep the processes until SIGTERM or SIGINT, until the server was removed from its fabric, or until one refused to start; the
    exit status. The controllers end first, then the gateway and the API server, and last databases of our own. Raises Unavailable
    when that isn't on this machine."""
    program = str(Path(sys.argv[0]).resolve())
    kept = keep_log(options.state, "supervisor", clock, listens=False)

    state, asked, refused = options.state, asyncio.Event(), list[int]()

    def note(line: str) -> None:
        kept.put([(clock.now(), line)])

    def supervise(name: str, plan: Sequence[str] | Callable[[], Command]) -> Supervisor:
        return Supervisor(name, plan, clock, lambda: not is_removed(state), note, refuse)

    def refuse() -> None:
        refused.append(USAGE)  # it has said why
        asked.set()

    plan_own(options.store, state, clock, options.store_quota)  # what is missing is said before anything starts
    plan = partial(_plan_etcd, state, clock, options.store_quota)
    log = EtcdLog(clock, partial(print, file=sys.stderr, flush=True))
    etcd = Supervisor("etcd", plan, clock, lambda: _needs_etcd(state), note, output=log.take)
    supervisors = [etcd]
    evaluators = []
    if find_unfit(options.metrics, options.database) is None:
        evaluators = [supervise_evaluator(options.state, options.database, options.alert_interval, clock)]
    if options.metrics == OWN:
        # Its plan is made before the API server starts, which finds the CA there.
        supervisors.append(supervise("metrics", partial(_plan_metrics, options, evaluators, clock)))
    supervisors += evaluators
    supervisors += [
        supervise(name, [sys.executable, program, "server", name, *argv]) for name in ("api", "gateway", "controllers")
    ]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    async with supervising(supervisors):
        ending = asyncio.create_task(_end_unneeded(etcd, state, asked, clock))
        await asked.wait()
        ending.cancel()
    return max(refused, default=OK)


def _plan_etcd(state: Path, clock: Clock, quota_bytes: int) -> Command:
    """The command of the etcd that the server itself keeps now."""
    plan = plan_own(find_own_etcd(state) or SQLITE, state, clock, quota_bytes)
    return plan() if callable(plan) else Command(plan or ["true"])


def _needs_etcd(state: Path) -> bool:
    return find_own_etcd(state) is not None and not is_removed(state)


async def _end_unneeded(etcd: Supervisor, state: Path, ending: asyncio.Event, clock: Clock) -> None:
    """End the server's own etcd once no store is in it; begin to end everything once the server was removed."""
    while not is_removed(state):
        await clock.sleep(1.0)
        if not _needs_etcd(state):
            await etcd.end()
    ending.set()


def _plan_metrics(options: argparse.Namespace, evaluators: Sequence[Supervisor], clock: Clock) -> Command:
    """The command of the database; who asks it must learn its new address."""
    command = plan_database(options.state, options.metrics_keep, clock)
    for evaluator in evaluators:
        evaluator.restart()
    return command


def main(argv: Sequence[str]) -> int:
    """Run a command on the state folder; or the supervisor, or the one named process, until a signal ends it. The exit status."""
    if argv and argv[0] in ("backup", "restore"):
        done: int = importlib.import_module("weft.launch.server.backup").main(argv[0], argv[1:])
        return done
    if argv and argv[0] == "move-store":
        exchanged: int = importlib.import_module("weft.launch.server.exchange.command").main(argv[1:])
        return exchanged
    try:
        if argv and argv[0] in ("init", "join"):
            joined: int = importlib.import_module(f"weft.launch.server.membership.{argv[0]}").main(argv[1:])
            return joined
        if argv and argv[0] == "config":
            return show_configuration(argv[1:])
        options = parse_options(argv)
    except WeftError as problem:
        print(f"error: {problem.message}" + (f"\n  {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return exit_code(problem) if argv[:1] in (["init"], ["join"]) else 2
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        if options.process:
            refuse_unfinished(options.state)
            module, name = PROCESSES[options.process]
            run: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), name)
            return run(options)
        read_strategy(os.environ.get("SCHEDULING_STRATEGY") or DEFAULT_STRATEGY, "SCHEDULING_STRATEGY")
    except WeftError as problem:  # here, not again and again in the process that needs it
        print(f"weft server: {problem.message}; {problem.hint}", file=sys.stderr)
        return exit_code(problem)
    for line in options.unused:
        _report(line)
    try:
        with hold_server(options.state):
            refuse_unfinished(options.state)
            refuse_removed(options.state)
            check_store(options.state, options.store)
            asyncio.run(check_listeners(_list_listeners(options), SystemClock(), _report))
            if is_remembered(options.state) and recall_store(options.state) != options.store:
                asyncio.run(try_store(options.store, options.state, SystemClock()))
            keep_identity(options.state, options.server)
            remember_store(options.state, options.store)
            status = asyncio.run(run_supervisor(options, argv, SystemClock()))
            refuse_removed(options.state)
    except WeftError as problem:
        print(f"weft server: {problem.message}" + (f"\n{problem.hint}" if problem.hint else ""), file=sys.stderr)
        return exit_code(problem)
    return status


def _report(line: str) -> None:
    print(f"weft server: {line}", file=sys.stderr, flush=True)


def _list_listeners(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The places where the server's processes will listen, each with the flag that says so."""
    flags = {name: getattr(options, name) or () for name in ("listen", "gateway", "functions")}
    found = [(f"--{name}", place) for name, places in flags.items() for place in places]
    if options.store == MEMBERS:
        place = read_member(options.state).place
        found += [("this server's member of the store", at) for at in (place.client, place.peer)]
    return found
