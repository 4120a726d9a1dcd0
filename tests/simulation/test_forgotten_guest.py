"""A store from before guests were placed is put back: what people delete then goes, where it is known to be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.node import Node
from tests.simulation.people import MIB, VMS, VOLUMES
from tests.simulation.promises import _orphans, find_unmet
from tests.simulation.simulation import Store, simulate
from tests.simulation.test_returning_node import HERE, ask, boot_ids, node_phase, phase, places, read, until
from tests.simulation.truth import Violation
from weft.kinds.allocation import AllocationSpec
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import decode_part


def here(fabric: Fabric) -> Node:
    return next(node for node in fabric.nodes if node.name == HERE)


def reason(fabric: Fabric, name: str) -> str:
    vm = read(fabric, "vm", name)
    return decode_part(vm.status, WorkloadStatus).reason if vm is not None else "absent"


def known_orphans(fabric: Fabric) -> list[tuple[str, str]]:
    """Node and allocation uid of each guest that a node tells of, and the store doesn't know."""
    return [(node.name, uid) for node in fabric.nodes for uid in _orphans(fabric, node)]


def copies(fabric: Fabric, name: str) -> list[str]:
    volume = read(fabric, "volume", name)
    return decode_part(volume.status, VolumeStatus).copies if volume is not None else []


def owner_of(fabric: Fabric, address: str) -> str:
    found = [decode_part(item.spec, EndpointSpec) for item in fabric.ledger.notes.objects("endpoint")]
    return next((spec.workload.name for spec in found if spec.address == address), "nobody")


def play(run: Callable[[Fabric], Coroutine[Any, Any, None]], store: Store = "memory") -> None:
    with simulate(1, Fate(1, 0, {}), store) as fabric:
        fabric.loop.run_until_complete(run(fabric))


async def make_vm(fabric: Fabric, name: str, **more: Any) -> None:
    spec = {"image": "tiny", "memory": 256 * MIB, "networks": ["default"], "grace": 1.0, **more}
    await ask(fabric, "POST", VMS, {"kind": "vm", "name": name, "spec": spec})


async def run_here(fabric: Fabric, name: str) -> AllocationSpec:
    await until(lambda: phase(fabric, name) == "Running", "it runs")
    (place,) = places(fabric, name)
    return place


async def go_back(fabric: Fabric) -> None:
    """The last backup is what there is, and the API is open on it; nobody decides yet, and HERE is cut off."""
    fabric.fate.cut_off.add(HERE)
    fabric.server.kill_api()
    fabric.server.kill_controllers()
    assert fabric.ledger.restore()
    fabric.restores += 1
    fabric.server.start_api()
    await until(lambda: fabric.server.doorway.app is not None, "the API is open")


def test_a_deleted_vm_takes_its_guest_along_though_another_has_the_guest_s_address_by_now() -> None:
    async def run(fabric: Fabric) -> None:
        await fabric.set_up()
        fabric.server.kill_controllers()
        await make_vm(fabric, "books", node=HERE)
        await fabric.ledger.back_up()
        fabric.server.start_controllers()
        address = (await run_here(fabric, "books")).nics[0].address
        await go_back(fabric)
        await make_vm(fabric, "atlas", node="n1")
        fabric.server.start_controllers()
        await until(lambda: owner_of(fabric, address) == "atlas", "the address is another's")
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: reason(fabric, "books") == "orphanRunning", "its guest is known, and can't be taken up")
        assert boot_ids(fabric)
        await ask(fabric, "DELETE", f"{VMS}/books")
        await until(lambda: phase(fabric, "books") == "absent", "it is gone")
        assert not boot_ids(fabric) and not fabric.broken, fabric.witness.violations
        await until(lambda: phase(fabric, "atlas") == "Running", "the other one runs")
        await until(lambda: not find_unmet(fabric) and not here(fabric).shelf.volumes, "nothing is left of it")
        assert owner_of(fabric, address) == "atlas" and not fabric.broken

    play(run)


