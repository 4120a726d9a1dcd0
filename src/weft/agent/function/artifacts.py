"""The files of functions' instances on this node: code and managed runtimes by digest, OCI images through the node's image store.

Writes ``<state>/functions/{code,bases}/<sha256>``, complete or absent. Fetched with the recipe's ticket; concurrent callers wait
for one fetch. Beyond the budget unused ones are removed, the longest unused first.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import logging
import os
import shutil
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from weft.agent.function.egress_endpoints import EgressEndpoints
from weft.agent.image.cache import ImageCache, copy_member
from weft.agent.image.oci import take_in
from weft.agent.problem import refuse_file
from weft.agent.secret.cache import choose_credentials
from weft.agent.server.client import Server
from weft.contracts.driver.function import HANDLER, Blob, Recipe, Roots
from weft.contracts.driver.image import OciImage, OciStore, RegistryCredentials
from weft.contracts.durable_file import sync_folder, write_durably
from weft.kinds.allocation import AllocatedImage
from weft.objects.errors import DriverFailed, InvalidInput, NotAuthenticated, Unavailable
from weft.objects.image.bundle import BundleManifest, read_bundle
from weft.objects.quantity import format_bytes

log = logging.getLogger("weft.agent")
BUDGET_BYTES = 4 << 30
FETCHES = 2  # at a time
BOOT = ".boot"  # in each folder: the id of the boot in which it was fetched, or
DURABLE = "durable"
CLIENT = "/opt/ric"
RUNTIMES: dict[str, tuple[list[str], dict[str, str]]] = {
    "python3.11": (
        ["/usr/bin/python3.11", "-m", "awslambdaric", HANDLER],
        {
            "PYTHONPATH": f"{CLIENT}:/var/task",
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.11",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    ),
    "provided": (["/var/task/bootstrap"], {"AWS_EXECUTION_ENV": "AWS_Lambda_provided"}),
}

Show = Callable[[str], None]  # shows progress to people
T = TypeVar("T")


class Artifacts:
    """``images`` None: this node, ``node``, can't store OCI images; ``egress_endpoints`` None: it joins no networks. ``archives``
    fetches images that the fabric holds. ``find_used`` returns the digests that must stay."""

    def __init__(
        self,
        state_dir: str,
        node: str,
        server: Server,
        images: OciStore | None,
        find_used: Callable[[], set[str]],
        egress_endpoints: EgressEndpoints | None = None,
        archives: ImageCache | None = None,
    ) -> None:
        self._egress_endpoints, self._archives = egress_endpoints, archives
        self._folder = Path(state_dir) / "functions"
        self._node, self._server, self._images, self._find_used = node, server, images, find_used
        self._fetching: dict[str, asyncio.Task[Any]] = {}
        self._given: dict[str, str] = {}  # by recipe: its image's digest
        self.find_local: Callable[[], set[str]] = set  # recipes (digests) that this node runs without the server, too
        self._opened: dict[str, RegistryCredentials | None] = {}  # by recipe: that pulled its image
        self._threads = ThreadPoolExecutor(FETCHES, "weft-function")
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        for kind in ("code", "bases"):
            (self._folder / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._folder / kind).iterdir():
                if folder.name.startswith(".") or not self._is_whole(folder):
                    shutil.rmtree(folder, ignore_errors=True)

    async def ensure(self, recipe: Recipe, show: Show) -> Roots:
        """All that the recipe needs; what is missing is fetched. Raises DriverFailed, NotFound, Unavailable, InvalidInput."""
        roots = await self._ensure_roots(recipe, show)
        if not recipe.network:
            return roots
        if self._egress_endpoints is None:
            raise DriverFailed(f"{recipe.what}: this node can't connect functions to networks", reason="notServed")
        show("network")
        return msgspec.structs.replace(
            roots, egress_endpoint=await self._egress_endpoints.ensure(recipe.project, recipe.network)
        )

    async def keep(self, recipe: Recipe) -> None:
        """Fetch what is missing, and make all of it outlast a power cut. Raises as ``ensure``."""
        await self._ensure_roots(recipe, lambda _: None)
        blobs = [("bases", recipe.base), ("code", recipe.code)]
        folders = [self._folder / kind / blob.sha256 for kind, blob in blobs if blob is not None]
        await asyncio.get_running_loop().run_in_executor(self._threads, _make_durable, folders)

    async def let_go(self, networks: Callable[[], set[str]]) -> None:
        """Leave the networks that aren't among these uids."""
        if self._egress_endpoints is not None:
            await self._egress_endpoints.keep_only(networks)

    async def _ensure_roots(self, recipe: Recipe, show: Show) -> Roots:
        if recipe.image:
            return await self._ensure_image(recipe, show)
        if recipe.runtime not in RUNTIMES or recipe.base is None:
            known = ", ".join(RUNTIMES)
            raise InvalidInput(f"{recipe.what}: this node has no runtime {recipe.runtime!r}", hint=f"it has {known}")
        command, env = RUNTIMES[recipe.runtime]
        base = await self._ensure_blob("bases", recipe.base, _unpack_base, show, f"runtime {recipe.runtime}")
        code = ""
        if recipe.code is not None:
            code = str(await self._ensure_blob("code", recipe.code, _unpack_code, show, "code") / "task")
        return Roots(
            root=[str(base / "root")], code=code, command=command, env=env, workdir="/var/task", user=(1000, 1000), bundle=str(base)
        )  # fmt: skip

    def images_of(self, recipes: Iterable[str]) -> set[str]:
        """Digests of the container images of these recipes (digests)."""
        return {self._given[digest] for digest in recipes if digest in self._given}

    async def resolve(self, recipe: Recipe, show: Show) -> str:
        """Pull its image, and return the tag's current digest, of the index if there is one. Raises as ``ensure``."""
        image = await self._pull(recipe, "", show)
        return image.index_digest or image.digest

    def drop(self, recipe: str) -> None:
        """Drop the recipe (digest): no instance of it will start any more."""
        self._given.pop(recipe, None)
        self._opened.pop(recipe, None)

    def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ensure_image(self, recipe: Recipe, show: Show) -> Roots:
        bundle = ""
        if recipe.base is not None:  # the kernel of an image that runs in a machine
            bundle = str(await self._ensure_blob("bases", recipe.base, _unpack_base, show, "kernel"))
        digest = recipe.image.partition("@")[2]  # an older gateway may send a tag: it keeps its first digest
        image = await self._pull(recipe, digest or self._given.get(recipe.digest, ""), show)
        self._given[recipe.digest] = image.digest
        assert self._images is not None
        user = await self._images.find_user(image, image.config.user)
        code = ""
        if recipe.code is not None:
            code = str(await self._ensure_blob("code", recipe.code, _unpack_code, show, "code") / "task")
        return Roots(
            root=self._images.root(image),
            code=code,
            command=[*image.config.entrypoint, *image.config.cmd],
            env=read_env(image),
            workdir=image.config.workdir or "/",
            user=(user.uid, user.gid),
            bundle=bundle,
        )

    async def _pull(self, recipe: Recipe, digest: str, show: Show) -> OciImage:
        if self._images is None:
            raise InvalidInput(f"{recipe.what}: this node can't store container images", reason="notServed")

        def on_progress(here: int, total: int) -> None:
            show(f"image: {format_bytes(here)}" + (f" of {format_bytes(total)}" if total else ""))

        reference = recipe.image.partition("@")[0]
        if recipe.archive is not None and self._archives is not None:
            held = AllocatedImage(
                name=reference, uid="", sha256=recipe.archive.sha256, size=recipe.archive.size, url="", digest=digest
            )
            return await take_in(self._images, self._archives, held, on_progress, recipe.archive.ticket)
        try:
            try:
                credentials = await self._open(recipe, digest)
            except Unavailable:
                found = await self._images.find(digest) if recipe.digest in self.find_local() else None
                if found is None:
                    raise
                return found  # it was pulled for this recipe before
            image = await self._images.pull(reference, digest, credentials=credentials, progress=on_progress)
        except NotAuthenticated as problem:
            secret = recipe.registry_secret
            problem.message += f"; check secret {secret}" if secret else "; set registry_secret"
            raise
        self._opened[recipe.digest] = credentials
        return image

    async def _open(self, recipe: Recipe, digest: str) -> RegistryCredentials | None:
        """The credentials that pull it: from the server, unless the image was pulled before."""
        if not recipe.registry_secret:
            return None
        if digest and recipe.digest in self._opened and self._images and await self._images.find(digest) is not None:
            return self._opened[recipe.digest]
        opened = await asyncio.to_thread(self._server.read_registry_secret, self._node, recipe.registry_ticket)
        return choose_credentials(recipe.what, recipe.image, recipe.registry_secret, opened)

    async def _ensure_blob(
        self, kind: str, blob: Blob, unpack: Callable[[Path, Path], None], show: Show, what: str
    ) -> Path:
        place = self._folder / kind / blob.sha256
        if place.is_dir():
            os.utime(place)
            return place
        return await self._once(blob.sha256, lambda: self._fetch(kind, blob, unpack, show, what))

    async def _once(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda done: self._done(key, done))
        result: T = await asyncio.shield(task)
        return result

    def _done(self, key: str, task: asyncio.Task[Any]) -> None:
        self._fetching.pop(key, None)
        if not task.cancelled():
            task.exception()  # the callers that waited have it; there may be none

    async def _fetch(self, kind: str, blob: Blob, unpack: Callable[[Path, Path], None], show: Show, what: str) -> Path:
        loop = asyncio.get_running_loop()

        def on_progress(length: int) -> None:
            loop.call_soon_threadsafe(show, f"{what}: {format_bytes(length)} of {format_bytes(blob.size)}")

        place = await loop.run_in_executor(self._threads, self._fetch_now, kind, blob, unpack, on_progress, what)
        await loop.run_in_executor(
            self._threads, self._forget_unused, {*self._find_used(), *self._fetching, blob.sha256}
        )
        return place

    def _fetch_now(
        self, kind: str, blob: Blob, unpack: Callable[[Path, Path], None], on_progress: Callable[[int], None], what: str
    ) -> Path:
        place = self._folder / kind / blob.sha256
        work = place.with_name(f".{blob.sha256}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(mode=0o755)
            archive = work / ".archive"
            with archive.open("wb") as out:
                self._server.fetch_blob(blob.sha256, out, on_progress, blob.ticket)
            unpack(archive, work)
            archive.unlink()
            (work / BOOT).write_text(self._boot_id)
            work.rename(place)
        except OSError as problem:
            raise refuse_file(f"the {what}", problem, kind) from problem
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return place

    def _is_whole(self, folder: Path) -> bool:
        """Thousands of small files aren't synced to disk, so those of an earlier boot are fetched again."""
        try:
            return (folder / BOOT).read_text() in (self._boot_id, DURABLE)
        except OSError:
            return False

    def _forget_unused(self, used: set[str]) -> None:
        found = [path for kind in ("code", "bases") for path in (self._folder / kind).iterdir() if path.name[0] != "."]
        sizes = {path: _measure(path) for path in found}
        total = sum(sizes.values())
        for path in sorted(found, key=lambda path: path.stat().st_mtime):
            if total <= BUDGET_BYTES:
                break
            if path.name not in used:
                log.info("functions: evicting %s/%s from the cache", path.parent.name, path.name[:12])
                gone = path.rename(path.with_name(f".gone-{path.name}"))
                shutil.rmtree(gone, ignore_errors=True)
                total -= sizes[path]


def read_env(image: OciImage) -> dict[str, str]:
    """Pure. NAME=VALUE lines of an image's configuration."""
    return {name: value for name, _, value in (line.partition("=") for line in image.config.env) if name}


def _unpack_code(archive: Path, folder: Path) -> None:
    late = importlib.import_module("weft.agent.function.unpack")  # zipfile and tarfile are large
    (folder / "task").mkdir(mode=0o755)
    late.lay_out_code(archive, folder / "task")


def _unpack_base(archive: Path, folder: Path) -> None:
    """``root``, and beside it the bundle's kernel and initrd."""
    late = importlib.import_module("weft.agent.function.unpack")  # zipfile and tarfile are large
    with archive.open("rb") as file:
        bundle = read_bundle(file, archive.stat().st_size)
        manifest: BundleManifest = bundle.manifest
        if manifest.disk_format != "tar":
            raise DriverFailed(
                "the runtime's image has no root file system", reason="notAnImage", details={"step": "base"}
            )
        for role, name in (("root.tar", manifest.disk), ("kernel", manifest.kernel), ("initrd", manifest.initrd)):
            if name is not None:
                with (folder / role).open("xb") as out:
                    copy_member(file, bundle.members[name], out)
    (folder / "root").mkdir(mode=0o755)
    with (folder / "root.tar").open("rb") as packed:
        late.lay_out_root(packed, folder / "root")
    (folder / "root.tar").unlink()


def _make_durable(folders: Iterable[Path]) -> None:
    """Raises DriverFailed."""
    for folder in folders:
        try:
            if (folder / BOOT).read_text() == DURABLE:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(descriptor)
            write_durably(folder / BOOT, DURABLE.encode())
            sync_folder(folder.parent)
        except OSError as problem:
            raise refuse_file("the function's code", problem, "code") from problem


def _measure(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
