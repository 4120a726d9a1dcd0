"""A project's history goes with it: ended migrations and conversions, and the decisions that belong to them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab

from weft.client.http import Http
from weft.contracts.clock import SystemClock
from weft.contracts.store import MAX_WRITES, Delete, Precondition, Put, Write
from weft.kinds.conversion import CONVERSION, ConversionSpec, ConversionStatus
from weft.kinds.decision import DECISION, DecisionSpec
from weft.kinds.migration import MIGRATION, MigrationArrival, MigrationSpec, MigrationStatus
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.errors import InUse, Unavailable, WeftError
from weft.objects.identity import Ref
from weft.store.memory import MemoryStore
from weft.telemetry.audit.files import read_after
from weft.trust.audit_chain import read_record

PATH = "/v1/projects/physics"
KEY = "/project/-/physics"


class MeddledStore(MemoryStore):
    """``meddle`` is called before each commit that takes away a Migration or a Decision."""

    meddle: Callable[[], Awaitable[None]] | None = None

    async def commit(self, writes: Sequence[Write], preconditions: Sequence[Precondition] = (), **more: Any) -> int:
        goes = {one.key.split("/")[1] for one in writes if isinstance(one, Delete)}
        if self.meddle is not None and goes & {"migration", "decision"}:
            await self.meddle()
        return await super().commit(writes, preconditions, **more)


class Lab(ApiLab):
    store: MeddledStore

    def keep(self, *envelopes: Envelope) -> None:
        for start in range(0, len(envelopes), MAX_WRITES):
            self.put(*envelopes[start : start + MAX_WRITES])

    def left(self) -> list[str]:
        """The keys of the project and of all that is in it."""
        entries = self.run(self.store.list("/")).entries
        return sorted(one.key for one in entries if one.key == KEY or one.key.split("/")[2] == "physics")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, MeddledStore(SystemClock()))
    lab.client.create({"kind": "project", "name": "physics"})
    yield lab
    lab.close()


def migrated(name: str, phase: Any = "Succeeded", project: str = "physics", **status: Any) -> tuple[Envelope, Envelope]:
    """A Migration, and the Decision that is its own."""
    told = MigrationStatus(phase=phase, **status)
    migration = MIGRATION.make(name, MigrationSpec(workload="vm/guarded"), 1.0, project=project, status=told)
    spec = DecisionSpec(workload=Ref("vm", "guarded", "u", project), policy="spread", at=1.0, took_ms=1.0, nodes=1)
    return migration, DECISION.make(f"migration.{name}", spec, 1.0, project=project, owner=migration)


def converted(name: str, phase: Any) -> Envelope:
    spec = ConversionSpec(workload="container/web", to="vm")
    return CONVERSION.make(name, spec, 1.0, project="physics", status=ConversionStatus(phase=phase))


def test_a_project_goes_with_what_has_ended_in_it(lab: Lab) -> None:
    others = migrated("guarded-1", project="default")
    lab.keep(*others, *(converted(f"web-{phase.lower()}", phase) for phase in ("Confirmed", "Undone", "Failed")))
    for number, phase in enumerate(("Succeeded", "Failed", "Cancelled")):
        lab.keep(*migrated(f"guarded-{number}", phase))
    lab.client.delete("project", "physics")
    assert lab.left() == []
    assert all(lab.stored(one.key) is not None for one in others)
    lab.journal.flush()
    told = [one.reason for one in lab.journal.read(about="project/physics")]
    assert sorted(told) == ["Created", "Deleted"]
    records = [read_record(line) for line in read_after(lab.folder / "audit", 0)]
    assert [[one.name for one in record.objects] for record in records if record.verb == "delete"] == [["physics"]]


SETTLING = MigrationArrival(name="a", project="p", cluster_uid="c")
UNDER_WAY = {
    "pending": (migrated("m", "Pending"), "migration/m"),
    "finishing": (migrated("m", "Finishing"), "migration/m"),
    "unsettled": (migrated("m", arrival=SETTLING), "migration/m"),
    "conversion": ((converted("web", "AwaitingConfirmation"),), "conversion/web"),
}


@pytest.mark.parametrize("marked", [False, True], ids=["", "marked by a request that was killed"])
@pytest.mark.parametrize("what", UNDER_WAY)
def test_what_goes_on_keeps_its_project_and_then_nothing_is_lost(lab: Lab, what: str, marked: bool) -> None:
    goes_on, named = UNDER_WAY[what]
    lab.keep(*migrated("guarded-1"), converted("web-2", "Confirmed"), *goes_on)
    project = lab.stored(KEY)
    assert project is not None
    project.deleting_since = 1.0 if marked else None
    lab.put(project)
    before = lab.left()
    with pytest.raises(InUse, match=f'^project "physics" is in use by {named}$'):
        lab.client.delete("project", "physics")
    assert lab.left() == before and lab.client.get("project", "physics")["deleting_since"] is None


def test_a_decision_whose_owner_has_just_gone_is_named_with_when_it_goes(lab: Lab) -> None:
    lab.keep(migrated("m")[1])
    with pytest.raises(InUse, match="is in use by decision") as refused:
        lab.client.delete("project", "physics")
    assert refused.value.hint == "what it belongs to was deleted, and it goes with that: try again in a moment"


def test_what_goes_on_is_found_beyond_the_first_page_and_all_pages_go(lab: Lab) -> None:
    lab.keep(*(one for number in range(520) for one in migrated(f"guarded-{number:03}")))
    lab.keep(*(one for number in range(6) for one in migrated(f"later-{number}", "Preparing")))
    named = ", ".join(f"migration/later-{number}" for number in range(5))
    with pytest.raises(InUse, match=f'^project "physics" is in use by {named} and more$'):
        lab.client.delete("project", "physics")
    assert len(lab.left()) == 1 + 2 * 526
    lab.keep(*(one for number in range(6) for one in migrated(f"later-{number}")))
    lab.client.delete("project", "physics")
    assert lab.left() == []


def test_a_controller_that_writes_meanwhile_delays_the_deletion_only(lab: Lab) -> None:
    migration, decision = migrated("guarded-1")
    lab.keep(migration, decision)
    times: list[int] = []

    async def write() -> None:
        times.append(1)
        if len(times) < 3:
            await lab.store.commit([Put(migration.key, encode_envelope(migration))])

    lab.store.meddle = write
    lab.client.delete("project", "physics")
    assert (lab.left(), len(times)) == ([], 3)


def test_a_request_that_is_killed_between_is_finished_by_a_repeated_one(lab: Lab) -> None:
    lab.keep(*(one for number in range(150) for one in migrated(f"guarded-{number:03}")))
    times: list[int] = []
    reached = threading.Event()

    async def hang() -> None:
        times.append(1)
        if len(times) == 3:
            reached.set()
            await asyncio.Event().wait()

    lab.store.meddle = hang
    thread = threading.Thread(target=ask_in_vain, args=(Http(lab.context),))
    thread.start()
    assert reached.wait(30)
    assert len(lab.left()) == 1 + 300 - 2 * MAX_WRITES
    lab.restart()
    thread.join(30)
    project = lab.stored(KEY)
    assert project is not None and project.deleting_since is not None
    with pytest.raises(WeftError, match="being deleted"):
        lab.client.create({"kind": "volume", "name": "data", "project": "physics", "spec": {"size": "1G"}})
    assert lab.client.http.request("DELETE", PATH).status == 200
    assert lab.left() == []


def ask_in_vain(http: Http) -> None:
    with contextlib.suppress(WeftError), contextlib.closing(http):
        http.request("DELETE", PATH)


def test_a_project_whose_mark_another_request_has_taken_back_stays_with_its_history(lab: Lab) -> None:
    lab.keep(*migrated("guarded-1"))
    before = lab.left()

    async def take_back() -> None:
        lab.store.meddle = None
        project = await lab.store.get(KEY)
        assert project is not None
        unmarked = msgspec.json.decode(project.value) | {"deleting_since": None}
        await lab.store.commit([Put(KEY, msgspec.json.encode(unmarked))])

    lab.store.meddle = take_back
    with pytest.raises(Unavailable, match="another deletion of project"):
        lab.client.delete("project", "physics")
    assert lab.left() == before
