"""How many subscriptions to what isn't its own one device may have."""

from __future__ import annotations

import pytest

from weft.edge.broker.subscription import MOST_FOREIGN, SubscriptionWatch, read_subscription


@pytest.mark.parametrize(
    ("line", "is_read_as"),
    [
        ("shop.lamp 1 weft/shop/lamp/command", ("shop.lamp", "weft/shop/lamp/command")),
        ("shop.lamp 0 a topic with 2 spaces", ("shop.lamp", "a topic with 2 spaces")),
        ("Error: Address already in use", None),
        ("Error: 1", None),
        ("", None),
    ],
)
def test_a_line_of_a_subscription_is_told_from_a_complaint(line: str, is_read_as: tuple[str, str] | None) -> None:
    assert read_subscription(line) == is_read_as


def test_a_device_may_subscribe_to_its_own_topics_for_ever_and_to_others_a_few_times() -> None:
    watch = SubscriptionWatch()
    for topic in ("weft/shop/lamp/command", "weft/shop/lamp/desired", "weft/shop/lamp/#", "weft/shop/lamp/+") * 100:
        assert not watch.note("shop.lamp", topic)
    assert not any(watch.note("shop.lamp", f"weft/other/lamp/{number}") for number in range(MOST_FOREIGN))
    assert not watch.note("shop.door", "#")
    assert watch.note("shop.lamp", "weft/other/lamp/#")


def test_what_is_counted_of_devices_that_are_gone_is_forgotten() -> None:
    watch = SubscriptionWatch()
    for number in range(MOST_FOREIGN):
        watch.note("shop.lamp", str(number))
    watch.keep({"shop.door"})
    assert not watch.note("shop.lamp", "#")
