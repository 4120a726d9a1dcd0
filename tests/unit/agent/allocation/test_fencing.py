"""Which incarnation of a workload makes another one on its node superfluous, or has to wait for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from weft.agent.allocation.fencing import relate
from weft.agent.state.allocation_state import AllocationState


@dataclass
class Place:
    """As much of a state as is looked at: an allocation, whether it runs, and what it is told."""

    incarnation: int
    orphan: bool = False
    alive: bool = True
    volumes: tuple[str, ...] = ()
    workload: str = "web"
    released: bool = False
    replaced: bool = False
    told: tuple[bool, str] = (False, "")
    uid: str = field(init=False)

    def __post_init__(self) -> None:
        self.uid = f"{self.workload}.{self.incarnation}{'-orphan' if self.orphan else ''}"

    @property
    def local(self) -> Any:
        volumes = [SimpleNamespace(uid=uid, name=uid) for uid in self.volumes]
        owner = SimpleNamespace(uid=self.workload)
        spec = SimpleNamespace(role="active", workload=owner, volumes=volumes, incarnation=self.incarnation)
        return SimpleNamespace(uid=self.uid, spec=spec, what=self.workload)

    @property
    def checkpoint(self) -> Any:
        return SimpleNamespace(orphan=self.orphan)

    def relate(self, *, superseded: bool, blocked: str) -> None:
        self.told = (superseded, blocked)


def tell(places: Iterable[Place], superseded: set[str] | None = None) -> None:
    places = list(places)
    for place in places:
        place.replaced = place.uid in (superseded or set())
    relate(cast("list[AllocationState]", places))


def test_a_later_incarnation_that_the_server_lists_supersedes() -> None:
    old, new = Place(1), Place(2)
    tell([old, new])
    assert old.told == (True, "") and not new.told[0]
    assert new.told[1] == "another incarnation of it still runs on this node"


def test_an_orphan_s_later_incarnation_ends_nobody() -> None:
    """It may be of a history that was lost: only what the server lists is evidence."""
    listed, orphan = Place(3), Place(4, orphan=True)
    tell([listed, orphan])
    assert not listed.told[0], "the guest that the server lists would be ended"


def test_an_orphan_is_superseded_by_the_server_s_word_or_by_what_it_lists() -> None:
    told, beside = Place(1, orphan=True), Place(2, orphan=True, workload="db")
    tell([told, beside, Place(3, alive=False, workload="db")], {told.uid})
    assert told.told[0] and beside.told[0]


def test_who_writes_to_a_volume_is_waited_for() -> None:
    writer, next_one = Place(1, orphan=True, volumes=("data",)), Place(1, workload="db", alive=False, volumes=("data",))
    tell([writer, next_one])
    assert next_one.told == (False, "web, which the server doesn't know, still writes to volume data on this node")
    assert not writer.told[1]
