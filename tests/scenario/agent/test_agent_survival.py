"""Bad days of one node: its agent dies, its server dies, forgets, or denies it. No guest is ended by any of that."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.long import mark_long
from tests.scenario.agent_lab import (
    ADDRESS,
    Lab,
    change,
    make_allocation,
    make_endpoint,
    make_nic,
    make_published_port,
)

from weft.agent.allocation import supervisor, worker
from weft.agent.network import executor
from weft.agent.state.allocation import Checkpoint, MigrationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.objects.envelope import Envelope
from weft.objects.errors import Forbidden, NotAuthenticated, NotFound, WeftError
from weft.objects.identity import Ref, short_id
from weft.protocol.report import ReportAnswer, ReportBody


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent waits a second for the list of a server that says nothing, or only no, and looks after its networks as often."""
    monkeypatch.setattr(supervisor, "LISTEN_SECONDS", 1.0)
    monkeypatch.setattr(executor, "HEAL_SECONDS", 1.0)


def boot_id(lab: Lab, envelope: Envelope) -> str:
    guest = lab.guest(envelope)
    assert guest is not None and guest.state == "running", guest
    return guest.boot_id


async def test_a_new_agent_adopts_the_guests_with_their_boots(lab: Lab) -> None:
    guests = [make_allocation(f"web-{n}", nics=[make_nic(f"10.20.0.{20 + n}")]) for n in range(4)]
    async with lab.agent():
        lab.server.put(*guests)
        for guest in guests:
            await lab.until_state(guest, "running")
    before = {guest.name: boot_id(lab, guest) for guest in guests}
    lab.server.reports.clear()
    async with lab.agent():
        for guest in guests:
            await lab.until_state(guest, "running")
        assert {guest.name: lab.server.reports[guest.name].boot_id for guest in guests} == before
        assert all(lab.server.reports[guest.name].restarts == 0 for guest in guests)


@pytest.mark.usefixtures("impatient")
async def test_without_a_server_guests_run_on_and_a_killed_one_starts_again(lab: Lab) -> None:
    web, db = make_allocation(), make_allocation("db", nics=[make_nic("10.20.0.12")])
    async with lab.agent():
        lab.server.put(web, db)
        await lab.until_state(web, "running")
        await lab.until_state(db, "running")
    first = boot_id(lab, web)
    lab.server.down = True
    async with lab.agent():
        lab.runtime.kill(short_id(db.uid))
        await lab.until(lambda: (g := lab.guest(db)) and g.state == "running", "a restart")
        assert boot_id(lab, web) == first
        lab.server.put(make_allocation("new", nics=[]))
        await lab.settle()
        assert lab.guest(make_allocation("new")) is None
        lab.server.down = False
        await lab.until(lambda: lab.server.reports[db.name].restarts == 1, "the restart told")


@pytest.mark.usefixtures("impatient")
async def test_without_a_server_a_machine_that_lost_power_brings_its_guests_back(lab: Lab) -> None:
    web = make_allocation()
    neighbour = make_endpoint("10.20.0.12", "db", "10.99.0.2")
    async with lab.agent():
        lab.server.put(web, neighbour, make_published_port(8080, "10.20.0.11", ADDRESS))
        await lab.until_state(web, "running")
        await lab.until(lambda: lab.wire.forwards, "the forward")
        known = Path(lab.host.state_dir) / "network.json"
        await lab.until(lambda: '"db"' in known.read_text(), "the neighbour, kept")
    lab.runtime.kill(short_id(web.uid))
    lab.wire.segments.clear()
    lab.wire.ports.clear()
    lab.wire.forwards.clear()
    lab.server.down = True
    async with lab.agent():
        await lab.until(lambda: (g := lab.guest(web)) and g.state == "running", "the guest")
        endpoints = lab.wire.segments[short_id("uid-of-blue")].endpoints
        assert [e.name for e in endpoints] == ["web", "db"]
        assert [f.port for f in lab.wire.forwards] == [8080]


def read_orphans(lab: Lab) -> list[dict[str, Any]]:
    return [json.loads(copy) for copy in lab.server.node_report.orphan_allocations]


