"""What stores of container images promise, kept by the node's own for each place that images come from."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("tests.conformance.image_store_contract")

from image_lab import Made, files, leftovers, node, public_folder, write_layout
from registry_lab import Registry
from tests.conformance.image_store_contract import ImageStorePromises

from weft.contracts.driver.image import OciStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("skopeo") is None, reason="needs root and skopeo")
BASE = files(etc__passwd="root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n", etc__issue="base", etc__base="base")


def make_images() -> dict[str, Made]:
    web = Made(
        [BASE, files(etc__issue="web", app="x" * 300_000)], Entrypoint=["/bin/web"], WorkingDir="/srv", User="web"
    )
    bad = Made([BASE, files(app="bad")], "plain")
    wrong = bad.layers[1]
    bad.blobs[wrong["digest"]] = files(app="BAD")  # as long, and another
    return {"web": web, "other": Made([BASE, files(app="other" * 10_000)]), "bad": bad}


class StoreLab:
    def __init__(self, folder: Path, references: dict[str, str]) -> None:
        self.references, self._folder = references, folder

    def store(self, *, budget_bytes: int = 1 << 30) -> OciStore:
        return node(self._folder, budget_bytes=budget_bytes)

    def leftovers(self) -> list[str]:
        return leftovers(self._folder)

    def count_layers(self) -> int:
        return len(list((self._folder / "oci" / "layers").glob("*/layer.json")))


@pytest_asyncio.fixture(params=("registry", "layout", "archive"))
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreLab]:
    made, place = make_images(), tmp_path / "node"
    if request.param == "registry":
        registry = Registry()
        for name, image in made.items():
            registry.add(name, image)
        async with registry.serve() as address:
            yield StoreLab(place, {name: f"{address}/a:{name}" for name in (*made, "none")})
        return
    with public_folder() as folder:
        if request.param == "layout":
            layout = write_layout(folder / "layout", dict(made))
            yield StoreLab(place, {name: f"oci:{layout}:{name}" for name in (*made, "none")})
            return
        for name in made:
            alone = write_layout(folder / name, {name: made[name]})
            subprocess.run(["tar", "-C", str(alone), "-cf", f"{alone}.tar", "."], check=True)
        yield StoreLab(place, {name: f"oci-archive:{folder}/{name}.tar:{name}" for name in (*made, "none")})


class TestImageStore(ImageStorePromises):
    pass
