"""`weft vm update` and `weft vm deploy`: what must be so before anything changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click
import msgspec
import pytest

from weft.cli.deployment.flags import check_strategy_flags
from weft.cli.verbs import vm_update
from weft.cli.wait.follow import INTERRUPTED
from weft.kinds.vm import VmSpec
from weft.objects.errors import AlreadyExists, IllegalTransition, NotFound, WeftError


class _Client:
    """VMs old and new, old as the adopted instance of a deployment."""

    def __init__(self) -> None:
        self.verbs: list[str] = []
        self.missing: set[str] = set()
        self.is_adopted = True
        self.others: list[dict[str, Any]] = []

    def get(self, kind: str, name: str) -> dict[str, Any]:
        if name in self.missing:
            raise NotFound(f'{kind} "{name}" does not exist')
        if kind == "deployment":
            spec: dict[str, Any] = {
                "adopt": "old",
                "workload": "vm",
                "template": msgspec.to_builtins(VmSpec(image="tiny")),
            }
            return {"kind": kind, "name": name, "uid": "d", "spec": spec}
        owner = {"kind": "deployment", "name": "old", "uid": "d"} if self.is_adopted else None
        return {"kind": kind, "name": name, "owner": owner, "spec": msgspec.to_builtins(VmSpec(image="tiny"))}

    def list(self, kind: str, **_: Any) -> Any:
        found = [self.get("vm", "old")] if kind == "vm" else []
        return SimpleNamespace(items=[*found, *(one for one in self.others if one["kind"] == kind)])

    def create(self, manifest: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        self._change("create", manifest["spec"]["template"], dry_run=dry_run)
        return manifest

    def verb(self, kind: str, name: str, verb: str, given: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        self._change(verb, given.get("template", {}), dry_run=dry_run)
        return {"kind": "snapshot", "name": "old-1"}

    def _change(self, verb: str, template: dict[str, Any], *, dry_run: bool) -> None:
        """As the server does: it refuses an image that isn't there, in a dry run, too."""
        if (image := template.get("image")) in self.missing:
            raise NotFound(f'image "{image}" not found')
        if not dry_run:
            self.verbs.append(verb)


class _Session:
    def __init__(self) -> None:
        self.client, self.said, self.recorder = _Client(), list[str](), None

    def notify(self, text: str) -> None:
        self.said.append(text)


def test_an_update_ends_with_the_wait_for_its_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = _Session()
    monkeypatch.setattr(vm_update, "read_workload_config", lambda *_: {"image": "tiny"})
    monkeypatch.setattr(vm_update, "read_strategy", lambda *_: {})
    monkeypatch.setattr(vm_update, "plan_wait", lambda *_: object())
    monkeypatch.setattr(vm_update, "follow_to_end", lambda *_: INTERRUPTED)
    given = {"config": "f", "dry_run": False, "replace_root_disk": False}
    assert vm_update._roll_out(session, "old", given, {}) == INTERRUPTED
    assert (session.client.verbs, session.said) == (["snapshot"], [])


def test_a_parallel_vm_has_a_name_of_its_own() -> None:
    session: Any = _Session()
    with pytest.raises(AlreadyExists, match='vm "new" exists already'):
        vm_update._deploy(session, None, ("new",), "old", config="f", dry_run=False)
    assert session.client.verbs == []


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ({"success_threshold": 1.0}, "--success-threshold: must be at least 50 % and less than 100 %"),
        ({"canary_steps": [0.5, 0.05]}, "--canary-percent: 1 to 20 shares are needed"),
        ({"max_surge": 0, "max_unavailable": 0, "type": "rolling"}, "--max-unavailable: with max_surge 0, too"),
        ({"type": "rolling", "canary_steps": [0.05]}, "--canary-percent has no effect on a rolling update"),
        ({"type": "canary", "traffic_split": 0.1}, "--traffic-split has no effect on a canary update"),
    ],
)
def test_a_strategy_that_is_wrong_is_refused_before_anything_changes(
    monkeypatch: pytest.MonkeyPatch, strategy: dict[str, Any], told: str
) -> None:
    session: Any = _Session()
    monkeypatch.setattr(vm_update, "read_workload_config", lambda *_: {"image": "tiny"})
    monkeypatch.setattr(vm_update, "read_strategy", lambda *_: {"type": "canary", **strategy})
    with pytest.raises((WeftError, click.UsageError)) as problem:
        vm_update._roll_out(session, "old", {"config": "f", "dry_run": False}, {})
    assert told in problem.value.message
    assert session.client.verbs == []


@pytest.mark.parametrize("is_adopted", [True, False])
def test_an_image_that_is_missing_leaves_neither_a_deployment_nor_a_snapshot(
    monkeypatch: pytest.MonkeyPatch, *, is_adopted: bool
) -> None:
    session: Any = _Session()
    session.client.missing, session.client.is_adopted = {"gone"}, is_adopted
    monkeypatch.setattr(vm_update, "read_workload_config", lambda *_: {"image": "gone"})
    monkeypatch.setattr(vm_update, "read_strategy", lambda *_: {})
    with pytest.raises(NotFound, match='image "gone" not found'):
        vm_update._roll_out(session, "old", {"config": "f", "dry_run": False, "replace_root_disk": True}, {})
    assert session.client.verbs == []


def test_a_vm_that_cannot_be_adopted_is_refused_with_the_reason() -> None:
    session: Any = _Session()
    with pytest.raises(IllegalTransition, match="vm/web belongs to lease/l, which decides what it runs"):
        vm_update._check_adoption(session, {"name": "web", "owner": {"kind": "lease", "name": "l"}, "spec": {}})
    with pytest.raises(IllegalTransition, match="vm/web is stopped"):
        vm_update._check_adoption(session, {"name": "web", "spec": {"run": "stop"}})
    session.client.others = [{"kind": "replication", "name": "copy", "spec": {"of": "vm/web"}}]
    with pytest.raises(IllegalTransition, match="vm/web is replicated by replication/copy"):
        vm_update._check_adoption(session, {"name": "web", "spec": {"run": "run"}})


def test_a_name_that_nothing_has_is_that_of_a_vm() -> None:
    session: Any = _Session()
    session.client.missing = {"nope"}
    with pytest.raises(NotFound, match='vm "nope"'):
        vm_update._find_deployment(session, "nope")


def test_a_flag_that_the_strategy_does_not_heed_is_refused_when_a_deployment_is_created_too() -> None:
    with pytest.raises(click.UsageError, match="--traffic-split has no effect on a rolling update"):
        check_strategy_flags({"traffic_split": 0.1}, "rolling")
    check_strategy_flags({"traffic_split": 0.1, "max_surge": 2}, "blue-green")


def test_a_vm_does_not_run_beside_itself() -> None:
    session: Any = _Session()
    with pytest.raises(click.UsageError, match="vm/old can't run beside itself"):
        vm_update._deploy(session, None, ("old",), "vm/old", config="f", dry_run=False)
