"""A VM that was handed over to the other fabric by a migration which a restore of the store lost: people take it back, and the
other fabric is asked first whether it ever ran there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.scenario.migration_lab import World
from tests.scenario.two_clusters_lab import Cluster, two_clusters

from weft.contracts.store import Delete, Put
from weft.kinds.allocation import AllocationSpec
from weft.objects.envelope import decode_part, encode_envelope, merge_part
from weft.objects.identity import object_key


@pytest.fixture
def worlds() -> list[World]:
    """What the next tries are like: the target doesn't hear of the hand-over until it is told."""
    return [World(deaf=True)]


@pytest.fixture
def clusters(tmp_path: Path, worlds: list[World]) -> Iterator[tuple[Cluster, Cluster]]:
    with two_clusters(tmp_path, worlds) as sides:
        yield sides


def hand_over_and_forget(east: Cluster, west: Cluster) -> World:
    """Hand a VM over to west, and have east's store be as before that. It is the world of that migration."""
    east.create_vm("web")
    name = east.migrate("web")
    worlds = east.lab.worlds
    east.until_true(lambda: bool(worlds) and next(iter(worlds.values())).handed_over)
    east.until("migration", name, lambda obj: obj["status"]["handed_over_at"] is not None)
    east.side.run(forget(east, object_key("migration", "default", name)))
    lost = east.until_phase("vm", "web", "Unknown")
    assert lost["status"]["reason"] == "handedOver" and "weft vm reclaim web" in lost["status"]["message"]
    return next(iter(worlds.values()))


async def forget(east: Cluster, migration: str) -> None:
    (place,) = await east.lab.every("allocation")
    spec = replace(decode_part(place.spec, AllocationSpec), role="active", migration=None)
    place.spec = merge_part(place.spec, spec)
    await east.side.store.commit([Delete(migration), Put(place.key, encode_envelope(place))])


def reclaim(cluster: Cluster, **given: Any) -> dict[str, Any]:
    """Ask for it, and wait for what comes of it: the condition."""
    cluster.client.verb("vm", "web", "reclaim", given, project="default")
    ended = cluster.until("vm", "web", lambda obj: not obj["actions"]["reclaim"])
    return find_told(ended)


def find_told(obj: dict[str, Any]) -> dict[str, Any]:
    return next((one for one in obj["conditions"] if one["type"] == "Reclaimed"), {})


def take_over(west: Cluster, world: World) -> None:
    """The target hears of the hand-over at last."""
    world.deaf = False
    (key,) = [one.key for one in west.side.run(west.lab.every("allocation"))]
    west.side.run(west.node.act(key))
    west.until_phase("vm", "web", "Running")


def test_a_guest_that_runs_at_the_other_cluster_is_taken_back_only_if_people_force_it(
    clusters: tuple[Cluster, Cluster],
) -> None:
    east, west = clusters
    world = hand_over_and_forget(east, west)
    take_over(west, world)
    refused = reclaim(east)
    assert (refused["status"], refused["reason"]) == ("False", "RunsThere"), refused
    assert "west says that it arrived there on w1" in refused["message"]
    assert east.find("vm", "web")["status"]["phase"] == "Unknown"  # type: ignore[index]
    assert west.runs("web")

    west.client.delete("vm", "web", project="default")  # and what it had written there is gone, too
    west.until("vm", "web", lambda obj: obj is None)
    assert reclaim(east)["reason"] == "RunsThere", "it has run there"
    world.taken_over = False  # the truth is that it runs nowhere now
    forced = reclaim(east, force=True)
    assert (forced["status"], forced["reason"]) == ("True", "Forced")
    back = east.until_phase("vm", "web", "Running")
    assert back["status"]["handed_over"] == ""


def test_a_guest_that_has_not_arrived_is_cancelled_there_and_goes_on_here_by_that_clusters_word(
    clusters: tuple[Cluster, Cluster],
) -> None:
    east, west = clusters
    world = hand_over_and_forget(east, west)
    west.until("arrival", west.list("arrival")[0]["name"], lambda obj: obj["status"]["phase"] == "Waiting")
    back = reclaim(east)
    assert (back["status"], back["reason"]) == ("True", "NeverRan")
    assert world.given_up and not world.taken_over
    east.until_phase("vm", "web", "Running")
    west.until("vm", "web", lambda obj: obj is None)
    west.until_true(lambda: west.list("arrival") == [])  # it may forget it


def test_a_cluster_that_knows_nothing_of_it_has_not_said_that_it_never_ran_there(
    clusters: tuple[Cluster, Cluster],
) -> None:
    east, west = clusters
    world = hand_over_and_forget(east, west)
    (arrival,) = west.list("arrival")
    gone = [object_key("arrival", "default", arrival["name"]), object_key("vm", "default", "web")]
    west.side.run(west.side.store.commit([Delete(key) for key in gone]))
    refused = reclaim(east)
    assert (refused["status"], refused["reason"]) == ("False", "NotKnownThere")
    assert "it may run there, or have run" in refused["message"]
    assert not east.runs("web")
    world.given_up = True
    assert reclaim(east, force=True)["reason"] == "Forced"
    east.until_phase("vm", "web", "Running")


def test_while_the_line_is_cut_it_goes_on_by_peoples_word(clusters: tuple[Cluster, Cluster]) -> None:
    east, west = clusters
    hand_over_and_forget(east, west)
    west.side.proxy.cut()
    east.side.wait_for("west", lambda status: status["phase"] == "Unreachable")
    told = reclaim(east)
    assert (told["status"], told["reason"]) == ("True", "NotAsked")
    assert "west was not asked (cluster west is Unreachable" in told["message"]
    east.until_phase("vm", "web", "Running")


def test_a_cluster_that_lets_this_one_ask_nothing_is_no_line_that_is_cut(clusters: tuple[Cluster, Cluster]) -> None:
    east, west = clusters
    hand_over_and_forget(east, west)
    west.client.delete("cluster", "east")
    east.side.wait_for("west", lambda status: status["phase"] == "Refused")
    refused = reclaim(east)
    assert (refused["status"], refused["reason"]) == ("False", "CantAsk")
    assert "cluster west is Refused" in refused["message"]
