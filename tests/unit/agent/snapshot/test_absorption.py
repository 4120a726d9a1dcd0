"""Layers that no snapshot needs go in the background, and everything else that happens to a disk comes first."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from tests.scenario.agent_lab import change, make_allocation
from tests.unit.agent.snapshot.layer_lab import Parts, ValueLayers

from weft.agent.snapshot import absorption
from weft.agent.snapshot.absorption import Absorption
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.state.allocation import Checkpoint, DiskRelocation, MigrationState
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.volume.inventory import Volumes
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.driver.layers import MOST_LAYERS
from weft.contracts.driver.runtime import GuestFacts, GuestState
from weft.kinds.allocation import AllocatedVolume
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot
from weft.objects.envelope import Envelope
from weft.objects.errors import DriverFailed, IllegalTransition
from weft.objects.identity import short_id

DATA = "volume-uid-of-data"


class ValueSnapshots:
    """A runtime that absorbs layers of its running guests."""

    def __init__(self, layers: ValueLayers) -> None:
        self.layers, self.calls = layers, list[tuple[str, str, str]]()
        self.begun = asyncio.Event()
        self.cancelled = 0

    async def absorb(self, guest_id: str, serial: str, layer: str) -> None:
        self.calls.append((guest_id, serial, layer))
        self.begun.set()
        try:
            await self.layers.meet()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class ValueRuntime:
    def __init__(self, snapshots: ValueSnapshots) -> None:
        self.name, self.snapshots = "values", snapshots


class Lab(Parts):
    """``web`` has a root disk and a volume, whose chains have three layers each; nothing needs the middle one of the root's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.layers = self.local.layers
        self.snapshots, self.turns = ValueSnapshots(self.layers), DiskTurns()
        self.web = make_allocation(volumes=[AllocatedVolume(name="data", uid=DATA, size=1 << 20)])
        self.root = short_id(self.web.uid)
        self.layers.chains = {self.root: ["r1", "r2", "r3"], DATA: ["d1", "d3"]}
        self.layers.add("s1", root=["r1"], data=["d1"])
        self.layers.add("s3", root=["r1", "r2", "r3"], data=["d1", "d3"])
        self.images: dict[str, Any] = {}
        self.restart()

    def restart(self) -> None:
        """An agent as it is after kill -9."""
        runtime: Any = ValueRuntime(self.snapshots)
        images: Any = SimpleNamespace(find=self.images.get)
        chosen = Runtimes({"vm": runtime})
        self.volumes = Volumes(self.pools, self.table, self.reporter, self.clock, self.tasks)
        self.absorption = Absorption(
            *(self.pools, self.volumes, self.table, chosen, images),
            *(self.kept, self.turns, self.reporter, self.clock),
        )

    def put(self, envelope: Envelope, guest: GuestState = "running", **checkpoint: Any) -> AllocationState:
        made = Checkpoint(**{"run": "up", "made": True, **checkpoint})
        state = AllocationState(envelope, made, CheckpointStore(self.host.state_dir))
        state.guest = GuestFacts(state.local.id, envelope.uid, "web", 1, guest)
        self.table.states[envelope.uid] = state
        return state


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name in ("LEAST_PAUSE_SECONDS", "WATCH_SECONDS"):
        monkeypatch.setattr(absorption, name, 0.01)
    return Lab(tmp_path)


async def test_a_running_guest_takes_up_the_layer_and_then_the_pool_forgets_it(lab: Lab) -> None:
    lab.put(lab.web)
    await lab.absorption.absorb_all()
    assert lab.snapshots.calls == [(lab.root, "root", "/pool/r2")]
    assert lab.layers.chains == {lab.root: ["r1", "r3"], DATA: ["d1", "d3"]}
    assert not lab.layers.absorbed


async def test_of_several_layers_the_topmost_goes_first_so_that_each_is_copied_once(lab: Lab) -> None:
    lab.put(lab.web)
    lab.layers.kept.clear()
    await lab.absorption.absorb_all()
    paths = [call[1:] for call in lab.snapshots.calls]
    root, data = [("root", f"/pool/{id_}") for id_ in ("r3", "r2", "r1")], [("data", "/pool/d3"), ("data", "/pool/d1")]
    assert paths == root + data
    assert lab.layers.chains == {lab.root: [], DATA: []}


async def test_the_disks_of_a_stopped_guest_are_shortened_without_it_on_their_image(lab: Lab) -> None:
    state = lab.put(lab.web, "stopped", run="down")
    lab.layers.kept.clear()
    lab.layers.add("s3", root=["r1", "r2", "r3"])
    await lab.absorption.absorb_all()
    assert lab.layers.chains[lab.root] == ["r1", "r2", "r3"], "what is at the bottom is unknown without the image"
    assert [(volume, layer, base) for volume, layer, base in lab.layers.absorbed] == [
        (DATA, "d3", None),
        (DATA, "d1", None),
    ]
    assert state.local.spec.image is not None
    lab.images[state.local.spec.image.sha256] = SimpleNamespace(disk="/images/tiny", disk_format="raw")
    await lab.absorption.absorb_all()
    assert lab.layers.absorbed[2:] == [(lab.root, "r2", "/images/tiny"), (lab.root, "r1", "/images/tiny")]
    assert not lab.snapshots.calls