def test_a_volume_that_is_deleted_while_its_node_is_lost_after_a_restore_is_kept_and_told_there() -> None:
    async def run(fabric: Fabric) -> None:
        await fabric.set_up()
        volume = await ask(fabric, "POST", VOLUMES, {"kind": "volume", "name": "precious", "spec": {"size": 64 * MIB}})
        await fabric.ledger.back_up()
        await make_vm(fabric, "books", node=HERE, volumes=["precious"])
        await run_here(fabric, "books")
        before = boot_ids(fabric)
        await go_back(fabric)
        fabric.server.start_controllers()
        await ask(fabric, "DELETE", f"{VOLUMES}/precious")
        await asyncio.sleep(10.0)
        assert read(fabric, "volume", "precious") is not None, "the node may say yet that it has it"
        await until(lambda: read(fabric, "volume", "precious") is None, "it is gone, its node being lost")
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: _orphans(fabric, here(fabric)), "its guest is told")
        await asyncio.sleep(10.0)
        assert volume["uid"] in here(fabric).shelf.volumes and boot_ids(fabric) == before
        assert find_unmet(fabric) == [] and not fabric.broken
        fabric.witness.left_behind.clear()
        assert [what for what in find_unmet(fabric) if volume["uid"] in what], (
            "of a node that was heard it would be told"
        )

    play(run)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_node_that_still_speaks_of_a_history_between_two_restores_is_waited_for_until_it_is_lost(
    store: Store,
) -> None:
    async def run(fabric: Fabric) -> None:
        await fabric.set_up()
        await until(lambda: node_phase(fabric) == "Ready", "the backup knows it, as of the first history")
        fabric.server.kill_controllers()
        await make_vm(fabric, "books", node=HERE)
        await fabric.ledger.back_up()
        await go_back(fabric)
        fabric.fate.cut_off.discard(HERE)
        fabric.server.start_controllers()
        await run_here(fabric, "books")
        before = boot_ids(fabric)
        await go_back(fabric)
        fabric.server.start_controllers()
        here(fabric).kill()
        here(fabric).start()
        fabric.fate.deaf.add(HERE)
        fabric.fate.cut_off.discard(HERE)
        backed_up = read(fabric, "node", HERE)
        await until(lambda: read(fabric, "node", HERE) is not backed_up, "it says what it was told between the two")
        fabric.fate.cut_off.add(HERE)
        await ask(fabric, "DELETE", f"{VMS}/books")
        await asyncio.sleep(20.0)
        assert phase(fabric, "books") != "absent", "the node may say yet that its guest runs"
        await until(lambda: phase(fabric, "books") == "absent", "it is gone, its node being lost")
        fabric.fate.deaf.discard(HERE)
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: _orphans(fabric, here(fabric)), "its guest is told, and kept")
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations
        assert here(fabric).uid not in fabric.witness.unheard, "it has spoken of this history"

    play(run, store)


def test_a_stopped_vm_that_comes_back_where_its_volume_has_left_with_another_vm_is_told_where_the_data_is() -> None:
    async def run(fabric: Fabric) -> None:
        await fabric.set_up()
        person = fabric.people[0]
        await ask(fabric, "POST", VOLUMES, {"kind": "volume", "name": person.volume, "spec": {"size": 64 * MIB}})
        person.has_volume = True
        await make_vm(fabric, person.name, node=HERE, volumes=[person.volume])
        await run_here(fabric, person.name)
        person.wanted = await ask(fabric, "POST", f"{VMS}/{person.name}:stop", {})
        await until(lambda: phase(fabric, person.name) == "Stopped", "it is stopped")
        await fabric.ledger.back_up()
        await ask(fabric, "DELETE", f"{VMS}/{person.name}")
        await until(lambda: phase(fabric, person.name) == "absent", "it is gone")
        await make_vm(fabric, "books", volumes=[person.volume])
        await run_here(fabric, "books")
        await ask(fabric, "POST", f"{VMS}/books:migrate", {"to": "n1"})
        await until(lambda: [place.node for place in places(fabric, "books")] == ["n1"], "it has left with the data")
        await go_back(fabric)
        fabric.fate.cut_off.discard(HERE)
        fabric.server.start_controllers()
        await until(lambda: copies(fabric, person.volume) == ["n1"], "it is told")
        await until(lambda: not find_unmet(fabric), "all is as people know")
        person.wanted = await ask(fabric, "POST", f"{VMS}/{person.name}:start", {})
        await until(lambda: phase(fabric, person.name) == "Running", "it begins with an empty volume")
        assert copies(fabric, person.volume) == ["n1"] and not find_unmet(fabric) and not fabric.broken

    play(run)


