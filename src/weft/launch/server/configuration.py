"""The settings of ``weft server``: flags, variables ``WEFT_SERVER_…``, and the file ``/etc/weft/server.yaml``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO, TypeVar

from weft.client.small_file import read_small
from weft.contracts.confinement.public_address import PUBLIC_ONLY
from weft.gateway.stream.origins import read_origin
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
from weft.launch.process.settings import (
    CONFIG,
    Program,
    Setting,
    Settings,
    add_show,
    find_settings,
    locate,
    show_settings,
)
from weft.launch.server.membership.address import FILE as FILE_OF_ADDRESS
from weft.launch.server.membership.address import list_places
from weft.launch.server.metrics import PROGRAM, require_program
from weft.launch.server.traces import LOCAL, NO_TRACES
from weft.launch.store.engine import OWN_ETCDS, WORDS, find_endpoints, is_remembered, recall_store
from weft.launch.store.etcd import QUOTA_BYTES
from weft.objects.errors import InvalidInput
from weft.telemetry.audit.log import FILE_BYTES
from weft.telemetry.audit.target import read_target
from weft.telemetry.collector import read_collector
from weft.telemetry.logs.server import MOST_BYTES
from weft.telemetry.logs.store import LEAST_BYTES, MOST_AGE_SECONDS
from weft.telemetry.metrics.database import OFF, OWN, Database, read_option

T = TypeVar("T")
FILE = Path("/etc/weft/server.yaml")
SETTINGS = Program(
    command="weft server",
    title="the server",
    example="audit_keep: 90d",
    find_file=lambda *_: FILE,
    not_in_file=(CONFIG,),
)
PROCESSES = ("api", "controllers", "gateway")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of ``weft server``."""
    parser = Parser(
        prog="weft server",
        description="Run the weft server in the foreground.",
        epilog="Flags override variables (WEFT_SERVER_AUDIT_KEEP for --audit-keep), and these the file /etc/weft/server.yaml"
        " (audit_keep: 90d). weft server config --show-origin shows what is in force."
        " weft server backup FILE and weft server restore FILE save and restore its data. weft server join URL makes this machine"
        " another server of a fabric; weft server list, describe and delete show and remove its servers.",
    )
    parser.add_argument("process", nargs="?", choices=PROCESSES, help="run only this process of the server")
    parser.add_argument("--state", type=Path, help="folder for the server's data; it must be given")
    parser.add_argument(
        "--server",
        metavar="NAME",
        help="this server's name among those of its fabric (default: as before; s1 for a new server)",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"a file with settings (default {FILE}, if there is one)"
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help="where objects are kept: sqlite or etcd (in the state folder), members (an etcd of which each server keeps a"
        " member, from weft server init), or etcd://HOST:PORT[,HOST:PORT…]"
        " (default: as before; sqlite for a new server)",
    )
    parser.add_argument(
        "--store-quota",
        metavar="SIZE",
        type=size(16 << 20),
        default=QUOTA_BYTES,
        help="how large the etcd of --store etcd or members may become before it takes no writes; the same at all servers"
        " (default 4G)",
    )
    parser.add_argument(
        "--listen",
        action="append",
        default=["127.0.0.1:8443"],
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where the API listens (repeatable; default 127.0.0.1:8443)",
    )
    parser.add_argument(
        "--gateway",
        action="append",
        default=["127.0.0.1:8444"],
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where exec, console and log streams connect (default 127.0.0.1:8444)",
    )
    parser.add_argument(
        "--functions",
        action="append",
        default=["127.0.0.1:8445"],
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
        action="store_true",
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


def parse_options(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """The settings of ``weft server``; its three processes get the same ones. Raises InvalidInput or Unavailable; argparse ends the
    process for a wrong flag."""
    options, settings = find_settings(SETTINGS, make_parser(), argv, environ)
    _place(settings)
    for name, setting in settings.items():
        setattr(options, name, setting.value)
    if options.state is None:
        raise InvalidInput(
            "weft server: the folder for its data is missing",
            field="state",
            hint=f"give --state DIR, or write state: DIR into {FILE}",
        )
    if options.store is None or (
        options.process and is_remembered(options.state)
    ):  # one started again goes on in the present one
        options.store = recall_store(options.state)
    if options.fetch_public_only:
        options.allow_fetch = [*options.allow_fetch, PUBLIC_ONLY]
    if options.store not in WORDS:
        _check("store", settings, lambda: find_endpoints(options.store))
    if options.network:
        _check("network", settings, lambda: read_cidr(options.network, "network"))
    if options.audit_syslog:
        options.audit_syslog = _check("audit_syslog", settings, lambda: read_target(options.audit_syslog))
    options.metrics, options.database = _check("metrics", settings, lambda: _read_metrics(options))
    if options.traces not in (LOCAL, NO_TRACES):
        _check("traces", settings, lambda: read_collector(options.traces))
    options.unused = _list_unused(options, settings)
    if options.log_otlp:
        _check("log_otlp", settings, lambda: read_collector(options.log_otlp, "--log-otlp"))
    return options


def _place(settings: Settings) -> None:
    """Have a server listen at the address that it was given when its folder was made, where nothing else says otherwise."""
    state = settings["state"].value
    for name, places in (list_places(Path(state)) if state is not None else {}).items():
        if settings[name].origin == "default":
            settings[name] = Setting(places, ",".join(places), f"file {Path(state) / FILE_OF_ADDRESS}")


def _list_unused(options: argparse.Namespace, settings: Settings) -> list[str]:
    """A sentence for each setting that was given, and does nothing beside the others."""
    oidc = [name for name in settings if name.startswith("oidc_") and name != "oidc_issuer"]
    reasons = {
        "store_quota": "" if options.store in OWN_ETCDS else "only an etcd of the server's own has a quota of weft's",
        "metrics_keep": "" if options.metrics == OWN else "it is for --metrics local",
        "metrics_secret_file": "" if options.database else "--metrics names no database at a URL",
        "metrics_interval": "" if options.metrics != OFF else "no history is kept: --metrics is off",
        "alert_interval": "" if options.metrics != OFF else "no alert is evaluated: --metrics is off",
        "traces_sample": "" if options.traces != NO_TRACES else "no trace is kept: --traces is off",
        **dict.fromkeys(oidc, "" if options.oidc_issuer else "--oidc-issuer is not given"),
    }
    return [
        locate(InvalidInput(f"has no effect: {why}", field=name), settings).message
        for name, why in reasons.items()
        if why and settings[name].origin != "default"
    ]


def _check(name: str, settings: Settings, read: Callable[[], T]) -> T:
    """Return what ``read`` makes of a setting. Raises InvalidInput with its place."""
    try:
        return read()
    except InvalidInput as problem:
        message = problem.message.removeprefix(f"--{name.replace('_', '-')}: ")
        raise locate(InvalidInput(message, field=name, hint=problem.hint), settings) from None


def show_configuration(argv: Sequence[str], environ: Mapping[str, str] = os.environ, out: TextIO = sys.stdout) -> int:
    """``weft server config [--show-origin] [-o json] [FLAG…]``: the settings that the server would run with."""
    parser = make_parser()
    parser.prog, parser.description = "weft server config", "Show the settings that the server runs with."
    options, settings = find_settings(SETTINGS, parser, argv, environ, add_show(parser))
    _place(settings)
    show_settings(settings, out, show_origin=options.show_origin, output=options.output)
    return 0


def _read_metrics(options: argparse.Namespace) -> tuple[str, Database | None]:
    """The choice of --metrics, and the database that it names. Raises InvalidInput, Unavailable."""
    if options.metrics is None:
        return (OWN if shutil.which(PROGRAM) else OFF), None
    secret, path = "", options.metrics_secret_file
    if path is not None:
        try:
            secret = read_small(path)
        except (OSError, UnicodeDecodeError) as problem:
            raise InvalidInput(
                f"--metrics-secret-file: {path} can't be read: {problem}", hint="name a file with one line of text"
            ) from None
    if options.metrics == OWN:
        require_program()
    return options.metrics, read_option(options.metrics, secret)
