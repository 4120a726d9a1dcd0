"""Images made from VMs, at the API servers: who may ask for one, and what a node may send for it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, JoinedNode, make_image, make_vm

from weft.agent.server.client import RemoteServer
from weft.agent.server.line import ServerLine
from weft.contracts.store import Delete
from weft.kinds.image import ImageStatus
from weft.kinds.parts.image.work import ImageOrder, name_sent
from weft.objects.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, WeftError

CONTENT = b"an image" * 400_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    lab.client.create(make_vm("web"))
    yield lab
    lab.close()


def make(name: str = "gold", **spec: Any) -> dict[str, Any]:
    return {"kind": "image", "name": name, "spec": {"made_from": "vm/web", **spec}}


@pytest.mark.parametrize(
    ("spec", "field", "hint"),
    [
        ({"made_from": "container/web"}, "spec.made_from", "weft container convert web"),
        ({"made_from": "web"}, "spec.made_from", "write vm/web"),
        ({"url": "file:///srv/web.raw"}, "spec.url", "leave spec.url out"),
        ({"sha256": "a" * 64}, "spec.sha256", "leave spec.sha256 out"),
        ({"made_from": "", "url": "file:///srv/web.raw", "keep_identity": True}, "spec.keep_identity", "made_from"),
        ({"made_from": ""}, "spec.url", "spec.made_from"),
    ],
)
def test_an_image_has_one_source_which_is_a_vm_or_a_url(
    lab: ApiLab, spec: dict[str, Any], field: str, hint: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        lab.client.create(make(**spec))
    assert refused.value.field == field and hint in (refused.value.hint or "")


def test_the_vm_must_be_there_once_and_who_asks_must_be_allowed_to_take_snapshots_of_it(lab: ApiLab) -> None:
    with pytest.raises(NotFound, match='"nope" not found'):
        lab.client.create(make(made_from="vm/nope"))
    rules = {"image": ["create", "get"], "vm": ["get"]}
    lab.client.apply([{"kind": "role", "name": "maker", "spec": {"rules": rules}}])
    maker = lab.with_token(use="access", subject="eve", role="maker")
    assert maker.create(make_image("other"))["name"] == "other"
    with pytest.raises(Forbidden, match="make an image from vm/web") as refused:
        maker.create(make())
    assert "vm:snapshot" in (refused.value.hint or "")
    lab.client.create(make())
    with pytest.raises(AlreadyExists):
        lab.client.create(make())
    lab.run(lab.store.commit([Delete("/vm/default/web")]))
    lab.client.verb("image", "gold", "share", {"with": ["*"]})  # the source may be gone


def order(lab: ApiLab, node: JoinedNode) -> ImageOrder:
    """An image that the node is asked to make, once the server knows of it."""
    made = lab.client.create(make())
    envelope = lab.stored("/image/default/gold")
    assert envelope is not None
    given = ImageOrder(uid=made["uid"], name="default/gold", node_uid=node.uid, snapshot="s", disk="root")
    envelope.status = msgspec.Raw(msgspec.json.encode(ImageStatus(phase="Copying", order=given)))
    lab.put(envelope)
    while not node.report()["orders"].get("image"):
        pass
    return given


def test_what_a_node_has_the_order_to_make_is_kept_whole_under_its_digest_and_nothing_else_is(
    lab: ApiLab, tmp_path: Path
) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    given = order(lab, node)
    path, folder = tmp_path / "content", lab.settings.blobs
    path.write_bytes(CONTENT)

    def send(who: JoinedNode, uid: str = given.uid, sha256: str = DIGEST, name: str = "") -> None:
        RemoteServer(who.client, ServerLine(lab.clock)).send_image(
            name or who.name, uid, sha256, path, threading.Event()
        )

    for refused in (
        lambda: send(other),
        lambda: send(other, name="n1"),
        lambda: send(node, uid="another"),
        lambda: send(node, sha256="ab" * 32),
        lambda: send(node, sha256="../etc"),
    ):
        with pytest.raises((Forbidden, NotFound, InvalidInput)):
            refused()
    assert list(folder.iterdir()) == []
    send(node)
    send(node)  # as after an answer that was lost
    assert name_sent(folder, given.uid, DIGEST).read_bytes() == CONTENT
    assert len(list(folder.iterdir())) == 1


def test_what_comes_for_an_image_that_was_deleted_is_not_kept(lab: ApiLab, tmp_path: Path) -> None:
    node = lab.join("n1")
    given = order(lab, node)
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    found = lab.api.orders.find_all

    def find_late(kind: Any, node_uid: str) -> list[Any]:
        return found(kind, node_uid) or [given]  # as an API server that hasn't heard of the deletion yet

    lab.api.orders.find_all = find_late  # type: ignore[method-assign]
    lab.client.delete("image", "gold")
    with pytest.raises(WeftError, match="was deleted"):
        RemoteServer(node.client, ServerLine(lab.clock)).send_image("n1", given.uid, DIGEST, path, threading.Event())
    assert list(lab.settings.blobs.iterdir()) == []
