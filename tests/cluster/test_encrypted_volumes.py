"""An encrypted volume from the command line: a VM reads and writes it, its pool has nothing plain, and refusals give reasons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
MARK = "nobody reads this in the pool"


@pytest.mark.long
def test_a_vm_s_encrypted_volume_is_plain_inside_it_alone(cluster: Cluster, gone: Gone) -> None:
    cluster.ok("volume", "create", "vault", "--size", "64M", "--encrypted")
    cluster.ok("vm", "create", gone("bank"), "--image", "tiny", "--memory", "128M", "--volume", "vault")
    write = f"printf '{MARK}' | dd of=/dev/vdb bs=512 seek=2048 conv=fsync"
    cluster.ok("vm", "exec", "bank", "--", "sh", "-c", write)
    uid = cluster.object("volume", "vault")["uid"]
    [file] = Path(cluster.folder).rglob(f"{uid}.qcow2")
    assert MARK.encode() not in file.read_bytes()
    cluster.ok("volume", "resize", "vault", "128M")
    until(lambda: "262144" in cluster.ok("vm", "exec", "bank", "--", "cat", "/sys/block/vdb/size"))
    for refused, why in (
        (("vm", "snapshot", "bank", "--name", "s1"), "snapshots of encrypted volumes can't be taken"),
        (("vm", "migrate", "bank"), "has encrypted volume vault, which can't migrate"),
    ):
        done = cluster.run(*refused, timeout=120)
        assert done.returncode and why in done.stderr.decode(), done
    cluster.ok("vm", "stop", "bank")
    cluster.ok("volume", "resize", "vault", "192M")
    cluster.ok("vm", "start", "bank")
    assert MARK in cluster.ok(
        "vm", "exec", "bank", "--", "sh", "-c", "dd if=/dev/vdb bs=512 skip=2048 count=1; cat /sys/block/vdb/size"
    )
    print(cluster.ok("volume", "list", "-o", "wide"), cluster.ok("volume", "show", "vault"))
    cluster.ok("vm", "delete", "bank", "--yes")
    cluster.ok("volume", "delete", "vault", "--yes")
