"""The templates of this node: which images have a booted machine, made in the background, kept while they are wanted.

Wanted are first those that people order, then those that VMs asked for, then those that many VMs would have begun from. Whatever
doesn't match its machine any more (another QEMU, kernel, image or CPU model) is made again. Woken by the server's answers, and
by VMs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from weft.agent.image.cache import CachedImage, ImageCache
from weft.agent.template.claim import BootMemory
from weft.agent.template.fit import KEPT, Template, TemplateOrder, fits, refuse_any
from weft.agent.template.often import AFTER, Often
from weft.agent.template.store import TemplateStore
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import HasLayers
from weft.contracts.driver.runtime import BootKernel, GuestDisk, GuestNic, GuestPlan, RuntimeDriver
from weft.contracts.driver.template import CanTemplate
from weft.contracts.driver.volume import VolumeDriver
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import ROOT, AllocatedImage, AllocationSpec
from weft.kinds.image import MOST_WARM_IMAGES
from weft.kinds.parts.image.work import WarmOrder, WarmReport, name_order
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
PREFIX = "template."  # of the machines' names: no VM's has a dot
READY, MAKING = "ready", "making"
RETRY_SECONDS = 60.0
RETRY_OFTEN_SECONDS = 6 * 3600.0  # of one that nobody asked for
LEAST_FREE_SHARE = 0.05  # of the disk: with less, those that nobody asked for go
DEFAULT_BYTES = 512 << 20  # for an image that doesn't say what it needs
_MTU = 1450
_MAC = "02:00:00:00:00:01"  # which no endpoint has


class TemplateLibrary:
    is_asking = False  # its orders stand for long

    def __init__(
        self,
        state_dir: str,
        machines: RuntimeDriver[GuestPlan],
        local: VolumeDriver,
        images: ImageCache,
        clock: Clock,
        heavy: asyncio.Semaphore,
        memory: BootMemory,
        changed: Callable[[], None],
        after: int = AFTER,
    ) -> None:
        """Take the parts of a library. ``after``: how many VMs of an image within a day make this node keep a machine of it
        automatically; 0: none do."""
        folder = Path(state_dir) / "templates"
        self._machines, self._images, self._clock = machines, images, clock
        self._heavy, self._memory, self._changed = heavy, memory, changed
        self._templates = machines.templates if isinstance(machines, CanTemplate) else None
        self._store: TemplateStore | None = None
        if self._templates is not None and isinstance(local, HasLayers):
            self._store = TemplateStore(folder, self._templates, local, local.layers, clock)
        self._often = Often(Path(state_dir) / "vm-starts.json", clock, after)
        self._ordered: dict[str, WarmOrder] = {}  # by sha256: by the server
        self._refused: frozenset[str] = frozenset()  # uids of images that have no machine that nobody asked for
        self._needed: dict[str, TemplateOrder] = {}  # by sha256: by VMs of this node
        self._kept: dict[str, TemplateOrder] = {}  # by uid of the image: by this node itself
        self._models: dict[
            str, str
        ] = {}  # by sha256: the CPU model of the first VM, or of the newest that must start warm
        self._ready: dict[str, Template] = {}  # by sha256
        self._states: dict[str, str] = {}
        self._orders: dict[str, str] = {}  # by sha256: the order that its state is about
        self._reasons: dict[str, str] = {}  # by uid of the image
        self._failed: dict[str, tuple[float, WeftError]] = {}
        self._waiting: dict[str, list[int]] = {}  # by sha256: the memory of each VM that waits for one
        self._found = set[str]()  # by sha256: those that an earlier agent has kept
        self._making: asyncio.Task[None] | None = None  # of one that may be put off
        self._woken, self._settled = asyncio.Event(), asyncio.Condition()

    @property
    def works(self) -> bool:
        """Whether this node can have templates at all."""
        return self._store is not None

    def report(self) -> list[WarmReport]:
        """Sorted: it changes only with what it says."""
        return [WarmReport(digest, self._orders[digest], state) for digest, state in sorted(self._states.items())]

    def explain(self) -> dict[str, str]:
        """Explain for what each is kept, or why it isn't there, by the image's uid."""
        return dict(sorted(self._reasons.items()))

    async def begin(self) -> None:
        """End what an earlier agent was making. Before guests are looked for."""
        if self._store is None:
            return
        self._often.load()
        try:
            await self._store.clear(PREFIX)
            self._found = await asyncio.to_thread(self._store.list_images)
        except WeftError as problem:
            log.warning("booted machines: %s", problem)

    def put_orders(self, orders: Sequence[WarmOrder]) -> None:
        """All that the server says of images' booted machines."""
        ordered = {order.image.sha256: order for order in orders if order.wanted}
        refused = [order.image.uid for order in orders if not order.often]
        if ordered != self._ordered or self._refused != frozenset(refused):
            for digest in self._ordered.keys() - ordered.keys():  # nobody wants it any more, whichever VM asked first
                self._needed.pop(digest, None)
            for digest in [digest for digest, order in ordered.items() if order != self._ordered.get(digest)]:
                self._failed.pop(digest, None)  # what could not be made as ordered before
            self._ordered, self._refused = ordered, frozenset(refused)
            self._put_off()
            self._woken.set()

    async def keep(self) -> None:
        """Make what is wanted, and remove what isn't, for ever."""
        if self._store is None:
            return
        while True:
            self._woken.clear()
            wanted = self._list_wanted()
            await self._remove_others(self._store, wanted)
            for want in wanted:
                if want.often:
                    await self._make_quietly(self._store, want)
                else:
                    await self._make_one(self._store, want)
            self._explain(wanted)
            with contextlib.suppress(OSError):  # a full disk: the counts begin anew with the next agent
                await self._often.save()
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
        self._often.note(spec, may_begin=not why)
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

    async def _await_ready(self, image: AllocatedImage, spec: AllocationSpec, show: Callable[[str], None]) -> None:
        """Raises the error with which the last attempt has failed."""
        digest, memory = image.sha256, spec.resources.memory
        known = self._ready.get(digest)
        if known is not None and known.cpu_model == spec.cpu_model:
            return
        self._models[digest] = spec.cpu_model
        self._failed.pop(digest, None)
        self._ready.pop(digest, None)
        self._waiting.setdefault(digest, []).append(memory)
        try:
            self._need(image, spec)
            show("booting the image once")
            async with self._settled:
                await self._settled.wait_for(
                    lambda: digest in self._ready or digest in self._failed or not self._is_wanted(digest)
                )
        finally:
            self._waiting[digest].remove(memory)
        if digest in self._failed:
            raise self._failed[digest][1]
        if digest not in self._ready:
            raise DriverFailed(
                f"image {image.name} has no booted machine: the limit of {MOST_WARM_IMAGES} booted machines per node is reached",
                hint="weft image warm NAME --off for one that needs none, or set spec.boot to auto",
            )

    def _need(self, image: AllocatedImage, spec: AllocationSpec) -> None:
        order = self._ordered.get(image.sha256) or WarmOrder(image)
        self._needed.pop(image.sha256, None)
        self._needed[image.sha256] = TemplateOrder(
            order, spec.cpu_model, spec.workload.project or "", "a VM asked for it"
        )
        while len(self._needed) > MOST_WARM_IMAGES:
            del self._needed[next(iter(self._needed))]
        self._put_off()
        self._woken.set()

    def _put_off(self) -> None:
        """Put off what nobody asked for: what somebody waits for goes first."""
        if self._making is not None:
            self._making.cancel()

    def _is_wanted(self, digest: str) -> bool:
        return any(want.order.image.sha256 == digest for want in self._list_wanted())

    def _list_wanted(self) -> list[TemplateOrder]:
        """List the templates that are ordered, that VMs asked for, newest first, and that are started often; those that VMs wait
        for first."""
        here = sorted(self._ordered.items(), key=lambda one: (one[0] not in self._ready.keys() | self._found, one[0]))
        wanted = {
            digest: TemplateOrder(order, self._models.get(digest, ""), why="ordered")
            for digest, order in here[:MOST_WARM_IMAGES]
        }
        for want in [*reversed(self._needed.values()), *self._list_often()]:
            if len(wanted) < MOST_WARM_IMAGES and want.order.image.sha256 not in self._ordered:
                wanted.setdefault(want.order.image.sha256, want)
        return sorted(wanted.values(), key=lambda want: not self._waiting.get(want.order.image.sha256))

    def _list_often(self) -> list[TemplateOrder]:
        if self._store is None:
            return []
        free, total = self._store.measure()
        if free < LEAST_FREE_SHARE * total:
            return []
        return self._often.list_wanted(self._kept, self._refused)

    async def _make_quietly(self, store: TemplateStore, want: TemplateOrder) -> None:
        """Make one that can be put off."""
        work = self._making = asyncio.ensure_future(self._make_one(store, want))
        try:
            await asyncio.wait({work})
        finally:
            self._making = None
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if work.cancelled():
            self._forget(want.order.image.sha256)
        else:
            work.result()

    async def _make_one(self, store: TemplateStore, want: TemplateOrder) -> None:
        digest = want.order.image.sha256
        failed, pause = self._failed.get(digest), RETRY_OFTEN_SECONDS if want.often else RETRY_SECONDS
        if failed is not None and self._clock.elapsed() - failed[0] < pause:
            return
        if want.often and self._images.find(digest) is None:
            return
        try:
            image = await self._images.ensure(want.order.image, lambda length: None)
            plan = await self._plan(want, image)
            template = await store.find(want, plan)
            if template is None:
                if want.often and not self._is_good_moment(store, plan.memory_bytes):
                    return
                self._note(want.order, MAKING)
                self._explain_one(want)
                template = await store.make(want, plan, image, partial(self._boot, digest))
            self._ready[digest] = template
            if want.often:
                self._kept[want.order.image.uid] = want
            await store.remove_those(  # of another CPU model, or size
                lambda id_, template: template.image == digest and id_ != plan.id
            )
            self._failed.pop(digest, None)
            self._note(want.order, READY)
        except (WeftError, OSError) as problem:
            error = problem if isinstance(problem, WeftError) else DriverFailed(str(problem))
            if failed is None or str(failed[1]) != str(error):
                log.warning("image %s has no booted machine: %s", want.order.image.name, error.message)
            self._failed[digest] = (self._clock.elapsed(), error)
            self._ready.pop(digest, None)
            self._note(want.order, error.message)
        async with self._settled:
            self._settled.notify_all()

    async def _boot(self, digest: str, plan: GuestPlan, folder: Path) -> None:
        templates = self._templates
        assert templates is not None

        async def boot() -> None:
            async with self._heavy:
                await templates.make(plan, folder)

        await self._memory.run(
            plan.memory_bytes,
            lambda: any(memory >= plan.memory_bytes for memory in self._waiting.get(digest, [])),
            boot,
        )

    def _is_good_moment(self, store: TemplateStore, memory: int) -> bool:
        """Whether a machine that nobody waits for may boot now: it must be in nobody's way."""
        free, total = store.measure()
        return (
            self._often.is_quiet
            and self._memory.free_bytes >= 2 * memory
            and free - memory >= 2 * LEAST_FREE_SHARE * total
        )

    def _note(self, order: WarmOrder, state: str) -> None:
        digest, name = order.image.sha256, name_order(order.memory, order.least_cpu, order.most_cpu)
        if (self._states.get(digest), self._orders.get(digest)) != (state, name):
            self._states[digest], self._orders[digest] = state, name
            self._changed()

    def _forget(self, digest: str) -> None:
        self._ready.pop(digest, None)
        if self._states.pop(digest, None) is not None:
            self._changed()

    def _explain(self, wanted: Sequence[TemplateOrder]) -> None:
        uids = {want.order.image.uid for want in wanted}
        self._reasons = {uid: reason for uid, reason in self._reasons.items() if uid in uids}
        for want in wanted:
            self._explain_one(want)

    def _explain_one(self, want: TemplateOrder) -> None:
        uid, state = want.order.image.uid, self._states.get(want.order.image.sha256, "")
        before = self._reasons.pop(uid, "")
        if state:
            self._reasons[uid] = want.why if state == READY else f"{want.why}; {state}"
        if self._reasons.get(uid, "") != before:
            self._changed()

    async def _plan(self, want: TemplateOrder, image: CachedImage) -> GuestPlan:
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

    async def _remove_others(self, store: TemplateStore, wanted: Sequence[TemplateOrder]) -> None:
        digests = {want.order.image.sha256 for want in wanted}
        await store.remove_those(lambda id_, template: template.image not in digests)
        for digest in (self._states.keys() | self._ready.keys()) - digests - self._ordered.keys():
            self._forget(digest)
        for digest in self._ready.keys() - digests:
            del self._ready[digest]
        self._kept = {
            want.order.image.uid: want for want in wanted if want.order.image.uid in self._kept and want.often
        }
        for digest in self._ordered.keys() - digests:
            self._note(self._ordered[digest], f"people ordered {MOST_WARM_IMAGES} already, the most that a node keeps")
