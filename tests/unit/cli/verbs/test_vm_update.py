"""`weft vm update` and `weft vm deploy`: what must be so before anything changes."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.verbs import vm_update
from weft.cli.wait.follow import INTERRUPTED
from weft.objects.errors import AlreadyExists


class _Client:
    """VMs old and new, old as the adopted instance of a deployment."""

    def __init__(self) -> None:
        self.verbs: list[str] = []

    def get(self, kind: str, name: str) -> dict[str, Any]:
        owner = {"kind": "deployment", "name": "old"}
        return {"kind": kind, "name": name, "owner": owner, "spec": {"adopt": "old"}}

    def verb(self, kind: str, name: str, verb: str, given: dict[str, Any]) -> dict[str, Any]:
        self.verbs.append(verb)
        return {"kind": "snapshot", "name": "old-1"}


class _Session:
    def __init__(self) -> None:
        self.client, self.said = _Client(), list[str]()

    def notify(self, text: str) -> None:
        self.said.append(text)


def test_an_update_ends_with_the_wait_for_its_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = _Session()
    monkeypatch.setattr(vm_update, "read_workload_config", lambda *_: {"image": "tiny"})
    monkeypatch.setattr(vm_update, "read_strategy", lambda *_: {})
    monkeypatch.setattr(vm_update, "plan_wait", lambda *_: object())
    monkeypatch.setattr(vm_update, "follow_to_end", lambda *_: INTERRUPTED)
    given = {"config": "f", "dry_run": False}
    assert vm_update._roll_out(session, "old", given, {}) == INTERRUPTED
    assert (session.client.verbs, session.said) == (["snapshot"], [])


def test_a_parallel_vm_has_a_name_of_its_own() -> None:
    session: Any = _Session()
    with pytest.raises(AlreadyExists, match='vm "new" exists already'):
        vm_update._deploy(session, None, ("new",), "old", config="f", dry_run=False)
    assert session.client.verbs == []
