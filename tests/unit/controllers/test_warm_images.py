"""What is said of an image of which every node keeps a booted machine."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.store import Put
from weft.controllers.image.warm import WarmImages, describe_image, describe_nodes, describe_reasons
from weft.informer.view import Item, make_view
from weft.kinds.image import IMAGE, ImageSpec, ImageStatus, Warm, WarmInput, is_warm, is_warmed, read_cores
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.orders import OrderReports
from weft.kinds.parts.image.work import WarmReport
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import IllegalTransition, InvalidInput


def raw(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"n1": "ready", "n2": "ready"}, (True, "", "2 of 2 nodes")),
        ({"n1": "ready", "n2": "making"}, (False, "making", "1 of 2 nodes")),
        ({"n1": "ready", "n2": ""}, (False, "making", "1 of 2 nodes")),
        ({"n1": "ready", "n2": "no space"}, (False, "notWarm", "1 of 2 nodes; n2: no space")),
        ({}, (False, "noNode", "no node that is ready runs VMs")),
    ],
)
def test_the_condition_counts_nodes_and_says_why_one_has_none(
    words: dict[str, str], told: tuple[bool, str, str]
) -> None:
    assert describe_nodes(words) == told


@pytest.mark.parametrize(("order", "status"), [("512/1-4", "False"), ("1024/1-4", "True")])
def test_what_a_node_says_of_an_earlier_order_does_not_count(order: str, status: str) -> None:
    view = make_view()
    spec = ImageSpec(url="https://example.org/i.tar", warm=Warm(memory=1024))
    image = IMAGE.make(
        "i", spec, 1.0, uid="i", project="default", status=ImageStatus(phase="Available", sha256="ab", agent=True)
    )
    report = NodeReport(machines=["q35"], orders=OrderReports(warm=[WarmReport("ab", order, "ready")]))
    node = Envelope(kind="node", name="n1", uid="u1", report=raw(report), status=raw(NodeStatus(phase="Ready")))
    for envelope in (image, node):
        view.put_item(envelope.key, Item(envelope))
    [commit] = WarmImages().plan(view, [image.key], 2.0).commits
    [written] = [decode_envelope(write.value) for write in commit.writes if isinstance(write, Put)]
    told = written.condition("Warm")
    assert told is not None and told.status == status


def test_of_an_image_that_failed_the_condition_says_why_and_nobody_waits_for_nodes() -> None:
    failed = ImageStatus(phase="Failed", reason="fetchFailed", message="no route to host")
    assert describe_image(failed) == (False, "notWarm", "the image couldn't be fetched: no route to host")
    assert describe_image(ImageStatus(phase="Fetching")) is None
    obj = {"name": "i", "generation": 2, "spec": {"warm": {"memory": 0}}, "status": {"phase": "Failed"}}
    assert is_warmed(obj) and not is_warm(obj)
    assert not is_warmed({**obj, "status": {"phase": "Fetching"}})


@pytest.mark.parametrize(("form", "why"), [("qcow2", "lacks weft's agent"), ("oci", "is a container image")])
def test_an_image_that_no_node_can_boot_warm_is_refused_and_told_what_fits(form: str, why: str) -> None:
    (verb,) = [verb for verb in IMAGE.verbs if verb.name == "warm"]
    obj = {"name": "own", "spec": {"url": "https://x/y"}, "status": {"phase": "Available", "format": form}}
    with pytest.raises(IllegalTransition) as refused:
        verb.change(obj, WarmInput())
    assert why in str(refused.value) and "weft image build debian-12" in refused.value.hint
    assert verb.change(obj, WarmInput(off=True))["warm"] is None
    assert verb.change({**obj, "status": {"phase": "Fetching"}}, WarmInput())["warm"]
    told = describe_image(ImageStatus(phase="Available", format=form))  # it was ordered before the image was there
    assert told is not None and told[1] == "notWarm" and why in told[2]
    assert describe_image(ImageStatus(phase="Available", format="bundle", agent=True)) is None


def test_nodes_that_keep_a_machine_for_the_same_reason_are_named_together() -> None:
    told = {"n2": "ordered", "n1": "ordered", "n3": "3 VMs started here within a day"}
    assert describe_reasons(told) == "n1, n2: ordered; n3: 3 VMs started here within a day"
    many = describe_reasons({f"n{number:02}": "x" * 1000 for number in range(20)})
    assert many.startswith("n00, n01") and "and 12 more: x" in many and len(many) < 300


def test_a_range_of_cores_is_read() -> None:
    assert read_cores("1-4") == (1, 4) and read_cores("2") == (2, 2)


@pytest.mark.parametrize("text", ["", "0-2", "4-1", "1-17", "1-2-3", "a", "1.5", "-1", "²"])
def test_what_is_no_range_of_cores_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_cores(text)
    assert refused.value.field == "spec.warm.cpu" and refused.value.hint
