"""How new connections are split among a service's endpoints."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from weft.controllers.service.controller import share_nodes
from weft.controllers.service.plan import DRAINING, ServiceMember, plan_endpoints, round_shares
from weft.kinds.service import ALL, MOST_ENDPOINTS, Weight
from weft.objects.identity import Ref


def member(name: str, trouble: str = "", *, labels: Mapping[str, str] = {}, **more: Any) -> ServiceMember:
    ref = Ref("vm", name, f"uid-{name}", "default")
    number = int("".join(filter(str.isdigit, name)) or 0)
    return ServiceMember(workload=ref, labels=dict(labels), address=f"10.0.0.{number}", trouble=trouble, **more)


def weights(
    members: list[ServiceMember], *asked: Weight, split: Mapping[str, Mapping[str, int]] = {}
) -> dict[str, int]:
    return {one.workload.name: one.weight for one in plan_endpoints(members, asked, split)[0]}


def test_all_ready_ones_get_as_many_and_the_others_none() -> None:
    found, more = plan_endpoints(
        [member("w3"), member("w1"), member("w2", "it stopped"), member("w4", leaves=DRAINING)], [], {}
    )
    assert [(one.workload.name, one.ready, one.weight, one.reason) for one in found] == [
        ("w1", True, 500, ""),
        ("w2", False, 0, "it stopped"),
        ("w3", True, 500, ""),
        ("w4", True, 0, DRAINING),
    ]
    assert more == 0


def test_none_gets_any_where_none_is_ready() -> None:
    assert weights([member("w1", "no"), member("w2", leaves=DRAINING)]) == {"w1": 0, "w2": 0}
    assert plan_endpoints([], [], {}) == ([], 0)


def test_silent_ones_keep_their_share_only_where_hardly_any_answers() -> None:
    def of(ready: int, silent: int, *others: ServiceMember) -> dict[str, int]:
        names = [f"w{number}" for number in range(ready + silent)]
        return weights(
            [member(n, "" if at < ready else "silent", silent=at >= ready) for at, n in enumerate(names)] + [*others]
        )

    assert of(1, 5) == {f"w{number}": share for number, share in enumerate((167, 167, 167, 167, 166, 166))}
    assert of(0, 1) == {"w0": ALL} and of(0, 3) == {"w0": 334, "w1": 333, "w2": 333}
    assert of(2, 4) == {"w0": 500, "w1": 500} | dict.fromkeys(("w2", "w3", "w4", "w5"), 0), "a third answers"
    assert of(1, 1) == {"w0": ALL, "w1": 0} and of(1, 2) == {"w0": ALL, "w1": 0, "w2": 0}
    # What says no itself, or leaves, or doesn't run, gets none, and doesn't count.
    refuses = [member("x1", "connection refused"), member("x2", "it is stopped", runs=False)]
    assert of(0, 2, *refuses, member("x3", "silent", silent=True, leaves=DRAINING)) == {
        "w0": 500, "w1": 500, "x1": 0, "x2": 0, "x3": 0,
    }  # fmt: skip
    assert of(1, 1, *refuses) == {"w0": ALL, "w1": 0, "x1": 0, "x2": 0}


def test_more_than_can_be_kept_are_counted() -> None:
    found, more = plan_endpoints([member(f"w{number:03}") for number in range(MOST_ENDPOINTS + 7)], [], {})
    assert (len(found), more, sum(one.weight for one in found)) == (MOST_ENDPOINTS, 7, ALL)


def test_a_new_revision_and_those_that_run_have_places_beside_many_others() -> None:
    old = [member(f"a{number:03}", deployment="shop", revision="1") for number in range(150)]
    new = [member(f"b{number:03}", deployment="shop", revision="2") for number in range(150)]
    asked = weights([*old, *new], split={"shop": {"1": 0, "2": ALL}})
    assert len(asked) == MOST_ENDPOINTS and asked["b049"] == 20 and asked["a049"] == 0
    lost = [member(f"a{number:03}", "node n1 is lost", runs=False) for number in range(150)]
    leaving = [member(f"c{number:03}", leaves=DRAINING) for number in range(150)]
    assert weights([*lost, *leaving, member("z1"), member("z2", "not checked yet")]).keys() > {"z1", "z2"}


def test_what_has_one_label_is_divided_by_the_deployment_s_split() -> None:
    ours = {"app": "shop"}
    old = [member(f"a{number}", deployment="shop", revision="1", labels=ours) for number in range(2)]
    new = member("b1", deployment="shop", revision="2", labels=ours)
    split = {"shop": {"1": 900, "2": 100}}
    found = weights([*old, new, member("c1")], Weight("app", "shop", 500), split=split)
    assert found == {"a0": 225, "a1": 225, "b1": 50, "c1": 500}


def test_peoples_weights_divide_a_share_among_its_endpoints_and_the_rest_among_the_others() -> None:
    old = [member(f"old{number}") for number in range(3)]
    new = [member(f"new{number}", labels={"version": "2"}) for number in range(2)]
    assert weights([*old, *new], Weight("version", "2", 100)) == {
        "new0": 50, "new1": 50, "old0": 300, "old1": 300, "old2": 300
    }  # fmt: skip
    assert weights([*old, *new], Weight("version", "2", ALL)) == {
        "new0": 500, "new1": 500, "old0": 0, "old1": 0, "old2": 0
    }  # fmt: skip


def test_the_share_of_endpoints_that_are_all_gone_goes_to_those_that_are_left() -> None:
    new = member("new1", "it stopped", labels={"version": "2"})
    assert weights([member("old1"), new], Weight("version", "2", 900)) == {"new1": 0, "old1": ALL}
    assert weights([member("old1", "no"), member("new1", labels={"v": "2"})], Weight("v", "2", 1))["new1"] == ALL


def test_a_deployment_divides_what_its_instances_get_by_its_split() -> None:
    old = [member(f"a{number}", deployment="shop", revision="1") for number in range(3)]
    new = [member("b1", deployment="shop", revision="2")]
    assert weights([*old, *new], split={"shop": {"1": 900, "2": 100}}) == {"a0": 300, "a1": 300, "a2": 300, "b1": 100}
    assert weights([*old, *new], split={"shop": {"1": 0, "2": ALL}}) == {"a0": 0, "a1": 0, "a2": 0, "b1": ALL}
    assert weights([*old, *new], split={}) == {"a0": 250, "a1": 250, "a2": 250, "b1": 250}
    other = member("c1")
    assert weights([*old, *new, other], split={"shop": {"1": 500, "2": 500}})["c1"] == 200
    gone = [member("b1", "it stopped", deployment="shop", revision="2")]
    assert weights([*old, *gone], split={"shop": {"1": 0, "2": ALL}}) == {"a0": 334, "a1": 333, "a2": 333, "b1": 0}


def test_people_s_weights_win_over_a_deployment_s_split() -> None:
    old = member("a1", deployment="shop", revision="1", labels={"weft/revision": "1"})
    new = member("b1", deployment="shop", revision="2", labels={"weft/revision": "2"})
    split = {"shop": {"1": ALL, "2": 0}}
    assert weights([old, new], Weight("weft/revision", "2", 250), split=split) == {"a1": 750, "b1": 250}


def test_shares_are_rounded_so_that_all_is_given_and_nobody_who_has_one_gets_nothing() -> None:
    drawn = random.Random(4)
    for _ in range(300):
        shares = [drawn.choice((0.0, drawn.random(), drawn.random() / 1e6)) for _ in range(drawn.randint(0, 100))]
        whole = round_shares(shares)
        assert sum(whole) == (ALL if any(shares) else 0)
        assert all((one > 0) == (share > 0) for one, share in zip(whole, shares, strict=True))
    assert round_shares([1.0, *[1e-9] * 99]) == [901, *[1] * 99]


def test_a_published_port_goes_to_nodes_as_their_endpoints_weigh() -> None:
    members = [
        member("w1", node="n1", node_address="192.0.2.1"),
        member("w2", node="n1", node_address="192.0.2.1"),
        member("w3", node="n2", node_address="192.0.2.2"),
        member("w4", "it stopped", node="n3", node_address="192.0.2.3"),
    ]
    endpoints, _ = plan_endpoints(members, [], {})
    assert [(one.address, one.weight) for one in share_nodes(members, endpoints)] == [
        ("192.0.2.1", 667), ("192.0.2.2", 333)
    ]  # fmt: skip
