"""What instances are made of, on a node: fetched once for all who ask, with a ticket; whole or not there; let go of by a budget."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest

from weft.agent.function import artifacts as module
from weft.agent.function.artifacts import Artifacts
from weft.agent.image.cache import ImageCache
from weft.agent.state.table import AllocationTable
from weft.contracts.driver.container import User
from weft.contracts.driver.function import Blob, Recipe
from weft.contracts.driver.image import OciConfig, OciImage, RegistryCredentials
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, Unavailable
from weft.protocol.report import OpenedSecrets

DIGEST = "sha256:" + "1" * 64


class Server:
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.broken = False
        self.opened: list[tuple[str, str]] = []
        self.password = "gehe!m"

    def read_registry_secret(self, node: str, ticket: str) -> OpenedSecrets:
        self.opened.append((node, ticket))
        return OpenedSecrets({"reg": {"username": "puller", "password": self.password}}, {"reg": "r.test"})

    def add(self, content: bytes) -> Blob:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return Blob(sha256, len(content), ticket=f"ticket-{sha256[:4]}")

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        self.asked.append((sha256, ticket))
        out.write(self.blobs[sha256][: 10 if self.broken else None])
        if self.broken:
            raise Unavailable("the server has gone")
        on_progress(len(self.blobs[sha256]))


def code(text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("app.py", text)
    return out.getvalue()


def recipe(server: Server, content: bytes, **fields: Any) -> Recipe:
    given: dict[str, Any] = {"runtime": "python3.11", "code": server.add(content)} | fields
    return Recipe(digest="d", function="u", project="p", name="thumb", **given)


async def fetch(parts: Artifacts, blob: Blob) -> Path:
    return await parts._ensure_blob("code", blob, module._unpack_code, lambda word: None, "code")


async def test_code_is_fetched_once_for_all_who_ask_and_is_there_afterwards(tmp_path: Path) -> None:
    server = Server()
    parts = Artifacts(str(tmp_path), "n1", server, None, set)  # type: ignore[arg-type]
    blob = server.add(code("x = 1"))
    places = await asyncio.gather(*(fetch(parts, blob) for _ in range(5)))
    assert {(place / "task" / "app.py").read_text() for place in places} == {"x = 1"}
    assert server.asked == [(blob.sha256, blob.ticket)]
    again = Artifacts(str(tmp_path), "n1", server, None, set)  # type: ignore[arg-type]
    await fetch(again, blob)
    assert len(server.asked) == 1
    (places[0] / module.BOOT).write_text("another boot")
    third = Artifacts(str(tmp_path), "n1", server, None, set)  # type: ignore[arg-type]
    assert not places[0].exists()
    await fetch(third, blob)
    assert len(server.asked) == 2


async def test_what_doesnt_come_whole_isnt_there(tmp_path: Path) -> None:
    server = Server()
    parts = Artifacts(str(tmp_path), "n1", server, None, set)  # type: ignore[arg-type]
    good, bad = server.add(code("x")), server.add(b"no zip")
    server.broken = True
    with pytest.raises(Unavailable):
        await fetch(parts, good)
    server.broken = False
    with pytest.raises(DriverFailed, match="can't be unpacked"):
        await fetch(parts, bad)
    assert list((tmp_path / "functions" / "code").iterdir()) == []
    assert (await fetch(parts, good)).is_dir()


async def test_over_its_budget_the_longest_unused_goes_but_nothing_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    used: set[str] = set()
    parts = Artifacts(str(tmp_path), "n1", server, None, lambda: used)  # type: ignore[arg-type]
    blobs = [server.add(code("x" * 20_000 + str(number))) for number in range(4)]
    used.add(blobs[0].sha256)
    for blob in blobs[:3]:
        await fetch(parts, blob)
        await asyncio.sleep(0.01)
    monkeypatch.setattr(module, "BUDGET_BYTES", 1)
    await fetch(parts, blobs[3])
    here = {path.name for path in (tmp_path / "functions" / "code").iterdir()}
    assert here == {blobs[0].sha256, blobs[3].sha256}


class Store:
    """Tells each time another digest for a tag, as a registry may."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.pulled_as: list[RegistryCredentials | None] = []
        self.here: dict[str, OciImage] = {}

    async def find(self, digest: str) -> OciImage | None:
        return self.here.get(digest)

    async def pull(
        self, reference: str, digest: str = "", *, credentials: RegistryCredentials | None = None, **_: object
    ) -> OciImage:
        self.asked.append((reference, digest))
        self.pulled_as.append(credentials)
        image = self.here[digest] = OciImage(reference, digest or f"sha256:{len(self.asked)}", OciConfig(), [], 0)
        return image

    async def find_user(self, image: OciImage, user: str) -> User:
        return User()

    def root(self, image: OciImage) -> list[str]:
        return [image.digest]


