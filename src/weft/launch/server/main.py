"""``weft server``: keeps the server's processes alive: api (API server and store), controllers (with the scheduler) and
gateway. It holds no state; when it dies its children end with it, and starting it again goes on where they were."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.public_address import PUBLIC_ONLY
from weft.gateway.stream.origins import read_origin
from weft.kinds.fields.strategy import DEFAULT_STRATEGY, read_strategy
from weft.kinds.network import read_cidr
from weft.launch.process.address import (
    take_address,
    take_by,
    take_host,
    take_issuer,
    take_networks,
    take_registry,
    take_source,
)
from weft.launch.process.amounts import Parser, count, duration, percent, size
from weft.launch.process.supervisor import Command, Supervisor, supervising
from weft.launch.server.alerts import find_unfit, supervise_evaluator
from weft.launch.server.lock import hold_server
from weft.launch.server.logs import keep_log
from weft.launch.server.metrics import PROGRAM, plan_database, require_program
from weft.launch.server.traces import LOCAL, NO_TRACES
from weft.launch.store.engine import ETCD, SQLITE, check_store, find_endpoints, recall_store, remember_store
from weft.launch.store.etcd import plan_etcd
from weft.objects.errors import InvalidInput, WeftError
from weft.telemetry.audit.log import FILE_BYTES
from weft.telemetry.audit.target import read_target
from weft.telemetry.collector import read_collector
from weft.telemetry.logs.server import MOST_BYTES
from weft.telemetry.logs.store import LEAST_BYTES, MOST_AGE_SECONDS
from weft.telemetry.metrics.database import OFF, OWN, Database, read_option

# What runs each of the server's processes: imported by the one that needs it.
PROCESSES = {
    "api": ("weft.launch.server.api", "run_api"),
    "controllers": ("weft.launch.server.controllers", "run_controllers"),
    "gateway": ("weft.launch.gateway.main", "run_gateway"),
}


def make_parser() -> argparse.ArgumentParser:
    """What ``weft server`` understands; ``docs/reference/server.md`` says the same."""
    parser = Parser(
        prog="weft server",
        description="Run the weft server in the foreground.",
        epilog="weft server backup FILE and weft server restore FILE save and restore its data.",
    )
    parser.add_argument("process", nargs="?", choices=list(PROCESSES), help="run only this process of the server")
    parser.add_argument("--state", type=Path, required=True, help="folder for the server's data")
    parser.add_argument(
        "--store",
        metavar="URL",
        help="where objects are kept: sqlite or etcd (in the state folder), or etcd://HOST:PORT[,HOST:PORT…]"
        " (default: as before; sqlite for a new server)",
    )
    parser.add_argument(
        "--listen",
        action="append",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where the API listens (repeatable; default 127.0.0.1:8443)",
    )
    parser.add_argument(
        "--gateway",
        action="append",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where exec, console and log streams connect (default 127.0.0.1:8444)",
    )
    parser.add_argument(
        "--functions",
        action="append",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where functions are invoked by HTTP and the Lambda API (default 127.0.0.1:8445)",
    )
    parser.add_argument(
        "--microvm-dir",
        type=Path,
        default=Path("/var/lib/weft/microvm"),
        metavar="FOLDER",
        help="folder with the kernel and init of VMs on container images, built by python -m weft.images microvm "
        "(default /var/lib/weft/microvm)",
    )
    parser.add_argument(
        "--plain-registry",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        type=take_registry,
        help="an image registry to use over http without TLS, in addition to those on loopback (repeatable)",
    )
    parser.add_argument(
        "--allow-fetch",
        action="append",
        default=[],
        metavar="ADDRESS[/BITS]|FOLDER",
        type=take_source,
        help="addresses of this machine, or link-local ones, to allow fetching images from, like 127.0.0.0/8,"
        " or a folder that not every user can read (repeatable; default none)",
    )
    parser.add_argument(
        "--fetch-public-only",
        dest="allow_fetch",
        action="append_const",
        const=PUBLIC_ONLY,
        help="fetch images from no private address (10.0.0.0/8, fd00::/8 …) that --allow-fetch doesn't name",
    )
    parser.add_argument(
        "--receivers-allow",
        action="extend",
        default=[],
        metavar="CIDR,…",
        type=take_networks,
        help="private networks, or addresses of this machine, that receivers of alerts and events may be in, like 10.0.0.0/8"
        " (repeatable; default none)",
    )
    parser.add_argument(
        "--publish-on",
        metavar="ADDRESS",
        type=take_host,
        help="also offer published ports on this address of this machine",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        type=partial(take_by, read_origin),
        metavar="URL",
        help="origin whose pages may open web sockets to the gateway, like https://novnc.example:6080, beside the server's own"
        " (repeatable)",
    )
    parser.add_argument(
        "--most-objects",
        metavar="NUMBER",
        type=count(1, 100_000_000),
        default=5_000,
        help="how many objects of a kind a project may have; ten times as many VMs, containers, migrations and versions, and"
        " objects of kinds that belong to no project (default 5000)",
    )
    parser.add_argument(
        "--writes-per-second",
        metavar="NUMBER",
        type=count(0, 1_000_000),
        default=200,
        help="how many objects a person may write in a second, and ten times as many in a burst; 0: no limit (default 200)",
    )
    parser.add_argument(
        "--user-token-life",
        metavar="DURATION",
        type=duration(60.0),
        default="90d",
        help="how long tokens are valid at most that users make for themselves after a login (default 90d)",
    )
    parser.add_argument(
        "--audit-keep",
        metavar="DURATION",
        type=duration(3600.0),
        default="365d",
        help="how long the audit log is kept, like 365d (default 365d)",
    )
    parser.add_argument(
        "--audit-most",
        metavar="SIZE",
        type=size(2 * FILE_BYTES),
        default="4G",
        help="how large the audit log may become: then its oldest files go (default 4G)",
    )
    parser.add_argument(
        "--audit-syslog",
        metavar="SOCKET|HOST:PORT",
        help="also send the audit log's records to a syslog: a unix socket like /dev/log, or by UDP",
    )
    parser.add_argument(
        "--metrics",
        metavar="DATABASE",
        help="where the history of metrics is kept: local (VictoriaMetrics in the state folder), off,"
        " victoriametrics=URL, or prometheus=URL (default local, where VictoriaMetrics is installed)",
    )
    parser.add_argument(
        "--metrics-keep",
        metavar="DURATION",
        type=duration(86_400.0),
        default="31d",
        help="how long --metrics local keeps it (default 31d)",
    )
    parser.add_argument(
        "--metrics-interval",
        metavar="DURATION",
        type=duration(1.0),
        default="10s",
        help="how often it gets samples (default 10s)",
    )
    parser.add_argument(
        "--metrics-secret-file",
        metavar="FILE",
        type=Path,
        help="file with USER:PASSWORD, or a bearer token, for the database at the URL of --metrics",
    )
    parser.add_argument(
        "--alert-interval",
        metavar="DURATION",
        type=duration(1.0),
        default="10s",
        help="how often alert rules are evaluated (default 10s)",
    )
    parser.add_argument(
        "--log-size",
        metavar="SIZE",
        type=size(LEAST_BYTES),
        default=MOST_BYTES,
        help="disk space for what the server's own processes log, compressed; the oldest lines go first (default 256M)",
    )
    parser.add_argument(
        "--log-age",
        metavar="TIME",
        type=duration(60.0),
        default=MOST_AGE_SECONDS,
        help="how long such lines are kept (default 14d)",
    )
    parser.add_argument(
        "--log-otlp",
        metavar="URL",
        help="also send such lines to an OpenTelemetry collector, like http://127.0.0.1:4318",
    )
    parser.add_argument(
        "--traces",
        metavar="WHERE",
        default=LOCAL,
        help="where traces are kept: local (in the state folder), off, or otlp=URL: local, and sent to the OTLP collector at URL,"
        " like otlp=http://127.0.0.1:4318 (default local)",
    )
    parser.add_argument(
        "--traces-sample",
        metavar="PERCENT",
        type=percent,
        default="1%",
        help="how many requests that only read, and invocations of functions, are traced; people's writes always are (default 1%%)",
    )
    parser.add_argument(
        "--resume-elsewhere-after",
        metavar="DURATION",
        type=duration(),
        default="60s",
        help="how long a VM that was suspended for another workload waits for its own node before it may resume on another one"
        " (default 60s)",
    )
    parser.add_argument(
        "--oidc-issuer", metavar="URL", type=take_issuer, help="OIDC provider at which people may log in"
    )
    parser.add_argument(
        "--oidc-client", metavar="ID", default="weft", help="the server's client id there (default weft)"
    )
    parser.add_argument(
        "--oidc-secret-file", metavar="FILE", type=Path, help="file with the client's secret, if it has one"
    )
    parser.add_argument(
        "--oidc-ca", metavar="FILE", type=Path, help="the provider's CA certificates, if they are its own"
    )
    parser.add_argument(
        "--oidc-groups-claim",
        metavar="CLAIM",
        default="groups",
        help="claim that names a person's groups (default groups)",
    )
    parser.add_argument(
        "--oidc-name-claim",
        metavar="CLAIM",
        default="preferred_username",
        help="claim that a new user is named after (default preferred_username)",
    )
    parser.add_argument(
        "--oidc-scope", metavar="WORDS", default="openid profile", help="what is asked of it (default openid profile)"
    )
    parser.add_argument(
        "--network",
        metavar="CIDR",
        help="addresses of the network default of a new server (default 10.214.0.0/20)",
    )
    parser.add_argument("--context", type=Path, help="write the administrator's context to this file")
    return parser


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of ``weft server``; its three processes get the same ones."""
    parser = make_parser()
    options = parser.parse_args(argv)
    options.store = recall_store(options.state) if options.store is None else options.store
    if options.store not in (SQLITE, ETCD):
        try:
            find_endpoints(options.store)
        except WeftError as problem:
            parser.error(f"--store: {problem.message}; {problem.hint}")
    try:
        if options.network:
            read_cidr(options.network, "--network")
        options.audit_syslog = read_target(options.audit_syslog) if options.audit_syslog else None
        options.metrics, options.database = _read_metrics(options)
        if options.traces not in (LOCAL, NO_TRACES):
            read_collector(options.traces)
        if options.log_otlp:
            read_collector(options.log_otlp, "--log-otlp")
    except WeftError as problem:
        parser.error(f"{problem.message}; {problem.hint}")
    options.listen = options.listen or ["127.0.0.1:8443"]
    options.gateway = options.gateway or ["127.0.0.1:8444"]
    options.functions = options.functions or ["127.0.0.1:8445"]
    return options


