"""The server's own database for metrics: a VictoriaMetrics that ``weft server --metrics local`` keeps in ``STATE/metrics``.

It listens on loopback, at a port that is chosen at each start, and asks for a password that is made at each start: other users of
the machine must not read all projects' metrics. Nor may they answer in its place while it restarts: it has a certificate of the
fabric's CA. Where it listens is in ``STATE/metrics/database.json`` (secret)."""

from __future__ import annotations

import importlib
import math
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.launch.process.supervisor import Command
from weft.objects.errors import Unavailable
from weft.telemetry.metrics.database import FILE, make_own

if TYPE_CHECKING:
    from weft.trust.ca import Authority

PROGRAM = "victoria-metrics"
MOST_POINTS = 11_000  # of one series in an answer, as in Prometheus
MOST_SECONDS = 10  # of one query
_DAY = 86_400.0
_MOST_DATA_BYTES = 2 << 30  # a query that needs more ends it; it starts again


def require_program() -> str:
    """Raises Unavailable where it isn't installed."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise Unavailable(f"--metrics local needs the program {PROGRAM}", hint=f"apt-get install {PROGRAM}")
    return program


def plan_database(state: Path, keep_seconds: float, clock: Clock) -> Command:
    """The command that runs it in the foreground; writes where it will listen, and its certificate; makes the fabric's CA if there
    is none yet. Raises Unavailable where it isn't installed."""
    folder = (state / "metrics").absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Imported where it is needed: cryptography is 9 MB in each process that has it.
    authority: Authority = importlib.import_module("weft.trust.ca").Authority(state, clock)
    chain, key = authority.renew_metrics(folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    password, page_key = secrets.token_hex(16), secrets.token_hex(16)
    write_durably(state / FILE, msgspec.json.encode(make_own(port, password, authority.ca, clock.now())), 0o600)
    argv = [
        require_program(),
        f"-storageDataPath={folder}/data",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-tls",
        f"-tlsCertFile={chain}",
        f"-tlsKeyFile={key}",
        f"-retentionPeriod={max(1, math.ceil(keep_seconds / _DAY))}d",
        "-memory.allowedBytes=256MB",
        "-loggerLevel=ERROR",
        "-http.maxGracefulShutdownDuration=1s",
        # The newest sample is shown at once: what comes later than its answer is asked for again.
        "-search.latencyOffset=0s",
        # A sample that comes again, of another server's history, is the same one.
        "-dedup.minScrapeInterval=1ms",
        f"-search.maxQueryDuration={MOST_SECONDS}s",
        f"-search.maxPointsPerTimeseries={MOST_POINTS}",
        "-search.maxSamplesPerQuery=200000000",
        "-search.maxUniqueTimeseries=200000",
        "-search.queryStats.lastQueriesCount=0",
        "-storage.maxHourlySeries=2000000",
        "-storage.maxDailySeries=5000000",
        "-storage.minFreeDiskSpaceBytes=100MB",
        "-envflag.enable",  # by the environment: a command line is everybody's to read
        "-envflag.prefix=WEFT_",
    ]
    # These pages need no password but a key of their own; nobody has it. A trace of all goroutines would be kilobytes of log.
    pages = {f"WEFT_{page}AuthKey": page_key for page in ("pprof", "flags", "metrics")}
    own = {"WEFT_httpAuth_username": "weft", "WEFT_httpAuth_password": password, "GOTRACEBACK": "none"}
    environ = {**os.environ, **pages, **own}
    return Command(argv, environ, _MOST_DATA_BYTES)
