"""``near: talkers`` and network_proximity by who talks to whom: rate × round trip, bounds, and what people may be told."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.scheduler.policies.test_policies import ask, choice, make, node, put

from weft.contracts.policy import SoftTerm
from weft.protocol.heartbeat import MOST_TALKERS
from weft.scheduler.constraint.talkers import describe_talkers, score_nearness
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.talkers import LEAST_RATE, MOST_HEARD, Talkers, Whereabouts

NEAR = SoftTerm("talkers", "web")


def fabric(*homes: tuple[str, str], project: str = "default") -> Snapshot:
    """n1 and n2 are near each other, n3 is far; workloads with their nodes."""
    snapshot = make(
        node("n1", round_trips={"uid-n2": 0.2, "uid-n3": 9.0}), node("n2", round_trips={"uid-n3": 9.0}), node("n3")
    )
    places = {name: Whereabouts("vm", project, name, f"uid-{home}") for name, home in homes}
    places["web"] = Whereabouts("vm", "default", "web", None)
    snapshot.talkers.locate = places.get
    return snapshot


def test_most_traffic_decides_and_the_round_trips() -> None:
    snapshot = fabric(("db", "n3"), ("cache", "n1"))
    put(snapshot, "n2", cpu=1)
    snapshot.talkers.put("web", {"db": 2e6, "cache": 1e6})
    assert choice(snapshot, ask("least_loaded", leans=(NEAR,))) == "n3"
    snapshot.talkers.put("web", {"db": 1e6, "cache": 2e6})
    assert choice(snapshot, ask("least_loaded", leans=(NEAR,))) == "n1"
    put(snapshot, "n1", cpu=8)
    assert choice(snapshot, ask("least_loaded", leans=(NEAR,))) == "n2", "the next nearest, though more is in use there"
    assert choice(snapshot, ask("least_loaded")) == "n3"


def test_network_proximity_reads_the_traffic_too() -> None:
    snapshot = fabric(("db", "n3"))
    snapshot.talkers.put("w", {"db": 2e6})
    row = Engine(snapshot, seed=0).choose(ask("network_proximity"), "w")
    assert row is not None and snapshot.names[row] == "n3"


def test_without_traffic_the_strategy_decides() -> None:
    snapshot = fabric(("db", "n3"))
    put(snapshot, "n1", cpu=1)
    snapshot.talkers.put("web", {"db": LEAST_RATE / 2})
    assert choice(snapshot, ask("least_loaded", leans=(NEAR,))) == "n2"
    assert "decides nothing" in describe_talkers(make(node("n1")), ask("least_loaded", leans=(NEAR,)), 0)[0]


def test_anti_affinity_wins_even_if_only_a_far_node_is_left() -> None:
    snapshot = fabric(("db", "n1"))
    snapshot.talkers.put("web", {"db": 1e9})
    put(snapshot, "n1", 1, 1, "default/x")
    put(snapshot, "n2", 1, 1, "default/x")
    apart = SoftTerm("apart", "default/x")
    assert choice(snapshot, ask("least_loaded", leans=(NEAR, apart))) == "n3"
    assert choice(snapshot, ask("least_loaded", leans=(NEAR,), apart=("default/x",))) == "n3"


def test_where_no_round_trip_is_known_the_peers_own_node_is_nearest() -> None:
    snapshot = make(node("n1"), node("n2"), node("n3"))
    values = score_nearness(snapshot, [("uid-n2", 5.0)])
    assert values[1] == 100.0 and np.all(values[[0, 2]] == 50.0)


@pytest.mark.parametrize("project", ["default", "red"])
def test_people_are_told_names_of_their_own_project_only(project: str) -> None:
    snapshot = fabric(("db", "n1"), project=project)
    snapshot.talkers.put("web", {"db": 3 * 2**20})
    [said] = describe_talkers(snapshot, ask("least_loaded", leans=(NEAR,)), 1)
    if project == "default":
        assert said == "near talkers: vm/db 3 MiB/s on n1, 0.2 ms away"
    else:
        assert said == "near talkers: workloads of other projects 3 MiB/s"


def test_what_is_kept_of_a_workload_is_bounded_and_goes_with_it() -> None:
    talkers = Talkers()
    talkers.put("web", {f"p{n}": float(n) for n in range(1000)} | {"web": 9e9, "bad": -1.0})
    assert [peer.uid for peer in talkers.of("web")] == [f"p{n}" for n in range(999, 999 - MOST_TALKERS, -1)]
    for number in range(2 * MOST_HEARD):
        talkers.put(f"q{number}", {"hub": 1.0 + number})
    assert len(talkers.of("hub")) == MOST_TALKERS and talkers.of("hub")[0].uid == f"q{2 * MOST_HEARD - 1}"
    talkers.prune(lambda uid: uid == "web")
    assert len(talkers) == 1 and talkers.of("hub") == []
    talkers.put("web", {})
    assert not talkers.of("web") and not talkers.of("p999")