async def test_an_empty_store_makes_orphans_of_guests_and_ends_none(lab: Lab) -> None:
    web, gone = make_allocation(), make_allocation("gone", nics=[make_nic("10.20.0.12")])
    far = make_endpoint("10.20.0.13", "far", "10.99.0.2")
    async with lab.agent():
        lab.server.put(web, gone, far, make_published_port(8080, "10.20.0.11", ADDRESS))
        await lab.until_state(web, "running")
        await lab.until_state(gone, "running")
        await lab.until(lambda: lab.wire.forwards, "the forward")
        await lab.until(lambda: len(lab.wire.segments[short_id("uid-of-blue")].endpoints) == 3, "the neighbour")
        before = [boot_id(lab, web), boot_id(lab, gone)]
        lab.server.restore("e2")
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.epoch == "e2", "epoch e2")
        report = lab.server.node_report
        assert report is not None
        assert report.orphans == [f"{gone.uid} vm/default/gone 1", f"{web.uid} vm/default/web 1"]
        copies = [json.loads(copy) for copy in report.orphan_allocations]
        assert [(copy["uid"], copy["runs"]) for copy in copies] == [(gone.uid, True), (web.uid, True)]
        assert copies[1]["spec"] == json.loads(bytes(web.spec))
        await lab.settle()
        assert [boot_id(lab, web), boot_id(lab, gone)] == before
        assert len(lab.wire.ports) == 2 and [f.port for f in lab.wire.forwards] == [8080]
        assert len(lab.wire.segments[short_id("uid-of-blue")].endpoints) == 3

        lab.server.reports.clear()
        lab.server.put(web)
        await lab.until_state(web, "running")
        assert lab.server.reports[web.name].boot_id == before[0]
        await lab.until(lambda: lab.server.node_report.orphans == [f"{gone.uid} vm/default/gone 1"], "one orphan")
        lab.server.put(change(web, desired="stop"))
        await lab.until_state(web, "stopped")
        assert boot_id(lab, gone) == before[1]
        lab.runtime.kill(short_id(gone.uid))
        said = [f"{gone.uid} False"]
        await lab.until(lambda: [f"{c['uid']} {c['runs']}" for c in read_orphans(lab)] == said, "it runs no more")


