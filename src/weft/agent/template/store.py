"""The templates on this node's disk. One folder each below ``<state>/templates``: STATE, RAM and template.json, written last; the
disk is kept as a snapshot in pool ``local``. What is less than whole, from its work folder to its disk, goes at the agent's
next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from weft.agent.image.cache import CachedImage
from weft.agent.template.fit import KEPT, Template, TemplateOrder
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, Layers
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.template import Templates
from weft.contracts.driver.volume import VolumeDriver
from weft.contracts.durable_file import write_durably
from weft.kinds.allocation import ROOT
from weft.objects.identity import new_uid, short_id

_NOTE = "template.json"


class TemplateStore:
    def __init__(self, folder: Path, templates: Templates, local: VolumeDriver, layers: Layers, clock: Clock) -> None:
        self._folder, self._templates, self._disks, self._layers = folder, templates, local, layers
        self._clock = clock

    async def clear(self, prefix: str) -> None:
        """End what an earlier agent was making, whose machines' names begin with ``prefix``. Raises WeftError."""
        await self._templates.clear(prefix)
        for work in self._folder.glob(".*.*"):
            await self._disks.remove(work.name.split(".")[1])
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        for kept in await self._layers.list_kept():
            id_ = kept.uid.removeprefix(KEPT)
            if kept.uid.startswith(KEPT) and not (self._folder / id_ / _NOTE).exists():
                await self.remove(id_)

    def list_images(self) -> set[str]:
        """The sha256 of the images that there are templates of; of other machines, maybe, than they would be made of now."""
        found = set[str]()
        for note in self._folder.glob(f"[!.]*/{_NOTE}"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.add(msgspec.json.decode(note.read_bytes(), type=Template).image)
        return found

    async def find(self, want: TemplateOrder, plan: GuestPlan) -> Template | None:
        """The template that was made of this plan, if its machine is the same as it would be now."""
        try:
            data = await asyncio.to_thread((self._folder / plan.id / _NOTE).read_bytes)
            found = msgspec.json.decode(data, type=Template)
        except (OSError, msgspec.MsgspecError):
            return None
        kept = {snapshot.id for snapshot in await self._layers.list_kept()}
        if found.snapshot not in kept or found.key != await self._templates.identify(plan):
            return None
        return msgspec.structs.replace(found, most_vcpus=want.order.most_cpu, project=want.project)

    async def make(
        self,
        want: TemplateOrder,
        plan: GuestPlan,
        image: CachedImage,
        boot: Callable[[GuestPlan, Path], Awaitable[None]],
    ) -> Template:
        """Boot the plan's machine with ``boot``, which saves it, and keep it. Leaves nothing if it fails. Raises WeftError,
        OSError."""
        key = await self._templates.identify(plan)
        folder, work = self._folder / plan.id, self._folder / f".{plan.id}.{os.getpid()}"
        await self.remove(plan.id)
        await asyncio.to_thread(work.mkdir, mode=0o700, parents=True)
        kept_whole = False
        try:
            await self._disks.remove(plan.id)
            root = await self._disks.ensure(plan.id, size_bytes=0, base=image.disk, base_format=image.disk_format)
            disk = msgspec.structs.replace(
                plan.disks[0], path=root.path, format=root.format, size_bytes=root.size_bytes
            )
            await boot(msgspec.structs.replace(plan, disks=[disk]), work)
            # Copies may still stand on the layer of an earlier one: this is another.
            layer, snapshot = short_id(f"{KEPT}{plan.id}/{new_uid()}"), short_id(f"{KEPT}{plan.id}")
            await self._layers.begin_layer(plan.id, layer)
            await self._layers.finish_layer(plan.id, layer)
            kept = KeptSnapshot(snapshot, f"{KEPT}{plan.id}", {ROOT: KeptDisk((layer,), root.size_bytes)})
            await self._layers.keep(kept)
            template = Template(
                key=key,
                image=want.order.image.sha256,
                cpu_model=plan.cpu_model,
                memory_bytes=plan.memory_bytes,
                vcpus=plan.vcpus,
                most_vcpus=want.order.most_cpu,
                disk_bytes=root.size_bytes,
                folder=str(folder),
                snapshot=snapshot,
                project=want.project,
                made_at=self._clock.now(),
            )
            await asyncio.to_thread(write_durably, work / _NOTE, msgspec.json.encode(template))
            await asyncio.to_thread(work.rename, folder)
            kept_whole = True
        finally:
            await asyncio.shield(self._tidy(plan.id, work, kept_whole=kept_whole))
        return template

    async def _tidy(self, id_: str, work: Path, *, kept_whole: bool) -> None:
        try:
            await self._disks.remove(id_)
            if not kept_whole:
                await self.remove(id_)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def remove_those(self, is_over: Callable[[str, Template], bool]) -> None:
        """Machines that began from one go on: what they have open stays until they end."""
        for note in list(self._folder.glob(f"[!.]*/{_NOTE}")):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                if is_over(note.parent.name, msgspec.json.decode(note.read_bytes(), type=Template)):
                    await self.remove(note.parent.name)

    async def remove(self, id_: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder / id_, ignore_errors=True)
        await self._layers.drop(short_id(f"{KEPT}{id_}"))

    def measure(self) -> tuple[int, int]:
        """The bytes that are free where templates are, and all."""
        usage = shutil.disk_usage(self._folder if self._folder.exists() else self._folder.parent)
        return usage.free, usage.total
