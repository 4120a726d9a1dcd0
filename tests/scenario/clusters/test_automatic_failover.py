"""A replication that people make automatic, over two linked clusters and a witness: the other cluster is told only once the nodes
hold the VM, and the nodes let go only once the other cluster has answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.scenario.clusters.test_link_witness import put_guarded, put_pair, set_witness, wait_until
from tests.scenario.link_lab import Side, two_sides
from tests.witness_place import WitnessPlace

from weft.client.cluster.peer import connect_peer
from weft.controllers.failover import facts
from weft.kinds.node import NODE, NodeReport, NodeSpec
from weft.objects.errors import IllegalTransition


def report_guard(east: Side, word: str) -> None:
    """What the node says of its guest."""
    report = NodeReport(guards={"w": word} if word else {}, guard="yes")
    east.put(NODE.make("n1", NodeSpec(), 1.0, uid="u1", report=report))


def guards(east: Side) -> tuple[str, str, str]:
    """Of the replication, the VM, and its allocation."""
    placed = east.client.list("allocation").items
    return (
        east.client.get("replication", "web")["marks"]["guard"],
        east.client.get("vm", "web")["marks"]["guard"],
        placed[0]["spec"]["guard"],
    )


def said(east: Side) -> dict[str, Any]:
    conditions = east.client.get("replication", "web").get("conditions") or ()
    return next((one for one in conditions if one["type"] == "Automatic"), {"reason": "-"})


def is_automatic(west: Side) -> bool:
    return bool(west.client.get("replica", "web")["marks"]["automatic"])


def set_spec(east: Side, **spec: Any) -> None:
    east.client.patch("replication", "web", {"spec": spec})


def test_a_replica_takes_over_only_while_the_vm_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "PROMISE_SECONDS", 60.0)
    place = WitnessPlace(tmp_path)
    place.start()
    try:
        with two_sides(tmp_path) as (east, west):
            east.link(
                "west",
                west,
                west.link_token("east", grants=["replicate", "take-over"], projects={"default": "default"}),
                projects={"default": "default"},
            )
            put_pair(east, west)
            put_guarded(east, guard="")
            report_guard(east, "")
            set_spec(east, automatic=True)
            wait_until(lambda: said(east)["reason"] == "Off" and "weft cluster witness west" in said(east)["message"])
            for side, name, site in ((east, "west", "east"), (west, "east", "west")):
                set_witness(side, name, place, site)
            wait_until(lambda: guards(east) == ("begin", "begin", "begin"))
            report_guard(east, "ready")
            wait_until(lambda: guards(east) == ("hold", "hold", "hold"))
            wait_until(lambda: said(east)["message"] == "n1 doesn't hold the VM yet")
            assert not is_automatic(west)
            report_guard(east, "held")
            wait_until(lambda: said(east)["reason"] == "Armed")
            assert is_automatic(west)
            with pytest.raises(IllegalTransition, match="takes over automatically"):
                west.client.verb("replica", "web", "promote")
            place.kill()  # its word would end the hold, too
            west.proxy.cut()
            east.client.verb("replication", "web", "pause")
            wait_until(lambda: said(east)["reason"] == "Releasing" and "run-alone" in said(east)["message"])
            assert guards(east) == ("release", "hold", "hold") and is_automatic(west)
            west.proxy.mend()
            place.start()
            wait_until(lambda: guards(east) == ("", "", ""))
            wait_until(lambda: "n1 doesn't let the VM go yet" in said(east)["message"])
            report_guard(east, "")
            wait_until(lambda: said(east)["reason"] == "Off")
            assert not is_automatic(west)
            # A word of before that comes late counts nothing.
            late = {"origin": "a" * 32, "automatic": True, "arming": 1}
            client = connect_peer(east.peer("west")).ask_for("default")
            with pytest.raises(IllegalTransition, match="a later turn"):
                client.verb("replica", "web", "arm", late, project="default")
            client.close()
            assert not is_automatic(west)
            # People who are sure need no answer.
            east.client.verb("replication", "web", "resume")
            wait_until(lambda: guards(east)[0] == "begin")
            report_guard(east, "ready")
            wait_until(lambda: guards(east)[0] == "hold")
            west.proxy.cut()
            east.client.verb("replication", "web", "run-alone")
            wait_until(lambda: guards(east) == ("", "", ""))
            assert not east.client.get("replication", "web")["spec"]["automatic"]
    finally:
        place.kill()
