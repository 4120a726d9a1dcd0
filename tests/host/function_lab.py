"""A node's functions with real instances and no gateway: messages go in as it would send them, and what comes out is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import os
import secrets
import shutil
import stat
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.invocations import Functions
from weft.agent.function.pool import FreeCapacity
from weft.contracts.clock import SystemClock
from weft.contracts.driver.function import Blob, EgressEndpoint, InstanceDriver, Isolation, Recipe
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.function.process.driver import ProcessInstances
from weft.drivers.runtime.oci.function.driver import ContainerInstances
from weft.drivers.runtime.qemu.function.driver import SnapshotInstances
from weft.images.recipes import ensure_bundle
from weft.protocol.invocations import (
    Acknowledge,
    Count,
    Define,
    FromAgent,
    InstanceState,
    InstanceStateChange,
    InvocationAnswer,
    InvocationRefused,
    Invoke,
    Prepare,
    Prepared,
    Printed,
    apply_change,
)

ROOT = Path(__file__).parents[2]
PLACE = "127.0.0.1:8444"  # of the gateway whose messages go in
MIB = 1 << 20


@functools.cache  # the base is large, and the same in each lab
def read_blob(content: bytes | Path) -> Blob:
    data = content.read_bytes() if isinstance(content, Path) else content
    return Blob(hashlib.sha256(data).hexdigest(), len(data), ticket="t")


class LocalServer:
    """Blobs out of memory and files, as the server gives them by digest."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes | Path] = {}
        self.fetched: list[str] = []

    def add(self, content: bytes | Path) -> Blob:
        blob = read_blob(content)
        self.blobs[blob.sha256] = content
        return blob

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        assert ticket == "t"
        content = self.blobs[sha256]
        data = content.read_bytes() if isinstance(content, Path) else content
        out.write(data)
        self.fetched.append(sha256)
        on_progress(len(data))


