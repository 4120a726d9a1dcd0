"""The two ends of a migration between clusters, over real TLS on loopback: each trusts the other cluster's CA, for one node, and
nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from listener_lab import Fabric

from weft.agent.migration.connection import TlsConnection
from weft.agent.migration.credentials import Credentials
from weft.agent.migration.listener import TlsListener
from weft.agent.migration.relay import Limit
from weft.contracts.clock import SystemClock
from weft.objects.errors import InvalidInput, Unavailable
from weft.protocol.migration import MigrationAnswer, MigrationRequest

CLOCK = SystemClock()


class Two:
    """Clusters east and west: a node of west waits for node ``source`` of east."""

    def __init__(self, folder: Path) -> None:
        for name in ("east", "west"):
            (folder / name).mkdir()
        self.east, self.west = Fabric(folder / "east"), Fabric(folder / "west")
        self.asked: list[str] = []
        self._open: list[TlsListener | TlsConnection] = []

    def wait(self, *, peer_ca: str) -> str:
        """Where the target waits."""
        listener = TlsListener("key", "source", self.west.node("target"), self._respond, [], CLOCK, peer_ca)
        self._open.append(listener)
        return listener.open("127.0.0.1")

    def dial(self, address: str, node: Credentials, *, peer_ca: str, peer: str = "target") -> TlsConnection:
        self._open.append(TlsConnection("key", address, peer, node, [Limit(0, CLOCK)], CLOCK, peer_ca))
        return self._open[-1]

    async def _respond(self, ask: MigrationRequest) -> MigrationAnswer:
        self.asked.append(ask.do)
        return MigrationAnswer()

    def close(self) -> None:
        for end in self._open:
            end.close()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    two = Two(tmp_path)
    yield two
    two.close()


async def refused(line: TlsConnection) -> None:
    async with asyncio.timeout(60):
        with pytest.raises(Unavailable) as failed:
            await line.ask(MigrationRequest("stopped"))
    assert failed.value.token == "peerRefused"


async def test_nodes_of_two_clusters_hear_each_other_where_both_trust_the_others_ca(two: Two) -> None:
    address = two.wait(peer_ca=two.east.ca)
    await two.dial(address, two.east.node("source"), peer_ca=two.west.ca).order(MigrationRequest("stopped"))
    assert two.asked == ["stopped"]


async def test_a_node_of_the_targets_own_cluster_is_refused_under_the_sources_name(two: Two) -> None:
    address = two.wait(peer_ca=two.east.ca)
    await refused(two.dial(address, two.west.node("source"), peer_ca=""))
    assert two.asked == []


async def test_a_target_of_the_sources_own_cluster_is_refused_under_the_targets_name(two: Two) -> None:
    address = two.wait(peer_ca="")  # as if the address were a node's of the same cluster
    await refused(two.dial(address, two.west.node("source"), peer_ca=two.east.ca))
    assert two.asked == []


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:"])
async def test_an_address_that_is_none_is_as_a_target_that_does_not_answer(two: Two, address: str) -> None:
    with pytest.raises(Unavailable, match="doesn't answer"):
        await two.dial(address, two.east.node("source"), peer_ca=two.west.ca).ask(MigrationRequest("stopped"))


async def test_another_node_of_the_right_cluster_is_refused(two: Two) -> None:
    address = two.wait(peer_ca=two.east.ca)
    await refused(two.dial(address, two.east.node("source"), peer_ca=two.west.ca, peer="another"))
    async with asyncio.timeout(60):
        with pytest.raises(Unavailable):  # the target closes without a word
            await two.dial(address, two.east.node("another"), peer_ca=two.west.ca).ask(MigrationRequest("stopped"))
    assert two.asked == []


@pytest.mark.parametrize("end", ["accept", "dial"])
@pytest.mark.parametrize("what", ["words", "cut", "node"])
def test_a_ca_that_is_none_is_named_with_the_remedy(two: Two, tmp_path: Path, end: str, what: str) -> None:
    node = two.west.node("target")
    pem = {"words": "a CA", "cut": two.east.ca[:300], "node": (tmp_path / "west" / "target" / "node.crt").read_text()}
    with pytest.raises(InvalidInput, match="peer_ca") as failed:
        getattr(node, end)(pem[what])
    assert failed.value.field == "migration.peer_ca"
    assert "weft cluster link" in (failed.value.hint or "")
