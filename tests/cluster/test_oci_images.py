"""VMs that stand on a container image: pulled and made a disk by the server, run as the image says, with containers' volumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import Gone, fetch
from tests.registry import push_busybox, serve

pytestmark = pytest.mark.host
TELLS = r"""# what a line can't hold is written \n
command sh
arg -c
arg id -u; echo "$WORDS"; pwd; echo more >> /data/log; exit 3
env WORDS=one\ntwo
user 1000:1000
cwd /tmp
mount notes-of-a-long-name-indeed:/data
"""


@pytest.mark.long
def test_an_image_from_a_registry_runs_as_a_vm(cluster: Cluster, registry: str, gone_containers: Gone) -> None:
    said = cluster.fails(1, "image", "add", "gone", f"oci://{registry}/shop/gone:1")
    assert "imageGone" in said and "was not kept" in said
    cluster.ok("image", "add", "shop", f"oci://{registry}/shop/web:1")
    image = cluster.json("image", "get", "shop")["status"]
    assert image["digest"].startswith("sha256:") and image["format"] == "bundle" and image["agent"]

    port = cluster.free_port()
    cluster.ok("vm", "create", "till", "--image", "shop", "--memory", "128M", "--publish", f"{port}:80")
    assert fetch(port) == "from a container\n"
    inside = cluster.ok("vm", "exec", "till", "--", "sh", "-c", "hostname; cat /proc/1/comm; nslookup hello.weft")
    assert inside.startswith("till\ninit\n") and cluster.vm("hello")["status"]["address"] in inside
    assert cluster.ok("vm", "logs", "till").replace("\r", "").startswith("serving\ncareful\n")
    (cluster.folder / "note").write_text("hither\n")
    cluster.ok("cp", "note", "till:/root/note")
    boot, here = cluster.vm("till")["status"]["boot_id"], cluster.vm("till")["status"]["node"]
    cluster.ok("vm", "migrate", "till", "--to", next(name for name in ("n1", "n2", "n3") if name != here))
    assert cluster.vm("till")["status"]["boot_id"] == boot and cluster.vm("till")["status"]["node"] != here
    assert fetch(port) == "from a container\n"
    assert cluster.ok("vm", "exec", "till", "--", "cat", "/root/note") == "hither\n"
    cluster.ok("vm", "stop", "till")
    assert "Power down" in cluster.ok("vm", "logs", "till")
    cluster.ok("vm", "start", "till")
    assert cluster.ok("vm", "exec", "till", "--", "cat", "/root/note") == "hither\n"
    assert fetch(port) == "from a container\n"
    cluster.ok("vm", "delete", "till", "--yes")

    volume = "notes-of-a-long-name-indeed"
    cluster.ok("volume", "create", volume, "--size", "64M")
    words = ["--image", f"{registry}/shop/web:1", "--memory", "64M", "--mount", f"{volume}:/data"]
    cluster.ok("container", "create", gone_containers("clerk"), *words)
    write = "echo first > /data/log; chmod 777 /data; chmod 666 /data/log"
    cluster.ok("container", "exec", "clerk", "--", "sh", "-c", write)
    cluster.ok("container", "delete", "clerk", "--yes")
    (cluster.folder / "told").write_text(TELLS)
    told = ["--image", "shop", "--memory", "128M", "--volume", volume, "--user-data", "told", "--restart", "never"]
    cluster.ok("vm", "create", "told", *told, "--detach")
    until(lambda: cluster.vm("told")["status"]["reason"] == "guestPoweredOff", 60)
    assert cluster.vm("told")["status"]["phase"] == "Stopped"
    printed = cluster.ok("vm", "logs", "told").replace("\r", "")
    assert printed.startswith("1000\none\ntwo\n/tmp\nweft: sh ended with exit code 3\n")
    cluster.ok("vm", "delete", "told", "--yes")
    cluster.ok("container", "create", gone_containers("heir"), *words)
    assert cluster.ok("container", "exec", "heir", "--", "cat", "/data/log") == "first\nmore\n"
    cluster.ok("container", "delete", "heir", "--yes")
    cluster.ok("volume", "delete", volume, "--yes")
    cluster.ok("image", "delete", "shop", "--yes")


def test_an_image_of_a_registry_that_asks_who_pulls_names_a_secret(cluster: Cluster, tmp_path: Path) -> None:
    with serve(tmp_path, cluster.host_address, auth="htpasswd") as place:
        push_busybox(tmp_path, f"{place}/shop/shut:1", ["echo", "opened"], {"etc/shut": "x"})
        url = f"oci://{place}/shop/shut:1"
        said = cluster.fails(4, "image", "add", "shut", url)
        assert "notAuthenticated" in said and "set registry_secret" in said, said
        assert "secret" in cluster.fails(3, "image", "add", "shut", url, "--registry-secret", "nobody")
        cluster.ok(
            "secret", "create", "elsewhere", "--registry", "r.example.org", "--username", "x", "--value", "password=y"
        )
        said = cluster.fails(1, "image", "add", "shut", url, "--registry-secret", "elsewhere")
        assert "wrongSecret" in said and "is for r.example.org" in said, said
        given = ["--registry", place, "--username", "puller", "--password-stdin"]
        cluster.ok("secret", "create", "pulls", *given, stdin=b"wrong horse\n")

        cluster.ok("image", "create", "shut", "--url", url, "--registry-secret", "pulls", "--detach")
        until(lambda: cluster.json("image", "get", "shut")["status"]["reason"] == "notAuthenticated")
        cluster.ok("secret", "set", "pulls", "--password-stdin", stdin=b"gehe!m\n")
        cluster.ok("wait", "image/shut", "--for", "phase=Available", "--timeout", "60s")
        assert "in use by image/shut" in cluster.fails(5, "secret", "delete", "pulls", "--yes")
        said = cluster.ok("describe", "image/shut") + cluster.ok("events") + cluster.ok("get", "secrets", "-o", "json")
        logs = b"".join(path.read_bytes() for path in cluster.state.rglob("*log") if path.is_file()).decode("latin1")
        assert not [word for word in ("gehe!m", "wrong horse") if word in said + logs]
    cluster.ok("image", "delete", "shut", "--yes")
    cluster.ok("secret", "delete", "pulls", "elsewhere", "--yes")
