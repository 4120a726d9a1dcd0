"""VMs that stand on a container image: pulled and made a disk by the server, run as the image says, with containers' volumes."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.test_containers import Gone, fetch, gone_containers, registry, until

__all__ = ["gone_containers", "registry"]  # fixtures

pytestmark = [pytest.mark.host, pytest.mark.timeout(400)]
TELLS = r"""# what a line can't hold is written \n
command sh
arg -c
arg id -u; echo "$WORDS"; pwd; echo more >> /data/log; exit 3
env WORDS=one\ntwo
user 1000:1000
cwd /tmp
mount notes-of-a-long-name-indeed:/data
"""


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
