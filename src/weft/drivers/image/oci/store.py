"""The node's store of container images (``contracts/driver/image.py``), under ``<state>/oci``: each layer is unpacked once,
whatever images have it, and removed when none needs it any more. Who hasn't had a layer before fetches it all the same: to know its
digest is not to have it.

Killed at any point it has an image whole, or not: layers come under their names when they are complete, an image's record is
written last, and names of work that nobody goes on with are taken away at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.container import User
from weft.contracts.driver.host import Host
from weft.contracts.driver.image import OciImage, PullProgress, RegistryCredentials
from weft.drivers.image.oci.coalescing import SharedWork
from weft.drivers.image.oci.documents import Descriptor
from weft.drivers.image.oci.fetch.download import download
from weft.drivers.image.oci.fetch.exchange import Exchanges, Patience
from weft.drivers.image.oci.fetch.layout import Layout
from weft.drivers.image.oci.fetch.registry import Registry, RegistrySettings
from weft.drivers.image.oci.fetch.source import Source
from weft.drivers.image.oci.layer_files import read_file
from weft.drivers.image.oci.layers import Layer, Layers, complete, remove_trees
from weft.drivers.image.oci.platforms import Platform, this_platform
from weft.drivers.image.oci.pull import Pull
from weft.drivers.image.oci.records import PUBLIC, Record, Records
from weft.drivers.image.oci.unpack.process import Limits
from weft.drivers.image.oci.users import find_user
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.objects.image.reference import DIGEST, ImageReference, parse_reference

BUDGET_BYTES = 20 << 30
EXCHANGES = 4  # at once with one registry


class OciImages:
    """``registries``: settings by HOST:PORT, or by HOST for all its ports. ``default_registry`` is for references that name none;
    without it they are refused. ``budget_bytes``: what unused images may take until they are forgotten. ``reach``: registries are
    at strangers' addresses, or at these (``contracts/confinement/public_address.py``); None: anywhere."""

    def __init__(
        self,
        host: Host,
        *,
        registries: Mapping[str, RegistrySettings] | None = None,
        default_registry: str = "",
        budget_bytes: int = BUDGET_BYTES,
        limits: Limits | None = None,
        patience: Patience | None = None,
        platform: Platform | None = None,
        clock: Clock | None = None,
        reach: Sequence[str] | None = None,
    ) -> None:
        folder = Path(host.state_dir) / "oci"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._registries, self._default_registry, self._budget = registries or {}, default_registry, budget_bytes
        self._patience, self._clock = patience or Patience(), clock or SystemClock()
        self._here, self._reach = platform or this_platform(), reach
        self._layers, self._records = Layers(folder / "layers", limits or Limits()), Records(folder / "images")
        self._pulls: SharedWork[OciImage, tuple[int, int]] = SharedWork()
        self._making: SharedWork[Layer, int] = SharedWork()
        self._wanted: Counter[str] = Counter()  # layers that pulls under way need
        self._fetched: defaultdict[str, set[str]] = defaultdict(set)  # of these, by which holders
        self._places: dict[str, asyncio.Semaphore] = {}
        self._swept: asyncio.Task[None] | None = None

    async def pull(
        self,
        reference: str,
        digest: str = "",
        *,
        credentials: RegistryCredentials | None = None,
        progress: PullProgress | None = None,
        own_file: bool = False,
    ) -> OciImage:
        parsed = parse_reference(reference, default_registry=self._default_registry)
        if digest and not DIGEST.fullmatch(digest):
            raise InvalidInput(
                f"{digest[:80]!r} is not a digest", field="spec.digest", hint="use sha256: and 64 hex digits"
            )
        if digest and parsed.digest and digest != parsed.digest:
            raise InvalidInput(
                f"{parsed} is pinned to another digest than {digest}", field="spec.image", hint="give one of them"
            )
        wanted, mark = digest or parsed.digest, self._records.mark(parsed, credentials)
        holder = self._records.holder(parsed, credentials)
        known = self._known(wanted)
        if known is not None and mark in known.openers:
            return self._use(known, parsed)
        await self._sweep()
        return await self._pulls.join(
            (str(parsed), wanted, mark),
            lambda on_progress: self._pull(parsed, wanted, credentials, (mark, holder), on_progress, own_file),
            (lambda news: progress(*news)) if progress is not None else None,
        )

    async def find(self, digest: str) -> OciImage | None:
        known = self._known(digest)
        return known.image if known is not None else None

    def root(self, image: OciImage) -> list[str]:
        """A layer that occurs twice counts where it is uppermost: that shows the same files, and overlayfs takes each only
        once."""
        order = list(dict.fromkeys(reversed(image.layers)))
        return [str(self._layers.path(diff_id)) for diff_id in order] or [str(self._layers.empty)]

    async def find_user(self, image: OciImage, user: str) -> User:
        roots = [Path(path) for path in self.root(image)]
        passwd, group = await asyncio.to_thread(
            lambda: (read_file(roots, "/etc/passwd") or b"", read_file(roots, "/etc/group") or b"")
        )
        return find_user(user, passwd, group)

    async def forget(self, used: Collection[str]) -> int:
        """Those pulled or used longest ago go first. One that was just pulled counts as unused until ``used`` has it."""
        await self._sweep()
        total = sum(layer.bytes for layer in self._layers.all())
        gone: list[Path] = []
        before = total
        for record in [None, *sorted(self._records.all(), key=lambda record: record.used)]:
            if record is not None:  # layers without an image come first: of pulls that failed
                if total <= self._budget:
                    break
                if set(used) & {record.image.digest, *record.digests}:
                    continue
                self._records.drop(record.image.digest)
            needed = {diff_id for other in self._records.all() for diff_id in other.image.layers}
            for layer in self._layers.all():
                if layer.diff_id not in needed and not self._wanted[layer.diff_id]:
                    gone.append(self._layers.take_away(layer.diff_id))
                    total -= layer.bytes
        if gone:
            await remove_trees(gone)
        return before - total

    async def close(self) -> None:
        await self._pulls.close()
        await self._making.close()

    async def _sweep(self) -> None:
        self._swept = self._swept or asyncio.create_task(self._layers.sweep())
        await asyncio.shield(self._swept)

    async def _pull(
        self,
        reference: ImageReference,
        wanted: str,
        credentials: RegistryCredentials | None,
        marks: tuple[str, str],
        on_progress: Callable[[tuple[int, int]], None],
        own_file: bool,
    ) -> OciImage:
        """``marks``: of these credentials at this place, and of those who have them."""
        mark, holder = marks
        source = self._source(reference, credentials, own_file)
        pull = Pull(source, self._here, self._patience, self._clock)
        try:
            name = wanted or await pull.look_up(reference.tag) or reference.tag
            known = self._known(name)
            if known is not None and mark in known.openers:
                return self._use(known, reference)
            resolved = await pull.resolve(name)
            known = self._known(resolved.digest)
            if known is None or not all(self._records.has_layer(one, holder) for one in known.image.layers):
                configuration = await pull.configuration(resolved.manifest)
                parts = list(zip(resolved.manifest.layers, configuration.diff_ids, strict=True))
                with self._needing(configuration.diff_ids):
                    layers = await self._fetch(source, parts, holder, on_progress)
                    folders = await self._layers.make_folders(list(dict.fromkeys(reversed(configuration.diff_ids))))
                    image = OciImage(
                        str(reference),
                        resolved.digest,
                        configuration.run,
                        [*configuration.diff_ids, *([folders] if folders is not None else [])],
                        sum({layer.diff_id: layer.bytes for layer in layers}.values()),
                    )
                    known = self._known(resolved.digest) or Record(image)
                    self._remember(known, resolved.indexes, marks)
            else:
                self._remember(known, resolved.indexes, marks)
            return self._use(known, reference, resolved.indexes[0] if resolved.indexes else "")
        except WeftError as problem:
            raise name_image(problem, reference) from problem
        finally:
            await source.close()

    async def _fetch(
        self,
        source: Source,
        parts: list[tuple[Descriptor, str]],
        holder: str,
        on_progress: Callable[[tuple[int, int]], None],
    ) -> list[Layer]:
        """Fetch all layers that ``holder`` hasn't had, several at once. Pulls of one holder that want the same layer share one
        fetch."""
        total, here = sum(part.size for part, _ in parts), [0] * len(parts)
        missing = sum({diff_id: part.size for part, diff_id in parts if self._find(diff_id, holder) is None}.values())
        if missing > self._layers.free_bytes():
            raise DriverFailed(
                f"the node has no space for the image's {missing} bytes",
                reason="noSpace",
                hint="free some space on the node's disk",
                details={"step": "image"},
            )

        async def fetch(position: int, part: Descriptor, diff_id: str) -> Layer:
            def arrived(count: int) -> None:
                here[position] = count
                on_progress((sum(here), total))

            layer = self._find(diff_id, holder) or await self._share(source, part, diff_id, holder, arrived)
            arrived(part.size)
            return layer

        tasks = [asyncio.create_task(fetch(at, part, diff_id)) for at, (part, diff_id) in enumerate(parts)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _find(self, diff_id: str, holder: str) -> Layer | None:
        """The layer, if it is here and ``holder`` has had it, if only for an image that hasn't come whole yet."""
        has_had = self._records.has_layer(diff_id, holder) or {holder, PUBLIC} & self._fetched.get(diff_id, set())
        return self._layers.find(diff_id) if has_had else None

    async def _share(
        self, source: Source, part: Descriptor, diff_id: str, holder: str, arrived: Callable[[int], None]
    ) -> Layer:
        """Wait for a fetch that another pull of the same holder has begun from the same registry; if that fails, fetch it again,
        since the fault may be that pull's own."""
        ours = False

        def begin(on_progress: Callable[[int], None]) -> Coroutine[Any, Any, Layer]:
            nonlocal ours
            ours = True
            return self._make(source, part, diff_id, holder, on_progress)

        try:
            return await self._making.join((source.where, holder, part.digest, diff_id), begin, arrived)
        except WeftError:
            if ours:
                raise
        return await self._making.join((id(source), diff_id), begin, arrived)

    async def _make(
        self, source: Source, part: Descriptor, diff_id: str, holder: str, on_progress: Callable[[int], None]
    ) -> Layer:
        _ = part.packing  # refused before it is fetched
        blob = self._layers.work()
        try:
            await download(source, part, blob, self._patience, self._clock, on_progress)
            layer = await self._layers.make(blob, part, diff_id)
            self._fetched[diff_id].add(holder)
            return layer
        finally:
            await complete(asyncio.to_thread(blob.unlink, missing_ok=True))

    def _source(self, reference: ImageReference, credentials: RegistryCredentials | None, own_file: bool) -> Source:
        # One registry that hangs holds up no other; nor do many pulls from one start many processes.
        places = self._places.setdefault(reference.registry, asyncio.Semaphore(EXCHANGES))
        exchanges = Exchanges(self._patience, places, reference.path if own_file else "", self._reach)
        if reference.place != "registry":
            return Layout(reference, exchanges)
        name = reference.registry
        settings = self._registries.get(name) or self._registries.get(name.rpartition(":")[0]) or RegistrySettings()
        return Registry(reference, settings, credentials, exchanges)

    @contextlib.contextmanager
    def _needing(self, diff_ids: list[str]) -> Iterator[None]:
        self._wanted.update(diff_ids)
        try:
            yield
        finally:
            self._wanted.subtract(diff_ids)
            for diff_id in diff_ids:
                if not self._wanted[diff_id]:
                    self._fetched.pop(diff_id, None)

    def _known(self, digest: str) -> Record | None:
        """The record of an image that is whole: with parts lost, the store has it no more."""
        record = self._records.find(digest) if digest else None
        whole = record is not None and all(self._layers.find(diff_id) is not None for diff_id in record.image.layers)
        return record if whole else None

    def _remember(self, record: Record, indexes: list[str], marks: tuple[str, str]) -> None:
        mark, holder = marks
        record.digests = sorted({*record.digests, *indexes})
        record.openers = [*(one for one in record.openers if one != mark), mark][-64:]
        record.holders = [*(one for one in record.holders if one != holder), holder][-64:]
        record.used = self._clock.now()
        self._records.keep(record)

    def _use(self, record: Record, reference: ImageReference, index: str = "") -> OciImage:
        if self._clock.now() - record.used > 60:
            record.used = self._clock.now()
            self._records.keep(record)
        return OciImage(
            str(reference),
            record.image.digest,
            record.image.config,
            record.image.layers,
            record.image.size_bytes,
            index or next(iter(record.digests), ""),
        )

    async def list(self) -> list[OciImage]:
        known = (self._known(record.image.digest) for record in self._records.all())
        return sorted((record.image for record in known if record is not None), key=lambda image: image.digest)


def name_image(problem: WeftError, reference: ImageReference) -> WeftError:
    """``problem`` with its image. A new error, since several callers may get the one of a layer that they share."""
    message = problem.message.removeprefix(reference.path or "\0").lstrip(": ")  # the reference has the path already
    return type(problem)(
        f"image {reference}: {message}",
        reason=problem.token,
        field=problem.field,
        hint=problem.hint,
        details=problem.details,
        retry_after_seconds=problem.retry_after_seconds,
    )
