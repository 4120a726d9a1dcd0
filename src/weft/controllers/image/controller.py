"""Fetches images, checks them, and keeps them for the nodes in one folder, by digest. Where several servers serve, an image is
available once its content lies on two of them; one that another server has isn't fetched again.

Reads images; writes image.status and the files ``<folder>/<sha256>``. Woken by images. A file is complete or absent; what
was being fetched when the process ended is fetched again. A file goes only when somebody deletes the last image that has
it, never because no image explains it. A file that is there already counts for a project only if an image of that project, or one
shared with it, has it: otherwise the URL must give the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from weft.client.server.files import COPIES, ServerFiles
from weft.contracts.confinement.public_address import CLOSED
from weft.contracts.driver.image import RegistryCredentials
from weft.contracts.durable_file import keep_file, sync_folder
from weft.contracts.journal import Event
from weft.controllers.asking import Asking, Later
from weft.controllers.file.plan import find_made, is_checked, is_used
from weft.controllers.image.credentials import Unseal, find_credentials
from weft.controllers.image.file import ImageFacts, Progress, fetch, inspect
from weft.controllers.node.addresses import list_addresses
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Changed, Item, View
from weft.kinds.image import OCI, OCI_FORMAT, ImageSpec, ImageStatus, read_oci
from weft.kinds.parts.image.use import MAY_PASS, SECRET_NOT_GOOD
from weft.kinds.parts.image.work import FETCHING, SENT, name_sent
from weft.kinds.parts.sharing import is_own_or_shared
from weft.kinds.server import find_address
from weft.objects.envelope import merge_part
from weft.objects.errors import DriverFailed, WeftError
from weft.objects.identity import named_key

AT_ONCE = 2
REPORT_EVERY_SECONDS = 1.0
PAUSE_SECONDS = 0.2
CONTENT_GONE = "contentGone"  # the reason of an image that was made from a VM, and whose content is lost
OLDER = "older images"
MAKE_AGAIN = "delete the image, and create it again"
COPY_SECONDS = 1.0  # after which a copy that is awaited is looked for
RETRY_SECONDS = (5.0, 15.0, 60.0, 300.0)

# Makes a bundle of the container image that a URL and, if known, a digest name, with credentials; blocks: see
# launch/image/oci_bundle.py.
MakeBundle = Callable[[str, str, RegistryCredentials | None, Path, Progress, threading.Event], str]


class Images(Asking):
    """Keeps ``folder`` and the images' status up to date. Keys are those of images, and ``OLDER``, at whose turn the images of an
    older weft are read again. ``make_bundle`` None: container images are refused; ``unseal`` decrypts registry secrets; ``allowed``
    are addresses of this machine or its links, and closed folders, that images may come from; ``files`` are those of all servers,
    None: there is one."""

    name = "images"
    kinds = ("image", "secret")
    always = (OLDER,)
    turn_seconds = None  # an image may be large, and its source slow

    def __init__(
        self,
        folder: Path,
        leadership: LeaderLease,
        make_bundle: MakeBundle | None = None,
        unseal: Unseal | None = None,
        allowed: Sequence[str] = (),
        files: ServerFiles | None = None,
    ) -> None:
        self._folder, self._make_bundle, self._unseal = folder, make_bundle, unseal
        self._allowed = tuple(allowed)
        self._files = files
        self._leadership = leadership
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._again = asyncio.Semaphore(1)  # for those that failed before: they keep no new one waiting
        self._fetching: dict[str, threading.Event] = {}  # by uid
        self._attempts: dict[str, int] = {}

    def begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(f"{FETCHING}*"):
            left.unlink(missing_ok=True)
        for left in self._folder.glob(f"{SENT}*"):
            if not any(left.name.startswith(f"{SENT}{uid}.") for uid in find_made(self._leadership.cache.view)):
                left.unlink(missing_ok=True)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "secret":
            return self._find_shut(change.new) if change.new is not None else ()
        if change.old is not None and (change.new is None or change.new.uid != change.old.uid):
            self._forget(change.old)
        if change.new is None:
            return ()
        if change.new.status(ImageStatus).phase == "Failed":
            self._drop_sent(change.new)
        if change.old is None or _is_another(change.old, change.new) or _was_sent(change.old, change.new):
            return [change.key]
        return ()

    async def take_turn(self, key: str) -> Later:
        if key == OLDER:
            await self._inspect_again()
            return {}
        image = self._leadership.cache.view.get(key)
        if image is None or image.deleting:
            return {}
        status = image.status(ImageStatus)
        if is_checked(status) and status.phase == "Fetching" and await self._is_somewhere(image, status.sha256):
            await self._publish(image, msgspec.structs.replace(status, phase="Available"))
            return self._plan_next(image)
        if not self._needs_fetch(image):
            return {}
        if self._files is not None and status.sha256:
            later = await self._bring(image, status, self._files)
            if later is not None:
                return later
        return await self._provide(image)

    async def end(self) -> None:
        for stop in self._fetching.values():
            stop.set()

    async def _inspect_again(self) -> None:
        """Read what an older weft didn't read of its images from their files."""
        for image in list(self._leadership.cache.view.of_kind("image").values()):
            status = image.status(ImageStatus)
            if status.phase != "Available" or status.format != "bundle" or status.min_memory:
                continue
            # A file that is gone is fetched again; a damaged one fails where it is used.
            with contextlib.suppress(OSError, WeftError):
                facts = await asyncio.to_thread(inspect, self._folder / status.sha256, known=True)
                now = self._leadership.cache.view.get(image.key)
                if facts.min_memory and now is not None and now.status(ImageStatus) == status:
                    await self._write_status(now, msgspec.structs.replace(status, min_memory=facts.min_memory))

    def _find_shut(self, secret: Item) -> list[str]:
        """The keys of the images that failed for their secret, and may succeed with the new one."""
        named = (secret.envelope.project, secret.envelope.name)
        return [
            key
            for key, image in self._leadership.cache.view.of_kind("image").items()
            if (image.envelope.project, image.spec(ImageSpec).registry_secret) == named
            and image.status(ImageStatus).reason in SECRET_NOT_GOOD
        ]

    def _forget(self, image: Item) -> None:
        self._attempts.pop(image.uid, None)
        stop = self._fetching.get(image.uid)
        if stop is not None:
            stop.set()
        self._drop_sent(image)
        self._remove_unused(image, image.status(ImageStatus).sha256)

    def _remove_unused(self, image: Item, sha256: str) -> None:
        """Remove the file of ``image``, which was deleted, unless another image or an allocation has it."""
        if sha256 and not is_used(self._leadership.cache.view, sha256):
            with contextlib.suppress(FileNotFoundError):
                gone = (self._folder / sha256).rename(self._folder / f"{FETCHING}gone-{image.uid}")
                asyncio.get_running_loop().run_in_executor(None, gone.unlink)

    def _needs_fetch(self, image: Item) -> bool:
        status = image.status(ImageStatus)
        is_kept = status.phase == "Available" and (self._folder / status.sha256).exists()
        if image.spec(ImageSpec).made_from:
            is_back = status.reason == CONTENT_GONE and (self._folder / status.sha256).is_file()
            return (status.phase in ("Fetching", "Available") and not is_kept) or is_back
        if status.phase == "Failed":
            return _may_pass(image, status.reason)
        return not is_kept

    async def _bring(self, image: Item, status: ImageStatus, files: ServerFiles) -> Later | None:
        """Look on the other servers for the content of ``image``, which was available, or which a node has sent. None: no server
        has it, or it is here now."""
        is_sent = status.phase == "Fetching"
        if not is_sent and (await files.find(status.sha256)).has:
            return {}  # each server sees to its own copies
        if not image.spec(ImageSpec).made_from:
            return None
        place = name_sent(self._folder, image.uid, status.sha256)
        if is_sent and place.is_file():
            return None
        try:
            await files.bring(status.sha256, place if is_sent else None, sent=is_sent)
        except WeftError as problem:
            if is_sent:
                await self._write_status(image, msgspec.structs.replace(status, message=problem.message))
            return {image.key: COPY_SECONDS}
        return None

    async def _publish(self, image: Item, made: ImageStatus) -> None:
        """Write that an image is available; or, while its content lies on one server only, that another copy is awaited."""
        missing = await self._find_missing(made.sha256)
        if missing:
            made = msgspec.structs.replace(made, phase="Fetching")
        await self._write_status(image, msgspec.structs.replace(made, message=missing))

    async def _find_missing(self, sha256: str) -> str:
        """Why the content doesn't lie on two servers; "": it does, or there is one server."""
        if self._files is None:
            return ""
        servers = self._leadership.cache.view.of_kind("server").values()
        serving, found = sum(bool(find_address(one.envelope)) for one in servers), await self._files.find(sha256)
        if len(found.has) + (self._folder / sha256).is_file() >= max(1, min(COPIES, serving)):
            return ""
        away = f"; can't be reached: {', '.join(found.away)}" if found.away else ""
        return f"its content doesn't lie on two servers yet, and is being copied{away}"

    async def _is_somewhere(self, image: Item, sha256: str) -> bool:
        """Whether the content needn't be fetched again: a server has it, or it was made from a VM and can't be."""
        if (self._folder / sha256).is_file() or image.spec(ImageSpec).made_from:
            return True
        return self._files is not None and bool((await self._files.find(sha256)).has)

    def _plan_next(self, image: Item) -> Later:
        """When to look again at an image whose second copy may be missing."""
        now = self._leadership.cache.view.get(image.key)
        is_waiting = now is not None and now.uid == image.uid and is_checked(status := now.status(ImageStatus))
        return {image.key: COPY_SECONDS} if is_waiting and status.phase == "Fetching" else {}

    async def _provide(self, image: Item) -> Later:
        """Get one image and write its status. It is tried again if its file went with another's image before that was written."""
        self._fetching[image.uid] = threading.Event()
        try:
            async with self._again if image.uid in self._attempts else self._slots:
                await (self._take_in(image) if image.spec(ImageSpec).made_from else self._try(image))
        finally:
            self._fetching.pop(image.uid, None)
        now = self._leadership.cache.view.get(image.key)
        if now is None or now.status(ImageStatus).phase == "Available":
            return {image.key: 0.0} if now is not None else {}
        if later := self._plan_next(image):
            return later
        attempts = self._attempts.get(image.uid, 0)
        return {image.key: RETRY_SECONDS[min(attempts, len(RETRY_SECONDS)) - 1]} if attempts else {}

    async def _try(self, image: Item) -> None:
        spec, stop = image.spec(ImageSpec), self._fetching[image.uid]
        work = self._folder / f"{FETCHING}{image.uid}"
        await self._write_status(image, ImageStatus(phase="Fetching", digest=image.status(ImageStatus).digest))
        try:
            try:
                if self._may_take(image, spec.sha256) and (self._folder / spec.sha256).exists():
                    sha256, path = spec.sha256, self._folder / spec.sha256
                else:
                    sha256, path = await self._fetch(image, spec.url, work, stop), work
                    if spec.sha256 and sha256 != spec.sha256:
                        raise DriverFailed(
                            f"sha256 is {sha256}, expected {spec.sha256}",
                            reason="sha256Mismatch",
                            hint="check the URL and the digest, then delete the image and add it again",
                        )
                facts = await asyncio.to_thread(inspect, path, known=path != work)
                size = path.stat().st_size
                if path == work:
                    await asyncio.to_thread(_keep, work, self._folder / sha256)
            finally:  # before the status is written
                await asyncio.to_thread(work.unlink, missing_ok=True)
        except WeftError as problem:
            if not stop.is_set():
                await self._fail(image, problem)
            return
        self._attempts.pop(image.uid, None)
        await self._publish(image, _available(spec.url, sha256, size, facts))
        now = self._leadership.cache.view.get(image.key)
        if now is None or now.uid != image.uid:
            self._remove_unused(image, sha256)

    async def _take_in(self, image: Item) -> None:
        """Check and keep what a node made of a VM and sent, and write the image's status. Content that was kept and is gone may
        come back, as where another server has the folder."""
        status, is_new = image.status(ImageStatus), image.status(ImageStatus).phase == "Fetching"
        target = self._folder / status.sha256
        place = name_sent(self._folder, image.uid, status.sha256) if is_new else target
        try:
            if not place.is_file():
                raise DriverFailed("the server has lost its content", reason=CONTENT_GONE, hint=MAKE_AGAIN)
            facts = await asyncio.to_thread(inspect, place, known=not is_new)
            size = place.stat().st_size
            if is_new:
                await asyncio.to_thread(_link, place, target)
        except WeftError as problem:
            if is_new:
                await self._fail(image, problem)
            else:  # with its digest, as which it was checked
                message = f"{problem.message}; {MAKE_AGAIN}"
                failed = msgspec.structs.replace(status, phase="Failed", reason=CONTENT_GONE, message=message)
                await self._write_status(image, failed)
        else:
            made = _available("", status.sha256, size, facts)
            kept = {name: getattr(status, name) for name in ("consistency", "cleaned")}
            await self._publish(image, msgspec.structs.replace(made, **kept))
        self._drop_sent(image)
        now = self._leadership.cache.view.get(image.key)
        if now is None or now.uid != image.uid:
            self._remove_unused(image, status.sha256)

    def _drop_sent(self, image: Item) -> None:
        if image.spec(ImageSpec).made_from:
            for left in (*self._folder.glob(f"{SENT}{image.uid}.*"), *self._folder.glob(f"{FETCHING}{image.uid}.*")):
                asyncio.get_running_loop().run_in_executor(None, partial(left.unlink, missing_ok=True))

    def _may_take(self, image: Item, sha256: str) -> bool:
        """Whether the project has that content already, by another of its images or one that is shared with it: a digest alone
        gives nothing."""
        project = image.envelope.project
        return bool(sha256) and any(
            other.status(ImageStatus).sha256 == sha256
            and not other.deleting
            and is_own_or_shared(other, project, other.spec(ImageSpec).shared_with)
            for other in self._leadership.cache.view.of_kind("image").values()
        )

    async def _fetch(self, image: Item, url: str, work: Path, stop: threading.Event) -> str:
        """Fetch in a thread and report progress in the status; returns the digest."""
        fetched = 0

        def on_progress(length: int) -> None:
            nonlocal fetched
            fetched = length

        nodes = list_addresses(self._leadership.cache.view)
        get = partial(fetch, url, allowed=(*self._allowed, *(f"{CLOSED}{address}" for address in sorted(nodes))))
        if url.startswith(OCI):
            if self._make_bundle is None:
                raise DriverFailed("this server can't make images from container images", reason="fetchFailed")
            credentials = find_credentials(self._leadership.cache.view, image, self._unseal)
            url = await self._find_held(image, url)
            get = partial(self._make_bundle, url, image.status(ImageStatus).digest, credentials)
        task = asyncio.ensure_future(asyncio.to_thread(get, work, on_progress, stop))
        reported = 0
        try:
            while not task.done():
                await asyncio.wait(
                    [task, pause := asyncio.ensure_future(self._leadership.clock.sleep(REPORT_EVERY_SECONDS))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                pause.cancel()
                if not task.done() and fetched != reported:
                    reported = fetched
                    await self._write_status(
                        image, ImageStatus(phase="Fetching", fetched=reported, digest=image.status(ImageStatus).digest)
                    )
            return task.result()
        finally:
            if not task.done():
                stop.set()
                task.cancel()

    async def _find_held(self, image: Item, url: str) -> str:
        """``url``, or the archive of the Image that it names."""
        source = read_oci(url)
        if source.place != "held":
            return url
        project = image.envelope.project
        other = self._leadership.cache.view.get(named_key("image", project, source.name))
        there = other is not None and not other.deleting
        if other is not None and not is_own_or_shared(other, project, other.spec(ImageSpec).shared_with):
            there = False
        status = other.status(ImageStatus) if other is not None and there else ImageStatus()
        if status.phase != "Available" or status.format != OCI_FORMAT:
            hint = f"weft image add {source.name} FILE.tar (an OCI archive); weft then tries again"
            raise DriverFailed(
                f"image {source.name} does not exist, or is not a container image",
                reason="fetchFailed",
                hint="ask its project to share it; weft then tries again" if "/" in source.name else hint,
            )
        path = self._folder / status.sha256
        if self._files is not None and not path.exists():
            await self._files.bring(status.sha256)
        return f"oci-archive:{path}"

    async def _fail(self, image: Item, problem: WeftError) -> None:
        message = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
        secret = image.spec(ImageSpec).registry_secret
        if problem.token == "notAuthenticated":
            message += f"; check secret {secret}" if secret else "; set registry_secret"
        await self._write_status(image, ImageStatus(phase="Failed", reason=problem.token, message=message))
        if _may_pass(image, problem.token):
            self._attempts[image.uid] = self._attempts.get(image.uid, 0) + 1

    async def _write_status(self, image: Item, status: ImageStatus) -> None:
        """Write the status, unless the image is gone."""
        while True:
            now = self._leadership.cache.view.get(image.key)
            if now is None or now.uid != image.uid or now.status(ImageStatus) == status:
                return
            events = []
            if status.phase == "Failed" or (status.phase == "Available" and not _is_available(now)):
                bad = status.phase == "Failed"
                message = (
                    status.message
                    if bad
                    else f"{image.envelope.name} is available: {status.format}, {status.size} bytes"
                )
                reason = f"Image{status.phase}"
                events = [Event("Warning" if bad else "Normal", reason, message, image.envelope.ref, "images")]
            envelope = edit(now)
            envelope.status = merge_part(envelope.status, status)
            if not await self._leadership.perform([Commit(image.key, [put(envelope)], [unchanged(now)], events)]):
                return
            await self._leadership.clock.sleep(PAUSE_SECONDS)


def _was_sent(old: Item, new: Item) -> bool:
    """Whether a node has sent what it made of a VM."""
    was, now = old.status(ImageStatus), new.status(ImageStatus)
    return bool(new.spec(ImageSpec).made_from) and now.phase == "Fetching" != was.phase


def _is_available(image: Item) -> bool:
    return image.status(ImageStatus).phase == "Available"


def _may_pass(image: Item, reason: str) -> bool:
    return reason in MAY_PASS or (reason in SECRET_NOT_GOOD and bool(image.spec(ImageSpec).registry_secret))


def _is_another(old: Item, new: Item) -> bool:
    return old.uid != new.uid or old.envelope.generation != new.envelope.generation


def _available(url: str, sha256: str, size: int, facts: ImageFacts) -> ImageStatus:
    return ImageStatus(
        phase="Available",
        digest=facts.digest if url.startswith(OCI) or facts.format == OCI_FORMAT else "",
        sha256=sha256,
        size=size,
        virtual_size=facts.virtual_size,
        min_memory=facts.min_memory,
        format=facts.format,
        agent=facts.agent,
        fetched=size,
    )


def _keep(work: Path, target: Path) -> None:
    """Give a checked file its name, durably."""
    work.chmod(0o600)
    keep_file(work, target)


def _link(sent: Path, target: Path) -> None:
    """Give a checked file a second name, durably: the first one goes when the image's status says so."""
    sent.chmod(0o600)
    with contextlib.suppress(FileExistsError):
        target.hardlink_to(sent)
    sync_folder(target.parent)
