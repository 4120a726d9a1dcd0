"""An agent over fake drivers follows its allocations' wishes, and tells what comes of it."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from tests.scenario.agent_lab import (
    ADDRESS,
    Lab,
    change,
    make_allocation,
    make_endpoint,
    make_nic,
    make_published_port,
)

from weft.agent.allocation import plan
from weft.agent.node import capabilities
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import Checkpoint
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.watches import Put
from weft.contracts.driver.network import Allowed, Endpoint
from weft.contracts.driver.runtime import BootKernel, GuestFacts, RuntimeProbe
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.kinds.allocation import AllocatedGroup, AllocatedRule, AllocatedVolume, AllocationReport
from weft.kinds.node import NodeReport
from weft.objects.envelope import Envelope
from weft.objects.errors import DriverFailed, InvalidInput
from weft.objects.identity import short_id
from weft.protocol.report import NetworkRules, ServerPlace


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def deleted(envelope: Envelope) -> Envelope:
    envelope = change(envelope)
    envelope.deleting_since = 1.0
    return envelope


async def test_an_allocation_comes_to_run_and_is_reported_with_its_boot_id_and_steps(lab: Lab) -> None:
    web = make_allocation(user_data="#!/bin/sh\n")
    async with lab.agent():
        lab.server.put(web)
        report = await lab.until_state(web, "running")
        guest = lab.guest(web)
        assert guest is not None and report.boot_id == guest.boot_id and report.ready is True
        assert [(s.name, s.state) for s in report.steps] == [
            ("image", "done"),
            ("disk", "done"),
            ("network", "done"),
            ("boot", "done"),
        ]
        plan = guest.plan
        assert (plan.name, plan.hostname, plan.uid, plan.vcpus) == ("web", "web", web.uid, 1)
        assert isinstance(plan.boot, BootKernel) and plan.boot.cmdline == "console=ttyS0"
        assert [disk.serial for disk in plan.disks] == ["root", "weft-seed"]
        assert [nic.mac for nic in plan.nics] == [make_nic().mac]
        assert lab.server.node_report is not None and lab.server.node_report.epoch == "e1"


async def test_what_is_told_of_a_way_up_never_goes_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    web, told = make_allocation(), []
    put = Reporter.put

    def keep(self: Reporter, name: str, report: AllocationReport) -> None:
        if report.state not in told[-1:]:
            told.append(report.state)
        put(self, name, report)

    monkeypatch.setattr(Reporter, "put", keep)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.put(change(web, restart_generation=1))
        await lab.until(lambda: lab.server.reports[web.name].restart_generation == 1, "second boot")
        await lab.until_state(web, "running")
    first = told.index("running") + 1
    assert [state for state in told[:first] if state != "pending"] == ["preparing", "starting", "running"]
    assert told[first:] == ["stopping", "preparing", "starting", "running"]


async def test_a_guest_at_rest_is_looked_at_and_nothing_is_planned_until_something_changes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, looks, plans = make_allocation(), 0, 0
    inspect, plan_allocation = FakeDriver.inspect, plan.plan_allocation

    async def count_look(self: FakeDriver, guest_id: str) -> GuestFacts:
        nonlocal looks
        looks += 1
        return await inspect(self, guest_id)

    def count_plan(facts: plan.PlanInput) -> plan.Plan:
        nonlocal plans
        plans += 1
        return plan_allocation(facts)

    monkeypatch.setattr(FakeDriver, "inspect", count_look)
    monkeypatch.setattr(plan, "plan_allocation", count_plan)
    async with lab.agent() as agent:
        lab.server.put(web)
        await lab.until_state(web, "running")
        await lab.settle()
        planned = plans
        for _ in range(3):
            before = looks
            agent.parts.allocations.wake()
            await lab.until(lambda before=before: looks > before, "looked at")  # type: ignore[misc]
        assert plans == planned
        lab.runtime.kill(short_id(web.uid))
        await lab.until(lambda: lab.server.reports[web.name].restarts == 1, "seen to have ended")
        lab.server.put(change(web, desired="stop"))
        await lab.until_state(web, "stopped")


async def test_what_a_node_can_do_is_asked_again_and_told_when_it_has_changed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "PROBE_SECONDS", 0.02)
    async with lab.agent():
        await lab.until(lambda: lab.server.node_report is not None and not lab.server.node_report.problems)
        driver = lab.runtime
        driver.orders.probe = RuntimeProbe("fake", False, "", "", [], [], ["what it stands on has gone"])
        await lab.until(lambda: "what it stands on has gone" in (lab.server.node_report or NodeReport()).problems)
        assert [runtime.usable for runtime in lab.server.node_report.runtimes] == [False]  # type: ignore[union-attr]
        driver.orders.probe = None
        await lab.until(lambda: lab.server.node_report is not None and not lab.server.node_report.problems)


async def test_room_that_is_held_for_later_is_nothing_to_a_node(lab: Lab) -> None:
    room, web = make_allocation("later", role="reserved"), make_allocation()
    async with lab.agent() as agent:
        lab.server.put(room, web)
        await lab.until_state(web, "running")
        assert agent.parts.table.find(room.name) is None and lab.guest(room) is None
        assert lab.copies() == [f"{short_id(web.uid)}.json"]
        lab.server.delete(room)
        await lab.settle()
        assert lab.server.node_report is not None and lab.server.node_report.orphans == []
    assert lab.server.get(web).deleting_since is None


async def test_its_states_on_the_way_are_told_in_order(lab: Lab) -> None:
    lab.orders.boot_seconds = 0.5
    lab.orders.delay_seconds["start"] = 0.3
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    states = list(dict.fromkeys(report.state for _, report in lab.server.history))
    assert states[-2:] == ["starting", "running"]
    assert set(states) <= {"pending", "preparing", "starting", "running"}


async def test_stop_and_start_keep_the_disk_and_make_a_new_boot(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        first = await lab.until_state(web, "running")
        lab.server.put(change(web, desired="stop"))
        await lab.until_state(web, "stopped")
        assert short_id(web.uid) in lab.shelf.volumes
        lab.server.put(web)
        second = await lab.until_state(web, "running")
        assert first.boot_id != second.boot_id
        assert second.restarts == 0


async def test_a_higher_start_counter_boots_afresh(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        first = await lab.until_state(web, "running")
        lab.server.put(change(web, restart_generation=1))
        await lab.until(lambda: lab.server.reports[web.name].restart_generation == 1, "the second run")
        second = await lab.until_state(web, "running")
        assert first.boot_id != second.boot_id


async def test_suspend_and_resume_keep_the_boot(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        first = await lab.until_state(web, "running")
        lab.server.put(change(web, desired="suspend"))
        await lab.until_state(web, "suspended")
    async with lab.agent():
        lab.server.put(web)
        assert (await lab.until_state(web, "running")).boot_id == first.boot_id


async def test_deletion_leaves_nothing_and_says_released(lab: Lab) -> None:
    web = make_allocation(
        volumes=[AllocatedVolume(name="data", uid="6f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11", size=1 << 20)],
        user_data="#!/bin/sh\n",
    )
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        assert lab.copies()
        lab.server.put(deleted(web))
        await lab.until_state(web, "released")
        assert lab.guest(web) is None
        assert list(lab.shelf.volumes) == ["6f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11"]
        assert (lab.wire.ports, lab.copies()) == ({}, [])
        assert list((Path(lab.host.state_dir) / "seeds").iterdir()) == []
        assert lab.server.node_report is not None and len(lab.server.node_report.volumes) == 1


async def test_the_next_guest_in_a_network_finds_it_ready(lab: Lab) -> None:
    web, next_ = make_allocation("web"), make_allocation("next")
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.put(deleted(web))
        await lab.until_state(web, "released")
        assert list(lab.wire.segments) == [short_id("uid-of-blue")]
        lab.server.put(next_)
        await lab.until_state(next_, "running")
        assert "remove_segment" not in [method for method, _ in lab.network.calls]


async def test_a_network_that_is_no_more_goes_at_once(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.put(deleted(web))
        await lab.until(lambda: lab.server.idle_networks == ["uid-of-blue"], "the question whether it is still there")
        assert lab.wire.segments and lab.wire.refused == ["10.20.0.0/24"]
        lab.server.gone_networks = ["uid-of-blue"]
        await lab.until(lambda: not lab.wire.segments and not lab.wire.refused, "the segment's end")


async def test_a_network_without_guests_goes_in_the_end_even_if_its_agent_was_killed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    green = msgspec.structs.replace(make_nic("10.30.0.11", "green"), vni=4002)
    web, other = make_allocation("web"), make_allocation("other", nics=[green])
    async with lab.agent():
        lab.server.put(web, other)
        await lab.until_state(web, "running")
        await lab.until_state(other, "running")
        lab.server.put(deleted(web))
        await lab.until_state(web, "released")
        lab.server.delete(deleted(web))
    assert sorted(lab.wire.segments) == sorted([short_id("uid-of-blue"), short_id("uid-of-green")])
    monkeypatch.setattr("weft.agent.network.executor.IDLE_SECONDS", 0.2)
    async with lab.agent():
        await lab.until(lambda: list(lab.wire.segments) == [short_id("uid-of-green")], "the end of blue")


async def test_guests_are_kept_out_of_the_fabrics_networks_and_nodes_and_a_killed_agent_remembers_them(
    lab: Lab,
) -> None:
    lab.server.ranges = ("v1", ["10.20.0.0/24", "10.40.0.0/16"], ["10.99.0.1/32"])
    async with lab.agent():
        await lab.settle()
        assert lab.wire.refused == []  # there is nobody to keep out
        web = make_allocation()
        lab.server.put(web)
        await lab.until_state(web, "running")
        await lab.until(lambda: lab.wire.refused == ["10.20.0.0/24", "10.40.0.0/16"], "the ranges")
        assert lab.wire.refused_hosts == ["10.99.0.1/32"]
    lab.wire.refused, lab.wire.refused_hosts, lab.server.down = [], [], True
    async with lab.agent():
        await lab.until(lambda: lab.wire.refused == ["10.20.0.0/24", "10.40.0.0/16"], "the ranges, from the copy")
        assert lab.wire.refused_hosts == ["10.99.0.1/32"]
        lab.server.ranges = ("v2", ["10.20.0.0/24"], [])
        lab.server.down = False
        await lab.until(lambda: lab.wire.refused == ["10.20.0.0/24"], "what is refused no more")
        assert lab.wire.refused_hosts == []


async def test_a_node_whose_report_is_awaited_does_not_wait_for_its_heartbeat(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 3600.0)
    async with lab.agent():
        web = make_allocation()
        lab.server.put(web)
        await lab.until_state(web, "running")
        for network in ("10.31.0.0/24", "10.32.0.0/24", "10.33.0.0/24"):
            lab.server.ranges = (network, [network], [])
            lab.server.await_report()
            await lab.until(lambda: network in lab.wire.refused, "what the newest answer refuses")  # noqa: B023


async def test_a_guest_is_kept_out_of_the_server_s_machine_but_for_what_its_network_opens_there(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)

    def opened() -> tuple[Allowed, ...]:
        return lab.wire.segments[short_id("uid-of-blue")].open

    lab.wire.addresses = ["10.99.0.1", "192.0.2.1"]
    lab.server.ranges = ("v1", ["10.20.0.0/24"], ["10.99.0.1/32"])
    lab.server.place = ServerPlace(["203.0.113.5/32"], [8443], [8445])
    async with lab.agent("198.51.100.9:443", "no-such-host.invalid:8444", "127.0.0.1:1"):
        web = make_allocation()
        lab.server.put(web)
        await lab.until_state(web, "running")
        hosts = ["10.99.0.1/32", "198.51.100.9/32", "203.0.113.5/32"]
        await lab.until(lambda: lab.wire.refused_hosts == hosts, "the server's addresses")
        await lab.until(lambda: lab.server.node_report.addresses == lab.wire.addresses, "the node's own addresses")
        assert opened() == ()
        lab.server.rules = {"uid-of-blue": NetworkRules(nat=False, open=["functions", "udp:123", "later: words"])}
        place = ("198.51.100.9/32", "203.0.113.5/32")
        rules = (Allowed("tcp", 8445, 8445, place), Allowed("udp", 123, 123, None))
        await lab.until(lambda: opened() == rules, "what is opened")
        assert not lab.wire.segments[short_id("uid-of-blue")].nat
    lab.wire.segments.clear()
    lab.wire.refused_hosts, lab.server.down = [], True
    async with lab.agent():
        await lab.until(
            lambda: lab.wire.refused_hosts == ["10.99.0.1/32", "203.0.113.5/32"], "the hosts, from the copy"
        )
        await lab.until(lambda: short_id("uid-of-blue") in lab.wire.segments, "its network")
        assert opened() == (Allowed("tcp", 8445, 8445, place[1:]), Allowed("udp", 123, 123, None))
        lab.server.ranges = ("v2", ["10.20.0.0/24"], [])
        lab.server.place = ServerPlace(["203.0.113.6/32"], [8443], [])
        lab.server.rules = {"uid-of-blue": NetworkRules(open=["api"])}
        lab.server.down = False
        await lab.until(lambda: opened() == (Allowed("tcp", 8443, 8443, ("203.0.113.6/32",)),), "the server's move")
        assert lab.wire.refused_hosts == ["203.0.113.6/32"]


async def test_a_guest_is_filtered_before_it_is_plugged_and_as_its_groups_and_their_members_change(lab: Lab) -> None:
    rule = AllocatedRule(protocol="tcp", first_port=80, last_port=80, group_uid="g-web")
    group = AllocatedGroup(name="db", uid="g-db", ingress=[rule], egress=[AllocatedRule(protocol="any")])
    web = make_allocation(groups=[group])
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        calls = [method for method, _ in lab.network.calls]
        assert calls.index("ensure_filters") < calls.index("plug")
        [filter_] = lab.wire.filters
        assert (filter_.port_id, filter_.address) == (next(iter(lab.wire.ports)), "10.20.0.11")
        assert filter_.ingress == (Allowed("tcp", 80, 80, ()),)  # nobody is in that group yet
        assert filter_.egress == (Allowed("any", 0, 65535, None),)
        lab.server.put(make_endpoint("10.20.0.12", "web", "10.99.0.2", groups=["g-web"]))
        open_to_one = (Allowed("tcp", 80, 80, ("10.20.0.12",)),)
        await lab.until(lambda: lab.wire.filters[0].ingress == open_to_one, "the member")
        lab.server.put(change(web, groups=[msgspec.structs.replace(group, ingress=[])]))
        await lab.until(lambda: lab.wire.filters[0].ingress == (), "the change")
        lab.server.put(change(web, groups=[]))
        await lab.until(lambda: lab.wire.filters == [], "the end of it")
    assert lab.guest(web) is not None


async def test_a_node_that_cannot_filter_starts_only_guests_that_need_none(lab: Lab) -> None:
    kept, open_ = (
        make_allocation("kept", groups=[AllocatedGroup(name="db", uid="g")]),
        make_allocation("open", nics=[make_nic("10.20.0.12")]),
    )
    async with lab.agent():
        lab.network.failures["ensure_filters"] = [DriverFailed("no br_netfilter")] * 99
        lab.server.put(kept)
        await lab.until(
            lambda: lab.server.reports and lab.server.reports[kept.name].message == "no br_netfilter", "why"
        )
        lab.server.put(open_)
        await lab.until_state(open_, "running")
        assert lab.guest(kept) is None


async def test_a_neighbours_change_does_not_bring_back_the_port_of_a_guest_that_goes(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.volumes.delays_seconds["remove"] = 0.3
        lab.server.put(deleted(web))
        await lab.until(lambda: not lab.wire.ports, "the port's end")
        lab.server.put(make_endpoint("10.20.0.12", "db", "10.99.0.2"))
        await lab.until_state(web, "released")
        assert lab.wire.ports == {}


async def test_a_vm_deleted_while_its_image_is_fetched_is_released_at_once(lab: Lab) -> None:
    lab.server.fetch_gate = threading.Event()
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until(lambda: lab.server.fetches, "a fetch")
        lab.server.put(deleted(web))
        try:
            await lab.until_state(web, "released")
        finally:
            lab.server.fetch_gate.set()


async def test_a_deletion_takes_the_root_disk_from_the_pool_where_it_is(lab: Lab) -> None:
    """It was moved there in a history that the server, restored from before, knows nothing of."""
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.san.shelf.volumes.update(lab.shelf.volumes)
        lab.shelf.volumes.clear()
        lab.server.put(deleted(web))
        await lab.until_state(web, "released")
    assert await lab.san.list() == []


async def test_a_deletion_of_what_was_never_here_is_released(lab: Lab) -> None:
    async with lab.agent():
        lab.server.put(deleted(make_allocation()))
        await lab.until_state(make_allocation(), "released")


async def test_guests_that_need_one_image_share_one_fetch(lab: Lab) -> None:
    guests = [make_allocation(f"web-{n}", nics=[make_nic(f"10.20.0.{20 + n}")]) for n in range(5)]
    async with lab.agent():
        lab.server.put(*guests)
        for guest in guests:
            await lab.until_state(guest, "running")
        assert lab.server.fetches == 1
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.images, "the image")


async def test_a_guest_that_shuts_itself_down_rests(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.runtime.power_off(short_id(web.uid))
        report = await lab.until_state(web, "stopped")
        assert (report.reason, report.restarts) == ("guestPoweredOff", 0)
        lab.server.put(change(web, restart_generation=1))
        await lab.until_state(web, "running")


async def test_a_killed_guest_starts_again_and_is_counted(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        first = await lab.until_state(web, "running")
        lab.runtime.kill(short_id(web.uid))
        await lab.until(lambda: lab.server.reports[web.name].restarts == 1, "a restart")
        second = await lab.until_state(web, "running")
        assert first.boot_id != second.boot_id
        assert {"GuestEnded", "GuestRestarted"} <= {event.reason for event in lab.server.events}


async def test_a_killed_guest_that_is_never_to_restart_has_failed(lab: Lab) -> None:
    web = make_allocation(restart="never")
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.runtime.kill(short_id(web.uid))
        assert (await lab.until_state(web, "failed")).reason == "killed"


async def test_a_step_that_fails_is_told_and_tried_again(lab: Lab) -> None:
    lab.orders.failures["start"] = [DriverFailed("no room for the guest", reason="noMemory")]
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        report = await lab.until_state(web, "failed")
        assert (report.reason, report.message) == ("noMemory", "no room for the guest")
        await lab.until_state(web, "running")
        assert lab.server.reports[web.name].reason == ""


async def test_what_a_retry_cant_mend_waits_for_a_change(lab: Lab) -> None:
    lab.orders.failures["start"] = [InvalidInput("no such machine")]
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "failed")
        lab.server.put(change(web, machine="microvm"))
        await lab.until_state(web, "running")


async def test_an_image_the_server_doesnt_have_is_told_and_awaited(lab: Lab) -> None:
    web = make_allocation()
    blobs = dict(lab.server.blobs)
    lab.server.blobs.clear()
    async with lab.agent():
        lab.server.put(web)
        report = await lab.until_state(web, "failed")
        assert (report.reason, report.steps[0].state) == ("notFound", "failed")
        lab.server.blobs.update(blobs)
        await lab.until_state(web, "running")


async def test_neighbours_come_into_the_segment_and_go(lab: Lab) -> None:
    web, segment = make_allocation(), short_id("uid-of-blue")
    there = make_endpoint("10.20.0.12", "db", "10.99.0.2")
    async with lab.agent():
        lab.server.put(web, there, make_endpoint("10.20.0.13", "new", None))
        await lab.until_state(web, "running")
        own = Endpoint(make_nic().mac, "10.20.0.11", "web", ADDRESS, uid=make_nic().uid)
        far = Endpoint("52:54:00:00:01:01", "10.20.0.12", "db", "10.99.0.2", uid=there.uid)
        await lab.until(lambda: lab.wire.segments[segment].endpoints == [own, far], "both")
        lab.server.delete(there)
        await lab.until(lambda: lab.wire.segments[segment].endpoints == [own], "its own only")


async def test_the_nodes_ports_follow_the_published_ports(lab: Lab) -> None:
    port = make_published_port(8080, "10.20.0.11", ADDRESS)
    async with lab.agent():
        lab.server.put(port, make_published_port(8081, "10.20.0.12", None))
        await lab.until(lambda: [f.port for f in lab.wire.forwards] == [8080], "the forward")
        lab.server.delete(port)
        await lab.until(lambda: lab.wire.forwards == [], "none")


async def test_a_volume_is_removed_only_when_told_and_unattached(lab: Lab) -> None:
    uid = "6f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11"
    web = make_allocation(volumes=[AllocatedVolume(name="data", uid=uid, size=1 << 20)])
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.remove_volumes = [uid]
        lab.server.put(change(web, desired="stop"))
        await lab.until_state(web, "stopped")
        assert uid in lab.shelf.volumes
        lab.server.put(deleted(web))
        await lab.until(lambda: uid in lab.server.removed_volumes, "the removal")
        assert uid not in lab.shelf.volumes


async def test_the_network_is_mended_and_that_is_told(lab: Lab) -> None:
    lab.wire.damage = ["dnsmasq of blue was dead"]
    async with lab.agent():
        await lab.until(lambda: lab.server.events, "an event")
    assert lab.server.events[0].message == "dnsmasq of blue was dead"


async def test_a_report_that_comes_back_to_its_node_is_no_news_there(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent() as agent:
        lab.server.put(web)
        report = await lab.until_state(web, "running")
        (state,) = agent.parts.table
        before = state.local
        echo = msgspec.structs.replace(web, report=msgspec.Raw(msgspec.json.encode(report)))
        assert agent.parts.allocations.put(Put(echo)) is False
        assert state.local.report == report and state.local.spec is before.spec
        assert (
            agent.parts.allocations.put(Put(change(echo, restart_generation=1))) is True
            and state.local.spec.restart_generation == 1
        )


async def test_a_guest_s_way_up_is_written_down_three_times(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Checkpoint] = []
    save = CheckpointStore.save

    def save_and_count(self: CheckpointStore, id: str, allocation: Envelope, checkpoint: Checkpoint) -> None:
        kept.append(checkpoint)
        save(self, id, allocation, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", save_and_count)
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        await lab.until(lambda: bool(kept) and kept[-1].answered, "its answer is written down")
        assert [(checkpoint.made, checkpoint.run) for checkpoint in kept] == [
            (True, "new"),
            (True, "starting"),
            (True, "up"),
        ]
