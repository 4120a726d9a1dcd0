"""TLS connections that are lost and closed while their reader holds more than it reads: what came is read all the same."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import uvloop

from weft.contracts.clock import SystemClock
from weft.objects.identity import SERVER_NAME
from weft.protocol.tls_streams import LIMIT_BYTES, listen_for_streams, open_stream
from weft.serving.server import make_server_tls
from weft.trust.ca import Authority

MANY = b"x" * (8 * LIMIT_BYTES)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=request.param)


@pytest.mark.parametrize("reading", ["who dialled", "who was dialled"])
def test_what_came_is_read_after_the_connection_was_lost_and_closed(
    tmp_path: Path, runner: asyncio.Runner, reading: str
) -> None:
    async def run() -> None:
        authority = Authority(tmp_path, SystemClock())
        tls = make_server_tls(*authority.renew_server([]), authority.ca_path)
        taken: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        server = await listen_for_streams(lambda *pair: taken.put_nowait(pair), "127.0.0.1", 0, tls, 10)
        port = server.sockets[0].getsockname()[1]
        dialled = await open_stream("127.0.0.1", port, ssl.create_default_context(cadata=authority.ca), SERVER_NAME)
        reads, writes = (dialled, await taken.get()) if reading == "who dialled" else (await taken.get(), dialled)
        try:
            writes[1].write(MANY)
            while not reads[0]._paused:  # type: ignore[attr-defined]  # it has told its peer to wait
                await asyncio.sleep(0.01)
            writes[1].transport.abort()
            reads[1].transport.abort()
            while not reads[1].is_closing():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            reads[1].close()
            reads[1].close()
            reads[1].write(b"nobody hears this")
            assert len(await reads[0].readexactly(2 * LIMIT_BYTES)) == 2 * LIMIT_BYTES
            assert set(await reads[0].read(-1)) <= set(b"x")
        finally:
            server.close()

    with runner:
        runner.run(run())
