"""Stores that an older weft wrote are read: a server starts on one, and every object in it keeps what it said.

``stored/store-COMMIT.db.gz`` is the store of a server of that commit with two nodes, whose guests only pretended: VMs, a restart,
a stop, a snapshot, a restore, a clone, a migration, a drained node, a deployment's update, leases, backups, users, and so on."""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.cli_lab import Fabric

from weft.kinds.registry import BY_NAME

STORED = Path(__file__).parent / "stored"
NOT_APPLIED = {"allocation", "decision", "endpoint", "token"}  # weft writes these; a token is made with its secret


def read_store(path: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as store:
        rows = store.execute("SELECT value FROM latest JOIN version USING (key, position) WHERE value IS NOT NULL")
        found = [json.loads(value) for (value,) in rows]
        return [obj for obj in found if isinstance(obj, dict) and obj.get("kind") in BY_NAME]


@pytest.fixture(scope="module", params=sorted(STORED.glob("*.gz")), ids=lambda path: path.name)
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("older")
    (folder / "server").mkdir(mode=0o700)
    (folder / "server" / "store.db").write_bytes(gzip.decompress(request.param.read_bytes()))
    before = read_store(folder / "server" / "store.db")
    fabric = Fabric(folder)
    try:
        fabric.start_server()
        yield fabric, before
    finally:
        fabric.stop()


def list_kind(fabric: Fabric, kind: str, all_projects: bool) -> list[dict[str, Any]]:
    said = fabric.weft("get", kind, *(["-A"] if all_projects else []), "-o", "json")
    assert said.code == 0, said.err
    return list(json.loads(said.out)["items"])


def keeps(now: Any, before: Any) -> bool:
    """Whether ``now`` says what ``before`` said; a value that isn't set may be left out, and times are written for people."""
    if isinstance(before, dict):
        return isinstance(now, dict) and all(keeps(now.get(name), value) for name, value in before.items() if value)
    if isinstance(before, float) and isinstance(now, str):
        return abs(datetime.fromisoformat(now).timestamp() - before) < 0.001
    return bool(now == before)


def is_over(obj: dict[str, Any]) -> bool:
    """Whether it was only for a time that has passed since."""
    lease = obj["spec"].get("lease") if obj["kind"] == "allocation" else None
    return bool(lease and lease.get("end") and lease["end"] < time.time())


def test_no_object_of_it_is_lost_nor_any_field_of_a_spec(older: Any) -> None:
    fabric, before = older
    kinds = {obj["kind"]: obj["project"] is not None for obj in before}
    assert len(kinds) > 25
    now = {obj["uid"]: obj for kind, all_projects in kinds.items() for obj in list_kind(fabric, kind, all_projects)}
    # The token in the administrator's context file is replaced where that file is gone; a slot goes when its reservation ends.
    gone = [obj for obj in before if obj["uid"] not in now and not is_over(obj)]
    assert [obj["name"] for obj in gone if not obj["name"].startswith("admin-")] == []
    for obj in before:
        if (new := now.get(obj["uid"])) is not None:
            parts = {**new["spec"], **new.get("actions", {}), **new.get("marks", {})}
            lost = {name: value for name, value in obj["spec"].items() if value and not keeps(parts.get(name), value)}
            assert not lost, (obj["kind"], obj["name"], lost, parts)


def test_what_people_read_of_it_and_apply_changes_nothing(older: Any) -> None:
    fabric, before = older
    kinds = {obj["kind"]: obj["project"] is not None for obj in before if obj["kind"] not in NOT_APPLIED}
    for kind, all_projects in kinds.items():
        for obj in list_kind(fabric, kind, all_projects):
            project = ["-p", obj["project"]] if obj["project"] else []
            text = fabric.weft("get", f"{kind}/{obj['name']}", "-o", "yaml", *project).out
            said = fabric.weft("apply", "-f", "-", "--detach", *project, stdin=text)
            assert said.code == 0 and "unchanged" in said.out, (kind, obj["name"], said)
