"""``/metrics`` of the API server and of an agent, as a Prometheus scrapes them."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.scenario.api_lab import DoorsLab

from weft.agent.metrics.listener import make_listener
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.protocol.heartbeat import Digest, Use


def test_the_server_counts_requests_and_nodes_for_those_who_may_see_all(tmp_path: Path) -> None:
    lab = DoorsLab(tmp_path)
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


def test_an_agent_tells_of_its_node_and_nothing_else(tmp_path: Path) -> None:
    folder, capacity = str(tmp_path), Capacity(4.0, 2**33, 2**40)
    host = Host("n1", "u1", folder, folder, "w", "127.0.0.1", "lo", "weft/test", capacity)

    async def go() -> None:
        read = Digest({"w": Use(250, 5, 6)}, Use(50, 1, 1))
        listener = make_listener("127.0.0.1", 0, host, AllocationTable(), lambda: read, SystemClock())
        listener.start()
        try:
            place = f"http://127.0.0.1:{listener.ports[0]}"

            def fetch(path: str, method: str = "GET") -> bytes:
                with urllib.request.urlopen(urllib.request.Request(place + path, method=method), timeout=10) as answer:
                    return bytes(answer.read())

            assert await asyncio.to_thread(fetch, "/healthz") == b"ok\n"
            lines = (await asyncio.to_thread(fetch, "/metrics")).decode().splitlines()
            assert "weft_node_cpu_cores 4.0" in lines and "weft_node_cpu_used_cores 0.3" in lines
            for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405)):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    await asyncio.to_thread(fetch, path, method)
                assert refused.value.code == status
        finally:
            await listener.close()

    asyncio.run(go())
