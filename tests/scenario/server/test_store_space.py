"""A server whose etcd has used up its quota says so, and takes writes again when that was history."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM, EtcdServer
from tests.scenario.server.servers_lab import WEFT, fabric_in, tried
from tests.scenario.server.test_server_log import until

from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.launch.process.supervisor import Supervisor, supervising
from weft.launch.store.engine import ETCD, make_store, refill_store, running
from weft.launch.store.etcd import plan_etcd
from weft.objects.errors import StoreUnavailable

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")


def test_a_full_store_says_so_and_has_space_again_without_its_history_or_with_a_larger_quota(tmp_path: Path) -> None:
    with fabric_in(tmp_path, "etcd", ("--store-quota", "16M")) as fabric:
        fabric.begin()
        client = fabric.client("s1")

        def write(name: str, number: int) -> bool:
            values = {"a": f"{number:06}" + "x" * 60_000}
            return bool(client.put({"kind": "secret", "name": name, "spec": {"values": values}}))

        with pytest.raises(StoreUnavailable, match="has used up its quota") as refused:
            for number in range(2_000):
                write("large", number)
        assert refused.value.reason == "storeFull" and "--store-quota" in refused.value.hint
        assert client.get("secret", "large")["name"] == "large"  # reads go on
        until(lambda: tried(lambda: write("large", 0)))
        words = [*WEFT, "server", "describe", "s1", "--context", str(tmp_path / "s1" / "context.json")]

        def shown() -> str:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout

        until(lambda: all(word in shown() for word in ("StoreFull", "StoreHasSpace", "quota 16 MiB")))

        with pytest.raises(StoreUnavailable, match="has used up its quota"):
            for number in range(2_000):  # all of this is needed
                write(f"s{number}", number)
        server = fabric.servers["s1"]
        server.kill()
        words = [*WEFT, "server", "backup", str(tmp_path / "saved"), "--state", str(server.state)]
        subprocess.run(words, capture_output=True, check=True)
    with fabric_in(tmp_path, "etcd", ("--store-quota", "64M")) as fabric:
        fabric.begin()
        client = fabric.client("s1")
        until(lambda: tried(lambda: write("large", 1)))


async def test_a_full_etcd_of_a_stopped_server_is_filled_with_another_content(tmp_path: Path) -> None:
    clock, values = SystemClock(), [Put(f"/secret/{number}", b"x" * 240_000) for number in range(4)]
    async with supervising([Supervisor("etcd", [*plan_etcd(tmp_path, 16 << 20)], clock)]):
        store = make_store(ETCD, tmp_path, clock)
        await store.open()
        with pytest.raises(StoreUnavailable, match="has used up its quota"):
            while True:
                await store.commit(values)
        await store.close()
    await refill_store(ETCD, tmp_path, clock, [("/secret/new", b"{}")], 7)
    async with running(ETCD, tmp_path, clock):
        store = make_store(ETCD, tmp_path, clock)
        await store.open()
        await store.commit([Put("/secret/more", b"{}")])
        assert [entry.key for entry in (await store.list("/")).entries] == ["/secret/more", "/secret/new"]
        await store.close()


def test_an_etcd_of_the_user_s_own_is_only_looked_at(tmp_path: Path, etcd: EtcdServer) -> None:
    with fabric_in(tmp_path, etcd.url) as fabric:
        fabric.begin()
        client = fabric.client("s1")
        use = until(lambda: tried(lambda: client.get("server", "s1")["status"]["store"]))
        assert use["size"] >= use["used"] > 0 and "quota" not in use
