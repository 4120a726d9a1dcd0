"""The log of the server itself: each of its processes writes into a folder of its own under ``<state>/logs``, and the API server
gathers all."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path

from weft.contracts.clock import Clock
from weft.launch.server.traces import keep_gathering
from weft.telemetry.collector import read_collector
from weft.telemetry.logs.export import PATH, LogExporter
from weft.telemetry.logs.server import KeptLog, ServerLog

_log = logging.getLogger("weft.logs")


def keep_log(state: Path, process: str, clock: Clock, *, listens: bool = True) -> KeptLog:
    """Keeps what this process logs, the only one with this name; with ``listens``, by all its loggers."""
    kept = KeptLog(state / "logs" / "processes" / process, clock)
    if listens:
        logging.getLogger().addHandler(kept)
    return kept


class ServerLogs:
    """``log`` is what all processes logged; ``exporter`` sends it to a collector."""

    def __init__(self, log: ServerLog, exporter: LogExporter | None, clock: Clock) -> None:
        self.log, self._exporter, self._clock = log, exporter, clock

    async def keep(self) -> None:
        """Gather, for ever."""
        if self._exporter is not None:
            await asyncio.to_thread(self.log.gather)
            self._exporter.begin()
        await keep_gathering("the server's logs", self.log.gather, self.log.keep, self._clock, _log)

    def close(self) -> None:
        if self._exporter is not None:
            self._exporter.close()
        self.log.close()


def open_logs(options: argparse.Namespace, clock: Clock) -> ServerLogs:
    """Open the logs as --log-size, --log-age and --log-otlp say."""
    folder: Path = options.state / "logs"
    log = ServerLog(folder / "store", folder / "processes", clock, options.log_size, options.log_age)
    exporter = None
    if options.log_otlp:
        url = read_collector(options.log_otlp, "--log-otlp", PATH)
        exporter = LogExporter(log.store, url, folder / "exported.json", "server", clock)
    return ServerLogs(log, exporter, clock)
