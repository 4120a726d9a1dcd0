"""Messages of devices that wait for functions: which topics fit, how much is kept, what is dropped, and whose turn it is."""

from __future__ import annotations

import itertools

import pytest

from weft.edge.rule.trigger import MOST_OF_DEVICE, MOST_OF_FUNCTION, MOST_WAITING, TriggerQueue
from weft.kinds.fields.device.affordance import MOST_TOPICS, check_topics, read_topic
from weft.objects.errors import InvalidInput
from weft.protocol.devices import MOST_MESSAGE_BYTES, MOST_MESSAGES, DeviceMessage


def make(**topics: list[str]) -> TriggerQueue:
    ids = itertools.count()
    queue = TriggerQueue(lambda: f"id-{next(ids)}")
    queue.put_topics("shop", topics)
    return queue


def settle(queue: TriggerQueue, batch: tuple[str, list[DeviceMessage], int, int]) -> None:
    function, messages, *told = batch
    queue.settle_dropped(function, *told)
    queue.settle(function, messages)


def take_all(queue: TriggerQueue) -> list[tuple[str, str]]:
    taken = []
    while (batch := queue.take()) is not None:
        taken += [(batch[0], one.topic) for one in batch[1]]
        settle(queue, batch)
    return taken


def test_events_and_changed_values_invoke_the_functions_whose_topics_they_fit() -> None:
    queue = make(
        every=["weft/shop/+/event"],
        one=["weft/shop/fridge/event", "weft/shop/fridge/reported/door"],
        warm=["weft/shop/+/reported/temperature"],
    )
    queue.note_event("shop", "fridge", {"alarm": True}, 5.0)
    queue.note_event("shop", "oven", {"alarm": True}, 5.0)
    queue.note_values("shop", "oven", {"temperature": 200.0, "door": "open"}, 6.0)
    queue.note_values("shop", "fridge", {"door": "open"}, 7.0)
    assert sorted(take_all(queue)) == [
        ("every", "weft/shop/fridge/event"),
        ("every", "weft/shop/oven/event"),
        ("one", "weft/shop/fridge/event"),
        ("one", "weft/shop/fridge/reported/door"),
        ("warm", "weft/shop/oven/reported/temperature"),
    ]
    assert queue.count == 0


def test_devices_and_topics_of_another_project_invoke_nothing() -> None:
    queue = make(every=["weft/shop/+/event", "weft/plant/+/event"])
    queue.note_event("plant", "press", {"alarm": True}, 5.0)
    assert queue.take() is None
    queue.note_event("shop", "fridge", {"alarm": True}, 5.0)
    queue.put_topics("plant", {"every": ["weft/plant/+/event"]})  # the node takes another project's devices now
    assert queue.take() is None and queue.count == 0


def test_a_device_that_floods_fills_no_more_than_the_bound_and_what_is_dropped_is_counted_once() -> None:
    queue = make(flooded=["weft/shop/loud/event"], calm=["weft/shop/calm/event"], other=["weft/shop/third/event"])
    for n in range(MOST_OF_DEVICE + 7):
        queue.note_event("shop", "loud", {"n": n}, 5.0)
    queue.note_event("shop", "calm", {"n": 1}, 5.0)  # one function's flood takes no other's place
    assert queue.count == MOST_OF_DEVICE + 1 and queue.dropped == 7
    function, messages, dropped, _ = queue.take() or ("", [], 0, 0)
    assert (function, len(messages), dropped) == ("flooded", MOST_MESSAGES, 7)
    assert [one.data["n"] for one in messages] == [*range(MOST_MESSAGES)], "the oldest first"
    queue.give_turn("flooded")  # the server is away
    batch = queue.take()
    assert batch is not None and batch[0] == "calm"
    settle(queue, batch)
    again = queue.take()
    assert again is not None and (again[0], again[2], again[1][0].id) == ("flooded", 7, messages[0].id)
    settle(queue, again)
    assert (queue.take() or ("", [], 1, 0))[2] == 0, "nobody is told twice"


@pytest.mark.parametrize("functions", [1, 3])
def test_an_alarm_has_a_place_however_many_messages_others_send(functions: int) -> None:
    queue = make(**{f"f{n}": ["weft/shop/+/event"] for n in range(functions)})
    for n in range(MOST_WAITING):
        for device in ("loud", "louder", "loudest"):
            queue.note_event("shop", device, {"n": n}, 5.0)
    assert queue.count == min(MOST_WAITING, MOST_OF_FUNCTION * functions)
    dropped = queue.dropped
    queue.note_event("shop", "quiet", {"alarm": True}, 6.0)
    assert queue.count == min(MOST_WAITING, MOST_OF_FUNCTION * functions)
    assert queue.dropped == dropped + functions
    taken, told = [], 0
    while (batch := queue.take()) is not None:
        taken += [one.device for one in batch[1]]
        told += batch[2]
        settle(queue, batch)
    assert taken.count("quiet") == functions, "the alarm is there for each of them"
    assert told == queue.dropped and queue.count == 0


def test_a_message_that_is_too_large_is_dropped() -> None:
    queue = make(every=["weft/shop/+/event"])
    queue.note_event("shop", "fridge", {"x": "y" * MOST_MESSAGE_BYTES}, 5.0)
    assert queue.take() == ("every", [], 1, 1)


def test_what_waits_for_a_function_without_topics_is_forgotten() -> None:
    queue = make(every=["weft/shop/+/event"])
    queue.note_event("shop", "fridge", {}, 5.0)
    queue.put_topics("shop", {})
    assert queue.take() is None and queue.count == 0


@pytest.mark.parametrize(
    "topic",
    [
        "#",
        "weft/+/+/event",
        "weft/shop/fridge",
        "weft/shop/fridge/command",
        "weft/shop/fridge/reported",
        "weft/shop/fridge/event/x",
        "weft/shop/#/event",
        "weft/shop/fridge/reported/a b",
        "other/shop/fridge/event",
        "weft/shop/Fridge/event",
        "weft/shop/fridge/reported/" + "x" * 300,
    ],
)
def test_what_is_no_topic_of_devices_is_refused_with_the_form(topic: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_topic(topic, "spec.topics[0]")
    assert refused.value.field == "spec.topics[0]" and "weft/PROJECT/DEVICE/event" in refused.value.hint


def test_topics_are_of_the_own_project_each_once_and_bounded() -> None:
    check_topics(["weft/shop/+/event", "weft/shop/+/reported/+"], "spec.topics", "shop")
    with pytest.raises(InvalidInput, match="of project plant") as refused:
        check_topics(["weft/plant/+/event"], "spec.topics", "shop")
    assert "weft/shop/" in refused.value.hint
    with pytest.raises(InvalidInput, match="twice"):
        check_topics(["weft/shop/+/event"] * 2, "spec.topics")
    with pytest.raises(InvalidInput, match="topics"):
        check_topics([f"weft/shop/d{n}/event" for n in range(MOST_TOPICS + 1)], "spec.topics")