async def test_a_tag_is_looked_up_once_and_what_it_meant_is_told(tmp_path: Path) -> None:
    store, server = Store(), Server()
    parts = Artifacts(str(tmp_path), "n1", server, store, set)  # type: ignore[arg-type]
    tagged = recipe(server, b"", runtime="", image="r/x:1", code=None)
    digest = await parts.resolve(tagged, lambda word: None)
    pinned = msgspec.structs.replace(tagged, digest="p", image=f"r/x:1@{digest}")
    roots = [await parts.ensure(pinned, lambda word: None) for _ in range(2)]
    assert store.asked == [("r/x:1", ""), ("r/x:1", digest), ("r/x:1", digest)] and roots[0].root == [digest]
    assert parts.images_of(["p", "other"]) == {digest}
    parts.drop("p")
    assert parts.images_of(["p"]) == set()


class Unpacking(Store):
    """Reads archives: of each it says which file it was handed, which is gone afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[bytes] = []

    async def pull(self, reference: str, digest: str = "", **_: object) -> OciImage:
        if digest not in self.here:
            path = Path(reference.removeprefix("oci-archive:"))
            if not path.exists():
                raise NotFound(f"{reference} is gone", reason="imageGone")
            self.read.append(path.read_bytes())
            self.here[digest] = OciImage(reference, digest, OciConfig(), [], 0)
        return self.here[digest]


async def test_an_image_that_the_fabric_holds_comes_from_the_server_once_by_its_ticket(tmp_path: Path) -> None:
    store, server = Unpacking(), Server()
    archives = ImageCache(str(tmp_path), server, AllocationTable())  # type: ignore[arg-type]
    parts = Artifacts(str(tmp_path), "n1", server, store, set, archives=archives)  # type: ignore[arg-type]
    archive = server.add(b"an archive")
    held = recipe(server, b"", runtime="", image=f"own@{DIGEST}", code=None, archive=archive)
    for _ in range(2):
        assert (await parts.ensure(held, lambda word: None)).root == [DIGEST]
    assert store.read == [b"an archive"] and server.asked == [(archive.sha256, archive.ticket)]
    assert not any(path.is_file() for path in (tmp_path / "images").iterdir()), "the archive stays"
    assert parts.images_of(["d"]) == {DIGEST}, "nobody may let go of what it stands on"


async def test_a_registry_is_shown_the_secret_that_opens_it_and_the_server_is_asked_no_more_than_needed(
    tmp_path: Path,
) -> None:
    store, server = Store(), Server()
    parts = Artifacts(str(tmp_path), "n1", server, store, set)  # type: ignore[arg-type]
    given = {"registry_secret": "reg", "registry_ticket": "t", "runtime": "", "code": None}
    own = recipe(server, b"", image=f"r.test/x:1@{DIGEST}", **given)
    for _ in range(2):
        await parts.ensure(own, lambda word: None)
    assert server.opened == [("n1", "t")]
    assert [who and who.password for who in store.pulled_as] == ["gehe!m", "gehe!m"]
    store.here.clear()  # it was let go of, and the secret may be another by now
    server.password = "new"
    await parts.ensure(own, lambda word: None)
    assert len(server.opened) == 2 and store.pulled_as[-1] is not None and store.pulled_as[-1].password == "new"
    other = msgspec.structs.replace(own, digest="e", image=f"other.test/x:1@{DIGEST}")
    with pytest.raises(InvalidInput, match=r"secret reg is for r\.test, but its image is in other\.test") as refused:
        await parts.ensure(other, lambda word: None)
    assert refused.value.token == "wrongSecret" and "gehe!m" not in repr(refused.value.to_dict())


async def test_what_a_node_cant_serve_is_said(tmp_path: Path) -> None:
    server = Server()
    parts = Artifacts(str(tmp_path), "n1", server, None, set)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no runtime 'cobol'"):
        await parts.ensure(recipe(server, b"", runtime="cobol", base=server.add(b"")), lambda word: None)
    with pytest.raises(InvalidInput, match="can't store container images"):
        await parts.ensure(recipe(server, b"", runtime="", image="r/x@sha256:1", code=None), lambda word: None)
