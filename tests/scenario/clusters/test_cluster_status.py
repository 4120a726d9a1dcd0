"""What the controllers say of a linked cluster that answers, is silent, refuses, or is another than it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import msgspec
from tests.scenario.controllers_lab import Lab

from weft.client.cluster.hold import ArmingAnswer, Hold
from weft.client.cluster.peer import PeerLink
from weft.client.cluster.witness import WitnessLink
from weft.controllers.cluster.controller import Clusters
from weft.controllers.cluster.requests import SETTLED_SECONDS
from weft.controllers.delegation.controller import Delegations
from weft.controllers.delegation.perform import DelegationPlace
from weft.controllers.delegation.plan import Act, Seen
from weft.controllers.failover import facts
from weft.controllers.failover.controller import Witnesses, WitnessResponse
from weft.controllers.failover.facts import PROMISE_SECONDS
from weft.informer.leader_lease import LeaderLease
from weft.kinds.cluster import TOKEN, ClusterMarks, ClusterSpec, ClusterStatus
from weft.kinds.delegation import DelegationStatus
from weft.kinds.fields.cluster.link import VALUE, ClusterWitness
from weft.kinds.replica import Point, ReplicaMarks, ReplicaStatus
from weft.kinds.replication import ReplicationSpec, ReplicationStatus, SentPoint
from weft.kinds.snapshot import SnapshotDisk, SnapshotStatus
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.errors import NotAuthenticated, Unavailable, WeftError
from weft.objects.identity import object_key
from weft.protocol.failover.claim import Claim, ClaimRefused, Generation, Granted, Newer, Promised
from weft.protocol.failover.witness import WitnessAnswer, WitnessRequest
from weft.protocol.link import HelloAnswer
from weft.witness.service import Witness

KEY = object_key("cluster", None, "west")
SPEC = ClusterSpec(url="https://10.0.0.1:6443", ca="ca", sealed={TOKEN: "s"})


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
        await lab.kill_controllers()
        far = Far(lab)
        await lab.put("cluster", "west", SPEC, marks=ClusterMarks(peer_uid="u"), project=None)
        lab.start_controllers(
            more=[lambda lease: Clusters(lease, lambda sealed, place: f"{sealed} of {place}".encode(), far.ask)]
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
            envelope.actions = merge_part(envelope.actions, {"trusted": 1})

        await lab.change(KEY, trust)
        assert (await far.until("Linked")).epoch == "f"
        assert lab.journal.reasons("west") == ["Linked", "Unreachable", "Refused", "Suspect", "Linked"]


async def test_what_the_witness_of_a_link_knows_is_noted(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.kill_controllers()
        secrets = {"east": "e" * 64, "west": "w" * 64}
        hashes = {name: hashlib.sha256(secret.encode()).hexdigest() for name, secret in secrets.items()}
        witness = Witness(tmp_path / "votes.json", hashes, lab.clock.elapsed)

        def put_word(site: str, request: WitnessRequest) -> WitnessResponse:
            return witness.answer(secrets[site], msgspec.json.encode(request))

        async def ask(link: WitnessLink, requests: Sequence[WitnessRequest]) -> list[WitnessResponse]:
            return [put_word(link.token.site, one) for one in requests]

        async def until(key: str, reason: str) -> None:
            async def there() -> bool:
                envelope = await lab.get(key)
                said = envelope.condition("Witnessed") if envelope is not None else None
                return said is not None and said.reason == reason

            await lab.until(there)

        linked = {
            "witness": ClusterWitness(url="https://192.0.2.7:7443", peer="west"),
            "sealed": {TOKEN: "s", VALUE: "t"},
        }
        await lab.put("cluster", "west", msgspec.structs.replace(SPEC, **linked), project=None)
        sent = SentPoint(snapshot="s", snapshot_uid="s", begun_at=1.0, number=1)
        vm = await lab.put_vm("shop", run="stop")
        status = ReplicationStatus(phase="Paused", workload_uid=vm.uid, point=sent)
        there = {"of": "vm/shop", "cluster": "west", "paused": True}
        ours = await lab.put("replication", "shop", there, status=status)
        lab.creator = "cluster:west"
        theirs = await lab.put("replica", "web", {"of": "vm/web", "origin": "o", "disks": {"root": 1}})
        lab.start_controllers(
            more=[lambda lease: Witnesses(lease, lambda *_: f"east.{'e' * 64}.{'c' * 64}".encode(), ask)]
        )
        await until(ours.key, "OnlyHere")
        claims = {"o": Claim(Generation(1, "o"), "west"), ours.uid: Claim(Generation(1, ours.uid), "east")}
        for group, claim in claims.items():
            put_word(
                "west", WitnessRequest(peer="east", group=group, what="claim", claim=claim, seconds=PROMISE_SECONDS)
            )
        await until(theirs.key, "PrimarySpeaks")
        await until(theirs.key, "PrimarySilent")
        second = Claim(Generation(2, "b"), "west")
        put_word(
            "west", WitnessRequest(peer="east", group=ours.uid, what="claim", claim=second, seconds=PROMISE_SECONDS)
        )
        await until(ours.key, "Superseded")
        assert lab.journal.reasons("web") == ["PrimarySilent"]


async def test_what_is_delegated_is_listed_sent_and_ends_there_first(tmp_path: Path) -> None:
    there: dict[str, Seen] = {}

    async def ask(
        link: PeerLink, places: Sequence[DelegationPlace]
    ) -> dict[DelegationPlace, dict[str, Seen] | WeftError]:
        assert places == [("vm", "lab", "default")]
        return {places[0]: dict(there)}

    async def perform(link: PeerLink, acts: Sequence[Act]) -> list[Seen | WeftError]:
        for act in acts:
            if act.what == "put":
                there[act.name] = Seen("w", "Running", "w1")
            else:
                there.pop(act.name)
        return [Seen("w", "Running", "w1")] * len(acts)

    async with Lab(tmp_path) as lab:
        await lab.kill_controllers()
        spec = msgspec.structs.replace(SPEC, projects={"default": "lab"}, sealed={TOKEN: "s"})
        await lab.put("cluster", "west", spec, project=None, status=ClusterStatus(phase="Linked"))
        web = await lab.put("delegation", "web", {"cluster": "west", "workload": "vm", "template": {"image": "tiny"}})
        lab.start_controllers(more=[lambda lease: Delegations(lease, lambda *_: b"t", ask, perform)])

        async def runs() -> bool:
            envelope = await lab.get(web.key)
            return envelope is not None and decode_part(envelope.status, DelegationStatus).phase == "Running"

        await lab.until(runs)
        await lab.delete(web.key)
        await lab.pass_time(SETTLED_SECONDS)

        async def is_gone() -> bool:
            return await lab.get(web.key) is None

        await lab.until(is_gone)
        assert there == {} and lab.journal.reasons("web") == ["Running", "Deleting"]


async def test_a_list_from_before_a_late_request_arrived_ends_no_delegation(tmp_path: Path) -> None:
    there: dict[str, Seen] = {}
    done: list[str] = []

    async with Lab(tmp_path) as lab:
        await lab.kill_controllers()

        async def ask(
            link: PeerLink, places: Sequence[DelegationPlace]
        ) -> dict[DelegationPlace, dict[str, Seen] | WeftError]:
            listed = dict(there)
            envelope = await lab.get(web.key)
            if envelope is not None and envelope.deleting_since is not None and "late" not in done:
                done.append("late")
                there["web"] = Seen("w", "Running", "w1")
                await lab.clock.sleep(SETTLED_SECONDS)  # the answer is on its way so long
            return {places[0]: listed}

        async def perform(link: PeerLink, acts: Sequence[Act]) -> list[Seen | WeftError]:
            done.extend(act.what for act in acts)
            for act in acts:
                if act.what == "delete":
                    there.pop(act.name)
            return [Unavailable("no answer in time")] * len(acts)

        spec = msgspec.structs.replace(SPEC, projects={"default": "lab"}, sealed={TOKEN: "s"})
        await lab.put("cluster", "west", spec, project=None, status=ClusterStatus(phase="Linked"))
        web = await lab.put("delegation", "web", {"cluster": "west", "workload": "vm", "template": {"image": "tiny"}})
        lab.start_controllers(more=[lambda lease: Delegations(lease, lambda *_: b"t", ask, perform)])

        async def was_sent() -> bool:
            return "put" in done

        async def is_gone() -> bool:
            return await lab.get(web.key) is None

        await lab.until(was_sent)
        await lab.delete(web.key)
        for _ in range(4):
            await lab.pass_time(SETTLED_SECONDS)
        await lab.until(is_gone)
        assert there == {} and done[-1] == "delete", done


async def test_a_replica_takes_over_what_the_witness_grants(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.kill_controllers()
        second = Claim(Generation(2, "fresh"), "east")

        returned = set[str]()

        async def ask(link: WitnessLink, requests: Sequence[WitnessRequest]) -> list[WitnessResponse]:
            """It granted the other group before, which wasn't used."""
            told = {"question": Granted(second), "claim": ClaimRefused("notHolder"), "return": ClaimRefused("returned")}
            unused = WitnessAnswer(answer=Newer(second), epoch="e", is_armed=True, is_used=False)
            returned.update(f"{one.group} {one.returned}" for one in requests if one.what == "return")
            return [
                unused
                if (one.group, one.what) == ("p", "claim")
                else WitnessAnswer(answer=told[one.what], epoch="e", is_armed=True)
                for one in requests
            ]

        linked = {
            "witness": ClusterWitness(url="https://192.0.2.7:7443", peer="west"),
            "sealed": {TOKEN: "s", VALUE: "t"},
        }
        silent = ClusterStatus(phase="Unreachable")
        for name, grants in (("west", ["replicate", "take-over"]), ("south", [])):
            spec = msgspec.structs.replace(SPEC, **linked, grants=grants, projects={"default": "default"})
            await lab.put("cluster", name, spec, project=None, status=silent)
        disks = {"root": SnapshotDisk(key="root", size=1 << 30, pool="local")}
        taken = SnapshotStatus(
            phase="Ready", workload_uid="u", workload_spec={"image": "tiny"}, disks=disks, node="n1", listed=True
        )
        of = {"of": "vm/web", "automatic": "replication", "replica": "web"}
        snapshot = await lab.put("snapshot", "web-point-4", of, status=taken)
        lab.creator = "cluster:west"
        point = Point(number=4, snapshot="web-point-4", snapshot_uid=snapshot.uid, source="s")
        replica = {"of": "vm/web", "origin": "o", "disks": {"root": 1 << 30}}
        status = ReplicaStatus(phase="Standby", points=[point], node="n1")
        theirs = await lab.put("replica", "web", replica, marks=ReplicaMarks(automatic=True), status=status)
        lab.creator = "cluster:south"
        ungranted = await lab.put(
            "replica", "other", {**replica, "origin": "p"}, marks=ReplicaMarks(automatic=True), status=status
        )
        with mock.patch.object(facts, "PROMISE_SECONDS", 1e-6):
            lab.start_controllers(
                more=[lambda lease: Witnesses(lease, lambda *_: f"east.{'e' * 64}.{'c' * 64}".encode(), ask)]
            )

            async def is_primary() -> bool:
                envelope = await lab.get(theirs.key)
                return envelope is not None and decode_part(envelope.marks, ReplicaMarks).role == "primary"

            async def is_disarmed() -> bool:
                envelope = await lab.get(ungranted.key)
                return envelope is not None and not decode_part(envelope.marks, ReplicaMarks).automatic

            await lab.until(is_primary)
            await lab.until(is_disarmed)

            async def is_given_back() -> bool:
                return returned == {"p fresh"}

            await lab.until(is_given_back)
        envelope = await lab.get(theirs.key)
        assert envelope is not None
        marks = decode_part(envelope.marks, ReplicaMarks)
        assert (marks.generation, marks.granted, marks.became) == (2, "fresh", "web")
        assert await lab.get(object_key("vm", "default", "web")) is not None
        assert "TookOver" in lab.journal.reasons("web")


