"""The API server as a process over a real etcd: either may be killed, and clients never lose what was acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.server.test_api_process import ApiProcess


@pytest.fixture
def api(tmp_path: Path, etcd: EtcdServer) -> Iterator[ApiProcess]:
    api = ApiProcess(tmp_path / "state", "--store", etcd.url)
    yield api
    for process in api.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_api_servers_live_through_a_kill_of_etcd_and_their_own(api: ApiProcess, etcd: EtcdServer) -> None:
    first = api.start()
    client = api.connect()
    client.create({"kind": "volume", "name": "a", "spec": {"size": "1G"}})
    events = client.watch_forever("volume")
    assert [event.type for event in (next(events), next(events))] == ["put", "synced"]
    etcd.end()
    etcd.start()
    client.create({"kind": "volume", "name": "b", "spec": {"size": "1G"}}, idempotency_key="b")
    assert next(events).object["name"] == "b"
    assert first.poll() is None
    first.kill()
    first.wait()
    api.start()
    client.create({"kind": "volume", "name": "c", "spec": {"size": "1G"}}, idempotency_key="c")
    assert [v["name"] for v in client.list("volume").items] == ["a", "b", "c"]
    assert next(events).object["name"] == "c"
    assert not (api.state / "store.db").exists()
    client.close()
