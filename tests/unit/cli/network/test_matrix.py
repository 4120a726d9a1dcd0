"""Who sends how much to whom: each byte once, whoever's node answers, and nobody of another project by name."""

from __future__ import annotations

import random
from typing import Any

from weft.cli.network.matrix import draw_plot, draw_rows, has_nic
from weft.cli.output.terminal import Paint
from weft.protocol.traffic import OTHER_PROJECT, OUTSIDE, Traffic, make_matrix

Flow = dict[str, Any]


def flow(
    direction: str, peer: str, sent: int, received: int, network: str = "default", verdict: str = "allowed"
) -> Flow:
    own, other = ("source_name", "destination_name") if direction == "out" else ("destination_name", "source_name")
    packets = (sent // 100, received // 100)
    counts = {"sent_bytes": sent, "received_bytes": received, "packets": sum(packets), "sent_packets": packets[0]}
    return {"direction": direction, "network": network, "verdict": verdict, own: "x", other: peer, **counts}


ANSWERS = {
    "web": [flow("out", "db", 1000, 8000), flow("in", "", 300, 200), flow("in", OTHER_PROJECT, 0, 700)],
    "db": [flow("in", "web", 8000, 1000), flow("out", "", 100, 0), flow("in", "web", 0, 900, verdict="refused")],
}


def test_traffic_of_two_workloads_is_counted_once_and_the_rest_is_outside() -> None:
    matrix = make_matrix(["web", "db", "idle"], ANSWERS | {"idle": []})
    assert matrix.workloads == ["db", "idle", "web", OUTSIDE, OTHER_PROJECT] and matrix.unanswered == []
    assert matrix.traffic == [
        Traffic("db", "web", 8000, 80),
        Traffic("web", "db", 1000, 10),
        Traffic(OTHER_PROJECT, "web", 700, 7),
        Traffic("web", OUTSIDE, 300, 3),
        Traffic(OUTSIDE, "web", 200, 2),
        Traffic("db", OUTSIDE, 100, 1),
    ]


def test_what_a_silent_node_would_say_is_taken_from_the_peers() -> None:
    matrix = make_matrix(["web", "db"], {"web": ANSWERS["web"]})
    assert matrix.unanswered == ["db"]
    assert {(one.source, one.destination): one.bytes for one in matrix.traffic}["db", "web"] == 8000


def test_one_network_counts_alone() -> None:
    answers = {"web": [flow("out", "db", 1000, 0), flow("out", "db", 50, 0, "back")], "db": []}
    assert [one.bytes for one in make_matrix(["web", "db"], answers, "back").traffic] == [50]


def test_all_that_was_sent_is_in_the_matrix_whatever_the_flows() -> None:
    chance = random.Random(11)
    names = [f"w{n}" for n in range(6)]
    for _ in range(30):
        answers: dict[str, list[Flow]] = {name: [] for name in names}
        sent = received = 0
        for _ in range(40):
            one, two = chance.sample(names, 2)
            out, back = chance.randrange(1000), chance.randrange(1000)
            answers[one].append(flow("out", two, out, back))
            answers[two].append(flow("in", one, back, out))
            sent += out + back
            outside = chance.randrange(1000)
            answers[one].append(flow("in", "", 0, outside))
            received += outside
        found = make_matrix(names, answers).traffic
        assert sum(one.bytes for one in found if OUTSIDE not in (one.source, one.destination)) == sent
        assert sum(one.bytes for one in found if one.source == OUTSIDE) == received
        assert len({(one.source, one.destination) for one in found}) == len(found)


def test_a_plot_has_a_row_for_each_and_darker_cells_for_more() -> None:
    matrix = make_matrix(["web", "db"], ANSWERS)
    lines = draw_plot(matrix, Paint(False))
    assert len(lines) == len(matrix.workloads) + 2
    assert lines[1].startswith(" 1 db") and "██" in lines[1] and "▓▓" in lines[1] and "░░" not in lines[1]
    assert "8 KiB" in lines[-1] and draw_rows(matrix)[0][:2] == ["db", "web"]
    assert draw_plot(make_matrix([], {}), Paint(False))


def test_only_workloads_that_are_placed_in_the_network_are_asked() -> None:
    item = {"spec": {"networks": ["default:10.0.0.9", "back"]}, "status": {"node": "n1"}}
    assert has_nic(item, "") and has_nic(item, "back") and has_nic(item, "default") and not has_nic(item, "front")
    assert not has_nic({**item, "status": {}}, "") and not has_nic({"spec": {}, "status": {"node": "n1"}}, "")
