"""An image made from a VM that goes on running: machines that are made from it are machines of their own."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster, until

pytestmark = pytest.mark.host
MAKE_ONE = """
mkdir -p /etc/ssh /var/lib/cloud/instance /root/.ssh /srv
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
echo private > /etc/ssh/ssh_host_rsa_key
echo password > /var/lib/cloud/instance/user-data.txt
echo ssh-rsa > /root/.ssh/authorized_keys
echo app > /srv/app
sync
"""
SHOW = "wc -c < /etc/machine-id; ls /etc/ssh /var/lib/cloud /root/.ssh; cat /srv/app; echo made > /root/made"


def test_two_vms_from_the_image_of_a_vm_have_its_files_and_nothing_of_its_identity(cluster: Cluster) -> None:
    size = ("--memory", "128M")
    cluster.ok("vm", "create", "golden", "--image", "tiny", *size)
    cluster.ok("vm", "exec", "golden", "--", "sh", "-c", MAKE_ONE)
    cluster.ok("image", "create", "gold", "--from", "vm/golden")
    made = cluster.json("image", "describe", "gold")
    assert made["status"]["agent"] and made["spec"]["made_from"] == "vm/golden"
    assert {"machine id", "SSH host keys", "cloud-init's state", "users' SSH keys"} <= set(made["status"]["cleaned"])
    assert cluster.json("vm", "describe", "golden")["status"]["phase"] == "Running"
    until(lambda: not [one for one in cluster.json("snapshot", "list")["items"] if one["spec"]["of"] == "vm/golden"])
    for name in ("first", "second"):
        cluster.ok("vm", "create", name, "--image", "gold", *size)
        said = cluster.ok("vm", "exec", name, "--", "sh", "-c", SHOW).split()
        assert said == ["0", "/etc/ssh:", "/root/.ssh:", "/var/lib/cloud:", "app"], said
    cluster.ok("vm", "delete", "golden", "first", "second", "--yes")
    cluster.ok("image", "delete", "gold", "--yes")
