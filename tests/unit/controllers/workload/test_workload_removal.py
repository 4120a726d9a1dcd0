"""When a deleted VM may go: not while a node that hasn't spoken since a restore may have its guest."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.store import Delete, Write
from weft.controllers.workload.controller import CHECK_EVERY_SECONDS, Workloads
from weft.informer.view import View, make_view
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, encode_envelope

KEY = "/vm/default/web"


def view_of(*, deleting: bool) -> View:
    view = make_view()
    spec = msgspec.Raw(msgspec.json.encode(VmSpec(image="tiny")))
    vm = Envelope(kind="vm", name="web", uid="w", project="default", spec=spec, finalizers=["workload"])
    vm.deleting_since = 5.0 if deleting else None
    view.put(KEY, encode_envelope(vm), 3)
    return view


def writes_of(view: View, silent: list[str]) -> tuple[list[Write], float | None]:
    plan = Workloads(lambda: silent).plan(view, [KEY], 9.0)
    return [write for commit in plan.commits for write in commit.writes], plan.later.get(KEY)


@pytest.mark.parametrize("silent", [["n1"], ["n1", "n2"]], ids=str)
def test_a_deleted_vm_stays_while_nodes_are_silent_and_is_looked_at_again(silent: list[str]) -> None:
    view = view_of(deleting=True)
    assert Delete(KEY) not in writes_of(view, silent)[0]
    written, later = writes_of(view, [])
    assert Delete(KEY) in written and later is None


def test_it_is_looked_at_again_although_nothing_changes_when_they_speak() -> None:
    view = view_of(deleting=True)
    for _ in range(2):
        plan = Workloads(lambda: ["n1"]).plan(view, [KEY], 9.0)
        for write in (write for commit in plan.commits for write in commit.writes):
            assert not isinstance(write, Delete)
            view.put(write.key, write.value, 4)
    assert plan.later == {KEY: CHECK_EVERY_SECONDS}


def test_a_vm_that_is_not_deleted_is_never_removed() -> None:
    assert Delete(KEY) not in writes_of(view_of(deleting=False), [])[0]
