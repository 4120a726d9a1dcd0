"""The API servers as a process over a real etcd: either may be killed, and clients never lose what was acknowledged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.api_lab import make_vm, run_together
from tests.scenario.people.test_people import is_refused, wait_until
from tests.scenario.server.servers_lab import Server
from tests.scenario.server.test_api_process import ApiProcess

from weft.client import Client
from weft.objects.errors import NotAuthenticated, WeftError


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


def test_two_api_servers_over_one_etcd_decide_as_one(tmp_path: Path, etcd: EtcdServer) -> None:
    servers = [ApiProcess(tmp_path / name, "--server", name, "--store", etcd.url) for name in ("s1", "s2")]
    again: Server | None = None
    try:
        servers[0].start()
        clients = [servers[0].connect()]
        for state in (servers[1].state, tmp_path / "again"):
            state.mkdir()
            for key in ("ca.key", "ca.crt", "seal.key", "ticket.key"):
                shutil.copy(servers[0].state / key, state / key)
        servers[1].start()
        again = Server(tmp_path / "again", "--server", "s1", "--store", f"etcd://{etcd.endpoint}")
        clients.append(servers[1].connect())
        clients[0].create({"kind": "image", "name": "tiny", "spec": {"url": "file:///srv/tiny.tar"}})
        clients[0].create({"kind": "quota", "name": "project", "spec": {"instances": 3}})
        wanted = [make_vm(f"v{n % 6}", networks=[]) for n in range(12)]
        raced = run_together(*(lambda n=n, one=one: clients[n % 2].create(one) for n, one in enumerate(wanted)))
        assert sum(not isinstance(one, WeftError) for one in raced) == 3
        made = [one["name"] for one in raced if not isinstance(one, WeftError)]
        assert len(set(made)) == 3 and [vm["name"] for vm in clients[1].list("vm").items] == sorted(made)
        secret = clients[0].create({"kind": "token", "name": "t", "spec": {"use": "access", "role": "viewer"}})[
            "secret"
        ]
        other = Client(msgspec.structs.replace(clients[1].context, token=secret))
        assert len(other.list("vm").items) == 3
        clients[0].delete("token", "t")
        wait_until(lambda: is_refused(lambda: other.list("vm"), NotAuthenticated))
        assert again.process.wait(60) == 2, again.read_log()  # two servers can't have one name
        log = again.read_log()
        assert log.count("another server of this fabric is called s1") == 1 and "restarting" not in log
    finally:
        if again is not None:
            again.kill()
        for server in servers:
            for process in server.processes:
                process.kill()
                process.communicate()
