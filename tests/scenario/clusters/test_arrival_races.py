"""Two that want one address or one MAC at the same moment, of which at least one migrates here from another cluster: both are
between check and commit, and exactly one gets it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.controllers_lab import DIGEST, MIB
from tests.scenario.two_clusters_lab import Cluster, two_clusters

from weft.client.cluster.peer import connect_peer
from weft.contracts.store import Precondition, Write
from weft.informer.addresses import choose_mac
from weft.kinds.parts.nic import mac_of
from weft.objects.errors import WeftError

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[tuple[Cluster, Cluster]]:
    with two_clusters(tmp_path, []) as sides:
        yield sides


class Gate:
    """Holds the commits at the store of ``cluster`` that write keys of which ``holds`` says so, until ``count`` are there."""

    def __init__(
        self, cluster: Cluster, patch: pytest.MonkeyPatch, holds: Callable[[set[str]], bool], count: int
    ) -> None:
        self._loop, self._inner = cluster.side.loop, cluster.side.store.commit
        self._holds, self._count = holds, count
        self._open, self.arrived = asyncio.Event(), 0
        patch.setattr(cluster.side.store, "commit", self._commit)

    async def _commit(self, writes: Sequence[Write], preconditions: Sequence[Precondition] = (), **more: Any) -> int:
        if not self._open.is_set() and self._holds({write.key for write in writes}):
            self.arrived += 1
            if self.arrived >= self._count:
                self._open.set()
            await asyncio.wait_for(self._open.wait(), 30.0)
        return await self._inner(writes, preconditions, **more)

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)


def writes_arrival(keys: set[str]) -> bool:
    return any(key.startswith("/arrival/") for key in keys)


class Arriving:
    """What east asks of west for VMs that migrate there."""

    def __init__(self, east: Cluster, west: Cluster) -> None:
        self._link = east.side.peer("west")
        network = west.client.get("network", "default", project="default")
        self.network_uid, self.cidr = network["uid"], network["spec"]["cidr"]
        self.first = str(ipaddress.ip_network(self.cidr)[2])  # that west gives
        self.fixed = str(ipaddress.ip_network(self.cidr)[70])
        self.other = str(ipaddress.ip_network(self.cidr)[71])

    def create(self, name: str, mac: str, address: str, *, chosen: bool = False) -> dict[str, Any]:
        network = f"default:{address}" if chosen else "default"
        spec = {
            "of": f"vm/{name}",
            "origin": f"o-{name}",
            "key": f"k-{name}",
            "workload": {"image": "tiny", "memory": 128 * MIB, "networks": [network]},
            "disk": 64 * MIB,
            "nics": [{"network": "default", "cidr": self.cidr, "mac": mac, "address": address}],
            "image": DIGEST,
            "node": "e1",
            "node_uid": "n",
            "allocation": f"s-{name}",
        }
        client = connect_peer(self._link).ask_for("default")
        try:
            return client.create({"kind": "arrival", "name": f"{name}-m", "project": "default", "spec": spec})
        finally:
            client.close()


def race(*acts: Callable[[], Any]) -> tuple[list[Any], list[WeftError]]:
    """The results of those that succeeded, and the refusals of the others."""
    with ThreadPoolExecutor(len(acts)) as pool:
        ended = [pool.submit(act) for act in acts]
    failed = [one.exception() for one in ended]
    assert all(one is None or isinstance(one, WeftError) for one in failed), failed
    refused = [one for one in failed if isinstance(one, WeftError)]
    return [one.result() for one, problem in zip(ended, failed, strict=True) if problem is None], refused


def list_macs(cluster: Cluster) -> list[str]:
    return [endpoint.mac for endpoint in cluster.side.run(cluster.lab.endpoints())]


@pytest.mark.parametrize("what", ["mac", "address", "chosen"])
def test_of_two_vms_that_arrive_with_one_mac_or_address_the_other_is_told_who_has_it(
    clusters: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    east, west = clusters
    arriving = Arriving(east, west)
    chosen = what == "chosen"
    macs = (MACS[0],) * 2 if what == "mac" else (mac_of(arriving.fixed),) * 2 if chosen else MACS
    places = (arriving.fixed, arriving.other if what == "mac" else arriving.fixed)
    gate = Gate(west, monkeypatch, writes_arrival, 2)
    (made,), (refused,) = race(
        lambda: arriving.create("one", macs[0], places[0], chosen=chosen),
        lambda: arriving.create("two", macs[1], places[1], chosen=chosen),
    )
    assert gate.arrived == 2, "both were between check and commit"
    holder = made["spec"]["of"]
    taken = f"MAC {MACS[0]}" if what == "mac" else arriving.fixed
    assert refused.token == "cantTake"
    assert f"{taken} in network default is taken here by {holder}" in refused.message
    loser = "two" if holder == "vm/one" else "one"
    assert west.find("vm", loser) is None and west.find("arrival", f"{loser}-m") is None
    assert len(list_macs(west)) == 1


def test_a_vm_that_arrives_and_one_that_is_created_here_never_have_one_chosen_address(
    clusters: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = clusters
    arriving = Arriving(east, west)
    fixed = arriving.fixed
    own = {"image": "tiny", "memory": "128M", "networks": [f"default:{fixed}"]}
    own_key = "/vm/default/own"
    gate = Gate(west, monkeypatch, lambda keys: writes_arrival(keys) or own_key in keys, 2)
    (made,), (refused,) = race(
        lambda: arriving.create("web", mac_of(fixed), fixed, chosen=True),
        lambda: west.client.create({"kind": "vm", "name": "own", "project": "default", "spec": own}),
    )
    assert gate.arrived == 2
    holder = "vm/own" if made["kind"] == "vm" else "vm/web"
    assert f"{fixed} in network default is taken" in refused.message and f"by {holder}" in refused.message
    assert [west.find("vm", name) is None for name in ("web", "own")].count(True) == 1
    assert list_macs(west) == [mac_of(fixed)]


def test_an_arrival_fails_if_a_vm_here_drew_its_mac_before_its_commit(
    clusters: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = clusters
    arriving = Arriving(east, west)
    drawn = choose_mac(arriving.network_uid, arriving.first, ())
    gate = Gate(west, monkeypatch, writes_arrival, 2)  # one comes: it waits until it is let through
    with ThreadPoolExecutor(1) as pool:
        arrives = pool.submit(arriving.create, "web", drawn, arriving.other)
        west.until_true(lambda: gate.arrived == 1)
        west.create_vm("own")
        assert list_macs(west) == [drawn]
        gate.open()
        assert arrives.result()["spec"]["of"] == "vm/web"
    over = west.until_phase("arrival", "web-m", "Failed", "Arrived", "Cancelled")["status"]
    assert (over["phase"], over["reason"], over["never_ran"]) == ("Failed", "addressTaken", True), over
    assert f"MAC {drawn} in network default is taken here by vm/own ({arriving.first})" in over["message"]
    assert over.get("address", "") == "", "its source never learned where to send the guest"
    west.until("vm", "web", lambda obj: obj is None)
    assert west.runs("own")


def test_the_scheduler_draws_another_mac_if_a_vm_arrived_with_the_drawn_one_before_its_commit(
    clusters: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = clusters
    arriving = Arriving(east, west)
    drawn = choose_mac(arriving.network_uid, arriving.first, ())
    places_own = "/vm/default/own"
    gate = Gate(
        west, monkeypatch, lambda keys: places_own in keys and any(key.startswith("/endpoint/") for key in keys), 2
    )
    own = {"image": "tiny", "memory": "128M", "networks": ["default"]}
    west.client.create({"kind": "vm", "name": "own", "project": "default", "spec": own})
    west.until_true(lambda: gate.arrived == 1)
    arriving.create("web", drawn, arriving.other)
    gate.open()
    west.until_phase("vm", "own", "Running")
    macs = list_macs(west)
    assert len(macs) == 2 and len(set(macs)) == 2 and drawn in macs
    west.until("arrival", "web-m", lambda obj: obj["status"]["phase"] == "Waiting")
