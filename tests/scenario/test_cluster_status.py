"""What the controllers say of a linked cluster that answers, is silent, refuses, or is another than it was."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers_lab import Lab

from weft.client.cluster.peer import PeerLink
from weft.controllers.cluster.controller import Clusters
from weft.kinds.cluster import TOKEN, ClusterSpec, ClusterStatus
from weft.objects.envelope import decode_part, merge_part
from weft.objects.errors import NotAuthenticated, Unavailable, WeftError
from weft.objects.identity import object_key
from weft.protocol.link import HelloAnswer

KEY = object_key("cluster", None, "west")
SPEC = ClusterSpec(url="https://10.0.0.1:6443", ca="ca", peer_uid="u", sealed={TOKEN: "s"})


class Far:
    """The other cluster, as asked."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.epoch, self.asked = lab, "e", 0
        self.problem: WeftError | None = None

    async def ask(self, link: PeerLink) -> HelloAnswer:
        self.asked += 1
        assert link.token == f"s of cluster/None/west/{TOKEN}"
        if self.problem is not None:
            raise self.problem
        return HelloAnswer(
            uid="u", release="0.1.0", epoch=self.epoch, oldest=1, newest=1, now=self.lab.clock.now(), seen_seconds=1.0
        )

    async def until(self, phase: str) -> ClusterStatus:
        async def there() -> bool:
            return (await self.status()).phase == phase

        await self.lab.until(there)
        return await self.status()

    async def status(self) -> ClusterStatus:
        envelope = await self.lab.get(KEY)
        assert envelope is not None
        return decode_part(envelope.status, ClusterStatus)


async def test_a_linked_cluster_is_asked_and_its_phase_follows_what_it_says(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.kill_deciders()
        far = Far(lab)
        await lab.put("cluster", "west", SPEC, project=None)
        lab.start_deciders(
            make_clusters=lambda lease: Clusters(lease, lambda sealed, place: f"{sealed} of {place}".encode(), far.ask)
        )
        status = await far.until("Linked")
        assert (status.epoch, status.protocol, status.clock_offset_seconds) == ("e", 1, 0.0)
        far.problem = Unavailable("no answer in time")
        assert "no answer in time" in (await far.until("Unreachable")).message
        far.problem = NotAuthenticated("west doesn't accept it", reason="linkRefused")
        assert (await far.until("Refused")).reason == "linkRefused"
        far.problem, far.epoch = None, "f"
        assert (await far.until("Suspect")).epoch == "e"

        def trust(envelope) -> None:  # type: ignore[no-untyped-def]
            spec = decode_part(envelope.spec, ClusterSpec)
            spec.trusted += 1
            envelope.spec = merge_part(envelope.spec, spec)

        await lab.change(KEY, trust)
        assert (await far.until("Linked")).epoch == "f"
        assert lab.journal.reasons("west") == ["Linked", "Unreachable", "Refused", "Suspect", "Linked"]
