"""What is said of a function whose topics no message can have."""

from __future__ import annotations

import pytest

from weft.controllers.device.topics import MOST_SAID, list_named, plan_topics
from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.fields.device.affordance import Property
from weft.objects.envelope import Condition

DEVICES = {"fridge-1": "cold", "door-7": ""}
MODELS = {
    "cold": DeviceModelSpec(properties={"temperature": Property(type="number")}),
    "pump": DeviceModelSpec(properties={"pressure": Property(type="number")}),
}


def plan(*topics: str, is_taken: bool = True, too_many: str = "") -> Condition:
    return plan_topics(topics, "default", DEVICES, MODELS, is_taken=is_taken, too_many=too_many, now=5.0)


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("weft/default/+/event", ""),
        ("weft/default/fridge-1/event", ""),
        ("weft/default/+/reported/+", ""),
        ("weft/default/+/reported/pressure", ""),
        ("weft/default/fridge-1/reported/temperature", ""),
        ("weft/default/door-7/reported/anything", ""),  # it has no device model yet, and says so itself
        ("weft/default/fridge-2/event", "there is no device fridge-2"),
        ("weft/default/+/reported/temprature", "has a property temprature; did you mean temperature?"),
        ("weft/default/fridge-1/reported/pressure", "has a property pressure"),
    ],
)
def test_a_topic_that_no_device_can_send_is_said_with_what_was_meant(topic: str, words: str) -> None:
    found = plan("weft/default/+/event", topic)
    assert found.status == ("False" if words else "True")
    assert words in found.message and (not words or found.message.startswith(topic))


def test_a_project_that_no_node_takes_devices_of_is_said_with_the_command() -> None:
    found = plan("weft/default/+/event", is_taken=False)
    assert (found.reason, found.status) == ("noGateway", "False")
    assert found.message.endswith("weft node set NODE --devices-project default")
    assert plan("weft/default/+/event", too_many="this is one more").message == "this is one more"


def test_of_many_topics_only_some_are_said() -> None:
    found = plan(*(f"weft/default/no-{number}/event" for number in range(16)))
    assert found.message.count("there is no device") == MOST_SAID and found.message.endswith("and 12 more")


def test_the_devices_that_topics_name_are_those_that_are_looked_up() -> None:
    assert list_named(["weft/default/+/event", "weft/default/a/event", "weft/default/b/reported/t", "odd"]) == {
        "a",
        "b",
    }
