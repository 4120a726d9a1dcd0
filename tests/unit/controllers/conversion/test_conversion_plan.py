"""What a Conversion does next, where the whole of the controllers would hide it: which image, which digest, and the way back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.conversion.facts import (
    ConversionFacts,
    HandoverFacts,
    KnownImage,
    PlacementAnswer,
    WorkloadFacts,
    is_well,
)
from weft.controllers.conversion.plan import STEADY_SECONDS, plan_conversion
from weft.controllers.conversion.prepare import choose_image
from weft.controllers.conversion.rollback import MOST_ENDS, RETURN_SECONDS
from weft.kinds.container import ContainerSpec
from weft.kinds.conversion import ConversionActions, ConversionSpec, ConversionStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VmSpec

ONE, OTHER = (f"sha256:{digit * 64}" for digit in "12")
WEB = "registry.example.org/shop/web"
SPEC = ConversionSpec(workload="container/web", to="vm")


def image(name: str, url: str, digest: str = "", phase: str = "Available") -> KnownImage:
    return KnownImage(name, url, phase, digest, "it broke")


def container(wish: dict[str, Any] | None = None, **side: Any) -> WorkloadFacts:
    spec = ContainerSpec(**{"image": f"{WEB}:1", **(wish or {})})
    status = WorkloadStatus(phase="Running", observed_generation=1)
    return WorkloadFacts(**{"what": "container/web", "spec": spec, "status": status, "generation": 1, **side})


FITS = PlacementAnswer(True, "n1")


def facts(**given: Any) -> ConversionFacts:
    return ConversionFacts(
        **{
            "spec": SPEC,
            "actions": ConversionActions(),
            "status": ConversionStatus(),
            "old": container(),
            "new": None,
            "mark": "ab12c",
            "answer": FITS,
            **given,
        }
    )


@pytest.mark.parametrize(
    ("images", "digest", "chosen"),
    [
        ([image("a", f"oci://{WEB}:9", ONE)], ONE, "a"),
        ([image("a", f"oci://{WEB}@{ONE}", phase="Fetching")], ONE, "a"),
        ([image("a", f"oci://{WEB}:1", OTHER)], ONE, None),  # its tag means another by now
        ([image("a", f"oci://{WEB}:1", ONE, "Failed")], ONE, None),
        ([image("a", "oci://other.example.org/shop/web:1", ONE)], ONE, None),
        ([image("a", f"https://{WEB}", ONE)], ONE, None),
        ([image("a", f"oci://{WEB}:2"), image("b", f"oci://{WEB}:1")], "", "b"),
    ],
)
def test_the_image_is_one_of_that_very_digest(images: list[KnownImage], digest: str, chosen: str | None) -> None:
    found = choose_image(tuple(images), f"{WEB}:1", digest)
    assert (found.name if found is not None else None) == chosen


def test_one_is_made_of_what_the_container_runs_and_opened_by_its_secret() -> None:
    outcome = plan_conversion(facts(old=container({"registry_secret": "hub"}, image=ONE)))
    assert outcome.image is not None
    name, spec = outcome.image
    assert (name, spec.url, spec.registry_secret) == ("web-ab12c", f"oci://{WEB}@{ONE}", "hub")
    assert (outcome.status.phase, outcome.status.image, outcome.status.made_image) == ("Preparing", name, True)
    assert outcome.old is None and outcome.make is None
    assert outcome.requeue_after == SPEC.timeout_seconds


def test_what_weft_holds_is_named_by_its_name_on_both_sides_and_must_be_the_same_still() -> None:
    held = image("busybox", "file:///srv/busybox.tar", ONE)
    outcome = plan_conversion(facts(old=container({"image": "busybox"}, image=ONE), images=(held,)))
    assert outcome.image is not None and outcome.image[1].url == "oci://busybox"
    made = image("web-ab12c", "oci://busybox", ONE)
    vm = WorkloadFacts(
        what="vm/web", spec=VmSpec(image=made.name), status=WorkloadStatus(phase="Running"), generation=1
    )
    back = facts(spec=ConversionSpec(workload="vm/web", to="container"), old=vm)
    outcome = plan_conversion(msgspec.structs.replace(back, images=(made, held)))
    assert isinstance(outcome.make, ContainerSpec) and outcome.make.image == "busybox"
    for others in ((made,), (made, image("busybox", "file:///srv/busybox.tar", OTHER))):
        outcome = plan_conversion(msgspec.structs.replace(back, images=others))
        assert (outcome.status.phase, outcome.status.reason) == ("Failed", "untranslatable")
        assert "busybox" in outcome.status.message and outcome.old is None


def test_an_image_of_another_project_is_copied_for_a_vm_and_a_vm_on_one_is_no_container() -> None:
    shared = image("physics/busybox", "", ONE)  # where it is from is not known here
    outcome = plan_conversion(facts(old=container({"image": "physics/busybox"}, image=ONE), images=(shared,)))
    assert outcome.image is not None and outcome.status.image == "web-ab12c"
    assert (outcome.image[1].url, outcome.image[1].registry_secret) == ("oci://physics/busybox", "")
    made = image("web-ab12c", "oci://physics/busybox", ONE)
    vm = WorkloadFacts(
        what="vm/web", spec=VmSpec(image=made.name), status=WorkloadStatus(phase="Running"), generation=1
    )
    back = facts(spec=ConversionSpec(workload="vm/web", to="container"), old=vm)
    outcome = plan_conversion(msgspec.structs.replace(back, images=(made, shared)))
    assert isinstance(outcome.make, ContainerSpec) and outcome.make.image == "physics/busybox"
    outcome = plan_conversion(msgspec.structs.replace(back, images=(made,)))  # not shared any more
    assert (outcome.status.phase, outcome.status.reason) == ("Failed", "untranslatable")
    foreign = msgspec.structs.replace(vm, spec=VmSpec(image="physics/disk"))
    known = image("physics/disk", f"oci://{WEB}:1", ONE)
    outcome = plan_conversion(msgspec.structs.replace(back, old=foreign, images=(known,)))
    assert (outcome.status.phase, outcome.status.reason) == ("Failed", "notOci")
    assert "of another project" in outcome.status.message and WEB not in outcome.status.message


def test_an_image_that_failed_ends_it_and_goes_if_it_was_made_for_it() -> None:
    for made in (True, False):
        status = ConversionStatus(phase="Preparing", began_at=0.0, image="i", made_image=made)
        outcome = plan_conversion(facts(status=status, images=(image("i", f"oci://{WEB}:1", phase="Failed"),)))
        assert (outcome.status.phase, outcome.status.reason) == ("Failed", "imageFailed")
        assert "it broke" in outcome.status.message
        assert outcome.image_goes is made


def test_the_old_one_is_stopped_only_in_the_commit_that_makes_the_new_one() -> None:
    old = container({"mounts": ["data:/srv"], "publish": ["80:80"], "affinity_groups": ["g"]})
    outcome = plan_conversion(facts(old=old, images=(image("i", f"oci://{WEB}:1", ONE),), uid="fresh"))
    assert (outcome.status.phase, outcome.status.digest, outcome.status.new_uid) == ("Stopping", ONE, "fresh")
    assert outcome.old is not None and outcome.old.run == "stop"
    made = outcome.make
    assert isinstance(made, VmSpec)
    assert (made.run, made.volumes, made.networks, made.publish, made.affinity_groups) == ("stop", [], [], [], [])
    assert "mount data:/srv" in made.user_data


def test_nothing_is_touched_before_the_scheduler_has_a_node_for_what_would_be_made() -> None:
    old = container({"mounts": ["data:/srv"], "publish": ["80:80"]})
    known = facts(old=old, images=(image("i", f"oci://{WEB}:1", ONE),), answer=None)
    asked = plan_conversion(known)
    assert isinstance(asked.asks, VmSpec) and asked.asks.volumes == ["data"]
    waits = plan_conversion(msgspec.structs.replace(known, status=asked.status, answer=PlacementAnswer(False)))
    no = PlacementAnswer(True, "", "insufficientResources", "needs much")
    refused = plan_conversion(msgspec.structs.replace(known, status=asked.status, answer=no))
    for outcome in (asked, waits, refused):
        assert (outcome.old, outcome.make) == (None, None)
    assert (waits.asks, waits.status.phase) == (None, "Preparing")
    assert (refused.status.phase, refused.status.reason) == ("Failed", "insufficientResources")
    assert "no node can take vm/web: needs much" in refused.status.message


def test_what_rests_is_converted_without_a_question() -> None:
    old = container({"run": "stop"})
    outcome = plan_conversion(facts(old=old, images=(image("i", f"oci://{WEB}:1", ONE),), answer=None))
    assert outcome.asks is None and outcome.make is not None


def stopping(place: HandoverFacts) -> ConversionFacts:
    status = ConversionStatus(
        phase="Stopping", began_at=0.0, was="run", image="i", digest=ONE, new_uid="n", new="vm/web"
    )
    old = container({"mounts": ["data:/srv"], "publish": ["80:80"], "run": "stop"}, places=(place,))
    new = WorkloadFacts(
        what="vm/web", spec=VmSpec(image="i", run="stop", networks=[]), status=WorkloadStatus(), generation=1
    )
    return facts(status=status, old=old, new=new, images=(image("i", f"oci://{WEB}:1", ONE),), now=5.0)


def test_nothing_is_handed_over_before_the_old_one_rests() -> None:
    outcome = plan_conversion(stopping(HandoverFacts(rests=False, holds=True)))
    assert (outcome.status.phase, outcome.claims, outcome.old, outcome.new) == ("Stopping", "", None, None)


def test_the_new_one_starts_only_when_the_old_one_s_place_has_let_go() -> None:
    before = stopping(HandoverFacts(rests=True, holds=True))
    assert before.old is not None and before.new is not None
    status = msgspec.structs.replace(before.status, phase="HandingOver", kept={"mounts": ["data:/srv"]})
    waiting = plan_conversion(msgspec.structs.replace(before, status=status))
    assert (waiting.status.phase, waiting.new) == ("HandingOver", None)
    free = msgspec.structs.replace(before.old, places=(HandoverFacts(rests=True, holds=False),))
    outcome = plan_conversion(msgspec.structs.replace(before, status=status, old=free))
    assert outcome.status.phase == "Starting"
    assert outcome.new is not None and outcome.new.run == "run"


def test_what_the_old_one_loses_the_new_one_gets_and_the_way_back_is_its_reverse() -> None:
    before = stopping(HandoverFacts(rests=True, holds=True))
    assert before.old is not None and before.new is not None
    outcome = plan_conversion(before)
    old, new, status = outcome.old, outcome.new, outcome.status
    assert isinstance(old, ContainerSpec) and isinstance(new, VmSpec)
    assert (status.phase, status.stopped_at, outcome.claims) == ("HandingOver", 5.0, "new")
    assert (old.mounts, old.networks, old.publish) == ([], [], [])
    assert (new.volumes, new.networks, new.publish, new.run) == (["data"], ["default"], ["80:80"], "stop")
    after = msgspec.structs.replace(
        before,
        actions=ConversionActions(undo=True),
        status=status,
        old=msgspec.structs.replace(before.old, spec=old),
        new=msgspec.structs.replace(before.new, spec=new),
    )
    back = plan_conversion(after)
    assert (back.status.phase, back.status.kept, back.claims) == ("Undoing", None, "old")
    assert back.old == before.old.spec
    assert isinstance(back.new, VmSpec) and (back.new.volumes, back.new.networks) == ([], [])


def starting(now: float, **status: Any) -> ConversionFacts:
    before = stopping(HandoverFacts(rests=True, holds=False))
    assert before.new is not None
    known = msgspec.structs.replace(before.status, phase="Starting", kept={"mounts": ["data:/srv"]})
    new = msgspec.structs.replace(
        before.new, status=WorkloadStatus(**{"phase": "Running", "observed_generation": 1, **status})
    )
    return msgspec.structs.replace(before, status=known, new=new, now=now)


def test_it_is_said_to_run_when_it_has_for_a_moment_and_the_pause_is_told_without_that() -> None:
    first = plan_conversion(starting(7.0))
    assert (first.status.phase, first.status.running_at, first.requeue_after) == ("Starting", 7.0, STEADY_SECONDS)
    later = msgspec.structs.replace(starting(7.0 + STEADY_SECONDS), status=first.status)
    done = plan_conversion(later)
    assert (done.status.phase, done.status.running_at) == ("AwaitingConfirmation", 7.0)
    begun_again = msgspec.structs.replace(starting(7.0 + STEADY_SECONDS, restarts=1), status=first.status)
    assert plan_conversion(begun_again).status.phase == "Starting"
    down = plan_conversion(msgspec.structs.replace(starting(8.0, phase="Failed"), status=first.status))
    assert (down.status.phase, down.status.running_at) == ("Starting", None)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"phase": "Stopped", "ended": True, "exit_code": 3}, "vm/web ended on its own, exit code 3"),
        ({"restarts": MOST_ENDS, "message": "exit code 3"}, "vm/web has ended on its own 3 times: exit code 3"),
    ],
)
def test_one_that_ends_at_once_goes_back(told: dict[str, Any], said: str) -> None:
    outcome = plan_conversion(starting(6.0, **told))
    assert (outcome.status.phase, outcome.status.ending, outcome.status.reason) == ("Undoing", "Failed", "ended")
    assert outcome.status.message == said
    assert outcome.new is not None and outcome.new.run == "stop"


def returned(now: float, **status: Any) -> ConversionFacts:
    known = ConversionStatus(
        phase="Undoing", began_at=0.0, was="run", new_uid="n", new="vm/web", ending="Undone", returned_at=5.0
    )
    old = container(status=WorkloadStatus(**{"phase": "Boot", "observed_generation": 1, **status}))
    return facts(status=known, old=old, now=now)


def test_it_has_gone_back_when_the_old_one_runs_again_or_clearly_does_not() -> None:
    outcome = plan_conversion(returned(6.0))
    assert (outcome.status.phase, outcome.requeue_after) == ("Undoing", RETURN_SECONDS - 1.0)
    assert plan_conversion(returned(6.0, phase="Running")).status.phase == "Undone"
    failed = plan_conversion(returned(6.0, phase="Failed", reason="imageFailed")).status
    late = plan_conversion(returned(5.0 + RETURN_SECONDS, reason="starting")).status
    told = plan_conversion(returned(6.0, phase="Failed", reason="imageFailed", message="no such image")).status
    for status, why in (
        (failed, "it is Failed: imageFailed"),
        (told, "it is Failed: no such image"),
        (late, "it is booting: starting"),
    ):
        assert status.phase == "Undone" and f"container/web has not recovered: {why}" in status.message


def test_well_is_what_runs_answers_and_is_healthy_where_somebody_asks() -> None:
    assert is_well(container())
    assert is_well(container(healthy=True))
    assert not is_well(container(healthy=False))
    assert not is_well(container(generation=2))  # it hasn't been looked at since it was asked to start
    assert not is_well(container(status=WorkloadStatus(phase="Boot", observed_generation=1)))
    assert not is_well(container(status=WorkloadStatus(phase="Running", observed_generation=1, ready=False)))


def test_a_clock_that_was_set_back_does_not_make_it_wait_for_ever() -> None:
    waiting = stopping(HandoverFacts(rests=False, holds=True))
    late = msgspec.structs.replace(waiting, status=msgspec.structs.replace(waiting.status, began_at=9e9))
    outcome = plan_conversion(late)
    assert outcome.status.began_at == 5.0
    assert outcome.requeue_after == SPEC.timeout_seconds