async def test_an_agent_that_starts_again_says_of_which_history_its_memory_is(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        history = Path(lab.host.state_dir) / "history"
        await lab.until(lambda: history.exists() and history.read_text() == "e1", "the history, kept")
    lab.server.restore("e2")
    lab.server.lists = False
    lab.server.node_report = None
    async with lab.agent():
        await lab.until(lambda: lab.server.node_report is not None, "the first report")
        assert lab.server.node_report.epoch == "e1" and not lab.server.node_report.orphans
        lab.server.lists = True
        await lab.until(lambda: lab.server.node_report.epoch == "e2", "epoch e2")
        assert lab.server.node_report.orphans == [f"{web.uid} vm/default/web 1"]


async def test_a_server_that_answers_is_waited_for_before_guests_are_started_from_memory(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LISTEN_SECONDS", 0.5)  # the first report is answered before
    monkeypatch.setattr("weft.agent.allocation.plan.FIRST_PAUSE_SECONDS", 0.1)
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    lab.runtime.kill(short_id(web.uid))
    lab.server.lists = False
    async with lab.agent():
        await lab.settle()
        await lab.settle()  # longer than LISTEN_SECONDS in all
        assert (guest := lab.guest(web)) is not None and guest.state == "failed"
        lab.server.lists = True
        await lab.until(lambda: (g := lab.guest(web)) and g.state == "running", "the guest")


@pytest.mark.parametrize("promoted", [True, False])
async def test_a_vm_that_has_a_replica_is_not_booted_before_its_cluster_may_have_asked_the_other_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, promoted: bool
) -> None:
    """All of this cluster was away. If the copy was promoted meanwhile, the guest never boots here; if nobody says so, it does."""
    monkeypatch.setattr(worker, "ASK_SECONDS", 3600.0 if promoted else 0.5)
    web, other = make_allocation(replicated=True), make_allocation("other")
    async with lab.agent():
        lab.server.put(web, other)
        for one in (web, other):
            await lab.until_state(one, "running")
    for one in (web, other):
        lab.runtime.kill(short_id(one.uid))
    lab.server.reports.clear()
    async with lab.agent():
        await lab.until(lambda: (said := lab.server.reports.get(web.name)) and said.reason == "notPrimary")
        assert "asks the other one" in lab.server.reports[web.name].message
        await lab.until_state(other, "running")
        if promoted:
            lab.server.put(change(web, replicated=False, desired="stop", desired_count=1))
            await lab.until_state(web, "stopped")
            assert (guest := lab.guest(web)) is None or guest.state != "running"
        else:
            await lab.until_state(web, "running")


async def test_a_vm_that_has_a_replica_is_not_booted_while_its_server_is_silent_again_and_asks_nobody(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ASK_SECONDS", 1.0)
    monkeypatch.setattr("weft.agent.server.contact.CONTACT_SECONDS", 0.5)
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)
    web = make_allocation(replicated=True)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    lab.runtime.kill(short_id(web.uid))
    lab.server.reports.clear()
    async with lab.agent():
        await lab.until(lambda: (said := lab.server.reports.get(web.name)) and said.reason == "notPrimary")
        lab.server.down = True
        end = lab.clock.elapsed() + 2.5
        await lab.until(lambda: lab.clock.elapsed() > end)
        assert (guest := lab.guest(web)) is None or guest.state != "running"
        lab.server.down = False
        await lab.until_state(web, "running")
        lab.server.down = True  # an end later on is of a guest that may run here
        end = lab.clock.elapsed() + 1.0
        await lab.until(lambda: lab.clock.elapsed() > end)
        lab.runtime.kill(short_id(web.uid))
        await lab.until(lambda: (g := lab.guest(web)) and g.state == "running", "the guest")


async def test_of_two_incarnations_with_one_number_the_second_waits_for_the_first(lab: Lab) -> None:
    first, second = make_allocation(uid="first"), make_allocation(uid="second")
    async with lab.agent():
        lab.server.put(first)
        await lab.until_state(first, "running")
        lab.server.restore("e2", second)
        report = await lab.until_state(second, "pending")
        assert report.reason == "blocked", report
        await lab.settle()
        assert lab.guest(second) is None
        assert boot_id(lab, first)


async def test_what_no_list_holds_any_more_while_a_step_is_written_down_is_told_as_an_orphan(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk: the server forgets the allocation while its agent notes that it is about to start the guest."""
    web, save = make_allocation(), CheckpointStore.save
    at_it, go_on = threading.Event(), threading.Event()

    def save_slowly(copies: CheckpointStore, name: str, allocation: Envelope, checkpoint: Checkpoint) -> None:
        if checkpoint.run == "starting" and not at_it.is_set():
            at_it.set()
            assert go_on.wait(20)
        save(copies, name, allocation, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", save_slowly)
    async with lab.agent() as agent:
        lab.server.put(web)
        await lab.until(at_it.is_set, "the note")
        lab.server.restore("e2")
        await lab.until(lambda: agent.parts.allocations.epoch == "e2", "that it was missed")
        go_on.set()
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.epoch == "e2", "epoch e2")
        await lab.settle()
        assert lab.server.node_report is not None
        assert lab.server.node_report.orphans == [f"{web.uid} vm/default/web 1"]


async def test_the_root_disk_of_a_guest_that_was_placed_elsewhere_stays_as_a_volume(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.restore("e2")
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.orphans, "an orphan")
        lab.server.superseded = [web.uid]
        await lab.until(lambda: lab.server.node_report.volumes == [web.uid], "its disk as a volume")
        await lab.until(lambda: not lab.server.node_report.orphans, "no orphan")
        assert lab.guest(web) is None or lab.guest(web).state == "absent"
        assert web.uid in lab.shelf.volumes and short_id(web.uid) not in lab.shelf.volumes
        assert "kept-disks" in lab.server.node_report.capabilities


async def test_an_orphan_stays_one_over_an_agents_death_and_is_not_started_again(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.restore("e2")
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.orphans, "an orphan")
    async with lab.agent():
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.orphans, "an orphan")
        lab.runtime.kill(short_id(web.uid))
        await lab.settle()
        await lab.settle()
        guest = lab.guest(web)
        assert guest is not None and guest.state == "failed"
        assert short_id(web.uid) in lab.shelf.volumes


@pytest.mark.usefixtures("impatient")
async def test_what_was_told_as_an_orphan_is_one_for_an_agent_that_starts_without_a_server(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is slow to say how the guest is, so nothing was done about it yet when the server is told."""
    web, db = make_allocation(), make_allocation("db", nics=[make_nic("10.20.0.12")])
    report, kept = lab.server.report, list[dict[str, bool]]()

    def look(node: str, body: ReportBody) -> ReportAnswer:
        if body.node is not None and body.node.orphans:
            kept.append(
                {saved.uid: checkpoint.orphan for saved, checkpoint in CheckpointStore(lab.host.state_dir).load()}
            )
        return report(node, body)

    async with lab.agent():
        lab.server.put(web, db)
        await lab.until_state(web, "running")
        await lab.until_state(db, "running")
    lab.runtime.kill(short_id(web.uid))
    lab.runtime.kill(short_id(db.uid))
    lab.server.delete(web)
    lab.orders.delay_seconds["inspect"] = 60.0
    monkeypatch.setattr(lab.server, "report", look)
    async with lab.agent():
        await lab.until(lambda: kept, "an orphan")
    lab.orders.delay_seconds.clear()
    lab.server.down = True
    async with lab.agent():
        await lab.until(lambda: (g := lab.guest(db)) and g.state == "running", "the one that was listed last")
        await lab.settle()
        assert (guest := lab.guest(web)) is not None and guest.state == "failed"
    assert kept[0] == {web.uid: True, db.uid: False}


async def test_a_deletion_without_a_desired_stop_before_it_is_no_evidence(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        first = boot_id(lab, web)
        lab.server.delete(web)
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.orphans, "an orphan")
        assert boot_id(lab, web) == first


async def test_an_allocation_deleted_while_the_agent_was_away_ends_its_guest_if_it_says_so(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        web.deleting_since = 1.0
        lab.orders.delay_seconds["stop"] = 0.3
        lab.server.put(web)
        lab.server.delete(web)
        await lab.until(lambda: lab.guest(web) is None, "its end")
        await lab.until(lambda: lab.copies() == [], "no copy")


async def test_a_guest_without_even_a_copy_is_told_and_kept(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    first = boot_id(lab, web)
    for copy in lab.copies():
        (Path(lab.host.state_dir) / "allocations" / copy).unlink()
    lab.server.restore("e2")
    async with lab.agent():
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.epoch == "e2", "epoch e2")
        assert lab.server.node_report is not None
        assert lab.server.node_report.orphans == [f"{web.uid} vm/-/web 1"]
        lab.server.put(web)
        await lab.until_state(web, "running")
        assert boot_id(lab, web) == first
        await lab.until(lambda: lab.server.node_report.orphans == [], "no orphan")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "refusal", [NotAuthenticated("who are you?"), Forbidden("not yours"), NotFound('node "n1" not found')]
)
async def test_a_server_that_denies_the_node_ends_no_guest(lab: Lab, refusal: WeftError) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    first = boot_id(lab, web)
    lab.server.refusal = refusal
    async with lab.agent():
        await lab.settle()
        assert boot_id(lab, web) == first
        lab.runtime.kill(short_id(web.uid))
        await lab.until(lambda: (g := lab.guest(web)) and g.state == "running", "a restart")


async def test_a_higher_incarnation_here_ends_the_lower_one_first_and_keeps_its_disk(lab: Lab) -> None:
    old, new = make_allocation(uid="old"), make_allocation(uid="new", incarnation=2)
    async with lab.agent():
        lab.server.put(old)
        await lab.until_state(old, "running")
        lab.orders.shutdown_seconds = 0.2
        lab.server.put(new)
        await lab.until_state(new, "running")
        guest = lab.guest(old)
        assert guest is not None and guest.state == "stopped"
        assert short_id("old") in lab.shelf.volumes
        assert len(lab.wire.ports) == 1
    told = [(name, report.state) for name, report in lab.server.history]
    assert told.index((old.name, "stopped")) < told.index((new.name, "running"))


async def test_one_that_was_superseded_and_is_listed_again_says_when_it_is_released(lab: Lab) -> None:
    """The server waits for that word before it takes the place away, and with it the VM, or its move."""
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.orders.delay_seconds = {"stop": 0.3, "remove": 0.3}
        lab.server.restore("e2")
        lab.server.superseded = [web.uid]
        await lab.until(lambda: any(event.reason == "Superseded" for event in lab.server.events), "it is to end")
        lab.server.superseded = []
        lab.server.put(web)
        await lab.settle()
        lab.orders.delay_seconds = {}
        lab.server.put(msgspec.structs.replace(web, deleting_since=1.0))
        await lab.until_state(web, "released")


async def test_a_lower_incarnation_changes_nothing_for_the_higher_one(lab: Lab) -> None:
    new, old = make_allocation(uid="new", incarnation=2), make_allocation(uid="old")
    async with lab.agent():
        lab.server.put(new)
        await lab.until_state(new, "running")
        first = boot_id(lab, new)
        lab.server.put(old)
        assert (await lab.until_state(old, "stopped")).reason == "superseded"
        assert boot_id(lab, new) == first


@pytest.mark.parametrize("seed", mark_long([1, 2, 3], 2, 3))
async def test_after_any_bad_days_there_is_one_guest_one_disk_one_port(lab: Lab, seed: int) -> None:
    """Wishes change, guests die, the agent is killed amid things; then all is quiet, and it must be right."""
    chance = random.Random(seed)
    web, id = make_allocation(restart="always"), short_id("alloc-web")
    lab.orders.boot_seconds = 0.02
    lab.orders.shutdown_seconds = 0.02
    restart_generation = 0
    for _ in range(12):
        lab.orders.delay_seconds = {verb: chance.choice([0, 0.03]) for verb in ("start", "stop", "suspend", "remove")}
        async with lab.agent():
            for _ in range(chance.randrange(1, 4)):
                event = chance.choice(["run", "stop", "suspend", "boot", "kill", "off"])
                guest = lab.guest(web)
                if event == "boot":
                    restart_generation += 1
                if event in ("run", "stop", "suspend", "boot"):
                    lab.server.put(
                        change(web, desired="run" if event == "boot" else event, restart_generation=restart_generation)
                    )
                elif guest is not None and guest.state == "running":
                    (lab.runtime.kill if event == "kill" else lab.runtime.power_off)(id)
                await asyncio.sleep(chance.choice([0, 0.01, 0.05, 0.1]))
    lab.orders.delay_seconds = {}
    async with lab.agent():
        lab.server.reports.clear()
        lab.server.put(change(web, restart_generation=restart_generation + 1))
        await lab.until(
            lambda: (r := lab.server.reports.get(web.name)) and r.restart_generation == restart_generation + 1,
            "the last boot",
        )
        await lab.until_state(web, "running")
        assert lab.server.reports[web.name].boot_id == boot_id(lab, web)
        assert (list(lab.shelf.volumes), len(lab.wire.ports), len(lab.copies())) == ([id], 1, 1)


async def test_a_guest_that_came_and_was_deleted_here_has_moved_on_for_an_older_store(lab: Lab) -> None:
    """Its source must not hear that it never ran here: it would begin it anew, with empty disks."""
    here, copies = make_allocation(nics=[]), CheckpointStore(lab.host.state_dir)
    copies.save(short_id(here.uid), here, Checkpoint(run="up", made=True, arrived_by="m"))
    async with lab.agent():
        lab.server.put(here)
        await lab.until_state(here, "running")
        lab.server.put(msgspec.structs.replace(change(here, desired="stop"), deleting_since=1.0))
        await lab.until_state(here, "released")
    assert lab.copies() == [] and copies.load_departure(short_id(here.uid)) == MigrationState(
        "m", "target", "", taken=True
    )
    lab.server.reports.clear()
    migration = AllocatedMigration(key="m", peer="n2", peer_uid="node-2", peer_allocation="b")
    for wish in ("run", "stop"):
        coming = change(here, role="target", migration=migration, desired=wish)
        async with lab.agent():
            lab.server.put(coming)
            report = await lab.until_state(coming, "stopped")
            await lab.settle()
            assert (report.reason, report.migration) == ("migrated", None)
            assert lab.guest(here) is None and not lab.shelf.volumes


async def test_two_workloads_of_one_name_are_not_confused(lab: Lab) -> None:
    one = make_allocation("web", uid="one", nics=[])
    other = make_allocation("web", uid="two", nics=[], incarnation=2, workload=Ref("vm", "web", "other", "blue"))
    async with lab.agent():
        lab.server.put(one, other)
        await lab.until_state(one, "running")
        await lab.until_state(other, "running")
