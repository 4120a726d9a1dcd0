"""A VM whose snapshot and disks are on a node that was deleted."""

from __future__ import annotations

import pytest

from weft.kinds.vm import VM
from weft.objects.errors import IllegalTransition


def test_a_restore_from_a_snapshot_on_a_deleted_node_is_refused_by_name_of_both_while_the_vm_waits_for_that_node() -> (
    None
):
    restore = next(one for one in VM.verbs if one.name == "restore")
    assert restore.act is not None and restore.input is not None
    lost = {"phase": "Unavailable", "workload_uid": "u", "message": "its data is on node n1, which was deleted"}
    obj = {
        "kind": "vm",
        "name": "web",
        "uid": "u",
        "generation": 3,
        "spec": {"image": "tiny"},
        "status": {"phase": "Pending", "node": ""},
        "others": {"snapshot/s": {"spec": {"of": "vm/web"}, "status": lost}},
    }
    with pytest.raises(IllegalTransition, match=r"snapshot/s is Unavailable, .*n1, which was deleted"):
        restore.act(obj, restore.input(snapshot="s"))
