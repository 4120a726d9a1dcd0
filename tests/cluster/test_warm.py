"""A VM that begins from a booted machine of its image, through the command line."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.containers import Gone
from weft.objects.image.bundle import MANIFEST_NAME


@pytest.fixture
def image(cluster: Cluster, tmp_path: Path) -> str:
    """tiny in other bytes: other tests' VMs don't start from its machine."""
    url = cluster.object("image", "tiny")["spec"]["url"]
    bundle = cluster.make_folder("warm") / "tiny.tar"
    with (
        tarfile.open(url.removeprefix("file://")) as source,
        tarfile.open(bundle, "w", format=tarfile.USTAR_FORMAT) as out,
    ):
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name == MANIFEST_NAME:
                data, member.size = data + b"\n", member.size + 1
            out.addfile(member, io.BytesIO(data))
    bundle.chmod(0o644)
    cluster.ok("image", "add", "tiny-warm", str(bundle))
    return "tiny-warm"


@pytest.mark.long
def test_a_vm_starts_from_a_booted_machine_of_its_image_and_is_like_any_other(
    cluster: Cluster, gone: Gone, image: str
) -> None:
    gone("quick")
    words = ("--image", image, "--memory", "192M", "--user-data", "#!/bin/sh\necho began >/root/began\n")
    cluster.ok("vm", "create", "quick", *words, "--boot", "warm")
    # It is Running with its network, unless that took more than 15 s on a busy machine.
    look = "for i in $(seq 60); do ip route | grep -q default && break; sleep 1; done; "
    look += "ip -o addr; ip route; hostname; cat /root/began; grep MemTotal /proc/meminfo"
    said = cluster.ok("vm", "exec", "quick", "--", "sh", "-c", look)
    network, itself = said.split("quick\n")
    assert f" {cluster.vm('quick')['status']['address']}/" in network and "default via" in network, said
    assert itself.startswith("began\n"), said
    log = cluster.ok("vm", "logs", "quick").splitlines()
    assert log[0].startswith(
        f"weft: vm/quick did not boot, it goes on from the booted machine of image {image}, made at "
    )
    assert "weft: up to here, what that machine printed as it booted" in log
    digest = cluster.object("image", image)["status"]["sha256"]
    node = cluster.object("node", cluster.vm("quick")["status"]["node"])
    assert {one["sha256"]: one["state"] for one in node["report"]["orders"]["warm"]}[digest] == "ready"
    cluster.ok("vm", "restart", "quick")
    assert cluster.ok("vm", "exec", "quick", "--", "sh", "-c", "hostname; wc -l </root/began") == "quick\n1\n"


def test_a_vm_that_cannot_start_warm_is_refused_with_the_field(cluster: Cluster, gone: Gone) -> None:
    gone("screened")
    refused = cluster.run("vm", "create", "screened", "--image", "tiny", "--boot", "warm", "--screen", "yes")
    assert refused.returncode != 0 and b"can't start warm" in refused.stderr and b"screen" in refused.stderr