@pytest.mark.parametrize("removed", [False, True])
def test_a_guest_that_was_placed_anew_while_its_node_was_lost_begins_again_there_only_until_the_node_is_heard(
    removed: bool,
) -> None:
    async def run(fabric: Fabric) -> None:
        await fabric.set_up()
        await until(lambda: node_phase(fabric) == "Ready", "the backup knows it")
        fabric.server.kill_controllers()
        await make_vm(fabric, "books")
        await fabric.ledger.back_up()
        await ask(fabric, "PATCH", f"{VMS}/books", {"spec": {"node": HERE}})
        fabric.server.start_controllers()
        await run_here(fabric, "books")
        await go_back(fabric)
        fabric.server.start_controllers()
        if removed:
            await until(lambda: node_phase(fabric) == "NotReady", "it counts as lost")
            await ask(fabric, "DELETE", f"/v1/nodes/{HERE}?force=1")
        place = await run_here(fabric, "books")
        assert place.node != HERE, "it was placed anew"
        (guest,) = [guest for node, guest in fabric.witness.alive if node == HERE]
        here(fabric).kill_guest(guest)
        assert not boot_ids(fabric)
        await until(lambda: boot_ids(fabric) or fabric.broken, "it begins again: nobody has told its node")
        running = here(fabric).runtime._read(guest)
        assert running is not None and not fabric.broken, fabric.witness.violations
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: node_phase(fabric) == "Ready" and _orphans(fabric, here(fabric)), "it is told, and kept")
        here(fabric).kill_guest(guest)
        await asyncio.sleep(20.0)
        assert not boot_ids(fabric) and not fabric.broken, fabric.witness.violations
        with pytest.raises(Violation, match="runs twice"):
            fabric.witness.see_guest(HERE, running)

    play(run)


async def place_after_the_backup(fabric: Fabric, where: str = HERE, **known: str) -> dict[str, str]:
    """The boot ids once books runs ``where``, from where it may move; the backup knows it, not its place, and of its wishes
    those that are ``known``."""
    await fabric.set_up()
    fabric.server.kill_controllers()
    await make_vm(fabric, "books", **known)
    await fabric.ledger.back_up()
    await ask(fabric, "PATCH", f"{VMS}/books", {"spec": {"node": where}})
    fabric.server.start_controllers()
    assert (await run_here(fabric, "books")).node == where
    await ask(fabric, "PATCH", f"{VMS}/books", {"spec": {"node": None}})
    return boot_ids(fabric)


async def delete_all_of_it(fabric: Fabric) -> None:
    await ask(fabric, "DELETE", f"{VMS}/books")
    await until(lambda: phase(fabric, "books") == "absent", "it is gone")
    await until(lambda: not find_unmet(fabric), "nothing is left of it")
    assert not fabric.witness.alive and not fabric.broken, fabric.witness.violations


def test_a_guest_of_a_lost_history_runs_on_though_its_vm_was_placed_a_second_time_and_has_moved_since() -> None:
    async def run(fabric: Fabric) -> None:
        before = await place_after_the_backup(fabric)
        await go_back(fabric)
        fabric.server.start_controllers()
        place = await run_here(fabric, "books")  # its first node is lost
        (to,) = {"n1", "n3"} - {place.node}
        await ask(fabric, "POST", f"{VMS}/books:migrate", {"to": to})
        await until(lambda: [place.node for place in places(fabric, "books")] == [to], "it has moved")
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: _orphans(fabric, here(fabric)), "its first guest is told")
        await asyncio.sleep(10.0)
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations
        await delete_all_of_it(fabric)

    play(run)


def test_a_guest_whose_move_the_source_broke_off_is_its_vm_s_again_though_the_target_is_lost() -> None:
    async def run(fabric: Fabric) -> None:
        before = await place_after_the_backup(fabric, HERE, node=HERE)
        await ask(fabric, "POST", f"{VMS}/books:migrate", {"to": "n1", "bytes_per_second": MIB})
        await until(lambda: fabric.witness.came_to["Migrating"], "it is on its way")
        fabric._cut_off("n1")
        await go_back(fabric)
        fabric.fate.cut_off.discard(HERE)
        fabric.server.start_controllers()
        await until(lambda: places(fabric, "books"), "the guest that its node has is the VM's")
        assert places(fabric, "books")[0].node == HERE and boot_ids(fabric) == before
        await ask(fabric, "DELETE", f"{VMS}/books")
        await until(lambda: phase(fabric, "books") == "absent", "it is gone")
        assert not boot_ids(fabric) and not fabric.broken, fabric.witness.violations

    play(run)


def test_a_guest_that_came_by_a_move_and_is_its_vm_s_again_is_so_after_the_next_restore_too() -> None:
    async def run(fabric: Fabric) -> None:
        await place_after_the_backup(fabric, "n3", node="n3")
        await ask(fabric, "POST", f"{VMS}/books:migrate", {"to": HERE})
        await until(lambda: fabric.witness.came_to["Succeeded"], "it has come")
        before, moved = boot_ids(fabric), fabric.witness.came_to["Migrating"]
        await ask(fabric, "POST", f"{VMS}/books:migrate", {"to": "n1", "bytes_per_second": MIB})
        await until(lambda: fabric.witness.came_to["Migrating"] > moved, "it is to go on")
        for _ in range(2):
            await go_back(fabric)
            fabric.fate.cut_off.discard(HERE)
            fabric.server.start_controllers()
            await until(lambda: [place.node for place in places(fabric, "books")] == [HERE], "it is the VM's")
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations

    play(run)


