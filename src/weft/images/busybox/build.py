"""Builds the busybox image: an OCI archive with Debian's static busybox under all its names, for containers to begin with where no
registry is at hand.

Reads the local busybox, writes the archive in one rename. The same busybox gives the same bytes.
Source: OCI image specification 1.1 (layout, manifest, configuration, layer).
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.images.parts import EPOCH, require
from weft.objects.errors import DriverFailed

_NEEDED = {"busybox": "busybox-static"}
_FOLDERS = {"bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700, "run": 0o755,
            "srv": 0o755, "sys": 0o755, "tmp": 0o1777, "var": 0o755, "var/log": 0o755}  # fmt: skip
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnobody:x:65534:\n",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def build_busybox(out_path: Path, cache_dir: Path, report: Callable[[str], None] = lambda what: None) -> None:
    """Write the archive to ``out_path``. Raises DriverFailed."""
    require("busybox", _NEEDED)
    report("programs")
    program = Path(shutil.which("busybox") or "")
    layer = _pack_layer(program.read_bytes(), _list_names(program))
    out_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=out_path.parent, prefix=".busybox-", delete=False) as work:
        try:
            work.write(pack_image(layer))
            work.flush()
            Path(work.name).chmod(0o644)
            Path(work.name).rename(out_path)
        except BaseException:
            Path(work.name).unlink(missing_ok=True)
            raise


def pack_image(layer: bytes) -> bytes:
    """An OCI archive of an image with this one layer (a tar), which runs a shell."""
    machine = platform.machine()
    config = _encode(
        {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _encode(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _describe("application/vnd.oci.image.config.v1+json", config),
            "layers": [_describe("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    entry = _describe("application/vnd.oci.image.manifest.v1+json", manifest)
    members = {
        "oci-layout": _encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": _encode({"schemaVersion": 2, "manifests": [entry]}),
        **{f"blobs/{_digest(blob).replace(':', '/')}": blob for blob in (config, manifest, layer)},
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            _add(archive, name, data)
    return out.getvalue()


def _pack_layer(program: bytes, names: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, mode in _FOLDERS.items():
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, mode, EPOCH
            archive.addfile(folder)
        _add(archive, "bin/busybox", program, 0o755)
        for name in names:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname, link.mode, link.mtime = tarfile.SYMTYPE, "busybox", 0o777, EPOCH
            archive.addfile(link)
        for name, text in _FILES.items():
            _add(archive, name, text.encode())
    return out.getvalue()


def _list_names(program: Path) -> list[str]:
    done = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=20)
    names = sorted({*done.stdout.split()} - {"busybox"})
    if done.returncode or "sh" not in names:
        raise DriverFailed(f"{program} doesn't list its applets", hint="apt-get install --reinstall busybox-static")
    return names


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), mode, EPOCH
    archive.addfile(member, io.BytesIO(data))


def _describe(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
