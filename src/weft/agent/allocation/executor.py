"""Carries out the steps of one allocation with the node's drivers. Every step may be repeated; none decides anything.

Reads the image cache; acts through the runtime, volume and network drivers and on the seed disk. Called by the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from weft.agent.allocation.plan import Step
from weft.agent.image.cache import CachedImage, ImageCache
from weft.agent.image.oci import ContainerImages
from weft.agent.migration.executor import MigrationExecutor
from weft.agent.network.executor import NetworkExecutor
from weft.agent.secret.cache import Secrets
from weft.agent.state.allocation import LocalAllocation
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.agent.workload.container import Ready, plan_container
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.seed import build_nocloud, build_tar
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.agent.workload.vm import Prepared, choose_seed, plan_guest
from weft.contracts.clock import Clock
from weft.contracts.driver.container import BEGUN_AFRESH, ContainerPlan, User
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import CanAdjust, CanSuspend, GuestPlan
from weft.contracts.driver.volume import HasFiles, HasPool, VolumeDriver, VolumeFacts
from weft.contracts.durable_file import write_durably
from weft.kinds.allocation import ROOT, AllocatedImage
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.objects.identity import short_id
from weft.objects.quantity import format_bytes

RUNS = "it may have run here"  # said of a guest that can't be given up
AT_ONCE = 4  # disks and starts under way on one node: more only slow each other

Tell = Callable[[str], None]  # a word on how a step goes, for people who watch


class StepExecutor:
    """The node's drivers, as steps."""

    def __init__(
        self,
        host: Host,
        runtimes: Runtimes,
        pools: Pools,
        volumes: Volumes,
        network: NetworkExecutor,
        images: ImageCache,
        container_images: ContainerImages,
        movers: MigrationExecutor,
        secrets: Secrets,
        clock: Clock,
    ) -> None:
        self._secrets = secrets
        self.runtimes = runtimes
        self.movers, self.volumes = movers, volumes
        self.images, self._container_images = images, container_images
        self._pools, self._keeper, self._clock = pools, network, clock
        self._seeds = Path(host.state_dir) / "seeds"
        self._heavy = asyncio.Semaphore(AT_ONCE)

    async def perform(self, step: Step, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        """Do ``step`` and give back a word on it, if there is one to say; what later steps need is put into
        ``prepared``. Raises WeftError or OSError."""
        return await _STEPS[step](self, wanted, prepared, tell)

    async def _image(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        self.runtimes.of(wanted)  # nothing is made for what can't run here
        if wanted.spec.container is not None:
            opened = await self._secrets.open(wanted)
            prepared.env = opened.env
            prepared.pulled, said = await self._container_images.ensure(
                wanted, prepared.digest, tell, opened.credentials
            )
            return said
        image = wanted.spec.image
        if image is None:
            raise DriverFailed(f"{wanted.what} has no image", details={"step": "image"})
        prepared.image, said = await self._have(image, tell)
        if wanted.spec.iso is not None:
            prepared.iso, told = await self._have(wanted.spec.iso, tell)
            said = f"{said}, iso {told}"
        return said

    async def _have(self, image: AllocatedImage, tell: Tell) -> tuple[CachedImage, str]:
        """The image in this node's cache, and a word on how it came there."""
        found = self.images.find(image.sha256)
        if found is not None:
            return found, "cached"
        total = format_bytes(image.size)
        began = self._clock.elapsed()
        fetched = await self.images.ensure(image, lambda length: tell(f"{format_bytes(length)} of {total}"))
        return fetched, f"{total} in {self._clock.elapsed() - began:.1f} s"

    async def _disk(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        image = prepared.image
        if image is None:
            raise DriverFailed(f"{wanted.what}: its image is not on this node", details={"step": "disk"})
        disks = await self._pools.of(wanted.spec, ROOT)
        async with self._heavy:
            if ROOT in _shared_with_source(wanted):
                prepared.root = await _share_root(wanted, disks)
                return "shared"
            await self._pools.refuse_elsewhere(wanted.spec, wanted.id, ROOT, f"{wanted.what}: its root disk")
            prepared.root = await disks.ensure(
                wanted.id,
                size_bytes=wanted.spec.resources.disk,
                base=image.disk,
                base_format=image.disk_format,
            )
            if prepared.root.size_bytes < wanted.spec.resources.disk and ROOT_SERIAL not in prepared.attached:
                prepared.root = await disks.grow(wanted.id, wanted.spec.resources.disk)
        return ""

    async def _volumes(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        prepared.volumes = []
        if wanted.spec.container is not None:
            return await self._files(wanted, prepared)
        for volume in wanted.spec.volumes:
            disks, shared = await self._pools.of(wanted.spec, volume.uid), volume.uid in _shared_with_source(wanted)
            async with self._heavy:
                whose = f"{wanted.what}: its volume {volume.name}"
                await self._pools.refuse_elsewhere(wanted.spec, volume.uid, volume.uid, whose)
                facts = await (
                    disks.inspect(volume.uid) if shared else disks.ensure(volume.uid, size_bytes=volume.size)
                )
                if facts is None:
                    raise DriverFailed(
                        f"{wanted.what}: volume {volume.name} isn't in this node's storage pool {volume.pool}",
                        details={"step": "disk"},
                    )
                open_ = shared or name_serial(volume.name) in prepared.attached
                if facts.size_bytes < volume.size and not open_:
                    facts = await disks.grow(volume.uid, volume.size)
            self.volumes.uids.add(volume.uid)
            prepared.volumes.append(facts)
        return ""

    async def _files(self, wanted: LocalAllocation, prepared: Prepared) -> str:
        """Volumes with a file system on them, that of a new one the container's user's; a container that runs has them, and one
        that comes here brings them."""
        if wanted.spec.role == "target":
            return ""
        user = prepared.pulled.user if prepared.pulled is not None else User()
        for volume in wanted.spec.volumes:
            disks = await self._pools.of(wanted.spec, volume.uid)
            if not isinstance(disks, HasFiles):
                raise InvalidInput(
                    f"{wanted.what}: volume driver {disks.name} of this node can't mount volumes in containers",
                    reason="notServed",
                    field="spec.mounts",
                )
            facts = await disks.inspect(volume.uid) if prepared.adjusting else None
            if facts is None:
                async with self._heavy:
                    whose = f"{wanted.what}: its volume {volume.name}"
                    await self._pools.refuse_elsewhere(wanted.spec, volume.uid, volume.uid, whose)
                    owner = (user.uid, user.gid)
                    try:
                        facts = await disks.ensure_files(volume.uid, size_bytes=volume.size, owner=owner)
                    except WeftError as problem:
                        problem.message = problem.message.replace(volume.uid, volume.name)
                        raise
            self.volumes.uids.add(volume.uid)
            prepared.volumes.append(facts)
        return ""

    async def _network(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        plug = self._keeper.prepare_move if wanted.spec.role == "target" else self._keeper.plug
        prepared.links = await plug(wanted) if wanted.spec.nics else []
        return "" if wanted.spec.nics else "no network"

    async def _seed(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        kind = choose_seed(wanted, prepared)
        prepared.seed = None
        if kind is None:
            return ""
        self._seeds.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._seed_path(wanted, kind)
        data = build_nocloud(wanted) if kind == "nocloud" else build_tar(wanted, machine=kind == "machine")
        if not path.exists() or path.read_bytes() != data:
            await asyncio.to_thread(write_durably, path, data)
        prepared.seed = str(path)
        return ""

    async def _start(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        plan = self._plan_run(wanted, prepared)
        async with self._heavy:
            facts = await self.runtimes.of(wanted).start(plan)
        return facts.message or "" if facts.reason == BEGUN_AFRESH else ""

    async def _adjust(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        runtime = self.runtimes.of(wanted)
        if not isinstance(runtime, CanAdjust):
            raise InvalidInput(
                f"{wanted.what}: runtime {runtime.name} can't change a running workload", reason="unsupported"
            )
        await runtime.adjust(self._plan_run(wanted, prepared))
        return ""

    async def _tidy(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        await self._keeper.unplug(wanted, prepared.leftover)
        return ""

    async def _stop(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        await self.runtimes.of(wanted).stop(wanted.id, grace_seconds=wanted.spec.grace_seconds)
        return ""

    async def _suspend(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        runtime = self.runtimes.of(wanted)
        if not isinstance(runtime, CanSuspend):
            raise InvalidInput(f"{wanted.what}: runtime {runtime.name} can't suspend workloads", reason="unsupported")
        await runtime.suspend(wanted.id)
        return ""

    async def _remove(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        if (runtime := self.runtimes.find(wanted)) is not None:  # else it never was here
            await runtime.remove(wanted.id)
        return ""

    async def _unplug(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        await self._keeper.unplug(wanted)
        return ""

    async def _remove_disks(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        await self.movers.drop_storage(wanted.uid)
        if other := await self._pools.find_elsewhere(wanted.spec, wanted.id, ROOT):
            await (await self._pools.find(other)).remove(
                wanted.id
            )  # a restored server doesn't know that it was moved there
        await (await self._pools.of(wanted.spec, ROOT)).remove(wanted.id)
        if (store := prepared.store) is not None:  # what was on its way is in two pools
            id_ = wanted.id if store.disk == ROOT else store.disk
            if store.state == "copying":
                await (await self._pools.find(store.pool, store.pool_id)).remove(id_)
            elif store.state == "there":
                await (await self._pools.find(store.old_pool, store.old_pool_id)).remove(id_)
        for kind in ("tar", "nocloud", "machine"):
            self._seed_path(wanted, kind).unlink(missing_ok=True)
        return ""

    async def _room(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        for volume in wanted.spec.volumes:
            if volume.uid in _shared_with_source(wanted):
                continue
            if await self._pools.inspect(wanted.spec, volume.uid, volume.uid) is not None:
                raise DriverFailed(
                    f"{wanted.what}: volume {volume.name} already has data on this node that no object accounts for",
                    hint="move that file away, or migrate the VM to another node",
                    details={"step": "disk"},
                )
        return ""

    async def _open(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        await self.movers.open(wanted, prepared)
        return ""

    async def _send(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        assert prepared.part is not None
        await self.movers.send(wanted, prepared.part)
        return ""

    async def _relocate(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        assert prepared.store is not None
        await self.movers.relocate(wanted, prepared.store, prepared)
        return ""

    async def _give_up(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        return "" if prepared.part is None or await self.movers.give_up(wanted, prepared.part) else RUNS

    async def _leave(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        assert prepared.part is not None
        await self.movers.leave(wanted, prepared.part)
        return ""

    async def _cancel(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        assert prepared.part is not None
        await self.movers.cancel(wanted, prepared.part)
        return ""

    async def _settle(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        assert prepared.part is not None
        await self.movers.settle(wanted, prepared.part)
        return ""

    async def _remove_volumes(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        part, move = prepared.part, wanted.spec.move
        shared = {*(part.shared if part is not None else ()), *(move.shared if move is not None else ())}
        for volume in wanted.spec.volumes:
            if volume.uid not in shared:  # there both nodes have one and the same
                await (await self._pools.of(wanted.spec, volume.uid)).remove(volume.uid)
            self.volumes.uids.discard(volume.uid)
        return ""

    async def _forget(self, wanted: LocalAllocation, prepared: Prepared, tell: Tell) -> str:
        self._container_images.drop(wanted.uid)
        self._secrets.drop(wanted.uid)
        return ""  # the rest is the worker's own: it holds the copy

    def _plan_run(self, wanted: LocalAllocation, prepared: Prepared) -> GuestPlan | ContainerPlan:
        if wanted.spec.container is None:
            return plan_guest(wanted, prepared)
        if prepared.pulled is None:
            raise DriverFailed(f"{wanted.what}: its image is not on this node", details={"step": "image"})
        disks = {volume.name: facts.path for volume, facts in zip(wanted.spec.volumes, prepared.volumes, strict=True)}
        in_namespace = self.runtimes.in_namespace(wanted)
        return plan_container(wanted, Ready(prepared.pulled, prepared.links, disks, prepared.env, in_namespace))

    def _seed_path(self, wanted: LocalAllocation, kind: str) -> Path:
        return self._seeds / f"{wanted.id}.{kind}"


def _shared_with_source(wanted: LocalAllocation) -> tuple[str, ...]:
    """The disks of a guest that comes which are here already, and in use where it comes from."""
    move = wanted.spec.move
    return move.shared if move is not None and wanted.spec.role == "target" else ()


async def _share_root(wanted: LocalAllocation, disks: VolumeDriver) -> VolumeFacts:
    move = wanted.spec.move
    if move is None or not isinstance(disks, HasPool):
        raise DriverFailed(f"{wanted.what}: its root disk can't be shared on this node", details={"step": "disk"})
    return await disks.share(short_id(move.peer_allocation), wanted.id)


_STEPS = {
    Step.IMAGE: StepExecutor._image,
    Step.DISK: StepExecutor._disk,
    Step.VOLUMES: StepExecutor._volumes,
    Step.NETWORK: StepExecutor._network,
    Step.SEED: StepExecutor._seed,
    Step.START: StepExecutor._start,
    Step.ADJUST: StepExecutor._adjust,
    Step.TIDY: StepExecutor._tidy,
    Step.STOP: StepExecutor._stop,
    Step.END: StepExecutor._stop,
    Step.SUSPEND: StepExecutor._suspend,
    Step.SAVE: StepExecutor._suspend,
    Step.REMOVE: StepExecutor._remove,
    Step.UNPLUG: StepExecutor._unplug,
    Step.REMOVE_DISKS: StepExecutor._remove_disks,
    Step.FORGET: StepExecutor._forget,
    Step.ROOM: StepExecutor._room,
    Step.OPEN: StepExecutor._open,
    Step.SEND: StepExecutor._send,
    Step.GIVE_UP: StepExecutor._give_up,
    Step.LEAVE: StepExecutor._leave,
    Step.CANCEL: StepExecutor._cancel,
    Step.SETTLE: StepExecutor._settle,
    Step.RELOCATE: StepExecutor._relocate,
    Step.REMOVE_VOLUMES: StepExecutor._remove_volumes,
}
