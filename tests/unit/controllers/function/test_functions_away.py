"""Events about functions whose own nodes send no heartbeat."""

from __future__ import annotations

from typing import Any

from weft.controllers.function.away import FunctionsAway
from weft.informer.view import Changed, Item, make_view
from weft.kinds.function import FUNCTION, FunctionSpec, FunctionStatus
from weft.objects.envelope import merge_part


def make(**status: Any) -> Item:
    envelope = FUNCTION.make("label", FunctionSpec(code="c"), 1.0, uid="u", project="default")
    envelope.status = merge_part(envelope.status, FunctionStatus(**status))
    return Item(envelope)


def test_that_a_node_is_away_is_said_once_and_its_return_is_left_to_the_node() -> None:
    before, away = make(phase="Ready"), make(phase="Ready", away_nodes=["n3"])
    view = make_view()
    view.put_item(away.key, away)
    controller = FunctionsAway()

    def woken(old: Item | None, new: Item | None) -> list[str]:
        return list(controller.route(view, Changed("/function/default/label", old, new)))

    assert woken(before, away) == [away.key]
    assert woken(None, away) == woken(away, away) == woken(away, before) == woken(away, None) == []
    [commit] = controller.plan(view, [away.key], 2.0).commits
    [event] = commit.events
    assert (event.type, event.reason) == ("Warning", "NotServedAtNode")
    assert event.message == "node n3 sends no heartbeat: it serves this as it is now once it is back"