def _read_metrics(options: argparse.Namespace) -> tuple[str, Database | None]:
    """The choice of --metrics, and the database that it names. Raises InvalidInput, Unavailable."""
    if options.metrics is None:
        return (OWN if shutil.which(PROGRAM) else OFF), None
    secret, path = "", options.metrics_secret_file
    if path is not None:
        try:
            secret = path.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            raise InvalidInput(
                f"--metrics-secret-file: {path} can't be read: {problem}", hint="name a file with one line of text"
            ) from None
    if options.metrics == OWN:
        require_program()
    return options.metrics, read_option(options.metrics, secret)


async def run_supervisor(options: argparse.Namespace, argv: Sequence[str], clock: Clock) -> None:
    """Keep the processes until SIGTERM or SIGINT; the controllers end first, then the gateway and the API server, and
    last databases of our own. Raises Unavailable when that isn't on this machine."""
    program = str(Path(sys.argv[0]).resolve())
    kept = keep_log(options.state, "supervisor", clock, listens=False)

    def supervise(name: str, plan: Sequence[str] | Callable[[], Command]) -> Supervisor:
        return Supervisor(name, plan, clock, note=lambda line: kept.put([(clock.now(), line)]))

    supervisors = [supervise("etcd", plan_etcd(options.state))] if options.store == ETCD else []
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
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    async with supervising(supervisors):
        await asked.wait()


def _plan_metrics(options: argparse.Namespace, evaluators: Sequence[Supervisor], clock: Clock) -> Command:
    """The command of the database; who asks it must learn its new address."""
    command = plan_database(options.state, options.metrics_keep, clock)
    for evaluator in evaluators:
        evaluator.restart()
    return command


def main(argv: Sequence[str]) -> int:
    """Run the supervisor, or the one named process, until a signal ends it; the exit status."""
    if argv and argv[0] in ("backup", "restore"):
        done: int = importlib.import_module("weft.launch.server.backup").main(argv[0], argv[1:])
        return done
    options = parse_options(argv)
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if options.process:
        module, name = PROCESSES[options.process]
        run: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), name)
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
            asyncio.run(run_supervisor(options, argv, SystemClock()))
    except WeftError as problem:
        print(f"weft server: {problem.message}\n{problem.hint}", file=sys.stderr)
        return 1
    return 0
