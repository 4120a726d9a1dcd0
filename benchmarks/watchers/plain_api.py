"""The API server without TLS, for the plain side of the benchmark alone: ``python -m benchmarks.watchers.plain_api STATE``."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from weft.api.app import build_app
from weft.api.bootstrap import bootstrap
from weft.api.context import ApiContext, Settings
from weft.api.server import make_api_server
from weft.contracts.clock import SystemClock
from weft.serving.server import listen
from weft.store.sqlite import SqliteStore
from weft.telemetry.audit.log import AuditLog
from weft.telemetry.journal import SqliteJournal
from weft.trust.ca import Authority


async def serve(state: Path) -> None:
    clock = SystemClock()
    socket = listen("127.0.0.1", 0)
    store = SqliteStore(state / "store.db", clock)
    await store.open()
    journal = SqliteJournal(state / "journal.db", clock)
    settings = Settings(blobs=state, ticket_key=b"0" * 32, gateways=("127.0.0.1:1",), server_name="weft-server")
    audit = AuditLog(state / "audit", clock)
    audit.open()
    api = ApiContext(store, journal, clock, Authority(state, clock), settings, audit)
    server = make_api_server(build_app(api), [socket], None, clock)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    api.start()
    server.start()
    url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    await bootstrap(api, state / "context.json", url)
    await stop.wait()
    await api.stop()
    await server.close()
    journal.close()
    await store.close()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