async def test_a_suspended_guests_disks_are_shortened_too(lab: Lab) -> None:
    state = lab.put(lab.web, "suspended", run="down")
    assert state.local.spec.image is not None
    lab.images[state.local.spec.image.sha256] = SimpleNamespace(disk="/images/tiny", disk_format="raw")
    await lab.absorption.absorb_all()
    assert lab.layers.absorbed == [(lab.root, "r2", "/images/tiny")] and not lab.snapshots.calls


async def put_volume(lab: Lab, *layers: str) -> None:
    await lab.local.ensure(DATA, size_bytes=1 << 20, base=None)
    lab.layers.chains = {DATA: [*layers]}
    lab.layers.kept.clear()
    await lab.volumes.find()


async def test_a_volume_that_nobody_has_is_shortened_in_the_nodes_own_pool(lab: Lab) -> None:
    await put_volume(lab, "d1", "d2", "d3")
    lab.layers.add("s2", data=["d1", "d2"])
    await lab.absorption.absorb_all()
    assert lab.layers.absorbed == [(DATA, "d3", None), (DATA, "d1", None)] and lab.layers.chains == {DATA: ["d2"]}


async def test_a_volume_in_a_pool_that_other_nodes_may_share_is_left_alone(lab: Lab) -> None:
    await lab.san.ensure(DATA, size_bytes=1 << 20, base=None)
    lab.san.layers.chains = {DATA: ["d1"]}
    await lab.volumes.find()
    assert lab.volumes.unattached == {DATA}
    await lab.absorption.absorb_all()
    assert not lab.san.layers.absorbed


async def test_a_volume_that_a_vm_is_about_to_get_is_left_alone(lab: Lab) -> None:
    await put_volume(lab, "d1")
    lab.put(lab.web, "absent", made=False, run="down")
    await lab.absorption.absorb_all()
    assert not lab.layers.absorbed


async def test_no_volume_is_touched_that_a_guest_nobody_explains_may_have(lab: Lab) -> None:
    await put_volume(lab, "d1")
    lab.table.found["stranger"] = GuestFacts("stranger", "u", "stranger", 1, "running")
    await lab.absorption.absorb_all()
    assert not lab.layers.absorbed


async def test_a_vm_that_gets_the_volume_does_not_wait_for_its_layers(lab: Lab) -> None:
    await put_volume(lab, "d1")
    lab.layers.gate = asyncio.Event()
    absorbing = asyncio.ensure_future(lab.absorption.absorb_all())
    while lab.turns._background == {}:
        await asyncio.sleep(0.001)
    async with lab.turns.steps([DATA]):
        assert all(task.done() for task in lab.turns._background) and not lab.layers.absorbed
    await absorbing
    assert lab.layers.chains == {DATA: ["d1"]}


@pytest.mark.parametrize("guest", ["starting", "paused"])
async def test_a_guest_in_between_is_left_alone(lab: Lab, guest: GuestState) -> None:
    lab.put(lab.web, guest)
    await lab.absorption.absorb_all()
    assert not lab.snapshots.calls and not lab.layers.absorbed


RELOCATION = DiskRelocation("k", "root", "san", "", "local", "")
MIGRATION = MigrationState("k", "source", "peer")
SNAPSHOT = AllocatedSnapshot(uid="s4", name="s4")


@pytest.mark.parametrize(
    ("fields", "checkpoint"),
    [
        ({"role": "source"}, {}),
        ({"role": "target"}, {}),
        ({"snapshots": [SNAPSHOT]}, {}),
        ({}, {"migration": MIGRATION}),
        ({}, {"relocation": RELOCATION}),
        ({}, {"made": False}),
    ],
)
async def test_nothing_is_absorbed_while_it_migrates_is_relocated_or_has_a_snapshot_taken(
    lab: Lab, fields: dict[str, Any], checkpoint: dict[str, Any]
) -> None:
    lab.put(change(lab.web, **fields), **checkpoint)
    await lab.absorption.absorb_all()
    assert not lab.snapshots.calls


async def test_a_volume_that_two_allocations_name_is_left_alone(lab: Lab) -> None:
    lab.put(lab.web, "stopped", run="down")
    lab.put(make_allocation("other", volumes=[AllocatedVolume(name="data", uid=DATA, size=1 << 20)]))
    lab.layers.kept.clear()
    await lab.absorption.absorb_all()
    assert not lab.layers.absorbed


