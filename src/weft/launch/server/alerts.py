"""The evaluator of alert rules: a vmalert that ``weft server`` keeps beside the database for metrics.

It asks that database, and keeps there since when conditions hold, so that a restart begins no waiting anew. It listens on
loopback at a port that is chosen at each start, with a certificate of the fabric's CA and a password. It notifies nobody: the
controllers read its states. Where it listens is in ``STATE/metrics/alerts/evaluator.json`` (secret)."""

from __future__ import annotations

import base64
import importlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.controllers.alert.controller import Unevaluated
from weft.launch.process.supervisor import Command, Supervisor
from weft.objects.errors import Unavailable
from weft.telemetry.metrics.database import OFF, Database, find_database, make_own
from weft.telemetry.metrics.evaluator import FOLDER, find_rules, save_evaluator

if TYPE_CHECKING:
    from weft.trust.ca import Authority

PROGRAM = "vmalert"
_MOST_DATA_BYTES = 1 << 30
_FALLBACK_SECONDS = 60.0  # that a sample counts as the newest: gaps of this length end no alert


def find_unfit(metrics: str, database: Database | None) -> Unevaluated | None:
    """Why alert rules can't be evaluated with this choice of ``--metrics``; None: they can."""
    if metrics == OFF:
        return Unevaluated("metricsOff", "nothing evaluates alert rules: this server keeps no history (--metrics off)")
    if database is not None and database.kind != "victoriametrics":
        return Unevaluated("databaseUnfit", "nothing evaluates alert rules: a Prometheus can't tell projects apart")
    if shutil.which(PROGRAM) is None:
        return Unevaluated(
            "noEvaluator", f"nothing evaluates alert rules: {PROGRAM} is missing (apt-get install victoria-metrics)"
        )
    return None


def supervise_evaluator(state: Path, named: Database | None, interval: float, clock: Clock) -> Supervisor:
    """Starts it once the database takes connections. With a new address of the database it must be restarted."""
    return Supervisor("alerts", lambda: plan_evaluator(state, named, interval, clock), clock, _await(state, named))


def _await(state: Path, named: Database | None) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            parts = urlsplit(find_database(state, named).url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=0.5).close()
        except (OSError, Unavailable):
            return False
        return True

    return answers


def plan_evaluator(state: Path, named: Database | None, interval: float, clock: Clock) -> Command:
    """The command that runs it in the foreground; writes where it will listen. Raises Unavailable, OSError."""
    database, folder = find_database(state, named), (state / FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority: Authority = importlib.import_module("weft.trust.ca").Authority(state, clock)
    chain, key = authority.renew_metrics(folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    password = secrets.token_hex(16)
    save_evaluator(state, make_own(port, password, authority.ca))
    write_durably(folder / "notifiers.json", b'{"static_configs":[]}')
    argv = [
        shutil.which(PROGRAM) or PROGRAM,
        f"-rule={find_rules(state)}",
        f"-notifier.config={folder}/notifiers.json",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-tls",
        f"-tlsCertFile={chain}",
        f"-tlsKeyFile={key}",
        f"-evaluationInterval={interval:g}s",
        "-configCheckInterval=1s",
        # What the database says of an expression is its rule's error, and keeps no other rule from being evaluated.
        "-rule.validateExpressions=false",
        "-rule.validateTemplates=false",
        "-datasource.queryTimeAlignment=false",
        f"-datasource.queryStep={_FALLBACK_SECONDS:g}s",
        "-remoteRead.lookback=192h",
        "-remoteWrite.flushInterval=1s",
        "-remoteWrite.maxQueueSize=50000",
        "-memory.allowedBytes=64MB",
        "-loggerLevel=FATAL",
        "-http.maxGracefulShutdownDuration=1s",
        "-envflag.enable",  # by the environment: a command line is everybody's to read
        "-envflag.prefix=WEFT_",
    ]
    own = {"WEFT_httpAuth_username": "weft", "WEFT_httpAuth_password": password, "GOTRACEBACK": "none"}
    page_key = secrets.token_hex(16)
    pages = {f"WEFT_{page}AuthKey": page_key for page in ("pprof", "flags", "metrics")}
    return Command(argv, {**os.environ, **own, **pages, **_reach(database, folder)}, _MOST_DATA_BYTES)


def _reach(database: Database, folder: Path) -> dict[str, str]:
    """The options by which it reads and writes the database."""
    scheme, _, secret = database.authorization.partition(" ")
    options = {"url": database.url}
    if scheme == "Basic":
        user, _, password = base64.b64decode(secret).decode().partition(":")
        options |= {"basicAuth_username": user, "basicAuth_password": password}
    elif scheme == "Bearer":
        options["bearerToken"] = secret
    if database.ca:
        write_durably(folder / "ca.crt", database.ca.encode())
        options |= {"tlsCAFile": f"{folder}/ca.crt", "tlsServerName": database.name}
    return {
        f"WEFT_{part}_{name}": value
        for part in ("datasource", "remoteWrite", "remoteRead")
        for name, value in options.items()
    }
