"""Registries that hang, lie, cut, redirect and ask for too much: each is told as what it is, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from image_lab import HASTY, QUICK, Made, digest, entry, files, leftovers, node, tar
from registry_lab import Registry, Request

from weft.contracts.driver.image import RegistryCredentials
from weft.drivers.image.oci.fetch.exchange import Patience
from weft.objects.errors import (
    DriverFailed,
    Forbidden,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    Unavailable,
    WeftError,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SECRET = RegistryCredentials("puller", "s3cret-word")


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    registry = Registry()
    registry.add("1", Made([files(a="1"), tar([(entry("blob"), os.urandom(600_000))])], "plain"))
    async with registry.serve() as registry.place:
        yield registry


def of_layers(registry: Registry, request: Request) -> bool:
    data = registry.blobs.get(request.path.rpartition("/")[2], b"")
    return "/blobs/" in request.path and len(data) > 500_000


async def hang(request: Request) -> None:
    await asyncio.sleep(30)


async def trickle(request: Request) -> None:
    await request.answer(200, b"", content__length="600000")
    for _ in range(300):
        request.writer.write(b"x")
        await request.writer.drain()
        await asyncio.sleep(0.1)


async def endless_head(request: Request) -> None:
    request.writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(300):
        request.writer.write(f"X-{number}: y\r\n".encode())
        await request.writer.drain()
        await asyncio.sleep(0.05)


async def cut(request: Request) -> None:
    await request.answer(200, b"x" * 1000, content__length="600000")
    request.writer.close()


async def nonsense(request: Request) -> None:
    request.writer.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n" * 3)
    request.writer.close()


async def lie(request: Request) -> None:
    await request.answer(200, b"z" * 100)


async def too_much(request: Request) -> None:
    await request.answer(200, bytes(6 << 20), content__type="application/json")


async def a_loop(request: Request) -> None:
    await request.answer(307, location=request.path)


async def a_step_down(request: Request) -> None:
    await request.answer(302, location="ftp://127.0.0.1/x")


def status(code: int) -> Callable[[Request], Awaitable[None]]:
    async def answer(request: Request) -> None:
        await request.answer(code, b"the body says s3cret-word")

    return answer


@pytest.mark.parametrize(
    ("where", "what", "error", "reason"),
    [
        ("manifests", hang, Unavailable, "registryHangs"),
        ("manifests", endless_head, WeftError, None),
        ("manifests", nonsense, WeftError, None),
        ("manifests", lie, InvalidInput, "badImage"),
        ("manifests", too_much, DriverFailed, "badAnswer"),
        ("manifests", a_loop, DriverFailed, "badAnswer"),
        ("manifests", a_step_down, DriverFailed, "badAnswer"),
        ("manifests", status(500), Unavailable, "registryUnavailable"),
        ("manifests", status(403), Forbidden, "forbidden"),
        ("manifests", status(418), DriverFailed, "badAnswer"),
        ("layers", hang, Unavailable, "registryHangs"),
        ("layers", trickle, Unavailable, "registryHangs"),
        ("layers", lie, DriverFailed, "truncated"),
        ("layers", cut, DriverFailed, "truncated"),
        ("layers", status(404), NotFound, "imageGone"),
    ],
)
async def test_what_is_bad_is_told_as_what_it_is(
    registry: Registry,
    tmp_path: Path,
    where: str,
    what: Callable[[Request], Awaitable[None]],
    error: type[WeftError],
    reason: str | None,
) -> None:
    async def spoil(request: Request) -> bool:
        bad = "/manifests/" in request.path if where == "manifests" else of_layers(registry, request)
        if bad:
            await what(request)
        return bad

    registry.spoil = spoil
    store = node(tmp_path, patience=HASTY if what in (hang, trickle, endless_head) else QUICK)
    async with asyncio.timeout(30):
        with pytest.raises(error) as caught:
            await store.pull(f"{registry.place}/a:1", credentials=SECRET)
    assert reason is None or caught.value.token == reason, caught.value.message
    assert "s3cret" not in str(caught.value.to_dict()) and registry.place in caught.value.message + str(caught.value)
    assert leftovers(tmp_path) == [] and await store.list() == []
    registry.spoil = None
    assert await node(tmp_path).pull(f"{registry.place}/a:1")  # nothing is remembered against it


async def test_one_that_hangs_is_told_as_such_whoever_notices_first(registry: Registry, tmp_path: Path) -> None:
    """The process that fetches does, where there is much time to connect."""

    async def spoil(request: Request) -> bool:
        await hang(request)
        return True

    registry.spoil = spoil
    store = node(tmp_path, patience=Patience(connect_seconds=20, idle_seconds=0.5, tries=1))
    async with asyncio.timeout(15):
        with pytest.raises(Unavailable) as caught:
            await store.pull(f"{registry.place}/a:1")
    assert caught.value.token == "registryHangs"


async def test_another_blob_than_was_asked_for_is_never_kept(registry: Registry, tmp_path: Path) -> None:
    for spoiled in (lambda data: data[:-1] + b"!", lambda data: data + b"more"):

        async def spoil(request: Request, spoiled: Callable[[bytes], bytes] = spoiled) -> bool:
            if of_layers(registry, request):
                await request.answer(200, spoiled(registry.blobs[request.path.rpartition("/")[2]]))
                return True
            return False

        registry.spoil = spoil
        with pytest.raises(DriverFailed) as caught:
            await node(tmp_path).pull(f"{registry.place}/a:1")
        assert caught.value.token == "wrongDigest" and leftovers(tmp_path) == []


async def test_a_manifest_is_the_one_that_its_digest_says(registry: Registry, tmp_path: Path) -> None:
    asked = registry.tags["1"]
    other = registry.add("2", Made([files(b="2")]))

    async def spoil(request: Request) -> bool:
        if asked in request.path:
            await request.answer(200, registry.blobs[other.manifest], docker__content__digest=asked)
            return True
        return False

    registry.spoil = spoil
    for reference in (f"{registry.place}/a@{asked}", f"{registry.place}/a:1"):
        with pytest.raises(DriverFailed) as caught:
            await node(tmp_path).pull(reference)
        assert caught.value.token == "wrongDigest"


async def test_a_layer_is_the_one_that_its_configuration_says(registry: Registry, tmp_path: Path) -> None:
    honest, other = Made([files(c="3")], "plain"), Made([files(c="4")], "plain")
    text = honest.blobs[honest.manifest].decode()
    for old, new in zip(honest.layers, other.layers, strict=True):
        text = text.replace(old["digest"], new["digest"])
    registry.blobs |= honest.blobs | other.blobs | {digest(text.encode()): text.encode()}
    registry.tags["x"] = digest(text.encode())
    with pytest.raises(DriverFailed, match="a layer unpacks to sha256") as caught:
        await node(tmp_path).pull(f"{registry.place}/a:x")
    assert caught.value.token == "wrongDigest" and leftovers(tmp_path) == []


async def test_it_goes_on_where_it_was_also_where_parts_are_not_to_be_had(registry: Registry, tmp_path: Path) -> None:
    ranges: list[str] = []

    async def spoil(request: Request) -> bool:
        if not of_layers(registry, request):
            return False
        ranges.append(request.head.get("range", ""))
        data = registry.blobs[request.path.rpartition("/")[2]]
        if len(ranges) == 1:
            await request.answer(200, data[:400_000], content__length=str(len(data)))
            request.writer.close()
        elif len(ranges) == 2:
            await request.answer(503, b"", retry__after="1")
        else:
            await request.answer(200, data)  # it knows no Range
        return True

    registry.spoil = spoil
    image = await node(tmp_path).pull(f"{registry.place}/a:1")
    assert image.size_bytes >= 600_000 and len(ranges) == 3
    assert ranges[0] == "" and ranges[1].startswith("bytes=") and int(ranges[2].strip("bytes=-")) > 100_000


async def test_nobody_else_is_shown_the_credentials(registry: Registry, tmp_path: Path) -> None:
    elsewhere = Registry()
    elsewhere.blobs = registry.blobs

    async def spoil(request: Request) -> bool:
        if "authorization" not in request.head:
            await request.answer(401, www__authenticate='Basic realm="x"')
        elif "/blobs/" in request.path:
            await request.answer(307, location=f"http://{there}{request.path}?signature=abc")
        else:
            return False
        return True

    async def give(request: Request) -> bool:
        request.path = request.path.partition("?")[0]
        return False

    registry.spoil, elsewhere.spoil = spoil, give
    async with elsewhere.serve() as there:
        assert await node(tmp_path).pull(f"{registry.place}/a:1", credentials=SECRET)
    assert elsewhere.seen and not any("authorization" in request.head for request in elsewhere.seen)


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="ftp://x/"',
        'Bearer realm="http://"',
        "Bearer",
        "Negotiate",
        "",
        'Bearer realm="http://127.0.0.1:1/"',
        "Basic",
    ],
)
async def test_challenges_that_lead_nowhere(registry: Registry, tmp_path: Path, challenge: str) -> None:
    async def spoil(request: Request) -> bool:
        await request.answer(401, www__authenticate=challenge)
        return True

    registry.spoil = spoil
    with pytest.raises((NotAuthenticated, Unavailable)) as caught:
        await node(tmp_path).pull(f"{registry.place}/a:1", credentials=SECRET)
    assert "s3cret" not in str(caught.value.to_dict())


async def test_nothing_answers(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 can't be reached"):
        await node(tmp_path).pull("127.0.0.1:1/a:1")
    with pytest.raises(Unavailable, match=r"registry no\.such\.host\.invalid can't be reached"):
        await node(tmp_path, patience=QUICK).pull("no.such.host.invalid/a:1")
