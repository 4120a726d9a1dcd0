"""The templates of this node: which images have a booted machine, made in the background, kept while they are wanted.

One folder each below ``<state>/templates``: STATE, RAM and template.json, written last; the disk is kept as a snapshot in pool
``local``. Whatever doesn't match its machine any more (another QEMU, kernel, image or CPU model) is made again. Woken by the
server's answers, and by VMs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from weft.agent.image.cache import CachedImage, ImageCache
from weft.agent.template.fit import KEPT, Template, fits, refuse_any
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import HasLayers, KeptDisk, KeptSnapshot
from weft.contracts.driver.runtime import BootKernel, GuestDisk, GuestNic, GuestPlan, RuntimeDriver
from weft.contracts.driver.template import CanTemplate
from weft.contracts.driver.volume import VolumeDriver
from weft.contracts.durable_file import write_durably
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import ROOT, AllocatedImage, AllocationSpec
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.objects.identity import short_id
from weft.protocol.report import WarmImage

log = logging.getLogger("weft.agent")
PREFIX = "template."  # of the machines' names: no VM's has a dot
READY, MAKING = "ready", "making"
MOST_TEMPLATES = 8
RETRY_SECONDS = 60.0
DEFAULT_BYTES = 512 << 20  # for an image that doesn't say what it needs
_MTU = 1450
_MAC = "02:00:00:00:00:01"  # which no endpoint has


class _Wanted(msgspec.Struct, frozen=True):
    order: WarmImage
    cpu_model: str


class TemplateLibrary:
    def __init__(
        self,
        state_dir: str,
        machines: RuntimeDriver[GuestPlan],
        local: VolumeDriver,
        images: ImageCache,
        clock: Clock,
        heavy: asyncio.Semaphore,
        changed: Callable[[], None],
    ) -> None:
        self._folder = Path(state_dir) / "templates"
        self._templates = machines.templates if isinstance(machines, CanTemplate) else None
        self._machines, self._disks, self._images, self._clock = machines, local, images, clock
        self._layers = local.layers if isinstance(local, HasLayers) else None
        self._heavy, self._changed = heavy, changed
        self._ordered: dict[str, WarmImage] = {}  # by sha256: by the server
        self._needed: dict[str, _Wanted] = {}  # by sha256: by VMs of this node
        self._models: dict[
            str, str
        ] = {}  # by sha256: the CPU model of the first VM, or of the newest that must start warm
        self._ready: dict[str, Template] = {}  # by sha256
        self._states: dict[str, str] = {}
        self._failed: dict[str, tuple[float, WeftError]] = {}
        self._woken, self._settled = asyncio.Event(), asyncio.Condition()

    @property
    def works(self) -> bool:
        """Whether this node can have templates at all."""
        return self._templates is not None and self._layers is not None

    def report(self) -> dict[str, str]:
        return dict(sorted(self._states.items()))

    async def begin(self) -> None:
        """End what an earlier agent was making. Before guests are looked for."""
        if self._templates is None:
            return
        for left in self._folder.glob(".*"):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        await self._templates.clear(PREFIX)

    def put_orders(self, orders: Sequence[WarmImage]) -> None:
        """The images that the server wants booted machines of, all of them."""
        ordered = {order.image.sha256: order for order in orders}
        if ordered != self._ordered:
            for digest in self._ordered.keys() - ordered.keys():  # nobody wants it any more, whichever VM asked first
                self._needed.pop(digest, None)
            self._ordered = ordered
            self._woken.set()

    async def keep(self) -> None:
        """Make what is wanted, and remove what isn't, for ever."""
        if not self.works:
            return
        while True:
            self._woken.clear()
            wanted = self._list_wanted()
            await self._remove_others(wanted)
            for want in wanted:
                await self._make_one(want)
            async with self._settled:  # who waits for one that isn't wanted any more
                self._settled.notify_all()
            await wait_for_event(self._clock, self._woken, RETRY_SECONDS)

    async def choose(self, spec: AllocationSpec, image: CachedImage, show: Callable[[str], None]) -> Template | None:
        """The template from which a VM of this spec begins, if it may; made first for one that must (``boot: warm``). Raises
        InvalidInput for one that can't, DriverFailed."""
        if spec.boot == "cold" or spec.image is None:
            return None
        self._models.setdefault(spec.image.sha256, spec.cpu_model)
        must = spec.boot == "warm"
        field, why = refuse_any(spec, image) if self.works else ("boot", "this node can't keep booted machines")
        if not why and must:
            await self._await_ready(spec.image, spec, show)
        template = self._ready.get(spec.image.sha256)
        if template is not None and not why:
            field, why = "boot", fits(template, spec)
        if why and must:
            raise InvalidInput(
                f"vm/{spec.workload.name} can't start warm: {why}",
                reason="notWarm",
                field=f"spec.{field}",
                hint="set spec.boot to auto or cold",
            )
        return template if not why else None

    def _need(self, image: AllocatedImage, spec: AllocationSpec) -> None:
        order = self._ordered.get(image.sha256) or WarmImage(image)
        self._needed.pop(image.sha256, None)
        self._needed[image.sha256] = _Wanted(order, spec.cpu_model)
        while len(self._needed) > MOST_TEMPLATES:
            del self._needed[next(iter(self._needed))]
        self._woken.set()

    async def _await_ready(self, image: AllocatedImage, spec: AllocationSpec, show: Callable[[str], None]) -> None:
        """Raises the error with which the last attempt has failed."""
        digest = image.sha256
        known = self._ready.get(digest)
        if known is not None and known.cpu_model == spec.cpu_model:
            return
        self._models[digest] = spec.cpu_model
        self._failed.pop(digest, None)
        self._ready.pop(digest, None)
        self._need(image, spec)
        show("booting the image once")
        async with self._settled:
            await self._settled.wait_for(
                lambda: digest in self._ready or digest in self._failed or not self._is_wanted(digest)
            )
        if digest in self._failed:
            raise self._failed[digest][1]
        if digest not in self._ready:
            raise DriverFailed(
                f"image {image.name} has no booted machine: this node keeps {MOST_TEMPLATES} at most",
                hint="weft image warm NAME --off for one that needs none, or set spec.boot to auto",
            )

    def _is_wanted(self, digest: str) -> bool:
        return any(want.order.image.sha256 == digest for want in self._list_wanted())

    def _list_wanted(self) -> list[_Wanted]:
        wanted = dict(self._needed)
        for digest, order in self._ordered.items():
            wanted[digest] = _Wanted(order, self._models.get(digest, ""))
        return list(wanted.values())[:MOST_TEMPLATES]

    async def _make_one(self, want: _Wanted) -> None:
        digest = want.order.image.sha256
        failed = self._failed.get(digest)
        if failed is not None and self._clock.elapsed() - failed[0] < RETRY_SECONDS:
            return
        try:
            image = await self._images.ensure(want.order.image, lambda length: None)
            plan = await self._plan(want, image)
            self._ready[digest] = await self._find(want, plan) or await self._make(want, plan, image)
            await self._remove_those(  # of another CPU model, or size
                lambda id_, template: template.image == digest and id_ != plan.id
            )
            self._failed.pop(digest, None)
            self._note(digest, READY)
        except (WeftError, OSError) as problem:
            error = problem if isinstance(problem, WeftError) else DriverFailed(str(problem))
            if failed is None or str(failed[1]) != str(error):
                log.warning("image %s has no booted machine: %s", want.order.image.name, error.message)
            self._failed[digest] = (self._clock.elapsed(), error)
            self._ready.pop(digest, None)
            self._note(digest, error.message)
        async with self._settled:
            self._settled.notify_all()

    def _note(self, digest: str, state: str) -> None:
        if self._states.get(digest) != state:
            self._states[digest] = state
            self._changed()

    async def _plan(self, want: _Wanted, image: CachedImage) -> GuestPlan:
        """The machine that boots. Raises InvalidInput for an image that can't be one."""
        manifest, order = image.manifest, want.order
        if image.kernel is None or not manifest.agent:
            raise InvalidInput(
                f"image {order.image.name} lacks weft's agent, or a kernel to boot directly",
                reason="notWarm",
                hint="use an image that weft builds: weft image build debian-12",
            )
        model = want.cpu_model or next(iter((await self._machines.probe()).cpu_models), "")
        cmdline = f"{manifest.cmdline} cloud-init=disabled" if manifest.seed == "nocloud" else manifest.cmdline
        memory = max(order.memory or manifest.min_memory_bytes or DEFAULT_BYTES, manifest.min_memory_bytes)
        id_ = short_id(f"{KEPT}{order.image.sha256}/{memory}/{order.least_cpu}/{model}")
        return GuestPlan(
            id=id_,
            uid=str(uuid.uuid5(uuid.NAMESPACE_OID, id_)),
            name=f"{PREFIX}{order.image.name}",
            incarnation=1,
            machine="q35",
            cpu=float(order.least_cpu),
            vcpus=order.least_cpu,
            memory_bytes=memory,
            boot=BootKernel(image.kernel, image.initrd, cmdline),
            disks=[GuestDisk("", "qcow2", ROOT, base=image.disk, base_format=image.disk_format)],
            nics=[GuestNic(f"wt{id_}", _MAC, _MTU)],
            has_agent=True,
            qemu_agent=manifest.qemu_agent,
            hostname="template",
            cpu_model=model,
        )

    async def _find(self, want: _Wanted, plan: GuestPlan) -> Template | None:
        assert self._templates is not None and self._layers is not None
        note = self._folder / plan.id / "template.json"
        try:
            found = msgspec.json.decode(await asyncio.to_thread(note.read_bytes), type=Template)
        except (OSError, msgspec.MsgspecError):
            return None
        kept = {snapshot.id for snapshot in await self._layers.list_kept()}
        if found.snapshot not in kept or found.key != await self._templates.identify(plan):
            return None
        return msgspec.structs.replace(found, most_vcpus=want.order.most_cpu)

    async def _make(self, want: _Wanted, plan: GuestPlan, image: CachedImage) -> Template:
        assert self._templates is not None and self._layers is not None
        self._note(want.order.image.sha256, MAKING)
        key = await self._templates.identify(plan)
        folder, work = self._folder / plan.id, self._folder / f".{plan.id}.{os.getpid()}"
        await self._remove(plan.id)
        await self._disks.remove(plan.id)
        root = await self._disks.ensure(plan.id, size_bytes=0, base=image.disk, base_format=image.disk_format)
        disk = msgspec.structs.replace(plan.disks[0], path=root.path, format=root.format, size_bytes=root.size_bytes)
        await asyncio.to_thread(work.mkdir, mode=0o700, parents=True)
        try:
            async with self._heavy:
                await self._templates.make(msgspec.structs.replace(plan, disks=[disk]), work)
            layer, snapshot = short_id(f"{KEPT}{plan.id}/{key}"), short_id(f"{KEPT}{plan.id}")
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
            )
            await asyncio.to_thread(write_durably, work / "template.json", msgspec.json.encode(template))
            await asyncio.to_thread(work.rename, folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
            await self._disks.remove(plan.id)
        return template

    async def _remove_others(self, wanted: Sequence[_Wanted]) -> None:
        digests = {want.order.image.sha256 for want in wanted}
        await self._remove_those(lambda id_, template: template.image not in digests)
        for digest in self._states.keys() - digests - self._ordered.keys():
            del self._states[digest]
            self._changed()
        for digest in self._ready.keys() - digests:
            del self._ready[digest]
        for digest in self._ordered.keys() - digests:
            self._note(digest, f"it keeps {MOST_TEMPLATES} booted machines already, the most that a node keeps")

    async def _remove_those(self, is_over: Callable[[str, Template], bool]) -> None:
        """Machines that began from one go on: what they have open stays until they end."""
        for note in list(self._folder.glob("[!.]*/template.json")):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                if is_over(note.parent.name, msgspec.json.decode(note.read_bytes(), type=Template)):
                    await self._remove(note.parent.name)

    async def _remove(self, id_: str) -> None:
        assert self._layers is not None
        await asyncio.to_thread(shutil.rmtree, self._folder / id_, ignore_errors=True)
        await self._layers.drop(short_id(f"{KEPT}{id_}"))
