"""Two servers over a real etcd: what one of them fetched or was given is there when it is killed with all its processes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.gateway.test_function_code import make_zip
from tests.scenario.server.servers_lab import fabric_in, tried
from tests.scenario.server.test_server_log import until

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.client.function_code import upload_code


def make_disk(path: Path, text: str) -> str:
    """A disk with an ext4 file system's mark; its digest."""
    content = bytearray(1 << 20)
    content[1080:1082] = b"\x53\xef"
    content[: len(text)] = text.encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def add_image(client: Client, path: Path) -> None:
    client.create({"kind": "image", "name": path.stem, "spec": {"url": f"file://{path}"}})


def read_image(client: Client, name: str) -> dict[str, Any]:
    return dict(client.get("image", name)["status"])


def test_images_and_code_outlive_the_server_that_fetched_them_or_was_given_them(
    tmp_path: Path, etcd: EtcdServer
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    digest = make_disk(sources / "one.img", "one")
    options = ("--allow-fetch", str(sources))
    with fabric_in(tmp_path, etcd.url, options) as fabric:
        fabric.begin()
        fabric.join(2)
        first, second = fabric.servers.values()
        client, there = fabric.client("s1"), fabric.client("s2")

        add_image(there, sources / "one.img")
        until(lambda: read_image(there, "one")["phase"] == "Available")
        places = [server.state / "images" / digest for server in (first, second)]
        assert [path.read_bytes()[:3] for path in places] == [b"one"] * 2  # from when it is available
        sha256, data = make_zip()
        upload_code(client, sha256, data)
        until(lambda: tried(lambda: there.create({"kind": "function", "name": "f", "spec": make_spec(sha256)})))

        first.kill()
        (sources / "one.img").unlink()
        for one, size in ((digest, 1 << 20), (sha256, len(data))):
            answer = there.http.request("GET", f"/v1/blobs/{one}")
            raise_problem(answer)
            assert len(answer.body) == size


def make_spec(sha256: str) -> dict[str, str]:
    return {"code": sha256, "handler": "app.handler"}
