"""The traces of a server's processes: each records into a folder of its own under ``<state>/traces``, and the API server
gathers all."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from weft.contracts.clock import Clock
from weft.contracts.trace.span import Tracer
from weft.telemetry.collector import read_collector
from weft.telemetry.spool import Spool
from weft.telemetry.traces.export import SpanExporter
from weft.telemetry.traces.store import TraceStore

LOCAL, NO_TRACES = "local", "off"
GATHER_SECONDS, KEEP_SECONDS = 1.0, 10.0
_log = logging.getLogger("weft.traces")


class HasTraces(Protocol):
    """Options of a process: the state folder, and --traces."""

    state: Path
    traces: str


class ServerTraces:
    """``store`` and, if spans go to a collector, who sends them."""

    def __init__(self, store: TraceStore, exporter: SpanExporter | None, clock: Clock) -> None:
        self.store, self._exporter, self._clock = store, exporter, clock

    async def keep(self) -> None:
        """Gather what the processes record, for ever."""
        await keep_gathering("traces", self.store.gather, self.store.keep, self._clock, _log)

    def close(self) -> None:
        if self._exporter is not None:
            self._exporter.close()
        self.store.close()


def open_traces(options: argparse.Namespace, clock: Clock) -> ServerTraces | None:
    """Open the traces as --traces says; None: there are none."""
    if options.traces == NO_TRACES:
        return None
    exporter = None if options.traces == LOCAL else SpanExporter(read_collector(options.traces))
    folder: Path = options.state / "traces"
    on_new = exporter.put if exporter is not None else None
    return ServerTraces(TraceStore(folder / "store", folder / "processes", clock, on_new=on_new), exporter, clock)


def make_tracer(options: HasTraces, process: str, clock: Clock) -> Tracer | None:
    """Make the tracer of one of the server's processes, the only one with this name; None: nothing is traced."""
    if getattr(options, "traces", NO_TRACES) == NO_TRACES:
        return None
    return Tracer(process, clock, Spool(options.state / "traces" / "processes" / process).put)


async def keep_gathering(
    what: str, gather: Callable[[], None], keep: Callable[[], None], clock: Clock, log: logging.Logger
) -> None:
    """Gather once a second, and now and then ``keep``, for ever; an OSError of either is logged once."""
    kept_at, troubled = clock.elapsed(), False
    while True:
        await clock.sleep(GATHER_SECONDS)
        try:
            await asyncio.to_thread(gather)
            if clock.elapsed() - kept_at >= KEEP_SECONDS:
                kept_at = clock.elapsed()
                await asyncio.to_thread(keep)
            troubled = False
        except OSError as problem:
            if not troubled:
                log.warning("%s are not gathered: %s; tried again", what, problem)
            troubled = True
