"""Pulls from Debian's docker-registry, from layouts and archives, as skopeo wrote them; what the node keeps of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from image_lab import Made, digest, entry, files, leftovers, node, public_folder, several, tar, write_layout
from registry_lab import Certificate, Registry, Request, cutting, token
from tests.registry import NAME, PASSWORD, push, serve

from weft.contracts.driver.image import RegistryCredentials
from weft.drivers.image.oci.fetch.registry import RegistrySettings
from weft.drivers.image.oci.platforms import Platform
from weft.objects.errors import InvalidInput, NotAuthenticated, NotFound, Unavailable

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("docker-registry") is None, reason="needs root, docker-registry and skopeo"
)
BASE = files(
    etc__passwd="root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n", etc__group="web:x:44:\nlog:x:5:a,web\n"
)
KNOWN = RegistryCredentials(NAME, PASSWORD)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A layout of an image, one for two platforms, and one as Docker writes it."""
    run = {
        "Entrypoint": ["/bin/web"],
        "Cmd": ["-v"],
        "Env": ["PATH=/bin", "A=1=2"],
        "User": "web",
        "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGINT",
        "Labels": {"a": "b"},
    }
    web = Made([BASE, files(app="web"), tar([(entry("blob"), os.urandom(3_000_000))])], "zstd", **run)
    there, here = Made([files(app="arm")], architecture="arm64"), Made([BASE, files(app="amd")])
    with public_folder() as folder:
        yield write_layout(folder / "layout", {"web": web, "both": several(there, here), "docker": Made([BASE])})


