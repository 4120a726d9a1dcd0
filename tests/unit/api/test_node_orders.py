"""A node gets its own orders, whatever others have."""

from __future__ import annotations

import msgspec

from weft.api.node.orders import OrdersByNode, find_replication_order
from weft.kinds.fields.replication.work import AskOrder, SendOrder
from weft.kinds.replication import REPLICATION, ReplicationSpec, ReplicationStatus
from weft.objects.envelope import Envelope, merge_part


def make_ask(node_uid: str, number: int = 1) -> AskOrder:
    return AskOrder(uid="r", node_uid=node_uid, attempt=number, cluster="west", project="lab", replica="web")


def test_a_report_looks_at_the_orders_of_its_node_alone() -> None:
    """Each replication at rest has one: a look at all of them for each report would be n times n."""
    found = {f"/replication/default/web-{number}": make_ask(f"n{number % 100}") for number in range(1000)}
    looked = list[str]()

    def look(order: AskOrder) -> str:
        looked.append(order.node_uid)
        return order.node_uid

    orders = OrdersByNode[AskOrder](found.get, look)
    for key in found:
        orders.note(key)
    looked.clear()
    assert len(orders.of("n7")) == 10 and orders.of("unknown") == [] and looked == []


def test_an_order_that_changes_moves_or_goes_is_not_found_at_its_former_node() -> None:
    found = {"a": make_ask("n1"), "b": make_ask("n1", 2)}
    orders = OrdersByNode[AskOrder](found.get, lambda order: order.node_uid)
    for key in ("a", "b", "a"):
        orders.note(key)
    assert orders.of("n1") == [found["a"], found["b"]]
    found["a"] = make_ask("n1", 3)
    orders.note("a")
    assert orders.of("n1") == [found["a"], found["b"]]
    found["a"] = make_ask("n2", 4)
    orders.note("a")
    assert (orders.of("n1"), orders.of("n2")) == ([found["b"]], [found["a"]])
    found.clear()
    for key in ("a", "b", "c"):
        orders.note(key)
    assert (orders.of("n1"), orders.of("n2")) == ([], [])


def make_replication(status: ReplicationStatus) -> Envelope:
    made = REPLICATION.make("web", ReplicationSpec(of="vm/web", cluster="west"), 0.0, project="lab")
    return msgspec.structs.replace(made, status=merge_part(made.status, status))


def test_a_point_to_send_comes_before_the_question() -> None:
    ask = make_ask("n1")
    send = SendOrder(**msgspec.structs.asdict(ask), manifest={}, snapshot="s")
    assert find_replication_order(make_replication(ReplicationStatus(order=send, ask=ask))) == send
    assert find_replication_order(make_replication(ReplicationStatus(ask=ask))) == ask
    assert find_replication_order(make_replication(ReplicationStatus())) is None
