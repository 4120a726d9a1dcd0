"""A node gets its own orders, whatever others have."""

from __future__ import annotations

import msgspec

from weft.api.node.orders import OrdersByNode, find_orders
from weft.kinds.fields.replication.work import AskOrder, SendOrder
from weft.kinds.replication import REPLICATION, ReplicationSpec, ReplicationStatus
from weft.objects.envelope import Envelope, merge_part


def make_ask(node_uid: str, number: int = 1) -> AskOrder:
    return AskOrder(uid="r", node_uid=node_uid, attempt=number, cluster="west", project="lab", replica="web")


def test_a_node_has_its_own_orders_however_many_others_have() -> None:
    rung = list[str]()
    orders = OrdersByNode(rung.append)
    for number in range(1000):
        orders.note(f"/replication/default/web-{number}", {"ask": make_ask(f"n{number % 100}")})
    assert len(orders.list("ask", "n7")) == 10 and not orders.list("ask", "unknown") and not orders.list("send", "n7")
    assert len(rung) == 1000


def test_an_order_that_changes_moves_or_goes_is_not_found_at_its_former_node() -> None:
    rung = list[str]()
    orders, first, second = OrdersByNode(rung.append), make_ask("n1"), make_ask("n1", 2)
    for key, order in (("a", first), ("b", second), ("a", first)):
        orders.note(key, {"ask": order})
    assert [*orders.list("ask", "n1")] == [first, second] and rung == ["n1", "n1"]
    orders.note("a", {"ask": make_ask("n1", 3)})
    assert [*orders.list("ask", "n1")] == [make_ask("n1", 3), second]
    rung.clear()
    orders.note("a", {"ask": make_ask("n2", 4)})
    assert ([*orders.list("ask", "n1")], [*orders.list("ask", "n2")]) == ([second], [make_ask("n2", 4)])
    assert sorted(rung) == ["n1", "n2"]
    for key in ("a", "b", "c"):
        orders.note(key, {})
    assert not orders.list("ask", "n1") and not orders.list("ask", "n2")


def make_replication(status: ReplicationStatus) -> Envelope:
    made = REPLICATION.make("web", ReplicationSpec(of="vm/web", cluster="west"), 0.0, project="lab")
    return msgspec.structs.replace(made, status=merge_part(made.status, status))


def test_a_point_to_send_comes_before_the_question() -> None:
    ask = make_ask("n1")
    send = SendOrder(**msgspec.structs.asdict(ask), manifest={}, snapshot="s")
    found = find_orders("replication", make_replication(ReplicationStatus(order=send, ask=ask)))
    assert found == {"send": send}
    assert find_orders("replication", make_replication(ReplicationStatus(ask=ask))) == {"ask": ask}
    assert find_orders("replication", make_replication(ReplicationStatus())) is None
