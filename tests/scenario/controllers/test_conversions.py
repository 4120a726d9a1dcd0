"""Conversions from wish to end, with the controllers over a store in memory and nodes that only pretend: one of both has volumes,
addresses and ports at any time, and whatever fails the old one has them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_seeds
from tests.scenario.controllers_lab import DIGEST, GIB, MIB, Lab
from tests.scenario.scheduler.test_placement import cordon

from weft.contracts.store import AtRevision, Delete
from weft.controllers.conversion.rollback import PLACE_PATIENCE_SECONDS
from weft.kinds.allocation import AllocationSpec
from weft.kinds.container import ContainerSpec
from weft.kinds.conversion import ENDED, ConversionSpec, ConversionStatus
from weft.kinds.image import ImageStatus
from weft.kinds.migration import KEPT_SECONDS
from weft.kinds.node import NodeRuntime
from weft.kinds.published_port import PublishedPortSpec
from weft.kinds.vm import VmSpec
from weft.objects.envelope import decode_part

RUNS = NodeRuntime(name="crun", version="1.8", kinds=["container"], isolations=["container"])
OF = "sha256:" + "c" * 64
WEB = f"registry.example.org/web@{OF}"


class ConvertingLab(Lab):
    async def convert(self, workload: str, to: str, called: str = "c", **spec: Any) -> None:
        full = ConversionSpec(workload=workload, to=to, **spec)  # type: ignore[arg-type]
        await self.put("conversion", called, full, status=ConversionStatus(), finalizers=("conversion",))

    async def ask(self, name: str = "c", kind: str = "conversion", **actions: Any) -> None:
        await super().ask(name, kind, **actions)

    async def conversion(self, name: str = "c") -> ConversionStatus:
        return decode_part((await self.vm(name, "conversion")).status, ConversionStatus)

    async def until_conversion(self, phase: str, name: str = "c", seconds: float = 120.0) -> ConversionStatus:
        async def there() -> bool:
            status = await self.conversion(name)
            assert phase in ENDED or status.phase not in ENDED, status
            return status.phase == phase

        await self.until(there, seconds)
        return await self.conversion(name)

    async def put_oci_image(self, name: str = "web-image", digest: str = OF, phase: str = "Available") -> None:
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        (self.folder / "images" / DIGEST).write_bytes(b"")
        status = ImageStatus(phase=phase, sha256=DIGEST, size=MIB, virtual_size=64 * MIB, digest=digest)  # type: ignore[arg-type]
        await self.put("image", name, {"url": f"oci://registry.example.org/web@{digest}"}, status=status)

    async def container(self, name: str = "web") -> ContainerSpec:
        return decode_part((await self.vm(name, "container")).spec, ContainerSpec)

    async def machine(self, name: str = "web") -> VmSpec:
        return decode_part((await self.vm(name, "vm")).spec, VmSpec)

    async def owners(self) -> dict[str, str]:
        """Who has each address and port."""
        found = {e.name.partition(".")[2]: e for e in await self.every("endpoint")}
        found |= {e.name: e for e in await self.every("publishedport")}
        assert all(e.owner is not None for e in found.values())
        return {name: e.owner.kind for name, e in found.items() if e.owner is not None}

    async def places(self) -> dict[str, AllocationSpec]:
        return {spec.workload.kind: spec for spec in await self.allocations()}


FULL: dict[str, Any] = {
    "image": WEB,
    "command": ["/bin/sh", "-c", "serve\nlong"],
    "env": {"A": "b c\\d"},
    "user": "www-data",
    "mounts": ["data:/srv:ro"],
    "publish": ["8080:80"],
    "memory": 200 * MIB,
    "pids": 64,
    "anti_affinity_groups": ["front"],
}


async def begin(lab: ConvertingLab, **spec: Any) -> ContainerSpec:
    await lab.add_node("n1", runtimes=[RUNS])
    await lab.add_node("n2", runtimes=[RUNS])
    await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
    await lab.put_container("web", **{**FULL, **spec})
    await lab.until_phase("web", "Running", kind="container")
    return await lab.container()


async def test_a_container_goes_on_as_a_vm_that_has_all_that_was_its_own(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        before = await begin(lab)
        await lab.put_oci_image()
        (there,) = await lab.allocations()
        await lab.convert("container/web", "vm")
        status = await lab.until_conversion("AwaitingConfirmation")
        assert (status.new, status.image, status.digest, status.was) == ("vm/web", "web-image", OF, "run")
        assert status.stopped_at is not None and status.running_at is not None
        assert any(said.startswith("pids") for said in status.left_out)
        now = await lab.places()
        assert now["vm"].node == there.node  # where its volume is
        assert [volume.uid for volume in now["vm"].volumes] == [volume.uid for volume in there.volumes]
        (nic,), (former,) = now["vm"].nics, there.nics
        assert (nic.address, nic.mac) == (former.address, former.mac)
        assert nic.uid != former.uid
        assert (now["container"].nics, now["container"].volumes, now["container"].desired) == ([], [], "stop")
        assert await lab.owners() == {nic.address: "vm", "tcp-8080": "vm"}
        (port,) = [decode_part(e.spec, PublishedPortSpec) for e in await lab.every("publishedport")]
        assert (port.workload.kind, port.target_port) == ("vm", 80)
        old, new = await lab.container(), await lab.machine()
        assert (old.mounts, old.networks, old.publish, old.run) == ([], [], [], "stop")
        assert (new.volumes, new.networks, new.publish, new.run) == (["data"], ["default"], ["8080:80"], "run")
        assert new.memory == before.memory + 64 * MIB
        told = {kind: await lab.status("web", kind) for kind in ("vm", "container")}
        assert {kind: (one.conversion, one.converts_to) for kind, one in told.items()} == {
            "vm": ("c", ""),
            "container": ("c", "vm/web"),
        }
        await lab.ask(confirmed=True)
        await lab.until_conversion("Confirmed")
        await lab.until_gone("/container/default/web")
        assert (await lab.status("web")).phase == "Running"
        assert await lab.owners() == {nic.address: "vm", "tcp-8080": "vm"}

        async def free() -> bool:
            return (await lab.status("web")).conversion == ""

        await lab.until(free)


@pytest.mark.parametrize("answered", [True, False])
async def test_a_vm_that_answers_nobody_where_its_container_answered_gives_the_ports_back(
    tmp_path: Path, answered: bool
) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        for node in lab.nodes.values():
            node.listens = lambda spec: answered and spec.workload.kind == "container"
        await lab.convert("container/web", "vm", timeout_seconds=30.0)
        status = await lab.until_conversion("Failed" if answered else "AwaitingConfirmation")
        assert status.answered == ([80] if answered else [])
        if answered:
            assert status.reason == "timedOut" and "does not answer everywhere after 30 s" in status.message
            assert "TCP port 80 (published as 8080:80), where container/web answered" in status.message
            assert (await lab.status("web", "container")).phase == "Running"
            assert set((await lab.owners()).values()) == {"container"}
        assert [spec.asked_ports for spec in await lab.allocations()] == [[]] * (1 if answered else 2)


async def test_that_it_stopped_once_is_not_believed_of_one_that_was_started_since(tmp_path: Path) -> None:
    """Its node began it again, and no word of that has come: the last that was heard is that nothing runs."""
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        await lab.change_spec("web", "container", run="stop")
        await lab.until_phase("web", "Stopped", kind="container")
        for node in lab.nodes.values():
            node.slow = True
        await lab.change_spec("web", "container", run="run")

        async def told() -> bool:
            return (await lab.places())["container"].desired == "run"

        await lab.until(told)
        await lab.convert("container/web", "vm")
        await lab.until_conversion("Stopping")
        await lab.pass_time(20)
        assert (await lab.conversion()).phase == "Stopping"
        assert (await lab.status("web", "container")).phase != "Stopped"
        left = (await lab.places())["container"]
        assert left.desired == "stop" and left.volumes and left.nics
        for node in lab.nodes.values():
            node.slow = False
        (there,) = await lab.every("allocation")
        await next(node for node in lab.nodes.values() if there.name.startswith(node.uid)).act(there.key)
        await lab.until_conversion("AwaitingConfirmation")


async def test_both_ways_it_changes_hands_in_one_commit_that_nobody_can_come_between(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        seen: list[tuple[set[str], set[str]]] = []
        commit = lab.store.commit

        async def record(writes: Any, preconditions: Any = (), **given: Any) -> int:
            revision = await commit(writes, preconditions, **given)
            stands_on = {one.key for one in preconditions if isinstance(one, AtRevision)}
            seen.append(({write.key for write in writes}, stands_on))
            return revision

        lab.store.commit = record  # type: ignore[method-assign]
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        await lab.ask(undo=True)
        await lab.until_conversion("Undone")
        (address,) = (e.key for e in await lab.every("endpoint"))
        both = {
            "/container/default/web",
            "/vm/default/web",
            "/conversion/default/c",
            address,
            "/publishedport/-/tcp-8080",
        }
        handed = [stands_on for written, stands_on in seen if both <= written]
        assert len(handed) == 2  # there, and back
        assert all(both <= stands_on for stands_on in handed)


async def test_there_and_back_it_is_the_very_container_again(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        before = await begin(lab, restart="always", drop_capabilities=["ALL"])
        await lab.put_oci_image()
        address = next(iter(await lab.owners()))
        await lab.convert("container/web", "vm", confirm=True)
        await lab.until_conversion("Confirmed")
        await lab.until_gone("/container/default/web")
        await lab.convert("vm/web", "container", "back", confirm=True)
        await lab.until_conversion("Confirmed", "back")
        await lab.until_gone("/vm/default/web")
        assert await lab.container() == before
        assert (await lab.status("web", "container")).phase == "Running"
        assert await lab.owners() == {address: "container", "tcp-8080": "container"}


async def test_undo_gives_all_back_and_the_old_one_runs_again(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        before = await begin(lab)
        await lab.put_oci_image()
        owners = await lab.owners()
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        await lab.ask(undo=True)
        status = await lab.until_conversion("Undone")
        assert status.kept is None
        assert (await lab.status("web", "container")).phase == "Running"  # it is over when that is so
        await lab.until_gone("/vm/default/web")
        assert await lab.container() == before
        assert await lab.owners() == owners
        place = (await lab.places())["container"]
        assert [volume.name for volume in place.volumes] == ["data"] and len(place.nics) == 1


async def test_the_digest_is_what_the_container_runs_whatever_its_tag_means_by_now(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        node = await lab.add_node("n1", runtimes=[RUNS])
        node.digest = OF
        await lab.put_container("web", image="registry.example.org/web:1")
        await lab.until_phase("web", "Running", kind="container")
        status = ImageStatus(phase="Available", sha256=DIGEST, size=MIB, virtual_size=MIB, digest="sha256:" + "d" * 64)
        await lab.put("image", "a-newer-one", {"url": "oci://registry.example.org/web:1"}, status=status)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm", confirm=True)
        told = await lab.until_conversion("Confirmed")
        assert (told.image, told.digest) == ("web-image", OF)
        await lab.until_gone("/container/default/web")
        await lab.convert("vm/web", "container", "back", confirm=True)
        await lab.until_conversion("Confirmed", "back")
        assert (await lab.container()).image == WEB


async def test_an_image_that_is_not_there_yet_is_made_of_the_very_digest(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        lab.has_threads = True  # images are kept by them
        await begin(lab)
        await lab.convert("container/web", "vm")

        async def failed() -> bool:  # nothing here makes bundles
            return (await lab.conversion()).phase == "Failed"

        await lab.until(failed)
        status = await lab.conversion()
        assert status.reason == "imageFailed" and "can't make images" in status.message
        assert (await lab.status("web", "container")).phase == "Running"
        assert [e.name for e in await lab.every("image")] == ["tiny"]
        assert await lab.get("/vm/default/web") is None


async def test_what_would_find_no_room_is_refused_before_anything_stops(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        before = await lab.vm("web", "container")
        await lab.put_oci_image()
        await lab.convert("container/web", "vm", memory=64 * GIB)
        status = await lab.until_conversion("Failed", seconds=5)
        assert status.reason == "insufficientResources" and "needs 64.0 GiB memory" in status.message
        after = await lab.vm("web", "container")
        assert (after.spec, after.generation) == (before.spec, before.generation)  # it was never asked to stop
        assert await lab.get("/vm/default/web") is None and await lab.every("recommendation") == []


async def test_room_is_what_the_old_one_leaves_free_with_its_volume_and_its_place_in_groups(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab, cpu=5.0)  # of the 8 of the volume's node: no room for another like it beside it
        await lab.put_oci_image()
        await lab.convert("container/web", "vm")
        status = await lab.until_conversion("Failed", seconds=5)
        assert status.reason == "insufficientResources"
        await lab.change_spec("web", "container", cpu=2.0)
        await lab.pass_time(5)
        await lab.convert("container/web", "vm", "again")
        await lab.until_conversion("AwaitingConfirmation", "again")


async def test_a_vm_whose_room_goes_meanwhile_gives_all_back_soon(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        before = await begin(lab)
        await lab.put_oci_image()
        for node in lab.nodes.values():
            node.slow = True
        await lab.convert("container/web", "vm")
        await lab.until_conversion("Stopping")
        for name, node in lab.nodes.items():
            await lab.change(f"/node/-/{name}", cordon(True))  # type: ignore[arg-type]
            node.slow = False
        (there,) = await lab.every("allocation")
        await next(node for node in lab.nodes.values() if there.name.startswith(node.uid)).act(there.key)
        status = await lab.until_conversion("Failed", seconds=PLACE_PATIENCE_SECONDS + 20)
        assert status.reason == "noAvailableAgents" and "no node can take vm/web" in status.message
        assert (await lab.status("web", "container")).phase == "Running"  # it is over when that is so
        assert await lab.container() == before
        await lab.until_gone("/vm/default/web")


async def test_a_vm_that_never_gets_well_gives_all_back_in_time(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        before = await begin(lab)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm", timeout_seconds=30)

        async def handed() -> bool:
            return bool((await lab.machine()).volumes) if await lab.get("/vm/default/web") else False

        await lab.until(handed)
        for node in lab.nodes.values():
            node.slow = True
        await lab.until_conversion("Undoing")
        for node in lab.nodes.values():
            node.slow = False
        for spec in await lab.every("allocation"):
            await next(node for node in lab.nodes.values() if spec.name.startswith(node.uid)).act(spec.key)
        status = await lab.until_conversion("Failed")
        assert (status.reason, status.running_at) == ("timedOut", None)
        await lab.until_phase("web", "Running", kind="container")
        assert await lab.container() == before


async def test_what_was_stopped_is_handed_over_stopped(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        await lab.change_spec("web", "container", run="stop")
        await lab.until_phase("web", "Stopped", kind="container")
        await lab.convert("container/web", "vm")
        status = await lab.until_conversion("AwaitingConfirmation")
        assert status.stopped_at is None
        new = await lab.machine()
        assert (new.run, new.volumes, new.publish) == ("stop", ["data"], ["8080:80"])
        await lab.ask(undo=True)
        await lab.until_conversion("Undone")
        old = await lab.container()
        assert (old.run, old.mounts) == ("stop", ["data:/srv:ro"])


async def test_nobody_takes_the_volume_while_it_is_between_two_places(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        await lab.change_spec("web", "container", run="stop")
        await lab.until_phase("web", "Stopped", kind="container")
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        assert not any(spec.volumes for spec in await lab.allocations())
        await lab.put_vm("thief", volumes=["data"])
        await lab.until_refused("thief", "volumeInUse")
        placed = await lab.placed("thief")
        assert placed is not None and placed.message == "volume data belongs to vm/web by conversion/c"
        await lab.ask(confirmed=True)
        await lab.until_phase("thief", "Running")  # from now on it is whose place has it first


async def test_nothing_changes_for_what_cannot_be_converted(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_vm("plain")
        await lab.until_phase("plain", "Running")
        await lab.convert("vm/plain", "container", "a")
        assert (await lab.until_conversion("Failed", "a")).reason == "notOci"
        await lab.put_vm("web")
        await lab.put_oci_image()
        await lab.convert("container/web", "vm", "b")
        assert (await lab.until_conversion("Failed", "b")).reason == "nameTaken"
        await lab.convert("container/gone", "vm", "d")
        assert (await lab.until_conversion("Failed", "d")).reason == "workloadDeleted"
        assert (await lab.status("web", "container")).phase == "Running"
        assert (await lab.status("plain")).phase == "Running"


async def test_of_two_conversions_of_one_the_older_goes_on(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm", "first")
        await lab.convert("container/web", "vm", "second", new_name="other")
        assert (await lab.until_conversion("Failed", "second")).reason == "alreadyConverting"
        await lab.until_conversion("AwaitingConfirmation", "first")


async def test_a_conversion_that_is_deleted_in_the_middle_undoes_itself_first(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        before = await begin(lab)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        await lab.delete("/conversion/default/c")
        await lab.until_gone("/conversion/default/c")
        await lab.until_phase("web", "Running", kind="container")
        assert await lab.container() == before


async def test_a_new_one_that_is_taken_away_gives_all_back(tmp_path: Path) -> None:
    """As when its node is given up by force."""
    async with ConvertingLab(tmp_path) as lab:
        before = await begin(lab)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        await lab.delete("/vm/default/web")
        status = await lab.until_conversion("Failed")
        assert status.reason == "workloadDeleted"
        await lab.until_phase("web", "Running", kind="container")
        assert await lab.container() == before
        assert (await lab.owners())["tcp-8080"] == "container"


async def test_a_port_that_another_has_by_then_is_left_out_and_said(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        await lab.change_spec("web", "vm", publish=[])
        await lab.store.commit([Delete("/publishedport/-/tcp-8080")])
        await lab.put_vm("thief", publish=["8080:80"])
        await lab.ask(undo=True)
        status = await lab.until_conversion("Undone")
        assert "port 8080/tcp is now published by vm/thief" in status.message
        await lab.until_phase("web", "Running", kind="container")
        assert (await lab.container()).publish == []
        assert (await lab.owners())["tcp-8080"] == "vm"


async def test_an_old_one_that_is_gone_after_it_handed_over_leaves_all_to_the_new_one(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await begin(lab)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm")
        await lab.until_conversion("AwaitingConfirmation")
        await lab.delete("/container/default/web")
        assert (await lab.until_conversion("Confirmed")).reason == "workloadDeleted"
        await lab.until_gone("/container/default/web")
        assert (await lab.status("web")).phase == "Running"


async def test_one_that_has_ended_is_kept_for_a_while_only(tmp_path: Path) -> None:
    async with ConvertingLab(tmp_path) as lab:
        await lab.convert("container/gone", "vm")
        await lab.until_conversion("Failed")
        await lab.kill_controllers()
        lab.clock.advance(KEPT_SECONDS + 1)
        lab.start_controllers("later")
        await lab.until_gone("/conversion/default/c")


@pytest.mark.parametrize("seed", mark_seeds(6))
@pytest.mark.parametrize("undo", [False, True])
async def test_controllers_that_are_killed_anywhere_go_on_where_they_were(
    tmp_path: Path, seed: int, undo: bool
) -> None:
    """On a slow line, killed again and again: at no time do both have the address, the volume or the port."""
    async with ConvertingLab(tmp_path, slow=seed) as lab:
        before = await begin(lab)
        await lab.put_oci_image()
        await lab.convert("container/web", "vm", confirm=not undo)
        asked, count = False, 0

        async def over() -> bool:
            nonlocal asked, count
            count += 1
            holders = [spec for spec in await lab.allocations() if spec.volumes or spec.nics]
            assert len(holders) <= 1
            if count % (7 + seed) == 0 and count < 120:
                await lab.kill_controllers()
                lab.start_controllers(f"other-{count}")
            status = await lab.conversion()
            if undo and status.phase == "AwaitingConfirmation" and not asked:
                asked = True
                await lab.ask(undo=True)
            return status.phase in ENDED

        await lab.until(over, 600)
        kind, gone = ("container", "vm") if undo else ("vm", "container")
        assert (await lab.conversion()).phase == ("Undone" if undo else "Confirmed")
        await lab.until_gone(f"/{gone}/default/web")
        await lab.until_phase("web", "Running", kind=kind)
        assert set((await lab.owners()).values()) == {kind}
        if undo:
            assert await lab.container() == before
