"""Functions of OCI images through the whole fabric: out of a registry that asks who pulls, pinned, in machines too, and out
of an archive that weft holds."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.registry import pack_busybox, push_busybox, serve

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]  # the base is built once, from packages
BOOTSTRAP = """
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime"
while true; do
    wget -q -S -O /tmp/event "$api/invocation/next" 2>/tmp/headers || exit 1
    id=$(sed -n 's/.*Lambda-Runtime-Aws-Request-Id: *//p' /tmp/headers | tr -d '\\r')
    wget -q -O /dev/null --post-data "{\\"is\\": \\"$(cat /is)\\", \\"kernel\\": \\"$(uname -r)\\"}" "$api/invocation/$id/response"
done
"""


@pytest.fixture(scope="module")
def registry(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("own-registry")
    with serve(folder, cluster.host_address, auth="htpasswd") as place:
        push(folder, place, "one")
        given = ["--registry", place, "--username", "puller", "--password-stdin"]
        cluster.ok("secret", "create", "fnreg", *given, stdin=b"gehe!m\n")
        yield place
        cluster.run("secret", "delete", "fnreg", "--yes")


def push(folder: Path, place: str, what: str) -> None:
    files = {"bootstrap": BOOTSTRAP, "is": what}
    push_busybox(folder, f"{place}/shop/own:1", ["sh", "/bootstrap"], files)


def invoke(cluster: Cluster, name: str) -> dict[str, str]:
    told: dict[str, str] = json.loads(cluster.ok("function", "invoke", name))
    return told


@pytest.mark.parametrize("isolation", ["container", pytest.param("vm", marks=pytest.mark.long)])
def test_an_image_is_pulled_by_a_secret_pinned_and_taken_anew_only_when_asked(
    cluster: Cluster, registry: str, tmp_path: Path, isolation: str
) -> None:
    push(tmp_path, registry, "one")
    name = f"own-{isolation}"
    wish = ["--image", f"{registry}/shop/own:1", "--isolation", isolation, "--memory", "128M"]
    if isolation == "container":
        said = cluster.fails(6, "function", "create", "anybody", *wish, "--timeout", "5s")
        assert "registry_secret" in said, said
        cluster.ok("function", "delete", "anybody", "--yes")
    try:
        cluster.ok("function", "create", name, *wish, "--registry-secret", "fnreg", timeout=600)
        told = invoke(cluster, name)
        assert told["is"] == "one"
        assert ("cloud" in told["kernel"]) == (isolation == "vm") or isolation == "container"
        cluster.ok("function", "publish", name)
        push(tmp_path, registry, "two")
        cluster.ok("function", "set", name, "--memory", "144M", timeout=600)
        assert invoke(cluster, name)["is"] == "one"
        cluster.ok("function", "pull", name, timeout=600)
        assert invoke(cluster, name)["is"] == "two"
        assert invoke(cluster, f"{name}:1")["is"] == "one"
        pinned = json.loads(cluster.ok("get", f"functionversion/{name}-1", "-o", "json"))["spec"]["image"]
        assert pinned.startswith(f"{registry}/shop/own:1@sha256:")
        assert "in use by" in cluster.fails(5, "secret", "delete", "fnreg", "--yes")
        said = cluster.ok("describe", f"function/{name}") + cluster.ok("events")
        assert "gehe!m" not in said
        for path in cluster.state.rglob("*log"):
            with contextlib.suppress(IsADirectoryError, FileNotFoundError):  # that of a function deleted just now
                assert b"gehe!m" not in path.read_bytes(), path
    finally:
        cluster.run("function", "delete", name, "--yes")


def test_an_image_that_weft_holds_runs_without_a_registry_and_stays_while_a_function_names_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    archive = pack_busybox(tmp_path, ["sh", "/bootstrap"], {"bootstrap": BOOTSTRAP, "is": "held"})
    archive = shutil.copy(archive, cluster.folder / "held.tar")  # which the server may read, unlike a test's own folder
    cluster.ok("image", "add", "own", str(archive))
    try:
        cluster.ok("function", "create", "held", "--image", "own", "--isolation", "process", "--memory", "64M")
        assert invoke(cluster, "held")["is"] == "held"
        cluster.ok("function", "publish", "held")
        assert invoke(cluster, "held:1")["is"] == "held"
        assert "weft holds its image itself" in cluster.fails(5, "function", "pull", "held")
        assert "in use by" in cluster.fails(5, "image", "delete", "own", "--yes")
        said = cluster.fails(2, "function", "create", "disk", "--image", "tiny", "--memory", "64M")
        assert "a disk for VMs" in said, said
    finally:
        for name in ("held", "disk"):
            cluster.run("function", "delete", name, "--yes")
    cluster.ok("image", "delete", "own", "--yes")