async def test_a_vm_is_held_before_its_replica_may_take_over(tmp_path: Path) -> None:
    told = list[tuple[bool, int]]()

    async def ask(link: WitnessLink, requests: Sequence[WitnessRequest]) -> list[WitnessResponse]:
        return [WitnessAnswer(answer=Promised(one.claim), epoch="e", is_armed=True) for one in requests]

    async def tell(link: PeerLink, hold: Hold, automatic: bool, arming: int) -> ArmingAnswer:
        told.append((automatic, arming))
        return ArmingAnswer("done", "", automatic, arming)

    async def read(link: PeerLink, hold: Hold) -> ArmingAnswer:
        return ArmingAnswer("done")

    async with Lab(tmp_path) as lab:
        node, vm = await lab.add_node("n1", guard="yes"), await lab.put_vm("shop")
        await lab.until_phase("shop", "Running")
        await lab.kill_controllers()
        linked = {
            "witness": ClusterWitness(url="https://192.0.2.7:7443", peer="west"),
            "sealed": {TOKEN: "s", VALUE: "t"},
        }
        spec = msgspec.structs.replace(SPEC, **linked)
        await lab.put("cluster", "west", spec, project=None, status=ClusterStatus(phase="Linked"))
        sent = SentPoint(snapshot="s", snapshot_uid="s", begun_at=1.0, number=1)
        status = ReplicationStatus(phase="Replicating", workload_uid=vm.uid, point=sent)
        wanted = {"of": "vm/shop", "cluster": "west", "automatic": True}
        ours = await lab.put("replication", "shop", wanted, status=status)

        def make(lease: LeaderLease) -> Witnesses:
            return Witnesses(lease, lambda *_: f"east.{'e' * 64}.{'c' * 64}".encode(), ask, arm=tell, read=read)

        async def until(guard: str) -> None:
            async def there() -> bool:
                return [one.guard for one in await lab.allocations()] == [guard]

            await lab.until(there)

        lab.start_controllers(more=[make])
        await until("begin")
        await node.write_report(guards={vm.uid: "ready"})
        await until("hold")
        assert told == []
        await node.write_report(guards={vm.uid: "held"})

        async def is_armed() -> bool:
            envelope = await lab.get(ours.key)
            said = envelope.condition("Automatic") if envelope is not None else None
            return said is not None and said.reason == "Armed"

        await lab.until(is_armed)
        assert {automatic for automatic, _ in told} == {True}

        def turn_off(envelope: Envelope) -> None:
            after = msgspec.structs.replace(decode_part(envelope.spec, ReplicationSpec), automatic=False)
            envelope.spec = merge_part(envelope.spec, after)

        await lab.change(ours.key, turn_off)
        await until("")
        assert told[-1][0] is False and told[-1][1] > max(arming for automatic, arming in told if automatic)
        assert "Armed" in lab.journal.reasons("shop")
