"""Container images made by tests: layers as tar files, layouts as the specification has them, and a node to pull them to."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from weft.contracts.driver.host import Capacity, Host
from weft.drivers.image.oci.fetch.exchange import Patience
from weft.drivers.image.oci.store import OciImages

QUICK = Patience(connect_seconds=10.0, idle_seconds=10.0, tries=2, resumes=6, pause_seconds=0.05)
HASTY = Patience(connect_seconds=1.0, idle_seconds=1.0, tries=1, pause_seconds=0.05)
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.mode = kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in more.items():
        setattr(made, key, value)
    return made


def tar(entries: Iterable[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for one in entries:
            member, data = one if isinstance(one, tuple) else (one, b"")
            member.size = len(data) if data else member.size
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def files(**contents: str) -> bytes:
    """A layer of plain files; __ in a name stands for /."""
    return tar((entry(name.replace("__", "/")), text.encode()) for name, text in contents.items())


def pack(layer: bytes, packing: str) -> bytes:
    if packing == "gzip":
        return gzip.compress(layer, 1, mtime=0)
    if packing == "zstd":
        return subprocess.run(["zstd", "-qc"], input=layer, capture_output=True, check=True).stdout
    return layer


class Made:
    """One image: ``blobs`` by digest, ``manifest`` its manifest's digest."""

    def __init__(
        self,
        layers: list[bytes],
        packing: str = "gzip",
        architecture: str = "amd64",
        **run: Any,
    ) -> None:
        self.blobs: dict[str, bytes] = {}
        self.diff_ids = [digest(layer) for layer in layers]
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        }
        suffix = "" if packing == "plain" else f"+{packing}"
        self.layers = [self._put(pack(layer, packing), f"{LAYER}{suffix}") for layer in layers]
        self.media_type = MANIFEST
        document = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self._put(json.dumps(config).encode(), CONFIG),
            "layers": self.layers,
        }
        self.descriptor = self._put(json.dumps(document).encode(), self.media_type)
        self.manifest = self.descriptor["digest"]
        self.architecture = architecture

    def _put(self, data: bytes, kind: str) -> dict[str, Any]:
        self.blobs[digest(data)] = data
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}


def several(*images: Made) -> tuple[bytes, dict[str, bytes]]:
    """An index of images for several architectures, and all their blobs."""
    entries = [image.descriptor | {"platform": {"os": "linux", "architecture": image.architecture}} for image in images]
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    return data, {key: value for image in images for key, value in image.blobs.items()} | {digest(data): data}


def write_layout(folder: Path, tags: dict[str, Made | tuple[bytes, dict[str, bytes]]]) -> Path:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entries = []
    for tag, one in tags.items():
        if isinstance(one, Made):
            described, parts = dict(one.descriptor), one.blobs
        else:
            described, parts = {"mediaType": INDEX, "digest": digest(one[0]), "size": len(one[0])}, one[1]
        for key, data in parts.items():
            (blobs / key.removeprefix("sha256:")).write_bytes(data)
        entries.append(described | {"annotations": {"org.opencontainers.image.ref.name": tag}})
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def node(folder: Path, **more: Any) -> OciImages:
    """A node's store; ``folder`` may be one that a killed store left."""
    host = Host("n1", "uid", str(folder), str(folder), "w", "", "", "", Capacity(1, 1, 1))
    return OciImages(host, **{"patience": QUICK, **more})


def leftovers(folder: Path) -> list[str]:
    """What a store has that is no whole layer or image."""
    return sorted(path.name for path in (folder / "oci" / "layers").iterdir() if path.name.startswith("."))


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as who unpacks layers must. pytest's are for one user, and each run of pytest that
    begins on the machine sees to that again."""
    with tempfile.TemporaryDirectory(prefix="weft-images-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
