"""Services: an address that stays, endpoints that follow what nodes report, and published ports that lead to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.controllers_lab import Lab, PretendNode

from weft.contracts.store import Delete, Put
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.endpoint import EndpointSpec, Served, ServedTarget
from weft.kinds.fields.service.readiness import MOST_CHECKED, ReadinessReport
from weft.kinds.node import name_departure
from weft.kinds.published_port import PublishedNode, PublishedPortSpec, PublishedPortStatus
from weft.kinds.service import ServiceSpec, ServiceStatus
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.objects.identity import new_uid

WEB = {"app": "web"}
KEY = "/service/default/shop"


async def put_service(lab: Lab, **spec: Any) -> Envelope:
    full = ServiceSpec(**{"selector": WEB, "ports": ["80:8080"], **spec})
    service = await lab.put("service", "shop", full)
    for number, mapping in enumerate(full.publish):
        host = int(mapping.partition(":")[0])
        port = PublishedPortSpec(port=host, protocol="tcp", target_port=80, workload=service.ref)
        raw = msgspec.Raw(msgspec.json.encode(port))
        claim = Envelope(kind="publishedport", name=f"tcp-{host}", uid=new_uid(), owner=service.ref, spec=raw)
        claim.labels = {"number": str(number)}
        await lab.store.commit([Put(claim.key, encode_envelope(claim))])
    return service


async def label(lab: Lab, name: str, **labels: str) -> None:
    def change(envelope: Envelope) -> None:
        envelope.labels = labels

    await lab.change(f"/vm/default/{name}", change)


async def report(lab: Lab, name: str, **fields: Any) -> None:
    """Let the node of a VM report this of it."""
    for found in await lab.every("allocation"):
        if decode_part(found.spec, AllocationSpec).workload.name != name:
            continue

        def change(envelope: Envelope) -> None:
            now = msgspec.structs.replace(decode_part(envelope.report, AllocationReport), **fields)
            envelope.report = merge_part(envelope.report, now)
            for node in lab.nodes.values():
                if envelope.uid in node.running:
                    node.running[envelope.uid] = now

        await lab.change(found.key, change)


async def ready(
    lab: Lab, service: Envelope, *names: str, well: bool = True, why: str = "", silent: bool = False
) -> None:
    for name in names:
        await report(lab, name, readiness={service.uid: ReadinessReport(ready=well, message=why, silent=silent)})


async def status(lab: Lab) -> ServiceStatus:
    service = await lab.get(KEY)
    assert service is not None
    return decode_part(service.status, ServiceStatus)


async def until_weights(lab: Lab, **weights: int) -> ServiceStatus:
    async def so() -> bool:
        return {one.workload.name: one.weight for one in (await status(lab)).endpoints} == weights

    await lab.until(so)
    return await status(lab)


async def served(lab: Lab) -> Served:
    found = [decode_part(one.spec, EndpointSpec) for one in await lab.every("endpoint")]
    [one] = [one.served for one in found if one.served is not None]
    return one


async def test_a_service_has_an_address_and_its_endpoints_follow_what_is_reported(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        service = await put_service(lab, publish=["8088:80"])

        async def empty() -> bool:
            return (await status(lab)).phase == "NoEndpoints"

        await lab.until(empty)
        address = (await status(lab)).address
        assert address and (await status(lab)).reason == "noWorkloads"
        for name in ("w1", "w2", "other"):
            await lab.put_vm(name)
        for name in ("w1", "w2", "other"):
            await lab.until_phase(name, "Running")
        await label(lab, "w1", **WEB)
        await label(lab, "w2", **WEB, tier="front")
        found = await until_weights(lab, w1=0, w2=0)
        assert [one.reason for one in found.endpoints] == ["not checked yet"] * 2 and found.reason == "noneReady"
        targets = [one.address for one in (await served(lab)).targets]
        assert targets == sorted(one.address for one in found.endpoints) and address not in targets

        await ready(lab, service, "w1", "w2")
        found = await until_weights(lab, w1=500, w2=500)
        assert (found.phase, found.address) == ("Ready", address)
        port = await lab.get("/publishedport/-/tcp-8088")
        assert port is not None
        leads = decode_part(port.status, PublishedPortStatus)
        assert (leads.address, leads.nodes) == (address, [PublishedNode(address="10.0.0.1", weight=1000)])

        await ready(lab, service, "w1", well=False, why="connection refused")
        found = await until_weights(lab, w1=0, w2=1000)
        assert found.endpoints[0].reason == "connection refused"
        await report(lab, "w2", readiness={})  # its agent has restarted, and says nothing yet
        await lab.pass_time(2)
        await until_weights(lab, w1=0, w2=1000)
        node.slow = True  # it starts none again
        await report(lab, "w2", state="stopping")
        assert (await until_weights(lab, w1=0, w2=0)).phase == "NoEndpoints"

        await lab.store.commit([Delete(KEY)])

        async def gone() -> bool:
            ports = await lab.every("publishedport")
            return not ports and all(
                decode_part(e.spec, EndpointSpec).served is None for e in await lab.every("endpoint")
            )

        await lab.until(gone)


async def test_where_all_stop_to_answer_the_last_ready_ones_stay_until_they_end(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        service = await put_service(lab)
        for name in ("w1", "w2", "w3"):
            await lab.put_vm(name)
            await lab.until_phase(name, "Running")
            await label(lab, name, **WEB)
        await ready(lab, service, "w1", "w2", "w3")
        await until_weights(lab, w1=334, w2=333, w3=333)
        await ready(lab, service, "w1", well=False, why="no answer", silent=True)
        await until_weights(lab, w1=0, w2=500, w3=500)
        await ready(lab, service, "w2", "w3", well=False, why="no answer", silent=True)
        found = await until_weights(lab, w1=334, w2=333, w3=333)
        assert (found.phase, found.reason) == ("Ready", "silent") and found.message.startswith("3 of 3 endpoints ")
        assert [(one.ready, one.reason) for one in found.endpoints] == [(False, "no answer")] * 3
        await ready(lab, service, "w1", well=False, why="connection refused")
        await until_weights(lab, w1=0, w2=500, w3=500)
        node.slow = True  # it starts none again
        await report(lab, "w2", state="stopping")
        await until_weights(lab, w1=0, w2=0, w3=1000)
        await ready(lab, service, "w3")
        assert (await until_weights(lab, w1=0, w2=0, w3=1000)).reason == ""


async def test_one_that_leaves_has_departed_once_every_node_of_the_network_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        service, nodes = await put_service(lab), list[PretendNode]()
        for name, place in (("w1", "n1"), ("w2", "n2")):
            nodes.append(await lab.add_node(place, cpu=1.0))  # for one of them
            await lab.put_vm(name, cpu=1.0)
            await lab.until_phase(name, "Running")
            await label(lab, name, **WEB)
        await ready(lab, service, "w1", "w2")
        await until_weights(lab, w1=500, w2=500)
        await label(lab, "w1", **WEB, **{"weft/draining": "1"})
        found = (await until_weights(lab, w1=0, w2=1000)).endpoints[0]
        (leaving,) = (one for one in (await served(lab)).targets if one.address == found.address)
        assert leaving.leaves and leaving.departure
        said = [name_departure(service.uid, leaving.address, leaving.departure)]

        async def has_departed() -> bool:
            return (await status(lab)).endpoints[0].departed_at is not None

        await nodes[0].write_report(departed=said)
        await lab.pass_time(5)
        assert not await has_departed()
        await nodes[1].write_report(departed=said)
        await lab.until(has_departed)
        since = (await status(lab)).endpoints[0].departed_at
        await nodes[1].write_report(departed=[])
        await lab.pass_time(5)
        assert (await status(lab)).endpoints[0].departed_at == since
        await label(lab, "w1", **WEB)
        assert (await until_weights(lab, w1=500, w2=500)).endpoints[0].departed_at is None


async def test_one_that_too_many_services_check_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await put_service(lab)
        await lab.put_vm("w1")
        await lab.until_phase("w1", "Running")
        await label(lab, "w1", **WEB)
        await until_weights(lab, w1=0)
        await report(lab, "w1", readiness={f"u{n}": ReadinessReport(ready=True) for n in range(MOST_CHECKED)})

        async def told() -> bool:
            return "16 other services check it" in (await status(lab)).endpoints[0].reason

        await lab.until(told)


async def test_a_workload_that_is_to_stop_gets_no_new_connections_before_it_does(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        service = await put_service(lab, weights=["version=2:100"])
        for name, version in (("w1", "1"), ("w2", "2"), ("w3", "1")):
            await lab.put_vm(name)
            await lab.until_phase(name, "Running")
            await label(lab, name, version=version, **WEB)
        await ready(lab, service, "w1", "w2", "w3")
        await until_weights(lab, w1=450, w2=100, w3=450)
        node.slow = True  # it goes on running
        await lab.change_spec("w3", run="stop")
        found = await until_weights(lab, w1=900, w2=100, w3=0)
        assert found.endpoints[2].ready is False or found.endpoints[2].reason
        await label(lab, "w1", version="1", **WEB, **{"weft/draining": ""})
        drained = await until_weights(lab, w1=0, w2=1000, w3=0)
        assert drained.endpoints[0].reason == "draining"
        assert [one.retired for one in drained.endpoints] == [True, False, False]  # people stopped w3, and may start it
        assert [one for one in (await served(lab)).targets if one.weight] == [
            ServedTarget(address=found.endpoints[1].address, weight=1000)
        ]


async def test_without_a_network_or_an_address_a_service_waits_and_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.put("service", "shop", {"selector": WEB, "ports": ["80"], "network": "blue"})

        async def waits(reason: str) -> bool:
            return (await status(lab)).reason == reason

        await lab.until(lambda: waits("networkNotReady"))
        await lab.put("network", "blue", {"cidr": "10.7.0.0/29"})
        await lab.until(lambda: waits("noWorkloads"))
        assert (await status(lab)).address == "10.7.0.2"
