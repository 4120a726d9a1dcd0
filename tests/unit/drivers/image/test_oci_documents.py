from __future__ import annotations

import json
from typing import Any

import pytest

from weft.drivers.image.oci.documents import Index, OciManifest, read_configuration, read_document
from weft.drivers.image.oci.platforms import Platform, choose
from weft.objects.errors import InvalidInput

DIGEST = "sha256:" + "0f" * 32
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 10}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": DIGEST, "size": 10}
MANIFEST = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}


def read(document: Any, said: str = "") -> Index | OciManifest:
    return read_document(json.dumps(document).encode(), said)


def test_manifests_and_indexes() -> None:
    manifest = read(MANIFEST)
    assert isinstance(manifest, OciManifest) and manifest.layers[0].packing == "zstd"
    index = read({"schemaVersion": 2, "manifests": [CONFIG | {"platform": {"os": "linux", "architecture": "arm64"}}]})
    assert isinstance(index, Index) and str(index.manifests[0].platform) == "linux/arm64"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (MANIFEST | {"manifests": []}, "both an index and an image"),
        ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        ({}, "is not an image manifest"),
        ([], "can't be read"),
        ({"layers": "x", "config": CONFIG}, "can't be read"),
        (MANIFEST | {"layers": [LAYER | {"digest": "../../etc/passwd"}]}, "the digest"),
        (MANIFEST | {"layers": [LAYER | {"digest": "md5:00"}]}, "the digest"),
        (MANIFEST | {"layers": [LAYER | {"size": -1}]}, "-1 bytes"),
        (MANIFEST | {"layers": [LAYER | {"size": 1 << 60}]}, "bytes"),
        (MANIFEST | {"layers": [LAYER] * 200}, "200 layers"),
        (
            MANIFEST | {"config": CONFIG | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            "not a container image",
        ),
    ],
)
def test_what_strangers_write(document: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        read(document)
    assert caught.value.token == "badImage"


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b'{"manifests": [' * 5000])
def test_what_is_no_document_at_all(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="can't be read"):
        read_document(data)


def test_configurations() -> None:
    manifest = read(MANIFEST)
    assert isinstance(manifest, OciManifest)
    document = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "config": None,
    }
    assert read_configuration(json.dumps(document).encode(), manifest).run.entrypoint == []
    document["config"] = {
        "Cmd": ["sh"],
        "Entrypoint": None,
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": None,
        "Healthcheck": {},
    }
    run = read_configuration(json.dumps(document).encode(), manifest).run
    assert (run.cmd, run.exposed_ports, run.volumes) == (["sh"], ["80/tcp"], [])
    for ids in ([], [DIGEST, DIGEST], ["x"]):
        document["rootfs"] = {"diff_ids": ids}
        with pytest.raises(InvalidInput, match="layers"):
            read_configuration(json.dumps(document).encode(), manifest)


def test_layers_that_can_not_be_unpacked_are_named() -> None:
    manifest = read(MANIFEST | {"layers": [LAYER | {"mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}]})
    assert isinstance(manifest, OciManifest)
    with pytest.raises(InvalidInput, match="encrypted"):
        _ = manifest.layers[0].packing


def platforms(*names: str) -> list[Platform | None]:
    return [Platform(*name.split("/")) if name else None for name in names]


@pytest.mark.parametrize(
    ("offered", "here", "best"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64/v3"], "linux/amd64", None),  # this CPU may not have what it uses
        (["linux/arm64/v8"], "linux/arm64", 0),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v7"], "linux/arm/v6", None),
        (["windows/amd64", "unknown/unknown"], "linux/amd64", None),
        ([""], "linux/amd64", 0),
        (["", ""], "linux/amd64", None),
        ([], "linux/amd64", None),
    ],
)
def test_the_image_that_runs_here(offered: list[str], here: str, best: int | None) -> None:
    (node,) = platforms(here)
    assert node is not None and choose(platforms(*offered), node) == best