@pytest.fixture(scope="module")
def registry(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that wants a name and a password."""
    with serve(tmp_path_factory.mktemp("registry"), auth="htpasswd") as place:
        for tag in ("web", "both"):
            push(made, tag, f"{place}/shop/{tag}:1", "--all")
        push(made, "docker", f"{place}/shop/docker:1", "--format=v2s2")
        yield place


async def test_an_image_comes_whole_and_says_how_it_is_run(registry: str, tmp_path: Path) -> None:
    store, seen = node(tmp_path), []
    image = await store.pull(f"{registry}/shop/web:1", credentials=KNOWN, progress=lambda *news: seen.append(news))
    config = image.config
    assert (config.entrypoint, config.cmd, config.env) == (["/bin/web"], ["-v"], ["PATH=/bin", "A=1=2"])
    assert (config.user, config.workdir, config.stop_signal) == ("web", "/srv", "SIGINT")
    assert (config.exposed_ports, config.volumes, config.labels) == (["80/tcp"], ["/data"], {"a": "b"})
    assert seen[-1][0] == seen[-1][1] > 3_000_000 and [here for here, _ in seen] == sorted(here for here, _ in seen)
    roots = [Path(path) for path in store.root(image)]
    assert (roots[1] / "app").read_text() == "web" and (roots[0] / "blob").stat().st_size == 3_000_000
    assert image.size_bytes >= 3_000_000 and await store.find(image.digest) is not None
    assert await store.list() == [await store.find(image.digest)]
    user = await store.find_user(image, "web")
    assert (user.uid, user.gid, user.groups, user.home) == (33, 44, [5], "/srv")
    again = node(tmp_path)  # the agent was killed
    assert await again.find(image.digest) is not None and leftovers(tmp_path) == []


async def test_of_an_index_comes_what_runs_here_and_layers_are_shared(registry: str, tmp_path: Path) -> None:
    store = node(tmp_path)
    web = await store.pull(f"{registry}/shop/web:1", credentials=KNOWN)
    here = await store.pull(f"{registry}/shop/both:1", credentials=KNOWN)
    assert here.layers[0] == web.layers[0] and here.index_digest and here.index_digest != here.digest
    assert (Path(store.root(here)[0]) / "app").read_text() == "amd"
    assert len(list((tmp_path / "oci" / "layers").glob("*/layer.json"))) == 4
    there = node(tmp_path / "other", platform=Platform("linux", "arm64"))
    assert (
        Path(there.root(await there.pull(f"{registry}/shop/both:1", here.index_digest, credentials=KNOWN))[0]) / "app"
    ).read_text() == "arm"
    with pytest.raises(NotFound, match="linux/s390x") as caught:
        await node(tmp_path / "third", platform=Platform("linux", "s390x")).pull(
            f"{registry}/shop/both:1", credentials=KNOWN
        )
    assert caught.value.token == "noSuchPlatform" and "linux/amd64, linux/arm64" in str(caught.value.hint)
    with pytest.raises(NotFound, match="has no variant for linux/arm64"):
        await there.pull(f"{registry}/shop/web:1", credentials=KNOWN)


async def test_docker_images_keep_the_digest_that_people_know(registry: str, tmp_path: Path) -> None:
    argv = ["skopeo", "inspect", "--tls-verify=false", f"--creds={NAME}:{PASSWORD}", "--format={{.Digest}}"]
    known = subprocess.run([*argv, f"docker://{registry}/shop/docker:1"], capture_output=True, text=True, check=True)
    store = node(tmp_path)
    image = await store.pull(f"{registry}/shop/docker@{known.stdout.strip()}", credentials=KNOWN)
    assert image.digest == known.stdout.strip()


async def test_who_may_not_pull_is_told_so_and_nobody_has_what_others_pulled(registry: str, tmp_path: Path) -> None:
    store = node(tmp_path)
    for credentials, says in ((None, "requires credentials"), (RegistryCredentials(NAME, "s3cret"), "doesn't accept")):
        with pytest.raises(NotAuthenticated, match=says) as caught:
            await store.pull(f"{registry}/shop/web:1", credentials=credentials)
        assert "s3cret" not in str(caught.value.to_dict())
    image = await store.pull(f"{registry}/shop/web:1", credentials=KNOWN)
    with pytest.raises(NotAuthenticated):
        await store.pull(f"{registry}/shop/web:1", image.digest)
    assert PASSWORD.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "oci" / "images").iterdir())


async def test_what_is_here_by_digest_needs_no_registry(made: Path, tmp_path: Path) -> None:
    store = node(tmp_path / "node")
    with serve(tmp_path / "registry") as place:
        push(made, "web", f"{place}/a/b:1")
        image = await store.pull(f"{place}/a/b:1")
        with pytest.raises(NotFound, match=r"^image [^ ]*a/b:2: the registry has no tag 2") as caught:
            await store.pull(f"{place}/a/b:2")
        assert caught.value.token == "imageGone"
        subprocess.run(
            ["skopeo", "delete", "--tls-verify=false", f"docker://{place}/a/b:1"], check=True, capture_output=True
        )
        with pytest.raises(NotFound, match="the registry has no sha256:"):
            await node(tmp_path / "late").pull(f"{place}/a/b:1", image.digest)
    assert (await store.pull(f"{place}/a/b:1", image.digest)).layers == image.layers
    with pytest.raises(Unavailable, match="can't be reached") as unreachable:
        await store.pull(f"{place}/a/b:1")
    assert unreachable.value.token == "registryUnavailable"
    with pytest.raises(InvalidInput, match="another digest"):
        await store.pull(f"{place}/a/b@{image.digest}", digest(b""))


async def test_tokens_and_tls(made: Path, tmp_path: Path) -> None:
    signer = Certificate(tmp_path / "registry", "token")
    keeper = Registry()

    async def give(request: Request) -> bool:
        asked = {key: values[0] for key, values in parse_qs(urlsplit(request.path).query).items()}
        wanted = asked["scope"] if "authorization" in request.head else asked["scope"].replace("pull", "nothing")
        await request.answer(200, b'{"token": "%s"}' % token(signer, wanted, asked["service"]).encode())
        return True

    keeper.spoil = give
    own = Certificate(tmp_path / "tls", "registry")
    async with keeper.serve() as tokens:
        with serve(tmp_path / "registry", auth=f"http://{tokens}/token") as place:
            await asyncio.to_thread(push, made, "web", f"{place}/a/b:1")
            image = await node(tmp_path / "n1").pull(f"{place}/a/b:1", credentials=KNOWN)
            with pytest.raises(NotAuthenticated):
                await node(tmp_path / "n2").pull(f"{place}/a/b:1")
        with serve(tmp_path / "safe", tls=(own.certificate, own.key)) as place:
            await asyncio.to_thread(push, made, "web", f"{place}/a/b:1")
            trusting = {place: RegistrySettings(plain_http=False, ca=own.certificate.read_text())}
            assert (await node(tmp_path / "n3", registries=trusting).pull(f"{place}/a/b:1")).digest == image.digest
            with pytest.raises(Unavailable, match="can't be trusted") as caught:
                await node(tmp_path / "n4", registries={place: RegistrySettings(plain_http=False)}).pull(
                    f"{place}/a/b:1"
                )
            assert caught.value.token == "registryUntrusted"


async def test_a_connection_that_breaks_is_taken_up_where_it_was(made: Path, tmp_path: Path) -> None:
    with serve(tmp_path / "registry") as place:
        push(made, "web", f"{place}/a/b:1")
        async with cutting(place, 700_000) as (way, carried):
            image = await node(tmp_path / "node").pull(f"{way}/a/b:1")
        assert image.size_bytes > 3_000_000
        assert len([count for count in carried if count == 700_000]) >= 4
        assert sum(carried) < 4_500_000  # nothing much came twice


@pytest.fixture
def public_path() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


async def test_layouts_and_archives_are_read_as_everybody_may(made: Path, tmp_path: Path, public_path: Path) -> None:
    archive = public_path / "web.tar"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{made}:web", f"oci-archive:{archive}:web"], check=True)
    store = node(tmp_path / "node")
    one = await store.pull(f"oci:{made}:web")
    assert (
        (await store.pull(f"oci-archive:{archive}")).digest
        == one.digest
        == (await store.pull(f"oci-archive:{archive}:web")).digest
    )
    assert (await store.pull(f"oci:{made}:both")).index_digest
    with pytest.raises(InvalidInput, match="several images") as caught:
        await store.pull(f"oci:{made}")
    assert "both, docker, web" in str(caught.value.hint)
    with pytest.raises(NotFound, match="no image with the tag none"):
        await store.pull(f"oci:{made}:none")
    with pytest.raises(NotFound, match="no such file"):
        await store.pull(f"oci:{public_path}/nothing:1")
    archive.chmod(0o600)
    os.mkfifo(public_path / "pipe", 0o644)
    for reference in (f"oci-archive:{archive}", f"oci-archive:{public_path}/pipe", "oci-archive:/dev/zero"):
        with pytest.raises(NotAuthenticated, match=r"readable by all users|regular file|plain file"):
            await store.pull(reference)