async def test_it_stops_when_the_guest_begins_to_migrate_and_goes_on_afterwards(lab: Lab) -> None:
    state = lab.put(lab.web)
    lab.layers.gate = asyncio.Event()
    working = asyncio.ensure_future(lab.absorption.absorb_all())
    await lab.snapshots.begun.wait()
    state.checkpoint = replace(state.checkpoint, migration=MIGRATION)
    await working
    assert lab.snapshots.cancelled == 1 and "r2" in lab.layers.chains[lab.root]
    state.checkpoint = replace(state.checkpoint, migration=None)
    lab.layers.gate.set()
    await lab.absorption.absorb_all()
    assert "r2" not in lab.layers.chains[lab.root]


async def test_it_has_stopped_before_a_step_of_the_allocation_begins(lab: Lab) -> None:
    lab.put(lab.web)
    lab.layers.gate = asyncio.Event()
    working = asyncio.ensure_future(lab.absorption.absorb_all())
    await lab.snapshots.begun.wait()
    async with lab.turns.steps([DATA]):
        assert lab.snapshots.cancelled == 1
        await working
    assert "r2" in lab.layers.chains[lab.root]


async def test_a_full_pool_is_tried_again_later_and_logged_once(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.put(lab.web)
    full = [DriverFailed("no space left in the pool", reason="noSpace") for _ in range(3)]
    lab.layers.failures = list(full)
    with caplog.at_level(logging.WARNING):
        await lab.absorption.absorb_all()
        await lab.absorption.absorb_all()
        assert len(lab.snapshots.calls) == 1, "it waits"
        monkeypatch.setattr(absorption, "FIRST_RETRY_SECONDS", 0.0)
        monkeypatch.setattr(absorption, "LONGEST_RETRY_SECONDS", 0.0)
        lab.restart()
        for _ in range(4):
            await lab.absorption.absorb_all()
    assert "r2" not in lab.layers.chains[lab.root]
    assert sum("no space left" in record.message for record in caplog.records) == 2, "once by each agent"


async def test_a_guest_that_has_just_ended_is_no_trouble(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.put(lab.web)
    lab.layers.failures = [IllegalTransition("it doesn't run")]
    await lab.absorption.absorb_all()
    assert not caplog.records
    await lab.absorption.absorb_all()
    assert "r2" not in lab.layers.chains[lab.root]


async def test_after_a_kill_between_the_copy_and_its_record_it_is_repeated(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.put(lab.web)
    forget = lab.layers.forget_layer

    async def die(volume_id: str, layer_id: str) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(lab.layers, "forget_layer", die)
    await lab.absorption.absorb_all()
    monkeypatch.setattr(lab.layers, "forget_layer", forget)
    lab.restart()
    await lab.absorption.absorb_all()
    assert lab.snapshots.calls == [(lab.root, "root", "/pool/r2")] * 2
    assert lab.layers.chains[lab.root] == ["r1", "r3"]


async def test_a_snapshot_that_goes_sets_it_to_work_and_the_report_hears_of_the_size(lab: Lab) -> None:
    lab.put(lab.web)
    await lab.kept.refresh()
    working = [asyncio.ensure_future(part.keep()) for part in (lab.kept, lab.absorption)]
    try:
        async with asyncio.timeout(10):
            while "r2" in lab.layers.chains[lab.root]:
                await asyncio.sleep(0.005)
            lab.kept.let_go(["s1"])
            while lab.layers.chains != {lab.root: ["r3"], DATA: ["d3"]}:
                await asyncio.sleep(0.005)
            while [one.uid for one in lab.kept.snapshots] != ["s3"]:
                await asyncio.sleep(0.005)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def test_chains_that_are_short_are_looked_at_again_only_when_what_is_kept_has_changed(lab: Lab) -> None:
    lab.put(lab.web)
    await lab.kept.refresh()
    await lab.absorption.absorb_all()
    looks = lab.layers.looks
    for _ in range(5):
        await lab.kept.refresh()
        await lab.absorption.absorb_all()
    assert lab.layers.looks == looks
    lab.layers.kept.clear()
    await lab.kept.refresh()
    await lab.absorption.absorb_all()
    assert lab.layers.chains == {lab.root: [], DATA: []}


async def test_people_hear_once_that_a_chain_comes_near_its_limit(lab: Lab) -> None:
    lab.put(lab.web)
    said = lambda: [event.message for event in lab.reporter.outbox.read(100)]  # noqa: E731
    lab.layers.kept.clear()
    for number in range(1, MOST_LAYERS + 1):
        lab.layers.chains[DATA] = [f"d{n}" for n in range(number)]
        lab.layers.add(f"s{number}", data=lab.layers.chains[DATA][:])
        await lab.kept.refresh()
        await lab.absorption.absorb_all()
        assert bool(said()) == (number > MOST_LAYERS - 5), (number, said())
    before = said()
    lab.layers.add("other", data=lab.layers.chains[DATA][:])
    await lab.kept.refresh()
    await lab.absorption.absorb_all()
    assert (
        said() == before and "volume data stands on 30 layers, and soon on too many for another snapshot" in before[-1]
    )
