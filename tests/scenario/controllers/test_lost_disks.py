"""A node that is given up: what of its data is lost, what waits for it, and what people are told."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers_lab import GIB, Lab

from weft.contracts.store import Delete
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Envelope, decode_part, merge_part


async def test_a_volume_whose_node_was_deleted_is_unavailable_and_a_vm_that_wants_it_is_told_which_and_where(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        lost = await lab.add_node("n1")
        await lab.put("volume", "vdata", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("db", volumes=["vdata"])
        await lab.until_phase("db", "Running")
        await lab.add_node("n2")
        await lab.put_vm("next", volumes=["vdata"])
        await lab.until_refused("next", "volumeInUse")
        volume = await lab.get("/volume/default/vdata")
        assert volume is not None
        await lost.write_report(volumes=[volume.uid])

        async def status() -> VolumeStatus:
            found = await lab.get("/volume/default/vdata")
            assert found is not None
            return decode_part(found.status, VolumeStatus)

        await lost.die()
        places = [Delete(one.key) for one in await lab.every("allocation")]
        await lab.store.commit([*places, Delete("/node/-/n1")])  # as a node that is given up is deleted

        async def unavailable() -> bool:
            return (await status()).phase == "Unavailable"

        await lab.until(unavailable)
        said = "its data is on node n1, which was deleted; it is available once that node is back"
        assert (await status()).message == said
        await lab.until_refused("db", "volumesApart")
        assert (await lab.status("db")).message == f"volume vdata: {said}"
        assert "Unavailable" in lab.journal.reasons("vdata")
        await lost.join()
        await lab.until_phase("db", "Running")
        assert (await status()).phase == "Attached" and (await status()).message == ""


async def test_a_kept_root_disk_is_for_those_who_reclaim_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        orphan = {"of": "vm/web", "workload_uid": "w", "node": "n1", "since": lab.clock.now()}
        await lab.put("volume", "kept", {"size": GIB}, marks={"orphan": orphan}, finalizers=("volume",))
        await lab.put_vm("new", volumes=["kept"])
        await lab.until_refused("new", "volumeOrphaned")
        assert "weft volume reclaim kept" in (await lab.status("new")).message
        volume = await lab.get("/volume/default/kept")
        assert volume is not None
        await node.write_report(volumes=[volume.uid])

        async def phase() -> str:
            found = await lab.get("/volume/default/kept")
            assert found is not None
            return decode_part(found.status, VolumeStatus).phase

        async def orphaned() -> bool:
            return await phase() == "Orphaned"

        await lab.until(orphaned)

        def reclaim(envelope: Envelope) -> None:
            envelope.marks = merge_part(envelope.marks, {"orphan": None})

        await lab.change("/volume/default/kept", reclaim)
        await lab.until_phase("new", "Running")
        assert await phase() == "Attached"
