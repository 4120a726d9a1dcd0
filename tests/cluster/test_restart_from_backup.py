"""A node loses its power: a VM with disks of that node alone is back elsewhere from its backup, and the node keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.test_backups import run
from tests.cluster.test_bad_days import kill, settled
from tests.cluster.test_twin import place
from tests.scenario.bmc_lab import PASSWORD, USER, run_redfish

pytestmark = pytest.mark.host
NOTES = "head -n 1 /root/note; head -n 1 /dev/vdb"


def write(cluster: Cluster, note: str) -> None:
    run(cluster, "books", f"echo {note} > /root/note; sync; dd if=/root/note of=/dev/vdb conv=fsync")


def test_a_vm_is_back_from_its_backup_and_the_returned_node_keeps_its_disks(
    cluster: Cluster, gone: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "safe").mkdir(mode=0o700)
    cluster.ok("backuprepository", "create", "books-safe", "--url", f"dir://{tmp_path / 'safe'}")
    cluster.ok("volume", "create", "ledgers", "--size", "64M")
    place(cluster, "n2", gone("books"), "--volume", "ledgers", "--on-node-loss", "restart-from-backup")
    cluster.ok("wait", "vm/books")
    write(cluster, "one")
    cluster.ok("backup", "create", "vm/books", "--to", "books-safe", "--name", "sunday", "--wait")
    write(cluster, "two")
    with run_redfish(tmp_path / "redfish") as bmc:
        values = {"user": USER, "password": PASSWORD, "fingerprint": bmc.fingerprint}
        cluster.ok("secret", "create", "bmc", *(word for one in values.items() for word in ("--value", "=".join(one))))
        url = f"redfish://{bmc.host}:{bmc.port}"
        cluster.ok("node", "set", "n2", "--power", url, "--power-secret", "default/bmc")
        cluster.ok("node", "power", "n2", "off", "--force", "--timeout", "30s")
        kill(cluster.pids("weft init n2"))
        until(lambda: cluster.vm("books")["status"].get("node") not in ("n2", None))
        until(lambda: cluster.run("vm", "exec", "books", "--", "true").returncode == 0)
        assert run(cluster, "books", NOTES) == ["one", "one"]
        assert len(cluster.pids("qemu-system", "guest=books")) == 1
        backup, status = cluster.object("backup", "sunday"), cluster.vm("books")["status"]
        assert status["lost_since"] == backup["status"]["taken_at"]
        assert cluster.object("volume", "ledgers")["status"]["node"] == status["node"]
        cluster.up()
        settled(cluster)
        cluster.ok("node", "set", "n2", "--power", "", "--power-secret", "")
    kept = {}

    def is_kept() -> bool:
        found = [
            one for one in cluster.json("volume", "list", "--orphans")["items"] if one["status"].get("node") == "n2"
        ]
        kept.update((one["marks"]["orphan"].get("volume", ""), one["name"]) for one in found)
        return kept.keys() == {"", "ledgers"}

    until(is_kept)
    assert run(cluster, "books", NOTES) == ["one", "one"]
    cluster.ok("volume", "reclaim", kept["ledgers"])
    cluster.ok("vm", "create", gone("reader"), "--image", "tiny", "--memory", "128M", "--volume", kept["ledgers"])
    assert run(cluster, "reader", "head -n 1 /dev/vdb") == ["two"] and cluster.vm("reader")["status"]["node"] == "n2"
    cluster.ok("vm", "delete", "reader", "books", "--yes")
    cluster.ok("volume", "delete", "ledgers", *kept.values(), "--yes")
    cluster.ok("backup", "delete", "sunday", "--yes")
    cluster.ok("backuprepository", "delete", "books-safe", "--yes")
    cluster.ok("secret", "delete", "bmc", "--yes")
    assert cluster.json("snapshot", "list")["items"] == []
