"""Debian's docker-registry as tests start it, and what they put into it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import platform
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAME, PASSWORD = "puller", "gehe!m"
CREDENTIALS = f"{NAME}:{PASSWORD}"
_HTPASSWD = (
    "puller:$2y$05$nR8qjnzjtMPPvZxgzW6OWuTRvwvMAChmN.rHRnNUjgG.I0XdIGnCu"  # of that name and password, by bcrypt
)
_TYPE = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@contextmanager
def serve(
    folder: Path, address: str = "127.0.0.1", *, auth: str = "", tls: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """A registry's ADDRESS:PORT. ``auth``: htpasswd (who knows NAME and PASSWORD gets in), or the URL of a token server whose
    certificate is ``folder/token.pem``; everybody gets in if empty. ``tls``: its certificate and key."""
    if shutil.which("docker-registry") is None or shutil.which("skopeo") is None:
        pytest.skip("needs docker-registry and skopeo")
    folder.mkdir(exist_ok=True)
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    place = f"{address}:{port}"
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": place},
    }
    if auth == "htpasswd":
        (folder / "htpasswd").write_text(_HTPASSWD + "\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    elif auth:
        bundle = str(folder / "token.pem")
        config["auth"] = {"token": {"realm": auth, "service": "test", "issuer": "issuer", "rootcertbundle": bundle}}
    if tls is not None:
        config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    (folder / "config.yml").write_text(json.dumps(config))
    words = ["docker-registry", "serve", str(folder / "config.yml")]
    with (folder / "log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            for _ in range(400):
                with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
                    break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
            yield place
        finally:
            process.terminate()


def push(layout: Path, tag: str, place: str, *more: str) -> None:
    """``tag`` of an OCI layout, with skopeo, as ``place`` (ADDRESS:PORT/NAME:TAG)."""
    words = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"--dest-creds={CREDENTIALS}", *more]
    subprocess.run([*words, f"oci:{layout}:{tag}", f"docker://{place}"], check=True, capture_output=True)


def push_busybox(folder: Path, place: str, entrypoint: Sequence[str], files: dict[str, str]) -> None:
    """busybox with all its names, and ``files``, as ``place``."""
    push(lay_out_busybox(folder, entrypoint, files), "1", place)


def pack_busybox(folder: Path, entrypoint: Sequence[str], files: dict[str, str]) -> Path:
    """The same as an archive."""
    archive = folder / "image.tar"
    with tarfile.open(archive, "w") as out:
        out.add(lay_out_busybox(folder, entrypoint, files), ".")
    return archive


def lay_out_busybox(folder: Path, entrypoint: Sequence[str], files: dict[str, str]) -> Path:
    """The same as an OCI layout, with the tag 1."""
    layout = folder / "layout"
    shutil.rmtree(layout, ignore_errors=True)
    (layout / "blobs" / "sha256").mkdir(parents=True)
    layer = _make_layer(files)
    config = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _put(layout, json.dumps(config).encode(), f"{_TYPE}.config.v1+json"),
        "layers": [_put(layout, gzip.compress(layer, 1, mtime=0), f"{_TYPE}.layer.v1.tar+gzip")],
    }
    described = _put(layout, json.dumps(manifest).encode(), f"{_TYPE}.manifest.v1+json")
    described["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layout


def _put(layout: Path, data: bytes, kind: str) -> dict[str, Any]:
    name = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / name).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}


def _make_layer(files: dict[str, str]) -> bytes:
    busybox = shutil.which("busybox")
    assert busybox is not None
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "etc", "tmp", "root", "www"):
            _add(archive, name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755)
        _add(archive, "bin/busybox", tarfile.REGTYPE, 0o755, Path(busybox).read_bytes())
        for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if applet != "busybox":
                _add(archive, f"bin/{applet}", tarfile.SYMTYPE, 0o777, target="busybox")
        _add(archive, "etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
        for name, text in files.items():
            _add(archive, name, tarfile.REGTYPE, 0o644, text.encode())
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname, member.size = kind, mode, target, len(data)
    archive.addfile(member, io.BytesIO(data))
