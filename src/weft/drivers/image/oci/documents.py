"""Images' indexes, manifests and configurations from registries and layouts, as strangers wrote them. Pure.

Source: OCI image specification 1.1, and Docker's manifests (version 2, schema 2), which mean the same by other names.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from weft.contracts.driver.image import OciConfig
from weft.drivers.image.oci.platforms import Platform
from weft.objects.errors import InvalidInput
from weft.objects.image.reference import DIGEST

MOST_DOCUMENT_BYTES = 4 << 20
MOST_LAYERS = 127  # overlayfs takes 500, but a mount's options are one page
MOST_BLOB_BYTES = 1 << 40
INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_T = TypeVar("_T")
Packing = Literal["plain", "gzip", "zstd"]
_LAYER_TYPES: dict[str, Packing] = {
    "application/vnd.oci.image.layer.v1.tar": "plain",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "plain",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "plain",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A blob by its digest; ``size`` in bytes."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def packing(self) -> Packing:
        """Raises InvalidInput for a layer that weft can't unpack."""
        packing = _LAYER_TYPES.get(self.media_type)
        if packing is None:
            raise _malformed(
                f"a layer of the type {self.media_type[:100]!r} can't be unpacked",
                "build the image with tar, gzip or zstd layers",
            )
        return packing


class Index(msgspec.Struct, frozen=True):
    manifests: list[Descriptor]


class OciManifest(msgspec.Struct, frozen=True):
    config: Descriptor
    layers: list[Descriptor]


class _Run(msgspec.Struct, frozen=True, rename="pascal"):
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    user: str | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    exposed_ports: dict[str, Any] | None = None
    volumes: dict[str, Any] | None = None
    labels: dict[str, str] | None = None


class _Root(msgspec.Struct, frozen=True):
    diff_ids: list[str] = []


class Configuration(msgspec.Struct, frozen=True):
    """``diff_ids``: digests of the layers' tars, the lowest first."""

    platform: Platform
    diff_ids: list[str]
    run: OciConfig


class _ConfigDocument(msgspec.Struct, frozen=True):
    rootfs: _Root
    architecture: str = ""
    os: str = ""
    variant: str = ""
    config: _Run | None = None


def read_document(data: bytes, media_type: str = "") -> Index | OciManifest:
    """An index or manifest; ``media_type`` is the type that the registry gave it. Raises InvalidInput."""
    shape = _decode(data, dict[str, Any], "manifest")
    if shape.get("schemaVersion") == 1 or "fsLayers" in shape:
        raise _malformed(
            "its manifest has Docker's schema 1, which has no digests to verify",
            "push the image again with a newer tool",
        )
    if "manifests" in shape and ("layers" in shape or "config" in shape):
        raise _malformed("its manifest is both an index and an image", "don't use the image; check where it comes from")
    kind = str(shape.get("mediaType") or "") or media_type.partition(";")[0].strip()
    if "manifests" in shape and kind not in MANIFEST_TYPES:
        index = _decode(data, Index, "index")
        for entry in index.manifests:
            _check(entry)
        return index
    if kind in INDEX_TYPES or "layers" not in shape:
        raise _malformed("its manifest is not an image manifest", "check that the reference names an image")
    manifest = _decode(data, OciManifest, "manifest")
    for entry in (manifest.config, *manifest.layers):
        _check(entry)
    if manifest.config.media_type not in _CONFIG_TYPES:
        raise _malformed(
            f"it is not a container image, but {manifest.config.media_type[:100] or 'something without a type'}",
            "artifacts like charts and signatures can't be run",
        )
    if len(manifest.layers) > MOST_LAYERS:
        raise _malformed(
            f"it has {len(manifest.layers)} layers; the limit is {MOST_LAYERS}", "build the image with fewer layers"
        )
    return manifest


def read_configuration(data: bytes, manifest: OciManifest) -> Configuration:
    """Raises InvalidInput, also for one that doesn't fit its manifest."""
    document = _decode(data, _ConfigDocument, "configuration")
    ids = document.rootfs.diff_ids
    if len(ids) != len(manifest.layers) or not all(map(DIGEST.fullmatch, ids)):
        raise _malformed(
            f"its configuration lists {len(ids)} layers, its manifest {len(manifest.layers)}", "build the image again"
        )
    run = document.config or _Run()
    return Configuration(
        Platform(document.os, document.architecture, document.variant),
        list(ids),
        OciConfig(
            entrypoint=run.entrypoint or [],
            cmd=run.cmd or [],
            env=run.env or [],
            user=run.user or "",
            workdir=run.working_dir or "",
            stop_signal=run.stop_signal or "",
            exposed_ports=sorted(run.exposed_ports or {}),
            volumes=sorted(run.volumes or {}),
            labels=run.labels or {},
        ),
    )


def _check(entry: Descriptor) -> None:
    if not DIGEST.fullmatch(entry.digest):
        raise _malformed(f"its manifest has the digest {entry.digest[:80]!r}", "weft supports only sha256 digests")
    if not 0 <= entry.size <= MOST_BLOB_BYTES:
        raise _malformed(f"its manifest has a part of {entry.size} bytes", "check where the image comes from")


def _decode(data: bytes, shape: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        raise _malformed(
            f"its {what} can't be read: {problem}"[:300], "check that the reference names an image"
        ) from None


def _malformed(message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, reason="badImage", field="spec.image", hint=hint)
