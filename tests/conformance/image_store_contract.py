"""What every store of container images promises, wherever images come from. A store's test subclasses ``ImageStorePromises``.

The subclass gives the fixture ``lab``: one node, and places of images that stores on it can pull from.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

import pytest

from weft.contracts.driver.container import User
from weft.contracts.driver.image import OciStore
from weft.objects.errors import InvalidInput, NotFound, WeftError


class ImageStoreLab(Protocol):
    """``references`` of images by name: ``web`` (an upper layer of its own whose /etc/issue hides that of its base, a user ``web``
    with the number 33), ``other`` (over the same base), ``bad`` (with a layer that isn't what its configuration says), ``none``
    (there is no such image)."""

    references: dict[str, str]

    def store(self, *, budget_bytes: int = 1 << 30) -> OciStore:
        """Made anew on the same node: it remembers nothing."""

    def leftovers(self) -> list[str]:
        """What the node has of images that are half here."""

    def count_layers(self) -> int: ...


def read(store_root: list[str], name: str) -> str:
    """The file as overlayfs shows it: the uppermost."""
    return next(path.read_text() for root in store_root if (path := Path(root, name)).exists())


class ImageStorePromises:
    async def test_an_image_comes_whole_and_says_how_it_is_run(self, lab: ImageStoreLab) -> None:
        store, news = lab.store(), list[tuple[int, int]]()
        image = await store.pull(lab.references["web"], progress=lambda *told: news.append(told))
        assert image.digest.startswith("sha256:") and image.size_bytes > 0 and news
        assert (image.config.entrypoint, image.config.workdir, image.config.user) == (["/bin/web"], "/srv", "web")
        root = store.root(image)
        assert len(root) == len(image.layers) == 2 and read(root, "etc/issue") == "web"
        assert all(os.stat(folder).st_uid == 0 and not os.stat(folder).st_mode & 0o022 for folder in root)
        assert await store.find_user(image, "web") == User(33, 44, [], "/srv")
        with pytest.raises(InvalidInput):
            await store.find_user(image, "nobody-knows")
        assert lab.leftovers() == []

    async def test_pulls_of_one_at_once_are_one_and_again_it_is_here(self, lab: ImageStoreLab) -> None:
        store = lab.store()
        images = await asyncio.gather(*(store.pull(lab.references["web"]) for _ in range(4)))
        other = await store.pull(lab.references["other"])
        assert len({image.digest for image in images}) == 1 and lab.count_layers() == 3  # they share their base
        again = lab.store()
        assert await again.find(images[0].digest) == await store.find(images[0].digest)
        assert {image.digest for image in await again.list()} == {images[0].digest, other.digest}
        by_digest = await again.pull(lab.references["web"], images[0].digest)
        assert by_digest.digest == images[0].digest and again.root(by_digest) == store.root(images[0])

    async def test_what_is_not_there_or_not_what_it_says_leaves_nothing(self, lab: ImageStoreLab) -> None:
        store = lab.store()
        with pytest.raises(NotFound):
            await store.pull(lab.references["none"])
        for reference, digest in ((lab.references["bad"], ""), (lab.references["web"], f"sha256:{'0' * 64}")):
            with pytest.raises(WeftError):
                await store.pull(reference, digest)
        assert await store.list() == [] and lab.leftovers() == []
        assert await store.find(f"sha256:{'0' * 64}") is None

    async def test_one_that_is_given_up_leaves_nothing_half_done(self, lab: ImageStoreLab) -> None:
        store = lab.store()
        for seconds in (0.0, 0.005, 0.02):
            pulling = asyncio.create_task(store.pull(lab.references["web"]))
            await asyncio.sleep(seconds)
            pulling.cancel()
            await asyncio.gather(pulling, return_exceptions=True)
        assert read(store.root(await store.pull(lab.references["web"])), "etc/issue") == "web"
        assert lab.leftovers() == []

    async def test_what_nobody_uses_goes_and_what_is_used_stays(self, lab: ImageStoreLab) -> None:
        store = lab.store(budget_bytes=0)
        web, other = [await store.pull(lab.references[name]) for name in ("web", "other")]
        assert await store.forget([web.digest, other.digest]) == 0
        assert await store.forget([web.digest]) > 0
        assert [image.digest for image in await store.list()] == [web.digest] and lab.count_layers() == 2
        assert read(store.root(web), "etc/base") == "base"  # which the one that went had, too
        await store.forget([])
        assert await store.list() == [] and lab.count_layers() == 0 and await store.find(web.digest) is None
