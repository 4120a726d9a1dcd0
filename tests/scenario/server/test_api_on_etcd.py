"""The API server as a process over a real etcd: either may be killed, and clients never lose what was acknowledged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.server.servers_lab import Server, fabric_in
from tests.scenario.server.test_api_process import ApiProcess


@pytest.fixture
def api(tmp_path: Path, etcd: EtcdServer) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path / "state", "--store", etcd.url) as api:
        yield api


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


def test_a_second_server_of_a_name_ends_with_one_sentence(tmp_path: Path, etcd: EtcdServer) -> None:
    state = tmp_path / "again"
    with fabric_in(tmp_path, etcd.url) as fabric:
        fabric.begin()
        state.mkdir()
        for key in ("ca.key", "ca.crt", "seal.key", "ticket.key"):
            shutil.copy(tmp_path / "s1" / key, state / key)
        again = Server(state, "--server", "s1", "--store", etcd.url)
        try:
            assert again.process.wait(60) == 2, again.read_log()
        finally:
            again.kill()
        log = again.read_log()
        assert log.count("another server of this fabric is called s1") == 1 and "restarting" not in log
