"""What a node made of a volume for a guest that never came is no data of it, also once the node has forgotten that guest."""

from __future__ import annotations

from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.people import MIB, VMS, VOLUMES
from tests.simulation.promises import find_unmet
from tests.simulation.simulation import simulate
from tests.simulation.test_forgotten_guest import go_back, here
from tests.simulation.test_returning_node import HERE, ask, phase, places, until
from weft.kinds.allocation import AllocationReport
from weft.objects.envelope import decode_part


def is_on_its_way(fabric: Fabric) -> bool:
    found = [decode_part(place.report, AllocationReport) for place in fabric.ledger.notes.objects("allocation")]
    return any(report.migration is not None and report.migration.phase == "migrating" for report in found)


def test_it_goes_though_an_older_store_looks_for_the_data_where_it_was_before() -> None:
    async def run(fabric: Fabric) -> None:
        await fabric.set_up()
        person = fabric.people[0]
        wish = {"kind": "volume", "name": person.volume, "spec": {"size": 64 * MIB}}
        volume = await ask(fabric, "POST", VOLUMES, wish)
        person.has_volume = True
        spec = {"image": "tiny", "memory": 256 * MIB, "networks": ["default"], "volumes": [person.volume]}
        person.wanted = await ask(fabric, "POST", VMS, {"kind": "vm", "name": person.name, "spec": spec})
        await until(lambda: phase(fabric, person.name) == "Running", "it runs")
        (first,) = places(fabric, person.name)
        away = "n3" if first.node == "n1" else "n1"
        assert first.node != HERE
        await fabric.ledger.back_up()
        await ask(fabric, "POST", f"{VMS}/{person.name}:migrate", {"to": away})
        await until(lambda: [place.node for place in places(fabric, person.name)] == [away], "it has moved")
        await ask(fabric, "POST", f"{VMS}/{person.name}:migrate", {"to": HERE, "bytes_per_second": MIB})
        await until(lambda: is_on_its_way(fabric), "it is on its way")
        fabric._cut_off(HERE)
        await ask(fabric, "DELETE", f"{VMS}/{person.name}")
        await until(lambda: [place.node for place in places(fabric, person.name)] == [HERE], "its data stays behind")
        await go_back(fabric)
        fabric.fate.cut_off.discard(HERE)
        fabric.server.start_controllers()
        await until(lambda: [place.node for place in places(fabric, person.name)] == [away], "it begins at its data")
        await until(lambda: not find_unmet(fabric), "all is as people wished")
        assert volume["uid"] not in here(fabric).shelf.volumes and not fabric.broken

    with simulate(1, Fate(1, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))
