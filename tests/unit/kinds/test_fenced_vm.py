"""A VM that was left to another cluster: no verb starts it here."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.vm import VM
from weft.objects.errors import IllegalTransition


@pytest.mark.parametrize(
    ("verb", "given"), [("start", {}), ("restore", {"snapshot": "s", "memory": True, "keep": False})]
)
def test_a_fenced_vm_is_not_started_by_a_verb(verb: str, given: dict[str, Any]) -> None:
    found = next(one for one in VM.verbs if one.name == verb)
    assert found.change is not None
    obj = {
        "kind": "vm",
        "name": "web",
        "uid": "u",
        "generation": 3,
        "spec": {"image": "tiny", "run": "stop"},
        "marks": {"fenced": "web"},
        "status": {"phase": "Stopped", "node": "n1"},
        "others": {
            "snapshot/s": {
                "spec": {"of": "vm/web"},
                "status": {"phase": "Ready", "workload_uid": "u", "memory": 1, "workload_spec": {"image": "tiny"}},
            }
        },
    }
    with pytest.raises(IllegalTransition, match="cluster") as refused:
        found.change(obj, found.input(**given) if found.input is not None else None)
    assert refused.value.token == "fenced"