def pack(files: dict[str, str | bytes]) -> bytes:
    """A zip as the client makes it; ``bootstrap`` may be run."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | (0o755 if name == "bootstrap" else 0o644)) << 16
            packed.writestr(info, content)
    return out.getvalue()


class LabEgressEndpoints:
    """Those of the networks that the test has made, by uid."""

    def __init__(self) -> None:
        self.places: dict[str, EgressEndpoint] = {}

    async def ensure(self, project: str, network_uid: str) -> EgressEndpoint:
        return self.places[network_uid]

    async def keep_only(self, needed: Callable[[], set[str]]) -> None:
        for uid in self.places.keys() - needed():
            del self.places[uid]


class FunctionLab:
    """``open`` it in the test's loop; ``close`` leaves nothing."""

    def __init__(
        self, folder: Path, make_driver: Callable[[Host], InstanceDriver], room: FreeCapacity | None = None
    ) -> None:
        self.name = secrets.token_hex(3)
        self.run_dir = Path("/run") / f"weft-fn-{self.name}"
        self.run_dir.mkdir(mode=0o755)
        self.host = Host(
            node="n1",
            node_uid=f"uid-{self.name}",  # what runs beside it belongs to another node
            state_dir=str(folder),
            run_dir=str(self.run_dir),
            link_prefix="wfn",
            underlay_address="127.0.0.1",
            underlay_link="lo",
            cgroup=f"weft-fn-{self.name}",
            capacity=Capacity(4.0, 4096 * MIB, 1 << 34),
        )
        self.free_capacity = room or FreeCapacity(16.0, 4096 * MIB)
        self.server = LocalServer()
        cache = Path(os.environ.get("WEFT_CACHE", ROOT / ".weft" / "cache"))
        self.base = self.server.add(ensure_bundle("python3-11", cache, lambda what: None))
        self.driver = make_driver(self.host)
        self.isolation: Isolation = self.driver.isolation
        self.folder = folder
        self.heard: list[FromAgent] = []
        self._news = asyncio.Event()
        self.egress_endpoints = LabEgressEndpoints()
        self.functions = self.make_functions()

    def make_functions(self) -> Functions:
        used = lambda: self.functions.used()  # noqa: E731
        self.parts = Artifacts(str(self.folder), "n1", self.server, None, used, self.egress_endpoints)  # type: ignore[arg-type]
        return Functions({self.isolation: self.driver}, self.parts, lambda: self.free_capacity, SystemClock())

    async def open(self) -> None:
        await self.functions.start()
        assert self.functions.isolations == {self.isolation: ""}, self.functions.isolations
        self.functions.connect(self.on_message, PLACE)

    async def close(self) -> None:
        await self.functions.close()
        await self.driver.close()
        for tree in Path("/sys/fs/cgroup").iterdir():
            for folder in (tree / self.host.cgroup / "functions", tree / self.host.cgroup):
                if folder.is_dir():
                    folder.rmdir()

    def on_message(self, message: FromAgent) -> None:
        self.heard.append(message)
        self._news.set()

    def recipe(self, files: dict[str, str | bytes], **fields: Any) -> Recipe:
        """Told to the node already."""
        given: dict[str, Any] = {
            "digest": secrets.token_hex(32),
            "runtime": "python3.11",
            "handler": "app.handler",
            "memory": 128 * MIB,
            "timeout": 5.0,
            "scratch": 32 * MIB,
        } | fields
        given = {"base": self.base, "code": self.server.add(pack(files))} | given
        recipe = Recipe(function="uid", project="p", name="hello", isolation=self.isolation, **given)
        self.functions.take(Define(recipe), PLACE)
        return recipe

    def same_recipe(self, code: str, **fields: Any) -> Recipe:
        """The same one in each lab of a folder: what was made of it once, a template, is there again."""
        digest = hashlib.sha256(f"{self.isolation} {code} {sorted(fields.items())}".encode()).hexdigest()
        return self.recipe({"app.py": code}, digest=digest, **fields)

    def ask(self, recipe: Recipe, event: Any = None, *, seconds: float | None = None) -> str:
        """The id of an invocation that is on its way."""
        id = str(uuid.uuid4())
        payload = event if isinstance(event, bytes) else msgspec.json.encode(event)
        self.functions.take(
            Invoke(id, recipe.digest, payload, seconds or recipe.timeout, arn="arn:weft:x", tail=True), PLACE
        )
        return id

    async def answer(self, id: str, patience: float = 60.0) -> InvocationAnswer:
        found = await self.wait_for(
            lambda one: isinstance(one, (InvocationAnswer, InvocationRefused)) and one.id == id, patience
        )
        assert isinstance(found, InvocationAnswer), found
        self.functions.take(Acknowledge(id), PLACE)
        return found

    async def invoke(self, recipe: Recipe, event: Any = None, *, seconds: float | None = None) -> InvocationAnswer:
        return await self.answer(self.ask(recipe, event, seconds=seconds))

    async def prepare(self, recipe: Recipe) -> Prepared:
        id = secrets.token_hex(4)
        self.functions.take(Prepare(id, recipe.digest), PLACE)
        found = await self.wait_for(lambda one: isinstance(one, Prepared) and one.id == id and one.done)
        assert isinstance(found, Prepared)
        return found

    async def wait_for(self, matches: Callable[[FromAgent], bool], patience: float = 60.0) -> FromAgent:
        async with asyncio.timeout(patience):
            while True:
                for message in self.heard:
                    if matches(message):
                        return message
                self._news.clear()
                await self._news.wait()

    async def until(self, holds: Callable[[], bool], patience: float = 60.0) -> None:
        async with asyncio.timeout(patience):
            while not holds():
                await asyncio.sleep(0.02)

    def printed(self, recipe: Recipe) -> str:
        pieces = [one.text for one in self.heard if isinstance(one, Printed) and one.digest == recipe.digest]
        return b"".join(pieces).decode(errors="replace")

    def standing(self) -> InstanceState:
        """As the node has told it."""
        standing = InstanceState()
        for one in self.heard:
            if isinstance(one, InstanceState):
                standing = one
            elif isinstance(one, InstanceStateChange):
                standing = apply_change(standing, one)
        return standing

    def idle(self, recipe: Recipe) -> int:
        """How many instances of it are idle, as the node told last."""
        return self.standing().counts.get(recipe.digest, Count()).idle

    def groups(self) -> set[str]:
        """Control groups of instances that are there."""
        return {
            path.name
            for tree in Path("/sys/fs/cgroup").iterdir()
            if (tree / self.host.cgroup / "functions").is_dir()
            for path in (tree / self.host.cgroup / "functions").iterdir()
            if path.is_dir()
        }


DRIVERS: dict[str, tuple[Callable[[Host], InstanceDriver], str]] = {
    "process": (ProcessInstances, "bwrap"),
    "container": (lambda host: ContainerInstances(host, None, "crun"), "crun"),
    "runc": (lambda host: ContainerInstances(host, None, "runc"), "runc"),
    "vm": (SnapshotInstances, "qemu-system-x86_64"),
}


@contextlib.asynccontextmanager
async def open_lab(folder: Path, isolation: str, room: FreeCapacity | None = None) -> AsyncIterator[FunctionLab]:
    """Skips where the program isn't there; afterwards nothing may be left."""
    driver, program = DRIVERS[isolation]
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    lab = FunctionLab(folder, driver, room)
    await lab.open()
    try:
        yield lab
    finally:
        await lab.close()
        left = lab.groups() | {path.name for path in (lab.run_dir / "functions" / "runtime").glob("*")}
        shutil.rmtree(lab.run_dir)
        assert left == set()
