"""``/metrics`` of the API server and of an agent, as a Prometheus scrapes them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab

from weft.agent.metrics.listener import make_listener
from weft.agent.server.line import ServerLine
from weft.agent.server.outbox import Outbox
from weft.agent.server.readiness import ReadinessSource
from weft.agent.state.table import AllocationTable
from weft.agent.state.wall_clock import WallClock
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.objects.identity import Ref
from weft.protocol.heartbeat import Digest, Use
from weft.serving.server import listen, listen_at


def test_the_server_counts_requests_and_nodes_for_those_who_may_see_all(tmp_path: Path) -> None:
    lab = ApiLab(tmp_path)
    try:
        lab.join("n1").client.http.request("POST", "/v1/nodes/n1:report", {"digest": {"guests": {"u": [1500, 7, 8]}}})
        lab.client.http.request("GET", "/v1/nowhere")
        lines = lab.client.http.request("GET", "/metrics").body.decode().splitlines()
        assert 'weft_api_requests_total{method="GET",code="404"} 1' in lines
        assert "weft_nodes_reporting 1" in lines and "weft_used_cpu_cores 1.5" in lines
        limited = lab.with_token(use="access", role="admin", project="default")
        assert limited.http.request("GET", "/metrics").status == 403
    finally:
        lab.close()


def fetch_at(socket_path: Path, path: str) -> bytes:
    """The body of an answer at a unix socket."""
    connection = http.client.HTTPConnection("agent")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(socket_path))
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


def test_an_agent_tells_of_its_node_and_nothing_else(tmp_path: Path) -> None:
    folder, capacity = str(tmp_path), Capacity(4.0, 2**33, 2**40)
    host = Host("n1", "u1", folder, folder, "w", "127.0.0.1", "lo", "weft/test", capacity)

    async def go() -> None:
        read = Digest({"w": Use(250, 5, 6)}, Use(50, 1, 1))
        clock, socket_path = SystemClock(), tmp_path / "agent.sock"
        socket_path.write_text("of an agent that was killed")
        line, wall = ServerLine(clock), WallClock(tmp_path, clock)
        reporter: Any = SimpleNamespace(outbox=Outbox(tmp_path, clock, wall), answered_at=clock.elapsed() - 30.0)
        readiness = ReadinessSource(host, line, reporter, wall, clock)
        sockets = [listen("127.0.0.1", 0), listen_at(socket_path)]
        listener = make_listener(sockets, host, AllocationTable(), lambda: read, readiness, clock)
        listener.start()
        try:
            place = f"http://127.0.0.1:{listener.ports[0]}"

            def fetch(path: str, method: str = "GET") -> bytes:
                with urllib.request.urlopen(urllib.request.Request(place + path, method=method), timeout=10) as answer:
                    return bytes(answer.read())

            assert await asyncio.to_thread(fetch, "/healthz") == b"ok\n"
            lines = (await asyncio.to_thread(fetch, "/metrics")).decode().splitlines()
            assert "weft_node_cpu_cores 4.0" in lines and "weft_node_cpu_used_cores 0.3" in lines
            with pytest.raises(urllib.error.HTTPError) as unready:
                await asyncio.to_thread(fetch, "/readyz")
            assert unready.value.code == 503, "its guests aren't known yet"
            readiness.has_started = True
            here = msgspec.json.decode(await asyncio.to_thread(fetch_at, socket_path, "/readyz"))
            assert socket_path.stat().st_mode & 0o777 == 0o600
            assert 30.0 <= here.pop("contact_age_seconds") < 60.0 and here["disk"].pop("total") > here["disk"].pop(
                "free"
            )
            assert here.pop("clock").keys() == {"now", "behind", "synchronized"}
            assert here == {
                "node": "n1",
                "ready": True,
                "offline_since": None,
                "outbox": {"events": 0, "bytes": 0, "dropped": 0},
                "disk": {},
            }
            line.note_failure()
            reporter.outbox.put("Warning", "GuestEnded", "m", Ref("vm", "web", "u", "default"))
            away = msgspec.json.decode(await asyncio.to_thread(fetch, "/readyz"))
            assert away["outbox"]["events"] == 1
            assert away["offline_since"] == pytest.approx(clock.now() - away["contact_age_seconds"], abs=5.0)
            for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405)):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    await asyncio.to_thread(fetch, path, method)
                assert refused.value.code == status
        finally:
            await listener.close()

    asyncio.run(go())