def test_a_deleted_vm_takes_along_what_its_source_sent_away_though_the_target_is_lost() -> None:
    async def run(fabric: Fabric) -> None:
        await place_after_the_backup(fabric, HERE, node=HERE)
        await ask(fabric, "POST", f"{VMS}/books:migrate", {"to": "n1", "mode": "cold"})
        await until(
            lambda: any(p.migration and p.migration.address for p in places(fabric, "books")), "the target waits for it"
        )
        fabric._cut_off("n1")
        await go_back(fabric)
        await asyncio.sleep(1.0)
        assert not boot_ids(fabric), "it was ended, to be sent"
        fabric.fate.cut_off.discard(HERE)
        fabric.server.start_controllers()
        await until(lambda: reason(fabric, "books") == "orphanRunning", "only the target could say where it is")
        await asyncio.sleep(60.0)
        assert not places(fabric, "books")
        await ask(fabric, "DELETE", f"{VMS}/books")
        await until(lambda: phase(fabric, "books") == "absent", "it is gone, the target being lost")
        assert not here(fabric).copies() and not here(fabric).guests(), "nothing of it is left here"
        await until(lambda: not _orphans(fabric, here(fabric)), "and nothing is told of it")
        fabric.fate.cut_off.discard("n1")
        await until(lambda: not find_unmet(fabric), "all is as people know")
        assert not fabric.broken, fabric.witness.violations

    play(run)


def test_a_guest_whose_node_was_given_up_in_a_lost_history_is_kept_and_goes_with_its_vm() -> None:
    async def run(fabric: Fabric) -> None:
        before = await place_after_the_backup(fabric)
        fabric.fate.cut_off.add(HERE)
        await until(lambda: node_phase(fabric) == "NotReady", "it counts as lost")
        fabric.witness.dark.add(here(fabric).uid)  # so people say
        await ask(fabric, "DELETE", f"/v1/nodes/{HERE}?force=1")
        fabric.witness.dark.clear()
        await until(lambda: len(fabric.witness.alive) == 2, "it is placed anew")
        later = places(fabric, "books")
        await go_back(fabric)
        fabric.fate.cut_off.discard(HERE)
        fabric.server.start_controllers()
        await until(
            lambda: [place.node for place in places(fabric, "books")] == [later[0].node], "the later is taken up"
        )
        await until(lambda: _orphans(fabric, here(fabric)), "the first one is told")
        await until(lambda: phase(fabric, "books") == "Running", "its node has reported on it")
        await ask(fabric, "POST", f"{VMS}/books:restart", {})
        await asyncio.sleep(10.0)
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations
        await delete_all_of_it(fabric)

    play(run)


@pytest.mark.parametrize("runs", [False, True])
def test_of_two_guests_that_an_older_store_knows_neither_of_the_one_is_taken_up_that_runs(runs: bool) -> None:
    async def run(fabric: Fabric) -> None:
        before = await place_after_the_backup(fabric)
        await go_back(fabric)
        fabric.server.start_controllers()
        later = (await run_here(fabric, "books")).node  # its first node is lost
        if not runs:
            here(fabric).lose_power()
        await go_back(fabric)
        fabric.fate.cut_off.add(later)
        if not runs:
            here(fabric).start()
        fabric.fate.cut_off.discard(HERE)
        fabric.server.start_controllers()
        await until(lambda: _orphans(fabric, here(fabric)), "its first guest is told")
        await asyncio.sleep(5.0)
        assert boot_ids(fabric) == (before if runs else {}) and not fabric.broken, fabric.witness.violations
        assert runs or reason(fabric, "books") == "storeRestored", "the other node is waited for"
        fabric.fate.cut_off.discard(later)
        taken_up, other = (HERE, later) if runs else (later, HERE)
        place = await run_here(fabric, "books")
        assert place.node == taken_up, "one that runs is taken up at once, one that doesn't gives way to one that does"
        await until(lambda: [at for at, _ in known_orphans(fabric)] == [other], "the other one is told, and kept")
        await ask(fabric, "POST", f"{VMS}/books:restart", {})
        await asyncio.sleep(10.0)
        assert phase(fabric, "books") == "Running" and not fabric.broken, fabric.witness.violations
        await delete_all_of_it(fabric)

    play(run)
