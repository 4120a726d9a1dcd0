"""Writes an OCI image layout: a folder with an index, and each image's manifest, configuration and layers under their digests.

The same trees give the same bytes: layers are in order, all files are root's and of one time, and nothing tells when they were
packed.
Source: OCI image specification 1.1 (layout, index, manifest, configuration, layer).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from weft.images.python.build import pack_root

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_NAME = "org.opencontainers.image.ref.name"
_PIECE = 1 << 20


class Layer(msgspec.Struct, frozen=True):
    digest: str  # of the compressed tar
    size: int  # its bytes
    diff_id: str  # digest of the tar


class ImageManifest(msgspec.Struct, frozen=True):
    """One image, of one architecture."""

    architecture: str
    digest: str
    size: int  # bytes of the manifest
    total: int  # bytes of the layers


class Layout:
    """The layout in ``folder``, which is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def add_layer(self, root: Path) -> Layer:
        """All below ``root`` but devices and sockets."""
        with tempfile.NamedTemporaryFile(dir=self._folder) as tar, tempfile.TemporaryFile(dir=self._folder) as packed:
            pack_root(root, Path(tar.name))
            with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as out:
                shutil.copyfileobj(tar, out, _PIECE)
            tar.seek(0)
            digest, diff_id = _digest(packed), _digest(tar)
            with open(self._blob(digest), "wb") as blob:
                shutil.copyfileobj(packed, blob, _PIECE)
                return Layer(digest, blob.tell(), diff_id)

    def add_image(self, architecture: str, layers: Sequence[Layer], config: Mapping[str, Any]) -> ImageManifest:
        """An image of ``layers``, the lowest first; ``config`` says how its containers start."""
        content = {
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._add(_CONFIG, content),
            "layers": [{"mediaType": _LAYER, "digest": one.digest, "size": one.size} for one in layers],
        }
        added = self._add(_MANIFEST, manifest)
        return ImageManifest(architecture, added["digest"], added["size"], sum(layer.size for layer in layers))

    def finish(self, images: Mapping[str, Sequence[ImageManifest]]) -> None:
        """Write the index: by name, the same image for each architecture."""
        entries = []
        for name, manifests in images.items():
            index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [_describe(one) for one in manifests]}
            entries.append({**self._add(_INDEX, index), "annotations": {_NAME: name}})
        (self._folder / "oci-layout").write_bytes(_encode({"imageLayoutVersion": "1.0.0"}))
        (self._folder / "index.json").write_bytes(
            _encode({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries})
        )

    def _add(self, media_type: str, document: Mapping[str, Any]) -> dict[str, Any]:
        data = _encode(document)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._blob(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")


def _describe(one: ImageManifest) -> dict[str, Any]:
    platform = {"architecture": one.architecture, "os": "linux"}
    return {"mediaType": _MANIFEST, "digest": one.digest, "size": one.size, "platform": platform}


def _digest(file: IO[bytes]) -> str:
    """The digest of the whole file, which is at its beginning afterwards."""
    file.seek(0)
    found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]
    file.seek(0)
    return found


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
