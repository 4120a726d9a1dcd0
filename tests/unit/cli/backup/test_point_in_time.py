"""A point in time is the newest good backup at that instant or before it, and people are told how far that is off."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from weft.cli.backup import project
from weft.cli.backup.moment import choose, describe_grain, name_all, name_restored
from weft.cli.backup.project import choose_subjects, name_part
from weft.cli.output.local_time import read_past
from weft.kinds.backup import SET
from weft.objects.errors import AlreadyExists, NotFound

AT = 1733758200.0  # 2024-12-09 15:30:00 UTC


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def backup(taken: float, of: str = "vm/shop", **more: Any) -> dict[str, Any]:
    status = {"phase": "Ready", "state": "unproven", "taken_at": AT + taken, **more.pop("status", {})}
    spec, marks = {"of": of, "to": "safe"}, {"policy": more.pop("policy", "")}
    return {"name": f"{of[3:]}{taken:g}", "spec": spec, "marks": marks, "status": status, **more}


def test_the_newest_at_or_before_is_chosen_and_its_grain_told() -> None:
    chosen = choose([backup(3598), backup(-2), backup(-3602)], "vm/shop", (), AT)
    (choice,) = chosen.choices
    assert choice.backup["name"] == "shop-2" and chosen.left_out == []
    assert describe_grain(choice, AT) == (
        "2024-12-09 15:29:58 UTC, 2 s before; the next backup is of 2024-12-09 16:29:58 UTC"
    )
    (exact,) = choose([backup(0)], "shop", (), AT).choices
    assert describe_grain(exact, AT) == "2024-12-09 15:30:00 UTC, as asked; there is no later backup"
    (newest,) = choose([backup(-9000), backup(-7322)], "shop", (), None).choices
    assert describe_grain(newest, None) == "2024-12-09 13:27:58 UTC"
    assert "2h2m before" in describe_grain(newest, AT)


def test_one_that_is_damaged_failed_or_deleted_is_not_chosen() -> None:
    bad = [
        backup(-1, status={"state": "damaged"}),
        backup(-2, status={"phase": "Failed"}),
        backup(-3, deleting_since=AT),
        backup(-1, status={"state": "failed"}),  # it does not boot
        backup(-4, status={"phase": "Copying", "taken_at": None}),
    ]
    (choice,) = choose([*bad, backup(-5)], "vm/shop", (), AT).choices
    assert choice.backup["name"] == "shop-5"
    with pytest.raises(NotFound, match="vm/shop has no backup that is Ready, undamaged"):
        choose(bad[:2], "vm/shop", (), AT)


def test_a_time_before_all_backups_is_refused_with_the_first_one() -> None:
    with pytest.raises(
        NotFound, match=r"at or before 2024-12-09 15:30:00 UTC: its first is of 2024-12-09 15:30:01 UTC"
    ):
        choose([backup(1), backup(2)], "vm/shop", (), AT)
    with pytest.raises(NotFound, match="no backups of vm/cart"):
        choose([backup(-1)], "vm/cart", (), AT)


def test_a_policy_means_all_that_it_backed_up_and_what_came_later_is_left_out() -> None:
    made = [backup(-9, "vm/shop", policy="app"), backup(-8, "vm/db", policy="app"), backup(4, "vm/new", policy="app")]
    chosen = choose([*made, backup(-1, "vm/app")], "app", {"app"}, AT)
    assert {one.of for one in chosen.choices} == {"vm/shop", "vm/db"}
    assert len(chosen.left_out) == 1 and chosen.left_out[0].startswith("vm/new has no backup at or before")
    shop = chosen.choices[0]
    assert name_restored(shop, "", (), is_alone=False) == "shop"
    assert name_restored(shop, "", {"vm/shop"}, is_alone=False) == "shop-20241209-152951"
    assert name_restored(shop, "old", {"vm/shop"}, is_alone=False) == "old-shop"
    assert name_restored(shop, "old", {"vm/shop"}, is_alone=True) == "old"


def test_a_local_time_is_read_by_the_clock_of_that_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "Europe/Berlin")
    time.tzset()
    summer = 1751328000.0
    assert read_past("2024-12-09 16:30:00", summer) == AT == read_past("2024-12-09T15:30:00Z", summer)


def test_a_backup_of_a_project_is_one_of_each_thing_with_data_and_restored_together() -> None:
    items = [
        {"kind": "vm", "name": "shop", "status": {"incarnation": 1}},
        {"kind": "vm", "name": "never-placed", "status": {"phase": "Pending", "incarnation": 0}},
        {"kind": "vm", "name": "old", "deleting_since": AT},
        {"kind": "container", "name": "db", "spec": {"mounts": ["data:/data"]}, "status": {"incarnation": 2}},
        {"kind": "container", "name": "waits", "spec": {"mounts": ["lone:/data"]}, "status": {"phase": "Pending"}},
        {"kind": "container", "name": "web", "spec": {}},
        {"kind": "volume", "name": "data", "status": {"node_uid": "n", "attached_to": {"kind": "container"}}},
        {"kind": "volume", "name": "lone", "status": {"node_uid": "n"}},
        {"kind": "volume", "name": "new", "status": {}},
        {
            "kind": "vm",
            "name": "test-monday-8941ed34",
            "owner": {"kind": "backup", "name": "monday", "uid": "u", "project": "default"},
            "status": {"incarnation": 1},
        },
        {"kind": "volume", "name": "sealed", "spec": {"encrypted": True}, "status": {"node_uid": "u"}},
        {"kind": "vm", "name": "safe", "spec": {"volumes": ["lone", "sealed"]}, "status": {"incarnation": 1}},
    ]
    subjects, left_out = choose_subjects(items)
    assert subjects == [("vm", "shop"), ("container", "db"), ("volume", "lone")]
    assert [line.partition(":")[0] for line in left_out] == [
        "vm/never-placed",
        "container/waits",
        "container/web",
        "volume/new",
        "volume/sealed",
        "vm/safe",
    ]
    assert left_out[-1] == "vm/safe: it has the encrypted volume sealed, and encrypted volumes can't be backed up"
    assert [name_part("monday", *one) for one in subjects] == [
        "monday-shop",
        "monday-container-db",
        "monday-volume-lone",
    ]
    made = [backup(-9, "vm/shop", labels={SET: "monday"}), backup(-8, "volume/lone", labels={SET: "monday"})]
    assert {one.of for one in choose([*made, backup(-1)], "monday", {"monday"}, None).choices} == {
        "vm/shop",
        "volume/lone",
    }


LONG = "shop-of-the-north-of-the-country-with-a-long-name"  # as long as most get


def test_names_that_begin_alike_stay_different_and_fit() -> None:
    subjects = [("vm", f"{LONG}-1"), ("vm", f"{LONG}-2"), ("project", "default")]
    names = list(project.name_all("before-upgrade", subjects, ()).values())
    assert len(set(names)) == 3 and max(map(len, names)) <= 63 and names[-1] == "before-upgrade"
    chosen = choose([backup(-1, f"vm/{LONG}-{number}", policy="all") for number in (1, 2)], "all", {"all"}, AT)
    restored = name_all(chosen.choices, "copy-of-tuesday", ())
    assert len(set(restored.values())) == 2 and max(map(len, restored.values())) <= 63


def test_a_name_that_is_taken_is_refused_before_anything_is_made() -> None:
    with pytest.raises(AlreadyExists, match="backup vm3 exists already") as refused:
        project.name_all("vm3", [("vm", "hello"), ("project", "default")], {"vm3"})
    assert refused.value.hint == "give another --name"
    chosen = choose([backup(-1, of, policy="all") for of in ("vm/shop", "vm/web")], "all", {"all"}, AT)
    with pytest.raises(AlreadyExists, match="vm/copy-web exists already"):
        name_all(chosen.choices, "copy", {"vm/copy-web"})
    assert name_all(chosen.choices, "", {"vm/web"}) == {"vm/shop": "shop", "vm/web": "web-20241209-152959"}
