"""Reservations at the real API: what is refused and why, what counts in a quota, and what keeps one from being deleted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from tests.scenario.api.test_api_quotas import change_status, grant, refuse, remove, vm
from tests.scenario.api_lab import ApiLab
from tests.scenario.people.test_people import add_user, create, log_in

from weft.contracts.clock import SystemClock
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.reservation import ReservationStatus
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, InUse, InvalidInput, NotFound, WeftError
from weft.objects.quantity import format_moment
from weft.store.sqlite.store import SqliteStore


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    folder = tmp_path_factory.mktemp("reservations")
    lab = ApiLab(folder, SqliteStore(folder / "store.db", SystemClock()))
    yield lab
    lab.close()


def reservation(name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": "reservation", "name": name, "spec": {"cpu": 2, "memory": "2G", "duration": "1h", **spec}}


@pytest.mark.parametrize(
    ("spec", "field", "part"),
    [
        ({"start": "2020-01-01T00:00:00Z"}, "spec.start", " ago"),
        ({"start": "2999-01-01T00:00:00Z"}, "spec.start", "more than two years ahead"),
        ({"duration": "0s"}, "spec.duration", "not between a second and a year"),
        ({"duration": "3650d"}, "spec.duration", "not between a second and a year"),
        ({"duration": "-5m"}, "spec.duration", ""),
        ({"duration": None}, "spec.duration", "a reservation needs this or spec.end"),
        ({"end": "2999-01-01T00:00:00Z"}, "spec.duration", "give either this or spec.end"),
        ({"duration": None, "end": "2020-01-01T00:00:00Z"}, "spec.end", "give a later end"),
        ({"cpu": 0}, "spec.cpu", "must be more than 0"),
        ({"cpu": 300}, "spec.cpu", "not between 0 and 255 cores"),
        ({"memory": 0}, "spec.memory", "not between 1M and 64T"),
        ({"count": 0}, "spec.count", ""),
        ({"count": 65}, "spec.count", ""),
        ({"grace": "2h"}, "spec.grace", "not between 0 and an hour"),
        ({"gpu_models": ["T4"]}, "spec.gpus", "add gpus: 1"),
        ({"node": "nowhere"}, "spec.node", 'node "nowhere" not found'),
        ({"constraint": "@none"}, "spec.constraint", 'constraint "none" not found'),
        ({"constraint": "cpu >"}, "spec.constraint", ""),
        ({"cores": 2}, "spec.cores", ""),
    ],
)
def test_bad_input_names_the_field_and_leaves_nothing(lab: ApiLab, spec: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(WeftError) as caught:
        lab.client.create(reservation("wrong", **spec))
    error = caught.value
    assert error.field == field and part in f"{error.message} {error.hint}", error
    assert [one for one in lab.client.list("reservation").items if one["name"] == "wrong"] == []


def test_what_does_not_go_with_a_reservation_is_refused_by_field(lab: ApiLab) -> None:
    ann = grant(lab, "goes-with")
    ann.create(reservation("class", cpu=2, memory="1G"))
    for spec, field, part in (
        ({"reservation": "clas"}, "spec.reservation", "did you mean class?"),
        ({"reservation": "class", "lease": {"duration": "1h"}}, "spec.lease", "until that ends"),
        (
            {"reservation": "class", "cpu": 3},
            "spec.cpu",
            "3 cores is more than a slot of reservation/class has, 2 cores",
        ),
        ({"reservation": "class", "memory": "2G"}, "spec.memory", "2.0 GiB is more than a slot"),
        ({"reservation": "class", "gpus": 1}, "spec.gpus", "1 GPUs is more than a slot"),
    ):
        with pytest.raises(WeftError) as caught:
            ann.create(vm("web", **spec))
        assert caught.value.field == field and part in f"{caught.value.message} {caught.value.hint}", caught.value
    task: dict[str, Any] = {"networks": [], "image": "registry.example.org/work:1", "cpu": 4, "reservation": "class"}
    with pytest.raises(WeftError) as caught:
        ann.create({"kind": "job", "name": "work", "spec": {"task": task}})
    assert caught.value.field == "spec.task.cpu" and "slot of reservation/class" in caught.value.message
    ann.create({"kind": "job", "name": "work", "spec": {"task": {**task, "cpu": 1}}})
    ann.create({"kind": "job", "name": "together", "spec": {"gang": True, "task": {**task, "cpu": 1}}})


def test_a_reservation_of_another_project_is_not_found(lab: ApiLab) -> None:
    ann, bob = grant(lab, "anns"), grant(lab, "bobs")
    ann.create(reservation("mine"))
    with pytest.raises(NotFound) as caught:
        bob.create(vm("web", reservation="mine"))
    assert caught.value.field == "spec.reservation" and "not found in project bobs" in caught.value.message
    assert "mine" not in (caught.value.hint or "")
    viewer = lab.with_token(use="access", role="viewer", project="anns")
    viewer.project = "anns"
    assert [one["name"] for one in viewer.list("reservation").items] == ["mine"]
    for attempt in (partial(viewer.create, reservation("theirs")), partial(viewer.delete, "reservation", "mine")):
        with pytest.raises(WeftError) as refused:
            attempt()
        assert refused.value.token == "forbidden"


def test_one_that_is_over_or_refused_takes_no_workload(lab: ApiLab) -> None:
    ann = grant(lab, "over")
    for state, part in (("Done", "ended at 2023-11-14"), ("Rejected", "was refused: no node has 2 cores")):
        name = state.lower()
        ann.create(reservation(name))
        end = 1.7e9 if state == "Done" else None
        message = "" if end else "no node has 2 cores"
        change_status(lab, ann, "reservation", name, ReservationStatus(state=state, end=end, message=message))
        with pytest.raises(WeftError) as caught:
            ann.create(vm("web", reservation=name))
        assert caught.value.field == "spec.reservation" and part in caught.value.message


def test_one_that_was_refused_gives_its_name_to_the_next_that_its_creator_makes(lab: ApiLab) -> None:
    ann = grant(lab, "again", cpu=4)
    made = ann.create(reservation("class", cpu=4))
    with pytest.raises(AlreadyExists):
        ann.create(reservation("class", cpu=1))
    change_status(lab, ann, "reservation", "class", ReservationStatus(state="Rejected", message="no node has 4 cores"))
    bob = lab.with_token(use="access", role="editor", project="again")
    bob.project = "again"
    with pytest.raises(AlreadyExists):
        bob.create(reservation("class", cpu=1))
    with pytest.raises(InvalidInput, match='reservation "class" was refused') as changed:
        ann.apply([{**reservation("class", cpu=1), "project": "again"}])
    assert "weft reservation create class … replaces it; or weft delete reservation/class" in str(changed.value.hint)
    refuse(lambda: ann.create(reservation("class", cpu=5)))
    assert ann.get("reservation", "class")["status"]["state"] == "Rejected"
    again = ann.create(reservation("class", cpu=3))
    assert (again["uid"], again["generation"], again["spec"]["cpu"]) == (made["uid"], 2, 3.0)
    assert (again["status"]["state"], again["status"]["message"], again.get("conditions") or []) == (
        "Requested",
        "",
        [],
    )
    refuse(lambda: ann.create(reservation("more", cpu=2)))
    ann.create(reservation("more", cpu=1))


def test_a_vm_whose_lease_was_refused_gives_its_name_and_its_ports_to_the_next(lab: ApiLab) -> None:
    ann = grant(lab, "refused-vm", cpu=5)
    lab.client.apply(
        [{"kind": "network", "name": "default", "project": "refused-vm", "spec": {"cidr": "10.77.0.0/24"}}]
    )
    spec = {
        "networks": ["default"],
        "publish": ["18080:80", "18081:81"],
        "lease": {"mode": "immediate", "duration": "1h"},
    }
    ann.create(vm("large", cpu=3, **spec))

    def turn_down(incarnation: int = 0) -> None:
        envelope = lab.stored("/vm/refused-vm/large")
        assert envelope is not None
        placed = Condition("Placed", "False", "leaseConflict", "no node has 3 free cores", 1.7e9, envelope.generation)
        set_condition(envelope, placed)
        envelope.status = merge_part(envelope.status, WorkloadStatus(phase="Rejected", incarnation=incarnation))
        lab.put(envelope)

    turn_down(incarnation=1)  # it ran once, and has disks
    with pytest.raises(AlreadyExists):
        ann.create(vm("large", cpu=1, **spec))
    turn_down()
    again = ann.create(vm("large", cpu=4, **{**spec, "publish": ["18080:80"]}))
    assert (again["status"]["phase"], again["spec"]["cpu"], again["generation"]) == ("Pending", 4.0, 2)
    ann.create(vm("other", cpu=1, networks=["default"], publish=["18081:81"]))
    with pytest.raises(AlreadyExists):
        ann.create(vm("large", cpu=1, **spec))


def test_it_counts_in_its_quota_whole_and_its_workloads_cores_and_memory_not_again(lab: ApiLab) -> None:
    ann = grant(lab, "counted", cpu=5, memory="5G", instances=3, disk="20G")
    ann.create(reservation("class", cpu=2, memory="2G", count=2))
    error = refuse(lambda: ann.create(reservation("more", cpu=1, memory="1M", count=2)))
    assert "cpu: 4 of 5 cores used, 2 more requested" in error.message and error.field == "spec.cpu"
    for name in ("a", "b"):
        ann.create(vm(name, cpu=2, memory="2G", reservation="class"))
    ann.create(vm("beside", cpu=1, memory="512M"))
    error = refuse(lambda: ann.create(vm("c", cpu=1, memory="128M", reservation="class")))
    assert error.message.startswith("project counted: instances: 3 of 3 used")
    remove(lab, ann, "vm", "beside")
    refuse(lambda: ann.create(vm("d", cpu=2, memory="128M")))
    change_status(lab, ann, "reservation", "class", ReservationStatus(state="Done", end=1.7e9))
    ann.create(vm("d", cpu=5, memory="128M"))  # what has ended counts no more


def test_it_is_deleted_only_when_nobody_names_it(lab: ApiLab) -> None:
    ann = grant(lab, "used")
    ann.create(reservation("class"))
    ann.create(vm("web", reservation="class"))
    with pytest.raises(InUse) as caught:
        ann.delete("reservation", "class")
    assert "in use by vm/web" in caught.value.message
    change_status(lab, ann, "vm", "web", WorkloadStatus(phase="Running", node="n1"))
    with pytest.raises(IllegalTransition) as stays:
        ann.verb("vm", "web", "migrate", {})
    assert stays.value.token == "inReservation" and "reservation/class" in stays.value.message
    remove(lab, ann, "vm", "web")
    ann.delete("reservation", "class")


def test_only_its_description_and_its_end_can_be_changed(lab: ApiLab) -> None:
    ann = grant(lab, "fixed")
    ann.create(reservation("class"))
    ann.patch("reservation", "class", {"spec": {"description": "for the class"}})
    for spec, part in (
        ({"cpu": 4}, "cpu"),
        ({"start": "2030-01-01T00:00:00Z"}, "can never change"),
        ({"duration": "30m"}, "30m is less than it has, 1h"),
        ({"duration": None, "end": "2030-01-01T00:00:00Z"}, "has duration instead"),
        ({"duration": "367d"}, "not between a second and a year"),
    ):
        with pytest.raises(WeftError) as caught:
            ann.patch("reservation", "class", {"spec": spec})
        assert part in caught.value.message, caught.value.message
    ann.patch("reservation", "class", {"spec": {"duration": "90m"}})
    assert ann.get("reservation", "class")["spec"]["duration"] == 5400.0


def test_an_extension_is_a_time_of_a_second_to_a_year_and_relies_on_its_quota(lab: ApiLab) -> None:
    ann = grant(lab, "longer", cpu=4, memory="4G")
    ann.create(reservation("class"))
    ann.create(reservation("until", duration=None, end=format_moment(time.time() + 3600)))
    assert ann.verb("reservation", "class", "extend", {"by": "30m"})["spec"]["duration"] == 5400.0
    until = ann.get("reservation", "until")["spec"]["end"]
    later = ann.verb("reservation", "until", "extend", {"by": "1d"})["spec"]
    assert (later["end"], later["duration"]) == (until + 86400.0, None)
    for by, part in (
        (0, "less than a second"),
        (-60.0, ""),
        ("-5m", ""),
        ("366d", "a reservation lasts a year at most"),
        (1e300, ""),
        ("soon", ""),
        (None, ""),
    ):
        with pytest.raises(InvalidInput) as caught:
            ann.verb("reservation", "class", "extend", {"by": by})
        error = caught.value
        assert error.field in ("by", "input.by") and error.hint and part in f"{error.message} {error.hint}", error
    with pytest.raises(InvalidInput) as caught:
        ann.verb("reservation", "class", "extend", {})
    assert caught.value.field == "input.by"
    for state in ("Done", "Rejected"):
        change_status(lab, ann, "reservation", "class", ReservationStatus(state=state, message="no node"))
        with pytest.raises(IllegalTransition) as over:
            ann.verb("reservation", "class", "extend", {"by": "30m"})
        assert over.value.token == "leaseOver"
    viewer = lab.with_token(use="access", role="viewer", project="longer")
    viewer.project = "longer"
    with pytest.raises(Forbidden):
        viewer.verb("reservation", "until", "extend", {"by": "30m"})


def test_one_for_a_group_takes_no_workload_of_anybody_else(lab: ApiLab) -> None:
    admin = grant(lab, "lecture")
    create(lab, "group", "students")
    for name, groups in (("sue", ["students"]), ("tom", [])):
        add_user(lab, name, groups=groups)
    create(lab, "rolebinding", "lecture", role="editor", project="lecture", users=["sue", "tom"])
    sue, tom = log_in(lab, "sue"), log_in(lab, "tom")
    sue.project = tom.project = "lecture"
    admin.create(reservation("class", groups=["students"]))
    sue.create(vm("hers", reservation="class"))
    tom.create(vm("his"))
    task = {"networks": [], "image": "registry.example.org/work:1", "reservation": "class"}
    for attempt in (
        partial(tom.create, vm("theirs", reservation="class")),
        partial(tom.patch, "vm", "his", {"spec": {"reservation": "class"}}),
        partial(tom.create, {"kind": "job", "name": "work", "spec": {"task": task}}),
        partial(admin.create, vm("theirs", reservation="class")),
    ):
        with pytest.raises(Forbidden) as caught:
            attempt()
        assert "is for users of students" in caught.value.message
    sue.create({"kind": "job", "name": "work", "spec": {"task": task}})
    tom.patch("vm", "hers", {"labels": {"seen": "yes"}})
    with pytest.raises(InUse):
        lab.client.delete("group", "students")
    admin.patch("reservation", "class", {"spec": {"groups": []}})
    tom.create(vm("theirs", reservation="class"))
    for groups, part in ((["nobody"], 'group "nobody" not found'), (["students", "students"], "given twice")):
        with pytest.raises(WeftError) as refused:
            admin.create(reservation("wrong", groups=groups))
        assert part in refused.value.message and refused.value.field == "spec.groups"
